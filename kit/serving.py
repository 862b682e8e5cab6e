"""ONNX files and ONNX Runtime sessions: the store of models, and what a graph holds."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.files import (
    CourseError,
    atomic,
    check_choice,
    hash_file,
    read_json,
    write_json,
)
from kit.home import Course

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
LAYERS = ["Conv", "Gemm", "MatMul"]  # the operators with weights
# How far ONNX Runtime may rewrite a graph, least first.
LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
CUDA_OPTIONS = {
    # where we say float32, it is: newer GPUs would round to 10 bits of the mantissa
    "use_tf32": 0,
    # else every new size of batch is tried with all algorithms, for seconds
    "cudnn_conv_algo_search": "HEURISTIC",
}
WAY_ON = (
    " On a machine with an NVIDIA GPU the first cell of the notebook installs"
    " onnxruntime-gpu; or serve on the CPU, and the course goes on: run %env"
    " COURSE_PROVIDER=cpu in a new cell, then this cell again."
)


def store_onnx(course: Course, model, about: dict) -> Path:
    """Check an ONNX model, write `about` into its metadata, store it under the hash of
    its bytes.
    """
    import onnx

    kinds = {node.op_type for node in model.graph.node}
    if about.get("precision", "").startswith("int8") and "QuantizeLinear" not in kinds:
        raise CourseError(
            "Nothing of this network would be INT8: name fewer nodes in keep_float, or"
            " layers in only."
        )
    del model.metadata_props[:]
    texts = {key: json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.onnx"
    path = course.exports / "models" / name
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path


def export_once(course: Course, key: str, export) -> Path:
    """The stored file of an export that was made before under this key, else that of
    `export()`.
    """
    note = course.runs / f"export-{key}" / "result.json"
    stored = course.exports / "models" / read_json(note).get("file", "none")
    if not stored.exists() or hash_file(stored)[:16] != stored.stem:
        stored = export()
        write_json(note, {"file": stored.name})
    return stored


def put_in_service(course: Course, stored: Path, name: str = "model.onnx") -> Path:
    """Copy a stored model to exports/<name>, in one step: a reader finds the old one or
    the new one, never half.
    """
    path = course.exports / name
    with atomic(path) as temporary:
        shutil.copy(stored, temporary)
    return path


def verify_onnx(path: Path) -> str:
    """Hash of an exported file, which must be that of a file in exports/models/."""
    path = Path(path)
    advice = "notebooks/theme4_onnx_deployment.ipynb"
    if not path.exists():
        raise CourseError(f"{path} is missing: run {advice} first.")
    digest = hash_file(path)[:16]
    if path.stem != digest and not (path.parent / "models" / f"{digest}.onnx").exists():
        raise CourseError(
            f"{path} (hash {digest}) is none of the files exported to"
            f" {path.parent / 'models'}: its bytes have changed. Run {advice} again."
        )
    return digest


def make_session(path: Path, provider="cpu", level="all", threads=None, **options):
    """An ONNX Runtime session that runs where it was asked to run, or a CourseError
    with what ONNX Runtime said.

    provider: a key of PROVIDERS or a name of ONNX Runtime, its options (beside
    CUDA_OPTIONS) in **options; level: a key of LEVELS; threads: of one operator, the
    course's number when None.
    """
    import onnxruntime as ort

    check_choice("level", level, LEVELS)
    wanted, settings = _provider(provider), _settings(level)
    if wanted == PROVIDERS["cuda"]:
        options = CUDA_OPTIONS | options
    settings.intra_op_num_threads = threads or torch.get_num_threads()
    chosen = [(wanted, {key: str(value) for key, value in options.items()})]
    if wanted != PROVIDERS["cpu"]:
        _load_libraries(wanted)
        # not even a single operator may go to the CPU unseen
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if wanted == PROVIDERS["tensorrt"]:
        chosen.append(PROVIDERS["cuda"])
    try:
        session = ort.InferenceSession(
            str(path), settings, providers=chosen, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen types of its own
        told = " ".join(str(error).split())[:400]
        way_on = WAY_ON if wanted != PROVIDERS["cpu"] else ""
        raise CourseError(
            f"{path} gives no session on {wanted} ({told}).{way_on}"
        ) from error
    # what get_available_providers() promised is only what was compiled in
    if session.get_providers()[0] != wanted:
        raise CourseError(
            f"{wanted} did not start and ONNX Runtime fell back to"
            f" {session.get_providers()[0]}; its message is printed above.{WAY_ON}"
        )
    return session


def _provider(name: str) -> str:
    """The name that ONNX Runtime gives a provider, whatever its case."""
    import onnxruntime as ort

    known = {**PROVIDERS, **{full: full for full in ort.get_all_providers()}}
    chosen = {key.lower(): full for key, full in known.items()}.get(str(name).lower())
    if chosen is None:
        check_choice("provider", name, PROVIDERS)
    return chosen


def _load_libraries(provider: str) -> None:
    """Load what a provider for GPUs needs and the system does not find by itself."""
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        raise CourseError(
            f"{provider} cannot start: onnxruntime {ort.__version__} as installed here"
            f" was built without it.{WAY_ON}"
        )
    ort.preload_dlls()  # the CUDA libraries that came with torch
    if provider == PROVIDERS["tensorrt"]:
        with suppress(ImportError):
            import tensorrt  # noqa: F401


def _settings(level: str):
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3  # errors
    level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
    settings.graph_optimization_level = level
    return settings


class OnnxModel:
    """A network in service: a session, the `provider` where it really runs, and what
    its file says about itself.

    Raises
    ------
    CourseError
        Missing, changed or foreign file; another class list; a provider that did not
        start.
    """

    def __init__(
        self, path, classes=None, provider="cpu", level="all", threads=None, **options
    ):
        self.path, self.hash = Path(path), verify_onnx(path)
        self.key = self.hash  # for `fingerprint`: the same file answers the same
        self.session = make_session(path, provider, level, threads, **options)
        self.provider = self.session.get_providers()[0]
        self.metadata = told = _metadata(self.session, path)
        self.classes, self.dataset = told["classes"], told["dataset"]
        self.size, self.channels = told["size"], told["channels"]
        self.threshold, self.temperature = told["threshold"], told["temperature"]
        if classes is not None and list(classes) != self.classes:
            raise CourseError(
                f"{path} knows the classes {self.classes}, asked for {list(classes)}:"
                " use the HOME of that dataset, or run"
                " notebooks/theme4_onnx_deployment.ipynb again."
            )

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float32 (N, K) of pixels uint8 (N, C, S, S)."""
        return self._run(["probabilities"], pixels)[0]

    def predict_all(
        self, pixels: np.ndarray, batch: int = 128
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (N, K) and embedding (N, D) of many images, in batches."""
        starts = range(0, max(len(pixels), 1), batch)
        names = ["probabilities", "embedding"]
        parts = [self._run(names, pixels[start : start + batch]) for start in starts]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _run(self, names: list[str], pixels: np.ndarray) -> list[np.ndarray]:
        shape = getattr(pixels, "shape", ())
        kind = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {shape}"
        image = (self.channels, self.size, self.size)
        if not kind.startswith("uint8") or shape[1:] != image or shape[0] == 0:
            raise CourseError(
                f"pixels must be uint8 (N, {', '.join(map(str, image))}), N >= 1; these"
                f" are {kind}: pass what utils.decode(path, size, channels) returns,"
                " one image as pixels[None]; the model normalises by itself."
            )
        return self.session.run(names, {"pixels": np.ascontiguousarray(pixels)})


def _metadata(session, path: Path) -> dict:
    """What an exported file says about itself, which must fit what it takes and gives;
    a CourseError where it is no file of `utils.export_onnx`.
    """
    stored = session.get_modelmeta().custom_metadata_map
    ports = [*session.get_inputs(), *session.get_outputs()]
    shapes = {port.name: port.shape[1:] for port in ports}
    try:
        told = {key: json.loads(value) for key, value in stored.items()}
        image = [told["channels"], told["size"], told["size"]]
        expected = {"pixels": image, "probabilities": [len(told["classes"])]}
        lost = {"dataset", "threshold", "temperature"} - told.keys()
        if lost or not expected.items() <= shapes.items():
            raise ValueError(f"no {lost or expected}; it takes and gives {shapes}")
    except (KeyError, TypeError, ValueError) as error:
        raise CourseError(
            f"{path} was not exported by this course (its metadata: {error!r}): export"
            " the network with utils.export_onnx."
        ) from error
    return told


def check_numbers(network, checkpoint: Path) -> None:
    """Refuse to serve a network whose weights, normalisation or temperature are no
    numbers: it would answer NaN, or refuse to be quantized.
    """
    parts = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    parts["temperature"] = torch.tensor(float(network.temperature))
    bad = [name for name, part in parts.items() if not part.isfinite().all()]
    if bad:
        first = bad[0].removeprefix("model.0.").replace("model.1.", "classifier.")
        raise CourseError(
            f"{checkpoint} holds NaN or infinite values in {len(bad)} of"
            f" {len(parts)} parts (the first: {first}): its training has diverged;"
            " train again with a lower lr."
        )


@contextmanager
def open_to_quantize(path: Path, pixels: np.ndarray, named: list[str]):
    """(model, what it says about itself, a place for the quantized one), if there is
    something to quantize, images to do it by, and every node that is named.
    """
    import onnx
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(path)
    _check_calibration(path, model, pixels, named)
    about = {item.key: json.loads(item.value) for item in model.metadata_props}
    add_pre_process_metadata(model)  # else it is asked for; the export has done it
    with tempfile.TemporaryDirectory() as folder:
        yield model, about | {"float_model": path.stem}, f"{folder}/quantized.onnx"


def _check_calibration(path: Path, model, pixels: np.ndarray, named: list[str]) -> None:
    nodes = {node.name: node.op_type for node in model.graph.node}
    if "QuantizeLinear" in nodes.values():
        raise CourseError(f"{path} is INT8 already: give the float32 file.")
    if unknown := [name for name in named if name not in nodes]:
        layers = [name for name, kind in nodes.items() if kind in LAYERS]
        raise CourseError(
            f"{path} has no node {', '.join(unknown)}: its layers are"
            f" {', '.join(layers)} (kit.serving.layers_of says which is which)."
        )
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    found = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {np.shape(pixels)}"
    if (
        not found.startswith("uint8")
        or [*np.shape(pixels)[1:]] != shape
        or not len(pixels)
    ):
        raise CourseError(
            f"The calibration images must be uint8 (N, {', '.join(map(str, shape))}), N"
            f" >= 1, these are {found}: pass data.pixels[utils.calibration_rows(data)]."
        )


def layers_of(path: Path) -> dict[str, str]:
    """The nodes with weights: name -> name of the layer in PyTorch."""
    import onnx

    nodes = [node for node in onnx.load(path).graph.node if node.op_type in LAYERS]
    weights = {node.name: node.input[1].removesuffix(".weight") for node in nodes}
    # body and head of the network are model.0 and model.1 of a ServedNetwork
    plain = {n: w.removeprefix("model.0.") for n, w in weights.items()}
    return {n: re.sub(r"^model\.1", "classifier", w) for n, w in plain.items()}


def rewritten(path: Path, level: str) -> Path:
    """What ONNX Runtime makes of a graph at one level of optimisation, as a file of its
    own in a temporary folder.
    """
    import onnxruntime as ort

    settings = _settings(level)
    settings.optimized_model_filepath = f"{tempfile.mkdtemp()}/{level}.onnx"
    ort.InferenceSession(str(path), settings, providers=[PROVIDERS["cpu"]])
    return Path(settings.optimized_model_filepath)


def graph_table(paths: dict[str, Path]) -> pd.DataFrame:
    """How often each operator stands in each graph, one column a file; last row: all
    nodes.
    """
    import onnx

    table = {}
    for name, path in paths.items():
        nodes = onnx.load(path).graph.node
        kinds = [f"{n.op_type} ({n.domain})" if n.domain else n.op_type for n in nodes]
        table[name] = pd.Series(kinds).value_counts()
    table = pd.DataFrame(table).fillna(0).astype(int)
    table = table.sort_values(list(paths), ascending=False)
    table.loc["all nodes"] = table.sum()
    return table
