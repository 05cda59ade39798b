"""Records: one small JSON object for each finished run, small enough to be kept with the code.

A run that gave up leaves `<name>.failed.json` with its reason instead.
"""

import contextlib
import json
import math
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scope_jax.configuration import default_config
from scope_jax.configuration.renamed import upgraded
from scope_jax.report.by_problem import BY_PROBLEM, ByProblem
from scope_jax.run import failures, write_atomically
from scope_jax.sweep.runs import Run, config_of, flat_settings

Record = dict[str, Any]

# What a record keeps of a run: figures of its last evaluation (eval/, eval_ood/, eval_t0.6/, ...),
# means over the steps by prefix of the metric, and curves.
FINAL = re.compile("eval[^/]*/")
MEANS = (
    "advantage/",
    "scope/",
    "cost/",
    "demonstrations/",
    "rollout/",
    "update/",
    "time/",
    "process/",
)
CURVES = (
    "reward/mean",
    "policy/entropy",
    "advantage/zero_group_share",
    "advantage/zero_group_share_after",
    "diversity/distinct_paths",
    "diversity/rarefied_paths",
    "diversity/distinct_4_right",
    "scope/accepted_share",
    "eval/pass@1",
    "eval_ood/pass@1",
)
# What was written and read in the whole run, in tokens. The policy: its rollouts, the tails of
# rescued rows, its own tries before a teacher is asked, a localiser's continuations. The teacher:
# steps (and tails of its own), and whole solutions. Read by the process reward model, and by the
# teacher of a distillation.
TOKENS = {
    "rollouts": "cost/rollout_tokens",
    "tails": "cost/tail_tokens",
    "own_tries": "cost/self_tokens",
    "localiser": "cost/localiser_tokens",
    "teacher": "cost/teacher_tokens",
    "demonstrations": "cost/demonstration_tokens",
    "prm": "cost/prm_tokens",
    "distillation": "cost/distill_tokens",
}
MOST_POINTS = 100  # longer curves are averaged in bins of neighbouring steps


