"""Behind lm-eval's interface: log-likelihoods as the logits say them, stop strings cut exactly, and
tasks of lm-eval itself where it is installed."""

import dataclasses
import importlib.util
import json
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import TINY, make_params
from support.tiny_runs import ROOT, environment

from scope_jax import models
from scope_jax.harness.__main__ import lm_eval_arguments
from scope_jax.harness.engine import Engine, Writing, before_stop
from scope_jax.text import character_tokenizer

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed: scope_jax[harness]",
)
LOGITS = jax.jit(models.logits, static_argnums=1)
PAIRS = [("2+3=", "5"), ("Alice has", " two apples"), ("a", ""), ("Q: why?\nA:", " b" * 9)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    tokenizer = character_tokenizer(
        string.ascii_letters + string.digits + string.punctuation + " \n"
    )
    config = dataclasses.replace(TINY, vocab_size=len(tokenizer), max_positions=48, end_ids=(0,))
    folder = tmp_path_factory.mktemp("harness") / "a, b=1"  # any name will do
    models.save(folder, config, make_params(config, 5), tokenizer)
    return folder


@pytest.fixture(scope="module")
def engine(directory: Path) -> Engine:
    return Engine.load(str(directory), dtype="float32", rows=3)


def log_probs(engine: Engine, ids: list[int]) -> np.ndarray:
    """float64[T, V]: log-probs of the token after each of the ids, by the logits of one row."""
    row = jnp.array([ids + [0] * (48 - len(ids))])  # one shape to compile
    logits = LOGITS(engine.params, engine.config, row, jnp.array([len(ids)], jnp.int32))
    scores = np.asarray(jax.device_get(logits), np.float64)[0, : len(ids)]
    top = scores.max(-1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))


