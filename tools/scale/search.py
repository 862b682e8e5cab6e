"""`course.py search`: join the search of theme 3 with one more process; any number of
them share one study.

Each returns when the study is complete. The workers meet in a file on a disk that all
of them see (default: in runs/ of the home) or, without a common disk, at a server:
--serve runs it. A worker that is killed costs no trial."""

import argparse
import errno
import signal
import socket
from dataclasses import replace
from pathlib import Path

import utils
from tools.scale import shared_study
from tools.scale.train import Terminated

KIT = Path(__file__).resolve().parents[2]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py search",
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2],
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=KIT,
        help="folder of all artefacts (default: the kit)",
    )
    parser.add_argument(
        "--storage", help="a file that all workers see, or grpc://HOST:PORT of a server"
    )
    parser.add_argument(
        "--trials",
        type=int,
        help="of the study, not of each worker (default: the profile's)",
    )
    parser.add_argument(
        "--serve",
        metavar="HOST:PORT",
        help="serve the file --storage to workers elsewhere, no search",
    )
    return parser.parse_args(arguments)


def search(home: Path, storage: str | None, trials: int | None):
    """Work on the search of the notebook of theme 3, as that stands in the kit; returns
    the complete study.

    Raises
    ------
    CourseError
        The home holds no course yet (theme 1 comes first), or whatever `utils.search`
        refuses.
    """
    story = utils.read_json(home / "course.json", precious=True)
    if not story:
        raise utils.CourseError(
            f"{home} holds no course yet: run `python course.py run --until 1 --home"
            f" {home}` with the dataset, source and profile of the search."
        )
    known = {
        name: story[name]
        for name in ("dataset", "source", "profile", "image_size", "seed")
        if name in story
    }
    course = utils.start(theme=2, home=home, **known)
    data = utils.load_data(course)
    recipe = replace(
        utils.optimized_recipe(data), epochs=course.profile.trial_epochs, average=0.5
    )
    trials = course.profile.trials if trials is None else trials
    return utils.search(course, data, "search", recipe, trials, storage=storage)


def serve(address: str, path: Path) -> None:
    """Serve a journal to workers that do not see its disk, until it is interrupted.

    Raises
    ------
    CourseError
        No journal, a folder that is missing, or an address that cannot be listened at.
    """
    import warnings

    from optuna.storages import run_grpc_proxy_server

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise utils.CourseError(
            f"--serve {address} is no address: give HOST:PORT, such as 0.0.0.0:13000."
        )
    try:
        # gRPC itself would share the port of another server
        with socket.create_server((host, int(port))):
            pass
    except (OSError, OverflowError) as error:
        away = isinstance(error, OSError) and error.errno not in (
            errno.EADDRINUSE,
            errno.EACCES,
        )
        advice = (
            "give an address of this machine, 0.0.0.0 for all of them"
            if away
            else "choose another port"
        )
        raise utils.CourseError(
            f"{address} cannot be listened at ({error}): {advice}."
        ) from error
    with utils.clear_disk_errors(path, "The trials that are finished are all there."):
        storage = shared_study.open_journal(path)
    print(
        f"serving {path}: workers join with --storage grpc://HOST:{port}; end with"
        " Ctrl+C",
        flush=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental"
        run_grpc_proxy_server(storage, host=host, port=int(port))


def _terminated(*_) -> None:
    raise Terminated(
        "The search was told to stop (SIGTERM): its trial is free for others; the same"
        " command goes on."
    )


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        if options.serve:
            if not options.storage or "://" in options.storage:
                raise utils.CourseError(
                    "--serve needs --storage FILE, the journal that it serves."
                )
            serve(options.serve, Path(options.storage).expanduser().absolute())
        else:
            # a cluster takes its machine back: no death of unknown cause
            signal.signal(signal.SIGTERM, _terminated)
            study = search(
                options.home.expanduser().absolute(), options.storage, options.trials
            )
            states = [trial.state.name for trial in study.trials]
            again = sum(
                "retry of trial" in trial.user_attrs
                and trial.user_attrs.get("ended") != "given back"
                for trial in study.trials
            )
            print(
                f"{study.study_name}: {states.count('COMPLETE')} trials complete,"
                f" {states.count('PRUNED')} pruned, {again} tried again; the best is"
                f" trial {study.best_trial.number}, validation loss"
                f" {study.best_value:.4f}"
            )
    except utils.CourseError as error:
        print(error)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on.")
        return 130
    except Terminated as told:
        print(told)
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0
