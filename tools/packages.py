"""Which packages the notebooks need, and installing the missing ones: called by the bootstrap cell."""

import importlib
import subprocess
import sys
from ctypes.util import find_library
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.version import Version

KIT = Path(__file__).resolve().parent.parent
NEEDED = ("scikit-learn", "optuna", "tensorboard!=2.20.*", "tqdm", "onnx>=1.18", "onnxscript>=0.6.2",
          "filelock", "typst>=0.15")  # fmt: skip
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# Never installed, upgraded or downgraded: Colab's own fit its drivers, and replacing them costs minutes.
KEPT = ("torch", "torchvision", "numpy", "pandas", "setuptools")


class InstallError(RuntimeError):
    """pip failed: its own reason, and what to do."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # what a notebook shows instead of the traceback


def runtime(cuda: str | None) -> str:
    """The ONNX Runtime for this CUDA version; its GPU package serves one CUDA generation at a time."""
    major = Version(cuda).major if cuda else 0
    if major >= 13:
        return "onnxruntime-gpu>=1.27"
    return "onnxruntime-gpu>=1.24,<1.27" if major == 12 else "onnxruntime>=1.24"


def satisfied(requirement: str, installed: dict[str, str]) -> bool:
    """Whether a package is there in a version that the requirement admits."""
    wanted = Requirement(requirement)
    return wanted.name in installed and wanted.specifier.contains(installed[wanted.name], prereleases=True)


def plan(installed: dict[str, str], cuda: str | None, curand: bool = True) -> tuple[list[str], list[str]]:
    """What to change so that all is there, and exactly one ONNX Runtime: the one that fits the GPU.

    Parameters
    ----------
    installed : version of each installed package, by its name on the index.
    cuda : torch.version.cuda where torch sees an NVIDIA GPU, else None (so on every Mac).
    curand : whether the system has libcurand, the one library of ONNX Runtime for GPUs that torch does not bring.

    Returns
    -------
    list of packages to uninstall, list of requirements to install; both empty where nothing is missing.
    """
    right = runtime(cuda)
    wrong = [name for name in RUNTIMES if name != Requirement(right).name and name in installed]
    # The two packages share their files: removing one breaks the other, so both go and the right one comes back.
    uninstall = [name for name in RUNTIMES if name in installed] if wrong else []
    left = {name: version for name, version in installed.items() if name not in uninstall}
    library = "nvidia-curand-cu12" if right.endswith("<1.27") else "nvidia-curand"
    extra = [library] if right.startswith("onnxruntime-gpu") and not curand else []
    return uninstall, [requirement for requirement in (*NEEDED, right, *extra) if not satisfied(requirement, left)]


def versions(*names: str) -> dict[str, str]:
    """The versions of those of these packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def pip(action: str, packages: list[str], *options: str) -> None:
    """Run pip without its output; where it fails, stop in one sentence with pip's own reason.

    Raises
    ------
    InstallError
        No network, no fitting version, no permission, ...
    """
    quiet = ["-q", "--no-color", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", action, *quiet, *options, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        reason = ([line for line in said if line.startswith("ERROR: ")] or said)[-1].removeprefix("ERROR: ")
        raise InstallError(
            f"pip could not {action} {', '.join(packages)} ({reason}): connect this machine to the internet and run "
            f'this again, or install the requirements by hand: pip install -r "{KIT / "requirements.txt"}"'
        )


def install() -> None:
    """Install what is missing, in the running Python; silent where nothing is."""
    import torch

    cuda = torch.version.cuda if torch.cuda.is_available() else None
    names = (Requirement(needed).name for needed in NEEDED)
    found = versions(*names, *RUNTIMES, "nvidia-curand", "nvidia-curand-cu12")
    uninstall, missing = plan(found, cuda, curand=bool(find_library("curand")))
    if not missing:
        return
    print(f"installing {', '.join(missing)}")
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text("".join(f"{name}=={version}\n" for name, version in versions(*KEPT).items()))
        if uninstall:
            # Asks the index before anything goes: without a network, the runtime that is there stays.
            pip("install", missing, "--dry-run", "--no-deps", "--ignore-installed")
            pip("uninstall", uninstall, "-y")
        pip("install", missing, "-c", str(kept))
    importlib.invalidate_caches()  # else this process may not see the new packages


if __name__ == "__main__":
    try:
        install()
    except InstallError as error:
        sys.exit(str(error))
