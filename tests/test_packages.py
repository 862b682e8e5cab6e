"""What the bootstrap installs: only what is missing, and exactly one ONNX Runtime."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from tools.colab import packages

KIT = Path(__file__).resolve().parent.parent
CPU, CUDA12, CUDA13 = (
    "onnxruntime>=1.24",
    "onnxruntime-gpu>=1.24,<1.27",
    "onnxruntime-gpu>=1.27",
)
BOTH = ["onnxruntime", "onnxruntime-gpu"]
BASE = {
    "scikit-learn": "1.6.1",
    "optuna": "4.9.0",
    "tensorboard": "2.19.0",
    "tqdm": "4.67.1",
    "onnx": "1.20.0",
    "onnxscript": "0.7.0",
    "filelock": "3.20.0",
    "typst": "0.15.2",
    "pypdf": "7.1.1",
}


def cpu(version: str) -> dict:
    return {"onnxruntime": version}


def gpu(version: str) -> dict:
    return {"onnxruntime-gpu": version}


@pytest.mark.parametrize(
    "runtimes, cuda, uninstall, install",
    [
        # none
        ({}, "12.8", [], [CUDA12]),
        ({}, "13.0", [], [CUDA13]),
        ({}, "14.0", [], [CUDA13]),
        ({}, None, [], [CPU]),
        ({}, "11.8", [], [CPU]),  # no package serves it
        # the right one
        (gpu("1.26.0"), "12.8", [], []),
        (gpu("1.31.1"), "13.2", [], []),
        (cpu("1.32.0"), None, [], []),
        (gpu("1.28.0.dev20260901"), "13.0", [], []),
        # the right one, too old or too new; as text, 1.9 and 1.100 stand on the other
        # side
        (cpu("1.9.0"), None, [], [CPU]),
        (cpu("1.100.0"), None, [], []),
        (gpu("1.9.0"), "12.8", [], [CUDA12]),
        (gpu("1.26.0"), "13.0", [], [CUDA13]),
        (gpu("1.27.0"), "12.8", [], [CUDA12]),
        # the wrong one
        (cpu("1.32.0"), "12.8", ["onnxruntime"], [CUDA12]),
        (cpu("1.32.0"), "13.0", ["onnxruntime"], [CUDA13]),
        (gpu("1.31.1"), None, ["onnxruntime-gpu"], [CPU]),
        # both
        (cpu("1.32.0") | gpu("1.26.0"), "12.8", BOTH, [CUDA12]),
        (cpu("1.32.0") | gpu("1.31.1"), "13.0", BOTH, [CUDA13]),
        (cpu("1.32.0") | gpu("1.31.1"), None, BOTH, [CPU]),
    ],
)
def test_exactly_one_onnx_runtime(runtimes, cuda, uninstall, install):
    assert packages.plan(BASE | runtimes, cuda) == (uninstall, install)


@pytest.mark.parametrize(
    "changed, install",
    [
        ({}, []),
        ({"tensorboard": "2.20.0"}, ["tensorboard!=2.20.*"]),
        ({"tensorboard": "2.21.0"}, []),
        ({"tensorboard": "2.20.0", "setuptools": "82.0.0"}, ["tensorboard!=2.20.*"]),
        # with the pkg_resources that it imports
        ({"tensorboard": "2.20.0", "setuptools": "75.2.0"}, []),
        ({"onnx": "1.9.0"}, ["onnx>=1.18"]),
        ({"tqdm": None, "filelock": None}, ["tqdm", "filelock"]),
    ],
)
def test_only_what_is_missing(changed, install):
    installed = {
        name: version
        for name, version in (BASE | cpu("1.32.0") | changed).items()
        if version
    }
    assert packages.plan(installed, None) == ([], install)


@pytest.mark.parametrize(
    "cuda, curand, extra",
    [
        ("12.8", True, []),
        ("12.8", False, ["nvidia-curand-cu12"]),
        ("13.0", False, ["nvidia-curand"]),
        (None, False, []),
    ],
)
def test_the_one_library_that_torch_does_not_bring(cuda, curand, extra):
    right = packages.runtime(cuda)
    installed = BASE | {
        Requirement(right).name: "1.26.0" if cuda == "12.8" else "1.31.0"
    }
    assert packages.plan(installed, cuda, curand) == ([], extra)
    assert packages.plan(
        installed | {name: "10.4" for name in extra}, cuda, curand
    ) == ([], [])


def test_fresh_colab_with_a_t4():
    colab = {
        "scikit-learn": "1.6.1",
        "tensorboard": "2.20.0",
        "setuptools": "75.2.0",
        "tqdm": "4.67.1",
        "filelock": "3.20.0",
    }
    assert packages.plan(colab, "12.8") == (
        [],
        [
            "optuna>=4.9",
            "onnx>=1.18",
            "onnxscript>=0.6.2",
            "typst>=0.15",
            "pypdf>=5",
            CUDA12,
        ],
    )


@pytest.mark.parametrize("cuda", [None, "12.8", "13.0"])
def test_what_colab_brings_is_never_named(cuda):
    names = {
        Requirement(requirement).name for requirement in packages.plan({}, cuda)[1]
    }
    assert not names & set(packages.KEPT)
    assert {"torch", "torchvision", "numpy", "pandas", "setuptools"} <= set(
        packages.KEPT
    )


def test_requirements_file_leaves_nothing_to_do():
    """`make install` and the bootstrap agree: same packages, and the proven versions
    are in the ranges.
    """
    lines = [
        re.sub(r"#.*", "", line).strip()
        for line in (KIT / "requirements.txt").read_text().splitlines()
    ]
    named = {Requirement(line).name for line in lines if line}
    assert {
        Requirement(requirement).name for requirement in packages.plan({}, None)[1]
    } <= named
    proven = dict(
        line.split("==")
        for line in (KIT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert packages.plan(proven, None) == ([], [])
    assert "onnxruntime-gpu" not in named | set(proven)


# --- what pip is asked


@pytest.fixture
def machine(monkeypatch):
    """machine(installed, cuda, fails=...) -> the list of pip's commands, filled as
    install() runs; nothing is run.
    """

    def make(
        installed: dict, cuda: str | None, fails: str = "never"
    ) -> list[list[str]]:
        commands = []

        def run(command, **options):
            commands.append(command[command.index("pip") + 1 :])
            if "-c" in command:
                commands[-1][commands[-1].index("-c") + 1] = Path(
                    command[command.index("-c") + 1]
                ).read_text()
            said = (
                "WARNING: Retrying ...\nERROR: No matching distribution found for"
                " onnx\n\n[notice] A new pip\n"
            )
            return SimpleNamespace(returncode=int(fails in command), stderr=said)

        monkeypatch.setattr(packages.subprocess, "run", run)
        monkeypatch.setattr(
            packages,
            "versions",
            lambda *names: {n: installed[n] for n in names if n in installed},
        )
        monkeypatch.setattr(packages, "everything", lambda: installed)
        monkeypatch.setattr(packages, "find_library", lambda name: f"lib{name}.so")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        # a torch built for GPUs on a machine without one
        monkeypatch.setattr(torch.version, "cuda", cuda or "13.0")
        return commands

    return make


def test_silent_where_nothing_is_missing(machine, capsys):
    commands = machine(BASE | cpu("1.32.0"), None)
    assert packages.install() is None and commands == []
    assert capsys.readouterr() == ("", "")


def test_swap_asks_the_index_before_it_removes(machine, capsys):
    commands = machine(
        BASE | cpu("1.32.0") | {"torch": "2.11.0+cu128", "numpy": "2.1.3"}, "12.8"
    )
    packages.install()
    tried, removed, added = commands
    assert tried[0] == "install" and "--dry-run" in tried and tried[-1] == CUDA12
    assert (
        removed[0] == "uninstall" and "-y" in removed and removed[-1] == "onnxruntime"
    )
    assert added[0] == "install" and added[-1] == CUDA12
    # pip may not move what is there either
    pins = added[added.index("-c") + 1].splitlines()
    assert {"torch==2.11.0+cu128", "numpy==2.1.3", "onnx==1.20.0"} <= set(pins)
    assert not any(pin.startswith("onnxruntime") for pin in pins)
    assert capsys.readouterr().out == f"installing {CUDA12}\n"


def test_failing_pip_ends_in_one_sentence(machine):
    machine({}, None, fails="install")
    with pytest.raises(packages.InstallError) as caught:
        packages.install()
    sentence = str(caught.value)
    assert sentence.startswith("pip could not install scikit-learn, optuna>=4.5, ")
    assert (
        "(No matching distribution found for onnx)" in sentence and "\n" not in sentence
    )
    assert (
        "connect this machine to the internet" in sentence
        and "requirements.txt" in sentence
    )
    # what IPython shows instead of the traceback
    assert caught.value._render_traceback_() == [sentence]


def test_versions_of_before_the_rules_are_left_out():
    assert (
        packages.pinned(
            {"numpy": "2.1.3", "distro-info": "1.1+ubuntu0.2", "gdal": "3.4-beta-x"}
        )
        == "distro-info==1.1+ubuntu0.2\nnumpy==2.1.3\n"
    )


def test_without_network_the_runtime_that_is_there_stays(machine):
    commands = machine(BASE | cpu("1.32.0"), "13.0", fails="--dry-run")
    with pytest.raises(packages.InstallError):
        packages.install()
    assert [command[0] for command in commands] == [
        "install"
    ] and "--dry-run" in commands[0]
