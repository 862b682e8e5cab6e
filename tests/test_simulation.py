"""Simulated drift: every effect against an independent computation, windows, drifted
data, scenarios.
"""

import io
import math
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage

import sample_data
import utils
from kit import figures
from kit.drifts import DRIFTS, Drift, drift_data, drift_scenario

PIXEL_KINDS = [kind for kind in DRIFTS if kind != "class_prior"]
OF_SOME = ("orientation", "colour_order")  # happens to some images, to the others not


def level(kind: str, severity: int) -> float:
    return DRIFTS[kind].levels[severity - 1]


def as_floats(pixels) -> np.ndarray:
    return pixels.astype(np.float64)


@pytest.fixture(scope="module")
def roofs(drawn) -> np.ndarray:
    """Sixteen drawn roofs, uint8 (16, 3, 64, 64)."""
    pictures = []
    for file in sorted((drawn / "solar_panels").rglob("*.jp*g"))[::5]:
        with suppress(OSError):  # one planted file is cut
            pictures.append(utils.decode(file, 64, 3))
    return np.stack(pictures[:16])


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """Smooth noise between 90 and 160, uint8 (8, 1, 64, 64): nothing is clipped."""
    white = np.random.default_rng(0).standard_normal((8, 1, 64, 64))
    field = ndimage.gaussian_filter(white, (0, 0, 3, 3))
    return np.round(125 + 35 * field / np.abs(field).max()).astype(np.uint8)


def made_up(n=400, positives=0.7, dataset="pneumonia", classes=2) -> utils.Data:
    """Data without a home: random pictures of 16 pixels in all pools, labels in the
    given mix.
    """
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(n) < positives, rng.integers(1, classes, n), 0)
    pools = ["train", "val", "production", "adapt", "gate", "test"]
    index = pd.DataFrame({"pool": np.resize(pools, n)})
    pixels = rng.integers(0, 256, (n, 1, 16, 16), dtype=np.uint8)
    course, names = SimpleNamespace(dataset=dataset), ("NORMAL", "A", "B")[:classes]
    return utils.Data(index, pixels, labels, names, [0.5], [0.2], "key", course)


# What holds for every drift


def test_table_of_drifts():
    for name, drift in DRIFTS.items():
        steps = np.diff(drift.levels)
        assert drift.says.endswith(".") and len(drift.levels) == 5, name
        assert (steps > 0).all() or (steps < 0).all()
        assert f"{drift.levels[2]:.3g}" in drift.label(3)
    assert utils.drifts_of("pneumonia") == utils.drifts_of("pneumonia3")
    only = set(utils.drifts_of("pneumonia")) ^ set(utils.drifts_of("solar"))
    assert only == {"scanner", "orientation"} | {
        "shadow",
        "cloud",
        "view_angle",
        "colour_order",
    }
    odds = DRIFTS["class_prior"].levels
    assert np.allclose(odds, np.exp(-0.4 * np.arange(1, 6)), atol=1e-4)


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_every_drift(roofs, kind):
    if kind in OF_SOME:  # enough for each severity to hold more of them
        roofs = np.resize(roofs, (80, *roofs.shape[1:]))
    before = roofs.copy()
    grid = [utils.drift_images(roofs, kind, severity) for severity in range(6)]
    assert np.array_equal(roofs, before) and np.array_equal(grid[0], roofs)
    assert grid[0] is not roofs
    assert {(d.dtype, d.shape) for d in grid} == {(np.dtype("uint8"), roofs.shape)}
    distance = [np.abs(as_floats(drifted) - roofs).mean() for drifted in grid]
    assert np.all(np.diff(distance) > 0), distance
    assert np.array_equal(grid[4], utils.drift_images(roofs, kind, 4))
    few = utils.drift_images(roofs[:3], kind, 4)
    assert np.array_equal(grid[4][:3], few), "the others of the batch have a say"
    many = utils.drift_images(np.resize(roofs, (80, *roofs.shape[1:])), kind, 4)
    assert np.array_equal(many[: len(roofs)], grid[4])  # whatever the size of a block
    changed = (many[60:70] != np.resize(roofs, many.shape)[60:70]).any(axis=(1, 2, 3))
    assert changed.any() if kind in OF_SOME else changed.all()
    if kind == "colour_order":
        return
    grey = utils.drift_images(roofs[:, :1], kind, 3)
    assert grey.shape == (len(roofs), 1, 64, 64) and (grey != roofs[:, :1]).any()


