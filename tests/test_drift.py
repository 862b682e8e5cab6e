"""Drift detectors, estimates of accuracy without labels, and the
policy that decides.
"""

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel
from torch import nn

import utils
from models.baseline_cnn import BaselineCNN
from models.optimized_cnn import OptimizedCNN

KIT = Path(utils.__file__).parent


def correlated(rng, n, features=12, noise=0.1):
    """Features that say nearly the same thing, as image statistics do."""
    return rng.normal(size=(n, 1)) + noise * rng.normal(size=(n, features))


def within(alarms: int, n: int, rate: float = 0.05) -> bool:
    """Is this number of alarms what a true rate gives, but for one case in ten
    thousand?
    """
    return stats.binomtest(alarms, n, rate).pvalue > 1e-4


# --- Statistics of images
# -----------------------------------------------------------------------------


def test_drift_statistics_against_scipy_and_definitions():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 24, 24), dtype=np.uint8)
    table = utils.drift_statistics(pixels)
    for image, row in zip(pixels.astype(float), table.itertuples(), strict=True):
        grey = np.round(image.mean(axis=0).astype(np.float32))
        assert row.entropy == pytest.approx(
            stats.entropy(np.bincount(grey.astype(int).ravel()), base=2), rel=1e-5
        )
        assert row.p05 == np.percentile(grey, 5, method="inverted_cdf")
        assert row.p95 == np.percentile(grey, 95, method="inverted_cdf")
        rg, yb = image[0] - image[1], (image[0] + image[1]) / 2 - image[2]
        colourful = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert row.colourfulness == pytest.approx(colourful, rel=1e-4)
    assert "colourfulness" not in utils.drift_statistics(pixels[:, :1]).columns


def test_drift_statistics_do_not_depend_on_the_batch():
    pixels = np.random.default_rng(1).integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    assert np.allclose(
        utils.drift_statistics(pixels).iloc[290:], utils.drift_statistics(pixels[290:])
    )


# --- KS
# --------------------------------------------------------------------------------------


def test_ks_is_scipys_test_feature_by_feature():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(80, 5)), rng.normal(0.3, size=(40, 5))
    result = utils.ks_test(x, y, correction="bonferroni", names=list("abcde"))
    expected = [stats.ks_2samp(x[:, i], y[:, i]) for i in range(5)]
    assert np.allclose(result.features["statistic"], [e.statistic for e in expected])
    assert np.allclose(
        result.features["p_value"], np.minimum([5 * e.pvalue for e in expected], 1)
    )
    assert (
        result.statistic == max(e.statistic for e in expected)
        and result.p_value == result.features["p_value"].min()
    )
    assert (result.window, result.reference, list(result.features.index)) == (
        40,
        80,
        list("abcde"),
    )


def test_holm_against_its_definition():
    p = np.array([0.012, 0.2, 0.001, 0.03, 0.9])
    for alpha in (0.004, 0.01, 0.04, 0.05, 0.1, 0.7):
        rejected, left = set(), sorted(range(5), key=lambda i: p[i])
        # step down: reject while the smallest is small enough
        while left and p[left[0]] <= alpha / len(left):
            rejected.add(left.pop(0))
        assert set(np.flatnonzero(utils.adjust(p, "holm") <= alpha)) == rejected
    assert (utils.adjust(p, "holm") <= utils.adjust(p, "bonferroni")).all()
    with pytest.raises(utils.CourseError, match="correction='none' is unknown"):
        utils.adjust(p, "none")


@pytest.mark.parametrize("digits", [8, 0])  # 0: nearly all values are ties
def test_max_ks_against_scipy_on_every_shuffle(digits):
    rng = np.random.default_rng(3)
    pooled = rng.normal(size=(45, 4)).round(digits)
    members = utils._shuffled(15, 45, 30, seed=0)
    maxima, own = utils.max_ks(pooled, members, memory=1)  # one shuffle a block
    for column in range(31):
        inside = members[:, column].numpy()
        expected = [
            stats.ks_2samp(pooled[~inside, f], pooled[inside, f]).statistic
            for f in range(4)
        ]
        assert maxima[column] == pytest.approx(max(expected), abs=1e-12)
        if column == 0:
            assert np.allclose(own, expected)


def test_westfall_young_is_exact_where_bonferroni_is_cautious():
    """On features that go together, the permuted maximum keeps 5 %, and finds what
    Bonferroni misses.
    """
    rng = np.random.default_rng(4)
    alarms, found = (dict.fromkeys(("permutation", "bonferroni"), 0) for _ in range(2))
    for seed in range(400):
        x, y = correlated(rng, 60), correlated(rng, 30)
        for name in alarms:
            alarms[name] += utils.ks_test(
                x, y, correction=name, permutations=99, seed=seed
            ).drift
            if seed < 150:
                found[name] += utils.ks_test(
                    x, y + 0.55, correction=name, permutations=99, seed=seed
                ).drift
    assert (
        within(alarms["permutation"], 400)
        and alarms["bonferroni"] < alarms["permutation"] / 2
    )
    assert found["permutation"] > 1.3 * found["bonferroni"]


# --- MMD
# --------------------------------------------------------------------------------------


def by_definition(x, y, gamma):
    n, m = len(x), len(y)
    within_x = rbf_kernel(x, gamma=gamma)[~np.eye(n, dtype=bool)].mean()
    within_y = rbf_kernel(y, gamma=gamma)[~np.eye(m, dtype=bool)].mean()
    return within_x + within_y - 2 * rbf_kernel(x, y, gamma=gamma).mean()


