"""Download a dataset with the official Kaggle client: whole or not at all, and every
fault in one sentence.
"""

import base64
import errno
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import sys
import time
import zipfile
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from kit.archive import MIB, ArchiveError, shown, unpack

SETTINGS = "https://www.kaggle.com/settings/api"
PAGE = "https://www.kaggle.com/datasets/{reference}"
BROWSER = f"or download {PAGE} in a browser elsewhere and save the zip as {{archive}}"
# Each fault: what is wrong, and the one thing to do next.
FAULTS = {
    "no credentials": (
        "No Kaggle credentials were found",
        (
            f"create a token at {SETTINGS} and give it as KAGGLE_API_TOKEN or"
            " ~/.kaggle/access_token, or a legacy key as KAGGLE_USERNAME and"
            " KAGGLE_KEY or ~/.kaggle/kaggle.json (on Colab: as secrets of the same"
            " names, or upload kaggle.json when asked), then run again;"
            " SOURCE='sample' needs none"
        ),
    ),
    "no key": (
        "{file} holds no Kaggle key",
        f"create one at {SETTINGS}, put it in its place, then run again",
    ),
    "401": (
        "Kaggle answered 401, it does not accept {account}",
        f"create a new one at {SETTINGS}, put it in its place, then run again",
    ),
    "403": (
        "Kaggle answered 403, this account may not download {reference} yet",
        (
            f"log in, open {PAGE} and press Download once to accept its rules, then run"
            " again (if there is no such page any more, ask your teacher for the"
            " images)"
        ),
    ),
    "404": (
        "Kaggle answered 404, {reference} is not there",
        (
            f"look at {PAGE}; if it has gone, ask your teacher for the images and give"
            " the folder above them as SOURCE"
        ),
    ),
    "429": ("Kaggle answered 429, too many downloads", "wait {wait}, then run again"),
    "5xx": (
        "Kaggle answered {status}, its server has trouble",
        "run again in some minutes",
    ),
    "other answer": (
        "Kaggle answered {status}",
        "update its client (pip install -U kaggle), then run again",
    ),
    "unreachable": (
        "Kaggle cannot be reached from this machine",
        f"connect it to the internet and run again, {BROWSER}",
    ),
    "proxy": (
        "A proxy or firewall of this network does not let Kaggle through",
        f"use another network and run again, {BROWSER}",
    ),
    "web page": (
        (
            "A web page came instead of the images, as from a network that wants a"
            " login first"
        ),
        f"open any page in a browser, log in there and run again, {BROWSER}",
    ),
    "broken off": (
        "The connection to Kaggle broke off",
        "check the network and run again, {kept} of the download are kept",
    ),
    "damaged": (
        "Kaggle delivered a damaged archive ({what})",
        "run again later; nothing of it was kept",
    ),
    "refused": (
        "The archive of {reference} {what} and was not unpacked",
        (
            "do not trust it; ask your teacher for the images and give the folder above"
            " them as SOURCE"
        ),
    ),
    "your zip": ("{archive} {what}", "delete it and run again, it is then downloaded"),
    "disk": (
        "The disk is too full to download {reference}{what}",
        "free some space or choose another HOME, then run again",
    ),
    "disk, unpacking": (
        "{archive} {what}",
        "free some space, then run again; it is not downloaded a second time",
    ),
    "not writable": (
        "{folder} cannot be written ({what})",
        "choose another HOME, then run again",
    ),
    "client": (
        "The Kaggle client failed ({what})",
        "install it anew (pip install -U kaggle six), then run again",
    ),
}
# seconds before another try; one that brings the download forward begins the row anew
WAITS = (2, 5, 15, 30)
PATIENCE = 120  # seconds: a server that asks for more is not waited for
# seconds to connect, and between two pieces: the client itself would wait for ever
TIME_LIMITS = (10, 60)


class DownloadError(RuntimeError):
    """A dataset that was not downloaded.

    Attributes
    ----------
    kind : str
        A key of FAULTS.
    reason : str
        What was wrong, without what to do next.
    """

    def __init__(self, kind: str, **values):
        self.kind, (reason, step) = kind, FAULTS[kind]
        self.reason = reason.format(**values)
        super().__init__(f"{self.reason}: {step.format(**values)}.")


@dataclass(frozen=True)
class Credentials:
    """What opens Kaggle, and where it was found; only the latter is ever shown."""

    account: str
    token: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    uploaded: Path | None = None  # the file that the prompt on Colab made


