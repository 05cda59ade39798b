"""The report of `fit` as text."""

import math
from typing import Any

from scope_jax.fit.topology import GIB
from scope_jax.report import tables

HEAD = (
    *("program", "HBM GiB", "of", "args", "temp", "others"),
    *("TFLOP", "HBM GB", "net GB", "seconds", "bound", "x", "fits"),
)


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    limit = report["limit"]
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    out = [
        f"{report['topology']}: {report['devices']} devices of {limit / GIB:.2f} GiB"
        f" ({report['limit_is']}), mesh {mesh}",
        "compiled for these devices, not run; seconds are rooflines at published peaks",
        *(f"  {who:<8} {source}" for who, source in report["models"].items()),
        "  resident "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in report["held"].items())
        + " GiB",
        "",
    ]
    rows = [_row(line, limit) for line in report["programs"]]
    left = (0, HEAD.index("bound"), HEAD.index("fits"))
    out += tables.plain(HEAD, rows, left=left).splitlines()
    out += ["", *figures(report)]
    out += [f"note: {note}" for note in report["notes"]]
    out += [
        f"{line['program']}: {text}"
        for line in report["programs"]
        for text in ([line["error"]] if line["error"] else [])
    ]
    out += [
        f"warning: {line['program']}: {text}"
        for line in report["programs"]
        for text in line["warnings"]
    ]
    return "\n".join(out)


def _row(line: dict[str, Any], limit: float) -> list[str]:
    gib = [f"{line[key] / GIB:.2f}" for key in ("arguments", "temporaries", "resident")]
    verdict = (
        f"yes, {(limit - line['needed']) / GIB:.1f} left"
        if line["fits"]
        else f"NO, {_over(line, limit)} too much"
    )
    return [
        line["program"],
        f"{line['needed'] / GIB:.2f}",
        f"{line['needed'] / limit:.0%}",
        *gib,
        f"{line['flops'] / 1e12:,.0f}",
        f"{line['hbm'] / 1e9:,.0f}",
        f"{line['network'] / 1e9:,.1f}",
        f"{line['seconds']:.2f}",
        line["bound"],
        f"{line['runs']:g}",
        verdict,
    ]


def _over(line: dict[str, Any], limit: float) -> str:
    return f"{(line['needed'] - limit) / GIB:.1f}" if math.isfinite(line["needed"]) else "?"


def figures(report: dict[str, Any]) -> list[str]:
    """The lines under the table."""
    lines = {line["program"]: line for line in report["programs"]}
    out = []
    if (rollout := lines.get("rollout")) and rollout["decode_step"]:
        step = rollout["decode_step"]
        out.append(
            f"rollout: {rollout['tokens_per_s']:,.0f} tokens/s at most; a decode step of"
            f" {rollout['rows']} rows takes {step['seconds'] * 1e3:.2f} ms ({step['bound']}):"
            f" {step['hbm'] / 1e9:.2f} GB of HBM, {step['network'] / 1e6:.1f} MB of network in"
            f" {step['collectives']:.0f} collectives"
        )
        if inner := sum(part["times"] * part["trips"] * part["hbm"] for part in step["parts"]):
            out.append(
                f"rollout: {inner / 1e9:.2f} GB of it in loops that end on data, which read what"
                " rows hold in the mean"
            )
        for name, kernel in step["kernels"].items():
            out.append(
                f"rollout: {kernel['hbm'] / 1e9:.2f} GB of it in {kernel['times']:.0f} calls of"
                f" {name}, which read what rows hold in the mean (of experts: one layer's)"
            )
    if (update := lines.get("update")) and update["mfu"]:
        out.append(
            f"update: {update['mfu']:.0%} of the peak put to use at most, {update['rows']} rows in"
            " a micro-batch"
        )
    if report["seconds_per_step"] is not None:
        out.append(
            f"step: {report['seconds_per_step']:.0f} s at least where all rows are as long as they"
            " may be (no evaluation)"
        )
    for name, best in report.get("largest", {}).items():
        what = "micro-batch" if name == "update" else "number of seats"
        size = f"{best['needed'] / GIB:.2f} GiB" if best["needed"] else "-"
        out.append(
            f"largest {what} that fits: {best['rows']} rows ({size})"
            if best["rows"]
            else f"no {what} fits ({size})"
        )
    out.append("everything fits" if report["fits"] else "does NOT fit")
    return out
