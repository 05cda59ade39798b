"""SCOPE on the embedded task: failures rescued at their first wrong step.

python -m scope_jax.train --config=configs/arithmetic/scope.py --workdir=runs/scope

Measured (`make demo`: seeds 0, 1, 2; 1,000 problems): pass@1 0.674 +- 0.004, pass@8 0.997,
distinct paths 4.78; longer problems 0.481 / 0.980; salvage rate 0.50. docs/embedded_task.md has
the table, docs/results.md all rivals on more seeds.
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.with_prm(common.with_teacher(common.get_config()))
    config.correction.enabled = True
    config.correction.step_tokens = 8
    return config
