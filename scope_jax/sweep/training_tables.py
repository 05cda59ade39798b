"""Tables of the page of all results on the run itself, from the curves in the records: diversity
of the policy's own rollouts, and the reward at equal budgets."""

import math
from collections.abc import Sequence

import numpy as np

from scope_jax.report.tables import markdown
from scope_jax.sweep.cells import interval, plain, signed
from scope_jax.sweep.figures import (
    BASELINE,
    DIVERSITY,
    Groups,
    by_seed,
    curve_of,
    mean_cost,
    mean_value,
    value,
)
from scope_jax.sweep.records import Record
from scope_jax.sweep.statistics import Estimate, estimate

REWARD, PATHS, ENTROPY = "reward/mean", "diversity/distinct_paths", "policy/entropy"
LATEST = 5  # batches whose mean is the reward at a moment of the run
# What the policy writes: its rollouts, tails of rescued rows, own tries, a localiser's
# continuations.
WRITTEN = (
    "cost/rollout_tokens",
    "cost/tail_tokens",
    "cost/self_tokens",
    "cost/localiser_tokens",
)


def rollout_diversity(methods: Groups) -> str:
    """Distinct right paths of a prompt in the policy's own rollouts, against the baseline; empty
    where no run has such a curve."""
    if BASELINE not in methods:
        return ""
    fitted = _paths_of_reward(methods[BASELINE])
    rows = []
    for name, records in methods.items():
        if name == BASELINE:
            continue
        pairs = [
            pair
            for pair in _on_common_seeds(records, methods[BASELINE])
            if _whole(pair[0], pair[1], PATHS)
        ]
        if not pairs:
            continue
        size = len(curve_of(pairs[0][0], PATHS))
        thirds = [slice(size * i // 3, size * (i + 1) // 3) for i in range(3)]
        cells = [_against(pairs, PATHS, part) for part in (*thirds, slice(None))]
        cells.append(signed(_beyond(records, fitted), 100))
        cells.append(_against(pairs, ENTROPY, slice(None)))
        rows.append([name, str(len(pairs)), *cells])
    if not rows:
        return ""
    head = ["percent", "seeds", "first third", "second", "last", "whole run", "at equal reward"]
    return (
        "Distinct right paths of a prompt in the policy's **own rollouts during training**, against"
        f" {BASELINE} on common seeds (difference over {BASELINE}'s mean, ± half of the 95 %"
        f" interval). At equal reward: against what a cubic through the batches of {BASELINE} gives"
        " for the rewards of the run. Last column: the policy's entropy over the run.\n\n"
        + markdown([*head, "entropy"], rows)
        + "\n"
    )


def budgets(methods: Groups) -> str:
    """The reward that the policy had reached when it had spent the baseline's rollout batches, its
    tokens, and its seconds. A run that spent less is taken at its end. Empty without a baseline;
    runs so long that a point of their curve is not a batch are left out."""
    known = {
        n: r
        for n, r in methods.items()
        if all(_whole(one, one, REWARD) and one.get("curve_every", 1) == 1 for one in r)
    }
    if BASELINE not in known:
        return ""
    tokens, seconds = batch_costs(known)
    whole = min(len(curve_of(r, REWARD)) for r in known[BASELINE])
    rows = []
    for name, records in known.items():
        steps = min(len(curve_of(r, REWARD)) for r in records)
        cells = [interval(_reward_at(records, min(steps, whole)), 100)]
        for spent in (tokens, seconds):
            share = spent[BASELINE] / spent[name] if spent[name] else math.nan
            if math.isnan(share):
                cells += ["-", "-"]
                continue
            batch = min(steps, round(whole * share))
            cells += [f"{interval(_reward_at(records, batch), 100)} ({batch})", plain(1 / share)]
        rows.append([name, str(len(records)), *cells])
    head = [
        "method",
        "seeds",
        "equal batches",
        "equal tokens",
        "tokens",
        "equal seconds",
        "seconds",
    ]
    return (
        f"Reward of the policy's rollouts when {BASELINE}'s budget of a whole run is spent, mean of"
        f" the {LATEST} batches up to there (in brackets: the last of them), and what a batch takes"
        f" relative to {BASELINE}: tokens that the policy wrote, and seconds, teacher and PRM"
        " included. A run that is looked at early is a shorter run, since the learning rate is"
        " constant, but for SCOPE's teacher term, whose weight falls over the run.\n\n"
        + markdown(head, rows)
        + "\n"
    )


def batch_costs(methods: Groups) -> tuple[dict[str, float], dict[str, float]]:
    """What a batch of each method takes: tokens that the policy wrote, and seconds (teacher and PRM
    included; the median of the runs)."""
    tokens = {name: mean_cost(records, WRITTEN) for name, records in methods.items()}
    seconds = {
        name: float(np.median([r["seconds_per_step"] for r in records]))
        for name, records in methods.items()
    }
    return tokens, seconds


def explained(methods: Groups) -> str:
    """How far measures of diversity are accuracy under another name: their correlation with pass@1
    over the baseline's seeds, and the difference to the baseline before and after the line through
    those seeds is taken off. Empty for fewer than eight seeds of the baseline."""
    base = methods.get(BASELINE, [])
    accuracy = np.array([value(record, "eval/pass@1") for record in base])
    columns = [
        column
        for column in DIVERSITY
        if all(math.isfinite(value(record, column.metric)) for record in base)
    ]
    if len(base) < 8 or not np.isfinite(accuracy).all():
        return ""
    levels = {c.title: np.array([value(r, c.metric) for r in base]) for c in columns}
    reach = (float(accuracy.max()) - float(accuracy.min())) / 2
    r = [f"{np.corrcoef(accuracy, levels[c.title])[0, 1]:+.2f}" for c in columns]
    rows = [[f"r over {BASELINE}'s seeds", "", *r]]
    for name, records in methods.items():
        at = mean_value(records, "eval/pass@1")
        if name == BASELINE or not accuracy.min() - reach <= at <= accuracy.max() + reach:
            continue
        cells = []
        for column in columns:
            level = levels[column.title]
            line = np.polyfit(accuracy, level, 1)
            found = mean_value(records, column.metric)
            raw, left = (found / of - 1 for of in (level.mean(), float(np.polyval(line, at))))
            cells.append(f"{100 * raw:+.1f} → {100 * left:+.1f}")
        rows.append([name, str(len(records)), *cells])
    return (
        f"Diversity of the final policy against {BASELINE}, in percent: as it is, and against the"
        f" line through {BASELINE}'s seeds at the method's own pass@1. Where r is near 1 or -1 the"
        " measure says little beyond accuracy. Methods whose pass@1 is far from those seeds' are"
        " left out: a line says nothing there.\n\n"
        + markdown(["measure", "seeds", *(c.title for c in columns)], rows)
        + "\n"
    )


def _on_common_seeds(ours: Sequence[Record], theirs: Sequence[Record]) -> list[tuple]:
    mine, others = by_seed(ours), by_seed(theirs)
    return [(mine[s], others[s]) for s in sorted(mine.keys() & others.keys())]


def _whole(one: Record, other: Record, name: str) -> bool:
    """Whether both runs have a point of the curve for each batch, and as many."""
    pair = curve_of(one, name), curve_of(other, name)
    same = pair[0].shape == pair[1].shape
    return bool(same and pair[0].size and np.isfinite(pair[0] + pair[1]).all())


def _against(pairs: Sequence[tuple], name: str, part: slice) -> str:
    """Mean difference over a part of the run, over the mean of the others'."""
    means = [[float(curve_of(r, name)[part].mean()) for r in pair] for pair in pairs]
    base = float(np.mean([other for _, other in means]))
    return signed(_over(estimate([one - other for one, other in means]), base), 100)


def _over(e: Estimate, base: float) -> Estimate:
    return Estimate(e.mean / base, e.half / base, e.count) if base else Estimate(math.nan, 0.0, 0)


def _paths_of_reward(records: Sequence[Record]) -> np.ndarray:
    """Coefficients of a cubic: paths as a function of the reward, over all batches of all runs."""
    whole = [r for r in records if _whole(r, r, PATHS) and _whole(r, r, REWARD)]
    if not whole:
        return np.zeros(1)
    reward, paths = (np.concatenate([curve_of(r, n) for r in whole]) for n in (REWARD, PATHS))
    return np.polyfit(reward, paths, min(3, len(set(reward.tolist())) - 1))


def _beyond(records: Sequence[Record], fitted: np.ndarray) -> Estimate:
    """Paths of each run over what the fit gives for its rewards, less 1."""
    shares = []
    for record in records:
        reward, paths = curve_of(record, REWARD), curve_of(record, PATHS)
        expected = float(np.mean(np.polyval(fitted, reward))) if reward.size else 0.0
        shares.append(float(np.mean(paths)) / expected - 1 if expected > 0 else math.nan)
    return estimate(shares)


def _reward_at(records: Sequence[Record], batch: int) -> Estimate:
    """Mean reward of the latest batches before `batch`, over runs."""
    return estimate([float(np.mean(curve_of(r, REWARD)[:batch][-LATEST:])) for r in records])
