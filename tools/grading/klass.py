"""A class of submissions: each is checked by a process of its own, on the workers of
Dask or one after the other, and a table stands over the reports.

Workers see the same folders as this machine, and run the same kit on the same versions.
"""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, count
from pathlib import Path

from tqdm import tqdm

import utils
from kit.files import KIT
from tools.grading import copies, verdict, workplace
from tools.grading.examine import SCORING
from tools.grading.submission import list_files
from tools.shared.foreign import shown
from tools.shared.names import is_litter

REPORT = ("check.json", "check.html")
SUMMARY = ("summary.json", "summary.html")
FAILED, LOST = 3, 5  # beside the statuses 0, 1 and 2 of a check
FAILURES = {2: "Could not be opened", LOST: "Not checked"}
PLAIN = "One submission after the other: Dask is not installed (run `make scale`)."
RETRIES = 3  # of a submission whose worker died


@dataclass(frozen=True)
class Job:
    """One submission: its place, that of its report, and how it is checked."""

    path: Path
    folder: Path
    options: tuple[str, ...]
    limit: float  # seconds


@dataclass(frozen=True)
class Outcome:
    """How a check ended: its exit status, FAILED or LOST; its last words; seconds."""

    status: int
    said: str
    seconds: float = 0.0


def check_all(options) -> int:
    """Check every folder and zip of a folder; returns the exit status of the class."""
    began, output = time.monotonic(), options.output
    output = output or Path(f"check-{file_name(options.all.resolve().name)}")
    output = output.resolve()
    found, odd = submissions(options.all, output)
    rows = {}
    for path, name in names(found).items():
        job = Job(path.resolve(), output / name, *_asked(options))
        rows[job] = _kept(job, options.level) if options.missing else None
    stopped = _check_missing(rows, options)
    no_kind = Outcome(2, "neither a folder nor a zip, ask for one")
    rows |= {path: row(Job(path, output, (), 0), no_kind) for path in odd}
    table = sorted(rows.values(), key=lambda row: (-row["status"], row["submission"]))
    same = copies.shared(_marks(rows))
    _tell(table, same)
    summary = {
        "schema": 1,
        "level": options.level,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - began, 1),
        "rows": table,
        "copies": same,
    }
    print(*verdict.write_summary(summary, output), sep="\n")
    if stopped:
        _say("The class was stopped: the same command with --missing goes on.")
        return 130
    statuses = {each["status"] for each in table}
    return max(statuses & {1, 3}, default=2 if statuses == {2} else 0)


def _tell(table: list[dict], same: list[dict]) -> None:
    for row in table:
        print(f"{row['submission']:<28.28} {row['verdict']}")
    for row in same:
        who, files = " and ".join(row["submissions"]), row["files"]
        told = ", ".join([*files[:4], *["…"] * (len(files) > 4)])
        print(f"The same in {who}, files: {len(files)} ({told})")


def _marks(rows: dict) -> dict[str, dict]:
    """What the reports of a class hold to tell a copy by, by submission."""
    found = {}
    for job, row in rows.items():
        if row["report"]:
            with suppress(OSError, ValueError, AttributeError):
                report = json.loads((job.folder / REPORT[0]).read_text())
                found[row["submission"]] = dict(report.get("marks", {}))
    return found


def _check_missing(rows: dict, options) -> bool:
    """Fill the rows that are None; True where somebody stopped it."""
    missing, stopped = [job for job in rows if rows[job] is None], False
    try:
        with workers(options, len(missing)) as check:
            for job in missing:  # no old report may pass for a new one
                _remove_report(job)
            progress = tqdm(check(missing), total=len(missing), unit="submission")
            for job, outcome in progress:
                rows[job] = row(job, outcome)
    except KeyboardInterrupt:
        stopped = True
    why = "the class was stopped" if stopped else "the scheduler is gone"
    for job in missing:
        rows[job] = rows[job] or row(job, Outcome(LOST, why))
    return stopped


def _say(told: str) -> None:
    print(told, file=sys.stderr)


