r"""Five switches of SCOPE, on and off together: which of them make it better, and which make it
broader? Sixteen of their thirty-two combinations on both tasks, so chosen that the effect of each
switch and of each pair of switches can be told from all others.

python -m scope_jax.sweep --sweep=configs/sweeps/factorial.py --jobs=2 \
    --workdir=runs/factorial --records=docs/records/factorial

Seeds and draw of problems are its own: what is chosen here is to be tried again on others.
Measured with seeds 400 and 401: resample 3.7 +- 1.0 points at 0.6 on Countdown, all_failed -1.1 +-
0.8 on signed terms, nothing else resolved in accuracy, no pair (docs/results_appendix.md). The same
command goes on with the other seeds.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from scope_jax.configs.sweeps.common import (
    DOMAINS,
    FACTORIAL_PROBLEMS,
    TEMPERATURES,
    checkpoints,
    run,
)

SEEDS = range(400, 406)
SWITCHES: dict[str, dict[str, Any]] = {
    "pair": {"method.place": "pair", "method.credit": "divergence"},
    "all_failed": {"method.select.groups": "all_failed", "method.select.per_group": 1},
    "resample": {"method.resample": 2},
    "smoothing": {"advantage.smoothing": 0.05},
    # On where an odd number of the others is on: the half of the combinations that is run.
    "self_first": {"teacher.first": "self", "teacher.self_tries": 2},
}


def combinations() -> Iterator[tuple[str, ...]]:
    """The names of the switches that are on, of each combination."""
    *free, last = SWITCHES
    for on in itertools.product((False, True), repeat=len(free)):
        yield tuple(itertools.compress([*free, last], [*on, sum(on) % 2 == 1]))


def prepare():
    return [checkpoint for domain in DOMAINS for checkpoint in checkpoints(domain)]


def sweep():
    runs = []
    for seed in SEEDS:  # whole seeds of both tasks first
        for domain in DOMAINS:
            for on in combinations():
                overrides = dict(TEMPERATURES)
                for name in on:
                    overrides |= SWITCHES[name]
                label = "scope_" + "_".join(on or ("plain",))
                switches = {name: name in on for name in SWITCHES}
                runs.append(
                    run(
                        domain,
                        "scope",
                        seed,
                        overrides,
                        label,
                        FACTORIAL_PROBLEMS,
                        switches=switches,
                    )
                )
    return runs
