"""The reward of rows: each part's values, their weighted sum, and the verdict."""

import collections
import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from scope_jax.devices.hosts import by_share, is_main
from scope_jax.prm import TEMPLATE_TOKENS, ProcessRewardModel
from scope_jax.rewards.functions import REASONS, Functions, Value
from scope_jax.rewards.spec import ROUNDING, TOTAL, Part, RewardSpec, Steps
from scope_jax.tasks import Domain, Problem, verdicts
from scope_jax.tasks.visible import is_visible
from scope_jax.text import split_steps


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Completions to judge."""

    domain: Domain
    problems: Sequence[Problem]  # one for each
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]  # the same as tokens, without the end token
    finished_B: np.ndarray  # bool: an end token was written


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """What B rows are worth."""

    reward_B: np.ndarray  # float32: the sum; NaN where a part of it, or the verdict, is missing
    right_B: np.ndarray  # bool: judged, and accepted
    part_B: dict[str, np.ndarray]  # float64, by the name of the part; NaN where it did not judge
    reasons: collections.Counter[str]  # rows that a part did not judge, by reason; some may be 0

    @classmethod
    def joined(cls, parts: Sequence["Judged"]) -> "Judged":
        """Several batches as one."""
        reasons: collections.Counter[str] = collections.Counter()
        for part in parts:
            reasons.update(part.reasons)  # keeps zeros
        names = parts[0].part_B
        return cls(
            np.concatenate([part.reward_B for part in parts]),
            np.concatenate([part.right_B for part in parts]),
            {name: np.concatenate([part.part_B[name] for part in parts]) for name in names},
            reasons,
        )

    def metrics(self) -> dict[str, float]:
        """Means of the parts and the share of accepted rows, over rows that have a reward; why
        rows have none."""
        judged = ~np.isnan(self.reward_B)
        figures = {"reward/accepted_share": _mean(self.right_B[judged])}
        for name, value_B in self.part_B.items():
            known = value_B[judged]
            figures[f"reward/{name}"] = _mean(known[~np.isnan(known)])
        return figures | by_reason("reward/unscored", self.reasons)


def by_reason(prefix: str, reasons: collections.Counter[str]) -> dict[str, float]:
    """How often a part did not judge a row, as metrics `{prefix}_{reason}`."""
    return {f"{prefix}_{reason}": float(n) for reason, n in sorted(reasons.items())}


class Reward:
    """The reward of a run. A context manager; `close` ends the processes of its functions.

    spec  its settings; by default the task's verifier alone
    prm   the process reward model, where a part needs it
    rows, tokens  rows of a rollout and positions of a row: what the model's programs are made for

    All processes of a run call its methods with the same rows; each calls functions, patterns and
    the verifier for its share of them.
    """

    def __init__(
        self,
        spec: RewardSpec | None = None,
        prm: ProcessRewardModel | None = None,
        rows: int | None = None,
        tokens: int | None = None,
    ):
        self.spec = RewardSpec() if spec is None else spec
        self.prm, self._rows = prm, rows
        self._tokens = None if tokens is None else tokens + TEMPLATE_TOKENS
        self._processes = {
            part.name: Functions(part, self.spec)
            for part in self.spec.parts
            if part.is_function or part.function == "format"
        }
        self._said: set[tuple[str, str]] = set()  # what was warned of, once each

    def __enter__(self) -> "Reward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes. May be called twice."""
        for pool in self._processes.values():
            pool.close()

    def start(self) -> None:
        """Import the functions, each in a process of its own. Raises ValueError, naming the
        setting, where that fails or a function does not take its three arguments."""
        for part in self.spec.parts:
            if part.name not in self._processes:
                continue
            try:
                self._processes[part.name].start()
            except RuntimeError as error:
                alone = self.spec.function is not None
                where = "function" if alone else f"functions.{part.name}.function"
                words = str(error).partition("did not start: ")[2] or str(error)
                raise ValueError(f"config.reward.{where} = {part.function!r}: {words}") from None

    def compile_ahead(self) -> None:
        """Run the programs of the process reward model that later steps may need."""
        if self.prm is not None and self._rows and self._tokens:
            self.prm.compile_ahead(self._rows, self._tokens)

    def judge(self, rows: Rows) -> Judged:
        """The reward of each row and whether it is accepted. A row that did not end is wrong: it
        has the lowest sum there is, and no function is called for it."""
        reasons = collections.Counter(dict.fromkeys(self._possible_reasons(), 0))
        part_B, total_B = {}, np.zeros(len(rows.texts))
        for part in self.spec.parts:
            part_B[part.name] = value_B = self._values(part, rows, reasons)
            if part.weight:
                total_B += part.weight * value_B
        by = self.spec.verdict_by
        verdict_B = total_B if by == TOTAL else part_B[by]
        total_B = np.where(np.isnan(verdict_B), np.nan, total_B)
        right_B = ~np.isnan(total_B) & rows.finished_B & self._accepts(verdict_B)
        return Judged(total_B.astype(np.float32), right_B, part_B, reasons)

    def accepts(self, rows: Rows) -> np.ndarray:
        """bool[B]: whether each row is accepted. Only the parts that this needs are asked; a row
        that cannot be judged is not accepted."""
        by = self.spec.verdict_by
        if by == TOTAL:
            return self.judge(rows).right_B
        [part] = [part for part in self.spec.parts if part.name == by]
        value_B = self._values(part, rows, collections.Counter())
        return rows.finished_B & self._accepts(value_B)

    def _accepts(self, value_B: np.ndarray) -> np.ndarray:
        return value_B >= self.spec.threshold - ROUNDING  # of NaN: False

    def _possible_reasons(self) -> list[str]:
        if self.spec.is_default:
            return []
        kinds = {"outcome": ["verifier"], "prm": ["prm"], "format": ["timeout", "memory", "crash"]}
        return [
            reason for part in self.spec.parts for reason in kinds.get(part.function, list(REASONS))
        ]

    def _values(self, part: Part, rows: Rows, reasons: collections.Counter[str]) -> np.ndarray:
        """float64[B]: the values of one part; counts why ended rows have none."""
        asked = np.flatnonzero(rows.finished_B).tolist()
        value_B = np.full(len(rows.texts), np.nan)
        if part.function == "outcome":
            found = verdicts(
                rows.domain, [rows.problems[b] for b in asked], [rows.texts[b] for b in asked]
            )
            value_B[asked] = [np.nan if verdict is None else float(verdict) for verdict in found]
            value_B[~np.isfinite(value_B)] = np.nan
            _count(reasons, "verifier", value_B[asked])
        elif part.function == "prm":
            value_B[asked] = self._of_steps(part, rows, asked)
            _count(reasons, "prm", value_B[asked])
        else:
            value_B[asked] = self._called(part, rows, asked, reasons)
        value_B[~rows.finished_B] = part.worst
        return value_B

    def _called(
        self, part: Part, rows: Rows, asked: Sequence[int], reasons: collections.Counter[str]
    ) -> list[float]:
        """The values that processes give to the rows `asked`."""
        found: list[Value] = by_share(
            self._processes[part.name].values,
            [rows.problems[b] for b in asked],
            [rows.texts[b] for b in asked],
            [rows.ids[b] for b in asked],
        )
        for b, (value, reason, detail) in zip(asked, found, strict=True):
            if value is not None:
                continue
            reasons[reason] += 1
            if is_main() and (part.name, reason) not in self._said:
                self._said.add((part.name, reason))
                warnings.warn(
                    f"reward {part.name!r}: problem {rows.problems[b].id}: {detail}; such rows are"
                    f" left out, and counted in reward/unscored_{reason}",
                    stacklevel=4,
                )
        return [np.nan if value is None else value for value, _, _ in found]

    def _of_steps(self, part: Part, rows: Rows, asked: Sequence[int]) -> np.ndarray:
        """float64[R]: what the model's scores of the steps of the rows `asked` come to. Blank lines
        are no steps; a row without a step has the worst value. NaN where the model has no score."""
        if self.prm is None:
            raise ValueError(
                f"config.reward.functions.{part.name}: no process reward model; set models.prm"
            )
        out_R = np.full(len(asked), np.nan)
        if not len(asked):
            return out_R
        steps = [
            [step for step in split_steps(rows.texts[b], rows.domain.divider) if is_visible(step)]
            for b in asked
        ]
        out_R[[not row for row in steps]] = part.worst
        score_RJ, valid_RJ, _ = self.prm.score(
            [rows.problems[b].prompt for b in asked],
            steps,
            rows=self._rows,
            tokens=self._tokens,
        )
        for r in np.flatnonzero(valid_RJ.any(axis=1)):
            out_R[r] = of_steps(score_RJ[r, valid_RJ[r]].astype(np.float64), part.steps)
        return out_R


def of_steps(score_J: np.ndarray, steps: Steps) -> float:
    """What the scores of a row's steps come to."""
    if steps == "last":
        return float(score_J[-1])
    return float(np.min(score_J) if steps == "min" else np.mean(score_J))


def _count(reasons: collections.Counter[str], reason: str, value_R: np.ndarray) -> None:
    if reason in reasons:  # the task's verifier alone: `reward/unscored` says it
        reasons[reason] += int(np.sum(np.isnan(value_R)))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0