def test_mmd_against_scikit_learns_kernel():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(30, 7)), rng.normal(0.5, 2, size=(20, 7))
    assert utils.compute_mmd(x, y, gamma=0.1) == pytest.approx(
        by_definition(x, y, 0.1), abs=1e-12
    )
    median = np.median([((a - b) ** 2).sum() for i, a in enumerate(x) for b in x[:i]])
    assert utils.compute_mmd(x, y) == pytest.approx(
        by_definition(x, y, 1 / median), abs=1e-12
    )
    assert utils.compute_mmd(
        torch.tensor(x), torch.tensor(y), gamma=0.1
    ) == utils.compute_mmd(x, y, gamma=0.1)
    assert utils.compute_mmd(x + 1e6, y + 1e6, gamma=0.1) == pytest.approx(
        by_definition(x, y, 0.1), abs=1e-8
    )


def test_mmd_linear_kernel_is_a_distance_of_means():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(50, 3)), rng.normal(1, size=(40, 3))
    unbiased = (
        ((x.mean(0) - y.mean(0)) ** 2).sum()
        - x.var(0, ddof=1).sum() / 50
        - y.var(0, ddof=1).sum() / 40
    )
    assert utils.compute_mmd(x, y, kernel="linear") == pytest.approx(unbiased)
    with pytest.raises(utils.CourseError, match="kernel='poly' is unknown"):
        utils.compute_mmd(x, y, kernel="poly")


def test_mmd_is_unbiased_and_grows_with_drift():
    rng = np.random.default_rng(7)
    null = np.array(
        [utils.compute_mmd(*rng.normal(size=(2, 15, 4)), gamma=0.2) for _ in range(600)]
    )
    assert abs(null.mean()) < 4 * null.std() / math.sqrt(len(null)) and (null < 0).any()
    x, y = rng.normal(size=(200, 64)), rng.normal(size=(200, 64))
    grown = [utils.compute_mmd(x, y + shift) for shift in (0, 0.1, 0.2, 0.4, 0.8)]
    assert (np.diff(grown) > 0).all()


def test_mmd_every_permutation_in_one_product_is_the_mmd_of_that_split():
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(25, 6)), rng.normal(0.4, size=(10, 6))
    pooled, members = np.concatenate([x, y]), utils._shuffled(10, 35, 19, seed=3)
    values = utils._mmd(pooled, members, "rbf", 0.1, memory=1)  # one row a block
    for column in range(20):
        inside = members[:, column].numpy()
        assert values[column] == pytest.approx(
            by_definition(pooled[~inside], pooled[inside], 0.1), abs=1e-12
        )
    result = utils.mmd_test(x, y, permutations=19, gamma=0.1, seed=3)
    assert (
        result.p_value == ((values[1:] >= values[0]).sum() + 1) / 20
        and result.statistic == values[0]
    )


def test_shuffles_start_with_the_truth_and_keep_the_size_of_the_window():
    members = utils._shuffled(7, 20, 500, seed=1)
    assert (
        members[:, 0].tolist() == [False] * 13 + [True] * 7
        and (members.sum(dim=0) == 7).all()
    )
    share = members[:, 1:].double().mean(dim=1)
    # every row has the same chance
    assert (share - 7 / 20).abs().max() < 5 * math.sqrt(0.35 * 0.65 / 500)


def test_one_decision_three_ways():
    """p <= alpha, statistic above its threshold and `drift` say the same."""
    rng = np.random.default_rng(9)
    for seed in range(40):
        x, y = rng.normal(size=(40, 3)), rng.normal(0.35, size=(20, 3))
        for result in (
            utils.mmd_test(x, y, 0.1, 99, seed=seed),
            utils.classifier_test(x, y, 0.1, 99, seed),
            utils.ks_test(x, y, 0.1, "permutation", 99, seed),
        ):
            assert (
                result.drift
                == (result.p_value <= 0.1)
                == (result.statistic > result.threshold)
            )
            assert ("no drift" in str(result)) != result.drift


def test_a_constant_world_has_not_drifted():
    x, y = np.ones((30, 4)), np.ones((12, 4))
    assert utils.median_gamma(x) == 1
    for result in (
        utils.mmd_test(x, y),
        utils.ks_test(x, y),
        utils.ks_test(x, y, correction="permutation"),
        utils.classifier_test(x, y),
    ):
        assert result.p_value == 1 and not result.drift
    assert utils.mmd_test(x, y + 1).drift and utils.ks_test(x, y + 1).drift


# --- The others, and all together
# ---------------------------------------------------------------------


def test_classifier_auroc_and_interval():
    rng, covered = np.random.default_rng(10), 0
    for seed in range(60):
        x, y = rng.normal(size=(120, 1)), rng.normal(1.2, size=(100, 1))
        result = utils.classifier_test(x, y, permutations=19, seed=seed)
        # one feature: the classifier can only order by it
        truth = stats.norm.cdf(1.2 / math.sqrt(2))
        covered += result.interval[0] <= truth <= result.interval[1]
    assert covered >= 50  # 57 of 60 on average
    assert (
        result.drift
        and abs(
            result.statistic
            - roc_auc_score([0] * 120 + [1] * 100, np.concatenate([x, y]))
        )
        < 0.1
    )
    assert utils.classifier_test(x, y + 50).statistic == 1


def test_psi_closed_form_and_what_chance_alone_gives():
    assert utils.psi([50, 50], [50, 50]) == 0
    e, a = np.array([0.8, 0.2]), np.array([0.6, 0.4])
    assert utils.psi(e * 1e9, a * 1e9) == pytest.approx(((a - e) * np.log(a / e)).sum())
    assert math.isfinite(utils.psi([10, 0], [0, 10]))
    rng = np.random.default_rng(11)
    results = [utils.psi_result(rng.random(400), rng.random(100)) for _ in range(300)]
    assert np.mean([r.statistic for r in results]) == pytest.approx(
        results[0].features.attrs["by_chance"], rel=0.15
    )
    assert math.isnan(results[0].p_value) and "no p-value" in str(results[0])
    classes = utils.psi_result(
        np.repeat([0, 1], [20, 80]), np.repeat([0, 1], [40, 10]), classes=3
    )
    assert classes.drift and classes.features["actual"].tolist() == [0.8, 0.2, 0]


