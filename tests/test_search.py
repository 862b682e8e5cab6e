"""One search, many workers: processes that share a study, die, freeze or find its
storage broken.
"""

import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from killing import error_of, leftovers
from optuna.storages.journal import JournalFileBackend

import utils
from kit import home as home_room
from tools.scale import search as command
from tools.scale import shared_study

KIT = utils.KIT
RECIPE = utils.Recipe(epochs=2, batch_size=16, lr=3e-3, augment=False)
TRIALS = 6


class Worker:
    """A forked process that works, with what it printed; it is waited for at once, so
    that no dead one seems alive.
    """

    def __init__(self, work, output: Path):
        self.output, self.code = output, None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                sys.stdout = sys.stderr = open(output, "w", buffering=1)  # noqa: SIM115 - until the process ends
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        self.thread = threading.Thread(target=self._wait)
        self.thread.start()

    def _wait(self):
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def ended(self) -> int:
        self.thread.join(60)
        assert self.code is not None, f"it hangs: {self.output.read_text()}"
        return self.code


def loss_of(params: dict) -> float:
    """A made-up loss with one valley, in the place of a training."""
    return (
        (params["dropout"] - 0.2) ** 2
        + 10 * params["lr"]
        + params["weight_decay"]
        + params["width"] / 100
    )


@pytest.fixture
def quick(data, monkeypatch, tmp_path):
    """quick(storage, trials, during) -> study: trainings take no time, and leave their
    process and rate in `trained()`.

    `during(epoch, count)` is called in the count-th training of the process, after it
    reported that epoch."""
    note, count = tmp_path / "trained", [0]
    monkeypatch.setattr(shared_study, "POLL", 0.05)

    def search(
        storage=None, trials=TRIALS, during=lambda epoch, count: None, recipe=RECIPE
    ):
        def training(course, name, model, data, recipe, on_epoch=None, **options):
            count[0] += 1
            with open(note, "a") as file:
                file.write(f"{os.getpid()} {recipe.lr!r}\n")
            params = model.config | {"width": model.config["widths"][0]} | vars(recipe)
            losses = [loss_of(params) * factor for factor in (1.5, 1)]
            for epoch, loss in enumerate(losses, 1):
                on_epoch(epoch, {"val_loss": loss})
                during(epoch, count[0])
            return SimpleNamespace(
                history=pd.DataFrame({"val_loss": losses}), loaded=False
            )

        monkeypatch.setattr(utils, "fit", training)
        return utils.search(
            data.course, data, "search", recipe, trials, storage=storage
        )

    search.trained = lambda: (
        [line.split() for line in note.read_text().splitlines()]
        if note.exists()
        else []
    )
    return search


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def journal(data) -> Path:
    return next(data.course.runs.glob("search-*.journal"))


