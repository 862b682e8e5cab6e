"""A class of submissions on the workers of a Dask cluster: a local one of processes, or
one that is running already.

Dask decides who checks what, and checks anew elsewhere what a worker was at when it
died. All workers see the folders of the class and run the same kit on the same
versions, or nothing is run. Reports are written to the common folder."""

import asyncio
import logging
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path

from tqdm import tqdm

import utils
from tools.grading.attempt import (
    DIED,
    FAILED,
    KIT,
    Job,
    Outcome,
    Shared,
    about,
    differences,
    on_worker,
)

ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
ANSWER = 10  # seconds that a scheduler has to answer
# times that a submission is given to Dask, where each time all workers died that took
# it
ROUNDS = 3
GONE = "The connection to the scheduler was lost: see that it runs."
OURS = ("dask", "distributed", "cloudpickle", "msgpack", "tornado")


class LostError(utils.CourseError):
    """The cluster is gone before all was checked; what is done stays."""


def library(name: str = "distributed"):
    try:
        return import_module(name)
    except ImportError as error:
        raise utils.CourseError(
            f"--jobs and --cluster need Dask ({name} is missing): run `make scale`,"
            " then use .venv-scale/bin/python in the place of python; or give --jobs"
            " 1, for one submission after the other."
        ) from error


def is_installed() -> bool:
    with suppress(utils.CourseError):
        return bool(library())
    return False


def packages() -> tuple[str, ...]:
    """What a check depends on, as the requirements name it, and what carries it to the
    workers.
    """
    lines = "\n".join(
        (KIT / f"requirements{part}.txt").read_text() for part in ("", "-dev")
    )
    return tuple(
        sorted(
            {*re.findall(r"^[A-Za-z][\w.-]*", lines, re.MULTILINE), *OURS},
            key=str.lower,
        )
    )


@contextmanager
def workers(shared: Shared, options) -> Iterator[Callable]:
    """Connect to a cluster whose workers are like this machine; yields a function that
    checks jobs on them.

    Parameters
    ----------
    options : Namespace
        `cluster`, the address of a scheduler, or None for a local cluster of `jobs`
        workers; `wait`, the seconds to wait for a first worker, or for another one when
        none is left.

    Raises
    ------
    CourseError
        Dask is missing, the address is malformed or does not answer, no worker came, or
        one is not like this machine.
    """
    with _connected(options) as client:
        _wait_for_workers(client, options.wait)
        if refused := _refused(client, shared):
            raise utils.CourseError(
                _refusal(
                    refused, "Nothing was run, as the cluster is not like this machine:"
                )
            )
        yield partial(_outcomes, client, shared, options.wait)


def _outcomes(
    client, shared: Shared, patience: float, jobs: Iterable[Job]
) -> Iterator[tuple[Job, Outcome]]:
    """Check jobs, and yield each as it ends, in no order; LostError when the scheduler
    or all workers are gone.
    """
    pending, rounds = {_submit(client, job, shared): job for job in jobs}, Counter()
    while pending:
        for future in _done(client, list(pending), patience):
            job = pending.pop(future)
            outcome = _outcome(future, job)
            # what is different on a worker that came later
            if isinstance(outcome, list):
                _dismiss(client, shared)
                pending[_submit(client, job, shared)] = job
            elif outcome.rc == DIED and rounds[job] < ROUNDS and _deaths(job) < ROUNDS:
                rounds[job] += 1
                pending[_submit(client, job, shared)] = job
            else:
                yield job, outcome


def _submit(client, job: Job, shared: Shared):
    return client.submit(on_worker, job, shared, about(shared), pure=False)


def _done(client, pending: list, patience: float) -> list:
    """Those that have ended, once there are any."""
    distributed, last, pause = library(), time.monotonic(), min(5, patience)
    while True:
        try:
            return list(
                distributed.wait(
                    pending, timeout=pause, return_when="FIRST_COMPLETED"
                ).done
            )
        except TimeoutError:
            workers = _asked(client.nthreads)
        except distributed.client.CancelledError as error:
            raise LostError(GONE) from error
        if workers:
            last = time.monotonic()
        elif time.monotonic() - last > patience:
            raise LostError(
                f"For {patience:.0f} s there was no worker left: start some."
            )


def _asked(question, *arguments, **options):
    """The answer of the scheduler, or of the workers through it."""
    try:
        return question(*arguments, **options)
    except (OSError, TimeoutError, library().client.CancelledError) as error:
        raise LostError(GONE) from error


def _outcome(future, job: Job) -> Outcome | list[str]:
    if future.status == "error":
        error = future.exception()
        if isinstance(error, library().KilledWorker):
            return Outcome(
                DIED,
                f"workers died on it {max(1, _deaths(job))} times; check it alone,"
                " without --jobs and --cluster",
                0.0,
            )
        if isinstance(error, ImportError):  # a worker that came later, without the kit
            return [str(error)]
        return Outcome(FAILED, f"{type(error).__name__}: {error}", 0.0)
    return _asked(future.result)


def _deaths(job: Job) -> int:
    """Attempts that began: Dask also blames a submission that only waited on a worker
    that died.
    """
    place = Path(job.root) / job.name
    return len(list(place.iterdir())) if place.is_dir() else 0


# --------------------------------------------------------------------------------------
# The cluster
# --------------------------------------------------------------------------------------


