"""Settings as earlier versions named them: what a workdir or a record of then says today.

`upgraded` turns the flat settings of a `config.json`, a `training.json` or a sweep's record into
those of today. A setting that had no effect with the method that was chosen is gone.
"""

from collections.abc import Mapping
from typing import Any

# Old dotted name -> today's. Where 0 or "" used to stand for "none given", it is None now.
NAMES = {
    "meshes.teacher": "mesh.teacher",
    "meshes.prm": "mesh.prm",
    "correction.localiser": "localiser.kind",
    "correction.threshold": "localiser.threshold",
    "correction.continuations": "localiser.continuations",
    "correction.noise": "localiser.noise",
    "correction.step_tokens": "teacher.step_tokens",
    "correction.teacher_temperature": "teacher.temperature",
    "correction.select": "method.select",
    "correction.tail": "method.tail",
    "correction.tails": "method.tails",
    "correction.accept": "method.accept",
    "correction.place": "method.place",
    "correction.rows": "method.rows_at_once",
    "correction.enabled": "method.name",
    "demonstrations.per_group": "method.per_group",
    "demonstrations.buffer": "method.buffer",
    "demonstrations.supervised_steps": "sft.steps",
    "demonstrations.rows": "sft.prompts",
    "advantage.process": "method.name",
    "advantage.process_weight": "method.process_weight",
    "advantage.outcome_weight": "method.outcome_weight",
    "advantage.min_temperature": "method.min_temperature",
    "advantage.alpha": "method.alpha",
    "advantage.shorten": "method.shorten",
    "advantage.shorten_by": "method.shorten_by",
    "rollout.resample": "method.resample",
    "rollout.slots": "rollout.seats",
    "evaluation.rows": "evaluation.rows_at_once",
    "samples.rows": "samples.per_file",
}
# Of `scope_jax.supervise`.
SUPERVISED_NAMES = {
    "kind": "target.name",
    "threshold": "target.threshold",
    "rollouts": "target.rollouts",
    "labels": "target.labels",
    "demonstrations.style": "target.style",
    "demonstrations.misconception": "target.misconception",
    "demonstrations.misconception_kind": "target.misconception_kind",
    "demonstrations.anyones_prefix": "target.foreign_prefix",
    "demonstrations.in_steps": "target.in_steps",
    "demonstrations.max_tokens": "target.max_tokens",
    "task.lengths": "fresh.lengths",
    "task.start": "fresh.start",
    "task.seed": "fresh.seed",
}
# Settings of today that are None where 0 or "" stood for it.
NONE_GIVEN = (
    *(f"mesh.{who}.{axis}" for who in ("teacher", "prm") for axis in ("data", "fsdp", "tensor")),
    *("models.policy", "models.teacher", "models.prm", "task.data", "checkpoint.directory"),
    *("rollout.seats", "rollout.top_k", "method.rows_at_once", "sft.prompts", "lora.rank"),
    *("advantage.overlong_tokens", "evaluation.every", "evaluation.prompt_tokens"),
    *("evaluation.new_tokens", "start", "checkpoint.every", "target.max_tokens"),
    *(f"teacher.endpoint.{name}" for name in ("url", "model", "api_key_env", "max_tokens")),
    *("teacher.endpoint.extra", "teacher.endpoint.cache", "teacher.prompt"),
    *("target.rollouts.policy", "target.rollouts.prompt_tokens", "target.rollouts.new_tokens"),
)
# The same of the sources of problems, whatever they are called: `task.train.<source>.<setting>`.
_OF_SOURCES = (
    *("config", "limit", "prompt_characters", "prompt_tokens"),
    *("solution_characters", "solution_tokens"),
)
# Which variant of the section `method` has which of these settings.
_OF_METHOD = {
    "scope": ("select", "tail", "tails", "accept", "place", "rows_at_once", "resample"),
    "luffy": ("per_group",),
    "relift": ("buffer",),
    "process": ("process_weight", "outcome_weight", "resample"),
    "pure": ("process_weight", "outcome_weight", "min_temperature", "resample"),
    "vppo": ("alpha", "shorten", "shorten_by", "resample"),
    "grpo": ("resample",),
}
_OF_TARGET = {
    "policy": (
        *("style", "misconception", "misconception_kind"),
        *("foreign_prefix", "in_steps", "max_tokens"),
    ),
    "prm": ("rollouts", "labels", "threshold"),
}


def renamed_to(name: str, names: Mapping[str, str] = NAMES) -> str | None:
    """Today's name of a setting that had another one, with `config.` before it; None where `name`
    is no old name."""
    if name in ("correction.enabled", "advantage.process") and names is NAMES:
        return "config.method: start from default_config('scope'), or the method's name"
    for old, new in names.items():
        if name == old or name.startswith(f"{old}."):
            return f"config.{new}{name.removeprefix(old)}"
    return None


def upgraded(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings of `scope_jax.train` (all of them, or those that differ from the defaults)
    under today's names. Settings that have today's names already come back as they are."""
    if not any(renamed_to(name) for name in flat):
        return {name: _none(name, value) for name, value in flat.items()}
    method = _method(flat)
    out = _renamed(flat, NAMES, "method", _OF_METHOD[method])
    if method != "grpo" or "correction.enabled" in flat:
        out["method.name"] = method
    return out


def upgraded_supervised(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The same of `scope_jax.supervise`."""
    if "kind" not in flat:
        return {name: _none(name, value) for name, value in flat.items()}
    out = _renamed(flat, SUPERVISED_NAMES, "target", _OF_TARGET[flat["kind"]])
    return out | {"target.name": flat["kind"]}


def _renamed(
    flat: Mapping[str, Any], names: Mapping[str, str], union: str, known: tuple[str, ...]
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in flat.items():
        new = (renamed_to(name, names) or f"config.{name}").removeprefix("config.")
        if name in ("correction.enabled", "advantage.process", "kind"):
            continue
        if new.startswith(f"{union}.") and new.split(".")[1] not in known:
            continue  # had no effect with this variant
        out[new] = _none(new, value)
    return out


def _method(flat: Mapping[str, Any]) -> str:
    if flat.get("correction.enabled"):
        return "scope"
    if flat.get("demonstrations.per_group"):
        return "luffy"
    if flat.get("demonstrations.buffer"):
        return "relift"
    process = flat.get("advantage.process", "none")
    return {"none": "grpo", "sum": "process", "min": "pure", "prefix": "vppo"}[process]


def _none(name: str, value: Any) -> Any:
    *section, last = name.split(".")
    of_source = section[:2] == ["task", "train"] and last in _OF_SOURCES
    known = name in NONE_GIVEN or of_source
    return None if known and value in (0, "") and value is not False else value
