r"""The paper's table in miniature: its methods on both embedded tasks, five seeds each, twenty
for SCOPE, GRPO and LUFFY.

python -m scope_jax.sweep --sweep=configs/sweeps/miniature_table.py --jobs=2 \
    --workdir=runs/table --records=docs/records/miniature

Settings were chosen on other seeds and another draw of problems of signed terms (tuning.py);
Countdown was looked at with them as they are. SCOPE is here with standard
deviation, mean over rows and the band of the selection (`scope_first`); its defaults come from
ablations.py and confirmation.py. docs/results.md and its appendix
are written from the records by `make results`.
"""

from scope_jax.configs.sweeps.common import DOMAINS, METHODS, checkpoints, run

SEEDS = range(5)
# Of confirmation.py, temperatures.py and hypothesis.py.
NOT_HERE = ("scope", "scope_plus", "scope_off", "scope_self")
# A difference of two points is below what five seeds resolve.
MANY_SEEDS = range(20)
OFTEN = ("scope_first", "grpo", "luffy")


def prepare():
    return [checkpoint for domain in DOMAINS for checkpoint in checkpoints(domain)]


def sweep():
    methods = [method for method in METHODS if method not in NOT_HERE]
    first = [
        run(domain, method, seed) for method in methods for domain in DOMAINS for seed in SEEDS
    ]
    more = [
        run(domain, method, seed)
        for method in OFTEN
        for domain in DOMAINS
        for seed in MANY_SEEDS[len(SEEDS) :]
    ]
    return first + more
