"""The hybrid objective of SCOPE (arXiv 2602.24110) and of its rivals, as a weighted sum over
tokens.

    L = - sum_BT on * min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
        - lambda * sum_BT off * g(pi, A)

Its terms: `learning/loss_terms.py`; other surrogates in place of the first one:
`learning/surrogates.py`; weights of sampler against trainer: `learning/sampler_weights.py`. `on`
weighs the POLICY tokens, `off` the TEACHER tokens. Both are fixed for the global batch, before it
is split: losses, gradients and statistics of micro-batches then add up to those of the batch,
whatever the split.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from scope_jax.learning.loss_terms import (
    Stats,
    Weighed,
    distilled,
    kl_estimate,
    only,
    own_term,
    sampler_gap,
    teacher_gain,
    token_statistics,
    weighed,
)
from scope_jax.learning.sampler_weights import Level
from scope_jax.types import Owner, Rollout, check_choices, masked_sum, owner_mask


@dataclass(frozen=True)
class LossSpec:
    """Switches of the objective. ValueError (one line) on a word or a number that makes no
    sense."""

    # Of the policy's own tokens: PPO's clip, CISPO's clipped weight, SAPO's gate.
    surrogate: Literal["clip", "cispo", "sapo"] = "clip"
    sapo_positive: float = 1.0  # tau of the gate where the advantage is above 0; larger: narrower
    sapo_negative: float = 1.05  # and where it is not
    # The ratio is clipped to [1 - clip_low, 1 + clip_high]; None: no bound on that side (LUFFY's
    # released script clips nothing). 0.28 is DAPO's clip-higher, arXiv 2503.14476.
    clip_low: float | None = 0.2
    clip_high: float | None = 0.28
    dual_clip: float | None = None  # c > 1: the surrogate is at least c A where A < 0 (1912.09729)
    # sequence: geometric mean over the row's POLICY tokens (GSPO, arXiv 2507.18071)
    ratio: Literal["token", "sequence"] = "token"
    teacher_term: Literal["nll", "shaped", "reinforce", "importance", "mask"] = "nll"
    teacher_weight: float = 1.0  # lambda at the start of the run
    teacher_schedule: Literal["constant", "linear", "cosine"] = "linear"  # of lambda over the run
    teacher_weight_end: float = 0.0  # lambda at the end, where the schedule is not constant
    teacher_steps: int | None = None  # batches that the schedule takes; None: the whole run
    shaping_gamma: float = 0.1  # of `shaped`: f(p) = p / (p + gamma), arXiv 2504.14945
    importance_cap: float = 1.0  # of `importance`: the largest weight
    normaliser: Literal["constant", "token", "sequence"] = "token"
    teacher_normaliser: Literal["shared", "own"] = "shared"
    max_new_tokens: int | None = field(default=None, metadata={"derived": True})  # of `constant`
    entropy_bonus: float = 0.0
    kl_weight: float = 0.0  # k3 estimator towards the reference log-probs
    tis_cap: float | None = None  # cap of the importance weight trainer / sampler
    tis_level: Level = "token"  # of a token, the product over its row, their geometric mean
    # Tokens, or rows, whose weight lies outside of this band gain nothing.
    mask_low: float | None = None
    mask_high: float | None = None
    mask_level: Level = "sequence"
    # On-policy distillation: the reverse KL to the teacher on the policy's own tokens.
    distill_weight: float = 0.0
    distill_form: Literal["advantage", "loss"] = "advantage"
    outcome_weight: float = 1.0  # of the other advantage beside it
    # Old log-probs: as the sampler recorded them, or by the trainer before the first update.
    old_logp: Literal["sampler", "recompute"] = "sampler"

    def __post_init__(self) -> None:
        check_choices(self, "loss")
        for name in (
            *("teacher_weight", "teacher_weight_end", "entropy_bonus", "kl_weight"),
            *("clip_low", "clip_high", "distill_weight", "outcome_weight"),
        ):
            self._require(name, lambda x: x >= 0, "a number of 0 or more")
        for name in (
            *("shaping_gamma", "importance_cap", "tis_cap", "mask_low", "mask_high"),
            *("sapo_positive", "sapo_negative"),
        ):
            self._require(name, lambda x: x > 0, "a number above 0")
        self._require("clip_low", lambda x: x <= 1, "at most 1 (a ratio is never below 0)")
        self._require("dual_clip", lambda x: x > 1, "a number above 1")
        for name in ("max_new_tokens", "teacher_steps"):
            self._require(name, lambda x: x >= 1, "at least 1")
        for reason in self._conflicts():
            raise ValueError(f"config.loss.{reason}")

    def _conflicts(self) -> Iterator[str]:
        """What cannot go together, each with its reason."""
        for name in ("tis_cap", "mask_low", "mask_high"):
            if getattr(self, name) is not None and self.old_logp == "sampler":
                yield (
                    f"{name} weighs trainer against sampler; with loss.old_logp 'sampler' they are"
                    " the same: use 'recompute'"
                )
        low, high = self.mask_low, self.mask_high
        if low is not None and high is not None and low >= high:
            yield f"mask_low = {low} must lie below mask_high = {high}"
        if self.tis_level != "token" and self.tis_cap is None:
            yield f"tis_level {self.tis_level!r} is that of a weight with a cap: set loss.tis_cap"
        if self.mask_level != "sequence" and not self.masks:
            yield (
                f"mask_level {self.mask_level!r} is that of a weight with a bound: set"
                " loss.mask_low or mask_high"
            )
        if self.teacher_steps is not None and self.teacher_schedule == "constant":
            yield (
                f"teacher_steps = {self.teacher_steps} is of a schedule; with teacher_schedule"
                " 'constant' lambda stays as it is: use 'linear' or 'cosine', or None"
            )
        if self.surrogate != "clip" and self.dual_clip is not None:
            yield f"dual_clip is of surrogate 'clip', not {self.surrogate!r}: set it to None"
        if self.surrogate == "sapo" and (self.clip_low, self.clip_high) != (None, None):
            yield (
                "surrogate 'sapo' has a gate in place of the clip: set loss.clip_low and clip_high"
                " to None"
            )
        if self.outcome_weight != 1 and not self.distill_weight:
            yield (
                f"outcome_weight = {self.outcome_weight} weighs the advantage against that of"
                " distillation: set loss.distill_weight above 0, or outcome_weight to 1"
            )
        if self.distill_form != "advantage" and not self.distill_weight:
            yield (
                f"distill_form = {self.distill_form!r} is of distillation: set loss.distill_weight"
                " above 0, or distill_form to 'advantage'"
            )
        if self.distill_weight and self.distill_form == "advantage" and self.ratio == "sequence":
            yield (
                "ratio 'sequence' has one ratio per row, which averages away the advantages of"
                " distillation: set loss.ratio to 'token', or distill_form to 'loss'"
            )

    @property
    def teaches(self) -> bool:
        """Whether lambda is above 0 at any time."""
        ends = self.teacher_schedule != "constant" and self.teacher_weight_end > 0
        return self.teacher_weight > 0 or ends

    @property
    def masks(self) -> bool:
        """Whether tokens or rows may be masked for their weight."""
        return self.mask_low is not None or self.mask_high is not None

    def _require(self, name: str, good: Callable[[Any], bool], expected: str) -> None:
        value = getattr(self, name)
        optional = name in (
            *("clip_low", "clip_high", "dual_clip", "tis_cap", "max_new_tokens"),
            *("mask_low", "mask_high", "teacher_steps"),
        )
        if value is None and optional:
            return
        if not (isinstance(value, int | float) and math.isfinite(value) and good(value)):
            raise ValueError(
                f"LossSpec.{name} = {value!r}; expected {expected}{' or None' if optional else ''}"
            )


def token_weights(
    rollout: Rollout,
    spec: LossSpec,
    *,
    include_B: jax.Array | None = None,
    credit_from_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(on_BT, off_BT), both float32[B, T]: 1/N on POLICY tokens, 1/N on TEACHER tokens, 0
    elsewhere, without lambda.

    `rollout` is the whole batch of the update, over all hosts, before micro-batching; only owners
    and lengths are read. Rows where `include_B` (bool[B]) is False keep their teacher weights and
    get `on` = 0. POLICY tokens at positions before `credit_from_B` (int[B]; None: 0) get `on` = 0
    too.

    N, from `spec.normaliser`: `constant` rows x max_new_tokens (Dr.GRPO, arXiv 2503.20783);
    `token` the tokens of the batch; `sequence` rows x tokens of the row. Rows and tokens are those
    that carry a weight, POLICY and TEACHER together: what is left out, or an empty row, is neither
    above nor below the line. POLICY tokens before `credit_from_B` do count in N, so that to spare
    some tokens makes no other token weigh more. With `spec.teacher_normaliser` = `own` the N of
    `off` is the number of TEACHER tokens of the batch instead.

    Raises ValueError where `constant` lacks max_new_tokens, or include_B or credit_from_B has
    another shape than [B].
    """
    length = jnp.asarray(rollout.length_B)
    held = jnp.arange(rollout.owner_BT.shape[1])[None, :] < length[:, None]
    policy = jnp.asarray(owner_mask(rollout, Owner.POLICY)) & held
    teacher = jnp.asarray(owner_mask(rollout, Owner.TEACHER)) & held
    if include_B is not None:
        include_B = jnp.asarray(include_B)
        if include_B.shape != length.shape or include_B.dtype != jnp.bool_:
            raise ValueError(
                f"include_B is {include_B.dtype}{list(include_B.shape)}; expected"
                f" bool{list(length.shape)}"
            )
        policy &= include_B[:, None]

    row_tokens = jnp.sum(policy | teacher, axis=1, keepdims=True)
    rows = jnp.sum(row_tokens > 0)
    if spec.normaliser == "constant":
        if spec.max_new_tokens is None:
            raise ValueError(
                "LossSpec.normaliser = 'constant' needs LossSpec.max_new_tokens: N = rows x"
                " max_new_tokens"
            )
        # In float: rows x max_new_tokens may pass the range of int32.
        count = rows.astype(jnp.float32) * spec.max_new_tokens
    elif spec.normaliser == "token":
        count = jnp.sum(row_tokens).astype(jnp.float32)
    else:
        count = rows.astype(jnp.float32) * row_tokens
    share = 1.0 / jnp.maximum(count, 1.0)
    teacher_share = share
    if spec.teacher_normaliser == "own":
        teacher_share = 1.0 / jnp.maximum(jnp.sum(teacher).astype(jnp.float32), 1.0)
    if credit_from_B is not None:
        credit_from_B = jnp.asarray(credit_from_B)
        if credit_from_B.shape != length.shape:
            raise ValueError(
                f"credit_from_B has shape {list(credit_from_B.shape)}; expected"
                f" {list(length.shape)}"
            )
        policy &= jnp.arange(policy.shape[1])[None, :] >= credit_from_B[:, None]
    return jnp.where(policy, share, 0.0), jnp.where(teacher, teacher_share, 0.0)


