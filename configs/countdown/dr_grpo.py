"""Dr.GRPO (arXiv 2503.20783) on Countdown, as configs/arithmetic/dr_grpo.py sets it.

python -m scope_jax.train --config=configs/countdown/dr_grpo.py --workdir=runs/countdown_dr_grpo
"""

from scope_jax.configs.arithmetic import dr_grpo
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(dr_grpo.get_config())
