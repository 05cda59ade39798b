"""How well a PRM finds the first wrong step, by the protocol of ProcessBench.

    python -m scope_jax.evaluate_prm --model=DIR --data=DIR
        [--threshold=0.5 | --threshold-from=gsm8k] [--json=FILE]

The protocol is that of arXiv 2412.06559. The prediction for a solution is the index of its first
step with a score below the threshold, -1 where there is none; it is right where it equals the
label. F1 is the harmonic mean of the accuracy on erroneous and on correct solutions; the last row
is the mean over the subsets. A solution that the model cannot score counts as wrong and is shown
as unscored. `--threshold-from` searches the threshold with the best F1 on one subset and uses it
for all.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scope_jax import cli, hub
from scope_jax.correction import first_error
from scope_jax.data.processbench import LabelledSolution, Subset, load_processbench
from scope_jax.devices.mesh import make_mesh, use_cpu_cores
from scope_jax.prm import ProcessRewardModel
from scope_jax.report import tables
from scope_jax.run import compile_cache, failures, progress, try_place, write_atomically

UNSCORED = -2  # a prediction that equals no label
GRID = tuple(float(x) for x in np.arange(1, 100) / 100)
ITEMS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredItems:
    """Step scores of the items of one subset: score_BJ float32, valid_BJ bool, scored_B bool,
    label_B int."""

    score_BJ: np.ndarray
    valid_BJ: np.ndarray
    scored_B: np.ndarray
    label_B: np.ndarray


def score_items(
    prm: ProcessRewardModel, items: Sequence[LabelledSolution], desc: str = "score"
) -> ScoredItems:
    """Scores of all items, with a progress bar."""
    J = max(len(item.steps) for item in items)
    score, valid = np.zeros((len(items), J), np.float32), np.zeros((len(items), J), bool)
    bar = progress(len(items), desc=desc)
    for start in range(0, len(items), ITEMS_AT_ONCE):
        part = items[start : start + ITEMS_AT_ONCE]
        found, exists, _ = prm.score(
            [item.problem for item in part], [item.steps for item in part], rows=ITEMS_AT_ONCE
        )
        score[start : start + len(part), : found.shape[1]] = found
        valid[start : start + len(part), : found.shape[1]] = exists
        bar.update(len(part))
    bar.close()
    return ScoredItems(
        score,
        valid,
        np.asarray(valid.any(axis=1)),
        np.array([item.label for item in items], np.int64),
    )


def predictions(scores: ScoredItems, threshold: float) -> np.ndarray:
    """int64[B]: index of the first step below `threshold`, -1 where there is none, UNSCORED where
    nothing was scored."""
    J = scores.score_BJ.shape[1]
    found = np.asarray(first_error(scores.score_BJ, scores.valid_BJ, threshold)).astype(np.int64)
    return np.where(scores.scored_B, np.where(found == J, -1, found), UNSCORED)


def subset_metrics(predicted_B: np.ndarray, label_B: np.ndarray) -> dict[str, float | int | None]:
    """Counts and rates of one subset. `error_accuracy` and `correct_accuracy`: exact matches among
    the solutions with and without an error; `f1` their harmonic mean; `not_later`: share of the
    erroneous ones with a prediction at the error or before it. A rate over no solution is None,
    and so is an F1 that lacks one of its two parts."""
    wrong = label_B >= 0
    match = predicted_B == label_B
    error, correct = _share(match[wrong]), _share(match[~wrong])
    f1 = None
    if error is not None and correct is not None:
        f1 = 2 * error * correct / (error + correct) if error + correct else 0.0
    return {
        "items": len(label_B),
        "erroneous": int(wrong.sum()),
        "correct": int((~wrong).sum()),
        "unscored": int(np.sum(predicted_B == UNSCORED)),
        "error_accuracy": error,
        "correct_accuracy": correct,
        "f1": f1,
        "not_later": _share((predicted_B[wrong] >= 0) & (predicted_B[wrong] <= label_B[wrong])),
    }


def best_threshold(scores: ScoredItems, grid: Sequence[float] = GRID) -> float:
    """The threshold of `grid` with the best F1, of equal ones the lowest.

    Raises ValueError where the items are all erroneous or all correct, so that there is no F1.
    """
    best, chosen = -1.0, 0.0
    for threshold in sorted(grid):
        f1 = subset_metrics(predictions(scores, threshold), scores.label_B)["f1"]
        if f1 is None:
            raise ValueError(
                "threshold search: no F1 on this subset: it needs erroneous and correct solutions"
            )
        if f1 > best:
            best, chosen = f1, threshold
    return chosen


def mean_metrics(subsets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts added up, rates averaged over the subsets that have them."""
    out: dict[str, Any] = {
        name: sum(s[name] for s in subsets)
        for name in ("items", "erroneous", "correct", "unscored")
    }
    for name in ("error_accuracy", "correct_accuracy", "f1", "not_later"):
        known = [s[name] for s in subsets if s[name] is not None]
        out[name] = sum(known) / len(known) if known else None
    return out


