"""Who takes part in a training run: policy, teacher, process reward model, task, loaded as a
config says. Everything that can be refused without weights is refused before the first is read:
a function `planned_...` checks, and returns what loads."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from scope_jax import models, rollout, teachers
from scope_jax.configuration import Scope, TrainConfig
from scope_jax.correction import Localiser, make_localiser
from scope_jax.correction.localisers import PRM
from scope_jax.correction.step_checkers import StepChecker
from scope_jax.data.load import Task, load_task
from scope_jax.data.prompts import check_prompts, check_vocabulary
from scope_jax.devices.mesh import own_mesh, to_host_memory
from scope_jax.devices.shapes import fine_width
from scope_jax.models import attention
from scope_jax.prm import ProcessRewardModel
from scope_jax.rewards import Reward
from scope_jax.teachers.base import Ask
from scope_jax.teachers.prompts import prompt_text
from scope_jax.text import encode_in_place, end_ids, load_tokenizer
from scope_jax.types import made


@dataclasses.dataclass(eq=False)
class Actors:
    """Who takes part in a run; to be closed."""

    config: models.ModelConfig  # of the policy
    params: models.Params  # of the policy; empty once a `Learner` has taken them over
    tokenizer: Any  # of the policy
    task: Task
    teacher: teachers.Teacher | None  # where the method asks one
    localiser: Localiser | None  # where the method looks for wrong steps
    # Who says what a row is worth.
    reward: Reward = dataclasses.field(default_factory=Reward)

    def close(self) -> None:
        """End the processes of the user's functions. May be called twice."""
        self.reward.close()
        if isinstance(self.localiser, StepChecker):
            self.localiser.close()


def load_actors(
    config: TrainConfig, mesh: jax.sharding.Mesh, workdir: Path | None = None
) -> Actors:
    """Load the task and the checkpoints that the config needs, laid out on the mesh. An endpoint's
    answers are kept in `workdir` where the config names no other place. Who has the actors closes
    them."""
    model_config, tokenizer = described_policy(config, mesh)
    task = load_task(config.task, tokenizer)
    _check_task_prompts(config, task, tokenizer, model_config)
    read_teacher = read_prm = None
    if config.uses_teacher:
        read_teacher = planned_teacher(config, model_config, tokenizer, task, mesh, workdir)
    if config.uses_prm:
        read_prm = planned_prm(config, mesh)
    if config.uses_localiser:
        _check_localiser(config, task)
    _check_paths(config, task)
    # Headers of all files, before the weights of the first.
    models.check_files(config.models.policy or "")
    for directory in _weights_beside(config, read_prm is not None):
        models.check_files(directory)

    rows = config.rollout.prompts * config.rollout.group
    with contextlib.ExitStack() as opened:
        reward = opened.enter_context(Reward(config.reward, None, rows, config.rollout.length))
        reward.start()  # its functions are imported: what is wrong with them is said here
        localiser: Localiser | None = None
        if config.uses_localiser and config.localiser.kind == "function":
            localiser = opened.enter_context(StepChecker(config.localiser))
            localiser.start()  # the same
        elif config.uses_localiser and ":" in config.localiser.kind:
            localiser = make_localiser(config.localiser)
        params = models.load(config.models.policy or "", dtype=config.dtype, mesh=mesh)[1]
        teacher = read_teacher() if read_teacher is not None else None
        prm = read_prm() if read_prm is not None else None
        if config.uses_localiser and localiser is None:
            localiser = make_localiser(config.localiser, prm)
        reward.prm = prm if config.reward.uses_prm else None
        opened.pop_all()  # all went well
    return Actors(model_config, params, tokenizer, task, teacher, localiser, reward)


def prm_of(actors: Actors) -> ProcessRewardModel | None:
    """The process reward model of a run, whoever asks it."""
    localiser = actors.localiser
    return localiser.model if isinstance(localiser, PRM) else actors.reward.prm


