"""Evaluate a checkpoint on a task's held-out problems.

    python -m scope_jax.evaluate --config=scope,arithmetic --model=DIR [--workdir=DIR]

Prints one JSON object: pass@1 and pass@k with standard errors, truncated share, diversity of the
right solutions, in and out of distribution, the settings that made the numbers, and counts of
right samples and paths problem by problem.

`scope_jax.evaluate_suites` evaluates on published suites (AIME, MATH-500, ...).
"""

import dataclasses
import json
import math
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from scope_jax import cli, models, rollout, tasks
from scope_jax.configuration import TrainConfig, train_config
from scope_jax.data.load import Task, load_task
from scope_jax.data.prompts import check_prompts, check_vocabulary
from scope_jax.devices.hosts import is_main
from scope_jax.devices.mesh import mesh_of, put_rows, row_devices, to_host
from scope_jax.devices.precision import matmul_precision
from scope_jax.devices.shapes import round_up
from scope_jax.report import (
    SampleGroup,
    distinct_paths,
    group_metrics,
    mean_and_standard_error,
    pass_at_k,
    powers_up_to,
)
from scope_jax.report.by_problem import ByProblem, digest_of
from scope_jax.run import progress, try_place, write_atomically
from scope_jax.text import encode_prompts, end_ids, load_tokenizer

RECORD = "evaluation.json"  # in the workdir, where one is given


@dataclasses.dataclass(frozen=True)
class EvaluateSpec:
    """How a set of problems is evaluated."""

    samples: int = 8  # rollouts per problem; at temperature 0 one, since all are alike
    temperature: float = 1.0  # 0: greedy
    new_tokens: int = 64
    prompt_tokens: int = 64  # longer prompts are dropped and counted
    rows_at_once: int = 1024  # decoded together, about
    chat: bool = False  # put prompts into the tokenizer's chat template
    seed: int = 0


def evaluate(
    params: models.Params,
    config: models.ModelConfig,
    problems: Sequence[tasks.Problem],
    domain: tasks.Domain,
    tokenizer: Any,
    spec: EvaluateSpec,
    *,
    desc: str = "evaluate",
    by_problem: MutableMapping[str, ByProblem] | None = None,
) -> dict[str, float]:
    """`spec.samples` rollouts for each problem -> flat metrics: `pass@1`, `pass@2`, `pass@4` and so
    on to `pass@{samples}`, their standard errors over problems (`.../se`), `truncated_share`,
    `unscored`, `dropped` (prompts too long), `problems`, and `diversity/*` of
    `report.group_metrics`. At temperature 0 a problem has one sample, so there are `pass@1` and no
    diversity. `by_problem[desc]` is set to the counts of each problem."""
    samples = spec.samples if spec.temperature else 1
    spec = dataclasses.replace(spec, samples=samples)
    shown = [domain.policy_prompt(problem) for problem in problems]
    ids, dropped = encode_prompts(
        tokenizer, shown, max_length=spec.prompt_tokens, chat=spec.chat, system=domain.system
    )
    gone = set(dropped)
    kept = [p for n, p in enumerate(problems) if n not in gone]
    if not kept:
        return {"dropped": float(len(dropped)), "problems": 0.0}
    chunk = chunk_size(len(kept), spec)
    correct, truncated, unscored, groups = [], 0, 0, []
    key = jax.random.key(spec.seed)
    longest = max(len(x) for x in ids)
    sampling = rollout.SampleSpec(
        temperature=spec.temperature,
        max_new_tokens=spec.new_tokens,
        end_ids=config.end_ids,
        prefix_tokens=longest,
    )
    buffer = longest + spec.new_tokens
    for start in progress_chunks(len(kept), chunk, desc):
        size = min(chunk, len(kept) - start)
        prompts = ids[start : start + size] + [ids[0]] * (chunk - size)
        batch = rollout.from_prompts(prompts, samples, buffer, first_row=start * samples)
        # Rows that fill up the last chunk are finished before they begin.
        idle_B = put_rows(np.arange(chunk * samples) >= size * samples)
        batch = batch.replace(finished_B=idle_B)
        batch = rollout.generate(params, config, batch, key, sampling, shared_prefix=samples)
        written = rollout.completion_ids(batch)[: size * samples]
        text = rollout.texts(written, tokenizer)
        finished = to_host(batch.finished_B)[: size * samples]
        owners = [p for p in kept[start : start + size] for _ in range(samples)]
        verdicts = tasks.verdicts(domain, owners, text)
        right = np.array([tasks.is_right(v) for v in verdicts]) & finished
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
    right_N = np.concatenate(correct).sum(axis=1)
    result = _pass_rates(right_N, samples) | {
        "truncated_share": truncated / (len(kept) * samples),
        "unscored": float(unscored),
        "dropped": float(len(dropped)),
        "problems": float(len(kept)),
    }
    greedy = spec.temperature == 0
    if by_problem is not None:
        found = None if greedy else list(map(_right_paths, groups))
        known = digest_of([p.id for p in kept])
        by_problem[desc] = ByProblem(samples, known, right_N.tolist(), found)
    measures = {} if greedy else group_metrics(groups, extract=domain.equations)
    return result | {name: value for name, value in measures.items() if not math.isnan(value)}


def _pass_rates(right_N: np.ndarray, samples: int) -> dict[str, float]:
    """pass@k of problems with this many right samples each, and their standard errors."""
    rates = {}
    for k in powers_up_to(samples):
        each = [pass_at_k(samples, int(right), k) for right in right_N]
        rates[f"pass@{k}"], rates[f"pass@{k}/se"] = mean_and_standard_error(each)
    return rates


