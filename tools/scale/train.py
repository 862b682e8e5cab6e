"""A training of theme 2 or 3 from the command line, alone or on several processes.

    python course.py train --network optimized --home my-run
    python course.py train --network optimized --home my-run --processes 2

The second line starts PyTorch's own launcher (torchrun), with one process for each GPU;
on several machines start that yourself: python -m torch.distributed.run ... -m course
train ... They share each batch, so choose a batch size that their number divides; rank
0 alone writes. The notebook that has this training loads it at once, and one that was
cut short goes on with as many processes as there are then.
"""

import argparse
import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from tools.shared import options as common

NETWORKS = {"baseline": 2, "optimized": 3}  # theme by name
RECIPE = ("epochs", "batch_size", "lr")
GOES_ON = "What was saved is kept: the same command goes on from there."


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = common.parser("train", __doc__)
    parser.add_argument(
        "--processes", type=positive(int), metavar="N", help="one a GPU"
    )
    parser.add_argument("--network", choices=NETWORKS, default="optimized")
    common.add_story(parser)
    common.add_home(parser)
    recipe = "default: the recipe of the notebook"
    parser.add_argument("--epochs", type=positive(int), help=recipe)
    parser.add_argument("--batch-size", type=positive(int), help=recipe)
    parser.add_argument("--lr", type=positive(float), help=recipe)
    parser.add_argument("--save-every", type=float, default=30.0, metavar="SECONDS")
    trackers = ("tensorboard", "wandb", "none")
    parser.add_argument("--tracker", choices=trackers, default=trackers[0])
    return parser.parse_args(arguments)


def positive(kind):
    """A number above zero, for argparse."""

    def convert(text: str):
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError("must be positive")
        return value

    return convert


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.processes and "RANK" not in os.environ:
        return launch(options.processes, arguments)
    rank = join()
    if rank:  # rank 0 speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    try:
        train(options)
        return 0
    except RuntimeError as error:  # of PyTorch, when another process is gone
        if not re.search("gloo|nccl|onnection", str(error), re.IGNORECASE):
            raise
        print(f"Rank {rank} does not reach the others. {GOES_ON}", file=sys.stderr)
        return 1
    finally:
        leave()


def launch(processes: int, arguments: list[str]) -> int:
    """Start torchrun on this machine; its processes find RANK in their environment."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # `set_seed` has its own number
    kit = str(common.KIT)
    os.environ["PYTHONPATH"] = os.pathsep.join([kit, os.environ.get("PYTHONPATH", "")])
    standalone = ["--standalone", "--nproc-per-node", str(processes)]
    command = [*standalone, "-m", "course", "train", *arguments]
    try:
        run(get_args_parser().parse_args(command))
        return 0
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode == -signal.SIGTERM:  # the launcher ended it
                continue
            print(
                f"Rank {rank} was lost: {failure.message}. {GOES_ON}", file=sys.stderr
            )
        return 1


def join() -> int:
    """Join the processes that torchrun started, if it did; returns the rank.

    Raises
    ------
    CourseError
        More processes on this machine than it has GPUs.
    """
    import torch

    from kit.files import CourseError

    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and here > gpus:
        raise CourseError(
            f"{here} processes on a machine with {gpus} GPU(s): start as many as there"
            " are GPUs."
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:  # the processes share the cores
        threads = max(1, (os.cpu_count() or 1) // here)
        os.environ.setdefault("COURSE_THREADS", str(threads))
    # 30 minutes, as rank 0 may have to download and decode first
    torch.distributed.init_process_group(
        "nccl" if gpus else "gloo", timeout=timedelta(minutes=30)
    )
    return torch.distributed.get_rank()


def leave() -> None:
    import torch

    with suppress(Exception):  # of a group whose other processes are gone
        torch.distributed.destroy_process_group()


def train(options: argparse.Namespace) -> None:
    """Train, or load what is trained, and say what the network scores on pool val."""
    import utils
    from kit import ranks

    first = ranks.rank_and_world()[0] == 0
    for turn in (first, not first):  # rank 0 makes what the others then read
        if turn:
            course, data = open_data(utils, options)
        ranks.wait_for_all()
    model, recipe = network(utils, course, data, options.network)
    given = {name: getattr(options, name) for name in RECIPE}
    changes = {name: value for name, value in given.items() if value is not None}
    run = utils.fit(
        course,
        options.network,
        model,
        data,
        replace(recipe, **changes),
        save_every=options.save_every,
        tracker=options.tracker,
    )
    best = run.history.loc[run.history["val_loss"].idxmin()]
    images = len(data.where("train")) * len(run.history)
    print(
        f"best epoch {best['epoch']:.0f} of {len(run.history)}: val_loss"
        f" {best['val_loss']:.4f}, val_accuracy {best['val_accuracy']:.3f} on"
        f" {len(data.where('val'))} images; {run.seconds:.1f} s,"
        f" {images / run.seconds:.0f} images/s on {run.hardware}"
    )
    if not changes:
        print(f"The notebook of theme {NETWORKS[options.network]} loads it.")


def open_data(utils, options: argparse.Namespace):
    """The home, its index and its pixel cache."""
    course = utils.start(
        1,
        options.dataset,
        options.source,
        options.profile,
        options.image_size,
        options.seed,
        home=common.home(options.home),
    )
    utils.build_index(course)
    return course, utils.load_data(course)


def network(utils, course, data, name: str):
    """The network and the recipe of a notebook, as its cells make them."""
    if name == "optimized":
        return utils.optimized_network(course), utils.optimized_recipe(data)
    utils.torch.manual_seed(course.seed)
    model = utils.BaselineCNN(course.channels, len(course.classes))
    return model, utils.baseline_recipe(data)