def by_hand(engine: Engine, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    known = log_probs(engine, context + continuation)[len(context) - 1 : -1]
    at = np.arange(len(continuation))
    return known[at, continuation].sum(), bool((known.argmax(-1) == continuation).all())


def encoded(engine: Engine) -> list[tuple[list[int], list[int]]]:
    return [(engine.tokenizer.encode(a), engine.tokenizer.encode(b)) for a, b in PAIRS]


# ---- scores


def test_scores_are_those_of_the_logits(engine: Engine):
    pairs = encoded(engine)
    for (got, _), pair in zip(engine.score(pairs), pairs):
        np.testing.assert_allclose(got, by_hand(engine, *pair)[0], atol=1e-4)
    assert engine.score([]) == [] and engine.score([([5], [])]) == [(0.0, True)]


def test_scores_are_those_of_token_logprobs(engine: Engine):
    context, continuation = encoded(engine)[3]
    row = jnp.array([context + continuation])
    with jax.set_mesh(engine.mesh):
        logp, _ = models.token_logprobs(engine.params, engine.config, row)
    [(got, _)] = engine.score([(context, continuation)])
    np.testing.assert_allclose(got, float(logp[0, len(context) :].sum()), atol=1e-4)


def test_greedy_is_what_greedy_decoding_writes(engine: Engine):
    context = engine.tokenizer.encode("Alice has")
    best: list[int] = []
    for _ in range(5):
        best.append(int(log_probs(engine, context + best)[-1].argmax()))
    other = [*best[:-1], (best[-1] + 1) % engine.config.vocab_size]
    assert [greedy for _, greedy in engine.score([(context, best), (context, other)])] == [
        True,
        False,
    ]
    assert by_hand(engine, context, best)[1] and not by_hand(engine, context, other)[1]


def test_what_is_too_long_loses_its_beginning_and_is_counted(engine: Engine, capsys):
    short = dataclasses.replace(engine, max_length=8, cut=0)
    context, continuation = engine.tokenizer.encode("abcdefghijkl"), engine.tokenizer.encode("mno")
    [(got, _)] = short.score([(context, continuation)])
    # Eight tokens go in, the last of the three is only asked for: six of the context.
    np.testing.assert_allclose(got, by_hand(engine, context[-6:], continuation)[0], atol=1e-4)
    assert short.cut == 1
    short.say_what_was_cut()
    assert "1 requests were longer than max_length = 8" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a continuation of 9 tokens is longer than max_length"):
        short.score([(context, [3] * 9)])


# ---- texts


def test_a_text_ends_before_its_first_stop_string():
    assert before_stop("one\n\ntwo STOP", ("STOP", "\n\n", "")) == "one"
    assert before_stop("one\ntwo", ("\n\n",)) == "one\ntwo"
    assert before_stop("STOP", ("STOP",)) == ""


def greedy(engine: Engine, prompt: str, count: int) -> str:
    ids = engine.tokenizer.encode(prompt)
    start = len(ids)
    while len(ids) < start + count and (ids == [] or ids[-1] != 0 or len(ids) == start):
        ids.append(int(log_probs(engine, ids)[-1].argmax()))
    return engine.tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("piece", [64, 3])
def test_stop_strings_are_cut_exactly(engine: Engine, monkeypatch, piece):
    monkeypatch.setattr("scope_jax.harness.engine.PIECE", piece)
    prompts = ["2+3=", "Alice has", "a"]
    ids = [engine.tokenizer.encode(text) for text in prompts]
    whole = [greedy(engine, text, 20) for text in prompts]
    assert engine.write(ids, Writing(20), [0, 1, 2]) == whole
    stop = whole[1][7:9]  # two letters, over the end of a piece of three
    expected = [text.split(stop)[0] for text in whole]
    assert expected[1] != whole[1]
    assert engine.write(ids, Writing(20, (stop,)), [0, 1, 2]) == expected


def test_a_drawn_text_depends_on_its_number_alone(engine: Engine):
    ids = [engine.tokenizer.encode("ab") for _ in range(4)]
    how = Writing(12, (), temperature=1.0)
    together = engine.write(ids, how, [7, 8, 9, 10])
    assert len({*together}) > 1
    assert engine.write(ids[:1], how, [9]) == together[2:3]


def test_a_prompt_makes_room_for_what_is_written(engine: Engine):
    short = dataclasses.replace(engine, max_length=16, cut=0)
    ids = engine.tokenizer.encode("abcdefghijkl")
    assert short.write([ids], Writing(8), [0]) == short.write([ids[-8:]], Writing(8), [0])
    assert short.cut == 1
    with pytest.raises(ValueError, match="16 new tokens leave no room for a prompt"):
        short.write([ids], Writing(16), [0])


# ---- the command line


def test_the_arguments_of_lm_eval():
    model, rest = lm_eval_arguments(["--model=a, b", "--tasks=x,y", "--model_args", "seed=3"])
    assert model == "a, b" and rest == [
        *("--model", "scope_jax", "--model_args", '{"pretrained": "a, b"}'),
        *("--batch_size", "auto", "--tasks=x,y", "--model_args", "seed=3"),
    ]
    assert "auto" not in lm_eval_arguments(["--model", "a", "--batch_size=4"])[1]
    with pytest.raises(ValueError, match="--model is missing"):
        lm_eval_arguments(["--tasks=x"])


def harness(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "scope_jax.harness", *arguments],
        env=environment(cwd) | {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install(directory: Path, tmp_path: Path):
    done = harness(f"--model={directory}", "--tasks=x", cwd=tmp_path, code=2)
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("error: lm-eval is missing") and "scope_jax[harness]" in line


# ---- with lm-eval


@pytest.fixture(scope="module")
def lm(directory: Path) -> Any:
    from scope_jax.harness.model import ScopeJaxLM

    return ScopeJaxLM(str(directory), dtype="float32", batch_size=2)


def asked(*args: Any) -> SimpleNamespace:
    from lm_eval.api.instance import Instance

    return Instance(request_type="loglikelihood", doc={}, arguments=args, idx=0)


@needs_lm_eval
def test_loglikelihoods_of_requests(lm: Any, engine: Engine):
    got = lm.loglikelihood([asked(*PAIRS[1]), asked("", "abc"), asked("ab ", "c")])
    encode = engine.tokenizer.encode
    # Without a context the end token begins; blanks at its end go to the continuation.
    expected = [
        by_hand(engine, encode("Alice has"), encode(" two apples")),
        by_hand(engine, [0], encode("abc")),
        by_hand(engine, encode("ab"), encode(" c")),
    ]
    np.testing.assert_allclose([x for x, _ in got], [x for x, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]


@needs_lm_eval
def test_a_long_text_is_read_in_windows(lm: Any, engine: Engine):
    text = "the quick brown fox jumps over the lazy dog " * 3
    ids, most = [0, *engine.tokenizer.encode(text)], engine.max_length
    assert len(ids) > 2 * most
    total, place = 0.0, 1
    while place < len(ids):  # each token once, with as much before it as there is room for
        end = min(place + most, len(ids))
        known = log_probs(engine, ids[max(end - 1 - most, 0) : end - 1])
        own = np.arange(place, end)
        total += known[own - max(end - 1 - most, 0) - 1, np.array(ids)[own]].sum()
        place = end
    got = lm.loglikelihood_rolling([asked(text), asked("ab")])
    np.testing.assert_allclose(
        got, [total, by_hand(engine, [0], engine.tokenizer.encode("ab"))[0]], atol=1e-3
    )


@needs_lm_eval
def test_generation_arguments(lm: Any, engine: Engine):
    from scope_jax.harness.model import writing_of

    assert writing_of({"until": ["\n"], "do_sample": False, "max_gen_toks": 5}) == Writing(
        5, ("\n",)
    )
    assert writing_of({"until": "x", "temperature": 0.5, "top_k": 0}) == Writing(256, ("x",), 0.5)
    assert writing_of({"do_sample": True, "top_p": 0.9}).temperature == 1.0
    with pytest.warns(UserWarning, match=r"temperature 0\.7 is not used"):
        assert writing_of({"do_sample": False, "temperature": 0.7}).temperature == 0
    with pytest.raises(ValueError, match="generation arguments num_beams are not known"):
        writing_of({"num_beams": 4})
    whole = greedy(engine, "2+3=", 16)
    stop = whole[5:7]
    got = lm.generate_until(
        [
            asked("2+3=", {"until": [stop], "max_gen_toks": 16}),
            asked("a", {"max_gen_toks": 4}),
            asked("2+3=", {"until": [], "max_gen_toks": 16}),
        ]
    )
    assert got == [whole.split(stop)[0], greedy(engine, "a", 4), whole]


@needs_lm_eval
def test_the_chat_template(lm: Any):
    turns = [{"role": "user", "content": "2+3="}, {"role": "assistant", "content": "5"}]
    assert lm.apply_chat_template(turns[:1]) == "2+3="
    assert lm.apply_chat_template(turns, add_generation_prompt=False) == "2+3=5"
    assert lm.chat_template(True) == lm.tokenizer.chat_template


@needs_lm_eval
def test_a_device_is_refused(directory: Path):
    from scope_jax.harness.model import ScopeJaxLM

    with pytest.raises(ValueError, match="JAX chooses it"):
        ScopeJaxLM(str(directory), device="cpu")


TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["a", "b"]
doc_to_target: 1
metric_list:
  - metric: acc
""",
    "texts": """
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["STOP"], max_gen_toks: 6}
metric_list:
  - metric: exact_match
""",
}


def write_tasks(engine: Engine, folder: Path) -> dict[str, float]:
    """Two tasks of lm-eval on three problems; the accuracy in each, by the logits."""
    prompts = ["2+3=", "Alice has", "Q: why"]
    texts = [greedy(engine, prompt, 6) for prompt in prompts]
    docs = [{"q": q, "a": a} for q, a in zip(prompts, [texts[0], "no", texts[2]])]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    where = json.dumps({"test": str(folder / "docs.jsonl")})
    for name, body in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {where}}}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\n{body}")
    encode = engine.tokenizer.encode
    known = [log_probs(engine, encode(prompt))[-1] for prompt in prompts]
    right = [logp[encode("b")[0]] > logp[encode("a")[0]] for logp in known]
    return {"texts": 2 / 3, "choices": float(np.mean(right))}


@needs_lm_eval
def test_tasks_of_lm_eval(lm: Any, engine: Engine, tmp_path: Path, monkeypatch):
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    expected = write_tasks(engine, tmp_path)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=lm, tasks=[*TASKS], task_manager=manager)["results"]
    assert found["texts"]["exact_match,none"] == pytest.approx(expected["texts"])
    assert found["choices"]["acc,none"] == pytest.approx(expected["choices"])


@pytest.mark.long  # lm-eval reads the descriptions of its ten thousand tasks
@needs_lm_eval
def test_tasks_of_lm_eval_by_the_command(directory: Path, engine: Engine, tmp_path: Path):
    expected = write_tasks(engine, tmp_path)
    harness(
        *(f"--model={directory}", "--tasks=choices,texts", f"--include_path={tmp_path}"),
        *("--model_args", "dtype=float32", f"--output_path={tmp_path / 'out'}"),
        cwd=tmp_path,
    )
    [path] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    assert results["texts"]["exact_match,none"] == pytest.approx(expected["texts"])
    assert results["choices"]["acc,none"] == pytest.approx(expected["choices"])
