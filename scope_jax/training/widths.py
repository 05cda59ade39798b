"""How the rows of an update are divided: length buckets, passes, the widths that they are packed
to."""

import math

from scope_jax.configuration import TrainConfig
from scope_jax.devices.shapes import fine_width
from scope_jax.learning.packing import PackSizes

WIDTHS = 4  # of length buckets, at most: each is a program to compile


def buckets_and_passes(
    groups: int, group: int, length_buckets: int, micro_batches: int
) -> tuple[int, int]:
    """(length buckets that the rows of an update are divided into, micro-batches of each bucket)
    for `groups` groups of `group` rows."""
    buckets = math.gcd(groups, length_buckets)
    return buckets, math.gcd(groups // buckets * group, max(micro_batches // buckets, 1))


def pack_sizes(config: TrainConfig) -> PackSizes:
    """The widths of an update's rows: the most that the config allows; in length buckets, parts of
    that too, as many as buckets and at most four."""
    prompt, most = fine_width(config.rollout.prompt_tokens), fine_width(config.rollout.new_tokens)
    count = min(config.training.length_buckets, WIDTHS)
    shares = {min(fine_width(-(-most * part // count)), most) for part in range(1, count + 1)}
    return PackSizes((prompt,), tuple(sorted(shares)))


def bucketed_together(config: TrainConfig, group: int) -> int:
    """Consecutive rows that stay together in a length bucket: a group, with its prompt once; or
    each row for itself, where prompts are so short that to repeat them costs little."""
    return 1 if config.rollout.new_tokens >= 4 * config.rollout.prompt_tokens else group
