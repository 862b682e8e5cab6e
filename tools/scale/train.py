"""`course.py train`: a training of theme 2 or 3 from the command line, alone or by
several processes.

    python course.py train --network optimized --home my-run
    python course.py train --network optimized --home my-run --processes 2
    python -m torch.distributed.run --nproc-per-node 2 -m course train --network
    optimized --home my-run

The third line is PyTorch's own launcher (torchrun), for several machines and clusters;
the second starts it for you, on this machine. It makes one process for each GPU and
ends them all when one is lost. They share each batch; the recipe, its learning rate and
the name of the training stay those of one process. So the notebook that has this
training loads it at once, and a training that was cut short goes on with as many
processes as there are then. Rank 0 alone writes. Options of the recipe that are left
out are the notebook's.
"""

import argparse
import logging
import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

import utils

NETWORKS = {"baseline": 2, "optimized": 3}  # theme by name
RECIPE = ("epochs", "batch_size", "lr")


class Terminated(BaseException):
    """SIGTERM: the launcher ends all processes because one was lost, or a cluster takes
    its machine back.

    No Exception, as the many things that may go wrong in reading a file are: it shall
    not pass for one of them."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="start so many on this machine, one a GPU",
    )
    parser.add_argument(
        "--network", choices=NETWORKS, default="optimized", help="default: optimized"
    )
    parser.add_argument(
        "--dataset", default="pneumonia", help="pneumonia, pneumonia3 or solar"
    )
    parser.add_argument(
        "--source",
        default="auto",
        help="auto, kaggle, sample, or the folder above the dataset's own",
    )
    parser.add_argument("--profile", default="auto", help="auto, smoke, quick or full")
    parser.add_argument(
        "--image-size",
        type=int,
        help="side in pixels, at least 32 (default: the profile's)",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--home", type=Path, help="folder of all artefacts (default: the kit)"
    )
    parser.add_argument(
        "--epochs", type=int, help="default: the recipe of the notebook"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help="images of a step, over all processes (default: the recipe's)",
    )
    parser.add_argument(
        "--lr", type=float, help="peak learning rate (default: the recipe's)"
    )
    parser.add_argument(
        "--save-every", type=float, default=30.0, metavar="SECONDS", help="default: 30"
    )
    parser.add_argument(
        "--tracker",
        choices=utils.TRACKERS,
        default="tensorboard",
        help="default: tensorboard",
    )
    options = parser.parse_args(arguments)
    for name in (*RECIPE, "processes"):
        if (value := getattr(options, name)) is not None and not 0 < value < float(
            "inf"
        ):
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if not 0 <= options.save_every < float("inf"):
        parser.error("--save-every must be a number of seconds, 0 for each step")
    return options


def main(arguments: list[str]) -> int:
    try:
        options = parse(arguments)
    except SystemExit as ended:  # argparse has said why
        return ended.code or 0
    if options.processes and "RANK" not in os.environ:
        return launch(options.processes, arguments)
    try:
        rank, _ = join()
        if rank:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - rank 0 speaks for all, until the process ends
        train(options)
        return 0
    except (utils.CourseError, Terminated) as error:
        if utils.ranks()[0] == 0 or not getattr(error, "everywhere", False):
            # in one piece: other processes write there, too
            sys.stderr.write(f"{error}\n")
        return 1
    except RuntimeError as error:
        if utils.ranks()[1] == 1 or not lost(error):
            raise
        why = str(error).splitlines()[0][:200]
        sys.stderr.write(
            f"Rank {utils.ranks()[0]} does not reach the others ({why}): one is gone."
            f" {GOES_ON}\n"
        )
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with suppress(Exception):  # of a group whose other processes are gone
            torch.distributed.destroy_process_group()


def launch(processes: int, arguments: list[str]) -> int:
    """Start torchrun on this machine; the processes that it makes find RANK in their
    environment and train.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    # the sentence below says it
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # else the launcher sets it, and warns; `set_seed` has its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(utils.KIT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    command = [
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "course",
        "train",
        *arguments,
    ]
    try:
        run(get_args_parser().parse_args(command))
        return 0
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            # not one that the launcher ended
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
                sys.stderr.write(
                    f"Rank {rank} was lost: {failure.message}. {GOES_ON}\n"
                )
    except SignalException as error:
        sys.stderr.write(
            f"The training was told to stop ({error.sigval.name}). {GOES_ON}\n"
        )
    return 1


