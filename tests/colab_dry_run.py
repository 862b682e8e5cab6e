"""What the first cell of a notebook would install on Colab as it is now, tried without
installing anything.

    python tests/colab_dry_run.py LIST

LIST: Colab's packages, as published in pip-freeze.gpu.txt of googlecolab/backend-info.
Run it with Colab's own Python, 3.12: pip looks for packages of the Python it runs in.
Exit status 1: pip finds no versions that fit beside what Colab has.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.colab.packages import pinned, plan, wanted  # noqa: E402


def listed(text: str) -> dict[str, str]:
    """The versions in a list of pip freeze, by the names that an index uses. What was
    installed from an address ("name @ https://...") has none.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if "==" in line and "@" not in line)
    return {canonicalize_name(name): version for name, version in pairs}


def cuda_of(there: dict[str, str]) -> str:
    """The CUDA that torch was built for: "12.8" of "2.11.0+cu128"."""
    found = re.search(r"\+cu(\d+)(\d)$", there.get("torch", ""))
    if not found:
        sys.exit(
            "The list names no torch that was built for CUDA"
            f" ({there.get('torch', 'none at all')}): is it that of the GPU machines?"
        )
    return ".".join(found.groups())


def refused(missing: list[str], kept: dict[str, str]) -> str:
    """Why pip cannot install these beside all that is kept; "" where it can."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "kept.txt"
        lines = [pin for name in kept if (pin := pinned(name, kept[name]))]
        pins.write_text("\n".join(lines), encoding="utf-8")
        options = ["--dry-run", "--ignore-installed", "--no-input", "-c", str(pins)]
        command = [sys.executable, "-m", "pip", "install", *options]
        done = subprocess.run([*command, *missing], capture_output=True, text=True)
    if not done.returncode:
        print(done.stdout.strip().splitlines()[-1])  # Would install ...
        return ""
    print(done.stderr, file=sys.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return (errors or ["no reason given"])[0].removeprefix("ERROR: ")


def main(text: str) -> int:
    there = listed(text)
    cuda = cuda_of(there)
    # the list names no libraries of the system: as if there were no libcurand
    uninstall, missing = plan(wanted(cuda, curand=False), there)
    print(f"Colab has {len(there)} packages, CUDA {cuda}.")
    print(f"uninstalled: {', '.join(uninstall) or 'nothing'}")
    print(f"installed: {', '.join(missing) or 'nothing'}")
    if not missing:
        return 0
    # as the first cell does: what it does not ask for stays as it is
    asked = {canonicalize_name(Requirement(need).name) for need in missing}
    kept = {n: v for n, v in there.items() if n not in asked | set(uninstall)}
    reason = refused(missing, kept)
    if reason:
        print(f"On Colab as it is now pip installs nothing of this: {reason}")
    return int(bool(reason))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", type=Path, help="pip-freeze.gpu.txt")
    sys.exit(main(parser.parse_args().list.read_text(encoding="utf-8")))
