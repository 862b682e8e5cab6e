"""The page docs/scaling.md and its figure, made of docs/scaling.json and the formulas
of tools/capacity.py.

    python -m tools.scaling                               writes both
    python -m tools.scaling --set labels_per_hour=120     prints the page as it would be
    with another assumption

The same JSON makes the same page.
"""

import argparse
import io
import math
import string
from pathlib import Path

import utils
from tools import capacity, scaling_text
from tools.capacity import DAY, MIX, RATES, Plan
from tools.scaling_text import (
    RATE_NAMES,
    duration,
    number,
    per_second,
    spread,
    together,
    volume,
)

TEMPLATE = Path(__file__).parent / "templates" / "scaling.md"
NAMES = {"pneumonia": "X-rays", "pneumonia3": "X-rays, 3 classes", "solar": "roofs"}


class Template(string.Template):
    """@name is filled in, as $ belongs to the formulas."""

    delimiter = "@"


# --------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------


class Page:
    """All parts of the page, from what `capacity.read` returns."""

    def __init__(self, measured: dict):
        self.measured = measured
        self.plans = {
            NAMES.get(name, name): Plan(measured, name) for name in measured["homes"]
        }
        self.first = next(iter(self.plans.values()))

    def cells(self, value) -> str:
        return together([value(plan) for plan in self.plans.values()])

    def rates(self, rows) -> str:
        """Rows of (name, value(plan, rate) -> str, formula), one column a rate."""
        lines = []
        for name, value, formula in rows:
            columns = [
                self.cells(lambda plan, rate=rate, value=value: value(plan, rate))
                for rate in RATES
            ]
            lines.append(f"| {name} | {' | '.join(columns)} | {formula} |")
        return "\n".join(lines)

    def columns(self, rows) -> str:
        """Rows of (name, value(plan) -> str), one column a home."""
        homes = self.plans.values()
        return "\n".join(
            f"| {name} | {' | '.join(value(plan) for plan in homes)} |"
            for name, value in rows
        )

    def pieces(self) -> str:
        def part(name):
            return lambda plan: f"{number(plan.home['request']['parts'][name])} ms"

        rows = [
            (
                "one file: pixels, mean size",
                lambda p: "{}×{}, {}".format(*p.home["pixels"], volume(p.file)),
            ),
            (
                "**one request**, file to log line",
                lambda p: f"**{spread(p.home['request']['mean_ms'])} ms**",
            ),
            (
                "its slowest of 100; c²",
                lambda p: f"{number(1000 * p.p99)} ms; {number(p.cv2)}",
            ),
            *(
                (f"– {name}", part(name))
                for name in self.first.home["request"]["parts"]
            ),
        ]
        rows += [
            (
                f"network {kind}, batches of {batch}",
                lambda p, k=kind, b=batch: (
                    f"{spread(p.home['network'][k][b])} images/s"
                ),
            )
            for kind in ("fp32", "int8")
            for batch in ("1", "32")
        ]
        rows += [
            (
                "observing one image for drift",
                lambda p: f"{spread(p.home['observe_ms'])} ms",
            ),
            (
                "fine-tuning",
                lambda p: f"{spread(p.home['training']['images_s'])} images/s",
            ),
        ]
        return self.columns(rows)

    def log(self) -> str:
        writing, reading = (
            self.measured["log"]["writing"],
            self.measured["log"]["reading"],
        )
        rows = [
            (name, spread(writing[key], scale) + kind, writing[key]["n"])
            for name, key, scale, kind in (
                ("one call, one line", "line_us", 1, " µs a line"),
                ("one call, 32 lines", "batch32_us", 1, " µs a line"),
                ("one call, one line, under a file lock", "locked_us", 1, " µs a line"),
                (
                    "one call, one line, forced to the disk",
                    "forced_us",
                    1,
                    " µs a line",
                ),
                ("one process, all it can", "processes1_s", 1, " lines/s"),
                ("two processes on one file", "processes2_s", 1, " lines/s"),
            )
        ]
        most, packed = reading["rows"][-1], reading["parquet"] or {}
        whole = [
            (
                f"read a CSV of {most:,} lines, and its windows",
                reading["csv_s"],
                1,
                " s",
            ),
            ("memory that this takes", reading["csv_bytes"], 1e-6, " MB"),
            (f"take {most:,} lines into Parquet", packed.get("compact_s"), 1, " s"),
            ("the same windows from Parquet", packed.get("answer_s"), 1, " s"),
        ]
        rows += [
            (name, spread(found[-1], scale) + kind, found[-1]["n"])
            for name, found, scale, kind in whole
            if found
        ]
        return "\n".join(f"| {name} | {value} | {n} |" for name, value, n in rows)

    def loads(self) -> str:
        limits = sorted({1.0, 2.0, 5.0, 10.0, self.first.assumed["limit_ms"]})

        def load(limit):
            def cell(plan):
                found = capacity.most_load(
                    plan.service, plan.cv2, plan.p99, limit / 1000
                )
                return f"{found:.2f}" if found else "at no load"

            return cell

        return self.columns([(f"{limit:g} ms", load(limit)) for limit in limits])

    def four_rates(self) -> str:
        line, image = (lambda p, r: DAY * r * p.line), (lambda p, r: DAY * r * p.file)
        rows = [
            ("cores busy", lambda p, r: number(p.serving(r)["busy"]), "r s"),
            ("cores", lambda p, r: number(p.serving(r)["cores"]), "⌈r s / ρ₀⌉"),
            (
                f"machines of {self.first.cores} cores",
                lambda p, r: number(p.serving(r)["machines"]),
                "⌈cores / C⌉",
            ),
            (
                "load of a core",
                lambda p, r: number(p.serving(r)["load"]),
                "ρ = r s / cores",
            ),
            (
                "99 of 100 answers within",
                lambda p, r: duration(p.serving(r)["slowest"]),
                "s₉₉ + (W/ρ) max(0, ln 100ρ)",
            ),
            (
                "cost of an hour",
                lambda p, r: number(p.serving(r)["cost"]),
                "machines × price",
            ),
            (
                "cost of a million",
                lambda p, r: number(p.serving(r)["per_million"]),
                "10⁶ × cost / (3600 r)",
            ),
            ("log of a day, CSV", lambda p, r: volume(line(p, r)), "86,400 r b"),
            (
                "log of a day, Parquet",
                lambda p, r: volume(line(p, r) * p.packed) if p.packed else "–",
                "× measured ratio",
            ),
            ("images of a day", lambda p, r: volume(image(p, r)), "86,400 r f"),
            (
                "their embeddings",
                lambda p, r: volume(DAY * r * 4 * p.home["embedding"]),
                "86,400 r 4 D",
            ),
        ]
        return self.rates(rows)

    def busy(self) -> str:
        formulas = (
            "86,400 r s",
            "86,400 r l",
            "144 × 43,200 r t",
            "86,400 r k",
            "86,400 r o",
            "L u (86,400 r / L + m)ᵉ",
            "L × measured",
            "86,400 r E / v",
        )

        def cell(name):
            def value(plan, rate):
                told = number(plan.busy(rate)[name])
                return told if plan.within(name, rate) or told == "–" else f"≈ {told}"

            return value

        names = self.first.busy(1)
        return self.rates(
            [
                (name, cell(name), formula)
                for name, formula in zip(names, formulas, strict=True)
            ]
        )

    def limits(self) -> str:
        homes = [
            {limit.part: per_second(limit.rate) for limit in plan.limits()}
            for plan in self.plans.values()
        ]
        return "\n".join(
            f"| {row.component} | {row.part} | {row.limit} |"
            f" {' | '.join(home[row.part] for home in homes)} | {row.formula} |"
            f" {row.instead} |"
            for row in self.first.limits()
        )

    def detectors(self) -> str:
        lines = []
        for home, plan in self.plans.items():
            for name, (exponent, _) in plan.growth.items():
                seconds = [
                    duration(each["median"]) for each in plan.home["detectors"][name]
                ]
                lines.append(
                    f"| {name}, {home} | {' | '.join(seconds)} | n^{exponent:.2f} |"
                )
        kernel = [volume(8 * size**2) for size in self.first.home["detectors"]["sizes"]]
        return "\n".join(
            [
                *lines,
                f"| kernel matrix in one piece | {' | '.join(kernel)} | 8 n² bytes |",
            ]
        )

    def response(self) -> str:
        share = 100 * self.first.assumed["label_share"]
        rows = [
            (
                "a window of w images is full after",
                lambda p, r: duration(p.home["policy"]["window"] / r),
                "w / r",
            ),
            (
                "images between two looks",
                lambda p, r: number(p.between_looks(r)),
                "86,400 r / L",
            ),
            (
                "drift is confirmed after",
                lambda p, r: duration(p.response(r)["detecting"]),
                "j × max(86,400 / L, w / r)",
            ),
            (
                "labels are there after",
                lambda p, r: duration(p.response(r)["labelling"]),
                "labels / q; above h hours: labels / (q h) days",
            ),
            (
                "the network has learned after",
                lambda p, r: duration(p.response(r)["training"]),
                f"{MIX:,} E / v",
            ),
            (
                "wrong answers until then, beyond the usual",
                lambda p, r: number(p.response(r)["wrong"]),
                "r × sum × (a − a′)",
            ),
            (
                f"people who label {share:g} % of all answers",
                lambda p, r: number(math.ceil(p.labelled(r))),
                "⌈86,400 r x / (q h)⌉",
            ),
        ]
        return self.rates(rows)

    def assumed(self) -> str:
        given = self.measured["assumed"]
        value = {
            name: number(given[name]) if given[name] > 1e6 else f"{given[name]:g}"
            for name in given
        }
        return "\n".join(
            f"| `{name}` | {value[name]} | {says} |"
            for name, (_, says) in capacity.ASSUMPTIONS.items()
        )

    def symbols(self) -> str:
        a = self.first.assumed
        rows = [
            (
                "s, s₉₉, c²",
                lambda p: (
                    f"{number(1000 * p.service)} ms, {number(1000 * p.p99)} ms,"
                    f" {number(p.cv2)}"
                ),
                "time of a request: mean, slowest of 100, variation",
            ),
            (
                "ρ₀, C",
                lambda p: f"{p.load:.2g}, {p.cores}",
                "planned load of a core, cores of a machine",
            ),
            (
                "b, l",
                lambda p: f"{number(p.line)} B, {duration(p.write_s)}",
                "a line of the log: bytes, time to write",
            ),
            (
                "t, z",
                lambda p: f"{duration(p.row_s)}, {volume(p.row_bytes)}",
                "a line read by a watch: time, memory",
            ),
            (
                "k",
                lambda p: duration(p.compact_s) if p.compact_s else "–",
                "a line taken into Parquet: time",
            ),
            (
                "f, D",
                lambda p: f"{volume(p.file)}, {p.home['embedding']}",
                "an image: bytes of its file, numbers of its embedding",
            ),
            ("o", lambda p: duration(p.observe_s), "observing an image for drift"),
            (
                "u, e",
                lambda p: "{}, {:.2f}".format(
                    number(p.growth["MMD embedding"][1]), p.growth["MMD embedding"][0]
                ),
                "MMD on n images takes u nᵉ seconds",
            ),
            (
                "w, m, H, j",
                lambda p: (
                    f"{p.home['policy']['window']}, {p.home['reference']}, "
                    f"{p.home['policy']['horizon']}, {p.home['policy']['consecutive']}"
                ),
                (
                    "drift policy: window, reference, windows of its promise, windows"
                    " that confirm"
                ),
            ),
            (
                "v, E",
                lambda p: f"{number(p.training)}/s, {p.epochs}",
                "fine-tuning: images a second, epochs",
            ),
            (
                "a, a′",
                lambda p: "{clean:.3f}, {drifted:.3f}".format(**p.home["accuracy"]),
                "accuracy on clean and on drifted images",
            ),
            (
                "B, d, M",
                lambda p: (
                    f"{volume(a['disk_bytes'])}, {a['retention_days']:g},"
                    f" {volume(p.memory)}"
                ),
                "disk (assumed), days kept (assumed), memory",
            ),
            (
                "q, h, x, L",
                lambda p: (
                    f"{a['labels_per_hour']:g}, {a['hours_per_day']:g},"
                    f" {a['label_share']:g}, {a['looks_per_day']:g}"
                ),
                (
                    "labels an hour, hours a day, share to be labelled, looks a day"
                    " (assumed); T = 86,400 / L"
                ),
            ),
        ]
        return "\n".join(
            f"| {name} | {self.cells(value)} | {says} |" for name, value, says in rows
        )

    def parts(self) -> dict[str, str]:
        """What fills the places of the template."""
        plans, sizes, say = (
            self.plans,
            self.first.home["detectors"]["sizes"],
            scaling_text,
        )
        return {
            "made_of": say.made_of(self.measured, plans),
            "first": say.bullets(plans, say.first_to_break),
            "heads": " | ".join(plans),
            "bars": "---|" * len(plans),
            "pieces": self.pieces(),
            "log": self.log(),
            "request": say.bullets(plans, say.of_a_request),
            "log_says": say.of_the_log(self.measured, plans),
            "loads": self.loads(),
            "queue": say.bullets(plans, say.of_the_queue),
            "half": say.at_half(plans),
            "rates": self.four_rates(),
            "cost": say.of_the_cost(plans),
            "busy": self.busy(),
            "busy_says": say.bullets(plans, say.of_a_day),
            "machine": f"{self.first.cores} cores, {volume(self.first.memory)}",
            "limits": self.limits(),
            "powers": say.of_powers(plans),
            "components": say.bullets(plans, say.of_components),
            "broken": say.broken(self.first),
            "resting": say.resting(self.first),
            "of_first": next(iter(plans)),
            "detectors": self.detectors(),
            "looks": str(self.first.home["detectors"]["MMD embedding"][0]["n"]),
            "detector_sizes": " | ".join(f"{size:,}" for size in sizes),
            "detector_bars": "---|" * len(sizes),
            "drift": say.bullets(plans, say.of_drift),
            "promise": say.bullets(plans, say.of_the_promise),
            "response": self.response(),
            "response_says": say.bullets(plans, say.of_the_response),
            "assumed": self.assumed(),
            "symbols": self.symbols(),
            "pixels": self.cells(lambda plan: "{}×{}".format(*plan.home["pixels"])),
        } | say.to_carry(plans)

    def text(self) -> str:
        """The page."""
        return scaling_text.wrapped(
            Template(TEMPLATE.read_text(encoding="utf-8")).substitute(self.parts())
        )