@pytest.fixture(autouse=True)
def close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture(scope="module")
def world():
    """Draws what detectors see of n images: answers with 85 % accuracy, calibrated;
    embeddings that go together.
    """

    def draw(n, seed=0, shift=0.0, unsure=0.0):
        rng = np.random.default_rng(seed)
        embedding = correlated(rng, n, 16, noise=0.7) + shift
        confident = stats.beta.ppf(rng.random(n), 6, 1) / 2 + 0.5
        confident = np.clip(confident - unsure, 0.5, 1)
        answer = rng.integers(0, 2, n)
        probabilities = np.where(
            np.arange(2) == answer[:, None], confident[:, None], 1 - confident[:, None]
        )
        labels = np.where(rng.random(n) < confident, answer, 1 - answer)
        names = ["brightness", "contrast", "sharpness"]
        table = pd.DataFrame(
            correlated(rng, n, 3) * 10 + 100 + 5 * shift, columns=names
        )
        return utils.Observation(table, probabilities, embedding), labels

    return draw


@pytest.fixture(scope="module")
def reference(world):
    seen, labels = world(200)
    return utils.Reference(
        seen.statistics,
        seen.probabilities,
        seen.embedding,
        labels,
        "0123456789abcdef",
        ("NORMAL", "PNEUMONIA"),
        utils.median_gamma(seen.embedding),
    )


def test_false_alarms_of_every_detector_stay_at_what_they_promise(world):
    rows = utils.alarm_rates(world(160, seed=1)[0], 40, resamples=300, permutations=99)
    rates = {row["detector"]: row for row in rows}
    assert set(rates) == set(utils.DETECTORS)
    for name in (
        "max-KS statistics",
        "max-KS embedding",
        "MMD embedding",
        "classifier embedding",
    ):
        assert within(rates[name]["alarms"], 300), rates[name]
    for name in ("KS statistics", "KS softmax", "KS embedding"):
        assert rates[name]["alarms"] < 300 * 0.05 + 4 * math.sqrt(300 * 0.05), rates[
            name
        ]
    row = rates["MMD embedding"]
    assert row["low"] <= row["rate"] <= row["high"] and (
        row["window"],
        row["reference"],
    ) == (40, 120)


def test_a_window_as_large_as_the_pool_leaves_no_reference(world):
    with pytest.raises(
        utils.CourseError,
        match="A window of 90 leaves 10 of 100 images as the reference",
    ):
        utils.alarm_rates(world(100)[0], 90)


def test_whole_patients_in_a_window_make_more_false_alarms():
    """Four images a patient that look alike are no four observations: the test must be
    told, or it cries wolf.
    """
    rng = np.random.default_rng(12)
    groups = np.repeat(np.arange(40), 4)
    embedding = rng.normal(size=(40, 8)).repeat(4, axis=0) + 0.2 * rng.normal(
        size=(160, 8)
    )
    seen = utils.Observation(
        pd.DataFrame(embedding[:, :3]), np.full((160, 2), 0.5), embedding
    )
    one, whole = (
        utils.alarm_rates(seen, 40, ["MMD embedding"], 120, permutations=99, groups=g)[
            0
        ]["rate"]
        for g in (None, groups)
    )
    assert one < 0.12 and whole > 0.4


def test_groups_are_never_divided(monkeypatch):
    """Every patient lies wholly in the window or wholly in the reference, and no image
    is lost.
    """
    groups = np.random.default_rng(24).choice([f"patient {i}" for i in range(25)], 120)
    number = np.arange(120.0)
    seen, windows = (
        utils.Observation(
            pd.DataFrame({"row": number}), np.full((120, 2), 0.5), number[:, None]
        ),
        [],
    )

    def detect(reference, window, *args, **options):
        rest, drawn = (side.embedding[:, 0].astype(int) for side in (reference, window))
        assert not set(groups[rest]) & set(groups[drawn]) and sorted(
            [*rest, *drawn]
        ) == list(range(120))
        assert 40 <= len(drawn) < 40 + pd.Series(groups).value_counts().max()
        windows.append(frozenset(groups[drawn]))
        return SimpleNamespace(drift=False)

    monkeypatch.setattr(utils, "detect", detect)
    utils.alarm_rates(seen, 40, ["MMD embedding"], 60, groups=groups)
    assert len(set(windows)) == 60 and set().union(*windows) == set(groups)


def test_power_grows_with_severity_and_window(world, reference):
    drifted = {
        ("shift", s): world(100, seed=20 + s, shift=0.35 * s)[0] for s in range(4)
    }
    rows = utils.power_grid(
        reference, drifted, (15, 60, 500), ("MMD embedding",), (), 20, permutations=99
    )
    rows = pd.DataFrame(rows)
    found = rows.set_index(["severity", "window"])["found"].unstack()
    assert list(found.columns) == [15, 60]  # 500 images there are not
    assert found.loc[3, 60] == 20 and found.loc[0, 60] <= 6
    assert (found[60] >= found[15])[1:].all() and found[60].is_monotonic_increasing


def test_detect_names_features_and_refuses_unknown_detectors(world, reference):
    result = utils.detect(reference, world(60, seed=3, shift=1)[0], "KS statistics")
    assert (
        list(result.features.index) == ["brightness", "contrast", "sharpness"]
        and result.features["drift"].all()
    )
    assert list(utils.detect(reference, reference, "KS softmax").features.index) == [
        "NORMAL",
        "PNEUMONIA",
    ]
    with pytest.raises(
        utils.CourseError, match="'chi2' is unknown: choose one of KS statistics"
    ):
        utils.detect(reference, reference, "chi2")


BAD = [
    (lambda x: (x, x[:1]), {}, "needs at least 2 images, the window has 1"),
    (lambda x: (x, x[:, :3]), {}, "reference has 5 features, the window 3"),
    (
        lambda x: (x, np.where(np.arange(50)[:, None] == 7, np.nan, x)),
        {},
        "window has NaN .* values in 1 of 50",
    ),
    (lambda x: (x, x), {"alpha": 0}, "alpha=0 is no error rate"),
    (lambda x: (x, x), {"alpha": 1.5}, "alpha=1.5 is no error rate"),
    (
        lambda x: (x, x),
        {"alpha": 0.001, "permutations": 200},
        "no p-value below 0.005.*take at least 999",
    ),
]


