"""Train a policy with SCOPE, or with a rival: the same loop with other switches.

    python -m scope_jax.train --config=configs/arithmetic/scope.py --workdir=DIR [--config.loss.teacher_weight=0.3 ...]

One step: rollouts -> verdicts -> (demonstrations, correction) -> advantages and token weights -> updates -> metrics. The same
command resumes a run that was stopped, and goes on bit for bit (CPU) as if it never had been.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scope_jax import cli, collect, correction, learning, tasks
from scope_jax.cast import Cast, load_cast
from scope_jax.configuration import (
    advantage_spec,
    check_config,
    correction_spec,
    demonstration_spec,
    sample_spec,
)
from scope_jax.credit import advantages
from scope_jax.evaluate import evaluate_splits
from scope_jax.learner import Learner
from scope_jax.mesh import make_mesh
from scope_jax.run import (
    Checkpoints,
    MetricsWriter,
    PhaseTimer,
    prepare_workdir,
    progress,
    read_metrics,
    write_atomically,
    write_run_report,
)
from scope_jax.run.compiles import count_compiles

# Settings that a resumed run may change: they do not touch what is learned.
MAY_DIFFER = ("checkpoint", "samples", "teacher.endpoint.url", "teacher.endpoint.cache")


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Run (or go on with) the training that `config` describes; returns the summary that `workdir/summary.json` holds.

    Raises ValueError for a config that makes no sense or a workdir of another config, FileNotFoundError for missing
    models, RuntimeError after `training.stop_after_skipped` non-finite updates in a row.
    """
    check_config(config)
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        cast = load_cast(config, mesh, Path(workdir))
        workdir = prepare_workdir(workdir, config.to_dict(), may_differ=MAY_DIFFER)
        if cast.task.contamination is not None:
            write_atomically(workdir / "decontamination.json", json.dumps(cast.task.contamination, indent=2) + "\n")
        root = jax.random.key(config.seed)
        learner = Learner(config, cast, mesh, root)
        cast = dataclasses.replace(cast, params={})  # the learner has its copy: nothing else keeps the start weights alive
        return _train(config, cast, learner, root, workdir)


