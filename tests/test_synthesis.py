"""Theme 8: tables over the record, advice by rule, the checklist, the ML Test Score,
the model card.
"""

import re

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from support.networks import store_checkpoint

import utils
from kit import evidence, figures
from kit.evidence import checklist, limitations, theme_status
from kit.record import SCHEMA
from tools.report import card

INTERVAL = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 200}
TEST = {
    name: dict(INTERVAL)
    for name in ("accuracy", "balanced_accuracy", "auroc", "ece", "recall NORMAL")
}
TEST["recall NORMAL"] |= {"low": 0.61, "n": 60}
TEST["ece"] |= {"low": None, "high": None}  # has no interval
POLICY = {
    "window": 40,
    "consecutive": 2,
    "detectors": ["KS statistics"],
    "estimate": "atc",
}
RECORD = {
    "schema": SCHEMA,
    "meta": {
        "dataset": "pneumonia",
        "source": "folder",
        "profile": "smoke",
        "image_size": 32,
        "seed": 42,
        "hardware": "a machine",
        "environment": {"torch": "2.9"},
    },
    "headline": {"train_seconds_baseline": 3600.0, "train_seconds_optimized": 7200.0},
    "theme1": {
        "images": 10,
        "usable": 9,
        "quality": [{"problem": "blank"}, {"problem": "no_patient", "images": 3}],
        "recorded": "2026-01-01 10:00 UTC",
        "pools": {
            "NORMAL": {"train": 4, "All": 4},
            "PNEUMONIA": {"train": 5, "All": 5},
            "All": {"train": 9, "All": 9},
        },
    },
    "theme2": {
        "parameters": 10,
        "test": TEST,
        "trained": "2026-01-01 11:00 UTC",
        "recorded": "2026-01-01 11:01 UTC",
    },
    "theme3": {
        "parameters": 99,
        "test": TEST,
        "threshold": 0.2,
        "temperature": 1.5,
        "ece": [0.2, 0.1],
        "cost_missed": 5.0,
        "ablation": {"a": 1},
        "paired": {"difference": 0.1, "p_value": 0.01},
        "recorded": "2026-01-01 12:00 UTC",
    },
    "theme4": {
        "shipped": "ONNX Runtime int8",
        "price_per_hour": 0.5,
        "slo_ms": 10.0,
        "models": {"fp32": "abc"},
        "agreement": [{"max_abs_diff": 2e-7}],
        "recorded": "2026-01-02 10:00 UTC",
        "benchmark": [
            {"backend": b, "batch": n}
            for b in ("a", "b", "c", "ONNX Runtime")
            for n in (1, 32)
        ],
    },
    "theme5": {
        "drill": [{"raised": True}, {"raised": False}],
        "rules": [1, 2],
        "recorded": "2026-01-02 11:00 UTC",
    },
    "theme6": {
        "scenario": {"kind": "scanner", "severity": 4},
        "decided_at": 5,
        "decision": "retrain",
        "policy": POLICY,
        "estimates": {"atc": {"most optimistic": 0.25, "mean absolute error": 0.1}},
        "unseen_shift": {"KS statistics": True, "MMD embedding": False},
        "recorded": "2026-01-03 10:00 UTC",
    },
    "theme7": {
        "gate": {
            "passed": True,
            "verdict": "Accepted.",
            "checks": [{"name": "clean accuracy", "limit": -0.06, "low": -0.026}],
        },
        "chosen": {"budget": 80},
        "test": TEST,
        "in_service": "def",
        "models": {"before": "abc", "after": "def"},
        "shadow": {"requests": 100},
        "refused": {"bad": {}},
        "train_seconds": 60.0,
        "on_gate": [
            {
                "model": m,
                "images": i,
                "accuracy": a,
                "low": a - 0.1,
                "high": a + 0.05,
                "n": 159.0,
            }
            for m, i, a in (
                ("old model", "clean", 0.9),
                ("old model", "drifted", 0.7),
                ("candidate", "clean", 0.91),
                ("candidate", "drifted", 0.88),
            )
        ],
        "recorded": "2026-01-03 12:00 UTC",
    },
}


