"""course.py report: what the PDF holds, what the group owns, and what happens to
everything that is broken.
"""

import ast
import io
import json
import re
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from pypdf import PdfReader

import utils
from kit.record import HEADLINE_TAGS, SCHEMA
from tools import cli
from tools.report import tables as report_tables
from tools.report import typeset
from tools.report.build import build as build_report
from tools.report.group import toml, without_comments
from tools.report.summary import verdict
from tools.shared.sections import SECTIONS

pytestmark = pytest.mark.course

KIT = Path(__file__).resolve().parent.parent
WORDS = toml("words.toml")
ODD = '#let $x$ *b* _c_ <d> @e é "q" \\ [f]'


def write_record(home: Path, **changes) -> None:
    test = {"accuracy": {"value": 0.8125, "low": 0.7, "high": 0.9, "n": 80}}
    pools = {
        "A": {"train": 5, "val": 2, "All": 7},
        "All": {"train": 1234, "val": 12, "All": 1246},
    }
    rows = [
        {
            "name": f"criterion {ODD}",
            "value": 0.83333333333,
            "target": ">= 0.7",
            "passed": True,
        },
        {"name": "second", "value": False, "target": "== True", "passed": False},
    ]
    record = {
        "schema": SCHEMA,
        "meta": {
            "dataset": "pneumonia",
            "source": "real",
            "profile": "smoke",
            "image_size": 32,
            "seed": 42,
            "hardware": "a machine",
            "environment": {"python": "3.11.7", "torch": "2.15.0"},
        },
        "theme1": {"inputs": {}, "images": 1300, "usable": 1246, "pools": pools},
        "theme2": {"inputs": {}, "test": test},
        "criteria": {"theme1": rows},
        "headline": {
            "baseline_test_accuracy": 0.8125,
            "ort_speedup_b1": 5.333,
            "provider": "CPUExecutionProvider",
        },
    }
    utils.write_json(home / "exports" / "results.json", record | changes)


@pytest.fixture
def home(tmp_path) -> Path:
    """Themes 1 and 2 have run; two figures and two tables, one of each unknown to the
    kit.
    """
    write_record(tmp_path)
    for name in ("theme1_examples", "theme2_our_own"):
        (tmp_path / "exports" / "figures").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 60), 128, np.uint8)).save(
            tmp_path / "exports" / "figures" / f"{name}.png"
        )
    (tmp_path / "exports" / "tables").mkdir()
    (tmp_path / "exports" / "tables" / "theme1_pools.csv").write_text(
        "pool,A,All\ntrain,5,1234\nval,2,12\n"
    )
    quoted = ODD.replace('"', '""')
    (tmp_path / "exports" / "tables" / "theme1_odd.csv").write_text(
        f',"{quoted}"\n0,0.123456789\n1,"{quoted}"\n'
    )
    return tmp_path


def build(home: Path, *arguments, **options) -> tuple[dict, PdfReader, str]:
    summary = build_report(home, *arguments, **options)
    reader = PdfReader(home / "report" / "report.pdf")
    return (
        summary,
        reader,
        " ".join(" ".join(page.extract_text() for page in reader.pages).split()),
    )


def section(home: Path, start: str) -> Path:
    return next((home / "report" / "sections").glob(f"{start}*.typ"))


def append(path: Path, text: str) -> int:
    """Add text; returns the number of its first line."""
    before = path.read_text()
    path.write_text(before + text)
    return before.count("\n") + 1


def text_of(reader: PdfReader, title: str, after: str | None) -> str:
    """Text of the pages of one section, by the PDF's own outline."""
    pages = {
        item.title: reader.get_destination_page_number(item)
        for item in reader.outline
        if not isinstance(item, list)
    }
    last = next(
        (page for name, page in pages.items() if after and name.endswith(after)),
        len(reader.pages),
    )
    first = next(page for name, page in pages.items() if name.endswith(title))
    return " ".join(
        " ".join(page.extract_text() for page in reader.pages[first:last]).split()
    )


# --- what stands in the PDF


