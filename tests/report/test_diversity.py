"""pass@k and diversity, against numbers worked out by hand and plain enumeration."""

import itertools
import math
import random
import time

import numpy as np
import pytest

from scope_jax.report.diversity import (
    SampleGroup,
    answer_entropy,
    distinct_n,
    distinct_paths,
    equation_diversity,
    group_metrics,
    mean_and_standard_error,
    pass_at_k,
    powers_up_to,
    rarefied_distinct_n,
    rarefied_paths,
    self_bleu,
)
from scope_jax.tasks.answers import equations_in


def test_pass_at_k_by_hand():
    assert pass_at_k(8, 2, 1) == pytest.approx(0.25)
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # 1 - C(2,2)/C(4,2)
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(8, 0, 8) == 0.0
    assert pass_at_k(8, 1, 8) == 1.0
    assert pass_at_k(5, 3, 3) == 1.0
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4)  # Factorials of this would overflow.


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample():
    for n, c, k in [(5, 2, 3), (6, 1, 2), (7, 4, 3)]:
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)])
def test_pass_at_k_out_of_range(n, c, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {c} correct in {n} samples"):
        pass_at_k(n, c, k)


def test_mean_and_standard_error():
    mean, error = mean_and_standard_error([1, 2, 3, 4])
    assert mean == 2.5 and error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert mean_and_standard_error([3.0])[0] == 3.0 and math.isnan(
        mean_and_standard_error([3.0])[1]
    )
    assert all(map(math.isnan, mean_and_standard_error([])))


def test_distinct_n():
    # 4-grams: 1234 2345 | 1234 | (too short) -> 2 of 3.
    assert distinct_n([[1, 2, 3, 4, 5], [1, 2, 3, 4], [9, 9]]) == pytest.approx(2 / 3)
    assert distinct_n([["a", "b", "a", "b"]], n=2) == pytest.approx(2 / 3)
    assert math.isnan(distinct_n([[1, 2, 3]]))


def test_self_bleu_by_hand():
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1.0)
    assert self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) == 0.0  # No unigram in common.
    # Orders 1 and 2. a b c against a b d: unigrams 2/3, bigrams (1+1)/(2+1); the same the other
    # way round.
    assert self_bleu(["abc", "abd"], max_n=2) == pytest.approx(2 / 3)
    # "ab" against "abcd": precisions 1 and 1, brevity exp(1 - 4/2). "abcd" against "ab": 2/4 and
    # (1+1)/(3+1).
    assert self_bleu(["ab", "abcd"], max_n=2) == pytest.approx((math.exp(-1) + 0.5) / 2)
    # Clipping: "aaa" has 3 a, the other 1: 1/3, bigrams (0+1)/(2+1). "ab": 1/2, bigrams 1/2;
    # brevity exp(1 - 3/2).
    assert self_bleu(["aaa", "ab"], max_n=2) == pytest.approx((1 / 3 + 0.5 * math.exp(-0.5)) / 2)
    assert self_bleu([[], []]) == 1.0 and self_bleu([[], [1]]) == 0.0
    assert math.isnan(self_bleu([[1, 2]]))


def plain_self_bleu(sequences, max_n=4):
    """The definition, gram by gram."""
    total = 0.0
    for i, hypothesis in enumerate(sequences):
        others = [s for j, s in enumerate(sequences) if j != i]
        precisions = []
        for n in range(1, min(max_n, len(hypothesis)) + 1):
            own = [tuple(hypothesis[a : a + n]) for a in range(len(hypothesis) - n + 1)]
            matched = 0
            for gram in set(own):
                there = max(
                    sum(tuple(o[a : a + n]) == gram for a in range(len(o) - n + 1)) for o in others
                )
                matched += min(own.count(gram), there)
            smooth = int(n > 1)
            precisions.append((matched + smooth) / (len(own) + smooth))
        nearest = min((abs(len(o) - len(hypothesis)), len(o)) for o in others)[1]
        brevity = min(1.0, math.exp(1 - nearest / len(hypothesis)))
        total += brevity * math.prod(precisions) ** (1 / len(precisions))
    return total / len(sequences)


def test_self_bleu_equals_the_definition():
    draw = random.Random(0)
    for _ in range(30):
        sequences = [
            [draw.randrange(4) for _ in range(draw.randrange(1, 12))]
            for _ in range(draw.randrange(2, 6))
        ]
        assert self_bleu(sequences) == pytest.approx(plain_self_bleu(sequences))


