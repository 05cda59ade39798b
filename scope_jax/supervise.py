"""Supervised training of the checkpoints that reinforcement learning starts from, in any domain.

    python -m scope_jax.supervise --config=configs/arithmetic/base.py --workdir=DIR

kind "policy": next-token loss on demonstrations, written by a domain's program or found in a data
set (base policy, teacher). kind "prm": two-class cross-entropy at the step marks of labelled
rollouts of a policy, with first-error rates on held-out rollouts. `workdir` becomes an ordinary
Hugging Face directory with `training.json` (these settings) and `summary.json` beside the weights,
and `labels.jsonl` beside those of a process reward model. A finished directory of the same
settings is left as it is; a run that was stopped goes on from its labels and its newest
checkpoint.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scope_jax import cli, learning, models, rollout, tasks
from scope_jax.config import DTYPES, MASTER_WEIGHTS, check_keys
from scope_jax.data import Problems
from scope_jax.data.load import GENERATED, check_task, generated_domain, load_task
from scope_jax.devices.hosts import any_process, from_main, is_main, wait_for_all
from scope_jax.devices.mesh import make_mesh, put_rows
from scope_jax.devices.shapes import round_up
from scope_jax.learning import OptimizerSpec
from scope_jax.prm import ProcessRewardModel
from scope_jax.run import (
    Checkpoints,
    Stopped,
    StopSignal,
    prepare_workdir,
    progress,
    write_atomically,
)
from scope_jax.supervision.batches import (
    BatchSpec,
    DemonstrationBatches,
    LabelledSteps,
    end_token,
    with_step_mark,
)
from scope_jax.supervision.labels import (
    LabelledRow,
    LabelSpec,
    RolloutSpec,
    agreement,
    first_error_rates,
    labelled_rows,
    score_rows,
    threshold_table,
)
from scope_jax.text import character_tokenizer, end_ids, load_tokenizer, save_tokenizer

# Skipped updates in a row after which a run gives up.
STOP_AFTER_SKIPPED = 5
CHECKPOINTS_KEPT = 2


def default_config() -> ConfigDict:
    """All settings, with their defaults."""
    return ConfigDict(
        {
            "kind": "policy",
            "seed": 0,
            "steps": 500,
            "batch": 64,
            "micro_batches": 4,
            "dtype": "float32",  # that weights are used in
            "master_weights": (
                "float32"
            ),  # float32 | none: what trained weights are kept in, none being `dtype`
            "remat": "none",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # The decoder's size; ignored where `start` names a directory to start from.
            "model": {
                "hidden_size": 96,
                "num_layers": 3,
                "num_heads": 4,
                "num_kv_heads": 2,
                "ffn_size": 288,
                "rope_theta": 1000.0,
            },
            "start": "",
            "chat": False,  # put prompts into the tokenizer's chat template
            # Without `data`, the problems of a domain with a program are fresh ones, without end:
            # `lengths`, `seed`, `start`. The rest is as in training.
            "task": {
                "name": "arithmetic",
                "lengths": (2, 3, 4, 5, 6),
                "start": "zero",
                "seed": 1,
                "options": {},
                "data": "",
                "train_split": "train",
                "train": {},
                "evaluation": {},
                "decontaminate": "off",
                "decontaminate_words": 13,
            },
            # `anyones_prefix`: the first lines (none to all but one) are in random order and not
            # trained on, so that the model learns to go on in its own style from what somebody
            # else wrote.
            "demonstrations": {
                "style": "mixed",
                "misconception": 0.0,
                "misconception_kind": "borrow",
                "anyones_prefix": False,
                "in_steps": False,  # divide reference solutions into the domain's steps
                "max_tokens": (
                    0
                ),  # longer rows are dropped and counted; 0: what the model's positions allow
            },
            # kind "prm": rollouts of `policy`, and where their labels come from.
            "rollouts": {
                "policy": "",
                "problems": 1024,
                "group": 4,
                "lengths": (4, 5, 6),
                "held_out": 256,
                "problems_at_once": 256,
                "prompt_tokens": 0,  # 0: what fresh problems need
                "new_tokens": 0,
                "temperature": 1.0,
            },
            "labels": {"kind": "oracle", "continuations": 8, "estimate": "hard"},
            "threshold": 0.5,
            "optimizer": {
                "learning_rate": 3e-3,
                "warmup_steps": 30,
                "final_share": 0.1,
                "b2": 0.98,
                "weight_decay": 0.01,
            },
            "checkpoint": {"every": 0},  # steps; 0: none
        }
    )


def supervise(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train as `config` says; returns the summary. Raises ValueError, FileNotFoundError,
    RuntimeError and, with a checkpoint to go on from, Stopped as `scope_jax.train` does."""
    _check(config)
    # A Hugging Face directory has a config.json of its own: the model's.
    workdir = Path(workdir)
    # What does not touch what is learned may change.
    free = {"may_differ": ("checkpoint", "remat"), "defaults": default_config().to_dict()}
    workdir = prepare_workdir(workdir, config.to_dict(), **free, name="training.json")
    summary_path = workdir / "summary.json"
    # What lies in the folder is for process 0 to say, here and below: the others may have come
    # later, or have no such folder.
    found = from_main(
        json.loads(summary_path.read_text()) if is_main() and summary_path.is_file() else None
    )
    if found is not None:
        return found
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        summary = (
            _train_policy(config, workdir, mesh)
            if config.kind == "policy"
            else _train_prm(config, workdir, mesh)
        )
    write_atomically(summary_path, json.dumps(summary, indent=2) + "\n")
    if is_main():
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    wait_for_all("the model is written")
    return summary


