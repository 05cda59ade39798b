"""The folder of a run: its config, and files that are whole or not there."""

import datetime
import errno
import json
import os
from pathlib import Path

import jax.numpy as jnp
import pytest

from scope_jax.run import failures
from scope_jax.run.workdir import (
    config_changes,
    prepare_workdir,
    record_config,
    try_place,
    write_atomically,
)


def test_config_is_written_sorted_and_kept(tmp_path):
    config = {
        "steps": 10,
        "loss": {"clip": 0.2, "betas": (0.9, 0.98)},
        "name": "grpo",
        "log_every": 1,
    }
    workdir = prepare_workdir(tmp_path / "run", config)
    text = (workdir / "config.json").read_text()
    assert json.loads(text) == {
        "log_every": 1,
        "loss": {"betas": [0.9, 0.98], "clip": 0.2},
        "name": "grpo",
        "steps": 10,
    }
    assert text.index('"log_every"') < text.index('"loss"') < text.index('"steps"')
    prepare_workdir(workdir, config)  # The same again is no error.

    other = {"steps": 20, "loss": {"clip": 0.3, "betas": [0.9, 0.98]}, "log_every": 1, "new": None}
    message = (
        r'loss\.clip: there 0\.2, here 0\.3; name: there "grpo", here absent; new: there absent,'
        r" here null\); "
        "use another workdir"
    )
    with pytest.raises(ValueError, match=message):
        prepare_workdir(workdir, other, may_differ=["steps"])
    assert (workdir / "config.json").read_text() == text

    prepare_workdir(workdir, other, may_differ=["steps", "loss", "name", "new"])
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(other))


def test_config_names_five_keys_at_most(tmp_path):
    prepare_workdir(tmp_path, {f"k{i}": 0 for i in range(8)})
    with pytest.raises(ValueError, match=r"k4: there 0, here 1 and 3 more\)"):
        prepare_workdir(tmp_path, {f"k{i}": 1 for i in range(8)})


def test_config_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="only numbers, strings, lists and dicts"):
        prepare_workdir(tmp_path / "run", {"dtype": jnp.float32})
    assert not (tmp_path / "run").exists()


# ---- what may differ

