"""Self-correction on the embedded task: SCOPE's program with the policy itself in the teacher's
place.

python -m scope_jax.train --config=configs/arithmetic/self_correction.py --workdir=runs/self_correction

The policy draws the wrong step again, and the verifier decides. A policy that can read a prompt is
shown the wrong step and the reference answer too (teacher.template 'wrong_step_and_answer'); this
one reads digits only.
"""

from scope_jax.configs.arithmetic import scope


def get_config():
    config = scope.get_config()
    config.models.teacher = ""
    config.teacher.kind = "self"
    config.correction.teacher_temperature = 1.0
    config.loss.teacher_weight = 0.0
    return config
