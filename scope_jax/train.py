"""Train a policy with SCOPE, or with a rival: the same loop with other settings.

    python -m scope_jax.train --config=scope,arithmetic --workdir=DIR [--config.steps=50 ...]

`train_step` is the algorithm: rollouts, verdicts, demonstrations or correction, credit, update. The
same command resumes a run that was stopped, and goes on bit for bit (CPU) as if it never had been.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scope_jax import cli, hub, learning, streams
from scope_jax.configuration import (
    Luffy,
    Relift,
    Scope,
    TrainConfig,
    default_config,
    train_config,
)
from scope_jax.configuration.renamed import upgraded
from scope_jax.correction import Groups, rescue
from scope_jax.data.load import domain_of
from scope_jax.devices.current import platform
from scope_jax.devices.hosts import any_process, is_main, wait_for_all
from scope_jax.devices.mesh import mesh_of
from scope_jax.devices.peaks import peaks
from scope_jax.devices.precision import matmul_precision
from scope_jax.evaluate import evaluate_splits
from scope_jax.learning.credit import advantages
from scope_jax.report import Watch, write_run_report
from scope_jax.report.by_problem import BY_PROBLEM, ByProblem
from scope_jax.run import (
    StopSignal,
    Trackers,
    check_beside,
    check_trackers,
    check_workdir,
    config_changes,
    names_of_run,
    prepare_workdir,
    profile,
    read_metrics,
    record_config,
    record_names,
    write_atomically,
)
from scope_jax.run.compiles import Compiles
from scope_jax.run.lock import locked, refuse_busy
from scope_jax.run.metrics import say_beside_bars
from scope_jax.run.profile import profiled_steps
from scope_jax.run.session import (
    TRAINED,
    Keeping,
    Session,
    finished_summary,
    write_summary,
)
from scope_jax.text import save_tokenizer
from scope_jax.training.actors import Actors, attention_line, load_actors
from scope_jax.training.ahead import compile_ahead
from scope_jax.training.figures import peak_memory
from scope_jax.training.learner import Learner
from scope_jax.training.logprobs import teacher_logprobs
from scope_jax.training.resample import replace_silent
from scope_jax.training.rollouts import (
    Progress,
    Step,
    collect_demonstrations,
    collect_rollouts,
    draw,
    scene_of,
    summed_demonstrations,
    with_demonstrations,
)
from scope_jax.training.samples import Samples

# Settings that a resumed run may change: they do not touch what is learned.
MAY_DIFFER = (
    "checkpoint.every",
    "checkpoint.keep",
    "samples",
    "track",
    "training.remat",
    "teacher.endpoint.url",
    "teacher.endpoint.cache",
)


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    allow_changed: Sequence[str] = (),
    profile_steps: str | None = None,
) -> dict[str, Any]:
    """Run (or go on with) the training that `config` describes; returns the summary that
    `workdir/summary.json` holds. A finished run is left as it is. `allow_changed`: settings (dotted
    names, "all") in which the config may differ from the one that the run was started with; what
    changed is written to `workdir/config_changes.jsonl`. `profile_steps`: "A:B", a trace of steps A
    to B - 1 in `workdir/profile`.

    Raises ValueError for a config that makes no sense, a workdir of another config or one in which
    another process works,
    FileNotFoundError for missing models, RuntimeError after `training.stop_after_skipped`
    non-finite updates in a row, NoRoom on a full disk, and Stopped where SIGTERM or Ctrl-C asked it
    to stop: it has a checkpoint then, and the same call goes on.
    """
    settings, workdir = train_config(config), Path(workdir)
    profiled = profiled_steps(profile_steps, settings.steps)
    written = config.to_dict()
    mesh = mesh_of(settings.mesh)
    compared = same_config(settings)
    precision = matmul_precision(settings.matmul_precision)
    with StopSignal(any_process) as stop, jax.set_mesh(mesh), precision:
        done = finished_summary(
            workdir, lambda: not config_changes(workdir, written, **compared), TRAINED
        )
        if done is not None and done["steps"] == settings.steps:
            if is_main() and not (workdir / "report.html").is_file():
                how_to_read = domain_of(settings.task).how_to_read
                write_run_report(workdir, how_to_read=how_to_read)
            return done
        check_workdir(workdir, written, allow=allow_changed, **compared)
        if settings.checkpoint.directory:
            check_beside(settings.checkpoint.directory, written, allow=allow_changed, **compared)
        refuse_busy(workdir)
        check_trackers(settings.track)
        with hub.pinned(names_of_run(workdir)):
            actors = load_actors(settings, mesh, workdir)
        with contextlib.closing(actors), locked(workdir):
            workdir = prepare_workdir(workdir, written, allow=allow_changed, **compared)
            record_names(workdir)
            if actors.task.contamination is not None:
                text = json.dumps(actors.task.contamination, indent=2) + "\n"
                write_atomically(workdir / "decontamination.json", text)
            if is_main() and platform() != "cpu":
                print(attention_line(actors, settings.dtype), flush=True)
            root = jax.random.key(settings.seed)
            learner = Learner(settings, actors, mesh, root)
            with Trackers(settings.track, workdir, written) as trackers:
                return _train(settings, written, workdir, actors, learner, stop, profiled, trackers)


def _train(
    config: TrainConfig,
    written: dict[str, Any],
    workdir: Path,
    actors: Actors,
    learner: Learner,
    stop: StopSignal,
    profiled: range,
    trackers: Trackers,
) -> dict[str, Any]:
    root, progress = jax.random.key(config.seed), Progress()

    def evaluate() -> dict[str, float]:
        params, counts = learner.publish().params, dict[str, ByProblem]()
        figures = evaluate_splits(
            params, actors.config, config, actors.task, actors.tokenizer, counts
        )
        if is_main():  # those of the last evaluation stay
            text = json.dumps({name: found.to_json() for name, found in counts.items()})
            write_atomically(workdir / BY_PROBLEM, text + "\n")
        return figures

    def page(path: Path) -> None:
        write_run_report(workdir, how_to_read=actors.task.domain.how_to_read, path=path)

    kept = Session(
        workdir, keeping(config), stop, evaluate=evaluate, profiled=profiled, trackers=trackers
    )
    with kept as session:
        session.restore(learner, progress, learning.abstract_state(learner.state))
        record_config(workdir, written, session.start, **same_config(config))
        if config.checkpoint.directory and is_main():
            text = (workdir / "config.json").read_text(encoding="utf-8")
            session.checkpoints.write_beside("config.json", text)
        (workdir / "samples").mkdir(exist_ok=True)
        if session.start == 0 and config.evaluation.at_start:
            with session.compiles.apart("evaluation"):
                figures = json.dumps(evaluate(), indent=2)
            write_atomically(workdir / "evaluation_at_start.json", figures)
        wait_for_all("the folder is there")
        watch = watch_of(workdir, session.start)
        if session.start < config.steps:
            compile_ahead(actors, learner, config, jax.random.fold_in(root, session.start))
            with session.compiles.apart("peaks"):
                peaks()
        for number in session.steps():
            seed = streams.step_seed(config.seed, number)
            key, samples = jax.random.fold_in(root, number), Samples.of_step(number, config)
            step = Step(number, key, seed, session.timer, samples)
            with session.timer("total"):
                metrics = train_step(actors, learner, config, progress, step, session.safe_point)
            step.samples.write(workdir, number, config)
            step.samples.show(number)
            for line in watch.see(number, metrics):
                say_beside_bars(f"warning: {workdir}: {line}")
            metrics |= step_figures(metrics, progress, session.compiles, session.timer.pop())
            metrics |= step.figures.metrics(peaks(), jax.device_count()) | peak_memory()
            metrics |= trackers.metrics()
            session.record(
                number, metrics, skipped=metrics["grad/skipped_now"] > 0, shown=one_line(metrics)
            )
            if (number + 1) % config.checkpoint.every == 0:
                trackers.page(page)  # the run so far
    learner.save(workdir)
    if is_main():
        save_tokenizer(actors.tokenizer, workdir / "model")
    summary = {
        "steps": config.steps,
        "seed": config.seed,
        "updates": int(learner.state.updates),
        "skipped": int(learner.state.skipped),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "final": session.last,
    }
    # Last but for the page about it: this file says that the run is finished.
    summary = write_summary(workdir, summary)
    if is_main():
        page(workdir / "report.html")
    trackers.page(page)
    wait_for_all("the run is written")
    return summary


def train_step(
    actors: Actors,
    learner: Learner,
    config: TrainConfig,
    progress: Progress,
    step: Step,
    safe_point: Callable[[], None],
) -> dict[str, float]:
    """One step of the algorithm: its metrics; what is shown of it goes into `step.samples`. At a
    `safe_point()` a run that was asked to stop gives the step up."""
    method, timer = config.method, step.timer

    # ---- Supervised start: demonstrations alone (SFT).
    if step.number < config.sft.steps:
        return supervised_step(actors, learner, config, progress, step, safe_point)

    # ---- Rollouts and verdicts.
    with timer("rollout"):
        policy = learner.publish()
        jax.block_until_ready(policy.params)  # where the clock is read
    groups = collect_rollouts(actors, policy, config, progress, step)
    step.samples.keep(groups, actors, config)

    # ---- Demonstrations among them (LUFFY).
    if isinstance(method, Luffy):
        asked = [p for p in groups.problems[:: groups.group] for _ in range(method.per_group)]
        rows = len(groups.reward_B)
        shown = collect_demonstrations(actors, config, asked, step, first_row=rows)
        groups = with_demonstrations(groups, shown)
    metrics = groups.metrics
    safe_point()

    # ---- Correction: failures rescued at their first wrong step (SCOPE).
    scene, final = scene_of(actors, policy, config, step), groups
    if isinstance(method, Scope):
        rescued = rescue(groups, scene, method, keep_gallery=step.samples.wants_rescues)
        # Where that is on: other prompts in place of groups that say nothing even now.
        rescued = replace_silent(
            actors, policy, config, progress, step, groups, rescued, safe_point
        )
        final, step.samples.rescues = rescued.groups, rescued.gallery
        metrics |= rescued.metrics

    # ---- Credit: the advantage of each row, or of each token.
    credit = config.credit
    with timer("prm" if credit.scores_steps else "update"):
        spec, done = config.advantage, step.number / config.steps
        advantage, more = advantages(
            final, scene, credit, spec, max_new_tokens=config.rollout.new_tokens, done=done
        )
        jax.block_until_ready(advantage)
    metrics |= more | {"advantage/zero_group_share_after": no_signal(advantage, final)}

    # ---- Distillation: the teacher reads what the policy wrote.
    taught = taught_logprobs(actors, config, final, step, metrics)

    # ---- Update. From here on the step is not given up any more.
    safe_point()
    del policy, scene  # the layout for decoding need not stay in memory
    written, times = final.rollout, config.training.epochs
    with timer("update"), step.figures.updating(learner, written, final.group, times):
        given = (written, final.group, advantage, final.include_B, step.key, step.number)
        metrics |= learner.update(*given, final.credit_from_B, taught)

    # ---- Supervised steps on prompts whose group failed altogether (ReLIFT).
    if isinstance(method, Relift):
        clone_failures(actors, learner, config, progress, groups, step, metrics)
    return metrics


def supervised_step(
    actors: Actors,
    learner: Learner,
    config: TrainConfig,
    progress: Progress,
    step: Step,
    safe_point: Callable[[], None],
) -> dict[str, float]:
    """A step on demonstrations alone: its metrics."""
    count = config.sft.prompts or config.rollout.prompts
    problems, _ = draw(actors, config, progress, count)
    shown = collect_demonstrations(actors, config, problems, step)
    safe_point()
    with step.timer("update"), step.figures.updating(learner, shown.rollout, 1):
        parts = config.training.mini_batches
        return shown.metrics | learner.clone(shown.rollout, shown.include_B, parts)


def no_signal(advantage: Any, groups: Groups) -> float:
    """Share of the groups in which no token has an advantage."""
    is_zero = np.asarray(advantage).reshape(len(groups.reward_B) // groups.group, -1) == 0
    return float(np.mean(np.all(is_zero, axis=1)))


def taught_logprobs(
    actors: Actors, config: TrainConfig, groups: Groups, step: Step, metrics: dict[str, float]
) -> jax.Array | None:
    """float32[B, T]: the teacher's log-probs of a step's final rows, None where none are asked for;
    adds what they cost to the step's metrics."""
    if not config.distills:
        return None
    with step.timer("distill"):
        found, cost = teacher_logprobs(actors.teacher, config, groups.rollout, groups.group)
        jax.block_until_ready(found)
    metrics |= cost
    return found


