"""Capacity on paper: what the measured pieces of this kit carry, and where each breaks.

`python -m benchmarks.capacity --home HOME` measures them and writes docs/scaling.json;
here is arithmetic only. tools/scaling.py makes the page of it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import utils

MEASURED = utils.KIT / "docs" / "scaling.json"
SCHEMA = 1
# seconds; a watch looks every ten minutes (`utils.window_statistics`)
DAY, TICK = 86_400, 600
RATES = (1, 10, 10**4, 10**6)
ANSWERS = "answers, from the file to the log line"
BUSY = 0.5  # load of the machine from which on other work is in the numbers
# images of a candidate's training, however many came in
MIX = utils.MIX_IMAGES["quick"]

# What nobody measured: the value, and what it says.
ASSUMPTIONS = {
    "price_per_hour": (
        0.20,
        "price of one machine for an hour, in your currency; theme 4's assumption",
    ),
    "limit_ms": (50.0, "ms in which 99 of 100 answers must come; the limit of theme 5"),
    "most_load": (
        0.7,
        (
            "of its time a core is planned to work at most, as arrivals come in bursts"
            " and machines fail"
        ),
    ),
    "labels_per_hour": (60.0, "images that one person labels in an hour"),
    "hours_per_day": (7.0, "hours a day that this person labels"),
    "label_share": (
        0.001,
        "of all answers a plan without a fixed budget wants checked by a person",
    ),
    "looks_per_day": (
        1.0,
        "looks at drift in a day; the policy counts on a month of daily ones",
    ),
    "retention_days": (30.0, "days that log and images are kept"),
    "disk_bytes": (5e11, "bytes of the disk of one machine"),
}
ASSUMED = {name: value for name, (value, _) in ASSUMPTIONS.items()}


# --------------------------------------------------------------------------------------
# Formulas
# --------------------------------------------------------------------------------------


def mean_wait(rate: float, service: float, cv2: float) -> float:
    """Mean time in the queue of one server, in the unit of `service`; infinite from a
    load of 1 on.

    rho s (1 + c²) / (2 (1 - rho)) with the load rho = rate * service. Arrivals are
    independent of each other (Poisson), service times have any distribution (M/G/1);
    cv2 = 0 is M/D/1, cv2 = 1 is M/M/1. Source: Pollaczek (1930) and Khinchine (1932);
    Kleinrock, Queueing Systems, volume 1 (1975), section 5.6.

    Parameters
    ----------
    rate : arrivals in the unit of time of `service`
    service : mean service time
    cv2 : variance of the service time over the square of its mean
    """
    load = rate * service
    return load * service * (1 + cv2) / (2 * (1 - load)) if load < 1 else math.inf


def slowest(rate: float, service: float, cv2: float, service_p99: float) -> float:
    """Time within which about 99 of 100 answers come, waiting included; the unit is
    that of `service`.

    Who waits (a share of rho) is taken to wait exponentially long, with the mean of
    Pollaczek and Khinchine: P(wait > t) = rho exp(-rho t / mean wait), exact for M/M/1.
    To its 99th percentile that of the service is added, which is cautious: rarely does
    the same request meet both. With heavy tails (lognormal, c² = 4) it is up to a
    quarter low. With pauses rarer than 1 in 100 it can be three times too low and more,
    also at c² = 0.4: `service_p99` does not know them, but all that come meanwhile wait
    (see `rare_pauses`).
    """
    load, wait = rate * service, mean_wait(rate, service, cv2)
    if not math.isfinite(wait):
        return math.inf
    return service_p99 + (wait / load * math.log(100 * load) if load > 0.01 else 0.0)


def rare_pauses(service: float, cv2: float, service_p99: float) -> bool:
    """Whether service times vary more than they could if none took longer than
    `service_p99`.

    Then some that are rarer than 1 in 100 take much longer. Values up to M with the
    mean m, none below 0, have a variance of at most m (M - m). Source: Bhatia and
    Davis, A better bound on the variance (2000)."""
    return cv2 > max(service_p99 / service - 1, 0.0)


def most_load(service: float, cv2: float, service_p99: float, limit: float) -> float:
    """Largest load of one server at which 99 of 100 answers come within `limit`; 0
    where no load is small enough.
    """
    if service_p99 >= limit:
        return 0.0
    from scipy.optimize import brentq

    def late(load: float) -> float:
        return slowest(load / service, service, cv2, service_p99) - limit

    full = 1 - 1e-9
    return float(brentq(late, 0.01, full)) if late(full) > 0 else full


def growth(sizes, seconds) -> tuple[float, float]:
    """(exponent, factor) of seconds = factor * size ** exponent: the straight line
    through the logarithms.

    Raises
    ------
    CourseError
        Fewer than four sizes, or a time that is no positive number.
    """
    sizes, seconds = np.asarray(sizes, dtype=float), np.asarray(seconds, dtype=float)
    if len(sizes) < 4 or not (seconds > 0).all():
        raise utils.CourseError(
            "A growth needs at least 4 sizes and positive times, these are"
            f" {len(sizes)}: measure more sizes."
        )
    exponent, shift = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(exponent), float(np.exp(shift))


def amdahl(share: float, speedup: float) -> float:
    """Speedup of the whole when a part that takes `share` of its time becomes faster.

    Source: Amdahl, Validity of the single processor approach (1967).
    """
    return 1 / (1 - share + share / speedup)


# --------------------------------------------------------------------------------------
# What was measured
# --------------------------------------------------------------------------------------

AGAIN = "measure it with `python -m benchmarks.capacity --home HOME`"
WANTED = {
    "": (
        "date",
        "hardware",
        "cores",
        "memory_bytes",
        "load",
        "versions",
        "assumed",
        "log",
        "homes",
    ),
    "log.writing": (
        "line_us",
        "batch32_us",
        "locked_us",
        "forced_us",
        "processes1_s",
        "processes2_s",
    ),
    "log.reading": ("rows", "csv_s", "csv_bytes", "parquet"),
}
WANTED_OF_A_HOME = (
    "image_size",
    "pixels",
    "file_bytes",
    "files",
    "line_bytes",
    "embedding",
    "served",
    "request",
    "network",
    "observe_ms",
    "detectors",
    "training",
    "policy",
    "reference",
    "labels",
    "accuracy",
)


def read(path: Path = MEASURED) -> dict:
    """What benchmarks/capacity.py has measured.

    Raises
    ------
    CourseError
        The file is missing or damaged, holds another schema, lacks a part, or a number
        that is below 0 or none.
    """
    if not path.exists():
        raise utils.CourseError(f"{path} is missing: {AGAIN}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise utils.CourseError(f"{path} is cut or no JSON: {AGAIN} again.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise utils.CourseError(
            f"{path} was written by another version of the kit: {AGAIN} again."
        )
    homes = found.get("homes")
    wanted = WANTED | {f"homes.{name}": WANTED_OF_A_HOME for name in homes or ()}
    for place, names in wanted.items():
        part = found
        for step in filter(None, place.split(".")):
            part = part.get(step) if isinstance(part, dict) else None
        for name in names:
            if (
                not isinstance(part, dict)
                or name not in part
                or (part[name] is None and name != "parquet")
            ):
                raise utils.CourseError(
                    f"{path} lacks {place}{'.' * bool(place)}{name}: {AGAIN} again."
                )
    for place, number in numbers(found):
        if not math.isfinite(number) or number < 0:
            raise utils.CourseError(
                f"{path} says {place} = {number}, which cannot be: {AGAIN} again."
            )
    if not homes:
        raise utils.CourseError(f"{path} holds no home: {AGAIN} again.")
    return found | {"assumed": assume(found["assumed"])}


def numbers(part, place: str = ""):
    """(place, value) of every number in nested dicts and lists."""
    pairs = (
        part.items()
        if isinstance(part, dict)
        else enumerate(part)
        if isinstance(part, list)
        else ()
    )
    for name, value in pairs:
        yield from numbers(value, f"{place}.{name}".lstrip("."))
    if isinstance(part, (int, float)) and not isinstance(part, bool):
        yield place, part


def assume(changes: dict) -> dict:
    """ASSUMED with changes.

    Raises
    ------
    CourseError
        An unknown name, or a value that is no number above 0; a planned load of a core
        of 1 or more; a day of more than 24 hours.
    """
    for name, value in changes.items():
        if name not in ASSUMED:
            raise utils.CourseError(
                f"{name} is no assumption of this page: choose one of"
                f" {', '.join(ASSUMED)}."
            )
        if not isinstance(value, (int, float)) or not (
            math.isfinite(value) and value > 0
        ):
            raise utils.CourseError(f"{name}={value} cannot be: give a number above 0.")
    if changes.get("most_load", 0) >= 1:
        raise utils.CourseError(
            "most_load is the share of its time that a core works at most: give less"
            " than 1."
        )
    if changes.get("hours_per_day", 0) > 24:
        raise utils.CourseError(
            "hours_per_day is more than a day has: give 24 or less."
        )
    return ASSUMED | changes


# --------------------------------------------------------------------------------------
# One home on machines like the measured one
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """A part of the kit and the predictions a second at which it breaks.

    `assumes` says whether that rests on an assumption, `network` whether a faster
    network would move it."""

    component: str
    part: str
    limit: str
    formula: str
    rate: float
    instead: str
    assumes: bool = False
    network: bool = False


class Plan:
    """What the measured pieces of one home need at any rate of predictions.

    Parameters
    ----------
    measured : dict of `read`
    dataset : one of its homes
    """

    def __init__(self, measured: dict, dataset: str):
        home, log = measured["homes"][dataset], measured["log"]
        self.home, self.assumed = home, measured["assumed"]
        self.cores, self.memory = measured["cores"], measured["memory_bytes"]
        request = home["request"]
        self.service, self.p99, self.cv2 = (
            request["mean_ms"]["median"] / 1000,
            request["p99_ms"] / 1000,
            request["cv2"],
        )
        self.line, self.file = home["line_bytes"], home["file_bytes"]
        reading = log["reading"]
        self.row_s, self.row_bytes = (
            slope(reading["rows"], reading[name]) for name in ("csv_s", "csv_bytes")
        )
        self.most_rows, packed = reading["rows"][-1], reading["parquet"]
        self.compact_s = slope(reading["rows"], packed["compact_s"]) if packed else None
        self.packed = (
            packed["line_bytes"] / packed["csv_line_bytes"] if packed else None
        )
        self.write_s = log["writing"]["line_us"]["median"] / 1e6
        self.file_rate = log["writing"]["processes2_s"]["median"]
        self.observe_s = home["observe_ms"]["median"] / 1000
        self.training, self.epochs = (
            home["training"]["images_s"]["median"],
            home["training"]["epochs"],
        )
        self.growth = {
            name: growth(
                home["detectors"]["sizes"][-4:],
                [each["median"] for each in values[-4:]],
            )
            for name, values in home["detectors"].items()
            if name != "sizes"
        }

    @property
    def load(self) -> float:
        """The load that a core is planned for: what the limit of latency allows, and
        never more than `most_load`.

        Raises
        ------
        CourseError
            No load keeps the limit.
        """
        limit = self.assumed["limit_ms"]
        if self.p99 >= limit / 1000:
            raise utils.CourseError(
                f"Even alone, the slowest of 100 requests takes {1000 * self.p99:.3g}"
                f" ms, not less than limit_ms={limit:g}: raise the limit."
            )
        return min(
            most_load(self.service, self.cv2, self.p99, limit / 1000),
            self.assumed["most_load"],
        )

    def serving(self, rate: float) -> dict:
        """Cores, machines, slowest of 100 answers (s) and cost; requests are dealt to
        the cores at random.
        """
        cores = math.ceil(round(rate * self.service / self.load, 9))
        machines = math.ceil(cores / self.cores)
        cost = machines * self.assumed["price_per_hour"]
        return {
            "busy": rate * self.service,
            "cores": cores,
            "machines": machines,
            "load": rate * self.service / cores,
            "slowest": slowest(rate / cores, self.service, self.cv2, self.p99),
            "cost": cost,
            "per_million": utils.cost_per_million(rate, cost),
        }

    def look(self, detector: str, images: float) -> float:
        """Seconds of one look of a detector at so many images, those of the reference
        included.

        Between the sizes that were measured on the line through their logarithms, above
        by the fitted growth, below as at the smallest.
        """
        sizes, seconds = (
            self.home["detectors"]["sizes"],
            self.home["detectors"][detector],
        )
        if images > sizes[-1]:
            exponent, factor = self.growth[detector]
            return factor * images**exponent
        return float(
            np.exp(
                np.interp(
                    math.log(images),
                    np.log(sizes),
                    np.log([each["median"] for each in seconds]),
                )
            )
        )

    def between_looks(self, rate: float) -> float:
        """Predictions between two looks."""
        return rate * DAY / self.assumed["looks_per_day"]

    def busy(self, rate: float) -> dict[str, float]:
        """Seconds of a core that each part needs for one day of predictions, as the kit
        does it when asked naively.
        """
        day, looks = DAY * rate, self.assumed["looks_per_day"]
        policy, every = (
            self.home["policy"],
            self.between_looks(rate) + self.home["reference"],
        )
        drawn = policy["window"] + self.home["reference"]
        return {
            ANSWERS: day * self.service,
            "of these, the log lines": day * self.write_s,
            "a watch that reads the day's CSV every 10 min": (
                DAY / TICK / 2 * day * self.row_s
            ),
            "compaction to Parquet": (
                day * self.compact_s if self.compact_s else math.nan
            ),
            "observing every image a second time": day * self.observe_s,
            "MMD on every image": looks * self.look("MMD embedding", every),
            "MMD on one drawn window a look": looks * self.look("MMD embedding", drawn),
            "training on every image": day * self.epochs / self.training,
        }

    def measured(self, images: float) -> bool:
        """Whether looks at so many images were measured, or their time is the fitted
        growth carried on.
        """
        sizes = self.home["detectors"]["sizes"]
        return sizes[0] <= images <= sizes[-1]

    def within(self, part: str, rate: float) -> bool:
        """Whether a number of `busy` lies inside of what was measured; what is a
        multiple of one piece always does.
        """
        if part == "MMD on every image":
            return self.measured(self.between_looks(rate) + self.home["reference"])
        return not part.startswith("a watch") or rate * DAY <= self.most_rows

    def response(self, rate: float) -> dict[str, float]:
        """Seconds from the start of a drift to a new model, by what takes them, and the
        wrong answers until then.

        Each drifted window is taken as flagged, as by a test of power 1.
        """
        policy, accuracy = self.home["policy"], self.home["accuracy"]
        look = max(DAY / self.assumed["looks_per_day"], policy["window"] / rate)
        parts = {
            "detecting": policy["consecutive"] * look,
            "labelling": self.labelling(),
            "training": self.epochs * MIX / self.training,
        }
        total = sum(parts.values())
        return parts | {
            "total": total,
            "wrong": rate * total * max(accuracy["clean"] - accuracy["drifted"], 0.0),
        }

    def labelling(self, people: int = 1) -> float:
        """Seconds until the labels of theme 7 are there: what exceeds one day's hours
        takes days of so many hours.
        """
        hours = self.home["labels"] / self.assumed["labels_per_hour"] / people
        return (
            3600 * hours
            if hours <= self.assumed["hours_per_day"]
            else DAY * hours / self.assumed["hours_per_day"]
        )

    def labelled(self, rate: float) -> float:
        """People who label `label_share` of all answers."""
        return DAY * rate * self.assumed["label_share"] / self.labels_a_day

    @property
    def labels_a_day(self) -> float:
        return self.assumed["labels_per_hour"] * self.assumed["hours_per_day"]

    def limits(self) -> list[Limit]:
        """Every part and the rate at which it breaks, each alone on the machine; the
        first to break first.
        """
        a, policy, keep = (
            self.assumed,
            self.home["policy"],
            self.assumed["retention_days"] * DAY,
        )
        exponent, factor = self.growth["MMD embedding"]
        pause = DAY / a["looks_per_day"]
        fits = max((pause / factor) ** (1 / exponent) - self.home["reference"], 0.0)
        rows = [
            Limit(
                "detector",
                "promise of the drift policy",
                f"its {policy['horizon']} windows are over within a day",
                "H w / 86,400",
                policy["horizon"] * policy["window"] / DAY,
                "drawn windows",
            ),
            Limit(
                "detector",
                "MMD on every image",
                "a look takes as long as the time to the next",
                "((T / u)^(1/e) − m) / T",
                fits / pause,
                "drawn windows",
                True,
            ),
            Limit(
                "detector",
                "observing every image a second time",
                "one core cannot",
                "1 / o",
                1 / self.observe_s,
                "a feature store",
                network=True,
            ),
            Limit(
                "retraining budget",
                "labels for a share of all answers",
                "one person cannot label them",
                "q h / (86,400 x)",
                self.labels_a_day / (DAY * a["label_share"]),
                "a fixed budget of labels",
                True,
            ),
            Limit(
                "retraining budget",
                "training on every image",
                "one core learns more slowly than images come",
                "v / E",
                self.training / self.epochs,
                "a fixed budget of labels",
                network=True,
            ),
            Limit(
                "retraining budget",
                "keeping every image",
                "the disk is full",
                "B / (86,400 d f)",
                a["disk_bytes"] / (keep * self.file),
                "an object store",
                True,
            ),
            Limit(
                "logger",
                "CSV in the memory of a watch",
                "a day's lines do not fit",
                "M / (86,400 z)",
                self.memory / (DAY * self.row_bytes),
                "Parquet",
            ),
            Limit(
                "logger",
                "time of a watch on the CSV",
                "a day takes longer than 10 min to read",
                "600 / (86,400 t)",
                TICK / (DAY * self.row_s),
                "Parquet",
            ),
            Limit(
                "logger",
                "log on the disk",
                "the disk is full",
                "B / (86,400 d b)",
                a["disk_bytes"] / (keep * self.line),
                "an object store",
                True,
            ),
            Limit(
                "logger",
                "one log file",
                "two processes cannot append more",
                "measured",
                self.file_rate,
                "a queue",
            ),
            Limit(
                "service",
                "answers of one machine",
                f"{self.cores} cores are at their planned load",
                "C ρ₀ / s",
                self.cores * self.load / self.service,
                "a model server",
                True,
                network=True,
            ),
        ]
        if self.compact_s:
            rows.append(
                Limit(
                    "logger",
                    "compaction by one process",
                    "it falls behind",
                    "1 / k",
                    1 / self.compact_s,
                    "a queue",
                )
            )
        return sorted(rows, key=lambda limit: limit.rate)


def slope(rows: list[int], spreads: list[dict]) -> float:
    """Cost of one more line, from the least to the most that were measured."""
    return (spreads[-1]["median"] - spreads[0]["median"]) / (rows[-1] - rows[0])