@pytest.mark.parametrize("lang", ["fr", "en"])
def test_twelve_sections_in_order_and_pages_as_in_the_pdf(home, lang):
    summary, reader, text = build(home, lang)
    titles = [item for item in reader.outline if not isinstance(item, list)]
    wanted = [WORDS[lang][part.key] for part in SECTIONS]
    assert [item.title for item in titles] == [
        f"{n} {title}" for n, title in enumerate(wanted, 1)
    ]
    assert len(wanted) == 12 and summary["pages"] == len(reader.pages)
    starts = [reader.get_destination_page_number(item) for item in titles]
    ends = [*starts[1:], len(reader.pages)]
    assert [row["pages"] for row in summary["sections"]] == [
        b - a for a, b in zip(starts, ends, strict=True)
    ]
    assert json.loads((home / "report" / "report.json").read_text()) == json.loads(
        json.dumps(summary)
    )
    assert summary["lang"] == lang and f"{WORDS[lang]['budget']} 5–8" in text
    # a caption knows the size of its pool
    assert "n = 1\u202f234" in text or "n = 1 234" in text


def test_verdict_follows_the_budget(home, monkeypatch):
    assert [verdict(pages, (2, 3)) for pages in (1, 2, 3, 4)] == [
        "short",
        "within",
        "within",
        "long",
    ]
    build_report(home)
    append(section(home, "11"), "\n#pagebreak() x #pagebreak() y #pagebreak() z\n")
    rows = {row["key"]: row for row in build(home)[0]["sections"]}
    assert (rows["conclusion"]["pages"], rows["conclusion"]["verdict"]) == (4, "long")
    assert rows["summary"]["verdict"] == "within"
    assert rows["references"]["verdict"] is None


def test_figures_tables_criteria_and_headline_come_by_themselves(home):
    summary, reader, text = build(home, "en")
    first = text_of(reader, WORDS["en"]["theme1"], WORDS["en"]["theme2"])
    assert "0.833" in first
    assert "0.8333" not in first
    assert "≥ 0.700" in first
    assert "0.123" in first
    assert "Eight images of each class" in first and "Images by pool and class" in first
    assert "Our own (caption missing" in text_of(
        reader, WORDS["en"]["theme2"], WORDS["en"]["theme3"]
    )
    head = text_of(reader, WORDS["en"]["summary"], WORDS["en"]["introduction"])
    assert "Baseline: test accuracy 81.2 %" in head
    assert "[70.0 %, 90.0 %], n = 80" in head
    assert "5.33 ×" in head
    assert "1300 indexed, 1246 usable" in text_of(
        reader, WORDS["en"]["introduction"], WORDS["en"]["theme1"]
    )
    for name in ("He", "Ioffe", "Micikevicius", "Rabanser"):
        assert name in text_of(reader, WORDS["en"]["references"], None)


def test_what_the_text_places_is_not_placed_again(home):
    build_report(home, "en")
    first = section(home, "03")
    first.write_text(first.read_text().replace('#figure-of("theme1_examples")', ""))
    append(
        section(home, "11"),
        '\n#figure-of("theme1_examples", caption: [Mine]) See @fig:theme1_examples.\n',
    )
    _, reader, text = build(home)
    assert text.count("Eight images of each class") == 0 and text.count("Mine") == 1
    assert re.search(
        r"See Figure\s+\d+",
        text_of(reader, WORDS["en"]["conclusion"], WORDS["en"]["references"]),
    )


def test_special_characters_are_printed_as_they_are(home):
    build_report(home, "en")
    (home / "report" / "group.toml").write_text(
        f"title = '{ODD}'\nauthors = ['Zoé {ODD}']\nlang = 'en'\n"
    )
    _, reader, text = build(home)
    parts = ODD.split()
    for page in (
        reader.pages[0].extract_text(),
        text_of(reader, WORDS["en"]["theme1"], WORDS["en"]["theme2"]),
    ):
        assert all(part in page for part in parts)
    assert reader.metadata.title == ODD


