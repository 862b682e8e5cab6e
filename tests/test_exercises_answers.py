"""What students write: each gets the hint that fits, and other ways to be right are
right. The mistakes that an exercise lists are in test_exercises_notebooks.py.
"""

import ast

import numpy as np
import pytest
import torch
from support.books import EXERCISES, WRITTEN, defined
from torch import nn
from torch.nn import functional as F

import exercises
import utils
from exercises import Build


def written(text: str):
    """The one function or class of a student's text."""
    libraries = {"np": np, "torch": torch, "nn": nn, "F": F, "softmax": utils.softmax}
    return defined(text, libraries)[ast.parse(text).body[-1].name]


SPLITS = {
    "one True or False per image": (
        """
def split(groups, share, seed):
    return np.random.default_rng(seed).choice(len(groups), int(share * len(groups)), replace=False)"""
    ),
    "changes `groups`": (
        """
def split(groups, share, seed):
    np.random.default_rng(seed).shuffle(groups)
    return np.isin(groups, np.unique(groups)[: int(share * 60)])"""
    ),
    "same seed gave two": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(groups, names[np.random.random(len(names)) < share])"""
    ),
    "stands on both sides": (
        """
def split(groups, share, seed):
    order = np.random.default_rng(seed).permutation(len(groups))
    return order < share * len(groups)"""
    ),
    "Every seed gives the same": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(groups, names[: int(share * len(names))])"""
    ),
    "Which side does True": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return ~np.isin(groups, names[np.random.default_rng(seed).random(len(names)) < share])"""
    ),
    "another share": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(groups, names[np.random.default_rng(seed).random(len(names)) < 0.2])"""
    ),
    "raises ValueError": (
        """
def split(groups, share, seed):
    return np.isin(groups, np.random.default_rng(seed).choice(np.unique(groups), 1000, replace=False))"""
    ),
}
LOSS = "loss = F.cross_entropy(model(images), labels); "
STEPS = {
    "Return the loss": (
        f"def t(model, images, labels, optimizer): {LOSS}loss.backward();"
        " optimizer.step()"
    ),
    "A softmax stands before": (
        """
def t(model, images, labels, optimizer):
    loss = F.cross_entropy(torch.softmax(model(images), dim=1), labels)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss.item()"""
    ),
    "the loss after the step": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.backward(); optimizer.step()
    return F.cross_entropy(model(images), labels).item()"""
    ),
    "a mean or a sum": (
        """
def t(model, images, labels, optimizer):
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss.item()"""
    ),
    "Which call moves them": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}loss.backward(); optimizer.zero_grad(); optimizer.step()
    return loss.item()"""
    ),
    "is each call made once": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.backward(); optimizer.step(); optimizer.step()
    return loss.item()"""
    ),
    "whose gradient is still there": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}loss.backward(); optimizer.step()
    return loss.item()"""
    ),
    "raises RuntimeError: element 0 of tensors does not require grad": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.detach().backward(); optimizer.step()
    return loss.item()"""
    ),
}
BLOCK = """
class B(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if stride == 1 and before == after else nn.Conv2d(before, after, 1, stride)

    def branch(self, x):
        return self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))
