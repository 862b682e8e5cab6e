"""One table of all that the course writes. Killed at any file operation, or out of
space: what a reader finds is the old or the new, whole, and the next run ends with the
new.
"""

import random
import re
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import onnx
import pandas as pd
import pypdf
import pytest
import torch
from support.killing import (
    error_of,
    killed,
    killed_in_writing,
    leftovers,
    on_full_disk,
    operations,
    told,
)
from support.networks import network

import utils
from kit import archive, datasets, figures
from kit.files import KIT, copy_back, copy_to_home, make_parent
from kit.promotion import in_service, rollback
from kit.record import read_record
from kit.serving import put_in_service, verify_onnx
from kit.watching import load_reference
from tools.colab import publish
from tools.grading import verdict
from tools.handin import pack
from tools.report import build, card, group

FORKED = "ignore:.*multi-threaded, use of fork.*"
pytestmark = [pytest.mark.course, pytest.mark.filterwarnings(FORKED)]
CLASSES = ("NORMAL", "PNEUMONIA")


@dataclass(frozen=True)
class Writer:
    """One thing that is written in a home.

    Attributes
    ----------
    write : callable(course, value)
        Brings about the state 0, which may be that nothing is there, or 1.
    read : callable(course) -> object
        What the course's own readers find; a dict has one entry a file, each of which
        is old or new by itself.
    files : str
        What a full disk is told about, below the home; empty: see its own test.
    size : int
        Bytes that a file may have on that disk.
    apart : bool
        It starts threads, which survive no fork: it is called in a process of its own.
    """

    write: object
    read: object
    files: str = ""
    size: int = 2000
    apart: bool = False


def contents(folder: Path) -> dict[str, str]:
    """What every file says, by its name."""
    return {
        path.relative_to(folder).as_posix(): utils.hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".tmp", ".lock")
    }


def bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def anew(folder, write):
    """A writer whose state 0 is that the folder is not there."""

    def either(course, value):
        if value:
            return write(course)
        shutil.rmtree(folder(course), ignore_errors=True)

    return either


# --- the lecture and the kit


def work(value):
    return {"value": value + 1, "much": [0.5] * 1000}


def stored_result(course):
    return [utils.read_json(path) for path in course.runs.glob("work-*/result.json")]


def start_again(course):
    utils.start(1, source=course.source, profile="smoke", home=course.home)


def write_reference(course, value):
    answers = np.random.default_rng(value).random((300, 3))
    parts = pd.DataFrame(answers), answers[:, :2], answers, np.ones(300)
    reference = utils.Reference(*parts, "0" * 16, CLASSES)
    reference.save(course.exports / "drift_reference.npz")


def read_reference(course):
    model = SimpleNamespace(hash="0" * 16, classes=CLASSES)
    path = course.exports / "drift_reference.npz"
    return load_reference(path, model).embedding.sum()


def pixels(course, value):
    index = utils.load_index(course)
    utils.pixel_cache(course, index[index["pool"] != ""].reset_index(drop=True))


def tiny_model(value: float = 0.0):
    """An ONNX model of 100 kB that nobody runs."""
    weights = np.full(25_000, value, np.float32)
    weights = onnx.numpy_helper.from_array(weights, "weights")
    node = onnx.helper.make_node("Add", ["weights", "weights"], ["sum"])
    sums = onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [25_000])
    graph = onnx.helper.make_graph([node], "tiny", [], [sums], [weights])
    return onnx.helper.make_model(graph)


def export(course, value):
    put_in_service(course, utils.store_onnx(course, tiny_model(value), {}))


def swap(course, value):
    """Model 1 comes by promotion and goes by rollback."""
    first = course.home / "first"
    if not first.exists():
        old, _ = (utils.store_onnx(course, tiny_model(n), {}) for n in (0, 1))
        first.write_text(put_in_service(course, old) and old.stem)
    old = first.read_text()
    models = (course.exports / "models").glob("*.onnx")
    (new,) = (path for path in models if path.stem != old)
    report = SimpleNamespace(new=new.stem, current=old, accepted=True, figures={})
    if value and in_service(course) == old:
        utils.promote(course, new, report)
    elif not value and in_service(course) != old:
        rollback(course)


