"""Retraining: candidates that learn from the right images, a gate that refuses the
wrong ones, a swap that survives.
"""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import utils
from kit import figures, promotion
from kit.drifts import drift_data
from kit.files import make_parent
from kit.fingerprint import hash_weights
from kit.gate import Check, GateReport
from kit.promotion import in_service, rollback
from kit.serving import put_in_service
from kit.watching import watched_path

CLASSES = ("NORMAL", "PNEUMONIA")
SIZES = {"train": 300, "val": 100, "adapt": 60, "gate": 300, "production": 40}
RECIPE = utils.Recipe(epochs=3, batch_size=32, lr=2e-3)

LATENCY_RATIO = utils.latency_ratio  # `quiet_machine` puts another in its place


def draw(n: int, seed: int, rare=0.3):
    """Bright discs (class 0) and rings (class 1) on noisy grey: uint8 (n, 1, 32, 32)
    and labels.
    """
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) > rare).astype(np.int64)
    y, x = np.mgrid[:32, :32]
    left, top, radius = (
        rng.uniform(low, high, (n, 1, 1)) for low, high in ((11, 20), (11, 20), (5, 9))
    )
    distance = np.hypot(x - left, y - top)
    shape = (distance < radius) & (distance > 0.55 * radius * labels[:, None, None])
    grey = 90 + 60 * shape + rng.normal(0, 12, (n, 32, 32))
    return grey.clip(0, 255).astype(np.uint8)[:, None], labels


def network():
    torch.manual_seed(0)
    return utils.OptimizedCNN(1, 2, (8, 16, 16), depth=1, stem=2, dropout=0.0)


@pytest.fixture(scope="module")
def world(drawn, tmp_path_factory) -> SimpleNamespace:
    """A course whose model knows discs and rings, and their negatives as the drift;
    read only.
    """
    course = utils.start(
        1, source=drawn, profile="smoke", home=tmp_path_factory.mktemp("world")
    )
    n = sum(SIZES.values())
    pixels, labels = draw(n, seed=0)
    index = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(n)],
            "pool": np.repeat([*SIZES], [*SIZES.values()]),
            "sha256": [f"{i:016x}" for i in range(n)],
            "label": np.array(CLASSES)[labels],
        }
    )
    index.to_csv(make_parent(course.data / "index.csv"), index=False)
    data = utils.Data(index, pixels, labels, CLASSES, [0.4], [0.14], "discs", course)
    drifted = replace(data, pixels=255 - pixels, key="negatives")
    recipe = replace(RECIPE, epochs=6, lr=4e-3)
    run = utils.fit(
        course, "discs", network(), data, recipe, tracker="none", progress=False
    )
    state = {
        "classes": list(CLASSES),
        "mean": data.mean,
        "std": data.std,
        "size": 32,
        "channels": 1,
        "threshold": 0.5,
        "temperature": 1.0,
        "dataset": "pneumonia",
        "seed": 42,
        "cost_missed": 5.0,
    }
    checkpoint = utils.save_checkpoint(
        course.checkpoints / "best_model.pth", run.model, **state
    )
    put_in_service(course, utils.export_onnx(course, checkpoint))
    return SimpleNamespace(
        course=course,
        data=data,
        drifted=drifted,
        checkpoint=checkpoint,
        rows=utils.buy_labels(drifted, 50),
    )


@pytest.fixture
def home(world, tmp_path):
    """A private copy of that home, to write into."""
    shutil.copytree(world.course.home, tmp_path / "home")
    course = replace(world.course, home=tmp_path / "home", local=tmp_path / "home")
    return SimpleNamespace(
        course=course,
        data=replace(world.data, course=course),
        drifted=replace(world.drifted, course=course),
        rows=world.rows,
        checkpoint=course.checkpoints / "best_model.pth",
    )


# --- buying and mixing


def test_labels_are_bought_at_random_from_adapt(world):
    rows = utils.buy_labels(world.drifted, 30)
    assert rows.dtype == np.int64 and len(set(rows)) == 30
    assert set(world.data.index["pool"].iloc[rows]) == {"adapt"}
    assert set(utils.buy_labels(world.drifted, 12)) < set(rows)
    assert np.array_equal(rows, utils.buy_labels(world.drifted, 30))
    draws = [utils.buy_labels(world.drifted, 30, seed) for seed in range(60)]
    share = np.mean([world.data.labels[rows].mean() for rows in draws])
    assert abs(share - world.data.labels[world.data.where("adapt")].mean()) < 0.03


@pytest.mark.parametrize("budget", [0, -3, 61])
def test_a_budget_that_cannot_be(world, budget):
    with pytest.raises(utils.CourseError, match="choose 1 to 60"):
        utils.buy_labels(world.drifted, budget)


def test_labels_of_one_class_are_refused(world):
    labels = np.ones_like(world.data.labels)
    with pytest.raises(utils.CourseError, match="all PNEUMONIA.*raise the budget"):
        utils.buy_labels(replace(world.drifted, labels=labels), 20)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_mix(world, share):
    mixed = utils.mix(world.data, world.drifted, world.rows, share, images=200)
    train, val = mixed.where("train"), mixed.where("val")
    old = mixed.index["drifted"].to_numpy()
    assert len(train) == 200 and old[train].sum() == 200 * share
    assert old[val].sum() == len(val) / 2 == 100
    # Every pixel and label is that of its source, and no source stands in a pool that
    # judges.
    source = mixed.index["source"].map(lambda digest: int(digest, 16)).to_numpy()
    clean, drifted = world.data.pixels[source], world.drifted.pixels[source]
    originals = np.where(old[:, None, None, None], drifted, clean)
    assert np.array_equal(mixed.pixels, originals)
    assert np.array_equal(mixed.labels, world.data.labels[source])
    pools = world.data.index["pool"].to_numpy()[source]
    assert set(pools[train[old[train]]]) <= {"adapt"}
    assert set(pools[train[~old[train]]]) <= {"train"} and set(pools[val]) == {"val"}
    # clean images are drawn without replacement, drifted ones in turn
    assert len(set(source[train[~old[train]]])) == (~old[train]).sum()
    repeats = np.bincount(source[train[old[train]]], minlength=1)
    assert not share or np.ptp(repeats[repeats > 0]) <= 1
    assert mixed.mean == world.data.mean and mixed.std == world.data.std


