"""The teacher behind an address, against a real HTTP server on the loopback: what it may do wrong,
and what becomes of it."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from support.hand_made import (
    DOMAIN,
    LAST,
    PROBLEM,
    RIGHT,
    SPEC,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    bigram,
    run,
    same,
    scene,
    text,
)
from support.tiny_runs import Tiny
from test_teachers import BATCH, REWARD, alike, rescued_row

from scope_jax.correction import SelectSpec
from scope_jax.run import read_metrics
from scope_jax.tasks import Mathematics, Problem
from scope_jax.teachers import Endpoint, EndpointSpec, EndpointTeacher, TeacherSpec
from scope_jax.teachers.base import Ask
from scope_jax.teachers.client import Reply
from scope_jax.train import train

PROMPT = "{prompt}|{kept}|{wrong}"  # a prompt that the server below can read


def chat(content: Any, finish: str = "stop") -> bytes:
    return json.dumps(
        {
            "choices": [
                {"message": {"role": "assistant", "content": content}, "finish_reason": finish}
            ]
        }
    ).encode()


def right_step(body: dict[str, Any]) -> str:
    """What a teacher who can calculate writes."""
    asked = (
        body["messages"][0]["content"]
        if "messages" in body
        else body["prompt"].replace("=", "=|", 1) + "|"
    )
    prompt, kept, _ = asked.split("|")
    problem = dataclasses.replace(PROBLEM, prompt=prompt)
    return DOMAIN.next_step(problem, kept.splitlines(), np.random.default_rng(0), "prompt_order")


class Server:
    """`behave(handler, body, number)` answers a request; `seen`: (path, headers, body) of each."""

    def __init__(self, behave: Callable[["Handler", dict[str, Any], int], None]):
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.most_at_once = self.now = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.seen.append((self.path, dict(self.headers), body))
                    number = len(server.seen) - 1
                    server.now += 1
                    server.most_at_once = max(server.most_at_once, server.now)
                try:
                    behave(self, body, number)
                except OSError:
                    pass  # the client has gone
                finally:
                    with lock:
                        server.now -= 1

            def answer(self, raw: bytes, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


Handler = Any


@contextlib.contextmanager
def serving(behave: Callable[[Handler, dict[str, Any], int], None]) -> Iterator[Server]:
    server = Server(behave)
    try:
        yield server
    finally:
        server.close()


def knows(handler: Handler, body: dict[str, Any], number: int) -> None:
    handler.answer(chat(right_step(body)))


def says(content: Any, finish: str = "stop") -> Callable[[Handler, dict[str, Any], int], None]:
    return lambda handler, body, number: handler.answer(chat(content, finish))


def drops(handler: Handler, body: dict[str, Any], number: int) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def drips(handler: Handler, body: dict[str, Any], number: int) -> None:
    """A byte now and then: a timeout of the socket alone would never pass."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def spec(url: str, **more: Any) -> EndpointSpec:
    quick = {"request_seconds": 5.0, "batch_seconds": 20.0, "backoff_seconds": 0.01, "retries": 2}
    return EndpointSpec(url=url, model="some-teacher", **{**quick, **more})


def teacher(
    url: str, prompt: str = PROMPT, temperature: float = 0.0, **more: Any
) -> EndpointTeacher:
    asked = TeacherSpec("endpoint", prompt=prompt, step_tokens=8, temperature=temperature)
    return EndpointTeacher(Endpoint(spec(url, **more)), asked)


def test_a_rescue_through_the_address():
    batch = scene(*BATCH)
    with serving(knows) as server:
        result = run(batch, REWARD, teacher=teacher(server.url), policy=LAST)
    assert text(
        result.rollout, 1
    ) == "+777\n" + "-987\n" + "+198#" and result.reward_B.tolist() == [1, 1, 0, 1]
    rescued_row(result, batch, 1, 5, known=False)
    assert same(result.rollout, batch, [0, 2, 3])
    ((path, _, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "some-teacher",
        "temperature": 0.0,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "+7-9+1=|+777\n|-988\n"}],
    }
    figures = {
        name: result.metrics[f"scope/teacher_{name}"]
        for name in ("requests", "cache_hits", "failed")
    }
    assert figures == {"requests": 1, "cache_hits": 0, "failed": 0}


