"""The picture of the page of all results: learning curves of all methods of a domain."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scope_jax.sweep.figures import Groups, our_method
from scope_jax.sweep.statistics import estimate
from scope_jax.sweep.svg import colours, picture

WINDOW = 5  # points that are averaged to one
BANDED = 3  # methods in colour and with a band; the others are grey

_PANELS = (
    ("reward of the policy's rollouts", "reward/mean"),
    ("groups without an advantage, in the update", "advantage/zero_group_share_after"),
    ("entropy of the policy (nats)", "policy/entropy"),
    ("distinct right paths in a group", "diversity/distinct_paths"),
)


def draw_curves(methods: Groups, path: Path) -> None:
    """Reward of the policy's own rollouts, groups without an advantage, entropy and distinct paths
    over the run: smoothed means over seeds, with 95 % bands for ours and the two rivals with most
    seeds. Writes an SVG that is the same for the same records."""
    ours = our_method(methods)
    banded = sorted(methods, key=lambda name: (name != ours, -len(methods[name])))[:BANDED]
    with picture(path, 9, 6.4) as figure:
        panels = figure.subplots(2, 2).flat
        for axes, (title, metric) in zip(panels, _PANELS):
            for name, records in methods.items():
                known = [r for r in records if metric in r["curve"]]
                lines = [smooth(r["curve"][metric]) for r in known]
                if not lines:
                    continue
                length = min(len(line) for line in lines)
                x = (np.arange(length) + WINDOW) * known[0].get("curve_every", 1)
                columns = np.array([line[:length] for line in lines]).T
                estimates = [estimate(column.tolist()) for column in columns]
                mean = np.array([e.mean for e in estimates])
                main = name in banded
                colour = colours()(banded.index(name)) if main else "0.65"
                width, level = (1.8, 3) if main else (0.7, 1)
                label = name if main else None
                axes.plot(x, mean, color=colour, lw=width, label=label, zorder=level)
                if main and len(lines) > 1:
                    half = np.array([e.half for e in estimates])
                    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, lw=0)
            axes.set_title(title, fontsize=9)
            axes.grid(alpha=0.3)
            axes.set_xlabel(f"rollout batches (mean of {WINDOW} points)")
        first = figure.axes[0]
        if len(methods) > len(banded):
            first.plot([], [], color="0.65", lw=0.7, label="other methods")
        first.legend(frameon=False)


def smooth(values: Sequence[float | None]) -> np.ndarray:
    """Means of WINDOW neighbours; empty where there are fewer values."""
    line = np.array([math.nan if v is None else v for v in values], np.float64)
    if len(line) < WINDOW:  # numpy would swap the line and the window
        return np.zeros(0)
    return np.convolve(line, np.full(WINDOW, 1 / WINDOW), mode="valid")
