"""Lines as several programs log them, each written down here as that program writes it."""

import pytest

from scope_jax.salvage.fields import layout_of, read_row
from scope_jax.salvage.settings import Settings


def settings(*fields: str) -> Settings:
    return Settings("r.jsonl", "out", "teacher", prm="prm", fields=fields)


VERL = {
    "input": "user\n1+1?\nassistant\n",
    "output": "It is 3.",
    "gts": "2",
    "score": 0.0,
    "step": 4,
}
TRL = {
    "step": 10,
    "prompt": "1+1?",
    "completion": "It is 3.",
    "accuracy_reward": 0.0,
    "advantage": -0.5,
    "answer": 2,
}
PRIME = {
    "example_id": 7,
    "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1?"}],
    "completion": [{"role": "assistant", "content": "It is 3."}],
    "answer": "2",
    "reward": 0.0,
    "is_truncated": True,
}
VLLM = {
    "request_id": "3",
    "prompt": "1+1?",
    "prompt_token_ids": [5, 6],
    "outputs": [{"text": "It is 3.", "token_ids": [8, 9], "finish_reason": "length"}],
    "answer": "2",
}


@pytest.mark.parametrize(
    ("row", "fields", "name", "found"),
    [
        (VERL, (), "verl", {"prompt": "user\n1+1?\nassistant\n", "reward": 0.0, "id": "1"}),
        (TRL, (), "trl", {"prompt": "1+1?", "reward": None, "problem": "1+1?"}),
        (TRL, ("reward=accuracy_reward",), "trl", {"reward": 0.0}),
        (
            PRIME,
            (),
            "prime-rl",
            {"prompt": "1+1?", "system": "Add.", "group": "7", "cut_off": True, "messages": True},
        ),
        (
            VLLM,
            (),
            "vllm",
            {"prompt_ids": [5, 6], "completion_ids": [8, 9], "cut_off": True, "id": "3"},
        ),
        (
            {"q": "1+1?", "deep": {"texts": ["It is 3."]}, "answer": 2, "ok": False},
            ("problem=q", "completion=deep.texts.0", "reward=ok"),
            "plain",
            {"problem": "1+1?", "prompt": None, "reward": 0.0},
        ),
        (
            {"problem": "1+1?", "prompt": "Q: 1+1?", "completion": "It is 3.", "answer": ["2"]},
            (),
            "plain",
            {"problem": "1+1?", "prompt": "Q: 1+1?", "cut_off": False},
        ),
    ],
)
def test_layouts(row, fields, name, found):
    layout, names = layout_of(settings(*fields), row)
    assert layout == name
    logged = read_row(row, names, 1)
    assert {key: getattr(logged, key) for key in found} == found
    assert (logged.completion, logged.answer) == ("It is 3.", "2")


def test_a_layout_can_be_named():
    row = {"input": "a", "output": "b", "prompt": "c", "completion": "d", "answer": "1"}
    assert layout_of(settings(), row)[0] == "verl"
    name, names = layout_of(settings("plain"), row)
    assert name == "plain" and read_row(row, names, 1).completion == "d"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("promt=x",), "--fields: 'promt' is unknown; one of problem, prompt"),
        (
            ("varl",),
            "--fields=varl: one of traces, vllm, verl, prime-rl, trl, plain, and role=",
        ),
        (("completion=reply",), "no fields of a prompt and a completion among prompt, output"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError) as caught:
        layout_of(settings(*fields), {"prompt": "a", "output": "b"})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": None}, "field 'completion' is missing"),
        ({"completion": "  "}, "field 'completion' is empty"),
        ({"completion": ["a"]}, "expected messages with a role"),
        (
            {"completion": [{"role": "assistant", "content": "a"}] * 2},
            "field 'completion': turns of assistant, assistant; expected one of the assistant",
        ),
        ({"prompt": None}, "field 'prompt' is missing"),
        (
            {"prompt": [{"role": r, "content": "a"} for r in ("user", "assistant", "user")]},
            "field 'prompt': turns of user, assistant, user",
        ),
        ({"reward": "high"}, "field 'reward': 'high' is no number"),
        ({"reward": float("nan")}, "field 'reward': nan is no number"),
        ({"reward": 10**400}, "field 'reward': 1000000000"),
        (
            {"completion": [{"role": "assistant", "content": "3", "reasoning_content": "1 and 1"}]},
            "field 'completion': a message with reasoning_content beside its text",
        ),
        ({"cut_off": 2}, "field 'cut_off': 2: expected true, false or a reason"),
        ({"answer": None}, "field 'answer' is missing: the verifier needs it"),
        ({"answer": "nan"}, "stands for a missing value"),
        ({"completion_ids": [1, "2"]}, "field 'completion_ids': expected token ids"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(change, message):
    row = {"prompt": "1+1?", "completion": "It is 3.", "reward": 0, "answer": "2"}
    _, names = layout_of(settings("plain"), row)
    with pytest.raises(ValueError) as caught:
        read_row({**row, **change}, names, 1)
    assert message in str(caught.value)


def test_a_row_without_an_answer_will_do_where_nobody_needs_it():
    row = {"prompt": "1+1?", "completion": "It is 3.", "reward": 0}
    _, names = layout_of(settings(), row)
    assert read_row(row, names, 1, needs_answer=False).answer == ""


def test_a_line_of_several_rollouts_is_no_rollout():
    row = {**VLLM, "outputs": [*VLLM["outputs"], {"text": "It is 2.", "token_ids": [8, 7]}]}
    _, names = layout_of(settings(), row)
    with pytest.raises(ValueError, match="field 'outputs' holds 2 rollouts: expected a line for"):
        read_row(row, names, 1)
    # One that was chosen by name is one.
    names |= {"completion": "outputs.1.text", "completion_ids": "outputs.1.token_ids"}
    assert read_row(row, names, 1).completion == "It is 2."


def test_a_rollout_that_failed_before_its_reward_is_none():
    error = {"error": "SandboxError", "error_chain_repr": "SandboxError()"}
    _, names = layout_of(settings(), PRIME)
    with pytest.raises(ValueError, match=r"field 'error': .*SandboxError.*: it was not judged"):
        read_row({**PRIME, "error": error}, names, 1)
    assert read_row({**PRIME, "error": None}, names, 1).reward == 0.0
    # Elsewhere a field of this name may hold anything.
    row = {"prompt": "1+1?", "completion": "3", "answer": "2", "error": 1.0}
    _, names = layout_of(settings(), row)
    assert read_row(row, names, 1).completion == "3"


@pytest.mark.parametrize(
    ("value", "cut"),
    [(True, True), (1, True), (0, False), (None, False), (float("nan"), False)]
    + [("length", True), ("abort", True), ("stop", False)],
)
def test_what_counts_as_cut_off(value, cut):
    row = {"prompt": "1+1?", "completion": "3", "answer": "2", "cut_off": value}
    _, names = layout_of(settings(), row)
    assert read_row(row, names, 1).cut_off is cut


def test_parts_of_a_message_that_are_texts_are_its_text():
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    row = {**PRIME, "prompt": [{"role": "user", "content": parts}]}
    _, names = layout_of(settings(), row)
    assert read_row(row, names, 1).prompt == "1+1?"
    parts[1] = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(ValueError, match="expected messages with a role and a text as content"):
        read_row(row, names, 1)
