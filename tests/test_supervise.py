"""The supervised trainer: directories that load, summaries, labels, a run that was stopped, and a
finished directory that is left as it is; for the embedded task and for mathematics from a file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import make_params
from support.prm_fixtures import _config, byte_level_tokenizer
from support.tiny_runs import POLICY, PRM, Tiny, tiny_config

from scope_jax import models, tasks
from scope_jax.configuration.schema import set_value
from scope_jax.configuration.supervision import SuperviseConfig
from scope_jax.data import batch_indices, read_file
from scope_jax.prm import ProcessRewardModel
from scope_jax.supervise import default_config, supervise
from scope_jax.supervision import labels
from scope_jax.supervision.batches import (
    BatchSpec,
    DemonstrationBatches,
    end_token,
)
from scope_jax.text import load_tokenizer, save_tokenizer


def test_both_directories_load(checkpoints: Tiny):
    config, params = models.load(checkpoints.policy)
    assert (config.head, config.hidden_size, config.num_layers, config.vocab_size) == (
        "lm",
        48,
        2,
        24,
    )
    assert config.end_ids == (0,)
    tokenizer = load_tokenizer(checkpoints.policy)
    ids = tokenizer.encode("+7-9=+777\n-987")
    logits = models.logits(params, config, jnp.array([ids]), jnp.array([len(ids)]))
    # Trained: after a prompt comes a sign, and after five lines' worth of characters nothing but a
    # newline or the end.
    assert tokenizer.decode([int(jnp.argmax(logits[0, 4]))]) in "+-"
    assert (
        tokenizer.decode([int(jnp.argmax(logits[0, 8]))], clean_up_tokenization_spaces=False)
        == "\n"
    )
    assert int(jnp.argmax(logits[0, 13])) == tokenizer.eos_token_id

    prm_config, prm_params = models.load(checkpoints.prm)
    assert prm_config == config.with_head("prm")
    assert prm_params["prm_output"].shape == (48, 2) and "head" not in prm_params
    changed = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), params["layers"], prm_params["layers"]
    )
    assert changed["gate"] and changed["query"]  # the whole trunk is trained, not the head alone


def test_summaries(checkpoints: Tiny):
    policy, prm = (
        json.loads((folder / "summary.json").read_text())
        for folder in (checkpoints.policy, checkpoints.prm)
    )
    assert (
        policy == checkpoints.summaries["policy"] and prm == checkpoints.summaries["prm"]
    )  # what was printed
    assert (policy["kind"], policy["steps"]) == ("policy", 300)
    assert policy["loss"] < 0.8  # log 24 = 3.2 at the start
    assert (prm["kind"], prm["train_rows"] <= 128, prm["train_rows"] > 100) == ("prm", True, True)
    rates = {
        name: prm[f"first_error/{name}"]
        for name in ("exact", "not_later", "later", "none", "clean")
    }
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert rates["exact"] <= rates["not_later"]
    assert rates["not_later"] + rates["later"] + rates["none"] == pytest.approx(1)
    assert 0 < prm["first_error/wrong_rows"] <= 64 - prm["first_error/right_rows"]


def test_a_finished_directory_is_left_alone(checkpoints: Tiny):
    config = tiny_config("base", POLICY)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in checkpoints.policy.iterdir()
    }
    assert supervise(config, checkpoints.policy) == checkpoints.summaries["policy"]
    for path, (time, content) in before.items():
        assert path.read_bytes() == content
        assert path.name == "training.json" or path.stat().st_mtime_ns == time
    config.steps += 1
    with pytest.raises(ValueError, match="another config") as caught:
        supervise(config, checkpoints.policy)
    assert "steps: there 300, here 301" in str(caught.value)
    assert (checkpoints.policy / "model.safetensors").read_bytes() == before[
        checkpoints.policy / "model.safetensors"
    ][1]


def test_settings_that_make_no_sense_write_nothing(tmp_path):
    prm = {"target.rollouts.policy": "x"}
    for name, settings, message in (
        ("base", {"steps": 5}, "needs steps > warmup_steps"),
        ("base", {"target.misconception": 1.5}, "misconception 1.5"),
        ("base", {"task.name": "chess"}, "config.task.name = 'chess' is unknown"),
        ("base", {"task.options": {"modul": (3, 4)}}, "config.task.options.modul: unknown"),
        (
            "base",
            {"task.name": "math", "task.train": {"a": {"path": "x.jsonl"}}},
            "config.start is None; task 'math' needs",
        ),
        ("prm", {"target.rollouts.policy": None}, "config.target.rollouts.policy is None"),
        (
            "prm",
            {**prm, "task.data": "y"},
            "config.target.rollouts.prompt_tokens and .new_tokens must be set",
        ),
        (
            "prm",
            {**prm, "target.labels.kind": "guess"},
            "labels.kind = 'guess' is unknown",
        ),
        (
            "prm",
            {**prm, "target.labels.continuations": 0},
            "labels.continuations = 0 must be at least 1",
        ),
        ("base", {"dtype": "float16"}, "config.dtype = 'float16' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            supervise(tiny_config(name, settings), tmp_path / "run")
    config = tiny_config("base", {})
    config.target.name = "reward"
    with pytest.raises(ValueError, match=r"config\.target\.name = 'reward' is unknown"):
        supervise(config, tmp_path / "run")
    config = tiny_config("base", {})
    config.optimizer.learning_rat = 1.0
    with pytest.raises(
        ValueError,
        match=(
            r"config.optimizer.learning_rat: unknown key; the nearest known one is"
            r" config.optimizer.learning_rate"
        ),
    ):
        supervise(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_of_an_earlier_version_is_still_known(checkpoints: Tiny, tmp_path):
    # New settings that have their defaults make the same checkpoint; a changed one, or a new one
    # that is set, does not.
    settings = json.loads((checkpoints.policy / "training.json").read_text())
    del settings["target"]["max_tokens"], settings["task"]["data"]
    (tmp_path / "training.json").write_text(json.dumps(settings))
    (tmp_path / "summary.json").write_text('{"kind": "policy"}')
    config = tiny_config("base", POLICY)
    assert supervise(config, tmp_path) == {"kind": "policy"}
    (tmp_path / "training.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"target\.max_tokens: there absent, here 30"):
        supervise(tiny_config("base", {**POLICY, "target.max_tokens": 30}), tmp_path)


def test_prm_from_monte_carlo_labels(checkpoints: Tiny, tmp_path):
    settings = {
        **PRM,
        "steps": 12,
        "target.labels.kind": "monte_carlo",
        "target.labels.continuations": 2,
        "target.labels.estimate": "soft",
        "start": str(checkpoints.policy),
        "target.rollouts.policy": str(checkpoints.policy),
        "target.rollouts.problems": 16,
        "target.rollouts.held_out": 16,
    }
    summary = supervise(tiny_config("prm", settings), tmp_path)
    assert summary["measured_against"] == "oracle"
    assert (
        0.4 < summary["labels/agreement"] <= 1 and 0 <= summary["labels/first_error_agreement"] <= 1
    )
    assert len(summary["thresholds"]) == 9 and summary["threshold/best_exact"] in labels.THRESHOLDS
    assert summary["labels/label_tokens"] > 0
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train" and "chunk" not in line]
    assert len(train) == summary["train_rows"]
    equal = [
        (x > 0) == good
        for line in train
        for x, good in zip(line["labels"], line["oracle"], strict=True)
    ]
    assert summary["labels/agreement"] == pytest.approx(np.mean(equal))
    ProcessRewardModel.load(tmp_path)


# ---- a run that was stopped


class Killed(BaseException):
    """What ends a run in the middle."""


def test_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    settings = {
        **POLICY,
        "steps": 13,
        "batch": 8,
        "checkpoint.every": 4,
        "target.foreign_prefix": True,
    }
    whole = supervise(
        tiny_config("base", {**settings, "checkpoint.every": None}), tmp_path / "whole"
    )
    drawn, draw = [], DemonstrationBatches.__next__

    def killed(self):
        drawn.append(self.position)
        if len(drawn) == 10:
            raise Killed
        return draw(self)

    monkeypatch.setattr(DemonstrationBatches, "__next__", killed)
    with pytest.raises(Killed):
        supervise(tiny_config("base", settings), tmp_path / "killed")
    assert (
        not (tmp_path / "killed" / "model.safetensors").exists()
        and (tmp_path / "killed" / "checkpoints").is_dir()
    )
    before = drawn[:]
    again = supervise(tiny_config("base", settings), tmp_path / "killed")
    assert drawn[len(before) :] == [
        8 * n for n in range(8, 13)
    ]  # from update 8 on, none of the problems twice
    assert again == whole
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "killed" / "checkpoints").exists()


# ---- mathematics, from a file

SUMS = [
    {
        "problem": f"{a}+{b}",
        "solution": f"Add {a} and {b}.\nIt is \\boxed{{{a + b}}}.",
        "answer": str(a + b),
    }
    for a, b in ((1, 2), (2, 2), (3, 1), (1, 4), (2, 5), (4, 4))
]
LONG = {"problem": "9+9", "solution": "So " + "long. " * 60 + "\\boxed{18}", "answer": "18"}


@pytest.fixture(scope="module")
def math(tmp_path_factory):
    """(folder with sums.jsonl and a tiny random model with a chat template, settings of a task
    that reads it)."""
    folder = tmp_path_factory.mktemp("math")
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*SUMS, LONG]))
    tokenizer = byte_level_tokenizer()
    config = dataclasses.replace(_config(280), end_ids=(0,))
    models.save(folder / "start", config, make_params(config, 6))
    save_tokenizer(tokenizer, folder / "start")
    task = {"name": "math", "data": str(folder), "options": {"system": ""}}
    task["train"] = {"sums": {"path": "sums.jsonl", "fields": {"prompt": "problem"}}}
    return folder, {f"task.{key}": value for key, value in task.items()}


def math_config(settings, target="policy"):
    config = default_config(target)
    for key, value in {"micro_batches": 1, "chat": True, **settings}.items():
        set_value(SuperviseConfig, config, key, value)
    return config


def test_demonstrations_teach_the_solution_and_its_end_alone(math):
    tokenizer = byte_level_tokenizer()
    assert (end_token(tokenizer, False), end_token(tokenizer, True)) == (2, 2)
    other = byte_level_tokenizer(begin=True)
    other.eos_token = "<|endoftext|>"
    assert (end_token(other, False), end_token(other, True)) == (
        0,
        2,
    )  # a base model: its text ends otherwise than its turns
    problems = read_file(math[0] / "sums.jsonl", fields={"prompt": "problem"})
    spec = BatchSpec("", False, True, True, 128, 2)
    batches = DemonstrationBatches(
        tasks.Mathematics(system=""), problems, tokenizer, spec, batch=6, seed=1
    )
    batch = next(batches)
    texts = {}
    for tokens, weight in zip(batch["tokens"], batch["weight"], strict=True):
        learned = np.flatnonzero(weight)
        texts[tokenizer.decode(tokens[: learned[0]])] = tokenizer.decode(tokens[learned])
        assert (
            np.array_equal(learned, np.arange(learned[0], learned[-1] + 1))
            and not tokens[learned[-1] + 1 :].any()
        )
    assert texts == {
        f"<|im_start|>user\n{row['problem']}<|im_end|>\n": (
            row["solution"].replace("\n", "\n\n") + "<|im_end|>"
        )
        for row in SUMS
    }
    assert (
        batch["weight"].sum() == pytest.approx(1)
        and len(set(batch["weight"][batch["weight"] > 0])) == 1
    )
    for _ in range(3):
        next(batches)
    drawn = batch_indices(1, 0, batches.position, 7)
    assert batches.dropped == {
        "too_long": int(np.sum(drawn == 6)),
        "no_solution": 0,
        "untokenisable": 0,
    }
    assert batches.position == 4 * 6 + batches.dropped["too_long"]
    short = dataclasses.replace(spec, max_tokens=8)
    with pytest.raises(ValueError, match=r"no demonstration can be used: \{'too_long': 8"):
        next(
            DemonstrationBatches(
                tasks.Mathematics(system=""), problems, tokenizer, short, batch=6, seed=1
            )
        )


@pytest.fixture(scope="module")
def solver(math):
    """A tiny model that has learned the six sums by heart: (directory, summary)."""
    folder, task = math
    settings = {
        **task,
        "steps": 150,
        "batch": 8,
        "start": str(folder / "start"),
        "target.in_steps": True,
        "target.max_tokens": 128,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 10,
    }
    return folder / "solver", supervise(math_config(settings), folder / "solver")


def test_policy_from_a_file(solver):
    directory, summary = solver
    assert summary["kind"] == "policy" and summary["loss"] < 0.3  # log 280 = 5.6 at the start
    assert 160 <= summary["data/too_long"] <= 240  # one of seven problems, 1200 used
    config = models.read_config(directory)
    assert config.end_ids == (0, 2)  # the turn's end beside the one that the model's files named
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert load_tokenizer(directory).chat_template


@pytest.mark.long
def test_prm_of_another_domain_by_monte_carlo(math, solver):
    folder, task = math
    settings = {
        **task,
        "steps": 6,
        "batch": 8,
        "start": str(folder / "start"),
        "target.rollouts.policy": str(solver[0]),
        "target.rollouts.problems": 4,
        "target.rollouts.held_out": 2,
        "target.rollouts.group": 4,
        "target.rollouts.problems_at_once": 2,
        "target.rollouts.prompt_tokens": 32,
        "target.rollouts.new_tokens": 48,
        "target.labels.kind": "monte_carlo",
        "target.labels.continuations": 2,
        "optimizer.warmup_steps": 2,
    }
    with pytest.raises(
        ValueError,
        match=r"7 problems; target\.rollouts\.problems and \.held_out ask for 8, none of them",
    ):
        supervise(
            math_config({**settings, "target.rollouts.held_out": 4}, "prm"), folder / "too_many"
        )
    with pytest.raises(
        ValueError,
        match=r"labels\.kind 'oracle': domain 'math' cannot check steps; use 'monte_carlo'",
    ):
        supervise(
            math_config({**settings, "target.labels.kind": "oracle"}, "prm"), folder / "no_oracle"
        )
    summary = supervise(math_config(settings, "prm"), folder / "prm")
    lines = [
        json.loads(line) for line in (folder / "prm" / "labels.jsonl").read_text().splitlines()
    ]
    rows = [line for line in lines if "chunk" not in line]
    assert [(line["split"], line["chunk"]) for line in lines if "chunk" in line] == [
        ("train", 0),
        ("train", 1),
        ("held_out", 0),
    ]
    assert summary["train_rows"] == sum(line["split"] == "train" for line in rows) > 8
    assert summary["labels/rows"] + summary["labels/unfinished"] == 16 - summary["labels/unjudged"]
    assert summary["measured_against"] == "monte_carlo" and "labels/agreement" not in summary
    assert all(
        line["oracle"] is None and len(line["labels"]) == len(line["steps"]) for line in rows
    )
    assert {line["prompt"] for line in rows if line["split"] == "train"}.isdisjoint(
        line["prompt"] for line in rows if line["split"] == "held_out"
    )
    answers = {row["problem"]: row["answer"] for row in [*SUMS, LONG]}
    for line in rows:
        right = f"\\boxed{{{answers[line['prompt']]}}}" in line["steps"][-1]
        assert line["labels"][-1] == float(right), line
    assert any(len(line["steps"]) == 2 for line in rows) and {
        line["labels"][-1] for line in rows
    } == {0.0, 1.0}
    prm = ProcessRewardModel.load(folder / "prm")
    assert prm.format == "qwen" and prm.score(["1+2"], [["Add.", "3"]])[1].all()
