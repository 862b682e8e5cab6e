"""Work of groups that did not use the kit: found whatever its folders and files are
called, judged from code and outputs, and told on a page that is soon read.
"""

import argparse
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from support.layouts import (
    FROZEN,
    HEADER,
    LOOP,
    book,
    kaggle_layout,
    shell_of,
    windows_layout,
)
from support.submissions import HEX, THEME2, edit_json, of, put

from kit.files import KIT
from kit.names import original
from tools.grading import klass, themes, verdict
from tools.grading.examine import console, examine
from tools.grading.static import requirements
from tools.grading.submission import open_submission
from tools.shared.foreign import SubmissionError, decode
from tools.shared.names import is_litter

STATIC = argparse.Namespace(level="static", source=None, until=8)


def told(found, verdict="fail") -> dict[str, list[str]]:
    """What is said, by check."""
    checks = {}
    for check, kind, says in found:
        if kind == verdict:
            checks.setdefault(check, []).append(says)
    return checks


# --------------------------------------------------------------------------------------
# Names
# --------------------------------------------------------------------------------------

OWN = "theme1_data_analysis.ipynb"


@pytest.mark.parametrize(
    "name",
    [
        "Copie de theme1_data_analysis.ipynb",
        "Copy of Copie de theme1_data_analysis.ipynb",
        "copie_de_theme1_data_analysis.ipynb",
        "theme1_data_analysis (1).ipynb",
        "theme1_data_analysis(12).ipynb",
        "theme1_data_analysis-Copy1.ipynb",
        "theme1_data_analysis - Copie.ipynb",
        "theme1_data_analysis copy 2.ipynb",
        "Copie de\u202ftheme1_data_analysis (2).ipynb",
        "THEME1_data_analysis.IPYNB",
    ],
)
def test_a_copy_is_known_by_what_it_was_called(name):
    assert original(name) == OWN
    assert themes.theme_of(Path(name)) == 1


@pytest.mark.parametrize(
    "name, litter",
    [
        ("._theme1_data_analysis.ipynb", True),
        ("Icon\r", True),
        ("Thumbs.db", True),
        ("DESKTOP.INI", True),
        ("~$Rapport.docx", True),
        (".~lock.Rapport.odt#", True),
        ("__MACOSX", True),
        (".DS_Store", True),
        (".gitignore", False),
        ("_utils.py", False),
        ("icons.py", False),
        (".env", False),
    ],
)
def test_litter_of_systems(name, litter):
    assert is_litter(name) is litter


FIRST = [  # which of these is theme 7
    (["theme7-bis_canary", "theme7_retraining"], "theme7_retraining"),
    (["theme7_retraining (1)", "theme7_retraining"], "theme7_retraining"),
    (["theme7_retraining-Copy1", "theme7-bis_canary"], "theme7_retraining-Copy1"),
    (["Theme 7 – Retraining", "theme7_old_retraining"], "Theme 7 – Retraining"),
    (["backup/theme7_retraining", "Thème07_retraining"], "Thème07_retraining"),
    (["further/theme7_labels", "Copie de theme7"], "Copie de theme7"),
    (["Dupont_theme7", "07_retraining"], "Dupont_theme7"),
    (["07_retraining"], "07_retraining"),
]


@pytest.mark.parametrize("names, first", FIRST)
@pytest.mark.parametrize("folder", ["notebooks", "Notebooks", "."])
def test_of_several_notebooks_the_courses_own_name_counts(names, first, folder):
    paths = [Path(folder) / f"{name}.ipynb" for name in sorted(names)]
    for order in (paths, paths[::-1]):
        found = themes.by_theme(order)
        assert list(found) == [7]
        assert found[7][0] == Path(folder) / f"{first}.ipynb"


def test_theme17_is_no_theme():
    for name in ("theme17.ipynb", "theme0.ipynb", "anathème1.ipynb", "notes.ipynb"):
        assert themes.theme_of(Path(name)) is None


