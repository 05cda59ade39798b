"""pass@k, and how different the samples of one problem are from each other."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

# The equations of one text; None: the task has none that could occur twice.
Extract = Callable[[str], list[str] | None]

RAREFIED = 4  # right rows that paths are rarefied to


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k of one problem: 1 - C(n-c, k) / C(n, k), from `n` samples of which `c` are
    correct.

    Chen et al. 2021 (arXiv 2107.03374), as a product of factors in [0, 1], which does not
    overflow. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(
            f"pass@{k} of {c} correct in {n} samples: 0 <= c <= n and 1 <= k <= n are needed"
        )
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error: the sample standard deviation (n - 1) over sqrt(n). The error
    of one value is NaN; for no value both are."""
    values_N = np.asarray(values, np.float64)
    if values_N.size == 0:
        return math.nan, math.nan
    error = values_N.std(ddof=1) / math.sqrt(values_N.size) if values_N.size > 1 else math.nan
    return float(values_N.mean()), float(error)


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int = 4) -> float:
    """Number of distinct n-grams over number of n-grams, of all `sequences` together: in (0, 1],
    NaN where there is no n-gram."""
    grams = [gram for sequence in sequences for gram in _ngrams(sequence, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(sequences: Sequence[Sequence[Hashable]], max_n: int = 4) -> float:
    """Mean BLEU of each sequence against all the others, in [0, 1]; 1 where all are alike, NaN for
    fewer than 2 sequences.

    Zhu et al. 2018 (arXiv 1802.01886). BLEU here: geometric mean of the clipped n-gram precisions,
    n = 1..max_n, times the brevity penalty against the reference nearest in length (the shorter of
    two). Precisions of n >= 2 are smoothed by adding one to both counts (Lin and Och 2004), that
    of n = 1 is not. Orders longer than the sequence are left out; an empty sequence has BLEU 1 if
    another is empty too, else 0.
    """
    if len(sequences) < 2:
        return math.nan
    lengths = [len(sequence) for sequence in sequences]
    log_precision = np.zeros(len(sequences))
    orders = np.zeros(len(sequences))
    for n in range(1, max_n + 1):
        counts = [Counter(_ngrams(sequence, n)) for sequence in sequences]
        first, second = _two_largest(counts)
        for i, count_of in enumerate(counts):
            total = lengths[i] - n + 1
            if total < 1:
                continue
            # A gram counts at most as often as it occurs in any one of the other sequences.
            matched = 0
            for gram, count in count_of.items():
                elsewhere = second.get(gram, 0) if first[gram][1] == i else first[gram][0]
                matched += count if count < elsewhere else elsewhere
            smooth = 1 if n > 1 else 0
            log_precision[i] += (
                math.log((matched + smooth) / (total + smooth)) if matched + smooth else -math.inf
            )
            orders[i] += 1
    scores = []
    for i, length in enumerate(lengths):
        others = lengths[:i] + lengths[i + 1 :]
        if length == 0:
            scores.append(float(0 in others))
            continue
        nearest = min(others, key=lambda other: (abs(other - length), other))
        brevity = 1.0 if length >= nearest else math.exp(1.0 - nearest / length)
        scores.append(brevity * math.exp(log_precision[i] / orders[i]))
    return float(np.mean(scores))


def equation_diversity(texts: Sequence[str], extract: Extract) -> float:
    """Div-Equ: number of distinct equations over number of equations, of all `texts` together; NaN
    where there is none.

    `extract(text)` gives the equations of one text as normalised strings (`Domain.equations`); None
    where the task has none that could occur twice, for the share would be 1 by construction.
    """
    equations = [equation for text in texts for equation in extract(text) or ()]
    return len(set(equations)) / len(equations) if equations else math.nan


def answer_entropy(answers: Sequence[Hashable | None]) -> float:
    """Entropy of the final answers, in nats. None (no answer) does not count; NaN where all are
    None."""
    counts = np.array(
        list(Counter(answer for answer in answers if answer is not None).values()), np.float64
    )
    if counts.size == 0:
        return math.nan
    share = counts / counts.sum()
    return float(-np.sum(share * np.log(share))) + 0.0  # + 0.0: one answer gives 0, not -0.


def distinct_paths(paths: Sequence[Hashable | None]) -> int:
    """Number of different solution paths of one problem's correct samples. None does not count."""
    return len({path for path in paths if path is not None})


def rarefied_paths(paths: Sequence[Hashable | None], size: int = RAREFIED) -> float:
    """Expected number of distinct paths among `size` of one problem's right samples, drawn without
    replacement: sum over the paths j of 1 - C(c - n_j, size) / C(c, size), with n_j copies of path
    j and c = sum of n_j. In [1, size]; NaN where c < `size`.

    `paths` are those of the right samples; a None (no path can be read) does not count. Hurlbert's
    rarefaction (1971): `distinct_paths` rises with the number of right samples, this does not.
    """
    copies = Counter(path for path in paths if path is not None)
    count = sum(copies.values())
    return _expected_kinds(copies.values(), count, size) if count >= size else math.nan


def rarefied_distinct_n(
    sequences: Sequence[Sequence[Hashable]], n: int = 4, size: int = RAREFIED
) -> float:
    """`distinct_n` at `size` of the sequences, drawn without replacement: expected number of
    distinct n-grams over expected number of n-grams. In (0, 1]; NaN for fewer than `size` sequences
    and where there is no n-gram.

    `distinct_n` falls with the number of sequences that are thrown together, this does not.
    """
    count = len(sequences)
    grams = [_ngrams(sequence, n) for sequence in sequences]
    total = sum(map(len, grams))
    if count < size or not total:
        return math.nan
    sequences_with = Counter(gram for own in grams for gram in set(own))
    return _expected_kinds(sequences_with.values(), count, size) / (total * size / count)


def _expected_kinds(holders: Iterable[int], count: int, size: int) -> float:
    """Expected number of kinds among `size` of `count` rows, drawn without replacement: `holders`
    says how many of the rows have each kind."""
    ways = math.comb(count, size)
    return sum(
        kinds * (1.0 - math.comb(count - rows, size) / ways)
        for rows, kinds in Counter(holders).items()
    )


def powers_up_to(samples: int) -> list[int]:
    """The k of pass@k that are shown for a number of samples: 1, 2, 4, ..., and all of them."""
    return sorted({1 << i for i in range(samples.bit_length())} | {samples})


@dataclasses.dataclass(frozen=True)
class SampleGroup:
    """The policy's own samples of one problem; index i is the same sample in every list."""

    tokens: Sequence[Sequence[int]]  # ids that the policy wrote, without the prompt
    answers: Sequence[str | None]  # final answers; None where there is none
    correct: Sequence[bool]
    # Ways of the solutions; None where the task defines none.
    paths: Sequence[Hashable | None] | None = None
    texts: Sequence[str] | None = None  # decoded tokens; needed for equations only


def group_metrics(
    groups: Sequence[SampleGroup],
    *,
    extract: Extract,
    bleu_groups: int = 256,
) -> dict[str, float]:
    """The flat `diversity/*` metrics: means over the problems where they are defined, NaN where
    that is nowhere.

        distinct_4           of token ids
        one_minus_self_bleu  of token ids; costly, so of at most `bleu_groups` problems, spread
                             evenly over the list (the same ones each time)
        answer_entropy       in nats
        div_equ              where texts are given: of the equations that `extract` finds in them
        distinct_paths       where the task defines paths: number of different correct solutions
                             of a problem, 0 where none is correct

    Wrong samples differ more from each other than right ones, and more right ones hold more paths:
    each of these moves with accuracy. Those that follow are of `RAREFIED` right samples, and of the
    problems that have as many; accuracy by itself does not move them:

        distinct_4_right     `rarefied_distinct_n` of the right samples' token ids
        rarefied_paths       where the task defines paths: `rarefied_paths` of the right samples
        rarefied_problems    how many problems that is the mean of

    Raises ValueError for lists of different lengths within a group.
    """
    for number, group in enumerate(groups):
        sizes = {
            name: len(values)
            for name in ("tokens", "answers", "correct", "paths", "texts")
            if (values := getattr(group, name)) is not None
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"group {number}: one entry per sample is needed in each list, found {sizes}"
            )
    count = min(bleu_groups, len(groups))
    chosen = [groups[i * len(groups) // count] for i in range(count)]
    metrics = {
        "diversity/distinct_4": _defined_mean([distinct_n(group.tokens, 4) for group in groups]),
        "diversity/distinct_4_right": _defined_mean([_distinct_4_right(group) for group in groups]),
        "diversity/one_minus_self_bleu": 1.0
        - _defined_mean([self_bleu(group.tokens) for group in chosen]),
        "diversity/answer_entropy": _defined_mean(
            [answer_entropy(group.answers) for group in groups]
        ),
    }
    with_texts = [group.texts for group in groups if group.texts is not None]
    if with_texts:
        metrics["diversity/div_equ"] = _defined_mean(
            [equation_diversity(texts, extract) for texts in with_texts]
        )
    right_paths = [
        [path for path, right in zip(group.paths, group.correct) if right]
        for group in groups
        if group.paths is not None
    ]
    if right_paths:
        rarefied = [rarefied_paths(paths) for paths in right_paths]
        metrics |= {
            "diversity/distinct_paths": _defined_mean(list(map(distinct_paths, right_paths))),
            "diversity/rarefied_paths": _defined_mean(rarefied),
            "diversity/rarefied_problems": float(sum(not math.isnan(e) for e in rarefied)),
        }
    return metrics


def _distinct_4_right(group: SampleGroup) -> float:
    return rarefied_distinct_n([t for t, right in zip(group.tokens, group.correct) if right], 4)


def _ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple]:
    return list(zip(*(sequence[i:] for i in range(n))))


def _two_largest(counts: list[Counter]) -> tuple[dict, dict]:
    """({gram: (largest count, index of the sequence)}, {gram: largest count elsewhere})."""
    first: dict[tuple, tuple[int, int]] = {}
    second: dict[tuple, int] = {}
    for i, count_of in enumerate(counts):
        for gram, count in count_of.items():
            top = first.get(gram)
            if top is None:
                first[gram] = (count, i)
            elif count > top[0]:
                first[gram], second[gram] = (count, i), top[0]
            elif count > second.get(gram, 0):
                second[gram] = count
    return first, second


def _defined_mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
