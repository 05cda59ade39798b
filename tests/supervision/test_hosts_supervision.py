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

# What each process does, `told` being the settings.
START = """
import json, os, sys
from pathlib import Path
import jax
from scope_jax.devices import hosts
hosts.connect(sys.argv[2].removeprefix("--distributed="))
from scope_jax.supervise import supervise
from support.tiny_runs import tiny_config
told = json.loads(Path(sys.argv[1]).read_text())
root = Path(sys.argv[1]).parent
"""
POLICY_BODY = """
policy = lambda: supervise(tiny_config("base", told), root / "policy")
found = policy()
assert policy() == found
"""
# Each process is in a folder of its own, as on machines that share none. What lies in the second
# one's says otherwise than the first one's, and is not looked at.
PRM_BODY = """
machine = root / f"machine_{jax.process_index()}"
machine.mkdir()
os.chdir(machine)
if jax.process_index() == 1:
    os.makedirs("prm/checkpoints")
    Path("prm/labels.jsonl").write_text("not labels")
found = supervise(tiny_config("prm", told), "prm")
"""
END = """
print("RESULT", json.dumps(found), flush=True)
hosts.finish()
"""


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name] == (
            pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
        ), name


def by_one_and_by_two(
    config: str, body: str, settings: dict, checkpoints: Tiny, folder: Path
) -> list[str]:
    """Trained by this process in `folder`/one, and by two with four devices each, whose summaries
    are the same; what the two said."""
    two = folder / "two"
    two.mkdir()
    told = two / "settings.json"
    told.write_text(json.dumps(settings))
    one = supervise(tiny_config(config, settings), folder / "one")
    program = [sys.executable, "-c", START + body + END, str(told)]
    codes, said = wait(start(program, checkpoints.folder, 2, 4), checkpoints.folder, 300)
    assert codes == [0, 0], [text[-3000:] for text in said]
    for text in said:
        found = json.loads(text.split("RESULT ")[1].splitlines()[0])
        assert_same(*({k: v for k, v in x.items() if k != "thresholds"} for x in (one, found)))
    return said


def assert_same_files(wanted: Path, found: Path, *more: str) -> None:
    """The same files, those of the tokenizer, the config and `more` to the byte, and weights."""
    assert {path.name for path in found.iterdir()} == {path.name for path in wanted.iterdir()}
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json", *more):
        assert (found / file).read_bytes() == (wanted / file).read_bytes(), file
    weights = load_file(wanted / "model.safetensors")
    for array, value in load_file(found / "model.safetensors").items():
        np.testing.assert_allclose(value, weights[array], atol=1e-4, err_msg=array)


def test_two_processes_label_and_train_as_one_does(
    checkpoints: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(failures, "_begun", False)
    settings = {
        **PRM,
        "steps": 3,
        "optimizer.warmup_steps": 0,
        "start": str(checkpoints.policy),
        "target.rollouts.policy": str(checkpoints.policy),
        "target.rollouts.problems": 12,
        "target.rollouts.held_out": 8,
        "target.rollouts.problems_at_once": 8,
        "target.labels.kind": "monte_carlo",
        "target.labels.continuations": 2,
    }
    said = by_one_and_by_two("prm", PRM_BODY, settings, checkpoints, tmp_path)
    assert failures._begun  # what fails from the first step on is no bad input
    assert "prm: labelled rollouts of" in said[0] and "prm: labelled rollouts of" not in said[1]
    machines = [tmp_path / "two" / f"machine_{number}" for number in range(2)]
    assert_same_files(tmp_path / "one", machines[0] / "prm", "labels.jsonl")
    assert (machines[1] / "prm" / "labels.jsonl").read_text() == "not labels"
    assert not (machines[1] / "prm" / "model.safetensors").exists()


@pytest.mark.long
def test_two_processes_train_a_policy_as_one_does(checkpoints: Tiny, tmp_path: Path):
    """Weights of its own beginning, which each process makes; a run that is over stays as it is."""
    settings = {
        **POLICY,
        "steps": 4,
        "optimizer.warmup_steps": 0,
        "model.hidden_size": 16,
        "model.num_layers": 1,
    }
    by_one_and_by_two("base", POLICY_BODY, settings, checkpoints, tmp_path)
    assert_same_files(tmp_path / "one", tmp_path / "two" / "policy")
