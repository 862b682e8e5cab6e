"""Metrics and decisions against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn import metrics as sk
from torch import nn

import utils


def draw(n=300, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    # unbalanced on purpose
    labels = rng.permutation(np.arange(n) % (classes + 1)).clip(max=classes - 1)
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    return utils.softmax(logits), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_agree_with_scikit_learn(classes):
    probabilities, labels = draw(classes=classes)
    names = [f"C{i}" for i in range(classes)]
    table, predicted = (
        utils.evaluate(probabilities, labels, names, resamples=50),
        probabilities.argmax(1),
    )
    value = table["value"]
    assert value["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert value["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted)
    )
    assert value["f1_macro"] == pytest.approx(
        sk.f1_score(labels, predicted, average="macro")
    )
    right = (
        sk.roc_auc_score(labels, probabilities[:, 1])
        if classes == 2
        else sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    assert value["auroc"] == pytest.approx(right)
    recalls = sk.recall_score(labels, predicted, average=None)
    assert [value[f"recall {name}"] for name in names] == pytest.approx(list(recalls))
    assert (
        utils.confusion(predicted, labels, classes)
        == sk.confusion_matrix(labels, predicted)
    ).all()
    table = table.drop("ece")
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_auroc_counts_ties_as_half():
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])
    labels = np.array([0, 1, 1, 0])
    assert utils.auroc(probabilities, labels) == sk.roc_auc_score(
        labels, probabilities[:, 1]
    )


def test_wilson_closed_form():
    hits, n, z = 37, 50, stats.norm.ppf(0.975)
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert utils.wilson(hits, n) == pytest.approx((middle - half, middle + half))
    assert utils.wilson(0, 0) == (0.0, 1.0)


def test_calibration_error_by_hand():
    # Two bins: confidence 0.65 with half right, confidence 0.95 with all right.
    probabilities = np.array([[0.35, 0.65]] * 4 + [[0.05, 0.95]] * 4)
    labels = np.array([1, 1, 0, 0, 1, 1, 1, 1])
    assert utils.expected_calibration_error(probabilities, labels) == pytest.approx(
        (0.15 + 0.05) / 2
    )


def calibrated(n: int, seed: int):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0, 1, n)
    return np.stack([1 - p, p], 1), (rng.uniform(size=n) < p).astype(int)


def test_calibration_error_has_no_interval_as_resampling_only_raises_it():
    """A perfectly calibrated network: 0 to the eye of many images, 0.04 of 300; and no
    percentile interval ever holds the truth.
    """
    assert utils.expected_calibration_error(*calibrated(20_000, 0)) < 0.012
    found, held = [], 0
    for seed in range(20):
        probabilities, labels = calibrated(300, seed)
        error = utils.expected_calibration_error
        found.append(error(probabilities, labels))
        low, _ = utils.bootstrap(error, labels, probabilities, labels, resamples=100)
        held += low <= 0.005
    assert 0.03 < np.mean(found) < 0.06 and held == 0
    table = utils.evaluate(probabilities, labels, ["A", "B"], resamples=10)
    assert table.loc["ece", "value"] == found[-1] and table.loc["ece", "n"] == 300
    assert table.loc["ece", ["low", "high"]].isna().all()


def test_bootstrap_interval_covers_as_often_as_it_says():
    truth, covered, trials = 0.8, 0, 200
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        hits = (rng.uniform(size=150) < truth).astype(float)
        low, high = utils.bootstrap(
            np.mean, np.zeros(150, int), hits, resamples=300, seed=seed
        )
        covered += low <= truth <= high
    assert stats.binomtest(covered, trials, 0.94).pvalue > 0.001


def test_bootstrap_is_stratified_and_seeded():
    labels = np.array([0] * 99 + [1])
    low, high = utils.bootstrap(np.mean, labels, labels.astype(float), resamples=100)
    assert low == high == 0.01  # a resample never loses the only image of its class
    values = np.random.default_rng(0).normal(size=100)
    assert utils.bootstrap(np.mean, labels, values) == utils.bootstrap(
        np.mean, labels, values
    )


# --- two models on the same images


def rights(n: int, lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n images the first and the second model get right."""
    place = np.arange(n)
    return place < lost, (place >= lost) & (place < lost + won)


def test_mcnemar_agrees_with_the_binomial_closed_form():
    pair = rights(100, 2, 10)
    assert utils.mcnemar(*pair) == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    greater = utils.mcnemar(*pair, "greater")
    assert greater == pytest.approx(stats.binom.cdf(2, 12, 0.5))
    assert utils.mcnemar(pair[0], pair[0]) == 1
    row = utils.paired_row(*pair)
    assert (row["won"], row["lost"], row["n"]) == (10, 2, 100)
    assert (row["difference"], row["low"], row["high"]) == utils.paired_difference(
        *pair
    )