def study_in(path: Path):
    """What plain Optuna reads from a journal."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage)


def finished(study) -> list:
    return [
        (t.params, t.value)
        for t in study.trials
        if t.state.name in ("COMPLETE", "PRUNED")
    ]


def name_of(worker: Worker) -> str:
    return f"{shared_study.machine()}-{worker.pid}"


def retries(study) -> dict[int, int]:
    """Number of each trial that was tried again, and of its second try."""
    return {
        t.user_attrs["retry of trial"]: t.number
        for t in study.trials
        if "retry of trial" in t.user_attrs
        and t.user_attrs.get("ended") != "given back"
    }


def check_complete(study, trials=TRIALS) -> None:
    """Every place is held once, nothing was proposed twice, and the course's own choice
    was tried.
    """
    done = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert sorted(t.user_attrs["place"] for t in done) == list(range(trials))
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    assert len({json.dumps(t.params, sort_keys=True) for t in done}) == trials
    assert sum(t.params == study.user_attrs["own"] for t in done) == 1


# --- one worker


def test_lone_worker_proposes_what_optuna_alone_would(quick):
    """The reference: Optuna's own loop in memory, without storage,
    places or workers.
    """
    study = quick(trials=9)
    alone = optuna.create_study(
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    )
    alone.enqueue_trial(study.user_attrs["own"])

    def objective(trial):
        params = {
            "width": trial.suggest_categorical("width", [16, 24, 32]),
            "depth": trial.suggest_int("depth", 1, 2),
            "dropout": trial.suggest_float("dropout", 0.0, 0.4),
            "lr": trial.suggest_float("lr", 1e-3, 1e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        }
        trial.report(1.5 * loss_of(params), 1)
        if trial.should_prune():
            raise optuna.TrialPruned
        trial.report(loss_of(params), 2)
        return loss_of(params)

    for number in range(9):
        alone.sampler = optuna.samplers.TPESampler(seed=42 + number, n_startup_trials=4)
        alone.optimize(objective, n_trials=1)
    assert [t.state for t in study.trials] == [t.state for t in alone.trials]
    assert [t.params for t in study.trials] == [t.params for t in alone.trials]
    assert [t.value for t in study.trials] == pytest.approx(
        [t.value for t in alone.trials]
    )


def test_a_trial_stopped_by_hand_is_tried_again_however_often(quick, data):
    def stop(epoch, count):
        raise KeyboardInterrupt

    for _ in range(shared_study.RETRIES + 2):
        with pytest.raises(KeyboardInterrupt):
            quick(trials=2, during=stop)
    study = quick(trials=2)
    check_complete(study, 2)
    assert {t.user_attrs["ended"] for t in study.trials if t.state.name == "FAIL"} == {
        "KeyboardInterrupt"
    }
    assert retries(study) == {n: n + 1 for n in range(shared_study.RETRIES + 2)}
    assert all(t.params == study.user_attrs["own"] for t in study.trials[:-1])


def test_a_trial_that_kills_its_workers_is_given_up(quick, data, tmp_path):
    for _ in range(shared_study.RETRIES + 1):
        assert (
            Worker(lambda: quick(trials=2, during=die), tmp_path / "out").ended()
            == -signal.SIGKILL
        )
    study = quick(trials=2)
    check_complete(study, 2)
    assert [t.state.name for t in study.trials] == ["FAIL"] * (
        shared_study.RETRIES + 1
    ) + ["PRUNED", "COMPLETE"]
    assert (
        study.trials[-2].user_attrs["given up"]
        == f"{shared_study.RETRIES + 1} workers died of it"
    )
    assert len(quick.trained()) == shared_study.RETRIES + 2  # not trained once more
    # nothing can be drawn of the trial that was given up
    left = utils.plot_search(study).axes[0]
    assert (
        left.get_title() == "1 trial"
        and left.get_xlabel() == "trial"
        and len(left.get_legend().get_texts()) == 2
    )


def test_own_trial_left_running_by_a_broken_storage_is_tried_again_at_once(quick, data):
    """As after a server that was gone when the trial was to be failed; the notebook
    lives on.
    """

    def forget(epoch, count):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "tell", lambda *arguments, **options: 1 / 0)
        with pytest.raises(KeyboardInterrupt):
            quick(trials=2, during=forget)
    assert study_in(journal(data)).trials[0].state.name == "RUNNING"
    check_complete(quick(trials=2), 2)


def test_a_loss_that_is_no_number_is_a_result(quick, monkeypatch):
    monkeypatch.setitem(
        globals(),
        "loss_of",
        lambda params: float("nan") if params["lr"] == RECIPE.lr else 1.0,
    )
    study = quick(trials=2)
    check_complete(study, 2)
    assert [t.state.name for t in study.trials] == ["PRUNED", "COMPLETE"]


def test_number_of_trials_below_one_is_refused(quick, data):
    for trials in (0, -3):
        with pytest.raises(
            utils.CourseError,
            match=f"A search of {trials} trials finds nothing: ask for at least 1",
        ):
            quick(trials=trials)
    assert not list(data.course.runs.glob("search-*")) and not quick.trained()


def test_alone_after_its_machine_started_again(
    quick, data, monkeypatch, tmp_path, capsys
):
    """Or in a new container on the same home: what is proposed is what an uninterrupted
    search would propose.
    """
    whole = finished(quick(tmp_path / "whole.journal", 12))
    computer, _, space = shared_study.machine().rsplit(".", 2)
    monkeypatch.setattr(shared_study, "GRACE", 0.4)
    monkeypatch.setattr(shared_study, "HEARTBEAT", 0.2)
    for number, earlier in enumerate(
        (f"{computer}.ffff.{space}", "another-container~.8b80.e366")
    ):
        path, sixth = tmp_path / f"{number}.journal", len(quick.trained()) + 6

        def killed(path=path, sixth=sixth, earlier=earlier):
            shared_study.machine = lambda: earlier
            quick(path, 12, lambda *_: len(quick.trained()) >= sixth and die())

        worker = Worker(killed, tmp_path / "out")
        assert worker.ended() == -signal.SIGKILL
        study = quick(path, 12)
        ((lost, again),) = retries(study).items()
        assert finished(study) == whole and 5 <= lost == again - 1 < 11
        said = capsys.readouterr().out
        assert (f"for a sign of life of {earlier}-{worker.pid}" in said) == (
            number == 1
        )
        assert ("has been silent" in said) == (number == 1)


def test_machine_and_its_start_are_told_apart(monkeypatch):
    monkeypatch.setattr(shared_study, "machine", lambda: "node~1111.2222.3333")
    gone, living = dead_process(), os.getppid()
    assert shared_study.is_gone(f"node~1111.2222.3333-{gone}")
    assert not shared_study.is_gone(f"node~1111.2222.3333-{living}")
    # started again since then
    assert shared_study.is_gone(f"node~1111.9999.3333-{living}")
    # another container on it, whose numbers mean others
    assert not shared_study.is_gone(f"node~1111.2222.9999-{gone}")
    # another machine of that name
    assert not shared_study.is_gone(f"node~4444.9999.3333-{gone}")
    assert not shared_study.is_gone("elsewhere-1") and not shared_study.is_gone("")
    monkeypatch.setattr(shared_study, "machine", lambda: "node~.2222.3333")
    # its name alone says little
    assert not shared_study.is_gone(f"node~.9999.3333-{gone}")


def test_killed_between_taking_a_trial_and_naming_it(
    quick, data, monkeypatch, tmp_path
):
    """Its place comes first: what is proposed later is what an uninterrupted search
    would propose.
    """
    whole = finished(quick(tmp_path / "whole.journal", 8))

    def killed():
        optuna.trial.Trial.set_user_attr = die
        quick(trials=8)

    with pytest.raises(KeyboardInterrupt):
        quick(
            trials=8,
            during=lambda epoch, count: (
                interrupt(epoch, count) if count == 11 else None
            ),
        )
    assert Worker(killed, tmp_path / "out").ended() == -signal.SIGKILL
    monkeypatch.setattr(shared_study, "CLAIM", 0.3)
    assert finished(quick(trials=8)) == whole


# --- several workers


@contextmanager
def server(path: Path):
    """`course.py search --serve` in a process of its own; yields its address and the
    process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = [
        sys.executable,
        KIT / "course.py",
        "search",
        "--serve",
        f"127.0.0.1:{port}",
        "--storage",
        path,
    ]
    process = subprocess.Popen(
        asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout.readline().startswith(
            f"serving {path}: workers join with --storage grpc://"
        )
        wait_until(lambda: answers(port))
        yield f"grpc://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.communicate()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("kind", ["file", "server"])
def test_three_workers_one_killed_in_the_middle_of_a_trial(quick, tmp_path, kind):
    path = tmp_path / "study.journal"

    def check(storage):
        def die_in_second(epoch, count):
            if count == 2:
                wait_until(lambda: len({pid for pid, _ in quick.trained()}) == 3)
                die()

        doomed = Worker(lambda: quick(storage, 12, die_in_second), tmp_path / "doomed")

        def until_it_dies(epoch, count):
            wait_until(lambda: shared_study.is_gone(name_of(doomed)))

        works = [lambda: quick(storage, 12, until_it_dies)] * 2
        workers = [Worker(work, tmp_path / f"out-{n}") for n, work in enumerate(works)]
        assert doomed.ended() == -signal.SIGKILL and [
            worker.ended() for worker in workers
        ] == [0, 0]
        study = study_in(path)
        check_complete(study, 12)
        (lost,) = retries(study)
        again = study.trials[retries(study)[lost]]
        assert study.trials[lost].state.name == "FAIL" and again.state.name in (
            "COMPLETE",
            "PRUNED",
        )
        assert study.trials[lost].params == again.params
        assert (
            study.trials[lost].user_attrs["worker"]
            == name_of(doomed)
            != again.user_attrs["worker"]
        )
        # loads them all
        assert (
            Worker(
                lambda: check_complete(quick(storage, 2), 12), tmp_path / "out-3"
            ).ended()
            == 0
        )
        rates = [rate for _, rate in quick.trained()]
        assert len(rates) == 13 and {
            rate for rate in rates if rates.count(rate) == 2
        } == {repr(again.params["lr"])}
        assert len({pid for pid, _ in quick.trained()}) == 3  # all of them worked
        said = (tmp_path / "out-0").read_text() + (tmp_path / "out-1").read_text()
        assert (
            said.count(f"trial {lost} of {name_of(doomed)} ended without a result") == 1
        )

    if kind == "file":
        check(path)
        assert not leftovers(tmp_path) and not list(tmp_path.glob("*.lock"))
    else:
        with server(path) as (address, _):
            check(address)


def test_many_workers_that_start_at_once_neither_overshoot_nor_repeat(quick, tmp_path):
    for round_ in range(3):
        path, gun = tmp_path / f"{round_}.journal", time.time() + 0.3

        def work(path=path, gun=gun):
            time.sleep(max(gun - time.time(), 0))
            quick(path, 3)

        workers = [Worker(work, tmp_path / f"out-{n}") for n in range(5)]
        assert [worker.ended() for worker in workers] == [0] * 5
        study = study_in(path)
        check_complete(study, 3)
        assert all(
            t.user_attrs["ended"] == "given back"
            for t in study.trials
            if t.state.name == "FAIL"
        )
    assert len(quick.trained()) == 9


def fit_until(last: int, number: signal.Signals):
    """The real `utils.fit`, whose process gets a signal after an epoch."""
    fit = utils.fit

    def stopped(*arguments, on_epoch, **options):
        def report(epoch, row):
            on_epoch(epoch, row)
            if epoch == last:
                os.kill(os.getpid(), number)

        return fit(*arguments, on_epoch=report, **options)

    return stopped


def test_a_killed_training_goes_on_from_its_last_saved_step(
    data, tmp_path, monkeypatch
):
    """Real trainings; the second worker ends the killed trial with the very losses of a
    training never killed.
    """
    recipe = replace(RECIPE, epochs=3)

    def killed():
        utils.fit = fit_until(2, signal.SIGKILL)
        utils.search(data.course, data, "search", recipe, 2)

    assert Worker(killed, tmp_path / "killed").ended() == -signal.SIGKILL
    second = Worker(
        lambda: utils.search(data.course, data, "search", recipe, 2),
        tmp_path / "second",
    )
    assert (
        second.ended() == 0 and "resumed in epoch 3 of 3" in second.output.read_text()
    )
    study = study_in(journal(data))
    check_complete(study, 2)
    assert retries(study) == {0: 1}
    model, chosen = utils.build_trial(data.course, study.user_attrs["own"], recipe)
    run = utils.fit(
        data.course, "undisturbed", model, data, chosen, tracker="none", progress=False
    )
    assert (
        list(study.trials[1].intermediate_values.values())
        == run.history["val_loss"].tolist()
    )


def test_who_finds_no_trial_left_waits_for_the_others(quick, tmp_path):
    path, go = tmp_path / "study.journal", tmp_path / "go"

    def slow(epoch, count):
        while not go.exists():
            time.sleep(0.01)

    first = Worker(lambda: quick(path, 1, slow), tmp_path / "first")
    wait_until(lambda: quick.trained())
    # half a study would have no [0]
    second = Worker(lambda: finished(quick(path, 1))[0], tmp_path / "second")
    wait_until(
        lambda: second.output.exists() and "waiting" in second.output.read_text()
    )
    assert (
        second.output.read_text()
        == f"no trial is left to begin; waiting for those of {name_of(first)}\n"
    )
    go.touch()
    assert first.ended() == second.ended() == 0 and len(quick.trained()) == 1


def test_notebook_with_fewer_trials_waits_while_the_study_grows(quick, tmp_path):
    """What it reads from the study does not change while it reads."""
    path, go = tmp_path / "study.journal", tmp_path / "go"

    def slow(epoch, count):
        if count == 4:
            wait_until(go.exists)

    more = Worker(lambda: quick(path, 6, slow), tmp_path / "more")
    wait_until(lambda: len(quick.trained()) == 4)
    few = Worker(lambda: check_complete(quick(path, 2), 6), tmp_path / "few")
    wait_until(
        lambda: (
            few.output.exists()
            and f"waiting for those of {name_of(more)}" in few.output.read_text()
        )
    )
    go.touch()
    assert more.ended() == few.ended() == 0
    assert {pid for pid, _ in quick.trained()} == {str(more.pid)}


def test_more_trials_that_nobody_is_at_work_on_are_not_waited_for(quick, capsys):
    with pytest.raises(KeyboardInterrupt):
        quick(
            trials=5,
            during=lambda epoch, count: interrupt(epoch, count) if count == 4 else None,
        )
    assert len(finished(quick(trials=2))) == 3
    assert (
        "has 3 of the 5 trials that were asked for before, and nobody is at work"
        in capsys.readouterr().out
    )
    check_complete(quick(trials=5), 5)


def test_trial_of_another_worker_counts_as_a_bad_one(quick, tmp_path):
    """The reference: Optuna's constant liar, which sees the running trial; without it
    another proposal comes.
    """
    path = tmp_path / "study.journal"
    quick(path, 6)
    study = study_in(path)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    study.enqueue_trial({}, user_attrs={"place": 6})
    other = study.ask(study.trials[0].distributions)
    other.set_user_attr("worker", f"{shared_study.machine()}-{os.getppid()}")
    before = study.get_trials()

    def end():
        wait_until(
            lambda: (
                len(study.get_trials()) == 8
                and study.get_trials()[7].state.is_finished()
            )
        )
        study.tell(other.number, 1.0)

    thread = threading.Thread(target=end)
    thread.start()
    ours = quick(path, 8)
    thread.join()

    def proposal(**options):
        alone = optuna.create_study(
            sampler=optuna.samplers.TPESampler(
                seed=42 + 7, n_startup_trials=4, **options
            )
        )
        alone.add_trials(before)
        return alone.ask(before[0].distributions).params

    assert (
        ours.trials[7].params
        == proposal(constant_liar=True)
        != proposal(constant_liar=False)
    )


def test_who_gets_another_place_than_expected_proposes_for_that_one(
    quick, tmp_path, monkeypatch
):
    def by_place(study):
        return {t.user_attrs["place"]: t.params for t in study.trials}

    whole, enqueue = quick(tmp_path / "whole.journal", 4), optuna.Study.enqueue_trial

    def second(study, params, user_attrs):
        if user_attrs["place"] == 1 and len(study.trials) == 1:
            # by another worker, a moment before
            enqueue(study, {}, user_attrs={"place": 2})
        enqueue(study, params, user_attrs=user_attrs)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", second)
    study = quick(tmp_path / "study.journal", 4)
    assert [t.user_attrs["place"] for t in study.trials] == [0, 2, 1, 3] and by_place(
        study
    ) == by_place(whole)


def test_a_training_that_hangs_is_named_and_goes_on_when_it_is_ended(
    data, tmp_path, monkeypatch
):
    """Real trainings in one home; the first worker is frozen in the middle of one, so
    it holds its training.
    """

    def frozen():
        utils.fit = fit_until(1, signal.SIGSTOP)
        utils.search(data.course, data, "search", RECIPE, 1)

    monkeypatch.setattr(shared_study, "GRACE", 0.5)
    first = Worker(frozen, tmp_path / "first")
    wait_until(
        lambda: (
            Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0]
            == "T"
        )
    )
    second = Worker(
        lambda: utils.search(data.course, data, "search", RECIPE, 1),
        tmp_path / "second",
    )
    try:
        wait_until(
            lambda: (
                second.output.exists()
                and "another notebook is at work" in second.output.read_text()
            )
        )
        assert (
            f"{name_of(first)} has been silent for" in second.output.read_text()
            and second.code is None
        )
    finally:
        os.kill(first.pid, signal.SIGKILL)
    assert first.ended() == -signal.SIGKILL and second.ended() == 0
    assert "resumed in epoch 2 of 2" in second.output.read_text()
    check_complete(study_in(journal(data)), 1)


