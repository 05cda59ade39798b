"""Train a policy with SCOPE, or with a rival: the same loop with other switches.

    python -m scope_jax.train --config=configs/arithmetic/scope.py --workdir=DIR [--config.loss.teacher_weight=0.3 ...]

One step: rollouts -> verdicts -> (correction) -> advantages and token weights -> update -> metrics. The same command
resumes a run that was stopped, and goes on bit for bit (CPU) as if it never had been.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scope_jax import cli, correction, learning, models, rollout, tasks
from scope_jax.configuration import (
    check_config,
    correction_spec,
    endpoint_spec,
    lora_spec,
    loss_spec,
    optimizer_spec,
    sample_spec,
    teacher_spec,
)
from scope_jax.evaluate import evaluate_splits
from scope_jax.mesh import make_mesh
from scope_jax.run import (
    Checkpoints,
    MetricsWriter,
    PhaseTimer,
    SampleGroup,
    group_metrics,
    prepare_workdir,
    progress,
    read_metrics,
    write_atomically,
    write_run_report,
)
from scope_jax.run.compiles import count_compiles
from scope_jax.tasks.load import Task, load_task

# Keys of steps count up from 0: this one is none of theirs.
LORA_STREAM = 2**31 - 1
# Settings that a resumed run may change: they do not touch what is learned.
MAY_DIFFER = ("checkpoint", "samples", "teacher.endpoint.url", "teacher.endpoint.cache")


@dataclasses.dataclass(frozen=True, eq=False)
class Cast:
    """Who takes part in a run: the policy (before training), teacher and PRM where there is a correction, the task."""

    config: models.ModelConfig
    params: models.Params
    tokenizer: Any
    task: Task
    teacher: correction.Teacher | None
    prm: correction.ProcessRewardModel | None


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Run (or go on with) the training that `config` describes; returns the summary that `workdir/summary.json` holds.

    Raises ValueError for a config that makes no sense or a workdir of another config, FileNotFoundError for missing
    models, RuntimeError after `training.stop_after_skipped` non-finite updates in a row.
    """
    check_config(config)
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        spec = correction_spec(config)
        cast = load_cast(config, spec, mesh, Path(workdir))
        workdir = prepare_workdir(workdir, config.to_dict(), may_differ=MAY_DIFFER)
        if cast.task.contamination is not None:
            write_atomically(workdir / "decontamination.json", json.dumps(cast.task.contamination, indent=2) + "\n")
        return _train(config, spec, cast, mesh, workdir)


def load_cast(
    config: ConfigDict, spec: correction.CorrectionSpec | None, mesh: jax.sharding.Mesh, workdir: Path | None = None
) -> Cast:
    """Load the task and the checkpoints that the config needs, laid out on the mesh. An endpoint's answers are kept in
    `workdir` where the config names no other place."""
    if not config.models.policy:
        raise ValueError("config.models.policy is empty; give the Hugging Face directory of the policy to train")
    model_config, params = models.load(config.models.policy, dtype=config.dtype, mesh=mesh)
    if model_config.head != "lm":
        raise ValueError(f"{config.models.policy}: head {model_config.head!r}; a policy needs a vocabulary head ('lm')")
    tokenizer = tasks.load_tokenizer(config.models.policy)
    # A base model's files often name one end token only; in a chat its turns end with another.
    model_config = dataclasses.replace(
        model_config, end_ids=tuple(dict.fromkeys((*model_config.end_ids, *tasks.end_ids(tokenizer))))
    )
    task = load_task(**config.task.to_dict(), tokenizer=tokenizer)
    teacher = prm = None
    if spec is not None:
        teacher = load_teacher(config, model_config, tokenizer, task, mesh, workdir)
        if spec.localiser == "prm":
            if not config.models.prm:
                raise ValueError("config.models.prm is empty; localiser 'prm' needs a process reward model")
            prm = correction.ProcessRewardModel.load(
                config.models.prm, dtype=config.dtype, mesh=mesh, format=config.models.prm_format
            )
    return Cast(model_config, params, tokenizer, task, teacher, prm)


