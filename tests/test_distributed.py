"""Training by several processes: against one process, with kills and strangers. Real
torchrun, gloo, on the CPU.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from test_training import same_weights

import utils

KIT = Path(utils.__file__).parent
LAST_DIGITS = 2e-5  # relative: float32 sums in another order, over three epochs

pytestmark = pytest.mark.xdist_group("ranks")  # two processes are started once


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setattr(utils, "amp_dtype", lambda device: None)


def ready(home: Path, source: Path) -> utils.Data:
    """A home with index and cache, as theme 1 leaves it."""
    course = utils.start(1, source=source, profile="smoke", home=home)
    utils.build_index(course)
    return utils.load_data(course)


def together(world: int, home: Path, *tasks: str) -> dict:
    """What the tasks of tests/ranks.py found, done by so many processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(world),
    ]
    command += [KIT / "tests" / "ranks.py", home, *tasks]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment
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
        assert ranks.train(ready(home, drawn), "from one to two", stop=7) is None
    tasks = (
        "whole",
        "broken",
        "left_behind",
        "gradients",
        "shares",
        "validated",
        "strangers",
        "exploding",
        "exploding_in_half_precision",
    )
    return home, together(2, home, *tasks)


@pytest.fixture
def alone(drawn, tmp_path) -> utils.Run:
    """The same training by one process, in a home of its own."""
    return ranks.train(ready(tmp_path / "alone", drawn), "whole")


def test_two_processes_learn_as_one(two, alone):
    _, answers = two
    told, mine = answers["whole"]["history"], alone.history
    assert told["epoch"] == [1, 2, 3] and told["lr"] == mine["lr"].tolist()
    for curve in ("train_loss", "val_loss"):
        np.testing.assert_allclose(told[curve], mine[curve], rtol=LAST_DIGITS)
    for curve in ("train_accuracy", "val_accuracy"):
        np.testing.assert_allclose(told[curve], mine[curve], rtol=1e-12)
    assert (
        answers["whole"]["hardware"].endswith(", 2 processes")
        and "processes" not in alone.hardware
    )


