"""Who takes part: everything about them is checked before the first weight is read."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from scope_jax import models, rollout, teachers
from scope_jax.correction import CorrectionSpec, Localiser, Scene, make_localiser
from scope_jax.correction.step_checkers import StepChecker
from scope_jax.data.prompts import check_vocabulary
from scope_jax.prm import ProcessRewardModel
from scope_jax.rewards import Reward, RewardSpec
from scope_jax.rollout import Generator, Policy, SampleSpec
from scope_jax.run import PhaseTimer
from scope_jax.salvage.encode import Encoder
from scope_jax.salvage.settings import Settings, is_address, teacher_kind
from scope_jax.salvage.writer import EndpointWriter
from scope_jax.tasks import Domain
from scope_jax.text import end_ids, load_tokenizer
from scope_jax.types import made


@dataclasses.dataclass(frozen=True, eq=False)
class Cast:
    """Who takes part. A context manager; leaving it ends the processes of the reward."""

    settings: Settings
    scene: Scene
    spec: CorrectionSpec
    encoder: Encoder
    timer: PhaseTimer

    @property
    def endpoints(self) -> list[teachers.Endpoint]:
        """The servers that are asked."""
        who = (self.scene.teacher, self.scene.policy.generator)
        found = [getattr(one, "endpoint", None) for one in who]
        return [one for one in found if isinstance(one, teachers.Endpoint)]

    def __enter__(self) -> "Cast":
        return self

    def __exit__(self, *_: object) -> None:
        self.scene.reward.close()
        if isinstance(self.scene.localiser, StepChecker):
            self.scene.localiser.close()


def planned(settings: Settings, mesh: jax.sharding.Mesh) -> Callable[[], Cast]:
    """What loads the weights, once all that can be known without them is checked. Raises
    ValueError, FileNotFoundError."""
    domain = settings.domain
    directory = rows_tokenizer(settings)
    tokenizer = load_tokenizer(directory)
    local = settings.policy if settings.policy and not is_address(settings.policy) else None
    described = _described_writer(local, mesh) if local else _no_weights(len(tokenizer))
    if local:
        check_vocabulary(tokenizer, described.vocab_size, local)
    ends = end_ids(tokenizer, described.end_ids)
    sampling = SampleSpec(settings.temperature, max_new_tokens=settings.new_tokens, end_ids=ends)
    end = rollout.solution_end(tokenizer, sampling)
    encoder = Encoder(tokenizer, domain, settings, described.vocab_size, ends, end)
    encoder.check()
    if settings.localiser == "oracle" and not domain.checks_steps:
        raise ValueError(f"--localiser=oracle: task {domain.name!r} cannot check steps; use 'prm'")
    own = _own_localiser(settings) if ":" in settings.localiser else None
    prm = None
    if settings.prm:
        prm = ProcessRewardModel.described(settings.prm, settings.prm_format)
    read_teacher = _planned_teacher(settings, domain, tokenizer, mesh)
    read_policy = _planned_policy(settings, local, encoder, mesh)
    named = (local, settings.prm, _teacher_directory(settings))
    for weights in dict.fromkeys(directory for directory in named if directory):
        models.check_files(weights)

    # Functions of the user are imported before anything is written: a wrong name is no run.
    if not settings.needs_answers:
        with Reward(_reward_spec(settings)) as reward:
            _start(reward)
    if settings.localiser == "function":
        with StepChecker(settings.localiser_spec) as checker:
            _start(checker)

    def load() -> Cast:
        with contextlib.ExitStack() as opened:
            reward = opened.enter_context(Reward(_reward_spec(settings)))
            _start(reward)
            localiser = own
            if settings.localiser == "function":
                localiser = opened.enter_context(StepChecker(settings.localiser_spec))
                _start(localiser)
            model = None
            if prm is not None and settings.prm is not None:
                model = prm.with_weights(settings.prm, dtype=settings.dtype, mesh=mesh)
            timer = PhaseTimer()
            scene = Scene(
                domain=domain,
                policy=Policy(read_policy(), tokenizer, sampling),
                key=jax.random.key(settings.seed),
                teacher=read_teacher(),
                localiser=localiser or make_localiser(settings.localiser_spec, model),
                seed=settings.seed,
                timer=timer,
                reward=reward,
            )
            opened.pop_all()
        return Cast(settings, scene, settings.correction, encoder, timer)

    return load


def rows_tokenizer(settings: Settings) -> str:
    """The directory of the tokenizer that rows are in. Raises ValueError where nobody has one."""
    named = (settings.tokenizer, settings.policy, _teacher_directory(settings))
    found = [directory for directory in named if directory and not is_address(directory)]
    if not found:
        raise ValueError(
            "--tokenizer is missing: a directory with the policy's tokenizer, since neither policy"
            " nor teacher is one"
        )
    return found[0]


def _teacher_directory(settings: Settings) -> str | None:
    return settings.teacher if teacher_kind(settings.teacher) == "model" else None


def _reward_spec(settings: Settings) -> RewardSpec:
    return RewardSpec() if settings.needs_answers else RewardSpec(function=settings.verify)


def _start(functions: Reward | StepChecker) -> None:
    """Import the functions of the user. Raises ValueError that names the flag."""
    try:
        functions.start()
    except ValueError as error:
        words = str(error)
        for setting, flag in _FLAGS.items():
            words = words.replace(setting, flag)
        raise ValueError(words) from None


# What settings of a training are called here.
_FLAGS = {
    "config.reward.function": "--verify",
    "config.localiser.function": "--checker",
    "localiser.function": "--checker",
}


def _own_localiser(settings: Settings) -> Localiser:
    """A class of the user's. Raises ValueError where it is none."""
    name = settings.localiser
    try:
        found = make_localiser(settings.localiser_spec)
    except ValueError as error:
        raise ValueError(
            f"--localiser: {error}; a function that names the first wrong step is"
            f" --localiser=function --checker={name}"
        ) from None
    if not callable(getattr(found, "score", None)):
        raise ValueError(f"--localiser={name}: expected a localiser with a method score")
    return found


