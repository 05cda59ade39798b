"""The workload every side of a benchmark shares: which prompts, and where each row ends.

Pure Python, no third-party package, so that the same file serves our interpreter and both peers'.
The draws use `random.Random(seed)` through `random()` only, whose sequence Python keeps stable
between versions.

    python benchmarks/lengths.py --rows=256 --budget=128 > lengths.json
"""

import argparse
import json
import random
import string
from pathlib import Path

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>")  # ids 0, 1, 2; the byte b has id 3 + b
LETTERS = string.ascii_letters + string.digits


def varied_lengths(rows: int, budget: int, seed: int = 0) -> list[int]:
    """New tokens of each row, as they vary in training, in random row order.

    Half of the rows (rounded up) are uniform in [1, budget // 4], the rest uniform in [budget // 4
    + 1, budget]. Raises ValueError for a budget under 8 or no rows.
    """
    if rows < 1 or budget < 8:
        raise ValueError(
            f"varied_lengths: rows={rows}, budget={budget}; needs at least 1 row and a budget of 8"
            " tokens"
        )
    rng = random.Random(seed)
    quarter = budget // 4
    short = [1 + int(rng.random() * quarter) for _ in range(rows - rows // 2)]
    long = [quarter + 1 + int(rng.random() * (budget - quarter)) for _ in range(rows // 2)]
    return _shuffled(short + long, rng)


def read_lengths(path: str, rows: int, budget: int) -> list[int]:
    """Lengths from a JSON list of integers; raises ValueError unless there is one in [1, budget]
    for each row."""
    lengths = json.loads(Path(path).read_text())
    if not isinstance(lengths, list) or len(lengths) != rows:
        raise ValueError(
            f"{path}: holds {len(lengths)} lengths; needs a JSON list of {rows}, one for each row"
        )
    wrong = [n for n in lengths if not (isinstance(n, int) and 1 <= n <= budget)]
    if wrong:
        raise ValueError(f"{path}: length {wrong[0]!r}; needs integers in [1, {budget}]")
    return lengths


def prompt_texts(prompts: int, length: int, seed: int = 0) -> list[str]:
    """`prompts` random texts of `length` letters and digits, a token each in the tokenizer of
    `make_model.py`."""
    rng = random.Random(seed)
    return [
        "".join(LETTERS[int(rng.random() * len(LETTERS))] for _ in range(length))
        for _ in range(prompts)
    ]


def prompt_ids(prompts: int, length: int, seed: int = 0) -> list[list[int]]:
    """The token ids of `prompt_texts`, without a tokenizer."""
    return [
        [len(SPECIAL_TOKENS) + ord(c) for c in text] for text in prompt_texts(prompts, length, seed)
    ]


def alternating_rewards(rows: int) -> list[float]:
    """Reward of each row by position, 0 or 1 in turn: it costs nothing and no group has zero
    variance."""
    return [float(i % 2) for i in range(rows)]


def _shuffled(values: list[int], rng: random.Random) -> list[int]:
    values = list(values)
    for i in range(len(values) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        values[i], values[j] = values[j], values[i]
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description="Print a JSON list of row lengths.")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--budget", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(varied_lengths(args.rows, args.budget, args.seed)))


if __name__ == "__main__":
    main()
