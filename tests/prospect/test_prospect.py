"""The command on tiny checkpoints: it measures what a training run of the same config meets."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_runs import Tiny, run_program

from scope_jax.configuration import default_config
from scope_jax.prospect.command import Prospect, command, prospect
from scope_jax.report import read_sample_file
from scope_jax.run import read_metrics
from scope_jax.train import train

# Nothing is learned, so the second step is played by the same policy as the first. Every failure
# with an error found is chosen, and every chosen one is in the files of samples.
FROZEN = {
    "steps": 2,
    "optimizer.learning_rate": 0.0,
    "samples.per_file": 1000,
    "method.select.rule": "all",
    "method.select.good_steps": 0,
    "method.select.keep_failure": False,
    "advantage.pass_k": 2,  # whose share falls from step to step
}
OF_THE_UPDATE = ("policy/", "loss/", "grad/", "update/", "optimizer/", "sampler/", "eval", "data/")
OF_THE_MACHINE = ("time/", "throughput/", "compile/", "memory/")


@pytest.fixture(scope="module")
def trained(checkpoints: Tiny) -> Path:
    """The workdir of two steps of training."""
    workdir = checkpoints.folder / "frozen"
    train(checkpoints.config("scope", FROZEN), workdir)
    return workdir


@pytest.fixture(scope="module")
def measured(checkpoints: Tiny) -> Prospect:
    """The same two batches of eight problems; nine are asked for."""
    return prospect(checkpoints.config("scope", FROZEN), problems=9)


def test_numbers_are_those_of_training(trained: Path, measured: Prospect):
    lines = list(read_metrics(trained / "metrics.jsonl"))
    assert len(lines) == len(measured.batches) == 2
    for line, batch in zip(lines, measured.batches, strict=True):
        known = {
            name: value
            for name, value in line.items()
            if not name.startswith((*OF_THE_UPDATE, *OF_THE_MACHINE)) and name != "step"
        }
        # What is not a number is null in the file.
        here = {n: None if np.isnan(v) else v for n, v in batch.metrics.items()}
        assert {n: v for n, v in here.items() if not n.startswith("time/")} == known
        assert {"scope/accepted_share", "advantage/zero_group_share_after"} <= known.keys()
    # The two batches are two.
    assert measured.batches[0].metrics != measured.batches[1].metrics
    figures = measured.record["figures"]
    for when, metric in (("before", ""), ("after", "_after")):
        values = [line[f"advantage/zero_group_share{metric}"] for line in lines]
        assert figures[f"dead_{when}"] == sum(values) / 2
    rescues, policy = figures["rescues"], figures["policy"]
    for name, metric in (("rescued", "accepted"), ("selected",) * 2, ("eligible",) * 2):
        assert rescues[name] == sum(line[f"scope/{metric}"] for line in lines) > 0
    assert policy["pass_1"] == pytest.approx(sum(line["reward/mean"] for line in lines) / 2)
    assert policy["failed"] == 32 * sum(line["scope/failed_share"] for line in lines)
    lost = sum(rescues[name] for name in ("cut_off", "not_found", "too_early", "eligible"))
    assert lost == policy["failed"]


def test_first_errors_are_those_that_the_samples_show(trained: Path, measured: Prospect):
    """Of the chosen rows, by the files of the training run: what the localiser and the step check
    say of each step."""
    shown = {"exact": 0, "earlier": 0, "later": 0}
    chosen = first = 0
    for number in range(2):
        for item in read_sample_file(trained / "samples" / f"step_{number:06d}.json").rescues:
            steps = [s for s in item["steps"] if s["status"] in ("kept", "wrong", "discarded")]
            found, right = item["first_error"], [bool(step["correct"]) for step in steps]
            chosen, first = chosen + 1, first + (found == 0)
            if False in right:
                true = right.index(False)
                shown["exact" if found == true else "earlier" if found < true else "later"] += 1
    figures = measured.record["figures"]
    assert chosen == figures["rescues"]["selected"] == figures["found"]["rows"] > 0
    assert first == figures["found"]["first_step"]
    precision = figures["precision"]
    assert {name: precision[name] for name in shown} == shown and shown["exact"] > 0
    assert sum(shown.values()) + precision["missed"] == precision["errors"]


def test_groups_that_are_left_alone_and_the_policys_own_repairs(checkpoints: Tiny):
    more = {
        "rollout.group": 2,  # of which many fail altogether
        "method.select.groups": "all_failed",
        "method.spare_prefix": True,
        "teacher.first": "self",
        "teacher.self_tries": 1,
    }
    found = prospect(checkpoints.config("scope", {**FROZEN, **more}), problems=9)
    total = {
        name: sum(batch.metrics[name] for batch in found.batches)
        for name in ("scope/eligible", "scope/selected", "scope/self_accepted", "scope/accepted")
        + ("scope/teacher_asked", "cost/self_tokens")
    }
    rescues, policy = found.record["figures"]["rescues"], found.record["figures"]["policy"]
    assert rescues["eligible"] == total["scope/eligible"] > 0
    lost = ("elsewhere", "cut_off", "not_found", "too_early", "eligible")
    assert sum(rescues[name] for name in lost) == policy["failed"]
    assert rescues["elsewhere"] == policy["mixed"] > 0  # of two rows one
    assert rescues["by_policy"] == total["scope/self_accepted"] > 0
    assert rescues["steps"] == total["scope/teacher_asked"]
    assert rescues["rescued"] == total["scope/accepted"]
    assert found.record["figures"]["cost"]["self_tokens"] == total["cost/self_tokens"] > 0
    assert f"{rescues['by_policy']} of {rescues['rescued']}\n" in found.table


def test_the_table_says_what_was_measured(measured: Prospect):
    assert measured.text.startswith("SCOPE before training: 16 problems x 4 rollouts (2 batches,")
    rescues = measured.record["figures"]["rescues"]
    assert f"{rescues['rescued']} of {rescues['selected']}\n" in measured.text
    assert measured.text.endswith("* " + measured.opinion[-1])
    assert json.loads(json.dumps(measured.record))["opinion"] == measured.opinion


def test_the_command_line(checkpoints: Tiny, measured: Prospect):
    folder = checkpoints.folder / "command"
    folder.mkdir()
    arguments = checkpoints.program("scope", folder / "run", FROZEN)
    arguments[2] = "scope_jax.prospect"
    arguments = [word for word in arguments if not word.startswith("--workdir")]
    done = run_program(
        [*arguments, "--problems=8", f"--json={folder / 'record.json'}"], checkpoints.folder
    )
    assert "8 problems x 4 rollouts (1 batch, seed 0)" in done.stdout
    record = json.loads((folder / "record.json").read_text())
    assert record["problems_asked"] == 8 and len(record["batches"]) == 1
    # One device here, eight in `measured`.
    accepted = "scope/accepted"
    assert record["batches"][0][accepted] == measured.record["batches"][0][accepted]
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("name", "more", "problems", "message"),
    [
        ("grpo", {}, 8, "config.method.name = 'grpo' rescues nothing: give the config of a SCOPE"),
        ("scope", {}, 0, "--problems=0 must be at least 1"),
        (
            "scope",
            {"method.resample": 1},
            8,
            "config.method.resample = 1 draws other prompts after",
        ),
        ("scope", {"sft.steps": 1}, 8, "config.sft.steps = 1: the run would roll out another pol"),
        (
            "scope",
            {"method.tail": "none", "method.accept": "unverified"},
            8,
            "config.method.tail = 'none' leaves rows that nothing verifies",
        ),
        ("scope", {"models.prm": None}, 8, "config.models.prm is None"),
        ("scope", {"models.teacher": "nowhere"}, 8, "nowhere: no such model directory"),
        ("scope", {"rollout.prompt_tokens": 2}, 8, "no prompt fits into rollout.prompt_tokens"),
        ("scope", {}, 8, "not a whole safetensors file"),
    ],
)
def test_bad_input_is_refused_before_weights(
    checkpoints: Tiny, tmp_path: Path, name: str, more: dict, problems: int, message: str
):
    shutil.copytree(checkpoints.policy, tmp_path / "policy")
    file = tmp_path / "policy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    config = checkpoints.config(name, {"models.policy": str(tmp_path / "policy"), **more})
    given = SimpleNamespace(problems=problems, json=str(tmp_path / "out" / "record.json"))
    with pytest.raises((ValueError, OSError)) as caught:
        command(config, None, given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_everybody_is_closed_at_the_end(monkeypatch: pytest.MonkeyPatch):
    """A localiser's processes too, not the reward's alone."""
    closed: list[str] = []
    actors = SimpleNamespace(
        params={},
        config=None,
        reward=SimpleNamespace(close=lambda: closed.append("reward")),
        close=lambda: closed.append("actors"),
    )
    monkeypatch.setattr("scope_jax.prospect.command.load_actors", lambda *_: actors)
    monkeypatch.setattr("scope_jax.models.decode_layout", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prospect(default_config("scope"))
    assert closed == ["actors"]


def test_a_record_that_cannot_be_written_is_refused_before_weights(
    checkpoints: Tiny, tmp_path: Path
):
    config = checkpoints.config("scope", {"models.policy": str(tmp_path / "none")})
    with pytest.raises(IsADirectoryError):
        command(config, None, SimpleNamespace(problems=8, json=str(tmp_path)))
