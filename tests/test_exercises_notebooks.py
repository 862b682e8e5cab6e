"""Every exercise of the eight notebooks: asked for once, its solution passes, each
mistake meets its own hint, nothing gives itself away.
"""

import re

import numpy as np
import pytest
import torch
from support.books import (
    EXERCISES,
    PREDICTED,
    WRITTEN,
    answer_of,
    asked,
    code,
    solution,
)

import exercises
from exercises import Build, Implement, Mistake

IMPLEMENTED = [name for name in WRITTEN if isinstance(EXERCISES[name], Implement)]
MISTAKES = [
    (name, number)
    for name in IMPLEMENTED
    for number, mistake in enumerate(EXERCISES[name].mistakes)
    if isinstance(mistake, Mistake)
]


@pytest.mark.parametrize("theme", [f"theme{n}" for n in range(1, 9)])
def test_a_theme_asks_for_each_of_its_exercises_once(theme):
    source = "\n".join(code(theme))
    names = re.findall(r'exercises\.(?:check|predict)\(\s*"(.+?)"', source)
    assert sorted(names) == sorted(n for n in EXERCISES if n.startswith(theme))
    assert 2 <= len(names) <= 5 and "\nimport exercises\n" in source


@pytest.mark.parametrize("name", EXERCISES)
def test_statement_cell_and_folded_solution(name):
    cell = asked(name)
    kind = "implement|build" if name in WRITTEN else "predict|measure"
    assert re.search(
        rf"\*\*Exercise \d \(({kind})(, optional)?\)\.\*\*", cell.statement
    )
    assert "# exercise: " in cell.source
    # numbers are evidence: they are shown below a valid prediction only
    assert "if MY_PREDICTION:" not in cell.source
    text = cell.folded.source
    assert cell.folded.cell_type == "markdown"
    assert cell.folded.metadata == {"tags": ["solution"]}
    assert text.startswith("<details><summary>Solution</summary>\n\n")
    assert text.endswith("\n\n</details>")
    assert text.count("```python") == (name in WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_solution_is_right_and_the_cell_as_it_stands_gets_a_hint(name):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    verdict = exercises.judge(name, solution(name))
    assert verdict.right, verdict.says
    default = exercises.judge(name, answer_of(asked(name).source, name))
    assert not default.right and "your code raises" not in default.says
    assert default.says.endswith(("?", ".", "!"))
    # the random numbers of the notebook go on where they stood
    after = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1])


@pytest.mark.parametrize(("name", "number"), MISTAKES)
def test_each_mistake_meets_its_own_hint(name, number):
    mistake = EXERCISES[name].mistakes[number]
    verdict = exercises.judge(name, mistake.wrong)
    assert not verdict.right and verdict.says.endswith(mistake.hint), verdict.says


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("value", [None, "0.5", float("nan"), np.zeros((3, 2))])
def test_nonsense_becomes_a_sentence(name, value):
    verdict = exercises.judge(name, lambda *given: value)
    assert not verdict.right and len(verdict.says) > 30


@pytest.mark.parametrize("name", PREDICTED)
def test_a_prediction_is_asked_for_first_and_every_wrong_one_has_its_hint(name, capsys):
    assert re.search(r"MY_PREDICTION\b.* = .*\bNone\b", asked(name).source)
    exercises.predict(name, None, 1234.5, "evidence: 1234.5")
    said = capsys.readouterr().out
    assert said.startswith("✗ not yet: your prediction first: ") and "1234" not in said
    exercise = EXERCISES[name]
    if exercise.choices == (float,):
        assert set(exercise.why) == {"too low", "too high"}
        assert exercise.judge(1.0, 1.0).right and not exercise.judge(3.0, 1.0).right
        assert exercise.judge(1e9, 1234.5).says.endswith(exercise.why["too high"])
        return
    for came in exercise.choices:
        for said in exercise.choices:
            verdict = exercise.judge(said, came)
            assert verdict.right == (said == came)
            hint = exercise.why.get((said, came)) or exercise.why[said]
            assert verdict.right or verdict.says.endswith(hint)


@pytest.mark.parametrize("name", EXERCISES)
def test_hints_hold_no_code_and_no_number_that_could_be_copied(name):
    exercise = EXERCISES[name]
    if isinstance(exercise, Implement):
        hints = [exercise.hint, *(mistake.hint for mistake in exercise.mistakes)]
    elif isinstance(exercise, Build):
        hints = [hint for _, hint in exercise.properties]
    else:
        hints = list(exercise.why.values())
    code = r"\bnp\.|scipy|lambda|return \w+\b.*[\[(]|=="
    code += r"|\d\.\d" if name > "theme5" else ""
    assert not [hint for hint in hints if re.search(code, hint)]
    assert all(len(hint) > 25 for hint in hints)


@pytest.mark.parametrize("name", IMPLEMENTED)
def test_no_verdict_prints_the_right_number(name):
    exercise = EXERCISES[name]
    rights = [exercise.right(*given) for given in exercise.cases.values()]
    firsts = [np.ravel(np.asarray(right, dtype=object))[0] for right in rights]
    numbers = [float(n) for n in firsts if not np.ndim(n) and n not in (0, 1)]
    for mistake in exercise.mistakes:
        says = exercises.judge(name, getattr(mistake, "wrong", lambda *_: -1.0)).says
        assert not [n for n in numbers if f"{n:.3f}" in says]
