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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kit.archive import MIB, ArchiveError, shown, unpack
from kit.files import locked
from kit.home import COLAB

SETTINGS = "https://www.kaggle.com/settings/api"
PAGE = "https://www.kaggle.com/datasets/{reference}"
BROWSER = f"or download {PAGE} in a browser elsewhere and save the zip as {{archive}}"
# Each fault: what is wrong, and the one thing to do next.
FAULTS = {
    "no credentials": "No Kaggle credentials were found: create a token at "
    f"{SETTINGS} and give it as KAGGLE_API_TOKEN or ~/.kaggle/access_token, or a legacy"
    " key as KAGGLE_USERNAME and KAGGLE_KEY or ~/.kaggle/kaggle.json (on Colab: as"
    " secrets of the same names, or upload kaggle.json to /content), then run again;"
    " SOURCE='sample' needs none",
    "no key": "{account} holds no Kaggle key: create one at "
    f"{SETTINGS}, put it in its place, then run again",
    "401": "Kaggle answered 401, it does not accept {account}: create a new one at "
    f"{SETTINGS}, put it in its place, then run again",
    "403": "Kaggle answered 403, this account may not download {reference} yet: log in,"
    f" open {PAGE} and press Download once to accept its rules, then run again (if"
    " there is no such page any more, ask your teacher for the images)",
    "404": "Kaggle answered 404, {reference} is not there: look at "
    f"{PAGE}; if it has gone, ask your teacher for the images and give the folder above"
    " them as SOURCE",
    "429": "Kaggle answered 429, too many downloads: wait {wait}, then run again",
    "answer": "Kaggle answered {status}: run again in some minutes; if it stays, update"
    " its client (pip install -U kaggle)",
    "unreachable": "Kaggle cannot be reached from this machine: connect it to the"
    " internet, by another network where a proxy or firewall is in the way, and run"
    f" again, {BROWSER}",
    "web page": "A web page came instead of the images, as from a network that wants a"
    " login first: open any page in a browser, log in there and run again, "
    f"{BROWSER}",
    "broken off": "The connection to Kaggle broke off: check the network and run again,"
    " {kept} of the download are kept",
    "damaged": "Kaggle delivered a damaged archive ({what}): run again later; nothing"
    " of it was kept",
    "refused": "The archive of {reference} {what} and was not unpacked: do not trust"
    " it; ask your teacher for the images and give the folder above them as SOURCE",
    "your zip": "{archive} {what}: delete it and run again, it is then downloaded",
    "disk": "The disk is too full for {reference}{what}: free some space or choose"
    " another HOME, then run again",
    "not writable": "{folder} cannot be written ({what}): choose another HOME, then run"
    " again",
    "client": "The Kaggle client failed ({what}): install it anew (pip install -U"
    " kaggle six), then run again",
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
        reason, step = FAULTS[kind].split(": ", 1)
        self.kind, self.reason = kind, reason.format(**values)
        super().__init__(f"{self.reason}: {step.format(**values)}.")


@dataclass(frozen=True)
class Credentials:
    """What opens Kaggle, and where it was found; only the latter is ever shown."""

    account: str
    token: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    key: str = field(default="", repr=False)


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
    with locked(place.with_name(f".{place.name}.lock"), place.name):
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


def _not_unpacked(
    error: ArchiveError, reference: str, archive: Path, given: Path
) -> DownloadError:
    """What to say about an archive that was not unpacked; one of ours that is worth
    nothing is removed.
    """
    if error.kind == "disk":
        return DownloadError("disk", reference=reference, what=f" ({error.what})")
    if archive == given:
        return DownloadError("your zip", archive=archive, what=error.what)
    archive.unlink()
    kind = "damaged" if error.kind in ("no zip", "damaged") else "refused"
    return DownloadError(kind, reference=reference, what=error.what)


# --------------------------------------------------------------------------------------
# Credentials
# --------------------------------------------------------------------------------------


def find_credentials() -> Credentials:
    """The first of: token, username and key, kaggle.json, login, Colab secrets.

    Raises
    ------
    DownloadError
        There are none, or the first cannot be one.
    """
    found = next(_places(), None)
    if found is None:
        raise DownloadError("no credentials")
    if not re.fullmatch(r"[!-~]*", found.token + found.username + found.key):
        # no header can carry it
        raise DownloadError("no key", account=found.account)
    return found


def _places():
    """What lies in each place where credentials may be."""
    environ, folder = os.environ, Path.home() / ".kaggle"
    if token := environ.get("KAGGLE_API_TOKEN", "").strip():
        yield Credentials("the token of KAGGLE_API_TOKEN", token=_content(token))
    for file in (folder / "access_token", folder / "access_token.txt"):
        if file.is_file() and (token := _content(file)):
            yield Credentials(f"the token of ~/.kaggle/{file.name}", token=token)
    named = environ.get("KAGGLE_USERNAME", ""), environ.get("KAGGLE_KEY", "")
    if all(named):
        yield Credentials("KAGGLE_USERNAME and KAGGLE_KEY", "", *named)
    config = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = [environ.get("KAGGLE_CONFIG_DIR"), folder, config / "kaggle"]
    folders += [COLAB] if _colab_page() else []
    for place in filter(None, folders):
        if (Path(place) / "kaggle.json").is_file():
            yield _key_file(Path(place) / "kaggle.json")
    if (folder / "credentials.json").is_file():  # only the client can read and renew it
        yield Credentials("the login of `kaggle auth login`")
    secrets = _colab_secrets() if _colab_page() else {}
    if token := secrets.get("KAGGLE_API_TOKEN"):
        yield Credentials("the Colab secret KAGGLE_API_TOKEN", token=token)
    named = secrets.get("KAGGLE_USERNAME"), secrets.get("KAGGLE_KEY")
    if all(named):
        account = "the Colab secrets KAGGLE_USERNAME and KAGGLE_KEY"
        yield Credentials(account, "", *named)


def _content(token) -> str:
    """A token, or what the file of that name holds."""
    # too long to be a file, or not readable: then it is the token
    with suppress(OSError, UnicodeDecodeError):
        if Path(token).is_file():
            return Path(token).read_text(encoding="utf-8").strip()
    return str(token)


def _key_file(file: Path) -> Credentials:
    """What kaggle.json holds; others of this machine lose the right to read it."""
    name = str(file).replace(str(Path.home()), "~", 1)
    try:
        if os.name == "posix" and file.stat().st_mode & 0o077:
            file.chmod(0o600)
            print(f"{name} could be read by others: its mode is 600 now.")
        told = json.loads(file.read_bytes())
        username, key = told["username"], told["key"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DownloadError("no key", account=name) from None
    if not (username and key and isinstance(username, str) and isinstance(key, str)):
        raise DownloadError("no key", account=name)
    return Credentials(f"the key of {name}", "", username, key)


def _colab_page() -> bool:
    """Whether a page of Colab may answer; in the kernels of `course.py run` its
    functions would wait for ever.
    """
    return "google.colab" in sys.modules and not os.environ.get("COURSE_UNATTENDED")


def _colab_secrets() -> dict[str, str]:
    found = {}
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        # no such secret, not granted to this notebook, outside Colab's own page
        with suppress(Exception):
            from google.colab import userdata

            found[name] = userdata.get(name)
    return found


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
            _verify(part, _deliver(reference, part, account))
            os.replace(part, archive)
            shutil.rmtree(folder, ignore_errors=True)
            return
        except (Exception, SystemExit) as error:
            kept = part.stat().st_size if part.exists() else 0
            failed, best = 1 if kept > best else failed + 1, max(best, kept)
            fault, wait = _explain(error, reference, part, account.account)
            # in the middle; else a part of before stays
            full = fault.kind == "disk" and error is not fault
        if fault.kind == "damaged" or full:
            shutil.rmtree(folder, ignore_errors=True)
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
            raise _web_page(reference, part)
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
            opens = {"username": account.username, "key": account.key}
            client.config_values = opens | {"token": account.token or None}
        else:
            client.authenticate()
        download = client.download_file
        if "max_retries" in inspect.signature(download).parameters:
            # its own tries neither tell a full disk nor ask for a fresh address
            client.download_file = partial(download, max_retries=0)
        else:  # before 1.8 the client cannot go on with a part
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
    }
    before = dict(os.environ)
    for name in (*mine, "VERBOSE", "VERBOSE_OUTPUT"):
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in mine.items() if value})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _watched(look):
    """Give every request a time limit, which the client does not, and show `look` every
    answer.
    """
    from requests.adapters import HTTPAdapter

    plain = HTTPAdapter.send

    def send(self, request, stream=False, timeout=None, **options):
        limits = timeout or TIME_LIMITS
        response = plain(self, request, stream=stream, timeout=limits, **options)
        look(response)
        return response

    HTTPAdapter.send = send
    try:
        yield
    finally:
        HTTPAdapter.send = plain