def test_the_key_of_a_mix_is_its_content(world):
    def key(rows=world.rows, **options):
        return utils.mix(world.data, world.drifted, rows, **options).key

    assert key() == key(seed=42) == key(rows=world.rows[::-1])
    others = [key(seed=1), key(share=0.2), key(images=50), key(rows=world.rows[:20])]
    assert len({key(), *others}) == 5


@pytest.mark.parametrize("bought", [5, 30, 60])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.17, 0.5, 0.9, 1.0])
def test_a_mix_of_no_given_size_uses_every_bought_label(world, bought, share):
    """It grows beyond the 64 images of the profile for that, and only the clean images
    that there are can stop it.
    """
    rows = utils.buy_labels(world.drifted, bought)
    mixed = utils.mix(world.data, world.drifted, rows, share)
    learned = mixed.index[mixed.index["pool"] == "train"]
    old = learned["drifted"].to_numpy()
    used = set(learned["source"][old])
    assert used <= set(world.data.index["sha256"].iloc[rows])
    assert abs(old.sum() - share * len(old)) <= 0.5
    # all, or the clean images are used up
    assert not share or len(used) == bought or (~old).sum() in (299, 300)
    assert len(old) >= 64 and (len(old) == 64 or not share or old.sum() <= bought)


@pytest.mark.parametrize("pool", ["gate", "train", "val"])
def test_what_judges_cannot_be_learned_from(world, pool):
    rows = np.append(world.rows, world.data.where(pool)[:2])
    with pytest.raises(utils.CourseError, match=f"of pool {pool}: only pool adapt"):
        utils.mix(world.data, world.drifted, rows)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": 1.5}, "is no mix"),
        ({"images": 0}, "is no mix"),
        ({"rows": np.array([], int)}, "0 drifted ones bought, is no mix"),
        ({"images": 900}, "is no mix.* pool train has 300 clean images"),
    ],
)
def test_a_mix_that_cannot_be(world, options, told):
    given = {"data": world.data, "drifted": world.drifted, "rows": world.rows}
    with pytest.raises(utils.CourseError, match=told):
        utils.mix(**(given | options))


def test_clean_and_drifted_are_not_taken_for_one_another(world):
    drifted = drift_data(world.data, "blur", 3)
    mixed = utils.mix(world.data, drifted, world.rows)
    for first, second, told in (
        (drifted, world.data, "and the first is drifted"),
        (mixed, drifted, "and the first is drifted"),
        (world.data, world.data, "both are the same"),
    ):
        with pytest.raises(utils.CourseError, match=told):
            utils.mix(first, second, world.rows)
    quiet = drift_data(world.data, "blur", 0)  # nothing has happened to it
    assert utils.mix(quiet, drifted, world.rows).mean == world.data.mean


# --- fine-tuning


def fine_tune(place, share=0.5, how="whole", images=300, recipe=RECIPE, **options):
    mixed = utils.mix(place.data, place.drifted, place.rows, share, images)
    run = utils.fine_tune(
        place.course, "candidate", place.checkpoint, mixed, how, recipe, **options
    )
    return run, mixed


def test_a_frozen_stem_does_not_move(home):
    recipe = replace(RECIPE, epochs=1, weight_decay=0.5)
    run, _ = fine_tune(home, how="frozen stem", recipe=recipe)
    before = utils.load_model(home.checkpoint)[0].state_dict()
    after = run.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # stem: 3 layers, stage: 1 block; weights, running statistics and counters
    frozen = {name for name in before if name.split(".")[1] in ("0", "1", "2", "3")}
    assert frozen and moved == set(before) - frozen


def test_fine_tuning_loads_and_tells_its_ways_apart(home):
    short = {"recipe": replace(RECIPE, epochs=1), "images": 40}
    first, _ = fine_tune(home, **short)
    again, _ = fine_tune(home, **short)
    assert not first.loaded and again.loaded
    assert hash_weights(first.model) == hash_weights(again.model)
    assert not fine_tune(home, how="frozen stem", **short)[0].loaded
    assert not fine_tune(home, share=0.1, **short)[0].loaded


def test_interrupted_fine_tuning_ends_with_the_same_weights(home):
    class Interrupted(Exception):
        pass

    def interrupt(epoch, row):
        raise Interrupted

    with pytest.raises(Interrupted):
        fine_tune(home, how="frozen stem", images=60, on_epoch=interrupt)
    resumed, _ = fine_tune(home, how="frozen stem", images=60)
    shutil.rmtree(home.course.runs)
    straight, _ = fine_tune(home, how="frozen stem", images=60)
    assert hash_weights(resumed.model) == hash_weights(straight.model)


def test_batch_norm_measures_statistics_and_nothing_else(home):
    run, mixed = fine_tune(home, how="batch norm", share=1.0, images=50)
    before = utils.load_model(home.checkpoint)[0].state_dict()
    after = run.model.state_dict()
    for name in before:
        statistic = "running" in name or "num_batches" in name
        assert torch.equal(before[name], after[name]) != statistic, name
    # One batch holds all: the first layer's statistics are those of its inputs, over
    # images and places.
    images = torch.cat([x for x, _ in mixed.loader("train", 64)])
    with torch.no_grad():
        maps = run.model.features[0](images)
    mean, var = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3))
    assert torch.allclose(after["features.1.running_mean"], mean, atol=1e-4)
    assert torch.allclose(after["features.1.running_var"], var, rtol=1e-3)
    again, _ = fine_tune(home, how="batch norm", share=1.0, images=50)
    assert hash_weights(again.model) == hash_weights(run.model)