def load_teacher(
    config: ConfigDict,
    policy: models.ModelConfig,
    tokenizer: Any,
    task: Task,
    mesh: jax.sharding.Mesh,
    workdir: Path | None = None,
) -> correction.Teacher:
    """The teacher that the config describes. Raises ValueError where it lacks what it needs."""
    spec, endpoint = teacher_spec(config), endpoint_spec(config)
    if spec.kind == "endpoint":
        if not endpoint.cache and workdir is not None:
            endpoint = dataclasses.replace(endpoint, cache=str(workdir / "teacher_cache"))
        return correction.EndpointTeacher(correction.Endpoint(endpoint), spec)
    if spec.kind == "self":
        return correction.ModelTeacher(None, spec)
    if spec.kind == "program":
        if type(task.domain).next_step is tasks.Domain.next_step:
            raise ValueError(f"teacher.kind 'program': domain {task.domain.name!r} has no program that writes steps; use 'model'")
        return correction.ProgramTeacher(spec.style)
    if spec.kind == "reference":
        if not any(problem.solution for problem in task.train[:16]):
            raise ValueError(f"teacher.kind 'reference': {task.train.name}: none of the problems looked at has a solution")
        return correction.ReferenceTeacher()
    directory = config.models.teacher
    if not directory:
        raise ValueError("config.models.teacher is empty; the correction needs a teacher (a Hugging Face directory)")
    teacher_config, params = models.load(directory, dtype=config.dtype, mesh=mesh)
    if teacher_config.head != "lm":
        raise ValueError(f"{directory}: head {teacher_config.head!r}; a teacher needs a vocabulary head ('lm')")
    try:
        own = tasks.load_tokenizer(directory)
        same = own.get_vocab() == tokenizer.get_vocab()
    except FileNotFoundError:
        own, same = None, teacher_config.vocab_size == policy.vocab_size
    if not same and (own is None or not spec.prompted or config.correction.tail == "teacher"):
        raise ValueError(
            f"{directory}: another tokenizer than the policy's (vocabulary of {teacher_config.vocab_size}, the policy has "
            f"{policy.vocab_size}); a teacher that continues rows must share it: set teacher.template to 'wrong_step'"
        )
    writer = correction.Writer(models.relay(teacher_config, params, mesh), teacher_config)
    return correction.ModelTeacher(writer, spec, None if same else own)


def next_problems(
    source: tasks.Problems,
    tokenizer: Any,
    *,
    seed: int,
    position: int,
    count: int,
    max_tokens: int,
    chat: bool,
    domain: tasks.Domain | None = None,
) -> tuple[list[tasks.Problem], list[list[int]], int, int]:
    """(problems, their prompt ids, new position, dropped): the next `count` problems whose prompts fit. `position` counts
    the problems consumed so far, dropped ones included; the order is a pure function of seed and position. `domain` says
    how a problem is shown."""
    shown = (lambda problem: problem.prompt) if domain is None else domain.policy_prompt
    system = None if domain is None else domain.system
    problems: list[tasks.Problem] = []
    ids: list[list[int]] = []
    dropped = 0
    while len(problems) < count:
        need = count - len(problems)
        drawn = source.draw(seed, position, need)
        position += need
        encoded, gone = tasks.encode_prompts(tokenizer, [shown(p) for p in drawn], max_length=max_tokens, chat=chat, system=system)
        problems += [p for n, p in enumerate(drawn) if n not in set(gone)]
        ids += encoded
        dropped += len(gone)
        if dropped > 10 * count + len(source):
            raise ValueError(f"{source.name}: no prompt fits into rollout.prompt_tokens = {max_tokens}; raise it")
    return problems, ids, position, dropped


