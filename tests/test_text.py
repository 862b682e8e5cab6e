"""What a record holds, as people read it."""

import pytest

from tools.shared import text


@pytest.mark.parametrize(
    "value, said",
    [
        (0.8333333333, "0.833"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (1234.5, "1\u202f234"),
        (0, "0"),
        (0.0, "0"),
        (6.85e-07, "6.9 · 10⁻⁷"),
        (123.4, "123"),
        (-0.0301, "-0.0301"),
        (17, "17"),
        (1234567, "1\u202f234\u202f567"),
        (float("inf"), "inf"),
        (True, "yes"),
        (False, "no"),
        ("CPUExecutionProvider", "CPUExecutionProvider"),
        (None, "None"),
    ],
)
def test_values_are_short(value, said):
    assert text.shown(value) == said


@pytest.mark.parametrize(
    "target, said",
    [
        (">= 0.7", "≥ 0.700"),
        ("<= 1e-05", "≤ 1.0 · 10⁻⁵"),
        ("> 3", "> 3"),
        ("== 0", "0"),
        ("== True", "yes"),
        ("== CUDAExecutionProvider", "CUDAExecutionProvider"),
        ("", ""),
    ],
)
def test_targets_are_read_as_sentences(target, said):
    assert text.target(target).strip() == said


@pytest.mark.parametrize(
    "seconds, said",
    [(0.04, "0.0 s"), (10.5, "10.5 s"), (59.94, "59.9 s"), (200, "3 min 20 s")],
)
def test_durations(seconds, said):
    assert text.duration(seconds) == said


def test_words_of_another_language():
    assert text.shown(True, "oui", "non") == "oui"
    assert text.target("== False", "oui", "non") == "non"