def test_batch_norm_holds_the_variance_between_two_domains(home):
    """Grey images of means 0 and 2 and variance 1, laid out one domain after the other:
    all together have the variance 2, each batch of one domain only 1.
    """
    rng, n = np.random.default_rng(0), 1024
    domain = np.repeat([0, 2], n // 2)[:, None, None, None]
    grey = rng.normal(domain, 1, (n, 1, 8, 8))
    data = replace(
        home.data,
        index=pd.DataFrame({"pool": ["train"] * n}),
        pixels=(128 + 10 * grey).round().astype(np.uint8),
        labels=np.zeros(n, np.int64),
        mean=[128 / 255],
        std=[10 / 255],
    )
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    utils.renormalise(home.course, "domains", model, data, RECIPE)
    assert model[0].running_mean.item() == pytest.approx(1, abs=0.05)
    assert model[0].running_var.item() == pytest.approx(2, rel=0.05)


def test_a_network_without_what_is_asked_for(home):
    state = torch.load(home.checkpoint, weights_only=True)
    keys = {key: state[key] for key in ("classes", "mean", "std", "size", "channels")}
    path = utils.save_checkpoint(
        home.course.home / "plain.pth", utils.BaselineCNN(1, 2), **keys
    )
    mixed = utils.mix(home.data, home.drifted, home.rows)
    for how, told in (
        ("batch norm", "has no batch normalisation"),
        ("all", "choose one of .*frozen stem"),
    ):
        with pytest.raises(utils.CourseError, match=told):
            utils.fine_tune(home.course, "plain", path, mixed, how)
    run = utils.fine_tune(home.course, "plain", path, mixed)
    assert run.history["epoch"].tolist() == [1]


def test_a_candidate_says_what_it_has_seen(home):
    short = replace(RECIPE, epochs=1)
    run, mixed = fine_tune(home, share=0.1, how="frozen stem", recipe=short)
    path = utils.save_candidate(home.course, run, mixed)
    model, state = utils.load_model(path, CLASSES)
    old = torch.load(home.checkpoint, weights_only=True)
    assert path.name == "model_retrained.pth" and set(old) < set(state)
    assert (state["how"], state["share"], state["budget"]) == ("frozen stem", 0.1, 30)
    assert state["parent"] == utils.hash_file(home.checkpoint)[:16]
    # what its parent saw is in it as well
    pools = home.data.index.set_index("sha256")["pool"]
    known = set(pools.index[pools.isin(["train", "val"])])
    assert set(state["trained_on"]) == set(mixed.index["source"]) | known
    assert set(pools[state["trained_on"]]) == {"train", "val", "adapt"}
    # Temperature and threshold are those of the mixed validation images.
    logits, labels = utils.predict(model, mixed.loader("val", 256))
    temperature = utils.fit_temperature(logits, labels)
    assert state["temperature"] == pytest.approx(temperature, rel=1e-6)
    probabilities = utils.softmax(logits, state["temperature"])
    assert state["threshold"] == utils.choose_threshold(probabilities, labels, 5.0)[0]
    # A candidate of this candidate inherits the list.
    bought = utils.buy_labels(home.drifted, 20, seed=9)
    mixed = utils.mix(home.data, home.drifted, bought, 0.5, images=30, seed=3)
    run = utils.fine_tune(home.course, "second", path, mixed, recipe=short)
    stored = utils.save_candidate(home.course, run, mixed, path.with_name("second.pth"))
    second = torch.load(stored, weights_only=True)
    assert set(state["trained_on"]) < set(second["trained_on"])
    assert second["parent"] == utils.hash_file(path)[:16]


@pytest.mark.parametrize("how", ["whole", "batch norm"])
def test_a_candidate_is_stored_with_its_own_mix_only(home, how):
    run, mixed = fine_tune(home, how=how, images=40, recipe=replace(RECIPE, epochs=1))
    other = utils.mix(home.data, home.drifted, home.rows, 0.5, 40, seed=1)
    with pytest.raises(utils.CourseError, match="has not learned from these images"):
        utils.save_candidate(home.course, run, other)
    assert not (home.course.checkpoints / "model_retrained.pth").exists()
    state = torch.load(utils.save_candidate(home.course, run, mixed), weights_only=True)
    assert "learned" not in state and state["how"] == how


# --- the gate, on drawn answers


def answers(right, labels, seed=0, classes=2):
    """Probabilities (N, K), right where `right` says so, calibrated if 85 % are."""
    rng, shape = np.random.default_rng(seed), (len(labels), classes)
    chosen = np.where(right, labels, (labels + 1) % classes)
    probabilities = np.full(shape, 0.15 / (classes - 1)) + rng.normal(0, 1e-3, shape)
    probabilities[np.arange(len(labels)), chosen] = 0.85
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def drawn_rights(seed, labels, both, lost, won):
    """Which images the old and the new model get right: shares right for both, lost,
    and won by the new one.
    """
    p = [both, lost, won, 1 - both - lost - won]
    kind = np.random.default_rng(seed).choice(4, len(labels), p=p)
    return np.isin(kind, (0, 1)), np.isin(kind, (0, 2))


HASHES = ("a" * 16,) * 1000
PROOF = {
    "latency": Check("latency", 1.0, 0.97, 1.03, 1.25, 9, of="rounds"),
    "shadow": Check("shadow", 0, 0, 0, 0, 40),
    "onnx agreement": Check("onnx agreement", 1e-6, 1e-6, 1e-6, 1e-5, 50),
}


def gate(
    seed=0,
    n=600,
    clean=(0.90, 0.03, 0.03),
    drifted=(0.60, 0.02, 0.25),
    sacrificed=None,
    hashes=HASHES,
    proof=None,
    trained_on=("b" * 16,),
    margin=0.03,
):
    labels = (np.random.default_rng([seed, 1]).random(n) > 0.26).astype(np.int64)
    old_clean, new_clean = drawn_rights([seed, 2], labels, *clean)
    old_there, new_there = drawn_rights([seed, 3], labels, *drifted)
    # the old model gave the others up, the new one gives this class up
    if sacrificed is not None:
        new_clean = old_clean & (labels != sacrificed)
        old_there, new_there = labels == sacrificed, labels != sacrificed
    sets = [
        utils.Answers(answers(new, labels), answers(old, labels), labels, hashes)
        for new, old in ((new_clean, old_clean), (new_there, old_there))
    ]
    limits = utils.GateLimits(clean_margin=margin, recall_margin=0.1)
    proof = tuple((PROOF | (proof or {})).values())
    return utils.gate_checks(*sets, CLASSES, limits, trained_on=trained_on, proof=proof)


def named(report, *verdicts) -> set[str]:
    return {check.name for check in report.checks if check.verdict in verdicts}


def test_a_truly_better_model_passes():
    report = gate(clean=(0.93, 0.01, 0.02))
    accepted, found = report  # as the handout has it
    assert report and accepted and found["leakage"] == 0 and not report.reasons
    assert report.verdict == "Accepted: all 10 checks passed."
    table = report.table
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["passed"] and len(told["checks"]) == 10


def test_an_unchanged_model_is_refused():
    report = gate(clean=(0.95, 0, 0), drifted=(0.6, 0, 0))
    assert not report and not next(iter(report))
    better = {"drifted accuracy", "drifted balanced accuracy"}
    assert named(report, "failed") == better and report.verdict.startswith("Refused")
    assert "0 answers won, 0 lost, p = 1" in report.reasons[0]


def test_a_model_that_forgot_the_clean_images_is_refused():
    report = gate(clean=(0.70, 0.25, 0.01))
    forgot = {"clean accuracy", "recall NORMAL", "recall PNEUMONIA"}
    assert forgot <= named(report, "failed")
    assert "clean accuracy -0.2" in report.reasons[0]
    assert "asked: above -0.03 (n = 600)" in report.reasons[0]


def test_a_sacrificed_class_is_refused():
    """The old model says NORMAL to every drifted image, the new one PNEUMONIA: far more
    accurate, and no better.
    """
    report = gate(sacrificed=0)
    assert "drifted accuracy" in named(report, "passed")
    assert {"drifted balanced accuracy", "recall NORMAL"} <= named(report, "failed")


def test_few_images_make_no_margin_wider():
    """Equal models: of 150 images the margin of 3 points stays, the verdict is
    inconclusive, and as many images as the sentence says do decide.
    """
    report = gate(n=150, clean=(0.80, 0.05, 0.05))
    check = next(check for check in report.checks if check.name == "clean accuracy")
    assert check.limit == -0.03 < check.value and check.verdict == "inconclusive"
    assert not report and report.verdict.startswith("Inconclusive, label more")
    needed = int(check.says.split("about ")[1].split(" ")[0].replace(",", ""))
    lost, won = 0.05 - check.value / 2, 0.05 + check.value / 2
    counts = np.round(np.array([lost, won]) * needed).astype(int)
    kind = np.repeat([0, 1, 2], [*counts, needed - counts.sum()])
    low = utils.paired_difference(kind != 0, kind != 1, 0.9)[1]
    assert low == pytest.approx(-0.03, abs=0.01)


@pytest.mark.parametrize(
    ("value", "low", "high", "above", "verdict"),
    [
        (0.0, -0.02, 0.02, True, "passed"),
        (0.0, -0.03, 0.03, True, "inconclusive"),
        (-0.03, -0.05, 0.0, True, "failed"),
        (-0.05, -0.06, -0.04, False, "passed"),
        (-0.05, -0.06, 0.0, False, "inconclusive"),
        (0.0, -0.06, 0.0, False, "failed"),
        (np.nan, np.nan, np.nan, False, "inconclusive"),
    ],
)
def test_the_three_verdicts(value, low, high, above, verdict):
    assert Check("x", value, low, high, -0.03, 9, above).verdict == verdict


def test_leaked_images_are_refused():
    hashes = ("1" * 16, "2" * 16, "2" * 16, "3" * 16) * 150
    report = gate(hashes=hashes, trained_on=["2" * 64, "3" * 16, "9" * 16])
    assert named(report, "failed") == {"leakage"} and report.figures["leakage"] == 2
    for lacking in ({"hashes": ()}, {"trained_on": ()}, {"hashes": HASHES[:599]}):
        report = gate(**lacking)
        assert named(report, "inconclusive") == {"leakage"} and not report


@pytest.mark.parametrize("name", PROOF)
def test_what_was_not_measured_or_is_too_much_does_not_pass(name):
    missing = {key: check for key, check in PROOF.items() if key != name}
    report = gate()
    whole = {check.name: check for check in report.checks}
    assert named(report, "passed") == set(whole)
    too_much = replace(PROOF[name], value=2, low=2, high=2)
    assert named(gate(proof={name: too_much}), "failed") == {name}
    labels = np.tile([0, 1], 300)
    same = answers(labels >= 0, labels)
    given = utils.Answers(same, same, labels, HASHES)
    report = utils.gate_checks(given, given, CLASSES, proof=tuple(missing.values()))
    reason = next(says for says in report.reasons if says.startswith(name))
    assert "not measured" in reason


def test_calibration():
    labels = np.random.default_rng(0).integers(0, 2, 500)
    kind = np.random.default_rng(1).random(500)
    right, other = kind < 0.85, (kind > 0.02) & (kind < 0.88)
    fair, sure = answers(right, labels), answers(other, labels) ** 4
    sure /= sure.sum(axis=1, keepdims=True)
    check = utils.calibration_kept(utils.Answers(sure, fair, labels), 0.05, 0.05)
    change = (sure.max(axis=1) - other) - (fair.max(axis=1) - right)
    assert check.value == pytest.approx(change.mean()) and check.verdict == "failed"
    ends = stats.norm.interval(0.9, change.mean(), stats.sem(change))
    assert (check.low, check.high) == pytest.approx(ends)
    # less sure is no fault
    check = utils.calibration_kept(utils.Answers(fair, sure, labels), 0.05, 0.05)
    assert check.verdict == "passed"


def calibrated_pair(seed, rise, n=400, differing=0.06):
    """Answers of two equally accurate models, of which the new one is surer by `rise`
    on average.
    """
    rng = np.random.default_rng([seed, 4])
    labels, sure = rng.integers(0, 2, n), rng.uniform(0.7, 0.9, n)
    right = rng.random(n) < sure  # calibrated, image by image
    chances = differing / 2 / np.array([[0.8], [0.2]])
    lost, won = (rng.random((2, n)) < chances) & [right, ~right]
    surer = sure + rise + rng.uniform(-0.04, 0.04, n)
    pair = []
    for hit, confidence in (((right & ~lost) | won, surer), (right, sure)):
        own = np.arange(2) == np.where(hit, labels, 1 - labels)[:, None]
        pair.append(np.where(own, confidence[:, None], 1 - confidence[:, None]))
    return utils.Answers(*pair, labels)


def test_error_rate_of_calibration():
    """Surer than right by just the margin passes in 5 % of the draws, equally
    calibrated on 400 images nearly all.
    """

    def passed(rise, runs):
        pairs = (calibrated_pair(seed, rise) for seed in range(runs))
        checks = (utils.calibration_kept(pair, 0.05, 0.05) for pair in pairs)
        return sum(check.verdict == "passed" for check in checks)

    assert stats.binomtest(passed(0.05, 1200), 1200, 0.05).pvalue > 1e-3
    assert passed(0, 300) >= 285


def test_error_rates_of_the_gate():
    """A model with one flaw exactly at its limit passes the whole gate in at most 5 %
    of the draws.
    """
    runs = 80
    worse = sum(gate(seed, clean=(0.90, 0.05, 0.02)).accepted for seed in range(runs))
    same = sum(gate(seed, drifted=(0.6, 0.05, 0.05)).accepted for seed in range(runs))
    limit = stats.binom.ppf(0.999, runs, 0.05)
    assert worse <= limit and same <= limit
    good = [gate(seed, n=1000, clean=(0.94, 0.01, 0.015)) for seed in range(30)]
    assert sum(map(bool, good)) >= 24


@pytest.mark.parametrize(
    "changes",
    [{"alpha": 0.0}, {"clean_margin": 0}, {"recall_margin": -0.1}, {"alpha": 0.5}],
)
def test_limits_that_cannot_be(changes):
    with pytest.raises(utils.CourseError, match="is no limit of the gate"):
        utils.GateLimits(**changes)


def test_answers_that_do_not_fit():
    labels = np.tile([0, 1], 20)
    good = answers(labels >= 0, labels)
    broken = np.where(np.arange(40)[:, None] == 3, np.nan, good)
    three = answers(labels >= 0, labels, classes=3)
    ones = np.ones(40, int)
    for new, known, told in (
        (good[:-1], labels, "shapes"),
        (three, labels, "shapes"),
        (broken, labels, "NaN"),
        (good, ones, "none of class NORMAL"),
    ):
        given = utils.Answers(new, good, known)
        with pytest.raises(utils.CourseError, match=told):
            utils.gate_checks(given, given, CLASSES)


# --- the gate, on trained networks


@pytest.fixture(scope="module")
def candidates(world) -> dict:
    """The networks of four candidates: the good one, and drift only, unchanged, one
    class given up.
    """
    recipe = replace(RECIPE, epochs=6, lr=3e-3)
    found = {
        "mixed": fine_tune(world, 0.3, recipe=recipe)[0].model,
        "drift only": fine_tune(world, 1.0, images=100)[0].model,
        "unchanged": utils.load_model(world.checkpoint)[0],
        "one-sided": utils.load_model(world.checkpoint)[0],
    }
    with torch.no_grad():
        found["one-sided"].classifier.bias += torch.tensor([-50.0, 50.0])
    return found


def judge(world, model, trained_on=("b" * 16,)):
    current = utils.load_model(world.checkpoint)[0]
    loaders = [data.loader("gate", 64) for data in (world.data, world.drifted)]
    proof, given = tuple(PROOF.values()), {"classes": CLASSES, "recall_margin": 0.15}
    return utils.validate_retrained_model(
        model, current, *loaders, "cpu", trained_on=trained_on, proof=proof, **given
    )


@pytest.mark.parametrize(
    ("name", "caught"),
    [
        ("drift only", {"clean accuracy"}),
        ("unchanged", {"drifted accuracy", "drifted balanced accuracy"}),
        ("one-sided", {"recall NORMAL"}),
    ],
)
def test_bad_candidates(world, candidates, name, caught):
    report = judge(world, candidates[name])
    assert caught <= named(report, "failed") and not report


def test_the_good_candidate(world, candidates):
    good = judge(world, candidates["mixed"])
    assert good, good.reasons
    loader, right = world.drifted.loader("gate", 300), []
    for model in (utils.load_model(world.checkpoint)[0], candidates["mixed"]):
        logits, labels = utils.predict(model, loader)
        right.append((logits.argmax(1) == labels).mean())
    assert good.figures["drifted accuracy"] == pytest.approx(right[1] - right[0])
    gate_images = world.data.index["sha256"].iloc[world.data.where("gate")]
    leaked = judge(world, candidates["mixed"], gate_images[:3].tolist())
    assert named(leaked, "failed") == {"leakage"} and leaked.figures["leakage"] == 3


@pytest.fixture(scope="module")
def retrained(world, candidates) -> str:
    """Name of the exported file of the good candidate, in the home that every `home` is
    a copy of.
    """
    state = torch.load(world.checkpoint, weights_only=True)
    names = ("classes", "mean", "std", "size", "channels", "threshold", "temperature")
    path = utils.save_checkpoint(
        world.course.checkpoints / "model_retrained.pth",
        candidates["mixed"],
        **{name: state[name] for name in names},
    )
    return utils.export_onnx(world.course, path).name


def test_networks_and_files_get_the_same_verdict(retrained, home):
    names = (home.course.exports / "models" / retrained, home.course.exports)
    files = [utils.OnnxModel(names[0]), utils.OnnxModel(names[1] / "model.onnx")]
    paths = (home.course.checkpoints / "model_retrained.pth", home.checkpoint)
    networks = [utils.load_model(path)[0] for path in paths]
    loaders = [data.loader("gate", 64) for data in (home.data, home.drifted)]
    reports = [
        utils.validate_retrained_model(*pair, *loaders, "cpu", classes=CLASSES)
        for pair in (files, networks)
    ]
    of_files, of_networks = (report.table[["low", "value"]] for report in reports)
    assert (of_files - of_networks).abs().max().max() < 1e-4
    served = in_service(home.course)
    assert (reports[0].new, reports[0].current) == (files[0].hash, served)
    ratio = utils.latency_ratio(*files, home.data.pixels[:4], rounds=5, seconds=0.002)
    assert 0 < ratio.low <= ratio.value <= ratio.high and ratio.n == 5


def test_loaders_that_shuffle_or_run_dry(world):
    model = utils.load_model(world.checkpoint)[0]
    batches = list(world.data.loader("gate", 64))

    class Shuffled:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __iter__(self):
            return iter([batches[i] for i in self.rng.permutation(len(batches))])

    for loader, told in (
        (iter(batches), "pass a loader, not an iterator"),
        (Shuffled(), "switch shuffling off"),
    ):
        with pytest.raises(utils.CourseError, match=told):
            utils.validate_retrained_model(model, model, loader, loader, "cpu")


def test_order_statistics_of_the_latency_ratio(monkeypatch):
    """The interval of the median holds at 95 % at each end, whatever the
    distribution.
    """
    rng, model = (
        np.random.default_rng(0),
        SimpleNamespace(predict=None, provider="", path=None),
    )

    def benchmark(backends, pixels, batches, rounds, seconds):
        slow = {"new": rng.lognormal(0, 0.5, rounds), "current": np.ones(rounds)}
        return [
            {"backend": name, "round": i, "ms": [slow[name][i]], "others": 0.0}
            for name in slow
            for i in range(rounds)
        ]

    monkeypatch.setattr(utils, "benchmark", benchmark)
    for rounds in (5, 9, 15):
        ratios = [utils.latency_ratio(model, model, None, rounds) for _ in range(1000)]
        assert 0 < sum(ratio.high < 1 for ratio in ratios) <= 65
        assert 0 < sum(ratio.low > 1 for ratio in ratios) <= 65


@pytest.mark.parametrize("others, verdict", [(0.1, "failed"), (1.4, "inconclusive")])
def test_nobody_is_refused_for_what_other_programs_did(monkeypatch, others, verdict):
    rows = [
        {"backend": name, "round": i, "ms": [1.0 + (name == "new")], "others": others}
        for name in ("new", "current")
        for i in range(9)
    ]
    monkeypatch.setattr(utils, "benchmark", lambda *_, **__: rows)
    model = SimpleNamespace(predict=None, provider="", path=None)
    check = LATENCY_RATIO(model, model, None, 9)
    assert check.verdict == verdict
    assert ("close them, try again" in check.says) == (verdict == "inconclusive")


# --- promotion


def store(course, content: bytes) -> Path:
    """A file in exports/models/ under its hash: promotion never looks inside."""
    path = course.exports / "models" / "new.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path.rename(path.with_name(f"{utils.hash_file(path)[:16]}.onnx"))


def accepted(new: Path, current: Path) -> GateReport:
    return GateReport(tuple(PROOF.values()), new.stem, current.stem)


@pytest.fixture
def service(tmp_path) -> SimpleNamespace:
    """A home with model `a` in service and `b`, `c` stored beside it."""
    return make_service(tmp_path / "service")


def make_service(folder):
    course = SimpleNamespace(home=folder, exports=folder / "exports")
    a, b, c = (store(course, name * 100_000) for name in (b"a", b"b", b"c"))
    put_in_service(course, a)
    path = course.exports / "model.onnx"
    return SimpleNamespace(course=course, a=a, b=b, c=c, path=path)


def promote(service, new, current, **options):
    return utils.promote(service.course, new, accepted(new, current), **options)


def serves(service) -> str:
    return in_service(service.course)


def events(service) -> list[tuple[str, str]]:
    audit = utils.read_audit(service.course)
    return [(line.event, line.model) for line in audit.itertuples()]


def test_promotion_and_rollback(service, capsys):
    assert utils.read_audit(service.course).empty
    told = {"who": "Ada", "why": "drift of the scanner"}
    assert promote(service, service.b, service.a, **told) == service.path
    assert serves(service) == service.b.stem
    line = utils.read_audit(service.course).iloc[-1]
    assert (line["who"], line["why"]) == ("Ada", "drift of the scanner")
    assert (line["event"], line["previous"]) == ("in service", service.a.stem)
    assert json.loads(line["checks"]) == {"latency": 1.0} | {
        "shadow": 0,
        "onnx agreement": 1e-6,
    }
    assert pd.Timestamp.now("UTC") - line["timestamp"] < pd.Timedelta(minutes=5)
    promote(service, service.b, service.a)
    assert "already in service" in capsys.readouterr().out and len(events(service)) == 1
    promote(service, service.c, service.b)
    rollback(service.course, why="too many alarms")
    assert serves(service) == service.b.stem
    rollback(service.course)  # further back, not forth again
    assert service.path.read_bytes() == b"a" * 100_000
    assert events(service)[-2:] == [
        ("rollback", service.b.stem),
        ("rollback", service.a.stem),
    ]
    with pytest.raises(utils.CourseError, match="no earlier model"):
        rollback(service.course)
    promote(service, service.c, service.a)
    rollback(service.course)
    assert serves(service) == service.a.stem


def test_promotion_needs_the_right_report(service):
    good = accepted(service.b, service.a)
    failed = (*good.checks, Check("clean accuracy", -0.2, -0.3, -0.1, -0.03, 9, True))
    undecided = (*good.checks, Check("clean accuracy", 0, -0.1, 0.1, -0.03, 9, True))
    for report, told in (
        (replace(good, checks=failed), "Refused: 1 of 4 checks failed"),
        (replace(good, checks=undecided), "Inconclusive, label more"),
        (replace(good, checks=()), "not promoted"),
        (replace(good, new=service.c.stem), f"the report is of {service.c.stem}"),
        (replace(good, new=""), "the report is of no file"),
        (replace(good, current=service.c.stem), "in service now; run it again"),
    ):
        with pytest.raises(utils.CourseError, match=told):
            utils.promote(service.course, service.b, report)
        assert serves(service) == service.a.stem
    assert [event for event, _ in events(service)] == ["refused"] * 6
    assert "clean accuracy -0.2" in utils.read_audit(service.course)["why"][0]
    promote(service, service.b, service.a)  # and with the right one it goes


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [Path.unlink, cut])
def test_a_swap_needs_a_whole_file(service, harm):
    harm(service.c)
    with pytest.raises(utils.CourseError, match="missing|bytes have changed"):
        promote(service, service.c, service.a)
    promote(service, service.b, service.a)
    harm(service.a)
    before = events(service)
    with pytest.raises(utils.CourseError, match="missing|bytes have changed"):
        rollback(service.course)
    assert serves(service) == service.b.stem and events(service) == before