def _train(
    config: ConfigDict, spec: correction.CorrectionSpec | None, cast: Cast, mesh: jax.sharding.Mesh, workdir: Path
) -> dict[str, Any]:
    group = config.rollout.group
    buffer = config.rollout.prompt_tokens + config.rollout.new_tokens
    sampling = sample_spec(config, cast.config.end_ids)
    losses = loss_spec(config)
    optimizer_settings = optimizer_spec(config)
    optimizer = learning.make_optimizer(optimizer_settings)
    lora = lora_spec(config)
    objective = learning.policy_objective(
        cast.config, losses, temperature=config.rollout.temperature, entropy=True, remat=config.training.remat, lora=lora
    )
    root = jax.random.key(config.seed)
    # With adapters, they are all that is trained and checkpointed; the weights stay those of models.policy.
    trained = cast.params if lora is None else models.init_lora(cast.config, lora, jax.random.fold_in(root, LORA_STREAM), mesh)
    table = None if lora is None else models.lora_table(cast.config, lora)
    update = learning.make_update(objective, optimizer, cast.config, config.training.micro_batches, table=table)
    state = learning.init_state(trained, optimizer)

    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    start, position, dropped = 0, 0, 0
    restored = checkpoints.restore(learning.abstract_state(state))
    if restored is not None:
        start, state, extra = restored
        position, dropped = extra["position"], extra["dropped"]
        print(f"resuming {workdir} at step {start}", flush=True)
    writer = MetricsWriter(workdir, resume_step=start)
    timer = PhaseTimer()
    compiles = count_compiles()
    (workdir / "samples").mkdir(exist_ok=True)

    def policy_params() -> models.Params:
        if lora is None:
            return state.params
        return models.merge(cast.config, cast.params, state.params, lora)

    def evaluation() -> dict[str, float]:
        return evaluate_splits(models.relay(cast.config, policy_params(), mesh), cast.config, config, cast.task, cast.tokenizer)

    if start == 0 and config.evaluation.at_start:
        write_atomically(workdir / "evaluation_at_start.json", json.dumps(evaluation(), indent=2))
    bar = progress(config.steps, initial=start, desc=Path(workdir).name)
    # A run that was stopped between its last checkpoint and its summary has no step left: the figures are on disk.
    done_before = read_metrics(writer.path) if start == config.steps else []
    last: dict[str, Any] = {k: v for row in done_before[-1:] for k, v in row.items() if k != "step"}
    for step in range(start, config.steps):
        with timer("total"):
            # Rollouts.
            problems, ids, position, gone = next_problems(
                cast.task.train,
                cast.tokenizer,
                seed=config.seed,
                position=position,
                count=config.rollout.prompts,
                max_tokens=config.rollout.prompt_tokens,
                chat=config.rollout.chat,
                domain=cast.task.domain,
            )
            dropped += gone
            key = jax.random.fold_in(root, step)
            row_problems = [p for p in problems for _ in range(group)]
            with timer("rollout"):
                policy = correction.Writer(models.relay(cast.config, policy_params(), mesh), cast.config)
                batch = rollout.from_prompts(ids, group, buffer)
                batch = rollout.generate(
                    policy.params,
                    policy.config,
                    batch,
                    key,
                    sampling,
                    shared_prefix=group,
                    slots=config.rollout.slots or None,
                )
                written = rollout.completion_ids(batch)

            # Verdicts: an unfinished row is wrong, a row that could not be judged is left out.
            with timer("verify"):
                text = rollout.texts(written, cast.tokenizer)
                finished = np.asarray(jax.device_get(batch.finished_B))
                verdicts = cast.task.domain.verify(row_problems, text)
                reward = np.array([np.nan if v is None else float(v) for v in verdicts], np.float32)
                reward[~finished] = 0.0
            metrics = rollout_metrics(batch, reward, written, text, row_problems, group, cast.task.domain)

            # Correction.
            final, final_reward, include = batch, reward, ~np.isnan(reward)
            gallery: list[dict[str, Any]] = []
            show = step % config.samples.every == 0 or step + 1 == config.steps
            if spec is not None and cast.teacher is not None:
                rescued = correction.rescue(
                    batch,
                    reward,
                    row_problems,
                    group=group,
                    spec=spec,
                    sample_spec=sampling,
                    key=key,
                    domain=cast.task.domain,
                    tokenizer=cast.tokenizer,
                    policy=policy,
                    teacher=cast.teacher,
                    prm=cast.prm,
                    seed=config.seed + step,
                    timer=timer,
                    keep_gallery=show,
                )
                final, final_reward, include = rescued.rollout, rescued.reward_B, rescued.include_B
                metrics |= rescued.metrics
                gallery = rescued.gallery
            metrics["advantage/zero_group_share_after"] = float(learning.zero_group_share(final_reward, group, include))

            # Update.
            with timer("update"):
                advantage = learning.group_advantages(final_reward, group, std=config.advantage.std, include_B=include)
                on, off = learning.token_weights(final, losses, include_B=jnp.asarray(include))
                arrays = {"advantage": advantage, "on": on, "off": off}
                if config.loss.old_logp == "sampler":
                    arrays["old_logp"] = final.logp_BT
                if losses.tis_cap is not None:
                    arrays["sampler_logp"] = final.logp_BT
                if losses.teacher_term == "importance":
                    arrays["teacher_logp"] = final.logp_BT
                weight = learning.schedule_value(
                    config.loss.teacher_schedule,
                    losses.teacher_weight,
                    config.loss.teacher_weight_end,
                    step,
                    config.steps,
                )
                packed = learning.pack(final, arrays, group, config.training.micro_batches)
                fixed = {"teacher_weight": jnp.float32(weight)} | ({} if lora is None else {"base": cast.params})
                state, stats = update(state, packed, fixed)
                stats = jax.device_get(stats)
        if int(jax.device_get(state.skipped_in_row)) >= config.training.stop_after_skipped:
            raise RuntimeError(
                f"step {step}: {config.training.stop_after_skipped} updates in a row were not finite and were skipped; the last "
                f"good checkpoint is in {workdir / 'checkpoints'}; lower optimizer.learning_rate"
            )
        metrics |= {k: float(v) for k, v in learning.finish_stats(stats).items()}
        seconds = timer.pop()
        tokens = sum(len(x) for x in written)
        metrics |= {
            "loss/total": float(stats["loss"]),
            "loss/teacher_weight": float(weight),
            "grad/norm": float(stats["grad_norm"]),
            "grad/skipped": float(jax.device_get(state.skipped)),
            "optimizer/learning_rate": float(learning.learning_rate(optimizer_settings, step)),
            "data/prompts": float(position),
            "data/dropped": float(dropped),
            "throughput/rollout_tokens_per_s": tokens / seconds["time/rollout"],
            "compile/count": float(compiles()),
        }
        done = step + 1
        if done == config.steps or (config.evaluation.every and done % config.evaluation.every == 0):
            with timer("evaluate"):
                metrics |= evaluation()
            seconds |= timer.pop()
        if gallery:
            shown = sorted(gallery, key=lambda item: not item["verdict_after"])[: config.samples.rows]
            write_atomically(workdir / "samples" / f"step_{step:06d}.json", json.dumps(shown, indent=1))
        writer.write(step, metrics | seconds)
        # Never a checkpoint of a skipped update: the last good one must stay the last.
        if (done % config.checkpoint.every == 0 or done == config.steps) and not int(stats["skipped"]):
            checkpoints.save(done, state, {"position": position, "dropped": dropped})
        last = metrics
        phases = " ".join(f"{k.split('/')[1]} {v:.2f}s" for k, v in seconds.items() if k != "time/total")
        bar.set_postfix_str(f"reward {metrics['reward/mean']:.3f} | {phases}", refresh=False)
        bar.update(1)
    bar.close()
    checkpoints.close()
    writer.close()
    if start < config.steps or not (workdir / "summary.json").is_file():
        models.save(workdir / "model", cast.config, policy_params(), None)
        if lora is not None:
            models.save_lora(workdir / "adapter", cast.config, state.params, lora, base=config.models.policy)
        tasks.save_tokenizer(cast.tokenizer, workdir / "model")
        summary = {
            "steps": config.steps,
            "seed": config.seed,
            "updates": int(state.updates),
            "skipped": int(state.skipped),
            "final": last,
        }
        write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_run_report(workdir)
    return json.loads((workdir / "summary.json").read_text())