def test_error_rates_of_the_paired_comparison():
    """No difference is called one, and the interval misses the truth, in about 5 %."""
    rng, runs, alarms, missed = np.random.default_rng(0), 800, 0, 0
    for _ in range(runs):
        kind = rng.choice(3, 200, p=[0.05, 0.02, 0.93])
        _, low, high = utils.paired_difference(kind != 1, kind != 0)
        missed += not low <= -0.03 <= high
        same = rng.choice(3, 200, p=[0.04, 0.04, 0.92])
        alarms += utils.mcnemar(same != 1, same != 0) < 0.05
    assert alarms / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert 0.02 < missed / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_paired_difference_as_published():
    """Airway responsiveness before and after transplantation, n = 21: Fagerland,
    Lydersen and Laake (2014).
    """
    first = np.repeat([True, True, False, False], [1, 1, 7, 12])
    second = np.repeat([True, False, True, False], [1, 1, 7, 12])
    found = np.round(utils.paired_difference(first, second), 3)
    assert found == pytest.approx([0.286, 0.026, 0.517])


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [(50, 5, 2), (23, 0, 3), (400, 30, 41), (10, 1, 1), (12, 12, 0)],
)
def test_paired_difference_is_where_the_score_test_rejects(n, lost, won):
    """Score statistic with the nuisance parameter that maximises the likelihood, found
    numerically.
    """

    def z(delta):
        def minus_log_likelihood(share):  # share lost; won is share + delta
            cells = np.array([share, share + delta, 1 - 2 * share - delta])
            counts = np.array([lost, won, n - lost - won])
            return -(counts * np.log(np.maximum(cells, 1e-300))).sum()

        share = optimize.minimize_scalar(
            minus_log_likelihood,
            bounds=(max(0, -delta), (1 - delta) / 2),
            method="bounded",
            options={"xatol": 1e-12},
        ).x
        return ((won - lost) / n - delta) / np.sqrt((2 * share + delta - delta**2) / n)

    first, second = rights(n, lost, won)
    value, low, high = utils.paired_difference(first, second, 0.9)
    assert value == (won - lost) / n
    limit = stats.norm.ppf(0.95)
    assert low == -1 or z(low) == pytest.approx(limit, abs=2e-3)
    assert z(high) == pytest.approx(-limit, abs=2e-3)
    mirrored = utils.paired_difference(second, first, 0.9)
    assert mirrored == pytest.approx((-value, -high, -low), abs=1e-9)


def test_equal_answers_still_leave_room():
    same, z = np.ones(45, bool), stats.norm.ppf(0.95)
    end = z**2 / (45 + z**2)
    assert utils.paired_difference(same, same, 0.9) == pytest.approx((0, -end, end))
    labels = np.arange(45) % 2
    _, low, high = utils.paired_balanced_difference(same, same, labels)
    assert low < 0 < high


def test_paired_difference_of_balanced_accuracy():
    labels = np.random.default_rng(0).integers(0, 3, 200)
    kind = np.random.default_rng(1).choice(4, 200, p=[0.5, 0.1, 0.3, 0.1])
    first, second = np.isin(kind, (0, 1)), np.isin(kind, (0, 2))
    said = [np.where(right, labels, (labels + 1) % 3) for right in (first, second)]
    value, low, high = utils.paired_balanced_difference(first, second, labels, 0.9)
    scores = [sk.balanced_accuracy_score(labels, answer) for answer in said]
    assert value == pytest.approx(scores[1] - scores[0])
    # The square-and-add interval against one by bootstrap.
    wide = utils.bootstrap(
        lambda a, b, y: (
            sk.balanced_accuracy_score(y, b) - sk.balanced_accuracy_score(y, a)
        ),
        labels,
        *said,
        labels,
        level=0.9,
    )
    assert (low, high) == pytest.approx(wide, abs=0.02)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_recovered(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 2
    labels = np.array([rng.choice(3, p=p) for p in utils.softmax(logits)])
    assert utils.fit_temperature(logits * temperature, labels) == pytest.approx(
        temperature, rel=0.06
    )


@pytest.mark.parametrize("cost", [1.0, 5.0, 20.0])
def test_threshold_is_the_bayes_decision_on_calibrated_probabilities(cost):
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 60_000)
    labels = (rng.uniform(size=len(p)) < p).astype(int)
    threshold, table = utils.choose_threshold(np.stack([1 - p, p], 1), labels, cost)
    assert threshold == pytest.approx(1 / (1 + cost), abs=0.03)
    assert (
        table["cost"].min()
        == table.loc[np.isclose(table["threshold"], threshold), "cost"].item()
    )


def test_three_classes_are_positive_together():
    assert utils.positive_probability(np.array([[0.2, 0.5, 0.3]])) == pytest.approx(
        [0.8]
    )


class Corner(nn.Module):
    """Answers class 1 when the upper left corner is bright, and looks
    at nothing else.
    """

    def __init__(self):
        super().__init__()
        self.features, self.classifier = (
            nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)),
            nn.Linear(1, 2, bias=False),
        )
        nn.init.ones_(self.features[0].weight)
        self.classifier.weight = nn.Parameter(torch.tensor([[-1.0], [1.0]]))

    def forward(self, images):
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def test_grad_cam_points_at_what_decided():
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, :4, :4] = 1
    images[1, 0, 4:, 4:] = 1
    maps = utils.grad_cam(Corner(), images, torch.tensor([1, 1]))
    assert maps.shape == (2, 8, 8)
    assert maps[0, :4, :4].min() == 1 and maps[0, 4:].max() == 0
    assert maps[1, 4:, 4:].min() == 1 and maps[1, :4].max() == 0


def test_grad_cam_of_our_network_has_the_size_of_the_image():
    model = utils.OptimizedCNN(1, 2)
    maps = utils.grad_cam(model, torch.rand(3, 1, 64, 64), torch.tensor([0, 1, 0]))
    assert maps.shape == (3, 64, 64) and 0 <= maps.min() and maps.max() <= 1
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("least, side", [(1, 4), (7, 8), (9, 16)])
def test_grad_cam_reads_the_deepest_maps_that_still_point_somewhere(
    monkeypatch, least, side
):
    """64 px: the stages have maps of 16, 8 and 4 pixels."""
    sides, enlarge = [], utils.F.interpolate
    monkeypatch.setattr(
        utils.F,
        "interpolate",
        lambda x, *a, **k: sides.append(x.shape[-1]) or enlarge(x, *a, **k),
    )
    utils.grad_cam(
        utils.OptimizedCNN(1, 2), torch.rand(2, 1, 64, 64), torch.tensor([0, 1]), least
    )
    assert sides == [side]