def answers(labels: np.ndarray, error: float, seed: int) -> np.ndarray:
    """Probabilities (N, 2) of a model that is wrong with this chance."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) < error
    positive = np.where(
        (labels == 1) ^ wrong,
        rng.uniform(0.5, 1, len(labels)),
        rng.uniform(0, 0.5, len(labels)),
    )
    return np.column_stack([1 - positive, positive])


@pytest.fixture
def home(tmp_path):
    """A home with the record above and answers of all variants but TensorRT."""
    labels = np.random.default_rng(0).integers(0, 2, 300)
    folder = tmp_path / "exports" / "predictions"
    folder.mkdir(parents=True)
    errors = {"baseline_test": 0.25, "optimized_test": 0.05, "retrained_test": 0.06}
    for seed, (name, error) in enumerate(errors.items()):
        np.savez(
            folder / f"{name}.npz",
            probabilities=answers(labels, error, seed),
            labels=labels,
        )
    for name in ("onnx_test", "int8_test"):
        (folder / f"{name}.npz").write_bytes(
            (folder / "optimized_test.npz").read_bytes()
        )
    utils.write_json(tmp_path / "exports" / "results.json", RECORD)
    return tmp_path


def serving(**columns) -> pd.DataFrame:
    names = ["baseline", "optimised", "ONNX float32", "ONNX INT8", "retrained"]
    table = {
        "p50_ms": [1, 4, 2, 1.5, 2],
        "p95_ms": [2, 8, 4, 3, 4],
        "images_s": [900, 100, 300, 700, 290],
        "cost_per_million": [1, 9, 5, 3, 5],
        "size_mb": [0.1, 3, 3, 0.8, 3],
    } | columns
    return pd.DataFrame(table, index=pd.Index(names, name="model"), dtype=float)


# --- tables


def test_status_names_what_is_missing_and_what_it_costs(home):
    record = {
        key: value for key, value in RECORD.items() if key not in ("theme4", "theme7")
    }
    record["theme3"] = record["theme3"] | {"inputs": {"checkpoints/gone.pth": "0" * 16}}
    status = theme_status(home, record)
    assert status.loc[[4, 7], "recorded"].tolist() == ["missing"] * 2
    assert (
        "theme4_onnx_deployment.ipynb" in status.loc[4, "says"]
        and "trade-off" in status.loc[4, "says"]
    )
    assert "theme3 is stale: checkpoints/gone.pth" in status.loc[3, "says"]
    assert status.loc[[1, 2, 5, 6], "says"].eq("").all()


def test_status_of_nothing_at_all(tmp_path):
    status = theme_status(tmp_path, {"meta": {}})
    assert status["recorded"].eq("missing").all() and len(status) == 7


def test_performance_agrees_with_scikit_learn(home):
    table = utils.performance_table(home, RECORD, serving(), resamples=200)
    variants = ["baseline", "optimised", "ONNX float32", "ONNX INT8", "retrained"]
    assert table.index.tolist() == variants
    for name, file in (("baseline", "baseline_test"), ("retrained", "retrained_test")):
        probabilities, labels = utils.stored_predictions(home, file)
        row = table.loc[name]
        balanced = balanced_accuracy_score(labels, probabilities.argmax(1))
        assert row["balanced_accuracy"] == pytest.approx(balanced)
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]))
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert table["train_cost"].tolist() == pytest.approx([0.5, 1, 1, 1, 0.5 / 60])
    assert table.loc["ONNX INT8", "p95_ms"] == 3 and "ece_low" not in table


def test_performance_leaves_out_what_is_missing(home):
    (home / "exports" / "predictions" / "int8_test.npz").unlink()
    record = {key: value for key, value in RECORD.items() if key != "theme4"}
    table = utils.performance_table(home, record, None, resamples=100)
    assert "ONNX INT8" not in table.index and "p50_ms" not in table
    assert table["train_cost"].isna().all()
    assert utils.performance_table(home / "nowhere", record).empty


def test_damaged_predictions_are_explained_and_kept(home):
    path = home / "exports" / "predictions" / "int8_test.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        utils.CourseError,
        match="int8_test.npz is damaged .* delete it, then run the notebook",
    ):
        utils.performance_table(home, RECORD)
    assert path.stat().st_size == 200


def test_intervals_are_read_in_one_column():
    table = pd.DataFrame(
        {
            "x": [0.5, 0.25],
            "x_low": [0.25, 0.125],
            "x_high": [0.75, 0.5],
            "speed": [12345.6, np.nan],
            "ms": [0.12345, 1.0],
            "n": [3, 4],
        }
    )
    shown = evidence.with_intervals(table)
    assert shown["x"].tolist() == ["0.500 [0.250, 0.750]", "0.250 [0.125, 0.500]"]
    assert shown["speed"].tolist() == ["12,346", ""]
    assert shown["ms"].tolist() == ["0.123", "1"] and "x_low" not in shown


def test_paired_steps_agree_with_the_binomial_test_and_holm(home):
    table = utils.paired_tests(home)
    first, second = (
        utils.stored_predictions(home, name)
        for name in ("baseline_test", "optimized_test")
    )
    right = [answer.argmax(1) == labels for answer, labels in (first, second)]
    won, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    step = table.loc["baseline → optimised"]
    assert (step["won"], step["lost"]) == (won, lost) and step["says"] == "better"
    assert step["p_value"] == pytest.approx(binomtest(won, won + lost).pvalue)
    same = table.loc["ONNX float32 → ONNX INT8"]
    assert same["low"] < 0 == same["difference"] < same["high"]
    assert table.loc["optimised → retrained", "says"] == "no difference shown"
    smallest = table["p_value"].idxmin()
    assert table.loc[smallest, "p_holm"] == pytest.approx(
        min(1, len(table) * table.loc[smallest, "p_value"])
    )
    assert (table["p_holm"] >= table["p_value"]).all()


def test_answers_to_other_images_are_not_compared(home):
    probabilities, labels = utils.stored_predictions(home, "retrained_test")
    np.savez(
        home / "exports" / "predictions" / "retrained_test.npz",
        probabilities=probabilities,
        labels=labels[::-1],
    )
    assert "optimised → retrained" not in utils.paired_tests(home).index
    assert "retrained" not in utils.lost_accuracy(home)


def test_lost_accuracy_is_the_far_end_of_the_interval(home):
    lost, steps = utils.lost_accuracy(home), utils.paired_tests(home)
    assert lost["optimised"] == 0 and lost["baseline"] > 0.1
    assert lost["retrained"] == pytest.approx(
        -steps.loc["optimised → retrained", "low"]
    )


def test_the_same_answers_to_few_images_prove_little(home):
    """Without one differing answer, Tango's interval ends at z² / (n + z²)."""
    z = norm.ppf(0.975)
    for n in (300, 150):
        for file in utils.VARIANTS.values():
            if stored := utils.stored_predictions(home, file):
                path = home / "exports" / "predictions" / f"{file}.npz"
                np.savez(path, probabilities=stored[0][:n], labels=stored[1][:n])
        assert utils.lost_accuracy(home)["ONNX INT8"] == pytest.approx(
            z**2 / (n + z**2), abs=1e-6
        )


