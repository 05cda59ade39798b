"""Supervised steps first, GRPO after, on Countdown, as configs/arithmetic/sft_grpo.py sets it.

python -m scope_jax.train --config=configs/countdown/sft_grpo.py --workdir=runs/countdown_sft_grpo
"""

from scope_jax.configs.arithmetic import sft_grpo
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(sft_grpo.get_config())
