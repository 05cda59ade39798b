"""`benchmarks/speed.py` measures what the library has today."""

import json
import math
import sys
from pathlib import Path

import pytest
from support.fixtures import TINY, tiny_params

from scope_jax import models

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.mark.parametrize(
    ("mode", "more"),
    [("rollout", ["--seats=2"]), ("update", ["--length-buckets=2"]), ("step", ["--remat=layer"])],
)
def test_every_mode_runs(tmp_path, capsys, mode, more):
    import speed

    models.save(tmp_path / "model", TINY, tiny_params())
    sizes = ["--prompts=2", "--group=2", "--prompt-length=4", "--new-tokens=8", "--steps=1"]
    arguments = [mode, f"--model={tmp_path / 'model'}", *sizes, "--micro-batch=2", "--json", *more]
    assert speed.main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["mode"] == mode and record["seconds"] > 0
    # 4 rows of 8 tokens; an update learns from their prompts of 4 too, as the rows hold them.
    assert record["tokens"] == (4 * 8 + 4 * 4 if mode == "update" else 4 * 8)
    assert math.isclose(record["tokens_per_s"], record["tokens"] / record["seconds"])