def _no_weights(vocabulary: int) -> models.ModelConfig:
    """What stands for a policy that is not on the mesh: its vocabulary."""
    return models.ModelConfig(vocabulary, 2, 1, 1, 1, 2, 2)


def _described_writer(directory: str, mesh: jax.sharding.Mesh) -> models.ModelConfig:
    """The config of a model that writes. Raises ValueError where it has no vocabulary head."""
    config = models.read_config(directory)
    rollout.check_heads(config, mesh)
    if config.head != "lm":
        raise ValueError(
            f"{directory}: head {config.head!r}; a model that writes needs a vocabulary head ('lm')"
        )
    return config


def _load_writer(
    directory: str, settings: Settings, mesh: jax.sharding.Mesh, ends: tuple[int, ...] | None = None
) -> Generator:
    """A model that writes; `ends`: in place of the end tokens that its configuration names."""
    config, params = models.load(directory, dtype=settings.dtype, mesh=mesh)
    if ends is not None:
        config = dataclasses.replace(config, end_ids=ends)
    return Generator(models.decode_layout(config, params, mesh), config, mesh)


def _planned_policy(
    settings: Settings, local: str | None, encoder: Encoder, mesh: jax.sharding.Mesh
) -> Callable[[], Generator]:
    if local:
        return lambda: _load_writer(local, settings, mesh)
    nobody = _no_weights(encoder.vocabulary)
    if not settings.policy:
        return lambda: Generator({}, nobody)
    server = EndpointWriter(
        {},
        nobody,
        endpoint=teachers.Endpoint(_endpoint(settings, "policy")),
        tokenizer=encoder.tokenizer,
        end=encoder.end,
        separator=encoder.domain.separator,
        seed=settings.seed,
    )
    return lambda: server


def _endpoint(settings: Settings, who: str) -> teachers.EndpointSpec:
    """How the server of the policy or the teacher is asked. Replies are kept beside the output, so
    that a salvage that goes on after a stop has the same ones."""
    teacher = who == "teacher"
    return teachers.EndpointSpec(
        url=getattr(settings, who),
        model=getattr(settings, f"{who}_model"),
        api=settings.teacher_api if teacher else "completions",
        api_key_env=getattr(settings, f"{who}_key_env"),
        concurrency=settings.concurrency,
        max_tokens=settings.teacher_tokens if teacher else None,
        extra=settings.teacher_extra if teacher else None,
        request_seconds=settings.request_seconds,
        batch_seconds=settings.request_seconds * max(8, settings.rows / 4),
        cache=str(Path(settings.out) / f"{who}_replies"),
    )


def _planned_teacher(
    settings: Settings, domain: Domain, tokenizer: Any, mesh: jax.sharding.Mesh
) -> Callable[[], teachers.Teacher]:
    kind = teacher_kind(settings.teacher)
    own: Any = None
    its_own: Any = None
    if kind == "model":
        its_own = load_tokenizer(settings.teacher)
        own = None if its_own.get_vocab() == tokenizer.get_vocab() else its_own
        if own is not None and settings.localiser == "likelihood":
            raise ValueError(
                f"--localiser=likelihood: teacher {settings.teacher} has another tokenizer than the"
                " rows; use --localiser=prm"
            )
    template = settings.template
    if template == "auto":
        continues = kind == "self" or (kind == "model" and own is None)
        continues |= kind == "endpoint" and settings.teacher_api == "completions"
        template = "continue" if continues else "wrong_step"
    spec = teachers.TeacherSpec(
        kind=kind,
        template=template,
        prompt_tokens=settings.prompt_tokens + settings.new_tokens + 512,
        step_tokens=settings.step_tokens,
        style=settings.style or next(iter(getattr(domain, "styles", ())), ""),
    )
    if kind == "model":
        directory = settings.teacher
        described = _described_writer(directory, mesh)
        check_vocabulary(own or tokenizer, described.vocab_size, directory)
        teachers.ModelTeacher(None, spec, own)  # refuses another tokenizer that goes on with ids
        ends = end_ids(its_own, described.end_ids)
        return lambda: teachers.ModelTeacher(
            _load_writer(directory, settings, mesh, ends), spec, own, its_own
        )
    if kind == "self":
        return lambda: teachers.ModelTeacher(None, spec)
    found = _teacher_without_weights(settings, spec, domain)
    return lambda: found


def _teacher_without_weights(
    settings: Settings, spec: teachers.TeacherSpec, domain: Domain
) -> teachers.Teacher:
    if ":" in spec.kind:
        return made(spec.kind, "--teacher", spec)
    if spec.kind == "endpoint":
        return teachers.EndpointTeacher(teachers.Endpoint(_endpoint(settings, "teacher")), spec)
    if spec.kind == "reference":
        return teachers.ReferenceTeacher(spec)
    if not domain.writes_steps:
        raise ValueError(
            f"--teacher=program: task {domain.name!r} has no program that writes steps"
        )
    if spec.style not in getattr(domain, "styles", ()):
        known = ", ".join(getattr(domain, "styles", ()))
        raise ValueError(f"--style={spec.style} is no style of {domain.name!r}; one of {known}")
    return teachers.ProgramTeacher(spec)
