"""Numbers as a reader wants to see them: counts, signed values, percentages, intervals, bytes."""

import math
from collections.abc import Mapping
from typing import Any

MISSING = "n/a"


def finite(value: Any) -> float | None:
    """`value` as a float, or None when it is missing, NaN or infinite."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    known = finite(value)
    return MISSING if known is None else f"{int(known):,}"


def fixed(value: Any, decimals: int) -> str:
    """`value` with `decimals` digits and a true minus sign; what would round to nothing keeps its power of ten."""
    known = finite(value)
    if known is None:
        return MISSING
    tiny = 0 < abs(known) < 0.5 * 10**-decimals
    shown = f"{known:.1e}" if tiny else f"{known:.{decimals}f}"
    return shown.replace("-", "\N{MINUS SIGN}")


def plain(value: Any) -> str:
    """`value` with three decimals, fewer above a hundred."""
    known = finite(value)
    return fixed(value, 3 if known is None or abs(known) < 100 else 1)


def interval(low: Any, high: Any, decimals: int) -> str:
    """`[low, high]`, or nothing when there is no interval."""
    if finite(low) is None or finite(high) is None:
        return ""
    return f"[{fixed(low, decimals)}, {fixed(high, decimals)}]"


def estimate(value: Mapping[str, Any] | None) -> str:
    """An estimate in its own unit with its interval, e.g. `2.200 [1.900, 2.500]`."""
    if value is None:
        return MISSING
    return f"{plain(value.get('value'))} {bounds(value)}".strip()


def bounds(value: Mapping[str, Any]) -> str:
    """The interval of an estimate in its own unit."""
    low, high = finite(value.get("low")), finite(value.get("high"))
    return "" if low is None or high is None else f"[{plain(low)}, {plain(high)}]"


def percent(value: Mapping[str, Any]) -> str:
    """An estimate that is a share, e.g. `43 % [38, 48]`; one decimal when everything is below ten per cent."""
    known = [finite(value.get(key)) for key in ("value", "low", "high")]
    shares = [None if share is None else 100 * share for share in known]
    if shares[0] is None:
        return MISSING
    largest = max(abs(share) for share in shares if share is not None)
    decimals = 1 if 0 < largest < 9.95 else 0
    middle, low, high = (None if share is None else rounded(share, decimals) for share in shares)
    ends = "" if low is None or high is None else f" [{low}, {high}]"
    return f"{middle}\N{NO-BREAK SPACE}%{ends}"


def rounded(value: float, decimals: int) -> str:
    """`value` with `decimals` digits and a true minus sign, never minus zero."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def size(value: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.3g} {unit}" if unit != "GB" else f"{value:,.2f} GB"


def score_decimals(largest: float) -> int:
    """Digits after the point that give the largest score four significant ones; between 2 and 8."""
    if not largest:
        return 3
    return min(8, max(2, 3 - math.floor(math.log10(largest))))
