"""Advantages per token from scores of steps, and the penalty of long rows; numpy, on the host.

Rows are prompt-major: rows `[i * group, (i + 1) * group)` are the samples of prompt i. Positions
count from the start of the row, prompt included; ends are exclusive. The positions that a row wrote
are `[prompt_length, length)`; all others get 0.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

FORMS = ("sum", "min")
SHORTEN = ("fraction", "prompt", "fixed")


def step_advantages(
    score_BJ: ArrayLike,
    end_BJ: ArrayLike,
    valid_BJ: ArrayLike,
    prompt_length_B: ArrayLike,
    length_B: ArrayLike,
    T: int,
    group: int,
    *,
    form: str,
    temperature: float = 0.1,
    include_B: ArrayLike | None = None,
    epsilon: float = 1e-6,
) -> np.ndarray:
    """float32[B, T]: for each token, the sum of what the steps that end at or after it are worth,
    without discount.

    score_BJ      float: the probability p that the step is good
    end_BJ        int: where step j ends; it starts where step j - 1 ends, the first one after the
                  prompt
    valid_BJ      bool: steps that exist and were scored; a NaN score counts as not scored. Others
                  are worth nothing; of them only the end is read, where the next step was scored
    include_B     bool[B]: rows that count; the others get 0 and are not read

    form "sum": process supervision of GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.3). A step
    is worth (p - mean) / (std + epsilon), mean and population std over all scored steps of the
    group; 0 where those are all equal.

    form "min": PURE (arXiv 2504.15275). r = p - (1 - p) is weighted by the softmax over the row's
    steps of -r / temperature, so that the row's rewards add up to about its worst r. The baseline
    is that of the released code with `reward_baseline token`: the other rows' summed rewards over
    the other rows' tokens is what a token is expected to earn, and each step is charged that times
    its tokens. So it does not matter into how many steps a text is cut (a baseline per step
    favours rows of one step), and the first token of a row has the row's reward minus what its
    length would have earned elsewhere. (The paper's text divides by the longest length allowed
    instead, which makes the baseline depend on a setting. The released code also takes a step's
    last token, the separator, out of the count and gives it no advantage; here the separator is a
    token of its step as any other.) A step is worth its weighted r minus its charge.

    A row without a scored step has no process reward: all 0, and it is neither in the mean and std
    of `sum` nor, with its rewards and tokens, in the baseline of `min`. With `min` a row that is
    the only one of its group with scored steps has nothing to be compared with and gets 0.

    Raises ValueError where shapes do not fit, `form` is unknown, `temperature` is not above 0, or
    an included row has a scored step that is empty or lies outside what the row wrote.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown; one of {', '.join(FORMS)}")
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature} must be above 0")
    score, end, valid = (
        np.asarray(score_BJ, np.float64),
        np.asarray(end_BJ, np.int64),
        np.asarray(valid_BJ),
    )
    if (
        score.ndim != 2
        or end.shape != score.shape
        or valid.shape != score.shape
        or valid.dtype != bool
    ):
        found = f"float{list(score.shape)}, int{list(end.shape)}, {valid.dtype}{list(valid.shape)}"
        raise ValueError(
            f"score_BJ, end_BJ, valid_BJ are {found}; expected float, int and bool of one shape"
            " [B, J]"
        )
    B = score.shape[0]
    prompt_length, length = (
        _rows("prompt_length_B", prompt_length_B, B),
        _rows("length_B", length_B, B),
    )
    include = _included(include_B, B, group)
    start = np.concatenate([prompt_length[:, None], end[:, :-1]], axis=1)[:, : score.shape[1]]
    valid = valid & ~np.isnan(score) & include[:, None]
    wrong = valid & (
        (start < prompt_length[:, None]) | (end <= start) | (end > np.minimum(length, T)[:, None])
    )
    if wrong.any():
        b, j = (int(x[0]) for x in np.nonzero(wrong))
        where = f"positions [{prompt_length[b]}, {min(length[b], T)}) of the row"
        raise ValueError(
            f"step {j} of row {b} covers positions [{start[b, j]}, {end[b, j]}); expected some of"
            f" the {where}"
        )

    score = np.where(valid, score, 0.0)
    if form == "sum":
        worth = _normalised(score, valid, group, epsilon)
    else:
        worth = _against_other_rows(
            _min_form(2 * score - 1, valid, temperature),
            np.where(valid, end - start, 0),
            valid,
            group,
        )
    token = np.zeros((B, T))
    row, step = np.nonzero(valid)
    token[row, end[row, step] - 1] = worth[row, step]
    token = np.cumsum(token[:, ::-1], axis=1)[:, ::-1]
    return np.where(_written(prompt_length, length, T), token, 0.0).astype(np.float32)


