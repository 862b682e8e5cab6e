"""The demo: what it answers, what it refuses, what it keeps to itself, and all of it in
a real browser.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFile
from scipy import stats
from scipy.spatial.distance import cdist

import sample_data
import utils

gradio = pytest.importorskip("gradio")
from support.networks import store_checkpoint  # noqa: E402

from demo import __main__ as command  # noqa: E402
from demo import app, drift, logs, pages, pictures  # noqa: E402
from demo.service import answer, open_service  # noqa: E402
from demo.unlike import PictureTest  # noqa: E402
from kit.files import load_arrays  # noqa: E402
from kit.serving import put_in_service  # noqa: E402
from kit.traffic import plan_drill, replay_day  # noqa: E402
from tools import cli  # noqa: E402

pytestmark = pytest.mark.bonus
KIT = Path(utils.__file__).parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A home in which themes 1 to 6 have left what the demo reads, on drawn X-rays;
    read only.
    """
    home, images = (
        tmp_path_factory.mktemp("demo") / "home",
        tmp_path_factory.mktemp("drawn"),
    )
    sample_data.draw_chest_xray(images, 700, seed=1)
    course = utils.start(1, source=images, profile="smoke", home=home)
    utils.build_index(course)
    data = utils.load_data(course)
    stored = utils.export_onnx(course, store_checkpoint(course, data, cost_missed=5.0))
    put_in_service(course, stored)
    model, val = utils.OnnxModel(stored), data.where("val")
    utils.fit_reference(model, data.pixels[val], data.labels[val]).save(
        course.exports / "drift_reference.npz"
    )
    quiet, drill = (
        utils.MonitoredModel(
            model, utils.InferenceLogger(course.logs / "production.csv")
        )
        for _ in "12"
    )
    calm = replay_day(quiet, data, 1, 400)
    baseline = utils.monitoring_baseline(calm)
    utils.write_json(
        course.exports / "monitoring_baseline.json", {"quantities": baseline}
    )
    alerts, run = course.logs / "alerts.csv", drill.logger.run_id
    manager = utils.AlertManager(utils.default_rules(), alerts, run)
    day = replay_day(drill, data, 2, 1500, plan_drill())
    utils.judge_windows(day, manager, baseline)
    return home


@pytest.fixture(scope="module")
def service(finished):
    return open_service(finished)


@pytest.fixture
def home(finished, tmp_path) -> Path:
    """A private copy, to break."""
    return Path(shutil.copytree(finished, tmp_path / "home"))


