"""How numbers stand in the tables of the page of all results."""

import math

from scope_jax.sweep.statistics import Estimate


def interval(e: Estimate, factor: float, sign: str = "") -> str:
    """mean ± half; "-" where there is no value. `factor` 100 shows percent, by one digit."""
    if e.count == 0 or math.isnan(e.mean):
        return "-"
    digits = 1 if factor == 100 else 2
    half = "" if math.isnan(e.half) else f" ± {e.half * factor:.{digits}f}"
    return f"{e.mean * factor:{sign}.{digits}f}{half}"


def signed(e: Estimate, factor: float) -> str:
    """A difference: `interval` with its sign."""
    return interval(e, factor, sign="+")


def plain(x: float) -> str:
    """Two digits, "-" for what is not finite."""
    return f"{x:.2f}" if math.isfinite(x) else "-"
