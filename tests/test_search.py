"""One search, many workers: what they propose, and what becomes of a trial whose worker
is stopped or killed.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest

import utils
from kit import figures, files, studies
from tools import cli

pytestmark = pytest.mark.course

KIT = files.KIT
RECIPE = utils.Recipe(epochs=2, batch_size=16, lr=3e-3, augment=False)


def loss_of(params: dict) -> float:
    """A made-up loss with one valley, in the place of a training."""
    valley = (params["dropout"] - 0.2) ** 2 + params["width"] / 100
    return valley + 10 * params["lr"] + params["weight_decay"]


@pytest.fixture
def quick(data, monkeypatch):
    """quick(trials, during, ...) -> study: trainings take no time.

    `during(count)` is called in the count-th training of this process."""
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "GRACE", 6)
    count = []

    def search(trials=6, during=lambda count: None, recipe=RECIPE, storage=None):
        def training(course, name, model, data, recipe, on_epoch=None, **options):
            count.append(1)
            params = model.config | {"width": model.config["widths"][0]} | vars(recipe)
            losses = [loss_of(params) * factor for factor in (1.5, 1)]
            for epoch, loss in enumerate(losses, 1):
                on_epoch(epoch, {"val_loss": loss})
                during(len(count))
            history = pd.DataFrame({"val_loss": losses})
            return SimpleNamespace(history=history, loaded=False)

        monkeypatch.setattr(utils, "fit", training)
        return utils.search(data.course, data, "search", recipe, trials, storage)

    return search


def begin(work) -> int:
    """A worker: a forked process; its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(count):
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def stop(count):
    raise KeyboardInterrupt


def stored(data):
    """What plain Optuna reads from the file of the search."""
    (file,) = data.course.runs.glob("search-*.db")
    return optuna.load_study(study_name=file.stem, storage=f"sqlite:///{file}")


def check_complete(study, trials: int, more: int = 0) -> None:
    """Every trial is there once, and the course's own choice is one of them.

    Workers that look at the same moment may begin some more than were asked for."""
    done = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    assert len(done) == len({json.dumps(t.params) for t in done})
    assert trials <= len(done) <= trials + more
    assert sum(t.params == study.user_attrs["own"] for t in done) == 1


def test_lone_worker_proposes_what_optuna_alone_would(quick):
    """The reference: Optuna's own loop in memory."""
    study = quick(9)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    alone = optuna.create_study(pruner=pruner)
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


def test_three_workers_one_killed_in_the_middle_of_a_trial(quick, data):
    def slowly(count):
        time.sleep(0.2)

    doomed = begin(lambda: quick(12, lambda count: (slowly(count), die(count))))
    workers = [begin(lambda: quick(12, slowly)) for _ in range(2)]
    assert ended(doomed) == -signal.SIGKILL
    assert [ended(worker) for worker in workers] == [0, 0]
    study = stored(data)
    check_complete(study, 12, more=2)
    (lost,) = (t for t in study.trials if t.state.name == "FAIL")
    (again,) = (t for t in study.trials if t.system_attrs.get("failed_trial"))
    assert again.system_attrs["failed_trial"] == lost.number
    assert again.params == lost.params and again.state.name in ("COMPLETE", "PRUNED")


def test_a_killed_search_goes_on_and_a_finished_one_loads(quick, data):
    assert ended(begin(lambda: quick(4, die))) == -signal.SIGKILL
    before = stored(data).trials
    assert [t.state.name for t in before] == ["COMPLETE", "RUNNING"]
    study = quick(4)
    check_complete(study, 4)
    assert study.trials[0].value == before[0].value
    assert (
        study.trials[1].params
        == before[1].params
        in [t.params for t in study.trials if t.system_attrs.get("failed_trial") == 1]
    )
    again = quick(4, during=stop)  # trains nothing
    assert [t.params for t in again.trials] == [t.params for t in study.trials]
    check_complete(quick(6), 6)


def test_a_worker_killed_before_its_first_sign_of_life(quick, monkeypatch):
    with monkeypatch.context() as patch:
        thread = "optuna.study._optimize.get_heartbeat_thread"
        patch.setattr(thread, lambda *_: nullcontext())
        assert ended(begin(lambda: quick(3, die))) == -signal.SIGKILL
    check_complete(quick(3), 3)