@pytest.fixture(autouse=True)
def close_figures():
    import matplotlib.pyplot as plt

    yield
    assert not plt.get_fignums(), "a figure was left open: a server would collect them"


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(mode: str = "RGB", size=(64, 48)) -> Image.Image:
    """Something coloured, smooth enough for JPEG."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)).convert(
        mode
    )


def page_of(service, found, label=None) -> str:
    """All that the page says of one picture."""
    parts = (pages.verdict(service, found, label), pages.comparison(service, found))
    return "\n".join(parts)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and ".locks" not in p.parts
    }


# --- one picture: files


def frames(kind: str) -> bytes:
    grey = [Image.new("L", (40, 40), level) for level in (20, 120, 220)]
    return encode(grey[0], kind, save_all=True, append_images=grey[1:])


def scans(more: int, side: int = 4000) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    content = encode(Image.new("L", (side, side), 99), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * more + content[-2:]


DEEP = np.linspace(0, 60_000, 32 * 32).reshape(32, 32)
REFUSED = {
    "no picture": (lambda: b"#!/bin/sh\necho hello", "no image"),
    "empty": (lambda: b"", "empty"),
    "cut JPEG": (lambda: encode(photo(size=(300, 300)), "JPEG")[:2000], "breaks off"),
    "cut PNG": (lambda: encode(photo(size=(300, 300)))[:900], "breaks off"),
    "head only": (lambda: encode(photo(), "JPEG")[:10], "no image"),
    "too many bytes": (
        lambda: encode(photo()) + bytes(pictures.MAX_BYTES),
        "larger than 20 MB",
    ),
    "too many pixels": (
        lambda: encode(Image.new("1", (9000, 9000))),
        "64 million pixels",
    ),
    "bomb": (lambda: encode(Image.new("1", (30_000, 30_000))), "64 million pixels"),
    "scan bomb": (lambda: scans(2000), "in 2006 layers"),
    "animated GIF": (lambda: frames("GIF"), "several pictures"),
    "animated PNG": (lambda: frames("PNG"), "several pictures"),
    "animated WebP": (lambda: frames("WEBP"), "several pictures"),
    "pages of a TIFF": (lambda: frames("TIFF"), "several pictures"),
    "16-bit PNG": (
        lambda: encode(Image.fromarray(DEEP.astype(np.uint16))),
        "more than 8 bits",
    ),
    "16-bit TIFF": (
        lambda: encode(Image.fromarray(DEEP.astype(np.uint16)), "TIFF"),
        "more than 8 bits",
    ),
    "32-bit TIFF": (
        lambda: encode(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        "more than 8 bits",
    ),
    "numbers as TIFF": (
        lambda: encode(Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
        "more than 8 bits",
    ),
    "PostScript": (lambda: encode(photo(), "EPS"), "EPS files are not read"),
    "PPM": (lambda: encode(photo(), "PPM"), "PPM files are not read"),
}


@pytest.mark.parametrize(
    "make",
    [lambda: scans(2000), lambda: encode(Image.new("1", (30_000, 30_000)))],
    ids=["scans", "pixels"],
)
def test_a_bomb_is_refused_before_a_pixel_is_decoded(make, monkeypatch):
    content = make()
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(pictures.Refused, match="layers|pixels"):
        pictures.read_picture(content, 32, 1)


def test_a_picture_of_many_scans_is_read_where_it_is_small():
    pixels, *_ = pictures.read_picture(scans(50, side=64), 32, 1)
    assert pixels.mean() == pytest.approx(99, abs=2)


@pytest.mark.parametrize("name", REFUSED)
def test_file_that_gets_no_answer_is_refused_in_one_sentence(name):
    make, words = REFUSED[name]
    with pytest.raises(pictures.Refused, match=words) as refused:
        pictures.read_picture(make(), 32, 1)
    assert len(str(refused.value)) < 160 and ":" in str(refused.value), (
        "it says what to do instead"
    )


def transparent() -> Image.Image:
    image = photo("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(photo(), "JPEG", exif=exif)


CONVERTED = {
    "grey": (1, lambda: encode(photo("L"), "JPEG"), []),
    "colour": (3, lambda: encode(photo(), "JPEG"), []),
    "opaque RGBA": (3, lambda: encode(photo("RGBA")), []),
    "grey in three channels": (
        1,
        lambda: encode(photo("L").convert("RGB"), "JPEG"),
        [],
    ),
    "palette": (3, lambda: encode(photo("P")), []),
    "black and white": (1, lambda: encode(photo("1")), []),
    "colour to grey": (1, lambda: encode(photo(), "JPEG"), ["read in grey"]),
    "grey to colour": (3, lambda: encode(photo("L"), "JPEG"), ["learned from colours"]),
    "CMYK": (3, lambda: encode(photo("CMYK"), "JPEG"), ["CMYK"]),
    "CMYK to grey": (
        1,
        lambda: encode(photo("CMYK"), "TIFF"),
        ["CMYK", "read in grey"],
    ),
    "transparent": (3, lambda: encode(transparent()), ["Transparency"]),
    "transparent WebP": (
        3,
        lambda: encode(transparent(), "WEBP", lossless=True),
        ["Transparency"],
    ),
    "transparent palette": (
        3,
        lambda: encode(photo("P"), transparency=photo("P").getpixel((0, 0))),
        ["Transparency"],
    ),
    "transparent grey": (
        1,
        lambda: encode(transparent().convert("LA")),
        ["Transparency"],
    ),
    "turned": (3, turned, ["EXIF"]),
    "two in one photo": (
        3,
        lambda: encode(photo(), "MPO", save_all=True, append_images=[photo()]),
        ["first of 2"],
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_odd_picture_is_decoded_like_all_others_and_says_what_changed(name):
    channels, make, words = CONVERTED[name]
    content = make()
    pixels, decode_ms, notes = pictures.read_picture(content, 32, channels)
    np.testing.assert_array_equal(
        pixels, utils.decode(io.BytesIO(content), 32, channels)
    )
    assert decode_ms > 0 and len(notes) == len(words), notes
    assert all(word in note for word, note in zip(words, notes, strict=True))


def sent_as(folder: Path, name: str, content: bytes) -> str:
    """A file where Gradio puts it: in a folder named by its content."""
    path = folder / hashlib.sha256(content).hexdigest() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_upload_is_removed_from_the_disk_whatever_comes_of_it(tmp_path):
    uploads = app.Uploads(32, 3)
    for content, told in (
        ([encode(photo())], None),
        ([b"no picture"], "no image"),
        ([encode(photo()), b"a", b"b"], "3 files were sent"),
        ([], "0 files were sent"),
    ):
        paths = [sent_as(tmp_path, f"{i}.png", c) for i, c in enumerate(content)]
        if told:
            with pytest.raises(pictures.Refused, match=told):
                uploads.open(paths)
        else:
            pixels = uploads.open(paths)[0]
            expected = utils.decode(io.BytesIO(content[0]), 32, 3)
            np.testing.assert_array_equal(pixels, expected)
        assert not files_of(tmp_path)


def test_the_same_file_of_many_is_answered_alike_though_it_has_gone(tmp_path):
    uploads = app.Uploads(32, 3)
    good, bad = (
        sent_as(tmp_path, "a.png", c) for c in (encode(photo()), b"no picture")
    )
    first = uploads.open([good])
    for _ in range(3):
        assert uploads.open([good]) is first
        with pytest.raises(pictures.Refused, match="no image"):
            uploads.open([bad])
    assert uploads.open([sent_as(tmp_path, "b.png", encode(photo()))]) is first
    with pytest.raises(pictures.Refused, match="no longer there: send it again"):
        uploads.open([str(tmp_path / "never sent" / "a.png")])


def test_pictures_in_memory_are_not_more_and_more(tmp_path, monkeypatch):
    monkeypatch.setattr(app.Uploads, "MOST", 2)
    uploads = app.Uploads(32, 1)
    sent = [sent_as(tmp_path, "a.png", encode(photo(size=(n, 9)))) for n in (8, 9, 10)]
    for path in sent:
        uploads.open([path])
    assert len(uploads.seen) == 2
    with pytest.raises(pictures.Refused, match="no longer there"):
        uploads.open(sent[:1])


# --- one picture: unlike the reference?


def clouds(n: int, seed: int, shift: float = 0.0) -> utils.Observation:
    """n pictures of no content: embeddings and statistics drawn at random, the
    statistics in very different units.
    """
    rng = np.random.default_rng(seed)
    numbers = pd.DataFrame(
        rng.normal(shift, 1, (n, 3)) * [100, 1, 0.01],
        columns=["brightness", "contrast", "p05"],
    )
    return utils.Observation(
        numbers, np.full((n, 2), 0.5), rng.normal(shift, 1, (n, 8))
    )


def test_p_value_against_its_definition_in_scipy():
    reference, k = clouds(80, 1), 5
    test = PictureTest(reference, k)
    mean, std = (
        reference.statistics.to_numpy().mean(axis=0),
        reference.statistics.to_numpy().std(axis=0),
    )
    scale = {"embedding": lambda x: x, "statistics": lambda x: (x - mean) / std}
    for seed, shift in ((2, 0.0), (3, 1.0), (4, 4.0)):
        seen = clouds(1, seed, shift)
        results = test.look(seen)
        for view, result in results.items():
            x, y = (
                scale[view](np.asarray(getattr(side, view), dtype=np.float64))
                for side in (reference, seen)
            )
            # the first is the distance to itself
            own = np.sort(cdist(x, x), axis=1)[:, k]
            distance = np.sort(cdist(y, x)[0])[k - 1]
            assert result.statistic == pytest.approx(distance)
            assert result.p_value == pytest.approx((1 + (own >= distance).sum()) / 81)
            assert (
                result.drift
                == (result.p_value <= 0.025)
                == (result.statistic > result.threshold)
            )


def test_pictures_like_the_reference_get_even_p_values_and_others_small_ones():
    test = PictureTest(clouds(300, 1))
    like, shifted = clouds(400, 2), clouds(100, 3, shift=2.0)
    p = pd.DataFrame(
        [
            {view: r.p_value for view, r in test.look(like.take([i])).items()}
            for i in range(len(like))
        ]
    )
    for view in p:
        assert stats.kstest(p[view], "uniform").pvalue > 0.001
    alarms = (p <= 0.025).any(axis=1).mean()
    assert alarms <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400), (
        "both views together keep the promised rate"
    )
    assert (
        np.mean([test.look(shifted.take([i]))["embedding"].drift for i in range(100)])
        > 0.9
    )


def test_furthest_number_is_named_in_its_own_spread():
    reference = clouds(200, 1)
    odd = replace(
        reference.take([0]), statistics=reference.statistics.mean().to_frame().T
    )
    odd.statistics["p05"] += 7 * reference.statistics["p05"].std(ddof=0)
    assert PictureTest(reference).furthest(odd) == ("p05", pytest.approx(7))


def test_small_reference_cannot_tell_and_says_so(service):
    few = PictureTest(service.reference.take(range(20)))
    results = few.look(service.reference.take([30]))
    assert all(
        result.threshold == np.inf and not result.drift for result in results.values()
    )
    pixels = service.data.pixels[service.data.where("production")[0]]
    page = page_of(service, replace(answer(service, pixels), results=results))
    assert "Cannot be told: with 20 pictures" in page


def test_a_picture_like_the_reference_is_no_proof(service):
    """In the page's words, a p-value above the limit is no sign of anything, and the
    promised rate is a ceiling.
    """
    pixels = service.data.pixels[service.data.where("val")[0]]
    page = page_of(service, answer(service, pixels))
    assert "No sign of it." in page and "at most about one in twenty" in page


@pytest.mark.parametrize("n, called", [(102, 4 / 103), (39, 2 / 40), (79, 4 / 80)])
def test_share_of_the_reference_s_own_kind_called_unlike_is_at_most_alpha(n, called):
    test = PictureTest(clouds(n, 1), alpha=0.05)
    results = test.look(clouds(1, 2)).values()
    ranks = [
        sum(own >= result.threshold) / (n + 1)
        for own, result in zip(test.own.values(), results, strict=True)
    ]
    assert sum(ranks) == pytest.approx(called) and called <= 0.05


def test_noise_and_black_are_unlike_the_drawn_x_rays_and_black_is_called_blank(service):
    size = (service.model.channels, service.model.size, service.model.size)
    noise = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    assert "Yes, in " in page_of(service, answer(service, noise))
    assert any(
        "blank" in note for note in answer(service, np.zeros(size, np.uint8)).notes
    )


# --- one picture: the answer


def test_answer_is_that_of_the_model_in_service(service, finished):
    row = service.data.where("production")[3]
    path = service.course.root / service.data.index["path"].iloc[row]
    content = app.content_of(service, row)
    assert content == path.read_bytes()
    pixels, _, _ = pictures.read_picture(content, 32, 1)
    found = answer(service, pixels)
    expected = utils.OnnxModel(finished / "exports" / "model.onnx").predict(
        utils.decode(path, 32, 1)[None]
    )[0]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-7)
    page = page_of(service, found, "NORMAL")
    assert f"{expected.max():.1%}" in page and "Label of this picture: NORMAL" in page
    assert "CPUExecutionProvider" in page and found.model_ms > 0
    bars = app.answered(service, pictures.read_picture(content, 32, 1))[1]
    assert bars == pytest.approx(
        dict(zip(service.model.classes, expected, strict=True))
    )


@pytest.mark.parametrize(
    "positive, argmax, treated, differ",
    [
        (0.1, "NORMAL", "NORMAL", False),
        (0.4, "NORMAL", "PNEUMONIA", True),
        (0.9, "PNEUMONIA", "PNEUMONIA", False),
    ],
)
def test_both_decisions_are_said(service, positive, argmax, treated, differ):
    pixels = service.data.pixels[0]
    shown = replace(
        answer(service, pixels), probabilities=np.array([1 - positive, positive])
    )
    page = page_of(service, shown)
    assert (
        f"Most probable: {argmax}" in page
        and f"At the cost threshold 0.30: treat as {treated}" in page
    )
    assert (
        "decisions differ" in page
    ) == differ and "A missed one costs 5 false alarms" in page


def test_heat_map_is_grad_cam_on_the_normalisation_of_the_checkpoint(service):
    pixels = np.array(service.data.pixels[service.data.where("production")[:1]])
    model, state = utils.load_model(service.course.checkpoints / "best_model.pth")
    images = torch.from_numpy(
        (pixels / 255 - np.reshape(state["mean"], (1, -1, 1, 1))).astype(np.float32)
    )
    images /= torch.tensor(state["std"]).view(1, -1, 1, 1)
    found = answer(service, pixels[0])
    expected = utils.grad_cam(
        model, images, torch.tensor([int(found.probabilities.argmax())])
    )[0]
    np.testing.assert_allclose(found.heat, expected, atol=1e-3)


def test_example_without_its_file_is_its_cached_pixels(service):
    gone = replace(service, course=replace(service.course, root=Path("nowhere")))
    for row in app.chosen_rows(service)[:3]:
        pixels, _, _ = pictures.read_picture(app.content_of(gone, row), 32, 1)
        np.testing.assert_array_equal(pixels, service.data.pixels[row])


def test_examples_are_of_pool_production_and_of_every_class(service):
    rows = app.chosen_rows(service)
    assert (
        set(rows) <= set(service.data.where("production"))
        and len(set(rows)) == len(rows) > 4
    )
    assert set(service.data.labels[rows]) == {0, 1}


# --- a home that lacks something


def test_home_is_read_and_never_written(home):
    before = files_of(home)
    opened = open_service(home)
    app.build(opened)
    assert files_of(home) == before


def test_no_model_is_said_with_the_notebook_that_makes_it(
    home, capsys, quiet_environment
):
    (home / "exports" / "model.onnx").unlink()
    options = ["--home", str(home), "--port", str(free_port())]
    assert cli.main(["demo", *options]) == 2
    told = capsys.readouterr().err
    assert (
        "model.onnx is missing: run notebooks/theme4_onnx_deployment.ipynb first"
        in told
        and told.count("\n") == 1
    )


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"dataset": "cats"}', '{"dataset": "solar"}']
)
def test_home_without_its_story_is_said(home, content):
    (home / "course.json").unlink()
    if content is not None:
        (home / "course.json").write_text(content)
    with pytest.raises(utils.CourseError, match="course.json"):
        open_service(home)


def test_changed_model_is_refused(home):
    with (home / "exports" / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(utils.CourseError, match="bytes have changed"):
        open_service(home)


@pytest.mark.parametrize("how", ["gone", "another", "damaged"])
def test_without_its_checkpoint_the_rest_is_shown_and_says_why(home, service, how):
    path = home / "checkpoints" / "best_model.pth"
    if how == "another":
        state = utils.load_checkpoint(path)
        path.unlink()
        torch.save(state | {"threshold": 0.9}, path)
    else:
        path.unlink() if how == "gone" else path.write_bytes(b"damaged")
    opened = open_service(home)
    page = page_of(opened, answer(opened, service.data.pixels[0]))
    assert opened.network is None and "no file in checkpoints/ has the hash" in page
    assert "Most probable" in page and "unlike at p" in page


def test_after_a_promotion_the_reference_is_observed_anew(home):
    kept = load_arrays(home / "exports" / "drift_reference.npz")
    np.savez(
        home / "exports" / "drift_reference.npz",
        **kept | {"model": np.array("another model")},
    )
    opened = open_service(home)
    assert not opened.missing and opened.reference.model == opened.model.hash
    np.testing.assert_allclose(opened.reference.embedding, kept["embedding"], atol=1e-5)


def test_without_images_the_picture_is_still_judged(home):
    (home / "data" / "pneumonia" / "index.csv").unlink()
    opened = open_service(home)
    assert (
        opened.data is None
        and opened.reference is not None
        and "index.csv is missing" in opened.missing["images"]
    )
    assert str(home) not in " ".join(opened.missing.values())
    with pytest.raises(utils.CourseError, match=r"index.csv is missing"):
        drift.looker(opened)
    (home / "exports" / "drift_reference.npz").unlink()
    bare = open_service(home)
    page = page_of(bare, answer(bare, np.zeros((1, 32, 32), np.uint8)))
    assert (
        "Most probable" in page
        and "No reference: exports/drift_reference.npz is missing" in page
    )
    app.build(bare)


# --- the drift slider


def test_window_is_judged_as_theme_6_does(service):
    looker = drift.looker(service)
    look, rows = looker("blur", 4), service.data.where("production")
    n = len(look.labels)
    pixels, rows = utils.drift_window(service.data, rows, "blur", 4, 42, n)
    np.testing.assert_array_equal(look.after, pixels)
    np.testing.assert_array_equal(look.before, service.data.pixels[rows])
    expected = service.model.predict(pixels)
    right = expected.argmax(axis=1) == service.data.labels[rows]
    np.testing.assert_array_equal(look.right, right)
    policy = utils.DriftPolicy(service.reference.accuracy - 0.05, n)
    monitor = utils.DriftMonitor(service.reference, policy)
    by_hand = monitor.look(utils.observe(service.model, pixels))
    assert look.decision.p_value == by_hand.p_value
    said = pages.window(look, 4)
    assert f"Severity 4, {n} pictures" in said and by_hand.level in said
    assert looker("blur", 4) is look  # each is computed once


def test_pictures_of_a_window_stand_beside_one_another(service):
    look = drift.looker(service)("noise", 5)
    for i, (image, says) in enumerate(pages.window_pictures(look, ["a", "b"])):
        both = np.concatenate([look.before[i], look.after[i]], axis=2)
        np.testing.assert_array_equal(np.asarray(image), both[0])
        answer = "ab"[look.probabilities[i].argmax()]
        assert says.startswith(f"{'✓' if look.right[i] else '✗'} {answer} ")


def test_rarest_class_mix_still_fills_the_window(service):
    look = drift.looker(service)
    assert (
        len({len(look("class_prior", severity).labels) for severity in range(6)}) == 1
    )


def test_too_few_production_pictures_are_said_in_place_of_a_verdict(home):
    index = pd.read_csv(
        home / "data" / "pneumonia" / "index.csv", keep_default_na=False
    )
    surplus = (index["pool"] == "production") & index.duplicated(["pool", "label"])
    index.loc[surplus, "pool"] = ""  # one picture of each class is left
    index.to_csv(home / "data" / "pneumonia" / "index.csv", index=False)
    page = json.dumps(app.build(open_service(home)).get_config_file(), default=str)
    assert "needs at least" in page and "Last lines of the log" in page


@pytest.mark.parametrize("normal", [None, [], {"brightness": {}}])
def test_a_damaged_baseline_is_done_without(home, normal):
    path = home / "exports" / "monitoring_baseline.json"
    utils.write_json(path, {"quantities": normal})
    log, alerts = logs.read_both(home)
    run = next(iter(logs.list_runs(log, alerts)))
    assert len(logs.windows_of(log, run, home)) > 100


# --- the production log


def test_a_run_shows_its_own_alerts_though_all_days_share_one_date(service):
    log, alerts = logs.read_both(service.course.home)
    drill, quiet = logs.list_runs(log, alerts)  # where something rang comes first
    shown = app.logged(service, None)
    assert shown[1] == drill and {"slow", "blank_images"} <= {*shown[4]["rule"]}
    assert len(shown[4]) == len(alerts) > 4
    none = app.logged(service, quiet)[4]
    assert "No alert rang" in none.to_string()


def test_torn_lines_are_left_out_and_the_last_lines_are_shown(home, service):
    log_file = home / "logs" / "production.csv"
    logger = utils.InferenceLogger(log_file)
    logger.log(1, 0.9, 2.0, image="<script>alert(1)</script>", model="<b>")
    with log_file.open("a") as file:
        file.write("2026-01-01T00:00:00Z,half a li")
    log, _ = logs.read_both(home)
    lines = log[log["run_id"] == logger.run_id]
    (last,) = pages.log_tail(lines, service.model.classes).to_dict("records")
    assert last["image"] == "<script>alert(1)</script>"
    assert (last["answer"], last["confidence"]) == ("PNEUMONIA", "0.900")


def test_no_log_and_an_empty_one_are_said(home):
    log_file = home / "logs" / "production.csv"
    log_file.write_text("".join(log_file.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(utils.CourseError, match="has no lines"):
        logs.read_both(home)
    log_file.unlink()
    with pytest.raises(utils.CourseError, match="theme5_monitoring"):
        logs.read_both(home)
    (home / "logs" / "alerts.csv").unlink()
    app.build(open_service(home))  # the tab says so, the others work


# --- the command


@pytest.fixture
def quiet_environment(monkeypatch):
    """`main` sets these for its process: not for the tests after this one."""
    for name in (
        "GRADIO_ANALYTICS_ENABLED",
        "HF_HUB_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
        "GRADIO_TEMP_DIR",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("host, port", [("127.0.0.1", 0), ("192.0.2.1", 7860)])
def test_address_that_cannot_be_is_said(capsys, host, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = port or taken.getsockname()[1]
        options = ["--home", "nowhere", "--host", host, "--port", str(port)]
        assert command.main(options) == 2
    told = capsys.readouterr().err
    assert f"Nothing can listen on port {port} of {host}" in told
    assert "another --port" in told and told.count("\n") == 1


def test_without_gradio_the_way_to_it_is_said(capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main([]) == 2
    assert "make demo" in capsys.readouterr().err


def test_listens_on_this_machine_alone_unless_told():
    options = command.parse([])
    assert options.host == "127.0.0.1" and options.share is False


def test_a_refusal_is_one_line_of_the_server_s_window_and_a_box_on_the_page(capsys):
    page, *others = app.told(lambda: pictures.read_picture(b"", 32, 1))()
    assert page == "**The file is empty: choose another.**" and not any(others)
    said = capsys.readouterr().out
    assert said == "refused: The file is empty: choose another.\n"


# --- in a real browser

# Started with a hook on every address that Python code of the server asks for or
# connects to.
GUARDED = """
import sys
def note(event, values):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        address = values[1] if event != "socket.getaddrinfo" else values
        host = address[0] if isinstance(address, tuple) else ""
        if host not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "", None):
            with open(sys.argv[1], "a") as file:
                print(event, host, file=file)
