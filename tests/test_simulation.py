"""Simulated drift: every effect against an independent computation, windows, drifted
data, scenarios.
"""

import io
import math
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

import utils

PIXEL_KINDS = [kind for kind in utils.DRIFTS if kind != "class_prior"]


def level(kind: str, severity: int) -> float:
    return utils.DRIFTS[kind].levels[severity - 1]


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
    """Grey pictures without clipping: smooth noise between 90 and 160, uint8 (8, 1, 64,
    64).
    """
    field = ndimage.gaussian_filter(
        np.random.default_rng(0).standard_normal((8, 1, 64, 64)), (0, 0, 3, 3)
    )
    return np.round(125 + 35 * field / np.abs(field).max()).astype(np.uint8)


def made_up(n=400, positives=0.7, dataset="pneumonia", classes=2) -> utils.Data:
    """Data without a home: random pictures of 16 pixels in all pools, labels in the
    given mix.
    """
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(n) < positives, rng.integers(1, classes, n), 0)
    index = pd.DataFrame(
        {"pool": np.resize(["train", "val", "production", "adapt", "gate", "test"], n)}
    )
    pixels = rng.integers(0, 256, (n, 1, 16, 16), dtype=np.uint8)
    course = SimpleNamespace(dataset=dataset)
    return utils.Data(
        index,
        pixels,
        labels,
        ("NORMAL", "A", "B")[:classes],
        [0.5],
        [0.2],
        "key",
        course,
    )


# What holds for every drift


def test_table_of_drifts():
    assert set(utils._EFFECTS) == set(PIXEL_KINDS)
    for name, drift in utils.DRIFTS.items():
        steps = np.diff(drift.levels)
        assert (
            drift.name == name and drift.says.endswith(".") and len(drift.levels) == 5
        )
        assert (steps > 0).all() or (steps < 0).all()
        assert f"{drift.levels[2]:.3g}" in drift.label(3)
    assert utils.drifts_of("pneumonia") == utils.drifts_of("pneumonia3")
    assert set(utils.drifts_of("pneumonia")) ^ set(utils.drifts_of("solar")) == {
        "scanner",
        "shadow",
        "cloud",
        "view_angle",
    }
    with pytest.raises(utils.CourseError, match="choose one of pneumonia"):
        utils.drifts_of("cats")


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_every_drift(roofs, kind):
    before = roofs.copy()
    grid = [utils.drift_images(roofs, kind, severity) for severity in range(6)]
    assert (
        np.array_equal(roofs, before)
        and np.array_equal(grid[0], roofs)
        and grid[0] is not roofs
    )
    assert all(
        drifted.dtype == np.uint8 and drifted.shape == roofs.shape for drifted in grid
    )
    distance = [np.abs(as_floats(drifted) - roofs).mean() for drifted in grid]
    assert np.all(np.diff(distance) > 0), distance
    assert np.array_equal(grid[4], utils.drift_images(roofs, kind, 4))
    assert np.array_equal(grid[4][:3], utils.drift_images(roofs[:3], kind, 4)), (
        "the others of the batch have a say"
    )
    grey = utils.drift_images(roofs[:, :1], kind, 3)
    assert grey.shape == (16, 1, 64, 64) and (grey != roofs[:, :1]).any()


@pytest.mark.parametrize(
    "kind", ["shadow", "cloud", "view_angle", "noise", "rotation", "occlusion"]
)
def test_another_seed_is_another_story(roofs, kind):
    assert (
        utils.drift_images(roofs, kind, 3, seed=1)
        != utils.drift_images(roofs, kind, 3, seed=2)
    ).any()


@pytest.mark.parametrize("kind", ["noise", "cloud", "occlusion", "rotation"])
def test_blocks_do_not_show(roofs, kind):
    many = np.resize(roofs, (700, *roofs.shape[1:]))  # two blocks of 64-pixel roofs
    drifted = utils.drift_images(many, kind, 4)
    assert np.array_equal(drifted[:16], utils.drift_images(roofs, kind, 4))
    assert (drifted != many).any(axis=(1, 2, 3)).all(), (
        "an image between two blocks was left out"
    )