def prefix_advantages(
    reward_B: ArrayLike,
    prefix_end_B: ArrayLike,
    prompt_length_B: ArrayLike,
    length_B: ArrayLike,
    T: int,
    group: int,
    *,
    alpha: float = 0.5,
    shorten: str = "fraction",
    shorten_by: float = 0.1,
    include_B: ArrayLike | None = None,
) -> np.ndarray:
    """float32[B, T]: VPPO (arXiv 2601.18984, equation 7). A token is worth 1 in a right row,
    `alpha` in the rewarded prefix of a failed one, 0 in the rest; minus the mean over the group of
    the rows' averages over their tokens; no division by a std.

    reward_B      float[B]: 1 is right, any other number failed, NaN not judged
    prefix_end_B  int[B]: where the good prefix of a failed row ends, which is where its first wrong
                  step starts, or its prompt ends where nothing is good. Not read in other rows
    include_B     bool[B]: rows that count

    Rows that do not count or were not judged get 0 and are out of the mean. The rewarded prefix is
    the good one without its last tokens, so that it does not pay to cut a text into more steps:
    without as many as the prompt has (`shorten` "prompt", the paper's choice), without
    `shorten_by` ("fixed"), or without that share of the prefix, rounded up ("fraction": where
    prompts are longer than prefixes, "prompt" would leave nothing).

    Raises ValueError where shapes do not fit, `shorten` is unknown, a number makes no sense, or a
    prefix ends outside the positions that its row wrote.
    """
    if shorten not in SHORTEN:
        raise ValueError(f"shorten {shorten!r} is unknown; one of {', '.join(SHORTEN)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha} must lie in [0, 1]")
    if not 0 <= shorten_by < math.inf or (shorten == "fraction" and shorten_by > 1):
        raise ValueError(
            f"shorten_by = {shorten_by}: expected a share in [0, 1] for 'fraction', 0 tokens or"
            " more for 'fixed'"
        )
    reward = np.asarray(reward_B, np.float64)
    if reward.ndim != 1:
        raise ValueError(
            f"reward_B has shape {list(reward.shape)}; expected one reward per row, [B]"
        )
    B = reward.shape[0]
    prompt_length, length = (
        _rows("prompt_length_B", prompt_length_B, B),
        _rows("length_B", length_B, B),
    )
    end = _rows("prefix_end_B", prefix_end_B, B)
    include = _included(include_B, B, group) & ~np.isnan(reward)
    right = include & (reward == 1)
    failed = include & ~right
    wrong = failed & ((end < prompt_length) | (end > np.minimum(length, T)))
    if wrong.any():
        b = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"prefix_end_B[{b}] = {end[b]}; expected a position in [{prompt_length[b]},"
            f" {min(length[b], T)}]"
        )

    good = np.where(failed, end - prompt_length, 0)
    if shorten == "prompt":
        good = good - prompt_length
    elif shorten == "fixed":
        good = good - math.ceil(shorten_by)
    else:
        # A hair less than the product: 0.28 x 25 is 7.000000000000001, which is not eight tokens.
        good = good - np.ceil(shorten_by * good - 1e-9).astype(np.int64)
    good = np.maximum(good, 0)

    written = _written(prompt_length, length, T)
    rewarded = written & (np.arange(T)[None] < (prompt_length + good)[:, None])
    worth = np.where(right[:, None] & written, 1.0, np.where(rewarded, alpha, 0.0))
    average = np.where(right, 1.0, alpha * good / np.maximum(length - prompt_length, 1))
    average = np.where(include, average, 0.0).reshape(-1, group)
    count = np.maximum(include.reshape(-1, group).sum(axis=1), 1)
    mean = np.repeat(average.sum(axis=1) / count, group)
    return np.where(written & include[:, None], worth - mean[:, None], 0.0).astype(np.float32)


