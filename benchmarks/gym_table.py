"""A table of reasoning-gym's generators: one problem of each, what their scorers say of its own
answer and of rubbish, how long both take, and what keeps a scorer from evaluating a model's text.

    python benchmarks/gym_table.py          the table, in Markdown
    python benchmarks/gym_table.py --write  into docs/reasoning_gym.md

It takes half a minute on one core.
"""

import argparse
import importlib.metadata
import re
import time
from pathlib import Path

from scope_jax.tasks import gym_catalogue, gym_entries
from scope_jax.tasks.gym_pool import Entry, Generator, GymPool

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reasoning_gym.md"
START, END = "<!-- gym_table -->\n", "\n<!-- /gym_table -->\n"
RUBBISH = "x y"
GUARDS = (
    (gym_entries.LISTS, "lists only"),
    (gym_entries.ARITHMETIC, "arithmetic only"),
    (gym_entries.FORMULAS, "formulas only"),
    (gym_entries.RUNS_CODE, "`run_code`"),
)
HEAD = (
    "| generator | problem 0 of seed 0 | its answer | score of it | of `x y` | ms | guard |\n"
    "|---|---|---|---|---|---|---|\n"
)


def short(text: str | None, most: int) -> str:
    """A text on one line of a table; its end where it is long, since tasks ask there."""
    if text is None:
        return "none"
    line = " ".join(text.split())
    line = line if len(line) <= most else f"...{line[-most:]}"
    line = re.sub(r"([\\|*_\[\]])", r"\\\1", line)  # what Markdown would read as its own
    return line.replace("<", "&lt;").replace("`", "'")


def row(pool: GymPool, name: str) -> str:
    """The table's row of a generator."""
    entry = Entry(Generator(name), 0, 0)
    start = time.perf_counter()
    [(problem, reason)] = pool.problems([entry], 60.0)
    if problem is None:
        return f"| {name} | {short(reason, 60)} | | | | | |\n"
    answer = problem["answer"]
    scores = pool.scores([entry] * 2, [answer or "", RUBBISH], 5.0, 60.0)
    seconds = time.perf_counter() - start
    own, rubbish = ("not judged" if score is None else f"{score:.4g}" for score in scores)
    guard = next((words for names, words in GUARDS if name in names), "")
    return (
        f"| {name} | {short(problem['question'], 60)} | {short(answer, 24)} |"
        f" {own if answer is not None else 'none'} | {rubbish} | {1000 * seconds:.0f} | {guard} |\n"
    )


def table() -> str:
    """The whole table."""
    version = importlib.metadata.version("reasoning-gym")
    with GymPool(workers=1) as pool:
        pool.start()
        rows = [row(pool, name) for name in gym_catalogue.generators()]
    return f"reasoning-gym {version}, {len(rows)} generators:\n\n{HEAD}{''.join(rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/reasoning_gym.md")
    made = table()
    if not parser.parse_args().write:
        print(made)
        return
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}{made}{END}{after}")


if __name__ == "__main__":
    main()