def test_equations():
    assert equations_in("So $x = 2$.\nno result\n x=2 \n= 3\n\\(y+1 = 4\\),") == [
        "Sox=2",
        "x=2",
        "y+1=4",
    ]
    assert equation_diversity(["a = 1\nb = 2", "a=1"], equations_in) == pytest.approx(2 / 3)
    assert equation_diversity(
        ["+3 4;-1 3", "+3 4"], extract=lambda text: text.split(";")
    ) == pytest.approx(2 / 3)
    assert math.isnan(equation_diversity(["words only"], equations_in))


def test_answer_entropy():
    assert answer_entropy(["1", "1", "2", "2"]) == pytest.approx(math.log(2))
    assert answer_entropy(["7", None, "7"]) == 0.0
    assert answer_entropy(["1", "2", "2", "2"]) == pytest.approx(
        0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    )
    assert math.isnan(answer_entropy([None, None]))


def test_distinct_paths():
    assert distinct_paths([(0, 1), (1, 0), (0, 1), None]) == 2
    assert distinct_paths([]) == 0


def test_rarefied_paths_by_hand():
    # 6 right samples, paths a x4, b x1, c x1; C(6, 4) = 15. a is in every draw of four (without it
    # two are left), b is missed where the four come from the five others: C(5, 4) = 5 of 15.
    assert rarefied_paths(["a", "b", "a", "c", "a", "a"]) == pytest.approx(1 + 2 * (1 - 5 / 15))
    # 5 samples, a x3 and b x2; C(5, 4) = 5: a always, b missed never (three others only).
    assert rarefied_paths("aaabb") == pytest.approx(2.0)
    assert rarefied_paths("aaaa") == 1.0 and rarefied_paths("abcd") == 4.0
    assert rarefied_paths(["a"] * 32) == pytest.approx(1.0)
    assert rarefied_paths("ab", size=1) == pytest.approx(1.0)  # one sample holds one path
    assert rarefied_paths([None, "a", "b", "c", None, "d"]) == 4.0
    assert math.isnan(rarefied_paths("aab")) and math.isnan(rarefied_paths([]))
    assert math.isnan(rarefied_paths([None, "a", "b", "c"]))  # a None is no path


def test_rarefied_measures_are_means_over_all_subsets():
    draw = random.Random(1)
    for _ in range(20):
        count, size = draw.randrange(4, 8), draw.choice((2, 3, 4))
        paths = [draw.randrange(3) for _ in range(count)]
        drawn = list(itertools.combinations(paths, size))
        expected = np.mean([len(set(subset)) for subset in drawn])
        assert rarefied_paths(paths, size) == pytest.approx(expected)
        rows = [[draw.randrange(3) for _ in range(draw.randrange(1, 9))] for _ in range(count)]
        grams = [[tuple(row[a : a + 2]) for a in range(len(row) - 1)] for row in rows]
        subsets = list(itertools.combinations(grams, size))
        distinct = np.mean([len({gram for own in s for gram in own}) for s in subsets])
        number = np.mean([sum(map(len, s)) for s in subsets])
        got = rarefied_distinct_n(rows, 2, size)
        assert got == pytest.approx(distinct / number)
        # Of all the sequences it is distinct_n.
        assert rarefied_distinct_n(rows, 2, count) == pytest.approx(distinct_n(rows, 2))


def test_more_right_samples_of_the_same_ways_do_not_move_the_rarefied_measures():
    """Twelve ways, equally likely, written 8 and 24 times: distinct paths double, rarefied paths
    stay where they are; so with n-grams."""
    draw = random.Random(2)
    ways = [[draw.randrange(10) for _ in range(12)] for _ in range(12)]
    found = []
    for samples in (8, 24):
        drawn = [[draw.randrange(12) for _ in range(samples)] for _ in range(400)]
        measures = (
            lambda d: distinct_paths(d),
            lambda d: rarefied_paths(d),
            lambda d: distinct_n([ways[i] for i in d]),
            lambda d: rarefied_distinct_n([ways[i] for i in d]),
        )
        found.append([np.mean([measure(d) for d in drawn]) for measure in measures])
    (paths, rare, grams, rare_grams), (paths_24, rare_24, grams_24, rare_grams_24) = found
    assert paths_24 / paths > 1.6 and grams_24 / grams < 0.7
    assert rare_24 == pytest.approx(rare, rel=0.02)
    assert rare_grams_24 == pytest.approx(rare_grams, rel=0.02)
    # In closed form: four draws with replacement of twelve ways.
    assert rare == pytest.approx(12 * (1 - (11 / 12) ** 4), rel=0.02)


