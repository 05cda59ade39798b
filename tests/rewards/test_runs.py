"""Whole tiny runs of SCOPE by a reward with values between 0 and 1, on the embedded task."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import run_processes
from support.tiny_runs import Tiny, run_program

from scope_jax.configuration import train_config
from scope_jax.devices.mesh import make_mesh
from scope_jax.run import read_metrics
from scope_jax.train import train
from scope_jax.training import actors

MINE = """
def totals(problem, completion, token_ids):
    "The share of the two totals of the last line that are right."
    lines = completion.splitlines()
    written, right = lines[-1][-2:] if lines else "", problem["answer"]
    return sum(a == b for a, b in zip(written, right)) / 2

def brief(problem, completion, token_ids): return -len(token_ids) / 20
"""
MIXTURE = {
    "steps": 2,
    "evaluation.problems": 0,
    "evaluation.ood_problems": 0,
    "reward.functions.outcome.weight": 0.5,
    "reward.functions.totals": "my_rewards_run:totals",
    "reward.functions.brief.function": "my_rewards_run:brief",
    "reward.functions.brief.range": (-1, 0),
    "reward.functions.brief.weight": 0.25,
    "reward.functions.format.pattern": r"([+-]\d\d\d\n)*[+-]\d\d\d",
    "reward.functions.format.weight": 0.1,
    "reward.functions.prm.weight": 0.0,
    "reward.accept_by": "totals",
    # With a teacher and cuts that are right, rows are rescued whatever the weights have become.
    "teacher.kind": "program",
    "models.teacher": None,
    "localiser.kind": "oracle",
    "reward.workers": 1,
}


@pytest.fixture(scope="module")
def mine(checkpoints: Tiny) -> Iterator[Path]:
    """The folder of the functions, which can be imported."""
    folder = checkpoints.folder / "functions"
    folder.mkdir(exist_ok=True)
    (folder / "my_rewards_run.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def whole(checkpoints: Tiny, mine: Path) -> Path:
    """A run of SCOPE by the mixture that nobody disturbed."""
    workdir = checkpoints.folder / "mixture"
    before = set(_children())
    train(checkpoints.config("scope", MIXTURE), workdir)
    assert set(_children()) <= before  # no process of a function is left
    return workdir


def learned(workdir: Path) -> list[dict]:
    """The metrics of a run that are not the machine's."""
    machine = ("time/", "throughput/", "memory/", "compile/", "sampler/")
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows]


def test_scope_rescues_by_a_mixture(whole: Path):
    rows = learned(whole)
    weights = {"outcome": 0.5, "totals": 1.0, "brief": 0.25, "format": 0.1, "prm": 0.0}
    for row in rows:
        parts = sum(weight * row[f"reward/{name}"] for name, weight in weights.items())
        assert row["reward/mean"] == pytest.approx(parts, abs=1e-6)
        assert -1 <= row["reward/brief"] < 0 < row["reward/prm"] < 1
        assert row["reward/totals"] >= row["reward/accepted_share"] >= row["reward/outcome"] - 1e-9
        # Right are those of both totals, which is what the verifier asks for.
        assert row["scope/failed_share"] == pytest.approx(1 - row["reward/accepted_share"])
        assert row["reward/unscored"] == row["reward/unscored_timeout"] == 0
    assert sum(row["scope/accepted"] for row in rows) > 0
    assert all(row["grad/norm"] > 0 for row in rows)
    # The functions see what the verifier sees: some rewards lie between 0 and 1.
    assert any(row["reward/totals"] > row["reward/accepted_share"] for row in rows)


def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(
    checkpoints: Tiny, whole: Path, tmp_path: Path
):
    stopped = tmp_path / "stopped"
    config = checkpoints.config("scope", MIXTURE | {"checkpoint.every": 1})
    train(checkpoints.config("scope", MIXTURE | {"steps": 1, "checkpoint.every": 1}), stopped)
    (stopped / "summary.json").unlink()
    train(config, stopped, allow_changed=["steps"])
    assert learned(stopped) == learned(whole)