def wait_until(ready, seconds=30):
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def running_elsewhere(quick, path):
    """A study in which a worker of another machine is at work on trial 0; returns it,
    and that trial.
    """
    with pytest.raises(KeyboardInterrupt):
        quick(path, 1, during=interrupt)
    study = study_in(path)
    study.enqueue_trial(study.user_attrs["own"], user_attrs={"place": 0})
    trial = study.ask(study.trials[0].distributions)
    trial.set_user_attr("worker", "elsewhere-1")
    return study, trial


def interrupt(epoch, count):
    raise KeyboardInterrupt


def test_a_worker_elsewhere_is_dead_when_it_is_silent(quick, tmp_path, monkeypatch):
    """No clock is compared: what counts is how long the one who waits has seen no new
    sign of life.
    """
    path = tmp_path / "study.journal"
    study, trial = running_elsewhere(quick, path)
    monkeypatch.setattr(shared_study, "GRACE", 1.5)
    waiting = Worker(lambda: quick(path, 1), tmp_path / "out")
    for beat in range(25):
        trial.set_user_attr("heartbeat", str(beat))
        time.sleep(0.1)
    # it lives, for longer than the grace
    assert waiting.code is None and len(quick.trained()) == 1
    assert waiting.ended() == 0 and len(quick.trained()) == 2
    assert (
        retries(study) == {1: 2} and study.trials[2].params == study.user_attrs["own"]
    )
    assert "trial 1 of elsewhere-1 ended without a result" in waiting.output.read_text()