def test_the_k_of_pass_at_k():
    assert powers_up_to(1) == [1] and powers_up_to(8) == [1, 2, 4, 8]
    assert powers_up_to(12) == [1, 2, 4, 8, 12] and powers_up_to(32)[-1] == 32


def test_group_metrics_of_right_samples_by_hand():
    """Three problems; of the second three samples are right, of the third none."""
    path = ["a", "a", "a", "b", None]
    tokens = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]]
    groups = [
        SampleGroup(tokens, ["1"] * 5, right, paths=path)
        for right in ([True] * 4 + [False], [True] * 3 + [False] * 2, [False] * 5)
    ]
    metrics = group_metrics(groups, extract=equations_in)
    assert metrics["diversity/rarefied_paths"] == 2.0  # of the first problem alone
    assert metrics["diversity/rarefied_problems"] == 1.0
    assert metrics["diversity/distinct_paths"] == pytest.approx((2 + 1 + 0) / 3)
    assert metrics["diversity/distinct_4_right"] == pytest.approx(2 / 4)
    assert metrics["diversity/distinct_4"] == pytest.approx(3 / 5)


def test_a_task_says_that_distinct_equations_mean_nothing():
    group = SampleGroup([[1]] * 2, ["1"] * 2, [True] * 2, texts=["a=1\nb=2", "a=1"])
    assert group_metrics([group], extract=equations_in)["diversity/div_equ"] == pytest.approx(2 / 3)
    assert math.isnan(group_metrics([group], extract=lambda text: None)["diversity/div_equ"])


def test_group_metrics_by_hand():
    first = SampleGroup(
        tokens=[[1, 2, 3, 4], [1, 2, 3, 4]],
        answers=["5", "6"],
        correct=[True, False],
        paths=[(0, 1), (1, 0)],  # The second is of a wrong sample and does not count.
        texts=["a=1", "a=1"],
    )
    second = SampleGroup(
        tokens=[[1, 2, 3, 4], [5, 6, 7, 8]],
        answers=[None, None],
        correct=[False, False],
        paths=[None, None],
        texts=["words", "words"],
    )
    metrics = group_metrics([first, second], extract=equations_in)
    assert metrics == pytest.approx(
        {
            "diversity/distinct_4_right": math.nan,  # one right sample, and none
            "diversity/rarefied_paths": math.nan,
            "diversity/rarefied_problems": 0.0,
            "diversity/distinct_4": (0.5 + 1.0) / 2,
            "diversity/one_minus_self_bleu": 1 - (1.0 + 0.0) / 2,
            "diversity/answer_entropy": math.log(2),
            "diversity/div_equ": 0.5,
            "diversity/distinct_paths": (1 + 0) / 2,
        },
        nan_ok=True,
    )
    # Self-BLEU of the first group only; no texts and no paths: no such keys.
    bare = [SampleGroup(group.tokens, group.answers, group.correct) for group in (first, second)]
    assert group_metrics(bare, extract=equations_in, bleu_groups=1) == pytest.approx(
        {
            "diversity/distinct_4": 0.75,
            "diversity/distinct_4_right": math.nan,
            "diversity/one_minus_self_bleu": 0.0,
            "diversity/answer_entropy": math.log(2),
        },
        nan_ok=True,
    )
    assert all(math.isnan(value) for value in group_metrics([], extract=equations_in).values())
    with pytest.raises(ValueError, match="group 0: one entry per sample"):
        group_metrics([SampleGroup([[1]], ["1", "2"], [True])], extract=equations_in)


def test_a_thousand_problems_are_quick():
    draw = np.random.default_rng(0)
    groups = [
        SampleGroup(
            draw.integers(0, 12, (8, 30)).tolist(),
            list("11122345"),
            [True] * 8,
            [(i, 1) for i in range(8)],
        )
        for _ in range(1000)
    ]
    start = time.process_time()
    metrics = group_metrics(groups, extract=equations_in)
    assert time.process_time() - start < 2.0
    assert metrics["diversity/distinct_paths"] == 8.0
