"""Drift detectors: the tests by themselves, by name, and under the handout's names."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel
from support.worlds import Stand, as_reference, within, world
from torch import nn

import utils
from kit.drifts import DRIFTS, Drift
from kit.fingerprint import fingerprint
from kit.watching import load_reference
from models.baseline_cnn import BaselineCNN
from models.optimized_cnn import OptimizedCNN

TESTS = {
    "KS": utils.ks_test,
    "MMD": utils.mmd_test,
    "classifier": utils.classifier_test,
}


@pytest.fixture(scope="module")
def reference():
    return as_reference(*world(200))


# --- The tests, against independent computations


def test_drift_statistics_against_scipy_and_definitions():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 24, 24), dtype=np.uint8)
    table = utils.drift_statistics(pixels)
    for image, row in zip(pixels.astype(float), table.itertuples(), strict=True):
        grey = np.round(image.mean(axis=0).astype(np.float32))
        counts = np.bincount(grey.astype(int).ravel())
        assert row.entropy == pytest.approx(stats.entropy(counts, base=2), rel=1e-5)
        assert row.p05 == np.percentile(grey, 5, method="inverted_cdf")
        assert row.p95 == np.percentile(grey, 95, method="inverted_cdf")
        rg, yb = image[0] - image[1], (image[0] + image[1]) / 2 - image[2]
        colourful = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert row.colourfulness == pytest.approx(colourful, rel=1e-4)
    assert "colourfulness" not in utils.drift_statistics(pixels[:, :1])


def test_ks_is_scipys_test_feature_by_feature():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(80, 5)), rng.normal(0.3, size=(40, 5))
    names = list("abcde")
    result = utils.ks_test(pd.DataFrame(x, columns=names), y)
    expected = [stats.ks_2samp(x[:, i], y[:, i]) for i in range(5)]
    assert np.allclose(result.features["statistic"], [e.statistic for e in expected])
    p_values = utils.holm([e.pvalue for e in expected])
    assert np.allclose(result.features["p_value"], p_values)
    assert result.statistic == max(e.statistic for e in expected)
    assert result.p_value == pytest.approx(5 * min(e.pvalue for e in expected))
    assert (result.window, result.reference) == (40, 80)
    assert list(result.features.index) == names


def test_holm_against_its_definition():
    p = np.array([0.012, 0.2, 0.001, 0.03, 0.9])
    for alpha in (0.004, 0.01, 0.04, 0.05, 0.1, 0.7):
        rejected, left = set(), sorted(range(5), key=lambda i: p[i])
        # step down: reject while the smallest is small enough
        while left and p[left[0]] <= alpha / len(left):
            rejected.add(left.pop(0))
        assert set(np.flatnonzero(utils.holm(p) <= alpha)) == rejected


def by_definition(x, y, gamma):
    n, m = len(x), len(y)
    within_x = rbf_kernel(x, gamma=gamma)[~np.eye(n, dtype=bool)].mean()
    within_y = rbf_kernel(y, gamma=gamma)[~np.eye(m, dtype=bool)].mean()
    return within_x + within_y - 2 * rbf_kernel(x, y, gamma=gamma).mean()


def test_mmd_against_scikit_learns_kernel():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(30, 7)), rng.normal(0.5, 2, size=(20, 7))
    mmd, true = partial(utils.compute_mmd, gamma=0.1), by_definition(x, y, 0.1)
    median = np.median([((a - b) ** 2).sum() for i, a in enumerate(x) for b in x[:i]])
    assert mmd(x, y) == pytest.approx(true, abs=1e-12)
    assert mmd(torch.tensor(x), torch.tensor(y)) == mmd(x, y)
    assert mmd(x + 1e6, y + 1e6) == pytest.approx(true, abs=1e-8)
    assert utils.compute_mmd(x, y) == pytest.approx(
        by_definition(x, y, 1 / median), abs=1e-12
    )


def test_mmd_linear_kernel_is_a_distance_of_means():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(50, 3)), rng.normal(1, size=(40, 3))
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum()
    noise = x.var(0, ddof=1).sum() / 50 + y.var(0, ddof=1).sum() / 40
    assert utils.compute_mmd(x, y, kernel="linear") == pytest.approx(distance - noise)


def test_mmd_is_unbiased_and_grows_with_drift():
    rng = np.random.default_rng(7)
    pairs = rng.normal(size=(600, 2, 15, 4))
    null = np.array([utils.compute_mmd(*pair, gamma=0.2) for pair in pairs])
    assert abs(null.mean()) < 4 * null.std() / math.sqrt(len(null)) and (null < 0).any()
    x, y = rng.normal(size=(200, 64)), rng.normal(size=(200, 64))
    grown = [utils.compute_mmd(x, y + shift) for shift in (0, 0.1, 0.2, 0.4, 0.8)]
    assert (np.diff(grown) > 0).all()


def test_every_permutation_in_one_product_is_the_mmd_of_that_split():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(25, 6)), rng.normal(0.4, size=(10, 6))
    pooled, members = np.concatenate([x, y]), utils._shuffled(25, 10, 19, seed=3)
    values = [by_definition(pooled[w == 0], pooled[w == 1], 0.1) for w in members]
    result = utils.mmd_test(x, y, permutations=19, gamma=0.1, seed=3)
    assert result.p_value == (np.sum(values[1:] >= values[0]) + 1) / 20
    assert result.statistic == pytest.approx(values[0], abs=1e-12)
    assert result.threshold == pytest.approx(max(values[1:]), abs=1e-12)


def test_shuffles_start_with_the_truth_and_keep_the_size_of_the_window():
    members = utils._shuffled(13, 7, 500, seed=1)
    assert members[0].tolist() == [0] * 13 + [1] * 7
    assert set(members.ravel()) == {0, 1} and (members.sum(axis=1) == 7).all()
    # every row has the same chance
    error = np.abs(members[1:].mean(axis=0) - 7 / 20).max()
    assert error < 5 * math.sqrt(0.35 * 0.65 / 500)


def test_p_value_and_threshold_agree_also_where_values_are_equal():
    rng = np.random.default_rng(9)
    for seed in range(40):
        x, y = rng.normal(size=(40, 3)), rng.normal(0.35, size=(20, 3))
        for test in (utils.mmd_test, utils.classifier_test):
            result = test(x.round(seed % 2), y.round(seed % 2), 0.1, 99, seed=seed)
            assert result.drift == (result.statistic > result.threshold)
    for values in rng.integers(0, 4, (200, 20)).astype(float):
        p_value, threshold = utils._permutation_p(values, 0.1)
        assert (p_value <= 0.1) == (values[0] > threshold)
        assert p_value == ((values[1:] >= values[0]).sum() + 1) / 20


def test_classifier_auroc():
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(600, 1)), rng.normal(1.2, size=(500, 1))
    result = utils.classifier_test(x, y, permutations=99)
    # one feature: the classifier can only order by it
    truth = roc_auc_score([0] * 600 + [1] * 500, np.concatenate([x, y]))
    assert result.drift and result.statistic == pytest.approx(truth, abs=0.05)
    assert utils.classifier_test(x, y + 50).statistic == 1


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_a_constant_world_has_not_drifted(test):
    x, y = np.ones((30, 4)), np.ones((12, 4))
    assert test(x, y).p_value == 1 and not test(x, y)
    assert test(x, y + 1).drift


X = np.random.default_rng(13).normal(size=(50, 5))
NAN, INFINITE = X.copy(), X.copy()
NAN[7, 2], INFINITE[:3, 0] = np.nan, np.inf


@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": X[:1]}, "images, the window has 1: wait"),
        ({"window": X[:, :3]}, "reference has 5 features, the window 3"),
        ({"window": NAN}, "window has NaN .* values in 1 of 50"),
        ({"reference": INFINITE}, "reference has NaN .* values in 3 of 50"),
        ({"alpha": 0}, "alpha=0 is no error rate"),
        ({"alpha": math.nan}, "alpha=nan is no error rate"),
    ],
)
def test_what_cannot_be_compared_is_told(test, options, message):
    with pytest.raises(utils.CourseError, match=message):
        test(**{"reference": X, "window": X} | options)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: utils.mmd_test(X, X, 0.001, 200), "below 0.005.*take at least 999"),
        (lambda: utils.ks_test(X, X[:2] + 9, 0.001), "a window of 2 images beside 50"),
        (lambda: utils.mmd_test(X[:3], X[:3]), "a window of 3 images beside 3"),
        (lambda: utils.classifier_test(X, X[:9]), "at least 10 images, the window has"),
        (lambda: utils.compute_mmd(X, X, "poly"), "kernel='poly' is unknown"),
    ],
)
def test_what_can_never_be_answered_is_told(call, message):
    with pytest.raises(utils.CourseError, match=message):
        call()


def test_the_smallest_windows_that_are_let_through_can_raise_an_alarm():
    """Exact p-values go down to 2 in all ways to choose the window."""
    x, y = np.zeros((3, 1)), np.ones((60, 1))
    for n, m in ((3, 60), (60, 3)):
        result = utils.ks_test(np.zeros((n, 1)), np.ones((m, 1)))
        assert result.p_value == pytest.approx(2 / math.comb(63, 3))
    with pytest.raises(utils.CourseError):
        utils.ks_test(x, y[:4])
    assert utils.ks_test(x, y[:5]).drift


# --- Detectors by name, and how good they are


def test_false_alarms_of_every_detector_stay_at_what_they_promise():
    rows = utils.alarm_rates(world(160, seed=1)[0], 40, resamples=300, permutations=99)
    rates = {row["detector"]: row for row in rows}
    assert set(rates) == set(utils.DETECTORS)
    for name in ("MMD embedding", "classifier embedding"):
        assert within(rates[name]["alarms"], 300), rates[name]
    for name in ("KS statistics", "KS softmax", "KS embedding"):
        most = 300 * 0.05 + 4 * math.sqrt(300 * 0.05)
        assert rates[name]["alarms"] < most, rates[name]
    row = rates["MMD embedding"]
    assert row["low"] <= row["rate"] == row["alarms"] / 300 <= row["high"]
    assert (row["window"], row["reference"]) == (40, 120)


def test_a_window_as_large_as_the_pool_leaves_no_reference():
    with pytest.raises(utils.CourseError, match="leaves 10 of 100 images"):
        utils.alarm_rates(world(100)[0], 90)


def test_whole_patients_in_a_window_make_more_false_alarms():
    """Four images a patient that look alike are no four observations: the test must be
    told, or it cries wolf.
    """
    rng, groups = np.random.default_rng(12), np.repeat(np.arange(40), 4)
    embedding = rng.normal(size=(40, 8))[groups] + 0.2 * rng.normal(size=(160, 8))
    seen = utils.Observation(pd.DataFrame(embedding), np.full((160, 2), 0.5), embedding)
    one, whole = (
        utils.alarm_rates(seen, 40, ["MMD embedding"], 120, permutations=99, groups=g)
        for g in (None, groups)
    )
    assert one[0]["rate"] < 0.12 and whole[0]["rate"] > 0.4


def test_groups_are_never_divided():
    """Every patient lies wholly in the window or wholly in the reference."""
    rng = np.random.default_rng(24)
    groups = rng.choice([f"patient {i}" for i in range(25)], 120)
    windows = set()
    for _ in range(60):
        inside = utils._draw_window(120, 40, rng, groups)
        assert not set(groups[inside]) & set(groups[~inside])
        assert 40 <= inside.sum() < 40 + pd.Series(groups).value_counts().max()
        windows.add(frozenset(groups[inside]))
    assert len(windows) == 60 and set().union(*windows) == set(groups)


def test_power_grows_with_severity_and_window(reference):
    found = np.array(
        [
            [
                utils.count_found(reference, seen, size, "MMD embedding", 20, 99)
                for size in (15, 60)
            ]
            for seen in (world(100, 20 + s, 0.35 * s)[0] for s in range(4))
        ]
    )
    assert found[3, 1] == 20 and found[0, 1] <= 6
    assert (found[1:, 1] >= found[1:, 0]).all() and (np.diff(found[:, 1]) >= 0).all()


def test_detect_names_features(reference):
    result = utils.detect(reference, world(60, seed=3, shift=1)[0], "KS statistics")
    assert list(result.features.index) == ["brightness", "contrast", "sharpness"]
    assert result.features["drift"].all() and result.detector == "KS statistics"


def first_number(reference, window):
    """A student's: Mann and Whitney's test of the first number."""
    return stats.mannwhitneyu(reference[:, 0], window[:, 0]).pvalue


def test_a_students_detector_works_wherever_ours_do(monkeypatch):
    monkeypatch.setitem(utils.DETECTORS, "mine", ("embedding", first_number))
    seen, labels = world(200)
    reference, drifted = as_reference(seen, labels), world(60, seed=3, shift=1)[0]
    result = utils.detect(reference, drifted, "mine", 0.01)
    expected = first_number(reference.embedding, drifted.embedding)
    assert result.drift and result.p_value == expected and "mine: drift" in str(result)
    row = utils.alarm_rates(seen, 40, ["mine"], 200)[0]
    assert within(row["alarms"], 200)
    policy = utils.DriftPolicy(0.8, 40, detectors=("mine", "MMD embedding"))
    look = utils.DriftMonitor(reference, policy).look(drifted)
    assert look.flagged and look.results["mine"].p_value == expected
    assert utils.count_found(reference, drifted, 40, "mine", draws=5) == 5


@pytest.mark.parametrize(
    "entry, message",
    [
        (first_number, r"DETECTORS\['mine'\] must say what it looks at"),
        (("embedding", lambda x, y: stats.ttest_ind(x, y)), "must return a p-value"),
        (("embedding", lambda x, y: 1.2), "must return a p-value.* returned 1.2"),
    ],
)
def test_a_students_detector_that_cannot_work_is_told(
    reference, monkeypatch, entry, message
):
    monkeypatch.setitem(utils.DETECTORS, "mine", entry)
    with pytest.raises(utils.CourseError, match=message):
        utils.detect(reference, reference, "mine")
    with pytest.raises(utils.CourseError, match="'chi2' is unknown: choose one of KS"):
        utils.detect(reference, reference, "chi2")


def test_a_repaired_detector_or_drift_is_measured_again(monkeypatch):
    def broken(reference, window):
        return 0.0

    def repaired(reference, window, floor=0.5):
        return floor

    entries = [broken, repaired, partial(repaired, floor=0.6)]
    told = [fingerprint(utils.alarm_rates), fingerprint(utils.DriftMonitor)]
    for test in entries:
        monkeypatch.setitem(utils.DETECTORS, "mine", ("embedding", test))
        told += [fingerprint(utils.alarm_rates), fingerprint(utils.DriftMonitor)]
    assert len(set(told)) == 8

    def fog(images, severity, rng):
        return images + 10 * severity

    told = [fingerprint(utils.drift_window)]
    for levels in ((1, 2, 3, 4, 5), (1, 2, 4, 6, 9)):
        monkeypatch.setitem(DRIFTS, "fog", Drift(fog, levels=levels))
        told.append(fingerprint(utils.drift_window))
    assert len(set(told)) == 3


# --- The stored reference


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(15)
    pixels = rng.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    reference = utils.fit_reference(Stand(), pixels, rng.integers(0, 2, 30))
    return reference, reference.save(tmp_path / "drift_reference.npz")


def test_reference_comes_back_as_it_was(stored):
    reference, path = stored
    again = load_reference(path, Stand())
    pd.testing.assert_frame_equal(again.statistics, reference.statistics)
    for name in ("probabilities", "embedding", "labels"):
        assert np.array_equal(getattr(again, name), getattr(reference, name))
        assert getattr(again, name).dtype == getattr(reference, name).dtype
    for name in ("model", "classes", "key"):
        assert getattr(again, name) == getattr(reference, name) != ""
    right = reference.probabilities.argmax(axis=1) == reference.labels
    assert again.accuracy == right.mean()


def test_reference_cut_foreign_or_missing(stored, tmp_path):
    _, path = stored
    whole, other = path.read_bytes(), Stand()
    cases = [(tmp_path / "absent.npz", "absent.npz is missing: run notebooks/theme6")]
    for number, content in enumerate([b"", whole[:100], whole[:-1], b"no zip at all"]):
        cut = tmp_path / f"{number}.npz"
        cut.write_bytes(content)
        cases.append((cut, "is damaged"))
    for place, message in cases:
        with pytest.raises(utils.CourseError, match=message):
            load_reference(place, Stand())
    other.hash = "f" * 16
    with pytest.raises(utils.CourseError, match="describes model 0.*, asked for ffff"):
        load_reference(path, other)
    other.classes = ("NO_PANEL", "PANEL")
    with pytest.raises(utils.CourseError, match="knows the classes"):
        load_reference(path, other)


def test_keys_name_the_images_and_their_order(stored):
    reference, _ = stored
    parts = [reference, reference.take([0, 1]), reference.take([1, 0])]
    keys = {seen.key for seen in [*parts, utils.join(parts)]}
    assert len(keys) == 4 and reference.take([0, 1]).key in keys


# --- The names of the handout


def test_embeddings_are_what_the_last_layer_reads(data):
    loader = data.loader("val", 5)
    images = torch.cat([images for images, _ in loader])
    for model in (OptimizedCNN(1, 2, (8, 16)), BaselineCNN(1, 2)):
        model.train()
        embedding, labels = utils.extract_embeddings(model, loader, torch.device("cpu"))
        assert model.training and (labels == loader.labels).all()
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            expected = model.eval()(images)
            found = last(torch.from_numpy(embedding))
        assert embedding.dtype == np.float32
        assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(utils.CourseError, match="has no nn.Linear"):
        utils.extract_embeddings(nn.Conv2d(1, 1, 3), loader, "cpu")


@pytest.fixture
def loaders(data):
    """Two halves of the images, and the second one darker."""
    dark = utils.replace(data, pixels=(data.pixels // 2).astype(np.uint8), key="dark")
    rows = np.arange(len(data.labels))
    halves = ((data, rows[::2]), (data, rows[1::2]), (dark, rows[1::2]))
    return [utils.BatchLoader(d, own, 16, None, False) for d, own in halves]


def test_pixel_and_embedding_drift_on_loaders(loaders):
    clean, other, dark = loaders
    if utils.detect_pixel_drift(clean, other):
        raise AssertionError("two halves of one pool")
    drift, p_value = utils.detect_pixel_drift(clean, dark)
    assert drift and p_value < 0.05
    model = OptimizedCNN(1, 2, (8, 16))
    result = utils.detect_embedding_drift(model, clean, dark, "cpu", permutations=99)
    assert result and result.detector == "MMD embedding"


def test_any_loader_of_pictures_is_understood(data, loaders):
    clean, _, dark = loaders
    pixels = torch.from_numpy(np.array(data.pixels[::2]))
    kinds = [clean, [(pixels, None)], [(pixels / 255, None)]]
    for found in utils.grey_levels(*kinds):
        assert np.array_equal(found, pixels.numpy())
    # as a torchvision Normalize leaves them, one scale for both
    foreign = [[((images * 3 - 1), None) for images, _ in loader] for loader in loaders]
    ours = utils.detect_pixel_drift(clean, dark)
    theirs = utils.detect_pixel_drift(foreign[0], foreign[2])
    assert theirs and theirs.p_value == pytest.approx(ours.p_value, rel=0.1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": 10_000}, "one image is one observation"),
        ({"threshold": 0.3}, "give alpha, the share of false alarms"),
        ({"alpha": 0.3}, "alarm in 30% of all undrifted windows.*the handout had it"),
    ],
)
def test_what_the_handout_asked_for_is_told(loaders, options, message):
    clean, other, _ = loaders
    with pytest.raises(utils.CourseError, match=message):
        utils.detect_pixel_drift(clean, other, **options)
    with pytest.raises(utils.CourseError, match=message):
        utils.detect_embedding_drift(BaselineCNN(1, 2), clean, other, "cpu", **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'alhpa'"):
        utils.detect_pixel_drift(clean, other, alhpa=0.01)
