"""reasoning-gym's generators as a domain: problems made by a program, scored by the generator's
own scorer.

A problem is its generator, a seed and an index, which stand in its id; the entry that the scorer
needs is made again from them where an answer is scored. Nothing of reasoning-gym is imported here:
it works in processes of its own (`gym_pool`).
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from scope_jax.tasks.answer_formats import FORMATS
from scope_jax.tasks.domain import Domain, Problem, Verdict
from scope_jax.tasks.gym_pool import Entry, Generator, shared_pool
from scope_jax.types import check_choices

# No scorer is shown more than this many characters: a longer answer is wrong.
LONGEST_ANSWER = 20_000
# Votes and entropy of answers.
_LONGEST_VOTE = 1000
_HASHES = re.compile(r"^####.*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class ReasoningGym(Domain):
    """Problems of reasoning-gym; `generators` are those whose problems may be asked about, and all
    other fields are `task.options`."""

    format: Literal["answer_tag", "boxed", "answer_is", "last_line", "whole"] = "answer_tag"
    """How a completion says its answer (`answer_formats`)."""
    after: str = ""
    """Only what follows the last of this text is read for an answer, such as `</think>`; without
    it there is none. "": everything."""
    reward: Literal["score", "right"] = "score"
    """score: the scorer's number; right: 1 or 0."""
    right_from: float = 1.0
    """The score from which an answer is right; it then counts as 1."""
    system: str | None = None
    """System turn of the chat template (`rollout.chat`); None: the format's own, "": none."""
    template: str = "{problem}"
    """What the policy is shown; `{problem}` stands for the question."""
    seconds: float = 5.0
    """Time limit of one score."""
    problem_seconds: float = 60.0
    """Time limit of one problem's making; longer is an error."""
    separator: str = "\n\n"
    """Closes a step; a single newline makes lines steps."""
    boundary: str = ""
    """A pattern of `re` that divides solutions into steps in place of `separator`; "" is none."""
    generators: tuple[Generator, ...] = ()

    name = "reasoning_gym"

    def __post_init__(self):
        check_choices(self, "config.task.options")
        if self.system is None:
            object.__setattr__(self, "system", FORMATS[self.format].instruction)
        for name in ("seconds", "problem_seconds"):
            if not getattr(self, name) > 0:
                raise _bad(name, getattr(self, name), "a positive number")
        if not 0 < self.right_from <= 1:
            raise _bad("right_from", self.right_from, "a score above 0, at most 1")
        if "{problem}" not in self.template:
            raise _bad("template", self.template, "a text that holds {problem}")
        if not self.separator or "\0" in self.separator:
            raise _bad("separator", self.separator, "a non-empty text without NUL")
        try:
            pattern = re.compile(self.boundary)
        except re.error as error:
            raise _bad("boundary", self.boundary, f"a pattern of re ({error})") from None
        if self.boundary and pattern.fullmatch(""):
            raise _bad("boundary", self.boundary, "a pattern that stands between steps")

    # ---- problems

    def problems(self, entries: Sequence[Entry]) -> list[tuple[Problem | None, str]]:
        """For each entry (its problem, "") or (None, what the generator raised). Raises ValueError
        where one takes longer than `problem_seconds`."""
        made = shared_pool().problems(entries, self.problem_seconds)
        return [
            (None, reason)
            if found is None
            else (
                Problem(
                    id=f"{entry.generator.key}-{entry.seed}-{entry.index}",
                    prompt=found["question"],
                    answer=found["answer"] or "",
                    solution=found["solution"],
                ),
                "",
            )
            for entry, (found, reason) in zip(entries, made)
        ]

    def entry_of(self, problem: Problem) -> Entry:
        """The entry that a problem's id names. Raises ValueError for one of another task."""
        key, seed, index = (problem.id.rpartition("/")[2].rsplit("-", 2) + ["", ""])[:3]
        for generator in self.generators:
            if generator.key == key and seed.isdecimal() and index.isdecimal():
                return Entry(generator, int(seed), int(index))
        known = ", ".join(generator.key for generator in self.generators)
        raise ValueError(
            f"reasoning_gym: problem {problem.id!r}: expected an id as in name-seed-index, of"
            f" {known or 'no generator'}"
        )

    def policy_prompt(self, problem: Problem) -> str:
        """The template around the question."""
        return self.template.replace("{problem}", problem.prompt)

    # ---- verdicts

    def scores(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[float | None]:
        """The scorer's number in [0, 1] for each completion: 0 where there is no answer in it or
        the scorer raises, None where it takes too much time or memory."""
        asked: dict[tuple[Entry, str], float | None] = {}
        rows: list[tuple[Entry, str] | None] = []
        for problem, text in zip(problems, completions, strict=True):
            answer = self.read(text)
            readable = answer is not None and len(answer) <= LONGEST_ANSWER
            rows.append((self.entry_of(problem), answer or "") if readable else None)
            if (row := rows[-1]) is not None:
                asked[row] = None  # the same answer of a group is scored once
        if asked:
            entries, answers = zip(*asked)
            found = shared_pool().scores(entries, answers, self.seconds, self.problem_seconds)
            asked = dict(zip(asked, found, strict=True))
        return [0.0 if row is None else asked[row] for row in rows]

    def verify(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """True from the score `right_from` on; below it the score itself, or False where it is 0
        or only right answers are rewarded; None: not judged."""

        def verdict(score: float | None) -> Verdict:
            if score is None or score >= self.right_from:
                return None if score is None else True
            return score if score > 0 and self.reward == "score" else False

        return [verdict(score) for score in self.scores(problems, completions)]

    def read(self, completion: str) -> str | None:
        """The answer of a completion as it stands there; None where there is none."""
        if self.after:
            _, found, completion = completion.rpartition(self.after)
            if not found:
                return None
        return FORMATS[self.format].find(completion)

    def answer_of(self, completion: str) -> str | None:
        """The answer with single blanks for white space, by which votes are counted."""
        answer = " ".join((self.read(completion) or "").split())
        return answer if 0 < len(answer) <= _LONGEST_VOTE else None

    def answer_marker(self, step: str) -> bool:
        """Whether a step has the mark of the format's answer (the formats `last_line` and `whole`
        have none)."""
        return FORMATS[self.format].marks(step)

    # ---- solutions

    def reference_solution(self, problem: Problem) -> str | None:
        """The generator's own solution (gsm_symbolic has one) and the answer in the format; None
        where there is none."""
        if problem.solution is None:
            return None
        body = _HASHES.sub("", problem.solution).rstrip()
        answer = FORMATS[self.format].write(problem.answer)
        if self.format == "whole" and not self.after:
            return answer
        end = self.separator if "\n" in self.separator else "\n"
        return f"{body}{self.after}{end}{answer}"

    def demonstration(
        self, problem: Problem, rng: np.random.Generator, style: str = ""
    ) -> str | None:
        """The reference solution. `rng`, `style`: not used."""
        return self.reference_solution(problem)


def _bad(name: str, value: object, expected: str) -> ValueError:
    return ValueError(f"config.task.options.{name} = {value!r}: expected {expected}")
