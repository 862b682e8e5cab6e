"""course.py run: what it prints when all is well, and when a cell fails."""

import shutil

import nbformat
import pytest

from tools.notebooks import run, timing

pytestmark = pytest.mark.course


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A kit of two notebooks: the first writes a record, the second fails in its second
    cell.
    """
    (tmp_path / "notebooks").mkdir()
    good = (
        "import json, pathlib\nhome = pathlib.Path(HOME)\n(home /"
        " 'exports').mkdir(exist_ok=True, parents=True)\n"
    )
    good += (
        "rows = [{'name': 'it ran', 'value': 0.75, 'target': '> 0.7', 'passed':"
        " True}]\n(home / 'exports/results.json').write_text(json.dumps({'meta':"
        " {'hardware': 'test', 'source': 'sample'}, 'criteria': {'theme1': rows},"
        " 'headline': {'baseline_test_accuracy': 0.75, 'gate_passed': True}}))"
    )
    for name, cells in {
        "theme1_good": [good],
        "theme2_bad": ["x = 1", "raise ValueError('the dog ate it')"],
    }.items():
        kernel = {"name": "python3", "display_name": "", "language": "python"}
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        parameters = nbformat.v4.new_code_cell("HOME = None")
        parameters.metadata["tags"] = ["parameters"]
        notebook.cells = [parameters, *map(nbformat.v4.new_code_cell, cells)]
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(run, "KIT", tmp_path)
    return tmp_path


def test_summary_shows_criteria_headline_and_paths(kit, capsys):
    assert run.main(["--home", str(kit / "home"), "--until", "1"]) == 0
    out = capsys.readouterr().out
    for words in (
        "✓ it ran: 0.750 (target > 0.700)",
        "baseline_test_accuracy              0.750",
        "gate_passed                         yes",
        "SAMPLE DATA",
        "exports/notebooks",
        "slowest cells:",
        "fit to be shown live: all 1 notebooks",
    ):
        assert words in out
    assert (kit / "home" / "exports" / "notebooks" / "theme1_good.ipynb").exists()


def timed_notebook(path, *parts):
    """An executed notebook: headings (str) and code cells (seconds)."""
    notebook = nbformat.v4.new_notebook()
    for part in parts:
        make = (
            nbformat.v4.new_markdown_cell
            if isinstance(part, str)
            else nbformat.v4.new_code_cell
        )
        notebook.cells.append(make(part if isinstance(part, str) else "x = 1"))
        if not isinstance(part, str):
            notebook.cells[-1].metadata["papermill"] = {"duration": part}
    nbformat.write(notebook, path)


def test_slowest_cells_are_named_by_section_and_the_verdict_is_computed(tmp_path):
    timed_notebook(
        tmp_path / "theme1_a.ipynb",
        "# Theme 1",
        0.5,
        "Words.\n\n## 2 · Loader\n",
        9.5,
        1.0,
    )
    timed_notebook(
        tmp_path / "theme2_b.ipynb",
        "## 1 · Training",
        10.5,
        "**Exercise 2 (implement).** Try.",
        3.0,
    )
    timed_notebook(tmp_path / "theme2_b.failed.ipynb", "## 1 · Training", 99.0)
    lines = timing.report(tmp_path, {1: 13.0, 2: 15.0}, slowest=3)
    assert [line.strip() for line in lines[2:5]] == [
        "10.5 s  theme 2, 1 · Training",
        "9.5 s  theme 1, 2 · Loader",
        "3.0 s  theme 2, Exercise 2",
    ]
    assert lines[5].startswith(
        "not fit to be shown live as they ran just now: theme 2 ("
    )
    assert (
        "fit to be shown live: all 1 notebooks"
        in timing.report(tmp_path, {1: 59.9})[-1]
    )
    assert "theme 1 (" in timing.report(tmp_path, {1: 60.1})[-2]
    home = tmp_path / "home"
    shutil.copytree(
        tmp_path, home / "exports" / "notebooks", ignore=lambda *_: ["home"]
    )
    rows = timing.table([home]).splitlines()
    assert rows[2] == "| 1 | 11 s | 9.5 s: 2 · Loader |"
    assert rows[3].startswith("| 2 | 14 s | 10.5 s")
    assert rows[4] == "| 3 | not run | |"


def test_failure_names_theme_cell_and_error_and_keeps_what_was_done(kit, capsys):
    assert run.main(["--home", str(kit / "home")]) == 1
    out = capsys.readouterr().err
    assert "Theme 2 stopped in cell 3 of notebooks/theme2_bad.ipynb" in out
    assert "ValueError: the dog ate it" in out and "raise ValueError" in out
    assert (kit / "home" / "exports" / "results.json").exists()
    assert (kit / "home" / "exports" / "notebooks" / "theme2_bad.failed.ipynb").exists()


def test_failed_rerun_leaves_the_earlier_copy(kit, capsys):
    source, copy = (
        kit / "notebooks" / "theme1_good.ipynb",
        kit / "home" / "exports" / "notebooks" / "theme1_good.ipynb",
    )
    assert run.main(["--home", str(kit / "home"), "--until", "1"]) == 0
    before = copy.read_bytes()
    source.write_text(
        source.read_text().replace("import json", "raise OSError; import json")
    )
    assert run.main(["--home", str(kit / "home"), "--until", "1"]) == 1
    assert copy.read_bytes() == before
    assert copy.with_name("theme1_good.failed.ipynb").exists()


def test_killed_kernel_is_explained(kit, capsys):
    source = kit / "notebooks" / "theme1_good.ipynb"
    source.write_text(
        source.read_text().replace(
            "import json", "import os; os.kill(os.getpid(), 9); import json"
        )
    )
    assert run.main(["--home", str(kit / "home"), "--until", "1"]) == 1
    assert "Theme 1: the kernel was killed" in capsys.readouterr().err


def test_full_disk_is_told_and_leaves_the_earlier_copy(kit, small_disk, capsys):
    folder, home = (
        small_disk(64 * 1024, kit / "home" / "exports" / "notebooks"),
        kit / "home",
    )
    assert run.main(["--home", str(home), "--until", "1"]) == 0
    before = (folder / "theme1_good.ipynb").read_bytes()
    source = kit / "notebooks" / "theme1_good.ipynb"
    source.write_text(
        source.read_text().replace("import json", "print('x' * 100_000); import json")
    )
    assert run.main(["--home", str(home), "--until", "1"]) == 1
    said = capsys.readouterr().err
    assert (
        f"Theme 1: its executed notebook could not be written to {folder} (No space"
        " left on device; 0" in said
    )
    assert [path.name for path in folder.iterdir()] == ["theme1_good.ipynb"]
    assert (folder / "theme1_good.ipynb").read_bytes() == before


def test_home_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run.main(["--home", str(tmp_path / "file"), "--until", "1"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_progress_bars_keep_their_last_line_only(tmp_path):
    bar = "reading\n" + "".join(f"\r{n}0%|bar" for n in range(11)) + "\nready\r\n"
    pieces = [
        nbformat.v4.new_output("stream", text=text) for text in (bar[:30], bar[30:])
    ]
    cell = nbformat.v4.new_code_cell(
        outputs=[*pieces, nbformat.v4.new_output("stream", name="stderr", text="oh")]
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    run.tidy(tmp_path / "a.ipynb")
    texts = [
        output.text
        for output in nbformat.read(tmp_path / "a.ipynb", 4).cells[0].outputs
    ]
    assert texts == ["reading\n100%|bar\nready\r\n", "oh"]


def test_themes_can_be_chosen(kit, capsys):
    assert list(run.notebooks(2, 8)) == [2]
    with pytest.raises(SystemExit, match="2"):
        run.main(["--home", str(kit / "home"), "--from", "5", "--until", "3"])
    assert "--from 5 comes after --until 3" in capsys.readouterr().err


def test_two_stories_in_one_home_are_refused_in_one_sentence(tmp_path, drawn, capsys):
    from utils import start

    start(1, source=drawn, profile="smoke", home=tmp_path)
    options = [
        "--home",
        str(tmp_path),
        "--source",
        str(drawn),
        "--profile",
        "smoke",
        "--until",
        "1",
    ]
    assert run.main([*options, "--seed", "7"]) == 1
    out = capsys.readouterr().err
    assert "already holds other settings" in out and "choose another folder" in out


def test_kernel_that_never_came_up_is_explained(kit, capsys, monkeypatch):
    def dies(*_):
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(run, "execute", dies)
    assert run.main(["--home", str(kit / "home"), "--until", "1"]) == 1
    assert "Theme 1: the kernel was killed" in capsys.readouterr().err