@pytest.mark.parametrize(
    "kind", "shadow cloud view_angle noise rotation occlusion".split()
)
def test_another_seed_is_another_story(roofs, kind):
    one, two = (utils.drift_images(roofs, kind, 3, seed) for seed in (1, 2))
    assert (one != two).any()


def test_same_place_across_severities():
    flat = np.full((12, 3, 64, 64), 160, np.uint8)
    for kind in ("shadow", "cloud", "noise"):
        weak, strong = (as_floats(utils.drift_images(flat, kind, s)) for s in (3, 5))
        for a, b in zip(weak - 160, strong - 160, strict=True):
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97, kind


def fog(images, severity, rng):
    """Fog lies between camera and roof."""
    return images + 20.0 * severity * rng.random((len(images), 1, 1, 1))


def test_a_students_drift_works_wherever_ours_do(monkeypatch):
    monkeypatch.setitem(DRIFTS, "fog", Drift(fog))
    data = made_up()
    assert "fog" in utils.drifts_of("solar") and DRIFTS["fog"].label(3) == "3 of 5"
    assert DRIFTS["fog"].says == "Fog lies between camera and roof."
    pixels, rows = utils.drift_window(data, data.where("gate"), "fog", 4)
    drifted = drift_data(data, "fog", 4)
    assert np.array_equal(drifted.pixels[rows], pixels)
    gain = as_floats(pixels) - data.pixels[rows]
    weak = utils.drift_window(data, rows, "fog", 1)[0]
    assert (gain >= 0).all() and gain.max() > 60
    assert (weak <= pixels).all() and (weak < pixels).any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: utils.drift_images(x / 255, "blur", 2), "these are float64"),
        (lambda x: utils.drift_images(x[0], "blur", 2), r"these are .*\(3, 64, 64\)"),
        (lambda x: utils.drift_images(x, "blur", 6), "choose 0"),
        (lambda x: utils.drift_images(x, "blur", 2.5), "choose 0"),
        (lambda x: utils.drift_images(x, "blur", None), "choose 0"),
        (lambda x: utils.drift_images(x, "fog", 1), "'fog' is unknown: choose one of"),
        (lambda x: utils.drift_images(x, "class_prior", 1), "drift_window"),
    ],
)
def test_bad_images_are_refused(roofs, call, message):
    with pytest.raises(utils.CourseError, match=message):
        call(roofs)
    assert len(utils.drift_images(roofs[:0], "noise", 3)) == 0


# Each effect against an independent computation


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_brightness_and_contrast(smooth, severity):
    sigma = level("blur", severity) / 100 * 64
    mean = smooth.mean(axis=(1, 2, 3), keepdims=True)
    share = level("contrast", severity) / 100
    expected = {
        "blur": ndimage.gaussian_filter(
            as_floats(smooth), (0, 0, sigma, sigma), mode="mirror", truncate=6
        ),
        "brightness": np.minimum(level("brightness", severity) * smooth, 255),
        "contrast": mean + share * (smooth - mean),
    }
    for kind, pixels in expected.items():
        found = utils.drift_images(smooth, kind, severity)
        assert np.abs(found - pixels).max() <= 1.01, kind


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_but_for_rounding(roofs, channels):
    drifted = utils.drift_images(roofs[:, :channels], "jpeg", 4)
    for image, found in zip(roofs[:, :channels], drifted, strict=True):
        file, picture = io.BytesIO(), image.transpose(1, 2, 0).squeeze()
        Image.fromarray(picture).save(file, format="JPEG", quality=18)
        expected = np.atleast_3d(Image.open(file)).transpose(2, 0, 1)
        assert np.abs(as_floats(expected) - found).mean() < 1