def described_policy(
    config: TrainConfig, mesh: jax.sharding.Mesh
) -> tuple[models.ModelConfig, Any]:
    """(config of the policy as a run uses it, its tokenizer); no weight is read."""
    directory = config.models.policy
    if not directory:
        raise ValueError(
            "config.models.policy is None; give the Hugging Face directory of the policy to train"
        )
    model_config = models.read_config(directory)
    rollout.check_heads(model_config, mesh)
    if model_config.head != "lm":
        raise ValueError(
            f"{directory}: head {model_config.head!r}; a policy needs a vocabulary head ('lm')"
        )
    model_config.check_rows(config.rollout.length, "config.rollout.prompt_tokens and new_tokens")
    if config.evaluation.problems or config.evaluation.ood_problems:
        model_config.check_rows(
            sum(config.evaluation_tokens), "config.evaluation.prompt_tokens and new_tokens"
        )
    # An update's rows, as `pack` lays them out.
    length = config.rollout
    model_config.check_width(fine_width(length.prompt_tokens) + fine_width(length.new_tokens))
    if config.lora.spec is not None:
        models.lora_table(model_config, config.lora.spec)  # names what cannot have adapters
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, model_config.vocab_size, directory)
    # A base model's files often name one end token only; in a chat its turns end with another.
    ends = end_ids(tokenizer, model_config.end_ids)
    attention = attention_of(config)
    return dataclasses.replace(model_config, end_ids=ends, attention=attention), tokenizer


def _check_localiser(config: TrainConfig, task: Task) -> None:
    if config.localiser.kind == "oracle" and not task.domain.checks_steps:
        raise ValueError(
            f"localiser.kind 'oracle': domain {task.domain.name!r} cannot check steps; use 'prm' or"
            " 'monte_carlo'"
        )


def _check_paths(config: TrainConfig, task: Task) -> None:
    if config.advantage.unique and not task.domain.finds_paths:
        raise ValueError(
            f"config.advantage.unique: domain {task.domain.name!r} does not say which solutions"
            " take the same path (Domain.solution_path), and texts are hardly ever equal; use"
            " advantage.smoothing"
        )


def _check_task_prompts(
    config: TrainConfig, task: Task, tokenizer: Any, model: models.ModelConfig
) -> None:
    """Raise ValueError where training problems, or those of an evaluation set, cannot be shown to
    the policy."""
    settings, evaluation = config.rollout, config.evaluation
    sets = {split: problems for split, problems in task.evaluation.items() if len(problems)}
    for problems in (task.train, *sets.values()):
        trained = problems is task.train
        tokens = settings.prompt_tokens if trained else evaluation.prompt_tokens
        check_prompts(
            problems,
            task.domain,
            tokenizer,
            max_tokens=tokens or settings.prompt_tokens,
            chat=settings.chat,
            vocab_size=model.vocab_size,
            setting="rollout.prompt_tokens" if trained else "",
        )


def _weights_beside(config: TrainConfig, prm: bool) -> list[str]:
    """Directories of the models beside the policy."""
    teacher = config.uses_teacher and config.teacher.kind == "model"
    named = (config.models.teacher if teacher else None, config.models.prm if prm else None)
    return [directory for directory in named if directory]


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


def planned_prm(config: TrainConfig, mesh: jax.sharding.Mesh) -> Callable[[], ProcessRewardModel]:
    """What loads the process reward model that the config names, once all else about it is
    checked."""
    directory = config.models.prm
    if not directory:
        raise ValueError(
            "config.models.prm is None; this config scores steps with a process reward model"
        )
    where = _own_mesh(config, "prm", mesh)
    described = ProcessRewardModel.described(directory, config.models.prm_format)

    def load() -> ProcessRewardModel:
        prm = described.with_weights(
            directory, dtype=config.dtype, mesh=where, weights=config.models.prm_weights
        )
        prm = dataclasses.replace(
            prm, config=dataclasses.replace(prm.config, attention=attention_of(config))
        )
        if config.placement.prm == "host":
            prm = dataclasses.replace(prm, params=to_host_memory(prm.params))
        return prm

    return load


def planned_teacher(
    config: TrainConfig,
    policy: models.ModelConfig,
    tokenizer: Any,
    task: Task,
    mesh: jax.sharding.Mesh,
    workdir: Path | None = None,
) -> Callable[[], teachers.Teacher]:
    """What gives the teacher that the config describes, once all else about it is checked. One
    without weights is there at once. Raises ValueError where it lacks what it needs."""
    if config.teacher.kind == "model":
        return _planned_model_teacher(config, policy, tokenizer, task, mesh)
    found = _teacher_without_weights(config, task, workdir)
    return lambda: found


def _teacher_without_weights(
    config: TrainConfig, task: Task, workdir: Path | None
) -> teachers.Teacher:
    spec, endpoint = config.teacher, config.teacher.endpoint
    if ":" in spec.kind:
        return made(spec.kind, "teacher.kind", spec)
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
    # What is left is a reference.
    if not any(problem.solution for problem in task.train[:16]):
        raise ValueError(
            f"teacher.kind 'reference': {task.train.name}: none of the problems looked at has a"
            " solution"
        )
    return teachers.ReferenceTeacher(spec)


