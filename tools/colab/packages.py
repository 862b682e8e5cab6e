"""Which packages the notebooks need, and installing the missing ones: called by the
bootstrap cell.
"""

import importlib
import subprocess
import sys
from ctypes.util import find_library
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

KIT = Path(__file__).resolve().parents[2]
NEEDED = (
    "scikit-learn",
    "optuna>=4.9",
    "tensorboard!=2.20.*",
    "tqdm",
    "onnx>=1.18",
    "onnxscript>=0.6.2",
    "filelock",
    "typst>=0.15",
    "pypdf>=5",
)
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


def runtime(cuda: str | None) -> str:
    """The ONNX Runtime for this CUDA version; its GPU package serves one CUDA
    generation at a time.
    """
    major = Version(cuda).major if cuda else 0
    if major >= 13:
        return "onnxruntime-gpu>=1.27"
    return "onnxruntime-gpu>=1.24,<1.27" if major == 12 else "onnxruntime>=1.24"


def satisfied(requirement: str, installed: dict[str, str]) -> bool:
    """Whether a package is there in a version that the requirement admits."""
    wanted = Requirement(requirement)
    return wanted.name in installed and wanted.specifier.contains(
        installed[wanted.name], prereleases=True
    )


def plan(
    installed: dict[str, str], cuda: str | None, curand: bool = True
) -> tuple[list[str], list[str]]:
    """What to change so that all is there, and exactly one ONNX Runtime: the one that
    fits the GPU.

    Parameters
    ----------
    installed : version of each installed package, by its name on the index.
    cuda : torch.version.cuda where torch sees an NVIDIA GPU, else None (so on every
    Mac).
    curand : whether the system has libcurand, the one library of ONNX Runtime for GPUs
    that torch does not bring.

    Returns
    -------
    list of packages to uninstall, list of requirements to install; both empty where
    nothing is missing."""
    right = runtime(cuda)
    wrong = [
        name
        for name in RUNTIMES
        if name != Requirement(right).name and name in installed
    ]
    # The two packages share their files: removing one breaks the other, so both go and
    # the right one comes back.
    uninstall = [name for name in RUNTIMES if name in installed] if wrong else []
    left = {
        name: version for name, version in installed.items() if name not in uninstall
    }
    library = "nvidia-curand-cu12" if right.endswith("<1.27") else "nvidia-curand"
    extra = [library] if right.startswith("onnxruntime-gpu") and not curand else []
    missing = [
        requirement
        for requirement in (*NEEDED, right, *extra)
        if not satisfied(requirement, left)
    ]
    if satisfied("tensorboard==2.20.*", left) and satisfied("setuptools<82", left):
        # 2.20 fails only beside a setuptools without pkg_resources
        missing.remove("tensorboard!=2.20.*")
    return uninstall, missing


def versions(*names: str) -> dict[str, str]:
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
    found: dict[str, str] = {}
    for package in metadata.distributions():
        if package.metadata["Name"]:  # None for what a broken removal left behind
            found.setdefault(
                canonicalize_name(package.metadata["Name"]), package.version
            )
    return found


def pinned(packages: dict[str, str]) -> str:
    """These versions as a constraint file; a version that is none by today's rules (PEP
    440) is left out.
    """
    lines = []
    for name, version in sorted(packages.items()):
        try:
            lines.append(f"{Requirement(f'{name}=={version}')}\n")
        except InvalidRequirement:
            continue
    return "".join(lines)


def pip(action: str, packages: list[str], *options: str) -> None:
    """Run pip without its output; where it fails, stop in one sentence with pip's own
    reason.

    Raises
    ------
    InstallError
        No network, no fitting version, no permission, ...
    """
    quiet = ["-q", "--no-color", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", action, *quiet, *options, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [
            f"exit status {done.returncode}"
        ]
        reason = ([line for line in said if line.startswith("ERROR: ")] or said)[
            -1
        ].removeprefix("ERROR: ")
        raise InstallError(
            f"pip could not {action} {', '.join(packages)} ({reason}): connect this"
            " machine to the internet and run "
            "this again, or install the requirements by hand: pip install -r"
            f' "{KIT / "requirements.txt"}"'
        )


def add(missing: list[str], installed: dict[str, str]) -> None:
    """Install what is missing beside all that is there; where that cannot be, beside
    the packages of KEPT.

    Without this, the newest onnx takes a protobuf along that Colab's TensorFlow
    refuses, and TensorBoard with it."""
    named = {Requirement(requirement).name for requirement in missing}
    others = {name: version for name, version in installed.items() if name not in named}
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.txt"
        kept.write_text(pinned(others), encoding="utf-8")
        try:
            pip("install", missing, "-c", str(kept))
        except InstallError as error:
            if "ResolutionImpossible" not in str(error):
                raise
            kept.write_text(
                pinned({name: others[name] for name in KEPT if name in others}),
                encoding="utf-8",
            )
            pip("install", missing, "-c", str(kept))


def in_use(before: dict[str, str]) -> set[str]:
    """Packages that differ from `before` and whose modules this session has already
    loaded, in their old version.
    """
    found = set()
    for name, version in everything().items():
        files = metadata.files(name) or () if before.get(name) != version else ()
        modules = {
            ".".join(file.with_suffix("").parts).removesuffix(".__init__")
            for file in files
        }
        if modules & sys.modules.keys():
            found.add(name)
    return found


def cuda_version() -> str | None:
    """The CUDA of torch where it sees an NVIDIA GPU, else None.

    Raises
    ------
    InstallError
        Python is too old, or torch is not there: it is never installed from here.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - an older machine is what this is for
        raise InstallError(
            f"Python {sys.version.split()[0]} is too old: the course needs 3.11 or"
            " newer (Colab: Runtime > Change runtime type > Runtime version > Latest)."
        )
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
        pip failed, or it replaced a package that this session had already loaded: only
        a restart helps.
    """
    cuda = cuda_version()
    names = (Requirement(needed).name for needed in NEEDED)
    found = versions(
        *names, *RUNTIMES, "setuptools", "nvidia-curand", "nvidia-curand-cu12"
    )
    uninstall, missing = plan(found, cuda, curand=bool(find_library("curand")))
    if missing:
        print(f"installing {', '.join(missing)}")
        before = everything()
        if uninstall:
            # Asks the index before anything goes: without a network, the runtime that
            # is there stays.
            pip("install", missing, "--dry-run", "--no-deps", "--ignore-installed")
            pip("uninstall", uninstall, "-y")
        add(
            missing,
            {
                name: version
                for name, version in before.items()
                if name not in uninstall
            },
        )
        importlib.invalidate_caches()  # else this process may not see the new packages
        _replaced.update(in_use(before))
    if _replaced:
        raise InstallError(
            f"{', '.join(sorted(_replaced))} replaced while this session was using it:"
            " choose Runtime > Restart session (Exécution > Redémarrer la session; in"
            " Jupyter Kernel > Restart), then run the notebook from its first cell."
        )


if __name__ == "__main__":
    try:
        install()
    except InstallError as error:
        sys.exit(str(error))