def test_a_worker_at_work_gives_signs_of_life(quick, tmp_path, monkeypatch):
    path = tmp_path / "study.journal"
    monkeypatch.setattr(shared_study, "HEARTBEAT", 0.05)
    quick(path, 1, during=lambda epoch, count: time.sleep(0.3))
    signs = [line for line in path.read_text().splitlines() if "heartbeat" in line]
    assert len(set(signs)) > 3 and threading.active_count() < 10


def test_result_of_a_worker_that_was_taken_for_dead_does_not_count(
    quick, tmp_path, capsys
):
    path = tmp_path / "study.journal"

    def taken(epoch, count):
        if count == 1 and epoch == 1:
            study_in(path).tell(0, state=optuna.trial.TrialState.FAIL)

    study = quick(path, 2, during=taken)
    check_complete(study, 2)
    assert retries(study) == {0: 1} and len(study.trials[0].intermediate_values) == 1
    assert (
        "trial 0: this worker was silent for so long that another one has it now"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_three_nodes_one_killed(data, tmp_path):
    """The command itself, as three nodes would run it, on a shared home; the third dies
    in its first trial.
    """
    path = tmp_path / "study.journal"
    asked = [
        sys.executable,
        KIT / "course.py",
        "search",
        "--home",
        data.course.home,
        "--storage",
        path,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen([*asked, "--trials", "8"], **pipes) for _ in range(3)]

    def in_training():
        trials = (
            study_in(path).trials
            if path.exists() and "place" in path.read_text()
            else []
        )
        return [
            t
            for t in trials
            if t.state.name == "RUNNING"
            and len(t.params) == 5
            and t.user_attrs.get("worker") == name_of(nodes[2])
        ]

    wait_until(in_training, seconds=60)
    nodes[2].kill()
    assert nodes[2].wait() == -signal.SIGKILL
    said = [node.communicate(timeout=120)[0] for node in nodes[:2]]
    assert all(
        "search-" in text and "1 tried again; the best is trial" in text
        for text in said
    )
    study = study_in(path)
    check_complete(study, 8)
    ((lost, again),) = retries(study).items()
    assert study.trials[lost].params == study.trials[again].params
    assert study.trials[lost].user_attrs["worker"].endswith(f"-{nodes[2].pid}")
    # a pruned one leaves its steps only
    assert len(list(data.course.runs.glob("search-trial-*/finished.pt"))) <= 8


def test_figure_of_a_search_in_which_our_own_recipe_was_tried_again_late(
    quick, tmp_path
):
    path = tmp_path / "study.journal"
    with pytest.raises(KeyboardInterrupt):
        quick(path, 3, during=interrupt)
    study = study_in(path)
    # another worker was on the next trial in the meantime
    study.enqueue_trial({}, user_attrs={"place": 1})
    study = quick(path, 3)
    assert [t.state.name for t in study.trials] == [
        "FAIL",
        "COMPLETE",
        "COMPLETE",
        "COMPLETE",
    ]
    left, right = utils.plot_search(study).axes
    assert (
        left.get_xlabel() == "trial (number 2: our own recipe)"
        and left.get_title() == "3 trials"
    )
    points = [line.get_xdata()[0] for line in left.lines if len(line.get_xdata())]
    assert points == [1, 2, 3] and len(right.lines) == 3


def test_a_worker_that_fell_asleep_before_it_put_its_name_on_a_trial(
    quick, tmp_path, monkeypatch
):
    path, ask, asked = tmp_path / "study.journal", optuna.Study.ask, []

    def slow(study, *arguments):
        trial = ask(study, *arguments)
        asked.append(trial.number)
        if len(asked) == 1:
            study_in(path).tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return trial

    monkeypatch.setattr(optuna.Study, "ask", slow)
    check_complete(quick(path, 2), 2)
    assert asked == [0, 1, 2]


def test_table_of_the_notebook_holds_the_trials_of_the_figure(quick, data):
    with pytest.raises(KeyboardInterrupt):
        quick(trials=3, during=interrupt)
    study = quick(trials=3)
    # given back before it proposed
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    cells = json.loads(next((KIT / "notebooks").glob("theme3_*.ipynb")).read_text())[
        "cells"
    ]
    (source,) = (
        "".join(cell["source"])
        for cell in cells
        if "study.trials_dataframe(" in "".join(cell["source"])
    )
    names = {"course": data.course, "utils": utils, "study": study}
    exec(source[source.index("table = study") :], names)  # noqa: S102 - lines of ours
    table = names["table"]
    assert (
        table["number"].tolist() == [1, 2, 3]
        and utils.plot_search(study).axes[0].get_title() == "3 trials"
    )
    assert table["width"].dtype.kind == table["depth"].dtype.kind == "i"


# --- other studies


def test_other_data_code_recipe_or_seed_is_another_study(
    quick, data, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "study.journal"
    first = quick(path, 1)
    other = quick(path, 1, recipe=replace(RECIPE, epochs=3))
    assert (
        other.study_name != first.study_name
        and len(first.trials) == len(other.trials) == 1
    )
    said = capsys.readouterr().out
    assert (
        f"{path} holds {first.study_name}, a search with other recipe: this one begins"
        " beside it" in said
    )
    monkeypatch.setattr(utils, "fingerprint", lambda *parts: "other code")
    monkeypatch.setattr(data, "key", "other data")
    quick(path, 1)
    assert (
        f"{first.study_name}, a search with other code and data: this one"
        in capsys.readouterr().out
    )
    monkeypatch.setattr(data, "course", replace(data.course, seed=data.course.seed + 1))
    seeded = quick(path, 1)
    assert (
        f"{first.study_name}, a search with other code and data and seed: this"
        in capsys.readouterr().out
    )
    named = utils.search(data.course, data, "other", RECIPE, 1, storage=path)
    assert (
        f"{seeded.study_name}, a search with other name: this one"
        in capsys.readouterr().out
    )
    assert len(study_names(path)) == 5 and named.study_name.startswith("other-")


@pytest.mark.parametrize(
    "part",
    [
        "fit",
        "_Session",
        "train_epoch",
        "train_step",
        "validate",
        "autocast",
        "make_optimizer",
        "make_criterion",
        "class_weights",
        "WeightedCrossEntropy",
        "WeightAverage",
        "BatchLoader",
        "draw_augmentation",
        "augment",
        "_texture",
        "AUGMENT",
        "ARCHITECTURES",
        "_sampler",
        "build_trial",
    ],
)
def test_code_that_changes_every_training_makes_another_study(data, monkeypatch, part):
    recipe = replace(RECIPE, augment=True)
    before = utils._search_parts(data.course, data, "search", recipe)
    assert before == utils._search_parts(data.course, data, "search", recipe)
    if part.isupper():
        changed = {
            name: value | {"new": 1} for name, value in getattr(utils, part).items()
        }
    else:
        changed = lambda *arguments: "something else"  # noqa: E731 - as a line of code that was changed
    monkeypatch.setattr(utils, part, changed)
    assert utils.fingerprint(before) != utils.fingerprint(
        utils._search_parts(data.course, data, "search", recipe)
    )


def study_names(path: Path) -> list[str]:
    return optuna.get_all_study_names(
        optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    )


# --- the lock


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "holder", ["of a dead process", "without a name", "of another machine"]
)
def test_lock_of_a_dead_worker_holds_nobody_up(quick, data, monkeypatch, holder):
    before = finished(quick(trials=2))
    lock = journal(data).with_suffix(".journal.lock")
    name = {
        "of a dead process": f"{shared_study.machine()}-{dead_process()} ab",
        "without a name": "",
        "of another machine": "elsewhere-1 ab",
    }[holder]
    lock.write_text(name)
    # that one is not waited for, however long the grace
    if holder != "of a dead process":
        monkeypatch.setattr(shared_study, "GRACE", 0.3)
        monkeypatch.setattr(shared_study, "CLAIM", 0.3)
    study = quick(trials=4)
    check_complete(study, 4)
    assert (
        finished(study)[:2] == before
        and not lock.exists()
        and not leftovers(data.course.home)
    )


def test_lock_held_by_a_live_process(quick, data, monkeypatch):
    before = finished(quick(trials=2))
    lock = journal(data).with_suffix(".journal.lock")
    content = journal(data).read_bytes()
    holder = subprocess.Popen(["sleep", "60"])
    lock.write_text(f"{shared_study.machine()}-{holder.pid} ab")
    monkeypatch.setattr(shared_study, "GRACE", 0.5)
    with pytest.raises(
        utils.CourseError,
        match=rf"\.lock has been held by process \S+-{holder.pid} for .* end it",
    ):
        quick(trials=4)
    assert lock.exists() and journal(data).read_bytes() == content
    holder.kill()
    holder.wait()
    assert finished(quick(trials=4))[:2] == before


def test_lock_that_is_waited_for_is_told(quick, data, monkeypatch, capsys):
    quick(trials=2)
    lock = journal(data).with_suffix(".journal.lock")
    lock.write_text(f"{shared_study.machine()}-{os.getppid()} ab")
    monkeypatch.setattr(shared_study, "CLAIM", 0.2)
    timer = threading.Timer(0.6, lock.unlink)
    timer.start()
    check_complete(quick(trials=4), 4)
    holder = f"{shared_study.machine()}-{os.getppid()}"
    assert (
        f"waiting for the lock {lock}, held by process {holder}"
        in capsys.readouterr().out
    )


def test_killed_while_it_holds_the_lock(quick, data, tmp_path):
    """And in the middle of a line."""
    before = finished(quick(trials=2))

    def killed():
        os.fsync = lambda file: (
            os.truncate(file, os.path.getsize(journal(data)) - 9),
            die(0, 0),
        )
        quick(trials=4)

    assert Worker(killed, tmp_path / "out").ended() == -signal.SIGKILL
    assert journal(data).with_suffix(".journal.lock").exists() and not journal(
        data
    ).read_bytes().endswith(b"\n")
    study = quick(trials=4)
    check_complete(study, 4)
    assert finished(study)[:2] == before


def test_lock_is_not_taken_from_who_has_just_made_it(tmp_path):
    path = tmp_path / "study.journal"
    path.touch()
    lock, other = shared_study.JournalLock(path), shared_study.JournalLock(path)
    assert lock.acquire()
    other._break("what another worker had found in it")
    assert lock.lock.read_text() == lock.mark and not leftovers(tmp_path)
    lock.release()
    assert other.acquire() and other.lock.read_text() == other.mark
    lock.release()  # not its own any more
    assert other.lock.exists()


def test_lock_that_this_very_thread_left_is_free_at_once(quick, data):
    """Ctrl+C between two lines of ours: nobody has to wait, nor to end
    the own kernel.
    """
    before = finished(quick(trials=2))
    left = shared_study.JournalLock(journal(data))
    assert left.acquire()
    assert finished(quick(trials=4))[:2] == before and not left.lock.exists()


def test_lock_of_another_thread_of_this_process_is_waited_for(quick, data, monkeypatch):
    quick(trials=2)
    lock, done = shared_study.JournalLock(journal(data)), threading.Event()
    holder = threading.Thread(target=lambda: (lock.acquire(), done.wait(10)))
    holder.start()
    wait_until(lambda: lock.lock.exists() and lock.lock.read_text())
    monkeypatch.setattr(shared_study, "GRACE", 0.3)
    with pytest.raises(
        utils.CourseError,
        match=r"held by process \S+ for .*hangs: restart the kernel, then run again",
    ):
        quick(trials=4)
    done.set()
    holder.join()
    check_complete(quick(trials=4), 4)  # that thread has ended with the lock


def test_of_two_that_break_a_lock_the_slower_leaves_the_next_one_alone(
    tmp_path, monkeypatch
):
    """`first` is slow, once between its look and its removal, once between opening the
    file and its look.
    """
    path, mark = (
        tmp_path / "study.journal",
        f"{shared_study.machine()}-{dead_process()} ab",
    )
    path.touch()
    first, second, third = (shared_study.JournalLock(path) for _ in range(3))
    samestat, lock_open_file, seen = os.path.samestat, shared_study._lock_open_file, []

    def while_it_removes(*stats):
        monkeypatch.setattr(os.path, "samestat", samestat)
        second._break(mark)
        seen.append(first._holder())
        return samestat(*stats)

    first.lock.write_text(mark)
    monkeypatch.setattr(os.path, "samestat", while_it_removes)
    first._break(mark)
    assert seen == [mark] and first._holder() is None  # one at a time

    def before_it_looks(file):
        monkeypatch.setattr(shared_study, "_lock_open_file", lock_open_file)
        second._break(mark)
        seen.append(third._make())
        lock_open_file(file)

    first.lock.write_text(mark)
    monkeypatch.setattr(shared_study, "_lock_open_file", before_it_looks)
    first._break(mark)
    assert (
        seen == [mark, True]
        and first._holder() == third.mark
        and not leftovers(tmp_path)
    )


def test_workers_that_die_with_the_lock_lose_no_line(tmp_path):
    """Each adds one to a number under the lock; every third dies with it. Two at once
    would lose some.
    """
    path, number = tmp_path / "study.journal", tmp_path / "number"
    path.touch()
    number.write_text("0")

    def work(dies):
        for count in range(10):
            lock = shared_study.JournalLock(path)
            lock.acquire()
            value = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(value + 1))
            if dies and count == 9:
                die()
            lock.release()

    workers = [
        Worker(lambda dies=n % 3 == 0: work(dies), tmp_path / f"out-{n}")
        for n in range(6)
    ]
    assert [worker.ended() for worker in workers] == [-signal.SIGKILL, 0, 0] * 2
    lock = shared_study.JournalLock(path)
    assert lock.acquire() and number.read_text() == "60"


