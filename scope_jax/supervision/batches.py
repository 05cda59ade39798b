"""The batches of supervised training: demonstrations for a policy, labelled rollouts for a process
reward model; and what their tokenizers lack.

Both are iterators without end whose place can be written down and taken up again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scope_jax import tasks
from scope_jax.data import Problems
from scope_jax.devices.shapes import coarse_width, round_up
from scope_jax.prm import ProcessRewardModel
from scope_jax.streams import Host, host_rng
from scope_jax.supervision.labels import LabelledRow
from scope_jax.teachers.replies import encode_step, reference_steps, special_texts
from scope_jax.text import encode_prompts, end_ids, split_steps
from scope_jax.text.chat import chat_text
from scope_jax.text.tokenizers import STEP_MARK

Batch = dict[str, np.ndarray]
# Of a trunk without a chat template, to be used in the format of Qwen2.5-Math-PRM.
CONTENTS_ONLY = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """What the rows of a supervised batch are made of."""

    style: str  # of a domain's program
    # The first lines (none to all but one) are in random order and not trained on.
    foreign_prefix: bool
    # A reference solution is divided into the domain's steps (`teachers.replies.reference_steps`).
    in_steps: bool
    chat: bool  # the prompt goes into the chat template
    max_tokens: int  # the longest row
    end_id: int  # the token behind a solution
    sizes: tuple[int, ...] = ()  # of fresh problems
    problem_seed: int = 0  # of fresh problems


class DemonstrationBatches:
    """Batches {tokens int32[B, T], weight float32[B, T]}: weight is 1 over the number of tokens to
    learn, on those.

    problems: problems in an epoch order that is a pure function of seed and epoch; None: fresh
    ones of the domain's program, of `spec.sizes`. Rows that are too long, have no solution or
    cannot be spelled by the tokenizer are left out and counted in `dropped`. Raises ValueError
    where a whole epoch has no row left. width: T; None: the batch's longest row, rounded up.
    """

    def __init__(
        self,
        domain: tasks.Domain,
        problems: Problems | None,
        tokenizer: Any,
        spec: BatchSpec,
        *,
        batch: int,
        seed: int,
        width: int | None = None,
    ):
        self.domain, self.problems, self.tokenizer, self.spec = domain, problems, tokenizer, spec
        self.batch, self.seed, self.width = batch, seed, width
        self.position, self.dropped = 0, {"too_long": 0, "no_solution": 0, "untokenisable": 0}
        self._rng = host_rng(seed, Host.DEMONSTRATION_BATCHES)

    def __iter__(self) -> "DemonstrationBatches":
        return self

    def __next__(self) -> Batch:
        rows: list[tuple[list[int], list[int]]] = []
        in_vain = 0
        while len(rows) < self.batch:
            row = self._row(self._next_problem())
            in_vain = in_vain + 1 if isinstance(row, str) else 0
            if isinstance(row, str):
                self.dropped[row] += 1
                if in_vain > (len(self.problems) if self.problems is not None else 1000):
                    raise ValueError(
                        f"no demonstration can be used: {self.dropped}; longest row:"
                        f" {self.spec.max_tokens} tokens"
                    )
            else:
                rows.append(row)
        width = self.width or coarse_width(
            max(len(given) + len(learned) for given, learned in rows)
        )
        tokens, weight = (
            np.zeros((self.batch, width), np.int32),
            np.zeros((self.batch, width), np.float32),
        )
        for number, (given, learned) in enumerate(rows):
            end = len(given) + len(learned)
            tokens[number, :end] = [*given, *learned]
            weight[number, len(given) : end] = 1
        return {"tokens": tokens, "weight": weight / weight.sum()}

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        return {
            "position": self.position,
            "dropped": dict(self.dropped),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self.position, self.dropped = state["position"], dict(state["dropped"])
        self._rng.bit_generator.state = state["rng"]

    def _next_problem(self) -> tasks.Problem:
        self.position += 1
        if self.problems is not None:
            return self.problems.draw(self.seed, self.position - 1, 1)[0]
        assert isinstance(self.domain, tasks.GeneratedDomain)
        k = int(self._rng.choice(self.spec.sizes))
        return self.domain.problem(self.spec.problem_seed, "train", self.position - 1, k)

    def _row(self, problem: tasks.Problem) -> tuple[list[int], list[int]] | str:
        """(ids that are given, ids to learn), or why there are none."""
        given, text = self._texts(problem)
        if not text:
            return "no_solution"
        shown = [self.domain.policy_prompt(problem)]
        encoded, _ = encode_prompts(
            self.tokenizer,
            shown,
            max_length=self.spec.max_tokens,
            chat=self.spec.chat,
            system=self.domain.system,
        )
        if not encoded:
            return "too_long"
        parts = [
            encode_step(part, self.tokenizer, self.domain.separator) if part else []
            for part in (given, text)
        ]
        if any(part is None for part in parts) or any(
            special in text for special in special_texts(self.tokenizer)
        ):
            return "untokenisable"
        before, learned = encoded[0] + (parts[0] or []), [*(parts[1] or []), self.spec.end_id]
        return (
            (before, learned) if len(before) + len(learned) <= self.spec.max_tokens else "too_long"
        )

    def _texts(self, problem: tasks.Problem) -> tuple[str, str]:
        """(lines that are given, lines to learn)."""
        domain, spec, rng = self.domain, self.spec, self._rng
        if not spec.foreign_prefix:
            text = domain.demonstration(problem, rng, spec.style) or problem.solution or ""
            if text and spec.in_steps:
                text = "".join(reference_steps(text, domain.separator, domain.divider))
            return "", text
        steps = split_steps(domain.demonstration(problem, rng, "mixed") or "", domain.divider)
        if not steps:
            return "", ""
        given = steps[: int(rng.integers(len(steps)))]
        learned: list[str] = []
        while (step := domain.next_step(problem, given + learned, rng, spec.style)) is not None:
            learned.append(step)
        return "".join(given), "".join(learned)


class LabelledSteps:
    """Batches {tokens int32[B, T], label [B, T], weight float32[B, T]} for the two-class
    cross-entropy at step marks; labels are whole numbers, or shares (float32) where `soft`.

    Rows are drawn at random. What follows the first wrong step is wrong by definition: only what
    decides the first error is learned. Rows that the model cannot be given (`prm.encode`) are left
    out and counted in `unscorable`; raises ValueError where none is left.
    """

    def __init__(
        self,
        prm: ProcessRewardModel,
        rows: Sequence[LabelledRow],
        *,
        batch: int,
        seed: int,
        soft: bool = False,
    ):
        encoded = prm.encode_rows([row.prompt for row in rows], [row.steps for row in rows])
        self.rows = [
            (ids, marks, row.labels)
            for (ids, marks), row in zip(encoded, rows, strict=True)
            if 0 < len(ids) <= prm.config.max_positions and len(marks) == len(row.steps)
        ]
        self.unscorable = len(rows) - len(self.rows)
        if not self.rows:
            raise ValueError(
                f"no labelled rollout to train on: {len(rows)} rows, {self.unscorable} of them"
                " cannot be scored"
            )
        self.batch, self.soft = batch, soft
        self.width = round_up(max(len(ids) for ids, _, _ in self.rows))
        self._rng = host_rng(seed, Host.LABELLED_BATCHES)

    def __iter__(self) -> "LabelledSteps":
        return self

    def __next__(self) -> Batch:
        tokens = np.zeros((self.batch, self.width), np.int32)
        label = np.zeros((self.batch, self.width), np.float32 if self.soft else np.int32)
        weight = np.zeros((self.batch, self.width), np.float32)
        for row, chosen in enumerate(self._rng.integers(len(self.rows), size=self.batch)):
            ids, marks, labels = self.rows[chosen]
            known = labels.index(0) + 1 if 0 in labels else len(labels)
            tokens[row, : len(ids)] = ids
            label[row, marks] = labels
            weight[row, marks[:known]] = 1
        return {"tokens": tokens, "label": label, "weight": weight / weight.sum()}

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        return {"rng": self._rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self._rng.bit_generator.state = state["rng"]


# ---- tokenizers


def end_token(tokenizer: Any, chat: bool) -> int:
    """The token that ends a solution: in a chat what the template writes after the assistant's
    turn, else the tokenizer's own."""
    if chat:
        mark = "solution"
        turns = [{"role": "user", "content": "problem"}, {"role": "assistant", "content": mark}]
        after = chat_text(tokenizer, turns).rpartition(mark)[2]
        known = end_ids(tokenizer)
        for token in tokenizer.encode(after, add_special_tokens=False):
            if token in known:
                return int(token)
    return int(tokenizer.eos_token_id)


def with_step_mark(tokenizer: Any, name: str = "") -> tuple[Any, int]:
    """(the tokenizer, able to write the format of Qwen2.5-Math-PRM: with its step mark, added where
    it had none, and a chat template; the mark's id). The embedding needs a row of that id. Raises
    ValueError where the new token does not come after all others."""
    mark = tokenizer.convert_tokens_to_ids(STEP_MARK)
    if mark is None or mark == tokenizer.unk_token_id:
        from transformers import AddedToken

        highest = max(tokenizer.get_vocab().values())
        tokenizer.add_tokens(
            [AddedToken(STEP_MARK, special=True, normalized=False)], special_tokens=True
        )
        mark = tokenizer.convert_tokens_to_ids(STEP_MARK)
        if mark <= highest:
            raise ValueError(
                f"{name}: its tokenizer puts the new token {STEP_MARK!r} at id {mark}, not behind"
                f" its last one, {highest}; add the token to its files, at a free id"
            )
    if not tokenizer.chat_template:
        tokenizer.chat_template = CONTENTS_ONLY
    return tokenizer, int(mark)
