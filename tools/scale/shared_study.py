"""A study that any number of processes work on: who takes which trial, who has died,
and where the study is kept.

`utils.search` is the search; this is what it takes for several workers, killed ones and
damaged files. Optuna brings the journal, its server and the queue of trials; its own
signs of life need a database, and its locks wait for the dead."""

import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

import utils
from utils import CourseError

# Seconds: between two signs of life of a worker, of silence before it is taken for
# dead, for putting its name on what it took, and between two looks of one that waits.
HEARTBEAT, GRACE, CLAIM, POLL = 10.0, 60.0, 5.0, 1.0
SERVER_WAIT = 10.0  # seconds for the server of a search to answer
RETRIES = 3  # of a trial whose workers die: then it counts as one whose loss exploded

# (study, number) of the trials that this process trains
_at_work: set[tuple[str, int]] = set()


def import_optuna():
    """Optuna, silent."""
    with warnings.catch_warnings():
        # its progress bar, which we do not use
        warnings.filterwarnings("ignore", message="IProgress not found")
        import optuna

    # its warning of a trial that fails holds a whole traceback
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


# --------------------------------------------------------------------------------------
# Places: who takes which trial
# --------------------------------------------------------------------------------------


class Places:
    """Shares the trials of a study out among any number of processes, by nothing but
    what the study holds.

    A study of n trials has n places, and a trial that has not failed holds one. Whoever
    is free puts a trial for the first free place into the study's queue and takes one
    from there, which Optuna lets only one worker do. Where two workers put in a trial
    for the same place, the lower number holds it and the other trial is given back. No
    lock and no clock is shared: whoever dies in between leaves nothing that the next
    one does not put right."""

    def __init__(
        self, study, trials: int, own: dict, sampler_of: Callable, private: bool
    ):
        self.study, self.trials, self.own, self.sampler_of, self.private = (
            study,
            trials,
            own,
            sampler_of,
            private,
        )
        # last sign of life of a trial, and when we first saw it
        self.heard: dict[int, tuple[str, float]] = {}
        # the signs that were there when we came, of workers we cannot ask
        self.found: dict[int, str] | None = None
        self.came, self.before, self.told = time.monotonic(), -1, set()

    def take(self):
        """A trial to run, and the study's sampler for it; None where every place is
        held.
        """
        while True:
            self._fail_lost()
            trials = self.study.get_trials(deepcopy=False)
            if any(
                trial.state.name == "RUNNING" and "worker" not in trial.user_attrs
                for trial in trials
            ):
                # somebody is about to put a name on it, or was killed: its place then
                # comes first
                time.sleep(0.01)
                continue
            waiting = [
                trial.user_attrs["place"]
                for trial in trials
                if trial.state.name == "WAITING"
            ]
            place = next(iter(waiting), None)
            if not waiting:
                held = {
                    trial.user_attrs.get("place")
                    for trial in trials
                    if trial.state.name != "FAIL"
                }
                place = next(
                    (place for place in range(self.trials) if place not in held), None
                )
                if place is None:
                    return None
            if self._is_unsure(trials):
                time.sleep(POLL)
                continue
            if not waiting:
                self._enqueue(place, trials)
            self.study.sampler = self.sampler_of(place)
            trial = self.study.ask()
            # we were asleep: it was taken for lost
            with suppress(import_optuna().exceptions.UpdateFinishedTrialError):
                trial.set_user_attr("worker", _worker())
                if self._holds(trial):
                    # another worker took the one that we had expected
                    if trial.user_attrs["place"] != place:
                        self.study.sampler = self.sampler_of(trial.user_attrs["place"])
                    return trial
                trial.set_user_attr("ended", "given back")
                self.study.tell(trial, state=import_optuna().trial.TrialState.FAIL)

    def wait(self) -> bool:
        """False when the study is complete; else wait a little for those that are at
        work on the rest.

        Others may have asked for more trials. They are waited for as long as somebody
        is at work on them: what the caller reads from the study shall not change while
        it reads.
        """
        trials = self.study.get_trials(deepcopy=False)
        done = {
            trial.user_attrs.get("place")
            for trial in trials
            if trial.state.name in ("COMPLETE", "PRUNED")
        }
        asked = max([self.trials, *(trial.user_attrs.get("of", 0) for trial in trials)])
        if done >= set(range(asked)):
            return False
        busy = {
            trial.user_attrs.get("worker", "a worker unknown")
            for trial in trials
            if trial.state.name == "RUNNING"
        }
        if done >= set(range(self.trials)) and not busy and len(trials) == self.before:
            print(
                f"the study has {len(done)} of the {asked} trials that were asked for"
                f" before, and nobody is at work on the rest: trials={asked}"
                " completes it"
            )
            return False
        self.before = len(trials)  # who has ended one trial is soon at the next
        if busy:
            self._tell(
                "no trial is left to begin; waiting for those of"
                f" {', '.join(sorted(busy))}",
                "busy",
            )
        time.sleep(POLL)
        return True

    def _tell(self, sentence: str, topic: str) -> None:
        """Print a sentence, the first time only."""
        if topic not in self.told:
            self.told.add(topic)
            print(sentence)

    def _is_unsure(self, trials: list) -> bool:
        """May a trial that we found running be that of a dead worker? Then it would be
        tried again before the next one.

        A proposal that took it for running would not be that of the same search without
        the interruption."""
        signs = {
            trial.number: _sign(trial)
            for trial in trials
            if trial.state.name == "RUNNING"
            and _host(trial.user_attrs.get("worker", "")) != machine()
        }
        if self.found is None:
            self.found = signs
        self.found = {
            number: sign
            for number, sign in self.found.items()
            if signs.get(number) == sign
        }
        if self.found and time.monotonic() - self.came > HEARTBEAT:
            whose = ", ".join(
                sorted(
                    {
                        trials[number].user_attrs.get("worker", "")
                        for number in self.found
                    }
                )
            )
            self._tell(
                f"waiting up to {GRACE:.0f} s for a sign of life of {whose}", "unsure"
            )
        return bool(self.found)

    def _enqueue(self, place: int, trials: list) -> None:
        """Put a trial into the queue: what was tried and lost again, else the course's
        own choice, else a proposal.
        """
        attributes, params = (
            {"place": place, "of": self.trials},
            (self.own if place == 0 else {}),
        )
        earlier = [trial for trial in trials if trial.user_attrs.get("place") == place]
        # else it was not proposed yet
        lost = [trial for trial in earlier if trial.params.keys() == self.own.keys()]
        if lost:
            params, attributes["retry of trial"] = lost[-1].params, lost[-1].number
            if sum("ended" not in trial.user_attrs for trial in lost) > RETRIES:
                attributes["given up"] = f"{RETRIES + 1} workers died of it"
        self.study.enqueue_trial(params, user_attrs=attributes)

    def _holds(self, trial) -> bool:
        """Is this the trial of its place?"""
        # None: another worker took what we had put into the queue
        place = trial.user_attrs.get("place")
        rivals = self.study.get_trials(deepcopy=False)[: trial.number]
        return place is not None and all(
            t.state.name == "FAIL" or t.user_attrs.get("place") != place for t in rivals
        )

    def _fail_lost(self) -> None:
        """Fail the trials of workers that are dead, so that their places are free
        again.
        """
        state = import_optuna().trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            if self._is_lost(trial):
                with suppress(RuntimeError, ValueError):  # another worker was faster
                    self.study.tell(trial.number, state=state.FAIL)
                    whose = trial.user_attrs.get("worker", "")
                    print(
                        f"trial {trial.number} of {whose or 'a worker unknown'} ended"
                        " without a result: it is tried again"
                    )
                    if whose and not self._is_dead(whose):
                        print(
                            f"{whose} has been silent for {GRACE:.0f} s. If it hangs"
                            " and shares this home, it holds that training: end it,"
                            " the trial goes on then."
                        )

    def _is_lost(self, trial) -> bool:
        worker = trial.user_attrs.get("worker", "")
        if worker == _worker():
            return (self.study.study_name, trial.number) not in _at_work
        if self._is_dead(worker):
            return True
        sign = _sign(trial)
        if self.heard.get(trial.number, ("none", 0.0))[0] != sign:
            self.heard[trial.number] = sign, time.monotonic()
        return time.monotonic() - self.heard[trial.number][1] > (
            GRACE if worker else CLAIM
        )

    def _is_dead(self, worker: str) -> bool:
        """Is this known of it, so that no silence has to be waited for?"""
        lost = self.private and bool(worker) and _host(worker) != machine()
        return lost or worker == _worker() or is_gone(worker)


