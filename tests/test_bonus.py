"""The overlay of the bonus sees the packages of the core and keeps its own; the tests
of pages find a browser.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support import browser

KIT = Path(__file__).resolve().parent.parent
BONUS = [
    Requirement(line.split("#")[0])
    for line in (KIT / "requirements-bonus.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def home(package: str) -> Path:
    return Path(metadata.distribution(package).locate_file("")).resolve()


@pytest.mark.course
def test_core_needs_nothing_of_the_bonus():
    core = " ".join(
        (KIT / name).read_text()
        for name in ("requirements.txt", "requirements-dev.txt")
    )
    assert not [need.name for need in BONUS if need.name in core]
    names = "|".join(need.name for need in BONUS)
    code = (
        f"import sys, utils, course; loaded = [name for name in '{names}'.split('|') if"
        " name in sys.modules]; sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=KIT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.bonus
def test_overlay_holds_what_it_asks_for_and_takes_the_rest_from_the_core():
    for need in BONUS:
        pytest.importorskip(need.name)
        assert need.specifier.contains(metadata.version(need.name)), need.name
    overlay, core = home("gradio"), home("torch")
    assert overlay.is_relative_to(sys.prefix) and not core.is_relative_to(sys.prefix)
    assert home("pillow") == overlay
    assert int(metadata.version("pillow").split(".")[0]) < 13
    theirs = {
        found.version
        for found in metadata.distributions(name="pillow", path=[str(core)])
    }
    assert theirs and metadata.version("pillow") not in theirs, (
        "gradio's pillow has reached the core"
    )


@pytest.mark.bonus
def test_kernels_started_from_the_overlay_run_in_it():
    pytest.importorskip("gradio")
    from jupyter_client.manager import KernelManager

    command = KernelManager(kernel_name="python3").format_kernel_cmd()
    asked = subprocess.run(
        [command[0], "-c", "import sys; print(sys.prefix)"],
        capture_output=True,
        text=True,
    )
    assert asked.stdout.strip() == sys.prefix


def test_browser_is_the_machine_s_own_else_playwright_s_else_asked_for(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(
        browser.shutil, "which", {"google-chrome": "/usr/bin/google-chrome"}.get
    )
    assert browser.find("nowhere") == "/usr/bin/google-chrome"
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    assert browser.find(str(tmp_path)) == str(tmp_path)
    assert browser.find("nowhere") is None


@pytest.mark.parametrize(
    "where, outcome", [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_missing_browser_fails_in_continuous_integration_only(
    monkeypatch, where, outcome
):
    monkeypatch.setenv("CI", where)
    with pytest.raises(outcome, match="apt-get install chromium"):
        browser.do_without()


@pytest.mark.parametrize(
    "url, here",
    [
        ("http://127.0.0.1:7860/config", True),
        ("file:///index.html", True),
        ("data:image/png;base64,AA", True),
        ("https://fonts.googleapis.com/css2", False),
        ("wss://127.0.0.1.example.org/", False),
    ],
)
def test_what_leaves_this_machine_is_noticed(url, here):
    assert browser.is_here(url) is here


@pytest.mark.bonus
def test_page_that_asks_another_machine_or_fails_is_told(browse, tmp_path):
    (tmp_path / "page.html").write_text(
        "<title>page</title><img src='missing.png'><script"
        " src='http://fonts.invalid/x.js'></script><script>console.error('said so');"
        " null.x</script>"
    )
    page = browse((tmp_path / "page.html").as_uri())
    told = " ".join(page.problems)
    assert all(
        word in told
        for word in (
            "left here: http://fonts.invalid/x.js",
            "missing.png",
            "said so",
            "null",
        )
    )
