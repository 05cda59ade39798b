"""GRPO and SCOPE from the same base on several seeds, compared (make demo).

    python -m scope_jax.demo [--seeds=0,1,2] [--workdir=runs/demo] [--steps=N]

Everything that was finished before is kept: checkpoints in `cache/checkpoints`, finished runs in
the workdir.
"""

import contextlib
import io
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging

from scope_jax import cli, models
from scope_jax.configs.checkpoints import get_config as checkpoint_config
from scope_jax.configs.run import get_config as run_config
from scope_jax.configuration import train_config
from scope_jax.data.load import Task, load_task
from scope_jax.devices.mesh import make_mesh, use_cpu_cores
from scope_jax.evaluate import evaluate_splits
from scope_jax.report import Report, read_sample_file, write_report
from scope_jax.report.tables import plain
from scope_jax.run import read_metrics, write_atomically
from scope_jax.run.metrics import transient_progress
from scope_jax.supervise import supervise
from scope_jax.text import load_tokenizer
from scope_jax.train import train

CHECKPOINTS = ("base", "teacher", "prm")
ARMS = ("grpo", "scope")
TARGET = 0.3  # mean reward that "batches to reach" asks for
WINDOW = 5  # batches that a reward or a curve is averaged over

Rows = list[dict[str, Any]]  # the lines of metrics of a run
Runs = dict[str, list[Rows]]  # by arm, one entry for each seed


class Figure(NamedTuple):
    """A line of the comparison."""

    title: str
    metric: str
    # The last value, a mean over the run, over its last ten batches, a median, or the number of
    # batches to reach the target.
    kind: Literal["final", "run", "late", "median", "reach"]


FIGURES = (
    Figure("pass@1", "eval/pass@1", "final"),
    Figure("pass@8", "eval/pass@8", "final"),
    Figure("pass@1, longer problems", "eval_ood/pass@1", "final"),
    Figure("pass@8, longer problems", "eval_ood/pass@8", "final"),
    Figure("distinct solution paths per problem", "eval/diversity/distinct_paths", "final"),
    Figure("distinct paths, longer problems", "eval_ood/diversity/distinct_paths", "final"),
    Figure("entropy of the policy", "policy/entropy", "late"),
    Figure("zero-advantage groups, before rescue", "advantage/zero_group_share", "run"),
    Figure("zero-advantage groups, after rescue", "advantage/zero_group_share_after", "run"),
    Figure("salvage rate", "scope/accepted_share", "run"),
    Figure(f"batches to reach reward {TARGET}", "reward/mean", "reach"),
    Figure("seconds per batch", "time/total", "median"),
)

# (what SCOPE should have, figure that says so, whether more of it is better)
CLAIMS = (
    ("fewer batches to the target", Figure("", "reward/mean", "reach"), False),
    ("higher pass@1", Figure("", "eval/pass@1", "final"), True),
    ("higher pass@8", Figure("", "eval/pass@8", "final"), True),
    ("more distinct paths", Figure("", "eval/diversity/distinct_paths", "final"), True),
)

_CURVES = (
    ("Reward of the policy's own rollouts", "reward/mean"),
    ("Groups without an advantage, before rescue", "advantage/zero_group_share"),
    ("Groups without an advantage, after rescue", "advantage/zero_group_share_after"),
    ("Entropy of the policy", "policy/entropy"),
    ("Distinct correct paths in a group", "diversity/distinct_paths"),
    ("Salvage rate", "scope/accepted_share"),
)