def run_trial(study, trial, train) -> None:
    """Run one trial and tell its result; a trial that was interrupted is failed, to be
    tried again.
    """
    from optuna import TrialPruned
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        with _heartbeat(study, trial):
            try:
                result = {"values": train(trial)}
            except TrialPruned:
                result = {"state": TrialState.PRUNED}
            study.tell(trial, **result, skip_if_finished=True)
    except UpdateFinishedTrialError:
        pass  # others took it for dead
    except BaseException as error:
        # what broke the training may break the storage as well
        with suppress(Exception):
            trial.set_user_attr("ended", type(error).__name__)
            study.tell(trial, state=TrialState.FAIL)
        raise
    if study.get_trials(deepcopy=False)[trial.number].state == TrialState.FAIL:
        print(
            f"trial {trial.number}: this worker was silent for so long that another one"
            " has it now; its own result does not count"
        )


@contextmanager
def _heartbeat(study, trial):
    """Within this block the study hears every few seconds that somebody is at work on
    the trial.
    """
    ended = threading.Event()

    def beat():
        while not ended.wait(HEARTBEAT):
            # whatever it is, the training itself meets it at its next report
            with suppress(Exception):
                trial.set_user_attr(
                    "heartbeat", datetime.now(UTC).isoformat(timespec="milliseconds")
                )

    _at_work.add((study.study_name, trial.number))
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(HEARTBEAT)  # no longer: a server that hangs must not hold us
        _at_work.discard((study.study_name, trial.number))