# --------------------------------------------------------------------------------------
# Where the project begins
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["notebook", "Notebooks", "code", "themes", "Rendu"])
@pytest.mark.parametrize("utils", ["", "utils.py", "{folder}/utils.py"])
@pytest.mark.parametrize("above", ["", "group/IA-main"])
def test_the_root_is_found_by_what_belongs_to_it(folder, utils, above, tmp_path):
    root = tmp_path / "opened" / above
    root.mkdir(parents=True)
    windows_layout(root, folder)
    if utils:
        put(utils.format(folder=folder), "import torch\n")(root)
    opened = open_submission(tmp_path / "opened", tmp_path / "work")
    assert opened.root == root


def test_notebooks_in_a_folder_for_each_session(tmp_path):
    for theme, stem in themes.THEMES.items():
        session = tmp_path / "rendu" / f"Session {theme // 3 + 1}"
        book(session / f"theme{theme}_{stem}.ipynb", "x = 1")
    opened = open_submission(tmp_path / "rendu", tmp_path / "work")
    assert opened.root == tmp_path / "rendu"


def test_two_projects_in_one_are_told(tmp_path):
    for name in ("Rendu", "rendu v2"):
        windows_layout(tmp_path / "group" / name)
    opened = open_submission(tmp_path / "group", tmp_path / "work")
    assert opened.root == tmp_path / "group" / "Rendu"
    says = of([(f.check, f.verdict, f.says) for f in opened.findings], "files", "human")
    assert says == "Another project lies beside it, and was not looked at: rendu v2."


