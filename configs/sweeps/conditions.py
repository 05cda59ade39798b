r"""Where does the correction start to pay? Signed terms with one condition changed at a time: how
sparse reward is, how late first errors are, how good the teacher is, how often the cut is wrong.

python -m scope_jax.sweep --sweep=configs/sweeps/conditions.py --jobs=2 \
    --workdir=runs/conditions --records=docs/records/conditions

GRPO and SCOPE where the base changes; SCOPE alone where only its teacher or its cut does. Seeds and
problems are those of temperatures.py, whose runs are the conditions as they are. Measured: lead at
0.6 from 2.1 +- 6.6 (base with 0.6 of its borrows wrong) over 3.6 +- 4.4 (0.9) to 36.5 +- 34.7
(0.97); of teachers with 0.3, 0.6 and 0.9 of their borrows wrong 2.6 +- 6.0, 2.6 +- 8.1, -5.2 +-
17.4; docs/results.md.
"""

import dataclasses
from typing import Any

from scope_jax.configs.sweeps.common import (
    CACHE,
    TEMPERATURE_PROBLEMS,
    TEMPERATURES,
    checkpoints,
    run,
)
from scope_jax.sweep.runs import Checkpoint

SEEDS = range(500, 503)
PLACE = f"{CACHE}/conditions"
# Of the usual base: a misconception about subtractions that borrow, 0.9 of them wrong, in any line.
SPARSITY = {
    "sparsity_0.6": {"target.misconception": 0.6},
    "sparsity_0.97": {"target.misconception": 0.97},
}
# About any line that wraps, never up to one line and always from another on.
LATENESS = {
    f"lateness_{last}": {
        "target.misconception_kind": "wrap",
        "task.options.misconception_lines": (first, last),
    }
    for first, last in ((1, 3), (3, 5))
}
# Share of subtractions that borrow which the teacher's own training had wrong: a teacher that makes
# the base's error, at last (0.9) as often as the base.
TEACHER = (0.3, 0.6, 0.9)
NOISE = (0.25, 0.5, 0.75, 1.0)  # share of the located first errors that are moved to another step


def prepare():
    bases = [
        Checkpoint("configs/checkpoints.py:base,arithmetic", f"{PLACE}/{name}", overrides)
        for name, overrides in (SPARSITY | LATENESS).items()
    ]
    teachers = [
        Checkpoint(
            "configs/checkpoints.py:teacher,arithmetic",
            f"{PLACE}/teacher_{rate:g}",
            {"target.misconception": rate},
        )
        for rate in TEACHER
    ]
    return [*checkpoints("arithmetic"), *bases, *teachers]


def sweep():
    arms: list[tuple[str, str, dict[str, Any]]] = [
        (name, method, {"models.policy": f"{PLACE}/{name}"})
        for name in (*SPARSITY, *LATENESS)
        for method in ("grpo", "scope")
    ]
    arms += [
        (f"teacher_{rate:g}", "scope", {"models.teacher": f"{PLACE}/teacher_{rate:g}"})
        for rate in TEACHER
    ]
    arms += [(f"noise_{noise:g}", "scope", {"localiser.noise": noise}) for noise in NOISE]
    runs = []
    for seed in SEEDS:
        for name, method, overrides in arms:
            settings = TEMPERATURES | overrides
            one = run(
                "arithmetic", method, seed, settings, f"{name}_{method}", TEMPERATURE_PROBLEMS
            )
            axis, _, level = name.partition("_")
            labels = {**one.labels, "axis": axis, "level": float(level)}
            runs.append(dataclasses.replace(one, labels=labels))
    return runs
