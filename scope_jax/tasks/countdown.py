"""The embedded domain "Countdown": reach a target from a few numbers, where a line can be true and
yet lose the game.

    prompt      8 5 3 2>4:    the numbers from the largest down, and the target
    completion  5-3=2 8 2\\n   one operation, its result, then the other numbers that are left
                2+2=4 8\\n
                8-4=4         only the target is left: the solution ends, without a newline

Every character is one token. A line takes two of the numbers, writes their sum or difference (or
product), and lists what is left, so that each line says where the solution stands. All numbers
must be used. Results are whole numbers from 1 to `largest`. A line is right if it is true *and*
the target can still be reached from what is left, which a solver decides; so unlike in the signed
terms, being careful is not enough.

The outcome verifier checks the whole solution, because the target stands in the prompt.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np

from scope_jax.tasks.domain import GeneratedDomain, Problem

CHARACTERS = "0123456789+-*=> :\n"
STYLES = ("mixed", "sorted", "same_numbers", "backwards")
MISCONCEPTIONS = ("slip", "haste")
SPLITS = ("train", "validation", "test", "test_ood")

_LINE = re.compile(r"([1-9][0-9]?)([-+*])([1-9][0-9]?)=([1-9][0-9]?)((?: [1-9][0-9]?)*)")
_PROMPT = re.compile(r"([1-9][0-9]?(?: [1-9][0-9]?){1,6})>([1-9][0-9]?):")

Operation = tuple[int, str, int]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line as written, without its newline. `left`: the numbers that stand beside the result."""

    operation: Operation
    result: int
    left: tuple[int, ...]

    @property
    def state(self) -> tuple[int, ...]:
        """The numbers that the next line may use."""
        return self.result, *self.left

    @property
    def text(self) -> str:
        a, operator, b = self.operation
        return f"{a}{operator}{b}={' '.join(map(str, self.state))}"


