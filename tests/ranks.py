"""What the processes of a distributed test do; torchrun starts this file, and rank 0
stores what all of them saw.

python -m torch.distributed.run --nproc-per-node N tests/ranks.py HOME TASK [TASK …]
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402

RECIPE = utils.Recipe(epochs=3, batch_size=15, augment=True, average=1.0)


class Interrupted(Exception):
    pass


class Break:
    """A network that breaks in the middle of a training."""

    left: int | None = None  # training steps until then

    def forward(self, images):
        if self.training and Break.left is not None:
            Break.left -= 1
            if Break.left < 0:
                raise Interrupted
        return super().forward(images)


class Baseline(Break, utils.BaselineCNN):
    """Neither batch norm nor dropout: as many processes as there are learn the same."""


class Normed(Break, utils.OptimizedCNN):
    """Batch norm, and dropout from each process's own generator."""


def baseline() -> nn.Module:
    torch.manual_seed(0)
    return Baseline(1, 2, 8)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return Normed(1, 2, (8, 8), dropout=0.3)


def opened(home: Path) -> utils.Data:
    """The home that the test has prepared."""
    story = json.loads((home / "course.json").read_text())
    course = utils.from_rank0(
        lambda: utils.start(1, story["dataset"], story["source"], "smoke", home=home)
    )
    utils.set_seed(course.seed, threads=1)
    return utils.load_data(course)


def train(
    data: utils.Data, name: str, make=baseline, stop: int | None = None, **recipe
) -> utils.Run | None:
    """A short training; None when it broke at training step `stop`, the step before
    which is saved.
    """
    Break.left = stop
    try:
        return utils.fit(
            data.course,
            name,
            make(),
            data,
            replace(RECIPE, **recipe),
            save_every=0.0,
            tracker="none",
            progress=False,
        )
    except Interrupted:
        return None
    finally:
        Break.left = None


def whole(data) -> dict:
    run = train(data, "whole")
    return {"history": run.history.to_dict("list"), "hardware": run.hardware}


def uneven(data) -> dict:
    return {"history": train(data, "uneven", batch_size=13).history.to_dict("list")}


def broken(data) -> dict:
    """With batch norm and dropout: a training that breaks and goes on, and one that
    does not break.
    """
    assert train(data, "broken", normed, stop=8) is None
    train(data, "broken", normed)
    run = train(data, "unbroken", normed)
    return {
        "history": run.history.to_dict("list"),
        "seeds": utils.gather_ranks(torch.initial_seed()),
    }


def left_behind(data) -> dict:
    """What breaks here goes on in the test, and what the test has broken
    goes on here.
    """
    assert train(data, "from two to one", stop=7) is None
    return {"hardware": train(data, "from one to two").hardware}


def gradients(data) -> dict:
    """The gradient of one batch in a network with batch norm, each process with its
    share.
    """
    rank, world = utils.ranks()
    model, images, labels, criterion = one_batch()
    parallel, optimizer = (
        nn.parallel.DistributedDataParallel(model),
        torch.optim.SGD(model.parameters(), lr=0.0),
    )
    scaler = utils.make_scaler(torch.device("cpu"))
    loss, correct, _ = utils.train_step(
        parallel,
        images.tensor_split(world)[rank],
        labels.tensor_split(world)[rank],
        criterion,
        optimizer,
        scaler,
        total=len(labels),
    )
    return {
        "loss": loss,
        "correct": correct,
        "gradients": [p.grad.tolist() for p in model.parameters()],
    }


def one_batch():
    torch.manual_seed(0)
    model = utils.OptimizedCNN(1, 2, (8, 8), dropout=0.0).train()
    return (
        model,
        torch.randn(12, 1, 32, 32),
        torch.arange(12) % 2,
        utils.WeightedCrossEntropy(torch.tensor([0.5, 2.0])),
    )


def shares(data) -> dict:
    """The labels and the images, told apart by their mean, that each process sees in
    one pass of three batches.
    """
    seen = {}
    for pool in ("train", "val"):
        for shared in (True, False):
            loader = data.loader(pool, 5, shuffle=pool == "train")
            # the last batch has one image
            loader.rows, loader.shared = loader.rows[:11], shared
            batches = [
                [images.mean(dim=(1, 2, 3)).tolist(), labels.tolist()]
                for images, labels in loader
            ]
            seen[f"{pool} {'shared' if shared else 'alone'}"] = utils.gather_ranks(
                batches
            )
    return seen


def validated(data) -> dict:
    loader = data.loader("val", 5)
    loader.shared = True
    return {"shared": utils.validate(baseline(), loader, nn.CrossEntropyLoss(), "cpu")}


def strangers(data) -> dict:
    """Rank 1 is another one in one respect after the other; then rank 0 fails in what
    it does for all.
    """
    second, said, own = utils.ranks()[0] == 1, [], (torch.__version__, utils.amp_dtype)
    for what in ("index", "recipe", "torch", "precision", "rank 0"):
        torch.__version__ = "2.6.0" if second and what == "torch" else own[0]
        utils.amp_dtype = (
            (lambda device: torch.float16) if second and what == "precision" else own[1]
        )
        try:
            if what == "rank 0":
                utils.from_rank0(lambda: utils.load_checkpoint("none.pth"))
            train(
                (
                    replace(data, key="0123456789ab")
                    if second and what == "index"
                    else data
                ),
                "never",
                lr=0.5 if second and what == "recipe" else 0.25,
            )
        except utils.CourseError as error:
            said.append(f"{str(error)} {error.everywhere}")
    return {"said": utils.gather_ranks(said)}


def exploding(data) -> dict:
    """What each process says of a learning rate that makes the loss infinite."""
    try:
        train(data, "exploding", lr=1e30, clip=None)
    except utils.TrainingStopped as error:
        return {"said": utils.gather_ranks(str(error))}
    return {"said": utils.gather_ranks("nothing")}


def exploding_in_half_precision(data) -> dict:
    """One image of rank 1 is no number, with loss scaling: what each process keeps of
    the step.
    """
    rank, _ = utils.ranks()
    model, images, labels, criterion = one_batch()
    images[-1] = float("nan")
    before = [buffer.clone() for buffer in model.buffers()]
    parallel = nn.parallel.DistributedDataParallel(model)
    scaler, optimizer = (
        torch.amp.GradScaler("cpu"),
        torch.optim.SGD(model.parameters(), lr=0.1),
    )
    loss, *_ = utils.train_step(
        parallel,
        images.tensor_split(2)[rank],
        labels.tensor_split(2)[rank],
        criterion,
        optimizer,
        scaler,
        total=len(labels),
    )
    same = all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    return {"told": utils.gather_ranks([loss != loss, same, scaler.get_scale()])}


if __name__ == "__main__":
    # float32: what differs is not the rounding of half precision
    utils.amp_dtype = lambda device: None
    torch.distributed.init_process_group("gloo")
    home, opened_data = Path(sys.argv[1]), opened(Path(sys.argv[1]))
    answers = {task: globals()[task](opened_data) for task in sys.argv[2:]}
    if utils.ranks()[0] == 0:
        utils.write_json(home / "answers.json", answers)
    torch.distributed.destroy_process_group()
