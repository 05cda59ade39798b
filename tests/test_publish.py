"""The model card of a run, and its way to the hub (a stand-in on loopback)."""

import json

import pytest
import yaml
from support.fixtures import TIED, make_params
from support.hub import serving

from scope_jax import hub as names
from scope_jax import models
from scope_jax.publish.upload import publish
from scope_jax.text import character_tokenizer

FINAL = {
    "eval/pass@1": 0.25,
    "eval/pass@1/se": 0.05,
    "eval/problems": 48,
    "eval/diversity/distinct_paths": 1.5,
    "eval_t0.6/pass@8": 0.5,
    "eval_t0.6/pass@8/se": 0.1,
    "eval_t0.6/problems": 48,
    "eval_ood/pass@1": None,
}


@pytest.fixture
def workdir(tmp_path):
    """A finished run, as far as its card reads it."""
    folder = tmp_path / "run"
    config = {
        "method": {"name": "scope"},
        "task": {"name": "arithmetic"},
        "models": {"policy": "org/base@main", "teacher": "x/teacher", "prm": None},
        "evaluation": {"samples": 8, "temperature": 1.0},
        "steps": 2,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({"steps": 2, "updates": 4, "final": FINAL}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "time/total": 1.0}) + "\n")
    (folder / "hub.json").write_text(json.dumps({"org/base@main": "a" * 40}))
    models.save(folder / "model", TIED, make_params(TIED, 0), character_tokenizer("abc"))
    (folder / "model" / "notes.txt").write_text("not of the model")
    return folder


def test_the_card_says_what_the_records_say(workdir):
    path = publish(workdir, None, dry_run=True)
    assert path == str(workdir / "model" / "README.md")
    card = (workdir / "model" / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["jax", "rlvr", "scope"],
        "base_model": "org/base",
    }
    # 1.96 x 0.05 and 1.96 x 0.1, in per cent.
    assert "| test problems | 1 | pass@1 | 25.0 ± 9.8 | 48 |" in body
    assert "| test problems | 0.6 | pass@8 | 50.0 ± 19.6 | 48 |" in body
    assert "longer" not in body and "distinct" not in body
    assert f"| org/base@main | {'a' * 40} |" in body and '"policy": "org/base@main"' in body
    assert "8 samples for each problem." in body


def test_upload_and_back_again(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(names, "_found", {})
    monkeypatch.chdir(tmp_path)
    with serving(monkeypatch, tmp_path / "cache") as hub:
        with pytest.raises(ValueError) as error:
            publish(workdir, "me/trained")
        assert str(error.value).startswith("me/trained: the hub refuses (")
        assert "hf auth login" in str(error.value) and "write to me" in str(error.value)
        monkeypatch.setenv("HF_TOKEN", "of-a-writer")
        with pytest.raises(ValueError, match=r"me/unfit: the hub refuses .*reserved") as error:
            publish(workdir, "me/unfit")  # another try would be in vain
        assert "\n" not in str(error.value)
        assert publish(workdir, "me/trained") == f"{hub.url}/me/trained"
        files = hub.repositories["models/me/trained"].files("main")[1]
        assert "notes.txt" not in files and "README.md" in files and "tokenizer.json" in files
        assert files["model.safetensors"] == (workdir / "model/model.safetensors").read_bytes()
        assert models.load("me/trained")[0].num_layers == TIED.num_layers


def test_what_cannot_be_published(workdir):
    for name in (None, "me", "a/b/c", "a b/c"):
        with pytest.raises(ValueError, match="expected ORGANISATION/NAME"):
            publish(workdir, name)
    (workdir / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match="give the workdir of a finished run"):
        publish(workdir, "me/trained")
