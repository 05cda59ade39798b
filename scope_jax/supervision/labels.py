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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import correction, rollout, tasks
from scope_jax.correction.monte_carlo import MONTE_CARLO_STREAM, successes
from scope_jax.devices.hosts import by_share, from_main, is_main
from scope_jax.devices.mesh import put_rows, to_host
from scope_jax.prm import ProcessRewardModel
from scope_jax.run import progress, write_atomically
from scope_jax.text import encode_prompts
from scope_jax.types import Rollout

KINDS = ("oracle", "monte_carlo")
ESTIMATES = ("hard", "soft")
THRESHOLDS = tuple(n / 10 for n in range(1, 10))
ROWS_AT_ONCE = 256  # of the process reward model


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """kind: oracle | monte_carlo. continuations: of each prefix. estimate: of its value, hard (1
    where any succeeded) or soft (the share that did)."""

    kind: str = "oracle"
    continuations: int = 8
    estimate: str = "hard"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("estimate", self.estimate, ESTIMATES),
        ):
            if value not in known:
                raise ValueError(f"labels.{name} = {value!r} is unknown; one of {', '.join(known)}")
        if self.continuations < 1:
            raise ValueError(f"labels.continuations = {self.continuations} must be at least 1")


@dataclasses.dataclass(frozen=True)
class RolloutSpec:
    """group: rollouts per problem. problems_at_once: problems of a chunk. prompt_tokens: longer
    prompts are dropped and counted. chat: prompts go into the tokenizer's chat template."""

    group: int
    problems_at_once: int
    prompt_tokens: int
    chat: bool
    sample: rollout.SampleSpec


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