# ---- what a config says


def _check(config: ConfigDict) -> None:
    check_keys(config, default_config())
    for name, value, known in (
        ("kind", config.kind, ("policy", "prm")),
        ("dtype", config.dtype, DTYPES),
        ("master_weights", config.master_weights, MASTER_WEIGHTS),
        ("remat", config.remat, tuple(models.REMAT)),
    ):
        if value not in known:
            raise ValueError(f"config.{name} = {value!r} is unknown; {' or '.join(known)}")
    if _fresh(config):
        _generated_domain(config)
    else:
        task = config.task.to_dict()
        check_task(
            task["name"],
            task["data"],
            task["options"],
            task["train"],
            task["evaluation"],
            task["decontaminate"],
        )
    if config.kind == "policy" and not config.start and config.task.name not in GENERATED:
        raise ValueError(
            f"config.start is empty; task {config.task.name!r} needs a Hugging Face directory to"
            " start from"
        )
    if config.kind == "prm":
        LabelSpec(**config.labels.to_dict())
        if not config.rollouts.policy:
            raise ValueError(
                "config.rollouts.policy is empty; give the directory of the policy whose rollouts"
                " are labelled"
            )
        if (
            not _fresh(config)
            and min(config.rollouts.prompt_tokens, config.rollouts.new_tokens) < 1
        ):
            raise ValueError(
                "config.rollouts.prompt_tokens and .new_tokens must be set for problems of a"
                " data set"
            )
    _optimizer(config)


def _fresh(config: ConfigDict) -> bool:
    """Whether problems are made by a program, as many as are wanted, instead of read."""
    return config.task.name in GENERATED and not config.task.data


def _generated_domain(config: ConfigDict) -> tasks.GeneratedDomain:
    noise, settings = config.demonstrations, {}
    if noise.misconception:
        settings = {
            "misconception": noise.misconception,
            "misconception_kind": noise.misconception_kind,
        }
    if config.task.name == "arithmetic":
        settings["start"] = config.task.start
    return generated_domain(config.task.name, {**settings, **config.task.options.to_dict()})


def _problems(config: ConfigDict, tokenizer: Any) -> tuple[tasks.Domain, Problems | None]:
    """(domain, problems to train on); no problems where they are made when they are needed."""
    if _fresh(config):
        return _generated_domain(config), None
    settings = {
        key: value
        for key, value in config.task.to_dict().items()
        if key not in ("lengths", "start", "seed")
    }
    task = load_task(**settings, tokenizer=tokenizer)
    return task.domain, task.train


def _optimizer(config: ConfigDict) -> Any:
    return learning.make_optimizer(
        OptimizerSpec(schedule="cosine", steps=config.steps, **config.optimizer.to_dict())
    )


# ---- the loop


