"""Results of a suite: a file of them that a killed evaluation goes on from, their summary, and
a table."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from scope_jax.report import tables
from scope_jax.report.diversity import mean_and_standard_error, pass_at_k, powers_up_to
from scope_jax.report.voting import best_of_n, weighted_vote

# The samples of one problem: {"problem": index, "id": str, "scores": [float | None], "answers":
# [str | None], "finished": [bool], "tokens": [int], "texts": [str], "weights": [float | None] or
# None}, one entry per sample in each list.
Result = dict[str, Any]


class ResultsFile:
    """A file of JSON lines {"key": ..., "results": [...]}, one for each chunk of problems.

    `key` identifies the settings. A torn last line, which a kill leaves behind, is cut off. Raises
    ValueError, with file and line, for any other line of another form or with another key.
    """

    path: pathlib.Path
    key: str
    done: dict[int, Result]  # the results in the file, by index of the problem

    def __init__(self, path: str | os.PathLike, key: str):
        self.path, self.key = pathlib.Path(path), key
        self.done = {}
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                chunk = json.loads(line)
                if chunk["key"] != key:
                    raise ValueError(f"key {chunk['key']!r}, here {key!r}")
                self.done |= {int(result["problem"]): result for result in chunk["results"]}
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{self.path}:{number}: not results of this evaluation ({error}); use another"
                    " workdir"
                ) from None

    def add(self, results: Sequence[Result]) -> None:
        """Append a chunk. It is on disk when this returns."""
        line = json.dumps({"key": self.key, "results": list(results)}) + "\n"
        with open(self.path, "a", encoding="ascii") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.done |= {result["problem"]: result for result in results}


def summarise(results: Sequence[Result]) -> dict[str, float | None]:
    """Means over problems, each with its standard error over problems (`<name>/se`; None where it
    is not defined). n is the number of samples of a problem; a sample that could not be judged
    counts as 0.

        avg@n            mean score
        pass@k           unbiased, for powers of two and n; only the full score of 1 passes
        maj@n            score of the most frequent answer; of equal ones the earliest
        bon@n            with weights: score of the sample with the greatest weight
        vote@n           with weights: score of the answer with the greatest sum of weights
        truncated_share  samples that did not end by themselves (judged as they are)
        unscored         share of samples that could not be judged
        tokens           mean length in tokens

    Raises ValueError where there is no result.
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
        for k in powers_up_to(n):
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
    truncated = sum(result["finished"].count(False) for result in results)
    unscored = sum(result["scores"].count(None) for result in results)
    out["truncated_share"], out["unscored"] = truncated / samples, unscored / samples
    out["tokens"] = sum(sum(result["tokens"]) for result in results) / samples
    return out


def _voted(
    answers: Sequence[str | None], scores: Sequence[float], weights: Sequence[float]
) -> float:
    """Score of the first sample that gives the winning answer; 0 where no sample has an answer."""
    winner = weighted_vote(answers, weights)
    return 0.0 if winner is None else scores[list(answers).index(winner)]


def markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One row per suite, in percent with the standard error. A record: {"title", "problems",
    "temperature", "samples", "result"}."""
    weighted = any(f"bon@{record['samples']}" in record["result"] for record in records)
    kinds = ["avg", "pass", "maj", *(["bon", "vote"] if weighted else [])]
    rows = []
    for record in records:
        n, result = record["samples"], record["result"]
        cells = [record["title"], str(record["problems"]), f"{record['temperature']:g}", str(n)]
        for kind in kinds:
            value, error = result.get(f"{kind}@{n}"), result.get(f"{kind}@{n}/se")
            margin = f" ± {_percent(error)}" if error is not None else ""
            cells.append("-" if value is None else _percent(value) + margin)
        rows.append(cells + [_percent(result[name]) for name in ("truncated_share", "unscored")])
    head = ["suite", "problems", "T", "n", *(f"{kind}@n" for kind in kinds)]
    return tables.markdown([*head, "truncated", "unscored"], rows) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
