"""Rollouts of a policy with a label for every step: what a process reward model is trained on and
measured against.

Labels come from the domain's own step check (`oracle`) or from continuations of the policy
(`monte_carlo`, Math-Shepherd, arXiv 2312.08935), which any domain with a verifier has. Labelled
rows are written to a file chunk by chunk, and a run that was stopped goes on after the last whole
chunk.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scope_jax import rollout, streams, tasks
from scope_jax.correction import Scene, StepRows, first_error, in_steps
from scope_jax.correction.monte_carlo import successes
from scope_jax.devices.hosts import by_share, from_main, is_main
from scope_jax.devices.mesh import put_rows, to_host
from scope_jax.prm import ProcessRewardModel
from scope_jax.run import progress, write_atomically
from scope_jax.text import encode_in_place
from scope_jax.types import Rollout, check_choices

THRESHOLDS = tuple(n / 10 for n in range(1, 10))
ROWS_AT_ONCE = 256  # of the process reward model


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """Where the labels of steps come from."""

    kind: Literal["oracle", "monte_carlo"] = "oracle"
    continuations: int = 8  # of each prefix
    # Of a prefix's value: hard (1 where any continuation succeeded) or soft (the share that did).
    estimate: Literal["hard", "soft"] = "hard"

    def __post_init__(self) -> None:
        check_choices(self, "labels")
        if self.continuations < 1:
            raise ValueError(f"labels.continuations = {self.continuations} must be at least 1")

    def check(self, domain: tasks.Domain) -> None:
        """Raise ValueError where the domain has no step check and one is asked for."""
        if self.kind == "oracle" and not domain.checks_steps:
            raise ValueError(
                f"labels.kind 'oracle': domain {domain.name!r} cannot check steps; use"
                " 'monte_carlo'"
            )


@dataclasses.dataclass(frozen=True)
class RolloutSpec:
    """The rollouts that are labelled."""

    group: int  # per problem
    problems_at_once: int  # of a chunk
    prompt_tokens: int  # longer prompts are dropped and counted
    chat: bool  # prompts go into the tokenizer's chat template


@dataclasses.dataclass(frozen=True)
class LabelledRow:
    """A finished rollout. labels: per step, from 0 (wrong) to 1; 0 from the first step with 0 on.
    oracle: those of the domain's step check, None where it has none."""

    prompt: str
    steps: list[str]
    labels: list[float]
    oracle: list[bool] | None

    @property
    def truth(self) -> list[bool]:
        """What a process reward model should say of the steps, as far as it is known."""
        return [label > 0 for label in self.labels] if self.oracle is None else self.oracle


_ROW = ("prompt", "steps", "labels", "oracle")


