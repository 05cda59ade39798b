"""Replies of models that think, of other systems' newlines, of hostile servers, and kept replies
that were damaged."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from support.hand_made import LAST, RIGHT, TOKENIZER, run, same, scene, text
from support.tokenizer_fixtures import byte_level
from test_endpoint import bodies, chat, knows, says, serving, spec, teacher
from test_teachers import BATCH, REWARD

from scope_jax.tasks import Problem
from scope_jax.tasks.mathematics import Mathematics
from scope_jax.teachers import Endpoint, ReferenceTeacher, TeacherSpec
from scope_jax.teachers.base import Ask
from scope_jax.teachers.client import Reply
from scope_jax.teachers.replies import (
    encode_step,
    gives_answer_away,
    most_characters,
    read_reply,
    reference_steps,
    unix_newlines,
    without_thoughts,
)

MATH = Mathematics()


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("So x=5.", "So x=5."),
        ("<think>\n\n</think>\n\nSo x=5.", "\n\nSo x=5."),
        ("<think>\nLet me see.\n\nOk.\n</think>\n\nSo x=5.", "\n\nSo x=5."),
        ("<think></think>So x=5.", "So x=5."),
        ("Let me see.\n\nOk.\n</think>\n\nSo x=5.", "\n\nSo x=5."),  # opened by the prompt
        ('<think type="long" n=1>Hm.</think>So', "So"),
        ("<THINK>Hm.</THINK >So", "So"),
        ("<thinking>Hm.</thinking>So", "So"),
        ("<reasoning>Hm.</reasoning><think>Hm.</think>So", "So"),
        ("First.\n\n<think>Hm.</think>Then.", "First.\n\nThen."),
        ("<think>a <think> tag</think>So", "So"),
        ("<think>a<think>b</think>c</think>So", "So"),
        ("So x=5.</think>", ""),
        ("<think>Hm.", None),
        ("Let me <think> on", None),
        ("<think>a</think>So <think>b", None),
        ("I think x < 5 and a <thinner> b", "I think x < 5 and a <thinner> b"),
        ("if x<think and y>z then", "if x<think and y>z then"),
        ("if x</think and y>z then", "if x</think and y>z then"),
        ("if x<analysis or y=2>z then", "if x<analysis or y=2>z then"),
        ("<think a='1' b=c d = \"e f\" >Hm.</think>So", "So"),
        ("\u25c1think\u25b7Hm.\u25c1/think\u25b7So", "So"),
        ("\u25c1think\u25b7Hm.", None),
        ("[THINK]Hm.[/THINK]So", "So"),
        ("[THINK]Hm.", None),
        ("I [think] so [/x]", "I [think] so [/x]"),
        ("<seed:think>Hm.</seed:think>So", "So"),
        ("<|begin_of_thought|>Hm.<|end_of_thought|>So", "So"),
        ("Hm.<|end_of_thought|>So", "So"),
        ("<analysis>Hm.</analysis>So", "So"),
        ("<scratchpad>\nHm.</scratchpad>So", "So"),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            "<|channel|>final<|message|>So",
            "So",
        ),
        ("<|channel|>analysis<|message|>a<|end|><|channel|>analysis<|message|>b", None),
        (
            "<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>"
            "<|channel|>final <|message|>So",
            "So",
        ),
        ("<|channel|>final<|message|>So", "So"),
    ],
)
def test_thoughts_are_taken_out(reply, answer):
    assert without_thoughts(reply) == answer


@pytest.mark.parametrize(
    ("reply", "complete", "found"),
    [
        ("<think>\n\n</think>\n\nSo x=5.", True, ("So x=5.\n\n", False)),
        ("<think>\nLet me see.\n\nOk.\n</think>\n\nSo x=5.", True, ("So x=5.\n\n", False)),
        ("Ok.\n</think>\n\nSo x=5.\n\nThen", False, ("So x=5.\n\n", False)),
        ("<think>\n\nSo x=5.\n\n", True, "thinking"),
        ("<think>Hm", False, "thinking"),
        ("<think>Hm</think>\n\n", True, "empty"),
        ("<think>Hm</think>\n\nSo", False, "incomplete"),
        ("<think>Hm</think>So \\boxed{5}.", True, ("So \\boxed{5}.", True)),
        ("a\r\n\r\nb", True, ("a\n\n", False)),
        ("\r\n \r\na\r\n\r\nb", True, ("a\n\n", False)),
        ("a\r\rb", True, ("a\n\n", False)),
        ("a\r\nb\r\n\r\nc", True, ("a\nb\n\n", False)),
        ("a\n\r\nb", True, ("a\n\n", False)),
        (" \n\n  a\n\nb", True, ("  a\n\n", False)),  # the first line keeps its indentation
        ("<think>\r\n\r\n</think>\r\n\r\nSo\r\nx\r\n\r\ny", True, ("So\nx\n\n", False)),
        ("<answer>So x=5.</answer>", True, ("So x=5.\n\n", False)),
        ("<think>Hm</think>\n\n<ANSWER>\n\n  So\n</answer >", True, ("  So\n\n", False)),
        ("<answer>a\n\nb</answer>", True, ("a\n\n", False)),
        ("a</answer>\n\nb", True, ("a\n\n", False)),
        ("<answer></answer>", True, "empty"),
        ("<answer>So \\boxed{5}.</answer>", True, ("So \\boxed{5}.", True)),
        ("So <answer>5</answer>.", True, ("So <answer>5</answer>.\n\n", False)),
        ("<|begin_of_solution|>\n\na\n\nb<|end_of_solution|>", True, ("a\n\n", False)),
        ("<|channel|>final<|message|>So<|return|>", True, ("So\n\n", False)),
        ("\u200b", True, "empty"),
        ("\u0000\n\n\ufeff", True, "empty"),
        ("\u200b\n\na\n\nb", True, ("a\n\n", False)),
    ],
)
def test_steps_of_thinkers_and_of_other_newlines(reply, complete, found):
    assert read_reply(reply, complete, True, MATH) == found


@pytest.mark.parametrize(
    ("boundary", "reply", "last", "found"),
    [
        ("", "a\n \nb", False, ("a\n \n", False)),
        ("", "a\r\n\t\r\nb", False, ("a\n\t\n", False)),
        ("blank_lines", "a\n\nb", False, ("a\n\n", False)),
        ("lines", "a\nb", False, ("a\n", False)),
        ("lines", "a", False, ("a\n\n", False)),
        ("sentences", "Dr. Ray has 3.5. Then so.", False, ("Dr. Ray has 3.5.", False)),
        ("sentences", "1. We add. 2. So.", False, ("1. We add.", False)),
        ("sentences", "We add.\n\n2. So.", False, ("We add.\n\n", False)),
        ("sentences", "We add.", False, ("We add.\n\n", False)),
        ("sentences", "So \\boxed{5}. Bye.", True, ("So \\boxed{5}.", True)),
        ("sentences", "So \\boxed{5}.\n\nBye.", True, ("So \\boxed{5}.", True)),
        ("numbered_steps", "Step 2: b. Step 3: c", False, ("Step 2: b.", False)),
        ("numbered_steps", "2. b\n\nc\n3. d", False, ("2. b\n\nc\n", False)),
    ],
)
def test_named_boundaries_end_a_reply(boundary, reply, last, found):
    """A blank before the next word is that word's: the policy writes it itself."""
    assert read_reply(reply, True, last, Mathematics(boundary=boundary)) == found


