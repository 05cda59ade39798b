r"""Word problems in English with steps that can be checked: what a small language model can learn
in minutes, and get wrong late.

    problem     Maria has 120 dollars. She buys 4 notebooks for 7 dollars each. She gets 15 dollars
                from Omar. How many dollars does Maria have in the end?
    solution    4 notebooks cost 4 * 7 = 28 dollars.\n
                That makes 120 + 15 = 135 dollars.\n
                That leaves 135 - 28 = 107 dollars.\n
                The answer is 107.

A story starts with an amount; each of its k events adds an amount or takes one away, written as one
number or as two to be multiplied. A step is one line with one equation. Lines may come in any order
in which their numbers are there: products may be worked out first or when they are needed, amounts
taken away may be summed up before they are taken away, and so on. So a story has many right
solutions, and each line of any of them is checked exactly, by its numbers; its words are free.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from scope_jax.tasks.domain import GeneratedDomain, Problem
from scope_jax.tasks.word_problem_lines import (
    EQUATION,
    Amount,
    any_line,
    equation_of,
    line_in_order,
    state_of,
    states_after,
)
from scope_jax.text.boundaries import split_steps

STYLES = ("varied", "in_order", "products_first", "mixed")
SPLITS = ("train", "validation", "test", "test_ood")
NAMES = {
    "She": ("Anna", "Maria", "Lily", "Emma", "Sara", "Nina", "Julia", "Grace"),
    "He": ("Tom", "Ben", "Omar", "Jack", "Leo", "Paul", "Adam", "Noah"),
}
EVERYONE = tuple(name for names in NAMES.values() for name in names)


@dataclasses.dataclass(frozen=True)
class Form:
    """A kind of event. `sentence` is what the problem says of it, `line` how a solution begins the
    product of its two numbers ("" where it has one number)."""

    sign: int  # 1: adds, -1: takes away
    sentence: str  # with {who}, {n}, and with {m}, {thing}, {unit}, {other} where it has them
    line: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stories of one kind are about."""

    units: tuple[str, ...]
    things: tuple[str, ...]
    forms: tuple[Form, ...]


SETTINGS = (
    Setting(
        ("dollars",),
        ("notebooks", "pens", "books", "caps", "tickets", "toys", "plants", "cups"),
        (
            Form(-1, "{who} buys {n} {thing} for {m} {unit} each.", "{n} {thing} cost"),
            Form(-1, "{who} pays {n} {unit} for a ride.", ""),
            Form(-1, "{who} lends {n} {unit} to {other}.", ""),
            Form(1, "{who} sells {n} old {thing} for {m} {unit} each.", "{n} {thing} bring"),
            Form(1, "{who} works {n} hours for {m} {unit} an hour.", "{n} hours of work bring"),
            Form(1, "{who} gets {n} {unit} from {other}.", ""),
        ),
    ),
    Setting(
        ("marbles", "stickers", "shells", "stamps", "coins", "cards", "beads", "stones"),
        ("bags", "boxes", "packs", "jars"),
        (
            Form(1, "{who} buys {n} {thing} with {m} {unit} in each.", "{n} {thing} hold"),
            Form(1, "{who} finds {n} {unit}.", ""),
            Form(1, "{who} gets {n} {unit} from {other}.", ""),
            Form(-1, "{who} gives {m} {unit} to each of {n} friends.", "{n} friends get"),
            Form(-1, "{who} loses {n} {unit}.", ""),
            Form(-1, "{who} gives {n} {unit} to {other}.", ""),
        ),
    ),
    Setting(
        ("muffins", "rolls", "cookies", "pies", "buns", "tarts"),
        ("boxes", "bags", "trays"),
        (
            Form(1, "{who} bakes {n} {thing} of {m} {unit}.", "{n} {thing} hold"),
            Form(1, "{who} bakes {n} more {unit}.", ""),
            Form(-1, "{who} sells {n} {thing} of {m} {unit}.", "{n} {thing} hold"),
            Form(-1, "{who} sells {n} {unit} to {other}.", ""),
            Form(-1, "{who} and {other} eat {n} {unit}.", ""),
        ),
    ),
)
_START = "{who} has {n} {unit}."
_QUESTION = "How many {unit} does {who} have in the end?"
_ANSWER = re.compile(r"The answer is ([0-9]{1,9})\.?")
_FIELDS = {
    "who": r"(?P<who>[A-Z][a-z]+)",
    "other": r"(?P<other>[A-Z][a-z]+)",
    "n": r"(?P<n>\d+)",
    "m": r"(?P<m>\d+)",
    "thing": r"(?P<thing>[a-z]+)",
    "unit": r"(?P<unit>[a-z]+)",
}


