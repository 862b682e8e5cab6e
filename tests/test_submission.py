"""Submissions of strangers: nothing in them runs, leaks or reaches outside."""

import os
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import pytest
from support.submissions import (
    HEX,
    NO_ANSWERS,
    RECORD,
    SECTIONS,
    THEME2,
    add_cell,
    edit_json,
    huge,
    of,
    put,
    zipped,
)

import utils
from tools.grading import submission
from tools.grading.static import look as looking
from tools.grading.static import requirements
from tools.grading.submission import copy_code, open_submission
from tools.shared.foreign import SubmissionError

# --------------------------------------------------------------------------------------
# Imports and requirements
# --------------------------------------------------------------------------------------


def test_every_undeclared_import_is_counted_once(group, look):
    add_cell(group, "import numpy as np\nimport seaborn as sns\nfrom cv2 import imread")
    (group / "extra.py").write_text("def f():\n    import seaborn.objects\n")
    lines = of(look(group, "environment"), "environment").splitlines()
    assert len(lines) == 2
    assert "seaborn is imported (and 1 more times) and not in" in lines[0]
    assert f"{THEME2}, cell" in lines[1] and "line 3" in lines[1]


def test_undeclared_is_judged_without_asking_the_graders_packages(
    group, look, monkeypatch
):
    """A table tells what an import belongs to: two machines find the same."""
    import importlib.metadata as metadata

    def asked(*_):
        raise AssertionError("the grader's packages were asked")

    for name in ("packages_distributions", "requires", "distribution"):
        monkeypatch.setattr(metadata, name, asked)
    add_cell(group, "import yaml, seaborn")
    says = of(look(group, "environment"), "environment")
    assert "seaborn is imported" in says and "yaml" not in says


REQUIREMENTS = """
numpy==2.0 ; python_version >= "3.11"   # pinned
scikit_learn[extra]>=1.5
torch == 2.6.0 \\
    --hash=sha256:0123 \\
    --hash=sha256:4567
git+https://github.com/owner/own-network.git@v1#egg=own_network
git+ssh://git@host.org/owner/other.git@main
https://x.org/wheels/fast_mmd-0.1-py3-none-any.whl
./wheels/local.pkg-1.2.0-py3-none-any.whl ; sys_platform == "linux"
../sibling
-e ./lib[dev]
--index-url https://x.org/simple
-r other.txt
pandas @ https://x.org/pandas.zip
seaborn>=0.13,<1
"""


def test_requirements_are_read_as_pip_reads_them():
    found = list(requirements.parse(REQUIREMENTS))
    assert [line.included for line in found if line.included] == ["other.txt"]
    found = [line for line in found if not line.included]
    assert {line.name: line.exact for line in found} == {
        "numpy": True,
        "scikit-learn": False,
        "torch": True,
        "own-network": True,
        "other": True,
        "fast-mmd": True,
        "local-pkg": True,
        "sibling": True,
        "lib": True,
        "pandas": True,
        "seaborn": False,
    }
    assert [number for number, *_ in found][:4] == [2, 3, 4, 7]


@pytest.mark.parametrize("line", ["not one !!", "numpy=2", "numpy 2.0", "==1.0"])
def test_what_pip_does_not_understand(line):
    assert [found.name for found in requirements.parse(line)] == [None]


def test_a_slow_machine_is_no_fault_of_the_group(group, look, monkeypatch):
    monkeypatch.setattr(looking, "MAX_SECONDS", -1)
    found = look(group, "notebooks")
    says = of(found, "notebooks", "human")
    assert "of reading were over" in says and "no fault of the group's" in says
    assert "does not parse" not in says and not of(found, "notebooks")


# --------------------------------------------------------------------------------------
# Secrets and artefacts
# --------------------------------------------------------------------------------------

LEAKS = [
    '{"username":"bob","key":"' + HEX * 2 + '"}',
    'os.environ["KAGGLE_KEY"] = "' + HEX * 2 + '"',
    "KGAT" + "_" + HEX * 2,
    "gh" + "p_" + "a1B2" * 9,
    "github" + "_pat_" + "a1B2" * 9,
    "h" + "f_" + "aBcD" * 9,
    "s" + "k-" + "proj-" + "a1B2c3" * 6,
    "AK" + "IA" + "ABCD1234EFGH5678",
    "AI" + "za" + "B1" * 17 + "c",
    'wandb.login(key="' + HEX * 2 + HEX[:8] + '")',
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    'api_key = "' + "q7Zq" * 6 + '"',
]


def test_leaked_secrets_are_found_and_shown_masked(group, look):
    (group / "notes.md").write_text("first\n" + "\n".join(LEAKS))
    says = of(look(group, "secrets"), "secrets")
    for number, leak in enumerate(LEAKS, 2):
        assert f"[notes.md, line {number}]" in says
        assert leak[-20:-1] not in says and leak[-20:] not in says
    assert says.count("revoke it") >= len(LEAKS)


