"""GRPO (arXiv 2402.03300) on Countdown, as configs/arithmetic/grpo.py sets it.

python -m scope_jax.train --config=configs/countdown/grpo.py --workdir=runs/countdown_grpo
"""

from scope_jax.configs.arithmetic import grpo
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(grpo.get_config())
