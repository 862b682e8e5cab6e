"""What the exercises of theme 4 are checked on."""

import numpy as np

from exercises import Implement, Mistake, Predict

FAR, NEAR = (
    np.float32([-4, -1, -0.5, 0, 0.7, 2.5, 9]),
    np.float32([-0.25, -0.2, 0, 0.3, 7]),
)
HALVES = np.float32([0.5, 1.5, 2.5, 3.5, 254.5]) / 64
STEP = 255 / 64  # of a scale of 1/64: the zero point is then a whole number


def _quantize(x, low, high) -> tuple[np.ndarray, float]:
    """Asked of ONNX itself: its reference of the operator QuantizeLinear."""
    from onnx.parser import parse_model
    from onnx.reference import ReferenceEvaluator

    model = parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        quantize (float[n] x, float scale, uint8 zero) => (uint8[n] y)
        { y = QuantizeLinear(x, scale, zero) }
    """)
    scale = np.float32((high - low) / 255)
    zero = np.uint8(round(-low / scale))
    given = {"x": np.asarray(x, np.float32), "scale": scale, "zero": zero}
    return ReferenceEvaluator(model).run(None, given)[0], scale


def _eight_bits(values) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _scale(low, high) -> float:
    return (high - low) / 255


def _front(latency, size, accuracy) -> np.ndarray:
    """By definition: backend by backend, is there another one that dominates it?"""

    def dominates(a, b) -> bool:
        never_worse = (
            latency[a] <= latency[b]
            and size[a] <= size[b]
            and accuracy[a] >= accuracy[b]
        )
        return never_worse and (
            latency[a] < latency[b] or size[a] < size[b] or accuracy[a] > accuracy[b]
        )

    every = range(len(latency))
    return np.array([not any(dominates(a, b) for a in every) for b in every])


def _front_of(*columns, all_better=False, strict=True) -> np.ndarray:
    """The front for columns that should all be small, with a rule that may be wrong."""
    table = np.stack(columns, axis=1)
    no_worse, better = table[:, None] <= table[None], table[:, None] < table[None]
    dominated = (
        better.all(2)
        if all_better
        else no_worse.all(2) & (better.any(2) if strict else True)
    )
    return ~dominated.any(axis=0)


def _best_of_each(latency, size, accuracy) -> np.ndarray:
    return (
        (latency == latency.min()) | (size == size.min()) | (accuracy == accuracy.max())
    )


def _best_of_all(latency, size, accuracy) -> np.ndarray:
    return (
        (latency == latency.min()) & (size == size.min()) & (accuracy == accuracy.max())
    )


def _ahead_of_all(latency, size, accuracy) -> np.ndarray:
    columns = np.stack([latency, size, -accuracy], axis=1)
    better = (columns[:, None] < columns[None]).all(2)
    return better.sum(axis=1) == len(latency) - 1


def _twins_out(latency, size, accuracy) -> np.ndarray:
    columns = np.stack([latency, size, -accuracy], axis=1)
    no_worse = (columns[:, None] <= columns[None]).all(2)
    np.fill_diagonal(no_worse, False)
    return ~no_worse.any(axis=0)


def _front_cases() -> dict:
    rng = np.random.default_rng(4)
    return {
        "slow, quick, and quick but wrong": (
            np.array([3.0, 1.0, 1.0]),
            np.array([2.0, 2.0, 2.0]),
            np.array([0.9, 0.9, 0.8]),
        ),
        "one that is best at nothing": (
            np.array([1.0, 3.0, 9.0, 2.0]),
            np.array([9.0, 1.0, 3.0, 2.0]),
            np.array([0.8, 0.7, 0.9, 0.85]),
        ),
        "twins": (
            np.array([1.0, 1.0, 2.0]),
            np.array([2.0, 2.0, 1.0]),
            np.array([0.9, 0.9, 0.9]),
        ),
        "alone": (np.array([5.0]), np.array([5.0]), np.array([0.5])),
        "twelve at random": (
            rng.integers(1, 9, 12) / 2,
            rng.integers(1, 9, 12) / 2,
            rng.integers(80, 95, 12) / 100,
        ),
    }


EXERCISES = {
    "idle": Predict(
        (float,),
        {
            "too low": (
                "Who pays for the time in which no image arrives? First ask how many"
                " hours a million images take."
            ),
            "too high": (
                "How many hours do a million images take, at so many an hour? Then"
                " multiply by the price."
            ),
        },
        factor=1.5,
    ),
    "calibration": Predict(
        ("doubles", "does not double"),
        {
            "doubles": (
                "One image already has pixels from dark to bright, and so many"
                " activations that their range is nearly covered. And what of the loss"
                " comes from the weights, which need no image at all?"
            ),
            "does not double": (
                "What happens to an activation that is larger than any that the one"
                " image showed? Images that differ much from one another need more of"
                " them."
            ),
        },
    ),
    "quantize": Implement(
        {
            "values beyond both ends": (FAR, -1.0, -1.0 + STEP),
            "a range that is mostly positive": (NEAR, -0.25, -0.25 + STEP),
            "a range that starts at zero": (np.float32([-1, 0, 0.4, 3, 5]), 0.0, STEP),
            "values half way between two steps": (HALVES, 0.0, STEP),
            "a zero point between two whole numbers": (
                np.float32([-2, -1.3, 0, 0.0831, 0.6, 2]),
                -1.3,
                0.7,
            ),
        },
        _quantize,
        (
            Mistake(
                lambda x, low, high: (
                    _eight_bits(np.round(x / _scale(low, high))),
                    _scale(low, high),
                ),
                "Everything below zero becomes 0. Which whole number should stand for"
                " the value 0, so that `low` becomes 0?",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(
                        np.round(x / _scale(low, high))
                        + np.round(low / _scale(low, high))
                    ),
                    _scale(low, high),
                ),
                "Your zero point has the wrong sign: what does `low` become in yours?",
            ),
            Mistake(
                lambda x, low, high: (
                    (
                        np.round(x / _scale(low, high))
                        - np.round(low / _scale(low, high))
                    )
                    .astype(np.int64)
                    .astype(np.uint8),
                    _scale(low, high),
                ),
                "A value beyond the range comes out at the other end: 256 does not fit"
                " into 8 bits and becomes 0.",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(
                        np.floor(x / _scale(low, high))
                        - np.round(low / _scale(low, high))
                    ),
                    _scale(low, high),
                ),
                "Always downwards: that is wrong by half a step on average. Whole"
                " numbers near enough?",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(
                        np.trunc(x / _scale(low, high))
                        - np.round(low / _scale(low, high))
                    ),
                    _scale(low, high),
                ),
                "`astype` and `int` cut the digits off, towards zero. Whole numbers"
                " near enough?",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(np.round((x - low) * 256 / (high - low))),
                    (high - low) / 256,
                ),
                "How many steps lie between 0 and 255?",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(
                        np.round(x / _scale(low, high))
                        - np.round(low / _scale(low, high))
                    ),
                    1 / _scale(low, high),
                ),
                "The numbers are right. The scale is the width of one step, yours is"
                " how many steps make up 1.",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(np.round((x - low) / _scale(low, high))),
                    _scale(low, high),
                ),
                "Your zero point is no whole number where `low` lies between two steps:"
                " what comes back for 0.0 then, when a step is multiplied by the scale"
                " again?",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(
                        np.round(x / _scale(low, high))
                        + np.floor(-low / _scale(low, high))
                    ),
                    _scale(low, high),
                ),
                "Your zero point is cut off where `low` lies between two steps. Which"
                " whole number is the nearest?",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(
                        np.floor(x / _scale(low, high) + 0.5)
                        - np.round(low / _scale(low, high))
                    ),
                    _scale(low, high),
                ),
                "Nearly: half way between two steps you always go up, which makes the"
                " mean too large. Which function of NumPy goes to the even one?",
            ),
            Mistake(
                lambda x, low, high: (
                    _eight_bits(np.round(x / _scale(low, high)))
                    - np.round(low / _scale(low, high)),
                    _scale(low, high),
                ),
                "You cut off before you shift: negative values are gone when the zero"
                " point comes.",
            ),
        ),
        "Three steps: divide by the scale and round, add the zero point, and only then"
        " cut off at both ends.",
    ),
    "pareto": Implement(
        _front_cases(),
        _front,
        (
            Mistake(
                lambda latency, size, accuracy: latency == latency.min(),
                "That is only the fastest. Who is slower but smaller or more accurate"
                " is not beaten by it.",
            ),
            Mistake(
                _best_of_each,
                "A backend that is best at nothing can still be beaten by nobody:"
                " compare in pairs.",
            ),
            Mistake(
                lambda latency, size, accuracy: _front_of(latency, size, accuracy),
                "Your front likes a low accuracy: which of the three should be large?",
            ),
            Mistake(
                lambda latency, size, accuracy: _front_of(
                    latency, size, -accuracy, all_better=True
                ),
                "You ask for better in all three. Two files of the same size: can"
                " neither beat the other?",
            ),
            Mistake(
                _ahead_of_all,
                "Yours must beat all others, in everything. A front is made of those"
                " that nobody beats: what if one is quick and another small?",
            ),
            Mistake(
                _best_of_all,
                "Yours keeps only who is best in everything. Who is beaten in one"
                " number may be ahead in another.",
            ),
            Mistake(
                lambda latency, size, accuracy: _front_of(
                    latency, size, -accuracy, strict=False
                ),
                "Everyone is at least as good as itself: in yours a backend beats"
                " itself.",
            ),
            Mistake(
                _twins_out,
                "Two backends with the same three numbers throw each other out. Who is"
                " better in one?",
            ),
            Mistake(
                lambda latency, size, accuracy: ~_front_of(latency, size, -accuracy),
                "You marked those that are beaten; True stands for the front.",
            ),
            Mistake(
                lambda latency, size, accuracy: _front_of(latency, size),
                "Two of three: which number do you never look at?",
            ),
            Mistake(
                lambda latency, size, accuracy: _front_of(latency, -accuracy),
                "Two of three: which number do you never look at?",
            ),
            Mistake(
                lambda latency, size, accuracy: _front_of(-latency, -size, accuracy),
                "That is the back of the field: small latencies and sizes are the good"
                " ones.",
            ),
        ),
        "For each pair: is the one at least as good in all three, and better in at"
        " least one? Then the other is out.",
    ),
}