def clone_failures(
    actors: Actors,
    learner: Learner,
    config: TrainConfig,
    progress: Progress,
    groups: Groups,
    step: Step,
    metrics: dict[str, float],
) -> None:
    """Collect the prompts whose group failed altogether, and learn from demonstrations of them
    once there are `method.buffer`; adds to the step's metrics."""
    assert isinstance(config.method, Relift)
    failed = np.all(groups.failed_B.reshape(-1, groups.group), axis=1)
    prompts = groups.problems[:: groups.group]
    progress.waiting += [problem for problem, bad in zip(prompts, failed, strict=True) if bad]
    size, rows = config.method.buffer, len(groups.reward_B)
    parts: list[dict[str, float]] = []
    while len(progress.waiting) >= size:
        asked, progress.waiting = progress.waiting[:size], progress.waiting[size:]
        # Rows of their own ids, so that no two lots draw alike.
        first_row = rows + len(parts) * size
        shown = collect_demonstrations(actors, config, asked, step, first_row=first_row)
        parts.append(shown.metrics)
        with step.timer("update"), step.figures.updating(learner, shown.rollout, 1):
            cloned = learner.clone(shown.rollout, shown.include_B)
        metrics["grad/skipped_now"] += cloned["grad/skipped_now"]
        metrics["grad/skipped"] = cloned["grad/skipped"]
        before = metrics.get("clone/count", 0.0)  # of earlier lots
        metrics |= {f"clone/{name.split('/')[1]}": v for name, v in cloned.items() if "/" in name}
        metrics["clone/count"] = before + cloned["update/count"]
    metrics |= summed_demonstrations(parts)
    metrics["demonstrations/waiting"] = float(len(progress.waiting))


