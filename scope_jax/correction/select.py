"""Which failures get a teacher's step: distribution-aware selection, a cap per group, one failure
kept."""

import dataclasses

import numpy as np

RULES = ("top", "band", "random", "all")
GROUPS = ("any", "all_failed")


@dataclasses.dataclass(frozen=True)
class SelectSpec:
    """rule: `top` takes the best prefixes of each group, `band` only of those rows whose prefix
    quality lies inside the `quantiles` of all eligible rows of the batch, `random` any rows, by a
    draw, and `all` every eligible row, whatever `per_group` says. per_group: attempts per group at
    the most; with `keep_failure` also at most failures - 1. groups: `any`, or only groups that
    failed altogether. good_steps: so many steps before the error a row must have to be eligible;
    with 0 the teacher may write the first step."""

    rule: str = "top"
    quantiles: tuple[float, float] = (0.1, 0.9)
    per_group: int = 2
    groups: str = "any"
    keep_failure: bool = True
    good_steps: int = 1

    def most(self, failures: int) -> int:
        """Attempts at the most in a group with so many failures (all rows of a group: what room
        has to be kept)."""
        limit = failures if self.rule == "all" else min(self.per_group, failures)
        return max(min(limit, failures - 1) if self.keep_failure else limit, 0)

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"selection rule {self.rule!r} is unknown; one of {', '.join(RULES)}")
        if self.groups not in GROUPS:
            raise ValueError(
                f"selection groups {self.groups!r} is unknown; one of {', '.join(GROUPS)}"
            )
        low, high = self.quantiles
        if self.good_steps < 0:
            raise ValueError(f"selection good_steps {self.good_steps} must be 0 or more")
        if not 0 <= low <= high <= 1 or self.per_group < 1:
            raise ValueError(
                f"selection quantiles {self.quantiles} must ascend in [0, 1] and per_group"
                f" {self.per_group} be >= 1"
            )


def select(
    eligible_B: np.ndarray,
    quality_B: np.ndarray,
    failed_B: np.ndarray,
    group: int,
    spec: SelectSpec,
    seed: int = 0,
) -> np.ndarray:
    """Row numbers (int64[R], group by group, best first) of the rows to correct.

    eligible_B bool: failed, error located, `good_steps` before it, not cut off by length.
    quality_B float: prefix quality. failed_B bool: rows with reward 0. Rows of a group are `group`
    consecutive ones. Ties go to the lower row.
    """
    eligible = np.asarray(eligible_B, bool)
    quality = np.asarray(quality_B, np.float64)
    kept = eligible.copy()
    if spec.rule == "band" and eligible.any():
        low, high = np.quantile(quality[eligible], spec.quantiles)
        kept &= (quality >= low) & (quality <= high)
    rank = np.random.default_rng(seed).random(len(quality)) if spec.rule == "random" else quality
    chosen: list[int] = []
    for start in range(0, len(eligible), group):
        rows = np.arange(start, start + group)
        failures = int(np.sum(np.asarray(failed_B)[rows]))
        if spec.groups == "all_failed" and failures < group:
            continue
        candidates = rows[kept[rows]]
        best = candidates[np.argsort(-rank[candidates], kind="stable")]
        chosen.extend(best[: spec.most(failures)].tolist())
    return np.array(chosen, np.int64)