def install(reference: str, place: Path) -> None:
    """Bring a Kaggle dataset to the folder `place`, unless it is there; one process at
    a time.

    A zip named <dataset>.zip beside `place`, downloaded by hand, is taken instead of
    asking Kaggle.

    Parameters
    ----------
    reference : str
        owner/dataset

    Raises
    ------
    DownloadError
        See FAULTS. `place` does not exist then.
    """
    name = reference.split("/")[1]
    given, own = place.with_name(f"{name}.zip"), place.with_name(f".{name}.zip")
    with _alone(place):
        if place.is_dir():
            return
        archive = given if given.exists() else own
        if not archive.exists():
            fetch(reference, archive)
        print(f"Unpacking {archive.name} to {place}")
        try:
            links = unpack(archive, place)
        except ArchiveError as error:
            raise _not_unpacked(error, reference, archive, given) from None
        if links:
            print(f"Links inside the archive were not made: {len(links)}.")
        own.unlink(missing_ok=True)


@contextmanager
def _alone(place: Path):
    """Let one process at a time bring `place`; the others wait and say so."""
    from filelock import FileLock, Timeout

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_name(f".{place.name}.lock"))
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            print(
                f"Another process is downloading {place.name}: waiting for it.",
                flush=True,
            )
            held = lock.acquire()
    except OSError as error:
        raise DownloadError(
            "not writable", folder=place.parent, what=error.strerror
        ) from None
    with held:
        yield


def _not_unpacked(
    error: ArchiveError, reference: str, archive: Path, given: Path
) -> DownloadError:
    """What to say about an archive that was not unpacked; one of ours that is worth
    nothing is removed.
    """
    if error.kind == "disk":
        return DownloadError("disk, unpacking", archive=archive, what=error.what)
    if archive == given:
        return DownloadError("your zip", archive=archive, what=error.what)
    archive.unlink()
    kind = "damaged" if error.kind in ("no zip", "damaged") else "refused"
    return DownloadError(kind, reference=reference, what=error.what)


# --------------------------------------------------------------------------------------
# Credentials
# --------------------------------------------------------------------------------------


def find_credentials() -> Credentials:
    """The first of: token, username and key, kaggle.json, Colab secrets; on Colab,
    kaggle.json is then asked for.

    Raises
    ------
    DownloadError
        There are none, or kaggle.json holds none.
    """
    for look in (_token, _username_and_key, _key_file, _login, _secrets, _upload):
        if found := look():
            if not re.fullmatch(r"[!-~]*", found.token + found.username + found.key):
                # no header can carry it
                raise DownloadError("no key", file=found.account)
            return found
    raise DownloadError("no credentials")


def _token() -> Credentials | None:
    """KAGGLE_API_TOKEN (the token, or a file that holds it), else the client's own
    files.
    """
    given = os.environ.get("KAGGLE_API_TOKEN", "").strip()
    folder = Path.home() / ".kaggle"
    named = {"the token of KAGGLE_API_TOKEN": given} if given else {}
    named |= {
        f"the token of ~/.kaggle/{name}": folder / name
        for name in ("access_token", "access_token.txt")
    }
    for account, value in named.items():
        # too long to be a file, or not readable: then it is the token
        with suppress(OSError, UnicodeDecodeError):
            if Path(value).is_file():
                value = Path(value).read_text(encoding="utf-8").strip()
        if value and isinstance(value, str):
            return Credentials(account, token=value)
    return None


def _username_and_key() -> Credentials | None:
    username, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    return (
        Credentials("KAGGLE_USERNAME and KAGGLE_KEY", username=username, key=key)
        if username and key
        else None
    )


def _key_file() -> Credentials | None:
    """kaggle.json where the client looks for it; others of this machine lose the right
    to read it.
    """
    folders = [
        os.environ.get("KAGGLE_CONFIG_DIR"),
        Path.home() / ".kaggle",
        Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle",
    ]
    file = next(
        (
            Path(at) / "kaggle.json"
            for at in folders
            if at and (Path(at) / "kaggle.json").is_file()
        ),
        None,
    )
    if file is None:
        return None
    name = str(file).replace(str(Path.home()), "~", 1)
    try:
        if os.name == "posix" and file.stat().st_mode & 0o077:
            file.chmod(0o600)
            print(f"{name} could be read by others: its mode is 600 now.")
        return _read_key(file.read_bytes(), name)
    except OSError:
        raise DownloadError("no key", file=name) from None


