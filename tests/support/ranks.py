"""What the processes of a distributed test do; torchrun starts this file, and rank 0
stores what it found.

python -m torch.distributed.run --nproc-per-node N ranks.py HOME TASK [TASK …]
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import utils  # noqa: E402
from kit import ranks  # noqa: E402

# 92 of the drawn training images: batches of 4 go round among two processes.
RECIPE = utils.Recipe(epochs=3, batch_size=4, augment=True, average=1.0)


def opened(home: Path) -> utils.Data:
    """The home that the test has prepared."""
    settings = json.loads((home / "course.json").read_text())
    course = utils.start(1, settings["dataset"], settings["source"], "smoke", home=home)
    utils.set_seed(course.seed, threads=1)
    data = utils.load_data(course)
    rows = data.where("train")
    data.index.loc[rows[len(rows) // 4 * 4 :], "pool"] = ""
    return data


def train(data: utils.Data, name: str, stop: int | None = None, **recipe):
    """A short training of a network without batch norm and dropout, so that as many
    processes as there are learn the same; None when it broke after epoch `stop`.
    """

    def interrupt(epoch, row):
        if epoch == stop:
            raise InterruptedError

    torch.manual_seed(0)
    model, options = utils.BaselineCNN(1, 2, 8), {"tracker": "none", "progress": False}
    changed = replace(RECIPE, **recipe)
    try:
        return utils.fit(
            data.course, name, model, data, changed, on_epoch=interrupt, **options
        )
    except InterruptedError:
        return None


def whole(data) -> dict:
    run = train(data, "whole")
    return {"history": run.history.to_dict("list"), "hardware": run.hardware}


def left_behind(data) -> dict:
    """What breaks here goes on in the test, what the test has broken goes on here."""
    assert train(data, "from two to one", stop=1) is None
    return {"history": train(data, "from one to two").history.to_dict("list")}


def shares(data) -> dict:
    """How many images each process sees in one pass, and all of them together."""
    seen = {}
    for pool in ("train", "val"):
        loader = data.loader(pool, 5, shuffle=pool == "train")
        loader.rows, loader.shared = loader.rows[:11], True
        batches = [len(labels) for _, labels in loader]
        sums = ranks.add_up(torch.tensor([sum(batches), len(batches)]))
        seen[pool] = [sum(batches), *sums.tolist()]
    return seen


def exploding(data) -> dict:
    try:
        train(data, "exploding", lr=1e30, clip=None)
    except utils.TrainingStopped as error:
        return {"said": str(error)}
    return {"said": ""}


if __name__ == "__main__":
    # float32: what differs is not the rounding of half precision
    utils.amp_dtype = lambda device: None
    torch.distributed.init_process_group("gloo")
    opened_data = opened(Path(sys.argv[1]))
    answers = {task: globals()[task](opened_data) for task in sys.argv[2:]}
    if ranks.rank_and_world()[0] == 0:
        utils.write_json(Path(sys.argv[1]) / "answers.json", answers)
    torch.distributed.destroy_process_group()
