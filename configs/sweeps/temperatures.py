r"""Does a lead hold at lower temperatures, and among equal numbers of right solutions? The methods
that are compared most, and SCOPE's objective with the correction off or with the policy in the
teacher's place, evaluated at temperatures 1, 0.6 and 0 with 32 samples, on seeds and a draw of
problems of their own.

python -m scope_jax.sweep --sweep=configs/sweeps/temperatures.py --jobs=2 \
    --workdir=runs/temperatures --records=docs/records/temperatures
"""

from scope_jax.configs.sweeps.common import (
    DOMAINS,
    TEMPERATURE_PROBLEMS,
    TEMPERATURES,
    checkpoints,
    run,
)

SEEDS = range(500, 508)
METHODS = ("grpo", "scope_off", "scope_self", "scope", "dapo", "luffy", "luffy_nll")


def prepare():
    return [checkpoint for domain in DOMAINS for checkpoint in checkpoints(domain)]


def sweep():
    return [
        run(domain, method, seed, TEMPERATURES, problems=TEMPERATURE_PROBLEMS)
        for seed in SEEDS  # whole seeds of both tasks first: pairs for what is there so far
        for domain in DOMAINS
        for method in METHODS
    ]
