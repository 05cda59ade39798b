"""Every setting of a training run, its default and its check; turning a config into the specs that
the rooms take.

Experiments are files with a `get_config()` that starts from `default_config()`. Library functions
never see a config: only the entry points do.
"""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any, TypeVar

from ml_collections import ConfigDict

from scope_jax.correction import CorrectionSpec, LocaliserSpec, SelectSpec
from scope_jax.data.load import check_task
from scope_jax.learning import AdvantageSpec, LossSpec, OptimizerSpec
from scope_jax.learning.credit import CREDITS, Credit
from scope_jax.learning.optimizer import SCHEDULES
from scope_jax.models import REMAT, LoraSpec
from scope_jax.prm.formats import FORMATS as PRM_FORMATS
from scope_jax.rollout import SampleSpec
from scope_jax.teachers import DemonstrationSpec, EndpointSpec, TeacherSpec

DTYPES = ("float32", "bfloat16")
MASTER_WEIGHTS = ("float32", "none")
PLACES = ("device", "host")
TRAINING_COUNTS = (
    "epochs",
    "mini_batches",
    "micro_batches",
    "length_buckets",
    "stop_after_skipped",
)
FREE = ("task.options.", "task.train.", "task.evaluation.")
Spec = TypeVar("Spec")


def default_config() -> ConfigDict:
    """All settings of `scope_jax.train`, with their defaults (docs/method.md says why they are
    what they are)."""
    defaults: dict[str, Any] = {
        "seed": 0,
        "steps": 100,  # rollout batches; one update each unless `training` says otherwise
        "dtype": "float32",  # that weights are used in
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        # The same devices in another shape; all 0: that of `mesh`.
        "meshes": {name: {"data": 0, "fsdp": 0, "tensor": 0} for name in ("teacher", "prm")},
        # Where weights wait while others work: device | host.
        "placement": {
            "teacher": "device",
            "prm": "device",
            "reference": "device",
            "optimizer": "device",
        },
        "task": {
            "name": "arithmetic",  # arithmetic | math
            "data": "",
            "train_split": "train",
            "options": {},
            "train": {},  # of math: sources by name, such as {"math": {"path": ...}}; docs/data.md
            "evaluation": {},
            "decontaminate": "off",  # off | report | remove
            "decontaminate_words": 13,
        },
        "models": {
            "policy": "",
            "teacher": "",
            "prm": "",
            "prm_format": "auto",
        },  # Hugging Face directories
        "rollout": {
            "prompts": 16,  # per step
            "group": 8,  # rollouts per prompt
            "prompt_tokens": 64,  # longer prompts are dropped and counted
            "new_tokens": 64,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "slots": 0,  # rows decoded at once; 0: all
            "cache": "auto",  # auto (the parameters' dtype) | int8: keys and values while decoding
            "resample": (
                0
            ),  # further batches at the most, until every group has two rewards (DAPO's dynamic sampling)
            "chat": False,  # put prompts into the tokenizer's chat template
        },
        "correction": {
            "enabled": False,
            "localiser": LocaliserSpec.kind,
            **_fields(LocaliserSpec, skip=("kind",)),
            "step_tokens": TeacherSpec.step_tokens,
            "teacher_temperature": TeacherSpec.temperature,
            **_fields(CorrectionSpec, skip=("select", "rows_at_once")),
            "rows": 0,
            "select": _fields(SelectSpec),
        },
        "teacher": {
            **_fields(TeacherSpec, skip=("step_tokens", "temperature")),
            "endpoint": _fields(EndpointSpec),
        },
        "demonstrations": {
            "per_group": 0,
            "supervised_steps": 0,
            "rows": 0,
            "buffer": 0,
            **_fields(DemonstrationSpec),
        },
        "advantage": {
            **_fields(AdvantageSpec),
            "process": "none",
            **{name: value for way in CREDITS.values() for name, value in _fields(way).items()},
        },
        "loss": {
            **_fields(LossSpec, skip=("max_new_tokens",)),
            "teacher_schedule": (
                "linear"
            ),  # of teacher_weight over the run: constant | linear | cosine
            "teacher_weight_end": 0.0,
            "old_logp": "sampler",  # sampler | recompute
        },
        "optimizer": {**_fields(OptimizerSpec), "learning_rate": 1e-6},
        "lora": {**_fields(LoraSpec), "rank": 0},  # 0: all weights are trained
        # An update takes one of `mini_batches` parts of the rollout batch, in `micro_batches`
        # passes.
        "training": {
            "epochs": 1,
            "mini_batches": 1,
            "micro_batches": 1,
            "length_buckets": 1,  # parts of like length that the rows of an update are packed in
            "master_weights": (
                "float32"
            ),  # float32 | none: what trained weights are kept in, none being `dtype`
            "remat": "none",  # none | dots | layer: what is computed again in the backward pass
            "stop_after_skipped": 5,
        },
        "evaluation": {
            "every": 0,  # steps; 0: at the end only
            "at_start": False,
            "problems": 1000,
            "ood_problems": 1000,
            "samples": 8,
            "temperature": 1.0,
            "prompt_tokens": 0,  # 0: as in rollout
            "new_tokens": 0,  # 0: as in rollout
            "rows": 1024,  # decoded at once
        },
        "checkpoint": {
            "every": 50,
            "keep": 2,
            "directory": "",
        },  # a folder or gs:// address; empty: in the workdir
        "samples": {"every": 20, "rows": 6},
    }
    return ConfigDict(defaults)