def demo(
    seeds: list[int], workdir: Path, checkpoints: Path, data: Path, steps: int | None = None
) -> Path:
    """Everything, end to end; returns the path of the report."""
    begin = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    for arm, seed in itertools.product(ARMS, seeds):
        _check_steps(workdir / f"{arm}_{seed}" / "config.json", arm, steps)

    _say(f"1/4 checkpoints, in {checkpoints}")
    for name in CHECKPOINTS:
        with _line(name) as line:
            summary = make_checkpoint(name, checkpoints)
            if "first_error/exact" in summary:
                line.append(f"first error exact in {summary['first_error/exact']:.0%} of failures")
    made = time.monotonic()

    _say("2/4 problems, and what the base makes of them")
    with _line("base") as line:
        task = _load_task(checkpoints, data)
        base = base_figures(task, checkpoints, data, workdir / "base.json")
        line.append(_pass_rates(base))

    _say(f"3/4 training, {' and '.join(arm.upper() for arm in ARMS)} from the same base")
    runs: Runs = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            with _line(f"{arm}, seed {seed}") as line:
                directory = workdir / f"{arm}_{seed}"
                train(arm_config(arm, seed, checkpoints, data, steps), directory)
                runs[arm].append(read_metrics(directory / "metrics.jsonl"))
                line.append(_pass_rates(runs[arm][-1][-1]))

    _say("4/4 comparison")
    columns, rows = table(base, runs)
    findings = wins(runs)
    report = Report(
        title="SCOPE on signed terms",
        intro=[
            (
                "Failed rollouts are rescued at their first wrong step: a process reward model"
                " finds it, a teacher corrects that one step, the policy goes on from there. GRPO"
                " and SCOPE start from the same base, with equal rollouts and updates (two for each"
                " batch)."
            ),
            (
                f"{_count(len(seeds), 'seed')}; mean ± standard deviation over seeds. An"
                " independent implementation of SCOPE, arXiv 2602.24110."
            ),
        ],
        highlights=findings,
        table={"columns": columns, "rows": rows},
        gallery=_gallery([workdir / f"scope_{seed}" for seed in seeds]),
        how_to_read=task.domain.how_to_read,
        curves=curves(runs),
    )
    path = write_report(workdir / "report.html", report)
    results = {"table": report.table, "wins": findings, "seeds": seeds}
    write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    _say("\n" + plain(columns, rows) + "\n\n" + "\n".join(findings))
    _say(f"\nreport: {path}")
    _say(
        f"done: {_count(len(seeds) * len(ARMS), 'run')} in {time.monotonic() - begin:.0f} s,"
        f" {made - begin:.0f} s of them for checkpoints; open the report in a browser"
    )
    return path


def make_checkpoint(name: str, directory: Path) -> dict[str, Any]:
    """Make (or find) one of the checkpoints by its config file; returns its summary."""
    config = checkpoint_config(f"{name},arithmetic")
    if name == "teacher":
        config.start = str(directory / "base")
    if name == "prm":
        config.start = str(directory / "teacher")
        config.target.rollouts.policy = str(directory / "base")
    return supervise(config, directory / name)


def arm_config(arm: str, seed: int, checkpoints: Path, data: Path, steps: int | None) -> Any:
    """The config of one run."""
    config = run_config(f"{arm},arithmetic")
    config.seed = seed
    config.task.data = str(data)
    config.models.policy = str(checkpoints / "base")
    if arm == "scope":
        config.models.teacher = str(checkpoints / "teacher")
        config.models.prm = str(checkpoints / "prm")
    if steps:
        config.steps = steps
    return config


def base_figures(task: Task, checkpoints: Path, data: Path, path: Path) -> dict[str, float]:
    """Evaluation of the untrained base; kept in `path`."""
    if path.is_file():
        return json.loads(path.read_text())
    config = train_config(arm_config("grpo", 0, checkpoints, data, None))
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        model_config, params = models.load(checkpoints / "base", mesh=mesh)
        tokenizer = load_tokenizer(checkpoints / "base")
        result = evaluate_splits(params, model_config, config, task, tokenizer)
    write_atomically(path, json.dumps(result, indent=2))
    return result


def reach(rewards: list[float], target: float = TARGET, window: int = WINDOW) -> float:
    """Batches until the mean reward of `window` consecutive batches first reaches `target`; NaN if
    it never does."""
    for end in range(window, len(rewards) + 1):
        if np.mean(rewards[end - window : end]) >= target:
            return float(end)
    return float("nan")


def figure_of(rows: Rows, figure: Figure) -> float:
    """A figure of one run; NaN where the run does not have it."""
    values = [row[figure.metric] for row in rows if row.get(figure.metric) is not None]
    if figure.kind == "reach":
        return reach(values)
    if not values:
        return float("nan")
    if figure.kind == "final":
        return float(values[-1])
    if figure.kind == "median":
        return float(np.median(values))
    return float(np.mean(values[-10:] if figure.kind == "late" else values))


def spread(values: list[float], absent: str = "-") -> str:
    """ "mean ± standard deviation over seeds", and how many seeds have a value; `absent` where none
    has."""
    known = [v for v in values if not np.isnan(v)]
    if not known:
        return absent
    digits = 0 if max(known) >= 10 else 3
    text = f"{np.mean(known):.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(known):.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def table(base: dict[str, float], runs: Runs) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the comparison."""
    rows = []
    for figure in FIGURES:
        has_start = figure.kind == "final" and figure.metric in base
        absent = "never" if figure.kind == "reach" else "-"
        cells = [spread([figure_of(rows, figure) for rows in runs[arm]], absent) for arm in ARMS]
        if figure.metric.startswith("scope/"):
            cells[ARMS.index("grpo")] = "-"
        rows.append([figure.title, f"{base[figure.metric]:.3f}" if has_start else "-", *cells])
    return ["", "base", *(arm.upper() for arm in ARMS)], rows