BEFORE = {"steps": 10, "loss": {"clip": 0.2, "kl": 0.0}, "evaluation": {"every": 5}}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A folder with the config `BEFORE`."""
    return prepare_workdir(tmp_path / "run", BEFORE)


def now(**changes: object) -> dict:
    return {**BEFORE, **changes}


def test_a_folder_without_a_config_has_changed_in_nothing(tmp_path: Path):
    assert config_changes(tmp_path / "nowhere", BEFORE) == {}
    assert not (tmp_path / "nowhere").exists()


def test_changes_are_named_by_their_dotted_keys_with_both_values(workdir: Path):
    other = {"steps": 10, "loss": {"clip": 0.3, "kl": 0.0}, "evaluation": {}, "seed": 0}
    assert config_changes(workdir, other) == {
        "evaluation": ("absent", "{}"),  # an empty section is a value
        "evaluation.every": ("5", "absent"),
        "loss.clip": ("0.2", "0.3"),
        "seed": ("absent", "0"),
    }


def test_none_is_not_the_same_as_nothing(workdir: Path):
    assert config_changes(workdir, now(seed=None)) == {"seed": ("absent", "null")}


def test_a_free_section_covers_its_keys_and_no_longer_name(workdir: Path):
    other = now(evaluation={"every": 6}, evaluations=1)
    assert config_changes(workdir, other, may_differ=["evaluation"]) == {
        "evaluations": ("absent", "1")
    }
    deeper = now(loss={"clip": 0.3, "kl": 0.1})
    assert config_changes(workdir, deeper, may_differ=["loss.kl"]).keys() == {"loss.clip"}


def test_a_setting_that_the_file_lacks_may_stand_at_its_default(workdir: Path):
    """An earlier version wrote the file. One that the file has may not go back to its default."""
    defaults = {"seed": 0, "loss": {"clip": 0.4}}
    assert config_changes(workdir, now(seed=0), defaults=defaults) == {}
    assert config_changes(workdir, now(seed=1), defaults=defaults) == {"seed": ("absent", "1")}
    other = now(loss={"clip": 0.4, "kl": 0.0})
    assert config_changes(workdir, other, defaults=defaults) == {"loss.clip": ("0.2", "0.4")}


def test_old_names_are_read_as_todays(workdir: Path):
    other = {"rounds": 10, "loss": BEFORE["loss"], "evaluation": BEFORE["evaluation"]}

    def upgrade(flat: dict) -> dict:
        return {"rounds" if name == "steps" else name: value for name, value in flat.items()}

    assert config_changes(workdir, other).keys() == {"rounds", "steps"}
    assert config_changes(workdir, other, upgrade=upgrade) == {}


def test_a_config_that_is_no_json_is_named(workdir: Path):
    (workdir / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON \(.*; mend it, or use another"):
        prepare_workdir(workdir, BEFORE)
    assert (workdir / "config.json").read_text() == "{"


def test_another_name_is_another_file(workdir: Path):
    prepare_workdir(workdir, {"steps": 3}, name="training.json")
    assert json.loads((workdir / "training.json").read_text()) == {"steps": 3}
    assert config_changes(workdir, {"steps": 4}, name="training.json") == {"steps": ("3", "4")}
    assert config_changes(workdir, BEFORE) == {}


def test_long_values_are_shortened_in_the_message(workdir: Path):
    prepare_workdir(workdir, {"name": "x" * 100}, name="other.json")
    with pytest.raises(ValueError) as refused:
        prepare_workdir(workdir, {"name": "y" * 58}, name="other.json")
    shown = f'there "{"x" * 56}..., here "{"y" * 58}"'  # 60 characters at most
    assert shown in str(refused.value)


# ---- going on with another config


def test_the_flag_that_would_allow_the_changes_is_spelled_out(workdir: Path):
    other = now(steps=20, seed=1)
    with pytest.raises(ValueError, match=r"or the values that are there$"):
        prepare_workdir(workdir, other)
    with pytest.raises(ValueError, match=r"--allow_changed_config=seed,steps$"):
        prepare_workdir(workdir, other, allow=[])
    with pytest.raises(ValueError, match=r"--allow_changed_config=seed,steps$") as refused:
        prepare_workdir(workdir, other, allow=["seed"])
    assert "there 10, here 20" in str(refused.value) and "absent" not in str(refused.value)


@pytest.mark.parametrize("allow", [["all"], ["steps", "seed"]])
def test_an_allowed_change_leaves_the_file_until_the_run_goes_on(workdir: Path, allow: list[str]):
    before = (workdir / "config.json").read_bytes()
    prepare_workdir(workdir, now(steps=20, seed=1), allow=allow)
    assert (workdir / "config.json").read_bytes() == before


def test_a_change_is_recorded_with_the_step_it_was_made_at(workdir: Path):
    for step, steps in ((4, 20), (9, 30)):
        record_config(workdir, now(steps=steps), step)
        assert json.loads((workdir / "config.json").read_text())["steps"] == steps
    record_config(workdir, now(steps=30), 12)  # no change, no line
    lines = (workdir / "config_changes.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["changes"]) for row in rows] == [
        (4, {"steps": ["10", "20"]}),
        (9, {"steps": ["20", "30"]}),
    ]
    times = [datetime.datetime.fromisoformat(row["time"]) for row in rows]
    assert times == sorted(times) and times[0].utcoffset() == datetime.timedelta(0)


def test_a_free_change_is_not_recorded(workdir: Path):
    before = (workdir / "config.json").read_bytes()
    record_config(workdir, now(steps=20), 4, may_differ=["steps"])
    assert not (workdir / "config_changes.jsonl").exists()
    assert (workdir / "config.json").read_bytes() == before


# ---- atomic writes


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path):
    path = tmp_path / "summary.json"
    path.write_text("old")
    with open(path) as reader:
        write_atomically(path, "größer\n")
        assert reader.read() == "old"  # who had it open goes on reading what was there
    assert path.read_bytes() == "größer\n".encode()
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "summary.json"
    path.mkdir()
    (path / "inside").touch()
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert os.listdir(tmp_path) == ["summary.json"] and (path / "inside").exists()


def test_a_place_is_tried_and_left_as_it_was(tmp_path, monkeypatch):
    try_place(tmp_path / "a" / "b", "record.json")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]
    (tmp_path / "record.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"record\.json"):
        try_place(tmp_path, "other.json", "record.json")

    def refused(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "no such name")

    monkeypatch.setattr("scope_jax.run.workdir.tempfile.NamedTemporaryFile", refused)
    with pytest.raises(PermissionError) as caught:
        try_place(tmp_path)
    assert failures.ending(caught.value)[0] == f"error: {tmp_path}: permission denied"