def test_each_of_two_processes_judges_its_share(
    checkpoints: Tiny, mine: Path, whole: Path, tmp_path: Path
):
    two = tmp_path / "two"
    running = run_processes.start(
        checkpoints.program("scope", two, MIXTURE),
        tmp_path / "processes",
        2,
        1,
        {"PYTHONPATH": f"{mine}:{run_processes.environment(tmp_path)['PYTHONPATH']}"},
    )
    codes, said = run_processes.wait(running, tmp_path / "processes", 300)
    assert codes == [0, 0], said
    for row, other in zip(learned(whole), learned(two), strict=True):
        names = [name for name in row if name.startswith(("reward/", "scope/"))]
        assert {k: other[k] for k in names} == pytest.approx({k: row[k] for k in names}, abs=1e-5)


def test_scores_of_a_prm_are_a_reward_of_grpo(checkpoints: Tiny, tmp_path: Path):
    """Nobody else asks the model: it is loaded and compiled for the reward alone."""
    more = {
        "models.prm": str(checkpoints.prm),
        "reward.function": "prm",
        "evaluation.problems": 0,
        "evaluation.ood_problems": 0,
    }
    train(checkpoints.config("grpo", more), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(0 < row["reward/mean"] < 1 for row in rows)
    assert all(row["reward/prm"] == pytest.approx(row["reward/mean"]) for row in rows)
    assert all(row["reward/accepted_share"] == 0 and row["grad/norm"] > 0 for row in rows)
    assert len({row["compile/count"] for row in rows}) == 1  # nothing compiled after the first step


def _children() -> list[int]:
    """Process ids of this process's children."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(_own_pid()) and fields[0] != "Z":
            found.append(int(place.parent.name))
    return found


def _own_pid() -> int:
    return int(Path("/proc/self/stat").read_text().split()[0])


def test_a_function_is_looked_for_before_the_first_weight(
    checkpoints: Tiny, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a weight was read")

    config = train_config(checkpoints.config("scope", {"reward.function": "my_rewards_run:none"}))
    monkeypatch.setattr(actors.models, "load", load)
    before = set(_children())
    with pytest.raises(
        ValueError, match=r"^config\.reward\.function = 'my_rewards_run:none': Attr"
    ):
        actors.load_actors(config, make_mesh())
    good = train_config(checkpoints.config("scope", {"reward.function": "my_rewards_run:totals"}))
    with pytest.raises(AssertionError, match="a weight was read"):
        actors.load_actors(good, make_mesh())
    assert set(_children()) <= before  # what was opened is closed

    # The command line: one line, exit code 2, nothing written over.
    more = {"reward.function": "no_such_module:f"}
    workdir = tmp_path / "run"
    done = run_program(checkpoints.program("scope", workdir, more), tmp_path, code=2)
    assert "config.reward.function = 'no_such_module:f': ModuleNotFoundError" in done.stderr
    assert not (workdir / "metrics.jsonl").exists()


def test_the_verifier_named_as_the_only_part_is_the_default(checkpoints: Tiny, tmp_path: Path):
    """Bit for bit: only metrics of the parts are more."""
    small = {"steps": 2, "evaluation.problems": 0, "evaluation.ood_problems": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(checkpoints.config("scope", small), tmp_path / "as_ever")
    named = small | {"reward.functions.outcome.weight": 1.0, "reward.accept": 0.5}
    train(checkpoints.config("scope", named), tmp_path / "named")
    for row, other in zip(learned(tmp_path / "as_ever"), learned(tmp_path / "named"), strict=True):
        assert {name: other[name] for name in row} == row
        assert other.keys() - row.keys() == {
            "reward/outcome",
            "reward/accepted_share",
            "reward/unscored_verifier",
            "scope/not_judged_verifier",
        }
        assert other["reward/outcome"] == other["reward/accepted_share"] == row["reward/mean"]
    policy = [tmp_path / run / "model" / "model.safetensors" for run in ("as_ever", "named")]
    assert policy[0].read_bytes() == policy[1].read_bytes()
    assert json.loads((tmp_path / "named" / "summary.json").read_text())["steps"] == 2