@pytest.mark.parametrize("make, options, message", BAD)
def test_bad_windows_are_told(make, options, message):
    x, y = make(np.random.default_rng(13).normal(size=(50, 5)))
    for test in (
        utils.mmd_test,
        lambda *a, **k: utils.ks_test(*a, correction="permutation", **k),
    ):
        with pytest.raises(utils.CourseError, match=message):
            test(x, y, **options)


def test_small_windows_are_told_how_many_are_needed():
    x = np.random.default_rng(14).normal(size=(200, 12))
    message = (
        r"KS on 12 features \(alpha / 12\) .* at least 3 images in the window beside"
        r" 200 .*, it has 2"
    )
    with pytest.raises(utils.CourseError, match=message):
        utils.ks_test(x, x[:2] + 100, alpha=0.0005)
    assert utils.ks_test(x, x[:3] + 100, alpha=0.0005).drift
    with pytest.raises(
        utils.CourseError,
        match="domain classifier needs at least 10 images, the window has 9",
    ):
        utils.classifier_test(x, x[:9])


PERMUTED = {
    "MMD": utils.mmd_test,
    "KS": lambda *a, **k: utils.ks_test(*a, correction="permutation", **k),
}


@pytest.mark.parametrize("n", [2, 3, 4, 6])
@pytest.mark.parametrize("name", PERMUTED)
def test_the_least_window_of_a_permutation_test_suffices(name, n):
    """The number told, against all ways to choose that many images from those of both
    sides.
    """
    x, y = np.arange(n)[:, None] * 1.0, np.arange(60)[:, None] + 1000.0
    with pytest.raises(
        utils.CourseError,
        match=f"{name} .*window beside {n} of the reference, it has 2",
    ) as told:
        PERMUTED[name](x, y[:2], alpha=0.05)
    least, shares = int(re.search("at least ([0-9]+) images", str(told.value))[1]), {}
    for size in (least - 1, least):
        pooled, ways = (
            np.concatenate([x, y[:size]]),
            list(itertools.combinations(range(n + size), size)),
        )
        members = torch.zeros(n + size, len(ways), dtype=torch.bool)
        for column, chosen in enumerate(reversed(ways)):  # the true window first
            members[list(chosen), column] = True
        values = (
            utils.max_ks(pooled, members)[0]
            if name == "KS"
            else utils._mmd(pooled, members, "rbf", 1e-6)
        )
        shares[size] = (values >= values[0] - 1e-12).mean()
    # the mirror is worth one, or none
    assert shares[least] <= 0.05 and (shares[least - 1] > 0.05 or name == "MMD")
    assert (
        sum(
            PERMUTED[name](x, y[:least], alpha=0.05, seed=seed).drift
            for seed in range(20)
        )
        >= 13
    )


def test_ks_beside_a_small_reference():
    """Exact p-values go down to 2 in all ways to choose the window, for the small side
    as for the large one.
    """
    x, y = np.zeros((3, 1)), np.ones((60, 1))
    for n, m in ((3, 60), (60, 3)):
        assert utils.ks_test(
            x[:1].repeat(n, 0), y[:1].repeat(m, 0)
        ).p_value == pytest.approx(2 / math.comb(63, 3))
    with pytest.raises(
        utils.CourseError,
        match="at least 5 images in the window beside 3 of the reference, it has 4",
    ):
        utils.ks_test(x, y[:4])
    assert utils.ks_test(x, y[:5]).drift
    with pytest.raises(
        utils.CourseError, match="needs at least 2 images, the reference has 1"
    ):
        utils.ks_test(x[:1], y)


def test_many_images_do_not_overflow():
    """There are more ways to choose 800 of 1600 than a float can hold."""
    x = np.random.default_rng(21).normal(size=(1600, 1))
    results = [
        utils.ks_test(x[:800], x[800:]),
        utils.mmd_test(x[:800], x[800:], permutations=99),
    ]
    assert not any(result.drift for result in results)


BAD_FOR_ALL = [
    (
        lambda x: (x, np.where(np.arange(50)[:, None] == 7, np.nan, x)),
        {},
        "window has NaN .* values in 1 of 50",
    ),
    (
        lambda x: (np.where(np.arange(50)[:, None] < 3, np.inf, x), x),
        {},
        "reference has NaN .* values in 3 of 50",
    ),
    (lambda x: (x, x), {"alpha": 0}, "alpha=0 is no error rate"),
    (lambda x: (x, x), {"alpha": float("nan")}, "alpha=nan is no error rate"),
]


@pytest.mark.parametrize("make, options, message", BAD_FOR_ALL)
def test_bad_windows_are_told_by_exact_ks_and_classifier(make, options, message):
    x, y = make(np.random.default_rng(13).normal(size=(50, 5)))
    for test in (utils.ks_test, utils.classifier_test):
        with pytest.raises(utils.CourseError, match=message):
            test(x, y, **options)


def test_psi_of_bad_windows():
    x = np.random.default_rng(22).random(50)
    for options in ({}, {"classes": 3}):
        values = (3 * x).astype(int) if options else x
        with pytest.raises(
            utils.CourseError,
            match="at least 2 images on each side, these are 50 and 0",
        ):
            utils.psi_result(values, values[:0], **options)
    with pytest.raises(
        utils.CourseError, match="window has NaN or infinite values in 50 of 50"
    ):
        utils.psi_result(x, x * np.nan)