def labelled_rows(
    path: str | Path,
    split: str,
    problems: Sequence[tasks.Problem],
    policy: Callable[[], rollout.Generator],
    tokenizer: Any,
    domain: tasks.Domain,
    *,
    rollouts: RolloutSpec,
    labels: LabelSpec,
    key: jax.Array,
) -> tuple[list[LabelledRow], dict[str, int]]:
    """(rows, counters) of the rollouts of `problems`, read from the file at `path` as far as they
    are there, else made and added to it. `split` tells apart several sets in one file. `policy()`
    is called only if something is to be made.

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
    writer = policy() if first_new < len(chunks) else None
    for number in range(first_new, len(chunks)):
        assert writer is not None
        place = number * rollouts.problems_at_once
        rows, counts = _label_chunk(
            writer,
            tokenizer,
            domain,
            chunks[number],
            place,
            min(rollouts.problems_at_once, len(problems)),
            rollouts,
            labels,
            key,
        )
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
    rows_ = [
        LabelledRow(*(line[name] for name in ("prompt", "steps", "labels", "oracle")))
        for line in own
        if "chunk" not in line
    ]
    return rows_, dict(total)


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of whole chunks; what a kill left behind them is cut off the file."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    whole = 0
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(text):
        try:
            lines.append(json.loads(line))
        except ValueError:
            if number + 1 < len(text):
                raise ValueError(
                    f"{path}:{number + 1}: not JSON; mend the file, or remove it to label afresh"
                ) from None
            break
        if "chunk" in lines[-1] and line.endswith("\n"):
            whole = number + 1
    if whole < len(text):
        write_atomically(path, "".join(text[:whole]))
    return lines[:whole]


def _label_chunk(
    policy: rollout.Generator,
    tokenizer: Any,
    domain: tasks.Domain,
    problems: Sequence[tasks.Problem],
    first: int,
    size: int,
    rollouts: RolloutSpec,
    labels: LabelSpec,
    key: jax.Array,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(rows, counters) of one chunk. `first`: number of its first problem, so that no two rows
    have the same id."""
    group, sample = rollouts.group, rollouts.sample
    shown = [domain.policy_prompt(problem) for problem in problems]
    encoded, dropped = encode_prompts(
        tokenizer,
        shown,
        max_length=rollouts.prompt_tokens,
        chat=rollouts.chat,
        system=domain.system,
    )
    left, gone = iter(encoded), set(dropped)
    # Dropped prompts, and places of the last chunk that no problem has, are rows in which nothing
    # is written.
    opened = np.array([n < len(problems) and n not in gone for n in range(size)])
    ids = [next(left) if is_open else [0] for is_open in opened]
    batch = rollout.from_prompts(
        ids, group, rollouts.prompt_tokens + sample.max_new_tokens, first_row=first * group
    )
    opened_B = np.repeat(opened, group)
    batch = batch.replace(finished_B=put_rows(~opened_B))
    batch = rollout.generate(policy.params, policy.config, batch, key, sample, shared_prefix=group)
    finished = to_host(batch.finished_B)
    rows = np.flatnonzero(finished & opened_B)
    row_problems = [problems[min(b // group, len(problems) - 1)] for b in range(size * group)]
    steps, ends, _ = correction.in_steps(batch, rows, tokenizer, domain.divider)
    # What ended at once has no step.
    full = [r for r in range(len(rows)) if steps[r]]
    rows, steps, ends = rows[full], [steps[r] for r in full], [ends[r] for r in full]
    check = lambda own, own_steps: [
        domain.check_steps(row_problems[b], row) for b, row in zip(own, own_steps, strict=True)
    ]
    oracle = by_share(check, list(rows), steps)
    counts = {
        "rows": len(rows),
        "prompt_too_long": len(gone),
        "unfinished": int(np.sum(opened_B & ~finished)),
        "unjudged": 0,
        "rollout_tokens": int(jnp.sum(batch.length_B - batch.prompt_length_B)),
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
        found, more = monte_carlo_labels(
            batch, rows, steps, ends, row_problems, policy, sample, tokenizer, domain, labels, key
        )
        counts |= more
    lines = [
        {"row": first * group + int(b), "id": row_problems[b].id, "prompt": row_problems[b].prompt}
        | {"steps": steps[r], "labels": found[r], "oracle": oracle[r]}
        for r, b in enumerate(rows)
        if found[r] is not None
    ]
    return lines, counts | {"rows": len(lines), "unjudged": len(rows) - len(lines)}


def monte_carlo_labels(
    batch: Rollout,
    rows_R: np.ndarray,
    steps: Sequence[Sequence[str]],
    ends: Sequence[Sequence[int]],
    problems: Sequence[tasks.Problem],
    policy: rollout.Generator,
    sample: rollout.SampleSpec,
    tokenizer: Any,
    domain: tasks.Domain,
    spec: LabelSpec,
    key: jax.Array,
) -> tuple[list[list[float] | None], dict[str, int]]:
    """(labels of each row, None where its answer could not be judged; counters). The label of the
    last step is the row's own verdict; of another step, what `spec.estimate` makes of
    continuations after it. A row that is right is itself a success after each of its steps: under
    `hard` nothing of it is continued. After the first 0 the row is not looked at further.
    """
    verdicts = tasks.verdicts(
        domain, [problems[b] for b in rows_R], ["".join(row) for row in steps]
    )
    right = np.array([verdict is True for verdict in verdicts], bool)
    alive = np.array([verdict is not None for verdict in verdicts], bool)
    labels = [
        [float(spec.estimate == "hard" and right[r])] * len(row) for r, row in enumerate(steps)
    ]
    prompt_length = to_host(batch.prompt_length_B)
    count = np.array([len(row) for row in steps])
    tokens = prefixes = 0
    for step in range(max(count, default=0) - 1):
        asked = np.flatnonzero(alive & (count > step + 1) & ~(right & (spec.estimate == "hard")))
        if not asked.size:
            continue
        won, spent = successes(
            batch,
            rows_R[asked],
            prompt_length[rows_R[asked]] + np.array([ends[int(r)][step] for r in asked]),
            problems,
            continuations=spec.continuations,
            policy=policy,
            sample_spec=sample,
            key=key,
            domain=domain,
            tokenizer=tokenizer,
            stream=MONTE_CARLO_STREAM + step,
        )
        tokens, prefixes = tokens + spent, prefixes + len(asked)
        for r, n in zip(asked, won, strict=True):
            value = (
                max(n, int(right[r])) / spec.continuations
            )  # a right row is one success at the least
            labels[r][step] = float(n > 0) if spec.estimate == "hard" else value
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
    widen = lambda x: np.pad(x, ((0, 0), (0, J - x.shape[1])))
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
    found = np.asarray(
        correction.first_error(jnp.asarray(score_BJ), jnp.asarray(valid_BJ), threshold)
    )
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
