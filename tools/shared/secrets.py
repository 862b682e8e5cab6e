"""Keys, tokens and passwords in files: found by pattern, shown by their first four
characters only.
"""

import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tools.shared.foreign import MIB, SubmissionError, decode, read, shown
from tools.shared.parsing import MAX_NOTEBOOK, output_text, read_notebook

# Own patterns rather than detect-secrets: that one flags every hash in a notebook and
# knows no Kaggle key.
SECRETS = {
    name: re.compile(pattern)
    for name, pattern in {
        "a private key": r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY",
        "a Kaggle key": (
            r"""(?i:\bkey\\?["']?\]?\s*[:=,]\s*\\?["'])([0-9a-f]{32})\\?["']"""
            r"""|(?i:KAGGLE_KEY\W{1,6})([0-9a-f]{32})\b"""
        ),
        "a Kaggle token": r"\bKGAT_[0-9A-Za-z]{16,}",
        "a GitHub token": r"\bgh[pousr]_[0-9A-Za-z]{30,}|\bgithub_pat_\w{30,}",
        "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
        "a language model's key": (
            r"\bsk-(?=[\w-]{0,60}[0-9])(?=[\w-]{0,60}[A-Z])[\w-]{20,}"
        ),
        "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
        "a Google key": r"(?<![\w+/-])AIza[\w-]{35}(?![\w+/=-])",
        "a Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
        "a Weights & Biases key": (
            r"(?i:wandb[ _.]?(?:api_key|login)[^\n]{0,40}?)\b([0-9a-f]{40})\b"
        ),
        "a key or password": (
            r"""(?i:(?:(?:api|secret|access)[_-]?(?:key|token)|password)\\?["']?\]?\s*[:=]\s*\\?["'])"""
            r"""([^"'\s\\]{16,200})\\?["']"""
        ),
    }.items()
}
KAGGLE, NEAR = re.compile(r"(?i)kaggle|user[_-]?name"), 200
PLACEHOLDER = re.compile(r"(?i)your|xxx|example|placeholder|changeme|\.\.\.|[<>{}$*]")
SECRET_FILES = re.compile(
    r"kaggle\.json|\.env(\..+)?|[._]netrc|id_(rsa|dsa|ecdsa|ed25519)|.+\.(pem|p12|pfx)"
    r"|\.pypirc|\.git-credentials|client_secret.*\.json|credentials(\.json)?",
    re.IGNORECASE,
)
BINARY = {
    *(".pth", ".pt", ".onnx", ".trt", ".engine", ".npz", ".npy", ".pkl", ".joblib"),
    *(".png", ".jpg", ".jpeg", ".gif", ".pdf", ".zip", ".gz"),
}
ARCHIVES = {".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
MAX_INSIDE = 8 * MIB  # of all texts in one archive
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


class Leak(NamedTuple):
    """What was found and where; not `sure` where it may as well be a checksum."""

    what: str
    where: str
    sure: bool = True


def is_secret_file(path: Path | PurePosixPath) -> bool:
    """By its name alone. A *.key may be slides of Keynote: what is in it tells."""
    return SECRET_FILES.fullmatch(path.name) is not None


def secrets_in(root: Path, path: Path) -> list[Leak]:
    """Each secret in one file; a notebook is searched cell by cell,
    its pictures left out.
    """
    found = []
    for where, text in _texts(root, path):
        found += _matches(text, f"{shown(path)}{where}")
    return list(dict.fromkeys(found))


def secrets_in_zip(root: Path, path: Path) -> list[Leak] | None:
    """The same for the texts inside one zip; None when nothing was found and not all of
    it could be searched.
    """
    found, left = [], MAX_INSIDE
    try:
        with zipfile.ZipFile(io.BytesIO(read(root, path, MAX_NOTEBOOK))) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename)
                where = f"{shown(path)}, {shown(name)}"
                if is_secret_file(name):
                    found.append(Leak(f"{shown(name.name)} holds credentials", where))
                elif name.suffix.lower() in ARCHIVES:
                    return found or None
                elif name.suffix.lower() not in BINARY:
                    with archive.open(member) as file:
                        content = file.read(left + 1)
                    left -= len(content)
                    if left < 0:
                        return found or None
                    found += _matches(decode(content), where)
    except (SubmissionError, *DAMAGED):
        return found or None
    return list(dict.fromkeys(found))


def _matches(text: str, where: str) -> list[Leak]:
    """Each secret in a text."""
    # most files by far hold none: eleven searches instead of eleven for each line
    if not any(pattern.search(text) for pattern in SECRETS.values()):
        return []
    found, begins = [], 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        place = where if where.endswith("output") else f"{where}, line {number}"
        for name, pattern in SECRETS.items():
            for match in pattern.finditer(line):
                secret = next((group for group in match.groups() if group), match[0])
                if name != "a key or password" or _looks_real(secret):
                    low, high = begins + match.start(), begins + match.end()
                    around = text[max(low - NEAR, 0) : high + NEAR]
                    found.append(_leak(name, secret, place, around))
        begins += len(line)
    return found


def _leak(name: str, secret: str, place: str, around: str) -> Leak:
    """32 digits called key are Kaggle's beside its name or a user's, else a question:
    checksums look alike.
    """
    sure = name != "a Kaggle key" or KAGGLE.search(around) is not None
    name = name if sure else "32 hexadecimal digits called key"
    return Leak(f"{name[0].upper()}{name[1:]} ({shown(secret[:4])}…)", place, sure)


def _looks_real(secret: str) -> bool:
    return not PLACEHOLDER.search(secret) and re.search(r"\d", secret) is not None


def _texts(root: Path, path: Path) -> Iterator[tuple[str, str]]:
    """(where, text) of the parts of a file; nothing of a binary one."""
    try:
        if path.suffix == ".ipynb":
            for cell in read_notebook(root, path).cells:
                yield f", cell {cell.number}", cell.source
                yield f", cell {cell.number}, output", output_text(cell)
            unseen = _unseen(read(root, path, MAX_NOTEBOOK))
            yield ", metadata, attachments or data of an output", unseen
            return
    except (SubmissionError, ValueError, AttributeError, TypeError, RecursionError):
        pass  # no notebook, or one of a strange shape: searched as text
    try:
        content = read(root, path, MAX_NOTEBOOK)
    except SubmissionError:
        return
    yield "", decode(content)


def _unseen(content: bytes) -> str:
    """What a notebook holds and no page shows, pictures left out; one line, as JSON."""
    notebook = json.loads(content)
    rest = [notebook.get("metadata")]
    for cell in notebook.get("cells", []):
        rest.append(cell.get("metadata"))
        bundles = [output.get("data", {}) for output in cell.get("outputs", [])]
        bundles += cell.get("attachments", {}).values()
        # text of an output is searched with its cell
        rest += [
            {
                kind: value
                for kind, value in bundle.items()
                if not kind.startswith(("image/", "text/"))
            }
            for bundle in bundles
        ]
    return json.dumps(rest)