def test_secret_inside_an_archive(group, look):
    with zipfile.ZipFile(group / "old.zip", "w") as archive:
        archive.writestr("v1/config.py", f'KAGGLE_KEY = "{HEX * 2}"')
        archive.writestr("v1/kaggle.json", "{}")
    found = look(group, "secrets")
    says = of(found, "secrets")
    assert "old.zip, v1/config.py, line 1" in says and HEX * 2 not in says
    assert "old.zip, v1/kaggle.json" in says and not of(found, "secrets", "human")


@pytest.mark.parametrize(
    "name, content", [("words.txt", b"a" * (9 << 20)), ("inner.zip", b"PK")]
)
def test_archive_that_cannot_be_searched_whole_is_named(name, content, group, look):
    with zipfile.ZipFile(group / "old.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    assert "old.zip" in of(look(group, "secrets"), "secrets", "human")


def test_arrays_that_unpack_to_a_gigabyte_are_not_opened(group, look, monkeypatch):
    monkeypatch.setattr("tools.grading.hostile.MAX_ARRAYS", 1 << 20)
    path = group / "exports/predictions/baseline_test.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probabilities.npy", b"\0" * (2 << 20))
    assert NO_ANSWERS in of(look(group, "record"), "record", "human")


def test_no_file_outside_the_submission_is_hashed(group, look, monkeypatch):
    hashed, checksum = [], utils.hash_file
    monkeypatch.setattr(
        utils, "hash_file", lambda path: hashed.append(Path(path)) or checksum(path)
    )
    names = {"/etc/hostname": "0", "../outside.txt": "0", "/dev/zero": "0"}
    sections = {"theme2": {"inputs": names}, "theme5": {"inputs": [1]}}
    edit_json(group / RECORD, lambda record: record.update(sections))
    says = of(look(group, "artefacts"), "artefacts", "human")
    assert "../outside.txt, which is not handed in" in says
    assert hashed and all(path.resolve().is_relative_to(group) for path in hashed)


# --------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------


def test_report_of_another_program_has_its_headings_read_from_the_pages(group, look):
    """A PDF without outline, with a table of contents and a conclusion inside a
    theme.
    """
    from matplotlib import pyplot as plt
    from matplotlib.backends.backend_pdf import PdfPages

    texts = ["\n".join(SECTIONS)]
    texts += [f"{n}. {title}\ntext\n" for n, title in enumerate(SECTIONS, 1)]
    shutil.rmtree(group / "report")
    with PdfPages(group / "rapport.pdf") as pages:
        for text in texts:
            figure = plt.figure(figsize=(4, 4))
            figure.text(0.1, 0.1, text)
            pages.savefig(figure)
            plt.close(figure)
    found = look(group, "report")
    assert "twelve sections are there" in of(found, "report", "pass")
    assert "13 pages" in of(found, "report", "human")
    assert "Theme 1: Data Analysis 1 (asked: 5–8)" in of(found, "report", "note")


