"""What can be refused without weights is refused before a file of them is opened: every model's
`model.safetensors` is cut short here, and that would be the error."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fixtures import make_params
from support.prm_fixtures import _config, byte_level_tokenizer
from support.tiny_runs import tiny_config

from scope_jax import evaluate, evaluate_prm, evaluate_suites, models
from scope_jax.configuration import TrainConfig
from scope_jax.configuration.schema import set_value
from scope_jax.configuration.supervision import SuperviseConfig
from scope_jax.configuration.supervision import default_config as supervised_config
from scope_jax.supervise import supervise
from scope_jax.text import save_tokenizer
from scope_jax.train import train

SIZE = 269  # of the tokenizer; the embedding has 280 rows
CUT_SHORT = "not a whole safetensors file"


def write_model(
    folder: Path, name: str, *, tokenizer: Any = None, template: str | None = None, **config: Any
) -> None:
    """A model directory whose weights were cut short."""
    made = dataclasses.replace(_config(280), **config)
    models.save(folder / name, made, make_params(made, 6))
    if tokenizer is None:
        tokenizer = byte_level_tokenizer()
    if template is not None:
        tokenizer.chat_template = template or None
    save_tokenizer(tokenizer, folder / name)
    file = folder / name / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def renamed(old: str, new: str) -> Any:
    """The tokenizer with one token under another name."""
    tokenizer = byte_level_tokenizer()
    text = tokenizer.backend_tokenizer.to_str().replace(json.dumps(old), json.dumps(new))
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(text)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and problems, good ones and bad ones."""
    folder = tmp_path_factory.mktemp("before")
    write_model(folder, "policy")
    write_model(folder, "prm", head="prm")
    write_model(folder, "prm_without_mark", head="prm", tokenizer=renamed("<extra_0>", "<none>"))
    write_model(folder, "small", vocab_size=200)
    write_model(folder, "without_template", template="")
    write_model(folder, "failing_template", template="{{ raise_exception('no turns') }}")
    write_model(folder, "foreign", tokenizer=renamed("<|im_start|>", "<|zz|>"))
    write_model(folder, "no_tokenizer")
    (folder / "no_tokenizer" / "tokenizer.json").unlink()
    write_model(folder, "no_config")
    (folder / "no_config" / "config.json").unlink()
    rows = [{"prompt": f"{a}+2", "answer": str(a + 2)} for a in range(6)]
    solved = [{**row, "solution": "So it is."} for row in rows]
    for name, lines in (("sums", rows), ("solved", solved), ("empty", [{"question": "?"}])):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "own").mkdir()
    (folder / "own" / "test.jsonl").write_text((folder / "sums.jsonl").read_text())
    item = {"id": "gsm8k-0", "problem": "1+2", "steps": ["Add.", "3"], "label": 0}
    (folder / "gsm8k.json").write_text(json.dumps([item]))
    return folder


def refused(call: Callable[[], Any], message: str) -> None:
    began = time.perf_counter()
    with pytest.raises((ValueError, OSError)) as caught:
        call()
    text = str(caught.value)
    assert message in text and CUT_SHORT not in text and "\n" not in text, text
    assert time.perf_counter() - began < 5


def changed(config: Any, kind: type, folder: Path, settings: dict[str, Any]) -> Any:
    for key, value in settings.items():
        named = isinstance(value, str) and key.startswith(("models.", "start", "target.rollouts.p"))
        given = str(folder / value) if named and "format" not in key else value
        set_value(kind, config, key, given)
    return config


