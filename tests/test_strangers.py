"""What strangers bring: their encodings and line ends, names, links and litter."""

import importlib
import json
import os
import re
import shlex
import shutil
import sys
import unicodedata
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import utils
from kit import fingerprint, names, own, trackers
from kit.evidence import limitations
from kit.files import read_text
from kit.images import contact_sheet, quality_report

TEXT = "[group]\nauthors = ['Zoé Œuvré', 'Åsa']  # 10 €\n"


@pytest.mark.parametrize(
    "saved",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),  # Notepad, until 2019
        TEXT.encode("utf-16"),  # PowerShell's >
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-32"),
        TEXT.encode("cp1252"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        TEXT.replace("\n", "\r").encode("cp1252"),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_text_is_the_same_whatever_editor_saved_it(tmp_path, saved):
    (tmp_path / "a.toml").write_bytes(saved)
    assert read_text(tmp_path / "a.toml") == TEXT


@pytest.mark.parametrize(
    "saved, text",
    [
        (b"", ""),
        (b"\xef\xbb\xbf", ""),
        (b"\xff\xfe", ""),
        ("ab".encode("utf-16") + b"c", "ab\ufffd"),  # cut in the middle of a letter
        (b"caf\xe9 \x81", "café \ufffd"),  # a byte that the code page has not
        (b"a\r\r\nb\n\rc", "a\n\nb\n\nc"),
    ],
)
def test_text_of_odd_bytes(tmp_path, saved, text):
    (tmp_path / "a.txt").write_bytes(saved)
    assert read_text(tmp_path / "a.txt") == text


# --- names


@pytest.mark.parametrize(
    "name, same",
    [
        ("NORMAL", "normal"),
        ("Copie de NORMAL", "normal"),
        ("Copy of Theme1.ipynb", "theme1.ipynb"),
        ("Kopie von a.txt", "a.txt"),
        ("theme1 (1).ipynb", "theme1.ipynb"),
        ("theme1 (1) (2).ipynb", "theme1.ipynb"),
        ("theme1-Copy1.ipynb", "theme1.ipynb"),
        ("theme1-checkpoint.ipynb", "theme1.ipynb"),
        ("theme1 - Copie (2).ipynb", "theme1.ipynb"),
        ("theme1 copy 2.ipynb", "theme1.ipynb"),
        ("e\u0301quipe\u0301", "équipé"),
        ("no\u00a0panel", "no panel"),
        ("no\u2009 panel ", "no panel"),
        ("\ufeffnormal\u200b", "normal"),
        # no copies, whatever they look like
        ("photocopy.png", "photocopy.png"),
        ("copy.py", "copy.py"),
        ("(1)", "(1)"),
        ("person1_bacteria_1.jpeg", "person1_bacteria_1.jpeg"),
        ("x.tar.gz", "x.tar.gz"),
    ],
)
def test_a_name_is_that_of_what_it_is_a_copy_of(name, same):
    assert names.original(name) == same


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_a_name_is_the_same_composed_decomposed_and_compared_again(name):
    told = names.plain(name)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert names.plain(unicodedata.normalize(form, name)) == told
    assert names.plain(told) == told and names.plain(f"\u00a0{name} ") == told


@pytest.mark.parametrize(
    "path, litter",
    [
        ("__MACOSX/train/a.jpeg", True),
        ("train/._a.jpeg", True),
        (".ipynb_checkpoints/a.png", True),
        ("train/Thumbs.db", True),
        ("train/Desktop.ini", True),
        ("train/Icon\r", True),
        ("~$rapport.docx", True),
        ("@eaDir/a.jpg", True),
        ("train/NORMAL/a.jpeg", False),
        ("icon.png", False),
    ],
)
def test_litter_of_systems(path, litter):
    assert names.is_litter(PurePosixPath(path)) == litter


# --- datasets


def built(open_course, raw: Path, dataset="pneumonia") -> tuple[pd.DataFrame, dict]:
    """The index of a dataset of somebody's, and what was repaired: files by problem."""
    index = utils.build_index(open_course(dataset, source=raw))
    return index, {row["what"]: row["files"] for row in index.attrs["repairs"]}


def images(place: Path) -> list[Path]:
    return sorted(place.glob("*.jp*g"))


def moved_away(raw: Path) -> Path:
    """test/ on another disk."""
    shutil.move(raw / "chest_xray" / "test", raw / "disk")
    return raw / "chest_xray" / "test"


def test_a_link_to_the_test_images_is_followed(raw, open_course):
    moved_away(raw).symlink_to(raw / "disk")
    # and one that leads back ends
    (raw / "chest_xray" / "train" / "again").symlink_to(raw / "chest_xray")
    index, repairs = built(open_course, raw)
    assert (index["pool"] == "test").sum() == len([*(raw / "disk").rglob("*.jpeg")])
    assert not repairs and len(index) == 121


@pytest.mark.parametrize("name", ["test", "train/NORMAL/a.jpeg"])
def test_a_link_that_leads_nowhere_is_named(raw, open_course, name):
    moved_away(raw)
    (raw / "chest_xray" / name).symlink_to(raw / "unplugged")
    told = rf"{name} is a link to .*unplugged.*\(1 such links.*connect the disk"
    with pytest.raises(utils.CourseError, match=told):
        built(open_course, raw)


def test_a_folder_that_may_not_be_read_is_named(raw, open_course, monkeypatch):
    place, scandir = raw / "chest_xray" / "test", os.scandir

    def refuse(path):
        if Path(path) == place:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(utils.CourseError, match="test cannot be read.*make it read"):
        built(open_course, raw)


def test_no_official_test_images_is_told(raw, open_course, capsys):
    moved_away(raw)
    index, repairs = built(open_course, raw)
    assert repairs == {"official test images": 0} and (index["pool"] == "test").any()
    assert "holds no official test images: none: 15 %" in capsys.readouterr().out


def rename(raw: Path, name) -> dict[str, str]:
    """Every X-ray renamed as `name(number, old name)`: new stem -> old stem."""
    old = {}
    for folder in sorted((raw / "chest_xray").glob("t*/*")):
        for path in images(folder):
            new = path.with_name(name(len(old), path.stem) + ".jpeg")
            old[path.rename(new).stem] = path.stem
    return old


def older(number: int, stem: str) -> str:
    """A name as the older release of the X-rays had it."""
    if found := re.fullmatch(r"person(\d+)_(\w+?)_(\d+)", stem):
        return f"{found[2].upper()}-{found[1]}-{number:04d}"
    return f"NORMAL-{re.search(r'IM-(?:0*)([0-9]+)', stem)[1]}-{number:04d}"


@pytest.mark.parametrize("copy", ["{}", "Copie de {}", "{} (1)", "{}-Copy1"])
def test_patients_of_the_older_names_are_those_of_the_newer(raw, open_course, copy):
    before, _ = built(open_course, raw)
    old = rename(raw, lambda number, stem: copy.format(older(number, stem)))
    index, _ = built(open_course, raw)
    stems = index["path"].map(lambda path: old[Path(path).stem])
    before.index = before["path"].map(lambda path: Path(path).stem)
    same = before.loc[stems].reset_index(drop=True)
    assert same["subtype"].equals(index["subtype"])
    pairs = set(zip(same["patient"], index["patient"], strict=True))
    assert len(pairs) == same["patient"].nunique() == index["patient"].nunique() < 121
    used = index[index["pool"] != ""]
    assert (used.groupby("patient")["pool"].nunique() == 1).all()
    assert not index["flags"].str.contains("no_patient").any()


def test_names_that_give_no_patient_are_counted_and_join_nobody(
    raw, open_course, capsys
):
    """The same numbers in every folder are no siblings."""
    for folder in sorted((raw / "chest_xray").glob("t*/*")):
        for number, path in enumerate(images(folder)):
            path.rename(path.with_name(f"{number:04d}.jpeg"))
    index, _ = built(open_course, raw)
    told = capsys.readouterr().out
    assert "121 of 121 images have names that give no patient (such as te" in told
    assert index["patient"].is_unique and not index["flags"].str.contains("leak").any()
    quality = quality_report(index).set_index("problem")
    assert quality.loc["no_patient", "images"] == 121
    with pytest.raises(utils.CourseError, match="88 images have names that give nei"):
        utils.build_index(open_course("pneumonia3", raw, home=raw / "three"))


def test_a_picture_is_read_whatever_its_name_ends_in(raw, open_course):
    before, _ = built(open_course, raw)
    folder = raw / "chest_xray" / "train" / "NORMAL"
    for path, suffix in zip(images(folder), (".jfif", ".JPG_large", ""), strict=False):
        path.rename(path.with_suffix(suffix))
    for name in ("a.dcm", "b.DCM", "notes.txt", "Thumbs.db", ".hidden.jpeg"):
        (folder / name).write_bytes(b"DICM")
    index, repairs = built(open_course, raw)
    assert sorted(index["sha256"]) == sorted(before["sha256"])
    assert repairs == {
        "hidden files and litter of systems": 2,
        "files that are no images (.dcm 2, .txt 1)": 3,
    }


@pytest.mark.parametrize(
    "names",
    [
        ("TESTING", "NORMAL", "chest_xray"),
        ("test (1)", "Copie de Normal", "Chest_Xray (1)"),
        ("Test", "normal\u00a0", "chest_xray - Copie"),
    ],
)
def test_folders_are_known_by_other_names(raw, open_course, names):
    split, label, root = names
    place = raw / "chest_xray"
    (place / "test" / "NORMAL").rename(place / "test" / label)
    (place / "test").rename(place / split)
    place.rename(raw / root)
    index, repairs = built(open_course, raw)
    assert (index["split"] == "test").sum() == 22 and not repairs
    assert index["label"].isin(["NORMAL", "PNEUMONIA"]).all()


def test_a_folder_for_each_patient_below_the_class(raw, open_course):
    """Images of one name in two of them are no copies of one another."""
    before, _ = built(open_course, raw)
    for folder in (raw / "chest_xray").glob("t*/*"):
        for number, path in enumerate(images(folder)):
            (folder / f"patient {number}").mkdir()
            path.rename(folder / f"patient {number}" / "1.jpeg")
    index, repairs = built(open_course, raw)
    assert not repairs and sorted(index["sha256"]) == sorted(before["sha256"])
    for column in ("split", "label"):
        assert index[column].value_counts().equals(before[column].value_counts())


def test_a_flat_folder_says_what_it_holds(raw, open_course):
    place = raw / "chest_xray"
    for folder in sorted(place.glob("t*/*")):
        shutil.copytree(folder, place / folder.name, dirs_exist_ok=True)
    for split in ("train", "test"):
        shutil.rmtree(place / split)
    told = r"below train/ and test/ \(it holds 121 images outside train/ and test/\)"
    with pytest.raises(utils.CourseError, match=told):
        built(open_course, raw)


FOLDERS = {"positive": "panneau été", "negative": "rien"}
CLASSES = '{"Panneau e\u0301te\u0301": "panel",\n "RIEN": "No_Panel"}'


@pytest.fixture
def roofs(raw) -> Path:
    """Roofs in folders of somebody's own."""
    for old, new in FOLDERS.items():
        (raw / "solar_panels" / old).rename(raw / "solar_panels" / new)
    return raw


@pytest.mark.parametrize("more", [(), ("toit plat",), ("toit plat", "toit incliné")])
def test_unknown_folders_are_asked_for_whatever_their_number(roofs, open_course, more):
    place = roofs / "solar_panels"
    for name in (".ipynb_checkpoints", *more):
        (place / name).mkdir()
        for path in images(place / "rien")[:2]:
            shutil.move(path, place / name / f"{name}{path.name}")
    with pytest.raises(utils.CourseError, match="write .*with, for example, {") as told:
        built(open_course, roofs, "solar")
    example = json.loads(re.search(r"{.*}", str(told.value))[0])
    assert {*example} == {*FOLDERS.values(), *more}
    (place / "classes.json").write_text(json.dumps(example))
    index, repairs = built(open_course, roofs, "solar")
    assert len(index) == 119 and repairs == {"hidden files and litter of systems": 2}


@pytest.mark.parametrize("name", ["classes.json", "Classes.JSON", "classes.json.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_classes_are_read_as_any_editor_saves_them(roofs, open_course, name, encoding):
    text = unicodedata.normalize("NFC", CLASSES).replace("\n", "\r\n")
    (roofs / "solar_panels" / name).write_bytes(text.encode(encoding))
    index, repairs = built(open_course, roofs, "solar")
    assert (index["label"] == "PANEL").eq(index["path"].str.startswith("pan")).all()
    assert len(index) == 121 and not repairs


@pytest.mark.parametrize(
    "text, told",
    [
        ('{"rien": "NO_PANEL",\n}', "double quotes, line 2"),
        ('{"rien": "NO_PANELS"}', "it says 'NO_PANELS' of rien"),
        ('{"rien": 0}', "must name a class"),
        ('["rien"]', "must name a class"),
        ("{}", "must name a class"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_classes_that_cannot_be_are_led_back_to_the_file(
    roofs, open_course, text, told
):
    (roofs / "solar_panels" / "classes.json").write_text(text)
    with pytest.raises(utils.CourseError, match=rf"classes\.json.*{told}"):
        built(open_course, roofs, "solar")


def test_a_folder_that_is_no_class_is_named(raw, open_course):
    shutil.copytree(raw / "solar_panels" / "positive", raw / "solar_panels" / "doute")
    index, repairs = built(open_course, raw, "solar")
    assert len(index) == 121 - 61 + 61
    assert repairs == {"images in folders of no known class (doute 61)": 61}


def test_a_dollar_in_a_name_is_a_letter(raw, open_course):
    for path in images(raw / "chest_xray" / "train" / "NORMAL")[10:12]:
        path.write_bytes(path.read_bytes()[:600])
        path.rename(path.with_name(f"scan_$5_to_${path.stem[-1]}.jpeg"))
    course = open_course(source=raw)
    figure = contact_sheet(course, utils.build_index(course))
    utils.save_figure(course, figure, "offenders")
    titles = [axis.get_title() for axis in figure.axes]
    assert sum("scan_$5_to_$" in title for title in titles) == 2


# --- code of a group, and where it lies


@pytest.mark.parametrize("colab", [True, False])
def test_a_folder_with_a_space_stays_one_word(monkeypatch, capsys, colab):
    folder, started = "/content/drive/MyDrive/Colab Notebooks/l'été", []
    monkeypatch.setattr(trackers, "on_colab", lambda: colab)
    notebook = SimpleNamespace(start=started.append)
    monkeypatch.setitem(sys.modules, "tensorboard.notebook", notebook)
    monkeypatch.setattr("tensorboard.notebook", notebook, raising=False)
    utils.show_tensorboard(folder)
    line = started[0] if colab else capsys.readouterr().out.partition("tensorboard ")[2]
    assert shlex.split(line) == ["--logdir", folder]


def test_source_of_a_module_is_read_as_python_reads_it(tmp_path, monkeypatch):
    """Saved by Notepad, or in another encoding that its first line names."""
    texts = {
        "bom": "def f():\n    return 'é'\n".encode("utf-8-sig"),
        "latin": "# -*- coding: latin-1 -*-\ndef f():\n    return 'é'\n".encode(
            "cp1252"
        ),
    }
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fingerprint, "_is_ours", lambda module: True)
    for name, text in texts.items():
        (tmp_path / f"strange_{name}.py").write_bytes(text)
        module = importlib.import_module(f"strange_{name}")
        assert "f" in fingerprint.definitions(module)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_my_code_is_read_as_any_editor_saves_it(tmp_path, encoding):
    text = '# --- rule: été ---\n\n# é\nété = AlertRule("é", "requests", "<", 1)\n'
    text = f"from utils import AlertRule\n\n{text}".replace("\n", "\r\n")
    (tmp_path / own.FILE).write_bytes(text.encode(encoding))
    try:
        (kind, name, rule), *more = own.load_own(tmp_path)
        assert (kind, name, rule.name) == ("rule", "été", "é") and not more
    finally:
        own.load_own(tmp_path / "nowhere")


def test_images_of_unknown_patients_limit_what_may_be_claimed():
    quality = [{"problem": "no_patient", "images": 12, "share": 0.1, "action": ""}]
    told = limitations({"meta": {}, "theme1": {"quality": quality}})
    assert told[0][0].startswith("The names of 12 X-rays give no patient")
    assert len(limitations({"meta": {}, "theme1": {}})) == len(told) - 1
