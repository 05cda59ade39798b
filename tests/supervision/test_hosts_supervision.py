"""Supervised training by two processes: the same model, tokenizer, labels and summary as by one,
written by the first of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.run_processes import start, wait
from support.tiny_runs import POLICY, PRM, Tiny, tiny_config

from scope_jax.run import failures
from scope_jax.supervise import supervise

# For the process reward model each process is in a folder of its own, as on machines that share
# none. What lies in the second one's says otherwise than the first one's, and is not looked at.
PROGRAM = """
import json, os, sys
from pathlib import Path
import jax
from scope_jax.devices import hosts
hosts.connect(sys.argv[2].removeprefix("--distributed="))
from scope_jax.supervise import supervise
from support.tiny_runs import tiny_config
told = json.loads(Path(sys.argv[1]).read_text())
root = Path(sys.argv[1]).parent
policy = lambda: supervise(tiny_config("base", told["policy"]), root / "policy")
first = policy()
assert policy() == first
machine = root / f"machine_{jax.process_index()}"
machine.mkdir()
os.chdir(machine)
if jax.process_index() == 1:
    os.makedirs("prm/checkpoints")
    Path("prm/labels.jsonl").write_text("not labels")
prm = supervise(tiny_config("prm", told["prm"]), "prm")
print("RESULT", json.dumps([first, prm]), flush=True)
hosts.finish()
"""


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name] == (
            pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
        ), name


def test_two_processes_train_as_one_does(
    checkpoints: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(failures, "_begun", False)
    settings = {
        "policy": {
            **POLICY,
            "steps": 4,
            "optimizer.warmup_steps": 0,
            "model.hidden_size": 16,
            "model.num_layers": 1,
        },
        "prm": {
            **PRM,
            "steps": 4,
            "optimizer.warmup_steps": 0,
            "start": str(checkpoints.policy),
            "target.rollouts.policy": str(checkpoints.policy),
            "target.rollouts.problems": 12,
            "target.rollouts.held_out": 8,
            "target.rollouts.problems_at_once": 8,
            "target.labels.kind": "monte_carlo",
            "target.labels.continuations": 2,
        },
    }
    (tmp_path / "two").mkdir()
    told = tmp_path / "two" / "settings.json"
    told.write_text(json.dumps(settings))
    one = {
        name: supervise(tiny_config(config, settings[name]), tmp_path / name)
        for name, config in (("policy", "base"), ("prm", "prm"))
    }
    assert failures._begun  # what fails from the first step on is no bad input
    codes, said = wait(
        start([sys.executable, "-c", PROGRAM, str(told)], checkpoints.folder, 2, 4),
        checkpoints.folder,
        300,
    )
    assert codes == [0, 0], [text[-3000:] for text in said]
    for text in said:
        policy, prm = json.loads(text.split("RESULT ")[1].splitlines()[0])
        assert_same(one["policy"], policy)
        assert_same(
            {k: v for k, v in one["prm"].items() if k != "thresholds"},
            {k: v for k, v in prm.items() if k != "thresholds"},
        )
    assert "prm: labelled rollouts of" in said[0] and "prm: labelled rollouts of" not in said[1]
    for name, folder in (("policy", "policy"), ("prm", "machine_0/prm")):
        wanted, found = tmp_path / name, tmp_path / "two" / folder
        assert sorted(path.name for path in found.iterdir()) == sorted(
            path.name for path in wanted.iterdir()
        )
        for file in (
            "tokenizer.json",
            "tokenizer_config.json",
            "config.json",
            *(["labels.jsonl"] if name == "prm" else []),
        ):
            assert (found / file).read_bytes() == (wanted / file).read_bytes(), file
        weights = load_file(wanted / "model.safetensors")
        for array, value in load_file(found / "model.safetensors").items():
            np.testing.assert_allclose(value, weights[array], atol=1e-4, err_msg=array)
    assert (tmp_path / "two" / "machine_1" / "prm" / "labels.jsonl").read_text() == "not labels"
    assert not (tmp_path / "two" / "machine_1" / "prm" / "model.safetensors").exists()
