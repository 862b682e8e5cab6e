"""What docs/scaling.md says in words: every sentence is computed from the numbers that
it speaks of.
"""

import math
import re
import textwrap

import utils
from tools import capacity
from tools.capacity import DAY, RATES, Plan

SERVED = "answers of one machine"
# share of its time that a machine works, below which it has room for other work
IDLE = 0.3
# objects a second that one prefix of Amazon S3 takes, at least; the page names the
# source
PUTS = 3500
RATE_NAMES = {1: "1/s", 10: "10/s", 10**4: "10⁴/s", 10**6: "10⁶/s"}
UPPER = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


# --------------------------------------------------------------------------------------
# Numbers as people read them
# --------------------------------------------------------------------------------------


def number(value: float, digits: int = 2) -> str:
    """So many digits that count: 0.0093, 4.9, 1,400, 8.6×10¹⁰; counted things (int)
    below 10 million in full.
    """
    if isinstance(value, int) and abs(value) < 1e7:
        return f"{value:,}"
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    power = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if power >= 7 or power < -4:
        return f"{value / 10**power:.{digits - 1}f}×10{str(power).translate(UPPER)}"
    after = digits - 1 - power
    return f"{round(value, after):,.{max(after, 0)}f}"


def duration(seconds: float) -> str:
    """In the unit that suits: from two days on in days, from two hours on in hours, and
    so on.
    """
    steps = (
        (2 * DAY, DAY, "d"),
        (7200, 3600, "h"),
        (120, 60, "min"),
        (1, 1, "s"),
        (1e-3, 1e-3, "ms"),
        (0, 1e-6, "µs"),
    )
    size, name = next(
        (size, name) for least, size, name in steps if seconds >= 0.995 * least
    )
    return f"{number(seconds / size)} {name}"


def volume(size: float) -> str:
    """Bytes, in powers of 1000."""
    steps = (
        (1e15, "PB"),
        (1e12, "TB"),
        (1e9, "GB"),
        (1e6, "MB"),
        (1e3, "kB"),
        (1, "B"),
    )
    least, name = next(
        ((least, name) for least, name in steps if size >= 0.995 * least), steps[-1]
    )
    return f"{number(size / least)} {name}"


def spread(measured: dict, scale: float = 1.0) -> str:
    """Median [smallest, largest]."""
    return "{} [{}, {}]".format(
        *(number(scale * measured[name], 3) for name in ("median", "low", "high"))
    )


def per_second(rate: float) -> str:
    """A rate; well below one a second, how long one takes."""
    if rate <= 0:
        return "any rate"
    return (
        f"{number(rate)}/s"
        if rate >= 0.1
        else f"one prediction in {duration(1 / rate)}"
    )


def percent(share: float) -> str:
    return f"{number(100 * share)} %"


def times(factor: float) -> str:
    return f"{number(factor, 3 if factor < 2 else 2)} times"


def listed(names: list[str]) -> str:
    return (
        ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
        if names
        else "nothing"
    )


def together(cells: list[str]) -> str:
    """The cells of all homes as one: a single one where they agree."""
    return " / ".join(cells if len(set(cells)) > 1 else cells[:1])


def both(plans: dict[str, Plan], value) -> str:
    """A value of each home with the home's name, or the value alone where all agree."""
    told = {name: value(plan) for name, plan in plans.items()}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return listed([f"{said} ({name})" for name, said in told.items()])


def bullets(plans: dict[str, Plan], sentence) -> str:
    """One line a home, or one for all where all agree."""
    told = {name: sentence(plan) for name, plan in plans.items()}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "\n".join(
        f"- **{name[0].upper()}{name[1:]}.** {said}" for name, said in told.items()
    )


def wrapped(text: str, width: int = 120) -> str:
    """Paragraphs and list items broken into lines; tables, headings and formulas as
    they are.
    """
    blocks, fenced = [[]], False
    for line in text.split("\n"):
        fence = line.startswith("```")
        plain = fence or fenced or not line or line[0] in "|#!"
        if plain or line.startswith("- ") or not blocks[-1] or blocks[-1][0] is None:
            blocks.append([None] if plain else [])
        blocks[-1].append(line)
        fenced ^= fence
    return "\n".join(
        block[-1] if block[0] is None else _filled(block, width)
        for block in blocks
        if block
    )


