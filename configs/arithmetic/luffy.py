"""LUFFY (arXiv 2504.14945) on the embedded task: one whole solution of the teacher in each group,
shaped loss on it.

python -m scope_jax.train --config=configs/arithmetic/luffy.py --workdir=runs/luffy

As in the paper, demonstrations that the verifier refuses are left out. As in its released script:
the demonstration counts in the group mean, no standard deviation, no clip. The script's entropy
bonus, 0.001 times a mean over tokens, stands beside a sum over tokens that is divided by the
longest completion; beside ours it is 0.001 x longest / tokens of a mini-batch, which is 2e-5 here.
"""

from scope_jax.configs.arithmetic import common


def get_config():
    config = common.with_teacher(common.get_config())
    config.demonstrations.per_group = 1
    config.demonstrations.verified = True
    config.loss.teacher_term = "shaped"
    config.loss.teacher_weight = 1.0
    config.loss.teacher_schedule = "constant"
    config.loss.normaliser = "constant"
    config.loss.clip_low = config.loss.clip_high = None
    config.loss.entropy_bonus = 2e-5
    return config
