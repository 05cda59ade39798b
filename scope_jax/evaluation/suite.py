"""One suite: completions sampled, judged and summed up, chunk by chunk."""

import dataclasses
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np

from scope_jax import models, rollout
from scope_jax.data.prompts import check_ids
from scope_jax.data.suites import SuiteData
from scope_jax.devices.mesh import put_rows, row_devices
from scope_jax.devices.shapes import round_up
from scope_jax.evaluation.settings import STRIDE, Settings
from scope_jax.prm import ProcessRewardModel
from scope_jax.report.samples import Result, ResultsFile, summarise
from scope_jax.report.voting import aggregate
from scope_jax.run import progress
from scope_jax.tasks.graders import Grader
from scope_jax.text import BLANK_LINE, encode_prompts, end_ids, split_steps


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """The model that is evaluated."""

    params: models.Params
    config: models.ModelConfig
    tokenizer: Any
    digest: str  # of its weights
    chat: bool  # whether prompts go through the chat template


@dataclasses.dataclass(frozen=True, eq=False)
class Weigher:
    """A process reward model that gives each sample a weight, for bon@n and vote@n."""

    prm: ProcessRewardModel
    digest: str  # of its weights
    aggregate: str = "product"  # how the step scores of a sample become one number


def evaluate_suite(
    policy: EvaluatedModel,
    data: SuiteData,
    settings: Settings,
    workdir: str | Path,
    *,
    rows: int = 256,
    seats: int | None = None,
    weigher: Weigher | None = None,
) -> dict[str, Any]:
    """Decode, judge and sum up one suite: its record, with the figures of
    `report.samples.summarise` under "result".

    Chunks of about `rows` rows are decoded together on `seats` seats (None: one for each row). The
    results of a chunk are kept in `workdir/samples/` before the next one begins, and are not made
    again. A sample's tokens do not depend on `rows`, `seats`, the mesh or `settings.limit`.
    """
    limit, prompts, dropped = check_suite(policy, data, settings)
    chosen = [n for n in prompts if n < limit]
    longest = max(map(len, prompts.values()))
    new_tokens = _fitting(data.name, settings.new_tokens, longest, policy.config.max_positions)
    # Ends of a turn: those of the model's files and those that the tokenizer knows.
    ends = end_ids(policy.tokenizer, policy.config.end_ids)
    spec = rollout.SampleSpec(
        settings.temperature,
        settings.top_p,
        settings.top_k,
        new_tokens,
        ends,
        prefix_tokens=longest,
    )
    with Grader(settings.grader or data.suite.grader) as grader:
        made_by = _made_by(policy, data, settings, new_tokens, grader) | {"end_ids": list(ends)}
        if weigher is not None:
            made_by["prm"] = {
                "sha256": weigher.digest,
                "format": weigher.prm.format,
                "aggregate": weigher.aggregate,
            }
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        kept = ResultsFile(Path(workdir) / "samples" / f"{file_stem(data.name)}-{key}.jsonl", key)
        todo = [n for n in chosen if n not in kept.done]
        size = _chunk(rows, settings.samples, len(chosen))
        decode = _Decoder(policy, data.name, spec, settings, size, longest + new_tokens, seats)
        bar = progress(len(chosen), initial=len(chosen) - len(todo), desc=data.name)
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            written, finished = decode({n: prompts[n] for n in part})
            kept.add(_judged(data, part, written, finished, grader, policy, weigher, size))
            bar.update(len(part))
        bar.close()
        counts = dict(grader.counts)
    return {
        "suite": data.name,
        "title": data.suite.title,
        "problems": len(chosen),
        "published_problems": data.suite.size,
        "dropped": sum(n < limit for n in dropped),
        "skipped": data.skipped,
        "temperature": settings.temperature,
        "samples": settings.samples,
        "limit": settings.limit,
        "made_by": made_by,
        "key": key,
        "verdicts": counts,
        "result": summarise([kept.done[n] for n in chosen]),
    }


def check_suite(
    policy: EvaluatedModel, data: SuiteData, settings: Settings
) -> tuple[int, dict[int, list[int]], list[int]]:
    """(problems at most, {index of a problem: token ids of its prompt}, indices of those that are
    too long). Needs no weights. Raises ValueError where nothing could come of the suite: samples
    that are all alike, prompts that are all too long or have no row in the embedding."""
    if settings.temperature == 0 and settings.samples > 1:
        raise ValueError(
            f"{data.name}: {settings.samples} samples at temperature 0 are all alike; use samples=1"
        )
    limit = min(settings.limit or len(data.problems), len(data.problems))
    prompts, dropped = _encode(policy, data, settings)
    if not any(n < limit for n in prompts):
        raise ValueError(
            f"{data.name}: all {limit} prompts are longer than prompt_tokens ="
            f" {settings.prompt_tokens}"
        )
    highest = [max(ids) for ids in prompts.values()]
    check_ids(highest, policy.config.vocab_size, policy.tokenizer, f"{data.name}: a prompt")
    longest, positions = max(map(len, prompts.values())), policy.config.max_positions
    if longest >= positions:
        raise ValueError(
            f"{data.name}: a prompt of {longest} tokens and the model has {positions} positions;"
            " lower prompt_tokens"
        )
    return limit, prompts, dropped


def file_stem(suite: str) -> str:
    """The name of a suite as a part of a file's name. A folder of one's own may be a path, such as
    `/data/own` or `../own`: it ends with a digest, because others may be spelled alike."""
    if PurePosixPath(suite).name == suite and suite[:1] != "." and len(suite.encode()) <= 200:
        return suite
    spelled = re.sub(r"[^\w.-]+", "_", suite)[-40:].strip("._-")
    return f"{spelled or 'suite'}-{hashlib.sha256(suite.encode()).hexdigest()[:8]}"