def test_sample_images_are_named_on_every_page(home):
    meta = json.loads((home / "exports" / "results.json").read_text())["meta"]
    assert "SAMPLE DATA" not in build(home, "en")[2]
    write_record(home, meta=meta | {"source": "sample"})
    _, reader, _ = build(home)
    assert all("SAMPLE DATA" in page.extract_text() for page in reader.pages)


def test_final_version_hides_budgets_and_still_lists_placeholders(home, capsys):
    summary, _, text = build(home, "en", final=True)
    assert "budget 5–8" not in text
    assert summary["placeholders"]
    assert summary["draft"]
    assert summary["final"]
    assert re.search(
        r"still to be written:\n  report/group.toml:3\n", capsys.readouterr().out
    )


# --- the group's own files


def test_own_text_is_made_once_and_never_overwritten(home, capsys):
    build_report(home, "en")
    made = {
        path: path.read_text()
        for path in (home / "report").rglob("*")
        if path.suffix in (".typ", ".toml", ".bib") and ".build" not in path.parts
    }
    assert len(made) == 13
    assert 'lang = "en"' in (home / "report" / "group.toml").read_text()
    section(home, "04").write_text("")
    append(section(home, "11"), "\nOur last word.\n")
    capsys.readouterr()
    text = build(home, "fr")[2]
    assert "your own texts stay" in capsys.readouterr().out
    assert WORDS["fr"]["theme1"] in text
    assert "Our last word." in text
    assert "What we have not shown" in text
    assert section(home, "04").read_text() == ""
    same = [path for path, before in made.items() if path.read_text() == before]
    assert len(same) == 11
    assert build(home)[0]["lang"] == "en"


def test_placeholders_are_listed_with_file_and_line(home, capsys):
    build_report(home, "en")
    for path in (home / "report" / "sections").glob("*.typ"):
        path.write_text('#import "/report/.build/template.typ": *\n')
    (home / "report" / "group.toml").write_text("authors = ['A']\nlang = 'en'\n")
    with open(section(home, "05"), "a") as file:
        file.write(
            "// #placeholder[no]\n/* #placeholder[\nno] */ `#placeholder[no]`\n\n"
            "Done. #placeholder[why this?]\n#placeholder[\n  and that\n]\n"
        )
    summary, _, _ = build(home)
    file = f"report/sections/{section(home, '05').name}"
    assert summary["placeholders"] == [
        {"file": file, "line": 6, "text": "why this?"},
        {"file": file, "line": 7, "text": "and that"},
    ]
    assert [row["placeholders"] for row in summary["sections"]] == [0] * 4 + [2] + [
        0
    ] * 7
    assert f"  {file}:6  why this?" in capsys.readouterr().out


def finish(home: Path) -> dict:
    """Everything is there and written; returns the captions of the kit."""
    results = json.loads((home / "exports" / "results.json").read_text())
    write_record(
        home,
        **{f"theme{n}": results.get(f"theme{n}", {"inputs": {}}) for n in range(1, 9)},
    )
    captions = toml("captions.toml")
    for name in captions["figures"]:
        shutil.copy(
            home / "exports" / "figures" / "theme2_our_own.png",
            home / "exports" / "figures" / f"{name}.png",
        )
    for name in captions["tables"]:
        (home / "exports" / "tables" / f"{name}.csv").write_text("a,b\n1,2\n")
    build_report(home)
    (home / "report" / "group.toml").write_text("authors = ['A']\n")
    for path in (home / "report" / "sections").glob("*.typ"):
        path.write_text("Written.\n")
    return captions


def test_report_without_gaps_is_complete(home, capsys):
    captions = finish(home)
    summary, _, text = build(home)
    assert not summary["draft"] and "complete: " in capsys.readouterr().out
    assert all(
        caption["fr"].split("{")[0].split()[0] in text
        for caption in captions["figures"].values()
    )


# --- what is broken