def test_domains_told_apart_leave_an_interval():
    """At an AUROC of 1 DeLong's variance is 0; the lower end is what a share of 1 among
    the held-out images allows.
    """
    x = np.random.default_rng(23).normal(size=(60, 2))
    result = utils.classifier_test(x, x[:40] + 50, permutations=99)
    # half of the 40 are held out
    exact = stats.binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert result.statistic == 1 and result.interval == pytest.approx((exact.low, 1))


# --- The stored reference
# -----------------------------------------------------------------------------


class Stand:
    """Stands in for an OnnxModel: answers by brightness."""

    hash, classes = "0123456789abcdef", ("NORMAL", "PNEUMONIA")

    def predict_all(self, pixels):
        level = pixels.mean(axis=(1, 2, 3)) / 255
        probabilities = np.stack([1 - level, level], axis=1).astype(np.float32)
        return probabilities, np.stack([level, level**2, 1 - level], axis=1).astype(
            np.float32
        )


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(15)
    pixels, labels = (
        rng.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8),
        rng.integers(0, 2, 30),
    )
    reference = utils.fit_reference(Stand(), pixels, labels)
    return reference, reference.save(tmp_path / "drift_reference.npz")


def test_reference_comes_back_as_it_was(stored):
    reference, path = stored
    again = utils.load_reference(path, Stand())
    pd.testing.assert_frame_equal(again.statistics, reference.statistics)
    for name in ("probabilities", "embedding", "labels"):
        assert np.array_equal(getattr(again, name), getattr(reference, name))
        assert getattr(again, name).dtype == getattr(reference, name).dtype
    assert (again.model, again.classes, again.gamma) == (
        reference.model,
        reference.classes,
        reference.gamma,
    )
    assert (
        again.accuracy
        == (reference.probabilities.argmax(axis=1) == reference.labels).mean()
    )