@dataclasses.dataclass(frozen=True)
class WordProblems(GeneratedDomain):
    """Stories of `k` events. Numbers that are multiplied are 2 to `largest_count` and 2 to
    `largest_each`, single amounts 2 to `largest_amount`, and no amount at hand ever exceeds
    `largest_total` or falls below 0 in the order of the story."""

    largest_count: int = 6
    largest_each: int = 9
    largest_amount: int = 20
    largest_total: int = 99

    name = "word_problems"
    separator = "\n"
    system = "Solve the problem step by step."
    characters = (
        "".join(map(chr, range(ord("a"), ord("z") + 1)))
        + "".join(map(chr, range(ord("A"), ord("Z") + 1)))
        + "0123456789 .?+-*=\n"
    )
    styles = STYLES

    def __post_init__(self):
        limits = {
            "largest_count": (2, 99),
            "largest_each": (2, 99),
            "largest_amount": (2, self.largest_total),
            "largest_total": (40, 9999),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"word_problems: {name} {getattr(self, name)}: expected {low} to {high}"
                )

    # ---- problems

    def problem(self, seed: int, split: str, index: int, k: int | Sequence[int]) -> Problem:
        """Problem number `index` of a split, with `k` events or one of several numbers of them: a
        pure function of the arguments. A hash of the text decides whether it belongs to
        validation, test (5 % each) or train; `test_ood` draws from the test share."""
        if split not in SPLITS:
            raise ValueError(f"word_problems: split {split!r}: expected one of {SPLITS}")
        lengths = (k,) if isinstance(k, int) else tuple(k)
        if not lengths or not all(1 <= length <= 8 for length in lengths):
            raise ValueError(f"word_problems: k {k}: expected 1 to 8 events")
        # Raw bits only: numpy guarantees their stream for ever, but not that of Generator's
        # methods.
        bits = np.random.Philox(
            np.random.SeedSequence([seed, SPLITS.index(split), index, *lengths])
        )
        share = "test" if split == "test_ood" else split
        for _ in range(20_000):
            draw = _Draw(bits)
            prompt, answer = self._story(draw, draw.one_of(lengths))
            if split_of(prompt) == share:
                return Problem(f"{split}-{seed}-{index}", prompt, str(answer))
        raise ValueError(f"word_problems: no problem with k={k} belongs to {split!r}")

    def _story(self, draw: "_Draw", k: int) -> tuple[str, int]:
        """(text, answer)."""
        setting = draw.one_of(SETTINGS)
        pronoun = draw.one_of(tuple(NAMES))
        who = draw.one_of(NAMES[pronoun])
        unit = draw.one_of(setting.units)
        total = draw.between(20, self.largest_total // 2)
        sentences = [_START.format(who=who, n=total, unit=unit)]
        for number in range(k):
            while True:
                form = draw.one_of(setting.forms)
                # Products are drawn twice as often: they are what makes a solution long.
                if not form.line and draw.between(0, 1):
                    continue
                n = draw.between(2, self.largest_count if form.line else self.largest_amount)
                m = draw.between(2, self.largest_each) if form.line else 1
                after = total + form.sign * n * m
                if 0 <= after <= self.largest_total:
                    break
            total = after
            subject = who if number == k - 1 and k > 2 else pronoun
            sentences.append(
                form.sentence.format(
                    who=subject,
                    n=n,
                    m=m,
                    unit=unit,
                    thing=draw.one_of(setting.things),
                    other=draw.one_of(tuple(name for name in EVERYONE if name != who)),
                )
            )
        return " ".join([*sentences, _QUESTION.format(who=who, unit=unit)]), total

    def prompt_length(self, k: int) -> int:
        """Characters of a prompt with k events, at most; as many tokens where each character is
        one."""
        return 84 + 62 * k

    def completion_length(self, k: int) -> int:
        """Characters of a solution of a story with k events, at most, and an end token."""
        return 96 * k + 24

    # ---- verdicts

    def verify(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[bool | None]:
        """True where the last line gives the answer. Earlier lines are not looked at."""
        return [
            self.answer_of(text) == problem.answer
            for problem, text in zip(problems, completions, strict=True)
        ]

    def answer_of(self, completion: str) -> str | None:
        """The number of the last line, "The answer is 107."; None where it says something else."""
        found = _ANSWER.fullmatch(completion.rstrip().rsplit("\n", 1)[-1].strip())
        return found[1].lstrip("0") or "0" if found else None

    def answer_marker(self, step: str) -> bool:
        """Only the last line speaks of the answer."""
        return "answer" in step.lower()

    def check_steps(
        self, problem: Problem, steps: Sequence[str], *, complete: bool = True
    ) -> list[bool]:
        """One label per line: it has one equation (whole numbers, + - * with blanks around them),
        which is true and whose numbers are there to be reckoned with (each once,
        added and taken away as the story says), or it gives the one
        amount that is left as the answer and is the last one. After the first error everything is
        False. With `complete` a last line that does not give the answer is wrong."""
        states = {state_of(self._parse_prompt(problem)[1])}
        good, labels = True, []
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            answer = _ANSWER.fullmatch(step.strip())
            if answer:
                states = {s for s in states if s == ((1, (int(answer[1]),)),)}
                good = good and bool(states) and last
            else:
                states = states_after(states, step)
                good = good and bool(states) and not (last and complete)
            labels.append(good)
        return labels

    def solution_path(self, problem: Problem, completion: str) -> tuple[str, ...] | None:
        """The equations of a wholly right solution, in a fixed order, with the operands of sums
        and products in a fixed order too: what differs by neither counts once."""
        steps = split_steps(completion, "\n")
        if not steps or not all(self.check_steps(problem, steps)):
            return None
        found = (equation_of(step) for step in steps)
        return tuple(sorted(repr(sorted(e[0])) for e in found if e is not None))

    def equations(self, completion: str) -> list[str]:
        """The equation of each line that has one."""
        found = (EQUATION.search(line) for line in completion.split("\n"))
        return [match[0] for match in found if match]

    # ---- programs that write solutions

    def demonstration(
        self, problem: Problem, rng: np.random.Generator, style: str = "varied"
    ) -> str:
        """A whole right solution. Styles: "in_order": the story's order, each product when it is
        needed; "products_first": all products, then the story's order; "mixed": at each line any
        way to go on; "varied": for each solution one of these, the first half of the time."""
        if style == "varied":
            style = ("in_order", "in_order", "products_first", "mixed")[int(rng.integers(4))]
        steps: list[str] = []
        while (step := self.next_step(problem, steps, rng, style)) is not None:
            steps.append(step)
        return "".join(steps)

    def next_step(
        self,
        problem: Problem,
        steps: Sequence[str],
        rng: np.random.Generator,
        style: str = "varied",
        wrong_step: str | None = None,
    ) -> str | None:
        """A right line after `steps`. None where one of these is wrong, or the answer is given.
        `wrong_step` is not looked at. "varied": a style for each line."""
        if style not in STYLES:
            raise ValueError(f"word_problems: style {style!r}: expected one of {STYLES}")
        unit, amounts = self._parse_prompt(problem)
        labels = {(a.sign, a.numbers): a.label for a in amounts}
        states = {state_of(amounts)}
        for step in steps:
            states = states_after(states, step)
        if not states:
            return None
        # Of several readings of the lines so far any one will do, but always the same.
        state = min(states)
        if len(state) == 1 and len(state[0][1]) == 1:
            return f"The answer is {state[0][1][0]}."
        if style == "varied":
            style = STYLES[int(rng.integers(1, len(STYLES)))]
        if style == "mixed":
            return any_line(state, labels, unit, rng)
        return line_in_order(amounts, state, labels, unit, style)

    def _parse_prompt(self, problem: Problem) -> tuple[str, list[Amount]]:
        """(unit, the story's amounts, the first one at hand)."""
        sentences = re.findall(r"[^.?]+[.?]", problem.prompt)
        start = _pattern(_START).fullmatch(sentences[0]) if len(sentences) > 2 else None
        amounts = [Amount(1, (int(start["n"]),))] if start else []
        for sentence in sentences[1:-1]:
            for form in FORMS:
                if (match := _PATTERNS[form].fullmatch(sentence.strip())) is not None:
                    numbers = [int(match["n"])] + ([int(match["m"])] if form.line else [])
                    label = form.line.format(**match.groupdict()) if form.line else ""
                    amounts.append(Amount(form.sign, tuple(numbers), label))
                    break
        if start is None or len(amounts) != len(sentences) - 1:
            raise ValueError(
                f"word_problems: problem {problem.id!r}: prompt {problem.prompt!r:.80}: expected a"
                " story made by this domain"
            )
        return start["unit"], amounts


class _Draw:
    """Numbers out of raw bits."""

    def __init__(self, bits: np.random.Philox):
        self._bits = bits

    def between(self, low: int, high: int) -> int:
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.between(0, len(values) - 1)]


def split_of(prompt: str) -> str:
    """The split that a story belongs to, whatever the seed."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest, "little") % 20, "train")


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile(
        "".join(_FIELDS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )


FORMS = tuple(form for setting in SETTINGS for form in setting.forms)
_PATTERNS = {form: _pattern(form.sentence) for form in FORMS}
