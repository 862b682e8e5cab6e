"""One submission in a process of its own: what the plain loop of a class does, and what
a worker of a cluster does.

Light on purpose: a worker imports this module and no more of the kit; torch is for the
process that checks."""

import hashlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

KIT = Path(__file__).resolve().parents[2]
TOP = ("course.py", "utils.py", "sample_data.py")
PARTS = ("kit", "models", "tools", "exercises", "notebooks", "report")
SUFFIXES = {".py", ".ipynb", ".html", ".md", ".css", ".typ"}
MISSING, FAILED, DIED, LOST = "missing", 3, 4, 5
# Dask starts its workers with values of its own; a check takes those of whoever started
# the class.
CHOSEN_HERE = (
    "COURSE_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "MALLOC_TRIM_THRESHOLD_",
)


@dataclass(frozen=True)
class Job:
    """One submission to check.

    Attributes
    ----------
    name : str
        Of the folder of its report.
    arguments : tuple of str
        For tools/grading/check.py, the output folder aside.
    root : str
        Folder of the attempts of this class. The class is over when it is gone: so is
        then the check.
    limit : float
        Seconds until the check itself is stopped.
    environment : tuple of (str, str or None)
        Variables that the check gets, None for those that it must not have.
    """

    name: str
    arguments: tuple[str, ...]
    root: str
    limit: float
    environment: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a check ended: exit status, DIED or LOST; last words; seconds; folder of the
    report below the root.
    """

    rc: int
    said: str
    seconds: float
    folder: str = ""


@dataclass(frozen=True)
class Shared:
    """What must be the same wherever a class is checked: versions, the kit, and these
    folders.
    """

    packages: tuple[str, ...]
    submissions: str
    names: tuple[str, ...]
    source: str
    root: str


def attempt(job: Job, scratch: str | None = None) -> Outcome:
    """Check a submission; its report comes into a folder that no other attempt writes
    to.

    Parameters
    ----------
    scratch : str, optional
        Where the check keeps its temporary files, for someone who cleans up after
        processes that were killed.
    """
    place = Path(job.root) / job.name
    place.mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(dir=place)
    command = [
        sys.executable,
        "-m",
        "tools.grading.check",
        *job.arguments,
        "--output",
        folder,
        "--bound",
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in dict(job.environment)
    }
    environment |= {name: value for name, value in job.environment if value is not None}
    environment |= {"TMPDIR": scratch} if scratch else {}
    began = time.monotonic()
    rc, said = _run(command, environment, Path(job.root), job.limit)
    return Outcome(
        rc, said, time.monotonic() - began, os.path.relpath(folder, job.root)
    )


def on_worker(job: Job, shared: Shared, here: dict[str, str]) -> Outcome | list[str]:
    """On a worker: an attempt; or what is different there, as it may have come after
    the others were asked.
    """
    from distributed import get_worker

    if differ := differences(about(shared), here):
        return differ
    # Dask empties it after a worker that was killed
    return attempt(job, get_worker().local_directory)


def dask_setup(worker) -> None:
    """What Dask calls on a worker that preloads this module: Ctrl-C is for the class,
    which then ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # held back while it started
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run(
    command: list[str], environment: dict, root: Path, limit: float
) -> tuple[int, str]:
    """Exit status and last line of a process that ends when this one does, at the
    limit, or when the class is over.
    """
    # the check reads it: it closes with us, however we end
    reading, writing = os.pipe()
    began, late = time.monotonic(), False
    process = subprocess.Popen(
        command,
        cwd=KIT,
        env=environment,
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        while True:
            try:
                said = "".join(process.communicate(timeout=0.5)).strip().splitlines()
                break
            except subprocess.TimeoutExpired:
                late = time.monotonic() - began > limit
                if late or not root.is_dir():
                    process.kill()
    finally:
        os.close(writing)
        os.close(reading)
        process.kill()
        process.wait()
    if late:
        return FAILED, f"the check took more than {limit:.0f} s"
    return process.returncode, said[-1] if said else ""


def end_with_parent() -> None:
    """End this process at once when its standard input closes, as it does with the
    process that holds the other end.
    """
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(FAILED)


# --------------------------------------------------------------------------------------
# What must be the same everywhere
# --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)  # once for a class
def about(shared: Shared) -> dict[str, str]:
    """Account, Python, packages, the kit's files and the folders, as this machine has
    them.
    """
    # reports are its own to read
    account = {"account": f"number {os.getuid()}"} if hasattr(os, "getuid") else {}
    seen = (
        account
        | {"Python": platform.python_version()}
        | {name: _version(name) for name in shared.packages}
    )
    for path in [KIT / name for name in TOP] + sorted(
        path for part in PARTS for path in (KIT / part).rglob("*")
    ):
        if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
            seen[f"the kit's {path.relative_to(KIT)}"] = hashlib.sha256(
                path.read_bytes()
            ).hexdigest()[:8]
    folder = Path(shared.submissions)
    seen[f"submissions in {folder}"] = _content(
        [folder / name for name in shared.names]
    )
    if shared.source:
        seen[f"images in {shared.source}"] = _content([Path(shared.source)])
    common = os.access(shared.root, os.W_OK | os.X_OK)
    return seen | {
        f"output folder {Path(shared.root).parent}": (
            "shared" if common else "not shared, or read-only"
        )
    }


def differences(there: dict[str, str], here: dict[str, str]) -> list[str]:
    """What is not the same, one sentence part each."""
    return [
        f"{name} {there.get(name, MISSING)}, here {here.get(name, MISSING)}"
        for name in sorted(there.keys() | here.keys(), key=str.lower)
        if there.get(name, MISSING) != here.get(name, MISSING)
    ]


def _version(package: str) -> str:
    # onnxruntime has two names, one of which is installed
    for name in (package, f"{package}-gpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return MISSING


def _content(paths: list[Path]) -> str:
    """Number of files below some paths, and a digest of their names and sizes: images
    are too many to be read.
    """
    count, digest = 0, hashlib.sha256()
    for top in paths:
        if not top.exists():
            return MISSING
        for folder, folders, names in (
            os.walk(top) if top.is_dir() else [(top.parent, [], [top.name])]
        ):
            folders[:] = sorted(set(folders) - {"__pycache__"})
            for name in sorted(names):
                path = os.path.join(folder, name)
                digest.update(
                    os.fsencode(
                        f"{os.path.relpath(path, top.parent)}"
                        f" {os.lstat(path).st_size}\n"
                    )
                )
                count += 1
    return f"{count:,} files ({digest.hexdigest()[:8]})"