def test_syntax_errors_stand_in_their_place_and_the_rest_is_built(home):
    build_report(home, "en")
    lines = [
        append(section(home, "04"), "\n#let x = (1,\n") + 1,
        append(section(home, "05"), "\n#nothing[a]\n") + 1,
    ]
    append(section(home, "11"), "\nThe last word.\n")
    summary, reader, text = build(home)
    names = [f"report/sections/{section(home, start).name}" for start in ("04", "05")]
    assert [(error["file"], error["line"]) for error in summary["errors"]] == list(
        zip(names, lines, strict=True)
    )
    second = text_of(reader, WORDS["en"]["theme2"], WORDS["en"]["theme3"])
    assert f"{names[0]}:{lines[0]}" in second
    assert "unclosed delimiter" in second
    assert "#let x = (1," in second
    assert f"{names[1]}:{lines[1]}" in text
    assert "unknown variable: nothing" in text
    assert "The last word." in text
    assert "Quality of the data" in text
    assert summary["draft"]
    assert len(summary["placeholders"]) > 10


@pytest.mark.parametrize(
    "text, message",
    [
        ("#figure-of(3)", "integer"),
        ('#image("none.png")', "file not found"),
        ("#cite(<zzz>)", "zzz"),
        ("#link(<zzz>)[x]", "zzz"),
        ("#while true {}", "condition is always true"),
    ],
)
def test_other_errors_name_the_line_too(home, text, message):
    build_report(home, "en")
    line = append(section(home, "07"), f"\n{text}\n") + 1
    (error,) = build(home)[0]["errors"]
    assert error["line"] == line
    assert error["file"].endswith("07_theme5_monitoring.typ")
    assert message in error["message"]


def test_file_in_another_encoding_is_named(home):
    build_report(home, "en")
    section(home, "02").write_bytes(b"caf\xe9\n")
    (error,) = build(home)[0]["errors"]
    assert error["file"].endswith("02_introduction.typ") and "UTF-8" in error["message"]


def test_reference_that_leads_nowhere_is_marked_and_listed(home):
    build_report(home, "en")
    line = (
        append(
            section(home, "03"),
            "\nSee @nowhere. And @gretton2012mmd, @sec:theme3, me\\@mail.org.\n",
        )
        + 1
    )
    summary, reader, text = build(home)
    (error,) = summary["errors"]
    assert (error["line"], error["message"]) == (line, "@nowhere leads nowhere")
    assert f"03_theme1_data_analysis.typ:{line}" in text
    assert "Gretton" in text_of(reader, "References", None)
    assert re.search(r"Section\s+5", text)


def test_broken_bibliography_gives_way_to_that_of_the_kit(home):
    build_report(home, "en")
    (home / "report" / "references.bib").write_text("@article{mine,\n  title = {open\n")
    append(section(home, "03"), "\nSee @mine.\n")
    summary, reader, text = build(home)
    assert [error["file"].split("/")[-1] for error in summary["errors"]] == [
        "references.bib",
        "03_theme1_data_analysis.typ",
    ]
    assert "Rabanser" in text_of(reader, "References", None)
    assert "references.bib cannot be read" in text
    assert (
        home / "report" / "references.bib"
    ).read_text() == "@article{mine,\n  title = {open\n"


def test_broken_title_page_is_said(home):
    build_report(home, "en")
    (home / "report" / "group.toml").write_text('title = "A\nauthors = []\n')
    summary, _, text = build(home, "en")
    assert summary["errors"][0]["file"] == "report/group.toml"
    assert "group.toml cannot be read" in text


def test_missing_and_damaged_files_become_boxes(home):
    build_report(home, "en")
    append(
        section(home, "11"),
        '\n#figure-of("theme1_gone") @fig:theme1_gone #table-of("theme7_gone")\n'
        '#image-of("shot.png", caption: [Shot])\n',
    )
    (home / "exports" / "figures" / "theme1_examples.png").write_bytes(b"no picture")
    (home / "exports" / "tables" / "theme1_pools.csv").write_text("a,b\n1\n")
    summary, _, text = build(home)
    for sentence in (
        (
            "theme1_examples.png is damaged: run again"
            " notebooks/theme1_data_analysis.ipynb"
        ),
        "theme1_pools.csv is damaged: run again notebooks/theme1_data_analysis.ipynb",
        "theme1_gone.png is missing: run notebooks/theme1_data_analysis.ipynb",
        "theme7_gone.csv is missing: run notebooks/theme7_retraining.ipynb",
        "theme2_history.png is missing: run notebooks/theme2_baseline_model.ipynb",
    ):
        assert sentence in text and sentence in summary["missing"]
    assert "report/images/shot.png does not exist" in text and not summary["errors"]