def _sign(trial) -> str:
    """The last sign of life of the worker of a trial."""
    return str(trial.user_attrs.get("heartbeat", trial.user_attrs.get("worker", "")))


def _worker() -> str:
    return f"{machine()}-{os.getpid()}"


@cache
def machine() -> str:
    """This host, as far as process numbers mean something: HOST~MACHINE.BOOT.SPACE.

    Two machines may bear one name, a machine that starts again numbers its processes
    anew, and so does a container."""
    marks = []
    for read in (
        Path("/etc/machine-id").read_text,
        Path("/proc/sys/kernel/random/boot_id").read_text,
        partial(os.readlink, "/proc/self/ns/pid"),
    ):
        text = ""  # where a system has none, and in some containers
        with suppress(OSError):
            text = read().strip()
        marks.append(utils.fingerprint(text)[:4] if text else "")
    return f"{utils.HOST}~{'.'.join(marks)}"


def is_gone(worker: str) -> bool:
    """Was this a process of this machine, which has ended, by itself or with the
    machine?

    One of another machine cannot be asked.
    """
    if _host(worker) == machine():
        pid = worker.rpartition("-")[2]
        return pid.isdigit() and not utils.is_alive(int(pid))
    theirs, ours = (host.rsplit(".", 2) for host in (_host(worker), machine()))
    same = (
        len(theirs) == len(ours) == 3
        and theirs[0] == ours[0]
        and not ours[0].endswith("~")
    )
    return same and theirs[1] != ours[1]


def _host(worker: str) -> str:
    return worker.rpartition("-")[0]


# --------------------------------------------------------------------------------------
# Where a study is kept
# --------------------------------------------------------------------------------------


