"""The client of an OpenAI-compatible address: vLLM, SGLang, `transformers serve`, or a hosted
service.

Requests of a batch run in a few threads, each with a deadline, and are tried again where that can
help. A reply, or the reason why there is none, comes back per request; nothing that a server does
raises. Answers may be kept on disk, so that a run can be repeated without the server.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import random
import socket
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scope_jax.devices.hosts import exchange, own_share

APIS = ("chat", "completions")
MOST_BYTES = 4 << 20  # of a response
# Reasons that lie with the server or the way to it. The others lie in what one reply says.
DOWN = ("connection", "timeout", "deadline", "server_error", "rate_limited", "refused")


@dataclasses.dataclass(frozen=True)
class EndpointSpec:
    """url: up to the version, as in http://host:8000/v1. api: `chat` (a prompt), or `completions`
    (the text is continued). api_key_env: the environment variable that holds the key.
    request_seconds: of one try; batch_seconds: of all requests of a step together. retries:
    further tries after 429, 5xx, a timeout or a lost connection. max_tokens: of a reply, 0: as
    long as a step may be. extra: a JSON object of further fields of the request. cache: a
    directory of answers."""

    url: str = ""
    model: str = ""
    api: str = "chat"
    api_key_env: str = ""
    concurrency: int = 16
    request_seconds: float = 60.0
    batch_seconds: float = 300.0
    retries: int = 3
    backoff_seconds: float = 0.5
    max_tokens: int = 0
    extra: str = ""
    cache: str = ""
    warn_after: int = 3

    def __post_init__(self) -> None:
        if self.api not in APIS:
            raise ValueError(
                f"teacher.endpoint.api = {self.api!r} is unknown; one of {', '.join(APIS)}"
            )
        for name, value, least in (
            ("concurrency", self.concurrency, 1),
            ("retries", self.retries, 0),
            ("max_tokens", self.max_tokens, 0),
            ("warn_after", self.warn_after, 1),
            ("backoff_seconds", self.backoff_seconds, 0),
        ):
            if value < least:
                raise ValueError(f"teacher.endpoint.{name} = {value} must be at least {least}")
        if self.request_seconds <= 0 or self.batch_seconds <= 0:
            raise ValueError("teacher.endpoint: request_seconds and batch_seconds must be above 0")
        self.extra_fields()

    def extra_fields(self) -> dict[str, Any]:
        """`extra` as a dict. Raises ValueError where it is no JSON object."""
        try:
            fields = json.loads(self.extra or "{}")
        except ValueError as error:
            raise ValueError(
                f"teacher.endpoint.extra: not JSON ({error}); an object such as {{}} is expected"
            ) from None
        if not isinstance(fields, dict):
            raise ValueError(
                f"teacher.endpoint.extra: a JSON object is expected, found {type(fields).__name__}"
            )
        return fields


@dataclasses.dataclass(frozen=True)
class Reply:
    """`complete`: the model stopped by itself, and not at the limit of its tokens."""

    text: str
    complete: bool


@dataclasses.dataclass(frozen=True)
class _Again:
    """A failure after which another try may help. `after`: seconds that the server asks to wait."""

    reason: str
    after: float = 0.0


class Endpoint:
    """The client. It keeps one number between batches: how many in a row have failed altogether.

    Raises ValueError where url or model is missing, the url is no plain http(s) address, or the
    environment lacks the key.
    """

    def __init__(self, spec: EndpointSpec):
        parts = urllib.parse.urlsplit(spec.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"teacher.endpoint.url = {spec.url!r}: an address such as http://host:8000/v1 is"
                " expected"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "teacher.endpoint.url holds a user, a password or a query; the key comes from"
                " api_key_env only"
            )
        if not spec.model:
            raise ValueError(
                "teacher.endpoint.model is empty; give the model's name as the server knows it"
            )
        self.spec = spec
        self._address, self._secure = (parts.hostname, parts.port), parts.scheme == "https"
        self._path = parts.path.rstrip("/") + (
            "/chat/completions" if spec.api == "chat" else "/completions"
        )
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
        } | _authorization(spec.api_key_env)
        self._failed_in_row = 0
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[list[Reply | str], dict[str, float]]:
        """(a reply or a reason per request body, counters). Takes `batch_seconds` at the longest.
        Equal bodies are sent once: a server may answer them differently, and only one answer is
        kept. Each process asks for its own share."""
        replies, counters = self._ask(bodies[own_share(len(bodies))])
        plain = [
            reply if isinstance(reply, str) else dataclasses.asdict(reply) for reply in replies
        ]
        parts = exchange([plain, counters])
        whole = [
            reply if isinstance(reply, str) else Reply(**reply)
            for part, _ in parts
            for reply in part
        ]
        return whole, {name: sum(part[name] for _, part in parts) for name in counters}

    def _ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[list[Reply | str], dict[str, float]]:
        outcomes: list[Reply | str | None] = [self._recall(body) for body in bodies]
        first: dict[str, int] = {}
        same = [first.setdefault(_canonical(body), number) for number, body in enumerate(bodies)]
        waiting = [n for n, outcome in enumerate(outcomes) if outcome is None and same[n] == n]
        counters = {"requests": 0, "cache_hits": sum(outcome is not None for outcome in outcomes)}
        # While the server is down, one try per request tells whether it is back.
        tries = 1 if self._failed_in_row >= self.spec.warn_after else 1 + self.spec.retries
        give_up = time.monotonic() + self.spec.batch_seconds

        def count() -> None:
            with self._lock:
                counters["requests"] += 1

        def work(number: int) -> None:
            outcome = self._fetch(bodies[number], tries, give_up, count)
            if isinstance(outcome, Reply):
                self._remember(bodies[number], outcome)
            outcomes[number] = outcome

        _run_all(work, waiting, self.spec.concurrency, give_up)
        ended = list(outcomes)  # a thread that comes too late changes nothing any more
        done = [
            outcome if outcome is not None else ended[n] or "deadline"
            for n, outcome in zip(same, ended, strict=True)
        ]
        if waiting:
            self._judge([done[n] for n in waiting])
        return done, {f"scope/teacher_{name}": float(value) for name, value in counters.items()}

    def _judge(self, outcomes: list[Reply | str]) -> None:
        """Count batches that failed altogether; say so once."""
        down = all(isinstance(outcome, str) and outcome in DOWN for outcome in outcomes)
        self._failed_in_row = self._failed_in_row + 1 if down else 0
        if self._failed_in_row == self.spec.warn_after:
            self._warn(
                "down",
                f"{self._failed_in_row} batches in a row got no answer"
                f" ({', '.join(sorted({str(o) for o in outcomes}))}); their rows stay ordinary"
                " failures, training goes on, each step tries again",
            )

    def _warn(self, subject: str, message: str) -> None:
        with self._lock:
            if subject in self._warned:
                return
            self._warned.add(subject)
        warnings.warn(
            f"teacher endpoint {self._address[0]}:{self._address[1] or ''}: {message}", stacklevel=3
        )

    # ---- one request

    def _fetch(
        self, body: dict[str, Any], tries: int, give_up: float, count: Callable[[], None]
    ) -> Reply | str:
        payload = json.dumps(body).encode()
        reason = "deadline"
        for number in range(tries):
            left = give_up - time.monotonic()
            if left <= 0:
                return "deadline"
            count()
            outcome = self._once(payload, min(self.spec.request_seconds, left))
            if not isinstance(outcome, _Again):
                return outcome
            reason = outcome.reason
            # Half of the pause is drawn, so that requests that failed together do not come back
            # together.
            pause = max(
                self.spec.backoff_seconds * 2**number * random.uniform(0.5, 1.0), outcome.after
            )
            if number + 1 == tries or pause >= give_up - time.monotonic():
                return reason
            time.sleep(pause)
        return reason

    def _once(self, payload: bytes, seconds: float) -> Reply | str | _Again:
        until = time.monotonic() + seconds
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(*self._address, timeout=seconds)
        timer: threading.Timer | None = None
        try:
            connection.connect()
            # The socket's timeout starts anew with every byte that comes; this one does not.
            timer = threading.Timer(max(until - time.monotonic(), 0.0), _hang_up, [connection.sock])
            timer.daemon = True
            timer.start()
            connection.request("POST", self._path, payload, self._headers)
            response = connection.getresponse()
            raw = response.read(MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            late = isinstance(error, TimeoutError) or time.monotonic() >= until
            return _Again("timeout" if late else "connection")
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()
        if time.monotonic() >= until:
            return _Again("timeout")
        if response.status in (408, 429) or response.status >= 500:
            reason = {408: "timeout", 429: "rate_limited"}.get(response.status, "server_error")
            return _Again(reason, _seconds(response.headers.get("Retry-After")))
        if response.status != 200:
            self._warn(
                str(response.status),
                f"status {response.status} for model {self.spec.model!r}; is url, model or key"
                " wrong?",
            )
            return "refused"
        return "not_json" if len(raw) > MOST_BYTES else _read(raw, self.spec.api)

    # ---- answers on disk

    def _file(self, body: dict[str, Any]) -> Path:
        name = hashlib.sha256(f"{self.spec.api} {_canonical(body)}".encode()).hexdigest()
        return Path(self.spec.cache) / name[:2] / f"{name}.json"

    def _recall(self, body: dict[str, Any]) -> Reply | None:
        if not self.spec.cache:
            return None
        try:
            kept = json.loads(self._file(body).read_text(encoding="utf-8"))
            text, complete = kept["text"], kept["complete"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not there, or damaged: asked again
        return (
            Reply(text, complete) if isinstance(text, str) and isinstance(complete, bool) else None
        )

    def _remember(self, body: dict[str, Any], reply: Reply) -> None:
        if not self.spec.cache:
            return
        path = self._file(body)
        beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        kept = json.dumps({"request": body, "text": reply.text, "complete": reply.complete})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(kept, encoding="utf-8")
            os.replace(beside, path)
        except OSError as error:
            self._warn("cache", f"answers cannot be kept in {self.spec.cache}: {error.strerror}")


def _run_all(
    work: Callable[[int], None], numbers: Sequence[int], threads: int, give_up: float
) -> None:
    """`work` on every number in a few threads, until `give_up`; what is not done by then is left
    alone. The threads are daemons: one that hangs in a name look-up keeps no program from ending.
    An error in `work` is raised here."""
    left, lock = iter(numbers), threading.Lock()
    errors: list[Exception] = []

    def loop() -> None:
        while not errors and time.monotonic() < give_up:
            with lock:
                number = next(left, None)
            if number is None:
                return
            try:
                work(number)
            except Exception as error:
                errors.append(error)

    running = [
        threading.Thread(target=loop, daemon=True) for _ in range(min(threads, len(numbers)))
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(max(give_up + 0.2 - time.monotonic(), 0.0))
    if errors:
        raise errors[0]


def _authorization(variable: str) -> dict[str, str]:
    """The header with the key of an environment variable. The key stands in no message."""
    if not variable:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(
            f"teacher.endpoint.api_key_env: {variable} is not set, or holds no key of printable"
            " ASCII"
        )
    return {"Authorization": f"Bearer {key}"}


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)


def _hang_up(sock: socket.socket) -> None:
    # The plain socket's method: the one of TLS takes the connection's state away from the thread
    # that reads.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _seconds(value: str | None) -> float:
    """Seconds of a Retry-After header; 0 where there is none or it is a date."""
    return float(value) if value and value.strip().isdecimal() and len(value) < 7 else 0.0


def _read(raw: bytes, api: str) -> Reply | str:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        return "not_json"
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if api == "chat" else choice["text"]
        complete = choice.get("finish_reason") != "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        return "schema"
    if text is None:
        return "empty"  # a model that was cut off while still thinking
    return Reply(text, complete) if isinstance(text, str) else "schema"