def wins(runs: Runs) -> list[str]:
    """On how many seeds SCOPE is ahead, claim by claim."""
    lines = []
    for claim, figure, more_is_better in CLAIMS:
        pairs = [
            (figure_of(scope, figure), figure_of(grpo, figure))
            for scope, grpo in zip(runs["scope"], runs["grpo"], strict=True)
        ]
        # A run that never reached the target took more updates than any that did.
        sign = 1.0 if more_is_better else -1.0
        ranked = [tuple(-np.inf if np.isnan(v) else sign * v for v in pair) for pair in pairs]
        ahead = sum(ours > theirs for ours, theirs in ranked)
        lines.append(f"SCOPE {claim}: {ahead} of {_count(len(pairs), 'seed')}")
    return lines


def curves(runs: Runs) -> list[dict[str, Any]]:
    """Learning curves of both arms, mean and range over seeds; those that no run has are left
    out."""
    shown = []
    for title, metric in _CURVES:
        series = []
        window = WINDOW
        for arm in ARMS:
            # A batch may lack a figure (of its update, where that was left out): a gap.
            if all(any(row.get(metric) is not None for row in rows) for rows in runs[arm]):
                lines = [np.array([row.get(metric) for row in rows], float) for rows in runs[arm]]
                window = min(WINDOW, *(len(line) for line in lines))
                mean = np.full(window, 1 / window)
                smooth = [np.convolve(line, mean, mode="valid").tolist() for line in lines]
                x = list(range(window, window + len(smooth[0])))
                series.append({"label": arm.upper(), "x": x, "y_by_seed": smooth})
        if series:
            x_label = f"batches (mean of {window})"
            shown.append({"title": title, "x_label": x_label, "series": series})
    return shown


def _gallery(workdirs: list[Path], per_run: int = 3, most: int = 8) -> list[Mapping[str, Any]]:
    """A verified rescue from each of the first samples files of each run."""
    items: list[Mapping[str, Any]] = []
    for workdir in workdirs:
        for path in sorted((workdir / "samples").glob("*.json"))[:per_run]:
            rescues = read_sample_file(path).rescues
            verified = [item for item in rescues if item["verdict_after"]]
            items += verified[:1]
    return items[:most]


def _check_steps(path: Path, arm: str, steps: int | None) -> None:
    """Raises ValueError where the workdir holds a run of another number of steps."""
    if not path.is_file():
        return
    there = json.loads(path.read_text())["steps"]
    here = steps or run_config(f"{arm},arithmetic").steps
    if there != here:
        raise ValueError(
            f"{path.parent}: a run of {there} steps, here {here}; give another --workdir, or delete"
            f" {path.parent.parent}"
        )


def _load_task(checkpoints: Path, data: Path) -> Task:
    return load_task(train_config(arm_config("grpo", 0, checkpoints, data, None)).task)


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
    _say(f"    {name:<16}{time.monotonic() - begin:>5.0f} s   {', '.join(texts)}".rstrip())


def _pass_rates(figures: dict[str, Any]) -> str:
    names = ("pass@1", "pass@8")
    return ", ".join(f"{name} {figures[f'eval/{name}']:.3f}" for name in names)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def command(args: Any) -> None:
    """The command line's `demo`."""
    seeds = args.seeds
    if not seeds or not all(seed.isdecimal() for seed in seeds) or len({*seeds}) < len(seeds):
        raise ValueError(f"--seeds={','.join(seeds)}: expected different numbers, as in 0,1,2")
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps={args.steps} must be at least 1")
    logging.set_verbosity(logging.ERROR)  # TFDS warns of a data set of one's own
    use_cpu_cores()
    demo(
        [int(seed) for seed in seeds],
        args.workdir,
        args.cache / "checkpoints",
        args.cache / "tfds",
        args.steps,
    )


FLAGS = (
    cli.Flag("seeds", "of the runs", ["0", "1", "2"], list),
    cli.Flag("workdir", "directory of the runs and the report", "runs/demo", Path),
    cli.Flag("cache", "directory of checkpoints, data and compiled programs", "cache", Path),
    cli.Flag("steps", "batches of each run (default: the config's)", None, int),
)

if __name__ == "__main__":
    # Both arms and all seeds run the same programs.
    cli.program(command, FLAGS, compiled=lambda values: values.cache / "xla")