def test_own_picture_is_placed(home):
    build_report(home, "en")
    (home / "report" / "images").mkdir()
    shutil.copy(
        home / "exports" / "figures" / "theme2_our_own.png",
        home / "report" / "images" / "shot.png",
    )
    before = sum(len(page.images) for page in build(home)[1].pages)
    append(
        section(home, "07"),
        '\n#image-of("shot.png", caption: [Shot]) See @img:shot.png.\n',
    )
    summary, reader, text = build(home)
    assert sum(len(page.images) for page in reader.pages) == before + 1
    assert "does not exist" not in text and not summary["errors"]


def picture(kind: str, mode: str = "RGB", size=(60, 40), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 128).save(buffer, kind, **options)
    return buffer.getvalue()


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9"/>'
PRINTED = {
    "a JPEG of a messenger.png": picture("JPEG"),
    "a PNG.jpg": picture("PNG"),
    "CAPTURE.PNG": picture("PNG"),
    "Photo.JPG": picture("JPEG", "CMYK"),
    "photo.jfif": picture("JPEG"),
    "page.webp": picture("WEBP"),
    "old.GIF": picture("GIF"),
    "drawing.SVG": SVG,
    "plot.pdf": picture("PDF"),
    "no ending": picture("PNG"),
    "deep.png": picture("PNG", "I;16"),
    "week1/shot.png": picture("PNG"),
}
REFUSED = {
    "iphone.png": (b"\0\0\0\x18ftypheic" + bytes(50), "format HEIC"),
    "scan.bmp": (picture("BMP"), "format BMP"),
    "scan.TIF": (picture("TIFF"), "format TIFF"),
    "empty.png": (b"", "an empty file"),
    "poster.png": (picture("PNG", "1", size=(20_000, 20_000)), "too many pixels"),
    "words.png": (b"no picture", "this is no picture"),
    "cut.png": (picture("PNG")[:80], "image file is truncated"),
    "cut.jpg": (picture("JPEG")[:-40], "image file is truncated"),
    "broken.pdf": (b"%PDF-1.4 and nothing", "failed to load PDF"),
    "broken.svg": (b"<svg", "failed to parse SVG"),
}


def test_a_picture_is_known_by_what_it_holds(home):
    build_report(home, "en")
    contents = PRINTED | {name: content for name, (content, _) in REFUSED.items()}
    for name, content in contents.items():
        path = home / "report" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    calls = [
        f'#image-of("{name}", caption: [{name}])' for name in [*contents, "gone.png"]
    ]
    append(section(home, "07"), "\n" + "\n\n".join(calls) + "\n")
    summary, _, text = build(home)
    said = [line for line in summary["missing"] if "report/images/" in line]
    assert len(said) == len(REFUSED) + 1 and not summary["errors"]
    for name, (_, why) in REFUSED.items():
        told = f"report/images/{name} cannot be printed ({why}"
        (line,) = [line for line in said if line.startswith(told)]
        assert line.endswith(": save this picture as PNG or JPEG.") and line in text
    assert said[-1] == "report/images/gone.png does not exist."


@pytest.mark.parametrize(
    "called",
    [
        "capture.png",
        "CAPTURE.PNG",
        "week1\\cafe\u0301.jpg",  # a single backslash, as Windows shows it
        "week1\\\\café.jpg",
        "images/week1/CAFÉ.JPG",
    ],
)
def test_a_picture_is_found_as_another_system_calls_it(home, called):
    build_report(home, "en")
    for name in ("Capture.png", "week1/Café.jpg"):
        path = home / "report" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture("PNG"))
    before = sum(len(page.images) for page in build(home)[1].pages)
    append(section(home, "07"), f'\n#image-of("{called}")\n')
    summary, reader, _ = build(home)
    assert sum(len(page.images) for page in reader.pages) == before + 1
    assert "report/images" not in " ".join(summary["missing"])


