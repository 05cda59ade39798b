"""Evaluate a checkpoint on a task's held-out problems.

    python -m scope_jax.evaluate --config=configs/arithmetic/scope.py --model=DIR [--workdir=DIR]

Prints one JSON object: pass@1 and pass@k with standard errors, truncated share, diversity of the
right solutions, in and out of distribution, and the settings that made the numbers.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from scope_jax import cli, models, rollout, tasks
from scope_jax.config import check_config
from scope_jax.data.load import load_task
from scope_jax.devices.mesh import make_mesh, to_host
from scope_jax.report import SampleGroup, group_metrics, mean_and_standard_error, pass_at_k
from scope_jax.run import progress, write_atomically
from scope_jax.text import encode_prompts, end_ids, load_tokenizer


def evaluate(
    params: models.Params,
    config: models.ModelConfig,
    problems: Sequence[tasks.Problem],
    domain: tasks.Domain,
    tokenizer: Any,
    *,
    samples: int = 8,
    temperature: float = 1.0,
    new_tokens: int = 64,
    prompt_tokens: int = 64,
    rows: int = 1024,
    seed: int = 0,
    chat: bool = False,
    desc: str = "evaluate",
) -> dict[str, float]:
    """`samples` rollouts for each problem -> flat metrics: `pass@1`, `pass@{samples}`, their
    standard errors over problems (`.../se`), `truncated_share`, `unscored`, `dropped` (prompts too
    long), `problems`, and `diversity/*` of `run.group_metrics`. About `rows` rows are decoded at
    once."""
    shown = [domain.policy_prompt(problem) for problem in problems]
    ids, dropped = encode_prompts(
        tokenizer, shown, max_length=prompt_tokens, chat=chat, system=domain.system
    )
    gone = set(dropped)
    kept = [p for n, p in enumerate(problems) if n not in gone]
    if not kept:
        return {"dropped": float(len(dropped)), "problems": 0.0}
    chunk = max(rows // samples, 1)
    spec = rollout.SampleSpec(
        temperature=temperature, max_new_tokens=new_tokens, end_ids=config.end_ids
    )
    correct, truncated, unscored, groups = [], 0, 0, []
    key = jax.random.key(seed)
    longest = max(len(x) for x in ids)
    buffer = longest + new_tokens
    for start in progress_chunks(len(kept), chunk, desc):
        size = min(chunk, len(kept) - start)
        prompts = ids[start : start + size] + [ids[0]] * (chunk - size)
        batch = rollout.from_prompts(prompts, samples, buffer, first_row=start * samples)
        batch = rollout.generate(params, config, batch, key, spec, shared_prefix=samples)
        written = rollout.completion_ids(batch)[: size * samples]
        text = rollout.texts(written, tokenizer)
        finished = to_host(batch.finished_B)[: size * samples]
        owners = [p for p in kept[start : start + size] for _ in range(samples)]
        verdicts = tasks.verdicts(domain, owners, text)
        right = np.array([v is True for v in verdicts]) & finished
        truncated += int(np.sum(~finished))
        unscored += sum(v is None for v in verdicts)
        correct.append(right.reshape(size, samples))
        answers, paths = tasks.answers_and_paths(domain, owners, text, right.tolist())
        for n in range(size):
            part = slice(n * samples, (n + 1) * samples)
            groups.append(
                SampleGroup(
                    tokens=written[part],
                    answers=answers[part],
                    correct=right[part].tolist(),
                    paths=paths[part],
                    texts=text[part],
                )
            )
    table = np.concatenate(correct)
    result: dict[str, float] = {}
    for k in (1, samples):
        mean, error = mean_and_standard_error(
            [pass_at_k(samples, int(c), k) for c in table.sum(axis=1)]
        )
        result[f"pass@{k}"], result[f"pass@{k}/se"] = mean, error
    result |= {
        "truncated_share": truncated / table.size,
        "unscored": float(unscored),
        "dropped": float(len(dropped)),
        "problems": float(len(kept)),
    }
    measures = group_metrics(groups, extract=domain.equations)
    return result | {name: value for name, value in measures.items() if not math.isnan(value)}


def progress_chunks(total: int, chunk: int, desc: str) -> Any:
    """Starts of the chunks, with a progress bar."""
    bar = progress(math.ceil(total / chunk), desc=desc)
    for start in range(0, total, chunk):
        yield start
        bar.update(1)
    bar.close()


def evaluate_splits(
    params: models.Params, model_config: models.ModelConfig, config: Any, task: Any, tokenizer: Any
) -> dict[str, float]:
    """`evaluate` on the task's evaluation sets, by the config's `evaluation` section: `eval/...`
    in distribution ("test"), `eval_ood/...` out of it ("test_ood"), `eval_<name>/...` of any other
    set. The same problems and random keys at every call."""
    out: dict[str, float] = {}
    for split, problems in task.evaluation.items():
        prefix = {"test": "eval", "test_ood": "eval_ood"}.get(split, f"eval_{split}")
        count = (
            config.evaluation.ood_problems if split == "test_ood" else config.evaluation.problems
        )
        if count == 0:
            continue
        metrics = evaluate(
            params,
            model_config,
            problems[: min(count, len(problems))],
            task.domain,
            tokenizer,
            samples=config.evaluation.samples,
            temperature=config.evaluation.temperature,
            new_tokens=config.evaluation.new_tokens or config.rollout.new_tokens,
            prompt_tokens=config.evaluation.prompt_tokens or config.rollout.prompt_tokens,
            rows=config.evaluation.rows,
            chat=config.rollout.chat,
            desc=prefix,
        )
        out |= {f"{prefix}/{name}": value for name, value in metrics.items()}
    return out


def command(config: ConfigDict, workdir: str | None, values: Any) -> str:
    """The command line's `evaluate`: the record as JSON."""
    check_config(config)
    mesh = make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        directory = values.model or config.models.policy
        model_config, params = models.load(directory, dtype=config.dtype)
        tokenizer = load_tokenizer(directory)
        model_config = dataclasses.replace(
            model_config, end_ids=tuple(dict.fromkeys((*model_config.end_ids, *end_ids(tokenizer))))
        )
        task = load_task(**{**config.task.to_dict(), "decontaminate": "off"}, tokenizer=tokenizer)
        params = models.decode_layout(model_config, params, mesh)
        result = evaluate_splits(params, model_config, config, task, tokenizer)
    record = json.dumps(
        {"model": str(directory), "settings": config.evaluation.to_dict(), "result": result},
        indent=2,
    )
    if workdir:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(workdir) / "evaluation.json", record + "\n")
    return record


if __name__ == "__main__":
    cli.run(
        command,
        workdir=False,
        extra=lambda: flags.DEFINE_string(
            "model", None, "Hugging Face directory to evaluate (default: config.models.policy)."
        ),
    )
