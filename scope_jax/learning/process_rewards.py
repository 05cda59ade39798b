"""Advantages per token from scores of steps, and the penalty of long rows; numpy, on the host.

The positions that a row wrote are `[prompt_length, length)`; tokens elsewhere get 0.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of a batch were written, and which of them count.

    Rows are prompt-major: rows `[i * group, (i + 1) * group)` are the samples of prompt i.
    Positions count from the start of the row, prompt included; ends are exclusive.

    prompt_length_B, length_B  int64[B]: what a row wrote is `[prompt_length, length)`
    T                          tokens that a row has room for
    group                      samples per prompt
    include_B                  bool[B]: rows that count; the others get 0 and are not read
    """

    prompt_length_B: np.ndarray
    length_B: np.ndarray
    T: int
    group: int
    include_B: np.ndarray

    @classmethod
    def of(
        cls,
        prompt_length_B: ArrayLike,
        length_B: ArrayLike,
        T: int,
        group: int,
        include_B: ArrayLike | None = None,
    ) -> "Rows":
        """The rows of these lengths; all of them count where `include_B` is None.

        Raises ValueError where shapes do not fit each other or `group`."""
        prompt_length = np.asarray(prompt_length_B, np.int64)
        B = prompt_length.size
        length = _one_each("length_B", length_B, B)
        if group < 1 or B % group:
            raise ValueError(
                f"{B} rows do not make whole groups of {group}; B must be a multiple of group"
            )
        include = np.ones(B, bool) if include_B is None else np.asarray(include_B)
        if include.shape != (B,) or include.dtype != bool:
            raise ValueError(
                f"include_B is {include.dtype}{list(include.shape)}; expected bool[{B}]"
            )
        return cls(prompt_length, length, T, group, include)

    @property
    def written_BT(self) -> np.ndarray:
        """bool[B, T]: the tokens that rows wrote."""
        position = np.arange(self.T)[None]
        return (position >= self.prompt_length_B[:, None]) & (position < self.length_B[:, None])

    @property
    def stop_B(self) -> np.ndarray:
        """int64[B]: where what a row wrote ends, within T."""
        return np.minimum(self.length_B, self.T)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The scored steps of rows.

    score_BJ  float64: the probability p that the step is good; 0 where it is not valid
    start_BJ, end_BJ  int64: the positions of the step; the first one starts after the prompt
    valid_BJ  bool: steps that exist and were scored, in rows that count
    """

    score_BJ: np.ndarray
    start_BJ: np.ndarray
    end_BJ: np.ndarray
    valid_BJ: np.ndarray

    @classmethod
    def of(cls, rows: Rows, score_BJ: ArrayLike, end_BJ: ArrayLike, valid_BJ: ArrayLike) -> "Steps":
        """The steps that end at `end_BJ`. A NaN score counts as not scored; of a step that was not
        scored only the end is read, where the next step was.

        Raises ValueError where shapes do not fit, or a row that counts has a scored step that is
        empty or lies outside what the row wrote."""
        score, end = np.asarray(score_BJ, np.float64), np.asarray(end_BJ, np.int64)
        valid, B = np.asarray(valid_BJ), len(rows.length_B)
        shapes = {score.shape, end.shape, valid.shape}
        if len(shapes) > 1 or score.shape[:1] != (B,) or score.ndim != 2 or valid.dtype != bool:
            found = f"float{list(score.shape)}, int{list(end.shape)}"
            raise ValueError(
                f"score_BJ, end_BJ, valid_BJ are {found}, {valid.dtype}{list(valid.shape)};"
                f" expected float, int and bool of one shape [{B}, J]"
            )
        start = np.concatenate([rows.prompt_length_B[:, None], end[:, :-1]], axis=1)
        start = start[:, : score.shape[1]]
        valid = valid & ~np.isnan(score) & rows.include_B[:, None]
        before, after = start < rows.prompt_length_B[:, None], end > rows.stop_B[:, None]
        wrong = valid & (before | (end <= start) | after)
        if wrong.any():
            b, j = (int(x[0]) for x in np.nonzero(wrong))
            raise ValueError(
                f"step {j} of row {b} covers positions [{start[b, j]}, {end[b, j]}); expected some"
                f" of the positions [{rows.prompt_length_B[b]}, {rows.stop_B[b]}) of the row"
            )
        return cls(np.where(valid, score, 0.0), start, end, valid)


def summed_step_advantages(rows: Rows, steps: Steps, *, epsilon: float = 1e-6) -> np.ndarray:
    """float32[B, T]: for each token, the sum of what the steps that end at or after it are worth,
    without discount: process supervision of GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.3).

    A step is worth (p - mean) / (std + epsilon), mean and population std over all scored steps of
    the group; 0 where those are all equal. A row without a scored step has no process reward: all
    0, and out of the mean.
    """
    return _to_go(rows, steps, _normalised(steps.score_BJ, steps.valid_BJ, rows.group, epsilon))


def worst_step_advantages(rows: Rows, steps: Steps, *, temperature: float = 0.1) -> np.ndarray:
    """float32[B, T]: for each token, the sum of what the steps that end at or after it are worth,
    without discount: the min-form of PURE (arXiv 2504.15275).

    r = p - (1 - p) is weighted by the softmax over the row's steps of -r / temperature, so that the
    row's rewards add up to about its worst r. A step is worth its weighted r minus its charge.

    The baseline is that of the released code with `reward_baseline token`: the other rows' summed
    rewards over the other rows' tokens is what a token is expected to earn, and each step is
    charged that times its tokens. So it does not matter into how many steps a text is cut (a
    baseline per step favours rows of one step), and the first token of a row has the row's reward
    minus what its length would have earned elsewhere. (The paper's text divides by the longest
    length allowed instead, which makes the baseline depend on a setting. The released code also
    takes a step's last token, the separator, out of the count and gives it no advantage; here the
    separator is a token of its step as any other.)

    A row without a scored step has no process reward: all 0, and with its rewards and tokens out of
    the baseline. A row that is the only one of its group with scored steps has nothing to be
    compared with and gets 0.
    """
    reward = _min_form(2 * steps.score_BJ - 1, steps.valid_BJ, temperature)
    tokens = np.where(steps.valid_BJ, steps.end_BJ - steps.start_BJ, 0)
    return _to_go(rows, steps, _against_other_rows(reward, tokens, steps.valid_BJ, rows.group))


def prefix_advantages(
    rows: Rows,
    reward_B: ArrayLike,
    prefix_end_B: ArrayLike,
    *,
    alpha: float = 0.5,
    shorten: Literal["fraction", "prompt", "fixed"] = "fraction",
    shorten_by: float = 0.1,
) -> np.ndarray:
    """float32[B, T]: VPPO (arXiv 2601.18984, equation 7). A token is worth 1 in a right row,
    `alpha` in the rewarded prefix of a failed one, 0 in the rest; minus the mean over the group of
    the rows' averages over their tokens; no division by a std.

    reward_B      float[B]: 1 is right, any other number failed, NaN not judged
    prefix_end_B  int[B]: where the good prefix of a failed row ends, which is where its first wrong
                  step starts, or its prompt ends where nothing is good. Not read in other rows
    shorten, shorten_by  see `shortened`

    Rows that were not judged get 0 and are out of the mean, as those that do not count.

    Raises ValueError where shapes do not fit or a prefix ends outside what its row wrote.
    """
    prompt_length, B = rows.prompt_length_B, len(rows.length_B)
    reward = np.asarray(reward_B, np.float64)
    if reward.shape != (B,):
        raise ValueError(f"reward_B has shape {list(reward.shape)}; expected [{B}]")
    end = _one_each("prefix_end_B", prefix_end_B, B)
    include = rows.include_B & ~np.isnan(reward)
    right = include & (reward == 1)
    failed = include & ~right
    wrong = failed & ((end < prompt_length) | (end > rows.stop_B))
    if wrong.any():
        b = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"prefix_end_B[{b}] = {end[b]}; expected a position in [{prompt_length[b]},"
            f" {rows.stop_B[b]}]"
        )

    good = np.where(failed, end - prompt_length, 0)
    good = shortened(good, prompt_length, shorten, shorten_by)
    written = rows.written_BT
    rewarded = written & (np.arange(rows.T)[None] < (prompt_length + good)[:, None])
    worth = np.where(right[:, None] & written, 1.0, np.where(rewarded, alpha, 0.0))
    average = np.where(right, 1.0, alpha * good / np.maximum(rows.length_B - prompt_length, 1))
    average = np.where(include, average, 0.0).reshape(-1, rows.group)
    count = np.maximum(include.reshape(-1, rows.group).sum(axis=1), 1)
    mean = np.repeat(average.sum(axis=1) / count, rows.group)
    return np.where(written & include[:, None], worth - mean[:, None], 0.0).astype(np.float32)


def shortened(
    good_B: np.ndarray,
    prompt_length_B: np.ndarray,
    shorten: Literal["fraction", "prompt", "fixed"],
    shorten_by: float,
) -> np.ndarray:
    """int64[B]: the tokens of good prefixes that are rewarded, so that it does not pay to cut a
    text into more steps: all but as many as the prompt has ("prompt", the paper's choice), all but
    `shorten_by` ("fixed"), or all but that share of them, rounded up ("fraction": where prompts are
    longer than prefixes, "prompt" would leave nothing). Never below 0."""
    if shorten == "prompt":
        less = prompt_length_B
    elif shorten == "fixed":
        less = np.full_like(good_B, math.ceil(shorten_by))
    else:
        # A hair less than the product: 0.28 x 25 is 7.000000000000001, which is not eight tokens.
        less = np.ceil(shorten_by * good_B - 1e-9).astype(np.int64)
    return np.maximum(good_B - less, 0)


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


def _to_go(rows: Rows, steps: Steps, worth_BJ: np.ndarray) -> np.ndarray:
    """float32[B, T]: for each token, the worth of the steps that end at or after it."""
    token = np.zeros((len(rows.length_B), rows.T))
    row, step = np.nonzero(steps.valid_BJ)
    token[row, steps.end_BJ[row, step] - 1] = worth_BJ[row, step]
    token = np.cumsum(token[:, ::-1], axis=1)[:, ::-1]
    return np.where(rows.written_BT, token, 0.0).astype(np.float32)


def _one_each(name: str, values: ArrayLike, B: int) -> np.ndarray:
    out = np.asarray(values, np.int64)
    if out.shape != (B,):
        raise ValueError(f"{name} has shape {list(out.shape)}; expected [{B}]")
    return out
