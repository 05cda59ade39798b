"""Models of the hub by name: a salvage that goes on has those that it began with."""

import json

from support.fixtures import mesh_of
from support.hand_made import RIGHT, WRONG_2
from support.hub import serving
from support.salvage_files import logged, read_lines, settings_of, write_models, write_rollouts

from scope_jax import hub as names
from scope_jax.salvage.run import salvage

FIRST, SECOND = "a" * 40, "b" * 40


def test_a_branch_that_moves_moves_no_salvage(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "_found", {})
    monkeypatch.chdir(tmp_path)
    folder = write_models(tmp_path / "models")
    rows = [logged(WRONG_2, 0, 1), logged(WRONG_2, 0, 2)]
    out = tmp_path / "out"
    with serving(monkeypatch, tmp_path / "cache") as hub:
        files = {path.name: path.read_bytes() for path in (folder / "policy").iterdir()}
        repository = hub.add("models/org/policy", files, FIRST)
        rollouts = write_rollouts(tmp_path / "r.jsonl", rows[:1])
        settings = settings_of(folder, rollouts, out, policy="org/policy")
        assert salvage(settings, mesh_of("1"))["rescued"] == 1
        assert json.loads((out / "hub.json").read_text()) == {"org/policy": FIRST}
        # The same name is another policy now, which writes no end; the file has grown.
        repository.commits[SECOND] = {
            path.name: path.read_bytes() for path in (folder / "idle").iterdir()
        }
        repository.refs["main"] = SECOND
        monkeypatch.setattr(names, "_found", {})
        write_rollouts(tmp_path / "r.jsonl", rows)
        assert salvage(settings, mesh_of("1"))["rescued"] == 2
    assert [line["text"] for line in read_lines(out / "mixed.jsonl")] == [RIGHT, RIGHT]
