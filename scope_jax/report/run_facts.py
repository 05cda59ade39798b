"""What was trained on what, as the first lines of a run's page say it: read from its
`config.json`, of any version, so that nothing need be there."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

# A sentence about each method, by `method.name`.
_METHODS = {
    "grpo": (
        "Each rollout is judged, and compared with the mean of its group: GRPO and its relatives."
    ),
    "scope": (
        "SCOPE (arXiv 2602.24110): a failed rollout is kept up to its first wrong step, a teacher"
        " corrects that one step, and the policy goes on by itself. If the answer is right now, the"
        " mixed rollout takes the failure's place in its group."
    ),
    "luffy": "LUFFY (arXiv 2504.14945): each group holds demonstrations of a teacher as well.",
    "relift": (
        "ReLIFT (arXiv 2506.07527): on prompts whose group failed altogether the policy learns from"
        " demonstrations of a teacher."
    ),
    "process": "Scores of the steps are rewards beside the outcome (arXiv 2402.03300).",
    "pure": "The worst step of a rollout decides, beside the outcome: PURE (arXiv 2504.15275).",
    "sft": "Supervised learning of a teacher's whole solutions; nothing is rolled out.",
    "distillation": (
        "On-policy distillation: of each token that the policy wrote it learns what a teacher's"
        " probability of it is; verdicts are shown and not learned from."
    ),
    "vppo": "The good beginning of a failed rollout is worth something: VPPO (arXiv 2601.18984).",
}
_GENERIC = ("base", "final", "model", "policy", "prm", "teacher")  # names of many a directory
_SCORES_STEPS = ("scope", "process", "pure", "vppo")
_TAUGHT = ("scope", "luffy", "relift")


def title(config: Mapping[str, Any]) -> str:
    """ "GRPO on arithmetic"; empty where the config does not say."""
    method, task = _method(config), _at(config, "task.name")
    return f"{_proper(method)} on {task}" if method and task else ""


def intro(config: Mapping[str, Any]) -> list[str]:
    """What the method does, where it is known."""
    return [text] if (text := _METHODS.get(_method(config))) else []


def _method(config: Mapping[str, Any]) -> Any:
    """`method.name`, but for runs that use nothing of it: demonstrations alone ("sft"), and
    distillation without rewards ("distillation")."""
    supervised, steps = _at(config, "sft.steps") or 0, _at(config, "steps") or math.inf
    if supervised >= steps:
        return "sft"
    if _at(config, "loss.distill_weight") and _at(config, "loss.outcome_weight") == 0:
        return "distillation"
    return _at(config, "method.name")


def facts(
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    run: str,
) -> list[tuple[str, str]]:
    """(name, value): the models, the problems, how long, on what. What is not known is left
    out."""
    method, teacher = _method(config), _at(config, "teacher.kind")
    taught = method in _TAUGHT or _at(config, "sft.steps") or _at(config, "loss.distill_weight")
    by_model = {"prm": _at(config, "models.prm"), "model": _at(config, "models.teacher")}
    locates = _at(config, "localiser.kind") if method in _SCORES_STEPS else None
    found = [
        ("policy", _policy(config)),
        ("method", _proper(method)),
        ("task", _task(config)),
        ("teacher", _named(teacher, by_model) if taught else ""),
        ("steps scored by", _named(locates, by_model)),
        ("steps", _steps(config, rows)),
        ("updates", _updates(summary, rows)),
        ("device", str(summary.get("device") or "")),
        ("time", _time(rows)),
        ("folder", run),
    ]
    return [(name, value) for name, value in found if value]


def _at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted name; None where there is none."""
    found: Any = config
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _proper(method: Any) -> str:
    names = {"relift": "ReLIFT", "process": "Process rewards", "distillation": "Distillation"}
    return names.get(method, str(method).upper()) if method else ""


def short_path(path: Any) -> str:
    """The name of a model by its directory: its last part (with the one before it, where that says
    nothing), or that of a Hugging Face cache."""
    parts = pathlib.PurePath(str(path)).parts
    for part in parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return "/".join(parts[-2:] if parts[-1:] and parts[-1] in _GENERIC else parts[-1:])


def _policy(config: Mapping[str, Any]) -> str:
    path, rank = _at(config, "models.policy"), _at(config, "lora.rank")
    if not path:
        return ""
    return f"{short_path(path)}, {f'adapters of rank {rank}' if rank else 'all weights trained'}"


def _task(config: Mapping[str, Any]) -> str:
    name, sources = _at(config, "task.name"), _at(config, "task.train")
    known = ", ".join(map(str, sources)) if isinstance(sources, Mapping) else ""
    return f"{name}: {known}" if name and known else str(name or "")


def _named(kind: Any, models: Mapping[str, Any]) -> str:
    if not kind:
        return ""
    path = models.get(kind)
    words = {
        "prm": "a process reward model",
        "monte_carlo": "continuations of the policy",
        "likelihood": "the teacher's likelihood",
        "oracle": "the task's own check",
        "function": "a step checker",
        "model": "a model",
        "self": "the policy itself",
        "endpoint": "a model behind an address",
        "reference": "reference solutions",
        "program": "a program",
    }
    return short_path(path) if path else words.get(kind, str(kind))


def _steps(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    asked = _at(config, "steps")
    done = rows[-1]["step"] + 1 if rows else 0
    text = f"{done}" if asked in (None, done) else f"{done} of {asked}"
    prompts, group = _at(config, "rollout.prompts"), _at(config, "rollout.group")
    return f"{text}, each of {prompts} problems × {group} rollouts" if prompts and group else text


def _updates(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    taken, skipped = summary.get("updates"), summary.get("skipped")
    if taken is None:
        return ""
    idle = sum(row.get("update/no_signal") or 0 for row in rows)
    more = [f"{idle:.0f} left out for want of an advantage"] if idle else []
    more += [f"{skipped} skipped, not finite"] if skipped else []
    return ", ".join([str(taken), *more])


def _time(rows: Sequence[Mapping[str, Any]]) -> str:
    spent = [row.get(name) for row in rows for name in ("time/total", "time/evaluate")]
    seconds = math.fsum(value for value in spent if value)
    if not seconds:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