@pytest.mark.parametrize("severity", [2, 4])
def test_resolution_removes_high_frequencies(severity):
    white = np.random.default_rng(0).integers(60, 196, (8, 1, 64, 64), dtype=np.uint8)
    drifted = utils.drift_images(white, "resolution", severity)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    # Nyquist frequency of the smaller picture
    left = level("resolution", severity) / 100 / 2
    before, after = (
        np.abs(np.fft.fft2(as_floats(p) - p.mean())) ** 2 for p in (white, drifted)
    )
    high, low = frequency > 1.5 * left, (frequency > 0) & (frequency < 0.3 * left)
    assert after[..., high].sum() < 0.05 * before[..., high].sum()
    assert after[..., low].sum() > 0.6 * before[..., low].sum()


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_its_standard_deviation(severity):
    flat = np.full((40, 1, 64, 64), 128, np.uint8)
    noise = as_floats(utils.drift_images(flat, "noise", severity)) - 128
    # and the rounding
    expected = math.hypot(level("noise", severity), 1 / math.sqrt(12))
    assert noise.std() == pytest.approx(expected, rel=0.02) and abs(noise.mean()) < 0.5
    shared = np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]
    assert abs(shared) < 0.06, "two images share their noise"


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_rotation_in_the_centre(smooth, severity):
    drifted, angle = (
        utils.drift_images(smooth, "rotation", severity),
        level("rotation", severity),
    )
    far = np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5))
    signs = set()
    for image, found in zip(as_floats(smooth[:, 0]), drifted[:, 0], strict=True):
        error = {}
        for sign in (-1, 1):
            turned = ndimage.rotate(image, sign * angle, order=1, reshape=False)
            error[sign] = np.abs(turned - found)[far < 29].max()
        signs.add(min(error, key=error.get))
        assert min(error.values()) <= 1
    assert signs == {-1, 1}


def test_scanner_is_a_monotone_curve_and_coarser():
    greys = np.arange(256, dtype=np.uint8)[:, None, None, None]
    greys = np.broadcast_to(greys, (256, 1, 8, 8))
    for severity in range(1, 6):
        drifted = as_floats(utils.drift_images(greys, "scanner", severity))
        curve = drifted[:, 0, 0, 0]
        expected = 255 * (np.arange(256) / 255) ** (1 / level("scanner", severity))
        assert np.ptp(drifted, axis=(2, 3)).max() <= 1 and (np.diff(curve) >= 0).all()
        assert np.abs(curve - expected).max() <= 0.51
    board = np.tile(np.array([[60, 180], [180, 60]], np.uint8), (1, 1, 32, 32))
    assert utils.drift_images(board, "scanner", 5).std() < 0.2 * board.std()


def test_shadow_darkens_a_part_and_nothing_brightens():
    flat = np.full((30, 3, 64, 64), 200, np.uint8)
    shares, darkness = [], level("shadow", 4) / 100
    for image in as_floats(utils.drift_images(flat, "shadow", 4)):
        assert image.max() <= 200 and image.min() >= 200 * (1 - darkness) - 1
        shares.append((image[0] < 200 * (1 - darkness / 2)).mean())
        assert image[2].mean() >= image[0].mean()  # bluish
        assert np.abs(np.diff(image, axis=1)).max() < 30, "a hard edge"
    assert 0.1 < min(shares) and max(shares) < 0.75 and np.std(shares) > 0.05


