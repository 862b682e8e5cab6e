"""The workflows of GitHub Actions run commands that exist here, on the Pythons that the
kit promises.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

KIT = Path(__file__).resolve().parent.parent
WORKFLOWS = {
    path.stem: YAML(typ="safe").load(path)
    for path in sorted((KIT / ".github" / "workflows").glob("*.yml"))
}
JOBS = [
    (name, job) for name, flow in WORKFLOWS.items() for job in flow["jobs"].values()
]
STEPS = [(name, step) for name, job in JOBS for step in job["steps"]]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is missing")


def dry_run(*arguments: str) -> str:
    """What make would do, from nothing."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    # the weekly run sets it
    plain = {name: value for name, value in os.environ.items() if name != "CONSTRAINTS"}
    return subprocess.run(
        command, cwd=KIT, env=plain, capture_output=True, text=True, check=True
    ).stdout


@needs_make
def test_every_make_command_is_a_target():
    commands = [
        step["run"] for _, step in STEPS if str(step.get("run", "")).startswith("make ")
    ]
    assert len(commands) >= 5
    for command in commands:
        target = command.split()[1]
        assert dry_run(target, "PYTHON=python3").strip(), command


@needs_make
def test_only_the_weekly_run_leaves_the_pinned_versions():
    assert "-c constraints.txt" in dry_run("install", "PYTHON=python3")
    assert "constraints" not in dry_run("install", "PYTHON=python3", "CONSTRAINTS=")
    assert [
        name for name, job in JOBS if job.get("env", {}).get("CONSTRAINTS") == ""
    ] == ["weekly"]


@needs_make
def test_core_is_tested_alone_and_each_overlay_in_its_own():
    plain, everything = (
        dry_run(target, "PYTHON=python3") for target in ("test", "test-all")
    )
    for tier in ("unit", "course"):
        assert f'.venv/bin/python -m pytest -n 2 --dist loadgroup -m "{tier} ' in plain
    for name in ("bonus", "scale"):
        assert f".venv-{name}/bin/python -m pytest -n 2 --dist loadfile -m" in plain
        assert f"-c constraints-{name}.txt" in dry_run(name, "PYTHON=python3")
        assert "constraints" not in dry_run(name, "PYTHON=python3", "CONSTRAINTS=")
    assert plain.count("and not (slow or bonus or scale)") == 2
    assert plain.count("and not slow") == 2 and '-m "slow' not in plain
    assert '.venv/bin/python -m pytest -n 2 --dist loadgroup -m "slow ' in everything


@needs_make
@pytest.mark.parametrize("target", ["install", "run", "lint", "test-unit"])
def test_core_commands_install_nothing_else(target):
    told = dry_run(target, "PYTHON=python3")
    assert "bonus.txt" not in told and "scale.txt" not in told


@pytest.mark.parametrize(
    "user, browser, asked",
    [
        ("0", [], ["apt-get update", "apt-get install", "make test"]),
        ("1000", [], ["make test"]),
        ("0", ["google-chrome"], ["make test"]),
    ],
)
def test_ci_installs_a_browser_where_there_is_none_and_it_may(
    tmp_path, user, browser, asked
):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    calls = {
        "id": f"echo {user}",
        "apt-get": 'echo "apt-get $1" >&2',
        "make": 'echo "make $1" CI=$CI >&2',
    }
    for name, does in (calls | dict.fromkeys(browser, "exit 1")).items():
        (tmp_path / name).write_text(f"#!{shutil.which('sh')}\n{does}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [tmp_path / "bash", KIT / ".ci" / "run"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = done.stderr.splitlines()
    assert [" ".join(line.split()[:2]) for line in told] == asked
    assert told[-1] == "make test CI=true"


def test_tests_run_on_every_python_that_the_makefile_accepts():
    accepted = set(
        re.findall(
            r"python(3\.\d+)", (KIT / "Makefile").read_text().split("VENV :=")[0]
        )
    )
    assert (
        set(WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"])
        == accepted
        == {"3.11", "3.12", "3.13"}
    )


def test_course_and_report_are_kept_also_when_a_notebook_fails():
    kept = [step for name, step in STEPS if "upload-artifact" in step.get("uses", "")]
    assert kept and all(step["if"] == "always()" for step in kept)
    assert all(
        {"sample-run/exports", "sample-run/report/report.pdf"}
        <= set(step["with"]["path"].split())
        for step in kept
    )


def test_no_workflow_may_write_more_than_it_needs_or_runs_without_end():
    assert {
        name: flow["permissions"]
        for name, flow in WORKFLOWS.items()
        if name != "weekly"
    } == {"ci": {"contents": "read"}, "nightly": {"contents": "read"}}
    assert all("timeout-minutes" in job for _, job in JOBS)