def _loop(
    config: ConfigDict,
    workdir: Path,
    objective: Any,
    model_config: models.ModelConfig,
    params: Callable[[], models.Params],
    batches: DemonstrationBatches | LabelledSteps,
) -> tuple[models.Params, float]:
    """(trained parameters, mean loss of the last 20 updates). `params()`: what to start from;
    nobody else holds on to it, so that its memory is free once the state is a copy of it."""
    optimizer = _optimizer(config)
    update = learning.make_update(
        objective, optimizer, model_config, config.micro_batches, dtype=config.dtype
    )
    state = learning.init_state(
        params(), optimizer, "float32" if config.master_weights == "float32" else None
    )
    losses: list[float] = []
    start, checkpoints = 0, None
    if config.checkpoint.every or from_main((workdir / "checkpoints").is_dir()):
        checkpoints = Checkpoints(workdir / "checkpoints", keep=CHECKPOINTS_KEPT)
        if (restored := checkpoints.restore(learning.abstract_state(state))) is not None:
            start, state, extra = restored
            losses = extra["losses"]
            batches.restore(extra["batches"])
            print(f"resuming {workdir} at step {start}", flush=True)
    cli.begun()
    bar = progress(config.steps, initial=start, desc=workdir.name)
    good = True  # whether the last update was
    with StopSignal(any_process) as stop:
        for step in range(start, config.steps):
            if stop.requested():
                checkpoints = checkpoints or Checkpoints(
                    workdir / "checkpoints", keep=CHECKPOINTS_KEPT
                )
                if step > start and good:
                    checkpoints.save(step, state, {"losses": losses, "batches": batches.state()})
                checkpoints.close()
                bar.close()
                name = stop.name or "another process was"
                saved = max(checkpoints.steps(), default=0)
                raise Stopped(
                    f"{workdir}: {name} asked to stop; the same command goes on at step {saved}"
                )
            state, stats = update(state, put_rows(next(batches)), {})
            losses = [*losses[-19:], float(stats["loss"])]
            good = not int(stats["skipped"])
            if not good and int(state.skipped_in_row) >= STOP_AFTER_SKIPPED:
                raise RuntimeError(
                    f"step {step}: {STOP_AFTER_SKIPPED} updates in a row were not finite and were"
                    " skipped; lower optimizer.learning_rate"
                )
            done, every = step + 1, config.checkpoint.every
            if checkpoints is not None and every and done % every == 0 and good:
                checkpoints.save(done, state, {"losses": losses, "batches": batches.state()})
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
            bar.update(1)
    bar.close()
    if checkpoints is not None:
        checkpoints.close()
    return models.in_dtype(state.params, config.dtype), float(np.mean(losses))


# ---- kind "policy"


