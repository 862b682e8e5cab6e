"""`course.py publish`: badges and bootstrap cells of one repository, all files or none,
nothing else touched.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support import colab

import utils
from tools import cli
from tools.colab import publish

KIT = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/ada/deep-course"
BOOKS = KIT / "notebooks"
TITLES = sorted(path.stem for path in BOOKS.glob("*.ipynb"))
FURTHER = len(list(BOOKS.glob("further/*.ipynb")))


@pytest.fixture
def kit(tmp_path) -> Path:
    """A copy of what publish touches."""
    folder = tmp_path / "kit"
    shutil.copytree(
        KIT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*")
    )
    shutil.copy(KIT / "README.md", folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_badge_and_cell_is_stamped_and_nothing_else(kit):
    before = contents(kit)
    changed = publish.publish(ADDRESS, "autumn/2026", kit)
    assert {path.relative_to(kit).as_posix() for path in changed} == before.keys()
    link = "https://colab.research.google.com/github/ada/deep-course/blob/autumn/2026/notebooks"
    for name, content in contents(kit).items():
        # Line by line, so that indentation, order of keys and the last line break are
        # compared too.
        old, new = before[name].decode().split("\n"), content.decode().split("\n")
        for was, is_now in zip(old, new, strict=True):
            ours = "colab.research" in was or "REPOSITORY, BRANCH = " in was
            assert was == is_now or ours
            assert not ours or "OWNER/REPOSITORY" not in is_now
    for title in TITLES:
        path = kit / "notebooks" / f"{title}.ipynb"
        nbformat.validate(nbformat.read(path, 4))
        for text in (path.read_text(), (kit / "README.md").read_text()):
            assert f"({link}/{title}.ipynb)" in text
        stamps = f'REPOSITORY, BRANCH = "{ADDRESS}", "autumn/2026"'
        assert colab.first_cell(path).splitlines().count(stamps) == 1


def test_twice_changes_nothing_and_another_repository_takes_over(kit):
    publish.publish(ADDRESS, "main", kit)
    first, times = (
        contents(kit),
        {path: path.stat().st_mtime_ns for path in kit.rglob("*")},
    )
    assert publish.publish(ADDRESS + ".git/", "main", kit) == []
    assert contents(kit) == first
    assert {path: path.stat().st_mtime_ns for path in kit.rglob("*")} == times
    publish.publish("https://github.com/bob/x.y_z-1", "v2", kit)
    assert not any(b"ada/deep-course" in content for content in contents(kit).values())
    publish.publish(ADDRESS, "main", kit)
    assert contents(kit) == first


def test_notebook_that_a_teacher_added_is_no_obstacle(kit):
    own = kit / "notebooks" / "bonus.ipynb"
    own.write_text('{"cells": []}')
    assert own not in publish.publish(ADDRESS, "main", kit)
    own.write_text((kit / "notebooks" / f"{TITLES[0]}.ipynb").read_text())
    assert publish.publish(ADDRESS, "v2", kit).count(own) == 1


def test_windows_line_ends_stay(kit):
    path = kit / "notebooks" / f"{TITLES[0]}.ipynb"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    count = path.read_bytes().count(b"\r\n")
    publish.publish(ADDRESS, "main", kit)
    assert path.read_bytes().count(b"\r\n") == count == path.read_bytes().count(b"\n")


ELSEWHERE = "does not begin with https://github.com/"
MORE_OR_LESS = "does not name one repository"
WRONG = {
    "git@github.com:ada/course.git": ELSEWHERE,
    "ssh://git@github.com/ada/course": "holds a name or a password",
    "http://github.com/ada/course": ELSEWHERE,
    "https://gitlab.com/ada/course": ELSEWHERE,
    "https://github.com.evil.org/ada/course": ELSEWHERE,
    "ada/course": ELSEWHERE,
    "": ELSEWHERE,
    "https://[": ELSEWHERE,
    "https://github.com/ada": MORE_OR_LESS,
    "https://github.com/ada/..": MORE_OR_LESS,
    "https://github.com/-ada/course": MORE_OR_LESS,
    "https://github.com/ada/course/tree/main": MORE_OR_LESS,
    "https://github.com/ada/course?x=1": MORE_OR_LESS,
    'https://github.com/ada/c"; rm -rf x': MORE_OR_LESS,
}


@pytest.mark.parametrize("address", WRONG)
def test_wrong_address_is_explained_and_nothing_changes(kit, address):
    before = contents(kit)
    with pytest.raises(
        utils.CourseError,
        match=f"{re.escape(WRONG[address])}.*give --repo https://github.com/OWNER/REPOSITORY",
    ):
        publish.publish(address, "main", kit)
    assert contents(kit) == before


def test_password_in_the_address_is_never_repeated(kit, capsys):
    address = "https://ada:hunter2secret@github.com/ada/course"
    assert cli.main(["publish", "--repo", address, "--project", str(kit)]) == 2
    said = capsys.readouterr()
    assert "holds a name or a password" in said.err
    assert "hunter2" not in said.out + said.err
    assert not any(b"hunter2" in content for content in contents(kit).values())


BRANCHES = '|a b|-x|/x|x/|x//y|a..b|.x|x/.y|x.lock|x.|a~1|$(id)|a"b|a;b|été|x\ny'


@pytest.mark.parametrize("branch", BRANCHES.split("|"))
def test_wrong_branch_is_explained_and_nothing_changes(kit, branch):
    before = contents(kit)
    with pytest.raises(
        utils.CourseError,
        match="cannot be the branch: give one that `git branch` lists",
    ):
        publish.publish(ADDRESS, branch, kit)
    assert contents(kit) == before


@pytest.mark.parametrize("damage", ["stamp", "badge", "bytes", "gone"])
def test_one_file_that_cannot_be_stamped_stops_all(kit, damage):
    path = kit / "notebooks" / f"{TITLES[-1]}.ipynb"
    text = path.read_text()
    if damage == "gone":
        path = kit / "README.md"
        path.unlink()
    elif damage == "bytes":
        path.write_bytes(b"\xff\xfe")
    else:
        path.write_text(
            text.replace(
                "REPOSITORY, BRANCH = " if damage == "stamp" else "colab.research", "x"
            )
        )
    before = contents(kit)
    with pytest.raises(utils.CourseError, match=f"{path.name} .*nothing was stamped"):
        publish.publish(ADDRESS, "main", kit)
    assert contents(kit) == before


def test_folder_without_notebooks(tmp_path):
    with pytest.raises(
        utils.CourseError, match="has no notebooks/: give the kit's folder"
    ):
        publish.publish(ADDRESS, "main", tmp_path)


@pytest.mark.course
def test_command_says_what_it_changed(kit, capsys):
    command = ["publish", "--repo", ADDRESS, "--project", str(kit)]
    done = subprocess.run(
        [sys.executable, "course.py", *command], cwd=KIT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert f"Stamped with {ADDRESS}, branch main:" in done.stdout
    assert "README.md" in done.stdout
    assert done.stdout.count(".ipynb") == len(TITLES) + FURTHER
    assert publish.main(command[1:]) == 0
    assert (
        capsys.readouterr().out
        == f"Nothing to change: all is stamped with {ADDRESS}, branch main.\n"
    )


def test_published_cell_clones_that_repository_and_branch(kit, tmp_path):
    publish.publish(ADDRESS, "autumn/2026", kit)
    machine = colab.Colab(tmp_path / "runtime", colab.JUNE, "12.8")
    cell = colab.first_cell(kit / "notebooks" / f"{TITLES[3]}.ipynb")
    assert machine.run(cell).returncode == 0
    assert machine.clones == [f"clone -q --depth 1 -b autumn/2026 {ADDRESS} course-kit"]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_published_cell_with_the_real_git(kit, tmp_path):
    """GitHub is a folder of this machine here; everything else is what a student's
    runtime does.
    """
    machine = colab.Colab(tmp_path / "runtime", colab.JUNE, "12.8")
    origin = machine.folder / "origin"
    for folder in ("models", "kit"):
        (origin / folder / "kept").write_text("git stores no empty folder")
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for action in ("init -q", "add .", "commit -qm kit", "branch autumn/2026"):
        command = ["git", *who, *action.split()]
        subprocess.run(command, cwd=origin, check=True)
    (machine.python.parent / "git").unlink()
    elsewhere = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
        "PATH": f"{machine.python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    notebook, cloned = (
        kit / "notebooks" / f"{TITLES[0]}.ipynb",
        machine.content / "course-kit",
    )
    publish.publish(ADDRESS, "winter", kit)
    done = machine.run(colab.first_cell(notebook), **elsewhere)
    assert "Remote branch winter not found" in done.stderr and not cloned.exists()
    publish.publish(ADDRESS, "autumn/2026", kit)
    done = machine.run(colab.first_cell(notebook), **elsewhere)
    assert done.returncode == 0, done.stderr
    head = (cloned / ".git" / "HEAD").read_text()
    assert head == "ref: refs/heads/autumn/2026\n"


def test_file_mode_stays(kit):
    (kit / "README.md").chmod(0o640)
    publish.publish(ADDRESS, "main", kit)
    assert stat.S_IMODE((kit / "README.md").stat().st_mode) == 0o640
