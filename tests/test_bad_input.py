"""Bad input gets one line that says what is wrong, where, and what would be right; nothing is
written over."""

import dataclasses
import json
import shutil
import subprocess
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny_runs import ROOT, Tiny, command, environment, tiny_config

from scope_jax import models, tasks
from scope_jax.configs.tasks import change
from scope_jax.data import read_file
from scope_jax.evaluate import EvaluateSpec, evaluate
from scope_jax.run import Checkpoints, read_metrics
from scope_jax.text import load_tokenizer
from scope_jax.train import train


def refused(config, workdir: Path, kind=ValueError) -> str:
    """The message of the error that `train` ends with; it is one line."""
    with pytest.raises(kind) as caught:
        train(config, workdir)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# ---- the command line


def test_the_command_line_says_one_line_and_ends_with_2(checkpoints: Tiny, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(
        json.dumps({**checkpoints.config("grpo").to_dict(), "seed": 5})
    )
    before = (other / "config.json").read_bytes()
    wanted = {
        "override": (
            command("train", "grpo", tmp_path / "a", {}, ("--config.rollout.grup=4",)),
            ["config.rollout.grup", "unknown key", "config.rollout.group"],
        ),
        "model": (
            command(
                "train",
                "grpo",
                tmp_path / "b",
                {**checkpoints.settings("grpo"), "models.policy": str(tmp_path / "nowhere")},
            ),
            [f"{tmp_path / 'nowhere'}: no such model directory", "config.json"],
        ),
        "other run": (
            checkpoints.program("grpo", other),
            ["the workdir of a run with another config", "seed: there 5, here 0"],
        ),
        "no workdir": (
            command("supervise", "base", tmp_path / "d", {})[:-1],
            ["--workdir is missing"],
        ),
    }
    started = {
        name: subprocess.Popen(
            arguments,
            env=environment(checkpoints.folder),
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, (arguments, _) in wanted.items()
    }
    for name, process in started.items():
        out, err = process.communicate(timeout=240)
        assert process.returncode == 2, (name, out, err)
        assert "Traceback" not in err + out
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and lines[0] == err.splitlines()[-1], err
        assert all(part in lines[0] for part in wanted[name][1]), lines[0]
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert (other / "config.json").read_bytes() == before and sorted(
        p.name for p in other.iterdir()
    ) == ["config.json"]


# ---- configs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss.teacher_wieght": 1.0},
            (
                "config.loss.teacher_wieght: unknown key; the nearest known one is"
                " config.loss.teacher_weight"
            ),
        ),
        (
            {"task.options.sizes": 3},
            (
                "config.task.options.sizes: unknown; known: lengths, marks, moduli, ood_lengths,"
                " seed, start, test_ood_size"
            ),
        ),
        ({"dtype": "float33"}, "config.dtype = 'float33' is unknown; one of float32, bfloat16"),
        ({"task.name": "chess"}, "config.task.name = 'chess' is unknown"),
        (
            {"loss.old_logp": "guess"},
            "config.loss.old_logp = 'guess' is unknown; one of sampler, recompute",
        ),
        (
            {"loss.teacher_schedule": "zigzag"},
            "config.loss.teacher_schedule = 'zigzag' is unknown; one of constant, linear, cosine",
        ),
        ({"loss.teacher_term": "like"}, "config.loss.teacher_term = 'like' is unknown"),
        ({"loss.normaliser": "mean"}, "config.loss.normaliser = 'mean' is unknown"),
        ({"loss.clip_low": 2.0}, "config.loss.clip_low = 2.0; expected at most 1"),
        (
            {"optimizer.schedule": "exponential"},
            "config.optimizer.schedule = 'exponential' is unknown",
        ),
        ({"optimizer.learning_rate": float("inf")}, "config.optimizer.learning_rate = inf"),
        (
            {"method.tail": "both"},
            "method.tail = 'both' is unknown; one of policy, teacher, none",
        ),
        ({"method.tail": "none"}, "set accept to 'unverified'"),
        ({"method.select.rule": "best"}, "method.select.rule = 'best' is unknown"),
        ({"rollout.temperature": -1.0}, "config.rollout.temperature -1.0 must be a number >= 0"),
        ({"rollout.top_p": 0.0}, "config.rollout.top_p 0.0 must be in (0, 1]"),
        (
            {"training.micro_batches": 3},
            "config.training.micro_batches = 3 does not divide prompts x group = 32",
        ),
        ({"mesh.tensor": 3}, "needs 6 devices, 8 are here"),
        ({"models.policy": None}, "config.models.policy is None"),
        ({"models.teacher": None}, "config.models.teacher is None"),
        ({"models.prm": None}, "config.models.prm is None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_sense(checkpoints: Tiny, tmp_path: Path, settings, message):
    config = checkpoints.config("scope")
    change(config, settings)
    assert message in refused(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # a mended config may use the same workdir


def test_a_workdir_of_another_config_is_left_alone(checkpoints: Tiny, tmp_path: Path):
    config = checkpoints.config("grpo")
    (tmp_path / "config.json").write_text(
        json.dumps({**config.to_dict(), "seed": 7, "checkpoint": {"every": 1, "keep": 1}})
    )
    before = (tmp_path / "config.json").read_bytes()
    message = refused(config, tmp_path)
    assert (
        "seed: there 7, here 0" in message
        and "checkpoint" not in message
        and "use another workdir" in message
    )
    assert (tmp_path / "config.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ---- model directories


def damaged(checkpoints: Tiny, folder: Path, damage) -> str:
    """A copy of the tiny policy with changed tensors."""
    shutil.copytree(checkpoints.policy, folder)
    tensors = dict(load_file(folder / "model.safetensors"))
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_weights_that_do_not_fit(checkpoints: Tiny, tmp_path: Path):
    name = "model.layers.1.mlp.up_proj.weight"
    for number, (damage, parts) in enumerate(
        [
            (lambda t: t.update({name: t[name][:5]}), [name, "[5, 48]", "[96, 48]"]),
            (lambda t: t.pop(name), [name, "[96, 48]", "is missing"]),
            (
                lambda t: t.update(extra=np.zeros(3, np.float32)),
                ["weight extra is not part of this qwen2 model"],
            ),
        ]
    ):
        directory = damaged(checkpoints, tmp_path / f"model{number}", damage)
        message = refused(
            checkpoints.config("grpo", {"models.policy": directory}), tmp_path / "run"
        )
        assert directory in message and all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


def test_checkpoints_in_the_wrong_role(checkpoints: Tiny, tmp_path: Path):
    policy, prm = str(checkpoints.policy), str(checkpoints.prm)
    message = refused(checkpoints.config("scope", {"models.prm": policy}), tmp_path / "run")
    assert "head 'lm'" in message and "score.0 and score.2" in message
    assert f"{prm}: head 'prm'; a policy" in refused(
        checkpoints.config("scope", {"models.policy": prm}), tmp_path / "run"
    )
    assert f"{prm}: head 'prm'; a teacher" in refused(
        checkpoints.config("scope", {"models.teacher": prm}), tmp_path / "run"
    )
    config, _ = models.load(policy)

    wide = dataclasses.replace(config, vocab_size=32)
    models.save(tmp_path / "wide", wide, models.init(wide, jax.random.key(0)))
    message = refused(
        checkpoints.config("scope", {"models.teacher": str(tmp_path / "wide")}), tmp_path / "run"
    )
    assert "vocabulary of 32, the policy has 24" in message
    (tmp_path / "empty").mkdir()
    message = refused(
        checkpoints.config("grpo", {"models.policy": str(tmp_path / "empty")}),
        tmp_path / "run",
        FileNotFoundError,
    )
    assert "no config.json" in message
    assert not (tmp_path / "run").exists()


# ---- data


def test_a_run_whose_prompts_are_all_too_long(checkpoints: Tiny, tmp_path: Path):
    message = refused(checkpoints.config("grpo", {"rollout.prompt_tokens": 4}), tmp_path / "run")
    assert "no prompt fits into rollout.prompt_tokens = 4; raise it" in message
    assert not (tmp_path / "run").exists()


def test_an_evaluation_whose_prompts_are_all_too_long(checkpoints: Tiny):
    config, params = models.load(checkpoints.policy)
    domain = tasks.Arithmetic(start="zero")
    problems = [domain.problem(0, "test", n, 3) for n in range(3)]
    tokenizer = load_tokenizer(checkpoints.policy)
    spec = EvaluateSpec(prompt_tokens=6)
    assert evaluate(params, config, problems, domain, tokenizer, spec) == {
        "dropped": 3.0,
        "problems": 0.0,
    }


def test_malformed_data_lines(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    good = json.dumps({"prompt": "1+1?", "answer": "2"})
    path.write_text(
        "\n".join([good, '{"prompt": "cut', good, '{"prompt": "no answer"}', "[1]", good]) + "\n"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problems = read_file(path)
    assert len(problems) == 3 and problems.skipped == 3
    lines = [str(w.message) for w in caught]
    assert [
        line.startswith(f"{path}: line {n}: ") for line, n in zip(lines, (2, 4, 5), strict=True)
    ] == [True] * 3
    assert (
        "not JSON" in lines[0]
        and "no field 'answer'" in lines[1]
        and "expected an object, found list" in lines[2]
    )
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"line 5: .*more than 2 malformed lines") as error,
    ):
        warnings.simplefilter("ignore")
        read_file(path, max_malformed=2)
    assert str(path) in str(error.value)


# ---- numbers


def test_updates_that_are_not_finite(checkpoints: Tiny, tmp_path: Path):
    def poison(tensors):  # finite, so that it is loaded; no logit is
        tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 3e38)

    directory = damaged(checkpoints, tmp_path / "model", poison)
    settings = {
        "models.policy": directory,
        "steps": 6,
        "training.stop_after_skipped": 3,
        "checkpoint.every": 1,
    }
    message = refused(checkpoints.config("grpo", settings), tmp_path / "run", RuntimeError)
    assert "step 2: 3 updates in a row were not finite" in message and "learning_rate" in message
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["grad/skipped"] for row in rows] == [1, 2]  # skipped and counted, then the end
    with Checkpoints(tmp_path / "run" / "checkpoints") as kept:
        assert kept.steps() == []
    assert (
        not (tmp_path / "run" / "summary.json").exists()
        and not (tmp_path / "run" / "model").exists()
    )


def test_unknown_keys_of_a_config_file_name_the_nearest(tmp_path: Path):
    config = tiny_config("scope", {})
    config.localiser.treshold = 0.4
    assert (
        "config.localiser.treshold: unknown key; the nearest known one is"
        " config.localiser.threshold" in refused(config, tmp_path / "run")
    )
    config = tiny_config("scope", {})
    del config.loss.clip_high
    assert "config.loss.clip_high: missing; start from default_config()" in refused(
        config, tmp_path / "run"
    )
