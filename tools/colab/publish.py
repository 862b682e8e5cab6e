"""`course.py publish`: stamps a GitHub repository into the Colab badges and first
cells of the notebooks, all files or none.

Ends with 0 when all is stamped (also when it already was), 2 when the address, the
branch or a file is wrong."""

import argparse
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import utils
from tools.shared import options

KIT = Path(__file__).resolve().parents[2]
BADGE = re.compile(
    r"(https://colab\.research\.google\.com/github/)[^\s\")]+?(/notebooks/[\w./-]+\.ipynb)"
)
# the first cell of a notebook: JSON puts a backslash before each quote
STAMP = re.compile(r'(REPOSITORY, BRANCH = \\")[^"\\]*(\\", \\")[^"\\]*(\\")')


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.parser("publish", __doc__)
    repo = "address of the repository: https://github.com/OWNER/REPOSITORY"
    parser.add_argument("--repo", required=True, help=repo)
    branch = "branch that students get (default: main)"
    parser.add_argument("--branch", default="main", help=branch)
    project = "folder to stamp (default: the kit)"
    parser.add_argument("--project", type=Path, default=KIT, help=project)
    return parser.parse_args(arguments)


def owner_and_name(address: str) -> str:
    """OWNER/REPOSITORY of an address on GitHub, the one place that Colab's links open.

    Raises
    ------
    utils.CourseError
        Another host or protocol, something missing or too much. The address is not
        repeated: it may hold a password.
    """
    start = r"https://(?:www\.)?github\.com/"
    path = r"([a-z\d](?:-?[a-z\d]){0,38}/(?!\.+/?$)[\w.-]{1,100}?)(?:\.git)?/?"
    if found := re.fullmatch(start + path, address.strip(), re.IGNORECASE | re.ASCII):
        return found[1]
    wrong = "does not name one repository, OWNER/REPOSITORY, and nothing more"
    if "@" in address.partition("://")[2]:
        wrong = "holds a name or a password, which every student would read"
    elif not re.match(start, address.strip(), re.IGNORECASE):
        wrong = (
            "does not begin with https://github.com/, the one place that Colab's links"
            " open"
        )
    raise utils.CourseError(
        f"The address {wrong}: give --repo https://github.com/OWNER/REPOSITORY, and the"
        " branch with --branch."
    )


def check_branch(branch: str) -> str:
    """The branch, if git admits its name and the bootstrap cell can hold it as it is.

    Raises
    ------
    utils.CourseError
        Something else than letters, digits and . _ / -, or what `git check-ref-format`
        refuses.
    """
    refused = re.search(r"^[-/]|[/.]$|//|\.\.|(^|/)\.|\.lock(/|$)", branch)
    if refused or not re.fullmatch(r"[\w./-]{1,200}", branch, re.ASCII):
        raise utils.CourseError(
            f"{branch!r} cannot be the branch: give one that `git branch` lists, made"
            " of letters, digits and . _ / - only."
        )
    return branch


def stamped(text: str, repository: str, branch: str) -> tuple[str, int, int]:
    """The text with every Colab link and first cell of this repository; how many there
    are of each.
    """
    address = f"https://github.com/{repository}"
    text, badges = BADGE.subn(rf"\g<1>{repository}/blob/{branch}\g<2>", text)
    text, stamps = STAMP.subn(rf"\g<1>{address}\g<2>{branch}\g<3>", text)
    return text, badges, stamps


def publish(address: str, branch: str = "main", project: Path = KIT) -> list[Path]:
    """Stamp the notebooks and the README; everything else in them stays as it is, to
    the byte.

    Returns
    -------
    the files that changed; none where all was stamped before.

    Raises
    ------
    utils.CourseError
        A wrong address or branch, a notebook without its badge or bootstrap line, a
        file that cannot be written: then no file has changed.
    """
    repository, branch = owner_and_name(address), check_branch(branch)
    books = project / "notebooks"
    notebooks = sorted([*books.glob("*.ipynb"), *books.glob("further/*.ipynb")])
    if not notebooks:
        raise utils.CourseError(
            f"{project} has no notebooks/: give the kit's folder with --project."
        )
    changed = {}
    for path in (*notebooks, project / "README.md"):
        try:
            before = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise utils.CourseError(
                f"{path} cannot be read ({error}): restore it, nothing was stamped."
            ) from error
        after, badges, stamps = stamped(before, repository, branch)
        # a notebook that a teacher added may do without
        if path.match("theme*.ipynb") and not (badges and stamps == 1):
            raise utils.CourseError(
                f"{path} lacks its Colab badge or its line REPOSITORY, BRANCH: take it"
                " from the kit again, nothing was stamped."
            )
        if after != before:
            changed[path] = after.encode("utf-8")
    # every file is written under a temporary name before the first is renamed
    with ExitStack() as stack:
        for path, content in changed.items():
            temporary = stack.enter_context(utils.atomic(path))
            temporary.write_bytes(content)
            shutil.copymode(path, temporary)
    return list(changed)


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    changed = publish(given.repo, given.branch, given.project.expanduser().resolve())
    repository = f"https://github.com/{owner_and_name(given.repo)}"
    if not changed:
        print(
            f"Nothing to change: all is stamped with {repository}, branch"
            f" {given.branch}."
        )
        return 0
    print(f"Stamped with {repository}, branch {given.branch}:", *changed, sep="\n  ")
    print(
        "Commit and push these files to that branch, make the repository public, and"
        " open a badge on Colab to see."
    )
    return 0