def test_cloud_lifts_and_flattens():
    scene = np.random.default_rng(0).integers(0, 200, (20, 3, 64, 64), dtype=np.uint8)
    drifted = utils.drift_images(scene, "cloud", 4)
    assert (drifted >= scene).all() and drifted.std() < 0.75 * scene.std()
    veil = (as_floats(drifted) - scene) / (255.0 - scene)
    assert veil.mean() == pytest.approx(level("cloud", 4) / 100, rel=0.15)
    veil = veil.mean(axis=1)
    assert veil.std(axis=(1, 2)).min() > 0.02, "the veil is even"
    assert np.abs(np.diff(veil, axis=2)).max() < 0.1, "the veil is spots"


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_view_angle_is_a_projection(severity):
    """A round spot on the ground becomes an ellipse, shorter by the cosine of the
    tilt.
    """
    line = np.arange(128) - 63.5
    spot = (255 * np.exp(-np.add.outer(line**2, line**2) / (2 * 6**2))).astype(np.uint8)
    pixels = np.tile(spot, (12, 1, 1, 1))
    places, angles = np.stack(np.meshgrid(line, line)).reshape(2, -1), []
    for image in utils.drift_images(pixels, "view_angle", severity)[:, 0]:
        weights = np.where(np.hypot(*places) < 30, image.ravel(), 0)
        axes, directions = np.linalg.eigh(np.cov(places, aweights=weights))
        shorter = math.cos(math.radians(level("view_angle", severity)))
        assert math.sqrt(axes[0] / axes[1]) == pytest.approx(shorter, abs=0.04)
        angles.append(math.atan2(directions[1, 0], directions[0, 0]) % math.pi)
    assert np.std(angles) > 0.3, "all images are seen from one side"


def test_occlusion_hides_its_share_and_grows_in_place():
    flat = np.full((30, 1, 64, 64), 200, np.uint8)
    hidden = [utils.drift_images(flat, "occlusion", s) < 200 for s in range(6)]
    for severity in range(1, 6):
        share = hidden[severity].mean(axis=(1, 2, 3))
        assert np.abs(share - level("occlusion", severity) / 100).max() < 0.02
        assert hidden[severity][hidden[severity - 1]].all()
    assert len({tuple(np.argwhere(mask[0])[0]) for mask in hidden[1]}) > 20


# Windows


def test_window_takes_rows_in_order_or_draws():
    data = made_up()
    pool = data.where("production")
    pixels, rows = utils.drift_window(data, pool, "blur", 3)
    assert np.array_equal(rows, pool) and rows.dtype == np.int64
    assert np.array_equal(pixels, utils.drift_images(data.pixels[pool], "blur", 3))

    def draw(kind, seed=5, size=20, **options):
        return utils.drift_window(data, pool, kind, 2, seed, size, **options)[1]

    paired = [draw(kind).tolist() for kind in ("blur", "jpeg", "scanner")]
    assert paired[0] == paired[1] == paired[2] != draw("blur", seed=6).tolist()
    assert len(set(paired[0])) == 20 and set(paired[0]) <= set(pool)
    assert len(draw("blur", size=500, replace=True)) == 500
    assert np.array_equal(utils.drift_window(data, pool, "class_prior", 0)[1], pool)


@pytest.mark.parametrize("kind", OF_SOME)
def test_some_are_held_or_read_in_another_way(roofs, kind):
    pixels = np.resize(roofs, (400, *roofs.shape[1:]))
    other = np.rot90(pixels, axes=(2, 3)) if kind == "orientation" else pixels[:, ::-1]
    for severity in range(1, 6):
        drifted = utils.drift_images(pixels, kind, severity)
        changed = (drifted != pixels).any(axis=(1, 2, 3))
        assert np.array_equal(drifted[changed], other[changed])
        assert changed.mean() == pytest.approx(level(kind, severity) / 100, abs=0.06)