def check_keys(config: ConfigDict, known_config: ConfigDict, free: tuple[str, ...] = FREE) -> None:
    """Raise ValueError for a key that `known_config` does not have (with the nearest one that it
    has) and for one that is missing. Keys below one of `free` are checked by whoever takes them."""
    known, given = dict(_leaves(known_config)), dict(_leaves(config))
    for key in given:
        if key not in known and not f"{key}.".startswith(free):
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
            raise ValueError(
                f"config.{key}: unknown key; the nearest known one is config.{near[0]}"
            )
    for key in known:
        if key not in given and not f"{key}.".startswith(free):
            raise ValueError(f"config.{key}: missing; start from default_config()")


def check_config(config: ConfigDict) -> None:
    """Raise ValueError for unknown or missing keys, values that make no sense and settings that
    cannot go together."""
    check_keys(config, default_config())
    for spec in (
        sample_spec,
        steps_spec,
        localiser_spec,
        teacher_spec,
        endpoint_spec,
        demonstration_spec,
        advantage_spec,
        credit_spec,
        loss_spec,
        optimizer_spec,
        lora_spec,
    ):
        spec(config)
    task = config.task.to_dict()
    check_task(
        task["name"],
        task["data"],
        task["options"],
        task["train"],
        task["evaluation"],
        task["decontaminate"],
    )
    for name, value, choices in (
        ("dtype", config.dtype, DTYPES),
        *((f"placement.{name}", value, PLACES) for name, value in config.placement.items()),
        ("models.prm_format", config.models.prm_format, ("auto", *PRM_FORMATS)),
        ("training.master_weights", config.training.master_weights, MASTER_WEIGHTS),
        ("training.remat", config.training.remat, tuple(REMAT)),
        ("loss.old_logp", config.loss.old_logp, ("sampler", "recompute")),
        ("loss.teacher_schedule", config.loss.teacher_schedule, SCHEDULES),
    ):
        if value not in choices:
            raise ValueError(f"config.{name} = {value!r} is unknown; one of {', '.join(choices)}")
    for reason in conflicts(config):
        raise ValueError(reason)