def overlong_penalty(
    length_B: ArrayLike, max_new: int, buffer: int, penalty: float = 1.0
) -> np.ndarray:
    """float32[B], to be added to the rewards: DAPO's soft overlong punishment (arXiv 2503.14476,
    equation 13).

    `length_B` int[B]: tokens that the rows wrote, prompts not counted. 0 up to `max_new - buffer`
    tokens, from there in a straight line to `-penalty` at `max_new`.

    Raises ValueError unless 1 <= buffer <= max_new and penalty is a number of 0 or more.
    """
    if not 1 <= buffer <= max_new:
        raise ValueError(f"buffer = {buffer} tokens; expected 1 to max_new = {max_new}")
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty = {penalty} must be a number of 0 or more")
    over = np.asarray(length_B, np.float64) - (max_new - buffer)
    # 0.0 - ...: a row inside the limit gets 0, not the -0 that a product with -penalty would give.
    return (0.0 - penalty * np.clip(over / buffer, 0.0, 1.0)).astype(np.float32)


def _normalised(score: np.ndarray, valid: np.ndarray, group: int, epsilon: float) -> np.ndarray:
    """[B, J] scores minus mean, over std, of the scored steps of their group; 0 where a step is
    not scored."""
    B, J = score.shape
    score_PN, valid_PN = (x.reshape(B // group, group * J) for x in (score, valid))
    count = np.maximum(valid_PN.sum(axis=1, keepdims=True), 1)
    difference = np.where(valid_PN, score_PN - score_PN.sum(axis=1, keepdims=True) / count, 0.0)
    std = np.sqrt((difference**2).sum(axis=1, keepdims=True) / count)
    highest = np.where(valid_PN, score_PN, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    lowest = np.where(valid_PN, score_PN, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    # Compared as they are: the mean of equal scores may differ from them in the last bit.
    differ = highest > lowest
    return (np.where(differ, difference, 0.0) / np.where(differ, std + epsilon, 1.0)).reshape(
        score.shape
    )


def _min_form(reward: np.ndarray, valid: np.ndarray, temperature: float) -> np.ndarray:
    """[B, J]: rewards weighted by the softmax of -reward / temperature over the row's scored
    steps."""
    logit = np.where(valid, -reward / temperature, -np.inf)
    highest = logit.max(axis=1, keepdims=True, initial=-1e300)
    weight = np.where(valid, np.exp(logit - highest), 0.0)
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300) * reward * valid


def _against_other_rows(
    reward: np.ndarray, tokens: np.ndarray, valid: np.ndarray, group: int
) -> np.ndarray:
    """[B, J] rewards minus (the other rows' reward per token) times the step's tokens; 0 where no
    other row has any."""
    total, count = (x.sum(axis=1).reshape(-1, group) for x in (reward, tokens))
    others, other_tokens = (x.sum(axis=1, keepdims=True) - x for x in (total, count))
    per_token = (others / np.maximum(other_tokens, 1)).reshape(-1, 1)
    compared = (other_tokens > 0).reshape(-1, 1)
    return np.where(valid & compared, reward - per_token * tokens, 0.0)


def _written(prompt_length: np.ndarray, length: np.ndarray, T: int) -> np.ndarray:
    position = np.arange(T)[None]
    return (position >= prompt_length[:, None]) & (position < length[:, None])


def _rows(name: str, values: ArrayLike, B: int) -> np.ndarray:
    out = np.asarray(values, np.int64)
    if out.shape != (B,):
        raise ValueError(f"{name} has shape {list(out.shape)}; expected [{B}]")
    return out


def _included(include_B: ArrayLike | None, B: int, group: int) -> np.ndarray:
    if group < 1 or B % group:
        raise ValueError(
            f"{B} rows do not make whole groups of {group}; B must be a multiple of group"
        )
    if include_B is None:
        return np.ones(B, bool)
    include = np.asarray(include_B)
    if include.shape != (B,) or include.dtype != bool:
        raise ValueError(f"include_B is {include.dtype}{list(include.shape)}; expected bool[{B}]")
    return include