# --- the file


def test_cut_journal_goes_on_at_any_byte(quick, data):
    whole, path = finished(quick()), journal(data)
    content, rng = path.read_bytes(), random.Random(0)
    lines = [m.end() for m in re.finditer(rb"\n", content)]
    for cut in [
        0,
        1,
        5,
        lines[3],
        lines[3] - 1,
        lines[-1] - 1,
        *(rng.randrange(len(content)) for _ in range(14)),
    ]:
        path.write_bytes(content[:cut])
        kept = finished(study_in(path)) if cut > lines[0] else []
        study = quick()
        assert finished(study)[: len(kept)] == kept and finished(study) == whole
        assert all(
            "worker_id" in json.loads(line) for line in path.read_text().splitlines()
        )


@pytest.mark.parametrize(
    "content",
    [
        b"a note\n",
        b"a note",
        b'{"a": 1}\n',
        b"[1]\n",
        b"\0" * 100,
        b"\xff\xfe{\n",
        b'{"op_code":77,"worker_id":1}\n',
        b'{"op_code":1,"worker_id":"a","study_id":3\n',
        "sqlite",
        "zeros",
        "two in one line",
    ],
)
def test_what_is_no_journal_is_refused_and_left_alone(quick, tmp_path, content):
    path = tmp_path / "study.journal"
    if content == "sqlite":
        with sqlite3.connect(path) as base:
            base.execute("create table trials (number int)")
    elif isinstance(content, str):
        quick(path, 1)
        lines = path.read_bytes().splitlines(keepends=True)
        lines[2] = (
            bytes(len(lines[2])) if content == "zeros" else lines[2][:30] + lines[3]
        )
        path.write_bytes(b"".join(lines))
    else:
        path.write_bytes(content)
    before, trained = path.read_bytes(), len(quick.trained())
    with pytest.raises(
        utils.CourseError,
        match=r"study\.journal is no journal of a search, or damaged \(line \d\)",
    ):
        quick(path, 2)
    assert path.read_bytes() == before and len(quick.trained()) == trained


