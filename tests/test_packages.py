"""What the first cell installs: only what is missing, and exactly one ONNX Runtime."""

from pathlib import Path
from types import SimpleNamespace

import colab_dry_run
import pytest
import torch
from packaging.requirements import Requirement

from tools.colab import packages

KIT = Path(__file__).resolve().parent.parent
CPU, CUDA12, CUDA13 = (
    "onnxruntime>=1.24",
    "onnxruntime-gpu<1.27,>=1.24",
    "onnxruntime-gpu>=1.27",
)
# what was last proven, less the runtime: all that requirements.txt names
PROVEN = dict(
    line.split("==")
    for line in (KIT / "constraints.txt").read_text().splitlines()
    if "==" in line
)
BASE = {name: PROVEN[name] for name in PROVEN if "onnxruntime" not in name}


def plan(installed: dict, cuda: str | None, curand: bool = True):
    return packages.plan(packages.wanted(cuda, curand), installed)


def cpu(version: str) -> dict:
    return {"onnxruntime": version}


def gpu(version: str) -> dict:
    return {"onnxruntime-gpu": version}


@pytest.mark.parametrize(
    "runtimes, cuda, right, wrong",
    [
        # none
        ({}, "12.8", CUDA12, False),
        ({}, "13.0", CUDA13, False),
        ({}, "14.0", CUDA13, False),
        ({}, None, CPU, False),
        ({}, "11.8", CPU, False),  # no package serves it
        # the right one
        (gpu("1.26.0"), "12.8", None, False),
        (gpu("1.31.1"), "13.2", None, False),
        (cpu("1.32.0"), None, None, False),
        (gpu("1.28.0.dev20260901"), "13.0", None, False),
        # too old or too new; as text, 1.9 and 1.100 stand on the other side
        (cpu("1.9.0"), None, CPU, False),
        (cpu("1.100.0"), None, None, False),
        (gpu("1.9.0"), "12.8", CUDA12, False),
        (gpu("1.26.0"), "13.0", CUDA13, False),
        (gpu("1.27.0"), "12.8", CUDA12, False),
        # the wrong one, or both
        (cpu("1.32.0"), "12.8", CUDA12, True),
        (cpu("1.32.0"), "13.0", CUDA13, True),
        (gpu("1.31.1"), None, CPU, True),
        (cpu("1.32.0") | gpu("1.26.0"), "12.8", CUDA12, True),
        (cpu("1.32.0") | gpu("1.31.1"), "13.0", CUDA13, True),
        (cpu("1.32.0") | gpu("1.31.1"), None, CPU, True),
    ],
)
def test_exactly_one_onnx_runtime(runtimes, cuda, right, wrong):
    expected = (sorted(runtimes) if wrong else [], [right] if right else [])
    assert plan(BASE | runtimes, cuda) == expected


@pytest.mark.parametrize(
    "changed, install",
    [
        ({}, []),
        ({"tensorboard": "2.20.0"}, ["tensorboard!=2.20.*,>=2.19"]),
        (
            {"tensorboard": "2.20.0", "setuptools": "82.0.0"},
            ["tensorboard!=2.20.*,>=2.19"],
        ),
        # with the pkg_resources that it imports
        ({"tensorboard": "2.20.0", "setuptools": "75.2.0"}, []),
        ({"onnx": "1.9.0"}, ["onnx>=1.18"]),
        ({"tqdm": None, "filelock": None}, ["tqdm>=4.66", "filelock>=3.15"]),
        ({"scikit-learn": "1.4.2"}, ["scikit-learn>=1.5"]),
        # of Colab, never ours to replace
        ({"torch": "2.0.0", "numpy": None}, []),
    ],
)
def test_only_what_is_missing(changed, install):
    installed = BASE | cpu("1.32.0") | {"setuptools": "83.0.0"} | changed
    installed = {name: version for name, version in installed.items() if version}
    assert plan(installed, None) == ([], install)


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
    runtime = {"12.8": gpu("1.26.0"), "13.0": gpu("1.31.0"), None: cpu("1.32.0")}[cuda]
    bare = {name: BASE[name] for name in BASE if "curand" not in name} | runtime
    assert plan(bare, cuda, curand) == ([], extra)
    assert plan(bare | dict.fromkeys(extra, "10.4"), cuda, curand) == ([], [])


def test_requirements_file_is_what_is_wanted_and_what_colab_brings_is_never_named():
    lines = (KIT / "requirements.txt").read_text().splitlines()
    named = {Requirement(line.split("#")[0]).name for line in lines if line[0] != "#"}
    colabs = {"torch", "torchvision", "numpy", "pandas", "setuptools"}
    assert {need.name for need in packages.wanted(None)} == named - colabs
    for cuda in ("12.8", "13.0"):
        expected = named - colabs - {"onnxruntime"} | {"onnxruntime-gpu"}
        assert {need.name for need in packages.wanted(cuda)} == expected
    # `make install` and the first cell agree
    assert plan(PROVEN, None) == ([], [])