def test_a_picture_that_is_not_there_makes_a_draft_of_a_finished_report(home, capsys):
    finish(home)
    assert not build(home)[0]["draft"]
    append(
        section(home, "11"),
        '#import "/report/.build/template.typ": *\n#image-of("pas-la.png")\n',
    )
    assert build(home)[0]["draft"]
    assert "pas-la.png n'existe pas" in capsys.readouterr().out.split("missing:")[1]
    (home / "report" / "images").mkdir()
    (home / "report" / "images" / "pas-la.png").write_bytes(picture("JPEG"))
    assert not build(home)[0]["draft"]


def test_figures_of_the_group_s_own_may_have_any_format(home):
    folder = home / "exports" / "figures"
    (folder / "theme2_ours.JPG").write_bytes(picture("PNG"))
    (folder / "theme2_scan.png").write_bytes(picture("TIFF"))
    summary, reader, text = build(home, "en")
    second = text_of(reader, WORDS["en"]["theme2"], WORDS["en"]["theme3"])
    assert "Ours (caption missing" in second and "theme2_ours" not in second
    told = "exports/figures/theme2_scan.png cannot be printed (format TIFF)"
    assert [line for line in summary["missing"] if line.startswith(told)]


@pytest.mark.parametrize(
    "saved",
    [
        "modèle,précision\nA,0.5\nB,0.25\n".encode("utf-8-sig"),
        "modèle,précision\r\nA,0.5\r\nB,0.25\r\n".encode("cp1252"),
        "modèle\tprécision\nA\t0.5\nB\t0.25\n".encode("utf-16"),
        "modèle;précision\nA;0.5\nB;0.25\n".encode("cp1252"),
        "sep=;\n\nmodèle;précision\nA;0.5\n\nB;0.25\n".encode(),
        '"modèle";"précision"\n"A";"0.5"\nB;0.25'.encode(),
    ],
    ids=["mark", "code page", "UTF-16", "semicolons", "sep=", "quotes"],
)
def test_a_table_is_read_whatever_program_saved_it(tmp_path, saved):
    (tmp_path / "a.csv").write_bytes(saved)
    rows = report_tables.read_table(tmp_path / "a.csv", WORDS["fr"])
    assert rows == [["modèle", "précision"], ["A", "0.5"], ["B", "0.25"]]


@pytest.mark.parametrize(
    "saved, why",
    [
        (b"", "an empty file"),
        (b"PK\x03\x04\0\0 a spreadsheet", "this is no text"),
        (b"a,b\n1,2\n\n1\n", "line 4: 1 cells instead of 2"),
        (b"a;b\n1;2;3\n", "line 2: 3 cells instead of 2"),
        (b'a,"b\n1,2\n', "unexpected end of data"),  # a quote that nobody closed
    ],
)
def test_a_table_of_the_group_s_own_is_blamed_on_no_notebook(home, saved, why):
    (home / "exports" / "tables" / "theme2_mine.csv").write_bytes(saved)
    summary, _, text = build(home, "en")
    told = f"exports/tables/theme2_mine.csv cannot be printed ({why}): correct this"
    (line,) = [line for line in summary["missing"] if line.startswith(told)]
    assert line in text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "utf-16"])
def test_title_page_is_read_whatever_editor_saved_it(home, encoding):
    build_report(home, "fr")
    toml_ = 'title = "Étude"\r\nauthors = ["Zoé Œuvré"]\r\nlang = "en"\r\n'
    (home / "report" / "group.toml").write_bytes(toml_.encode(encoding))
    summary, reader, _ = build(home)
    assert (summary["lang"], summary["errors"]) == ("en", [])
    assert all(
        word in reader.pages[0].extract_text() for word in ("Étude", "Zoé Œuvré")
    )