def open_study(storage, title: str, own: dict, parts: dict, where: str | Path):
    """The study of that name in a storage, made if it is not there; the name is the
    hash of all that it depends on.
    """
    optuna = import_optuna()
    others = [study for study in storage.get_all_studies() if study.study_name != title]
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    try:
        study = optuna.load_study(study_name=title, storage=storage, pruner=pruner)
    except KeyError:
        for other in others:
            theirs = other.user_attrs.get("identity", {})
            differs = " and ".join(
                name for name, part in parts.items() if theirs.get(name) != part
            )
            print(
                f"{where} holds {other.study_name}, a search with other {differs}: this"
                " one begins beside it"
            )
        study = optuna.create_study(
            study_name=title, storage=storage, pruner=pruner, load_if_exists=True
        )
    for name, value in {"own": own, "identity": parts}.items():
        if name not in study.user_attrs:
            study.set_user_attr(name, value)
    return study


def open_storage(storage: str | Path):
    """Optuna's storage for a path or the address of a server.

    Raises
    ------
    CourseError
        No journal, a folder that is not there, a place on Google Drive, an unknown kind
        of address, no answer.
    """
    if "://" in str(storage):
        return _open_server(str(storage))
    path = Path(storage).expanduser().absolute()
    if path.is_relative_to(utils.COLAB / "drive"):
        raise CourseError(
            f"{path} lies on Google Drive, where two runtimes that write to one file"
            " lose lines: leave storage out, or give the grpc:// address of a search"
            " server."
        )
    return open_journal(path)