def _filled(lines: list[str], width: int) -> str:
    text = re.sub(
        r"\$[^$]+\$|`[^`]+`",
        lambda whole: whole[0].replace(" ", "\0"),
        " ".join(map(str.strip, lines)),
    )
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(
        text,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\0", " ")


# --------------------------------------------------------------------------------------
# Sentences
# --------------------------------------------------------------------------------------


def busy(measured: dict) -> bool:
    return measured["load"] > capacity.BUSY


def made_of(measured: dict, plans: dict[str, Plan]) -> str:
    """What was measured on what, and in how many rounds."""
    versions = ", ".join(
        f"{name} {number}" for name, number in measured["versions"].items()
    )
    image = "{}, {files:,} images at {image_size} px, the network served in {served}"
    images = "; ".join(image.format(name, **plan.home) for name, plan in plans.items())
    rounds = both(plans, lambda plan: str(plan.home["request"]["mean_ms"]["n"]))
    requests = both(
        plans,
        lambda plan: (
            f"{plan.home['request']['n'] // plan.home['request']['mean_ms']['n']:,}"
        ),
    )
    epochs = both(plans, lambda plan: str(plan.home["training"]["images_s"]["n"]))
    also = (
        f" The machine had other work, too (load {measured['load']:g} when it began)."
        if busy(measured)
        else ""
    )
    cells = (
        f" Two numbers in a cell are those of {listed(list(plans))}."
        if len(plans) > 1
        else ""
    )
    return (
        f"Measured on {measured['date']}: one thread of a machine with"
        f" {measured['cores']} cores ({measured['hardware'].split(',')[0]}) and"
        f" {volume(measured['memory_bytes'])} of memory; {versions}. Images: {images}."
        f" Median [smallest, largest] of {rounds} rounds, each of {requests} requests,"
        f" and of {epochs} epochs of training.{also}{cells}"
    )


def first_to_break(plan: Plan) -> str:
    rows = plan.limits()
    place = [row.part for row in rows].index(SERVED)
    early = ", then ".join(f"{row.part} ({per_second(row.rate)})" for row in rows[1:3])
    start = (
        f"The first to break is the **{rows[0].part}, at {per_second(rows[0].rate)}**,"
        f" then {early}. "
    )
    if place == 0:
        return (
            start
            + "The service itself is the bottleneck: make it faster before anything"
            " else."
        )
    moved = [row.part for row in rows[:place] if row.network]
    faster = (
        f"of it a faster network moves only {listed(moved)}"
        if moved
        else "no faster network mends it"
    )
    return (
        start + f"The service itself is number {place + 1} of {len(rows)}, at"
        f" {per_second(rows[place].rate)}: what breaks before it was made for a"
        f" class, and {faster}."
    )


def of_a_request(plan: Plan) -> str:
    parts, rates = (
        plan.home["request"]["parts"],
        plan.home["network"][plan.home["served"]],
    )
    whole, largest = sum(parts.values()), max(parts, key=parts.get)
    share, gain = parts["network"] / whole, rates["32"]["median"] / rates["1"]["median"]
    name = "the network" if largest == "network" else f"{largest}, not the network"
    batched = capacity.amdahl(share, gain)
    pays = "that pays" if batched >= 1.1 else "that hardly pays on this core"
    return (
        f"The largest part of a request is {name} ({percent(parts[largest] / whole)})."
        " A network ten times as fast would make the request"
        f" {times(capacity.amdahl(share, 10))} as fast. Batches of 32 make the network"
        f" {times(gain)} as fast, and with it the request {times(batched)}: {pays}."
    )


def of_the_log(measured: dict, plans: dict[str, Plan]) -> str:
    cost = {name: value["median"] for name, value in measured["log"]["writing"].items()}
    gain, forced = cost["processes2_s"] / cost["processes1_s"], cost["forced_us"]
    locked, batched = (
        cost[name] / cost["line_us"] for name in ("locked_us", "batch32_us")
    )
    two = (
        "so they hardly wait for each other: a line is one append, without a lock"
        if gain >= 1.8
        else (
            "on a machine that had other work to do: whether they wait for each other"
            " cannot be told"
            if busy(measured)
            else (
                f"so each loses {percent(1 - gain / 2)} to the other, although no lock"
                " is held: the file is what they share"
            )
        )
    )

    def share(plan):
        parts = plan.home["request"]["parts"]
        return percent(parts["statistics and log line"] / sum(parts.values()))

    return (
        f"Two processes write {times(gain)} what one writes, {two}. A line under a lock"
        f" costs {times(locked)} as much, a line forced to the disk"
        f" {times(forced / cost['line_us'])} (at most {number(1e6 / forced)} lines/s)."
        " The kit does neither: its lines survive a killed process, but a power cut"
        " may take the last ones. One call for 32 requests writes a line in"
        f" {percent(batched)} of the time. Of a request, statistics and line are"
        f" {both(plans, share)}."
    )


def of_the_queue(plan: Plan) -> str:
    kind = (
        "hardly vary: nearly M/D/1"
        if plan.cv2 < 0.1
        else "vary, less than in M/M/1"
        if plan.cv2 < 1
        else "vary more than in M/M/1"
    )
    limit, most = plan.assumed["limit_ms"], plan.assumed["most_load"]
    allowed = capacity.most_load(plan.service, plan.cv2, plan.p99, limit / 1000)
    planned = (
        f"would allow a load of {allowed:.2f}; the plan stops at {most:g}, for bursts"
        " and for machines that die"
        if allowed > most
        else f"allows {allowed:.2f}, less than the {most:g} of a cautious plan"
    )
    n = plan.home["request"]["n"]
    # its square alone is at most the sum of all n
    longest = number(1 + math.sqrt(n * plan.cv2))
    tail = (
        f"None of the {n:,} measured requests took more than about {longest} times the"
        " mean; rarer pauses were not seen."
    )
    if capacity.rare_pauses(plan.service, plan.cv2, plan.p99):
        tail = (
            "Requests rarer than 1 in 100 took much longer: the tail may be several"
            " times as long as computed."
        )
    elif plan.cv2 > 2:
        tail = "With such a c² the tail may be longer than computed."
    return (
        f"Service times {kind} (c² = {number(plan.cv2)}). {tail} The limit of {limit:g}"
        f" ms {planned}."
    )


def at_half(plans: dict[str, Plan]) -> str:
    """What a load of 0.5 does to the mean and to the tail."""

    def mean(plan):
        return times(
            1
            + capacity.mean_wait(0.5 / plan.service, plan.service, plan.cv2)
            / plan.service
        )

    def tail(plan):
        return times(
            capacity.slowest(0.5 / plan.service, plan.service, plan.cv2, plan.p99)
            / plan.p99
        )

    return (
        f"At $\\rho = 0.5$ an answer takes on average {both(plans, mean)} as long as"
        f" without a queue, but this tail is {both(plans, tail)} as long; near 1 the"
        " queue has no end."
    )


def of_the_cost(plans: dict[str, Plan]) -> str:
    low, high = RATES[0], RATES[-1]
    ratio = both(
        plans,
        lambda p: times(p.serving(low)["per_million"] / p.serving(high)["per_million"]),
    )

    def share(plan):
        served = plan.serving(low)
        return served["busy"] / (served["machines"] * plan.cores)

    idle = (
        " Until they are full, other work beside it saves more than any optimisation."
        if max(map(share, plans.values())) < IDLE
        else ""
    )
    return (
        f"A million answers cost {ratio} as much at {RATE_NAMES[low]} as at"
        f" {RATE_NAMES[high]}, with the same code: at {RATE_NAMES[low]} the cores that"
        f" are paid for all day work {both(plans, lambda p: percent(share(p)))} of the"
        f" time.{idle}"
    )


def of_a_day(plan: Plan) -> str:
    said = []
    for rate in RATES:
        parts = {
            name: value
            for name, value in plan.busy(rate).items()
            if math.isfinite(value)
        }
        largest, answers = max(parts, key=parts.get), parts[capacity.ANSWERS]
        ratio = (
            f" ({times(parts[largest] / answers)} the answers)"
            if largest != capacity.ANSWERS
            else ""
        )
        said.append(f"at {RATE_NAMES[rate]} into {largest}{ratio}")
    return f"The largest part goes {'; '.join(said)}."


def of_powers(plans: dict[str, Plan]) -> str:
    exponents = both(plans, lambda plan: f"{plan.growth['MMD embedding'][0]:.2f}")
    if min(plan.growth["MMD embedding"][0] for plan in plans.values()) > 1.2:
        return (
            f"What grows with a power of the rate (MMD: {exponents}) overtakes all that"
            " grows as the rate does."
        )
    return f"All parts grow about as the rate does (MMD: its power {exponents})."


def of_components(plan: Plan) -> str:
    """Where each component breaks first."""
    first = {}
    for row in plan.limits():
        first.setdefault(
            row.component, f"the {row.component} at {per_second(row.rate)} ({row.part})"
        )
    return f"First in each component: {listed(list(first.values()))}."


def broken(plan: Plan) -> str:
    """Which parts each rate breaks that the rate before had left."""
    rows, lines, before = plan.limits(), [], 0
    for rate in RATES:
        gone = sum(row.rate < rate for row in rows)
        new = [row.part for row in rows[before:gone]]
        lines.append(
            f"- **{RATE_NAMES[rate]}**: {gone} of {len(rows)} are broken, newly"
            f" {listed(new)}."
        )
        before = gone
    return "\n".join(lines)


def of_drift(plan: Plan) -> str:
    exponent, _ = plan.growth["MMD embedding"]
    window, reference = plan.home["policy"]["window"], plan.home["reference"]
    between = plan.between_looks(10)
    every = between + reference
    slow, quick = (
        duration(plan.look("MMD embedding", images))
        for images in (every, window + reference)
    )
    about = "" if plan.measured(every) else "about "
    return (
        f"Twice the images cost MMD {times(2**exponent)} the time. All images between"
        f" two looks are {number(between)} at 10/s: {about}{slow} for a look, and a"
        f" kernel matrix of {volume(8 * every**2)} (the kit computes it in blocks). A"
        f" drawn window of {window} with a reference of {reference} takes {quick}, at"
        " any rate."
    )


def of_the_promise(plan: Plan) -> str:
    """What it takes to look 24 times as often and keep the policy's promise for as many
    days.
    """
    keep = {
        name: plan.home["policy"][name]
        for name in ("window", "alpha", "consecutive", "horizon")
    }
    now = utils.DriftPolicy(accuracy_floor=0.0, **keep)
    often = utils.DriftPolicy(
        accuracy_floor=0.0, **keep | {"horizon": 24 * now.horizon}
    )
    looks = plan.assumed["looks_per_day"]
    return (
        "The policy promises to call an undrifted stream drifted with a chance of at"
        f" most {now.alpha:g} over {now.horizon} windows. Looked at as soon as they are"
        f" full, at 1/s these last {duration(now.horizon * now.window)}; at {looks:g}"
        f" {'look' if looks == 1 else 'looks'} a day,"
        f" {duration(now.horizon / looks * DAY)}. To look 24 times as often and promise"
        f" for as long, `horizon` becomes {often.horizon}, so a window is flagged from"
        f" p = {number(often.window_alpha)} on instead of {number(now.window_alpha)},"
        f" which needs {often.permutations:,} permutations instead of"
        f" {now.permutations:,}: more looks cost power, and not only time."
    )


def of_the_response(plan: Plan) -> str:
    parts, rate = plan.response(10**4), 10**4
    steps = {name: parts[name] for name in ("detecting", "labelling", "training")}
    longest, saved = (
        max(steps, key=steps.get),
        parts["labelling"] - plan.labelling(people=2),
    )
    advice = {
        "detecting": "looking more often helps most, at the price told above",
        "labelling": "a second person helps most",
        "training": "a faster training helps most",
    }[longest]
    harm = parts["wrong"] * saved / parts["total"]
    return (
        f"Of {duration(parts['total'])} until a new model serves, {longest} is"
        f" {percent(steps[longest] / parts['total'])}: {advice}. A second person who"
        f" labels the {plan.home['labels']} images of theme 7 saves {duration(saved)};"
        f" that is {number(harm / rate)} wrong answers at 1/s and {number(harm)} at"
        f" {RATE_NAMES[rate]}, for the same work."
    )


def to_carry(plans: dict[str, Plan]) -> dict[str, str]:
    """What the replacements would have to carry."""
    top = RATES[-1]

    def parts(plan):
        return number(math.ceil(top * plan.write_s))

    return {
        "queue_carries": (
            f"At {RATE_NAMES[top]} it carries"
            f" {both(plans, lambda p: volume(top * p.line))} a second; with what one"
            f" process appends here as the measure, these are {both(plans, parts)}"
            " partitions."
        ),
        "store_carries": (
            f"At {RATE_NAMES[top]}, one object an image, it takes"
            f" {math.ceil(top / PUTS)} prefixes and grows by"
            f" {both(plans, lambda p: volume(DAY * top * p.file))} a day: by then one"
            " keeps a drawn share."
        ),
        "parquet_carries": both(plans, in_parquet),
        "features_carry": (
            "A day at 10⁴/s is"
            f" {both(plans, lambda p: volume(DAY * 10**4 * 4 * p.home['embedding']))}"
            " of embeddings, and spares"
            f" {both(plans, lambda p: number(10**4 * p.observe_s))} cores that would"
            " compute them again."
        ),
    }


def in_parquet(plan: Plan) -> str:
    if plan.packed is None:
        return "It was not measured here, as duckdb and pyarrow were not installed."
    return f"Here a line takes {percent(plan.packed)} of its bytes in the CSV."


def resting(plan: Plan) -> str:
    """Which limits an assumption would move."""
    return listed([row.part for row in plan.limits() if row.assumes])
