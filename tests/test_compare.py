"""The verdict on a figure: identical, within tolerance, a ratio of times, a fault."""

import pytest

from kit.record import HEADLINE_TAGS
from tools.grading import compare, reexecute


def row_of(name, theirs, ours, same=False, by="re-execution", images=None) -> dict:
    return compare.compare(
        {name: theirs}, {name: ours}, [name], by, same, images or {}, {}
    )[0]


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "same", "expected"),
    [
        ("baseline_test_accuracy", 0.8, 0.8, True, "identical"),
        ("baseline_test_accuracy", 0.8, 0.81, True, "differs"),
        ("baseline_test_accuracy", 0.8, 0.81, False, "within tolerance"),
        ("baseline_test_accuracy", 0.8, 0.9, False, "differs"),
        ("baseline_test_accuracy", None, 0.9, False, "not submitted"),
        ("baseline_test_accuracy", 0.8, None, False, "not reproduced"),
        ("baseline_test_accuracy", "0.8", 0.8, False, "differs"),
        ("baseline_test_accuracy", float("nan"), 0.8, False, "differs"),
        ("train_seconds_baseline", 10.0, 90.0, True, "ratio"),
        ("train_seconds_baseline", 0, 90.0, True, "differs"),
        (
            "provider",
            "CPUExecutionProvider",
            "CUDAExecutionProvider",
            False,
            "within tolerance",
        ),
        ("provider", "CPUExecutionProvider", "CUDAExecutionProvider", True, "differs"),
        ("gate_passed", True, False, False, "differs"),
        ("gate_passed", 1, True, True, "differs"),
        ("alerts_raised", 7, 8, True, "within tolerance"),
        ("alerts_raised", 7, 12, True, "differs"),
    ],
)
def test_verdict_of_a_figure(name, theirs, ours, same, expected):
    assert row_of(name, theirs, ours, same)["verdict"] == expected


def test_tolerance_is_never_below_two_images():
    assert (
        row_of(
            "baseline_test_accuracy", 0.50, 0.59, images={"baseline_test_accuracy": 22}
        )["tolerance"]
        > 2 / 22
    )
    scored = row_of(
        "baseline_test_accuracy",
        0.5,
        0.51,
        by="weights",
        images={"baseline_test_accuracy": 5000},
    )
    assert scored["verdict"] == "differs" and scored["tolerance"] == 0.005
    record = {
        "theme2": {"test": {"accuracy": {"n": 22}}},
        "theme3": [],
        "theme4": {"int8_paired": {"n": 30}},
    }
    counts = compare.number_of_images(record)
    assert counts == {"baseline_test_accuracy": 22, "int8_accuracy_drop": 30}


def test_what_is_a_finding():
    def verdicts(*arguments, **options):
        row = row_of(*arguments, **options)
        return [
            finding.verdict
            for finding in compare.findings_of([row], options.get("same", False))
        ]

    # slow, never wrong
    assert verdicts("train_seconds_baseline", 10.0, 90.0) == ["note"]
    assert verdicts("train_seconds_baseline", 10.0, 12.0) == []
    # no clock says that twice
    assert verdicts("train_seconds_baseline", 10.0, 10.0) == ["fail"]
    assert verdicts("gate_passed", True, False) == ["human"]
    assert verdicts("gate_passed", True, False, same=True) == ["fail"]
    assert verdicts("baseline_test_accuracy", 0.8, 0.95) == ["fail"]
    assert verdicts("baseline_test_accuracy", 0.8, None) == ["fail"]


def test_figures_that_must_move():
    theirs = {
        "baseline_test_accuracy": 0.8125,
        "optimized_test_accuracy": 1.0,
        "int8_accuracy_drop": 0.25,
        "provider": "cpu",
        "gate_passed": True,
        "loader_speedup": 13.7,
        "alerts_raised": 7,
    }
    assert compare.unmoved(theirs, dict(theirs), theirs) == [
        "baseline_test_accuracy",
        "loader_speedup",
    ]
    assert compare.unmoved(theirs, theirs | {"loader_speedup": 13.7000001}, theirs) == [
        "baseline_test_accuracy"
    ]
    assert compare.unmoved(theirs, {}, theirs) == []


def test_every_headline_figure_has_its_tolerance():
    assert set(compare.TOLERANCES) == set(HEADLINE_TAGS)
    assert all(figure.why for figure in compare.TOLERANCES.values())


def test_machine_of_a_record():
    meta = {
        "hardware": "A, 2 threads",
        "environment": {"torch": "2.15.0", "date": "then", "system": "x"},
    }
    record = {"meta": meta, "theme3": {"on": "A, 2 threads"}}
    assert (
        compare.differences(
            record, "A, 2 threads", {"torch": "2.15.0", "date": "now", "system": "y"}
        )
        == []
    )
    assert compare.differences(record, "A, 2 threads", {"torch": "2.16.0"}) == [
        "torch: 2.15.0 there, 2.16.0 here"
    ]
    assert compare.differences({}, "A", {}) and compare.differences(record, None, {})
    record["theme3"]["on"] = "Tesla T4"  # trained there, opened here for theme 8
    assert compare.differences(record, "A, 2 threads", {}) == [
        "training of theme3: Tesla T4 there, A, 2 threads here"
    ]
    assert reexecute.threads_of({"meta": meta}) == 2
    assert reexecute.threads_of({"meta": {"hardware": 3}}) == 2
    assert reexecute.threads_of({"meta": {"hardware": "A, 1 thread"}}) == 1


def test_figure_that_its_notebook_never_recorded_is_a_fault():
    row = row_of("baseline_test_accuracy", 0.8, None)
    assert row["says"] == compare.NOT_RECORDED
    assert compare.findings_of([row], False)[0].verdict == "fail"


@pytest.mark.parametrize(
    ("name", "difference", "same", "verdict"),
    [
        ("optimized_test", 0.0, True, "pass"),
        ("optimized_test", 0.008, True, "fail"),
        ("optimized_test", 0.008, False, "pass"),  # a GPU's weights, read on a CPU
        ("optimized_test", 0.03, False, "fail"),
        ("int8_test", 0.03, False, "human"),
        ("int8_test", 0.03, True, "fail"),
        ("optimized_test", "other images", False, "fail"),
    ],
)
def test_stored_answers_have_the_tolerance_of_their_machine(
    name, difference, same, verdict
):
    assert reexecute._stored_answers(name, difference, same).verdict == verdict


def test_a_tolerance_without_answers_is_a_question():
    """Else who renames a machine in the record gains it."""
    rows = [
        row_of("baseline_test_accuracy", 0.8, 0.803, by="weights"),
        row_of("optimized_test_accuracy", 0.8, 0.803, by="weights"),
        row_of("clean_accuracy_after", 0.8, 0.803, by="weights"),
        row_of("optimized_test_auroc", 0.8, 0.8, by="weights"),
    ]
    found = list(compare.without_answers(rows, {"baseline_test": 0.0}))
    assert [finding.verdict for finding in found] == ["human"]
    assert found[0].where == "exports/predictions/optimized_test.npz"


@pytest.mark.parametrize(
    ("test", "gate", "asked"),
    [
        ((297, 297), (380, 415), True),  # knows the answers
        ((24, 24), (20, 24), False),  # too few to say
        ((270, 297), (390, 415), False),  # as the course's own networks do
        ((0, 0), (0, 0), False),
    ],
)
def test_better_on_test_images_than_on_unseen_ones(test, gate, asked):
    counts = {"test": test, "gate": gate}
    found = list(reexecute._better_where_it_counts("best_model.pth", counts))
    assert [finding.verdict for finding in found] == ["human"] * asked