def record_of(
    run: Run,
    config: ConfigDict,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    seconds: float,
    code: str,
    *,
    weights: Mapping[str, str | None] | None = None,
    by_problem: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a finished run, from its lines of metrics and its summary, the hashes of the
    `weights` that it began with (`weights_of`), and the counts of its last evaluation `by_problem`
    (`read_by_problem`).

    `settings` holds all settings that differ from the defaults, `seconds` belongs to the process
    that finished the run, `training_seconds` to all steps without their evaluations,
    `seconds_per_step` is a median, `tokens` are sums, `final` is the last evaluation. `mean` is
    taken over the steps that have the figure, for `cost/` over all steps. A point of a curve
    stands for `curve_every` steps. Numbers have six digits; NaN becomes None.

    Raises ValueError where the lines are not one for each step: means and curves would be those of
    another run.
    """
    steps = [row["step"] for row in rows]
    if not steps or steps != list(range(summary["steps"])):
        raise ValueError(
            f"{run.name}: {len(steps)} lines of metrics of {summary['steps']} steps; expected one"
            " for each, in order"
        )
    names = sorted({name for row in rows for name in row})
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    mean = {
        # A step that asks no teacher costs no teacher tokens: it counts as 0.
        name: _number(np.sum(values) / (len(rows) if name.startswith("cost/") else len(values)))
        for name, values in known.items()
        if name.startswith(MEANS) and values
    }
    every = -(-len(rows) // MOST_POINTS)
    return {
        "name": run.name,
        "labels": dict(run.labels),
        "config": run.config,
        "overrides": dict(run.overrides),
        "settings": settings_of(config),
        "code": code,
        "device": summary.get("device", "unknown"),
        "steps": summary["steps"],
        "updates": summary["updates"],
        "skipped": summary["skipped"],
        "seconds": _number(seconds),
        "seconds_per_step": _number(np.median(known["time/total"])),
        "training_seconds": _number(np.sum(known["time/total"])),
        "weights": dict(weights or {}),
        "tokens": {name: int(np.sum(known.get(cost, 0))) for name, cost in TOKENS.items()},
        "final": {name: _number(value) for name, value in rows[-1].items() if FINAL.match(name)},
        "by_problem": dict(by_problem or {}),
        "mean": mean,
        "curve": {
            name: _binned([row.get(name) for row in rows], every)
            for name in CURVES
            if len(known.get(name, ())) > 1
        },
        "curve_every": every,
    }


def read_by_problem(workdir: Path) -> dict[str, Any]:
    """What the last evaluation of the run in `workdir` counted problem by problem, as JSON; empty
    where the run has no evaluation. Raises ValueError, with the file's name, for another file."""
    path = workdir / BY_PROBLEM
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        return {name: ByProblem.from_json(counts).to_json() for name, counts in found.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: {failures.in_short(error)}") from None


def settings_of(config: ConfigDict) -> dict[str, Any]:
    """The settings that differ from the defaults of the config's method, and the method's name
    where it is another than the default one; by dotted name, with the values that JSON gives
    back."""
    return _changed(flat_settings(config), config.method.name)


def check_records(runs: Sequence[Run], records: Path) -> None:
    """Raise ValueError where a record was made with other settings than its run has now: it would
    stand for a run that never took place. So does a file that is no record, or half of one.
    Records of earlier versions may have other names for the same settings."""
    for run in runs:
        failed = records / f"{run.name}.failed.json"
        if failed.is_file():
            _read(failed, "reason", str)
        path = records / f"{run.name}.json"
        if not path.is_file():
            continue
        recorded = _read(path, "settings", dict, {})
        named = upgraded(recorded)
        then = _changed(named, named.get("method.name", "grpo"))
        now = settings_of(config_of(run.config, run.overrides))
        changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        if recorded and changed:
            raise ValueError(
                f"{path}: made with other settings ({', '.join(changed[:4])}); remove it, or use"
                " another --records"
            )


def _read(path: Path, name: str, kind: type, default: Any = None) -> Any:
    """The value `name` of a record. Raises ValueError where the file holds no record with it."""
    try:
        record = json.loads(path.read_text())
        value = record["name"] and record.get(name, default)
        if not isinstance(value, kind):
            raise TypeError(f"{name!r} of type {kind.__name__} is expected")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a whole record ({failures.in_short(error)}); delete it, and the run is"
            " done again"
        ) from None
    return value


def _changed(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Those of the settings that differ from the defaults of a method, and its name where it is
    not the default one."""
    defaults = flat_settings(default_config(method))
    if method != default_config().method.name:
        del defaults["method.name"]
    given, usual = (json.loads(json.dumps(dict(flat))) for flat in (settings, defaults))
    return {
        name: value for name, value in given.items() if name not in usual or value != usual[name]
    }


def read_records(
    folder: str | Path, labels: Sequence[str] = ("method",)
) -> tuple[list[Record], list[Record]]:
    """(records of finished runs, records of failed runs) under a folder, sorted by name. Raises
    FileNotFoundError where there is none, and ValueError naming a file that is no record, or one
    of a run without these labels."""
    done: list[Record] = []
    failed: list[Record] = []
    paths = sorted(Path(folder).rglob("*.json"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no records (*.json)")
    for path in paths:
        try:
            record = json.loads(path.read_text())
            (failed if path.name.endswith(".failed.json") else done).append(record)
            known = record["labels"].keys()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: not a record of scope_jax.sweep ({error!r})") from None
        if missing := [label for label in labels if label not in known]:
            raise ValueError(
                f"{path}: its run has no label {', '.join(map(repr, missing))}; the page groups by"
                f" {', '.join(labels)} here"
            )
    return done, failed


def is_finished(records: Path, name: str) -> bool:
    """Whether a run has a record, of success or of failure."""
    return (records / f"{name}.json").is_file() or (records / f"{name}.failed.json").is_file()


def write_record(records: Path, record: Record) -> None:
    """Write the record of a finished run, whole or not at all."""
    _write(records / f"{record['name']}.json", record)


def write_failure(records: Path, run: Run, reason: str) -> None:
    """Write the record of a run that gave up."""
    record = {"name": run.name, "labels": dict(run.labels), "reason": reason}
    _write(records / f"{run.name}.failed.json", record)


def code_version() -> str:
    """The commit of the working tree ("+" where it has changes), or the package's version outside
    of a repository. $SCOPE_JAX_CODE overrules both, for a machine with a copy that has no
    history."""
    from importlib.metadata import PackageNotFoundError, version

    if os.environ.get("SCOPE_JAX_CODE"):
        return os.environ["SCOPE_JAX_CODE"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return described.stdout.strip()
    try:
        return version("scope_jax")
    except PackageNotFoundError:
        return "unknown"


def _write(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, separators=(",", ":"), sort_keys=True) + "\n")


def _binned(values: Sequence[float | None], every: int) -> list[float | None]:
    """Means over bins of `every` values; None where a bin has no value."""
    bins = (
        [v for v in values[i : i + every] if v is not None] for i in range(0, len(values), every)
    )
    return [_number(np.mean(known)) if known else None for known in bins]


def _number(value: Any) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{float(value):.6g}")
