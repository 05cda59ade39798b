"""What a method is: one of these stands in the section `method`, with settings of its own."""

import dataclasses
from typing import Literal

from scope_jax.correction import CorrectionSpec
from scope_jax.learning.credit import GoodPrefix, SummedSteps, WorstStep
from scope_jax.types import check_least


@dataclasses.dataclass(frozen=True)
class Grpo:
    """Groups of the policy's own rollouts: GRPO, Dr.GRPO, DAPO, GSPO, by the settings of
    `advantage` and `loss`."""

    name: Literal["grpo"] = "grpo"
    resample: int = 0  # further batches until every group has two rewards (DAPO's dynamic sampling)


@dataclasses.dataclass(frozen=True)
class Scope(CorrectionSpec):
    """Failed rollouts are rescued at their first wrong step (arXiv 2602.24110)."""

    name: Literal["scope"] = "scope"
    # Rounds of other prompts, rescued too, in place of groups without two rewards after the rescue.
    resample: int = 0


@dataclasses.dataclass(frozen=True)
class Luffy:
    """Some rows of each group are whole solutions of the teacher (LUFFY, arXiv 2504.14945)."""

    name: Literal["luffy"] = "luffy"
    per_group: int = 1  # demonstrations instead of rollouts

    def __post_init__(self) -> None:
        check_least(self, "method", 1, "per_group")


@dataclasses.dataclass(frozen=True)
class Relift:
    """Prompts whose group failed altogether are kept; a full buffer makes one supervised step on
    their demonstrations (ReLIFT, arXiv 2506.07527)."""

    name: Literal["relift"] = "relift"
    buffer: int = 16  # prompts

    def __post_init__(self) -> None:
        check_least(self, "method", 1, "buffer")


@dataclasses.dataclass(frozen=True)
class Process(SummedSteps):
    """The steps' scores are rewards beside the outcome, normalised over the group and summed to go
    (process supervision of arXiv 2402.03300)."""

    name: Literal["process"] = "process"
    resample: int = 0  # as in `grpo`


@dataclasses.dataclass(frozen=True)
class Pure(WorstStep):
    """The worst step of a row is its reward, beside the outcome (PURE, arXiv 2504.15275)."""

    name: Literal["pure"] = "pure"
    resample: int = 0  # as in `grpo`


@dataclasses.dataclass(frozen=True)
class Vppo(GoodPrefix):
    """The good beginning of a failed row is worth something (VPPO, arXiv 2601.18984)."""

    name: Literal["vppo"] = "vppo"
    resample: int = 0  # as in `grpo`


Method = Grpo | Scope | Luffy | Relift | Process | Pure | Vppo
METHODS = {kind.name: kind for kind in (Grpo, Scope, Luffy, Relift, Process, Pure, Vppo)}