def test_a_worker_that_slept_too_long_loses_its_trial_and_works_on(quick, data):
    def sleep(count):
        if count != 2:
            return
        (file,) = data.course.runs.glob("search-*.db")
        storage = studies._open_storage(optuna, f"sqlite:///{file}")
        study = optuna.load_study(study_name=file.stem, storage=storage)
        mine = study.trials[1]
        if mine.state.name == "RUNNING":  # what another worker does after GRACE
            storage.set_trial_state_values(mine._trial_id, optuna.trial.TrialState.FAIL)
            storage.get_heartbeat_stale_trial_callback()(study, study.trials[1])

    study = quick(4, sleep)
    check_complete(study, 4)
    assert study.trials[1].state.name == "FAIL"
    assert study.trials[1].params in [trial.params for trial in study.trials[2:]]


def test_a_trial_stopped_by_hand_is_tried_again_however_often(quick):
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            quick(3, during=stop)
    check_complete(quick(3), 3)


def cell_of_the_search(call: str) -> str:
    notebook = (KIT / "notebooks" / "further" / "theme3_search.ipynb").read_text()
    cells = ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]
    (source,) = (cell for cell in cells if call in cell)
    return source


def test_table_and_figure_of_the_notebook(quick, data):
    with pytest.raises(KeyboardInterrupt):
        quick(3, during=stop)
    study = quick(3)
    source = cell_of_the_search("study.trials_dataframe(")
    names = {"course": data.course, "utils": utils, "study": study}
    exec(source[source.index("table = study") :], names)  # noqa: S102 - lines of ours
    table = names["table"]
    assert table["number"].tolist() == [1, 2, 3]
    assert figures.search(study).axes[0].get_title() == "3 trials"


def test_a_loss_that_is_no_number_is_a_result(quick, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "loss_of", lambda params: float("nan"))
    with pytest.raises(utils.CourseError, match="No trial of the search finished"):
        quick(2)


def test_another_seed_or_recipe_is_another_study(quick, data):
    first = quick(1).study_name
    assert quick(1, recipe=replace(RECIPE, epochs=3)).study_name != first
    object.__setattr__(data.course, "seed", 43)
    assert quick(1).study_name != first


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("study.journal", "Could not parse SQLAlchemy URL"),
        ("foo://host/name", "Can't load plugin"),
        ("sqlite:////nowhere/study.db", "unable to open database file"),
    ],
)
def test_a_database_that_cannot_be(quick, storage, says):
    with pytest.raises(utils.CourseError, match=says):
        quick(storage=storage)


def test_a_damaged_file_is_refused_and_left_alone(quick, data):
    quick(2)
    (file,) = data.course.runs.glob("search-*.db")
    file.write_bytes(b"no database" * 100)
    with pytest.raises(utils.CourseError, match="file is not a database.*move that"):
        quick(3)
    assert file.read_bytes() == b"no database" * 100


def test_workers_meet_in_a_database_of_their_own(quick, data, tmp_path):
    file = tmp_path / "shared.db"
    study = quick(3, storage=f"sqlite:///{file}")
    check_complete(study, 3)
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT count(*) FROM trials").fetchone() == (3,)
    assert not list(data.course.runs.glob("search-*.db"))


# --- the command


def test_command_and_notebook_work_on_one_study(data, capsys):
    """The recipe of the command is what the notebook's own line makes."""
    home = str(data.course.home)
    assert cli.main(["search", "--home", home, "--trials", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 trials complete, 0 pruned, 0 begun again; the best is trial" in said
    source = cell_of_the_search("utils.search(")
    names = {"course": data.course, "data": data, "utils": utils, "replace": replace}
    exec(source[: source.index("study = ")], names)  # noqa: S102 - lines of ours
    study = utils.search(data.course, data, "search", names["recipe"], 2)
    assert study.study_name in said and len(study.trials) == 2
    assert said.endswith(f"validation loss {study.best_value:.4f}\n")
    assert cli.main(["search", "--home", home, "--trials", "0"]) == 2
    assert "A search of 0 trials finds nothing" in capsys.readouterr().err


def test_command_without_a_course(tmp_path, capsys):
    assert cli.main(["search", "--home", str(tmp_path)]) == 2
    assert "holds no course yet: run `python course.py" in capsys.readouterr().err


@pytest.mark.slow
def test_three_commands_one_killed(data):
    """As three nodes would run it, on a shared home; one dies in a training."""
    asked = [sys.executable, KIT / "course.py", "search", "--trials", "8"]
    command = [*asked, "--home", data.course.home]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    trainings = Path(data.course.runs)
    while not list(trainings.glob("search-trial-*")):
        assert nodes[2].poll() is None
        time.sleep(0.1)
    nodes[2].kill()
    said = [node.communicate(timeout=300)[0] for node in nodes[:2]]
    assert all("the best is trial" in text for text in said), said
    check_complete(stored(data), 8, more=1)