@dataclasses.dataclass(frozen=True)
class Countdown(GeneratedDomain):
    """Countdown with numbers from 1 to `largest_number`, targets from `smallest_target` and
    results up to `largest`.

    `misconception` is the probability that `demonstration` gives way to the weakness
    `misconception_kind`, which is how a base policy gets a weakness that is structured and can be
    rescued. Teachers leave it at 0. "slip": the result of a subtraction comes out one too high.
    "haste": a line that leaves more than one number is any true line, without looking ahead.
    """

    operators: str = "+-"
    largest_number: int = 12
    smallest_target: int = 1
    largest: int = 20
    misconception: float = 0.0
    misconception_kind: str = "slip"

    name = "countdown"
    separator = "\n"
    characters = CHARACTERS
    styles = STYLES

    def __post_init__(self):
        if not self.operators or not set(self.operators) <= set("+-*"):
            raise ValueError(f"countdown: operators {self.operators!r}: expected some of '+-*'")
        bounds = (self.largest_number, self.smallest_target, self.largest)
        if not (
            1 <= self.largest_number <= self.largest <= 99
            and 1 <= self.smallest_target <= self.largest
        ):
            raise ValueError(
                f"countdown: largest_number, smallest_target, largest = {bounds}: expected 1 to"
                " `largest` <= 99"
            )
        if self.misconception_kind not in MISCONCEPTIONS:
            raise ValueError(
                f"countdown: misconception_kind {self.misconception_kind!r}: one of"
                f" {MISCONCEPTIONS}"
            )
        if not 0.0 <= self.misconception <= 1.0:
            raise ValueError(
                f"countdown: misconception {self.misconception}: expected a probability"
            )

    @property
    def how_to_read(self) -> str:
        """What a line of a solution says, by an example."""
        return (
            "5-3=2 8 4 takes 5 and 3 from the numbers at hand, writes their difference 2, and lists"
            " the numbers that are left beside it, 8 and 4; all numbers must be used, and the last"
            " result must be the target"
        )

    # ---- problems

    def problem(self, seed: int, split: str, index: int, k: int | Sequence[int]) -> Problem:
        """Problem number `index` of a split: a pure function of the arguments, so fresh problems
        never run out.

        `k` is how many numbers there are, or several such, one of which is drawn; the target is
        drawn from those that can be reached. Validation, test and train are disjoint: a hash of
        the target and the *multiset* of numbers decides which of them a problem belongs to (5 %, 5
        %, 90 %), and drawing is repeated until it fits. `test_ood` draws from the test share (it
        differs in k only).
        """
        if split not in SPLITS:
            raise ValueError(f"countdown: split {split!r}: expected one of {SPLITS}")
        sizes = (k,) if isinstance(k, int) else tuple(k)
        if not sizes or not all(2 <= size <= 7 for size in sizes):
            raise ValueError(f"countdown: k {k}: expected 2 to 7 numbers")
        # Raw bits only: numpy guarantees their stream for ever, but not that of Generator's
        # methods.
        bits = np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index, *sizes]))
        share = "test" if split == "test_ood" else split
        for _ in range(20_000):
            raw = bits.random_raw(2 + max(sizes))
            count = sizes[int(raw[0]) % len(sizes)]
            numbers = sorted(
                (1 + int(bit) % self.largest_number for bit in raw[2 : 2 + count]), reverse=True
            )
            targets = self.targets(numbers)
            if not targets:
                continue
            target = targets[int(raw[1]) % len(targets)]
            if split_of(numbers, target) == share:
                return self.make_problem(numbers, target, id=f"{split}-{seed}-{index}")
        raise ValueError(
            f"countdown: no problem with k={k} belongs to {split!r}: use a larger k or a larger"
            " range of numbers"
        )

    def make_problem(self, numbers: Sequence[int], target: int, id: str = "") -> Problem:
        """The problem with these numbers and this target."""
        return Problem(id=id, prompt=f"{' '.join(map(str, numbers))}>{target}:", answer=str(target))

    def targets(self, numbers: Sequence[int]) -> list[int]:
        """The targets that these numbers reach."""
        reached = _reached(tuple(sorted(numbers)), self.operators, self.largest)
        return [
            value for value in range(self.smallest_target, self.largest + 1) if reached >> value & 1
        ]

    def prompt_length(self, k: int) -> int:
        """The most characters (= tokens) that a prompt with k numbers has."""
        return (len(str(self.largest_number)) + 1) * k + len(str(self.largest)) + 1

    def completion_length(self, k: int) -> int:
        """The most tokens that a right solution has, the end token included."""
        number, result = len(str(self.largest_number)), len(str(self.largest))
        # Before line i (of k - 1) there are k - i + 1 numbers, at most i - 1 of them results.
        length = 0
        for left in range(k, 1, -1):
            results = min(k - left, left)
            taken = sorted([result] * results + [number] * (left - results))
            length += (
                sum(taken) + 3 + result + (left - 2)
            )  # all numbers once, operator, "=", newline, result, blanks
        return length

    # ---- verdicts

    def verify(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[bool | None]:
        """True where every line is true and uses the numbers that are there, and the last one
        leaves the target alone."""
        return [
            self.solution_path(problem, text) is not None
            for problem, text in zip(problems, completions, strict=True)
        ]

    def answer_of(self, completion: str) -> str | None:
        """The number that the last line leaves alone; None where it leaves more, or is not
        well-formed."""
        line = parse_line(completion.rsplit("\n", 1)[-1])
        return str(line.result) if line is not None and not line.left else None

    def equations(self, completion: str) -> list[str]:
        """The operations of the well-formed lines with their results, without the numbers left
        beside."""
        return [
            line.text.split(" ")[0]
            for part in completion.split("\n")
            if (line := parse_line(part)) is not None
        ]

    def answer_marker(self, step: str) -> bool:
        """A line that leaves one number ends the solution."""
        line = parse_line(step.removesuffix("\n"))
        return line is not None and not line.left

    def check_steps(
        self, problem: Problem, steps: Sequence[str], *, complete: bool = True
    ) -> list[bool]:
        """One label per line: its numbers are there, its result is true, it lists what is left (in
        any order), the target can still be reached, and it ends the solution exactly when one
        number is left; after the first error everything is False.

        Steps may come with or without their newline (all but the last must then be lines that had
        one). A last step that ends in a newline although one number is left is wrong; with
        `complete` a last step that leaves more is too.
        """
        state, target = self._parse_prompt(problem)
        good, labels = True, []
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            line = parse_line(step.removesuffix("\n"))
            good = (
                good
                and line is not None
                and self._follows(state, line)
                and self._reaches(line.state, target)
            )
            if good and line is not None:
                state = line.state
                good = (
                    not (last and complete) if len(state) > 1 else last and not step.endswith("\n")
                )
            labels.append(good)
        return labels

    def solution_path(self, problem: Problem, completion: str) -> tuple[Operation, ...] | None:
        """The operations of a wholly right solution, in a fixed order: 3+5 and 5+3 count once, and
        so do the two orders of operations that do not need each other."""
        state, target = self._parse_prompt(problem)
        path = []
        for step in completion.split("\n"):
            line = parse_line(step)
            if line is None or not self._follows(state, line):
                return None
            state = line.state
            a, operator, b = line.operation
            path.append((max(a, b), operator, min(a, b)))
        return tuple(sorted(path)) if state == (target,) else None

    # ---- programs that write solutions

    def demonstration(
        self, problem: Problem, rng: np.random.Generator, style: str = "mixed"
    ) -> str:
        """A whole solution, right unless there is a misconception; styles as in `next_step`."""
        state, target = self._parse_prompt(problem)
        text = ""
        while (line := self._line(state, target, rng, style)) is not None:
            text += ("\n" if text else "") + line.text
            state = line.state
        return text

    def next_step(
        self,
        problem: Problem,
        steps: Sequence[str],
        rng: np.random.Generator,
        style: str = "mixed",
        wrong_step: str | None = None,
    ) -> str | None:
        """A right line after `steps`, going on from the numbers written last. None where those are
        not well-formed, not one fewer on each line, one number alone, or do not reach the target.

        Styles: "mixed" any right line; "sorted" the first one in the order of the operators, large
        numbers first; "same_numbers" one with both numbers of `wrong_step`, else with one of them
        (the smallest change), else the first; "backwards" the last one, small numbers written
        first, the numbers left in reverse order.
        """
        state, target = self._parse_prompt(problem)
        for step in steps:
            line = parse_line(step.removesuffix("\n"))
            # Anybody's numbers, but not more of them: the solver's time grows with their count.
            if line is None or len(line.state) != len(state) - 1:
                return None
            state = line.state
        if not self._reaches(state, target):
            return None
        line = self._line(state, target, rng, style, wrong_step)
        return None if line is None else line.text + ("\n" if line.left else "")

    def _line(
        self,
        state: tuple[int, ...],
        target: int,
        rng: np.random.Generator,
        style: str,
        wrong_step: str | None = None,
    ) -> Line | None:
        """A right line from this state; any true line where there is none or a hasty misconception
        strikes."""
        if style not in STYLES:
            raise ValueError(f"countdown: style {style!r}: expected one of {STYLES}")
        moves = _moves(tuple(sorted(state)), self.operators, self.largest)
        right = [operation for operation, reached in moves if reached >> target & 1]
        strikes = bool(self.misconception) and bool(rng.random() < self.misconception)
        hasty = strikes and self.misconception_kind == "haste" and len(state) > 2
        if hasty or not right:
            # Not a dead end: somewhere the solution must come to an end, right or wrong.
            right, style = (
                [operation for operation, reached in moves if reached or len(state) == 2],
                "mixed",
            )
        if not right:
            return None
        if style == "mixed":
            operation = right[int(rng.integers(len(right)))]
        elif (
            style == "same_numbers"
            and (wrong := parse_line((wrong_step or "").removesuffix("\n"))) is not None
        ):
            operation = max(
                right,
                key=lambda other: len(
                    {other[0], other[2]} & {wrong.operation[0], wrong.operation[2]}
                ),
            )
        else:
            operation = right[-1 if style == "backwards" else 0]
        a, operator, b = operation
        left = list(state)
        left.remove(a)
        left.remove(b)
        result = calculate(operation)
        if strikes and self.misconception_kind == "slip" and operator == "-":
            result = min(result + 1, self.largest)
        if operator != "-" and (style == "backwards" or (style == "mixed" and rng.random() < 0.5)):
            a, b = b, a
        return Line((a, operator, b), result, tuple(left[::-1] if style == "backwards" else left))

    # ---- arithmetic

    def _follows(self, state: Sequence[int], line: Line) -> bool:
        """Whether a line is true and takes two numbers of the state and lists the others."""
        a, operator, b = line.operation
        before = sorted((a, b, *line.left))
        return (
            operator in self.operators
            and before == sorted(state)
            and line.result == calculate(line.operation) <= self.largest
        )

    def _reaches(self, state: Sequence[int], target: int) -> bool:
        return bool(_reached(tuple(sorted(state)), self.operators, self.largest) >> target & 1)

    def _parse_prompt(self, problem: Problem) -> tuple[tuple[int, ...], int]:
        match = _PROMPT.fullmatch(problem.prompt)
        if match is None:
            raise ValueError(
                f"countdown: problem {problem.id!r}: prompt {problem.prompt!r}: expected like '8 5"
                " 3 2>4:'"
            )
        return tuple(map(int, match[1].split())), int(match[2])


def parse_line(text: str) -> Line | None:
    """A line without its newline; None where it is not well-formed."""
    match = _LINE.fullmatch(text)
    if match is None:
        return None
    return Line(
        (int(match[1]), match[2], int(match[3])), int(match[4]), tuple(map(int, match[5].split()))
    )


def calculate(operation: Operation) -> int:
    """The result of an operation."""
    a, operator, b = operation
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def split_of(numbers: Sequence[int], target: int) -> str:
    """The split that a multiset of numbers and a target belong to, whatever the seed and the order
    of the numbers."""
    canonical = f"{' '.join(map(str, sorted(numbers)))}>{target}"
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).digest()
    return {0: "validation", 1: "test"}.get(int.from_bytes(digest, "little") % 20, "train")


@functools.lru_cache(maxsize=1 << 17)
def _moves(
    state: tuple[int, ...], operators: str, largest: int
) -> tuple[tuple[Operation, int], ...]:
    """From a sorted state: each true operation, and the bits of the targets that can be reached
    after it. Ordered by operator, then large numbers first."""
    moves: dict[Operation, int] = {}
    for operator in operators:
        for i in range(len(state) - 1, 0, -1):
            for j in range(i - 1, -1, -1):
                operation = (state[i], operator, state[j])
                result = calculate(operation)
                if operation not in moves and 1 <= result <= largest:
                    rest = state[:j] + state[j + 1 : i] + state[i + 1 :]
                    moves[operation] = _reached(tuple(sorted((*rest, result))), operators, largest)
    return tuple(moves.items())


@functools.lru_cache(maxsize=1 << 18)
def _reached(state: tuple[int, ...], operators: str, largest: int) -> int:
    """Bit n is set where n can be reached from a sorted state by using all of its numbers."""
    if len(state) == 1:
        return 1 << state[0]
    return functools.reduce(lambda bits, move: bits | move[1], _moves(state, operators, largest), 0)