def test_what_a_server_stops_at():
    writer = teacher("http://127.0.0.1:9/v1", "", api="completions")
    job = SimpleNamespace(seed=0)
    stops = {}
    for boundary in ("", "lines", "blank_lines", "sentences", "numbered_steps", "a|b"):
        job.domain = Mathematics(boundary=boundary)
        stops[boundary] = writer.body(Ask(Problem("1", "p", "5"), (), "w", False, 0), job).get(
            "stop"
        )
    assert stops == {
        **{"": ["\n\n"], "lines": ["\n"], "blank_lines": ["\n\n"]},
        **{"sentences": None, "numbered_steps": None, "a|b": None},
    }


def test_a_text_that_goes_on_may_close_thoughts():
    """A completion of a text whose thoughts are open: what it writes there is a step of it."""
    reply = "so 7.\n</think>"
    assert read_reply(reply, True, True, MATH, continued=True) == (f"{reply}\n\n", False)
    assert read_reply(reply, True, True, MATH) == "empty"


def test_reference_solutions_with_other_newlines():
    assert unix_newlines("a\r\n\rb\n") == "a\n\nb\n"
    assert reference_steps("a\r\n\r\nb", "\n\n") == ["a\n\n", "b"]
    assert reference_steps("a\rb\rc", "\n\n") == ["a\n\n", "b\n\n", "c"]


