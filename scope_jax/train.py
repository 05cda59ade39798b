"""Train a policy with SCOPE, or with a rival: the same loop with other switches.

    python -m scope_jax.train --config=configs/arithmetic/scope.py --workdir=DIR [--config.loss.teacher_weight=0.3 ...]

One step: rollouts -> verdicts -> (demonstrations, correction) -> advantages and token weights ->
updates -> metrics. The same command resumes a run that was stopped, and goes on bit for bit (CPU)
as if it never had been.
"""

import contextlib
import dataclasses
import functools
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from scope_jax import cli, correction, learning, tasks
from scope_jax.config import (
    advantage_spec,
    check_config,
    correction_spec,
    default_config,
    demonstration_spec,
    sample_spec,
)
from scope_jax.devices.hosts import any_process, exchange, is_main, wait_for_all
from scope_jax.devices.mesh import make_mesh
from scope_jax.evaluate import evaluate_splits
from scope_jax.report import write_run_report
from scope_jax.run import (
    Checkpoints,
    MetricsWriter,
    PhaseTimer,
    Stopped,
    StopSignal,
    config_changes,
    prepare_workdir,
    progress,
    read_metrics,
    record_config,
    write_atomically,
)
from scope_jax.run.compiles import count_compiles
from scope_jax.text import save_tokenizer
from scope_jax.training import rollouts
from scope_jax.training.actors import Actors, load_actors
from scope_jax.training.credit import advantages
from scope_jax.training.learner import Learner

# Settings that a resumed run may change: they do not touch what is learned.
MAY_DIFFER = (
    "checkpoint.every",
    "checkpoint.keep",
    "samples",
    "teacher.endpoint.url",
    "teacher.endpoint.cache",
)
# So may those that an earlier version did not have, while they stand at their defaults.
FREE: dict[str, Any] = {"may_differ": MAY_DIFFER, "defaults": default_config().to_dict()}


def train(
    config: ConfigDict, workdir: str | Path, *, allow_changed: Sequence[str] = ()
) -> dict[str, Any]:
    """Run (or go on with) the training that `config` describes; returns the summary that
    `workdir/summary.json` holds. A finished run is left as it is. `allow_changed`: settings
    (dotted names, "all") in which the config may differ from the one that the run was started
    with; what changed is written to `workdir/config_changes.jsonl`.

    Raises ValueError for a config that makes no sense or a workdir of another config,
    FileNotFoundError for missing models, RuntimeError after `training.stop_after_skipped`
    non-finite updates in a row, NoRoom on a full disk, and Stopped where SIGTERM or Ctrl-C asked
    it to stop: it has a checkpoint then, and the same call goes on.
    """
    check_config(config)
    mesh = make_mesh(**config.mesh.to_dict())
    with StopSignal(any_process) as stop, jax.set_mesh(mesh):
        settings = config.to_dict()
        finished = Path(workdir) / "summary.json"
        if is_main() and finished.is_file() and not config_changes(workdir, settings, **FREE):
            found = json.loads(finished.read_text())
        else:
            found = None
        if (found := exchange(found)[0]) is not None and found["steps"] == config.steps:
            if is_main() and not (Path(workdir) / "report.html").is_file():
                write_run_report(Path(workdir))
            return found
        actors = load_actors(config, mesh, Path(workdir))
        workdir = prepare_workdir(workdir, settings, allow=allow_changed, **FREE)
        if actors.task.contamination is not None:
            write_atomically(
                workdir / "decontamination.json",
                json.dumps(actors.task.contamination, indent=2) + "\n",
            )
        root = jax.random.key(config.seed)
        learner = Learner(config, actors, mesh, root)
        with (
            contextlib.ExitStack() as opened
        ):  # also after an error, the last words are not a progress bar's
            return _train(config, actors, learner, root, workdir, opened, stop)


