"""Every setting of a training run, its default and its check; turning a config into the specs that the rooms take.

Experiments are files with a `get_config()` that starts from `default_config()`. Library functions never see a config:
only the entry points do.
"""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any, TypeVar

from ml_collections import ConfigDict

from scope_jax.correction import CorrectionSpec, EndpointSpec, SelectSpec, TeacherSpec
from scope_jax.correction.prm_formats import FORMATS as PRM_FORMATS
from scope_jax.learning import LossSpec, OptimizerSpec
from scope_jax.learning.optimizer import SCHEDULES
from scope_jax.models import LoraSpec
from scope_jax.rollout import SampleSpec
from scope_jax.tasks.load import check_task

DTYPES = ("float32", "bfloat16")
FREE = ("task.options.", "task.train.", "task.evaluation.")
Spec = TypeVar("Spec")


def default_config() -> ConfigDict:
    """All settings of `scope_jax.train`, with their defaults (docs/method.md says why they are what they are)."""
    defaults: dict[str, Any] = {
        "seed": 0,
        "steps": 100,  # updates; one per rollout batch
        "dtype": "float32",  # of the parameters
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
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
        "models": {"policy": "", "teacher": "", "prm": "", "prm_format": "auto"},  # Hugging Face directories
        "rollout": {
            "prompts": 16,  # per step
            "group": 8,  # rollouts per prompt
            "prompt_tokens": 64,  # longer prompts are dropped and counted
            "new_tokens": 64,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "slots": 0,  # rows decoded at once; 0: all
            "chat": False,  # put prompts into the tokenizer's chat template
        },
        "correction": {"enabled": False, **_fields(CorrectionSpec, skip=("select",)), "select": _fields(SelectSpec)},
        "teacher": {**_fields(TeacherSpec), "endpoint": _fields(EndpointSpec)},
        "advantage": {"std": False},
        "loss": {
            **_fields(LossSpec, skip=("max_new_tokens",)),
            "teacher_schedule": "constant",  # of teacher_weight over the run: constant | linear | cosine
            "teacher_weight_end": 0.0,
            "old_logp": "sampler",  # sampler | recompute
        },
        "optimizer": {**_fields(OptimizerSpec), "learning_rate": 1e-6},
        "lora": {**_fields(LoraSpec), "rank": 0},  # 0: all weights are trained
        "training": {"micro_batches": 1, "remat": False, "stop_after_skipped": 5},
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
        "checkpoint": {"every": 50, "keep": 2},
        "samples": {"every": 20, "rows": 6},
    }
    return ConfigDict(defaults)


def check_keys(config: ConfigDict, known_config: ConfigDict, free: tuple[str, ...] = FREE) -> None:
    """Raise ValueError for a key that `known_config` does not have (with the nearest one that it has) and for one that is
    missing. Keys below one of `free` are checked by whoever takes them."""
    known, given = dict(_leaves(known_config)), dict(_leaves(config))
    for key in given:
        if key not in known and not f"{key}.".startswith(free):
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
            raise ValueError(f"config.{key}: unknown key; the nearest known one is config.{near[0]}")
    for key in known:
        if key not in given and not f"{key}.".startswith(free):
            raise ValueError(f"config.{key}: missing; start from default_config()")


def check_config(config: ConfigDict) -> None:
    """Raise ValueError for unknown or missing keys, values that make no sense and settings that cannot go together."""
    check_keys(config, default_config())
    for spec in (sample_spec, correction_spec, teacher_spec, endpoint_spec, loss_spec, optimizer_spec, lora_spec):
        spec(config)
    task = config.task.to_dict()
    check_task(task["name"], task["data"], task["options"], task["train"], task["evaluation"], task["decontaminate"])
    for name, value, choices in (
        ("dtype", config.dtype, DTYPES),
        ("models.prm_format", config.models.prm_format, ("auto", *PRM_FORMATS)),
        ("loss.old_logp", config.loss.old_logp, ("sampler", "recompute")),
        ("loss.teacher_schedule", config.loss.teacher_schedule, SCHEDULES),
    ):
        if value not in choices:
            raise ValueError(f"config.{name} = {value!r} is unknown; one of {', '.join(choices)}")
    if config.correction.enabled and config.correction.tail == "teacher" and config.teacher.kind != "model":
        raise ValueError(f"config.correction.tail 'teacher' needs teacher.kind 'model', not {config.teacher.kind!r}")
    rows = config.rollout.prompts * config.rollout.group
    if rows % config.training.micro_batches:
        raise ValueError(
            f"config.training.micro_batches = {config.training.micro_batches} does not divide prompts x group = {rows}"
        )


def sample_spec(config: ConfigDict, end_ids: tuple[int, ...] = ()) -> SampleSpec:
    """SampleSpec of a config's rollouts."""
    section = config.rollout
    return SampleSpec(section.temperature, section.top_p, section.top_k, section.new_tokens, end_ids)


def correction_spec(config: ConfigDict) -> CorrectionSpec | None:
    """CorrectionSpec of a config, None where the correction is off."""
    if not config.correction.enabled:
        return None
    section = config.correction.to_dict()
    select = section.pop("select")
    section.pop("enabled")
    return CorrectionSpec(**section, select=SelectSpec(**{**select, "quantiles": tuple(select["quantiles"])}))


def teacher_spec(config: ConfigDict) -> TeacherSpec:
    """TeacherSpec of a config."""
    return TeacherSpec(**{key: value for key, value in config.teacher.to_dict().items() if key != "endpoint"})


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
    return None if section["rank"] == 0 else LoraSpec(**{**section, "targets": tuple(section["targets"])})


def optimizer_spec(config: ConfigDict) -> OptimizerSpec:
    """OptimizerSpec of a config; a decaying schedule without `steps` runs over the whole run."""
    section = config.optimizer.to_dict()
    section["steps"] = section["steps"] or config.steps
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