def test_a_training_of_two_processes_is_loaded_by_one(two, alone, drawn, capsys):
    home, _ = two
    run = ranks.train(ready(home, drawn), "whole")
    assert run.loaded and "2 processes" in capsys.readouterr().out
    for ours, theirs in zip(
        run.model.parameters(), alone.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_an_interrupted_training_of_two_ends_with_the_weights_of_an_uninterrupted_one(
    two, drawn
):
    data = ready(two[0], drawn)
    assert same_weights(
        *(
            ranks.train(data, name, ranks.normed).model
            for name in ("broken", "unbroken")
        )
    )


def test_each_process_draws_its_own_dropout(two):
    assert two[1]["broken"]["seeds"] == [42, 43]


def test_the_stored_network_scores_what_its_history_says(two, drawn):
    """Validation in two processes used the very weights and batch-norm statistics that
    rank 0 stored.
    """
    data = ready(two[0], drawn)
    run, loader = ranks.train(data, "unbroken", ranks.normed), data.loader("val", 256)
    criterion = utils.make_criterion(data.loader("train", 15), 2, ranks.RECIPE)
    loss, _ = utils.validate(run.model, loader, criterion, "cpu")
    assert loss == pytest.approx(min(two[1]["broken"]["history"]["val_loss"]), rel=1e-5)


def test_another_number_of_processes_goes_on(two, alone, drawn, capsys):
    home, answers = two
    assert answers["left_behind"]["hardware"].endswith(", 1 then 2 processes")
    run = ranks.train(ready(home, drawn), "from two to one")
    assert "resumed in epoch 2 of 3, after step 7" in capsys.readouterr().out
    assert not run.loaded and run.hardware.endswith(", 2 then 1 processes")
    for name in ("from two to one", "from one to two"):
        told = ranks.train(ready(home, drawn), name).history
        np.testing.assert_allclose(
            told["train_loss"], alone.history["train_loss"], rtol=LAST_DIGITS
        )
        np.testing.assert_allclose(
            told["val_loss"], alone.history["val_loss"], rtol=LAST_DIGITS
        )


def test_batch_norm_is_that_of_each_process_and_gradients_add_up(two):
    """One process that takes the batch in two pieces normalises as two processes do:
    the gradients are the same.
    """
    told, (model, images, labels, criterion) = two[1]["gradients"], ranks.one_batch()
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), lr=0.0),
        utils.make_scaler(torch.device("cpu")),
    )
    loss, correct, _ = utils.train_step(
        model, images, labels, criterion, optimizer, scaler, parts=2
    )
    assert told["loss"] == pytest.approx(loss, rel=1e-6) and told["correct"] == correct
    for theirs, parameter in zip(told["gradients"], model.parameters(), strict=True):
        torch.testing.assert_close(
            torch.tensor(theirs), parameter.grad, rtol=1e-4, atol=1e-6
        )
    model, images, labels, criterion = ranks.one_batch()
    utils.train_step(
        model,
        images,
        labels,
        criterion,
        torch.optim.SGD(model.parameters(), lr=0.0),
        scaler,
    )
    first = torch.tensor(told["gradients"][0])
    # whole: other statistics
    assert not torch.allclose(
        first, next(model.parameters()).grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("pool", ["train", "val"])
def test_each_image_is_seen_once(two, pool):
    shared, (alone, _) = (
        two[1]["shares"][f"{pool} {how}"] for how in ("shared", "alone")
    )
    counted = [
        image
        for batches in shared
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
        if label >= 0
    ]
    everything = [image for images, _ in alone for image in images]
    assert len(everything) == len(set(everything)) == 11
    assert sorted(counted) == sorted(everything)
    steps = [len(batches) for batches in shared]
    # all take part in a training step, if need be in vain
    assert steps == ([3, 3] if pool == "train" else [3, 2])
    assert [labels for _, labels in shared[1]][2:] == (
        [[-1]] if pool == "train" else []
    )


def test_validation_counts_each_image_once(two, drawn, tmp_path):
    data = ready(tmp_path / "home", drawn)
    loss, accuracy = utils.validate(
        ranks.baseline(), data.loader("val", 5), torch.nn.CrossEntropyLoss(), "cpu"
    )
    assert two[1]["validated"]["shared"] == pytest.approx([loss, accuracy], rel=1e-6)


def test_a_process_with_another_index_recipe_torch_or_precision_is_refused_by_all(two):
    for said in two[1]["strangers"]["said"]:
        for sentence, what in zip(
            said,
            (
                "the index of images 0123456789ab",
                "lr of the recipe 0.5",
                "torch 2.6.0",
                "precision torch.float16",
            ),
            strict=False,
        ):
            assert (
                "cannot train together: rank 1 on" in sentence
                and f"has {what}, rank 0" in sentence
            )
        # what rank 0 alone does fails for all, and nobody waits
        assert "none.pth is missing" in said[4]
        # one process says it for all
        assert all(sentence.endswith(" True") for sentence in said)
    assert not list((two[0] / "runs").glob("never-*"))


def test_a_loss_that_is_no_number_stops_all_processes_at_the_same_step(two):
    said = two[1]["exploding"]["said"]
    assert (
        len(said) == 2
        and len(set(said)) == 1
        and "became nan" in said[0]
        and "lower lr" in said[0]
    )
    (kept,) = (two[0] / "runs").glob("exploding-*/running.pt")
    assert all(
        weights.isfinite().all()
        for weights in torch.load(kept, weights_only=True)["model"].values()
    )


def test_a_bad_step_in_half_precision_is_undone_by_all(two):
    first, second = two[1]["exploding_in_half_precision"]["told"]
    assert first == second and first[:2] == [True, True]


@pytest.mark.slow
def test_three_processes_of_uneven_shares_learn_as_one(alone, drawn, tmp_path):
    """Batches of 15 and a last one of 6; then batches of 13, whose last one has a
    single image for three processes.
    """
    for recipe in ({}, {"batch_size": 13}):
        home = tmp_path / f"three{len(recipe)}"
        ready(home, drawn)
        told = together(3, home, "uneven" if recipe else "whole")
        mine = ranks.train(ready(tmp_path / "mine", drawn), "uneven", **recipe).history
        for curve in ("train_loss", "val_loss"):
            told_curve = next(iter(told.values()))["history"][curve]
            np.testing.assert_allclose(told_curve, mine[curve], rtol=LAST_DIGITS)


def test_an_image_of_label_minus_one_costs_nothing():
    logits, labels = (
        torch.randn(5, 2, requires_grad=True),
        torch.tensor([-1, 0, 1, -1, 1]),
    )
    criterion, counted = (
        utils.WeightedCrossEntropy(torch.tensor([0.5, 2.0]), label_smoothing=0.1),
        labels >= 0,
    )
    loss, alone = criterion(logits, labels), criterion(logits[counted], labels[counted])
    loss.backward()
    assert loss.item() == pytest.approx(alone.item() * 3 / 5)
    assert (logits.grad[[0, 3]] == 0).all()


def test_a_full_gpu_memory_ends_a_shared_training_with_advice(monkeypatch):
    def full(images):
        raise torch.cuda.OutOfMemoryError

    model, images, labels, criterion = ranks.one_batch()
    model.forward = full
    monkeypatch.setattr(utils, "ranks", lambda: (1, 2))
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), lr=0.1),
        utils.make_scaler(torch.device("cpu")),
    )
    with pytest.raises(
        utils.CourseError,
        match=r"full at rank 1, with 12 of the 24 images of a batch: start more",
    ):
        utils.train_step(model, images, labels, criterion, optimizer, scaler, total=24)