def figure(plans: dict[str, Plan]):
    """Where each part breaks, on a logarithmic axis, beside the four rates."""
    import matplotlib.pyplot as plt

    utils.style()
    parts = [limit.part for limit in next(iter(plans.values())).limits()][::-1]
    drawn, axis = plt.subplots(figsize=(9, 5))
    for rate in RATES:
        axis.axvline(rate, color="0.6", linestyle="--", linewidth=1)
        axis.text(
            rate,
            len(parts) - 0.4,
            RATE_NAMES[rate],
            ha="center",
            va="bottom",
            color="0.3",
            fontsize=10,
        )
    for (name, plan), marker, size in zip(
        plans.items(), "so^", (11, 6, 4), strict=False
    ):
        rates = {limit.part: limit.rate for limit in plan.limits()}
        axis.plot(
            [rates[part] for part in parts],
            range(len(parts)),
            marker,
            label=name,
            markersize=size,
        )
    axis.set(
        xscale="log",
        yticks=range(len(parts)),
        yticklabels=parts,
        ylim=(-0.6, len(parts) - 0.4),
        xlabel="predictions a second at which it breaks, alone on one machine",
    )
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower left")
    return drawn


def make(measured: Path, changes: dict | None = None) -> tuple[Page, str]:
    """The page of a JSON file and its text, with other assumptions where `changes` has
    them.

    Raises
    ------
    CourseError
        Of `capacity.read`; a part of the file lacks something, or holds text in the
        place of a number; a change with which nothing can be computed.
    """
    found = capacity.read(measured)
    if changes:
        # so that what is wrong below is one of the changes, and not the file
        make(measured)
    try:
        page = Page(found | {"assumed": found["assumed"] | (changes or {})})
        return page, page.text()
    except (
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
    ) as error:
        if changes:
            values = " ".join(f"{name}={value:g}" for name, value in changes.items())
            raise utils.CourseError(
                f"With {values} the page cannot be computed: give values nearer to"
                " those of the page."
            ) from error
        raise utils.CourseError(
            f"{measured} lacks something ({type(error).__name__}: {error}):"
            f" {capacity.AGAIN} again."
        ) from error


