"""Supervised training of the checkpoints that reinforcement learning starts from.

    python -m scope_jax.supervised --config=configs/arithmetic/base.py --workdir=DIR

kind "policy": next-token loss on a domain's demonstrations (base policy, teacher). kind "prm": two-class cross-entropy at
the step marks of labelled rollouts of a policy, with first-error rates on held-out rollouts. `workdir` becomes an ordinary
Hugging Face directory with `training.json` (these settings) and `summary.json` beside the weights. A finished directory of
the same settings is left as it is.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scope_jax import cli, correction, learning, models, rollout, tasks
from scope_jax.configuration import check_keys
from scope_jax.learning import OptimizerSpec
from scope_jax.mesh import make_mesh, put_rows
from scope_jax.run import prepare_workdir, progress, write_atomically


def default_config() -> ConfigDict:
    """All settings, with their defaults."""
    return ConfigDict(
        {
            "kind": "policy",
            "seed": 0,
            "steps": 500,
            "batch": 64,
            "micro_batches": 4,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # The decoder's size; ignored where `start` names a directory to start from.
            "model": {"hidden_size": 96, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 288, "rope_theta": 1000.0},
            "start": "",
            "task": {"name": "arithmetic", "lengths": (2, 3, 4, 5, 6), "start": "zero", "seed": 1},
            # `anyones_prefix`: the first lines (none to all but one) are in random order and not trained on, so that the
            # model learns to go on in its own style from what somebody else wrote.
            "demonstrations": {"style": "mixed", "misconception": 0.0, "misconception_kind": "borrow", "anyones_prefix": False},
            # kind "prm": rollouts of `policy`, labelled by the task's own step check.
            "rollouts": {"policy": "", "problems": 1024, "group": 4, "lengths": (4, 5, 6), "held_out": 256},
            "threshold": 0.5,
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 30, "final_share": 0.1, "b2": 0.98, "weight_decay": 0.01},
        }
    )


def supervise(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train as `config` says; returns the summary. Raises ValueError and FileNotFoundError as `scope_jax.train` does."""
    check_keys(config, default_config())
    if config.kind not in ("policy", "prm"):
        raise ValueError(f"config.kind = {config.kind!r} is unknown; policy or prm")
    _domain(config)
    _optimizer(config)
    # A Hugging Face directory has a config.json of its own: the model's.
    workdir = prepare_workdir(workdir, config.to_dict(), name="training.json")
    summary_path = workdir / "summary.json"
    if summary_path.is_file():
        return json.loads(summary_path.read_text())
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        summary = _train_policy(config, workdir, mesh) if config.kind == "policy" else _train_prm(config, workdir, mesh)
    write_atomically(summary_path, json.dumps(summary, indent=2) + "\n")
    return summary


def _domain(config: ConfigDict) -> tasks.Arithmetic:
    if config.task.name != "arithmetic":
        raise ValueError(f"config.task.name = {config.task.name!r} is unknown; known: arithmetic")
    noise = config.demonstrations
    return tasks.Arithmetic(start=config.task.start, misconception=noise.misconception, misconception_kind=noise.misconception_kind)


def _optimizer(config: ConfigDict) -> Any:
    return learning.make_optimizer(OptimizerSpec(schedule="cosine", steps=config.steps, **config.optimizer.to_dict()))


def _loop(config: ConfigDict, state: Any, update: Any, batches: Iterator[dict], desc: str) -> tuple[Any, list[float]]:
    losses: list[float] = []
    bar = progress(config.steps, desc=desc)
    for _ in range(config.steps):
        state, stats = update(state, put_rows(next(batches)), {})
        losses.append(float(stats["loss"]))
        bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
        bar.update(1)
    bar.close()
    return state, losses


