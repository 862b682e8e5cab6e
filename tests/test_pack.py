"""course.py pack: one zip with all that a grader needs, and nothing that must stay at
home.
"""

import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from support.submissions import RECORD, add_cell, edit_json

from kit.record import read_record
from tools import cli
from tools.grading.submission import open_submission
from tools.handin import pack
from tools.notebooks import run

pytestmark = pytest.mark.course

# put together, so that no scanner takes this file for a leak
TOKEN = "AK" + "IA" + "ABCD1234EFGH5678"


@pytest.fixture
def project(group) -> Path:
    return group


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return {name.removeprefix("project/") for name in archive.namelist()}


def put(root: Path, name: str, content: bytes = b"x") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_hand_in_holds_the_layout_of_the_course_and_passes_its_checks(project):
    path, findings = pack.build(project)
    assert path == project / "hand-in-pneumonia.zip"
    required = {
        "utils.py",
        "models/baseline_cnn.py",
        "models/optimized_cnn.py",
        "checkpoints/best_model.pth",
        "checkpoints/model_retrained.pth",
        "checkpoints/baseline.pth",
        "exports/model.onnx",
        RECORD,
        "README.md",
        "requirements.txt",
        "constraints.txt",
        "exports/environment.txt",
        "exports/audit.csv",
        "course.json",
        "course.py",
        "data/pneumonia/index.csv",
        "report/report.pdf",
        "tools/notebooks/run.py",
    }
    required |= {
        f"{folder}/{file.name}"
        for folder in ("notebooks", "exports/notebooks")
        for file in (project / "notebooks").glob("*.ipynb")
    }
    assert required <= names(path)
    assert {finding.verdict for finding in findings} == {"pass", "note"}


