"""A process reward model on a trunk whose vocabulary is full: the step mark's row is added, decided
before any label is made, and the directory is an ordinary one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from support.fixtures import make_params
from support.prm_fixtures import _config, byte_level_tokenizer
from support.tiny_runs import tiny_config

from scope_jax import models
from scope_jax.configuration import TrainConfig
from scope_jax.configuration.schema import set_value
from scope_jax.configuration.supervision import SuperviseConfig
from scope_jax.data.processbench import load_processbench
from scope_jax.data.prompts import check_vocabulary
from scope_jax.devices.mesh import make_mesh
from scope_jax.evaluate_prm import evaluate_prm
from scope_jax.prm import ProcessRewardModel
from scope_jax.supervise import default_config, supervise
from scope_jax.supervision import labels
from scope_jax.supervision.prm_start import prm_start
from scope_jax.text import save_tokenizer
from scope_jax.train import train

SUMS = [(2, 2), (3, 1), (1, 4), (2, 5), (4, 4), (1, 2)]


def full_tokenizer():
    """The byte-level tokenizer with a turn's start in the place of the step mark: no id is free,
    none is the mark's."""
    tokenizer = byte_level_tokenizer()
    raw = json.loads(tokenizer.backend_tokenizer.to_str().replace("<extra_0>", "<|role|>"))
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(raw))
    full = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    full.chat_template = tokenizer.chat_template
    return full


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def trunk(request, tmp_path_factory):
    """(folder with sums.jsonl and a tiny model with no free row, its vocabulary)."""
    folder = tmp_path_factory.mktemp("full")
    tokenizer = full_tokenizer()
    size = len(tokenizer)
    assert max(tokenizer.get_vocab().values()) == size - 1
    config = dataclasses.replace(_config(size), end_ids=(2,), tied=request.param)
    models.save(folder / "trunk", config, make_params(config, 6))
    save_tokenizer(tokenizer, folder / "trunk")
    rows = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a, b in SUMS]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, size


def test_the_old_rows_stay_and_the_new_ones_are_their_mean(trunk):
    folder, size = trunk
    start = prm_start(str(folder / "trunk"))
    assert (size, start.config.vocab_size, start.added_rows) == (269, 384, 115)  # 3 x 128
    assert start.scorer.encode("1", ["2", "3"])[0].count(size) == 2  # the mark has the first one
    before, old = models.load(folder / "trunk")
    new = start.params("float32", 0, make_mesh())
    assert new["embed"].shape == (384, 32) and "head" not in new
    assert np.array_equal(new["embed"][:size], old["embed"])
    mean = np.asarray(old["embed"], np.float64).mean(axis=0)
    np.testing.assert_allclose(new["embed"][size:], np.tile(mean, (115, 1)), atol=1e-6)
    # What the trunk makes of the tokens that it knows is the same, bit for bit.
    tokens = jnp.arange(size, dtype=jnp.int32).reshape(1, -1)[:, :200]
    states = [
        models.hidden_states(params, config, tokens)
        for params, config in ((old, before), (new, start.config))
    ]
    assert np.array_equal(*states)


def test_rows_are_added_split_over_the_devices_as_well(trunk):
    start = prm_start(str(trunk[0] / "trunk"))
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        split = start.params("bfloat16", 0, mesh)["embed"]
    assert split.dtype == jnp.bfloat16
    assert split.sharding.shard_shape(split.shape)[0] == 384 // 8
    whole = start.params("bfloat16", 0, make_mesh(devices=jax.devices()[:1]))["embed"]
    assert np.array_equal(np.asarray(split), np.asarray(whole))


def settings_of(folder):
    return {
        "task.name": "math",
        "task.data": str(folder),
        "task.options": {"system": ""},
        "task.train": {"sums": {"path": "sums.jsonl"}},
        "micro_batches": 1,
        "chat": True,
        "steps": 3,
        "batch": 4,
        "target.rollouts.policy": str(folder / "trunk"),
        "target.rollouts.problems": 4,
        "target.rollouts.held_out": 2,
        "target.rollouts.group": 2,
        "target.rollouts.prompt_tokens": 32,
        "target.rollouts.new_tokens": 8,
        "target.labels.kind": "monte_carlo",
        "target.labels.continuations": 1,
        "optimizer.warmup_steps": 1,
    }


def supervise_config(folder, **more):
    config = default_config("prm")
    for key, value in (settings_of(folder) | more).items():
        set_value(SuperviseConfig, config, key, value)
    return config