def submissions(folder: Path, output: Path) -> tuple[list[Path], list[Path]]:
    """The folders and zips of a class, and what is neither; reports are left out."""
    if not folder.is_dir():
        raise utils.CourseError(
            f"{folder} is no folder: give the one that holds the submissions."
        )
    there = [
        path
        for path in sorted(folder.iterdir())
        if not (path.name.startswith(".") or is_litter(path.name))
        and path.resolve() != output
    ]
    if reports := [path for path in there if _holds_reports(path)]:
        told = ", ".join(shown(path.name) for path in reports)
        _say(f"Left out, as they hold reports: {told}.")
    there = [path for path in there if path not in reports]
    found = [
        path
        for path in there
        if not path.is_symlink() and (path.is_dir() or path.suffix.lower() == ".zip")
    ]
    if not found:
        raise utils.CourseError(
            f"{folder} holds no folder and no zip: give the folder that holds the"
            " submissions."
        )
    return found, [path for path in there if path not in found]


def file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "submission"


def names(paths: list[Path]) -> dict[Path, str]:
    """A folder name for each report, the same as the class grows wherever that is
    possible: a zip whose name is taken keeps its ending, others are numbered.
    """
    found, taken = {}, set(SUMMARY)
    order = {
        path: (file_name(path.name) != path.name, path.suffix.lower() == ".zip")
        for path in paths
    }
    for path in sorted(paths, key=order.get):
        wanted = (file_name(path.name.removesuffix(".zip")), file_name(path.name))
        more = (f"{wanted[1]}-{number}" for number in count(2))
        found[path] = next(name for name in chain(wanted, more) if name not in taken)
        taken.add(found[path])
    return found


def _holds_reports(folder: Path) -> bool:
    """Whether this is the output of a check, as it is called by default."""
    inside = (folder / name for name in ("check.json", "summary.json"))
    return folder.name.startswith("check-") and any(path.is_file() for path in inside)


def _asked(options) -> tuple[tuple[str, ...], float]:
    """Options of the check of one submission, and the seconds that it may take."""
    asked = ["--level", options.level, "--until", str(options.until)]
    asked += ["--notebook-limit", str(options.notebook_limit)]
    asked += ["--another-seed" if options.another_seed else "--no-another-seed"]
    asked += ["--source", str(options.source)] if options.source else []
    notebooks = {"static": 0, "evaluate": SCORING, "full": 2 * SCORING + 24}
    return tuple(asked), 900 + notebooks[options.level] * options.notebook_limit


# --------------------------------------------------------------------------------------
# One submission
# --------------------------------------------------------------------------------------


