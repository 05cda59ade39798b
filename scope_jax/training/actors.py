"""Who takes part in a training run: policy, teacher, process reward model, task, loaded as a
config says."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax

from scope_jax import models, rollout, teachers
from scope_jax.configuration import Scope, TrainConfig
from scope_jax.correction import Localiser, make_localiser
from scope_jax.correction.localisers import PRM
from scope_jax.data.load import Task, load_task
from scope_jax.devices.mesh import own_mesh, to_host_memory
from scope_jax.models import attention
from scope_jax.prm import ProcessRewardModel
from scope_jax.rewards import Reward
from scope_jax.text import end_ids, load_tokenizer
from scope_jax.types import imported


@dataclasses.dataclass(eq=False)
class Actors:
    """Who takes part in a run."""

    config: models.ModelConfig  # of the policy
    params: models.Params  # of the policy; empty once a `Learner` has taken them over
    tokenizer: Any  # of the policy
    task: Task
    teacher: teachers.Teacher | None  # where the method asks one
    localiser: Localiser | None  # where the method looks for wrong steps
    # Who says what a row is worth; to be closed.
    reward: Reward = dataclasses.field(default_factory=Reward)


def load_actors(
    config: TrainConfig, mesh: jax.sharding.Mesh, workdir: Path | None = None
) -> Actors:
    """Load the task and the checkpoints that the config needs, laid out on the mesh. An endpoint's
    answers are kept in `workdir` where the config names no other place. Functions of the reward
    are imported before the first weight is read."""
    if not config.models.policy:
        raise ValueError(
            "config.models.policy is None; give the Hugging Face directory of the policy to train"
        )
    rows = config.rollout.prompts * config.rollout.group
    with contextlib.ExitStack() as opened:
        reward = opened.enter_context(Reward(config.reward, None, rows, config.rollout.length))
        reward.start()
        actors = _loaded(config, mesh, workdir, reward)
        opened.pop_all()  # all went well: whoever has the actors closes it
    return actors


def _loaded(
    config: TrainConfig, mesh: jax.sharding.Mesh, workdir: Path | None, reward: Reward
) -> Actors:
    assert config.models.policy
    model_config, params = models.load(config.models.policy, dtype=config.dtype, mesh=mesh)
    rollout.check_heads(model_config, mesh)
    if model_config.head != "lm":
        raise ValueError(
            f"{config.models.policy}: head {model_config.head!r}; a policy needs a vocabulary head"
            " ('lm')"
        )
    tokenizer = load_tokenizer(config.models.policy)
    # A base model's files often name one end token only; in a chat its turns end with another.
    model_config = dataclasses.replace(
        model_config,
        end_ids=end_ids(tokenizer, model_config.end_ids),
        attention=attention_of(config),
    )
    task = load_task(config.task, tokenizer)
    teacher = localiser = None
    if config.uses_teacher:
        teacher = load_teacher(config, model_config, tokenizer, task, mesh, workdir)
    prm = load_prm(config, mesh) if config.uses_prm else None
    if config.uses_localiser:
        localiser = make_localiser(config.localiser, prm)
    reward.prm = prm if config.reward.uses_prm else None
    return Actors(model_config, params, tokenizer, task, teacher, localiser, reward)


def prm_of(actors: Actors) -> ProcessRewardModel | None:
    """The process reward model of a run, whoever asks it."""
    localiser = actors.localiser
    return localiser.model if isinstance(localiser, PRM) else actors.reward.prm


def attention_of(config: TrainConfig) -> Literal["plain"] | None:
    """`ModelConfig.attention` of every model of a run."""
    return "plain" if config.models.attention == "plain" else None


def attention_line(actors: Actors, dtype: str) -> str:
    """Which form of attention each model of a run takes on the devices of the mesh that is set."""
    found = {"policy": actors.config}
    if isinstance(actors.teacher, teachers.ModelTeacher) and actors.teacher.generator is not None:
        found["teacher"] = actors.teacher.generator.config
    if (prm := prm_of(actors)) is not None:
        found["PRM"] = prm.config
    who: dict[str, list[str]] = {}
    for name, config in found.items():
        choice = attention.choose(models.with_kernel(config), dtype)
        reason = f" ({choice.reason})" if choice.reason else ""
        who.setdefault(f"{choice.kernel}{reason}", []).append(name)
    return "attention: " + "; ".join(f"{form} for {', '.join(n)}" for form, n in who.items())


def resident_models(actors: Actors) -> list[models.Params]:
    """The weights of the models beside the policy, wherever they are."""
    found = []
    if isinstance(actors.teacher, teachers.ModelTeacher) and actors.teacher.generator is not None:
        found.append(actors.teacher.generator.params)
    if (prm := prm_of(actors)) is not None:
        found.append(prm.params)
    return found


def load_prm(config: TrainConfig, mesh: jax.sharding.Mesh) -> ProcessRewardModel:
    """The process reward model that the config names."""
    if not config.models.prm:
        raise ValueError(
            "config.models.prm is None; this config scores steps with a process reward model"
        )
    prm = ProcessRewardModel.load(
        config.models.prm,
        dtype=config.dtype,
        mesh=_own_mesh(config, "prm", mesh),
        format=config.models.prm_format,
        weights=config.models.prm_weights,
    )
    prm = dataclasses.replace(
        prm, config=dataclasses.replace(prm.config, attention=attention_of(config))
    )
    if config.placement.prm == "host":
        prm = dataclasses.replace(prm, params=to_host_memory(prm.params))
    return prm


def load_teacher(
    config: TrainConfig,
    policy: models.ModelConfig,
    tokenizer: Any,
    task: Task,
    mesh: jax.sharding.Mesh,
    workdir: Path | None = None,
) -> teachers.Teacher:
    """The teacher that the config describes. Raises ValueError where it lacks what it needs."""
    spec, endpoint = config.teacher, config.teacher.endpoint
    teacher_writes_tails = isinstance(config.method, Scope) and config.method.tail == "teacher"
    if ":" in spec.kind:
        return imported(spec.kind, "teacher.kind")(spec)
    if spec.kind == "endpoint":
        if not endpoint.cache and workdir is not None:
            endpoint = dataclasses.replace(endpoint, cache=str(workdir / "teacher_cache"))
        return teachers.EndpointTeacher(teachers.Endpoint(endpoint), spec)
    if spec.kind == "self":
        return teachers.ModelTeacher(None, spec)
    if spec.kind == "program":
        if not task.domain.writes_steps:
            raise ValueError(
                f"teacher.kind 'program': domain {task.domain.name!r} has no program that writes"
                " steps; use 'model'"
            )
        styles = getattr(task.domain, "styles", ())
        if spec.style not in styles:
            raise ValueError(
                f"config.teacher.style = {spec.style!r} is no style of {task.domain.name!r}; one of"
                f" {', '.join(styles)}"
            )
        return teachers.ProgramTeacher(spec)
    if spec.kind == "reference":
        if not any(problem.solution for problem in task.train[:16]):
            raise ValueError(
                f"teacher.kind 'reference': {task.train.name}: none of the problems looked at has a"
                " solution"
            )
        return teachers.ReferenceTeacher(spec)
    directory = config.models.teacher
    if not directory:
        raise ValueError(
            "config.models.teacher is None; the correction needs a teacher (a Hugging Face"
            " directory)"
        )
    where = _own_mesh(config, "teacher", mesh)
    teacher_config, params = models.load(
        directory, dtype=config.dtype, mesh=where, weights=config.models.teacher_weights
    )
    teacher_config = dataclasses.replace(teacher_config, attention=attention_of(config))
    rollout.check_heads(teacher_config, where)
    if teacher_config.head != "lm":
        raise ValueError(
            f"{directory}: head {teacher_config.head!r}; a teacher needs a vocabulary head ('lm')"
        )
    try:
        own = load_tokenizer(directory)
        same = own.get_vocab() == tokenizer.get_vocab()
    except FileNotFoundError:
        own, same = None, teacher_config.vocab_size == policy.vocab_size
    if not same and (own is None or not spec.prompted or teacher_writes_tails):
        raise ValueError(
            f"{directory}: another tokenizer than the policy's (vocabulary of"
            f" {teacher_config.vocab_size}, the policy has {policy.vocab_size}); a teacher that"
            " continues rows must share it: set teacher.template to 'wrong_step'"
        )
    params = models.decode_layout(teacher_config, params, where)
    if config.placement.teacher == "host":
        params = to_host_memory(params)
    writer = rollout.Generator(params, teacher_config, where)
    return teachers.ModelTeacher(writer, spec, None if same else own)


def _own_mesh(config: TrainConfig, name: str, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The mesh of the teacher or the PRM. Raises ValueError where it does not hold the run's
    devices."""
    shape = dataclasses.asdict(getattr(config.mesh, name))
    return own_mesh(mesh, shape, f"config.mesh.{name}")