GOES_ON = (
    "What was saved is kept: the same command goes on from there, with any number of"
    " processes."
)


def lost(error: RuntimeError) -> bool:
    """Whether an error of PyTorch comes from talking to the other processes."""
    return isinstance(error, torch.distributed.DistError) or bool(
        re.search("gloo|onnection", str(error))
    )


def join() -> tuple[int, int]:
    """Join the processes that torchrun started, if it did; returns rank and number of
    processes.

    Raises
    ------
    CourseError
        More processes on this machine than it has GPUs.
    """
    here, world = (
        int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        int(os.environ.get("WORLD_SIZE", 1)),
    )
    if world == 1:
        signal.signal(signal.SIGTERM, _terminated)
        return 0, 1
    if torch.cuda.is_available():
        if here > torch.cuda.device_count():
            raise utils.CourseError(
                f"{here} processes on a machine with {torch.cuda.device_count()}"
                " GPU(s): start as many as there are GPUs."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:  # the processes share the cores
        os.environ.setdefault(
            "COURSE_THREADS", str(max(1, (os.cpu_count() or 1) // here))
        )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # while rank 0 downloads and decodes
    torch.distributed.init_process_group(backend, timeout=timedelta(minutes=30))
    signal.signal(signal.SIGTERM, _terminated)
    return utils.ranks()


def _terminated(*_) -> None:
    raise Terminated(f"The training was told to stop (SIGTERM). {GOES_ON}")


def train(options: argparse.Namespace) -> utils.Run:
    """Train, or load what is trained, and say what the network scores on pool val."""
    _, world = utils.ranks()
    course = utils.from_rank0(lambda: prepare(options))
    utils.set_seed(course.seed)
    data = utils.load_data(course)
    model, recipe = network(course, data, options.network)
    changes = {
        name: getattr(options, name)
        for name in RECIPE
        if getattr(options, name) is not None
    }
    recipe = replace(recipe, **changes)
    share = (
        f"{world} processes × {recipe.batch_size / world:g} images"
        if world > 1
        else "one process"
    )
    print(
        f"{options.network}: {share}, batches of {recipe.batch_size}, peak learning"
        f" rate {recipe.lr:g}, {recipe.epochs} epochs"
    )
    run = utils.fit(
        course,
        options.network,
        model,
        data,
        recipe,
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
        (notebook,) = (utils.KIT / "notebooks").glob(
            f"theme{NETWORKS[options.network]}_*.ipynb"
        )
        unless = (
            ", unless its search adopts another network"
            if options.network == "optimized"
            else ""
        )
        print(f"notebooks/{notebook.name} with this home loads it{unless}.")
    return run


def prepare(options: argparse.Namespace) -> utils.Course:
    """Open the home and make what all processes read: index and pixel cache."""
    course = utils.start(
        1,
        options.dataset,
        options.source,
        options.profile,
        options.image_size,
        options.seed,
        home=options.home,
    )
    utils.build_index(course)
    utils.load_data(course)
    return course


def network(
    course: utils.Course, data: utils.Data, name: str
) -> tuple[torch.nn.Module, utils.Recipe]:
    """The network and the recipe of a notebook, as its cells make them."""
    if name == "optimized":
        return utils.optimized_network(course), utils.optimized_recipe(data)
    torch.manual_seed(course.seed)
    return utils.BaselineCNN(
        course.channels, len(course.classes)
    ), utils.baseline_recipe(data)