def _train(
    config: ConfigDict,
    actors: Actors,
    learner: Learner,
    root: jax.Array,
    workdir: Path,
    opened: contextlib.ExitStack,
    stop: StopSignal,
) -> dict[str, Any]:
    spec, shows, credit = (
        correction_spec(config),
        demonstration_spec(config),
        advantage_spec(config),
    )
    sampling = sample_spec(config, actors.config.end_ids)

    checkpoints = opened.enter_context(
        Checkpoints(
            config.checkpoint.directory or workdir / "checkpoints", keep=config.checkpoint.keep
        )
    )
    start, cursor = 0, rollouts.Cursor()
    waiting: list[
        tasks.Problem
    ] = []  # of groups that failed altogether, until a supervised step (ReLIFT)
    extra: dict[str, Any] = {}
    restored = checkpoints.restore(learning.abstract_state(learner.state))
    if restored is not None:
        start, state, extra = restored
        learner.restore(state)
        if start > config.steps:
            raise ValueError(
                f"{workdir}: has {start} steps behind it, more than config.steps = {config.steps};"
                " raise that"
            )
        cursor = rollouts.Cursor(extra["position"], extra["dropped"])
        waiting = [tasks.Problem(**problem) for problem in extra.get("waiting", ())]
        print(f"resuming {workdir} at step {start}", flush=True)
    elif is_main():
        _put_by(workdir, config.checkpoint.every)
    record_config(workdir, config.to_dict(), start, **FREE)
    # Metrics of the last step, where the run was stopped before that step's evaluation.
    owed: dict[str, float] | None = extra.get("before_evaluation")
    writer = opened.enter_context(
        MetricsWriter(workdir, resume_step=start if owed is None else start - 1)
    )
    timer = PhaseTimer()
    compiles = count_compiles()
    (workdir / "samples").mkdir(exist_ok=True)

    def evaluation() -> dict[str, float]:
        return evaluate_splits(
            learner.publish().params, actors.config, config, actors.task, actors.tokenizer
        )

    def place() -> dict[str, Any]:
        """Where the run stands, beside its state: what a checkpoint keeps to go on from there."""
        kept = {"position": cursor.position, "dropped": cursor.dropped}
        return kept | {"waiting": [dataclasses.asdict(problem) for problem in waiting]}

    def stop_at(done: int, kept: dict[str, Any]) -> None:
        """End the run, with a checkpoint of the state after `done` steps; a step that was begun
        after them is done again."""
        if done > start and good:
            checkpoints.save(done, learner.state, kept)
        checkpoints.wait()
        saved = max(checkpoints.steps(), default=0)
        raise Stopped(
            f"{workdir}: {stop.name or 'another process was'} asked to stop; the same command goes"
            f" on at step {saved}"
        )

    def evaluated(done: int, metrics: dict[str, float]) -> dict[str, float]:
        """`metrics` of the last of `done` steps, with those of its evaluation and its seconds. A
        stop does not wait for it."""
        kept = place() | {
            "before_evaluation": {
                name: v if isinstance(v, int) else float(v) for name, v in metrics.items()
            }
        }
        if stop.requested():
            stop_at(done, kept)
        with timer("evaluate"):
            figures = evaluation()
        if stop.requested():
            stop_at(done, kept)
        return metrics | figures | timer.pop()

    if start == 0 and config.evaluation.at_start:
        write_atomically(workdir / "evaluation_at_start.json", json.dumps(evaluation(), indent=2))
    wait_for_all("the folder is there")
    cli.begun()
    bar = opened.enter_context(progress(config.steps, initial=start, desc=Path(workdir).name))
    # A run that was stopped between its last checkpoint and its summary has no step left: the
    # figures are on disk.
    done_before = read_metrics(writer.path) if start == config.steps and is_main() else []
    last: dict[str, Any] = {k: v for row in done_before[-1:] for k, v in row.items() if k != "step"}
    good, due = True, False  # whether the last update was; whether a checkpoint is
    if owed is not None:
        last = evaluated(start, owed)
        writer.write(start - 1, last)
    for step in range(start, config.steps):
        before = place()
        if stop.requested():
            stop_at(step, before)
        key = jax.random.fold_in(root, step)
        seed = int(
            np.random.SeedSequence([config.seed, step]).generate_state(1)[0]
        )  # of what draws on the host
        gallery: list[dict[str, Any]] = []
        demonstrate = functools.partial(
            rollouts.collect_demonstrations,
            actors,
            config,
            sampling,
            key=key,
            seed=seed,
            timer=timer,
        )
        with timer("total"):
            if step < shows.supervised_steps:
                # ---- Supervised: demonstrations alone.
                problems, _ = rollouts.draw(
                    actors, config, cursor, shows.rows or config.rollout.prompts
                )
                shown = demonstrate(problems)
                metrics, tokens = shown.metrics, 0.0
                if stop.requested():
                    stop_at(step, before)
                with timer("update"):
                    metrics |= learner.clone(
                        shown.rollout, shown.include_B, config.training.mini_batches
                    )
            else:
                # ---- Rollouts and verdicts, demonstrations among them.
                with timer("rollout"):
                    policy = learner.publish()
                groups = rollouts.collect_rollouts(
                    actors, policy, config, sampling, key, cursor, timer
                )
                metrics = groups.metrics
                tokens = metrics["cost/rollout_tokens"]
                if shows.per_group:
                    asked = groups.problems[:: groups.group]
                    asked = [problem for problem in asked for _ in range(shows.per_group)]
                    groups = rollouts.with_demonstrations(
                        groups, demonstrate(asked, first_row=len(groups.reward_B))
                    )
                    metrics = groups.metrics

                if stop.requested():
                    stop_at(step, before)

                # ---- Correction.
                final, group, reward, include = (
                    groups.rollout,
                    groups.group,
                    groups.reward_B,
                    groups.include_B,
                )
                if spec is not None and actors.teacher is not None:
                    rescued = correction.rescue(
                        final,
                        reward,
                        groups.problems,
                        group=group,
                        spec=spec,
                        sample_spec=sampling,
                        key=key,
                        domain=actors.task.domain,
                        tokenizer=actors.tokenizer,
                        policy=policy,
                        teacher=actors.teacher,
                        prm=actors.prm,
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
                        domain=actors.task.domain,
                        tokenizer=actors.tokenizer,
                        prm=actors.prm,
                        noise=config.correction.noise,
                        seed=seed,
                    )
                    advantage, more = advantages(
                        final,
                        reward,
                        include,
                        group,
                        credit,
                        max_new_tokens=config.rollout.new_tokens,
                        locate=locate,
                    )
                metrics |= more
                silent = np.all(
                    np.asarray(advantage).reshape(len(reward) // group, -1) == 0, axis=1
                )
                metrics["advantage/zero_group_share_after"] = float(np.mean(silent))

                # ---- Updates: from here on the step is not given up any more.
                if stop.requested():
                    stop_at(step, before)
                del policy  # the layout for decoding need not stay in memory
                with timer("update"):
                    metrics |= learner.update(final, group, advantage, include, key, step)
                if shows.buffer:
                    failed = np.all(groups.reward_B.reshape(-1, groups.group) == 0, axis=1)
                    waiting += [
                        problem
                        for problem, bad in zip(groups.problems[:: groups.group], failed)
                        if bad
                    ]
                    while len(waiting) >= shows.buffer:
                        asked, waiting = waiting[: shows.buffer], waiting[shows.buffer :]
                        shown = demonstrate(asked, first_row=len(groups.reward_B))
                        with timer("update"):
                            cloned = learner.clone(shown.rollout, shown.include_B)
                        metrics["grad/skipped_now"] += cloned["grad/skipped_now"]
                        metrics |= shown.metrics | {
                            f"clone/{name.split('/')[1]}": v
                            for name, v in cloned.items()
                            if "/" in name
                        }
                    metrics["demonstrations/waiting"] = float(len(waiting))
        if int(jax.device_get(learner.state.skipped_in_row)) >= config.training.stop_after_skipped:
            raise RuntimeError(
                f"step {step}: {config.training.stop_after_skipped} updates in a row were not"
                " finite and were skipped; the last good checkpoint is in"
                f" {workdir / 'checkpoints'}; lower optimizer.learning_rate"
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
        done, good = step + 1, not metrics["grad/skipped_now"]
        if gallery:
            shown_rows = sorted(gallery, key=lambda item: not item["verdict_after"])[
                : config.samples.rows
            ]
            write_atomically(
                workdir / "samples" / f"step_{step:06d}.json", json.dumps(shown_rows, indent=1)
            )
        metrics |= seconds
        if done == config.steps or (
            config.evaluation.every and done % config.evaluation.every == 0
        ):
            metrics = evaluated(done, metrics)
        writer.write(step, metrics)
        # Never a checkpoint of a skipped update: the last good one must stay the last.
        due = due or done % config.checkpoint.every == 0 or done == config.steps
        if due and good:
            checkpoints.save(done, learner.state, place())
            due = False
        last = metrics
        phases = " ".join(
            f"{k.split('/')[1]} {v:.2f}s"
            for k, v in metrics.items()
            if k.startswith("time/") and k not in ("time/total", "time/per_salvage")
        )
        shown_reward = f"reward {metrics['reward/mean']:.3f} | " if "reward/mean" in metrics else ""
        bar.set_postfix_str(shown_reward + phases, refresh=False)
        bar.update(1)
    bar.close()
    checkpoints.wait()
    writer.close()
    learner.save(workdir)
    summary = {
        "steps": config.steps,
        "seed": config.seed,
        "updates": int(learner.state.updates),
        "skipped": int(learner.state.skipped),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "final": {
            name: value if math.isfinite(value or 0) else None for name, value in last.items()
        },  # as metrics.jsonl has it
    }
    if is_main():
        save_tokenizer(actors.tokenizer, workdir / "model")
    # Last but for the page about it: this file says that the run is finished.
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    if is_main():
        write_run_report(workdir)
    wait_for_all("the run is written")
    return summary


def _put_by(workdir: Path, every: int) -> None:
    """Keep the metrics of steps that no checkpoint is left of, where there should be one: the run
    begins anew."""
    path = workdir / "metrics.jsonl"
    steps = len(read_metrics(path)) if path.is_file() else 0
    if steps >= every:
        path.replace(workdir / "metrics_before.jsonl")
        warnings.warn(
            f"{workdir}: {steps} steps were done and no checkpoint of them is left; the run begins"
            " anew, their metrics are in metrics_before.jsonl",
            stacklevel=2,
        )


def command(config: ConfigDict, workdir: str | None, given: Any) -> str:
    """The command line's `train`: the lines to print at the end."""
    summary = train(config, workdir or "", allow_changed=given.allow_changed_config)
    shown = ("reward/mean", "eval/pass@1", "eval/pass@8", "eval_ood/pass@1", "scope/accepted_share")
    figures = "  ".join(
        f"{name} {summary['final'][name]:.3f}" for name in shown if name in summary["final"]
    )
    return (
        f"done: {summary['steps']} steps  {figures}\nreport: {Path(workdir or '') / 'report.html'}"
    )


if __name__ == "__main__":
    cli.run(
        command,
        extra=lambda: flags.DEFINE_list(
            "allow_changed_config",
            [],
            "Go on with a run although these settings (loss.clip_high,...; or all) have changed.",
        ),
    )