def test_reference_cut_foreign_or_missing(stored, tmp_path):
    _, path = stored
    other = Stand()
    other.hash = "f" * 16
    with pytest.raises(
        utils.CourseError,
        match="describes model 0123456789abcdef, asked for ffffffffffffffff",
    ):
        utils.load_reference(path, other)
    other.classes = ("NO_PANEL", "PANEL")
    with pytest.raises(utils.CourseError, match="knows the classes"):
        utils.load_reference(path, other)
    whole = path.read_bytes()
    with pytest.raises(
        utils.CourseError, match="absent.npz is missing: run notebooks/theme6"
    ):
        utils.load_reference(tmp_path / "absent.npz", Stand())
    broken = [whole[:cut] for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    flipped = bytearray(whole)
    flipped[len(whole) // 2 : len(whole) // 2 + 40] = bytes(40)
    for content in [*broken, bytes(flipped), b"no zip at all"]:
        path.write_bytes(content)
        with pytest.raises(utils.CourseError, match="is damaged"):
            utils.load_reference(path, Stand())
        assert path.read_bytes() == content  # whoever wants to look at it can


@pytest.mark.parametrize("part", ["statistics", "probabilities", "embedding", "labels"])
def test_reference_with_parts_of_different_length(stored, part):
    reference, path = stored
    shorter = getattr(reference, part)[:-1]
    content = utils.replace(reference, **{part: shorter}).save(path).read_bytes()
    with pytest.raises(
        utils.CourseError, match="is damaged .*delete it and run notebooks/theme6"
    ):
        utils.load_reference(path, Stand())
    assert path.read_bytes() == content


def test_reference_of_a_broken_model_is_refused():
    class Broken(Stand):
        def predict_all(self, pixels):
            probabilities, embedding = super().predict_all(pixels)
            embedding[3] = np.nan
            return probabilities, embedding

    with pytest.raises(
        utils.CourseError,
        match="reference embedding has NaN or infinite values in 1 of 30",
    ):
        utils.fit_reference(
            Broken(), np.zeros((30, 1, 8, 8), np.uint8), np.zeros(30, int)
        )


# --- The names that students call
# ---------------------------------------------------------------------


def test_embeddings_are_what_the_last_layer_reads(data):
    loader = data.loader("val", 5)
    for model in (OptimizedCNN(1, 2, (8, 16)), BaselineCNN(1, 2)):
        model.train()
        embedding, labels = utils.extract_embeddings(model, loader, torch.device("cpu"))
        assert (
            model.training
            and (labels == loader.labels).all()
            and embedding.dtype == np.float32
        )
        model.eval()
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            images = torch.cat([images for images, _ in loader])
            expected = model(images)
            assert torch.allclose(
                last(torch.from_numpy(embedding)), expected, atol=1e-5
            )
    with pytest.raises(utils.CourseError, match="has no nn.Linear"):
        utils.extract_embeddings(nn.Conv2d(1, 1, 3), loader, "cpu")


def test_pixel_and_embedding_drift_on_loaders(data):
    darker = utils.replace(
        data, pixels=(data.pixels // 2).astype(np.uint8), key="darker"
    )
    everything = np.arange(len(data.labels))
    clean, other, dark = (
        utils.BatchLoader(d, rows, 16, None, False)
        for d, rows in (
            (data, everything[::2]),
            (data, everything[1::2]),
            (darker, everything[1::2]),
        )
    )
    model, device = OptimizedCNN(1, 2, (8, 16)), torch.device("cpu")
    same, changed = (
        utils.detect_pixel_drift(clean, other),
        utils.detect_pixel_drift(clean, dark),
    )
    assert not same.drift and changed.drift and changed.features["drift"]["brightness"]
    assert utils.detect_embedding_drift(
        model, clean, dark, device, permutations=99
    ).drift
    raw = [(torch.from_numpy(data.pixels[everything[::2]]), torch.zeros(1))]
    assert np.array_equal(utils._loader_pixels(clean), utils._loader_pixels(raw))
    assert np.array_equal(
        utils._loader_pixels([(raw[0][0] / 255, None)]), utils._loader_pixels(raw)
    )
    with pytest.raises(utils.CourseError, match="grey levels need 0..1 or uint8"):
        utils.detect_pixel_drift(clean, [(torch.randn(4, 1, 8, 8), None)])


# --- Accuracy without labels
# --------------------------------------------------------------------------


def test_estimates_are_right_where_confidence_is(world, reference):
    for seed in range(5):
        window, labels = world(4000, seed=30 + seed, unsure=0.05 * seed)
        truth = (window.probabilities.argmax(axis=1) == labels).mean()
        guess = utils.estimate_accuracy(reference, window)
        assert guess["average_confidence"] == pytest.approx(truth, abs=0.03)
        # the reference has 200 images
        assert guess["difference_of_confidences"] == pytest.approx(truth, abs=0.08)
    assert set(guess) == set(utils.ESTIMATES)


def test_atc_and_difference_are_exact_on_the_reference_itself(reference):
    guess = utils.estimate_accuracy(reference, reference)
    assert guess["difference_of_confidences"] == pytest.approx(reference.accuracy)
    assert guess["atc"] == pytest.approx(reference.accuracy, abs=1 / len(reference))


def test_estimates_trust_a_confident_liar(reference):
    """What no estimate from confidence can see: answers that are wrong and sure."""
    liar = utils.Observation(
        reference.statistics, np.tile([0.001, 0.999], (50, 1)), reference.embedding
    )
    assert min(utils.estimate_accuracy(reference, liar).values()) > 0.95


def test_estimates_refuse_answers_that_are_no_numbers(reference):
    broken = np.where(np.arange(200)[:, None] < 2, np.nan, reference.probabilities)
    with pytest.raises(
        utils.CourseError,
        match=r"window \(its answers\) has NaN or infinite values in 2 of 200",
    ):
        utils.estimate_accuracy(
            reference, utils.replace(reference, probabilities=broken)
        )


RECALLS = {
    2: [[0.9, 0.1], [0.2, 0.8]],
    3: [[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.25, 0.7]],
}


def mixture(seed, n, shares) -> utils.Reference:
    """Answers of a model with known recalls to n images of a known class mix; the
    embedding numbers the images.
    """
    rng, k = np.random.default_rng(seed), len(shares)
    labels = rng.choice(k, n, p=shares)
    answers = (rng.random(n)[:, None] > np.cumsum(RECALLS[k], axis=1)[labels]).sum(
        axis=1
    )
    probabilities = np.full((n, k), 0.2 / (k - 1))
    probabilities[np.arange(n), answers] = 0.8
    number = np.arange(float(n))[:, None]
    return utils.Reference(
        pd.DataFrame({"a": number[:, 0]}),
        probabilities,
        number,
        labels,
        "",
        tuple("abc"[:k]),
        1.0,
    )


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([0.3, 0.7], [0.8, 0.2]),
        ([0.5, 0.5], [0.5, 0.5]),
        ([0.3, 0.4, 0.3], [0.1, 0.2, 0.7]),
    ],
)
def test_class_mix_is_estimated_where_only_it_has_changed(before, now):
    """Right on average and, with two classes, as variable as the delta method says; the
    answers alone are biased.
    """
    draws = [
        (mixture([1, seed], 1500, before), mixture([2, seed], 400, now))
        for seed in range(150)
    ]
    found = np.array([utils.estimate_priors(*pair) for pair in draws])
    assert np.allclose(found.sum(axis=1), 1) and (found >= 0).all()
    assert (
        abs(found.mean(axis=0) - now) < 4 * found.std(axis=0) / math.sqrt(150) + 0.004
    ).all()
    answered = np.mean(
        [
            np.bincount(w.probabilities.argmax(axis=1), minlength=len(now)) / 400
            for _, w in draws
        ],
        0,
    )
    assert np.allclose(answered, np.array(now) @ RECALLS[len(now)], atol=0.01)
    if len(now) == 2:
        (a, _), (b, _) = RECALLS[2]  # share of answers "first" given either class
        errors = [
            a * (1 - a) / (1500 * before[0]) * now[0] ** 2,
            b * (1 - b) / (1500 * before[1]) * now[1] ** 2,
        ]
        spread = math.sqrt(answered[0] * answered[1] / 400 + sum(errors)) / (a - b)
        assert found[:, 0].std() == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize(
    "shares", [[0.8, 0.2], [0.0, 1.0], [1 / 3, 2 / 3], [0.1, 0.2, 0.7]]
)
def test_matched_reference_has_these_shares_and_no_image_twice(shares):
    reference = mixture(3, 600, np.full(len(shares), 1 / len(shares)))
    matched = utils.match_priors(reference, np.array(shares))
    rows = matched.embedding[:, 0].astype(int)
    assert len(set(rows)) == len(rows) and np.array_equal(
        matched.probabilities, reference.probabilities[rows]
    )
    there, counts = (
        np.bincount(part, minlength=len(shares))
        for part in (reference.labels, reference.labels[rows])
    )
    assert np.abs(counts - np.array(shares) * len(rows)).max() < 1.5
    # no larger part has these shares
    assert (counts[np.array(shares) > 0] >= there[np.array(shares) > 0] - 1).any()
    assert np.array_equal(
        utils.match_priors(reference, np.array(shares)).embedding, matched.embedding
    )
    other = utils.match_priors(reference, np.array(shares), seed=1).embedding[:, 0]
    assert len(other) == len(rows) and not np.array_equal(other, rows)


# --- The policy
# --------------------------------------------------------------------------------------


def test_levels_none_watch_retrain(world, reference, tmp_path):
    policy = utils.DriftPolicy(accuracy_floor=0.8, window=40)
    monitor = utils.DriftMonitor(reference, policy, tmp_path / "drift.csv")
    stream = [
        (0, 0),
        (2, 0.3),
        (0, 0),
        (2, 0.3),
        (2, 0.3),
        (2, 0),
        (2, 0),
        (2, 0),
        (2, 0),
    ]
    looks = [
        monitor.look(world(60, seed=40 + i, shift=a, unsure=b)[0])
        for i, (a, b) in enumerate(stream)
    ]
    levels = [look.level for look in looks]
    assert levels == [
        "none",
        "watch",
        "none",
        "watch",
        "retrain",
        "retrain",
        "watch",
        "retrain",
        "retrain",
    ]
    assert [look.streak for look in looks] == [0, 1, 0, 1, 2, 3, 4, 5, 6]
    assert (
        "flagged window 1 of the 2" in looks[1].reasons[-1]
        and "below the floor of 0.800" in looks[4].reasons[-1]
    )
    assert (
        "not below the floor" in looks[6].reasons[-1]
        and "it has lasted 5 windows" in looks[7].reasons[-1]
    )
    log = utils.read_drift_log(tmp_path / "drift.csv", monitor.run_id)
    assert log["level"].tolist() == levels and log["model"].unique() == [
        reference.model
    ]
    assert log["images"].unique() == [60] and log["reasons"].iloc[4] == "; ".join(
        looks[4].reasons
    )
    assert log["window"].tolist() == list(range(9)) and log["streak"].tolist() == [
        look.streak for look in looks
    ]
    assert np.allclose(
        log["p_value"], [look.p_value for look in looks], rtol=1e-5
    ) and set(log["floor"]) == {0.8}
    assert np.allclose(
        log["estimated_accuracy"],
        [look.estimated_accuracy for look in looks],
        rtol=1e-5,
    )


def test_a_quiet_stream_keeps_its_promise(world):
    """Of undrifted streams with one reference each, at most alpha may ever be called
    drifted; here of 20 windows.
    """
    policy = utils.DriftPolicy(
        accuracy_floor=1.0,
        window=30,
        alpha=0.2,
        horizon=10,
        consecutive=2,
        detectors=("KS statistics", "KS softmax"),
    )
    called = 0
    for stream in range(120):
        seen, labels = world(100, seed=1000 + stream)
        own = utils.Reference(
            seen.statistics,
            seen.probabilities,
            seen.embedding,
            labels,
            "",
            ("a", "b"),
            1.0,
        )
        monitor = utils.DriftMonitor(own, policy)
        looks = [
            monitor.look(world(30, seed=5000 + 20 * stream + i)[0])
            for i in range(policy.horizon)
        ]
        called += any(look.level == "retrain" for look in looks)
    assert (
        stats.binomtest(called, 120, policy.alpha, alternative="greater").pvalue > 1e-3
    )


def test_the_policys_numbers():
    policy = utils.DriftPolicy(0.8, alpha=0.05, horizon=20, consecutive=2)
    assert policy.window_alpha == pytest.approx(0.005)
    assert 1 / (policy.permutations + 1) < policy.window_alpha / len(policy.detectors)
    for options, message in (
        ({"alpha": 1}, "alpha=1 is no error rate"),
        ({"consecutive": 0}, "consecutive=0 must lie"),
        ({"consecutive": 30, "lasting": 50}, "and horizon=20"),
        ({"consecutive": 6}, "smaller of lasting=5"),
        ({"estimate": "luck"}, "is unknown"),
        ({"detectors": ("PSI classes",)}, "PSI has none"),
        ({"detectors": ()}, "must be names"),
        ({"correction": "hope"}, "correction='hope'"),
    ):
        with pytest.raises(utils.CourseError, match=message):
            utils.DriftPolicy(0.8, **options)


def test_a_bad_window_is_told_and_not_counted(world, reference, tmp_path):
    monitor = utils.DriftMonitor(
        reference, utils.DriftPolicy(0.8), tmp_path / "drift.csv"
    )
    good = world(60, seed=60)[0]
    monitor.look(good)
    before = (tmp_path / "drift.csv").read_bytes()
    broken = utils.replace(good, embedding=good.embedding * np.nan)
    narrow = utils.replace(good, embedding=good.embedding[:, :4])
    third = utils.replace(good, probabilities=np.full((60, 3), 1 / 3))
    for window, message in (
        (good.take(range(20)), "has 20 images, the policy asks for 50"),
        (broken, "NaN or infinite values in 60 of 60"),
        (narrow, "16 features, the window 4"),
        (third, "2 features, the window 3"),
    ):
        with pytest.raises(utils.CourseError, match=message):
            monitor.look(window)
    assert monitor.number == 1 and (tmp_path / "drift.csv").read_bytes() == before


@pytest.mark.parametrize("estimate", utils.ESTIMATES)
def test_a_stream_that_was_drifted_before_the_first_look(
    world, reference, tmp_path, estimate
):
    policy = utils.DriftPolicy(accuracy_floor=1.0, window=40, estimate=estimate)
    monitor = utils.DriftMonitor(reference, policy, tmp_path / "drift.csv")
    looks = [
        monitor.look(world(40, seed=80 + i, shift=2, unsure=0.3)[0]) for i in range(7)
    ]
    assert [look.level for look in looks] == ["watch"] + ["retrain"] * 6
    assert [look.streak for look in looks] == list(range(1, 8)) and all(
        0 <= k.estimated_accuracy <= 1 for k in looks
    )
    # the last `consecutive` windows, no more
    assert "(" + estimate + ", 80 images)" in looks[-1].reasons[2]
    assert len(utils.read_drift_log(tmp_path / "drift.csv")) == 7


def test_answers_that_are_no_numbers_are_told_whatever_the_detectors(
    world, reference, tmp_path
):
    policy = utils.DriftPolicy(0.8, detectors=("KS statistics", "MMD embedding"))
    monitor = utils.DriftMonitor(reference, policy, tmp_path / "drift.csv")
    drifted = world(60, seed=61, shift=2)[0]
    monitor.look(drifted)
    before = (tmp_path / "drift.csv").read_bytes()
    broken = utils.replace(drifted, probabilities=np.full((60, 2), np.nan))
    with pytest.raises(
        utils.CourseError, match="answers.* has NaN or infinite values in 60 of 60"
    ):
        monitor.look(broken)
    assert (monitor.number, monitor.streak, len(monitor.recent)) == (1, 1, 1)
    assert (tmp_path / "drift.csv").read_bytes() == before
    assert monitor.look(drifted).streak == 2


def test_a_drift_log_that_is_missing_or_torn(world, reference, tmp_path, capsys):
    path = tmp_path / "drift.csv"
    with pytest.raises(
        utils.CourseError,
        match="drift.csv is missing: run notebooks/theme6_drift_detection",
    ):
        utils.read_drift_log(path)
    utils.DriftMonitor(reference, utils.DriftPolicy(0.8), path).look(
        world(60, seed=62)[0]
    )
    with open(path, "ab") as file:
        file.write(b"2026-01-01T00:00:00,cut in the mid")
    assert (
        len(utils.read_drift_log(path)) == 1
        and "1 torn lines" in capsys.readouterr().out
    )
    assert utils.read_drift_log(path, "another run").empty


# --- The figures
# --------------------------------------------------------------------------------------


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_alarm_rates_are_drawn_one_by_one():
    rows = [
        {"detector": name, "rate": rate, "low": rate / 2, "high": 2 * rate}
        for name, rate in (("KS", 0.02), ("MMD", 0.05), ("PSI", 0.3))
    ]
    axis = utils.plot_alarm_rates(rows, "t", alpha=0.04).axes[0]
    points, line = axis.lines
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert dict(zip(names, points.get_xdata(), strict=True)) == {
        row["detector"]: row["rate"] for row in rows
    }
    segments = [
        segment[:, 0].tolist() for segment in axis.collections[0].get_segments()
    ]
    assert dict(zip(names, segments, strict=True)) == {
        row["detector"]: [row["low"], row["high"]] for row in rows
    }
    assert (
        set(line.get_xdata()) == {0.04}
        and texts(axis) == ["α = 0.04"]
        and axis.get_xlim()[1] > 0.6
    )


def test_heat_maps_write_what_the_table_says():
    table = pd.DataFrame(
        [[0.0, -0.001, 1.0], [np.nan, 0.256, -0.3]],
        index=["motion_blur", "noise"],
        columns=[1, 2, 3],
    )
    figure = utils.heat_maps(
        {"first": table, "second": 1 - table}, "t", "label", low=-0.5
    )
    figure.canvas.draw()
    assert texts(figure.axes[0]) == ["0", "0", "100", "", "26", "-30"]
    assert texts(figure.axes[1]) == ["100", "100", "0", "", "74", "130"]
    assert (
        figure.axes[0].patch.get_hatch()
        and np.ma.getmaskarray(figure.axes[0].images[0].get_array()).sum() == 1
    )
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "motion blur",
        "noise",
    ]
    ticks = [
        label.get_text() for axis in figure.axes for label in axis.get_yticklabels()
    ]
    assert "-0" not in ticks and "0" in ticks