def conflicts(config: ConfigDict) -> Iterator[str]:
    """What cannot go together, each with its reason."""
    corrects, shows, process = (
        config.correction.enabled,
        config.demonstrations,
        config.advantage.process,
    )
    group = final_group(config)
    weights = (
        config.loss.teacher_weight,
        0 if config.loss.teacher_schedule == "constant" else config.loss.teacher_weight_end,
    )
    teacher_weight_is_0 = not any(weights)
    if corrects and config.correction.tail == "teacher" and config.teacher.kind != "model":
        yield (
            "config.correction.tail 'teacher' needs teacher.kind 'model', not"
            f" {config.teacher.kind!r}"
        )
    if (
        corrects
        and config.correction.accept == "unverified"
        and config.loss.teacher_term in ("shaped", "reinforce", "importance")
    ):
        yield (
            f"config.loss.teacher_term {config.loss.teacher_term!r} multiplies by an advantage, and"
            " unverified rows have none: use 'nll' with correction.accept 'unverified'"
        )
    if (
        corrects
        and config.correction.accept == "unverified"
        and (config.loss.teacher_term == "mask" or teacher_weight_is_0)
    ):
        yield (
            "config.correction.accept 'unverified' gives rows that learn by the teacher's term"
            " alone, and loss.teacher_term or teacher_weight takes it away: set loss.teacher_term"
            " to 'nll' and a weight above 0"
        )
    if corrects and config.correction.tail == "none" and config.correction.tails > 1:
        yield (
            f"config.correction.tails = {config.correction.tails}: correction.tail 'none' writes"
            " none; set tails to 1"
        )
    if shows.supervised_steps < config.steps:
        if config.rollout.group < 2:
            yield (
                f"config.rollout.group = {config.rollout.group} must be at least 2: a row is"
                " compared with the rest of its group"
            )
        if config.rollout.temperature == 0:
            yield (
                "config.rollout.temperature = 0 makes the rows of a group alike, which leaves"
                " nothing to compare: set it above 0"
            )
    if corrects and shows.per_group:
        yield (
            "config.demonstrations.per_group and correction.enabled: a failed demonstration would"
            " be corrected; use one of them"
        )
    if corrects and process != "none":
        yield (
            "config.advantage.process and correction.enabled: steps are scored before the repair;"
            " use one of them"
        )
    if process != "none" and shows.per_group:
        yield (
            "config.advantage.process and demonstrations.per_group: only the policy's rows have"
            " process rewards; use one of them"
        )
    if process != "none" and config.correction.localiser == "monte_carlo":
        yield (
            f"config.advantage.process {process!r} needs scores of steps: set correction.localiser"
            " to 'prm' or 'oracle'"
        )
    if process == "prefix" and config.advantage.std:
        yield (
            "advantage.process 'prefix' (VPPO) subtracts the group's mean only; set"
            " advantage.std to False"
        )
    if process == "prefix" and config.advantage.overlong_tokens:
        yield (
            "config.advantage.process 'prefix' takes no punished rewards: set"
            " advantage.overlong_tokens to 0"
        )
    if shows.per_group and shows.buffer:
        yield (
            "config.demonstrations.per_group and buffer: a group with a right demonstration has not"
            " failed; use one of them"
        )
    if process != "none" and config.loss.ratio == "sequence":
        yield (
            "config.loss.ratio 'sequence' has one ratio per row, which averages away the token"
            " advantages of advantage.process"
        )
    if config.rollout.resample and corrects:
        yield (
            "config.rollout.resample drops the groups that failed altogether, which"
            " correction.enabled is there to repair"
        )
    if config.rollout.resample and shows.per_group:
        yield (
            "config.rollout.resample drops groups of one reward before demonstrations.per_group"
            " gives them a second one"
        )
    if config.rollout.resample and shows.buffer:
        yield "config.rollout.resample drops the failed groups that demonstrations.buffer collects"
    if shows.per_group >= config.rollout.group:
        yield (
            f"config.demonstrations.per_group = {shows.per_group} leaves no rollout in a group of"
            f" {config.rollout.group}; for demonstrations alone set demonstrations.supervised_steps"
        )
    if demonstrates(config) and config.teacher.kind == "self":
        yield (
            "config.demonstrations need a teacher other than the policy itself: teacher.kind 'self'"
            " gives none"
        )
    if shows.per_group and not shows.verified and config.loss.teacher_term == "nll":
        yield (
            "config.loss.teacher_term 'nll' would clone demonstrations that the verifier refuses:"
            " set demonstrations.verified, or a term that multiplies by the advantage ('shaped',"
            " 'reinforce', 'importance')"
        )
    if config.placement.reference == "host" and config.lora.rank:
        yield (
            "config.placement.reference 'host' and lora.rank: the weights under the adapters are"
            " needed in every update"
        )
    if config.loss.tis_cap is not None and config.loss.old_logp == "sampler":
        yield (
            "config.loss.tis_cap weighs trainer against sampler; with loss.old_logp 'sampler' they"
            " are the same: use 'recompute'"
        )
    for name, value in (
        ("steps", config.steps),
        *(
            (f"rollout.{key}", config.rollout[key])
            for key in ("prompts", "group", "prompt_tokens", "new_tokens")
        ),
        *((f"training.{key}", config.training[key]) for key in TRAINING_COUNTS),
        *((f"evaluation.{key}", config.evaluation[key]) for key in ("samples", "rows")),
        ("checkpoint.every", config.checkpoint.every),
        ("samples.every", config.samples.every),
    ):
        if value < 1:
            yield f"config.{name} = {value} must be at least 1"
            return
    if config.advantage.overlong_tokens > config.rollout.new_tokens:
        yield (
            f"config.advantage.overlong_tokens = {config.advantage.overlong_tokens} is more than"
            f" rollout.new_tokens = {config.rollout.new_tokens}"
        )
    if config.rollout.resample < 0:
        yield f"config.rollout.resample = {config.rollout.resample} must be 0 or more"
    if config.rollout.prompts % config.training.mini_batches:
        yield (
            f"config.training.mini_batches = {config.training.mini_batches} does not divide"
            f" rollout.prompts = {config.rollout.prompts} (a mini-batch holds whole groups)"
        )
        return
    if shows.rows % config.training.mini_batches:
        yield (
            f"config.training.mini_batches = {config.training.mini_batches} does not divide"
            f" demonstrations.rows = {shows.rows}"
        )
    buckets, micro = config.training.length_buckets, config.training.micro_batches
    if config.rollout.prompts // config.training.mini_batches % buckets:
        yield (
            f"config.training.length_buckets = {buckets} does not divide rollout.prompts /"
            f" training.mini_batches = {config.rollout.prompts // config.training.mini_batches} (a"
            " bucket holds whole groups)"
        )
    if micro % buckets and buckets % micro:
        yield (
            f"config.training.length_buckets = {buckets} and micro_batches = {micro}: one must be a"
            " multiple of the other"
        )
    rows = config.rollout.prompts // config.training.mini_batches * group
    if rows % config.training.micro_batches:
        yield (
            f"config.training.micro_batches = {config.training.micro_batches} does not divide"
            f" prompts x group = {rows}"
            + (" of a mini-batch" if config.training.mini_batches > 1 else "")
        )