def _right_paths(group: SampleGroup) -> int:
    """Number of distinct paths among a problem's right samples."""
    return distinct_paths([p for p, right in zip(group.paths or (), group.correct) if right])


def chunk_size(problems: int, spec: EvaluateSpec) -> int:
    """Problems decoded together: about `rows_at_once` rows of them, and no more than there are, in
    rows that divide evenly over the devices."""
    devices = row_devices()
    step = devices // math.gcd(devices, spec.samples)  # problems whose rows divide
    asked = max(spec.rows_at_once // spec.samples // step, 1) * step
    return min(asked, round_up(problems, step))


def progress_chunks(total: int, chunk: int, desc: str) -> Any:
    """Starts of the chunks, with a progress bar."""
    bar = progress(math.ceil(total / chunk), desc=desc)
    for start in range(0, total, chunk):
        yield start
        bar.update(1)
    bar.close()


def spec_of(config: TrainConfig) -> EvaluateSpec:
    """How a run's config evaluates; lengths that it leaves open are those of its rollouts."""
    settings = config.evaluation
    prompt_tokens, new_tokens = config.evaluation_tokens
    return EvaluateSpec(
        samples=settings.samples,
        temperature=settings.temperature,
        new_tokens=new_tokens,
        prompt_tokens=prompt_tokens,
        rows_at_once=settings.rows_at_once,
        chat=config.rollout.chat,
    )


def evaluate_splits(
    params: models.Params,
    model_config: models.ModelConfig,
    config: TrainConfig,
    task: Task,
    tokenizer: Any,
    by_problem: MutableMapping[str, ByProblem] | None = None,
) -> dict[str, float]:
    """`evaluate` on the task's evaluation sets, by the config's `evaluation` section: `eval/...` in
    distribution ("test"), `eval_ood/...` out of it ("test_ood"), `eval_<name>/...` of any other
    set; `eval_t0.6/...` and so on at further temperatures. The same problems and random keys at
    every call. `by_problem` is filled with the counts of each problem, by those names."""
    settings, spec = config.evaluation, spec_of(config)
    out: dict[str, float] = {}
    for split, problems in task.evaluation.items():
        prefix = {"test": "eval", "test_ood": "eval_ood"}.get(split, f"eval_{split}")
        count = settings.ood_problems if split == "test_ood" else settings.problems
        if count == 0:
            continue
        chosen = problems[: min(count, len(problems))]
        for place, temperature in enumerate((spec.temperature, *settings.more_temperatures)):
            named = f"{prefix}_t{temperature:g}" if place else prefix
            at = dataclasses.replace(spec, temperature=temperature)
            metrics = evaluate(
                *(params, model_config, chosen, task.domain, tokenizer, at),
                desc=named,
                by_problem=by_problem,
            )
            out |= {f"{named}/{name}": value for name, value in metrics.items()}
    return out


def check_evaluation(config: TrainConfig, task: Task, tokenizer: Any, vocab_size: int) -> None:
    """Raise ValueError where the problems of an evaluation set cannot be shown to a policy with
    this tokenizer."""
    for problems in task.evaluation.values():
        check_prompts(
            problems,
            task.domain,
            tokenizer,
            max_tokens=spec_of(config).prompt_tokens,
            chat=config.rollout.chat,
            vocab_size=vocab_size,
        )


def command(config: ConfigDict, workdir: str | None, values: Any) -> str:
    """The command line's `evaluate`: the record as JSON."""
    settings = train_config(config)
    if workdir and is_main():
        try_place(workdir, RECORD)
    mesh = mesh_of(settings.mesh)
    with jax.set_mesh(mesh), matmul_precision(settings.matmul_precision):
        directory = values.model or settings.models.policy
        if not directory:
            raise ValueError("--model is missing, and config.models.policy is None; give one")
        # All that can be refused without weights, before they are read.
        model_config = models.read_config(directory)
        if model_config.head != "lm":
            raise ValueError(
                f"{directory}: head {model_config.head!r}; a policy needs a vocabulary head ('lm')"
            )
        rollout.check_heads(model_config, mesh)
        model_config.check_rows(
            sum(settings.evaluation_tokens), "config.evaluation.prompt_tokens and new_tokens"
        )
        tokenizer = load_tokenizer(directory)
        check_vocabulary(tokenizer, model_config.vocab_size, directory)
        ends = end_ids(tokenizer, model_config.end_ids)
        task = load_task(dataclasses.replace(settings.task, decontaminate="off"), tokenizer)
        check_evaluation(settings, task, tokenizer, model_config.vocab_size)
        model_config, params = models.load(directory, dtype=settings.dtype)
        model_config = dataclasses.replace(model_config, end_ids=ends)
        params = models.decode_layout(model_config, params, mesh)
        by_problem: dict[str, ByProblem] = {}
        result = evaluate_splits(params, model_config, settings, task, tokenizer, by_problem)
    # As it was done: with the lengths that the section leaves to the rollouts.
    evaluation = dataclasses.asdict(settings.evaluation) | dataclasses.asdict(spec_of(settings))
    counts = {name: found.to_json() for name, found in by_problem.items()}
    record = json.dumps(
        {
            "model": str(directory),
            "task": dataclasses.asdict(settings.task),
            "dtype": settings.dtype,
            "settings": evaluation,
            "result": result,
            "by_problem": counts,
        },
        indent=2,
    )
    if workdir:
        write_atomically(Path(workdir) / RECORD, record + "\n")
    return record


if __name__ == "__main__":
    model = cli.Flag("model", "Hugging Face directory to evaluate (default: config.models.policy)")
    cli.run(command, TrainConfig, file="run.py", workdir=False, more=[model])