sys.addaudithook(note)
from demo.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory):
    """The demo, started as its users start it; yields its address and folders, and
    looks at what it left behind.
    """
    place, port = tmp_path_factory.mktemp("server"), free_port()
    outside, output, scratch = (
        place / "outside.txt",
        place / "output.txt",
        place / "scratch",
    )
    scratch.mkdir()
    environment = os.environ | {
        "TMPDIR": str(scratch),
        "COURSE_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    with output.open("w") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                GUARDED,
                outside,
                "--home",
                finished,
                "--port",
                str(port),
            ],
            cwd=KIT,
            env=environment,
            stdout=file,
            stderr=file,
        )
    while "Demo on" not in output.read_text():
        assert process.poll() is None, output.read_text()
        time.sleep(0.1)
    yield {
        "url": f"http://127.0.0.1:{port}/",
        "output": output,
        "outside": outside,
        "scratch": scratch,
    }
    process.terminate()
    assert process.wait(30) == 0
    assert not list(scratch.glob("demo-*")), (
        "the folder of uploads goes with the server"
    )
    assert not outside.exists(), outside.read_text()


def serious(page) -> list[str]:
    """Problems but two of Gradio's own: streams that it closes when they are done, and
    its warning in doing so.
    """
    return [
        told
        for told in page.problems
        if "/queue/data?" not in told and told != "Method not implemented."
    ]