def test_best_is_named_only_where_it_is_shown(home):
    best, near = utils.not_shown_worse(home)
    assert (
        best == "optimised"
        and {"ONNX INT8", "retrained"} <= set(near)
        and "baseline" not in near
    )
    for file in ("onnx_test", "int8_test", "retrained_test"):
        (home / "exports" / "predictions" / f"{file}.npz").unlink()
    assert utils.not_shown_worse(home) == ("optimised", [])


def test_serving_figures_are_those_of_the_median_call(tmp_path):
    (tmp_path / "model").write_bytes(bytes(2**20))
    backend = utils.Backend(
        "optimised", None, "cpu", "float32", "PyTorch", tmp_path / "model"
    )
    rows = [
        {"backend": "optimised", "batch": 1, "round": 0, "ms": [2.0] * 9 + [500.0]},
        {"backend": "optimised", "batch": 32, "round": 0, "ms": [16.0, 16.0, 900.0]},
    ]
    row = utils.serving_table(rows, [backend], price=3.6).loc["optimised"]
    assert row["images_s"] == pytest.approx(2000) and row[
        "cost_per_million"
    ] == pytest.approx(2.0)
    assert row["size_mb"] == 1 and "cost_per_million" not in utils.serving_table(
        rows, [backend], price=None
    )


