"""The files of a salvage: what became of every row, and the training data made of it."""

from collections.abc import Sequence
from typing import Any

from scope_jax.salvage.encode import Row, exact, verbatim
from scope_jax.salvage.fields import Logged
from scope_jax.salvage.play import SAME_STEP, Fate, Mixed
from scope_jax.salvage.settings import Settings
from scope_jax.tasks import Domain
from scope_jax.tasks.visible import is_visible
from scope_jax.text import split_steps

MIXED, PAIRS, STEPS, OUTCOMES = "mixed.jsonl", "pairs.jsonl", "steps.jsonl", "outcomes.jsonl"
FILES = (MIXED, PAIRS, STEPS, OUTCOMES)
# Who wrote a token of a mixed rollout; the first three are `types.Owner`.
OWNERS = {"prompt": 1, "policy": 2, "teacher": 3, "tail": 4}
Lines = dict[str, list[dict[str, Any]]]


def lines_of(fate: Fate, settings: Settings, tokenizer: Any) -> Lines:
    """The lines that a failed row leaves in each file."""
    logged = fate.row.logged
    lines: Lines = {OUTCOMES: [outcome_line(logged, fate)]}
    if fate.error is not None and _is_told(fate):
        labels = [True] * fate.error + [False]
        wrong = fate.steps[: fate.error + 1]
        lines[STEPS] = [labelled(fate.row, wrong, labels, "failed")]
    if fate.mixed is None:
        return lines
    lines[MIXED] = [mixed_line(fate, fate.mixed, tokenizer)]
    lines[PAIRS] = [pair_line(fate, fate.mixed, settings, tokenizer)]
    if fate.mixed.reward is not None:
        text = exact([*fate.mixed.kept, *fate.mixed.step, *fate.mixed.tail], tokenizer)
        steps = in_steps(text, settings.domain)
        lines[STEPS].append(labelled(fate.row, steps, [True] * len(steps), "rescued"))
    return lines


def _is_told(fate: Fate) -> bool:
    """Whether the wrong step may be labelled as one: not where the teacher wrote it again, and not
    the last one of a row that was cut off, which is not whole."""
    whole = fate.row.finished or (fate.error or 0) < len(fate.steps) - 1
    return whole and fate.outcome != SAME_STEP


def outcome_line(logged: Logged, fate: Fate) -> dict[str, Any]:
    """What became of a row, by its line in the file of rollouts."""
    line: dict[str, Any] = {"line": logged.line, "id": logged.id, "outcome": fate.outcome}
    if fate.error is not None:
        line |= {"first_error": fate.error, "steps": len(fate.steps)}
    if fate.scores:
        line["scores"] = [round(score, 4) for score in fate.scores]
    if fate.refused is not None:
        line["refused"] = fate.refused
    return line


def mixed_line(fate: Fate, mixed: Mixed, tokenizer: Any) -> dict[str, Any]:
    """A mixed rollout: ids with the owner of each, and the same as texts."""
    parts = {
        "prompt": mixed.prompt,
        "policy": mixed.kept,
        "teacher": mixed.step,
        "tail": mixed.tail,
    }
    logged = fate.row.logged
    return {
        "id": logged.id,
        "line": logged.line,
        "group": logged.group,
        "verified": mixed.reward is not None,
        "reward": mixed.reward,
        "finished": mixed.finished,
        "problem": fate.row.problem.prompt,
        "answer": fate.row.problem.answer,
        "text": exact([*mixed.kept, *mixed.step, *mixed.tail], tokenizer),
        "texts": {
            name: (verbatim if name == "prompt" else exact)(ids, tokenizer)
            for name, ids in parts.items()
        },
        "first_error": fate.error,
        "wrong_step": _wrong(fate),
        "token_ids": [id_ for ids in parts.values() for id_ in ids],
        "owners": [OWNERS[name] for name, ids in parts.items() for _ in ids],
    }


def pair_line(fate: Fate, mixed: Mixed, settings: Settings, tokenizer: Any) -> dict[str, Any]:
    """A preference pair: after the good steps the right one, and the wrong one. With
    `pairs=solutions` each is followed by the rest of its solution."""
    chosen, rejected = exact(mixed.step, tokenizer), _wrong(fate)
    if settings.pairs == "solutions":
        chosen += exact(mixed.tail, tokenizer)
        rejected = "".join(fate.steps[fate.error or 0 :])
    return {
        "prompt": verbatim(mixed.prompt, tokenizer) + exact(mixed.kept, tokenizer),
        "chosen": chosen,
        "rejected": rejected,
        "id": fate.row.logged.id,
        "verified": mixed.reward is not None,
    }


def right_lines(row: Row | Logged, settings: Settings, tokenizer: Any) -> Lines:
    """The lines of a right rollout: what became of it and, where asked for, its steps as good
    ones."""
    logged = row.logged if isinstance(row, Row) else row
    lines: Lines = {OUTCOMES: [{"line": logged.line, "id": logged.id, "outcome": "right"}]}
    if settings.right_steps and isinstance(row, Row):
        steps = in_steps(exact(row.ids, tokenizer), settings.domain)
        lines[STEPS] = [labelled(row, steps, [True] * len(steps), "right")]
    return lines


def labelled(row: Row, steps: Sequence[str], labels: Sequence[bool], source: str) -> dict[str, Any]:
    """Step labels: steps without the white space around them, which the trainer's own separator
    stands for."""
    return {
        "prompt": row.problem.prompt,
        "completions": [step.strip() for step in steps],
        "labels": list(labels),
        "id": row.logged.id,
        "source": source,
    }


def in_steps(text: str, domain: Domain) -> list[str]:
    """The steps of a text that can be seen."""
    return [step for step in split_steps(text, domain.divider) if is_visible(step)]


def _wrong(fate: Fate) -> str:
    return fate.steps[fate.error] if fate.error is not None else ""
