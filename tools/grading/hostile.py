"""Files of strangers, looked at before the course's own readers open them.

A reader of the course may trust its file, as it wrote it. A grader's file may claim any
size, any shape and any network: what is refused here never reaches `utils`."""

import json
import math
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import utils
from kit.files import load_arrays
from kit.record import check_stored_answers
from tools.shared.foreign import shallow, shown

MAX_ARRAYS = 1 << 30  # bytes of one .npz file when it is unpacked
ROOM = 512 << 20  # a group's network may drop a part that it was made with


class HostileError(utils.CourseError):
    """A file that no kit wrote: its name, and what is wrong with it."""


@contextmanager
def _in_a_sentence(path: Path, what: str):
    """Whatever foreign bytes bring about, as one HostileError: torch, zipfile, protobuf
    and NumPy raise a dozen kinds.
    """
    try:
        yield
    except utils.CourseError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {shown(error)[:200]}"
        raise HostileError(f"{path} {what} ({why}).") from error


# --------------------------------------------------------------------------------------
# Checkpoints
# --------------------------------------------------------------------------------------


def load_model(path: Path, classes=None):
    """`utils.load_model` for a stranger's checkpoint."""
    with small_network(path):
        return utils.load_model(path, classes)


def served_network(course, path: Path):
    """`utils.served_network` for a stranger's checkpoint."""
    with small_network(path) as state:
        if not can_serve(state, course.channels):
            raise ValueError("it does not say how to normalise, calibrate and decide")
        return utils.served_network(course, path)


@contextmanager
def small_network(path: Path):
    """Gives the state of a checkpoint, once it is checked; a network that is far larger
    than the file is stopped before it is filled.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    state = check_checkpoint(path)
    parameters = len(state["weights"]) + 1000
    size = 4 * Path(path).stat().st_size + ROOM

    def count(module, name, parameter):
        nonlocal parameters, size
        parameters -= 1
        size -= 0 if parameter is None else parameter.nbytes
        if parameters < 0 or size < 0:
            raise ValueError("its arguments make a network far larger than the file")

    hook = register_module_parameter_registration_hook(count)
    try:
        with _in_a_sentence(path, "holds no network that can be scored"):
            yield state
    finally:
        hook.remove()


def check_checkpoint(path: Path) -> dict:
    """The state that a checkpoint holds, plain values and tensors of the size that they
    claim.

    Raises
    ------
    HostileError
        Missing, or none.
    """
    path = Path(path)
    with _in_a_sentence(path, "is missing, damaged or no checkpoint of this course"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                size = sum(entry.file_size for entry in packed.infolist())
            if size > path.stat().st_size:  # torch stores, plainly
                raise ValueError("more content than the file has bytes")
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_state(state)
    return state


def _check_state(state: dict) -> None:
    json.dumps(state["config"])
    if not isinstance(state["architecture"], str):
        raise TypeError("no name of a network")
    if not isinstance(state["config"], dict):
        raise TypeError("no arguments of a network")
    for name, value in state["weights"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise TypeError("weights that are no tensors")
        if value.nbytes > value.untyped_storage().nbytes():
            raise ValueError("weights that claim more numbers than the file holds")
    if not _are_names(state.get("classes", [])):
        raise TypeError("classes that are no names")


def _are_names(values) -> bool:
    listed = isinstance(values, (list, tuple))
    return listed and all(isinstance(name, str) for name in values)


def can_serve(state: dict, channels: int) -> bool:
    """Whether a checkpoint says how to normalise, calibrate and decide, in numbers that
    make sense.
    """

    def real(value, low=-math.inf):
        return type(value) in (int, float) and low < value and abs(value) < 1e300

    means, spreads = state.get("mean"), state.get("std")
    for values, low in ((means, -math.inf), (spreads, 0)):
        if not isinstance(values, (list, tuple)) or len(values) != channels:
            return False
        if not all(real(value, low) for value in values):
            return False
    temperature, threshold = state.get("temperature", 1.0), state.get("threshold", 0.5)
    return real(temperature, 0) and real(threshold)


# --------------------------------------------------------------------------------------
# ONNX files
# --------------------------------------------------------------------------------------


def onnx_model(path: Path, classes=None):
    """`utils.OnnxModel` for a stranger's file."""
    with _in_a_sentence(path, "was not exported by this course"):
        check_interface(Path(path).read_bytes())
        return utils.OnnxModel(path, classes)


def onnx_metadata(content: bytes) -> dict:
    """What an exported model says about itself.

    Raises
    ------
    ValueError
        It is no ONNX model, or its metadata are not those of an export.
    """
    return _metadata(_parsed(content))


def _parsed(content: bytes):
    import onnx

    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has errors of its own
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _metadata(model) -> dict:
    try:
        found = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        return shallow(found)
    except RecursionError as error:
        raise ValueError("metadata nested too deep") from error


def check_interface(content: bytes) -> None:
    """Raise ValueError unless inputs, outputs and metadata are those of an export, and
    the weights lie inside the file.
    """
    model = _parsed(content)
    about, graph = _metadata(model), model.graph
    if any(part.external_data for part in graph.initializer):
        raise ValueError("its weights lie in another file")
    shapes = {part.name: _shape(part) for part in (*graph.input, *graph.output)}
    inputs = {part.name for part in graph.input} - {w.name for w in graph.initializer}
    if inputs != {"pixels"} or "probabilities" not in shapes:
        raise ValueError(f"its inputs and outputs are {', '.join(shapes)}")
    if not _are_names(about.get("classes")):
        raise ValueError("classes that are no names")
    image = [about.get("channels"), about.get("size"), about.get("size")]
    answers = [len(about["classes"])]
    if shapes["pixels"][1:] != image or shapes["probabilities"][1:] != answers:
        says = f"it takes {shapes['pixels']} and gives {shapes['probabilities']}"
        raise ValueError(says)
    numbers = about.get("threshold"), about.get("temperature")
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError("a threshold or temperature that is no number")
    if not all(map(math.isfinite, numbers)) or numbers[1] <= 0:
        raise ValueError("a threshold or temperature that is no such number")


def _shape(value) -> list[int | str]:
    return [
        part.dim_param or part.dim_value for part in value.type.tensor_type.shape.dim
    ]


# --------------------------------------------------------------------------------------
# Arrays and records
# --------------------------------------------------------------------------------------


def load_answers(file) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) and labels (N,) of a .npz file: numbers, never objects,
    which could run code.

    Raises
    ------
    ValueError
        Whatever is wrong with it: damaged, larger than MAX_ARRAYS, other arrays.
    """
    try:
        with zipfile.ZipFile(file) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
    except Exception as error:  # zipfile raises half a dozen kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if size > MAX_ARRAYS:
        raise ValueError(f"it unpacks to more than {MAX_ARRAYS:,} bytes")
    if hasattr(file, "seek"):
        file.seek(0)
    stored = load_arrays(file)
    if missing := {"probabilities", "labels"} - stored.keys():
        raise ValueError(f"it has no array {' and no '.join(sorted(missing))}")
    check_stored_answers(stored["probabilities"], stored["labels"])
    return stored["probabilities"], stored["labels"]
