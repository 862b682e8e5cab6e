"""Libraries that stand in for those of CUDA under one wheel of onnxruntime-gpu.

    python tests/cuda_stand_in/build.py WHEEL FOLDER

WHEEL: where pip put it (`pip install --target WHEEL --no-deps onnxruntime-gpu`).
FOLDER: where the libraries go, for LD_LIBRARY_PATH. Needs gcc and binutils.
"""

import argparse
import re
import subprocess
from pathlib import Path

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
SOURCE = Path(__file__).with_name("runtime.c")
FAMILIES = "cuda cublas cudnn cufft curand nvrtc".split()
# a function of CUDA: one of a family, the launcher's own, or the driver's cuInit ...
FUNCTION = re.compile(rf"(__cuda|{'|'.join(FAMILIES)}|cu)[A-Z]\w*")
# asked for by name while a session is built, also where the wheel is not linked to them
ALWAYS = "libnvrtc.so.{major} libcufft.so.{cufft} libcudnn.so.9 libcuda.so.1"


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def linked(provider: Path) -> tuple[set[str], set[str]]:
    """The libraries of CUDA that the provider is linked with, and their functions."""
    needed = re.findall(r"NEEDED\s+(lib\S+)", told("objdump", "-p", str(provider)))
    libraries = {name for name in needed if name[3:].startswith(("cu", "nv"))}
    lines = told("nm", "-D", "--undefined-only", str(provider)).splitlines()
    # cudaMalloc@libcudart.so.12
    names = {line.split()[-1].partition("@")[0] for line in lines if line.strip()}
    return libraries, {name for name in names if FUNCTION.fullmatch(name)}


def looked_up(provider: Path) -> set[str]:
    """Functions that the provider may look up while it runs: their names lie in its
    data as text.
    """
    found, data = set(), provider.read_bytes()
    for family in FAMILIES:
        pattern = rb"\0(%s[A-Z]\w*)(?=\0)" % family.encode()
        found |= {match[1].decode() for match in re.finditer(pattern, data)}
    return found


def stub(name: str) -> str:
    """A function that does nothing and succeeds; one that creates gives a handle."""
    if "Create" in name:
        return f"int {name}(void **out) {{ *out = malloc(256); return 0; }}"
    return f"int {name}(void) {{ return 0; }}"


def build(wheel: Path, folder: Path) -> Path:
    """Write the libraries; one holds all functions, the others are links to it."""
    provider = Path(wheel) / PROVIDER
    libraries, functions = linked(provider)
    (runtime,) = (name for name in libraries if name.startswith("libcudart.so."))
    major = runtime.rpartition(".")[2]
    source = SOURCE.read_text(encoding="utf-8")
    written = set(re.findall(r"^[\w *]+?\b(\w+)\(", source, re.MULTILINE))
    names = sorted((functions | looked_up(provider)) - written)
    folder.mkdir(parents=True, exist_ok=True)
    code = folder / "stand_in.c"
    code.write_text("\n".join([source, *map(stub, names), ""]), encoding="utf-8")
    options = ["-shared", "-fPIC", "-O1", f"-DCUDA_MAJOR={major}"]
    options += [f"-Wl,-soname,{runtime}", "-o", str(folder / runtime)]
    subprocess.run(["gcc", *options, str(code)], check=True)
    # cuFFT counts one behind CUDA
    others = ALWAYS.format(major=major, cufft=int(major) - 1).split()
    for name in {*libraries, *others} - {runtime}:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(runtime)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    print(build(asked.wheel, asked.folder))
