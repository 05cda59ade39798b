"""Traces of verifiers, written down here as prime-rl writes them."""

import copy
import json

import pytest

from scope_jax.salvage.reading import Place, open_source
from scope_jax.salvage.settings import Settings

TRACE = {
    "version": 1,
    "id": "5f1e",
    "task": {
        "type": "MathTask",
        "data": {"idx": 3, "answer": "2", "gold": "two"},
        "key": "math/3",
        "hash": "ab",
    },
    "nodes": [
        {
            "parent": None,
            "message": {"role": "system", "content": "Add."},
            "sampled": False,
            "token_ids": [1, 2],
            "mask": [False, False],
            "logprobs": [],
        },
        {
            "parent": 0,
            "message": {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
            "sampled": False,
            "token_ids": [3],
            "mask": [False],
        },
        {
            # The opening of the turn, and what was sampled.
            "parent": 1,
            "message": {
                "role": "assistant",
                "content": "It is 3.",
                "reasoning_content": "1 and 1",
            },
            "sampled": True,
            "token_ids": [4, 5, 6, 7],
            "mask": [False, True, True, True],
            "logprobs": [-0.1, -0.2, -0.3],
        },
    ],
    "calls": [{"node": None, "error": {"type": "E"}}, {"node": 2, "finish_reason": "stop"}],
    "rewards": {"correct": {"score": 0.0, "weight": 1.0}, "form": {"score": 1.0, "weight": 0.2}},
    "ok": True,
    "stop_condition": "agent_completed",
    "errors": [],
}


def read(tmp_path, *traces, fields=()):
    path = tmp_path / "train_rollouts.jsonl"
    path.write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    settings = Settings(str(path), "out", "teacher", prm="prm", fields=fields)
    source = open_source(settings)
    (chunk,) = source.chunks(Place())
    return source.layout, chunk


def changed(**more):
    return {**copy.deepcopy(TRACE), **more}


def test_a_question_and_its_answer(tmp_path):
    layout, chunk = read(tmp_path, TRACE)
    (row,) = chunk.rows
    assert layout == "traces" and not chunk.bad
    assert (row.prompt_ids, row.completion_ids) == ([1, 2, 3, 4], [5, 6, 7])
    assert (row.problem, row.system, row.messages) == ("1+1?", "Add.", True)
    assert (row.reward, row.answer, row.id, row.group) == (0.2, "2", "5f1e", "math/3")
    assert not row.cut_off and row.completion is None
    # The answer may stand elsewhere in the task.
    _, chunk = read(tmp_path, TRACE, fields=("answer=task.data.gold",))
    assert chunk.rows[0].answer == "two"


def test_without_ids_the_messages_are_read(tmp_path):
    trace = changed()
    for node in trace["nodes"]:
        node["token_ids"], node["mask"] = [], []
    del trace["nodes"][-1]["message"]["reasoning_content"]
    (row,) = read(tmp_path, trace)[1].rows
    assert (row.prompt_ids, row.completion_ids, row.completion) == (None, None, "It is 3.")


@pytest.mark.parametrize(
    ("change", "cut"),
    [
        ({"calls": [{"node": 2, "finish_reason": "length"}]}, True),
        ({"calls": [], "stop_condition": "max_output_tokens"}, True),
        ({"calls": []}, False),
    ],
)
def test_what_was_cut_off(tmp_path, change, cut):
    assert read(tmp_path, changed(**change))[1].rows[0].cut_off is cut


def test_what_was_not_scored_is_judged(tmp_path):
    for rewards in ({}, {"correct": None}):
        assert read(tmp_path, changed(rewards=rewards))[1].rows[0].reward is None


def test_what_is_no_question_and_answer_is_a_bad_line(tmp_path):
    several = changed()
    several["nodes"] += [
        {**TRACE["nodes"][1], "parent": 2},
        {**TRACE["nodes"][2], "parent": 3},
    ]
    branched = changed()
    branched["nodes"].insert(2, {**TRACE["nodes"][1], "parent": 0})
    crashed = changed(ok=False, errors=[{"type": "ProviderError", "message": "down"}])
    text = changed()
    for node in text["nodes"]:
        node["token_ids"], node["mask"] = [], []
    _, chunk = read(tmp_path, TRACE, several, branched, crashed, text, {"nodes": 3})
    assert len(chunk.rows) == 1
    reasons = dict(chunk.bad)
    assert reasons[2].startswith("field 'nodes': 2 answers among 5 messages: expected one")
    assert reasons[3].startswith("field 'nodes': 1 answers among 4 messages")
    assert "ProviderError" in reasons[4] and reasons[4].endswith("it was not judged")
    assert "reasoning_content beside its text" in reasons[5]
    assert reasons[6] == "field 'nodes': expected a list of messages"
