"""What the pages show: the model in service and what its home knows of it. The home is
read, never written.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import utils
from demo.unlike import PictureTest
from kit.home import are_settings
from kit.serving import verify_onnx
from kit.watching import load_reference

# What each part needs beside the model; without it the page shows the rest and says
# why.
PARTS = ("images", "reference", "heat map")


@dataclass
class Service:
    """A home with a model in service; `missing` has a sentence for each of PARTS that
    it lacks. `cost_missed`: what a missed positive costs in false alarms, the reason of
    the threshold.
    """

    course: utils.Course
    model: utils.OnnxModel
    data: utils.Data | None = None
    reference: utils.Reference | None = None
    test: PictureTest | None = None
    network: utils.ServedNetwork | None = None
    cost_missed: float | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the service says of one picture, uint8 (C, S, S): calibrated probabilities
    (K,), a heat map (S, S) in 0..1 or None, a DriftResult for each view, and the oddest
    statistic with its deviation or None.
    """

    pixels: np.ndarray
    probabilities: np.ndarray
    decode_ms: float
    model_ms: float
    notes: list[str]  # sentences on what was converted or is odd
    heat: np.ndarray | None
    results: dict[str, utils.DriftResult]
    furthest: tuple[str, float] | None


def open_service(home: str | Path) -> Service:
    """Open the model in service of a home, and as much of the rest as there is.

    Raises
    ------
    CourseError
        No model in service, or no home of this course.
    """
    home = Path(home).expanduser().resolve()
    verify_onnx(home / "exports" / "model.onnx")
    course = open_home(home)
    utils.set_seed(course.seed)
    service = Service(course, open_model(course))
    finders = (_find_data, _find_reference, _find_network)
    for part, find in zip(PARTS, finders, strict=True):
        try:
            find(service)
        except utils.CourseError as error:
            service.missing[part] = str(error).replace(f"{home}{os.sep}", "")
    size = (1, course.channels, course.image_size, course.image_size)
    service.model.predict(np.zeros(size, np.uint8))  # warm
    return service


def open_home(home: Path) -> utils.Course:
    """The course that a home holds, as its course.json tells; nothing is drawn,
    downloaded or recorded.
    """
    story = utils.read_json(home / "course.json", precious=True)
    if not are_settings(story):
        raise utils.CourseError(
            f"{home}/course.json is missing or damaged: run the notebooks with this"
            " HOME, or give the folder of a run with --home."
        )
    source, dataset = story["source"], story["dataset"]
    folder = utils.DATASETS[dataset].folder
    above = home / "data" / "raw" if source in ("sample", "kaggle") else Path(source)
    root = above if above.name == folder else above / folder
    settings = (utils.PROFILES[story["profile"]], story["image_size"], story["seed"])
    places = (home, home, root, utils.best_device())
    return utils.Course(8, dataset, source, *settings, *places, source == "sample")


def open_model(course: utils.Course) -> utils.OnnxModel:
    """The model in service, on the GPU where ONNX Runtime finds it."""
    path = course.exports / "model.onnx"
    try:
        return utils.OnnxModel(path, course.classes, course.provider)
    except utils.CourseError:
        if course.provider == "cpu":
            raise
        return utils.OnnxModel(path, course.classes)


def _find_data(service: Service) -> None:
    service.data = utils.load_data(service.course)


def _find_reference(service: Service) -> None:
    """Theme 6's reference where it describes the model in service; after a promotion,
    its images observed anew.
    """
    data, path = service.data, service.course.exports / "drift_reference.npz"
    try:
        service.reference = load_reference(path, service.model)
    except utils.CourseError:
        if data is None:
            raise
        rows = data.where("val")
        service.reference = utils.fit_reference(
            service.model, np.array(data.pixels[rows]), data.labels[rows]
        )
    service.test = PictureTest(service.reference)


def _find_network(service: Service) -> None:
    """The network of the checkpoint that the model in service was exported from, known
    by its hash.
    """
    course, wanted = service.course, service.model.metadata.get("checkpoint")
    hashes = utils.hash_inputs(course, *sorted(course.checkpoints.glob("*.pth")))
    found = [name for name, digest in hashes.items() if digest == wanted]
    if not found:
        raise utils.CourseError(
            f"no file in checkpoints/ has the hash {wanted}, which exports/model.onnx"
            " names as its origin: bring that checkpoint back, or export the model"
            " again (theme 4 or 7)."
        )
    service.network, state = utils.served_network(course, course.home / found[0])
    service.cost_missed = state.get("cost_missed")


def answer(
    service: Service, pixels: np.ndarray, decode_ms: float = 0.0, notes=()
) -> Answer:
    """Ask the model in service about one picture, uint8 (C, S, S), and look at the
    picture beside it.
    """
    began = time.perf_counter()
    probabilities = service.model.predict(pixels[None])[0]
    model_ms = 1000 * (time.perf_counter() - began)
    seen, test = utils.observe(service.model, pixels[None]), service.test
    results, furthest = (test.look(seen), test.furthest(seen)) if test else ({}, None)
    if seen.statistics["contrast"].item() < utils.BLANK_CONTRAST:
        blank = "The picture is blank: whatever the model answers, it saw nothing."
        notes = [*notes, blank]
    heat = heat_map(service.network, pixels, int(probabilities.argmax()))
    times = decode_ms, model_ms
    return Answer(pixels, probabilities, *times, notes, heat, results, furthest)


def heat_map(network, pixels: np.ndarray, answer: int) -> np.ndarray | None:
    """Grad-CAM of the class answered, (S, S) in 0..1, with the normalisation of the
    network in service.
    """
    if network is None:
        return None
    images = torch.from_numpy(pixels[None].copy()).float() / 255
    images = (images - network.pixel_mean) / network.pixel_std
    return utils.grad_cam(network.model, images, torch.tensor([answer]))[0]