def test_bad_images_are_refused(roofs):
    for pixels, found in (
        (roofs / 255, "float64"),
        (roofs[0], r"\(3, 64, 64\)"),
        (roofs[..., :60], "64, 60"),
        ([[1]], "list"),
    ):
        with pytest.raises(utils.CourseError, match=f"these are .*{found}"):
            utils.drift_images(pixels, "blur", 2)
    for severity in (-1, 6, 2.5, 2.0, "3", None):
        with pytest.raises(utils.CourseError, match="choose 0"):
            utils.drift_images(roofs, "blur", severity)
    with pytest.raises(
        utils.CourseError, match="'fog' is unknown: choose one of scanner, shadow"
    ):
        utils.drift_images(roofs, "fog", 1)
    with pytest.raises(utils.CourseError, match="drift_window"):
        utils.drift_images(roofs, "class_prior", 1)
    assert len(utils.drift_images(roofs[:0], "noise", 3)) == 0


# Each effect against an independent computation


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_is_gaussian(roofs, severity):
    sigma = level("blur", severity) / 100 * 64
    expected = ndimage.gaussian_filter(
        as_floats(roofs), (0, 0, sigma, sigma), mode="mirror", truncate=6
    )
    assert np.abs(utils.drift_images(roofs, "blur", severity) - expected).max() <= 0.6


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pil(roofs, channels):
    drifted = utils.drift_images(roofs[:, :channels], "jpeg", 4)
    for image, found in zip(roofs[:, :channels], drifted, strict=True):
        file = io.BytesIO()
        picture = (
            Image.fromarray(image[0])
            if channels == 1
            else Image.fromarray(image.transpose(1, 2, 0))
        )
        picture.save(file, format="JPEG", quality=level("jpeg", 4))
        assert np.array_equal(np.atleast_3d(Image.open(file)).transpose(2, 0, 1), found)


@pytest.mark.parametrize("severity", [2, 4])
def test_resolution_removes_high_frequencies(severity):
    white = np.random.default_rng(0).integers(60, 196, (8, 1, 64, 64), dtype=np.uint8)
    drifted = utils.drift_images(white, "resolution", severity)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    # Nyquist frequency of the smaller picture
    left = level("resolution", severity) / 100 / 2
    power = [
        np.abs(np.fft.fft2(as_floats(p) - p.mean())) ** 2 for p in (white, drifted)
    ]
    high, low = frequency > 1.5 * left, (frequency > 0) & (frequency < 0.3 * left)
    assert power[1][..., high].sum() < 0.05 * power[0][..., high].sum()
    assert power[1][..., low].sum() > 0.6 * power[0][..., low].sum()


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_has_its_standard_deviation(severity):
    flat = np.full((40, 1, 64, 64), 128, np.uint8)
    noise = as_floats(utils.drift_images(flat, "noise", severity)) - 128
    # and the rounding
    expected = math.hypot(level("noise", severity), 1 / math.sqrt(12))
    assert noise.std() == pytest.approx(expected, rel=0.02) and abs(noise.mean()) < 0.5
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.06, (
        "two images share their noise"
    )


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_brightness_and_contrast_in_closed_form(smooth, severity):
    shift, share = level("brightness", severity), level("contrast", severity) / 100
    assert np.array_equal(
        utils.drift_images(smooth, "brightness", severity),
        np.minimum(smooth + float(shift), 255),
    )
    mean = smooth.mean(axis=(1, 2, 3), keepdims=True)
    assert (
        np.abs(
            utils.drift_images(smooth, "contrast", severity)
            - (mean + share * (smooth - mean))
        ).max()
        <= 0.51
    )


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_rotation_in_the_centre(smooth, severity):
    drifted, angle = (
        utils.drift_images(smooth, "rotation", severity),
        level("rotation", severity),
    )
    far = np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5))
    signs = []
    for image, found in zip(smooth[:, 0], drifted[:, 0], strict=True):
        turned = {
            sign: ndimage.rotate(as_floats(image), sign * angle, order=1, reshape=False)
            for sign in (-1, 1)
        }
        error = {
            sign: np.abs(picture - found)[far < 29].max()
            for sign, picture in turned.items()
        }
        signs.append(min(error, key=error.get))
        assert min(error.values()) <= 1
    assert set(signs) == {-1, 1}


def test_scanner_is_a_monotone_curve_and_coarser():
    greys = np.broadcast_to(
        np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 1, 8, 8)
    )
    for severity in range(1, 6):
        drifted = utils.drift_images(greys, "scanner", severity)
        curve = as_floats(drifted[:, 0, 0, 0])
        assert np.ptp(drifted, axis=(2, 3)).max() <= 1 and (np.diff(curve) >= 0).all()
        assert (
            np.abs(
                curve - 255 * (np.arange(256) / 255) ** (1 / level("scanner", severity))
            ).max()
            <= 0.51
        )
    board = np.tile(np.array([[60, 180], [180, 60]], np.uint8), (1, 1, 32, 32))
    assert utils.drift_images(board, "scanner", 5).std() < 0.2 * board.std(), (
        "the finest pattern survives"
    )