@contextmanager
def _connected(options):
    """A client of the cluster; of a local one nothing is reachable from another
    machine.
    """
    distributed = library()
    if options.cluster is not None and not ADDRESS.fullmatch(options.cluster):
        raise utils.CourseError(
            f"“{options.cluster}” is no address of a scheduler: it looks like"
            " tcp://10.0.0.5:8786, and `dask scheduler` prints it when it starts."
        )
    # what matters is said by us
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "Mismatched versions")
    with ExitStack() as stack:
        if not (address := options.cluster):
            with _interrupt_held():
                address = stack.enter_context(_local(options.jobs)).scheduler_address
        try:
            asyncio.run(asyncio.wait_for(_greet(address), ANSWER))
            client = distributed.Client(address, timeout=ANSWER, name="check")
        except Exception as error:  # whatever it is that answers there
            certificates = (
                ", or see the certificates" if address.startswith("tls") else ""
            )
            raise utils.CourseError(
                f"No Dask scheduler answers at {address} within {ANSWER} s: start it,"
                f" or take the address that it printed{certificates} ({_cause(error)})."
            ) from error
        yield stack.enter_context(client)


def _cause(error: BaseException) -> str:
    """What an error began with, such as a file of certificates that is missing."""
    # which comes of a task that was cancelled
    while error.__cause__ and not isinstance(error, TimeoutError):
        error = error.__cause__
    return ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))


async def _greet(address: str) -> None:
    """See that a scheduler is there: a client of its own waits without end for one that
    takes the call in silence.
    """
    from distributed.comm import connect
    from distributed.core import send_recv

    comm = await connect(
        address,
        timeout=0.8 * ANSWER,
        **library().Security().get_connection_args("client"),
    )
    try:
        told = await send_recv(comm, op="identity")
    finally:
        comm.abort()
    if told["type"] != "Scheduler":
        raise ValueError(f"{address} is a {told['type']}")


def _local(workers: int):
    """A cluster of processes, one submission at a time each, on the loopback alone and
    without a dashboard.
    """
    # its import fills the configuration, so it comes before a change of that
    distributed = library()
    # Dask would set OMP_NUM_THREADS=1 in this process, for good, and all that is
    # started later would inherit it.
    with library("dask.config").set({"distributed.nanny.pre-spawn-environ": {}}):
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            memory_limit=0,
            dashboard_address=None,
            worker_dashboard_address=None,
            silence_logs=logging.CRITICAL,
            preload="tools.grading.attempt",
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        )


@contextmanager
def _interrupt_held():
    """Hold Ctrl-C back until the workers have started: a process that hears it while it
    starts says so at length.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python's own, which would let the signal through again when it starts
    resource_tracker.ensure_running()
    # processes and threads inherit it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_workers(client, patience: float) -> None:
    address = client.scheduler.address
    if not _asked(client.nthreads):
        print(
            f"Waiting for a worker at {address}, {patience:.0f} s at most …", flush=True
        )
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError as error:
        raise utils.CourseError(
            f"No worker came to {address} within {patience:.0f} s: start some in the"
            f" kit's folder with `python -m dask worker {address} --nthreads 1 --host"
            " ITS_IP --dashboard-address 127.0.0.1:0`, or wait longer with --wait"
            " SECONDS."
        ) from error


# --------------------------------------------------------------------------------------
# The same everywhere
# --------------------------------------------------------------------------------------


def _refused(client, shared: Shared) -> dict[str, list[str]]:
    """Workers, and the scheduler, that differ from this machine, and in what."""
    here, told = about(shared), _asked(client.run, about, shared, on_error="return")
    refused = {
        f"worker {address}": _differ(seen, here) for address, seen in told.items()
    }
    scheduler = _asked(client.get_versions)["scheduler"]["packages"]
    refused[f"scheduler {client.scheduler.address}"] = differences(
        {name: str(scheduler[name]) for name in OURS[:2]},
        {name: here[name] for name in OURS[:2]},
    )
    return {who: differ for who, differ in refused.items() if differ}


def _differ(seen: dict | Exception, here: dict) -> list[str]:
    if isinstance(seen, ImportError):
        return [
            f"the kit is not there ({seen}): start it in the kit's folder, with `python"
            " -m dask worker`"
        ]
    if isinstance(seen, Exception):
        return [f"it could not be asked ({type(seen).__name__}: {seen})"]
    return differences(seen, here)


def _refusal(refused: dict[str, list[str]], what: str, most: int = 4) -> str:
    lines = [what]
    for who, differ in sorted(refused.items()):
        more = f"; and {len(differ) - most} more" if len(differ) > most else ""
        lines.append(f"  {who}: {'; '.join(differ[:most])}{more}")
    return "\n".join(
        [
            *lines,
            (
                "Start them again, with the account, kit, versions and folders of this"
                " machine."
            ),
        ]
    )


def _dismiss(client, shared: Shared) -> None:
    """Close workers that came after the others were asked, and are not like this
    machine.
    """
    refused = {
        who: differ
        for who, differ in _refused(client, shared).items()
        if who.startswith("worker ")
    }
    if refused and len(refused) >= len(_asked(client.nthreads)):
        raise LostError(
            _refusal(refused, "No worker is left that is like this machine:")
        )
    if refused:
        tqdm.write(_refusal(refused, "Dismissed, as not like this machine:"))
        _asked(
            client.retire_workers,
            [who.removeprefix("worker ") for who in refused],
            close_workers=True,
        )
