"""Hand-ins that would silence a check: each ends within its time and memory, with a
report that says what was not read.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.submissions import RECORD, add_cell, edit_json, huge, of, put

from tools.grading import parts, workplace
from tools.grading.check import main
from tools.grading.static import look as looking
from tools.grading.submission import open_submission
from tools.shared.foreign import MAX_NESTED, SubmissionError, read_json
from tools.shared.parsing import parse_cell, read_notebook

linux = pytest.mark.skipif(sys.platform != "linux", reason="parts run beside on Linux")


# --------------------------------------------------------------------------------------
# Parts
# --------------------------------------------------------------------------------------


def well():
    yield from ("one", {"two": ["\udce9"]})


def hangs():
    yield "before"
    time.sleep(60)


def swallows():
    yield len(bytearray(1 << 30))


def crashes():
    yield "before"
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does for want of memory


def talks():
    while True:
        yield "x" * 1000


def raises():
    yield "before"
    raise KeyError("\x1b[31m")


def digs():
    yield len(json.dumps(deep(100_000)))


def deep(levels: int) -> list:
    values = []
    for _ in range(levels):
        values = [values]
    return values


BREAKS = {
    hangs: "it took more than 1 s",
    swallows: "GiB of memory",
    crashes: "it ended its process",
    talks: "MiB to say",
    raises: r"KeyError: '\x1b[31m'",
    digs: "RecursionError",
    lambda: 3: "TypeError",
}


@linux
@pytest.mark.parametrize("broken", BREAKS)
def test_a_part_that_breaks_off_says_why_and_the_others_go_on(broken, monkeypatch):
    monkeypatch.setattr(parts, "MEMORY", 1 << 28)
    monkeypatch.setattr(parts, "SAID", 1 << 16)
    todo = {"first": well, "broken": broken, "last": well}
    (_, *first), (name, values, why), (_, *last) = parts.each(todo, 1)
    assert first == last == [["one", {"two": ["\udce9"]}], ""]
    assert name == "broken" and BREAKS[broken] in why
    assert values[:1] == (
        ["before"] if broken in (hangs, crashes, raises) else values[:1]
    )


@linux
def test_parts_end_together_in_time_and_leave_no_process(monkeypatch):
    monkeypatch.setattr(parts, "TOGETHER", 1)
    monkeypatch.setattr(parts, "LEAST", 0.1)
    began = time.monotonic()
    found = list(parts.each(dict.fromkeys("abcde", hangs), 0.8))
    assert time.monotonic() - began < 3
    assert [why for *_, why in found][2:] == ["it took more than 0 s"] * 3
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_without_a_process_beside_errors_are_caught_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    found = list(parts.each({"a": raises, "b": well}))
    assert [values for _, values, _ in found][0] == ["before"]
    assert "KeyError" in found[0][2] and found[1][2] == ""


# --------------------------------------------------------------------------------------
# Hand-ins
# --------------------------------------------------------------------------------------


def nested(levels: int):
    """Folders in each other, as a cell makes them: no path reaches the last one."""

    def damage(root):
        at = os.open(root, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir("a" * 9, dir_fd=at)
            inner = os.open("a" * 9, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = inner
        os.close(at)

    return damage


def figure(value: str):
    def damage(root):
        text = (root / RECORD).read_text()
        new = text.replace('"loader_speedup": 12.0', f'"loader_speedup": {value}')
        assert new != text
        (root / RECORD).write_text(new)

    return damage


def pipe(path):
    def damage(root):
        (root / path).unlink(missing_ok=True)
        os.mkfifo(root / path)

    return damage


def link(path, target):
    def damage(root):
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)

    return damage


def modules(count: int, text: str):
    def damage(root):
        for number in range(count):
            put(f"src{number}/m.py", text)(root)

    return damage


SILENCING = [
    (nested(1900), "files", "human", "nested too deep"),
    (figure("[" * 600 + "]" * 600), "record", "fail", "nested more than 100 deep"),
    (figure("[" * 90_000 + "]" * 90_000), "record", "fail", "damaged"),
    (pipe("report/report.json"), "files", "human", "Neither a file nor a folder"),
    (pipe("exports/audit.csv"), "files", "human", "Neither a file nor a folder"),
    (pipe(RECORD), "record", "fail", "There is no record"),
    (link("report/report.json", "/dev/zero"), "files", "human", "not followed"),
    (
        put("report/report.json", "[" + "[]," * 900_000 + "[]]"),
        "report",
        "note",
        "damaged",
    ),
    (modules(600, "import numpy\n"), "kit files", "note", "600 files of the group"),
]


@pytest.mark.parametrize("damage, check, verdict, words", SILENCING)
def test_no_hand_in_silences_its_check(damage, check, verdict, words, group, tmp_path):
    damage(group)
    began = time.monotonic()
    try:
        assert main([str(group), "--output", str(tmp_path / "out")]) in (0, 1)
        assert time.monotonic() - began < 20
        report = json.loads((tmp_path / "out" / "check.json").read_text())
        found = [
            (row["check"], row["verdict"], row["says"]) for row in report["findings"]
        ]
        assert words in of(found, check, verdict)
        assert not [says for *_, says in found if "broke off" in says]
        assert report["criteria"] and report["bonuses"]
    finally:
        workplace.remove(group)


def test_a_check_that_hangs_is_a_finding_of_the_report(group, tmp_path, monkeypatch):
    """Whatever it is that nobody thought of."""
    from tools.grading import static, verdict

    monkeypatch.setattr(parts, "SECONDS", 6)
    monkeypatch.setitem(static.CHECKS, "seeds", lambda look: time.sleep(60))
    monkeypatch.setattr(verdict, "bonuses", lambda submission: crashes())
    main([str(group), "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    broke = [row["says"] for row in report["findings"] if "broke off" in row["says"]]
    assert len(broke) == 2 and "took more than 6 s" in " ".join(broke)
    assert report["criteria"] and report["passes"] > 5


# --------------------------------------------------------------------------------------
# Readers
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["[", '{"a":'])
@pytest.mark.parametrize("levels", [MAX_NESTED - 1, MAX_NESTED + 1, 900, 100_000])
def test_json_that_is_nested_too_deep_is_refused(kind, levels, tmp_path):
    end = "]" if kind == "[" else "}"
    text = kind * levels + ("" if kind == "[" else "1") + end * levels
    (tmp_path / "a.json").write_text(text)
    if levels < MAX_NESTED:
        assert read_json(tmp_path, Path("a.json"))
    else:
        with pytest.raises(SubmissionError, match="nested too deep"):
            read_json(tmp_path, Path("a.json"))


@pytest.mark.parametrize("line", ["a?", "!ls", "%time", "?a", "x = !ls", "x = %pwd"])
def test_a_long_cell_of_magics_is_refused_at_once(line):
    began = time.monotonic()
    with pytest.raises(ValueError, match="some are no plain Python"):
        parse_cell(f"{line}\n" * 11_000)
    assert time.monotonic() - began < 2
    assert parse_cell(f"{line}\nx = 1").body


def test_more_python_than_fits_into_memory_is_named(group, look, monkeypatch):
    monkeypatch.setattr(looking, "MAX_PARSED", 3000)
    add_cell(group, "x = [" + "a," * 3000 + "]")
    says = of(look(group, "notebooks"), "notebooks", "human")
    assert "MiB of reading were over" in says and "cells or modules" in says


def test_a_check_with_too_much_to_say_says_that_it_broke_off(group, monkeypatch):
    """However many findings it has: none of them hides that there would be more."""
    from tools.grading import static

    monkeypatch.setattr(parts, "SAID", 1 << 14)
    many = {f"figure {number}": 1 for number in range(1000)}
    edit_json(group / RECORD, lambda record: record["headline"].update(many))
    found = static.checks(open_submission(group, group))
    told = [each.says for each in found if each.check == "record"]
    assert len(told) > 10
    assert [says for says in told if "broke off (it had more than" in says]


def test_one_huge_module_hides_no_other(group, look):
    huge("aaa.py", 100)(group)
    put("utils.py", "import seaborn\n")(group)
    found = look(group)
    assert "aaa.py has 100 MiB" in of(found, "required files", "human")
    assert "seaborn is imported" in of(found, "environment")


INJECTED = [
    ("SEED = 42\nHOME = '/home/me'\nDRIVE = False", True),
    ("SEED: int = 42", False),
    ("import seaborn", False),
    ("SEED = 42; import seaborn", False),
    ("SEED = print('x')", False),
    ("accuracy = 0.9", False),
    ("utils.SEED = 1", False),
    ("SEED = 42\n" + "#" * 200_000, False),
    ("!ls", False),
    ("x\0", False),
]


@pytest.mark.parametrize("source, injected", INJECTED)
def test_only_parameters_are_taken_for_parameters(source, injected, tmp_path):
    """Code that calls itself injected is read like any other."""
    tags = {"tags": ["injected-parameters", "other"]}
    cell = {"cell_type": "code", "source": source, "metadata": tags}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    (cell,) = read_notebook(tmp_path, Path("a.ipynb")).cells
    assert ("injected-parameters" in cell.tags) is injected and "other" in cell.tags


def test_code_in_a_cell_of_parameters_is_judged(group, look):
    tags = {"metadata": {"tags": ["injected-parameters"]}}
    add_cell(group, "import seaborn", **tags)
    assert "seaborn is imported" in of(look(group, "environment"), "environment")


def test_speedup_that_its_own_table_contradicts(group, look):
    rows = [
        {"backend": "PyTorch eager", "batch": 1, "p50_ms": 4.0, "speedup": 1.0},
        {"backend": "ONNX Runtime fp32", "batch": 1, "p50_ms": 1.0, "speedup": 4.4},
        {"backend": "ONNX Runtime int8", "batch": 1, "p50_ms": 1.0, "speedup": 16.0},
        {"backend": "TensorRT", "batch": 32, "p50_ms": 1.0, "speedup": 99.0},
    ]

    def told(record):
        record["theme4"]["benchmark"] = rows
        record["headline"] |= {"ort_speedup_b1": 4.4, "int8_speedup_b1": 16.0}

    edit_json(group / RECORD, told)
    (says,) = of(look(group, "record"), "record").splitlines()
    assert "ONNX Runtime int8, batch 1 has a speedup of 16, and 4 by its" in says


# --------------------------------------------------------------------------------------
# The place of work
# --------------------------------------------------------------------------------------


def test_nothing_is_left_of_the_place_of_work(tmp_path, monkeypatch):
    monkeypatch.setattr(workplace.tempfile, "tempdir", str(tmp_path))
    with workplace.workplace() as place:
        nested(1500)(place)
        put("a/b/c/d/e.txt", "x")(place)
        (place / "a" / "link").symlink_to("/usr")
        (place / "a" / "b").chmod(0)
        os.mkfifo(place / "a" / "pipe")
    assert list(tmp_path.iterdir()) == [] and Path("/usr").exists()


KILLED = """
import sys, time
from tools.grading.workplace import workplace
with workplace() as place:
    (place / "file").write_text("x")
    print(place, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_check_left_goes_with_the_next(tmp_path, monkeypatch):
    kit = Path(workplace.__file__).parents[2]
    command = [sys.executable, "-c", KILLED]
    here = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(kit)}
    with subprocess.Popen(
        command, env=here, stdout=subprocess.PIPE, text=True
    ) as other:
        place = Path(other.stdout.readline().strip())
        monkeypatch.setattr(workplace.tempfile, "tempdir", str(tmp_path))
        workplace.sweep()
        assert (place / "file").exists()  # it is still at work
        other.kill()
    workplace.sweep()
    assert not place.exists()