def _train(config: ConfigDict, cast: Cast, learner: Learner, root: jax.Array, workdir: Path) -> dict[str, Any]:
    spec, shows, credit = correction_spec(config), demonstration_spec(config), advantage_spec(config)
    sampling = sample_spec(config, cast.config.end_ids)

    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    start, cursor = 0, collect.Cursor()
    waiting: list[tasks.Problem] = []  # of groups that failed altogether, until a supervised step (ReLIFT)
    restored = checkpoints.restore(learning.abstract_state(learner.state))
    if restored is not None:
        start, learner.state, extra = restored
        cursor = collect.Cursor(extra["position"], extra["dropped"])
        waiting = [tasks.Problem(**problem) for problem in extra.get("waiting", ())]
        print(f"resuming {workdir} at step {start}", flush=True)
    writer = MetricsWriter(workdir, resume_step=start)
    timer = PhaseTimer()
    compiles = count_compiles()
    (workdir / "samples").mkdir(exist_ok=True)

    def evaluation() -> dict[str, float]:
        return evaluate_splits(learner.policy().params, cast.config, config, cast.task, cast.tokenizer)

    if start == 0 and config.evaluation.at_start:
        write_atomically(workdir / "evaluation_at_start.json", json.dumps(evaluation(), indent=2))
    bar = progress(config.steps, initial=start, desc=Path(workdir).name)
    # A run that was stopped between its last checkpoint and its summary has no step left: the figures are on disk.
    done_before = read_metrics(writer.path) if start == config.steps else []
    last: dict[str, Any] = {k: v for row in done_before[-1:] for k, v in row.items() if k != "step"}
    for step in range(start, config.steps):
        key = jax.random.fold_in(root, step)
        seed = int(np.random.SeedSequence([config.seed, step]).generate_state(1)[0])  # of what draws on the host
        gallery: list[dict[str, Any]] = []
        demonstrate = functools.partial(collect.collect_demonstrations, cast, config, sampling, key=key, seed=seed, timer=timer)
        with timer("total"):
            if step < shows.supervised_steps:
                # ---- Supervised: demonstrations alone.
                problems, _ = collect.draw(cast, config, cursor, shows.rows or config.rollout.prompts)
                shown = demonstrate(problems)
                metrics, tokens = shown.metrics, 0.0
                with timer("update"):
                    metrics |= learner.clone(shown.rollout, shown.include_B, config.training.mini_batches)
            else:
                # ---- Rollouts and verdicts, demonstrations among them.
                with timer("rollout"):
                    policy = learner.policy()
                groups = collect.collect_rollouts(cast, policy, config, sampling, key, cursor, timer)
                metrics = groups.metrics
                tokens = metrics["cost/rollout_tokens"]
                if shows.per_group:
                    asked = groups.problems[:: groups.group]
                    asked = [problem for problem in asked for _ in range(shows.per_group)]
                    groups = collect.with_demonstrations(groups, demonstrate(asked, first_row=len(groups.reward_B)))
                    metrics = groups.metrics

                # ---- Correction.
                final, group, reward, include = groups.rollout, groups.group, groups.reward_B, groups.include_B
                if spec is not None and cast.teacher is not None:
                    rescued = correction.rescue(
                        final,
                        reward,
                        groups.problems,
                        group=group,
                        spec=spec,
                        sample_spec=sampling,
                        key=key,
                        domain=cast.task.domain,
                        tokenizer=cast.tokenizer,
                        policy=policy,
                        teacher=cast.teacher,
                        prm=cast.prm,
                        seed=seed,
                        timer=timer,
                        keep_gallery=step % config.samples.every == 0 or step + 1 == config.steps,
                    )
                    final, group = rescued.rollout, rescued.group
                    reward, include = rescued.reward_B, rescued.include_B
                    metrics |= rescued.metrics
                    gallery = rescued.gallery
                # ---- Advantages.
                with timer("update" if credit.process == "none" else "prm"):
                    locate = functools.partial(
                        correction.locate,
                        final,
                        problems=groups.problems,
                        localiser=config.correction.localiser,
                        threshold=config.correction.threshold,
                        domain=cast.task.domain,
                        tokenizer=cast.tokenizer,
                        prm=cast.prm,
                        noise=config.correction.noise,
                        seed=seed,
                    )
                    advantage, more = advantages(
                        final, reward, include, group, credit, max_new_tokens=config.rollout.new_tokens, locate=locate
                    )
                metrics |= more
                silent = np.all(np.asarray(advantage).reshape(len(reward) // group, -1) == 0, axis=1)
                metrics["advantage/zero_group_share_after"] = float(np.mean(silent))

                # ---- Updates.
                del policy  # the layout for decoding need not stay in memory
                with timer("update"):
                    metrics |= learner.update(final, group, advantage, include, key, step)
                if shows.buffer:
                    failed = np.all(groups.reward_B.reshape(-1, groups.group) == 0, axis=1)
                    waiting += [problem for problem, bad in zip(groups.problems[:: groups.group], failed) if bad]
                    while len(waiting) >= shows.buffer:
                        asked, waiting = waiting[: shows.buffer], waiting[shows.buffer :]
                        shown = demonstrate(asked, first_row=len(groups.reward_B))
                        with timer("update"):
                            cloned = learner.clone(shown.rollout, shown.include_B)
                        metrics["grad/skipped_now"] += cloned["grad/skipped_now"]
                        metrics |= shown.metrics | {f"clone/{name.split('/')[1]}": v for name, v in cloned.items() if "/" in name}
                    metrics["demonstrations/waiting"] = float(len(waiting))
        if int(jax.device_get(learner.state.skipped_in_row)) >= config.training.stop_after_skipped:
            raise RuntimeError(
                f"step {step}: {config.training.stop_after_skipped} updates in a row were not finite and were skipped; the last "
                f"good checkpoint is in {workdir / 'checkpoints'}; lower optimizer.learning_rate"
            )
        seconds = timer.pop()
        metrics |= {
            "data/prompts": float(cursor.position),
            "data/dropped": float(cursor.dropped),
            "compile/count": float(compiles()),
        }
        if tokens:
            metrics["throughput/rollout_tokens_per_s"] = tokens / seconds["time/rollout"]
        if metrics.get("scope/accepted"):
            spent = seconds.get("time/prm", 0.0) + seconds.get("time/correct", 0.0)
            metrics["time/per_salvage"] = spent / metrics["scope/accepted"]
        done = step + 1
        if done == config.steps or (config.evaluation.every and done % config.evaluation.every == 0):
            with timer("evaluate"):
                metrics |= evaluation()
            seconds |= timer.pop()
        if gallery:
            shown_rows = sorted(gallery, key=lambda item: not item["verdict_after"])[: config.samples.rows]
            write_atomically(workdir / "samples" / f"step_{step:06d}.json", json.dumps(shown_rows, indent=1))
        writer.write(step, metrics | seconds)
        # Never a checkpoint of a skipped update: the last good one must stay the last.
        if (done % config.checkpoint.every == 0 or done == config.steps) and not metrics["grad/skipped_now"]:
            kept = {"position": cursor.position, "dropped": cursor.dropped}
            checkpoints.save(done, learner.state, kept | {"waiting": [dataclasses.asdict(p) for p in waiting]})
        last = metrics
        phases = " ".join(f"{k.split('/')[1]} {v:.2f}s" for k, v in seconds.items() if k != "time/total")
        shown_reward = f"reward {metrics['reward/mean']:.3f} | " if "reward/mean" in metrics else ""
        bar.set_postfix_str(shown_reward + phases, refresh=False)
        bar.update(1)
    bar.close()
    checkpoints.close()
    writer.close()
    if start < config.steps or not (workdir / "summary.json").is_file():
        learner.save(workdir)
        tasks.save_tokenizer(cast.tokenizer, workdir / "model")
        summary = {
            "steps": config.steps,
            "seed": config.seed,
            "updates": int(learner.state.updates),
            "skipped": int(learner.state.skipped),
            "final": last,
        }
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_run_report(workdir)
    return json.loads((workdir / "summary.json").read_text())


def command(config: ConfigDict, workdir: str | None, _: Any) -> str:
    """The command line's `train`: the lines to print at the end."""
    summary = train(config, workdir or "")
    shown = ("reward/mean", "eval/pass@1", "eval/pass@8", "eval_ood/pass@1", "scope/accepted_share")
    figures = "  ".join(f"{name} {summary['final'][name]:.3f}" for name in shown if name in summary["final"])
    return f"done: {summary['steps']} steps  {figures}\nreport: {Path(workdir or '') / 'report.html'}"


if __name__ == "__main__":
    cli.run(command)