TASK = {"task.name": "math", "task.options": {"system": ""}, "task.evaluation": {}}
RUN = {
    **TASK,
    "task.train": {"sums": {"path": "sums.jsonl"}},
    "models.policy": "policy",
    "models.teacher": "policy",
    "models.prm": "prm",
    "rollout.prompts": 4,
    "rollout.group": 2,
    "rollout.prompt_tokens": 64,
    "rollout.new_tokens": 8,
    "rollout.chat": True,
    "training.mini_batches": 1,
    "training.micro_batches": 1,
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, CUT_SHORT),
        ({"task.train": {"sums": {"path": "none.jsonl"}}}, "none.jsonl"),
        ({"task.train": {"sums": {"path": "empty.jsonl"}}}, "empty.jsonl: no problem in it"),
        (
            {"task.train": {"sums": {"path": "sums.jsonl", "fields": {"prompt": "p"}}}},
            "of 6 rows 6",
        ),
        ({"task.evaluation": {"test": {"path": "none.jsonl"}}}, "none.jsonl"),
        ({"rollout.prompt_tokens": 4}, "no prompt fits into rollout.prompt_tokens = 4; raise it"),
        ({"models.policy": "none"}, "none: no such model directory"),
        ({"models.policy": "no_config"}, "no_config: no config.json"),
        ({"models.policy": "no_tokenizer"}, "no_tokenizer: no tokenizer there"),
        ({"models.policy": "prm"}, "prm: head 'prm'; a policy needs"),
        ({"models.policy": "small"}, f"small: its tokenizer has {SIZE} tokens, its embedding 200"),
        ({"models.policy": "without_template"}, "this tokenizer has no chat template"),
        ({"models.policy": "failing_template"}, "chat template: no turns"),
        ({"models.teacher": "none"}, "none: no such model directory"),
        ({"models.teacher": "prm"}, "prm: head 'prm'; a teacher needs"),
        ({"models.teacher": "foreign"}, "foreign: another tokenizer than the policy's"),
        ({"models.prm": "none"}, "none: no such model directory"),
        ({"models.prm": "policy"}, "policy: a qwen2 model with head 'lm' is no known process"),
        ({"models.prm": "prm_without_mark"}, "prm_without_mark: the PRM's tokenizer has no '<ext"),
        ({"models.prm": "small"}, "small: a qwen2 model with head 'lm'"),
        ({"models.prm_format": "skywork"}, "a PRM of format 'skywork' has 'value'"),
        ({"localiser.kind": "oracle"}, "localiser.kind 'oracle': domain 'math' cannot check steps"),
        ({"advantage.unique": True}, "config.advantage.unique: domain 'math' does not say which"),
        ({"teacher.kind": "program"}, "domain 'math' has no program that writes steps"),
        ({"teacher.kind": "reference"}, "none of the problems looked at has a solution"),
        ({"mesh.tensor": 3}, "needs 6 devices, 8 are here"),
        ({"rollout.new_tokens": 4096}, "rows of 4160 tokens (config.rollout.prompt_tokens and new"),
        (
            {"evaluation.new_tokens": 8000, "evaluation.prompt_tokens": 64},
            "rows of 8064 tokens (config.evaluation.prompt_tokens and new_tokens): the model is"
            " made for 256 (max_position_embeddings of its config.json)",
        ),
        ({"teacher.prompt_tokens": 4096, "teacher.template": "wrong_step"}, "config.teacher.prom"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join([*value, *map(str, value)][:1]),
)
def test_train(folder: Path, tmp_path: Path, settings: dict[str, Any], message: str):
    config = changed(tiny_config("scope", {}), TrainConfig, folder, RUN | settings)
    config.task.data = str(folder)
    if message == CUT_SHORT:  # the weights themselves are bad, and nothing else
        with pytest.raises(ValueError, match=CUT_SHORT):
            train(config, tmp_path / "run")
    else:
        refused(lambda: train(config, tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


def test_train_into_a_place_that_is_taken(folder: Path, tmp_path: Path):
    config = changed(tiny_config("grpo", {}), TrainConfig, folder, RUN)
    config.task.data = str(folder)
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "seed": 7}))
    refused(lambda: train(config, tmp_path), "seed: there 7, here 0")
    (tmp_path / "file").write_text("")
    refused(lambda: train(config, tmp_path / "file" / "run"), str(tmp_path / "file"))


