"""What is measured: shapes of models, sizes of the work, the parts in order of worth. No package
beside Python's own, so that the process that hands the work out needs none."""

import dataclasses
import math
import random


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Qwen2-type decoder with tied embeddings, as numbers."""

    name: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int


QWEN_1_5B = Shape("Qwen2.5-1.5B", 151_936, 1536, 28, 12, 2, 128, 8960)
QWEN_0_5B = Shape("Qwen2.5-0.5B", 151_936, 896, 24, 14, 2, 64, 4864)
MEDIUM = Shape("medium (33M)", 4096, 512, 8, 8, 2, 64, 2048)
MEDIUM_SMALL = Shape("medium (8M)", 4096, 256, 4, 4, 2, 64, 1024)
TINY = Shape("tiny", 512, 64, 2, 4, 2, 16, 128)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much work the parts do. Lengths in tokens."""

    name: str
    large: Shape
    small: Shape  # of the parts "small-..."
    dtype: str
    prompts: int  # of the rollouts
    group: int  # rows of each prompt, everywhere
    prompt_tokens: int  # everywhere
    new_tokens: int  # of the rollouts "fixed" and, at most, "varied"
    varied_seats: int
    long_tokens: int  # at most, in "long"
    long_mean: int  # about what its rows use of them
    long_seats: int
    update_prompts: int
    update_tokens: int  # of each completion of an update
    prm_rows: int
    prm_tokens: int
    # One layer's attention: (rows, positions) of whole rows, (prompt, completions, positions of
    # each) of a packed row, (rows, positions of the cache) of a decode step.
    whole_rows: tuple[tuple[int, int], ...]
    packed_row: tuple[int, int, int]
    decode_step: tuple[int, int]
    copied_bytes: int  # of the array whose copying is timed
    product: int  # rows and columns of the matrices whose product is timed
    share_of_needs: float  # of the seconds that `PARTS` says
    families: tuple[str, ...]  # that are compared with torch; empty: all


FULL = Size(
    "full",
    QWEN_1_5B,
    QWEN_0_5B,
    "bfloat16",
    prompts=32,
    group=8,
    prompt_tokens=256,
    new_tokens=512,
    varied_seats=128,
    long_tokens=4096,
    long_mean=1000,
    long_seats=64,
    update_prompts=8,
    update_tokens=1024,
    prm_rows=64,
    prm_tokens=1280,
    whole_rows=((8, 1280), (2, 4096)),
    packed_row=(256, 8, 1024),
    decode_step=(256, 768),
    copied_bytes=1 << 30,
    product=8192,
    share_of_needs=1.0,
    families=(),
)
MIDDLE = dataclasses.replace(
    FULL,
    name="medium",
    large=MEDIUM,
    small=MEDIUM_SMALL,
    prompts=4,
    prompt_tokens=32,
    new_tokens=64,
    varied_seats=16,
    long_tokens=256,
    long_mean=64,
    long_seats=8,
    update_prompts=2,
    update_tokens=96,
    prm_rows=16,
    prm_tokens=256,
    whole_rows=((2, 1280), (1, 2048)),
    packed_row=(64, 4, 128),
    decode_step=(32, 256),
    copied_bytes=1 << 27,
    product=1024,
    share_of_needs=0.5,
)
SMALLEST = dataclasses.replace(
    MIDDLE,
    name="tiny",
    large=TINY,
    small=TINY,
    prompts=4,
    group=2,
    prompt_tokens=16,
    new_tokens=16,
    varied_seats=4,
    long_tokens=32,
    long_mean=8,
    long_seats=4,
    update_tokens=16,
    prm_rows=4,
    prm_tokens=160,
    whole_rows=((2, 48),),
    packed_row=(16, 2, 16),
    decode_step=(4, 32),
    copied_bytes=1 << 25,
    product=256,
    share_of_needs=0.03,
    families=("qwen2", "gemma3"),
)
SIZES = {size.name: size for size in (FULL, MIDDLE, SMALLEST)}


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to measure. process: consecutive parts of the same one share it; the memory of a
    device is free again once it has ended. module: where its `run(part, work)` stands. needs:
    seconds, about, without which it is not begun. most: seconds after which it is given up."""

    name: str
    process: str
    module: str
    needs: float
    most: float
    small: bool = False  # of the small shape
    about: str = ""

    @property
    def kind(self) -> str:
        return self.name.removeprefix("small-")


# In order of worth, so that a run that is cut short has the most important figures; `update` and
# `step` share their programs.
PARTS = (
    Part("device", "jax", "device", 10, 90, about="peaks as measured"),
    Part("fixed", "jax", "rollouts", 40, 120, about="rollouts of one length"),
    Part("update", "jax", "training", 60, 150, about="one update"),
    Part("step", "jax", "training", 40, 120, about="rollouts, rewards, update"),
    Part("parity", "jax", "parity", 45, 120, about="logits and step scores against torch"),
    Part("varied", "jax", "rollouts", 50, 130, about="rollouts as in training, seats refilled"),
    Part("prm", "jax", "training", 25, 80, about="scores of a process reward model"),
    Part("torch-rollouts", "torch", "torch_side", 30, 90, about="transformers generate"),
    Part("torch-update", "torch", "torch_side", 30, 90, about="the update in plain torch"),
    Part("attention", "jax again", "attention_forms", 40, 100, about="one layer's attention"),
    Part("long", "jax again", "rollouts", 60, 150, about="rollouts with much room"),
    Part("greedy", "jax again", "parity", 40, 100, about="greedy tokens against torch"),
    Part("small-fixed", "jax again", "rollouts", 25, 90, small=True),
    Part("small-update", "jax again", "training", 40, 100, small=True),
    Part("small-varied", "jax again", "rollouts", 40, 100, small=True),
    Part("small-long", "jax again", "rollouts", 50, 120, small=True),
)
NAMES = tuple(part.name for part in PARTS)


def long_lengths(rows: int, budget: int, mean: int, seed: int = 0) -> list[int]:
    """New tokens of each row: exponential around `mean`, from 1 to `budget`, so that few rows use
    all of it. From `random.Random(seed).random()`, whose sequence Python keeps stable."""
    draw = random.Random(seed)
    return [min(max(1, round(-math.log(1 - draw.random()) * mean)), budget) for _ in range(rows)]