def test_shadow_darkens_a_part_and_nothing_brightens():
    flat = np.full((30, 3, 64, 64), 200, np.uint8)
    shares, darkness = [], level("shadow", 4) / 100
    for image in utils.drift_images(flat, "shadow", 4):
        assert image.max() <= 200 and image.min() >= 200 * (1 - darkness) - 1
        shares.append((image[0] < 200 * (1 - darkness / 2)).mean())
        assert image[2].mean() >= image[0].mean()  # bluish
        assert np.abs(np.diff(as_floats(image), axis=1)).max() < 30, "a hard edge"
    assert 0.1 < min(shares) and max(shares) < 0.75 and np.std(shares) > 0.05


def test_cloud_lifts_and_flattens():
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 200, (20, 3, 64, 64), dtype=np.uint8)
    drifted = utils.drift_images(scene, "cloud", 4)
    assert (drifted >= scene).all() and drifted.std() < 0.75 * scene.std()
    veil = (as_floats(drifted) - scene) / (255.0 - scene)
    assert veil.mean() == pytest.approx(level("cloud", 4) / 100, rel=0.15)
    assert veil.mean(axis=1).std(axis=(1, 2)).min() > 0.02, "the veil is even"
    assert np.abs(np.diff(veil.mean(axis=1), axis=2)).max() < 0.1, (
        "the veil is no veil but spots"
    )


def test_view_angle_is_a_projection():
    """A round spot on the ground becomes an ellipse, shorter by the cosine
    of the tilt.
    """
    line = np.arange(128) - 63.5
    spot = (255 * np.exp(-np.add.outer(line**2, line**2) / (2 * 6**2))).astype(np.uint8)
    for severity in (1, 3, 5):
        drifted = utils.drift_images(
            np.tile(spot, (12, 1, 1, 1)), "view_angle", severity
        )
        angles = []
        for image in as_floats(drifted[:, 0]):
            weights = np.where(np.hypot(*np.meshgrid(line, line)) < 30, image, 0)
            axes, directions = np.linalg.eigh(
                np.cov(
                    np.stack(np.meshgrid(line, line)).reshape(2, -1),
                    aweights=weights.ravel(),
                )
            )
            shorter = math.sqrt(axes[0] / axes[1])
            assert shorter == pytest.approx(
                math.cos(math.radians(level("view_angle", severity))), abs=0.04
            )
            angles.append(math.atan2(directions[1, 0], directions[0, 0]) % math.pi)
        assert np.std(angles) > 0.3, "all images are seen from one side"


def test_occlusion_hides_its_share_and_grows_in_place():
    flat = np.full((30, 1, 64, 64), 200, np.uint8)
    hidden = [
        utils.drift_images(flat, "occlusion", severity) < 200 for severity in range(6)
    ]
    for severity in range(1, 6):
        share = hidden[severity].mean(axis=(1, 2, 3))
        assert share == pytest.approx(
            np.full(30, level("occlusion", severity) / 100), abs=0.02
        )
        assert hidden[severity][hidden[severity - 1]].all(), (
            "a larger patch uncovers what a smaller one hid"
        )
    assert len({tuple(np.argwhere(mask[0])[0]) for mask in hidden[1]}) > 20


def test_same_place_across_severities():
    flat = np.full((12, 3, 64, 64), 160, np.uint8)
    for kind in ("shadow", "cloud", "noise"):
        changes = [
            as_floats(utils.drift_images(flat, kind, severity)) - 160
            for severity in (3, 5)
        ]
        for weak, strong in zip(*changes, strict=True):
            assert np.corrcoef(weak.ravel(), strong.ravel())[0, 1] > 0.97, kind


# Windows


def test_window_takes_rows_in_order_or_draws():
    data = made_up()
    pool = data.where("production")
    pixels, rows = utils.drift_window(data, pool, "blur", 3)
    assert np.array_equal(rows, pool) and rows.dtype == np.int64
    assert np.array_equal(pixels, utils.drift_images(data.pixels[pool], "blur", 3))
    draws = {
        kind: utils.drift_window(data, pool, kind, 2, seed=5, size=20)[1]
        for kind in ("blur", "jpeg", "scanner")
    }
    assert all(np.array_equal(rows, draws["blur"]) for rows in draws.values()), (
        "windows of one seed are not paired"
    )
    assert len(set(draws["blur"])) == 20 and set(draws["blur"]) <= set(pool)
    assert not np.array_equal(
        draws["blur"], utils.drift_window(data, pool, "blur", 2, seed=6, size=20)[1]
    )
    assert (
        len(utils.drift_window(data, pool, "blur", 2, size=500, replace=True)[1]) == 500
    )
    assert np.array_equal(utils.drift_window(data, pool, "class_prior", 0)[1], pool)