def log_lines(course, value):
    """Lines are only ever added: those of before stand, torn ones are passed over."""
    path = course.home / "logs" / "production.csv"
    if not value:
        path.unlink(missing_ok=True)
    logger = utils.InferenceLogger(path, run_id=f"run {value}")
    logger.log_batch([1] * 30, [0.5] * 30, [1.0] * 30, source="a, b")


def logged(course):
    log = utils.read_log(course.home / "logs" / "production.csv")
    return sorted(set(log["run_id"]))


def with_local(course):
    return replace(course, local=course.home / "local")


def to_home(course, value):
    away = with_local(course)
    for name in ("a", "b"):
        path = make_parent(away.local / "logs" / name)
        path.write_text(f"{value}" * 5000)
    copy_to_home(away, away.local / "logs")


def back_from_home(course, value):
    away = with_local(course)
    for name in ("a", "b"):
        make_parent(course.home / "logs" / name).write_text("x" * 5000)
    if value:
        copy_back(away, away.local / "logs")
    else:
        shutil.rmtree(away.local / "logs", ignore_errors=True)


def unpacked(course):
    path = course.home / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train/NORMAL/a.jpeg", b"a" * 5000)
        file.writestr("test/NORMAL/b.jpeg", b"b" * 5000)
    archive.unpack(path, course.home / "raw")


def solar(course) -> Path:
    return course.home / "raw" / "solar_panels"


def draw(course):
    datasets.acquire("solar", "sample", course.home / "raw", 100, 1)


def train(course):
    recipe = utils.Recipe(epochs=1, batch_size=16, augment=True, average=1.0)
    often = {"tracker": "none", "progress": False, "save_every": 0.0}
    utils.fit(course, "probe", network(), utils.load_data(course), recipe, **often)


def trained(course) -> list[dict]:
    paths = course.runs.glob("probe-*/finished.pt")
    weights = [torch.load(path, weights_only=True)["weights"] for path in paths]
    return [{name: w.numpy().tobytes() for name, w in one.items()} for one in weights]


KIT_WRITERS = {
    "settings": Writer(
        anew(lambda c: c.home, start_again),
        # the thread count follows what other programs do meanwhile
        lambda c: utils.read_json(c.home / "course.json") | {"threads": None},
        "course.json",
        size=10,
    ),
    "record": Writer(
        lambda c, v: utils.record(c, "theme1", {"values": [v] * 2000}),
        lambda c: read_record(c.home)["theme1"]["values"],
        "exports/results.json",
    ),
    "checkpoint": Writer(
        lambda c, v: utils.save_checkpoint(c.checkpoints / "m.pth", network(), value=v),
        lambda c: utils.load_model(c.checkpoints / "m.pth")[1]["value"],
        "checkpoints/m.pth",
    ),
    "table": Writer(
        lambda c, v: utils.save_table(c, pd.DataFrame({"value": [v] * 999}), "t"),
        lambda c: pd.read_csv(c.exports / "tables" / "theme1_t.csv").value.tolist(),
        "exports/tables/theme1_t.csv",
    ),
    "figure": Writer(
        lambda c, v: utils.save_figure(
            c, figures.image_grid([np.eye(8)], [f"{v}"]), "f"
        ),
        lambda c: bytes_of(c.exports / "figures" / "theme1_f.png"),
        "exports/figures/theme1_f.png",
    ),
    "predictions": Writer(
        lambda c, v: utils.save_predictions(
            c, "p", np.full((500, 2), 1 / (v + 1)), np.zeros(500, int)
        ),
        lambda c: np.load(c.exports / "predictions" / "p.npz")["probabilities"].sum(),
        "exports/predictions/p.npz",
    ),
    "result": Writer(
        anew(lambda c: c.runs, lambda c: utils.load_or_run(c, "work", work, 1)),
        lambda c: [stored["result"] for stored in stored_result(c)],
        "runs/work-*/result.json",
    ),
    "index": Writer(
        anew(lambda c: c.data, utils.build_index),
        lambda c: bytes_of(c.data / "index.csv"),
        "data/pneumonia/index.csv",
    ),
    "pixels": Writer(
        anew(lambda c: c.data / "cache", lambda c: pixels(c, 1)),
        lambda c: contents(c.data / "cache") if (c.data / "cache").exists() else {},
        "data/pneumonia/cache/*.npy",
        size=50_000,
    ),
    "reference": Writer(write_reference, read_reference, "exports/drift_reference.npz"),
    "export": Writer(
        export,
        lambda c: verify_onnx(c.exports / "model.onnx"),
        "exports/models/*.onnx",
    ),
    "promotion": Writer(swap, lambda c: in_service(c), "exports/model.onnx", 50_000),
    "rollback": Writer(
        lambda c, v: swap(c, 1 - v),
        lambda c: in_service(c),
        "exports/model.onnx",
        50_000,
    ),
    "log": Writer(log_lines, logged, "logs/production.csv", 3000),
    "copy to Drive": Writer(to_home, lambda c: contents(c.home / "logs")),
    "copy from Drive": Writer(
        back_from_home, lambda c: contents(c.home / "local" / "logs")
    ),
    "unpacked zip": Writer(
        anew(lambda c: c.home / "raw", unpacked), lambda c: contents(c.home / "raw")
    ),
    "drawn images": Writer(
        anew(lambda c: c.home / "raw", draw), lambda c: contents(solar(c))
    ),
    "training": Writer(anew(lambda c: c.runs, train), trained, "runs/probe-*/*.pt"),
}


