"""What the processes of a distributed test do; torchrun starts this file, and rank 0 stores what all of them saw.

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


class Breaking(utils.BaselineCNN):
    """The baseline with dropout, which draws from each process's own generator, and a break in the middle."""

    left: int | None = None  # training steps until the break

    def forward(self, images):
        if self.training and Breaking.left is not None:
            Breaking.left -= 1
            if Breaking.left < 0:
                raise Interrupted
        return self.classifier(nn.functional.dropout(self.embed(images), self.config["drop"], self.training))


def breaking(drop: float) -> nn.Module:
    torch.manual_seed(0)
    model = Breaking(1, 2, 8)
    model.config["drop"] = drop
    return model


def opened(home: Path) -> utils.Data:
    """The home that the test has prepared."""
    story = json.loads((home / "course.json").read_text())
    course = utils.from_rank0(lambda: utils.start(1, story["dataset"], story["source"], "smoke", home=home))
    utils.set_seed(course.seed, threads=1)
    return utils.load_data(course)


def train(data: utils.Data, name: str, drop: float = 0.0, stop: int | None = None, **recipe) -> utils.Run | None:
    """A short training; None when it broke at training step `stop`, the step before which is saved."""
    Breaking.left = stop
    try:
        return utils.fit(data.course, name, breaking(drop), data, replace(RECIPE, **recipe), save_every=0.0,
                         tracker="none", progress=False)  # fmt: skip
    except Interrupted:
        return None
    finally:
        Breaking.left = None


def whole(data) -> dict:
    run = train(data, "whole")
    return {"history": run.history.to_dict("list"), "hardware": run.hardware}


def uneven(data) -> dict:
    return {"history": train(data, "uneven", batch_size=13).history.to_dict("list")}


def broken(data) -> dict:
    """With dropout: a training that breaks and goes on, and one that does not break."""
    for name, stop in (("broken", 8), ("broken", None), ("unbroken", None)):
        run = train(data, name, drop=0.3, stop=stop)
        assert (run is None) == (stop is not None)
    return {}


def left_behind(data) -> dict:
    """What breaks here goes on in the test, and what the test has broken goes on here."""
    assert train(data, "from two to one", stop=7) is None
    return {"hardware": train(data, "from one to two").hardware}


def gradients(data) -> dict:
    """The gradient of one batch in a network with batch norm, each process with its share."""
    rank, world = utils.ranks()
    model, images, labels, criterion = one_batch()
    parallel, optimizer = nn.parallel.DistributedDataParallel(model), torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = utils.make_scaler(torch.device("cpu"))
    loss, correct, _ = utils.train_step(parallel, images.tensor_split(world)[rank], labels.tensor_split(world)[rank],
                                        criterion, optimizer, scaler, total=len(labels))  # fmt: skip
    loss, correct = utils.sum_over_ranks(loss, correct)
    return {"loss": loss, "correct": correct, "gradients": [p.grad.tolist() for p in model.parameters()]}


def one_batch():
    torch.manual_seed(0)
    model = utils.OptimizedCNN(1, 2, (8, 8), dropout=0.0).train()
    return model, torch.randn(12, 1, 32, 32), torch.arange(12) % 2, utils.WeightedCrossEntropy(torch.tensor([0.5, 2.0]))


def shares(data) -> dict:
    """The labels and the images, told apart by their mean, that each process sees in one pass of three batches."""
    seen = {}
    for pool in ("train", "val"):
        for shared in (True, False):
            loader = data.loader(pool, 5, shuffle=pool == "train")
            loader.rows, loader.shared = loader.rows[:11], shared  # the last batch has one image
            batches = [[images.mean(dim=(1, 2, 3)).tolist(), labels.tolist()] for images, labels in loader]
            seen[f"{pool} {'shared' if shared else 'alone'}"] = utils.gather_ranks(batches)
    return seen


def validated(data) -> dict:
    loader = data.loader("val", 5)
    loader.shared = True
    return {"shared": utils.validate(breaking(0.0), loader, nn.CrossEntropyLoss(), "cpu")}


def strangers(data) -> dict:
    """Rank 1 has another index; then rank 0 fails in what it does for all."""
    other = replace(data, key="0123456789ab") if utils.ranks()[0] == 1 else data
    said = []
    for work in (lambda: train(other, "never"), lambda: utils.from_rank0(lambda: utils.load_checkpoint("none.pth"))):
        try:
            work()
        except utils.CourseError as error:
            said.append(str(error))
    return {"said": utils.gather_ranks(said)}


def exploding(data) -> dict:
    """What each process says of a learning rate that makes the loss infinite."""
    try:
        train(data, "exploding", lr=1e30, clip=None)
    except utils.TrainingStopped as error:
        return {"said": utils.gather_ranks(str(error))}
    return {"said": utils.gather_ranks("nothing")}


if __name__ == "__main__":
    utils.amp_dtype = lambda device: None  # float32: what differs is not the rounding of half precision
    torch.distributed.init_process_group("gloo")
    home, opened_data = Path(sys.argv[1]), opened(Path(sys.argv[1]))
    answers = {task: globals()[task](opened_data) for task in sys.argv[2:]}
    if utils.ranks()[0] == 0:
        utils.write_json(home / "answers.json", answers)
    torch.distributed.destroy_process_group()
