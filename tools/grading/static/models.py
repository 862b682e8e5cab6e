"""Models: files that are only a part of what they should be, such as a graph without
its weights or a pointer of Git LFS, and graphs that no network of the group fits.
"""

import ast
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tools.grading.finding import Check, Finding, listed
from tools.grading.static.code import argument
from tools.grading.static.files import ARCHITECTURES
from tools.grading.static.look import Look, calls
from tools.shared.foreign import MIB, SubmissionError, shown

MODELS = Check("models")
MAX_GRAPH = 32 * MIB  # a graph whose weights lie elsewhere is small
MAX_GRAPHS = 128 * MIB  # of all that are parsed
POINTER, MAX_POINTER = b"version https://git-lfs", 1024
LARGE = {
    *(".onnx", ".data", ".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".npz"),
    *(".pdf", ".zip", ".trt", ".engine"),
}


def models(look: Look) -> Iterator[Finding]:
    left, whole = MAX_GRAPHS, 0
    for path in look.submission.files:
        if path.suffix.lower() in LARGE and _is_pointer(look, path):
            says = "A pointer of Git LFS in the place of the file: ask for the file."
            kind = "{n} files are pointers of Git LFS: ask for the files themselves."
            yield MODELS.fail(says, shown(path), kind=kind)
        elif path.suffix.lower() == ".onnx" and look.size(path) <= min(left, MAX_GRAPH):
            left -= look.size(path)
            graph = _graph(look, path)
            if graph is None or not graph.initializer:
                continue
            missing = _weights_elsewhere(path, graph) - look.paths
            whole += not missing
            if missing:
                yield _without_weights(path, missing)
            yield from _of_another_network(look, path, graph)
    if whole:
        yield MODELS.passed(f"ONNX files that hold all of their weights: {whole}.")


def _is_pointer(look: Look, path: Path) -> bool:
    small = 0 < look.size(path) <= MAX_POINTER
    try:
        return small and look.read(path, MAX_POINTER).startswith(POINTER)
    except SubmissionError:
        return False


def _graph(look: Look, path: Path):
    """The graph of an ONNX file; None where it is none, which another check says."""
    import onnx

    try:
        return onnx.load_model_from_string(look.read(path, MAX_GRAPH)).graph
    except Exception:  # protobuf has errors of its own
        return None


def _weights_elsewhere(path: Path, graph) -> set[str]:
    return {
        os.path.normpath(path.parent / entry.value)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _without_weights(path: Path, missing: set[str]) -> Finding:
    names = (shown(PurePosixPath(name).name) for name in sorted(missing))
    names = listed(names, 3)
    says = f"Its weights lie in {names}, which is not handed in: it cannot be loaded."
    kind = "{n} ONNX files cannot be loaded, as their weights ({what}) are not handed"
    return MODELS.fail(
        f"{says} Ask for it, or for an export in one file.",
        shown(path),
        kind=f"{kind} in: ask for them, or for exports in one file.",
        what=names,
    )


def _of_another_network(look: Look, path: Path, graph) -> Iterator[Finding]:
    """A graph of grey images beside networks that take three channels alone."""
    weights = {tensor.name for tensor in graph.initializer}
    images = [
        part.type.tensor_type.shape.dim
        for part in graph.input
        if part.name not in weights
    ]
    grey = any(len(dims) == 4 and dims[1].dim_value == 1 for dims in images)
    if grey and not look.on_the_kit and _channels(look) == {3}:
        says = "It takes images of one channel, and every network in the code three:"
        yield MODELS.human(f"{says} of which network is it?", shown(path))


def _channels(look: Look) -> set:
    """Channels that the networks of the group take, as far as they are written: None
    among them where only a run would tell.
    """
    found = set()
    for source in look.sources:
        for _ in calls(source, *ARCHITECTURES):
            found.add(3)
        for call in calls(source, "Conv2d"):
            taken = argument(call, 0, "in_channels")
            number = taken.value if isinstance(taken, ast.Constant) else None
            # deeper layers take what those before them give
            found |= {number} if number in (1, 3, None) else set()
    return found