def _train_policy(config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    if config.start:
        model_config = _lm_config(config.start)
        params = lambda: models.load(config.start, dtype=config.dtype, mesh=mesh)[1]
        tokenizer = load_tokenizer(config.start)
        domain, problems = _problems(config, tokenizer)
        # A base model's files often name one end token only; in a chat its turns end with another.
        ends = tuple(dict.fromkeys((*model_config.end_ids, *end_ids(tokenizer))))
        model_config = dataclasses.replace(model_config, end_ids=ends)
    else:
        domain, problems = _problems(config, None)
        assert isinstance(domain, tasks.GeneratedDomain)
        tokenizer = character_tokenizer(domain.characters)
        size = config.model
        model_config = models.ModelConfig(
            vocab_size=len(tokenizer),
            head_size=size.hidden_size // size.num_heads,
            max_positions=512,
            end_ids=(tokenizer.eos_token_id,),
            **size.to_dict(),
        )
        params = lambda: models.init(
            model_config, jax.random.key(config.seed), config.dtype, mesh=mesh
        )
    width = None
    if problems is None:
        assert isinstance(domain, tasks.GeneratedDomain)
        longest = max(config.task.lengths)
        width = round_up(domain.prompt_length(longest) + domain.completion_length(longest))
    settings = config.demonstrations
    batches = DemonstrationBatches(
        domain,
        problems,
        tokenizer,
        BatchSpec(
            style=settings.style,
            anyones_prefix=settings.anyones_prefix,
            in_steps=settings.in_steps,
            chat=config.chat,
            max_tokens=min(
                settings.max_tokens or model_config.max_positions,
                width or model_config.max_positions,
            ),
            end_id=end_token(tokenizer, config.chat),
        ),
        batch=config.batch,
        seed=config.seed,
        problem_seed=config.task.seed,
        sizes=config.task.lengths,
        width=width,
    )
    objective = learning.cloning_objective(dataclasses.replace(model_config, remat=config.remat))
    trained, loss = _loop(config, workdir, objective, model_config, params, batches)
    models.save(workdir, model_config, trained)
    if is_main():
        save_tokenizer(tokenizer, workdir)
    dropped = {f"data/{name}": count for name, count in batches.dropped.items() if count}
    return {"kind": "policy", "steps": config.steps, "loss": loss, **dropped}


def _lm_config(directory: str) -> models.ModelConfig:
    model_config = models.read_config(directory)
    if model_config.head != "lm":
        raise ValueError(
            f"{directory}: head {model_config.head!r}; a model with a vocabulary head ('lm') is"
            " needed"
        )
    return model_config


# ---- kind "prm"


def _train_prm(config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    (train_rows, train_counts), (held_out, _) = _labelled(config, workdir, mesh)
    labels, start = LabelSpec(**config.labels.to_dict()), config.start or config.rollouts.policy
    prm_config = models.read_config(start).with_head("prm")
    tokenizer = with_step_mark(load_tokenizer(start), prm_config.vocab_size, start)
    scorer = ProcessRewardModel({}, prm_config, tokenizer)
    soft = labels.kind == "monte_carlo" and labels.estimate == "soft"
    batches = LabelledSteps(scorer, train_rows, batch=config.batch, seed=config.seed, soft=soft)

    def params() -> models.Params:
        trunk = models.load(start, dtype=config.dtype, mesh=mesh)[1]
        fresh = models.init(prm_config, jax.random.key(config.seed), config.dtype, mesh=mesh)
        return {name: trunk.get(name, value) for name, value in fresh.items()}

    objective = learning.step_label_objective(dataclasses.replace(prm_config, remat=config.remat))
    trained, loss = _loop(config, workdir, objective, prm_config, params, batches)
    models.save(workdir, prm_config, trained)
    if is_main():
        save_tokenizer(tokenizer, workdir)

    score, valid = score_rows(dataclasses.replace(scorer, params=trained), held_out)
    truth = [row.truth for row in held_out]
    rates = first_error_rates(score, valid, truth, config.threshold)
    table, best = threshold_table(score, valid, truth)
    if is_main():
        print(
            f"{workdir}: "
            + "  ".join(f"{k} {v:.3f}" for k, v in rates.items() if isinstance(v, float)),
            flush=True,
        )
    return {
        "kind": "prm",
        "steps": config.steps,
        "loss": loss,
        "train_rows": len(train_rows),
        **rates,
        "measured_against": (
            "oracle" if all(row.oracle is not None for row in held_out) else "monte_carlo"
        ),
        "threshold/best_exact": best,
        "thresholds": table,
        "labels/unscorable": batches.unscorable,
        **{f"labels/{name}": count for name, count in train_counts.items()},
        **(agreement(train_rows) if labels.kind == "monte_carlo" else {}),
    }


def _labelled(
    config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh
) -> list[tuple[list[LabelledRow], dict[str, int]]]:
    """(rows, counters) of the training and of the held-out problems, from labels.jsonl as far as
    they are there."""
    settings, tokenizer = config.rollouts, load_tokenizer(config.rollouts.policy)
    domain, problems = _problems(config, tokenizer)
    prompt_tokens, new_tokens = settings.prompt_tokens, settings.new_tokens
    sets: list[tuple[str, Sequence[tasks.Problem], int]]
    if problems is None:
        assert isinstance(domain, tasks.GeneratedDomain)
        fresh = lambda split, count, seed: [
            domain.problem(config.task.seed + seed, split, n, tuple(settings.lengths))
            for n in range(count)
        ]
        sets = [
            ("train", fresh("train", settings.problems, 11), 11),
            ("held_out", fresh("validation", settings.held_out, 12), 12),
        ]
        longest = max(settings.lengths)
        prompt_tokens = prompt_tokens or domain.prompt_length(longest)
        new_tokens = new_tokens or domain.completion_length(longest) + 4
    else:
        needed = settings.problems + settings.held_out
        if len(problems) < needed:
            raise ValueError(
                f"{problems.name}: {len(problems)} problems; rollouts.problems and .held_out ask"
                f" for {needed}, none of them twice"
            )
        sets = [
            ("train", problems.draw(config.seed, 0, settings.problems), 11),
            ("held_out", problems.draw(config.seed, settings.problems, settings.held_out), 12),
        ]
    writer: list[rollout.Generator] = []

    def policy() -> rollout.Generator:
        if not writer:
            policy_config = _lm_config(settings.policy)
            params = models.load(settings.policy, dtype=config.dtype, mesh=mesh)[1]
            writer.append(
                rollout.Generator(models.decode_layout(policy_config, params, mesh), policy_config)
            )
        return writer[0]

    ends = tuple(dict.fromkeys((*models.read_config(settings.policy).end_ids, *end_ids(tokenizer))))
    sample = rollout.SampleSpec(
        temperature=settings.temperature, max_new_tokens=new_tokens, end_ids=ends
    )
    spec = RolloutSpec(
        settings.group, settings.problems_at_once, prompt_tokens, config.chat, sample
    )
    own = LabelSpec(**config.labels.to_dict())
    if is_main():
        print(f"{workdir}: labelled rollouts of {settings.policy}", flush=True)
    found = []
    for split, part, seed in sets:
        # Held-out rows are measured against the step check where the domain has one.
        checked = split == "held_out" and type(domain).check_steps is not tasks.Domain.check_steps
        found.append(
            labelled_rows(
                workdir / "labels.jsonl",
                split,
                part,
                policy,
                tokenizer,
                domain,
                rollouts=spec,
                labels=LabelSpec("oracle") if checked else own,
                key=jax.random.key(seed),
            )
        )
    return found


if __name__ == "__main__":
    cli.run(lambda config, workdir, _: json.dumps(supervise(config, workdir or "")))