# --- tools


def summary(course, value):
    told = {"rows": [], "level": "fast", "date": f"day {value}", "seconds": 1.0}
    verdict.write_summary(told | {"much": [value] * 2000}, course.home / "checks")


def stamp(course, value):
    project = course.home / "kit"
    if not value or not project.exists():
        shutil.rmtree(project, ignore_errors=True)
        names = "theme1_data_analysis.ipynb", "theme2_baseline_model.ipynb"
        for name in names:
            path = make_parent(project / "notebooks" / name)
            shutil.copy(KIT / "notebooks" / name, path)
        shutil.copy(KIT / "README.md", project)
    if value:
        publish.publish("https://github.com/ada/deep-course", "main", project)


def hand_in(course, value):
    """A zip of a small project; that it passes the checks is for tests/test_pack.py."""
    (course.home / "README.md").write_text(f"{value}" * 500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack.static, "checks", lambda submission: [])
        patch.setattr(pack, "open_submission", lambda *_: None)
        pack.build(course.home)


def packed(course) -> str:
    with zipfile.ZipFile(course.home / "hand-in-pneumonia.zip") as file:
        assert file.testzip() is None
        return file.read("project/README.md").decode()[:1]


def report(course, value):
    group.create(course.home, "en")
    path = course.home / "report" / "group.toml"
    path.write_text(re.sub(r"title = .*", f'title = "Title {value}"', path.read_text()))
    build.build(course.home, lang="en")


def reported(course) -> str:
    pages = pypdf.PdfReader(course.home / "report" / "report.pdf").pages
    return re.search(r"Title \d", pages[0].extract_text())[0]


def compact(course, value):
    from tools.scale import logs

    path = course.home / "logs" / "production.csv"
    if not value:
        path.unlink(missing_ok=True)
    logger = utils.InferenceLogger(path)
    logger.log_batch([1] * 3, [0.5] * 3, [1.0] * 3)
    logs.compact(path, path.with_suffix(".parquet"))


def compacted(course) -> int:
    from tools.scale import logs

    folder = course.home / "logs" / "production.parquet"
    return logs.windows(folder)["requests"].sum() > 3


def site(course):
    from tools.web import build as site

    executed = course.exports / "notebooks" / "theme1_data_analysis.ipynb"
    make_parent(executed).write_text(nbformat.writes(nbformat.v4.new_notebook()))
    site.build(course.home, course.home / "site")