@pytest.fixture
def open_demo(browse, server):
    def open_it(**options):
        page = browse(server["url"], **options)
        page.wait_for_selector("#examples button")
        return page

    return open_it


def send(page, *paths) -> str:
    """Upload files and return what the page says of them."""
    text = "document.querySelector('#answer .prose').innerText"
    before = page.evaluate(text)
    chooser = page.locator("#upload input[type=file]")
    chooser.set_input_files([str(path) for path in paths])
    page.wait_for_function(f"before => {text}.trim() && {text} != before", arg=before)
    return "\n".join(page.locator("#answer .prose, #unlike .prose").all_inner_texts())


def kept_of(server, sent: Path) -> set[bytes]:
    """What the server still holds of the files that were sent."""
    kept = (path for path in server["scratch"].rglob("*") if path.is_file())
    return {path.read_bytes() for path in kept} & set(files_of(sent).values())


def test_uploaded_picture_is_answered_and_not_kept(
    open_demo, server, service, tmp_path
):
    page = open_demo()
    assert "Not a medical device" in page.inner_text("body")
    path = tmp_path / "secret name of a patient.jpeg"
    path.write_bytes(
        (service.course.root / service.data.index["path"].iloc[5]).read_bytes()
    )
    text = send(page, path)
    expected = service.model.predict(utils.decode(path, 32, 1)[None])[0]
    assert f"{expected.max():.1%}" in text and "one in twenty" in text
    assert page.locator("#heat img").evaluate("image => image.naturalWidth") > 200
    assert not kept_of(server, tmp_path)
    assert "secret" not in server["output"].read_text() and not serious(page)


