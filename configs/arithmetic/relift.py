"""ReLIFT (arXiv 2506.07527) on the embedded task: GRPO, and supervised steps on the prompts whose
group failed altogether.

python -m scope_jax.train --config=configs/arithmetic/relift.py --workdir=runs/relift
"""

from scope_jax.configs.arithmetic import common, grpo


def get_config():
    config = common.with_teacher(grpo.get_config())
    config.demonstrations.buffer = 16
    config.demonstrations.verified = True
    return config