def policy_loss(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array | None,
    advantage_BT: jax.Array,
    on_BT: jax.Array,
    off_BT: jax.Array,
    spec: LossSpec,
    *,
    teacher_weight: jax.Array | float | None = None,
    teacher_logp_BT: jax.Array | None = None,
    reference_logp_BT: jax.Array | None = None,
    sampler_logp_BT: jax.Array | None = None,
    distill_logp_BT: jax.Array | None = None,
    entropy_BT: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(float32[] loss, statistics): a sum over the rows given, to be minimised; input of
    `merge_stats`, `finish_stats`.

    All arrays are [B, T]; entry [b, t] belongs to token t of row b. `advantage_BT` may be [B, 1].

    logp_BT            log pi(token) under the parameters being trained; the only argument, with
                       entropy_BT, that is differentiated
    old_logp_BT        log pi_old; None: stop_gradient(logp_BT), right for one update a batch
    on_BT, off_BT      from `token_weights`. Where both are 0, NaN in any argument reaches neither
                       value nor gradient
    teacher_weight     lambda; None: spec.teacher_weight
    teacher_logp_BT    log-prob of the teacher, for `importance`; NaN where unknown, taken as
                       probability 1
    reference_logp_BT  log-prob of the reference, for the k3 estimate of KL(pi, reference) on POLICY
                       tokens
    sampler_logp_BT    as recorded while sampling, for the statistics, and for spec.tis_cap: the
                       surrogate is multiplied by min(pi_old / pi_sampler, tis_cap), and is 0
                       outside of spec.mask_low to mask_high; NaN where unknown, taken as weight 1
    distill_logp_BT    log-prob of the teacher on POLICY tokens, for spec.distill_weight
    entropy_BT         entropy of the next-token distribution that token t was drawn from, in nats

    The teacher term g: `teacher_gain`; sequence ratios and distillation: `own_term`.

    Raises ValueError where shapes differ or an argument that the spec needs is missing.
    """
    _check_given(
        logp_BT,
        spec,
        teacher_logp_BT=teacher_logp_BT,
        reference_logp_BT=reference_logp_BT,
        sampler_logp_BT=sampler_logp_BT,
        distill_logp_BT=distill_logp_BT,
        entropy_BT=entropy_BT,
    )
    tokens = weighed(logp_BT, old_logp_BT, advantage_BT, on_BT, off_BT)
    own = own_term(tokens, spec, distill_logp_BT, sampler_logp_BT)
    on_loss = -masked_sum(tokens.on * own.gain, tokens.is_on)
    gain = teacher_gain(tokens, spec, teacher_logp_BT)
    weight = spec.teacher_weight if teacher_weight is None else teacher_weight
    off_loss = -masked_sum(tokens.off * gain, tokens.is_off)
    total = on_loss + jnp.asarray(weight, jnp.float32) * off_loss
    if spec.distill_weight > 0 and spec.distill_form == "loss":
        total += distilled(tokens, own, spec)
    stats = own.stats | token_statistics(tokens, own)
    stats |= {"policy_loss_sum": on_loss, "teacher_loss_sum": off_loss}
    if sampler_logp_BT is not None:
        stats |= sampler_gap(tokens, sampler_logp_BT)
    total, penalties = _penalised(total, tokens, spec, reference_logp_BT, entropy_BT)
    return total, jax.lax.stop_gradient(stats | penalties)


def _penalised(
    total: jax.Array, tokens: Weighed, spec: LossSpec, reference_logp_BT: Any, entropy_BT: Any
) -> tuple[jax.Array, Stats]:
    """(the loss with the KL and the entropy bonus where they are given, statistics)."""
    stats: Stats = {}
    if reference_logp_BT is not None:
        kl = kl_estimate(tokens, reference_logp_BT)
        stats["kl_sum"] = masked_sum(kl, tokens.is_on)
        total += spec.kl_weight * masked_sum(tokens.on * kl, tokens.is_on)
    if entropy_BT is not None:
        shape = tokens.on.shape
        if jnp.shape(entropy_BT) != shape:
            raise ValueError(
                f"entropy_BT has shape {jnp.shape(entropy_BT)}; expected that of logp_BT, {shape}"
            )
        entropy = only(tokens.is_on, jnp.asarray(entropy_BT, jnp.float32))
        stats["entropy_sum"] = masked_sum(entropy, tokens.is_on)
        total -= spec.entropy_bonus * masked_sum(tokens.on * entropy, tokens.is_on)
    return total, stats


def merge_stats(*stats: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Statistics of several micro-batches as one: sums add, maxima (`*_max`) take the larger.
    Zeros change nothing, so `jax.tree.map(jnp.zeros_like, stats)` starts a scan."""

    def pair(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            name: jnp.maximum(a[name], b[name]) if name.endswith("_max") else a[name] + b[name]
            for name in a
        }

    return functools.reduce(pair, stats)


def finish_stats(stats: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Merged statistics as flat metrics (scalars); entropy, KL, weights and the sampler's gap only
    where `policy_loss` was given them.

    Means are per POLICY token, `policy/teacher_logp` per TEACHER token; 0 where there is no such
    token. `sampler/logp_gap_max` is the largest |log pi - log pi_sampler|, `sampler/logp_gap_mean`
    its mean: of the statistics of the first update on a batch, whose weights the sampler had, the
    gap between sampler and trainer.
    `policy/logp_move_max` is the largest |log pi - log pi_old|: how far updates on the same batch
    have moved the policy. `policy/clip_share` is the share of POLICY tokens
    whose gradient the clip (or dual clip) took away, under `cispo` whose weight lies at a bound,
    under `sapo` whose gate is below 1/2. `policy/tis_capped` and `policy/masked_share` are shares
    of POLICY tokens, `policy/masked_rows` is the share of rows of which no POLICY token is left.
    `policy/reverse_kl` is the mean of log pi_old - log pi_teacher, an estimate of the KL per token.
    `loss/policy` and `loss/teacher`, the latter
    before lambda, are sums with the weights of `token_weights`, as the loss itself.
    """
    on, off = jnp.maximum(stats["on_tokens"], 1), jnp.maximum(stats["off_tokens"], 1)
    metrics = {
        "policy/ratio_mean": stats["ratio_sum"] / on,
        "policy/ratio_max": stats["ratio_max"],
        "policy/logp_move_max": stats["move_max"],
        "policy/clip_share": stats["clip_count"] / on,
        "policy/teacher_logp": stats["teacher_logp_sum"] / off,
        "loss/policy": stats["policy_loss_sum"],
        "loss/teacher": stats["teacher_loss_sum"],
    }
    for name, metric in (
        ("entropy_sum", "policy/entropy"),
        ("kl_sum", "policy/kl"),
        ("tis_sum", "policy/tis_mean"),
        ("tis_capped", "policy/tis_capped"),
        ("masked_tokens", "policy/masked_share"),
        ("distill_sum", "policy/reverse_kl"),
    ):
        if name in stats:
            metrics[metric] = stats[name] / on
    if "masked_rows" in stats:
        metrics["policy/masked_rows"] = stats["masked_rows"] / jnp.maximum(stats["own_rows"], 1)
    if "gap_max" in stats:
        metrics["sampler/logp_gap_max"] = stats["gap_max"]
        metrics["sampler/logp_gap_mean"] = stats["gap_sum"] / jnp.maximum(stats["gap_count"], 1)
    return metrics


def _check_given(logp_BT: Any, spec: LossSpec, **given: Any) -> None:
    """Raises ValueError where there are no rows of tokens, or an argument that the spec needs is
    None."""
    if jnp.ndim(logp_BT) != 2:
        raise ValueError(f"logp_BT has shape {jnp.shape(logp_BT)}; expected [B, T]")
    for needed, because, name in (
        (spec.teacher_term == "importance", "teacher_term = 'importance'", "teacher_logp_BT"),
        (spec.kl_weight > 0, "kl_weight > 0", "reference_logp_BT"),
        (spec.tis_cap is not None, "tis_cap", "sampler_logp_BT"),
        (spec.masks, "mask_low or mask_high", "sampler_logp_BT"),
        (spec.distill_weight > 0, "distill_weight > 0", "distill_logp_BT"),
        (spec.entropy_bonus > 0, "entropy_bonus > 0", "entropy_BT"),
    ):
        if needed and given[name] is None:
            raise ValueError(f"policy_loss: LossSpec.{because} needs {name}")
