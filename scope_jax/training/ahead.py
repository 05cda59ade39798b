"""What a run may need later, compiled before its first step.

Steps differ: in how many rows failed, how long they are, how many are rescued. Sizes are rounded to
very few (`devices/shapes.py`), and here every program is run once for each of them, on rows that
are finished, so that nothing is written, learned or asked. What every step runs anyway is left to
the first one.
"""

import jax
import numpy as np

from scope_jax import correction, rollout
from scope_jax.configuration import Relift, Scope, TrainConfig
from scope_jax.correction import Groups, Scene
from scope_jax.correction.localisers import PRM
from scope_jax.devices.mesh import put_rows
from scope_jax.learning import AdvantageSpec
from scope_jax.learning.credit import OutcomeCredit, advantages
from scope_jax.run import PhaseTimer
from scope_jax.training import resample
from scope_jax.training.actors import Actors, prm_of
from scope_jax.training.learner import Learner
from scope_jax.training.logprobs import teacher_logprobs
from scope_jax.training.rollouts import (
    Step,
    demonstration_job,
    rollout_sampling,
    rows_of,
    rows_of_prompt,
    scene_of,
)
from scope_jax.types import Rollout


def compile_ahead(actors: Actors, learner: Learner, config: TrainConfig, key: jax.Array) -> None:
    """Run the programs that later steps may need. The learner is the same afterwards."""
    if config.sft.steps >= config.steps:
        return  # demonstrations alone: every step runs the same two programs
    later = config.sft.steps > 0  # rollouts begin after steps on demonstrations
    if prm_of(actors) is not None and not isinstance(actors.localiser, PRM):
        actors.reward.compile_ahead()  # otherwise the localiser has the same programs
    if later or config.resample or config.uses_localiser:
        step = Step(0, key, 0, PhaseTimer())
        _of_rollouts(actors, config, scene_of(actors, learner.publish(), config, step))
    with learner.rehearsal():
        if later or config.training.length_buckets > 1:
            _of_updates(actors, learner, config, key)
        if isinstance(config.method, Relift):
            rows = _idle(config, config.method.buffer, 1, 1)
            job = demonstration_job(actors, config, [], rows, Step(0, key, 0, PhaseTimer()))
            assert actors.teacher is not None
            shown = actors.teacher.demonstrate(job).rollout
            learner.clone(shown, np.ones(config.method.buffer, bool))


def _of_rollouts(actors: Actors, config: TrainConfig, scene: Scene) -> None:
    """Rollouts, scores and corrections."""
    prompts, group = config.rollout.prompts, config.rollout.group
    problems = [actors.task.train[0]] * (prompts * group)
    reward, everyone = np.ones(len(problems), np.float32), np.ones(len(problems), bool)
    judged = (reward, everyone, everyone, everyone)  # all of them right
    ahead = getattr(scene.localiser, "compile_ahead", None)
    # Rows of one token, and rows that are nearly full: what goes on from either is of one of the
    # two widths.
    own = rows_of_prompt(config)  # fewer than a group where demonstrations stand in it
    for length in (1, config.rollout.length - 1):
        rows = scene.policy.generator.extend(
            _idle(config, prompts, own, length),
            scene.key,
            rollout_sampling(actors, config),
            shared_prefix=own,
        )
        if own < group:
            rows = _idle(config, prompts, group, length)
        if ahead is not None:
            ahead(rows, scene)
        if isinstance(config.method, Scope):
            groups = Groups(rows, group, problems, *judged, {})
            correction.compile_ahead(groups, scene, config.method)
    groups = Groups(rows, group, problems, *judged, {})
    # What else there is about an advantage is computed on the host.
    asked = config.advantage
    spec = AdvantageSpec(std=asked.std, baseline=asked.baseline, batch_std=asked.batch_std)
    advantages(groups, scene, OutcomeCredit(), spec, max_new_tokens=config.rollout.new_tokens)
    if config.resample and isinstance(config.method, Scope):
        resample.compile_ahead(_idle(config, prompts, config.rows_per_group, 1))
    elif config.resample:
        rows_of([rows, rows], np.arange(len(problems)))


def _of_updates(actors: Actors, learner: Learner, config: TrainConfig, key: jax.Array) -> None:
    """Updates of rows of every width, and what a teacher says of such rows."""
    prompts, group = config.rollout.prompts, config.rows_per_group
    rows = _idle(config, prompts, group, 1)
    B = prompts * group
    advantage = np.zeros(rows.tokens_BT.shape if config.credit.scores_steps else B, np.float32)
    spares = isinstance(config.method, Scope) and config.method.spares
    credit_from = np.zeros(B, np.int32) if spares else None
    for width in learner.sizes.completion:
        length = np.full(B, min(1 + width, config.rollout.length), np.int32)
        as_long = rows.replace(length_B=put_rows(length))
        taught = None
        if config.distills:
            taught, _ = teacher_logprobs(actors.teacher, config, as_long, group)
        learner.update(as_long, group, advantage, np.ones(B, bool), key, 0, credit_from, taught)


def _idle(config: TrainConfig, prompts: int, group: int, length: int) -> Rollout:
    """Rows of this many tokens, all of them finished."""
    rows = rollout.from_prompts([[0] * length] * prompts, group, config.rollout.length)
    return rows.replace(finished_B=put_rows(np.ones(prompts * group, bool)))
