"""Metrics and decisions against scikit-learn, SciPy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats
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
    assert (
        ((table["low"] <= table["value"]) & (table["value"] <= table["high"]))
        .drop("ece")
        .all()
    )


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
    table = utils.reliability(probabilities, labels)
    assert table["n"].tolist() == [4, 4]
    assert table["accuracy"].tolist() == [0.5, 1.0]


def test_calibrated_predictions_have_a_small_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 20_000)
    labels = (rng.uniform(size=len(p)) < p).astype(int)
    assert utils.expected_calibration_error(np.stack([1 - p, p], 1), labels) < 0.012


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


def test_mcnemar_agrees_with_the_binomial_closed_form():
    labels = np.zeros(100, int)
    first, second = labels.copy(), labels.copy()
    # 10 images only the second gets right, 2 only the first
    first[:12], second[10:14] = 1, 1
    result = utils.compare(first, second, labels)
    assert (result["only_first"], result["only_second"]) == (2, 10)
    assert result["difference"] == pytest.approx(0.08)
    assert result["p_value"] == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    assert utils.compare(first, first, labels)["p_value"] == 1.0


def test_mcnemar_false_alarm_rate():
    alarms = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 200)
        first, second = (
            np.where(rng.uniform(size=200) < 0.8, labels, 1 - labels) for _ in range(2)
        )
        alarms += utils.compare(first, second, labels, resamples=2)["p_value"] < 0.05
    assert alarms / 300 <= 0.07


def test_paired_difference_of_balanced_accuracy():
    first, labels = draw(seed=1)
    second, _ = draw(seed=1)
    second[:40] = second[:40, ::-1]
    result = utils.balanced_accuracy_difference(first, second, labels)
    right = sk.balanced_accuracy_score(
        labels, second.argmax(1)
    ) - sk.balanced_accuracy_score(labels, first.argmax(1))
    assert result["difference"] == pytest.approx(right)
    assert result["low"] < right < result["high"]
    assert utils.balanced_accuracy_difference(first, first, labels) == {
        "difference": 0,
        "low": 0,
        "high": 0,
    }


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

    def pool(self, maps):
        return maps.mean(dim=(2, 3))


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