def test_headers_of_all_models_come_before_the_weights_of_the_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = _config(280)
    models.save(tmp_path / "policy", whole, make_params(whole, 6))
    save_tokenizer(byte_level_tokenizer(), tmp_path / "policy")
    monkeypatch.setattr("scope_jax.models.hf._load_weight", lambda *_: pytest.fail("a weight"))
    config = changed(tiny_config("scope", {}), TrainConfig, folder, RUN)
    config.task.data, config.models.policy = str(folder), str(tmp_path / "policy")
    with pytest.raises(ValueError, match=f"{folder / 'policy'}/model.safetensors: {CUT_SHORT}"):
        train(config, tmp_path / "run")  # the teacher's


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("policy", {"start": "prm"}, "prm: head 'prm'"),
        ("policy", {"start": "small"}, f"small: its tokenizer has {SIZE} tokens"),
        ("policy", {"start": "without_template"}, "no chat template"),
        ("policy", {"start": "policy"}, "no demonstration can be used: {'too_long': 0, 'no_sol"),
        ("prm", {"start": "none"}, "none: no such model directory"),
        ("prm", {"start": "failing_template"}, "chat template: no turns"),
        ("prm", {"target.rollouts.policy": "prm"}, "prm: head 'prm'"),
        ("prm", {"target.rollouts.prompt_tokens": 3}, "target.rollouts.prompt_tokens = 3; raise"),
        ("prm", {"target.labels.kind": "oracle"}, "labels.kind 'oracle': domain 'math'"),
        ("prm", {"target.rollouts.problems": 90}, "6 problems; target.rollouts.problems"),
    ],
)
def test_supervise(folder: Path, tmp_path: Path, target: str, settings, message: str):
    base = {**TASK, "task.train": {"sums": {"path": "sums.jsonl"}}, "chat": True, "steps": 3}
    base |= {"optimizer.warmup_steps": 1, "task.evaluation": {}}
    if target == "prm":
        base |= {
            "target.rollouts.policy": "policy",
            "target.rollouts.problems": 4,
            "target.rollouts.held_out": 2,
            "target.rollouts.prompt_tokens": 64,
            "target.rollouts.new_tokens": 8,
            "target.labels.kind": "monte_carlo",
        }
    config = changed(supervised_config(target), SuperviseConfig, folder, base | settings)
    config.task.data = str(folder)
    refused(lambda: supervise(config, tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass
class Given:
    """Flags of `evaluate`."""

    model: str | None


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("none", {}, "none: no such model directory"),
        ("prm", {}, "prm: head 'prm'; a policy needs"),
        ("small", {}, f"small: its tokenizer has {SIZE} tokens"),
        ("failing_template", {}, "chat template: no turns"),
        ("policy", {"task.evaluation": {"test": {"path": "none.jsonl"}}}, "none.jsonl"),
        ("policy", {"evaluation.new_tokens": 8000}, "tokens (config.evaluation.prompt_tokens and"),
        ("policy", {"mesh.tensor": 8, "mesh.fsdp": 1}, "mesh.tensor"),
    ],
)
def test_evaluate(folder: Path, model: str, settings: dict[str, Any], message: str):
    base = RUN | {"task.evaluation": {"test": {"path": "sums.jsonl"}}} | settings
    config = changed(tiny_config("grpo", {}), TrainConfig, folder, base)
    config.task.data = str(folder)
    refused(lambda: evaluate.command(config, None, Given(str(folder / model))), message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=prm"], "prm: head 'prm'; a policy needs"),
        (["--model=small"], f"small: its tokenizer has {SIZE} tokens"),
        (["--model=failing_template"], "chat template: no turns"),
        (["--model=without_template", "--chat=on"], "no chat template"),
        (["--temperature=0", "--samples=2"], "2 samples at temperature 0 are all alike"),
        (["--prompt-tokens=3"], "prompts are longer than prompt_tokens = 3"),
        (["--prm=policy"], "policy: a qwen2 model with head 'lm'"),
        (["--prm=none"], "none: no such model directory"),
    ],
)
def test_evaluate_suites(folder: Path, tmp_path: Path, flags: list[str], message: str):
    named = [f.replace("=", f"={folder}/") if f[:6] in ("--mode", "--prm=") else f for f in flags]
    given = ["--suites=own", f"--data={folder}", f"--workdir={tmp_path}", *named]
    if not any(flag.startswith("--model") for flag in flags):
        given.append(f"--model={folder / 'policy'}")
    refused(lambda: evaluate_suites.main(given), message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=policy"], "policy: a qwen2 model with head 'lm'"),
        (["--model=prm_without_mark"], "prm_without_mark: the PRM's tokenizer has no '<extra_0>'"),
        (["--model=prm", "--threshold=2"], "threshold 2.0 must lie in (0, 1)"),
        (["--model=prm", "--threshold-from=math"], "no such subset; the data has gsm8k"),
        (["--model=prm", "--threshold-from=gsm8k"], "needs erroneous and correct solutions"),
        (["--model=prm", "--prm-format=skywork"], "a PRM of format 'skywork' has 'value'"),
    ],
)
def test_evaluate_prm(folder: Path, flags: list[str], message: str):
    named = [f.replace("=", f"={folder}/") if f.startswith("--model") else f for f in flags]
    refused(lambda: evaluate_prm.main([f"--data={folder / 'gsm8k.json'}", *named]), message)