def _train_policy(config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    domain = _domain(config)
    if config.start:
        model_config, params = models.load(config.start, mesh=mesh)
        tokenizer = tasks.load_tokenizer(config.start)
    else:
        tokenizer = tasks.character_tokenizer(domain.characters)
        size = config.model
        model_config = models.ModelConfig(
            vocab_size=len(tokenizer),
            head_size=size.hidden_size // size.num_heads,
            max_positions=512,
            end_ids=(tokenizer.eos_token_id,),
            **size.to_dict(),
        )
        params = models.init(model_config, jax.random.key(config.seed), mesh=mesh)
    optimizer = _optimizer(config)
    update = learning.make_update(learning.cloning_objective(model_config), optimizer, model_config, config.micro_batches)
    state = learning.init_state(params, optimizer)
    longest = max(config.task.lengths)
    width = -(-(domain.prompt_length(longest) + domain.completion_length(longest)) // 8) * 8

    def batches() -> Iterator[dict]:
        """Fresh problems without end, each with one demonstration."""
        rng = np.random.default_rng([config.seed, 7])
        number = 0
        while True:
            tokens = np.zeros((config.batch, width), np.int32)
            weight = np.zeros((config.batch, width), np.float32)
            for row in range(config.batch):
                k = int(rng.choice(config.task.lengths))
                problem = domain.problem(config.task.seed, "train", number, k)
                number += 1
                given, text = _demonstration(domain, problem, rng, config.demonstrations)
                prompt = tokenizer.encode(problem.prompt + given)
                ids = prompt + tokenizer.encode(text) + [tokenizer.eos_token_id]
                tokens[row, : len(ids)] = ids
                weight[row, len(prompt) : len(ids)] = 1
            yield {"tokens": tokens, "weight": weight / weight.sum()}

    state, losses = _loop(config, state, update, batches(), Path(workdir).name)
    models.save(workdir, model_config, state.params)
    tasks.save_tokenizer(tokenizer, workdir)
    return {"kind": "policy", "steps": config.steps, "loss": float(np.mean(losses[-20:]))}


def _demonstration(domain: tasks.Domain, problem: tasks.Problem, rng: np.random.Generator, settings: ConfigDict) -> tuple[str, str]:
    """(lines that are given, lines to learn)."""
    if not settings.anyones_prefix:
        return "", domain.demonstration(problem, rng, settings.style) or ""
    steps = tasks.split_steps(domain.demonstration(problem, rng, "mixed") or "", domain.separator)
    given = steps[: int(rng.integers(len(steps)))]
    learned: list[str] = []
    while (step := domain.next_step(problem, given + learned, rng, settings.style)) is not None:
        learned.append(step)
    return "".join(given), "".join(learned)


def _train_prm(config: ConfigDict, workdir: Path, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    domain = _domain(config)
    settings = config.rollouts
    policy_config, policy = models.load(settings.policy, mesh=mesh)
    tokenizer = tasks.load_tokenizer(settings.policy)
    trunk_config, trunk = models.load(config.start or settings.policy, mesh=mesh)
    prm_config = trunk_config.with_head("prm")
    fresh = models.init(prm_config, jax.random.key(config.seed), mesh=mesh)
    params = {name: trunk.get(name, value) for name, value in fresh.items()}

    def labelled(split: str, problems: int, seed: int) -> list[tuple[str, list[str], list[bool]]]:
        """(prompt, steps, labels) of rollouts of the policy, labels from the task's step check."""
        rows = []
        drawn = [domain.problem(config.task.seed + seed, split, n, tuple(settings.lengths)) for n in range(problems)]
        for start in range(0, problems, 256):
            part = (drawn[start : start + 256] + drawn[:256])[:256]
            ids, _ = tasks.encode_prompts(tokenizer, [p.prompt for p in part], max_length=512)
            longest = max(settings.lengths)
            new_tokens = domain.completion_length(longest) + 4
            batch = rollout.from_prompts(
                ids, settings.group, domain.prompt_length(longest) + new_tokens, first_row=start * settings.group
            )
            spec = rollout.SampleSpec(max_new_tokens=new_tokens, end_ids=policy_config.end_ids)
            batch = rollout.generate(policy, policy_config, batch, jax.random.key(seed), spec, shared_prefix=settings.group)
            finished = np.asarray(jax.device_get(batch.finished_B))
            for row, text in enumerate(rollout.completion_texts(batch, tokenizer)):
                problem = part[row // settings.group]
                steps = tasks.split_steps(text, domain.separator)
                if finished[row] and steps and start + row // settings.group < problems:
                    rows.append((problem.prompt, steps, domain.check_steps(problem, steps)))
        return rows

    print(f"{workdir}: labelled rollouts of {settings.policy}", flush=True)
    train_rows = labelled("train", settings.problems, 11)
    held_out = labelled("validation", settings.held_out, 12)
    prm = correction.ProcessRewardModel(params, prm_config, tokenizer)
    encoded = prm.encode_rows([row[0] for row in train_rows], [row[1] for row in train_rows])
    width = -(-max(len(ids) for ids, _ in encoded) // 8) * 8

    def batches() -> Iterator[dict]:
        rng = np.random.default_rng([config.seed, 8])
        while True:
            tokens = np.zeros((config.batch, width), np.int32)
            label = np.zeros((config.batch, width), np.int32)
            weight = np.zeros((config.batch, width), np.float32)
            for row, chosen in enumerate(rng.integers(len(train_rows), size=config.batch)):
                (ids, marks), labels = encoded[chosen], train_rows[chosen][2]
                # Steps after the first wrong one are wrong by definition: only what decides the first error is learned.
                known = labels.index(False) + 1 if False in labels else len(labels)
                tokens[row, : len(ids)] = ids
                label[row, marks] = labels
                weight[row, marks[:known]] = 1
            yield {"tokens": tokens, "label": label, "weight": weight / weight.sum()}

    optimizer = _optimizer(config)
    update = learning.make_update(learning.step_label_objective(prm_config), optimizer, prm_config, config.micro_batches)
    state, losses = _loop(config, learning.init_state(params, optimizer), update, batches(), Path(workdir).name)
    models.save(workdir, prm_config, state.params)
    tasks.save_tokenizer(tokenizer, workdir)
    rates = first_error_rates(correction.ProcessRewardModel(state.params, prm_config, tokenizer), held_out, config.threshold)
    summary = {"kind": "prm", "steps": config.steps, "loss": float(np.mean(losses[-20:])), "train_rows": len(train_rows), **rates}
    print(f"{workdir}: " + "  ".join(f"{k} {v:.3f}" for k, v in rates.items() if isinstance(v, float)), flush=True)
    return summary


def first_error_rates(
    prm: correction.ProcessRewardModel, rows: list[tuple[str, list[str], list[bool]]], threshold: float
) -> dict[str, float]:
    """How well a PRM finds the first error: of the rows with an error, the share located `exact`, `not_later` (at it or
    before), `later`, `none`; of the rows without, the share left `clean`."""
    counts = {"exact": 0, "not_later": 0, "later": 0, "none": 0}
    wrong = clean = right = 0
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        score, valid, _ = prm.score([r[0] for r in part], [r[1] for r in part], rows=256)
        found = np.asarray(correction.first_error(jnp.asarray(score), jnp.asarray(valid), threshold))
        for e, (_, steps, labels) in zip(found, part):
            if False not in labels:
                right += 1
                clean += int(e >= len(steps))
                continue
            true = labels.index(False)
            wrong += 1
            counts["exact"] += int(e == true)
            counts["not_later"] += int(e <= true)
            counts["none"] += int(e >= len(steps))
            counts["later"] += int(true < e < len(steps))
    rates = {f"first_error/{name}": value / max(wrong, 1) for name, value in counts.items()}
    return rates | {"first_error/clean": clean / max(right, 1), "first_error/wrong_rows": wrong, "first_error/right_rows": right}


if __name__ == "__main__":
    cli.run(lambda config, workdir, _: json.dumps(supervise(config, workdir or "")))
