"""For teachers: every exercise with the hints that its wrong answers meet, in Markdown.

`python course.py exercises [THEME ...]`.
"""

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module

from exercises import Build, Implement, Predict


def hints(exercise: Implement | Build | Predict) -> Iterator[str]:
    """The hints of one exercise, in the order in which they are tried."""
    if isinstance(exercise, Predict):
        yield from dict.fromkeys(exercise.why.values())
    elif isinstance(exercise, Build):
        yield from (hint for _, hint in exercise.properties)
    else:
        yield from (
            *(mistake.hint for mistake in exercise.mistakes),
            f"(all other mistakes) {exercise.hint}",
        )


def listing(themes) -> str:
    """One section a theme, one list an exercise."""
    lines = []
    for theme in themes:
        lines.append(f"## Theme {theme}\n")
        for name, exercise in import_module(
            f"exercises.theme{theme}"
        ).EXERCISES.items():
            told = list(hints(exercise))
            lines += [
                f"**{name}** ({type(exercise).__name__.lower()}, {len(told)} hints)\n",
                *(f"- {hint}" for hint in told),
                "",
            ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    told = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="course.py exercises", description=told)
    theme = {"type": int, "choices": range(1, 9), "metavar": "THEME"}
    parser.add_argument("themes", nargs="*", **theme, help="default: all")
    print(listing(parser.parse_args(arguments).themes or range(1, 9)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