def _planned_model_teacher(
    config: TrainConfig,
    policy: models.ModelConfig,
    tokenizer: Any,
    task: Task,
    mesh: jax.sharding.Mesh,
) -> Callable[[], teachers.Teacher]:
    spec, directory = config.teacher, config.models.teacher
    if not directory:
        raise ValueError(
            "config.models.teacher is None; this config asks a teacher (a Hugging Face directory)"
        )
    where = _own_mesh(config, "teacher", mesh)
    described = models.read_config(directory)
    rollout.check_heads(described, where)
    if described.head != "lm":
        raise ValueError(
            f"{directory}: head {described.head!r}; a teacher needs a vocabulary head ('lm')"
        )
    described.check_width(config.rollout.length)
    if not spec.prompted or config.distills:  # it reads the policy's rows
        described.check_rows(config.rollout.length, "config.rollout.prompt_tokens and new_tokens")
    its_own, shared = _own_tokenizer(config, described, policy, tokenizer)
    ends = end_ids(its_own or tokenizer, described.end_ids)
    if spec.prompted:
        described.check_rows(
            spec.prompt_tokens + spec.step_tokens, "config.teacher.prompt_tokens and step_tokens"
        )
        _try_template(its_own or tokenizer, task, spec)

    def load() -> teachers.Teacher:
        teacher_config, params = models.load(
            directory, dtype=config.dtype, mesh=where, weights=config.models.teacher_weights
        )
        teacher_config = dataclasses.replace(
            teacher_config, attention=attention_of(config), end_ids=ends
        )
        params = models.decode_layout(teacher_config, params, where)
        if config.placement.teacher == "host":
            params = to_host_memory(params)
        writer = rollout.Generator(params, teacher_config, where)
        return teachers.ModelTeacher(writer, spec, None if shared else its_own, its_own)

    return load


def _try_template(tokenizer: Any, task: Task, spec: teachers.TeacherSpec) -> None:
    """Raise ValueError where a prompted teacher cannot be shown what it will be asked."""
    ask = Ask(task.train[0], (), "", False, 0)
    encode_in_place(
        tokenizer,
        [prompt_text(ask, spec)],
        max_length=spec.prompt_tokens,
        chat=bool(tokenizer.chat_template),
    )


def _own_tokenizer(
    config: TrainConfig, teacher: models.ModelConfig, policy: models.ModelConfig, tokenizer: Any
) -> tuple[Any, bool]:
    """(the teacher's tokenizer, None where its directory has none; whether its ids are the
    policy's)."""
    spec, directory = config.teacher, config.models.teacher or ""
    writes_tails = isinstance(config.method, Scope) and config.method.tail == "teacher"
    try:
        own = load_tokenizer(directory)
        same = own.get_vocab() == tokenizer.get_vocab()
    except FileNotFoundError:
        own, same = None, teacher.vocab_size == policy.vocab_size
    if not same and config.uses_localiser and config.localiser.kind == "likelihood":
        raise ValueError(
            f"{directory}: another tokenizer than the policy's; localiser.kind 'likelihood' asks"
            " the teacher for the probability of the policy's tokens: use 'prm', or a teacher of"
            " the policy's family"
        )
    if not same and config.distills:
        raise ValueError(
            f"{directory}: another tokenizer than the policy's (vocabulary of"
            f" {teacher.vocab_size}, the policy has {policy.vocab_size}); loss.distill_weight asks"
            " the teacher for the probabilities of the policy's tokens: it must share the tokenizer"
        )
    if not same and (own is None or not spec.prompted or writes_tails):
        raise ValueError(
            f"{directory}: another tokenizer than the policy's (vocabulary of"
            f" {teacher.vocab_size}, the policy has {policy.vocab_size}); a teacher that"
            " continues rows must share it: set teacher.template to 'wrong_step'"
        )
    if own is not None:
        check_vocabulary(own, teacher.vocab_size, directory)
    return own, same


def _own_mesh(config: TrainConfig, name: str, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The mesh of the teacher or the PRM. Raises ValueError where it does not hold the run's
    devices."""
    shape = dataclasses.asdict(getattr(config.mesh, name))
    return own_mesh(mesh, shape, f"config.mesh.{name}")
