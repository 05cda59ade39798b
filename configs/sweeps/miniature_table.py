r"""The paper's table in miniature: every method on both embedded tasks, five seeds each, twenty for scope, grpo and luffy.

python -m scope_jax.sweep --sweep=configs/sweeps/miniature_table.py --jobs=2 \
    --workdir=runs/table --records=benchmarks/results/table

All choices were made before, on other seeds and other draws of problems: settings by tuning.py (signed terms only), SCOPE's
defaults by ablations.py and confirmation.py.
docs/results.md is written from the records by `python -m scope_jax.results_page`.
"""

from configs.sweeps.common import DOMAINS, METHODS, checkpoints, run

SEEDS = range(300, 305)
# A difference of two points is below what five seeds resolve.
MANY_SEEDS = range(300, 320)
OFTEN = ("scope", "grpo", "luffy")


def prepare():
    return [checkpoint for domain in DOMAINS for checkpoint in checkpoints(domain)]


def sweep():
    methods = [method for method in METHODS if method != "scope_first"]
    first = [run(domain, method, seed) for method in methods for domain in DOMAINS for seed in SEEDS]
    more = [run(domain, method, seed) for method in OFTEN for domain in DOMAINS for seed in MANY_SEEDS[len(SEEDS) :]]
    return first + more
