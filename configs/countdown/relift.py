"""ReLIFT (arXiv 2506.07527) on Countdown, as configs/arithmetic/relift.py sets it.

python -m scope_jax.train --config=configs/countdown/relift.py --workdir=runs/countdown_relift
"""

from scope_jax.configs.arithmetic import relift
from scope_jax.configs.countdown.common import on_countdown


def get_config():
    return on_countdown(relift.get_config())