def test_a_model_exported_anew_is_no_reason_to_lose_the_way_back(service):
    promote(service, service.b, service.a)
    # theme 4 ran again, which the audit log does not know
    put_in_service(service.course, service.c)
    rollback(service.course)
    assert serves(service) == service.b.stem


def test_a_log_of_the_first_edition_still_leads_back(service):
    """It had two lines a swap, and a word for one that a crash interrupted."""
    promote(service, service.b, service.a)
    log = promotion._log(service.course)
    line = {"timestamp": "2026-01-01", "who": "Ada", "event": "promoting"}
    line |= {"model": service.c.stem, "previous": service.b.stem}
    log.append([line, line | {"event": "abandoned"}])
    rollback(service.course)
    assert serves(service) == service.a.stem


def test_a_log_that_cannot_be_written_stops_the_swap(service):
    (service.course.exports / "audit.csv").mkdir()
    with pytest.raises(utils.CourseError):
        promote(service, service.b, service.a)
    assert serves(service) == service.a.stem


# --- shadow


class Stub:
    """Stands in for a session: answers by the mean grey level, as told."""

    def __init__(self, name, act=lambda pixels, call: None):
        self.hash, self.act, self.calls = name, act, 0

    def predict(self, pixels):
        self.calls += 1
        self.act(pixels, self.calls)
        positive = pixels.mean(axis=(1, 2, 3), dtype=np.float32) / 255
        return np.stack([1 - positive, positive], axis=1)