def publish(measured: Path = capacity.MEASURED) -> Path:
    """Write the page and its figure beside the JSON: both are made before either is
    written.

    Raises
    ------
    CourseError
        Of `make`; what stood there is untouched.
    """
    import matplotlib.pyplot as plt

    (page, text), image = make(measured), io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "scaling"}):
        drawn = figure(page.plans)
        drawn.savefig(image, format="svg", metadata={"Date": None})
        plt.close(drawn)
    for suffix, content in ((".svg", image.getvalue()), (".md", text.encode())):
        with utils.atomic(measured.with_suffix(suffix)) as temporary:
            temporary.write_bytes(content)
    return measured.with_suffix(".md")


def changed(pairs: list[str]) -> dict:
    """Assumptions of the command line, NAME=VALUE."""
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise utils.CourseError(
                f"--set {pair} says no number: write it as {name}=1.5."
            ) from error
    capacity.assume(found)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="prints, writes nothing",
    )
    parser.add_argument(
        "--measured",
        type=Path,
        default=capacity.MEASURED,
        help="default: docs/scaling.json",
    )
    options = parser.parse_args(arguments)
    try:
        if not options.set:
            print(publish(options.measured))
            return
        print(make(options.measured, changed(options.set))[1], end="")
    except utils.CourseError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