"""
LAST = "return torch.relu(self.branch(x) + self.shortcut(x))"


def block(old: str, new: str) -> str:
    assert BLOCK.count(old) >= 1
    return BLOCK.replace(old, new)


BLOCKS = {
    "put side by side": block(
        LAST, "return torch.relu(torch.cat([self.branch(x), self.shortcut(x)], 1))"
    ),
    "Is a border lost": block(", padding=1", ""),
    "has two 3 x 3 convolutions": (
        block("self.conv2(torch", "(torch").replace(
            "        self.conv2 = nn.Conv2d(after, after, 3, padding=1)\n", ""
        )
    ),
    "is followed by its normalisation": (
        block("self.norm2(", "(").replace(
            "        self.norm2 = nn.BatchNorm2d(after)\n", ""
        )
    ),
    "depend on both": block(
        "torch.relu(self.norm1(self.conv1(x)))", "torch.relu(self.conv1(x))"
    ),
    "negative in places": block(
        "torch.relu(self.norm1(self.conv1(x)))", "self.norm1(self.conv1(x))"
    ),
    "no more than one": block(
        "torch.relu(self.norm1(self.conv1(x)))", "self.norm1(torch.relu(self.conv1(x)))"
    ),
    "which the shortcut still needs": block(
        LAST, "x += self.branch(x); return torch.relu(x)"
    ),
    "Is x itself added": block(LAST, "return torch.relu(self.branch(x))"),
    "without a layer between": block(
        "nn.Identity() if stride == 1 and before == after else ", ""
    ),
    "ReLU stand on the branch": block(
        LAST, "return torch.relu(self.branch(x)) + self.shortcut(x)"
    ),
    "what comes after the sum": block(LAST, "return self.branch(x) + self.shortcut(x)"),
    "can two shapes be added": block(LAST, "return torch.relu(self.branch(x) + x)"),
    "takes the stride": block("3, stride, padding", "3, 1, padding"),
    "needs a layer of its own": block(
        LAST,
        "return torch.relu(self.branch(x) + (self.shortcut(x) if x.shape[1] == "
        "self.conv2.out_channels else 0))",
    ),
    "rounds the other way": block(
        "nn.Conv2d(before, after, 1, stride)",
        "nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1))",
    ),
    "Hand over the class": "def B(before, after, stride): return nn.Identity()",
}
ODD = {
    "is something divided by zero": (
        "theme1/balanced_accuracy",
        "def b(counts): return (counts.diagonal() / counts.sum(1, dtype=float)).mean()",
    ),
    "Three steps": (
        "theme4/quantize",
        "def q(x, low, high): return np.round(x), (high - low) / 255",
    ),
    "at least as good in all three": (
        "theme4/pareto",
        "def f(a, b, c): return np.ones(len(a), bool)",
    ),
}
TYPICAL = {
    "theme1/split_by_patient": SPLITS,
    "theme2/training_step": STEPS,
    "theme3/residual_block": BLOCKS,
}
WRONG = [
    (name, hint, text) for name, all in TYPICAL.items() for hint, text in all.items()
]
WRONG += [(name, hint, text) for hint, (name, text) in ODD.items()]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "hint", "text"), WRONG)
def test_what_students_write_gets_the_hint_that_fits(name, hint, text):
    verdict = exercises.judge(name, written(text))
    assert not verdict.right and hint in verdict.says, verdict.says


@pytest.mark.parametrize(
    "name", [n for n in WRITTEN if isinstance(EXERCISES[n], Build)]
)
def test_every_property_fails_for_some_answer(name):
    if name not in TYPICAL:
        return
    texts = TYPICAL[name].values()
    said = [exercises.judge(name, written(text)).says for text in texts]
    for _, hint in EXERCISES[name].properties:
        known = any(says.endswith(hint) for says in said)
        # of a second step that is as good as the first: a fault nobody has made yet
        assert known or hint.startswith("The first step is right, the second is not")


STEP_AS_TENSOR = f"""
def t(model, images, labels, optimizer):
    {LOSS}loss.backward(); optimizer.step(); optimizer.zero_grad()
    return loss"""
STEP_AS_ARRAY = f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss.detach().numpy()"""
SPLIT_BY_ORDER = """
def split(groups, share, seed):
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    return np.isin(groups, names[: round(share * len(names))])"""
CHOICE_IN_A_LOOP = """
def choose(cost, p95_ms, change, margin, slo_ms):
    best = -1
    for place, (price, latency, (_, low, _)) in enumerate(zip(cost, p95_ms, change)):
        if -low <= margin and latency <= slo_ms and (best < 0 or price < cost[best]):
            best = place
    return best"""
P_VALUE_BY_APPENDING = """
def p(x, y, statistic, permutations, rng):
    rows, values = np.vstack([x, y]), [statistic(x, y)]
    for _ in range(permutations):
        order = rng.permutation(len(rows))
        values.append(statistic(rows[order[: len(x)]], rows[order[len(x) :]]))
    return np.mean(np.array(values) >= values[0])"""
