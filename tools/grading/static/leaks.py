"""Secrets: keys, tokens and passwords, by file name and in every text."""

from collections.abc import Iterator
from pathlib import Path

from tools.grading.finding import Check, Finding
from tools.grading.static.look import Look
from tools.grading.submission import is_of_kit
from tools.shared.foreign import MIB, shown
from tools.shared.parsing import MAX_NOTEBOOK
from tools.shared.secrets import (
    ARCHIVES,
    BINARY,
    Leak,
    is_secret_file,
    secrets_in,
    secrets_in_zip,
)

SECRETS = Check("secrets", 0)
MAX_SEARCHED = 64 * MIB  # all files together
REMEDY = "revoke it where it was issued, remove it, and hand in again."


def secrets(look: Look) -> Iterator[Finding]:
    """They are shown by their first four characters only."""
    left, skipped, closed, clean = MAX_SEARCHED, [], [], True
    for path in look.submission.files:
        # the kit's own tests hold what looks like keys
        if path.parts[0] == "tests" and is_of_kit(look.root, path):
            continue
        ending, found = path.suffix.lower(), []
        if is_secret_file(path):
            found = [Leak(f"{shown(path.name)} holds credentials", shown(path))]
        elif ending in ARCHIVES:
            found = secrets_in_zip(look.root, path) if ending == ".zip" else None
            closed += [path] if found is None else []
        elif ending not in BINARY:
            size = look.size(path)
            if size > min(left, MAX_NOTEBOOK):
                skipped.append(path)
                continue
            left -= size
            found = secrets_in(look.root, path)
        for leak in found or ():
            clean = False
            yield _told(leak)
    yield from _not_searched(skipped, closed)
    if clean and not skipped and not closed:
        yield SECRETS.passed("No key, token or password was found.")


def _told(leak: Leak) -> Finding:
    if leak.sure:
        kind = "{n} times credentials are handed in ({what}): " + REMEDY
        says = f"{leak.what}: {REMEDY}"
        return SECRETS.fail(says, leak.where, kind=kind, what=leak.what)
    says = f"{leak.what}: a Kaggle key, or a checksum? If a key, {REMEDY}"
    kind = "{n} times 32 hexadecimal digits called key: Kaggle keys, or checksums?"
    return SECRETS.human(says, leak.where, kind=f"{kind} If keys, {REMEDY}")


def _not_searched(skipped: list[Path], closed: list[Path]) -> Iterator[Finding]:
    if skipped:
        says = f"{len(skipped)} files were too large to search for secrets, such as"
        yield SECRETS.note(f"{says} {shown(skipped[0])}.")
    if closed:
        names = ", ".join(map(shown, closed[:5]))
        yield SECRETS.human(f"Archives that were not searched for secrets: {names}.")