def test_pages_are_not_counted_without_pypdf(group, look, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    assert "pip install pypdf" in of(look(group, "report"), "report", "human")


# --------------------------------------------------------------------------------------
# Opening: zips, links, names
# --------------------------------------------------------------------------------------


def test_a_zip_is_a_submission(whole, look, tmp_path):
    path = zipped(whole, tmp_path / "groupe 7.zip")
    assert {verdict for _, verdict, _ in look(path)} == {"pass", "note"}
    (tmp_path / "delivered").mkdir()
    shutil.move(path, tmp_path / "delivered")  # as a learning platform does
    opened = open_submission(tmp_path / "delivered", tmp_path / "work")
    assert Path(RECORD) in opened.files


def test_windows_zip_with_backslashes(whole, tmp_path):
    path = zipped(whole, tmp_path / "a.zip", "a\\b\\")
    opened = open_submission(path, tmp_path / "work")
    assert opened.root.name == "b" and Path(RECORD) in opened.files


def small_zip(path: Path, *members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def damaged(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("utils.py", "a" * 99)
    path.write_bytes(path.read_bytes().replace(b"a" * 99, b"b" * 99))


def bomb(path: Path) -> Path:
    return small_zip(path, ("utils.py", bytes(300 << 20)))


# What a zip may hide is for tests/test_archive.py; here, what is said of a hand-in.
REFUSED = [
    (lambda path: small_zip(path, ("../evil.py", "x")), "outside its own folder"),
    (bomb, "300 MiB, 1,0.. times its own size"),
    (lambda path: path.write_bytes(b"hello"), "neither a folder nor a whole zip"),
    (damaged, "cannot be unpacked"),
    (
        lambda path: small_zip(path, ("photo.jpg", "x")),
        r"holds no notebook of a theme.*\(it holds photo.jpg\).*course.py pack",
    ),
    (lambda path: None, "is missing"),
]


@pytest.mark.parametrize("make, words", REFUSED)
def test_zip_that_is_refused_leaves_nothing(make, words, tmp_path):
    make(tmp_path / "a.zip")
    with pytest.raises(SubmissionError, match=words):
        open_submission(tmp_path / "a.zip", tmp_path / "work")
    left = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert [path.name for path in left] in ([], ["photo.jpg"])
    assert not list(tmp_path.rglob("evil*"))


def test_zip_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "MAX_FILES", 2)
    path = small_zip(tmp_path / "many.zip", *((f"{n}.py", "") for n in range(4)))
    with pytest.raises(SubmissionError, match="holds 4 files"):
        open_submission(path, tmp_path / "work")


def test_link_inside_a_zip_is_named_and_not_made(whole, tmp_path):
    path = zipped(whole, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("project/secret")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    opened = open_submission(path, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("secret"))
    assert "link inside the zip" in opened.findings[0].says


def test_project_is_found_two_folders_down(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a/b/c")
    assert open_submission(tmp_path / "a", tmp_path / "work").root == tmp_path / "a/b/c"


def test_links_and_special_files_are_named_and_never_opened(
    group, look, tmp_path, monkeypatch
):
    (tmp_path / "outside.txt").write_text("precious")
    (group / "loop").symlink_to(group)
    (group / "away.py").symlink_to(tmp_path / "outside.txt")
    (group / "notebooks/extra.ipynb").symlink_to("/etc/passwd")
    (group / ".venv").symlink_to("/usr")
    (group / RECORD).unlink()
    (group / RECORD).symlink_to(tmp_path / "outside.txt")
    os.mkfifo(group / "pipe.py")
    monkeypatch.chdir(group)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.py")
        found = look(group)
    says = of(found, "files", "human")
    odd = ("loop", "away.py", "extra.ipynb", "pipe.py", "s.py", RECORD)
    assert [name for name in odd if f"{name}]" not in says] == []
    assert "There is no record" in of(found, "record") and "precious" not in str(found)
    assert not copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    assert not (tmp_path / "copy/away.py").exists()
    assert not (tmp_path / "copy/loop").exists()


def test_names_that_are_no_utf8_are_shown(group, look, tmp_path):
    odd = os.fsdecode(b"caf\xe9 \x1b[31m.py")
    (group / odd).write_text("import seaborn\nx = '/home/alice/b'\n")
    found = look(group)
    f"{found}".encode()  # printing never raises
    assert "caf\\udce9 \\x1b[31m.py, line 1" in of(found, "environment")
    assert "\x1b" not in "".join(words for _, _, words in found)
    copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    assert (tmp_path / "copy" / odd).exists()


def test_unreadable_files_are_named(group, look, monkeypatch):
    opened, names = os.open, (THEME2, "sample_data.py", "results.json")

    def refusing(path, *arguments, **options):
        if str(path).endswith(names):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    found = look(group)
    assert "cannot be read (Permission denied)" in of(found, "notebooks")
    assert "sample_data.py cannot be read" in of(found, "required files", "human")
    assert "results.json cannot be read" in of(found, "record")


def test_too_many_files_are_capped_and_shallow_ones_come_first(
    group, look, monkeypatch
):
    (group / "aaa/deep").mkdir(parents=True)
    for number in range(200):
        (group / f"aaa/deep/{number}").touch()
    monkeypatch.setattr(submission, "MAX_FOLDER", 100)
    monkeypatch.setattr(submission, "MAX_FILES", 150)
    found = look(group, "required files")
    says = of(found, "files", "human")
    assert "200 files in one folder: only the first 100" in says
    assert "More than 150 files" in says and not of(found, "required files")


# --------------------------------------------------------------------------------------
# The copy that is run
# --------------------------------------------------------------------------------------


def test_copy_holds_code_and_nothing_that_could_load(group, tmp_path):
    for damage in (
        put("cached.csv", "1"),
        put("src/data/loader.py"),
        huge("big.json", 21),
        put("figures.json", b" " * (300 << 10)),
        put("check-group-7/check.md", "checked before"),
    ):
        damage(group)
    said = copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    copied = {path.as_posix() for path in submission.list_files(tmp_path / "copy")[0]}
    code = {"utils.py", THEME2, "models/baseline_cnn.py", "requirements.txt"}
    assert code | {"src/data/loader.py"} <= copied
    tops = {name.partition("/")[0] for name in copied}
    assert not tops & {"exports", "checkpoints", "data", "logs", "runs"}
    left = {"course.json", "cached.csv", "big.json", "figures.json"}
    assert not (left | {"check-group-7/check.md"}) & copied
    says = " ".join(finding.says for finding in said)
    for words in ("big.json has 21 MiB", "cached.csv", "figures.json has 0.293 MiB"):
        assert words in says
    assert "check-group-7" not in says


@pytest.mark.parametrize(
    "path, code, artefact",
    [
        ("notebooks/a.ipynb", True, False),
        ("exports/notebooks/a.ipynb", False, True),
        ("data/loader.py", True, False),
        ("checkpoints/best.pth", False, True),
        ("course.json", False, True),
        ("sub/.venv/x.py", False, False),
        ("data/pneumonia/index.csv", False, True),
        ("data/raw/x.jpeg", False, False),
        ("report/a.typ", True, False),
        ("my-run/exports/results.json", False, False),
        ("x.zip", False, False),
        ("Makefile", True, False),
        ("tools/grading/check.py", True, False),
        ("check.html", False, False),
    ],
)
def test_what_is_what(path, code, artefact):
    path = Path(path)
    assert (submission.is_code(path), submission.is_artefact(path)) == (code, artefact)
