"""Rows of figures as one table."""

import math
from typing import Any

COLUMNS = ("part", "case", "time", "result", "of the limit", "compile", "peak memory", "remarks")


def seconds(value: float | None) -> str:
    """A time with three digits, in s, ms or us."""
    if value is None:
        return ""
    for unit, factor in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1 or unit == "us":
            return f"{value * factor:,.3g} {unit}" if value * factor < 1000 else f"{value:,.0f} s"
    return ""


def rate(row: dict[str, Any]) -> str:
    """tokens, operations or bytes per second; or an error."""
    if "error_max" in row:
        mean = f", mean {row['error_mean']:.1e}" if "error_mean" in row else ""
        return f"largest error {row['error_max']:.1e}{mean}"
    if "rate" not in row:
        return ""
    value, unit = row["rate"], row["rate_unit"]
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.3g} {unit}"


def share(row: dict[str, Any]) -> str:
    return f"{100 * row['share']:.1f} % of {row['of']}" if row.get("share") is not None else ""


def memory(row: dict[str, Any]) -> str:
    """The peak of the process so far: of this part where it rose, else a bound."""
    if row.get("peak_bytes") is None:
        return ""
    bound = "" if row.get("peak_is_own") else "<= "
    return f"{bound}{row['peak_bytes'] / 1e9:.2f} GB"


def cells(part: str, record: dict[str, Any]) -> list[tuple[str, ...]]:
    """The lines of one part; what was skipped or failed has one of its own."""
    lines: list[tuple[str, ...]] = []
    for row in record.get("rows", []):
        line = (part, row["case"], seconds(row.get("seconds")), rate(row), share(row))
        line += (seconds(row.get("compile_seconds")), memory(row), row.get("note", ""))
        lines.append(line)
    if record["status"] != "done":
        words = f"{record['status'].upper()}: {record['why']}"
        lines.append((part, words, *[""] * (len(COLUMNS) - 2)))
    return lines


def table(parts: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of the records of all parts, in their order."""
    lines = [line for part, record in parts.items() for line in cells(part, record)]
    # Sentences about skipped parts do not widen their column.
    measured = [COLUMNS, *(line for line in lines if any(line[2:]))]
    widths = [max(len(line[n]) for line in measured) for n in range(len(COLUMNS))]
    widths[0] = max(len(line[0]) for line in [COLUMNS, *lines])

    def text(line: tuple[str, ...]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(line, widths)]
        return f"| {' | '.join(padded)} |"

    rule = tuple("-" * width for width in widths)
    return "\n".join(text(line) for line in [COLUMNS, rule, *lines])


def not_finite(row: dict[str, Any]) -> list[str]:
    """Names of the numbers of a row that are not finite."""
    return [
        name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)
    ]