def attempt(job: Job) -> Outcome:
    """Check one submission in a process group of its own, which ends with us or at the
    limit.
    """
    command = [sys.executable, "course.py", "check", str(job.path)]
    command += [*job.options, "--output", str(job.folder)]
    if shutil.which("setpriv"):  # it also ends where this process is killed
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    began = time.monotonic()
    # Dask starts its workers with one thread
    threads = {name for name in os.environ if name.endswith("_NUM_THREADS")}
    with subprocess.Popen(
        command,
        cwd=KIT,
        env={name: os.environ[name] for name in os.environ.keys() - threads},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said = process.communicate(timeout=job.limit)[0].strip()
            status = process.returncode
        except subprocess.TimeoutExpired:
            status, said = FAILED, f"the check took more than {job.limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    workplace.sweep()
    words = said.splitlines()[-1:] or [f"it ended with status {status}"]
    return Outcome(status, words[0], time.monotonic() - began)


def _remove_report(job: Job) -> None:
    for name in REPORT:
        with suppress(FileNotFoundError, NotADirectoryError):
            (job.folder / name).unlink()


def _kept(job: Job, level: str) -> dict | None:
    """The row of a report of this level, written after the last change of the
    submission; None without one.
    """
    files = list_files(job.path)[0] if job.path.is_dir() else []
    below = {job.path, *(job.path / file for file in files)}
    below |= {job.path / folder for file in files for folder in file.parents}
    try:
        # what a zip brings keeps the times of its owner's machine; that of the last
        # change of an entry is of this one
        last = max(entry.lstat().st_ctime for entry in below)
        written = (job.folder / REPORT[0]).stat().st_mtime
        report = json.loads((job.folder / REPORT[0]).read_text())
        whole = report["schema"] == 1 and report["level"] == level
        if whole and report["status"] in (0, 1) and last <= written:
            return row(job, Outcome(report["status"], "", report["seconds"]))
    except Exception:  # none, or no report
        return None
    return None


def row(job: Job, outcome: Outcome) -> dict:
    """One line of the summary; its status is 3 where the submission was not checked."""
    report = {}
    if outcome.status in (0, 1):
        with suppress(OSError, ValueError):
            report = json.loads((job.folder / REPORT[0]).read_text())
    why = FAILURES.get(outcome.status, "The check itself failed")
    figures = [
        row["verdict"] for rows in report.get("tables", {}).values() for row in rows
    ]
    kinds = [finding["verdict"] for finding in report.get("findings", [])]
    return {
        "submission": shown(job.path.name),
        "seconds": round(outcome.seconds, 1),
        "report": f"{job.folder.name}/check.html" if report else "",
        "status": report.get("status", 2 if outcome.status == 2 else FAILED),
        "verdict": report.get("verdict", f"{why}: {shown(outcome.said)}"),
        "level": report.get("level", "none"),
        "identical": figures.count("identical"),
        "within": figures.count("within tolerance"),
        "differ": figures.count("differs"),
        "unknown": figures.count("not reproduced"),
        "fail": kinds.count("fail"),
        "human": kinds.count("human"),
    }


# --------------------------------------------------------------------------------------
# Several at a time
# --------------------------------------------------------------------------------------


@contextmanager
def workers(options, submissions: int):
    """A function that checks jobs and yields each with its outcome as it ends."""
    jobs = options.jobs or min(at_a_time(options.level), submissions)
    if options.scheduler is None and jobs <= 1:
        yield lambda jobs: ((job, attempt(job)) for job in jobs)
        return
    try:
        import distributed
    except ImportError as error:
        if options.scheduler or options.jobs:
            raise utils.CourseError(
                "--jobs and --scheduler need Dask: run `make scale`, then use"
                " .venv-scale/bin/python in the place of python."
            ) from error
        _say(PLAIN)
        yield lambda jobs: ((job, attempt(job)) for job in jobs)
        return
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        address = options.scheduler or stack.enter_context(
            distributed.LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                host="127.0.0.1",
                memory_limit=0,
                dashboard_address=None,
            )
        )
        try:
            client = stack.enter_context(distributed.Client(address, timeout=10))
            client.wait_for_workers(1, timeout=60)
        except (OSError, TimeoutError, ValueError) as error:
            raise utils.CourseError(
                f"No scheduler with a worker answers at {address}: start both, or take"
                " the address that `dask scheduler` printed."
            ) from error
        refuse_others(client)
        yield lambda jobs: _outcomes(client, jobs)


def _outcomes(client, jobs: list[Job]):
    import distributed

    futures = client.map(attempt, jobs, retries=RETRIES, pure=False)
    of = dict(zip(futures, jobs, strict=True))
    for future in distributed.as_completed(futures):
        if future.cancelled():  # the scheduler is gone
            return
        error = future.exception()
        yield of[future], Outcome(FAILED, str(error)) if error else future.result()


def at_a_time(level: str) -> int:
    """How many this machine has room for: notebooks take two threads, as on Colab."""
    cores = len(os.sched_getaffinity(0))
    if level == "static":
        return cores
    return 1 if utils.torch.cuda.is_available() else max(cores // 2, 1)


def about() -> dict[str, str]:
    """What a check depends on: the kit's files, Python and packages."""
    digest, files = hashlib.sha256(), list(KIT.glob("*.py"))
    for room in ("kit", "models", "tools", "exercises", "notebooks", "report"):
        files += (KIT / room).rglob("*.*")
    for path in sorted(files):
        if path.suffix in (".py", ".ipynb", ".html", ".typ"):
            digest.update(path.read_bytes())
    seen = {"kit": digest.hexdigest()[:12], "Python": platform.python_version()}
    wanted = (KIT / "requirements.txt").read_text()
    for name in [*re.findall(r"^[a-z][\w.-]*", wanted, re.MULTILINE), "distributed"]:
        with suppress(PackageNotFoundError):
            seen[name] = version(name)
    return seen


def refuse_others(client) -> None:
    """Refuse a cluster of which a worker is not like this machine."""
    here = about()
    for address, there in client.run(about, on_error="return").items():
        if isinstance(there, Exception):
            differ = f"the kit is not there ({there})"
        else:
            names = sorted(here.keys() | there.keys())
            differ = "; ".join(
                f"{name} {there.get(name, 'missing')}, here {here.get(name, 'missing')}"
                for name in names
                if there.get(name) != here.get(name)
            )
        if differ:
            raise utils.CourseError(
                f"Nothing was run, as worker {address} is not like this machine:"
                f" {differ}. Start it in the same kit, with the same versions."
            )