def _web_page(reference: str, part: Path) -> DownloadError:
    archive = part.parent.with_name(part.name)
    return DownloadError("web page", reference=reference, archive=archive)


def _need(size: str | None, part: Path, reference: str) -> None:
    """Refuse a download that does not fit; images hardly shrink, so the archive and
    they need twice its size.
    """
    needed = 2 * int(size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        what = f" ({needed / MIB:,.0f} MiB with its images, {free / MIB:,.0f} are free)"
        raise DownloadError("disk", reference=reference, what=what)


def _verify(part: Path, about: dict) -> None:
    """Compare with the checksum of the server; the client has compared the size."""
    told = re.search(r"md5=([\w+/=]+)", about.get("x-goog-hash", ""))
    told = told[1] if told else about.get("Content-MD5")
    with open(part, "rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
    if told and told != digest:
        raise ValueError("its checksum is not the one that Kaggle states")
    if not zipfile.is_zipfile(part):
        raise ValueError("it is no whole zip")


def _explain(error, reference: str, part: Path, account: str):
    """The fault behind an exception of the client, and seconds to wait before another
    try: None (do not try again), 0 (as WAITS has it) or what the server asks for.
    """
    import requests
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

    archive, kept = part.parent.with_name(part.name), 0
    if part.exists():
        kept = part.stat().st_size
    never = (NewConnectionError, ConnectTimeoutError)
    barred = ("ProxyError", "SSLError", "InvalidProxyURL")
    cause = getattr(error.args[0], "reason", None) if error.args else None
    match error:
        case DownloadError():
            return error, None
        case requests.HTTPError():
            return _answer(error.response, reference, account)
        case requests.RequestException() if type(error).__name__ in barred or (
            isinstance(cause, never) and not kept
        ):
            found = {"reference": reference, "archive": archive}
            return DownloadError("unreachable", **found), None
        case (
            requests.RequestException()
            | HTTPError()
            | ConnectionError()
            | TimeoutError()
        ):
            return DownloadError("broken off", kept=f"{kept / MIB:,.0f} MiB"), 0
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return DownloadError("disk", reference=reference, what=""), None
        case OSError(errno=number) if number:
            folder = archive.parent
            what = error.strerror
            return DownloadError("not writable", folder=folder, what=what), None
        case ValueError():
            return DownloadError("damaged", what=shown(error)), 0
        case SystemExit():
            return DownloadError("401", account=account), None
    return DownloadError("client", what=type(error).__name__), None


def _answer(response, reference: str, account: str):
    """The same for an answer of the server."""
    from urllib3.util import Retry

    status, wait = response.status_code, 0
    if status < 400:
        status = response.json()["code"]  # the client raises for these alone
    with suppress(Exception):  # a header that is neither seconds nor a date
        wait = Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    told = f"{wait / 60:.0f} minutes" if wait > PATIENCE else "some minutes"
    values = {"reference": reference, "account": account, "status": status}
    kind = str(status) if status in (401, 403, 404, 429) else "answer"
    fault = DownloadError(kind, **values, wait=told)
    again = status in (408, 429) or status >= 500
    return fault, wait if again and wait <= PATIENCE else None