def evaluate_prm(
    prm: ProcessRewardModel,
    subsets: Sequence[Subset],
    *,
    threshold: float = 0.5,
    threshold_from: str = "",
) -> dict[str, Any]:
    """The whole protocol: `threshold`, `subsets` (name -> metrics), `mean`. Raises ValueError for
    an unknown subset in `threshold_from` and a threshold outside (0, 1)."""
    check_threshold(subsets, threshold, threshold_from)
    scored = {subset.name: score_items(prm, subset.items, subset.name) for subset in subsets}
    if threshold_from:
        threshold = best_threshold(scored[threshold_from])
    found: dict[str, Any] = {}
    for subset in subsets:
        scores = scored[subset.name]
        found[subset.name] = subset_metrics(predictions(scores, threshold), scores.label_B) | {
            "malformed": subset.skipped
        }
    return {
        "threshold": threshold,
        "threshold_from": threshold_from or None,
        "subsets": found,
        "mean": mean_metrics(list(found.values())),
    }


def check_threshold(subsets: Sequence[Subset], threshold: float, threshold_from: str) -> None:
    """Raise ValueError for an unknown subset in `threshold_from`, one without solutions of both
    kinds, and a threshold outside (0, 1)."""
    names = [subset.name for subset in subsets]
    if threshold_from and threshold_from not in names:
        raise ValueError(
            f"--threshold-from={threshold_from}: no such subset; the data has {', '.join(names)}"
        )
    for subset in subsets:
        kinds = {item.label >= 0 for item in subset.items}
        if subset.name == threshold_from and len(kinds) < 2:
            raise ValueError(
                f"--threshold-from={threshold_from}: no F1 on this subset: it needs erroneous and"
                " correct solutions"
            )
    if not 0 < threshold < 1:
        raise ValueError(f"threshold {threshold} must lie in (0, 1)")


def markdown(result: dict[str, Any]) -> str:
    """The table, rates in percent."""
    rows = []
    for name, row in [*result["subsets"].items(), ("mean", result["mean"])]:
        rates = [row[key] for key in ("error_accuracy", "correct_accuracy", "f1", "not_later")]
        cells = ["-" if rate is None else f"{100 * rate:.1f}" for rate in rates]
        rows.append([name, str(row["items"]), str(row["unscored"]), *cells])
    first = f"subset (threshold {result['threshold']:g})"
    rates_shown = ["erroneous, acc.", "correct, acc.", "F1", "not later"]
    return tables.markdown([first, "solutions", "unscored", *rates_shown], rows)


def checkpoint_hash(directory: str | Path) -> str:
    """SHA-256 over config.json and the weight files, names included: which checkpoint a record is
    about."""
    total = hashlib.sha256()
    folder = hub.local(directory)
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            total.update(
                f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return total.hexdigest()


def _share(hits: np.ndarray) -> float | None:
    return float(np.mean(hits)) if hits.size else None


FLAGS = (
    cli.Flag("model", "Hugging Face directory of the process reward model", required=True),
    cli.Flag("data", "directory of ProcessBench files, or one file", required=True),
    cli.Flag("threshold", "a step with a score below it is an error", 0.5, float),
    cli.Flag("threshold_from", "subset to search the threshold on, instead of --threshold", ""),
    cli.Flag("prm_format", "auto, qwen, math_shepherd or skywork", "auto"),
    cli.Flag("dtype", "of the parameters", "float32", words=("float32", "bfloat16")),
    cli.Flag("weights", "int8: the weights in 8 bits", "auto", words=("auto", "int8")),
    cli.Flag("limit", "only the first solutions of each subset; 0: all", 0, int),
    cli.Flag("fsdp", "devices over which the parameters are split", 1, int),
    cli.Flag("tensor", "devices over which heads and feed-forward are split", 1, int),
    cli.Flag("json", "file to write the record to", ""),
    cli.CACHE_FLAG,
)


def main(argv: Sequence[str] | None = None) -> str:
    """Run the command line; returns the table. Raises ValueError and FileNotFoundError for bad
    input."""
    given = cli.parse(sys.argv[1:] if argv is None else argv, FLAGS)
    subsets = load_processbench(given.data)
    if given.limit > 0:
        subsets = [
            dataclasses.replace(subset, items=subset.items[: given.limit]) for subset in subsets
        ]
    check_threshold(subsets, given.threshold, given.threshold_from)
    if given.json:
        try_place(Path(given.json).parent, Path(given.json).name)
    described = ProcessRewardModel.described(given.model, given.prm_format)
    compile_cache.keep_compiled_programs(given.compilation_cache)
    mesh = make_mesh(-1, given.fsdp, given.tensor)
    with jax.set_mesh(mesh):
        prm = described.with_weights(
            given.model, dtype=given.dtype, mesh=mesh, weights=given.weights
        )
        result = evaluate_prm(
            prm, subsets, threshold=given.threshold, threshold_from=given.threshold_from
        )
    if given.json:
        record = {
            "model": str(given.model),
            "model_sha256": checkpoint_hash(given.model),
            "format": prm.format,
            "dtype": given.dtype,
            "weights": given.weights,
            "data": str(given.data),
            "limit": given.limit,
            **result,
        }
        write_atomically(Path(given.json), json.dumps(record, indent=2) + "\n")
    return markdown(result)


def _program() -> str:
    """`main`, after the devices are decided."""
    given = cli.parse(sys.argv[1:], FLAGS)
    use_cpu_cores(cli.weights_of(given.model))
    return main()


if __name__ == "__main__":
    failures.run_main(_program)