# ---- around a step


def same_config(config: TrainConfig) -> dict[str, Any]:
    """How a workdir's config is compared with this one: settings of an earlier version under
    today's names, and those that it did not have while they stand at their method's defaults."""
    return {
        "may_differ": MAY_DIFFER,
        "defaults": default_config(config.method.name).to_dict(),
        "upgrade": upgraded,
    }


def keeping(config: TrainConfig) -> Keeping:
    """How a run of this config is kept."""
    return Keeping(
        steps=config.steps,
        every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        directory=config.checkpoint.directory,
        stop_after_skipped=config.training.stop_after_skipped,
        evaluate_every=config.evaluation.every,
    )


def watch_of(workdir: Path, start: int) -> Watch:
    """What keeps the run from learning, as it was after `start` steps."""
    watch, path = Watch(), workdir / "metrics.jsonl"
    for row in read_metrics(path) if start and path.is_file() else ():
        if row["step"] < start:
            watch.see(row["step"], row)
    return watch


def step_figures(
    metrics: dict[str, float], progress: Progress, compiles: Compiles, seconds: dict[str, float]
) -> dict[str, float]:
    """What a step cost: its seconds by phase, its place in the data, tokens per second."""
    figures = seconds | {
        "data/prompts": float(progress.position),
        "data/dropped": float(progress.dropped),
        "compile/count": float(compiles.count),
        "compile/from_cache": float(compiles.from_cache),
        "compile/seconds": compiles.seconds,
        "compile/evaluation": float(compiles.of["evaluation"]),
        "compile/checkpoint": float(compiles.of["checkpoint"]),
    }
    if metrics.get("cost/rollout_tokens"):
        rate = metrics["cost/rollout_tokens"] / seconds["time/rollout"]
        figures["throughput/rollout_tokens_per_s"] = rate
    if metrics.get("scope/accepted"):
        spent = seconds.get("time/prm", 0.0) + seconds.get("time/correct", 0.0)
        figures["time/per_salvage"] = spent / metrics["scope/accepted"]
    return figures