@pytest.mark.parametrize(
    "line, lang, faults",
    [
        ("lang = 'EN'", "en", 0),
        ("lang = 'English'", "en", 0),
        ("lang = 'anglais'", "en", 0),
        ("lang = ' en_GB '", "en", 0),
        ("lang = 'Français'", "fr", 0),
        ("lang = 'fran\u0063\u0327ais'", "fr", 0),
        ("lang = en", "en", 1),  # no TOML, but clear
        ("lang = 'en'\ntitle = \"open", "en", 1),
        ("# lang = 'en'", "fr", 0),
        ("lang = ''", "fr", 0),
        ("lang = 'Deutsch'", "fr", 1),
    ],
)
def test_language_is_what_people_write(home, line, lang, faults):
    build_report(home, "fr")
    (home / "report" / "group.toml").write_text(f"authors = ['A']\n{line}\n")
    summary = build(home)[0]
    assert (summary["lang"], len(summary["errors"])) == (lang, faults)
    if "Deutsch" in line:
        (error,) = summary["errors"]
        assert (error["file"], error["line"]) == ("report/group.toml", 2)
        assert "'Deutsch' is unknown: write 'fr' or 'en'" in error["message"]


def test_characters_that_no_font_has_are_named_with_their_place(home):
    build_report(home, "en")
    (home / "report" / "group.toml").write_text(
        "lang = 'en'\nauthors = ['李雷', 'Zoé 😀', 'Łukasz', 'Ελένη', 'Юлия']\n",
        encoding="utf-8",
    )
    line = append(section(home, "11"), "\n// 囧\nA sad face: 囧 → done ✓ α\n") + 2
    (home / "exports" / "tables" / "theme2_mine.csv").write_text("a,b\n1,漢\n")
    summary, reader, _ = build(home)
    places = {(e["file"], e["line"]): e["message"] for e in summary["errors"]}
    assert {place: set(re.findall(r"U\+(\w+)", m)) for place, m in places.items()} == {
        ("report/group.toml", 2): {"674E", "96F7", "1F600"},
        (f"report/sections/{section(home, '11').name}", line): {"56E7"},
        ("exports/tables/theme2_mine.csv", 2): {"6F22"},
    }
    assert summary["draft"]
    assert "U+1F600" in reader.pages[0].extract_text()


def test_a_font_of_the_group_s_own_is_used(home):
    build_report(home, "en")
    append(section(home, "11"), "\nTifinagh: ⵌ\n")
    assert "U+2D4C" in build(home)[0]["errors"][0]["message"]
    (home / "report" / "fonts").mkdir()
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    shutil.copy(fonts / "DejaVuSans.ttf", home / "report" / "fonts")
    assert build(home)[0]["errors"] == []


def test_stale_and_missing_themes_are_said_in_their_section(home):
    write_record(home, theme2={"inputs": {"checkpoints/baseline.pth": "0" * 16}})
    summary, reader, _ = build(home, "en")
    second = text_of(reader, WORDS["en"]["theme2"], WORDS["en"]["theme3"])
    assert "Stale results: checkpoints/baseline.pth" in second
    assert "has not run: run notebooks/theme3_optimization.ipynb" in text_of(
        reader, WORDS["en"]["theme3"], WORDS["en"]["theme4"]
    )
    assert len(summary["notices"]) == 7


