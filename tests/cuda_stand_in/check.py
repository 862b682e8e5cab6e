"""Has every node of the course's networks a CUDA kernel? Asked of a real wheel of
onnxruntime-gpu, on a machine without a GPU.

    pip install --target WHEEL --no-deps "onnxruntime-gpu<1.27"
    python tests/cuda_stand_in/check.py WHEEL

Exports both networks from random weights, in float32, in float16 and unfused, and opens
each as a notebook on a GPU does, plainly and with CUDA graphs. Exit status 1: a node
would run on the CPU, or no session came about. Needs gcc and binutils.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

KIT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(KIT), str(KIT / "tests")]
CUDA = "CUDAExecutionProvider"
SIZE = 224  # what the course takes on a GPU


def exports(home: Path) -> dict[str, Path]:
    """Both networks in each form that theme 4 serves."""
    import torch
    from support.networks import store

    import utils

    places = (home, home, home, torch.device("cpu"))
    course = utils.Course(
        4, "pneumonia", "sample", utils.PROFILES["full"], SIZE, 42, *places, True
    )
    torch.manual_seed(0)
    networks = {
        "baseline": utils.BaselineCNN(course.channels, len(course.classes)),
        "optimised": utils.optimized_network(course),
    }
    forms = {
        "float32": {},
        "float16": {"dtype": torch.float16},
        "float32, unfused": {"fuse": False},
    }
    grey = types.SimpleNamespace(mean=[0.5], std=[0.2])
    files = {}
    for name, network in networks.items():
        checkpoint = store(course, grey, network, f"{name}.pth")
        for form, options in forms.items():
            files[f"{name}, {form}"] = utils.export_onnx(course, checkpoint, **options)
    return files


def without_kernel(path: Path) -> Path:
    """A graph whose only operator has a kernel on the CPU alone."""
    import onnx
    from onnx import TensorProto, helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None])
        for name in ("given", "different")
    ]
    node = helper.make_node("Unique", ["given"], ["different"], "the_node")
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def elsewhere(path: str) -> list[str]:
    """The nodes that this wheel does not place on CUDA, as "operator (name)"."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(path, settings, providers=[CUDA])
    return [
        f"{node.op_type} ({node.name})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != CUDA
        for node in part.get_nodes()
    ]


def open_one(path: str) -> str:
    """What is wrong with a file, in one sentence; "" where all of it runs on CUDA. Run
    in a process of its own, under the stand-in.
    """
    # A torch that was built for CUDA loads NVIDIA's libraries for the whole process,
    # and they find no GPU. All that is asked of it here is a number of threads.
    sys.modules["torch"] = torch = types.ModuleType("torch")
    torch.get_num_threads = lambda: 1
    from kit.files import CourseError
    from kit.serving import make_session

    try:
        for graphs in (0, 1):
            session = make_session(path, "cuda", enable_cuda_graph=graphs)
            assert session.get_providers()[0] == CUDA
    except CourseError as error:
        nodes = elsewhere(path)
        if nodes:
            return f"these nodes have no CUDA kernel: {', '.join(nodes)}"
        return f"no session came about: {error}"
    return ""


def opened(path: Path, wheel: Path, libraries: Path) -> str:
    """`open_one` in a process that finds this wheel and these libraries first."""
    found = {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": wheel.resolve()}
    before = {name: os.environ[name] for name in found if os.environ.get(name)}
    paths = {
        name: os.pathsep.join(filter(None, (str(first), before.get(name))))
        for name, first in found.items()
    }
    command = [sys.executable, __file__, "--open", str(path), str(wheel)]
    done = subprocess.run(
        command, env=os.environ | paths, capture_output=True, text=True
    )
    if not done.returncode:
        return ""
    said = done.stderr.strip().splitlines() or [done.stdout.strip()]
    return f"{said[-1]} [status {done.returncode}]"


def main(wheel: Path) -> int:
    from build import PROVIDER, build

    if not (wheel / PROVIDER).exists():
        print(f"{wheel} holds no onnxruntime-gpu for Linux: {PROVIDER} is missing.")
        return 1
    print(*(path.stem for path in wheel.glob("onnxruntime*.dist-info")), flush=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        libraries = build(wheel, Path(place) / "cuda")
        # were this one taken, the check would prove nothing
        lonely = opened(without_kernel(Path(place) / "lonely.onnx"), wheel, libraries)
        if "Unique (the_node)" not in lonely:
            print(f"A node without a CUDA kernel was not noticed: {lonely or 'taken'}")
            return 1
        for name, path in exports(Path(place) / "home").items():
            told = opened(path, wheel, libraries)
            wrong += bool(told)
            print(f"{name}: {told or 'every node on CUDA'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="where pip put onnxruntime-gpu")
    parser.add_argument("--open", metavar="FILE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.open:
        sys.exit(open_one(asked.open) or 0)
    else:
        sys.exit(main(asked.wheel))