def test_journal_cut_or_removed_under_a_worker(quick, tmp_path):
    path = tmp_path / "study.journal"

    def cut(epoch, count):
        path.write_bytes(path.read_bytes()[:300])

    with pytest.raises(
        utils.CourseError,
        match=r"study\.journal was cut or replaced while this search used it: run",
    ):
        quick(path, during=cut)
    check_complete(quick(path))
    path = tmp_path / "other.journal"
    with pytest.raises(
        utils.CourseError,
        match=r"other\.journal was (cut|removed).*finished trainings load",
    ):
        quick(path, during=lambda epoch, count: path.unlink())
    check_complete(quick(path))


def test_finished_search_loads_from_a_disk_that_may_only_be_read(quick, small_disk):
    disk = small_disk(1 << 20)
    before = quick(disk / "study.journal").trials
    content = (disk / "study.journal").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert (
        quick(disk / "study.journal").trials == before
        and len(quick.trained()) == TRIALS
    )
    with pytest.raises(
        utils.CourseError,
        match=r"study\.journal could not be written \(Read-only.*are all there",
    ):
        quick(disk / "study.journal", trials=TRIALS + 1)
    assert (disk / "study.journal").read_bytes() == content


@pytest.mark.parametrize(
    "storage, says",
    [
        (".", "is a folder: give the name of a file"),
        ("nowhere/study.journal", "nowhere is missing: mount the shared disk"),
        (
            "redis://localhost:6379",
            "is unknown: give the path of a file, or grpc://HOST:PORT",
        ),
        ("sqlite:///study.db", "is unknown"),
        ("grpc://localhost", "is unknown"),
        ("grpc://localhost:port", "is unknown"),
    ],
)
def test_storage_that_cannot_be(quick, tmp_path, monkeypatch, storage, says):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(utils.CourseError, match=says):
        quick(storage)
    assert sorted(tmp_path.rglob("*")) == before and not quick.trained()