def test_bad_files_get_a_sentence_and_the_next_good_one_an_answer(
    open_demo, server, tmp_path
):
    page = open_demo()
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "moving.gif").write_bytes(frames("GIF"))
    (tmp_path / "large.png").write_bytes(encode(photo()) + bytes(pictures.MAX_BYTES))
    (tmp_path / "good.png").write_bytes(encode(photo()))
    assert "This is no image that can be read" in send(page, tmp_path / "notes.png")
    assert "holds several pictures" in send(page, tmp_path / "moving.gif")
    assert "larger than 20 MB" in send(page, tmp_path / "large.png")
    assert "2 files were sent" in send(
        page, tmp_path / "good.png", tmp_path / "notes.png"
    )
    assert "read in grey" in send(page, tmp_path / "good.png")
    told = server["output"].read_text()
    assert (
        told.count("refused:") == 4
        and "Traceback" not in told
        and "notes.png" not in told
    )
    assert not kept_of(server, tmp_path)
    assert not serious(page)


def ask_about(server, path, session: str) -> dict:
    """What the page asks once a file is on the server, without the page: the last line
    of the answer.
    """
    with urllib.request.urlopen(server["url"] + "config") as told:
        events = json.load(told)["dependencies"]
    upload = next(event["id"] for event in events if event["targets"][0][1] == "upload")
    sent = {
        "data": [[{"path": str(path), "meta": {"_type": "gradio.FileData"}}]],
        "fn_index": upload,
        "session_hash": session,
    }
    request = urllib.request.Request(
        server["url"] + "gradio_api/queue/join",
        json.dumps(sent).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request):
        pass
    with urllib.request.urlopen(
        f"{server['url']}gradio_api/queue/data?session_hash={session}", timeout=30
    ) as answers:
        return json.loads(
            next(line for line in answers if b"process_completed" in line).removeprefix(
                b"data: "
            )
        )