def rollout_metrics(
    batch: Any,
    reward: np.ndarray,
    written: list[list[int]],
    text: list[str],
    problems: list[tasks.Problem],
    group: int,
    domain: tasks.Domain,
) -> dict[str, float]:
    """What the policy wrote by itself, before any correction: reward, lengths, diversity, groups without an advantage."""
    judged = ~np.isnan(reward)
    length = np.array([len(x) for x in written])
    finished = np.asarray(jax.device_get(batch.finished_B))
    groups = []
    for start in range(0, len(reward), group):
        part = slice(start, start + group)
        right = (reward[part] == 1).tolist()
        groups.append(
            SampleGroup(
                tokens=written[part],
                answers=[domain.answer_of(t) for t in text[part]],
                correct=right,
                paths=[domain.solution_path(p, t) if ok else None for p, t, ok in zip(problems[part], text[part], right)],
                texts=text[part],
            )
        )
    return {
        "reward/mean": float(np.mean(reward[judged])) if judged.any() else 0.0,
        "reward/unscored": float(np.sum(~judged)),
        "advantage/zero_group_share": float(learning.zero_group_share(reward, group)),
        "completion/length_mean": float(np.mean(length)),
        "completion/truncated_share": float(np.mean(~finished)),
        **group_metrics(groups),
    }


def command(config: ConfigDict, workdir: str | None, _: Any) -> str:
    """The command line's `train`: the lines to print at the end."""
    summary = train(config, workdir or "")
    shown = ("reward/mean", "eval/pass@1", "eval/pass@8", "eval_ood/pass@1", "scope/accepted_share")
    figures = "  ".join(f"{name} {summary['final'][name]:.3f}" for name in shown if name in summary["final"])
    return f"done: {summary['steps']} steps  {figures}\nreport: {Path(workdir or '') / 'report.html'}"


if __name__ == "__main__":
    cli.run(command)