# --- limits


def test_limits_quote_the_record():
    text = " ".join(fact for fact, _ in limitations(RECORD))
    for figure in (
        "200 test images",
        "[0.850, 0.940]",
        "recall NORMAL before retraining may be as low as 0.610",
        "1 of 2 detectors",
        "25 points too good",
        "fall by 6.0 points",
        "more than 2.6",
        "seed (42)",
    ):
        assert figure in text
    assert "drawn" not in text
    facts = limitations({"meta": {"source": "sample"}})
    assert facts[0][0] == "All images are drawn."


# --- the checklist


@pytest.fixture
def items(home):
    """items(**changes): the checklist of that record by item."""

    def read(**changes):
        return checklist(home, RECORD | changes).set_index("item")

    return read


def test_checklist_has_every_item_of_the_course(items, home):
    sizes = items().groupby("part", sort=False).size().to_dict()
    assert sizes == {"Code": 11, "Report": 8, "Hand-in": 5}
    assert set(items()["passed"]) == {True, False, None}
    assert items().loc["source code: eight notebooks", "passed"] is True
    item = items().loc["environment documented"]
    assert item["passed"] is False and "environment.txt is missing" in item["evidence"]
    (home / "exports" / "environment.txt").write_text("torch")
    assert items().loc["environment documented", "passed"] is True


def test_checklist_quotes_the_criteria(items):
    names = ("baseline test accuracy", "balanced accuracy above the trivial classifier")
    rows = [
        {"name": names[0], "value": 0.66, "target": "> 0.7", "passed": False},
        {"name": names[1], "value": 0.6, "target": "> 0.5", "passed": True},
    ]
    item = items(criteria={"theme2": rows}).loc["baseline above 70 % accuracy"]
    assert item["passed"] is False and "0.66 (target > 0.7)" in item["evidence"]
    item = items().loc["baseline above 70 % accuracy", "evidence"]
    assert "run notebooks/theme2_baseline_model.ipynb" in item


def test_checklist_reads_the_report(items, home):
    themes = [f"theme{n}" for n in range(1, 9)]
    keys = ["summary", "introduction", *themes, "conclusion"]
    sections = [{"key": key, "placeholders": 2 * (key == "theme8")} for key in keys]
    utils.write_json(home / "report" / "report.json", {"sections": sections})
    passed = items()["passed"]
    assert passed["executive summary"] is passed["themes 1 to 7"] is True
    assert passed["theme 8"] is passed["references"] is passed["report as PDF"] is False
    assert "2 placeholders" in items().loc["theme 8", "evidence"]


# --- the ML Test Score


READINGS = {
    0: "research project",
    1: "serious holes",
    2: "first pass",
    3: "reasonably tested",
    4: "mission-critical",
    7: "exceptional",
}


@pytest.mark.parametrize("points, words", READINGS.items())
def test_the_weakest_section_is_the_score(points, words):
    scores = {section: (1,) * 7 for section in evidence.ML_TEST_SCORE}
    scores["monitoring"] = (1,) * points + (0,) * (7 - points)
    table, final, says = evidence.maturity(RECORD, scores)
    assert (final, len(table)) == (points, 28) and words in says


def test_ml_test_score_refuses_other_numbers():
    scores = {section: (0,) * 7 for section in evidence.ML_TEST_SCORE}
    for wrong in ((0,) * 6, (2,) + (0,) * 6):
        with pytest.raises(
            utils.CourseError, match="'model' needs 7 scores of 0, 0.5 or 1"
        ):
            evidence.maturity(RECORD, scores | {"model": wrong})


def test_evidence_of_maturity_names_tests_that_exist():
    tests = {test for tests in evidence.ML_TEST_SCORE.values() for test in tests}
    assert set(evidence.maturity_evidence(RECORD)) <= tests and len(tests) == 28
    told = evidence.maturity_evidence({"theme4": {}})
    assert list(told) == ["training and serving do not differ"]


# --- figures


