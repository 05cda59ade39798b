"""The switches of the correction."""

import dataclasses
from typing import Literal

from scope_jax.types import check_choices


@dataclasses.dataclass(frozen=True)
class SelectSpec:
    """Which failures are corrected."""

    # top: the best prefixes of each group; band: of these only rows whose prefix quality lies
    # inside `quantiles`; random: any rows, by a draw; all: every eligible row, whatever
    # `per_group` says.
    rule: Literal["top", "band", "random", "all"] = "top"
    # Of all eligible rows of the batch.
    quantiles: tuple[float, float] = (0.1, 0.9)
    # Maximum number of attempts per group; with `keep_failure` also at most failures - 1.
    per_group: int = 2
    # any, or only groups without a right row: in the others nothing is located either, unless
    # `spare_prefix` asks.
    groups: Literal["any", "all_failed"] = "any"
    # Leave one failure of each group as it is.
    keep_failure: bool = True
    # Steps before the error that an eligible row has; with 0 the teacher may write the first step.
    good_steps: int = 1

    def __post_init__(self) -> None:
        check_choices(self, "method.select")
        low, high = self.quantiles
        if self.good_steps < 0:
            raise ValueError(f"method.select.good_steps = {self.good_steps} must be 0 or more")
        if not 0 <= low <= high <= 1 or self.per_group < 1:
            raise ValueError(
                f"method.select: quantiles {self.quantiles} must ascend in [0, 1] and per_group"
                f" {self.per_group} be >= 1"
            )

    def most(self, failures: int) -> int:
        """Maximum number of attempts for a group with `failures` failures. For a whole group: the
        room to keep."""
        limit = failures if self.rule == "all" else min(self.per_group, failures)
        return max(min(limit, failures - 1) if self.keep_failure else limit, 0)


@dataclasses.dataclass(frozen=True)
class CorrectionSpec:
    """Switches of the correction; docs/method.md says more."""

    # Which failures are corrected.
    select: SelectSpec = dataclasses.field(default_factory=SelectSpec)
    # Who goes on after the corrected step.
    tail: Literal["policy", "teacher", "none"] = "policy"
    # Maximum number of tails per row; the first one that is right is taken.
    tails: int = 1
    # Steps that the teacher writes for each row, each with tails of its own.
    candidates: int = 1
    # Which of several accepted ones is taken. policy_logp: the one whose step the policy finds
    # likeliest, by the mean log-prob of its tokens; first: the one of the lowest number.
    choose: Literal["policy_logp", "first"] = "policy_logp"
    # unverified goes with tail `none`, and only with it.
    accept: Literal["verified", "unverified"] = "verified"
    # Where accepted rows go. pair: to another failure of the group, by a draw, so that the parent
    # stays; where all that are left are parents of accepted rows, into the parent's own place.
    place: Literal["replace_parent", "replace_random_failure", "append", "pair"] = "replace_parent"
    # Which POLICY tokens of an accepted row, and of its parent where that is still there, carry
    # the row's advantage. row: all of them; divergence: those from the cut on, where the two part.
    credit: Literal["row", "divergence"] = "row"
    # POLICY tokens before the first error of failures that were located and not repaired carry no
    # weight.
    spare_prefix: bool = False
    # Rows that a model writes steps or tails for at a time; None: all. The result is the same.
    rows_at_once: int | None = None

    def __post_init__(self) -> None:
        check_choices(self, "method")
        if self.tails < 1:
            raise ValueError(f"method.tails = {self.tails} must be at least 1")
        if self.candidates < 1:
            raise ValueError(f"method.candidates = {self.candidates} must be at least 1")
        if self.choose != "policy_logp" and self.candidates == 1:
            raise ValueError(
                f"method.choose = {self.choose!r} chooses from several steps: set"
                " method.candidates above 1, or choose to 'policy_logp'"
            )
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise ValueError(
                f"method.rows_at_once = {self.rows_at_once} must be at least 1, or None for all"
            )
        if self.tail == "none" and self.accept == "verified":
            raise ValueError(
                "method: tail 'none' leaves rows without an answer to verify; set accept to"
                " 'unverified'"
            )
        if self.tail != "none" and self.accept == "unverified":
            raise ValueError(
                "method: accept 'unverified' is for tail 'none'; a row with a tail is verified"
            )

    @property
    def spares(self) -> bool:
        """Whether some POLICY tokens of rows that count may carry no weight."""
        return self.credit == "divergence" or self.spare_prefix
