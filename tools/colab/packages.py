"""Installing what the notebooks need and the running Python lacks: called by the first
cell of every notebook. Which packages, and how new, requirements.txt says.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterable
from ctypes.util import find_library
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

KIT = Path(__file__).resolve().parents[2]
PARTS = ("utils.py", "models", "kit")  # without one of these, the kit is not whole
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# Never installed, upgraded or downgraded: Colab's own fit its drivers, and replacing
# them costs minutes.
KEPT = ("torch", "torchvision", "numpy", "pandas", "setuptools")

# packages that this session had loaded before pip replaced them
_replaced: set[str] = set()


class InstallError(RuntimeError):
    """The packages are not ready: why, and what to do."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # what a notebook shows instead of the traceback


def wanted(cuda: str | None, curand: bool = True) -> list[Requirement]:
    """requirements.txt without the packages of KEPT, and with the one ONNX Runtime that
    fits the GPU.

    Parameters
    ----------
    cuda : torch.version.cuda where torch sees an NVIDIA GPU, else None.
    curand : whether the system has libcurand, the one library of ONNX Runtime for GPUs
        that torch does not bring.
    """
    text = (KIT / "requirements.txt").read_text(encoding="utf-8")
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    needed = {need.name: need for need in map(Requirement, filter(None, lines))}
    major = Version(cuda).major if cuda else 0
    if major >= 12:
        # its GPU package serves one CUDA generation at a time
        range_ = ">=1.27" if major > 12 else f"{needed['onnxruntime'].specifier},<1.27"
        needed["onnxruntime"] = Requirement(f"onnxruntime-gpu{range_}")
        if not curand:
            library = "nvidia-curand" if major > 12 else "nvidia-curand-cu12"
            needed[library] = Requirement(library)
    return [need for name, need in needed.items() if name not in KEPT]


def plan(needed: list[Requirement], installed: dict[str, str]) -> tuple[list, list]:
    """What to uninstall and what to install so that all is there, and exactly one ONNX
    Runtime; both empty where nothing is missing.
    """
    there = [name for name in RUNTIMES if name in installed]
    # The two share their files: removing one breaks the other, so both go.
    uninstall = there if set(there) - {need.name for need in needed} else []
    # TensorBoard 2.20 needs a setuptools that has pkg_resources
    old = Version(installed.get("setuptools", "82")) < Version("82")
    starts = old and installed.get("tensorboard", "").startswith("2.20.")
    missing = []
    for need in needed:
        version = installed.get(need.name)
        good = version and need.specifier.contains(version, prereleases=True)
        if need.name in uninstall or not (
            good or starts and need.name == "tensorboard"
        ):
            missing.append(str(need))
    return uninstall, missing


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those of these packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def everything() -> dict[str, str]:
    """The versions of all installed packages; the first on the path counts, as for an
    import.
    """
    names = (package.metadata["Name"] for package in metadata.distributions())
    return versions(filter(None, names))  # None: left behind by a broken removal


def pip(action: str, *options: str) -> None:
    """Run pip without its output; where it fails, stop in one sentence with its reason.

    Raises
    ------
    InstallError
        No network, no fitting version, no permission, ...
    """
    quiet = ("-q", "--no-color", "--no-input", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", action, *quiet, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR: ")]
        reason = (errors or said or [f"status {done.returncode}"])[-1]
        reason = reason.removeprefix("ERROR: ")
        raise InstallError(
            f"pip could not {action} what is missing ({reason}): connect"
            " this machine to the internet and run this again, or install by"
            f' hand: pip install -r "{KIT / "requirements.txt"}"'
        )


def add(missing: list[str], there: dict[str, str]) -> None:
    """Install what is missing beside all that is there; where that cannot be, beside
    the packages of KEPT.

    Without this, the newest onnx takes a protobuf along that Colab's TensorFlow
    refuses, and TensorBoard with it.
    """
    named = {Requirement(requirement).name for requirement in missing}
    others = {name: there[name] for name in there if name not in named}
    with TemporaryDirectory() as folder:
        pins = Path(folder) / "kept.txt"
        for names in (others, KEPT):
            lines = [pin for name in names if (pin := pinned(name, others.get(name)))]
            pins.write_text("\n".join(lines), encoding="utf-8")
            try:
                return pip("install", "-c", str(pins), *missing)
            except InstallError as error:
                if names is KEPT or "ResolutionImpossible" not in str(error):
                    raise


def pinned(name: str, version: str | None) -> str:
    """A line of a constraint file; "" for what is not there or no version (PEP 440)."""
    try:
        return str(Requirement(f"{name}=={version}")) if version else ""
    except InvalidRequirement:
        return ""


def in_use(before: dict[str, str]) -> set[str]:
    """Packages that differ from `before` and that this session has already loaded."""
    loaded = metadata.packages_distributions()
    names = {name for module in sys.modules for name in loaded.get(module, ())}
    now = versions(names)
    return {name for name in now if before.get(name) != now[name]}


def cuda_version() -> str | None:
    """The CUDA of torch where it sees an NVIDIA GPU, else None."""
    try:
        import torch
    except ImportError as error:
        raise InstallError(
            f"torch is not installed for {sys.executable}: run make install in {KIT}"
            " and open the notebook with the Python of its .venv."
        ) from error
    return torch.version.cuda if torch.cuda.is_available() else None


def install() -> None:
    """Install what is missing, in the running Python; silent where nothing is.

    Raises
    ------
    InstallError
        The kit is not whole, Python is too old, torch is not there; pip failed; or it
        replaced a package that this session had already loaded: only a restart helps.
    """
    lacks = [part for part in PARTS if not (KIT / part).exists()]
    if lacks:
        raise InstallError(
            f"{KIT} is not the whole kit, {lacks[0]} is missing: rename that folder,"
            " then run this again."
        )
    if sys.version_info < (3, 11):  # noqa: UP036 - an older machine is what this is for
        raise InstallError(
            f"Python {sys.version.split()[0]} is too old: the course needs 3.11 or"
            " newer (Colab: Runtime > Change runtime type > Runtime version > Latest)."
        )
    needed = wanted(cuda_version(), bool(find_library("curand")))
    names = {need.name for need in needed} | {*RUNTIMES, "setuptools"}
    uninstall, missing = plan(needed, versions(names))
    if missing:
        print(f"installing {', '.join(missing)}")
        before = everything()
        if uninstall:
            # Asks the index before anything goes: without a network, the runtime that
            # is there stays.
            pip("install", "--dry-run", "--no-deps", "--ignore-installed", *missing)
            pip("uninstall", "-y", *uninstall)
        add(missing, {n: v for n, v in before.items() if n not in uninstall})
        importlib.invalidate_caches()  # else this process may not see the new packages
        _replaced.update(in_use(before))
    if _replaced:
        raise InstallError(
            f"{', '.join(sorted(_replaced))} replaced while this session was using it:"
            " choose Runtime > Restart session (Exécution > Redémarrer la session; in"
            " Jupyter Kernel > Restart; on Kaggle Run > Restart), then run the notebook"
            " from its first cell."
        )


if __name__ == "__main__":
    try:
        install()
    except InstallError as error:
        sys.exit(str(error))