def test_figures_are_drawn_of_anything(home):
    table = utils.performance_table(home, RECORD, serving(), resamples=100)
    table["front"] = utils.pareto(table, low=["p50_ms"], high=["accuracy"])
    drifts = {"kind": ["none", "scanner", "blur"], "before": 0.9, "n": 100}
    drifts |= {"after": [0.9, 1.0, 0.8]}
    drifts |= {"says": ["no difference shown", "better", "worse"]}
    drawn = [
        figures.tradeoff(table, "t"),
        figures.tradeoff(table.drop(columns="cost_per_million"), "no price"),
        figures.robustness(pd.DataFrame(drifts), "scanner", "t"),
    ]
    for figure in drawn:
        figure.canvas.draw()
        assert all(axis.get_xlabel() for axis in figure.axes)
    legend = [text.get_text() for text in drawn[2].axes[0].get_legend().get_texts()]
    assert {"better: 1", "worse: 1", "no difference shown: 1"} <= set(legend)


# --- the model card


def test_model_card_quotes_the_record_and_warns(home):
    text = card.write(home, RECORD).read_text(encoding="utf-8")
    assert (
        home / "exports" / "MODEL_CARD.md"
    ).exists() and "Not a medical device" in text
    assert len(re.findall(r"^## ", text, flags=re.MULTILINE)) == 9
    for words in (
        "0.900 [0.850, 0.940]",
        "recall NORMAL",
        "as much as 5 false alarms",
        "0.700 [0.600, 0.750] | 0.880",
        "exports/models/def.onnx",
        "the retrained model",
        "off by 0.100 on average",
    ):
        assert words in text
    probabilities, labels = utils.stored_predictions(home, "optimized_test")
    recall = (probabilities[labels == 1, 1] >= 0.2).mean()
    assert f"chosen on `val`: 0.20 | {recall:.3f} [" in text


def test_model_card_of_roofs_and_of_a_beginning(home):
    record = {
        "meta": RECORD["meta"] | {"dataset": "solar", "source": "sample"},
        "theme1": RECORD["theme1"],
    }
    text = card.card(home, record)
    assert "medical" not in text and "Sample data" in text and "roofs" in text
    assert (
        text.count("has not run") == 3 and "notebooks/theme3_optimization.ipynb" in text
    )


@pytest.mark.parametrize("held", [b"no model", b"", b"\x08\x08"])
def test_model_card_says_that_the_file_in_service_is_damaged(home, held):
    """Bytes that are no model, none at all, and a model that says nothing of itself."""
    (home / "exports" / "model.onnx").write_bytes(held)
    assert (
        "; the file in service is damaged or not this course's: run theme 4 again."
        in card.card(home, RECORD)
    )


# --- models


@pytest.fixture
def served(data):
    """A home with two checkpoints, one exported and one "retrained" model, and the
    record that names them.
    """
    course, models = data.course, {}
    store_checkpoint(course, data, "baseline", "baseline.pth")
    for when, scale in (("before", 1.0), ("after", 3.0)):
        path = store_checkpoint(course, data, name="best_model.pth", temperature=scale)
        models[when] = utils.export_onnx(course, path).stem
    return data, {
        "theme4": {"models": {"fp32": models["before"], "int8": "0" * 16}},
        "theme7": {"models": models},
    }


@pytest.mark.course
def test_variants_that_exist_are_served_and_answer_like_their_files(served):
    data, record = served
    pixels = np.array(data.pixels[data.where("gate")])
    backends = utils.summary_backends(data.course, record)
    assert [backend.name for backend in backends] == [
        "baseline",
        "optimised",
        "ONNX float32",
        "retrained",
    ]
    answers = {backend.name: backend.run(pixels) for backend in backends}
    for name, when in (("ONNX float32", "before"), ("retrained", "after")):
        path = (
            data.course.exports / "models" / f"{record['theme7']['models'][when]}.onnx"
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert (
            np.abs(
                answers[name] - session.run(["probabilities"], {"pixels": pixels})[0]
            ).max()
            < 1e-6
        )
    # the checkpoint is the later one
    assert np.abs(answers["optimised"] - answers["retrained"]).max() < 1e-5
    assert utils.summary_backends(data.course, {})[-1].name == "optimised"