def test_the_same_files_give_the_same_bytes(project, tmp_path):
    first, _ = pack.build(project, output=tmp_path / "a.zip")
    for file in project.rglob("*.py"):
        os.utime(file, (1, 1))
    second, _ = pack.build(project, output=tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        listed = archive.namelist()
    assert listed == sorted(listed)
    assert all(name.startswith("project/") for name in listed)


def test_packing_again_does_not_pack_the_zip(project):
    first = pack.build(project)[0].read_bytes()
    assert pack.build(project)[0].read_bytes() == first


def test_what_nobody_listed_stays_at_home(project):
    for name in (
        "old.zip",
        "data/pneumonia/cache/pixels.npy",
        "data/raw/chest_xray/a.jpeg",
        "runs/a/events.out",
        ".git/config",
        ".venv/lib/x.py",
        "checkpoints/exercise.pth",
        "checkpoints/partial/step.pth",
        "exports/notebooks/theme1.failed.ipynb",
        "exports/notebooks/.theme1.running.ipynb",
        "benchmarks/b.py",
        "tests/a.py",
        "report/.build/main.typ",
        "exports/secret.bin",
        "backup.tar.gz",
        "notes.docx",
        "models/__pycache__/a.pyc",
        "exports/.x.tmp",
        "check-other/check.json",
        "my-run/course.json",
        "my-run/my_code.py",
        "my-run/exports/results.json",
    ):
        put(project, name)
    left_out = (
        ".zip cache raw runs/ .git/ .venv exercise.pth partial tests failed running"
        " benchmarks .build .bin .tar .docx .tmp check-other my-run"
    )
    kept = names(pack.build(project)[0])
    assert not [name for name in kept for part in left_out.split() if part in name]


def test_code_of_the_groups_own_comes_along(project):
    own = {
        "mine.py",
        "config.yaml",
        "src/settings.json",
        "config/train.yml",
        "tests_own/test_net.py",
        "benchmarks_of_ours/speed.py",
        "notebooks/extra/appendix.ipynb",
        "src/explore.ipynb",
        "constraints-bonus.txt",
        "constraints-scale.txt",
        "demo/look.css",
        "src/net/loader.py",
        "helpers/plots.py",
        "demo/app.py",
        "demo/requirements.txt",
        ".github/workflows/ci.yml",
        "report/sections/03_theme1.typ",
        "report/report.json",
        "logs/production.csv",
        "exports/figures/theme1_a.png",
        "exports/tables/theme1_a.csv",
        "exports/MODEL_CARD.md",
    }
    for name in own:
        put(project, name, b"{}")
    assert own <= names(pack.build(project)[0])


PICTURES = {
    "demo/screenshot.png": "PNG",
    "screenshots/tensorboard.PNG": "PNG",
    "screenshots/message.png": "JPEG",  # of a messenger, which renames
    "docs/dashboard.jfif": "JPEG",
    "report/images/CAPTURE.JPG": "JPEG",
    "report/images/page.webp": "WEBP",
    "report/images/old.gif": "GIF",
    "report/images/plot.pdf": "PDF",
    "report/images/no ending": "PNG",
    "exports/figures/theme2_ours.JPEG": "PNG",
}
NO_PICTURES = {
    "report/images/scan.bmp": "BMP",
    "report/rapport.docx": None,
    "screenshots/page.tif": "TIFF",
    "screenshots/film.mp4": None,
}
LITTER = "screenshots/Thumbs.db report/~$rapport.docx docs/desktop.ini docs/a.md~"


def test_pictures_go_in_by_what_they_hold_and_the_rest_is_said(project):
    for name, kind in (PICTURES | NO_PICTURES).items():
        buffer = io.BytesIO()
        if kind:
            Image.new("RGB", (8, 8)).save(buffer, kind)
        put(project, name, buffer.getvalue() or b"no picture")
    for name in LITTER.split():
        put(project, name)
    path, findings = pack.build(project)
    kept = names(path)
    assert PICTURES.keys() <= kept
    assert not {*NO_PICTURES, *LITTER.split()} & kept
    said = {f.where: f.says for f in findings if f.verdict == "human"}
    assert said.keys() == NO_PICTURES.keys()
    assert all("neither text nor a PNG, JPEG" in told for told in said.values())


def test_an_honest_hand_in_passes_under_strict(project, capsys):
    assert cli.main(["pack", "--project", str(project), "--strict"]) == 0
    assert "NOT READY" not in capsys.readouterr().err


def test_home_of_its_own(project, tmp_path):
    home = tmp_path / "my-run"
    home.mkdir()
    for name in ("exports", "checkpoints", "course.json", "data", "report"):
        shutil.move(project / name, home / name)
    put(project, RECORD, b"{}")  # of an older run, in the project
    path, findings = pack.build(project, home)
    assert path.parent == home
    assert {finding.verdict for finding in findings} == {
        "pass",
        "note",
    }
    with zipfile.ZipFile(path) as archive:
        assert archive.read(f"project/{RECORD}") == (home / RECORD).read_bytes()


def test_secrets_stay_at_home_and_are_named(project, capsys):
    put(project, "kaggle.json", b'{"username": "bob"}')
    put(project, "demo/.env", b"A=1")
    put(project, "demo/app.py", b"x = 1")
    add_cell(project, f'token = "{TOKEN}"')
    assert cli.main(["pack", "--project", str(project)]) == 0
    out, kept = capsys.readouterr().out, names(project / "hand-in-pneumonia.zip")
    assert (
        not {"kaggle.json", "demo/.env", "notebooks/theme2_baseline_model.ipynb"} & kept
    )
    assert "demo/app.py" in kept
    assert "Left out of the zip, as it holds credentials: revoke it" in out
    assert "kaggle.json" in out
    assert "an AWS key (AKIA…) stands in it" in out
    assert "theme2_baseline_model.ipynb, cell" in out
    assert "Theme 2 is missing" in out and TOKEN not in out
    with zipfile.ZipFile(project / "hand-in-pneumonia.zip") as archive:
        assert not any(
            TOKEN.encode() in archive.read(name) for name in archive.namelist()
        )


def test_summary_is_worst_first_and_ends_with_the_zip(project, capsys):
    (project / "checkpoints/best_model.pth").unlink()
    output = str(project.parent / "out.zip")
    assert cli.main(["pack", "--project", str(project), "-o", output]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert "NOT READY TO HAND IN: " in told.err and "✗ to correct" in told.err
    assert cli.main(["pack", "--project", str(project), "-o", output, "--strict"]) == 1
    marks = [line[0] for line in lines if line[:1] in "✗?·✓" and line]
    assert marks == sorted(marks, key="✗?·✓".index) and marks[0] == "✗"
    digest = hashlib.sha256((project.parent / "out.zip").read_bytes()).hexdigest()
    assert lines[-1] == f"sha256 {digest}"
    assert "Remains to do: " in lines[-3]
    assert "notebooks 12" in lines[-4]  # four of them further ones


@pytest.mark.parametrize(
    "content", [None, b"{", b'{"schema": 99}', b'{"schema": 1, "meta": {}}']
)
def test_nothing_to_pack_is_said_and_the_earlier_zip_stays(content, project, capsys):
    put(project, "hand-in-pneumonia.zip", b"earlier")
    (
        (project / RECORD).unlink()
        if content is None
        else (project / RECORD).write_bytes(content)
    )
    home = ["--home", str(project)]
    assert cli.main(["pack", "--project", str(project), *home]) == 2
    said = capsys.readouterr().err
    assert ("run" in said or "read it with" in said) and len(said.splitlines()) == 1
    assert (project / "hand-in-pneumonia.zip").read_bytes() == b"earlier"


def test_odd_files_are_left_out_and_said(project, tmp_path):
    put(project, "logs/production.csv")
    os.truncate(project / "logs/production.csv", 21 << 20)
    (project / os.fsdecode(b"caf\xe9.py")).write_text("x = 1")
    (tmp_path / "outside.py").write_text("x = 1")
    (project / "linked.py").symlink_to(tmp_path / "outside.py")
    os.mkfifo(project / "models/pipe.py")
    path, findings = pack.build(project)
    assert not {"logs/production.csv", "linked.py", "models/pipe.py"} & names(path)
    says = " ".join(
        finding.says + finding.where
        for finding in findings
        if finding.verdict == "human"
    )
    assert "21 MiB (limit: 20)" in says
    assert "no other system can read" in says
    assert "caf\\udce9.py" in says


def test_folder_that_is_a_link_is_said(project, tmp_path):
    shutil.move(project / "report", tmp_path / "elsewhere")
    (project / "report").symlink_to(tmp_path / "elsewhere")
    path, findings = pack.build(project)
    assert not any(name.startswith("report/") for name in names(path))
    assert any(
        "link to a folder" in finding.says and finding.where == "report"
        for finding in findings
    )


def test_folder_of_the_machine_in_the_record_is_noted(project, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    for name in (RECORD, "course.json"):
        edit_json(
            project / name,
            lambda values: values.get("meta", values).update(
                source="/home/alice/images"
            ),
        )
    path, findings = pack.build(project)
    notes = " ".join(finding.says for finding in findings if finding.verdict == "note")
    assert "(/home/alice/images)" in notes
    assert "1 files show your own folder, /home/alice:" in notes
    with zipfile.ZipFile(path) as archive:
        assert (
            json.loads(archive.read("project/course.json"))["source"]
            == "/home/alice/images"
        )


def test_odd_record_is_packed_all_the_same(project):
    edit_json(
        project / RECORD,
        lambda record: record.update(theme2={"inputs": ["x"]}, theme3=3),
    )
    path, findings = pack.build(project)
    assert RECORD in names(path)
    assert ("record", "fail") in {
        (finding.check, finding.verdict) for finding in findings
    }


@pytest.mark.slow
def test_real_run_packs_and_fits_its_hashes(tmp_path):
    """Two themes executed for real: the zip holds them, and its checks find nothing
    wrong with them.
    """
    home = tmp_path / "home"
    options = "--source sample --profile smoke --until 2".split()
    assert run.main(["--home", str(home), *options]) == 0
    path, findings = pack.build(home=home)
    says = [(finding.check, finding.verdict) for finding in findings]
    assert any("2 executed from top to bottom" in finding.says for finding in findings)
    assert ("secrets", "pass") in says
    assert ("artefacts", "fail") not in says and ("seeds", "pass") in says
    opened = open_submission(path, tmp_path / "work")
    assert opened.record == read_record(home) and opened.story["profile"] == "smoke"
    assert not [file for file in opened.files if file.suffix in (".jpeg", ".npy")]