# --- what pip is asked


@pytest.fixture
def machine(monkeypatch):
    """machine(installed, cuda, fails=...) -> the list of pip's commands, filled as
    install() runs; nothing is run.
    """

    def make(installed: dict, cuda: str | None, fails: str = "never") -> list:
        commands = []

        def run(command, **options):
            words = command[command.index("pip") + 1 :]
            if "-c" in words:
                words[words.index("-c") + 1] = Path(
                    words[words.index("-c") + 1]
                ).read_text()
            commands.append(words)
            said = (
                "WARNING: Retrying ...\nERROR: No matching distribution\n\n[notice]\n"
            )
            return SimpleNamespace(returncode=int(fails in words), stderr=said)

        monkeypatch.setattr(packages.subprocess, "run", run)
        monkeypatch.setattr(
            packages,
            "versions",
            lambda names: {n: installed[n] for n in names if n in installed},
        )
        monkeypatch.setattr(packages, "everything", lambda: installed)
        monkeypatch.setattr(packages, "in_use", lambda before: set())
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
    there = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "gdal": "3.4-beta-x"}
    commands = machine(BASE | cpu("1.32.0") | there, "12.8")
    packages.install()
    tried, removed, added = commands
    assert tried[0] == "install" and "--dry-run" in tried and tried[-1] == CUDA12
    assert removed[0] == "uninstall" and removed[-2:] == ["-y", "onnxruntime"]
    assert added[0] == "install" and added[-1] == CUDA12
    # pip may not move what is there either; gdal's is no version since PEP 440
    pins = set(added[added.index("-c") + 1].splitlines())
    assert {"torch==2.11.0+cu128", "numpy==2.1.3", f"onnx=={BASE['onnx']}"} <= pins
    assert not any(pin.startswith(("onnxruntime", "gdal")) for pin in pins)
    assert capsys.readouterr().out == f"installing {CUDA12}\n"


@pytest.mark.parametrize("fails", ["install", "--dry-run"])
def test_failing_pip_ends_in_one_sentence_and_nothing_is_removed(machine, fails):
    commands = machine(BASE | cpu("1.32.0"), "13.0", fails)
    with pytest.raises(packages.InstallError) as caught:
        packages.install()
    sentence = str(caught.value)
    assert sentence.startswith("pip could not install what is missing (No matching")
    assert "connect this machine to the internet" in sentence and "\n" not in sentence
    assert "requirements.txt" in sentence
    # what IPython shows instead of the traceback
    assert caught.value._render_traceback_() == [sentence]
    assert [command[0] for command in commands] == ["install"]


# --- Colab's published list, tried every week by colab_dry_run.py

PUBLISHED = """# Do not modify this file directly; it is generated
GDAL==3.8.4
Pillow==11.3.0
google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz
kernel @ git+https://github.com/googlecolab/kernel_gateway@b134e99#sha==1
ml_dtypes==0.5.4
onnxruntime==1.32.0
packaging==26.2
torch==2.11.0+cu128

"""


def test_a_published_list_gives_versions_by_the_names_of_an_index():
    there = colab_dry_run.listed(PUBLISHED)
    names = "gdal pillow ml-dtypes onnxruntime packaging torch".split()
    assert list(there) == names and there["torch"] == "2.11.0+cu128"
    assert colab_dry_run.cuda_of(there) == "12.8"
    assert colab_dry_run.cuda_of({"torch": "2.14.0+cu130"}) == "13.0"
    with pytest.raises(SystemExit, match="no torch that was built for CUDA"):
        colab_dry_run.cuda_of({"torch": "2.14.0+cpu"})


@pytest.mark.parametrize("status", [0, 1])
def test_a_dry_run_keeps_what_it_does_not_ask_for(monkeypatch, capsys, status):
    asked = {}

    def run(command, **options):
        asked["pins"] = Path(command[command.index("-c") + 1]).read_text().split()
        asked["command"] = command
        said = "Collecting onnx\nWould install onnx-1.22.0\n"
        errors = "ERROR: Cannot install onnx\nERROR: ResolutionImpossible\n"
        return SimpleNamespace(returncode=status, stdout=said, stderr=errors)

    monkeypatch.setattr(colab_dry_run.subprocess, "run", run)
    assert colab_dry_run.main(PUBLISHED) == status
    assert {"--dry-run", "--ignore-installed", CUDA12, "onnx>=1.18"} <= set(
        asked["command"]
    )
    # it has no pandas, and may not get one; its runtime is the wrong one and goes
    assert not any(need.startswith("pandas") for need in asked["command"])
    kept = ["gdal==3.8.4", "pillow==11.3.0", "ml-dtypes==0.5.4", "packaging==26.2"]
    assert asked["pins"] == [*kept, "torch==2.11.0+cu128"]
    told = capsys.readouterr().out
    assert "CUDA 12.8" in told and "uninstalled: onnxruntime\n" in told
    last = "installs nothing of this: Cannot install onnx" if status else "onnx-1.22.0"
    assert told.strip().endswith(last)
