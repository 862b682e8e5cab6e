"""ONNX Runtime sessions, the store of models, and what a graph looks like."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import torch

from kit.files import CourseError, atomic, clear_disk_errors, hash_file
from kit.home import Course


def can_serve(state: dict) -> bool:
    """Whether a checkpoint says how to normalise, calibrate and decide, in numbers that
    make sense.
    """

    def real(value, low=-math.inf):
        return type(value) in (int, float) and abs(value) < 1e300 and value > low

    lists = [state.get("mean"), state.get("std")]
    whole = all(
        isinstance(values, (list, tuple)) and len(values) == state["channels"]
        for values in lists
    )
    return (
        whole
        and all(map(real, lists[0]))
        and all(real(value, 0) for value in lists[1])
        and real(state["temperature"], 0)
        and real(state["threshold"])
    )


def store_onnx(course: Course, model, about: dict) -> Path:
    """Check an ONNX model (or the file of one), write `about` into its metadata, store
    it under the hash of its bytes.
    """
    import onnx

    model = onnx.load(model) if isinstance(model, Path) else model
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model, {key: json.dumps(value) for key, value in about.items()}
    )
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.onnx"
    path = course.exports / "models" / name
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_metadata(path: Path) -> dict:
    """What an exported file says about itself."""
    import onnx

    props = onnx.load(path, load_external_data=False).metadata_props
    return {item.key: json.loads(item.value) for item in props}


@contextmanager
def temporary_onnx():
    """A path for a file that lives for a moment; ONNX Runtime's advice to preprocess
    is not shown, as the export has done it.
    """
    with tempfile.TemporaryDirectory() as folder:
        logging.disable(logging.WARNING)
        try:
            target = Path(folder) / "model.onnx"
            with clear_disk_errors(target):
                yield target
        finally:
            logging.disable(logging.NOTSET)


def put_in_service(course: Course, stored: Path, name: str = "model.onnx") -> Path:
    """Copy a stored model to exports/<name>, in one step: a reader finds the old one or
    the new one, never half.
    """
    path = course.exports / name
    with atomic(path) as temporary:
        shutil.copy(stored, temporary)
    return path


def verify_onnx(path: Path) -> str:
    """Hash of an exported file, which must be the name of one of the files in
    exports/models/.

    Raises
    ------
    CourseError
        Missing file, or bytes that changed since the export.
    """
    path = Path(path)
    if not path.exists():
        raise CourseError(
            f"{path} is missing: run notebooks/theme4_onnx_deployment.ipynb first."
        )
    digest = hash_file(path)[:16]
    if path.stem != digest and not (path.parent / "models" / f"{digest}.onnx").exists():
        raise CourseError(
            f"{path} (hash {digest}) is none of the files exported to"
            f" {path.parent / 'models'}: its bytes have changed. Run"
            " notebooks/theme4_onnx_deployment.ipynb again."
        )
    return digest


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# How far ONNX Runtime may rewrite a graph, least first.
LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def make_session(
    path: Path,
    provider: str = "cpu",
    level: str = "all",
    threads: int | None = None,
    **options,
):
    """An ONNX Runtime session that runs where it was asked to run.

    Parameters
    ----------
    provider : {"cpu", "cuda", "tensorrt"}
    level : {"none", "basic", "extended", "all"}
        How far ONNX Runtime may rewrite the graph.
    threads : int, optional
        Of one operator; the course's number when None.
    **options
        Of the provider, e.g. use_tf32=0.

    Raises
    ------
    CourseError
        No session, or not on that provider: what ONNX Runtime said, and the way on.
    """
    import onnxruntime as ort

    wanted = PROVIDERS[provider]
    settings = _settings(level)
    settings.intra_op_num_threads = threads or torch.get_num_threads()
    chosen = [(wanted, {key: str(value) for key, value in options.items()})]
    way_on = ""
    if provider != "cpu":
        way_on = (
            " On a machine with an NVIDIA GPU the first cell of the notebook installs"
            ' onnxruntime-gpu; or serve on the CPU: provider="cpu".'
        )
        if wanted not in ort.get_available_providers():
            raise CourseError(
                f"{wanted} cannot start: onnxruntime {ort.__version__} as installed"
                f" here was built without it.{way_on}"
            )
        ort.preload_dlls()  # the CUDA libraries that came with torch
        # not even a single operator may go to the CPU unseen
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider == "tensorrt":
        with suppress(ImportError):
            import tensorrt  # noqa: F401 - loads libraries that the system does not find
        chosen.append(PROVIDERS["cuda"])
    try:
        session = ort.InferenceSession(
            str(path), settings, providers=chosen, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime raises a dozen types of its own
        told = " ".join(str(error).split())[:400]
        raise CourseError(
            f"{path} gives no session on {wanted} ({told}).{way_on}"
        ) from error
    # what get_available_providers() promised is only what was compiled in
    if session.get_providers()[0] != wanted:
        raise CourseError(
            f"{wanted} did not start and ONNX Runtime fell back to"
            f" {session.get_providers()[0]}; its message is printed above.{way_on}"
        )
    return session


def _settings(level: str):
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, LEVELS[level]
    )
    settings.log_severity_level = 3  # errors
    return settings


def rewritten(path: Path, level: str) -> Path:
    """What ONNX Runtime makes of a graph at one level of optimisation, as a file of its
    own in a temporary folder.
    """
    import onnxruntime as ort

    settings = _settings(level)
    target = Path(tempfile.mkdtemp()) / f"{level}.onnx"
    settings.optimized_model_filepath = str(target)
    ort.InferenceSession(str(path), settings, providers=[PROVIDERS["cpu"]])
    return target


def graph_table(paths: dict[str, Path]) -> pd.DataFrame:
    """How often each operator stands in each graph, one column a file; the last rows:
    all nodes, KiB on disk.
    """
    import onnx

    columns = {}
    for name, path in paths.items():
        nodes = onnx.load(path).graph.node
        kinds = [
            node.op_type + (f" ({node.domain})" if node.domain else "")
            for node in nodes
        ]
        sizes = {"all nodes": len(nodes), "KiB on disk": path.stat().st_size // 1024}
        columns[name] = pd.Series(kinds).value_counts().to_dict() | sizes
    table = pd.DataFrame(columns).fillna(0).astype(int)
    last = ["all nodes", "KiB on disk"]
    return pd.concat(
        [
            table.drop(index=last).sort_values(list(columns), ascending=False),
            table.loc[last],
        ]
    )