def test_shadow_never_touches_the_answer(world, tmp_path):
    def act(pixels, call):
        # it spoils what it was given, is slow, and fails now and then
        pixels[:] = 255 * (call % 2)
        time.sleep(0.02)
        if call % 5 == 0:
            raise MemoryError("too large")

    rows = world.data.where("gate")[:40]
    logger = utils.InferenceLogger(tmp_path / "production.csv")
    pair, before = (Stub("old"), Stub("new", act)), world.drifted.pixels.copy()
    found = utils.run_in_shadow(*pair, world.data, rows, logger, world.drifted)
    pixels = world.drifted.pixels
    alone = np.concatenate([Stub("old").predict(pixels[i : i + 1]) for i in rows])
    assert np.array_equal(found["answers"], alone) and np.array_equal(pixels, before)
    assert (found["requests"], found["errors"], found["n"]) == (40, 8, 32)
    call = np.arange(1, 41)
    same = ((call % 2 == 1) == alone.argmax(axis=1))[call % 5 > 0].sum()
    assert (found["low"], found["high"]) == utils.wilson(same, 32)
    assert found["agreement"] == same / 32
    log = logger.read()
    roles = log["extra"].map(json.loads).map(lambda extra: extra["role"])
    took = log.groupby(roles)["latency_ms"].median()
    assert took["service"] < 20 <= took["shadow"]
    assert log.groupby([roles, "model", "status"]).size().to_dict() == {
        ("service", "old", "ok"): 40,
        ("shadow", "new", "MemoryError"): 8,
        ("shadow", "new", "ok"): 32,
    }
    assert (roles.iloc[::2] == "service").all()