def zip_of(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


def test_zips_that_are_no_project_are_named(tmp_path):
    folder = tmp_path / "two"
    (folder / "a").mkdir(parents=True)
    for name in ("a/one.zip", "two.ZIP", "._two.zip"):
        zip_of(folder / name, ["photo.jpg"])
    with pytest.raises(SubmissionError) as raised:
        open_submission(folder, tmp_path / "work")
    assert "It holds 2 zips (one.zip, two.ZIP): check each" in str(raised.value)


def test_a_zip_in_a_zip_is_opened(tmp_path, group):
    inner = shutil.make_archive(str(tmp_path / "inner"), "zip", group)
    with zipfile.ZipFile(tmp_path / "Rendu.ZIP", "w") as archive:
        archive.write(inner, "Dupont_12345_assignsubmission/projet.zip")
        archive.writestr("__MACOSX/._projet.zip", "x")
    opened = open_submission(tmp_path / "Rendu.ZIP", tmp_path / "work")
    assert opened.record and opened.name == "Rendu"


def test_a_class_passes_over_litter(tmp_path):
    for name in ("__MACOSX", "alice"):
        (tmp_path / name).mkdir()
    for name in ("desktop.ini", "Thumbs.db", "Icon\r", "late.rar"):
        (tmp_path / name).touch()
    found, odd = klass.submissions(tmp_path, tmp_path / "out")
    assert [path.name for path in found] == ["alice"]
    assert [path.name for path in odd] == ["late.rar"]


# --------------------------------------------------------------------------------------
# The kit's own hand-in, as other systems leave it
# --------------------------------------------------------------------------------------


def rename(name: str):
    return lambda root: (root / THEME2).rename(root / "notebooks" / name)


def older_copies(root):
    for name in ("theme2_baseline_model (1)", "theme2_baseline_model-Copy1"):
        book(root / "notebooks" / f"{name}.ipynb", "x = '/home/alice/x'", "y")
    book(root / "archive" / "theme2_baseline_model.ipynb", "import seaborn")


def mac(root):
    for path in [*root.glob("notebooks/*.ipynb"), root / "utils.py"]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (root / "__MACOSX").mkdir()
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def windows_line_ends(root):
    for path in root.rglob("*"):
        if path.suffix in (".py", ".md", ".txt", ".ipynb") or path.name == "index.csv":
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def clone(root):
    """Tests of the kit name keys that are none."""
    shutil.copytree(
        KIT / "tests", root / "tests", ignore=shutil.ignore_patterns("__pycache__")
    )


@pytest.mark.parametrize(
    "change, note",
    [
        (mac, ""),
        (windows_line_ends, ""),
        (clone, ""),
        (older_copies, "3 copies or older states of notebooks were not judged"),
        (rename("Copie de theme2_baseline_model.ipynb"), "Theme 2 was found as Copie"),
        (rename("Theme 2 - Baseline Model.ipynb"), "Theme 2 was found as Theme 2 -"),
    ],
)
def test_what_systems_do_to_names_and_lines_is_no_fault(change, note, group, look):
    change(group)
    found = look(group)
    assert told(found, "fail") == {} and told(found, "human") == {}
    assert note in of(found, "notebooks", "note")


def test_a_theme_that_is_left_in_an_old_folder_alone_is_told(group, look):
    (group / "notebooks" / "old").mkdir()
    (group / THEME2).rename(group / "notebooks" / "old" / Path(THEME2).name)
    says = of(look(group), "notebooks", "note")
    assert "Theme 2 was found as notebooks/old/theme2_baseline_model.ipynb" in says


def test_a_theme_is_found_by_its_heading(group, look):
    rename("Untitled3.ipynb")(group)
    heading = {"cell_type": "markdown", "source": "# Thème 2 : CNN", "metadata": {}}
    path = group / "notebooks" / "Untitled3.ipynb"
    edit_json(path, lambda notebook: notebook["cells"].insert(0, heading))
    found = look(group)
    assert "Theme 2 was found as Untitled3.ipynb" in of(found, "notebooks", "note")
    assert not of(found, "required files")


def test_a_hash_called_key_is_a_question_and_a_users_key_is_not(group, look):
    put("cache.json", json.dumps({"key": HEX * 2}))(group)
    put("old/kaggle.txt", json.dumps({"username": "bob", "key": HEX * 2}))(group)
    found = look(group, "secrets")
    assert "cache.json" in of(found, "secrets", "human")
    assert "old/kaggle.txt" in of(found, "secrets")
    assert "cache.json" not in of(found, "secrets")


# --------------------------------------------------------------------------------------
# Requirements
# --------------------------------------------------------------------------------------

TEXT = "# dépendances\nflask==3.0.0 \\\n    --hash=sha256:01 \\\n    --hash=sha256:23\n"
WAYS = {
    "UTF-8": lambda text: text.encode(),
    "byte-order mark": lambda text: text.encode("utf-8-sig"),
    "PowerShell": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "code page": lambda text: text.replace("\n", "\r\n").encode("cp1252"),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
}


@pytest.mark.parametrize("way", WAYS)
def test_requirements_are_read_in_every_encoding(way):
    (line,) = requirements.parse(decode(WAYS[way](TEXT)))
    assert (line.name, line.exact) == ("flask", True)


MORE = (
    "scikit_learn[extra]>=1.5  # why\n-e ./lib[dev]\n./wheels/a-1.2-py3-none-any.whl\n"
    "git+https://github.com/owner/own.git@v1#egg=own\npandas @ https://x.org/p.zip\n"
    "--index-url https://x.org/simple\nnumpy==2.0 ; python_version >= '3.11'\n"
    "torch == 2.6.0 \\\n  --hash=sha256:" + "0" * 64 + "\n"
)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "code page"])
def test_pip_itself_finds_the_same_requirements(way, tmp_path):
    """Its parser is no library, and good enough to compare with."""
    parser = pytest.importorskip("pip._internal.req.req_file")
    session = pytest.importorskip("pip._internal.network.session").PipSession()
    content = WAYS[way](TEXT.replace("01", "0" * 64).replace("23", "1" * 64) + MORE)
    path = tmp_path / "requirements.txt"
    path.write_bytes(content)
    found = parser.parse_requirements(str(path), session)
    ours = [line.text for line in requirements.parse(decode(content))]
    assert ours == [each.requirement.strip() for each in found] and len(ours) == 8


