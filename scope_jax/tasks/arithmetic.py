"""The embedded domain "signed terms": small enough for a CPU, with many valid paths and a program
for every role.

A problem is a start state and k distinct signed terms, and every character is one token:

    prompt      47:+7-3+9-1=        totals 4 modulo 10 and 7 modulo 9, then the terms
    completion  -314\\n +9 03\\n ...  (without the blanks) one line for each term, in any order

A line is the term's sign and digit and the new running totals modulo 10 and modulo 9; where the
task has marks, a ":" may stand between them and says nothing. The last line ends the solution and
has no newline. All k! orders are valid paths. The outcome verifier
reads the last line's two totals only, so a random well-formed guess passes once in 90. A term
takes one of 18 values (sign, digit 1-9), so there are 90 x C(18, k) problems (k = 4: 275,400; k =
6: 1.7 million), each with k! orders of its prompt; without a start state, 1/90 of that.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from scope_jax.tasks.domain import GeneratedDomain, Problem
from scope_jax.text.boundaries import split_steps

CHARACTERS = "0123456789+-:=\n"
MARK = ":"
TERMS = tuple(sign + digit for sign in "+-" for digit in "123456789")
STYLES = ("mixed", "prompt_order", "sorted", "additions_first", "same_term", "terse")
MISCONCEPTIONS = ("borrow", "carry", "wrap", "facts")
SPLITS = ("train", "validation", "test", "test_ood")

Totals = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Arithmetic(GeneratedDomain):
    """Signed terms with running totals modulo `moduli`; `start` is "random" (written in the
    prompt) or "zero".

    `misconception` is the probability that `demonstration` writes a line of the kind
    `misconception_kind` wrong, which is how a base policy gets a weakness that is structured and
    can be rescued. Teachers leave it at 0. With `misconception_lines` (a, b) it grows with the
    line: 0 up to line a (the first is 1), from there evenly up to the whole of it at line b. The
    kinds "borrow", "carry" and "wrap" are one error each; "facts" is many: sums of a total and a
    term are believed to be something else, each something of its own and each from a line of its
    own on, behind a and up to b. `misconception_share` is the share of the sums of the kind that it
    strikes at all, always the same ones.

    With `marks` a line may have a ":" between term and totals, which changes no verdict and no
    path: a notation of its own for a teacher. `marked` is the share of lines that `demonstration`
    and `next_step` write so.
    """

    moduli: tuple[int, int] = (10, 9)
    start: str = "random"
    misconception: float = 0.0
    misconception_kind: str = "borrow"
    misconception_lines: tuple[int, int] = (0, 1)
    misconception_share: float = 1.0
    marks: bool = False
    marked: float = 0.0

    name = "arithmetic"
    separator = "\n"
    characters = CHARACTERS
    styles = STYLES

    def __post_init__(self):
        if len(self.moduli) != 2 or not all(2 <= m <= 10 for m in self.moduli):
            raise ValueError(
                f"arithmetic: moduli {self.moduli}: expected two numbers from 2 to 10 (a total is"
                " one digit)"
            )
        if self.start not in ("random", "zero"):
            raise ValueError(f"arithmetic: start {self.start!r}: expected 'random' or 'zero'")
        if self.misconception_kind not in MISCONCEPTIONS:
            raise ValueError(
                f"arithmetic: misconception_kind {self.misconception_kind!r}: one of"
                f" {MISCONCEPTIONS}"
            )
        if not 0.0 <= self.misconception <= 1.0:
            raise ValueError(
                f"arithmetic: misconception {self.misconception}: expected a probability"
            )
        if self.misconception_lines[0] >= self.misconception_lines[1]:
            raise ValueError(
                f"arithmetic: misconception_lines {self.misconception_lines}: expected two lines,"
                " the first before the second"
            )
        if not 0.0 <= self.misconception_share <= 1.0:
            raise ValueError(
                f"arithmetic: misconception_share {self.misconception_share}: expected a share"
            )
        if not 0.0 <= self.marked <= 1.0:
            raise ValueError(f"arithmetic: marked {self.marked}: expected a probability")
        if self.marked and not self.marks:
            raise ValueError(
                f"arithmetic: marked {self.marked}, but no line may have a mark: set marks = True"
            )

    @property
    def how_to_read(self) -> str:
        """What the first line of a solution says, by an example."""
        first, second = self.add((0, 0), "+7")
        return (
            f"+7{first}{second} takes the term +7 of the problem and writes the running totals"
            f" after it, {first} modulo {self.moduli[0]} and {second} modulo {self.moduli[1]};"
            " terms may come in any order, and the last two totals are the answer"
            + (f"; +7{MARK}{first}{second} says the same" if self.marks else "")
        )

    # ---- problems

    def problem(self, seed: int, split: str, index: int, k: int | Sequence[int]) -> Problem:
        """Problem number `index` of a split: a pure function of the arguments, so fresh problems
        never run out.

        `k` is the number of terms, or several numbers, one of which is drawn. Validation, test and
        train are disjoint: a hash of the start state and the *set* of terms decides which of them
        a problem belongs to (5 %, 5 %, 90 %), and drawing is repeated until it fits. `test_ood`
        draws from the test share (it differs in k only).
        """
        if split not in SPLITS:
            raise ValueError(f"arithmetic: split {split!r}: expected one of {SPLITS}")
        lengths = (k,) if isinstance(k, int) else tuple(k)
        if not lengths or not all(1 <= length <= len(TERMS) for length in lengths):
            raise ValueError(f"arithmetic: k {k}: expected 1 to {len(TERMS)} terms")
        # Raw bits only: numpy guarantees their stream for ever, but not that of Generator's
        # methods.
        bits = np.random.Philox(
            np.random.SeedSequence([seed, SPLITS.index(split), index, *lengths])
        )
        share = "test" if split == "test_ood" else split
        for _ in range(20_000):
            raw = bits.random_raw(3 + len(TERMS))
            count = lengths[int(raw[0]) % len(lengths)]
            totals = (
                (int(raw[1]) % self.moduli[0], int(raw[2]) % self.moduli[1])
                if self.start == "random"
                else (0, 0)
            )
            terms = [TERMS[i] for i in np.argsort(raw[3:])[:count]]
            if split_of(totals, terms) == share:
                return self.make_problem(terms, totals, id=f"{split}-{seed}-{index}")
        raise ValueError(
            f"arithmetic: no problem with k={k} and start={self.start!r} belongs to {split!r}: use"
            " a larger k"
        )

    def make_problem(self, terms: Sequence[str], totals: Totals = (0, 0), id: str = "") -> Problem:
        """The problem with these terms (such as "+7") and this start state."""
        head = "" if self.start == "zero" else f"{totals[0]}{totals[1]}:"
        end = totals
        for term in terms:
            end = self.add(end, term)
        return Problem(id=id, prompt=head + "".join(terms) + "=", answer=f"{end[0]}{end[1]}")

    def prompt_length(self, k: int) -> int:
        """Characters (= tokens) of a prompt with k terms."""
        return 2 * k + 1 + (0 if self.start == "zero" else 3)

    def completion_length(self, k: int) -> int:
        """Tokens of a full solution with k lines, the end token included; with marks, of the
        longest."""
        return (6 if self.marks else 5) * k

    # ---- verdicts

    def equations(self, completion: str) -> list[str]:
        """The well-formed lines, without marks: a line says what a term made of the totals."""
        parsed = [self._parse(line) for line in completion.split("\n")]
        return [f"{line[0]}{line[1][0]}{line[1][1]}" for line in parsed if line]

    def verify(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[bool | None]:
        """True where the last line is well-formed and shows the true totals. Earlier lines are not
        looked at."""
        return [
            self.answer_of(text) == problem.answer
            for problem, text in zip(problems, completions, strict=True)
        ]

    def answer_of(self, completion: str) -> str | None:
        """The two digits of the last line, or None where it is not well-formed (a newline at the
        very end included)."""
        parsed = self._parse(completion.rsplit("\n", 1)[-1])
        return f"{parsed[1][0]}{parsed[1][1]}" if parsed else None

    def answer_marker(self, step: str) -> bool:
        """Only the final line has no newline."""
        return self._parse(step) is not None

    def check_steps(
        self, problem: Problem, steps: Sequence[str], *, complete: bool = True
    ) -> list[bool]:
        """One label per line: its term is unused, its totals follow from the totals *written*
        before, and it ends the solution exactly when no term is left; after the first error
        everything is False.

        Steps may come with or without their newline (all but the last must then be lines that had
        one). A last step that ends in a newline although no term is left is wrong; with `complete`
        a last step that leaves terms is too.
        """
        unused, totals = self._parse_prompt(problem)
        good, labels = True, []
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            line = step.removesuffix("\n")
            parsed = self._parse(line)
            good = (
                good
                and parsed is not None
                and parsed[0] in unused
                and parsed[1] == self.add(totals, parsed[0])
            )
            if good and parsed is not None:
                unused.remove(parsed[0])
                totals = parsed[1]
                good = not (last and complete) if unused else last and not step.endswith("\n")
            labels.append(good)
        return labels

    def solution_path(self, problem: Problem, completion: str) -> tuple[str, ...] | None:
        """The terms in the order used, if every line is right."""
        steps = split_steps(completion, "\n")
        if not steps or not all(self.check_steps(problem, steps)):
            return None
        return tuple(step[:2] for step in steps)

    # ---- programs that write solutions

    def demonstration(
        self, problem: Problem, rng: np.random.Generator, style: str = "mixed"
    ) -> str:
        """A whole solution. Styles: "mixed" random order; "prompt_order" (and "same_term");
        "sorted"; "additions_first" random order of the additions, then of the subtractions; "terse"
        prompt order with each line but the last left out with probability 1/2 (right at the end,
        not line by line)."""
        terms, totals = self._parse_prompt(problem)
        lines = []
        for number, term in enumerate(_order(terms, style, rng), start=1):
            totals = self._write(totals, term, number, rng)
            lines.append(self._line(term, totals, rng))
        if style == "terse":
            lines = [line for line in lines[:-1] if rng.random() < 0.5] + lines[-1:]
        return "\n".join(lines)

    def next_step(
        self,
        problem: Problem,
        steps: Sequence[str],
        rng: np.random.Generator,
        style: str = "prompt_order",
        wrong_step: str | None = None,
    ) -> str | None:
        """The line after `steps`, going on from the totals written last. None where they use a
        term that is not there, are not well-formed, or leave nothing to do.

        "same_term" keeps the term of `wrong_step` where it is free (the smallest change), else
        takes the first left; "terse" takes two terms at once, writing the second only, with
        probability 1/2.
        """
        unused, totals = self._parse_prompt(problem)
        for step in steps:
            parsed = self._parse(step.removesuffix("\n"))
            if parsed is None or parsed[0] not in unused:
                return None
            unused.remove(parsed[0])
            totals = parsed[1]
        if not unused:
            return None
        order, number = _order(unused, style, rng), len(steps) + 1
        if style == "same_term" and wrong_step is not None and wrong_step[:2] in order:
            order = [wrong_step[:2]]
        if style == "terse" and len(order) > 1 and rng.random() < 0.5:
            totals = self._write(totals, order[0], number, rng)
            unused.remove(order[0])
            order, number = order[1:], number + 1
        totals = self._write(totals, order[0], number, rng)
        return self._line(order[0], totals, rng) + ("\n" if len(unused) > 1 else "")

    # ---- arithmetic

    def add(self, totals: Totals, term: str) -> Totals:
        """The totals after one term."""
        value = int(term)
        return (totals[0] + value) % self.moduli[0], (totals[1] + value) % self.moduli[1]

    def slip_rate(self, number: int) -> float:
        """The probability that the misconception strikes in line `number` (from 1), if the line is
        of its kind."""
        first, last = self.misconception_lines
        return self.misconception * min(max((number - first) / (last - first), 0.0), 1.0)

    def _write(self, totals: Totals, term: str, number: int, rng: np.random.Generator) -> Totals:
        """The totals as they get written in line `number`: too high in the first track where the
        misconception strikes."""
        first, second = self.add(totals, term)
        if self.misconception:
            excess, rate = self.believed(totals[0], term, number)
            if excess:
                first = (first + excess * int(rng.random() < rate)) % self.moduli[0]
        return first, second

    def believed(self, total: int, term: str, number: int) -> tuple[int, float]:
        """(excess, rate): by how much the misconception takes the first track too high, modulo its
        modulus, when `term` is added to `total` in line `number` (from 1), and how often; an excess
        of 0 where it does not apply."""
        modulus = self.moduli[0]
        digest = hashlib.blake2b(f"{total}{term}".encode(), digest_size=8).digest()
        if int.from_bytes(digest[:4], "little") / 2**32 >= self.misconception_share:
            return 0, 0.0
        if self.misconception_kind != "facts":
            excess = int(applies(self.misconception_kind, total, term, modulus))
            return excess, self.slip_rate(number)
        first, last = self.misconception_lines
        onset = first + 1 + digest[5] % (last - first)
        if number < onset:
            return 0, 0.0
        return 1 + digest[4] % (modulus - 1), self.misconception

    def _line(self, term: str, totals: Totals, rng: np.random.Generator) -> str:
        """A line as it is written, without newline."""
        mark = MARK if self.marked and rng.random() < self.marked else ""
        return f"{term}{mark}{totals[0]}{totals[1]}"

    def _parse(self, line: str) -> tuple[str, Totals] | None:
        """(term, totals) of a line without newline; None where it is not well-formed."""
        if self.marks and line[2:3] == MARK:
            line = line[:2] + line[3:]
        if (
            len(line) != 4
            or line[:2] not in TERMS
            or line[2] not in "0123456789"
            or line[3] not in "0123456789"
        ):
            return None
        totals = int(line[2]), int(line[3])
        return (
            (line[:2], totals)
            if totals[0] < self.moduli[0] and totals[1] < self.moduli[1]
            else None
        )

    def _parse_prompt(self, problem: Problem) -> tuple[list[str], Totals]:
        head, colon, body = problem.prompt.rpartition(":")
        terms = [body[i : i + 2] for i in range(0, len(body) - 1, 2)]
        written = len(head) == 2 and head.isdecimal() and head.isascii()
        if (
            bool(colon) != written
            or not body.endswith("=")
            or not set(terms) <= set(TERMS)
            or not terms
        ):
            raise ValueError(
                f"arithmetic: problem {problem.id!r}: prompt {problem.prompt!r}: expected like"
                " '47:+7-3='"
            )
        return terms, (int(head[0]), int(head[1])) if written else (0, 0)


def applies(kind: str, total: int, term: str, modulus: int) -> bool:
    """Whether a misconception of one error can strike when `term` is added to `total` (both before
    the modulus).

    "borrow": a subtraction goes below zero; "carry": an addition reaches the modulus; "wrap":
    either.
    """
    value = total + int(term)
    return (kind != "carry" and value < 0) or (kind != "borrow" and value >= modulus)


def split_of(totals: Totals, terms: Sequence[str]) -> str:
    """The split that a start state and a set of terms belong to, whatever the seed and the order
    of the terms."""
    canonical = f"{totals[0]}{totals[1]}:{''.join(sorted(terms))}"
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest, "little") % 20, "train")


def _order(terms: Sequence[str], style: str, rng: np.random.Generator) -> list[str]:
    if style not in STYLES:
        raise ValueError(f"arithmetic: style {style!r}: expected one of {STYLES}")
    if style == "additions_first":
        shuffled = [terms[i] for i in rng.permutation(len(terms))]
        return sorted(shuffled, key=lambda term: term[0] == "-")
    if style == "mixed":
        return [terms[i] for i in rng.permutation(len(terms))]
    return sorted(terms, key=int) if style == "sorted" else list(terms)