def test_a_candidate_that_never_answers(world, tmp_path):
    def fail(pixels, call):
        raise ValueError

    rows = world.data.where("gate")[:10]
    logger = utils.InferenceLogger(tmp_path / "production.csv")
    pair = Stub("old"), Stub("new", fail)
    found = utils.run_in_shadow(*pair, world.data, rows, logger)
    assert (found["requests"], found["errors"], found["n"]) == (10, 10, 0)
    assert np.isnan(found["agreement"]) and (found["low"], found["high"]) == (0, 1)
    # what fails in service fails as it would without a shadow
    with pytest.raises(ValueError):
        utils.run_in_shadow(*pair[::-1], world.data, rows, logger)


# --- from a drift to a promoted model, and back


@pytest.fixture
def decided(home, monkeypatch):
    """decided("retrain"): that home after theme 6, where fine-tuning takes long enough
    to learn the drift.
    """
    slow = replace(RECIPE, epochs=12, lr=3e-3)
    monkeypatch.setattr(utils, "finetune_recipe", lambda mixed: slow)
    model, course = in_service(home.course), home.course
    (course.checkpoints / "model_retrained.pth").unlink(missing_ok=True)
    results = {"theme4": {"models": {"fp32": model}}}
    utils.write_json(course.exports / "results.json", results)

    def decide(decision, **changes):
        report = {"model": model, "decision": decision, "scenario": {}, "policy": {}}
        report |= {"streams": {}} | changes
        utils.write_json(course.exports / "drift_report.json", report)
        return home

    return decide


