"""Labelled rollouts: the file that holds them, their labels, and how good labels and scores are."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import DOMAIN, PROBLEM, SAMPLE, TOKENIZER, bigram, fours_are_wrong
from support.tiny_runs import Tiny

from scope_jax import models, rollout, tasks
from scope_jax.correction import Scene, StepRows
from scope_jax.rollout import Generator
from scope_jax.supervision import labels
from scope_jax.supervision.labels import (
    LabelledRow,
    LabelSpec,
    RolloutSpec,
    labelled_rows,
    monte_carlo_labels,
)
from scope_jax.text import load_tokenizer

# ---- figures


def table(scores: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    score = np.zeros((len(scores), max(map(len, scores))), np.float32)
    valid = np.zeros(score.shape, bool)
    for row, values in enumerate(scores):
        score[row, : len(values)], valid[row, : len(values)] = values, True
    return score, valid


TRUTH = [
    [True, False, False],  # found at 1: exact
    [True, False, False],  # found at 0: not later, not exact
    [True, False, False],  # found at 2: later
    [True, True, False],  # not found
    [False],  # not found, in a row that is shorter than the table
    [True, True, True],  # left clean
    [True],  # a false alarm
]


SCORES = [
    [0.9, 0.4, 0.9],
    [0.4, 0.9, 0.9],
    [0.9, 0.9, 0.4],
    [0.9, 0.9, 0.95],
    [0.9],
    [0.9, 0.9, 0.9],
    [0.2],
]


def test_first_error_rates_literal():
    assert labels.first_error_rates(*table(SCORES), TRUTH, 0.5) == {
        "first_error/exact": 0.2,
        "first_error/not_later": 0.4,
        "first_error/later": 0.2,
        "first_error/none": 0.4,
        "first_error/clean": 0.5,
        "first_error/wrong_rows": 5,
        "first_error/right_rows": 2,
    }


def test_threshold_table_literal():
    rows, best = labels.threshold_table(
        *table([[0.3, 0.1], [0.8, 0.7], [0.9, 0.9]]), [[True, False], [True, False], [True, True]]
    )
    assert [row["threshold"] for row in rows] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    # Row 0 is found exactly up to 0.3 (a score at the threshold is not below it), too early then;
    # row 1 from 0.8 on.
    assert [row["exact"] for row in rows] == [0, 0.5, 0.5, 0, 0, 0, 0, 0.5, 0]
    assert [row["not_later"] for row in rows] == [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1]
    assert [row["none"] for row in rows] == [1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0]
    assert [row["clean"] for row in rows] == [1] * 9
    assert best == 0.2  # of equal ones the lowest


def test_agreement_literal():
    rows = [
        LabelledRow("p", ["a", "b", "c"], [1.0, 0.25, 0.0], [True, True, False]),
        LabelledRow("p", ["a", "b"], [0.0, 0.0], [True, False]),
        LabelledRow("p", ["a"], [1.0], None),
    ]
    assert labels.agreement(rows) == {"labels/agreement": 0.8, "labels/first_error_agreement": 0.5}
    assert labels.agreement(rows[2:]) == {}


# ---- labels


@pytest.fixture(scope="module")
def cast(checkpoints: Tiny):
    """(policy, tokenizer, domain, problems) of the embedded task."""
    config, params = models.load(checkpoints.policy)
    domain = tasks.Arithmetic(start="zero")
    problems = [domain.problem(9, "train", n, 2) for n in range(14)]
    return Generator(params, config), load_tokenizer(checkpoints.policy), domain, problems


def label(cast, path, problems=None, **labels):
    """(rows, counters, how often the policy was asked for)."""
    policy, tokenizer, domain, given = cast
    asked = []
    sample = rollout.SampleSpec(max_new_tokens=14, end_ids=policy.config.end_ids)

    def scene() -> Scene:
        asked.append(1)
        return Scene(domain, rollout.Policy(policy, tokenizer, sample), jax.random.key(3))

    rows, counts = labelled_rows(
        path,
        "train",
        given if problems is None else problems,
        scene,
        RolloutSpec(2, 4, 5, False),
        LabelSpec(**labels),
    )
    return rows, counts, len(asked)


MONTE_CARLO = {"kind": "monte_carlo", "continuations": 4}


def test_monte_carlo_labels_against_the_step_check(cast, tmp_path):
    domain, problems = cast[2:]
    rows, counts, _ = label(cast, tmp_path / "hard.jsonl", **MONTE_CARLO)
    checked, _, _ = label(cast, tmp_path / "oracle.jsonl")
    assert [(row.prompt, row.steps, row.oracle) for row in rows] == [
        (row.prompt, row.steps, row.oracle) for row in checked
    ]
    assert [row.labels for row in checked] == [
        [float(good) for good in row.oracle] for row in checked
    ]
    by_prompt = {p.prompt: p for p in problems}
    right = [bool(domain.verify([by_prompt[row.prompt]], ["".join(row.steps)])[0]) for row in rows]
    assert [row.labels for row, good in zip(rows, right, strict=True) if good] == [
        [1.0] * len(row.steps) for row, good in zip(rows, right, strict=True) if good
    ]
    assert 0 < sum(right) < len(rows) and any(
        row.labels[0] > 0 for row, good in zip(rows, right, strict=True) if not good
    )
    # A label is 1 up to where no continuation succeeds; the last one is the row's verdict.
    assert all(
        set(row.labels) <= {0.0, 1.0} and sorted(row.labels, reverse=True) == row.labels
        for row in rows
    )
    assert all(row.labels[-1] == 0 for row, good in zip(rows, right, strict=True) if not good)
    assert counts["prefixes"] == sum(
        min(row.labels.count(1.0) + 1, len(row.steps) - 1)
        for row, good in zip(rows, right, strict=True)
        if not good
    )
    assert counts["label_tokens"] > 0 and counts["rows"] == len(rows) <= 28

    soft, more, _ = label(cast, tmp_path / "soft.jsonl", **MONTE_CARLO, estimate="soft")
    assert more["prefixes"] > counts["prefixes"]  # right rows are continued too
    assert {x for row in soft for x in row.labels} <= {0, 0.25, 0.5, 0.75, 1}
    # The same continuations: a failed row's step has a share above 0 exactly where its hard label
    # is 1.
    for ours, hard, good in zip(soft, rows, right, strict=True):
        assert good or [x > 0 for x in ours.labels] == [x > 0 for x in hard.labels]


@dataclasses.dataclass(frozen=True)
class OneVerdict(tasks.Domain):
    """Every answer gets the same verdict."""

    verdict: bool | None

    name = "one"
    separator = "\n"

    def verify(self, problems, completions):
        return [self.verdict] * len(completions)


@pytest.mark.parametrize(
    ("verdict", "estimate", "labels", "prefixes"),
    [
        (False, "hard", [[0.0] * 4, [0.0]], 1),  # nothing after the first lost step is continued
        (False, "soft", [[0.0] * 4, [0.0]], 1),
        (True, "hard", [[1.0] * 4, [1.0]], 0),
        (True, "soft", [[1.0] * 4, [1.0]], 3),  # each step but the last
        (None, "soft", [None, None], 0),
    ],
)
def test_which_prefixes_are_continued(cast, verdict, estimate, labels, prefixes):
    policy, tokenizer = cast[:2]
    steps = [["+111\n", "+222\n", "+333\n", "+444"], ["+111"]]
    prompt = tokenizer.encode("+1+2=")
    ids = [prompt + tokenizer.encode("".join(row)) for row in steps]
    batch = rollout.from_prompts(ids, 1, 40).replace(
        prompt_length_B=jnp.full(2, len(prompt), jnp.int32)
    )
    # Continuations end at once or later: whatever token comes is an end.
    sample = rollout.SampleSpec(max_new_tokens=30, end_ids=tuple(range(24)))
    ends = [[5, 10, 15, 19], [4]]
    rows = StepRows(batch, [tasks.Problem("a", "", "")] * 2, np.arange(2), steps, ends)
    scene = Scene(OneVerdict(verdict), rollout.Policy(policy, tokenizer, sample), jax.random.key(0))
    found, counts = monte_carlo_labels(rows, scene, LabelSpec("monte_carlo", 2, estimate))
    assert found == labels
    assert counts == {"prefixes": prefixes, "label_tokens": 2 * prefixes}


def test_labels_go_on_after_the_last_whole_chunk(cast, tmp_path):
    path = tmp_path / "labels.jsonl"
    rows, counts, asked = label(cast, path, **MONTE_CARLO)
    whole = path.read_text()
    assert asked == 1 and whole.count('"chunk"') == 4  # 14 problems, 4 at once
    assert label(cast, path, **MONTE_CARLO) == (rows, counts, 0)  # nothing to do
    lines = whole.splitlines(keepends=True)
    ends = [n for n, line in enumerate(lines) if '"chunk"' in line]
    # Killed within the third chunk: two of its lines are whole and one is torn; at the start;
    # behind a chunk.
    for kept, torn in (
        (ends[1] + 3, 20),
        (0, 7),
        (ends[2] + 1, 0),
        (ends[3], len(lines[ends[3]]) - 1),
    ):
        path.write_text("".join(lines[:kept]) + lines[min(kept, len(lines) - 1)][:torn])
        assert label(cast, path, **MONTE_CARLO) == (rows, counts, 1)
        assert path.read_text() == whole
    for damaged, reason in (
        (whole.replace(",", "\x0c", 1), "1: not JSON"),
        (whole + "[" * 99999 + "\n", f"{len(lines) + 1}: not JSON"),
        ("[]\n" + whole, "1: no row of labels"),
        ('{"split": "train"}\n' + whole, "1: no row of labels"),
    ):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=rf"labels\.jsonl:{reason}"):
            label(cast, path, **MONTE_CARLO)
    path.write_text("{" + whole)
    with pytest.raises(ValueError, match=r"labels.jsonl:1: not JSON"):
        label(cast, path, **MONTE_CARLO)


# ---- the file, of a policy made by hand

TWO_STEPS = "=+134\n-268#"  # what it writes after "="
PROBLEMS = [
    PROBLEM,
    DOMAIN.make_problem(["+1", "-2"], id="b"),
    DOMAIN.make_problem(["+1", "-2", "+3", "-4"], id="long"),  # 9 tokens, 7 fit
    dataclasses.replace(PROBLEM, id="d"),
]


class FirstIsRight(tasks.Arithmetic):
    """The first step of a solution is right, and no other."""

    def check_steps(self, problem: Any, steps: Any, *, complete: bool = True) -> list[bool]:
        return [number == 0 for number in range(len(steps))]


def by_hand(
    path: Path,
    problems: list[tasks.Problem] = PROBLEMS,
    *,
    split: str = "train",
    chain: str = TWO_STEPS,
    domain: tasks.Domain = FirstIsRight(start="zero"),
    group: int = 2,
    at_once: int = 2,
) -> tuple[list[LabelledRow], dict[str, int]]:
    writer = rollout.Policy(bigram(chain), TOKENIZER, SAMPLE)
    scene = Scene(domain, writer, jax.random.key(3))
    rollouts = RolloutSpec(group, at_once, prompt_tokens=7, chat=False)
    return labelled_rows(path, split, problems, lambda: scene, rollouts, LabelSpec())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_has_a_line_for_each_row_and_one_for_each_chunk(tmp_path: Path):
    rows, counts = by_hand(tmp_path / "labels.jsonl")
    found = lines(tmp_path / "labels.jsonl")
    assert [(line.get("row"), line.get("chunk")) for line in found] == [
        (0, None),
        (1, None),
        (2, None),
        (3, None),
        (None, 0),
        (6, None),  # 4 and 5 would be those of the long prompt
        (7, None),
        (None, 1),
    ]
    steps = ["+134\n", "-268"]
    assert found[2] == {
        "split": "train",
        "row": 2,
        "id": "b",
        "prompt": "+1-2=",
        "steps": steps,
        "labels": [1.0, 0.0],
        "oracle": [True, False],
    }
    assert rows[2] == LabelledRow("+1-2=", steps, [1.0, 0.0], [True, False])
    # 10 tokens in each of six rows, end token included.
    assert counts == {
        "rows": 6,
        "prompt_too_long": 1,
        "unfinished": 0,
        "unjudged": 0,
        "rollout_tokens": 60,
        "label_tokens": 0,
        "prefixes": 0,
    }
    assert found[4] == {"split": "train", "chunk": 0, **counts} | {
        "rows": 4,
        "prompt_too_long": 0,
        "rollout_tokens": 40,
    }


def test_rows_without_an_end_and_rows_without_a_step_are_left_out(tmp_path: Path):
    rows, counts = by_hand(tmp_path / "endless.jsonl", chain="=++")
    assert rows == [] and (counts["rows"], counts["unfinished"]) == (0, 6)
    rows, counts = by_hand(tmp_path / "empty.jsonl", chain="=#")
    assert rows == [] and (counts["rows"], counts["unfinished"]) == (0, 0)


def test_a_last_chunk_that_is_not_full_has_no_rows_of_problems_that_are_not_there(tmp_path: Path):
    rows, counts = by_hand(tmp_path / "labels.jsonl", PROBLEMS[:2] + PROBLEMS[3:])
    assert len(rows) == 6 and counts["unfinished"] == 0 and counts["prompt_too_long"] == 0
    found = lines(tmp_path / "labels.jsonl")
    assert [line["row"] for line in found if "row" in line] == [0, 1, 2, 3, 4, 5]


def test_sets_in_one_file_are_told_apart(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    by_hand(path, PROBLEMS[:1])
    rows, counts = by_hand(path, PROBLEMS[1:2], split="held_out")
    assert [row.prompt for row in rows] == ["+1-2="] * 2 and counts["rows"] == 2
    whole = path.read_text()
    assert [row.prompt for row in by_hand(path, PROBLEMS[:1])[0]] == [PROBLEM.prompt] * 2
    assert path.read_text() == whole


class Unchecked(tasks.Arithmetic):
    """A domain that cannot check steps."""

    def check_steps(self, problem: Any, steps: Any, *, complete: bool = True) -> None:
        return None


def test_a_domain_without_a_step_check_has_no_oracle(tmp_path: Path):
    message = "labels.kind 'oracle': domain 'arithmetic' cannot check steps; use 'monte_carlo'"
    with pytest.raises(ValueError, match=re.escape(message)):
        by_hand(tmp_path / "labels.jsonl", domain=Unchecked(start="zero"))
    assert not (tmp_path / "labels.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "guess"}, "labels.kind = 'guess' is unknown; one of oracle, monte_carlo"),
        ({"estimate": "mean"}, "labels.estimate = 'mean' is unknown; one of hard, soft"),
        ({"continuations": 0}, "labels.continuations = 0 must be at least 1"),
    ],
)
def test_label_spec_refuses(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        LabelSpec(**settings)


def test_the_truth_is_the_check_where_there_is_one():
    assert LabelledRow("p", ["a", "b"], [0.25, 0.0], None).truth == [True, False]
    assert LabelledRow("p", ["a", "b"], [0.25, 0.0], [False, False]).truth == [False, False]


# ---- scores


def test_scores_of_rows_of_any_length_are_one_table(monkeypatch: pytest.MonkeyPatch):
    """Two rows at once: the second part is as wide as the first."""
    monkeypatch.setattr(labels, "ROWS_AT_ONCE", 2)
    rows = [
        LabelledRow(PROBLEM.prompt, steps, [], None)
        for steps in (["+777\n", "-984\n", "+195"], ["+777"], ["+444"])
    ]
    score, valid = labels.score_rows(fours_are_wrong(), rows)
    assert valid.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert (score > 0.5).tolist() == [[True, False, False], [True, False, False], [False] * 3]
    assert score[0, 0] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-4)
    assert (score[~valid] == 0).all()


def test_no_row_has_an_empty_table():
    score, valid = labels.score_rows(fours_are_wrong(), [])
    assert score.shape == valid.shape == (0, 0)
    assert (score.dtype, valid.dtype) == (np.float32, bool)