# --- the command


def options(home: Path, source: Path, *more: str) -> list[str]:
    return [
        "--network",
        "baseline",
        "--source",
        str(source),
        "--profile",
        "smoke",
        "--home",
        str(home),
        "--tracker",
        "none",
        *more,
    ]


def child_of_rank(launcher: int, rank: int) -> int | None:
    """Number of the process that torchrun has started as this rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    return None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_process_ends_the_job_with_a_sentence_and_the_training_goes_on(
    drawn, tmp_path
):
    home = tmp_path / "home"
    command = [sys.executable, KIT / "course.py", "train"]
    command += options(
        home, drawn, "--epochs", "60", "--batch-size", "8", "--save-every", "0"
    )
    job = subprocess.Popen(
        [*command, "--processes", "2"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    limit = time.monotonic() + 120
    while (
        not list((home / "runs").glob("baseline-*/running.pt"))
        and time.monotonic() < limit
    ):
        time.sleep(0.01)
    os.kill(child_of_rank(job.pid, 1), signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 1
    last = said.strip().splitlines()[-1]
    assert (
        last.startswith("Rank 1 was lost: Signal 9 (SIGKILL)")
        and "goes on from there, with any number" in last
    )
    assert "Traceback" not in said
    assert not list((home / "runs").glob("baseline-*/finished.pt"))
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "resumed in epoch" in again.stdout and "2 then 1 processes" in again.stdout


def test_the_notebook_loads_what_the_command_has_trained(drawn, tmp_path, capsys):
    from tools.scale import train

    cells = {
        "baseline": (
            "recipe = utils.baseline_recipe(data)",
            "torch.manual_seed(SEED)\n",
            (
                "    return utils.BaselineCNN(course.channels,"
                " len(course.classes)).to(device)"
            ),
            'utils.fit(course, "baseline", new_baseline(), data, recipe)',
        ),
        "optimized": (
            "recipe = utils.optimized_recipe(data)",
            "= utils.optimized_network(course), recipe",
            'utils.fit(course, "optimized", model, data, final_recipe)',
        ),
    }
    for name, lines in cells.items():
        (notebook,) = (KIT / "notebooks").glob(f"theme{train.NETWORKS[name]}_*.ipynb")
        code = "".join(
            "".join(cell["source"])
            for cell in json.loads(notebook.read_text())["cells"]
        )
        assert all(line in code for line in lines), name
        assert train.main([*options(tmp_path / "home", drawn), "--network", name]) == 0
        assert f"{notebook.name} with this home loads it" in capsys.readouterr().out
    data = ready(tmp_path / "home", drawn)
    torch.manual_seed(42)
    model = utils.BaselineCNN(data.course.channels, len(data.course.classes))
    assert utils.fit(
        data.course, "baseline", model, data, utils.baseline_recipe(data)
    ).loaded
    model = utils.optimized_network(data.course)
    assert utils.fit(
        data.course, "optimized", model, data, utils.optimized_recipe(data)
    ).loaded


def test_a_signal_is_not_taken_for_a_damaged_file(drawn, tmp_path, monkeypatch):
    from tools.scale import train

    def terminated(path, device):
        raise train.Terminated

    data = ready(tmp_path / "home", drawn)
    assert ranks.train(data, "kept", stop=7) is None
    monkeypatch.setattr(utils, "load_state", terminated)
    with pytest.raises(train.Terminated):
        ranks.train(data, "kept")
    monkeypatch.undo()
    assert list((tmp_path / "home" / "runs").glob("kept-*/running.pt"))


@pytest.mark.parametrize(
    "error, gone",
    [
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (
            RuntimeError(
                "[gloo/transport/tcp/pair.cc:538] Connection closed by peer"
                " [127.0.0.1]:38741"
            ),
            True,
        ),
        (
            RuntimeError(
                "Error(s) in loading state_dict: it was restored from another network"
            ),
            False,
        ),
    ],
)
def test_only_an_error_of_the_connection_means_that_a_process_is_gone(error, gone):
    from tools.scale import train

    assert train.lost(error) is gone


def test_more_processes_than_gpus_are_refused(monkeypatch):
    from tools.scale import train

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(utils.CourseError, match=r"4 processes on a machine with 2 GPU"):
        train.join()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--lr", "0"],
        ["--epochs", "-1"],
        ["--lr", "nan"],
        ["--network", "resnet"],
        ["--save-every", "nan"],
        ["--processes", "0"],
    ],
)
def test_impossible_options_are_refused(wrong, capsys):
    from tools.scale import train

    assert train.main(wrong) == 2
    assert "error:" in capsys.readouterr().err