def final_group(config: ConfigDict) -> int:
    """Rows of a group in the update: repaired rows may be appended."""
    correction = config.correction
    appends = correction.enabled and correction.place == "append"
    return config.rollout.group + (
        steps_spec(config).select.most(config.rollout.group) if appends else 0
    )


def needs_teacher(config: ConfigDict) -> bool:
    """Whether a run of this config asks a teacher."""
    return config.correction.enabled or demonstrates(config)


def needs_localiser(config: ConfigDict) -> bool:
    """Whether a run of this config looks for wrong steps."""
    return config.correction.enabled or config.advantage.process != "none"


def needs_prm(config: ConfigDict) -> bool:
    """Whether a run of this config scores steps with a process reward model."""
    return needs_localiser(config) and config.correction.localiser == "prm"


def sample_spec(config: ConfigDict, end_ids: tuple[int, ...] = ()) -> SampleSpec:
    """SampleSpec of a config's rollouts."""
    section = config.rollout
    return SampleSpec(
        section.temperature,
        section.top_p,
        section.top_k,
        section.new_tokens,
        end_ids,
        cache=section.cache,
    )


def correction_spec(config: ConfigDict) -> CorrectionSpec | None:
    """CorrectionSpec of a config, None where the correction is off."""
    return steps_spec(config) if config.correction.enabled else None