def _open_server(address: str):
    optuna = import_optuna()
    found = re.fullmatch(r"grpc://([^/:\s]+):(\d{1,5})/?", address)
    if not found:
        raise CourseError(
            f"storage={address!r} is unknown: give the path of a file, or"
            " grpc://HOST:PORT of a server that `course.py search --serve` runs."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        server = optuna.storages.GrpcStorageProxy(host=found[1], port=int(found[2]))
    try:
        server.wait_server_ready(timeout=SERVER_WAIT)
    except ConnectionError as error:
        raise CourseError(
            f"{address} did not answer within {SERVER_WAIT:.0f} s: see that `course.py"
            " search --serve` runs there and that its port can be reached from here,"
            " then run again."
        ) from error
    return server


def open_journal(path: Path):
    """Optuna's storage in a file; one that is no journal, or damaged before its last
    line, is refused and left alone.

    Half a last line is what a killed writer or a cut copy leaves. It was never
    acknowledged: readers ignore it, and the next writer removes it.
    """
    storages = import_optuna().storages
    if path.is_dir():
        raise CourseError(f"{path} is a folder: give the name of a file.")
    if not path.parent.is_dir():
        raise CourseError(
            f"{path.parent} is missing: mount the shared disk or make the folder, then"
            " run again."
        )
    line, begins = 0, b'{"op_code":'
    try:
        for line, text in enumerate(open(path, "rb") if path.exists() else (), 1):  # noqa: B007, SIM115
            whole = text.endswith(b"\n")
            if not begins.startswith(text[: len(begins)]) or (
                whole and "worker_id" not in json.loads(text)
            ):
                raise ValueError("a line of something else")
        return storages.JournalStorage(
            storages.journal.JournalFileBackend(str(path), lock_obj=JournalLock(path))
        )
    except OSError:
        raise
    except Exception as error:
        # Optuna asserts, or does not find what a record speaks of
        raise CourseError(
            f"{path} is no journal of a search, or damaged (line {line}): move it away"
            " or name another file, then run again; trainings that are finished load."
            " It was left as it is."
        ) from error


class JournalLock:
    """Optuna's lock on a journal: a file that only one process can make, on NFS from
    version 3 as well.

    It is Optuna's JournalFileOpenLock with the name of its holder in it. That one waits
    30 s for a lock that a killed process left; here the lock of a process of this
    machine that has ended is free at once, and that of another machine after GRACE
    seconds. Whoever gets the lock first removes half a line that a killed writer left
    behind. (filelock's SoftFileLock removes neither a lock without a name nor, on NFS,
    any, and compares clocks for others.)"""

    def __init__(self, path: Path):
        self.path, self.lock, self.size, self.mark = (
            path,
            path.with_name(f"{path.name}.lock"),
            0,
            "",
        )

    def acquire(self) -> bool:
        seen, since, told, pause = None, time.monotonic(), False, 0.001
        while not self._make():
            holder = self._holder()
            if holder != seen:
                seen, since = holder, time.monotonic()
            waited, worker = time.monotonic() - since, (holder or "").partition(" ")[0]
            away = _host(worker) != machine() and waited > (GRACE if worker else CLAIM)
            if holder is not None and (
                is_gone(worker) or away or self._is_forgotten(holder)
            ):
                self._break(holder)
            elif waited > GRACE:
                end = "restart the kernel" if worker == _worker() else "end it"
                raise CourseError(
                    f"{self.lock} has been held by process {worker} for {waited:.0f} s,"
                    f" which is stopped or hangs: {end}, then run again. The trials"
                    " that are finished are all there."
                )
            elif waited > CLAIM and not told:
                told = True
                print(
                    f"waiting for the lock {self.lock}, held by process"
                    f" {worker or 'unknown'}"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        try:
            self._mend()
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        with suppress(OSError):  # it was removed: the next call says so
            self.size = self.path.stat().st_size
        with suppress(OSError):
            # else it was taken from us, as we were silent for so long
            if self._holder() == self.mark:
                self.lock.unlink()

    def _make(self) -> bool:
        self.mark = f"{_worker()} {threading.get_ident()} {os.urandom(4).hex()}"
        try:
            file = os.open(self.lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(file, self.mark.encode())
        except BaseException:
            self.lock.unlink()
            raise
        finally:
            os.close(file)
        return True

    def _holder(self) -> str | None:
        """What stands in the lock: "" before its holder has written, None when it is
        free.
        """
        try:
            return self.lock.read_text(errors="replace")
        except FileNotFoundError:
            return None

    def _is_forgotten(self, holder: str) -> bool:
        """Is it a lock of ours, left by Ctrl+C? None that this very thread still holds,
        as it asks for another.
        """
        worker, *rest = holder.split(" ")
        others = {str(thread.ident) for thread in threading.enumerate()} - {
            str(threading.get_ident())
        }
        return worker == _worker() and len(rest) == 2 and rest[0] not in others

    def _break(self, holder: str) -> None:
        """Take the lock of a dead process away, but not one that somebody else has made
        in the meantime.

        Of all that find the same file, the system lets one at a time look and remove.
        """
        # an error: another worker was faster, or is at it
        with suppress(OSError), open(self.lock, "rb+") as file:
            _lock_open_file(file)
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(self.lock))
            if same and file.read().decode(errors="replace") == holder:
                self.lock.unlink()

    def _mend(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else -1
        if size < self.size:
            raise CourseError(
                f"{self.path} was cut or replaced while this search used it: run again,"
                " finished trainings load."
            )
        with open(self.path, "r+b") as file:
            file.seek(max(size - 1, 0))
            if file.read(1) not in (b"\n", b""):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def _lock_open_file(file) -> None:
    """Lock an open file for this process until it is closed; raises BlockingIOError
    where another one has it.
    """
    with suppress(ImportError):  # Windows
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            # a disk without such locks: what remains is the moment between a look and a
            # removal
            pass


@contextmanager
def clear_study_errors(where: str | Path):
    """Say in one sentence what became of the storage of a study; errors of a training
    pass.
    """
    kept = "The trials that are finished are all there."
    with utils.clear_disk_errors(where, kept):
        try:
            yield
        except (FileNotFoundError, json.JSONDecodeError) as error:
            if getattr(error, "filename", str(where)) != str(where):
                raise
            raise CourseError(
                f"{where} was removed or damaged while the search used it: move what is"
                " left of it away, then run again; finished trainings load."
            ) from error
        except Exception as error:
            if "RpcError" not in (kind.__name__ for kind in type(error).__mro__):
                raise
            reason = (error.details() or "no reason given").splitlines()[0]
            raise CourseError(
                f"{where} does not answer any more ({reason}): see to its server, then"
                f" run again. {kept}"
            ) from error