@pytest.mark.parametrize(
    ("dataset", "kind"), [("pneumonia", "orientation"), ("solar", "colour_order")]
)
def test_only_the_embedding_sees(open_course, tmp_path, dataset, kind):
    """Statistics of the pixels keep their rate of false alarms, the network alarms."""
    draw = {"pneumonia": sample_data.draw_chest_xray}
    draw.get(dataset, sample_data.draw_solar_panels)(tmp_path / "raw", 240, seed=1)
    course = open_course(dataset, tmp_path / "raw")
    utils.build_index(course)
    data = utils.load_data(course)
    torch.manual_seed(0)
    model, everyone = utils.BaselineCNN(course.channels), np.arange(len(data.pixels))
    recipe = replace(utils.baseline_recipe(data), epochs=8)
    quiet = {"tracker": "none", "progress": False}
    run = utils.fit(course, "small", model, data, recipe, **quiet)

    def seen(pixels):
        loader = utils.BatchLoader(replace(data, pixels=pixels), everyone, 64)
        embedding, _ = utils.extract_embeddings(run.model, loader, course.device)
        return utils.drift_statistics(pixels), embedding

    (statistics, embedding), (turned, elsewhere) = map(
        seen, (data.pixels, utils.drift_images(data.pixels, kind, 5))
    )
    alarms = np.zeros(2, int)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(embedding))
        inside, rest = order[:40], order[40:]
        pixel = utils.ks_test(statistics.iloc[rest], turned.iloc[inside])
        network = utils.mmd_test(embedding[rest], elsewhere[inside], 0.05, 200)
        alarms += [pixel.drift, network.drift]
    assert alarms[0] <= 3 and alarms[1] >= 15, alarms


@pytest.mark.parametrize("positives", [0.75, 0.3])
@pytest.mark.parametrize("size, swap", [(None, False), (20, False), (200, True)])
def test_class_prior_moves_the_odds(positives, size, swap):
    data = made_up(positives=positives, classes=3)
    pool = data.where("gate")
    odds = (data.labels[pool] != 0).sum() / (data.labels[pool] == 0).sum()
    for severity in (1, 4):
        counts = []
        for seed in range(400):
            _, rows = utils.drift_window(
                data, pool, "class_prior", severity, seed, size, swap
            )
            assert swap or len(set(rows)) == len(rows)
            counts.append(np.bincount(data.labels[rows], minlength=3))
        counts = np.array(counts)
        share = 1 - counts[:, 0] / counts.sum(axis=1)
        expected = odds * math.exp(-0.4 * severity)
        error = 4 * np.std(share) / math.sqrt(400) + 2e-3
        assert np.mean(share) == pytest.approx(expected / (1 + expected), abs=error)
        assert counts.sum(axis=0)[1:].min() > 0, "a positive class has vanished"


def test_class_prior_changes_no_pixel_and_keeps_class_zero():
    data = made_up()
    pool = data.where("gate")
    pixels, rows = utils.drift_window(data, pool, "class_prior", 5)
    assert np.array_equal(pixels, data.pixels[rows]) and (np.diff(rows) > 0).all()
    assert np.array_equal(rows[data.labels[rows] == 0], pool[data.labels[pool] == 0])
    weaker = utils.drift_window(data, pool, "class_prior", 2)[1]
    assert set(rows) < set(weaker), "a stronger drift brings images back"


@pytest.mark.parametrize(
    "rows, kind, size, message",
    [
        (slice(None), "shadow", None, "'shadow' is unknown for pneumonia: choose one"),
        (slice(None), "blur", 67, "A window of 67 .* ask for 66 at most, or pass rep"),
        (slice(None), "class_prior", 60, "A window of 60 .* at most, or pass replace"),
        (slice(0), "blur", None, "is empty"),
        (slice(None), "blur", -3, "is empty"),
        (0, "class_prior", None, "all .* images are negative"),
        (1, "class_prior", None, "all .* images are positive"),
    ],
)
def test_window_errors(rows, kind, size, message):
    data = made_up()
    pool = data.where("gate")
    chosen = pool[rows] if isinstance(rows, slice) else pool[data.labels[pool] == rows]
    with pytest.raises(utils.CourseError, match=message):
        utils.drift_window(data, chosen, kind, 4, size=size)