def test_file_that_nobody_uploaded_is_neither_read_nor_removed(server, tmp_path):
    (tmp_path / "private.png").write_bytes(encode(photo()))
    assert not ask_about(server, tmp_path / "private.png", "abc")["success"]
    assert (tmp_path / "private.png").read_bytes() == encode(photo())


def test_forty_visitors_with_the_same_picture_get_the_same_answer(server, tmp_path):
    import httpx

    def visit(number: int) -> dict:
        (path,) = httpx.post(
            server["url"] + "gradio_api/upload",
            files={"files": ("x.png", encode(photo()))},
            timeout=60,
        ).json()
        return ask_about(server, path, f"visitor{number}")

    with ThreadPoolExecutor(40) as visitors:
        answers = list(visitors.map(visit, range(40)))
    said = {str(answer["output"]["data"][1]) for answer in answers}
    assert all(answer["success"] for answer in answers)
    assert all("Most probable" in words for words in said)
    shares = {str(answer["output"]["data"][2]) for answer in answers}
    assert len(shares) == 1
    (tmp_path / "x.png").write_bytes(encode(photo()))
    assert not kept_of(server, tmp_path)


@pytest.mark.parametrize(
    "host, status",
    [
        ("localhost:{port}", 200),
        ("127.0.0.1:{port}", 200),
        ("LOCALHOST", 200),
        ("[::1]:{port}", 200),
        ("evil.example:{port}", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.nip.io:{port}", 400),
        ("192.168.0.7:{port}", 400),
        ("", 400),
    ],
)
def test_only_the_names_of_this_machine_are_answered(server, host, status):
    import httpx

    port = server["url"].rstrip("/").rsplit(":", 1)[1]
    for path in ("config", ""):
        told = httpx.get(server["url"] + path, headers={"Host": host.format(port=port)})
        assert told.status_code == status, path


@pytest.mark.parametrize(
    "host, share, names",
    [
        ("127.0.0.1", False, {"localhost", "127.0.0.1", "[::1]"}),
        ("lab-3", False, {"localhost", "127.0.0.1", "[::1]", "lab-3"}),
        ("0.0.0.0", False, {"*"}),
        ("127.0.0.1", True, {"*"}),
    ],
)
def test_who_opens_it_to_a_network_opens_it_to_its_names(host, share, names):
    assert set(app.hosts_of(host, share)) == names


def test_example_shows_its_label(open_demo):
    page = open_demo()
    page.locator("#examples button").nth(2).click()
    page.locator("#answer h3").wait_for()
    assert "Label of this picture" in page.locator(
        "#answer"
    ).inner_text() and not serious(page)


def test_slider_moves_numbers_and_pictures(open_demo):
    page = open_demo()
    page.get_by_role("tab", name="Drift").click()
    slider = page.locator("#severity input[type=range]")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    page.get_by_text("Severity 4,").wait_for()
    assert page.locator("#pictures img").count() == 8
    page.locator("#kind input").click()
    page.get_by_role("option", name="blur").click()
    page.get_by_text("The lens is out of focus.").wait_for()
    assert not serious(page)


def test_third_tab_shows_statistics_alerts_and_lines(open_demo):
    page = open_demo()
    page.get_by_role("tab", name="Production log").click()
    for table, words in {"#alerts": "queueing", "#lines": ".jpeg"}.items():
        said = f"document.querySelector('{table}').innerText"
        page.wait_for_function(f"{said}.includes('{words}')")
    assert page.locator("#dashboard img").count() == 1
    page.get_by_role("button", name="Read again").click()
    page.locator("#run input").click()
    page.get_by_role("option").last.click()
    none = "document.querySelector('#alerts').innerText.includes('No alert rang')"
    page.wait_for_function(none)
    assert not serious(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_keeps_the_warning_in_sight(open_demo, scheme):
    page = open_demo(width=390, height=844, color_scheme=scheme)
    page.locator("#examples button").first.click()
    page.locator("#answer h3").wait_for()
    for name in ("One picture", "Drift", "Production log"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(300)
        top = page.locator(".sticky strong").first.bounding_box()["y"]
        assert page.evaluate("window.scrollY") > 100 and 0 <= top < 200, (
            f"{name}: warning at {top}"
        )
        page.mouse.wheel(0, -5000)
        page.wait_for_timeout(300)
    assert not serious(page)