RIGHT = [
    ("theme2/training_step", STEP_AS_TENSOR),
    ("theme2/training_step", STEP_AS_ARRAY),
    ("theme2/class_weights", utils.class_weights),
    ("theme1/split_by_patient", SPLIT_BY_ORDER),
    ("theme3/residual_block", BLOCK),
    ("theme3/residual_block", BLOCK.replace("BatchNorm2d(", "GroupNorm(2, ")),
    ("theme3/residual_block", type(utils.OptimizedCNN().features[-1])),
    ("theme8/choice", CHOICE_IN_A_LOOP),
    ("theme6/p_value", P_VALUE_BY_APPENDING),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_other_ways_to_be_right_are_right(name, answer):
    """Whoever solves it differently is not told to do it as we did."""
    answer = written(answer) if isinstance(answer, str) else answer
    assert exercises.judge(name, answer).right


@pytest.mark.parametrize(
    ("z", "hint"),
    [(1.645, None), (1.64, "One difference an image"), (1.96, "two-sided")],
)
def test_a_quantile_from_a_table_will_do(z, hint):
    def by_hand(old_right, new_right, margin):
        change = new_right.astype(float) - old_right
        low = change.mean() - z * change.std(ddof=1) / np.sqrt(len(change))
        return low, low > -margin

    verdict = exercises.judge("theme7/not_worse", by_hand)
    assert (
        verdict.right if hint is None else not verdict.right and hint in verdict.says
    ), verdict.says


# --- the permutation test: properties, each with the answer that lacks it


def shuffled_p(
    x,
    y,
    statistic,
    permutations,
    rng,
    *,
    deal=None,
    size=None,
    count=None,
    equal=np.greater_equal,
):
    """A permutation test with one thing to get wrong."""
    observed, pooled, size = statistic(x, y), np.concatenate([x, y]), size or len(x)
    values = []
    for _ in range(permutations):
        rows = deal(pooled, rng) if deal else pooled[rng.permutation(len(pooled))]
        values.append(statistic(rows[:size], rows[size:]))
    reached = int(equal(values, observed).sum())
    return float(
        count(reached, permutations) if count else (reached + 1) / (permutations + 1)
    )


def with_other(**wrong):
    return lambda *given: shuffled_p(*given, **wrong)


def shuffles_in_place(x, y, statistic, permutations, rng):
    p_value = shuffled_p(x, y, statistic, permutations, rng)
    rng.shuffle(x)
    return p_value


def forgets_the_truth(x, y, statistic, permutations, rng):
    shuffled = rng.permutation(np.concatenate([x, y]))
    return shuffled_p(
        shuffled[: len(x)], shuffled[len(x) :], statistic, permutations, rng
    )


def one_shuffle_too_few(x, y, statistic, permutations, rng):
    return shuffled_p(x, y, statistic, permutations - 2, rng)


def window_first(x, y, statistic, permutations, rng):
    return shuffled_p(x, y, statistic, permutations, rng, size=len(y))


def cyclic(pooled, rng):
    return np.roll(pooled, rng.integers(len(pooled)), axis=0)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (5, "does your function return a float"),
        (lambda *given: None, "does your function return a float"),
        (lambda *given: 7.0, "does your function return a float"),
        (forgets_the_truth, "as they came was never asked for"),
        (with_other(deal=lambda pooled, rng: pooled), "the same each time"),
        (
            with_other(
                deal=lambda pooled, rng: np.random.default_rng(0).permutation(pooled)
            ),
            "or start again",
        ),
        (window_first, "where do you cut"),
        (
            with_other(
                deal=lambda pooled, rng: pooled[
                    rng.integers(0, len(pooled), len(pooled))
                ]
            ),
            "a bootstrap",
        ),
        (
            with_other(deal=lambda pooled, rng: rng.permuted(pooled, axis=0)),
            "tear rows apart",
        ),
        (shuffles_in_place, "shuffle a copy"),
        (one_shuffle_too_few, "Count your shuffles"),
        (with_other(equal=np.less_equal), "nothing in common get a large p-value"),
        (with_other(count=lambda b, m: b / m), "can be 0"),
        (with_other(count=lambda b, m: b / (m + 1)), "can be 0"),
        (
            with_other(count=lambda b, m: min((b + 1) / m, 1)),
            "numerator and a denominator",
        ),
        (with_other(equal=np.greater), "Does an equal value reach the truth"),
        (with_other(deal=cyclic), "Does each split have the same chance"),
    ],
)
def test_a_permutation_test_that_lacks_something_hears_what(wrong, hint):
    verdict = exercises.judge("theme6/p_value", wrong)
    assert not verdict.right and hint in verdict.says, verdict.says


def counts_anew(cost, p95_ms, change, margin, slo_ms):
    """The place among those that are left, not among all."""
    rows = zip(cost, p95_ms, change, strict=True)
    left = [p for p, late, row in rows if row[1] >= -margin and late <= slo_ms]
    return left.index(min(left)) if left else -1


def test_a_place_among_those_that_are_left():
    verdict = exercises.judge("theme8/choice", counts_anew)
    assert verdict.says.endswith("Which place has it among all?")


@pytest.mark.parametrize("kind", [float, np.asarray, torch.tensor])
def test_a_p_value_may_be_any_kind_of_number(kind):
    answer = lambda *given: kind(shuffled_p(*given))  # noqa: E731
    assert exercises.judge("theme6/p_value", answer).right
