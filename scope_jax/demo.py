"""GRPO and SCOPE from the same base on several seeds, compared (make demo).

    python -m scope_jax.demo [--seeds=0,1,2] [--workdir=runs/demo] [--steps=N]

Everything that was finished before is kept: checkpoints in `cache/checkpoints`, finished runs in
the workdir.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scope_jax import models
from scope_jax.data.load import load_task
from scope_jax.devices.mesh import make_mesh, use_cpu_cores
from scope_jax.evaluate import evaluate_splits
from scope_jax.report import write_report
from scope_jax.run import STOPPED, Stopped, read_metrics, write_atomically
from scope_jax.supervise import supervise
from scope_jax.text import load_tokenizer
from scope_jax.train import train

CHECKPOINTS = ("base", "teacher", "prm")
ARMS = ("grpo", "scope")
# Training reward, averaged over WINDOW batches, that "batches to reach" asks for.
TARGET, WINDOW = 0.3, 5

# (name, metric, "final" evaluation or mean over the "run", format)
ROWS = (
    ("pass@1", "eval/pass@1", "final"),
    ("pass@8", "eval/pass@8", "final"),
    ("pass@1, longer problems", "eval_ood/pass@1", "final"),
    ("pass@8, longer problems", "eval_ood/pass@8", "final"),
    ("distinct solution paths per problem", "eval/diversity/distinct_paths", "final"),
    ("distinct paths, longer problems", "eval_ood/diversity/distinct_paths", "final"),
    ("entropy of the policy", "policy/entropy", "late"),
    ("zero-advantage groups, before repair", "advantage/zero_group_share", "run"),
    ("zero-advantage groups, after repair", "advantage/zero_group_share_after", "run"),
    ("salvage rate", "scope/accepted_share", "run"),
    (f"batches to reach reward {TARGET}", "", "reach"),
    ("seconds per batch", "time/total", "median"),
)


def checkpoint(name: str, directory: Path) -> dict[str, Any]:
    """Make (or find) one of the checkpoints by its config file."""
    config = _config(name)
    if name == "teacher":
        config.start = str(directory / "base")
    if name == "prm":
        config.start, config.rollouts.policy = str(directory / "teacher"), str(directory / "base")
    print(f"== checkpoint {name}: {directory / name}", flush=True)
    return supervise(config, directory / name)


def arm_config(arm: str, seed: int, checkpoints: Path, data: Path, steps: int | None) -> Any:
    """The config of one run."""
    config = _config(arm)
    config.seed = seed
    config.task.data = str(data)
    config.models.policy = str(checkpoints / "base")
    if arm == "scope":
        config.models.teacher, config.models.prm = (
            str(checkpoints / "teacher"),
            str(checkpoints / "prm"),
        )
    if steps:
        config.steps = steps
    return config


def reach(rewards: list[float], target: float = TARGET, window: int = WINDOW) -> float:
    """Batches until the mean reward of `window` consecutive batches first reaches `target`; NaN if
    it never does."""
    for end in range(window, len(rewards) + 1):
        if np.mean(rewards[end - window : end]) >= target:
            return float(end)
    return float("nan")


def figure(rows: list[dict[str, Any]], metric: str, kind: str) -> float:
    """One number of a run from its metrics."""
    if kind == "reach":
        return reach([row["reward/mean"] for row in rows])
    values = [row[metric] for row in rows if row.get(metric) is not None]
    if not values:
        return float("nan")
    if kind == "final":
        return float(values[-1])
    if kind == "median":
        return float(np.median(values))
    return float(np.mean(values[-10:] if kind == "late" else values))


def base_figures(checkpoints: Path, data: Path, path: Path) -> dict[str, float]:
    """Evaluation of the untrained base; kept in `path`."""
    if path.is_file():
        return json.loads(path.read_text())
    config = arm_config("grpo", 0, checkpoints, data, None)
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        model_config, params = models.load(config.models.policy, mesh=mesh)
        task = load_task(config.task.name, config.task.data, options=config.task.options.to_dict())
        result = evaluate_splits(
            params, model_config, config, task, load_tokenizer(config.models.policy)
        )
    write_atomically(path, json.dumps(result, indent=2))
    return result


def spread(values: list[float]) -> str:
    """ "mean ± standard deviation over seeds", and how many seeds have a value."""
    known = [v for v in values if not np.isnan(v)]
    if not known:
        return "never" if values else "-"
    digits = 0 if max(known) >= 10 else 3
    text = f"{np.mean(known):.{digits}f} ± {np.std(known):.{digits}f}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def table(base: dict[str, float], runs: dict[str, list[list[dict[str, Any]]]]) -> dict[str, Any]:
    """Columns and rows of the comparison."""
    rows = []
    for name, metric, kind in ROWS:
        start = f"{base[metric]:.3f}" if kind == "final" and metric in base else "-"
        cells = [spread([figure(rows_, metric, kind) for rows_ in runs[arm]]) for arm in ARMS]
        if metric.startswith("scope/"):
            cells[0] = "-"
        rows.append([name, start, *cells])
    return {"columns": ["", "base", "GRPO", "SCOPE"], "rows": rows}


def wins(runs: dict[str, list[list[dict[str, Any]]]]) -> list[str]:
    """Seed by seed, whether SCOPE is ahead: said plainly, also where it is not."""
    lines = []
    for name, metric, kind, higher in (
        ("fewer batches to the target", "", "reach", False),
        ("higher pass@1", "eval/pass@1", "final", True),
        ("higher pass@8", "eval/pass@8", "final", True),
        ("more distinct paths", "eval/diversity/distinct_paths", "final", True),
    ):
        pairs = [
            (figure(scope, metric, kind), figure(grpo, metric, kind))
            for scope, grpo in zip(runs["scope"], runs["grpo"], strict=True)
        ]
        # A run that never reached the target took more updates than any that did.
        sign = 1.0 if higher else -1.0
        ranked = [tuple(-np.inf if np.isnan(v) else sign * v for v in pair) for pair in pairs]
        ahead = sum(ours > theirs for ours, theirs in ranked)
        lines.append(f"SCOPE {name}: {ahead} of {len(pairs)} seeds")
    return lines


def curves(runs: dict[str, list[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Learning curves of both arms, mean and range over seeds."""
    shown = (
        ("Reward of the policy's own rollouts", "reward/mean"),
        ("Groups without an advantage, before repair", "advantage/zero_group_share"),
        ("Groups without an advantage, after repair", "advantage/zero_group_share_after"),
        ("Entropy of the policy", "policy/entropy"),
        ("Distinct correct paths in a group", "diversity/distinct_paths"),
        ("Salvage rate", "scope/accepted_share"),
    )
    out = []
    for title, metric in shown:
        series = []
        for arm in ARMS:
            if all(metric in row for rows in runs[arm] for row in rows):
                y = [np.array([row[metric] for row in rows], np.float64) for rows in runs[arm]]
                smooth = [
                    np.convolve(line, np.full(WINDOW, 1 / WINDOW), mode="valid").tolist()
                    for line in y
                ]
                x = list(range(WINDOW, WINDOW + len(smooth[0])))
                series.append({"label": arm.upper(), "x": x, "y_by_seed": smooth})
        out.append(
            {
                "title": title,
                "x_label": f"batches (mean of {WINDOW})",
                "y_label": "",
                "series": series,
            }
        )
    return out