TOOL_WRITERS = {
    "summary of a class": Writer(
        summary, lambda c: contents(c.home / "checks"), "checks/summary.json"
    ),
    "model card": Writer(
        lambda c, v: card.write(
            c.home, read_record(c.home) | {"theme1": {"images": v}}
        ),
        lambda c: bytes_of(c.exports / "MODEL_CARD.md"),
        "exports/MODEL_CARD.md",
        500,
    ),
    "texts of the report": Writer(
        anew(lambda c: c.home / "report", lambda c: group.create(c.home, "en")),
        lambda c: contents(c.home / "report"),
        "report/references.bib",
        200,
    ),
    "report": Writer(report, reported, "report/report.pdf", 60_000, apart=True),
    "published kit": Writer(
        stamp, lambda c: contents(c.home / "kit"), "kit/notebooks/*.ipynb"
    ),
    "hand-in": Writer(hand_in, packed, "hand-in-pneumonia.zip", 600),
    "compacted log": Writer(
        compact, compacted, "logs/production.parquet", 1000, apart=True
    ),
    "site": Writer(
        anew(lambda c: c.home / "site", site),
        lambda c: contents(c.home / "site"),
        "site",
    ),
}
WRITERS = KIT_WRITERS | TOOL_WRITERS
MARKS = {"compacted log": pytest.mark.scale, "site": pytest.mark.bonus}
ALL = [pytest.param(name, marks=MARKS.get(name, ())) for name in WRITERS]
ON_DISK = [row for row in ALL if WRITERS[row.values[0]].files]


# --- what holds for all of them


@pytest.fixture
def course(open_course):
    course = open_course()
    utils.build_index(course)
    utils.load_data(course)
    return course


def one_of(found, old, new) -> bool:
    """Old or new; of several files, each by itself."""
    if not isinstance(found, dict):
        return found in (old, new)
    every = {*old, *new, *found}
    return all(found.get(n) in (old.get(n), new.get(n)) for n in every)


def brought(writer: Writer, course, value: int):
    """What is read after a write."""
    if writer.apart:
        assert error_of(lambda: writer.write(course, value)) == ""
    else:
        writer.write(course, value)
    return writer.read(course)


def chosen(steps: int):
    """All file operations; of many the first, two in the middle, and the last."""
    if steps < 25:
        return range(1, steps + 1)
    middle = random.Random(0).sample(range(3, steps - 1), 2)
    return [1, 2, *middle, steps - 1, steps]


@pytest.mark.parametrize("name", ALL)
def test_killed_at_any_file_operation(course, name):
    writer = WRITERS[name]
    brought(writer, course, 1)  # imports what it needs, once
    old = brought(writer, course, 0)
    steps = operations(lambda: writer.write(course, 1))
    new, seen = writer.read(course), []
    assert new != old and steps > 3, "this proves nothing"
    for step in chosen(steps):
        assert brought(writer, course, 0) == old
        killed(step, lambda: writer.write(course, 1))
        seen.append(writer.read(course))
        assert one_of(seen[-1], old, new), step
        assert brought(writer, course, 1) == new and not leftovers(course.home)
    assert seen[0] == old
    assert new in seen or name == "unpacked zip"  # its last operation is the rename


@pytest.mark.parametrize("name", ON_DISK)
def test_full_disk_is_explained_and_the_old_file_stays(course, name):
    writer = WRITERS[name]
    old = brought(writer, course, 0)
    message = on_full_disk(lambda: writer.write(course, 1), writer.size)
    path = Path(message.split(" could not be written ")[0])
    assert told(message, path) and path.match(f"{course.home}/{writer.files}"), message
    assert message.endswith(("before is untouched.", "before are all there."))
    assert writer.read(course) == old and not leftovers(course.home)
    assert brought(writer, course, 1) != old  # with space again, it works


@pytest.mark.parametrize("name", ON_DISK)
def test_killed_in_the_middle_of_a_file(course, name):
    writer = WRITERS[name]
    old, new, _ = (brought(writer, course, value) for value in (0, 1, 0))
    died = killed_in_writing(writer.size, lambda: writer.write(course, 1))
    assert died or name == "log"  # which sees the short write before the signal comes
    assert one_of(writer.read(course), old, new)
    assert brought(writer, course, 1) == new and not leftovers(course.home)
