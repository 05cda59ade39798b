"""A demonstration from end to end: checkpoints, runs of both arms, comparison, report."""

import contextlib
import dataclasses
import io
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from scope_jax import models
from scope_jax.configuration import TrainConfig, train_config
from scope_jax.data.load import Task, load_task
from scope_jax.demo.comparison import Runs, count, curves, table, wins
from scope_jax.demo.settings import ARMS, FINDERS, Demonstration
from scope_jax.devices.mesh import make_mesh
from scope_jax.evaluate import evaluate_splits
from scope_jax.report import Report, read_sample_file, write_report
from scope_jax.report.tables import plain
from scope_jax.run import read_metrics, write_atomically
from scope_jax.run.metrics import transient_progress
from scope_jax.supervise import supervise
from scope_jax.text import load_tokenizer
from scope_jax.train import train


def play(
    shown: Demonstration,
    seeds: Sequence[int],
    workdir: Path,
    cache: Path,
    *,
    steps: int | None = None,
    model: Path | None = None,
) -> Path:
    """Everything; returns the path of the report. `model`: what the base starts from, where it is
    not made from nothing."""
    begin = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    for arm, seed in itertools.product(shown.arms, seeds):
        _check_steps(workdir / f"{arm}_{seed}" / "config.json", steps or shown.steps)

    folder = shown.folder(cache)
    _say(f"1/4 checkpoints, in {folder}")
    for name in shown.made:
        with _line(name) as line:
            summary = supervise(shown.checkpoint_config(name, folder, model), folder / name)
            if "first_error/exact" in summary:
                line.append(f"first error exact in {summary['first_error/exact']:.0%} of failures")
    made = time.monotonic()

    _say("2/4 problems, and what the base makes of them")
    with _line("base") as line:
        config = train_config(shown.arm_config("grpo", 0, cache, steps))
        task = load_task(config.task)
        base = base_figures(config, task, workdir / "base.json")
        line.append(_pass_rates(base))

    _say(f"3/4 training, {', '.join(ARMS[arm] for arm in shown.arms)}, from the same base")
    runs: Runs = {arm: [] for arm in shown.arms}
    for seed, arm in itertools.product(seeds, shown.arms):
        with _line(f"{ARMS[arm]}, seed {seed}") as line:
            directory = workdir / f"{arm}_{seed}"
            train(shown.arm_config(arm, seed, cache, steps), directory)
            runs[arm].append(read_metrics(directory / "metrics.jsonl"))
            line.append(_pass_rates(runs[arm][-1][-1]))

    _say("4/4 comparison")
    columns, rows = table(base, runs)
    findings = wins(runs)
    path = write_report(
        workdir / "report.html",
        Report(
            title=shown.title,
            intro=[
                shown.intro.format(finder=FINDERS[shown.localiser]),
                f"{count(len(seeds), 'seed')}; mean ± standard deviation over seeds. An independent"
                " implementation of SCOPE, arXiv 2602.24110.",
            ],
            highlights=findings,
            table={"columns": columns, "rows": rows},
            gallery=_gallery([workdir / f"scope_{seed}" for seed in seeds]),
            how_to_read=task.domain.how_to_read,
            curves=curves(runs),
        ),
    )
    results = {
        "table": {"columns": columns, "rows": rows},
        "wins": findings,
        "seeds": list(seeds),
    }
    write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    _say("\n" + plain(columns, rows) + "\n\n" + "\n".join(findings))
    _say(f"\nreport: {path}")
    _say(
        f"done: {count(len(seeds) * len(shown.arms), 'run')} in {time.monotonic() - begin:.0f} s,"
        f" {made - begin:.0f} s of them for checkpoints; open the report in a browser"
    )
    return path


def base_figures(config: TrainConfig, task: Task, path: Path) -> dict[str, float]:
    """Evaluation of the policy that runs start from; kept in `path` with what it was made of."""
    of = {
        "policy": config.models.policy,
        "task": dataclasses.asdict(config.task),
        "evaluation": dataclasses.asdict(config.evaluation),
    }
    of = json.loads(json.dumps(of))  # lists for tuples, as they are read
    if path.is_file() and (kept := json.loads(path.read_text())).get("of") == of:
        return kept["figures"]
    directory, mesh = config.models.policy, make_mesh()
    assert directory is not None
    with jax.set_mesh(mesh):
        model_config, params = models.load(directory, mesh=mesh)
        tokenizer = load_tokenizer(directory)
        params = models.decode_layout(model_config, params, mesh)
        result = evaluate_splits(params, model_config, config, task, tokenizer)
    write_atomically(path, json.dumps({"of": of, "figures": result}, indent=2))
    return result


def _gallery(workdirs: list[Path], per_run: int = 3, most: int = 8) -> list[Mapping[str, Any]]:
    """A verified rescue from each of the first samples files of each run."""
    items: list[Mapping[str, Any]] = []
    for workdir in workdirs:
        for path in sorted((workdir / "samples").glob("*.json"))[:per_run]:
            rescues = read_sample_file(path).rescues
            verified = [item for item in rescues if item["verdict_after"]]
            items += verified[:1]
    return items[:most]


def _check_steps(path: Path, here: int) -> None:
    """Raises ValueError where the workdir holds a run of another number of steps."""
    if path.is_file() and (there := json.loads(path.read_text())["steps"]) != here:
        raise ValueError(
            f"{path.parent}: a run of {there} steps, here {here}; give another --workdir, or delete"
            f" {path.parent.parent}"
        )


# ---- the terminal: a line for each phase and each part of it, and one progress bar at a time


def _say(text: str) -> None:
    print(text, flush=True)


@contextlib.contextmanager
def _line(name: str) -> Iterator[list[str]]:
    """A part of a phase: its progress bar while it runs, then a line with its name, its seconds
    and the texts that were added to the list. What it prints itself is not shown."""
    begin = time.monotonic()
    texts: list[str] = []
    with transient_progress(), contextlib.redirect_stdout(io.StringIO()):
        yield texts
    _say(f"    {name:<22}{time.monotonic() - begin:>5.0f} s   {', '.join(texts)}".rstrip())


def _pass_rates(figures: dict[str, Any]) -> str:
    names = ("pass@1", "pass@8")
    return ", ".join(f"{name} {figures[f'eval/{name}']:.3f}" for name in names)