def test_estimates_and_streams_are_drawn_point_by_point():
    rng = np.random.default_rng(25)
    rows = [
        {"kind": "none" if not i else "noise", "severity": i, "accuracy": rng.random()}
        | {name: rng.random() for name in utils.ESTIMATES}
        for i in range(6)
    ]
    for axis, name in zip(
        utils.plot_estimates(rows, "t").axes, utils.ESTIMATES, strict=False
    ):
        points, star = (np.asarray(part.get_offsets()) for part in axis.collections[:2])
        assert np.array_equal(points, [[row["accuracy"], row[name]] for row in rows])
        assert np.array_equal(star, points[:1]) and axis.get_title() == name.replace(
            "_", " "
        )
        worst = sorted(rows, key=lambda row: -abs(row[name] - row["accuracy"]))[:5]
        assert sorted(texts(axis)) == sorted(
            f"{row['kind']} {row['severity']}" for row in worst
        )

    policy = utils.DriftPolicy(0.8)
    table = pd.DataFrame(
        {
            "severity": [0, 0, 2, 3],
            "p_value": [0.5, 0.01, 1e-9, 1e-3],
            "level": ["none", "watch", "retrain", "retrain"],
            "accuracy": rng.random(4),
            "estimated_accuracy": rng.random(4),
        }
    )
    table = table.assign(low=table["accuracy"] - 0.1, high=table["accuracy"] + 0.05)
    axes = utils.plot_streams({"quiet": table[:2], "drifted": table}, policy, "t").axes
    for top, bottom, part in ((axes[0], axes[2], table[:2]), (axes[1], axes[3], table)):
        drawn = {
            (x, y): line.get_label()
            for line in top.lines[:3]
            for x, y in line.get_xydata()
        }
        rows = zip(
            part.index, part["p_value"].clip(lower=1e-6), part["level"], strict=True
        )
        assert drawn == {(x, y): level for x, y, level in rows}
        # told apart in a grey print, too
        assert len({line.get_marker() for line in top.lines[:3]}) == 3
        assert len(top.patches) == (part["severity"] > 0).sum()
        assert set(top.lines[3].get_ydata()) == {policy.window_alpha}
        true, estimated, floor = bottom.containers[0], *bottom.lines[-2:]
        assert np.array_equal(true.lines[0].get_ydata(), part["accuracy"])
        ends = [segment[:, 1] for segment in true.lines[2][0].get_segments()]
        assert np.allclose(ends, part[["low", "high"]])
        assert np.array_equal(
            estimated.get_ydata(), part["estimated_accuracy"]
        ) and set(floor.get_ydata()) == {0.8}


# --- Size
# --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mmd_of_ten_thousand_stays_below_a_gibibyte():
    """The full kernel matrix alone would take 3.2 GB."""
    code = (
        "import numpy as np, utils, resource; base ="
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;rng ="
        " np.random.default_rng(0); r = utils.mmd_test(rng.normal(size=(10_000, 128)),"
        " rng.normal(0.02, size=(10_000, 128)), permutations=1000, gamma=1 / 256);"
        " assert r.drift;print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss -"
        " base) / 2**20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=KIT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1, f"{done.stdout} GiB"
