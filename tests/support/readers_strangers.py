"""Readers of strangers' files: zips, notebooks, submissions, PDFs, texts."""

import io
import json
import shutil
from pathlib import Path, PurePosixPath

from hypothesis import strategies as st

import utils
from kit.archive import ArchiveError, unpack
from kit.promotion import AUDIT_COLUMNS
from support.fuzzing import is_sentence, put, reader
from support.hostile import (
    BROKEN_ZIPS,
    PICTURES,
    broken,
    broken_csv,
    broken_json,
    picture,
    zipped,
)
from support.readers_home import RECORD, STORY, onnx_file
from support.readers_logs import AUDITS, first_line
from tools.grading import pdf, static, submission
from tools.report import build as report
from tools.shared import parsing
from tools.shared import secrets as leaks


@reader(lambda kit: BROKEN_ZIPS, quick=80, many=800)
def dataset_zips(kit, case):
    archive, target = put(kit.home / "raw.zip", case), kit.home / "raw" / "chest_xray"
    try:
        links = unpack(archive, target)
        assert target.is_dir()
        assert not any(path.is_symlink() for path in target.rglob("*"))
        assert all(isinstance(name, PurePosixPath) for name in links)
    except ArchiveError as error:  # whose callers say what to do
        assert not target.exists()
        raise utils.CourseError(str(error)) from error
    finally:
        shutil.rmtree(kit.home / "raw", ignore_errors=True)


@reader(
    lambda kit: BROKEN_ZIPS,
    quick=60,
    many=800,
    examples=lambda kit: [
        good := zipped([("utils.py", b"", 0, 0), ("notebooks/", b"", 0, 0)]),
        good[:26] + b"9" * 5000 + good[26:],
    ],
)
def submission_zips(kit, case):
    archive, work = put(kit.home / "hand-in.zip", case), kit.home / "work"
    try:
        opened = submission.open_submission(archive, work)
        assert work in opened.root.parents or opened.root.parent == work
        assert not any(path.is_symlink() for path in work.rglob("*"))
    finally:
        shutil.rmtree(work, ignore_errors=True)


# --- strangers' files: notebooks, submissions, PDFs


CELL = {
    "cell_type": "code",
    "source": ["import torch\n", "%time x = 1"],
    "execution_count": 1,
    "metadata": {"tags": ["a"]},
    "outputs": [{"output_type": "stream", "name": "stdout", "text": "key = 'a'"}],
}
NOTEBOOK = {
    "cells": [
        CELL,
        {
            "cell_type": "markdown",
            "source": "# Theme 1",
            "metadata": {},
            "attachments": {},
        },
    ],
    "metadata": {"kernelspec": {"name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@reader(lambda kit: broken_json(NOTEBOOK), quick=80, many=600)
def notebooks(kit, case):
    path = Path("theme1_data_analysis.ipynb")
    put(kit.home / path, case)
    assert all(isinstance(pair, tuple) for pair in leaks.secrets_in(kit.home, path))
    for cell in parsing.read_notebook(kit.home, path).cells:
        assert isinstance(cell.source, str)
        assert isinstance(parsing.output_text(cell), str)
        try:
            parsing.parse_cell(cell.source)
        except (*parsing.NOT_PYTHON, RuntimeError):
            # what its callers turn into a finding
            pass


FOREIGN = {
    "exports/results.json": broken_json(RECORD),
    "course.json": broken_json(STORY),
    "report/report.json": broken_json({"pages": 3, "placeholders": [], "errors": []}),
    "notebooks/theme1_data_analysis.ipynb": broken_json(NOTEBOOK),
    "requirements.txt": broken(b"torch>=2.6\nnumpy==2.0\n"),
    "utils.py": broken(
        b"import numpy as np\n\n\ndef f(x):\n    return np.random.default_rng(0)\n"
    ),
    "exports/audit.csv": broken_csv(AUDITS, first_line(AUDIT_COLUMNS)),
    "exports/model.onnx": broken(onnx_file()),
    "report/report.pdf": broken(
        b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
    ),
}


@reader(
    lambda kit: st.dictionaries(
        st.sampled_from(list(FOREIGN)), st.none(), min_size=1, max_size=4
    ).flatmap(
        lambda names: st.fixed_dictionaries({name: FOREIGN[name] for name in names})
    ),
    quick=25,
    many=350,
)
def submissions(kit, case):
    root = kit.home / "group"
    try:
        put(
            root / "notebooks" / "theme2_baseline_model.ipynb",
            json.dumps(NOTEBOOK).encode(),
        )
        for name, content in case.items():
            put(root / name, content)
        findings = static.checks(submission.open_submission(root, kit.home / "work"))
        assert findings and all(is_sentence(finding.says) for finding in findings)
        assert not [finding.says for finding in findings if "broke off" in finding.says]
    finally:
        shutil.rmtree(root)


def small_pdf() -> bytes:
    import pypdf

    writer, buffer = pypdf.PdfWriter(), io.BytesIO()
    for title in ("Introduction", "Theme 1: Data Analysis"):
        page = writer.add_blank_page(100, 100)
        writer.add_outline_item(title, page.page_number)
    writer.write(buffer)
    return buffer.getvalue()


@reader(lambda kit: broken(small_pdf()), quick=80, many=350)
def pdfs(kit, case):
    pages, headings = pdf.read_pdf(case)
    assert isinstance(pages, int)
    assert all(isinstance(title, str) for title, _ in headings)


# --- the report: the group's own files and what the notebooks left


GROUP = (
    b'title = "Notre rapport"\nauthors = ["A", "B"]\ndate = "2026-03-01"\nlang = "fr"\n'
)
TABLE = "name,n,share\na,1,0.123456\nb,2,0.5\n"


@reader(
    lambda kit: st.tuples(
        broken(GROUP), broken_csv(TABLE), PICTURES, broken_json(RECORD)
    ),
    quick=8,
    many=120,
    examples=lambda kit: [
        (GROUP, TABLE.encode(), figure, json.dumps(RECORD).encode())
        for figure in (
            picture("PNG", "RGB", (9, 9)),
            picture("TIFF", "L", (9, 9)),
            b"P6 9999999 9999999 255\n",
        )
    ],
)
def report_inputs(kit, case):
    home = kit.home / "reported"
    names = (
        "report/group.toml",
        "exports/tables/theme1_pools.csv",
        "exports/figures/theme1_samples.png",
        "exports/results.json",
    )
    for name, content in zip(names, case, strict=True):
        put(home / name, content)
    summary = report.build(home)
    assert summary["pages"] > 0
    assert (home / "report" / "report.pdf").read_bytes().startswith(b"%PDF")


SECTION = (
    b'= Texte\n\nUne phrase. @fig:theme1_samples #figure-of("theme1_samples")'
    b" placeholder[rien]\n"
)


@reader(
    lambda kit: st.tuples(
        broken(SECTION), broken(b"@article{a, title={T}, author={A}, year=2020}\n")
    ),
    quick=6,
    many=120,
)
def report_texts(kit, case):
    home, (section, library) = kit.home / "written", case
    put(home / "exports" / "results.json", json.dumps(RECORD).encode())
    put(home / "report" / "sections" / "03_theme1_data_analysis.typ", section)
    put(home / "report" / "references.bib", library)
    assert report.build(home)["pages"] > 0
    assert (
        home / "report" / "sections" / "03_theme1_data_analysis.typ"
    ).read_bytes() == section