def retrain_and_gate(home, **options):
    loose = {"clean_margin": 0.2, "recall_margin": 0.3, "calibration_margin": 0.3}
    given = home.course, home.data, home.drifted, 50, 0.3
    return utils.retrain_and_gate(*given, **(loose | options))


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """No test judges how busy this machine is."""
    latency = utils.latency_ratio

    def loose(*given, **options):
        return replace(latency(*given, **options), limit=1e3)

    monkeypatch.setattr(utils, "latency_ratio", loose)


@pytest.mark.parametrize("decision", ["watch", "none"])
def test_no_answer_without_a_decision(decided, decision):
    home = decided(decision)

    def contents():
        files = home.course.home.rglob("*")
        return {path: path.read_bytes() for path in files if path.is_file()}

    before = contents()
    told = f"decided '{decision}': rehearse with dry_run=True"
    with pytest.raises(utils.CourseError, match=told):
        retrain_and_gate(home)
    assert contents() == before


@pytest.mark.course
def test_answer_to_a_drift(decided):
    home = decided("retrain")
    old, course = in_service(home.course), home.course
    rehearsed = retrain_and_gate(home, dry_run=True)
    assert rehearsed, rehearsed.reasons
    assert in_service(course) == old and utils.read_audit(course).empty
    report = retrain_and_gate(home)
    assert report and (report.new, report.current) == (rehearsed.new, old)
    assert in_service(course) == report.new
    audit = utils.read_audit(course)
    assert audit["event"].tolist() == ["in service"]
    assert audit["why"].tolist() == ["whole, 30% drifted, 50 labels"]
    log = utils.read_log(course.logs / "production.csv")
    roles = log["extra"].map(json.loads).map(lambda extra: extra["role"])
    # two replays of the 40 requests
    assert roles.value_counts().to_dict() == {"service": 80, "shadow": 80}
    with pytest.raises(utils.CourseError, match=f"{report.new} is in service already"):
        retrain_and_gate(home)
    # the file that was promoted answers as its checkpoint, with its temperature
    path = course.exports / "model.onnx"
    state = torch.load(course.checkpoints / "model_retrained.pth", weights_only=True)
    assert utils.OnnxModel(path).temperature == pytest.approx(state["temperature"])
    rollback(course)
    assert in_service(course) == old


