"""Download a dataset from Kaggle: whole or not at all, and every fault in one
sentence.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests
from tqdm import tqdm
from urllib3.exceptions import NewConnectionError

from kit.archive import MIB, ArchiveError, unpack
from kit.files import FULL, locked, read_text
from kit.home import COLAB

ADDRESS = "https://www.kaggle.com/api/v1/datasets/download"
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
    "429": "Kaggle answered 429, too many downloads: wait an hour, then run again",
    "answer": "Kaggle answered {status}: run again in some minutes",
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
}
AGAIN = ("429", "answer", "broken off", "damaged")
# seconds before another try; one that brings the download forward begins the row anew
WAITS = (2, 5, 15, 30)
TIME_LIMITS = (10, 60)  # seconds to connect, and between two pieces


class DownloadError(RuntimeError):
    """A dataset that was not downloaded: `kind` is a key of FAULTS, `reason` what was
    wrong, without what to do next.
    """

    def __init__(self, kind: str, **values):
        reason, step = FAULTS[kind].split(": ", 1)
        self.kind, self.reason = kind, reason.format(**values)
        super().__init__(f"{self.reason}: {step.format(**values)}.")


def install(reference: str, place: Path) -> None:
    """Bring a Kaggle dataset, owner/name, to the folder `place`, unless it is there;
    one process at a time.

    A zip named <name>.zip beside `place`, downloaded by hand, is taken instead of
    asking Kaggle.

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


@dataclass(frozen=True)
class Credentials:
    """What opens Kaggle, and where it was found; only the latter is ever shown."""

    account: str
    token: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    def __call__(self, request):
        """Sign a request, as `requests` asks its `auth` to."""
        told = f"Bearer {self.token}"
        if not self.token:
            pair = base64.b64encode(f"{self.username}:{self.key}".encode())
            told = f"Basic {pair.decode()}"
        request.headers["Authorization"] = told
        return request


def find_credentials() -> Credentials:
    """The first of: token, username and key, kaggle.json, Colab secrets.

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
    folder = Path.home() / ".kaggle"
    yield from _named(os.environ, "")
    if (file := folder / "access_token").is_file():
        token = read_text(file).strip()
        yield Credentials("the token of ~/.kaggle/access_token", token)
    folders = [os.environ.get("KAGGLE_CONFIG_DIR"), folder]
    folders += [COLAB] if _colab_page() else []
    for place in filter(None, folders):
        if (file := Path(place) / "kaggle.json").is_file():
            yield _key_file(file)
    if _colab_page():
        yield from _named(_colab_secrets(), "the Colab secret ")


def _named(values, of: str):
    """Credentials among environment variables or secrets, by Kaggle's own names."""
    if token := values.get("KAGGLE_API_TOKEN", "").strip():
        yield Credentials(f"{of}KAGGLE_API_TOKEN", token)
    pair = values.get("KAGGLE_USERNAME", ""), values.get("KAGGLE_KEY", "")
    if all(pair):
        yield Credentials(f"{of}KAGGLE_KEY", "", *pair)


def _key_file(file: Path) -> Credentials:
    name = f"the key of {file}".replace(str(Path.home()), "~", 1)
    try:
        told = json.loads(file.read_bytes())
        return Credentials(name, "", told["username"] + "", told["key"] + "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DownloadError("no key", account=name) from None


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
        See FAULTS. Only what can be continued is kept, as <archive>.part.
    """
    account, part = find_credentials(), archive.with_name(f"{archive.name}.part")
    print(f"Downloading {reference} from Kaggle with {account.account}")
    waits = [*WAITS]
    while True:
        had = _size(part)
        try:
            _receive(reference, part, account)
            os.replace(part, archive)
            return
        except (DownloadError, OSError) as error:  # those of requests are OSErrors
            fault = _fault(error, reference, part, account)
        if fault.kind == "damaged":
            part.unlink(missing_ok=True)
        if _size(part) > had:
            waits = [*WAITS]
        if fault.kind not in AGAIN or not waits:
            raise fault from None
        print(f"{fault.reason}: trying again in {waits[0]} s.")
        time.sleep(waits.pop(0))


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _receive(reference: str, part: Path, account: Credentials) -> None:
    """One try: ask for what is missing of `part`, append it, compare the checksum."""
    had = _size(part)
    headers = {"Accept-Encoding": "identity"} | (
        {"Range": f"bytes={had}-"} if had else {}
    )
    options = {"headers": headers, "auth": account, "timeout": TIME_LIMITS}
    with requests.get(f"{ADDRESS}/{reference}", stream=True, **options) as answer:
        if answer.status_code == 416:
            raise DownloadError("damaged", what="it is longer than Kaggle's")
        answer.raise_for_status()
        if "html" in answer.headers.get("Content-Type", ""):
            raise DownloadError("web page", **_names(reference, part))
        had = had if answer.status_code == 206 else 0
        total = had + int(answer.headers.get("Content-Length", 0))
        _need(2 * total - had, part, reference)
        look = {"unit": "B", "unit_scale": True, "file": sys.stdout}
        with (
            open(part, "ab" if had else "wb") as file,
            tqdm(total=total, initial=had, **look) as bar,
        ):
            for piece in answer.iter_content(MIB):
                bar.update(file.write(piece))
    _verify(part, answer.headers)


def _names(reference: str, part: Path) -> dict:
    name = reference.split("/")[1]
    return {"reference": reference, "archive": part.with_name(f"{name}.zip")}


def _need(needed: int, part: Path, reference: str) -> None:
    """Refuse a download that does not fit: images hardly shrink, so the archive and
    they need twice its size.
    """
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        what = f" ({needed / MIB:,.0f} MiB with its images, {free / MIB:,.0f} are free)"
        raise DownloadError("disk", reference=reference, what=what)


def _verify(part: Path, headers: dict) -> None:
    told = re.search(r"md5=([\w+/=]+)", headers.get("x-goog-hash", ""))
    with open(part, "rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
    if told and told[1] != digest:
        raise DownloadError(
            "damaged", what="its checksum is not the one that Kaggle states"
        )
    if not zipfile.is_zipfile(part):
        raise DownloadError("damaged", what="it is no whole zip")


def _fault(error, reference: str, part: Path, account: Credentials) -> DownloadError:
    """The fault behind an exception."""
    match error:
        case DownloadError():
            return error
        case requests.HTTPError():
            status = error.response.status_code
            kind = str(status) if str(status) in FAULTS else "answer"
            told = {"account": account.account, "status": status}
            return DownloadError(kind, reference=reference, **told)
        case requests.RequestException() if not _size(part) and _is_barred(error):
            return DownloadError("unreachable", **_names(reference, part))
        case requests.RequestException():
            return DownloadError("broken off", kept=f"{_size(part) / MIB:,.0f} MiB")
        case OSError(errno=number) if number in FULL:
            part.unlink(missing_ok=True)
            return DownloadError("disk", reference=reference, what="")
    return DownloadError("not writable", folder=part.parent, what=error.strerror)


def _is_barred(error: requests.RequestException) -> bool:
    """Whether no connection was made at all: no network, no such name, a proxy."""
    from requests.exceptions import (
        ConnectTimeout,
        InvalidProxyURL,
        ProxyError,
        SSLError,
    )

    cause = getattr(error.args[0], "reason", None) if error.args else None
    barred = (ConnectTimeout, InvalidProxyURL, ProxyError, SSLError)
    return isinstance(error, barred) or isinstance(cause, NewConnectionError)