@pytest.mark.parametrize("boundary", ["", r"(?<=[.!?])\s+", r"(?=Step \d+:)", "sentences"])
@pytest.mark.parametrize(
    "piece",
    [
        *(
            " \n\n",
            "\n",
            "\r",
            "\r\n",
            " ",
            "{",
            "a",
            "x\n\n",
            ". ",
            "<think>",
            "<think ",
            "</think>",
        ),
        *("<think a=", "<think a='", "[THINK]", "<|channel|>", "<|channel|>final", "<answer>"),
        *("<answer ", "</answer>", "\u200b", "\u200b\n\n", "\u25c1think", "<|end_of_"),
    ],
)
def test_a_reply_of_any_kind_is_read_in_linear_time(piece, boundary):
    """4 MB, the most that a server may send."""
    size = 4 << 20
    reply = (piece * (size // len(piece) + 1))[:size]
    domain = Mathematics(boundary=boundary)
    start = time.monotonic()
    for most in (1 << 14, None):
        read_reply(reply, True, False, domain, most=most)
        read_reply(reply, False, True, domain, most=most, continued=True)
    assert time.monotonic() - start < 6


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\boxed{}", "\\boxed ", "}", "7", ". ", "\n", "$", "{\\"]
)
def test_whether_a_step_gives_the_answer_away_is_seen_in_linear_time(piece):
    step = (piece * (1 << 18))[: 1 << 18]
    start = time.monotonic()
    for answer in ("5", step[: 1 << 16] + "x"):
        assert not gives_answer_away(step, answer) or step.strip() == answer
    assert time.monotonic() - start < 4


def test_what_no_step_can_hold_is_not_encoded():
    assert most_characters(TOKENIZER, 8) == 1 << 14
    tokenizer = byte_level(["<e>"], bos=None, eos="<e>", merges=[("a", "a"), ("aa", "aa")])
    assert most_characters(tokenizer, 10_000) == 40_000
    most = 1 << 14
    assert read_reply("a" * most, True, False, MATH, most=most) == ("a" * most + "\n\n", False)
    assert read_reply("a" * (most + 1), True, False, MATH, most=most) == "too_long"
    assert read_reply("\n \n" * most + "a", True, False, MATH, most=most) == ("a\n\n", False)
    assert read_reply("a\n\n" + "b" * most, True, False, MATH, most=most) == ("a\n\n", False)


def test_half_a_character_has_no_ids():
    assert encode_step("+7\ud83d\n", TOKENIZER) is None


@pytest.mark.parametrize("piece", [" \n\n", "7", "7\n", "{", "+ "])
@pytest.mark.filterwarnings("ignore:teacher endpoint")
def test_a_hostile_server_costs_no_time(piece):
    batch = scene(*BATCH)
    run(batch, REWARD, teacher=teacher("http://127.0.0.1:9/v1", retries=0), policy=LAST)  # compiles
    with serving(says(piece * ((3 << 20) // len(piece) // 2))) as server:
        start = time.monotonic()
        result = run(batch, REWARD, teacher=teacher(server.url), policy=LAST)
        assert time.monotonic() - start < 3
    assert result.metrics["scope/teacher_requests"] == 1
    if piece != "7\n":
        assert result.metrics["scope/teacher_failed"] == 1 and same(result.rollout, batch, range(4))


@pytest.mark.filterwarnings("ignore:teacher endpoint")
def test_a_thinking_model_behind_an_address():
    batch = scene(*BATCH)
    with serving(says("<think>\n+1\n\n</think>\r\n\r\n-987\r\n+198\r\n")) as server:
        result = run(batch, REWARD, teacher=teacher(server.url), policy=LAST)
    assert text(result.rollout, 1) == RIGHT + "#"
    with serving(says("<think>\n-987\n", "length")) as server:
        result = run(batch, REWARD, teacher=teacher(server.url), policy=LAST)
    assert result.metrics["scope/teacher_failed_thinking"] == 1


@pytest.mark.parametrize(
    ("kept", "reply", "found"),
    [
        ("", "<think>Hm.</think>b\n", ("b\n", False)),
        ("a\n", "Hm.</think>b\n", ("b\n", False)),
        ("<think>a</think>c\n", "<think>Hm.</think>b\n", ("b\n", False)),
        ("<think>a\n", "so b.</think>\n", ("so b.</think>\n", False)),
        ("<think>a\n", "b\n", ("b\n", False)),
    ],
)
def test_a_text_that_is_continued(kept, reply, found):
    """With the other API the solution so far says whether the reply is inside of thoughts."""
    writer = teacher("http://127.0.0.1:9/v1", "", api="completions")
    ask = Ask(Problem("1", "p", "5"), (kept,), "w", False, 0)
    job = SimpleNamespace(domain=Mathematics(separator="\n"))
    assert writer._read(Reply(reply, True), ask, job, 99) == found


# ---- replies on disk


def damage(path, kind: str) -> None:
    kept: dict[str, Any] = json.loads(path.read_text())
    if kind == "deep":
        path.write_text("[" * 100_000)
    elif kind == "cut":
        path.write_text(path.read_text()[:-9])
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe{}")
    elif kind == "empty":
        path.write_text("")
    elif kind == "null":
        path.write_text("null")
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    else:
        changed = {
            "text": {"text": "-988\n"},
            "complete": {"complete": False},
            "no text": {"text": None},
            "no digest": {"digest": None},
        }[kind]
        path.write_text(json.dumps(kept | changed))


@pytest.mark.parametrize(
    "kind",
    [
        "deep",
        "cut",
        "bytes",
        "empty",
        "null",
        "a folder",
        "text",
        "complete",
        "no text",
        "no digest",
    ],
)
def test_a_damaged_reply_is_asked_for_again_and_counted(tmp_path, kind):
    with serving(knows) as server:
        endpoint = Endpoint(spec(server.url, cache=str(tmp_path)))
        first, counters = endpoint.ask(bodies(2))
        assert counters == {
            "scope/teacher_requests": 2,
            "scope/teacher_cache_hits": 0,
            "scope/teacher_cache_damaged": 0,
        }
        damage(next(tmp_path.rglob("*.json")), kind)
        with pytest.warns(UserWarning, match=r"\.json: a kept reply is damaged"):
            again, counters = endpoint.ask(bodies(2))
        assert again == first and [len(server.seen), *counters.values()] == [3, 1, 1, 1]
        if kind != "a folder":
            assert endpoint.ask(bodies(2))[1]["scope/teacher_cache_hits"] == 2


def test_a_reply_to_another_request_is_not_taken(tmp_path):
    with serving(lambda h, b, n: h.answer(chat(f"{n}\n"))) as server:
        endpoint = Endpoint(spec(server.url, cache=str(tmp_path), concurrency=1))
        first, _ = endpoint.ask(bodies(2))
        one, two = sorted(tmp_path.rglob("*.json"))
        kept = one.read_text(), two.read_text()
        one.write_text(kept[1])
        two.write_text(kept[0])
        with pytest.warns(UserWarning, match="of another request: asked again"):
            again, counters = endpoint.ask(bodies(2))
        assert counters["scope/teacher_cache_damaged"] == 2 and len(server.seen) == 4
        assert {reply.text for reply in again} == {"2\n", "3\n"}


def test_thoughts_of_a_reference_solution():
    teacher = ReferenceTeacher(TeacherSpec("reference", step_tokens=8))
    problem = Problem("1", "p", "5", "<think>+777\n")
    assert teacher._step(Ask(problem, (), "w", False, 0), None) == "thinking"