def some_labels(path, split, problems, scene, rollouts, spec):
    """Rows as the labeller makes them: a random policy writes hardly any that end."""
    rows = [
        labels.LabelledRow(problem.prompt, ["So it is.\n\n", "5"], [1.0, float(n % 2)], None)
        for n, problem in enumerate(problems)
    ]
    return rows, {"rows": len(rows)}


@pytest.mark.parametrize(
    "trunk",
    [pytest.param(False, marks=pytest.mark.long), True],
    indirect=True,
    ids=["untied", "tied"],
)
def test_labelled_trained_saved_scored_and_trained_with(trunk, tmp_path, monkeypatch, capsys):
    folder, size = trunk
    monkeypatch.setattr("scope_jax.supervise.labelled_rows", some_labels)
    summary = supervise(supervise_config(folder), tmp_path / "prm")
    assert (summary["kind"], summary["train_rows"]) == ("prm", 4)
    assert "115 are added, 384 in all" in capsys.readouterr().out

    raw = json.loads((tmp_path / "prm" / "config.json").read_text())
    assert (raw["vocab_size"], raw["num_labels"]) == (384, 2)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "prm")
    assert theirs.convert_tokens_to_ids("<extra_0>") == size and len(theirs) == size + 1
    assert transformers.AutoConfig.from_pretrained(tmp_path / "prm").vocab_size == 384
    prm = ProcessRewardModel.load(tmp_path / "prm")
    score, valid, lost = prm.score(["1+2", "2+2"], [["Add.", "3"], ["4"]])
    assert valid.tolist() == [[True, True], [True, False]] and lost == 0
    assert ((score > 0) & (score < 1))[valid].all()

    items = [
        {"id": f"gsm8k-{n}", "problem": "1+2", "steps": ["Add.", "3"], "label": n - 1}
        for n in range(2)
    ]
    (tmp_path / "gsm8k.json").write_text(json.dumps(items))
    (found,) = evaluate_prm(prm, load_processbench(tmp_path / "gsm8k.json"))["subsets"].values()
    assert (found["items"], found["unscored"]) == (2, 0)

    config = tiny_config("scope", {})
    run = {
        **{key: value for key, value in settings_of(folder).items() if key.startswith("task.")},
        "steps": 1,
        "models.policy": str(folder / "trunk"),
        "models.teacher": str(folder / "trunk"),
        "models.prm": str(tmp_path / "prm"),
        "rollout.prompts": 4,
        "rollout.group": 2,
        "rollout.prompt_tokens": 32,
        "rollout.new_tokens": 8,
        "rollout.chat": True,
        "training.mini_batches": 1,
        "training.micro_batches": 1,
        "evaluation.every": None,
    }
    for key, value in run.items():
        set_value(TrainConfig, config, key, value)
    final = train(config, tmp_path / "run")["final"]
    assert final["grad/skipped"] == 0 and final["reward/mean"] < 1
    assert final["time/prm"] > 0 and final["scope/unscored"] == 0


def test_a_start_that_cannot_be_used_shows_before_labels(trunk, tmp_path, monkeypatch):
    folder, size = trunk
    monkeypatch.setattr("scope_jax.supervise.labelled_rows", lambda *_: pytest.fail("labels"))
    monkeypatch.setattr("scope_jax.models.load", lambda *_, **__: pytest.fail("weights"))
    config, params = dataclasses.replace(_config(200), end_ids=(2,)), None
    params = make_params(config, 6)
    models.save(tmp_path / "small", config, params)
    save_tokenizer(full_tokenizer(), tmp_path / "small")
    models.save(tmp_path / "loop", dataclasses.replace(config, vocab_size=size), params)
    tokenizer = full_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    save_tokenizer(tokenizer, tmp_path / "loop")
    for name, message in (
        ("small", f"small: its tokenizer has {size} tokens, its embedding 200 rows"),
        ("loop", "loop: .*the user's and the assistant's turn once each"),
        ("none", "none: no such model directory"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            supervise(supervise_config(folder, start=str(tmp_path / name)), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_tokens_that_were_added_need_no_row():
    tokenizer = full_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    check_vocabulary(tokenizer, size, "DIR")
    with pytest.raises(ValueError, match="DIR: its tokenizer has 269 tokens, its embedding 260"):
        check_vocabulary(tokenizer, 260, "DIR")