def steps_spec(config: ConfigDict) -> CorrectionSpec:
    """The section `correction` of a config, whether rows are corrected or not."""
    section = config.correction.to_dict()
    if section["rows"] < 0:
        raise ValueError(f"correction.rows = {section['rows']} must be at least 1, or 0 for all")
    select = {**section["select"], "quantiles": tuple(section["select"]["quantiles"])}
    return CorrectionSpec(
        select=SelectSpec(**select),
        **{name: section[name] for name in ("tail", "tails", "accept", "place")},
        rows_at_once=section["rows"] or None,
    )


def localiser_spec(config: ConfigDict) -> LocaliserSpec:
    """LocaliserSpec of a config."""
    section = config.correction
    return LocaliserSpec(section.localiser, section.threshold, section.continuations, section.noise)


def teacher_spec(config: ConfigDict) -> TeacherSpec:
    """TeacherSpec of a config."""
    section = {key: value for key, value in config.teacher.to_dict().items() if key != "endpoint"}
    correction = config.correction
    return TeacherSpec(
        **section,
        step_tokens=correction.step_tokens,
        temperature=correction.teacher_temperature,
    )


def demonstration_spec(config: ConfigDict) -> DemonstrationSpec:
    """DemonstrationSpec of a config."""
    for name, value in config.demonstrations.items():
        if value < 0:
            raise ValueError(f"demonstrations.{name} = {value} must be 0 or more")
    return DemonstrationSpec(config.demonstrations.verified, config.demonstrations.temperature)


def demonstrates(config: ConfigDict) -> bool:
    """Whether a teacher is asked for demonstrations."""
    section = config.demonstrations
    return max(section.per_group, section.supervised_steps, section.buffer) > 0


def advantage_spec(config: ConfigDict) -> AdvantageSpec:
    """AdvantageSpec of a config."""
    section = config.advantage
    return AdvantageSpec(section.std, section.overlong_tokens, section.overlong_penalty)


def credit_spec(config: ConfigDict) -> Credit:
    """The way of giving credit that a config names."""
    section = config.advantage
    if section.process not in CREDITS:
        raise ValueError(
            f"advantage.process = {section.process!r} is unknown; one of {', '.join(CREDITS)}"
        )
    ways = {
        name: way(**{field.name: section[field.name] for field in dataclasses.fields(way)})
        for name, way in CREDITS.items()
    }
    return ways[section.process]


def endpoint_spec(config: ConfigDict) -> EndpointSpec:
    """EndpointSpec of a config."""
    return EndpointSpec(**config.teacher.endpoint.to_dict())


def loss_spec(config: ConfigDict) -> LossSpec:
    """LossSpec of a config."""
    section = config.loss.to_dict()
    for key in ("teacher_schedule", "teacher_weight_end", "old_logp"):
        section.pop(key)
    return LossSpec(**section, max_new_tokens=config.rollout.new_tokens)


def lora_spec(config: ConfigDict) -> LoraSpec | None:
    """LoraSpec of a config, None where all weights are trained (rank 0)."""
    section = config.lora.to_dict()
    return (
        None
        if section["rank"] == 0
        else LoraSpec(**{**section, "targets": tuple(section["targets"])})
    )


def optimizer_spec(config: ConfigDict) -> OptimizerSpec:
    """OptimizerSpec of a config; a decaying schedule without `steps` runs over the updates of the
    whole run."""
    section = config.optimizer.to_dict()
    section["steps"] = (
        section["steps"] or config.steps * config.training.epochs * config.training.mini_batches
    )
    return OptimizerSpec(**section)


def _fields(cls: type, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    default = cls()
    return {f.name: getattr(default, f.name) for f in dataclasses.fields(cls) if f.name not in skip}


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, ConfigDict) and len(value):
            yield from _leaves(value, name + ".")
        else:
            yield name, value