def test_requirements_that_pip_cannot_read(group, look):
    (group / "requirements.txt").write_bytes(TEXT.encode("utf-16-le"))
    assert "UTF-16 without its mark" in of(look(group, "environment"), "environment")


def test_requirements_that_include_others(group, look):
    (group / "requirements.txt").write_text("-r deps/base.txt\n-c constraints.txt\n")
    put(
        "deps/base.txt", "-r ../requirements.txt\n--requirement=more.txt\nopencv-python"
    )(group)
    put("deps/more.txt", "seaborn\n")(group)
    put("extra.py", "import seaborn, cv2\n")(group)
    says = of(look(group, "environment"), "environment")
    assert "seaborn" not in says and "opencv" not in says


@pytest.mark.parametrize("package", ["onnxruntime-gpu", "onnxruntime-directml"])
def test_a_package_of_another_build_is_the_package(package, group, look):
    lines = (group / "requirements.txt").read_text().splitlines()
    others = [line for line in lines if not line.startswith("onnxruntime")]
    (group / "requirements.txt").write_text("\n".join([*others, f"{package}==1.26.0"]))
    put("extra.py", "import onnxruntime\n")(group)
    assert "onnxruntime" not in of(look(group, "environment"), "environment")


# --------------------------------------------------------------------------------------
# The two layouts
# --------------------------------------------------------------------------------------


@pytest.fixture
def kaggle(tmp_path) -> Path:
    return kaggle_layout(tmp_path / "kaggle")


@pytest.fixture
def windows(tmp_path) -> Path:
    return windows_layout(tmp_path / "windows")


def test_kaggle_layout_fails_for_what_is_missing_alone(kaggle, look):
    found = told(look(kaggle))
    assert found.keys() == {
        "record",
        "required files",
        "report",
        "notebooks",
        "environment",
    }
    assert "There is no record" in found["record"][0]
    missing = " ".join(found["required files"])
    assert "Themes 7, 8 are missing" in missing
    assert "checkpoints/model_retrained.pth is missing" in missing
    assert "requirements.txt is empty" in missing
    assert "ran as [7], the one above as [14]" in found["notebooks"][0]
    (packages,) = found["environment"]
    assert "tensorboard" in packages and "onnxruntime" not in packages


def test_kaggle_layout_asks_for_what_a_teacher_sees(kaggle, look):
    found = look(kaggle)
    says = of(found, "method", "human")
    assert "RandomResizedCrop in test_transform" in says
    assert "2 SummaryWriters are made" in says
    assert "“3. Baisse de confiance des prédictions” is printed" in says
    assert "compute_mmd(probs_clean, probs_drift, …) measures probabilities" in says
    seeds = of(found, "seeds", "human")
    assert "Themes 2, 3 train without a seed" in seeds and "split alone" in seeds
    files = of(found, "required files", "human")
    assert "Theme 5 has no notebook of its own" in files
    assert "theme4_onnx_deployment.ipynb, cell 4" in files
    assert "exports/model_optimized.onnx" in files
    assert "SimpleCNN" in files and "copy it" not in files
    (paths,) = told(found, "human")["absolute paths"]
    assert paths.startswith("9 paths of a Kaggle kernel")
    assert "It takes images of one channel" in of(found, "models", "human")
    missing = of(found, "evidence", "human")
    assert "a benchmark of ONNX Runtime" in missing and "retraining" in missing


def test_kaggle_layout_has_its_evidence_with_places(kaggle, look):
    found = of(look(kaggle), "evidence", "pass")
    for words in (
        "Theme 2 prints an accuracy of 0.82 (asked: above 0.7).",
        "Theme 3 prints an accuracy on test images of 0.88",
        "theme3_optimization.ipynb, cell 7, output",
        "TensorBoard that is written",
        "CSV log of predictions",
        "2 methods look for drift",
    ):
        assert words in found


