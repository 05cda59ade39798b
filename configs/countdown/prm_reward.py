"""Step scores of the PRM as dense rewards beside the outcome, on Countdown, as
configs/arithmetic/prm_reward.py sets it.

python -m scope_jax.train --config=configs/countdown/prm_reward.py --workdir=runs/countdown_prm_reward
"""

from scope_jax.configs.arithmetic import prm_reward
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(prm_reward.get_config())
