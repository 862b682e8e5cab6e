"""What stands in a record, as people read it: a value, a target, a duration."""

import math

SIGNS = {">=": "≥ ", "<=": "≤ ", "==": ""}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float) -> str:
    """Three significant digits: 0.833, 12.3, 1 234, 8.1 · 10⁻⁷; whole numbers in full.

    The decimal sign is a point in both languages, as in the figures.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    if value and abs(value) < 0.001:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits} · 10{str(int(exponent)).translate(RAISED)}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def shown(value, yes: str = "yes", no: str = "no") -> str:
    """A value of the record: a flag in words, a number shortened, the rest as it is."""
    if isinstance(value, bool):
        return yes if value else no
    return number(value) if isinstance(value, (int, float)) else str(value)


def target(text: str, yes: str = "yes", no: str = "no") -> str:
    """A target of the record: '>= 0.7' becomes '≥ 0.700', '== True' becomes 'yes'."""
    sign, _, aim = text.partition(" ")
    if aim in ("True", "False"):
        return yes if aim == "True" else no
    try:
        aim = number(int(aim) if aim.isdecimal() else float(aim))
    except ValueError:  # the name of a provider
        pass
    return SIGNS.get(sign, f"{sign} ") + aim


def duration(seconds: float) -> str:
    """10.5 s, 3 min 20 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