def test_windows_layout_fails_for_weights_paths_and_what_is_not_there(windows, look):
    found = told(look(windows))
    assert found.keys() == {
        "record",
        "required files",
        "report",
        "models",
        "absolute paths",
    }
    assert "ask for Rapport_GEN_AI.docx" in found["report"][0]
    assert "2 ONNX files cannot be loaded" in found["models"][0]
    assert "champion.onnx.data" in found["models"][0]
    (paths,) = found["absolute paths"]
    assert paths.startswith("9 paths of one machine")
    missing = " ".join(found["required files"])
    assert "README" not in missing and "requirements" not in missing


@pytest.mark.parametrize("folder", ["notebook", "Notebooks", "code", "themes"])
def test_windows_layout_asks_for_what_a_teacher_sees(folder, tmp_path, look):
    found = look(windows_layout(tmp_path / "w", folder))
    says = of(found, "method", "human")
    assert "Images are normalised in 3 ways: 0.482 / 0.236" in says
    assert "0.5 / 0.25 in artifacts/champion_config.json" in says
    assert "It trains on images that come from a test folder (train_loader)" in says
    assert f"{folder}/theme7_retraining.ipynb, cell 4" in says
    assert "A failure of load_state_dict is passed over: its message stands" in says
    assert "The best state is chosen by test images" in says
    assert 'opens its file with "w"' in of(found, "method", "note")
    assert not of(found, "models", "human")
    assert "canary" not in str(found) and not of(found, "environment")
    assert "backup" not in of(found, "notebooks")
    notes = of(found, "required files", "note")
    assert "There is no utils.py, and nothing imports one" in notes
    passes = of(found, "evidence", "pass")
    assert "0.941" in passes and "a benchmark of ONNX Runtime" in passes


# --------------------------------------------------------------------------------------
# Method
# --------------------------------------------------------------------------------------

TEST = 'test_data = ImageFolder(root + "/test", transform=eval_tf)' + "\n"
STEP = "    loss = criterion(model(x), y)\n    loss.backward()\n"
COMPOSE = "Compose([{}, ToTensor()])"
LOAD = "try:\n    model.load_state_dict(s)\n"
FAULTS = [
    (LOOP + "train_model(model, train_loader, test_loader)", "chosen by test images"),
    (
        LOOP + TEST + "train_model(model, val_loader=v, train_loader=test_data)",
        "It trains on images",
    ),
    (
        TEST + "both = ConcatDataset([train_data, test_data])\n"
        "for x, y in tqdm(DataLoader(both)):\n" + STEP,
        "It trains on images",
    ),
    ("if test_acc > best_acc:\n    best_acc = test_acc", "chosen by test images"),
    (
        'tf = {"train": a, "test": ' + COMPOSE.format("RandomRotation(9)") + "}",
        "RandomRotation in test",
    ),
    (
        f"aug = {COMPOSE.format('ColorJitter(0.2)')}\nd = ImageFolder('x/test', aug)",
        "ColorJitter in aug",
    ),
    (
        LOAD + "except Exception as e:\n    print(e)",
        "load_state_dict is passed over",
    ),
    (
        "class PredictionLogger:\n    def start(self):\n"
        '        self.file = self.path.open("w")',
        'opens its file with "w"',
    ),
    ("w = SummaryWriter()\nw.close()", "nothing is written with it"),
    ('print("La latence a baissé : amélioration nette")', "printed whatever"),
    (
        "Normalize([0.5] * 3, [0.5] * 3)\nM = (0.485, 0.456, 0.406)\nNormalize(M, M)",
        "in 2 ways",
    ),
]
FINE = [
    LOOP + "train_model(model, train_loader, val_loader)",
    TEST + "for x, y in DataLoader(test_data):\n    model(x)",
    TEST + "train_data, val_data = random_split(full, [8, 2])\n"
    "for x, y in DataLoader(train_data):\n" + STEP,
    'data = ImageFolder("a/test")\ndata = full\nfor x, y in data:\n' + STEP,
    "train_test_tf = " + COMPOSE.format("RandomRotation(9)"),
    "test_tf = " + COMPOSE.format("CenterCrop(9)"),
    LOAD + "except:\n    model.load_state_dict(s['model'])",
    LOAD + "except RuntimeError as e:\n    raise ValueError from e",
    "try:\n    import onnx\nexcept ImportError:\n    print('none')",
    'class Logger:\n    def log(self):\n        open(self.path, "a")',
    "w = SummaryWriter()\nfit(model, writer=w)",
    "if acc_after > acc_before:\n    print('La performance est meilleure')",
    "print('Amélioration de la performance :')",
    "print(f'accuracy: hausse de {gain:.2%}')",
    "print('Calcul de la baisse de performance...')",
    "Normalize([0.482], [0.236])\nNormalize((0.4823,) * 3, (0.2361,) * 3)",
]