def labelled_rows(
    path: str | Path,
    split: str,
    problems: Sequence[tasks.Problem],
    scene: Callable[[], Scene],
    rollouts: RolloutSpec,
    labels: LabelSpec,
) -> tuple[list[LabelledRow], dict[str, int]]:
    """(rows, counters) of the rollouts of `problems`, read from the file at `path` as far as they
    are there, else made and added to it. `split` tells apart several sets in one file. `scene()`,
    with the policy that writes them, is called only if something is to be made.

    The file has one JSON object for each row (split, row, id, prompt, steps, labels, oracle) and
    one at the end of each chunk (split, chunk, counters). Rows that did not end within the limit,
    or whose answer could not be judged, are left out and counted. Of several processes the first
    one reads and writes the file. Raises ValueError for kind `oracle` in a domain that cannot
    check steps.
    """
    path = Path(path)
    done = from_main(_read(path) if is_main() else None)
    chunks = [
        problems[start : start + rollouts.problems_at_once]
        for start in range(0, len(problems), rollouts.problems_at_once)
    ]
    first_new = sum(line["split"] == split for line in done if "chunk" in line)
    bar = progress(len(chunks), initial=first_new, desc=f"rollouts {split}")
    played = scene() if first_new < len(chunks) else None
    for number in range(first_new, len(chunks)):
        assert played is not None
        size = min(rollouts.problems_at_once, len(problems))
        first = number * rollouts.problems_at_once
        rows, counts = _label_chunk(played, chunks[number], first, size, rollouts, labels)
        lines = [{"split": split, **row} for row in rows] + [
            {"split": split, "chunk": number, **counts}
        ]
        if is_main():
            with open(path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        done += lines
        bar.update(1)
    bar.close()
    own = [line for line in done if line["split"] == split]
    total: collections.Counter[str] = collections.Counter()
    for line in own:
        if "chunk" in line:
            total.update(
                {name: value for name, value in line.items() if name not in ("split", "chunk")}
            )
    rows_ = [LabelledRow(*(line[name] for name in _ROW)) for line in own if "chunk" not in line]
    return rows_, dict(total)


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of whole chunks; what a kill left behind them is cut off the file."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    whole = 0
    *text, torn = path.read_bytes().split(b"\n")
    for number, raw in enumerate(text, start=1):
        try:
            line = json.loads(raw.decode())
        except (ValueError, RecursionError):
            raise ValueError(
                f"{path}:{number}: not JSON; mend the file, or remove it to label afresh"
            ) from None
        names = () if isinstance(line, dict) and "chunk" in line else _ROW
        if not isinstance(line, dict) or not {"split", *names} <= set(line):
            raise ValueError(
                f"{path}:{number}: no row of labels ({', '.join(('split', *_ROW))}); mend the file,"
                " or remove it to label afresh"
            )
        lines.append(line)
        if "chunk" in line:
            whole = number
    if whole < len(text) or torn:
        write_atomically(path, b"".join(line + b"\n" for line in text[:whole]).decode())
    return lines[:whole]


def _label_chunk(
    scene: Scene,
    problems: Sequence[tasks.Problem],
    first: int,
    size: int,
    rollouts: RolloutSpec,
    labels: LabelSpec,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(rows, counters) of one chunk. `first`: number of its first problem, so that no two rows
    have the same id. `size`: problems of a full chunk."""
    group, domain = rollouts.group, scene.domain
    ids, batch = _roll_out(scene, problems, first, size, rollouts)
    opened_B = np.repeat([row is not None for row in ids], group)
    finished, length, prompt_length = to_host(
        (batch.finished_B, batch.length_B, batch.prompt_length_B)
    )
    rows = in_steps(
        batch,
        [problems[min(b // group, len(problems) - 1)] for b in range(size * group)],
        np.flatnonzero(finished & opened_B),
        scene.policy.tokenizer,
        domain.divider,
    )
    rows = rows.take(np.flatnonzero(rows.count_R))  # what ended at once has no step

    def check(problems: Sequence[tasks.Problem], lists: Sequence[list[str]]) -> list[Any]:
        return [domain.check_steps(p, steps) for p, steps in zip(problems, lists, strict=True)]

    oracle = by_share(check, rows.problems_R, rows.steps)
    counts = {
        "rows": len(rows.steps),
        "prompt_too_long": sum(row is None for row in ids[: len(problems)]),
        "unfinished": int(np.sum(opened_B & ~finished)),
        "unjudged": 0,
        "rollout_tokens": int(np.sum(length - prompt_length)),
        "label_tokens": 0,
        "prefixes": 0,
    }
    found: list[list[float] | None]
    if labels.kind == "oracle" and any(row is None for row in oracle):
        raise ValueError(
            f"labels.kind 'oracle': domain {domain.name!r} cannot check steps; use 'monte_carlo'"
        )
    if labels.kind == "oracle":
        found = [[float(good) for good in row or []] for row in oracle]
    else:
        found, more = monte_carlo_labels(rows, scene, labels)
        counts |= more
    lines = [
        {"row": first * group + int(b), "id": problem.id, "prompt": problem.prompt}
        | {"steps": rows.steps[r], "labels": found[r], "oracle": oracle[r]}
        for r, (b, problem) in enumerate(zip(rows.rows_R, rows.problems_R, strict=True))
        if found[r] is not None
    ]
    return lines, counts | {"rows": len(lines), "unjudged": len(rows.steps) - len(lines)}


def _roll_out(
    scene: Scene,
    problems: Sequence[tasks.Problem],
    first: int,
    size: int,
    rollouts: RolloutSpec,
) -> tuple[list[list[int] | None], Rollout]:
    """(prompt ids of each of `size` problems, rollouts). Where a prompt is too long, or the last
    chunk has no problem left, ids are None and nothing is written to the rows."""
    policy, group = scene.policy, rollouts.group
    ids = encode_in_place(
        policy.tokenizer,
        [scene.domain.policy_prompt(problem) for problem in problems],
        max_length=rollouts.prompt_tokens,
        chat=rollouts.chat,
        system=scene.domain.system,
    )
    ids += [None] * (size - len(ids))
    batch = rollout.from_prompts(
        [row or [0] for row in ids],
        group,
        rollouts.prompt_tokens + policy.sampling.max_new_tokens,
        first_row=first * group,
    )
    closed_B = np.repeat([row is None for row in ids], group)
    batch = batch.replace(finished_B=put_rows(closed_B))
    params, config = policy.generator.params, policy.generator.config
    return ids, rollout.generate(
        params, config, batch, scene.key, policy.sampling, shared_prefix=group
    )


def monte_carlo_labels(
    rows: StepRows, scene: Scene, spec: LabelSpec
) -> tuple[list[list[float] | None], dict[str, int]]:
    """(labels of each row, None where its answer could not be judged; counters). The label of the
    last step is the row's own verdict; of another step, what `spec.estimate` makes of
    continuations after it. A row that is right is itself a success after each of its steps: under
    `hard` nothing of it is continued. After the first 0 the row is not looked at further.
    """
    hard, count = spec.estimate == "hard", rows.count_R
    verdicts = tasks.verdicts(scene.domain, rows.problems_R, ["".join(row) for row in rows.steps])
    right = np.array([tasks.is_right(verdict) for verdict in verdicts], bool)
    alive = np.array([verdict is not None for verdict in verdicts], bool)
    labels = [[float(hard and right[r])] * len(row) for r, row in enumerate(rows.steps)]
    prompt_length = to_host(rows.rollout.prompt_length_B)[rows.rows_R]
    tokens = prefixes = 0
    for step in range(max(count, default=0) - 1):
        asked = np.flatnonzero(alive & (count > step + 1) & ~(right & hard))
        if not asked.size:
            continue
        won, spent = successes(
            rows.rollout,
            rows.problems,
            rows.rows_R[asked],
            prompt_length[asked] + np.array([rows.ends[int(r)][step] for r in asked]),
            scene,
            continuations=spec.continuations,
            stream=streams.MONTE_CARLO + step,
        )
        tokens, prefixes = tokens + spent, prefixes + len(asked)
        for r, n in zip(asked, won, strict=True):
            # A right row is itself one success at least.
            share = max(n, int(right[r])) / spec.continuations
            labels[r][step] = float(n > 0) if hard else share
        alive[asked[(won == 0) & ~right[asked]]] = False
    for r in np.flatnonzero(alive):
        labels[r][-1] = float(right[r])
    known = [labels[r] if verdict is not None else None for r, verdict in enumerate(verdicts)]
    return known, {"label_tokens": tokens, "prefixes": prefixes}


# ---- how good labels and models are


def agreement(rows: Sequence[LabelledRow]) -> dict[str, float]:
    """How labels compare with the domain's step check: the share of equal step labels, and of rows
    with the same first error; empty where there is no such check."""
    checked = [row for row in rows if row.oracle is not None]
    pairs = [
        (label > 0, good)
        for row in checked
        for label, good in zip(row.labels, row.oracle or [], strict=True)
    ]
    if not pairs:
        return {}
    same_error = [
        [label > 0 for label in row.labels].count(True) == (row.oracle or []).count(True)
        for row in checked
    ]
    return {
        "labels/agreement": float(np.mean([a == b for a, b in pairs])),
        "labels/first_error_agreement": float(np.mean(same_error)),
    }


def score_rows(
    prm: ProcessRewardModel, rows: Sequence[LabelledRow]
) -> tuple[np.ndarray, np.ndarray]:
    """(score_BJ float32, valid_BJ bool) of the steps of all rows."""
    parts = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    scored = [
        prm.score([row.prompt for row in part], [row.steps for row in part], rows=ROWS_AT_ONCE)[:2]
        for part in parts
    ]
    J = max((len(row.steps) for row in rows), default=0)

    def widen(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, J - x.shape[1])))

    score = [widen(score) for score, _ in scored] or [np.zeros((0, J), np.float32)]
    valid = [widen(valid) for _, valid in scored] or [np.zeros((0, J), bool)]
    return np.concatenate(score), np.concatenate(valid)


def first_error_rates(
    score_BJ: np.ndarray, valid_BJ: np.ndarray, truth: Sequence[Sequence[bool]], threshold: float
) -> dict[str, float]:
    """How well scores find the first error: of the rows with an error, the share located `exact`,
    `not_later` (at it or before), `later`, `none`; of the rows without, the share left `clean`.
    `truth`: per row, which steps are right."""
    counts = {"exact": 0, "not_later": 0, "later": 0, "none": 0}
    wrong = clean = right = 0
    found = np.asarray(first_error(score_BJ, valid_BJ, threshold))
    for e, labels in zip(found, truth, strict=True):
        if False not in labels:
            right += 1
            clean += int(e >= len(labels))
            continue
        true = list(labels).index(False)
        wrong += 1
        counts["exact"] += int(e == true)
        counts["not_later"] += int(e <= true)
        counts["none"] += int(e >= len(labels))
        counts["later"] += int(true < e < len(labels))
    rates = {f"first_error/{name}": value / max(wrong, 1) for name, value in counts.items()}
    return rates | {
        "first_error/clean": clean / max(right, 1),
        "first_error/wrong_rows": wrong,
        "first_error/right_rows": right,
    }


def threshold_table(
    score_BJ: np.ndarray, valid_BJ: np.ndarray, truth: Sequence[Sequence[bool]]
) -> tuple[list[dict[str, float]], float]:
    """(rates at each of `THRESHOLDS`, the threshold that finds most first errors exactly; of equal
    ones the lowest)."""
    table = []
    for threshold in THRESHOLDS:
        rates = first_error_rates(score_BJ, valid_BJ, truth, threshold)
        shown = {
            name.split("/")[1]: value for name, value in rates.items() if not name.endswith("_rows")
        }
        table.append({"threshold": threshold, **shown})
    return table, max(table, key=lambda row: (row["exact"], -row["threshold"]))["threshold"]