def demo(
    seeds: list[int], workdir: Path, checkpoints: Path, data: Path, steps: int | None = None
) -> Path:
    """Everything, end to end; returns the path of the report."""
    begin = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINTS:
        summary = checkpoint(name, checkpoints)
    print(
        "   "
        + "  ".join(
            f"{k} {v:.3f}" for k, v in summary.items() if k.startswith("first_error") and v <= 1
        ),
        flush=True,
    )
    made = time.monotonic()
    print(f"== checkpoints ready after {made - begin:.0f} s; evaluating the base", flush=True)
    base = base_figures(checkpoints, data, workdir / "base.json")
    runs: dict[str, list[list[dict[str, Any]]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            directory = workdir / f"{arm}_{seed}"
            print(f"== {arm.upper()}, seed {seed}: {directory}", flush=True)
            train(arm_config(arm, seed, checkpoints, data, steps), directory)
            runs[arm].append(read_metrics(directory / "metrics.jsonl"))
    gallery = []
    for seed in seeds:
        for path in sorted((workdir / f"scope_{seed}" / "samples").glob("*.json"))[:3]:
            gallery += [item for item in json.loads(path.read_text()) if item["verdict_after"]][:1]
    results = table(base, runs)
    said = wins(runs)
    report = write_report(
        workdir / "report.html",
        title="SCOPE on signed terms",
        intro=[
            (
                "Failed rollouts are rescued at their first wrong step: a process reward model"
                " finds it, a teacher corrects that one step, the policy goes on from there. GRPO"
                " and SCOPE start from the same base, with equal rollouts and updates (two for each"
                " batch)."
            ),
            (
                f"{len(seeds)} seeds; mean ± standard deviation over seeds. An independent"
                " implementation of SCOPE, arXiv 2602.24110."
            ),
            *said,
        ],
        table=results,
        curves=curves(runs),
        gallery=gallery[:8],
    )
    width = max(len(row[0]) for row in results["rows"])
    print("\n" + " " * width + "  ".join(f"{c:>22}" for c in results["columns"][1:]))
    for row in results["rows"]:
        print(f"{row[0]:<{width}}" + "  ".join(f"{c:>22}" for c in row[1:]))
    print("\n" + "\n".join(said))
    print(
        f"\n{time.monotonic() - begin:.0f} s in all, {made - begin:.0f} s of them for"
        f" checkpoints\nreport: {report}"
    )
    write_atomically(
        workdir / "results.json",
        json.dumps({"table": results, "wins": said, "seeds": seeds}, indent=2) + "\n",
    )
    return report


def _config(name: str) -> Any:
    return importlib.import_module(f"scope_jax.configs.arithmetic.{name}").get_config()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scope_jax.demo",
        description="Train GRPO and SCOPE on the embedded task, and compare.",
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument(
        "--steps", type=int, default=None, help="batches of each run (default: the config's)"
    )
    args = parser.parse_args()
    use_cpu_cores()
    # Both arms and all seeds run the same programs.
    jax.config.update("jax_compilation_cache_dir", str(args.cache.absolute() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        demo(
            [int(s) for s in args.seeds.split(",")],
            args.workdir,
            args.cache / "checkpoints",
            args.cache / "tfds",
            args.steps,
        )
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return STOPPED
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