def test_google_drive_is_no_shared_disk(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(home_room, "COLAB", tmp_path)
    (tmp_path / "drive").mkdir()
    with pytest.raises(
        utils.CourseError,
        match="lies on Google Drive, where two runtimes that write to one file lose",
    ):
        quick(tmp_path / "drive" / "study.journal")
    assert not list((tmp_path / "drive").iterdir())


def test_home_on_google_drive_without_a_local_copy_is_allowed(
    quick, data, tmp_path, monkeypatch
):
    """DRIVE = False, or `course.py run --home` there: nobody gave a storage, so nobody
    can leave it out.
    """
    monkeypatch.setattr(home_room, "COLAB", tmp_path)
    home = tmp_path / "drive" / "MyDrive"
    monkeypatch.setattr(data, "course", replace(data.course, home=home, local=home))
    check_complete(quick(trials=2), 2)
    assert len(list((home / "runs").glob("search-*.journal"))) == 1


def test_on_drive_the_trial_of_a_lost_runtime_is_tried_again_at_once(
    quick, data, monkeypatch, tmp_path
):
    """The journal of a runtime is its own: nobody else can be at work on what its copy
    says is running.
    """
    home = tmp_path / "drive" / "MyDrive"
    monkeypatch.setattr(data, "course", replace(data.course, home=home))
    monkeypatch.setattr(shared_study, "machine", lambda: "the-runtime-before")
    with pytest.raises(KeyboardInterrupt):
        quick(trials=1, during=interrupt)
    path = next((data.course.local / "runs").glob("search-*.journal"))
    study = study_in(path)
    study.enqueue_trial(study.user_attrs["own"], user_attrs={"place": 0})
    study.ask().set_user_attr("worker", "the-runtime-before-1")
    monkeypatch.setattr(shared_study, "machine", lambda: "this-runtime")
    check_complete(quick(trials=2), 2)
    assert study_in(home / "runs" / path.name).trials == study_in(path).trials


# --- the server


def test_server_that_does_not_answer(quick):
    """Nobody listens, or somebody who never says a word. In processes of their own:
    gRPC's threads survive no fork.
    """

    def ask(port):
        shared_study.SERVER_WAIT = 1.0
        quick(f"grpc://127.0.0.1:{port}")

    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        closed.bind(("127.0.0.1", 0))
        for port in (silent.getsockname()[1], closed.getsockname()[1]):
            said = error_of(lambda port=port: ask(port))
            assert said.startswith(
                f"grpc://127.0.0.1:{port} did not answer within 1 s: see that"
                " `course.py search"
            )
    assert not quick.trained()


def test_server_that_dies_in_the_middle(quick, tmp_path):
    path = tmp_path / "study.journal"
    with server(path) as (address, process):

        def stop(epoch, count):
            if count == 2:
                os.kill(process.pid, signal.SIGKILL)

        said = error_of(lambda: quick(address, during=stop))
        assert re.match(
            rf"{address} does not answer any more \(.*(Socket|onnect).*\): see to its"
            r" server, then",
            said,
        )
        before = finished(study_in(path))
    assert len(before) == 1
    with server(path) as (address, _):
        assert Worker(lambda: quick(address), tmp_path / "out").ended() == 0
    check_complete(study_in(path))
    assert finished(study_in(path))[:1] == before


# --- the command


def test_command_and_notebook_work_on_one_study(data, capsys):
    """The recipe of the command is what the notebook's own line makes."""
    home = data.course.home
    assert command.main(["--home", str(home), "--trials", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"search-\w{12}: 2 trials complete, 0 pruned, 0 tried again; the best is trial"
        r" \d, ",
        said,
    )
    cells = json.loads(next((KIT / "notebooks").glob("theme3_*.ipynb")).read_text())[
        "cells"
    ]
    (line,) = (
        line
        for cell in cells
        for line in cell["source"]
        if line.startswith("trial_recipe = ")
    )
    names = {
        "course": data.course,
        "recipe": utils.optimized_recipe(data),
        "replace": replace,
    }
    exec(line, names)  # noqa: S102 - a line of ours
    study = utils.search(data.course, data, "search", names["trial_recipe"], 2)
    assert (
        said.endswith(f"validation loss {study.best_value:.4f}\n")
        and study.study_name in said
    )
    assert len(study.trials) == 2 == len(list(data.course.runs.glob("search-trial-*")))


def test_command_explains_what_is_wrong(tmp_path, capsys):
    assert command.main(["--home", str(tmp_path)]) == 2
    assert (
        "holds no course yet: run `python course.py run --until 1 --home"
        in capsys.readouterr().out
    )
    assert (
        command.main(["--serve", "here", "--storage", str(tmp_path / "study.journal")])
        == 2
    )
    assert "--serve here is no address: give HOST:PORT" in capsys.readouterr().out
    assert command.main(["--serve", "127.0.0.1:1"]) == 2
    assert "--serve needs --storage FILE" in capsys.readouterr().out
    for host in ("no-such-host.invalid", "192.0.2.1"):
        assert (
            command.main(
                [
                    "--serve",
                    f"{host}:13000",
                    "--storage",
                    str(tmp_path / "study.journal"),
                ]
            )
            == 2
        )
        assert (
            "give an address of this machine, 0.0.0.0 for all of them.\n"
            in capsys.readouterr().out
        )
    assert (
        command.main(
            [
                "--serve",
                "127.0.0.1:0",
                "--storage",
                str(tmp_path / "nowhere" / "study.journal"),
            ]
        )
        == 2
    )
    assert (
        "nowhere is missing: mount the shared disk or make the folder"
        in capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())


def test_command_with_no_trials(data, capsys):
    for trials in (0, -3):
        assert (
            command.main(["--home", str(data.course.home), "--trials", str(trials)])
            == 2
        )
        assert (
            f"A search of {trials} trials finds nothing: ask for at least 1."
            in capsys.readouterr().out
        )
    assert not list(data.course.runs.glob("search-*"))


def test_command_that_is_told_to_stop_frees_its_trial_at_once(
    data, monkeypatch, capsys
):
    """SIGTERM, as a cluster sends it: however often it comes, the trial is none that
    kills its workers.
    """
    stops = [True] * (shared_study.RETRIES + 2) + [False]

    def training(*arguments, on_epoch, **options):
        on_epoch(1, {"val_loss": 1.0})
        if stops.pop(0) if stops else False:
            os.kill(os.getpid(), signal.SIGTERM)
        return SimpleNamespace(history=pd.DataFrame({"val_loss": [1.0]}), loaded=False)

    monkeypatch.setattr(utils, "fit", training)
    for code in [143] * (shared_study.RETRIES + 2) + [0]:
        assert command.main(["--home", str(data.course.home), "--trials", "2"]) == code
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    said = capsys.readouterr().out
    assert (
        said.count(
            "The search was told to stop (SIGTERM): its trial is free for others"
        )
        == shared_study.RETRIES + 2
    )
    assert f"{shared_study.RETRIES + 2} tried again; the best is trial" in said
    study = study_in(journal(data))
    check_complete(study, 2)
    assert {t.user_attrs["ended"] for t in study.trials if t.state.name == "FAIL"} == {
        "Terminated"
    }
    # two workers tried again at once
    attributes = {"place": 0, "retry of trial": 0, "ended": "given back"}
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL, user_attrs=attributes
        )
    )
    assert command.main(["--home", str(data.course.home), "--trials", "2"]) == 0
    assert (
        f"{shared_study.RETRIES + 2} tried again; the best is trial"
        in capsys.readouterr().out
    )


def test_server_at_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = error_of(lambda: command.serve(address, tmp_path / "study.journal"))
    assert said.startswith(f"{address} cannot be listened at (") and said.endswith(
        "choose another port."
    )
    with server(tmp_path / "study.journal") as (address, _):
        other = error_of(
            lambda: command.serve(
                address.removeprefix("grpc://"), tmp_path / "other.journal"
            )
        )
    assert (
        "cannot be listened at" in other and not (tmp_path / "other.journal").exists()
    )