def one_line(metrics: dict[str, float]) -> str:
    """What the progress bar says of a step: its reward, and its seconds by phase."""
    reward = f"reward {metrics['reward/mean']:.3f} | " if "reward/mean" in metrics else ""
    return reward + " ".join(
        f"{name.split('/')[1]} {value:.2f}s"
        for name, value in metrics.items()
        if name.startswith("time/")
        and name not in ("time/total", "time/per_salvage")
        and not name.endswith("_program")
    )


# ---- the command line


def command(config: ConfigDict, workdir: str | None, given: Any) -> str:
    """The command line's `train`: the lines to print at the end."""
    summary = train(
        config,
        workdir or "",
        allow_changed=given.allow_changed_config,
        profile_steps=given.profile_steps,
    )
    names = ("reward/mean", "eval/pass@1", "eval/pass@8", "eval_ood/pass@1", "scope/accepted_share")
    final = summary["final"]
    figures = "  ".join(
        f"{name} {final[name]:.3f}" for name in names if final.get(name) is not None
    )
    report = Path(workdir or "") / "report.html"
    return f"done: {summary['steps']} steps  {figures}\nreport: {report}"


if __name__ == "__main__":
    changed = "Go on with a run although these settings (loss.clip_high,...; or all) have changed"
    cli.run(
        command,
        TrainConfig,
        file="run.py",
        more=[
            cli.Flag("allow_changed_config", changed, [], list),
            cli.Flag("profile_steps", profile.HELP),
        ],
    )