@pytest.mark.parametrize("positives", [0.75, 0.3])
@pytest.mark.parametrize("size, swap", [(None, False), (20, False), (200, True)])
def test_class_prior_moves_the_odds(positives, size, swap):
    data = made_up(positives=positives, classes=3)
    pool = data.where("gate")
    odds = (data.labels[pool] != 0).sum() / (data.labels[pool] == 0).sum()
    for severity in (1, 4):
        share, spread = [], []
        for seed in range(400):
            rows = utils.drift_window(
                data, pool, "class_prior", severity, seed, size, swap
            )[1]
            assert swap or len(set(rows)) == len(rows)
            share.append((data.labels[rows] != 0).mean())
            spread.append(np.bincount(data.labels[rows], minlength=3))
        expected = odds * math.exp(-0.4 * severity)
        error = 4 * np.std(share) / math.sqrt(400) + 2e-3
        assert np.mean(share) == pytest.approx(expected / (1 + expected), abs=error)
        assert np.sum(spread, axis=0)[1:].min() > 0, (
            "one of the positive classes has vanished"
        )


def test_class_prior_changes_no_pixel_and_keeps_class_zero():
    data = made_up()
    pool = data.where("gate")
    pixels, rows = utils.drift_window(data, pool, "class_prior", 5)
    assert np.array_equal(pixels, data.pixels[rows]) and (np.diff(rows) > 0).all()
    assert np.array_equal(rows[data.labels[rows] == 0], pool[data.labels[pool] == 0])
    weaker = utils.drift_window(data, pool, "class_prior", 2)[1]
    assert set(rows) < set(weaker), (
        "a stronger drift brings back what a weaker one left out"
    )


def test_window_errors():
    data = made_up()
    pool = data.where("production")
    with pytest.raises(
        utils.CourseError,
        match="'shadow' is unknown for pneumonia: choose one of scanner, blur",
    ):
        utils.drift_window(data, pool, "shadow", 1)
    with pytest.raises(
        utils.CourseError,
        match=f"needs {len(pool) + 1} rows of this class mix, there are {len(pool)}",
    ):
        utils.drift_window(data, pool, "blur", 1, size=len(pool) + 1)
    served = len(utils.drift_window(data, pool, "class_prior", 4)[1])
    assert (
        len(utils.drift_window(data, pool, "class_prior", 4, size=served)[1]) == served
    )
    with pytest.raises(
        utils.CourseError, match=f"ask for {served} at most, or pass replace=True"
    ):
        utils.drift_window(data, pool, "class_prior", 4, size=served + 1)
    with pytest.raises(utils.CourseError, match="all .* images are negative"):
        utils.drift_window(data, pool[data.labels[pool] == 0], "class_prior", 1)
    with pytest.raises(utils.CourseError, match="all .* images are positive"):
        utils.drift_window(data, pool[data.labels[pool] == 1], "class_prior", 1)
    for rows in (data.index["pool"] == "gate", [400], [-1], [0.5]):
        with pytest.raises(utils.CourseError, match="row numbers 0 to 399"):
            utils.drift_window(data, rows, "blur", 1)
    for rows, size in (([], None), (pool, 0), (pool, -3)):
        with pytest.raises(utils.CourseError, match="is empty"):
            utils.drift_window(data, rows, "blur", 1, size=size)
    with pytest.raises(utils.CourseError, match="choose 0"):
        utils.drift_window(data, pool, "class_prior", 7)


# Drifted data


def test_drift_data_leaves_train_test_and_the_cache_alone(data):
    cached = np.array(data.pixels)
    drifted = utils.drift_data(data, "noise", 3, pools=("production", "gate"))
    for pool in ("train", "val", "adapt", "test"):
        assert np.array_equal(
            drifted.pixels[drifted.where(pool)], cached[data.where(pool)]
        ), pool
    for pool in ("production", "gate"):
        expected = utils.drift_window(data, data.where(pool), "noise", 3)[0]
        assert np.array_equal(drifted.pixels[drifted.where(pool)], expected)
    assert np.array_equal(
        utils.load_data(data.course).pixels, cached
    ) and np.array_equal(data.pixels, cached)
    assert (
        drifted.labels is data.labels
        and drifted.mean == data.mean
        and drifted.course is data.course
    )
    images, labels = next(iter(drifted.loader("gate", batch_size=4)))
    assert images.shape == (4, 1, 32, 32) and np.array_equal(
        labels, data.labels[data.where("gate")[:4]]
    )


