"""A real browser for the tests of pages: headless Chromium, which reports errors and
what it asks of other machines.
"""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")
# None of the calls that a browser makes to its maker of its own accord; as root it
# starts without a sandbox only.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
MISSING = (
    "the tests of pages need Chromium: sudo apt-get install chromium, or "
    ".venv-bonus/bin/python -m playwright install chromium"
)


def find(own: str) -> str | None:
    """The browser of this machine, else the one that playwright has
    installed at `own`.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or (own if Path(own).exists() else None)


def do_without() -> None:
    """A student's machine may lack a browser, continuous integration may not: there it
    would hide what is broken.
    """
    (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)


def is_here(url: str) -> bool:
    """Whether an address needs no other machine: loopback, a file, or data of the page
    itself.
    """
    return urlsplit(url).scheme in ("file", "data", "blob") or urlsplit(
        url
    ).hostname in ("127.0.0.1", "localhost")


def watch(page) -> None:
    """Note in `page.problems` what a visitor with open developer tools would see go
    wrong.
    """
    page.problems = []
    page.on(
        "console",
        lambda message: (
            message.type in ("error", "warning") and page.problems.append(message.text)
        ),
    )
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "requestfailed", lambda request: page.problems.append(f"failed: {request.url}")
    )
    page.on(
        "response",
        lambda answer: (
            answer.status >= 400
            and page.problems.append(f"{answer.status}: {answer.url}")
        ),
    )
    page.on(
        "request",
        lambda request: (
            is_here(request.url) or page.problems.append(f"left here: {request.url}")
        ),
    )


@pytest.fixture(scope="session")
def chromium():
    """The running browser; without one the tests fail in continuous integration and are
    skipped elsewhere.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        path = find(driver.chromium.executable_path)
        if path is None:
            do_without()
        browser = driver.chromium.launch(
            executable_path=path, headless=True, args=list(FLAGS)
        )
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """browse(url, width=1280, height=900, color_scheme="light", ...) -> an open page,
    with its `problems`.
    """
    contexts = []

    def open_page(url: str, width: int = 1280, height: int = 900, **options):
        contexts.append(
            chromium.new_context(viewport={"width": width, "height": height}, **options)
        )
        page = contexts[-1].new_page()
        watch(page)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