def _read_key(content: bytes, file: str) -> Credentials:
    try:
        told = json.loads(content)
        username, key = told["username"], told["key"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DownloadError("no key", file=file) from None
    if not (username and key and isinstance(username, str) and isinstance(key, str)):
        raise DownloadError("no key", file=file)
    return Credentials(f"the key of {file}", username=username, key=key)


def _login() -> Credentials | None:
    """What `kaggle auth login` left; only the client can read and renew it."""
    there = (Path.home() / ".kaggle" / "credentials.json").is_file()
    return Credentials("the login of `kaggle auth login`") if there else None


def _colab_page() -> bool:
    """Whether a page of Colab may answer; in the kernels of `course.py run` its
    functions would wait for ever.
    """
    return "google.colab" in sys.modules and not os.environ.get("COURSE_UNATTENDED")


def _secrets() -> Credentials | None:
    found = {}
    for name in (
        ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY") if _colab_page() else ()
    ):
        # no such secret, not granted to this notebook, outside Colab's own page
        with suppress(Exception):
            from google.colab import userdata

            found[name] = userdata.get(name)
    if token := found.get("KAGGLE_API_TOKEN"):
        return Credentials("the Colab secret KAGGLE_API_TOKEN", token=token)
    username, key = found.get("KAGGLE_USERNAME"), found.get("KAGGLE_KEY")
    account = "the Colab secrets KAGGLE_USERNAME and KAGGLE_KEY"
    return (
        Credentials(account, username=username, key=key) if username and key else None
    )


def _upload() -> Credentials | None:
    """The course's prompt on Colab: upload kaggle.json, which then lies in ~/.kaggle,
    readable by its owner alone.
    """
    if not _colab_page():
        return None
    print(
        f"Choose your kaggle.json (from {SETTINGS}, Create Legacy API Key), or cancel."
    )
    before, uploaded = set(Path.cwd().iterdir()), {}
    with suppress(Exception):  # no page that could show the prompt
        from google.colab import files

        uploaded = files.upload()
    # Colab leaves a copy there, under a name of its own choice
    for path in set(Path.cwd().iterdir()) - before:
        if path.is_file() and path.read_bytes() in uploaded.values():
            path.unlink()
    if not uploaded:
        return None
    name, content = next(iter(uploaded.items()))
    file = Path.home() / ".kaggle" / "kaggle.json"
    _read_key(content, name)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = file.with_name(".kaggle.json.tmp")
    temporary.touch(mode=0o600)
    temporary.write_bytes(content)
    os.replace(temporary, file)
    return replace(_read_key(content, "~/.kaggle/kaggle.json"), uploaded=file)


# --------------------------------------------------------------------------------------
# Download
# --------------------------------------------------------------------------------------


def fetch(reference: str, archive: Path) -> None:
    """Download the zip of a dataset to `archive`, going on where an earlier call was
    cut.

    Raises
    ------
    DownloadError
        See FAULTS. Only what can be continued is kept, in a folder beside `archive`.
    """
    account = find_credentials()
    name = reference.split("/")[1]
    folder = archive.with_name(f".{name}.download")
    part = folder / f"{name}.zip"
    print(f"Downloading {reference} from Kaggle with {account.account}")
    failed = best = 0
    while True:
        try:
            folder.mkdir(exist_ok=True)
            _verify(part, _deliver(reference, part, account), reference, archive)
            os.replace(part, archive)
            shutil.rmtree(folder, ignore_errors=True)
            return
        except (Exception, SystemExit) as error:
            kept = part.stat().st_size if part.exists() else 0
            failed, best = 1 if kept > best else failed + 1, max(best, kept)
            fault, wait = _explain(error, reference, archive, account, kept)
            # in the middle; else a part of before stays
            full = fault.kind == "disk" and error is not fault
        if fault.kind == "damaged" or full:
            shutil.rmtree(folder, ignore_errors=True)
        if fault.kind == "401" and account.uploaded:
            account.uploaded.unlink(missing_ok=True)  # so that the next call asks again
        if wait is None or failed > len(WAITS):
            with suppress(OSError):
                folder.rmdir()  # nothing came
            raise fault from None
        wait = wait or WAITS[failed - 1]
        print(f"{fault.reason}: try {failed + 1} of {len(WAITS) + 1} in {wait:.0f} s.")
        time.sleep(wait)


def _deliver(reference: str, part: Path, account: Credentials) -> dict:
    """One try of the official client; returns what the server said
    about the archive.
    """
    about = {}

    def look(response):
        status, kind = response.status_code, response.headers.get("Content-Type", "")
        if status >= 400 and status != 416:  # 416: the client itself then begins anew
            response.raise_for_status()
        if status == 200 and "html" in kind:
            raise DownloadError(
                "web page",
                reference=reference,
                archive=part.parent.with_name(part.name),
            )
        if status == 200 and "json" not in kind and not about:
            about.update(response.headers)
            _need(response.headers.get("Content-Length"), part, reference)

    # its chatter tells signed addresses
    with _environment(account), _watched(look), redirect_stdout(io.StringIO()):
        from kaggle.api.kaggle_api_extended import KaggleApi

        client = KaggleApi()
        # never --verbose: it tells the key
        client.args = [option for option in client.args if option == "--local"]
        if account.token or account.key:
            client.config_values = {
                "token": account.token or None,
                "username": account.username,
                "key": account.key,
            }
        else:
            client.authenticate()
        if "max_retries" in inspect.signature(client.download_file).parameters:
            # its own tries neither tell a full disk nor ask for a fresh address
            download = client.download_file
            client.download_file = lambda *given, **named: download(
                *given, **named, max_retries=0
            )
        else:
            # before 1.8 the client cannot go on with a part
            part.unlink(missing_ok=True)
        client.dataset_download_files(reference, path=str(part.parent), quiet=False)
    return about


@contextmanager
def _environment(account: Credentials):
    """The variables that every version of the client reads when it is imported, for
    that time only.
    """
    mine = {
        "KAGGLE_API_TOKEN": account.token,
        "KAGGLE_USERNAME": account.username,
        "KAGGLE_KEY": account.key,
        "VERBOSE": "",
        "VERBOSE_OUTPUT": "",
    }
    before = {name: os.environ.pop(name, None) for name in mine}
    os.environ.update({name: value for name, value in mine.items() if value})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _watched(look):
    """Give every request a time limit, which the client does not, and show `look` every
    answer.
    """
    from requests.adapters import HTTPAdapter

    plain = HTTPAdapter.send

    def send(self, request, stream=False, timeout=None, **options):
        response = plain(
            self, request, stream=stream, timeout=timeout or TIME_LIMITS, **options
        )
        look(response)
        return response

    HTTPAdapter.send = send
    try:
        yield
    finally:
        HTTPAdapter.send = plain


def _need(size: str | None, part: Path, reference: str) -> None:
    """Refuse a download that does not fit; images hardly shrink, so the archive and
    they need twice its size.
    """
    needed = 2 * int(size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        what = (
            f" (it needs {needed / MIB:,.0f} MiB with its images, {free / MIB:,.0f} MiB"
            " are free)"
        )
        raise DownloadError("disk", reference=reference, what=what)


def _verify(part: Path, about: dict, reference: str, archive: Path) -> None:
    """Compare with the checksum of the server; the client has compared the size."""
    told = re.search(r"md5=([\w+/=]+)", about.get("x-goog-hash", ""))
    told = told[1] if told else about.get("Content-MD5")
    with open(part, "rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
        file.seek(0)
        page = file.read(512).lstrip()[:1] == b"<"
    if page:
        part.unlink()
        raise DownloadError(
            "web page", reference=reference, archive=archive.with_name(part.name)
        )
    if told and told != digest:
        raise ValueError("its checksum is not the one that Kaggle states")
    if not zipfile.is_zipfile(part):
        raise ValueError("it is no whole zip")


def _explain(error, reference: str, archive: Path, account: Credentials, kept: int):
    """The fault behind an exception of the client, and seconds to wait before another
    try.

    Returns
    -------
    DownloadError, and None (do not try again), 0 (as WAITS has it) or what the server
    asks for.
    """
    if isinstance(error, DownloadError):
        return error, None
    if isinstance(error, ImportError):
        return DownloadError("client", what=type(error).__name__), None
    import requests
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

    browser = {
        "reference": reference,
        "archive": archive.with_name(f"{reference.split('/')[1]}.zip"),
    }
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _answer(error.response, reference, account)
    if isinstance(
        error,
        (
            requests.exceptions.ProxyError,
            requests.exceptions.SSLError,
            requests.exceptions.InvalidProxyURL,
        ),
    ):
        return DownloadError("proxy", **browser), None
    cause = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(cause, (NewConnectionError, ConnectTimeoutError)) and not kept:
        return DownloadError("unreachable", **browser), None
    if isinstance(
        error, (requests.RequestException, HTTPError, ConnectionError, TimeoutError)
    ):
        return DownloadError("broken off", kept=f"{kept / MIB:,.0f} MiB"), 0
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    ):
        return DownloadError("disk", reference=reference, what=""), None
    if isinstance(error, OSError) and error.errno:
        return (
            DownloadError("not writable", folder=archive.parent, what=error.strerror),
            None,
        )
    if isinstance(error, ValueError):
        return DownloadError("damaged", what=shown(error)), 0
    if isinstance(error, SystemExit):
        return DownloadError("401", account=account.account), None
    return DownloadError("client", what=type(error).__name__), None


def _answer(response, reference: str, account: Credentials):
    """The same for an answer of the server."""
    from urllib3.util import Retry

    status, wait = response.status_code, 0
    if status < 400:
        status = response.json()["code"]  # the client raises for these alone
    with suppress(Exception):  # a header that is neither seconds nor a date
        wait = Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    told = f"{wait / 60:.0f} minutes" if wait > PATIENCE else "some minutes"
    values = {
        "reference": reference,
        "account": account.account,
        "status": status,
        "wait": told,
    }
    if status == 429 or status >= 500 or status == 408:
        fault = DownloadError("429" if status == 429 else "5xx", **values)
        return fault, None if wait > PATIENCE else wait
    return (
        DownloadError(
            str(status) if status in (401, 403, 404) else "other answer", **values
        ),
        None,
    )
