"""SCOPE on Countdown, as configs/arithmetic/scope.py sets it.

python -m scope_jax.train --config=configs/countdown/scope.py --workdir=runs/countdown_scope
"""

from scope_jax.configs.arithmetic import scope
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(scope.get_config())
