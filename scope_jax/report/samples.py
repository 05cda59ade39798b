"""Results of a benchmark: kept problem by problem so that a killed evaluation goes on, summed up,
shown as a table."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.report.diversity import mean_and_standard_error, pass_at_k
from scope_jax.report.voting import best_of_n, weighted_vote

# A result: {"problem": index, "id": str, "scores": [float | None], "answers": [str | None],
# "finished": [bool], "tokens": [int], "texts": [str], "weights": [float | None] or None}, one
# entry per sample in each list.
Result = dict[str, Any]


class ResultsFile:
    """`path`: JSON lines {"key": ..., "results": [...]}, one for each chunk of problems. `done`
    has the results that were made under `key` (what identifies the settings), by problem index.

    A last line that a kill left torn is cut off. Raises ValueError, with file and line, for any
    other line that is not one of these or has another key.
    """

    def __init__(self, path: str | os.PathLike, key: str):
        self.path, self.key = pathlib.Path(path), key
        self.done: dict[int, Result] = {}
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                found = json.loads(line)
                if found["key"] != key:
                    raise ValueError(f"key {found['key']!r}, here {key!r}")
                self.done |= {int(result["problem"]): result for result in found["results"]}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}:{number}: not results of this evaluation ({error}); use another"
                    " workdir"
                ) from None

    def add(self, results: Sequence[Result]) -> None:
        """Appends a chunk; it is on disk when this returns."""
        line = json.dumps({"key": self.key, "results": list(results)}) + "\n"
        with open(self.path, "a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.done |= {result["problem"]: result for result in results}


def summarise(results: Sequence[Result]) -> dict[str, float | None]:
    """The figures over problems, with `/se` the standard error over problems (None where it is not
    defined).

    n is the number of samples per problem. `avg@n`: mean score; `pass@k` for powers of two and n:
    unbiased, a sample counts with the full score 1; `maj@n`: score of the answer most samples
    agree on, the earliest of equal ones; with weights `bon@n`: score of the sample of the greatest
    weight, and `vote@n`: of the answer with most weight. A sample that could not be judged counts
    0 in all of these; `unscored` is the share of such. `truncated_share`: samples that did not end
    by themselves (they are judged as they are). `tokens`: mean length in tokens. Raises ValueError
    where there is no result.
    """
    if not results:
        raise ValueError("summarise: no result")
    n = len(results[0]["scores"])
    ones = [1.0] * n
    columns: dict[str, list[float]] = {f"avg@{n}": []}
    for result in results:
        scores = [0.0 if score is None else float(score) for score in result["scores"]]
        columns[f"avg@{n}"].append(math.fsum(scores) / n)
        right = sum(score == 1.0 for score in scores)
        for k in sorted({1 << i for i in range(n.bit_length())} | {n}):
            columns.setdefault(f"pass@{k}", []).append(pass_at_k(n, right, k))
        columns.setdefault(f"maj@{n}", []).append(_voted(result["answers"], scores, ones))
        weights = result.get("weights")
        if weights is not None:
            filled = [0.0 if weight is None else float(weight) for weight in weights]
            columns.setdefault(f"bon@{n}", []).append(scores[best_of_n(filled)])
            columns.setdefault(f"vote@{n}", []).append(_voted(result["answers"], scores, filled))
    out: dict[str, float | None] = {}
    for name, values in columns.items():
        mean, error = mean_and_standard_error(values)
        out[name], out[f"{name}/se"] = mean, None if math.isnan(error) else error
    samples = n * len(results)
    out["truncated_share"] = (
        sum(not finished for result in results for finished in result["finished"]) / samples
    )
    out["unscored"] = (
        sum(score is None for result in results for score in result["scores"]) / samples
    )
    out["tokens"] = sum(sum(result["tokens"]) for result in results) / samples
    return out


def _voted(
    answers: Sequence[str | None], scores: Sequence[float], weights: Sequence[float]
) -> float:
    """Score of the first sample that gives the winning answer; 0 where no sample has an answer."""
    winner = weighted_vote(answers, weights)
    return 0.0 if winner is None else scores[list(answers).index(winner)]


def markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One row per benchmark, in percent with the standard error. A record: {"title", "problems",
    "temperature", "samples", "result"}."""
    head = ["benchmark", "problems", "T", "n", "avg@n", "pass@n", "maj@n"]
    weighted = any(f"bon@{record['samples']}" in record["result"] for record in records)
    head += ["bon@n", "vote@n"] if weighted else []
    head += ["truncated", "unscored"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for record in records:
        n, result = record["samples"], record["result"]
        cells = [record["title"], str(record["problems"]), f"{record['temperature']:g}", str(n)]
        for kind in ("avg", "pass", "maj", *(("bon", "vote") if weighted else ())):
            value, error = result.get(f"{kind}@{n}"), result.get(f"{kind}@{n}/se")
            cells.append(
                "-"
                if value is None
                else _percent(value) + (f" ± {_percent(error)}" if error is not None else "")
            )
        cells += [_percent(result["truncated_share"]), _percent(result["unscored"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