def _encode(
    policy: EvaluatedModel, data: SuiteData, settings: Settings
) -> tuple[dict[int, list[int]], list[int]]:
    """({index of a problem: token ids of its prompt}, indices of those that are too long)."""
    ids, dropped = encode_prompts(
        policy.tokenizer,
        [problem.prompt for problem in data.problems],
        max_length=settings.prompt_tokens,
        chat=policy.chat,
        system=settings.system,
    )
    places = [n for n in range(len(data.problems)) if n not in set(dropped)]
    return dict(zip(places, ids, strict=True)), dropped


def _made_by(
    policy: EvaluatedModel, data: SuiteData, settings: Settings, new_tokens: int, grader: Grader
) -> dict[str, Any]:
    """Everything that the figures depend on."""
    chat_template = policy.tokenizer.chat_template if policy.chat else None
    return {
        "model_sha256": policy.digest,
        "dtype": str(jax.tree.leaves(policy.params)[0].dtype),
        "data_sha256": data.digest,
        "data_files": list(data.files),
        "template": settings.template or data.suite.template,
        "system": settings.system,
        "chat_template_sha256": (
            hashlib.sha256(str(chat_template).encode()).hexdigest() if chat_template else None
        ),
        "samples": settings.samples,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "new_tokens": new_tokens,
        "prompt_tokens": settings.prompt_tokens,
        "seed": settings.seed,
        "grader": grader.record(),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Decoder:
    """Samples completions of a suite's prompts, chunk by chunk, by the same program."""

    policy: EvaluatedModel
    suite: str
    spec: rollout.SampleSpec
    settings: Settings
    size: int  # problems in a chunk
    buffer: int  # token positions of a row
    seats: int | None  # rows decoded at once; None: all

    def __call__(self, prompts: Mapping[int, list[int]]) -> tuple[list[list[int]], list[bool]]:
        """(ids written, whether the row ended by itself) of `samples` rows for each problem. The
        rows that fill up the chunk count as finished and are not decoded."""
        samples = self.settings.samples
        real = len(prompts) * samples
        ids = list(prompts.values())
        batch = rollout.from_prompts(
            [*ids, *[ids[0]] * (self.size - len(ids))], samples, self.buffer
        )
        row_id_B = np.zeros(self.size * samples, np.int32)
        row_id_B[:real] = (np.array([*prompts])[:, None] * STRIDE + np.arange(samples)).reshape(-1)
        row_id_B, finished_B = put_rows((row_id_B, np.arange(self.size * samples) >= real))
        key = jax.random.fold_in(
            jax.random.key(self.settings.seed), zlib.crc32(self.suite.encode()) & 0x7FFFFFFF
        )
        batch = rollout.generate(
            self.policy.params,
            self.policy.config,
            batch.replace(row_id_B=row_id_B, finished_B=finished_B),
            key,
            dataclasses.replace(self.spec, seats=self.seats),
            shared_prefix=samples,
        )
        return (
            rollout.completion_ids(batch)[:real],
            np.asarray(jax.device_get(batch.finished_B))[:real].tolist(),
        )


def _judged(
    data: SuiteData,
    places: Sequence[int],
    written: list[list[int]],
    finished: list[bool],
    grader: Grader,
    policy: EvaluatedModel,
    weigher: Weigher | None,
    size: int,
) -> list[Result]:
    """One result for each problem of a chunk of `size`, with an entry for each sample."""
    samples = len(written) // len(places)
    texts = rollout.texts(written, policy.tokenizer)
    owners = [n for n in places for _ in range(samples)]
    weights = None
    if weigher is not None:
        questions = [data.questions[n] for n in owners]
        weights = step_weights(weigher.prm, questions, texts, weigher.aggregate, size * samples)
    columns: dict[str, list[Any] | None] = {
        "scores": grader.scores(
            [data.problems[n] for n in owners], texts, [data.rows[n] for n in owners]
        ),
        "answers": [grader.answer(text) for text in texts],
        "finished": finished,
        "tokens": [len(row) for row in written],
        "weights": weights,
        "texts": texts,
    }
    results = []
    for number, n in enumerate(places):
        part = slice(number * samples, (number + 1) * samples)
        cut = {name: None if column is None else column[part] for name, column in columns.items()}
        results.append({"problem": n, "id": data.problems[n].id, **cut})
    return results


def step_weights(
    prm: ProcessRewardModel,
    questions: Sequence[str],
    texts: Sequence[str],
    how: str,
    rows: int | None = None,
) -> list[float | None]:
    """The aggregated step scores of each text, whose steps stand between blank lines; None where
    the PRM could not score it. `rows` as in `ProcessRewardModel.score`."""
    steps = [[step for step in split_steps(text, BLANK_LINE) if step.strip()] for text in texts]
    score_BJ, valid_BJ, _ = prm.score(questions, steps, rows)
    return [
        aggregate(score[valid].tolist(), how) if valid.any() else None
        for score, valid in zip(score_BJ, valid_BJ)
    ]


def _chunk(rows: int, samples: int, problems: int) -> int:
    """Problems decoded together, such that the rows divide evenly over the devices of the mesh."""
    split = row_devices()
    return round_up(min(max(rows // samples, 1), problems), split // int(np.gcd(split, samples)))


def _fitting(name: str, new_tokens: int, prompt: int, positions: int) -> int:
    """`new_tokens`, or as many as the model has positions for, with a note."""
    if prompt + new_tokens <= positions:
        return new_tokens
    print(
        f"{name}: {positions - prompt} new tokens at most: the model has {positions} positions",
        file=sys.stderr,
    )
    return positions - prompt
