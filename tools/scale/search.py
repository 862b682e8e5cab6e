"""One more worker for the search of theme 3; any number of them share one study.

Each returns when it is complete, and what a killed one left is tried again. They meet
in a file of the home, or in a database (--storage).
"""

import signal
from dataclasses import replace
from pathlib import Path

import utils
from tools.shared import options as common


def search(home: Path, storage: str | None, trials: int | None):
    """Work on the search of theme 3's notebook; returns the complete study."""
    story = utils.read_json(home / "course.json", precious=True)
    if not story:
        raise utils.CourseError(
            f"{home} holds no course yet: run `python course.py run --until 1 --home"
            f" {home}` with the dataset, source and profile of the search."
        )
    names = ("dataset", "source", "profile", "image_size", "seed")
    known = {name: story[name] for name in names if name in story}
    course = utils.start(theme=2, home=home, **known)
    data = utils.load_data(course)
    recipe = replace(
        utils.optimized_recipe(data), epochs=course.profile.trial_epochs, average=0.5
    )
    trials = course.profile.trials if trials is None else trials
    return utils.search(course, data, "search", recipe, trials, storage=storage)


def main(arguments: list[str]) -> int:
    parser = common.parser("search", __doc__)
    common.add_home(parser)
    database = "a database that all workers reach, such as postgresql://HOST/NAME"
    parser.add_argument("--storage", metavar="URL", help=database)
    trials = "of the study, not of each worker (default: the profile's)"
    parser.add_argument("--trials", type=int, help=trials)
    options = parser.parse_args(arguments)
    # a cluster that takes its machine back: the trial is free for others, as on Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        study = search(common.home(options.home), options.storage, options.trials)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    states = [trial.state.name for trial in study.trials]
    print(
        f"{study.study_name}: {states.count('COMPLETE')} trials complete,"
        f" {states.count('PRUNED')} pruned, {states.count('FAIL')} begun again; the"
        f" best is trial {study.best_trial.number}, validation loss"
        f" {study.best_value:.4f}"
    )
    return 0
