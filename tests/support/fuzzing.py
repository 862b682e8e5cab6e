"""The list of readers for fuzzing: what each is given, and what must hold of what comes
back.
"""

from dataclasses import dataclass
from pathlib import Path

READERS = {}


@dataclass(frozen=True)
class Reader:
    """A reader of the kit, with the files that it is given.

    Attributes
    ----------
    read : callable(kit, case)
        Writes the case into kit.home, reads it as the kit does, and asserts that what
        comes back is valid.
    cases : callable(kit) -> strategy
    quick, many : int
        Cases in `make test` and in `make test-all`.
    examples : callable(kit) -> list of cases
        What fuzzing has found once, and what chance does not find.
    """

    read: object
    cases: object
    quick: int
    many: int
    examples: object


def reader(cases, quick: int, many: int, examples=lambda kit: []):
    def register(read):
        READERS[read.__name__] = Reader(read, cases, quick, many, examples)
        return read

    return register


def is_sentence(text: str) -> bool:
    return 10 < len(text.strip()) < 4000 and "Traceback" not in text


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