@pytest.mark.course
def test_answer_that_the_gate_refuses(decided):
    home = decided("retrain")
    old = in_service(home.course)
    report = retrain_and_gate(home, clean_margin=1e-4)
    assert "clean accuracy" in named(report, "failed", "inconclusive")
    audit = utils.read_audit(home.course)
    assert in_service(home.course) == old
    assert (
        audit["event"].tolist() == ["refused"] and "clean accuracy" in audit["why"][0]
    )
    decided("watch")  # a rehearsal is free, whatever was decided
    retrain_and_gate(home, dry_run=True)
    assert len(utils.read_audit(home.course)) == 1


def test_drift_reports_that_are_missing_damaged_or_of_another_model(decided):
    home = decided("retrain")
    path = home.course.exports / "drift_report.json"
    assert utils.read_drift_report(home.course)["decision"] == "retrain"
    assert watched_path(home.course).stem == in_service(home.course)
    decided("retrain", model="f" * 16)
    told = f"about model {'f' * 16}, theme 4 has exported .* since: run .*theme6"
    with pytest.raises(utils.CourseError, match=told):
        retrain_and_gate(home)
    for content in (b"", path.read_bytes()[:50], b'{"decision": "retrain"}', None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(utils.CourseError, match="missing or damaged: run .*theme6"):
            utils.read_drift_report(home.course)
    for results in ({}, {"theme4": {"models": {"int8": "a"}}}):
        utils.write_json(home.course.exports / "results.json", results)
        with pytest.raises(utils.CourseError, match="names no exported network"):
            watched_path(home.course)


# --- figures


def test_figures():
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb

    two = {"images": ["clean", "clean", "drifted", "drifted"], "low": 0.4, "high": 0.95}
    accuracy = {"accuracy": [0.9, 0.91, 0.5, 0.8]}
    budgets = pd.DataFrame({"budget": [25, 50] * 2} | two | accuracy)
    hows = {"how": ["in service", "whole"] * 2, "share": [np.nan, 0.1] * 2}
    points = pd.DataFrame(hows | two | accuracy)
    line = {"accuracy": 0.8, "low": 0.7, "high": 0.9, "old": 0.7, "new": 0.9}
    line = pd.DataFrame({"window": range(6)} | line)
    reports = (gate(), gate(n=150, clean=(0.8, 0.05, 0.05), hashes=()))
    drawn = [
        figures.learning_curve(budgets, {"clean": 0.9, "drifted": 0.5}, "t"),
        figures.candidates(points, 0.03, "t"),
        *(figures.gate(report.table, report.verdict) for report in reports),
        figures.timeline(line, (2, 5), 3, None, "t"),
    ]
    for figure in drawn:
        figure.canvas.draw()
        plt.close(figure)
    shares = (0.0, 0.5, 1.0)
    whole = points[points["how"] == "whole"]
    four = pd.concat([points, *(whole.assign(share=share) for share in shares)])
    legend = figures.candidates(four, 0.03, "t").axes[0].get_legend()
    pairs = zip(legend.get_lines(), legend.get_texts(), strict=True)
    grey = {
        text.get_text(): np.dot(to_rgb(line.get_color()), (0.3, 0.59, 0.11))
        for line, text in pairs
    }
    steps = np.diff([grey[f"{share}% drifted"] for share in (0, 10, 50, 100)])
    assert (steps < -0.1).all()  # the shares keep their order in a grey print
    row = utils.accuracy_row(np.eye(2)[[0, 1, 1, 0]], np.array([0, 1, 0, 0]))
    assert row["accuracy"] == 0.75 and row["n"] == 4
    assert (row["low"], row["high"]) == utils.wilson(3, 4)
    assert asdict(reports[0].checks[0])["name"] == "leakage"