@pytest.mark.parametrize("source, words", FAULTS)
def test_faults_that_teachers_look_for(source, words, tmp_path, look):
    book(tmp_path / "w" / "theme3_optimization.ipynb", HEADER + source)
    found = [row for row in look(tmp_path / "w", "method") if row[0] == "method"]
    assert words in " ".join(says for _, _, says in found)
    assert {kind for _, kind, _ in found} <= {"human", "note"}


@pytest.mark.parametrize("source", FINE)
def test_what_is_fine_is_no_question(source, tmp_path, look):
    book(tmp_path / "w" / "theme3_optimization.ipynb", HEADER + source)
    assert told(look(tmp_path / "w", "method"), "human") == {}


def test_a_pointer_in_the_place_of_a_file(group, look):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    put("checkpoints/best_model.pth", pointer)(group)
    assert "pointer of Git LFS" in of(look(group, "models"), "models")


def test_weights_beside_a_graph(tmp_path, look):
    root = windows_layout(tmp_path / "w")
    shell_of(root / "artifacts" / "whole.onnx")
    for graph in root.glob("artifacts/densenet*.onnx"):
        graph.with_name(f"{graph.name}.data").write_bytes(b"1234")
    found = look(root, "models")
    assert not of(found, "models")
    assert "hold all of their weights: 3" in of(found, "models", "pass")


# --------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------


@pytest.fixture(params=[kaggle_layout, windows_layout])
def report(request, tmp_path) -> dict:
    return examine(request.param(tmp_path / "hand-in"), STATIC)


def test_missing_comes_before_untidy_and_each_kind_once(report):
    fails = [row["check"] for row in report["findings"] if row["verdict"] == "fail"]
    untidy = {"absolute paths", "environment", "notebooks"}
    assert fails[:2] == ["record", "required files"]
    assert untidy.isdisjoint(fails[: fails.index("report")])
    says = [row["says"] for row in report["findings"]]
    assert len(says) == len(set(says)) and len(says) < 40
    assert len(console(report).splitlines()) < 22


def test_the_page_tells_each_finding_once_and_no_tick_for_nothing(report, tmp_path):
    verdict.write(report, tmp_path)
    page = (tmp_path / "check.html").read_text()
    for row in report["findings"]:
        if row["verdict"] != "pass":
            assert page.count(f"<div>{verdict_text(row['says'])}") == 1
    assert "0 figures" not in page
    assert "To take up with the group" in page


def verdict_text(says: str) -> str:
    from markupsafe import escape

    return str(escape(says))


def test_the_page_fits_a_phone(report, tmp_path, browse):
    verdict.write(report, tmp_path)
    page = browse((tmp_path / "check.html").as_uri(), width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.problems == []


def test_frozen_requirements_of_the_fixture_are_all_read():
    lines = list(requirements.parse(FROZEN))
    assert len(lines) == 15 and all(line.name and line.exact for line in lines)
