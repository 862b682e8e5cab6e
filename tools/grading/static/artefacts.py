"""Artefacts: files are those that the record speaks of, by their hashes."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import utils
from kit.record import stale_sections
from tools.grading import hostile
from tools.grading.consistency import at
from tools.grading.finding import Check, Finding
from tools.grading.static.look import RECORD, Look
from tools.grading.submission import inputs_of
from tools.shared.foreign import MAX_FILE, MIB, shown

ARTEFACTS = Check("artefacts")
MODEL = "exports/model.onnx"
MAX_MODEL = 500 * MIB
TEXT = {".csv", ".json", ".txt", ".md"}


def artefacts(look: Look) -> Iterator[Finding]:
    """Hashes, the model in service, what each section was measured on."""
    clean = True
    for part in (_stored_models, _models_named, _origin, _service, _measured_on):
        for finding in part(look):
            clean = clean and finding.verdict == "note"
            yield finding
    measured = any(map(inputs_of, look.submission.record.values()))
    if clean and measured:
        says = "Models, checkpoints and measurements fit each other by their hashes."
        yield ARTEFACTS.passed(says)


def _digest(look: Look, path: str) -> str | None:
    """First 16 digits of a file's SHA-256, by which the course names it; None above
    MAX_MODEL.
    """
    if look.size(path) > MAX_MODEL:
        return None
    return utils.hash_file(look.root / path)[:16]


def _matching(look: Look, pattern: str) -> list[str]:
    return sorted(path for path in look.paths if re.fullmatch(pattern, path))


def _stored_models(look: Look) -> Iterator[Finding]:
    """exports/models/<hash>.onnx, and the copies in service."""
    for path in _matching(look, r"exports/models/[^/]+\.onnx"):
        digest = _digest(look, path)
        if digest != Path(path).stem:
            says = f"Its bytes have the hash {digest}, which must be its name: export"
            yield ARTEFACTS.fail(f"{says} it again (theme 4).", shown(path))
    for path in (MODEL, "exports/model_int8.onnx"):
        if path in look.paths:
            digest = _digest(look, path)
            if f"exports/models/{digest}.onnx" not in look.paths:
                says = f"Its hash {digest} is none of exports/models/: run themes 4"
                yield ARTEFACTS.fail(f"{says} and 7 again.", path)


def _models_named(look: Look) -> Iterator[Finding]:
    """Models that the record names are there."""
    named = set()
    for theme in ("theme4", "theme7"):
        models = at(look.submission.record, theme, "models")
        models = models.values() if isinstance(models, dict) else ()
        named |= {name for name in models if isinstance(name, str)}
    for name in sorted(named):
        if f"exports/models/{name}.onnx" not in look.paths:
            says = f"The record speaks of exports/models/{shown(name)[:16]}.onnx, which"
            yield ARTEFACTS.human(f"{says} is not handed in.", "exports/models")


def _origin(look: Look) -> Iterator[Finding]:
    """The model in service comes from a checkpoint handed in, and from this story."""
    if MODEL not in look.paths or look.size(MODEL) > MAX_MODEL:
        return
    try:
        about = hostile.onnx_metadata(look.read(MODEL, MAX_MODEL))
    except ValueError as error:
        says = f"This is no ONNX model ({shown(error)[:80]}): run theme 4 again."
        yield ARTEFACTS.fail(says, MODEL)
        return
    weights = _matching(look, r"checkpoints/[^/]+\.pth")
    if about.get("checkpoint") not in [_digest(look, path) for path in weights]:
        says = "It was exported from a checkpoint that is not handed in: hand in its"
        yield ARTEFACTS.fail(f"{says} .pth, or export it again.", MODEL)
    story = look.submission.story
    for key in ("dataset", "seed"):
        if key in story and about.get(key) != story[key]:
            says = f"Its {key} is {shown(about.get(key))[:40]}, the record's"
            yield ARTEFACTS.fail(f"{says} {story[key]}: run theme 4 again.", MODEL)


def _service(look: Look) -> Iterator[Finding]:
    """The last promotion or rollback of the audit log put the file in place that is
    there.
    """
    path = "exports/audit.csv"
    if path not in look.paths or MODEL not in look.paths:
        return
    try:
        look.read(path)  # bounded, before utils reads it
        audit = utils.read_audit(SimpleNamespace(exports=look.root / "exports"))
    except (utils.CourseError, ValueError) as error:
        why = shown(error).replace(f"{look.root}/", "")[:120]
        yield ARTEFACTS.human(f"The audit log cannot be read ({why}).", path)
        return
    swaps = audit.loc[audit["event"].isin(["in service", "rollback"]), "model"]
    if len(swaps) and swaps.iloc[-1] != _digest(look, MODEL):
        says = f"The audit log put {shown(swaps.iloc[-1])[:16]} in service, model.onnx"
        yield ARTEFACTS.fail(f"{says} is another: run theme 7 again.", path)


def _measured_on(look: Look) -> Iterator[Finding]:
    """Sections whose inputs changed since, or are not handed in."""
    there, windows = {}, set()
    for section, values in look.submission.record.items():
        for name, digest in inputs_of(values).items():
            if name not in look.paths:
                says = f"{shown(section)} was measured on {shown(name)}, which is not"
                kind = "Sections were measured on {n} files that are not handed in:"
                yield ARTEFACTS.human(
                    f"{says} handed in.",
                    RECORD,
                    kind=kind + " {what}.",
                    what=shown(name),
                )
            elif look.size(name) <= MAX_MODEL and not _with_line_ends(
                look, name, digest
            ):
                # only files of the submission, and of a size: a path is foreign text
                there.setdefault(section, {"inputs": {}})["inputs"][name] = digest
    for name in sorted(windows):
        says = "It has the line ends of Windows, and is else what was measured."
        yield ARTEFACTS.note(says, shown(name))
    for says in stale_sections(look.root, there):
        kind = "{n} sections were measured on other files than those handed in: {what}."
        what = shown(says).partition(" is stale")[0]
        yield ARTEFACTS.fail(shown(says), RECORD, kind=kind, what=what)


def _with_line_ends(look: Look, name: str, digest: str) -> bool:
    """Whether a file is the one that was measured on, but for the line ends of Windows
    that git or an editor gave it.
    """
    if Path(name).suffix.lower() not in TEXT or look.size(name) > MAX_FILE:
        return False
    content = look.read(name)
    plain = content.replace(b"\r\n", b"\n")
    return content != plain and hashlib.sha256(plain).hexdigest()[:16] == digest