def test_drift_data_has_a_key_of_its_own():
    data = made_up()
    choices = [
        ("blur", 3, 42, ["val"]),
        ("blur", 4, 42, ["val"]),
        ("jpeg", 3, 42, ["val"]),
        ("blur", 3, 1, ["val"]),
        ("blur", 3, 42, ["val", "gate"]),
        ("class_prior", 3, 42, ["val"]),
    ]
    keys = [utils.drift_data(data, *choice).key for choice in choices]
    assert len({data.key, *keys}) == len(choices) + 1
    assert keys[0] == utils.drift_data(data, "blur", 3, 42, "val").key
    assert keys[4] == utils.drift_data(data, "blur", 3, 42, ("gate", "val")).key


def test_drift_data_of_class_prior_empties_places():
    data = made_up(1200)
    drifted = utils.drift_data(data, "class_prior", 4)
    assert (
        len(drifted.index) == 1200
        and drifted.pixels is data.pixels
        and (data.index["pool"] != "").all()
    )
    for pool in ("val", "production", "adapt", "gate"):
        expected = utils.drift_window(data, data.where(pool), "class_prior", 4)[1]
        assert np.array_equal(drifted.where(pool), expected) and len(expected) < len(
            data.where(pool)
        )
    for pool in ("train", "test"):
        assert np.array_equal(drifted.where(pool), data.where(pool))


@pytest.mark.parametrize("pool", ["train", "test", "tset"])
def test_drift_data_refuses_train_test_and_unknown_pools(pool):
    with pytest.raises(
        utils.CourseError,
        match=f"'{pool}' is not drifted.*Choose among val, production, adapt, gate",
    ):
        utils.drift_data(made_up(), "blur", 2, pools=("val", pool))


def test_drift_data_refuses_the_drift_of_another_dataset():
    with pytest.raises(utils.CourseError, match="'scanner' is unknown for solar"):
        utils.drift_data(made_up(dataset="solar"), "scanner", 2)


# Scenarios


@pytest.mark.parametrize("windows", [6, 7, 12, 13, 40])
@pytest.mark.parametrize("severity", [1, 4, 5])
def test_scenarios(windows, severity):
    shapes = {
        shape: utils.drift_scenario(shape, windows, severity)
        for shape in ("none", "sudden", "gradual", "recurring")
    }
    assert all(
        len(values) == windows and all(type(v) is int for v in values)
        for values in shapes.values()
    )
    assert set(shapes["none"]) == {0}
    start = windows // 3
    assert set(shapes["sudden"][:start]) == {0} and set(shapes["sudden"][start:]) == {
        severity
    }
    gradual = shapes["gradual"]
    assert (
        set(gradual[: windows // 4]) == {0}
        and gradual[-1] == severity
        and set(np.diff(gradual)) <= {0, 1}
    )
    recurring = np.array(shapes["recurring"])
    assert recurring[0] == 0 and recurring[-1] == 0 and set(recurring) == {0, severity}
    assert (np.diff(recurring) > 0).sum() >= 2


def test_scenario_errors():
    with pytest.raises(
        utils.CourseError, match="'slow' is unknown: choose one of none, sudden"
    ):
        utils.drift_scenario("slow", 12)
    with pytest.raises(utils.CourseError, match="5 windows is too short"):
        utils.drift_scenario("sudden", 5)
    with pytest.raises(utils.CourseError, match="choose 0"):
        utils.drift_scenario("sudden", 12, 9)


@pytest.mark.parametrize("dataset", ["pneumonia", "solar"])
def test_figure_of_all_drifts(open_course, dataset):
    course = open_course(dataset)
    utils.build_index(course)
    data = utils.load_data(course)
    figure = utils.plot_drifts(data, int(data.where("gate")[0]), title="All drifts")
    kinds = utils.drifts_of(dataset)
    assert len(figure.axes) == 6 * len(kinds)
    texts = " ".join(axis.get_xlabel() for axis in figure.axes)
    assert all(
        utils.DRIFTS[kind].label(5) in texts for kind in kinds if kind != "class_prior"
    )
    bars = [patch.get_height() for patch in figure.axes[-1].patches]
    assert len(bars) == 2 and sum(bars) == pytest.approx(1)
