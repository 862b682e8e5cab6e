"""Training by several processes: against one process, and with a kill. Real torchrun,
gloo, on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import ranks

import utils

KIT = Path(utils.__file__).parent
LAST_DIGITS = 2e-5  # relative: float32 sums in another order, over three epochs

# two processes are started once
pytestmark = [pytest.mark.course, pytest.mark.xdist_group("ranks")]


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr(utils, "amp_dtype", lambda device: None)


def ready(home: Path, source: Path) -> utils.Data:
    """A home with index and cache, as theme 1 leaves it."""
    course = utils.start(1, source=source, profile="smoke", home=home)
    utils.build_index(course)
    utils.load_data(course)
    return ranks.opened(home)


def together(world: int, home: Path, *tasks: str) -> dict:
    """What the tasks of tests/support/ranks.py found, done by so many processes."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command = [
        sys.executable,
        "-m",
        *launcher,
        KIT / "tests" / "support" / "ranks.py",
        home,
    ]
    done = subprocess.run(
        [*command, *tasks],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return utils.read_json(home / "answers.json")


@pytest.fixture(scope="module")
def two(drawn, tmp_path_factory):
    """What two processes found, and their home; a training that one process began lay
    in it before.
    """
    home = tmp_path_factory.mktemp("two") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "amp_dtype", lambda device: None)
        assert ranks.train(ready(home, drawn), "from one to two", stop=1) is None
    return home, together(2, home, "whole", "left_behind", "shares", "exploding")


@pytest.fixture
def alone(drawn, tmp_path) -> utils.Run:
    """The same training by one process, in a home of its own."""
    return ranks.train(ready(tmp_path / "alone", drawn), "whole")


def same_curves(told: dict, mine) -> None:
    assert told["epoch"] == [1, 2, 3] and told["lr"] == mine["lr"].tolist()
    for curve in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        np.testing.assert_allclose(told[curve], mine[curve], rtol=LAST_DIGITS)


def test_two_processes_have_the_curves_of_one(two, alone):
    told = two[1]["whole"]
    same_curves(told["history"], alone.history)
    assert told["hardware"].endswith(", 2 processes")


def test_a_training_of_two_processes_is_loaded_by_one(two, drawn):
    run = ranks.train(ready(two[0], drawn), "whole")
    assert run.loaded and "2 processes" in run.hardware


def test_another_number_of_processes_goes_on(two, alone, drawn, capsys):
    same_curves(two[1]["left_behind"]["history"], alone.history)
    run = ranks.train(ready(two[0], drawn), "from two to one")
    assert "resumed in epoch 2" in capsys.readouterr().out
    same_curves(run.history.to_dict("list"), alone.history)


def test_processes_share_every_batch(two):
    """Batches of 5, 5 and 1: in training all make three steps, and an image that does
    not go round serves twice; in validation each counts once.
    """
    assert two[1]["shares"] == {"train": [7, 14, 6], "val": [7, 11, 5]}


def test_a_loss_that_is_no_number_stops_all_processes(two):
    said = two[1]["exploding"]["said"]
    assert "the loss became" in said and "lower lr" in said


# --- the command


def child_of_rank(launcher: int, rank: int) -> int | None:
    """Number of the process that torchrun has started as this rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    return None


def command(home: Path, source: Path, *more: str) -> list:
    options = ["--network", "baseline", "--source", source, "--profile", "smoke"]
    options += ["--home", home, "--tracker", "none", *more]
    return [sys.executable, KIT / "course.py", "train", *options]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_process_ends_the_job_with_a_sentence_and_the_training_goes_on(
    drawn, tmp_path
):
    home = tmp_path / "home"
    asked = command(home, drawn, "--epochs", "60", "--save-every", "0")
    job = subprocess.Popen(
        [*asked, "--processes", "2"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 120
    while not list((home / "runs").glob("baseline-*/running.pt")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.kill(child_of_rank(job.pid, 1), signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 1
    assert "Rank 1 was lost: Signal 9 (SIGKILL)" in said
    assert "the same command goes on from there" in said and "Traceback" not in said
    assert not list((home / "runs").glob("baseline-*/finished.pt"))
    again = subprocess.run(asked, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resumed " in again.stdout


@pytest.mark.parametrize("network", ["baseline", "optimized"])
def test_the_notebook_loads_what_the_command_has_trained(network, drawn, tmp_path):
    done = subprocess.run(
        [*command(tmp_path / "home", drawn), "--network", network],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    data = utils.load_data(
        utils.start(1, source=drawn, profile="smoke", home=tmp_path / "home")
    )
    model, recipe = utils.optimized_network(data.course), utils.optimized_recipe(data)
    if network == "baseline":
        utils.torch.manual_seed(42)
        model, recipe = utils.BaselineCNN(1, 2), utils.baseline_recipe(data)
    assert utils.fit(data.course, network, model, data, recipe).loaded


@pytest.mark.parametrize(
    "wrong",
    [["--lr", "0"], ["--epochs", "-1"], ["--network", "resnet"], ["--processes", "0"]],
)
def test_impossible_options_are_refused(wrong, capsys):
    from tools.scale import train

    with pytest.raises(SystemExit) as ended:
        train.main(wrong)
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err
