r"""How long the `math` grader takes over the tests' pairs and 2,000 ordinary answers.

    python benchmarks/verdicts.py
    python benchmarks/verdicts.py --beside=DIR --rounds=5

`--beside` is another checkout; the two are measured in turn, each in a process of its own with one
worker, and the ratio of their best times is printed.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ordinary(count: int = 2000) -> list[tuple[str, str]]:
    """(reference, answer) as training meets them: mostly whole numbers, half of them right."""
    draw = random.Random(0)
    pairs = []
    for _ in range(count):
        n, m = draw.randint(2, 999), draw.randint(2, 99)
        reference, right = draw.choice(
            [(str(n), str(n))] * 6
            + [
                (rf"\frac{{{n}}}{{{m}}}", rf"\dfrac{{{n}}}{{{m}}}"),
                (f"{n / 8}", rf"\frac{{{n}}}{{8}}"),
                (rf"{n}\sqrt{{{m}}}", rf"\sqrt{{{n * n * m}}}"),
                (f"({n},{m})", f"({n}, {m})"),
                (f"{n}x+{m}", f"{m}+{n}x"),
                (f"{n}", rf"{n}\text{{ cm}}"),
            ]
        )
        pairs.append((reference, right if draw.random() < 0.5 else str(n + 1)))
    return pairs


def measure() -> None:
    """Print the seconds that each of the two sets takes with the package on the path."""
    sys.path.append(str(ROOT / "tests" / "tasks"))
    from verdict_pairs import KINDS

    from scope_jax.tasks.verify_math import MathVerifier

    corpus = [pair for kind in KINDS.values() for pair in kind.right + kind.wrong]
    with MathVerifier(workers=1, items_per_worker=100_000) as verifier:
        verifier.verify([r"\boxed{1}"], ["1"])
        for pairs in (corpus, ordinary()):
            start = time.monotonic()
            verifier.verify([rf"So \boxed{{{a}}}." for _, a in pairs], [g for g, _ in pairs])
            print(time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.once:
        return measure()
    trees = [str(ROOT)] + ([os.path.abspath(flags.beside)] if flags.beside else [])
    best = {tree: [float("inf")] * 2 for tree in trees}
    for _ in range(flags.rounds):
        for tree in trees:
            out = subprocess.run(
                [sys.executable, __file__, "--once"],
                env={**os.environ, "PYTHONPATH": tree, "JAX_PLATFORMS": "cpu"},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            best[tree] = [min(pair) for pair in zip(best[tree], map(float, out))]
    for tree, (corpus, usual) in best.items():
        print(f"{tree}: pairs of the tests {corpus:.2f} s, ordinary answers {usual:.2f} s")
    if flags.beside:
        ratios = [new / old for new, old in zip(best[trees[0]], best[trees[1]])]
        print(f"ratio: {ratios[0]:.2f} and {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