def test_a_last_step_ends_the_row():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#")
    with serving(
        says("\n+198\n")
    ) as server:  # with a newline the line is not a last one: the policy goes on
        open_row = run(batch, REWARD, teacher=teacher(server.url), policy=LAST)
    with serving(says("+198 ")) as server:
        ended = run(batch, REWARD, teacher=teacher(server.url), policy=bigram("++"))
    assert text(ended.rollout, 1) == RIGHT + "#" and ended.reward_B.tolist() == [1, 1, 0, 1]
    assert (open_row.metrics["scope/corrected"], open_row.metrics["scope/accepted"]) == (1, 0)
    written = [(s["owner"], s["text"]) for s in open_row.gallery[0]["steps"]]
    assert written[3:] == [("teacher", "+198\n"), ("policy", "+")]


def test_text_is_continued_with_the_other_api():
    def continues(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.answer(
            json.dumps(
                {"choices": [{"text": right_step(body).rstrip("\n"), "finish_reason": "stop"}]}
            ).encode()
        )

    batch = scene(*BATCH)
    with serving(continues) as server:
        result = run(
            batch,
            REWARD,
            teacher=teacher(server.url, "", api="completions", extra='{"top_k": 1}'),
            policy=LAST,
        )
    assert text(result.rollout, 1) == RIGHT + "#"
    ((path, _, body),) = server.seen
    assert path == "/v1/completions"
    assert (body["prompt"], body["stop"], body["top_k"]) == (
        "+7-9+1=+777\n",
        ["\n"],
        1,
    ) and "messages" not in body
    with pytest.raises(ValueError, match="takes no prompt"):
        teacher("http://127.0.0.1:1/v1", api="completions")


def test_text_is_continued_as_the_policy_was_shown_it():
    """With a template of the task, the server goes on from what stands in the policy's row."""
    domain = Mathematics(template="Q: {problem}\nA: ")
    ask = Ask(Problem("1", "2+2?", "4"), ("First.\n\n",), "x", False, 0)
    job = types.SimpleNamespace(domain=domain, seed=0)
    body = teacher("http://127.0.0.1:1/v1", "", api="completions").body(ask, job)
    assert body["prompt"] == "Q: 2+2?\nA: First.\n\n"


@pytest.mark.parametrize(
    ("behave", "reason", "requests"),
    [
        (drops, "connection", 3),
        (lambda h, b, n: h.answer(b"busy", 500), "server_error", 3),
        (lambda h, b, n: h.answer(b"", 429), "rate_limited", 3),
        (lambda h, b, n: h.answer(b"{}", 400), "refused", 1),
        (lambda h, b, n: h.answer(b"{}", 401), "refused", 1),
        (lambda h, b, n: h.answer(b"", 404), "refused", 1),
        (lambda h, b, n: h.answer(b"", 302, Location="http://127.0.0.1:1/"), "refused", 1),
        (lambda h, b, n: h.answer(b"<html>busy</html>"), "not_json", 1),
        (lambda h, b, n: h.answer(b"[" * 100_000), "not_json", 1),
        (lambda h, b, n: h.answer(b'{"choices": []}'), "schema", 1),
        (lambda h, b, n: h.answer(b'{"choices": {"0": "x"}}'), "schema", 1),
        (lambda h, b, n: h.answer(b"[1]"), "schema", 1),
        (says(["-987\n"]), "schema", 1),
        (says(None, "length"), "empty", 1),
        (says(" \n\n"), "empty", 1),
        (says("-98", "length"), "incomplete", 1),
        (says("-987<|endoftext|>\n"), "special", 1),
        (says("We take 9 away."), "untokenisable", 1),
        (says("-9\ud8007\n"), "untokenisable", 1),
        (says("-98798798\n"), "too_long", 1),
    ],
)
@pytest.mark.filterwarnings("ignore:teacher endpoint")
def test_a_row_without_a_step_stays_the_failure_it_was(behave, reason, requests):
    batch = scene(*BATCH)
    with serving(behave) as server:
        result = run(batch, REWARD, teacher=teacher(server.url), policy=LAST)
    assert (
        result.metrics[f"scope/teacher_failed_{reason}"] == 1
        and result.metrics["scope/teacher_failed"] == 1
    )
    assert result.metrics["scope/teacher_requests"] == requests == len(server.seen)
    assert (result.metrics["scope/selected"], result.metrics["scope/corrected"]) == (1, 0)
    assert (
        same(result.rollout, batch, range(4))
        and result.reward_B.tolist() == REWARD
        and result.include_B.all()
    )


def test_of_several_steps_the_first_is_taken_and_leaks_are_refused():
    batch = scene(*BATCH)
    with serving(says("\n-987\n+198\nDone.")) as server:
        result = run(batch, REWARD, teacher=teacher(server.url), policy=LAST)
    assert text(result.rollout, 1) == RIGHT + "#"
    shown = PROMPT + "|{answer}"
    for prompt, leaks in ((shown, 1), (PROMPT, 0)):  # looked for where the answer was shown
        with serving(says("98")) as server:
            result = run(batch, REWARD, teacher=teacher(server.url, prompt), policy=LAST)
        assert (result.metrics["scope/leaks"], result.metrics["scope/corrected"]) == (
            leaks,
            1 - leaks,
        )
    assert server.seen[0][2]["messages"][0]["content"].count("|") == 2


def test_it_tries_again_after_what_may_pass():
    def late(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number == 0:
            handler.answer(b"", 429, Retry_After="0")
        elif number == 1:
            drops(handler, body, number)
        else:
            knows(handler, body, number)

    with serving(late) as server:
        result = run(scene(*BATCH), REWARD, teacher=teacher(server.url), policy=LAST)
    assert text(result.rollout, 1) == RIGHT + "#"
    assert (result.metrics["scope/teacher_requests"], result.metrics["scope/teacher_failed"]) == (
        3,
        0,
    )


def bodies(count: int) -> list[dict[str, Any]]:
    return [
        {"model": "some-teacher", "messages": [{"role": "user", "content": f"+7-9+1=|+777\n|{n}"}]}
        for n in range(count)
    ]


def test_deadlines_hold_however_slowly_the_bytes_come():
    def stalls(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(3)

    for behave in (stalls, drips):
        with serving(behave) as server:
            start = time.monotonic()
            replies, counters = Endpoint(spec(server.url, request_seconds=0.2, retries=1)).ask(
                bodies(3)
            )
            assert time.monotonic() - start < 1.5
            assert replies == ["timeout"] * 3 and counters["scope/teacher_requests"] == 6
    with serving(
        lambda h, b, n: stalls(h, b, n) if n else knows(h, b, n)
    ) as server:  # one answer, then none
        start = time.monotonic()
        endpoint = Endpoint(
            spec(server.url, batch_seconds=0.5, concurrency=1, backoff_seconds=30.0)
        )
        replies, _ = endpoint.ask(bodies(4))
        assert time.monotonic() - start < 1.5
        assert (
            replies[0] == Reply("-987\n", True)
            and replies[1] in ("timeout", "deadline")
            and replies[2:] == ["deadline"] * 2
        )


def test_requests_run_side_by_side_up_to_a_bound_and_come_back_in_order():
    def slow(handler: Handler, body: dict[str, Any], number: int) -> None:
        time.sleep(0.1)
        handler.answer(chat(body["messages"][0]["content"][-1]))

    with serving(slow) as server:
        replies, counters = Endpoint(spec(server.url, concurrency=4)).ask(bodies(8))
    assert [r.text for r in replies] == [str(n) for n in range(8)] and counters[
        "scope/teacher_requests"
    ] == 8
    assert 2 <= server.most_at_once <= 4


def test_an_event_loop_that_runs_already_and_proxies_change_nothing(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def cell(endpoint: Endpoint) -> list[Reply | str]:
        return endpoint.ask(bodies(1))[0]

    with serving(knows) as server:
        assert asyncio.run(cell(Endpoint(spec(server.url)))) == [Reply("-987\n", True)]


def test_no_more_than_the_limit_of_a_response_is_read():
    sent: list[int] = []

    def endless(handler: Handler, body: dict[str, Any], number: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" " * (1 << 20))
            sent.append(1)

    with serving(endless) as server:
        assert Endpoint(spec(server.url)).ask(bodies(1))[0] == ["not_json"]
    assert len(sent) < 50


def test_equal_requests_are_sent_once():
    with serving(lambda h, b, n: h.answer(chat(f"{n}\n"))) as server:
        replies, counters = Endpoint(spec(server.url)).ask(bodies(2) + bodies(2))
    assert replies[:2] == replies[2:] and {r.text for r in replies} == {"0\n", "1\n"}
    assert counters == {"scope/teacher_requests": 2, "scope/teacher_cache_hits": 0}


def test_answers_on_disk_repeat_a_run_without_the_server(tmp_path):
    batch = scene(*[WRONG_2 + "#"] * 4)
    two = dataclasses.replace(SPEC, select=SelectSpec(per_group=2))
    cache = str(tmp_path / "answers")
    with serving(knows) as server:
        first = run(
            batch,
            [0] * 4,
            two,
            teacher=teacher(server.url, temperature=0.7, cache=cache),
            policy=LAST,
        )
        assert (
            first.metrics["scope/teacher_requests"] == 2
            and first.metrics["scope/teacher_cache_hits"] == 0
        )
        assert len({body["seed"] for _, _, body in server.seen}) == 2  # a seed per row
    again = run(
        batch,
        [0] * 4,
        two,
        teacher=teacher("http://127.0.0.1:9/elsewhere", temperature=0.7, cache=cache),
        policy=LAST,
    )
    assert (again.metrics["scope/teacher_requests"], again.metrics["scope/teacher_cache_hits"]) == (
        0,
        2,
    )
    assert alike(
        first.rollout, again.rollout
    ) and again.reward_B.tolist() == first.reward_B.tolist() == [1, 1, 0, 0]
    files = sorted((tmp_path / "answers").rglob("*"))
    assert [f.suffix for f in files if f.is_file()] == [".json"] * 2
    # Another temperature, another seed, another model: other answers.
    for temperature, more in ((0.5, {}), (0.7, {"seed": 1})):
        result = run(
            batch,
            [0] * 4,
            two,
            teacher=teacher("http://127.0.0.1:9/v1", temperature=temperature, cache=cache),
            policy=LAST,
            **more,
        )
        assert (
            result.metrics["scope/teacher_failed_connection"] == 2
            and result.metrics["scope/teacher_cache_hits"] == 0
        )
    damaged = next(f for f in files if f.is_file())
    damaged.write_text('{"text": "-98')
    with serving(knows) as server:
        mended = run(
            batch,
            [0] * 4,
            two,
            teacher=teacher(server.url, temperature=0.7, cache=cache),
            policy=LAST,
        )
    assert (
        mended.metrics["scope/teacher_requests"],
        mended.metrics["scope/teacher_cache_hits"],
    ) == (1, 1)
    assert alike(first.rollout, mended.rollout)


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-very-secret\n")
    with serving(knows) as server:
        endpoint = Endpoint(spec(server.url, api_key_env="SOME_KEY", cache=str(tmp_path)))
        endpoint.ask(bodies(1))
    assert server.seen[0][1]["Authorization"] == "Bearer sk-very-secret"
    assert all("secret" not in f.read_text() for f in tmp_path.rglob("*.json")) and list(
        tmp_path.rglob("*.json")
    )
    assert "secret" not in repr(endpoint) + repr(endpoint.spec)
    for value in ("", "sk-two\nlines"):
        monkeypatch.setenv("SOME_KEY", value)
        with pytest.raises(ValueError, match="SOME_KEY is not set, or holds no key") as caught:
            Endpoint(spec(server.url, api_key_env="SOME_KEY"))
        assert "sk-" not in str(caught.value)


def test_a_dead_server_is_reported_once_and_asked_less():
    with serving(knows) as server:
        endpoint = Endpoint(spec(server.url, warn_after=2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sent = [endpoint.ask(bodies(2))[1]["scope/teacher_requests"] for _ in range(4)]
    assert sent == [6, 6, 2, 2]  # two tries more as long as it may have been chance
    (warning,) = [str(w.message) for w in caught]
    assert "2 batches in a row got no answer (connection)" in warning and "\n" not in warning
    back = Server(knows)
    try:
        endpoint.url = f"{back.url}/chat/completions"
        assert [type(r) for r in endpoint.ask(bodies(2))[0]] == [Reply, Reply]
        assert endpoint._failed_in_row == 0
    finally:
        back.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "host:8000"}, "an address such as http://host:8000/v1 is expected"),
        ({"url": "file:///etc/passwd"}, "an address such as"),
        ({"url": "http://-\u00f6-/v1"}, "an address such as"),  # httpx refuses it
        ({"url": "http://localhost:1/v1\x00"}, "an address such as"),
        ({"url": "http://me:secret@host/v1"}, "holds a user, a password or a query"),
        ({"url": "http://host:port/v1"}, "teacher.endpoint.url = 'http://host:port/v1'"),
        ({"url": "http://host:70000/v1"}, "teacher.endpoint.url = 'http://host:70000/v1'"),
        ({"url": "http://[::1/v1"}, "teacher.endpoint.url = 'http://[::1/v1'"),
        ({"model": ""}, "teacher.endpoint.model = ''"),
        (
            {"api": "responses"},
            "teacher.endpoint.api = 'responses' is unknown; one of chat, completions",
        ),
        ({"concurrency": 0}, "teacher.endpoint.concurrency = 0 must be at least 1"),
        ({"batch_seconds": 0.0}, "must be above 0"),
        ({"extra": "{"}, "teacher.endpoint.extra: not JSON"),
        ({"extra": "[1]"}, "a JSON object is expected, found list"),
    ],
)
def test_endpoint_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError) as caught:
        Endpoint(EndpointSpec(**{"url": "http://host/v1", "model": "some-teacher", **settings}))
    assert (
        message in str(caught.value)
        and "\n" not in str(caught.value)
        and "secret" not in str(caught.value)
    )


def test_a_run_whose_server_dies_half_way_ends_all_the_same(checkpoints: Tiny, tmp_path):
    answers = 3
    given: list[str] = []

    def mortal(handler: Handler, body: dict[str, Any], number: int) -> None:
        if len(given) == answers:
            return drops(handler, body, number)
        # Where the tiny judge places the cut too late there is no step that goes on from there: an
        # empty answer, not kept.
        if step := right_step(body):
            given.append(step)
        handler.answer(chat(step))

    with serving(mortal) as server:
        settings = {
            "steps": 6,
            "models.teacher": None,
            "teacher.kind": "endpoint",
            "teacher.prompt": PROMPT,
            "teacher.endpoint.url": server.url,
            "teacher.endpoint.model": "some-teacher",
            "teacher.endpoint.retries": 1,
            "teacher.endpoint.backoff_seconds": 0.01,
            "teacher.endpoint.warn_after": 1,
            "teacher.endpoint.concurrency": (
                1
            ),  # which rows get the last answers shall not be a race
        }
        with pytest.warns(UserWarning, match="teacher endpoint 127.0.0.1.*training goes on"):
            train(checkpoints.config("scope", settings), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")

    def total(name: str) -> float:
        return sum(row.get(f"scope/{name}", 0) for row in rows)

    assert len(rows) == 6 and all(row["grad/skipped"] == 0 for row in rows)
    # Rows that ask the same share an answer.
    assert total("corrected") + total("leaks") >= answers and total("teacher_failed_connection") > 0
    assert total("selected") == total("corrected") + total("leaks") + total("teacher_failed")
    assert total("teacher_requests") == len(server.seen) > answers
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(list((tmp_path / "run" / "teacher_cache").rglob("*.json"))) == answers