def test_without_a_record_nothing_is_touched(tmp_path, home, capsys):
    assert cli.main(["report", "--home", str(tmp_path / "empty")]) == 2
    assert "results.json is missing: run notebooks/theme1" in capsys.readouterr().err
    assert not (tmp_path / "empty").exists()
    build_report(home)
    before = (home / "report" / "report.pdf").read_bytes()
    (home / "exports" / "results.json").write_text('{"schema": 1, "meta"')
    assert cli.main(["report", "--home", str(home)]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert (home / "report" / "report.pdf").read_bytes() == before


def test_failed_build_leaves_the_old_pdf(home, capsys, monkeypatch):
    assert cli.main(["report", "--home", str(home), "--lang", "en"]) == 0
    before = (home / "report" / "report.pdf").read_bytes()
    monkeypatch.setattr(typeset, "main_text", lambda draft: "#nothing()")
    assert cli.main(["report", "--home", str(home)]) == 2
    assert "unknown variable: nothing" in capsys.readouterr().err
    assert (home / "report" / "report.pdf").read_bytes() == before


# --- captions, words, numbers, tables


@pytest.mark.parametrize("lang", ["fr", "en"])
def test_templates_place_every_figure_and_table_of_the_kit_once(lang):
    texts = [
        path.read_text("utf-8")
        for path in sorted((KIT / "report" / "templates" / lang).glob("*.typ"))
    ]
    text = without_comments("\n".join(texts))
    for kind, call in (("figures", "figure-of"), ("tables", "table-of")):
        placed = re.findall(rf'#{call}\("([^"]+)"\)', text)
        assert sorted(placed) == sorted(toml("captions.toml")[kind])


def stored_names(path: Path, call: str) -> set[str]:
    """The names that a notebook gives to what it stores with this call."""
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join(
        line
        for cell in cells
        if cell["cell_type"] == "code"
        for line in "".join(cell["source"]).splitlines()
        if not line.startswith(("%", "!"))
    )
    return {
        node.args[2].value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(call)
    }


def test_captions_name_exactly_what_the_notebooks_store():
    stored = {"figures": set(), "tables": set()}
    for path in (KIT / "notebooks").glob("theme*.ipynb"):
        for kind, call in (("figures", "save_figure"), ("tables", "save_table")):
            names = stored_names(path, call)
            stored[kind] |= {f"{path.name[:6]}_{name}" for name in names}
    captions = toml("captions.toml")
    assert {kind: set(captions[kind]) for kind in stored} == stored
    assert set(captions["headline"]) == set(HEADLINE_TAGS)
    everything = [entry for kind in captions.values() for entry in kind.values()]
    assert all(
        entry["fr"].strip() and entry["en"].strip() and entry["fr"] != entry["en"]
        for entry in everything
    )


def test_both_languages_have_the_same_words_and_templates():
    assert WORDS["fr"].keys() == WORDS["en"].keys()
    wanted = {part.file for part in SECTIONS if part.file} | {"group.toml"}
    for lang in ("fr", "en"):
        assert {
            path.name for path in (KIT / "report" / "templates" / lang).iterdir()
        } == wanted


def test_columns_are_read_as_what_they_hold():
    rows = [
        ["0", "216.0", "0.9", "abc123", "True", "", "0.123456"],
        ["1", "", "1.0", "51170e95", "False", "x", "many"],
    ]
    shown = report_tables.layout(
        ["", "n", "p50_ms", "hash", "ok", "note", "value"], rows, WORDS["en"], "f.csv"
    )
    assert shown["header"] == ["n", "p50 (ms)", "hash", "ok", "note", "value"]
    assert shown["rows"] == [
        ["216", "0.900", "abc123", "yes", "", "0.123"],
        ["", "1.00", "51170e95", "no", "x", "many"],
    ]
    assert shown["aligns"] == ["right", "right", "left", "left", "left", "left"]
    assert report_tables.layout(["a", "b"], [], WORDS["en"], "f.csv")["rows"] == []


def test_long_tables_are_cut_and_say_so():
    rows = [["0.123"]] * 100
    cut = report_tables.layout(["a"], rows, WORDS["en"], "t/f.csv")
    assert len(cut["rows"]) == report_tables.MOST_ROWS
    assert cut["note"] == "The first 60 of 100 rows; the whole table is in t/f.csv."


def test_wide_tables_turn_their_page_and_lose_nothing(home):
    wide = ",".join(f"column{i}" for i in range(18)) + "\n" + ",".join(["0.1234"] * 18)
    text = "what,why\nshort," + "a reason that goes on and on " * 8
    for name, table in (("wide", wide), ("text", text)):
        (home / "exports" / "tables" / f"theme2_{name}.csv").write_text(table)
    pages = build(home, "en")[1].pages
    shapes = {}
    for page in pages:
        for mark in ("column0 column1 ", "a reason that", "train 5 1 234"):
            if mark in " ".join(page.extract_text().split()):
                shapes[mark] = page.mediabox.width > page.mediabox.height
                if shapes[mark]:
                    assert page.extract_text().count("0.123") == 18
    assert shapes == {
        "column0 column1 ": True,
        "a reason that": False,
        "train 5 1 234": False,
    }