# Drifted data


def test_drift_data_leaves_train_test_and_the_cache_alone(data):
    cached = np.array(data.pixels)
    drifted = drift_data(data, "noise", 3)
    for pool in ("train", "test"):
        rows = data.where(pool)
        assert np.array_equal(drifted.pixels[drifted.where(pool)], cached[rows]), pool
    for pool in ("val", "production", "adapt", "gate"):
        expected = utils.drift_window(data, data.where(pool), "noise", 3)[0]
        assert np.array_equal(drifted.pixels[drifted.where(pool)], expected)
    assert np.array_equal(utils.load_data(data.course).pixels, cached)
    assert np.array_equal(data.pixels, cached) and drifted.mean == data.mean


def test_drift_data_has_a_key_of_its_own():
    data = made_up()
    choices = [
        ("blur", 3),
        ("blur", 4),
        ("jpeg", 3),
        ("blur", 3, 1),
        ("class_prior", 3),
    ]
    keys = [drift_data(data, *choice).key for choice in choices]
    assert len({data.key, *keys}) == len(choices) + 1
    assert keys[0] == drift_data(data, "blur", 3, 42).key


def test_drift_data_of_class_prior_empties_places():
    data = made_up(1200)
    drifted = drift_data(data, "class_prior", 4)
    assert len(drifted.index) == 1200
    assert np.array_equal(drifted.pixels, data.pixels)
    assert (data.index["pool"] != "").all()
    for pool in ("val", "production", "adapt", "gate"):
        expected = utils.drift_window(data, data.where(pool), "class_prior", 4)[1]
        assert np.array_equal(drifted.where(pool), expected)
        assert len(expected) < len(data.where(pool))
    for pool in ("train", "test"):
        assert np.array_equal(drifted.where(pool), data.where(pool))


# Scenarios and pictures


@pytest.mark.parametrize("windows", [6, 7, 12, 13, 40])
@pytest.mark.parametrize("severity", [1, 4, 5])
def test_scenarios(windows, severity):
    shapes = {
        shape: drift_scenario(shape, windows, severity)
        for shape in ("none", "sudden", "gradual", "recurring")
    }
    assert {len(values) for values in shapes.values()} == {windows}
    start, sudden, gradual = windows // 3, shapes["sudden"], shapes["gradual"]
    assert set(shapes["none"]) == set(sudden[:start]) == {0}
    assert set(sudden[start:]) == {severity} == {gradual[-1]}
    assert set(gradual[: windows // 4]) == {0} and set(np.diff(gradual)) <= {0, 1}
    recurring = np.array(shapes["recurring"])
    assert recurring[0] == recurring[-1] == 0 and set(recurring) == {0, severity}
    assert (np.diff(recurring) > 0).sum() >= 2


@pytest.mark.parametrize(
    "shape, windows, message",
    [
        ("slow", 12, "'slow' is unknown: choose one of none, sudden"),
        ("sudden", 5, "5 windows is too short"),
    ],
)
def test_scenario_errors(shape, windows, message):
    with pytest.raises(utils.CourseError, match=message):
        drift_scenario(shape, windows)


def test_figure_of_drifts(smooth):
    pictures = [(image, f"{i} %") for i, image in enumerate(smooth[:6])]
    shares = [(np.array([0.25, 0.75]), "")] * 6
    rows = {"motion_blur": pictures, "class_prior": shares}
    figure = figures.drifts(rows, ("NORMAL", "PNEUMONIA"), "All drifts")
    assert len(figure.axes) == 12 and figure.axes[5].get_xlabel() == "5 %"
    assert figure.axes[0].get_ylabel() == "motion blur"
    drawn = figure.axes[3].images[0].get_array()
    assert np.array_equal(drawn, smooth[3, 0])
    assert [patch.get_height() for patch in figure.axes[-1].patches] == [0.25, 0.75]
