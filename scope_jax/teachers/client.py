"""The client of an OpenAI-compatible server: a batch of requests in, a reply or a reason for each.

Requests run side by side, each with a deadline, and are tried again where that can help. Nothing
that a server does raises. Replies can be kept on disk, so that a run can be repeated without the
server.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import ssl
import threading
import time
import urllib.parse
import warnings
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx2

from scope_jax.devices.hosts import exchange, own_share
from scope_jax.types import check_choices

_WORDS = ("error", "message", "detail")  # where servers say why they refuse
MOST_BYTES = 4 << 20  # the largest response that is read
# Reasons that lie with the server or the network; all others lie in what one reply says.
DOWN = ("connection", "timeout", "deadline", "server_error", "rate_limited", "refused")


@dataclasses.dataclass(frozen=True)
class EndpointSpec:
    """How a server is asked. Raises ValueError for a setting out of range."""

    url: str | None = None
    """Address up to the version, such as http://host:8000/v1."""
    model: str | None = None
    """The model's name as the server knows it."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` answers a prompt, `completions` continues a text."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None: no key."""
    concurrency: int = 16
    """Requests in flight at once."""
    request_seconds: float = 60.0
    """Deadline of one try."""
    batch_seconds: float = 300.0
    """Deadline of all requests of a step together."""
    retries: int = 3
    """Further tries after 429, 5xx, a timeout or a lost connection."""
    backoff_seconds: float = 0.5
    """Pause before the second try; it doubles with each further one."""
    max_tokens: int | None = None
    """Limit of a reply; None: as long as a step may be."""
    extra: str | None = None
    """JSON object with further fields of the request."""
    cache: str | None = None
    """Directory of replies; None: none are kept."""
    warn_after: int = 3
    """Batches in a row without any answer before the one warning."""

    def __post_init__(self) -> None:
        check_choices(self, "teacher.endpoint")
        for name, least in (
            ("concurrency", 1),
            ("retries", 0),
            ("max_tokens", 1),
            ("warn_after", 1),
            ("backoff_seconds", 0),
        ):
            if (value := getattr(self, name)) is not None and value < least:
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
    """What a model wrote. `complete`: it stopped by itself, not at its token limit."""

    text: str
    complete: bool


@dataclasses.dataclass(frozen=True)
class _Again:
    """A failure after which another try may help. `after`: seconds the server asks to wait."""

    reason: str
    after: float = 0.0


class Endpoint:
    """The client. Between batches it remembers how many in a row got no answer at all.

    Raises ValueError where url or model is missing, the url is no plain http(s) address, or the
    environment lacks the key.
    """

    def __init__(self, spec: EndpointSpec):
        expected = (
            f"teacher.endpoint.url = {spec.url!r}: an address such as http://host:8000/v1 is"
            " expected"
        )
        try:
            parts = urllib.parse.urlsplit(spec.url or "")
            port = parts.port
            httpx2.URL(parts.geturl())  # is what will be asked, and refuses more
        except (ValueError, httpx2.InvalidURL) as error:
            raise ValueError(f"{expected} ({error})") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(expected)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "teacher.endpoint.url holds a user, a password or a query; the key comes from"
                " api_key_env only"
            )
        if not spec.model:
            raise ValueError(
                f"teacher.endpoint.model = {spec.model!r}; give the model's name as the server"
                " knows it"
            )
        self.spec = spec
        self.url = parts.geturl().rstrip("/") + (
            "/chat/completions" if spec.api == "chat" else "/completions"
        )
        self._server = f"{parts.hostname}:{port or ''}"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else False
        # Uncompressed, so that the size limit holds for what is read.
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        } | _authorization(spec.api_key_env)
        self._failed_in_row = 0
        # Requests in a row that got no answer, by reason, and what the server said last when it
        # refused one: for callers that cannot go on without it.
        self.silence: collections.Counter[str] = collections.Counter()
        self.refusal = ""
        self._warned: set[str] = set()

    def ask(self, bodies: Sequence[dict[str, Any]]) -> tuple[list[Reply | str], dict[str, float]]:
        """(a reply or a reason per request body, counters), within `batch_seconds`. Equal bodies
        are sent once: a server may answer them differently, and only one reply is kept. Each
        process asks for its own share."""
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
        counters = {"requests": 0, "cache_hits": 0}
        if self.spec.cache:
            counters["cache_damaged"] = 0
        outcomes: list[Reply | str | None] = [self._recall(body, counters) for body in bodies]
        first: dict[str, int] = {}
        same = [first.setdefault(_canonical(body), number) for number, body in enumerate(bodies)]
        waiting = [n for n, outcome in enumerate(outcomes) if outcome is None and same[n] == n]
        if waiting:
            batch = self._fetch_all(bodies, waiting, outcomes, counters)
            # Every wait in `batch` ends at the deadline; the second is for what would ignore it.
            with contextlib.suppress(TimeoutError):
                _in_thread(batch).result(self.spec.batch_seconds + 1.0)
        ended = list(outcomes)  # an answer that comes after this changes nothing any more
        done = [
            outcome if outcome is not None else ended[n] or "deadline"
            for n, outcome in zip(same, ended, strict=True)
        ]
        if waiting:
            self._note_failures([done[n] for n in waiting])
        return done, {f"scope/teacher_{name}": float(value) for name, value in counters.items()}

    async def _fetch_all(
        self,
        bodies: Sequence[dict[str, Any]],
        waiting: Sequence[int],
        outcomes: list[Reply | str | None],
        counters: dict[str, int],
    ) -> None:
        """Fill in the outcomes of the bodies at `waiting`, and count the requests that are sent."""
        # While the server is down, one try per request tells whether it is back.
        tries = 1 if self._failed_in_row >= self.spec.warn_after else 1 + self.spec.retries
        give_up = time.monotonic() + self.spec.batch_seconds
        at_once = asyncio.Semaphore(self.spec.concurrency)

        async def work(client: httpx2.AsyncClient, number: int) -> None:
            async with at_once:
                outcome = await self._fetch(client, bodies[number], tries, give_up, counters)
            if isinstance(outcome, Reply):
                self._remember(bodies[number], outcome)
            outcomes[number] = outcome

        async with httpx2.AsyncClient(
            verify=self._tls,
            trust_env=False,  # no proxy, no .netrc: the key goes to the named server only
            timeout=None,  # `_once` has one deadline for the whole request
            # A new connection per request: a kept one may be closed by the server at any moment.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        ) as client:
            await asyncio.gather(*(work(client, number) for number in waiting))

    async def _fetch(
        self,
        client: httpx2.AsyncClient,
        body: dict[str, Any],
        tries: int,
        give_up: float,
        counters: dict[str, int],
    ) -> Reply | str:
        payload = json.dumps(body).encode()
        reason = "deadline"
        for number in range(tries):
            left = give_up - time.monotonic()
            if left <= 0:
                break
            counters["requests"] += 1
            outcome = await self._once(client, payload, min(self.spec.request_seconds, left))
            if not isinstance(outcome, _Again):
                return outcome
            reason = outcome.reason
            # Half of the pause is random, so that requests that failed together do not come back
            # together.
            pause = self.spec.backoff_seconds * 2**number * random.uniform(0.5, 1.0)
            pause = max(pause, outcome.after)
            if number + 1 == tries or pause >= give_up - time.monotonic():
                break
            await asyncio.sleep(pause)
        return reason

    async def _once(
        self, client: httpx2.AsyncClient, payload: bytes, seconds: float
    ) -> Reply | str | _Again:
        raw = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                client.stream("POST", self.url, content=payload, headers=self._headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    raw += chunk
                    if len(raw) > MOST_BYTES:
                        break
        except TimeoutError:
            return _Again("timeout")
        except (OSError, httpx2.HTTPError):
            return _Again("connection")
        status = response.status_code
        if status in (408, 429) or status >= 500:
            reason = {408: "timeout", 429: "rate_limited"}.get(status, "server_error")
            return _Again(reason, _seconds(response.headers.get("Retry-After")))
        if status != 200:
            self.refusal = (
                f"status {status} for model {self.spec.model!r}{self._said(bytes(raw[:4096]))}; is"
                " url, model or key wrong?"
            )
            self._warn(str(status), self.refusal)
            return "refused"
        return "not_json" if len(raw) > MOST_BYTES else _read(bytes(raw), self.spec.api)

    def _said(self, raw: bytes) -> str:
        """The words of a server that refuses, in one short line, the key never among them."""
        text = raw.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(text)
            while isinstance(found, dict):
                found = next((found[key] for key in _WORDS if found.get(key)), "")
            text = str(found)
        key = self._headers.get("Authorization", "").removeprefix("Bearer ")
        words = " ".join((text.replace(key, "***") if key else text).split())[:200]
        return f" ({words})" if words.isprintable() and words else ""

    def _note_failures(self, outcomes: list[Reply | str]) -> None:
        """Count batches in a row in which nothing was answered; warn once."""
        reasons = [outcome for outcome in outcomes if isinstance(outcome, str) and outcome in DOWN]
        down = len(reasons) == len(outcomes)
        if not down:
            self.silence.clear()
        else:
            self.silence.update(reasons)
        self._failed_in_row = self._failed_in_row + 1 if down else 0
        if self._failed_in_row == self.spec.warn_after:
            self._warn(
                "down",
                f"{self._failed_in_row} batches in a row got no answer"
                f" ({', '.join(sorted({str(o) for o in outcomes}))}); their rows stay ordinary"
                " failures, training goes on, each step tries again",
            )

    def _warn(self, subject: str, message: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            warnings.warn(f"teacher endpoint {self._server}: {message}", stacklevel=3)

    # ---- replies on disk

    def _file(self, body: dict[str, Any]) -> Path:
        name = _digest(self.spec.api, body)
        return Path(self.spec.cache or "") / name[:2] / f"{name}.json"

    def _recall(self, body: dict[str, Any], counters: dict[str, int]) -> Reply | None:
        """The reply that was kept for this request, None where there is none. One that is damaged,
        or was kept for another request, is counted and asked for again."""
        if not self.spec.cache:
            return None
        path = self._file(body)
        try:
            kept = json.loads(path.read_bytes())
            reply = Reply(kept["text"], kept["complete"])
            whole = isinstance(reply.text, str) and isinstance(reply.complete, bool)
            if whole and kept["digest"] == _digest(self.spec.api, body, reply.text, reply.complete):
                counters["cache_hits"] += 1
                return reply
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        counters["cache_damaged"] += 1
        self._warn("damaged", f"{path}: a kept reply is damaged or of another request: asked again")
        return None

    def _remember(self, body: dict[str, Any], reply: Reply) -> None:
        if not self.spec.cache:
            return
        path = self._file(body)
        beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        digest = _digest(self.spec.api, body, reply.text, reply.complete)
        kept = {"request": body, "text": reply.text, "complete": reply.complete, "digest": digest}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(kept), encoding="utf-8")
            os.replace(beside, path)
        except OSError as error:
            self._warn("cache", f"replies cannot be kept in {self.spec.cache}: {error.strerror}")


def _digest(api: str, body: dict[str, Any], *reply: Any) -> str:
    """Of a request, the name of its file; of a request with its reply, what tells that neither was
    altered."""
    return hashlib.sha256(
        " ".join([api, _canonical(body), *map(json.dumps, reply)]).encode()
    ).hexdigest()


def _in_thread(work: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
    """Run `work` on an event loop of its own: the thread of a notebook has one already. The result
    is there as soon as `work` ends: closing the loop waits for name look-ups, which cannot be
    cancelled."""
    ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    async def main() -> None:
        try:
            await work
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
    return ended


def _authorization(variable: str | None) -> dict[str, str]:
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
        complete = choice.get("finish_reason") not in ("length", "abort")
    except (KeyError, IndexError, TypeError, AttributeError):
        return "schema"
    if text is None:
        return "empty"  # a model that was cut off while still thinking
    return Reply(text, complete) if isinstance(text, str) else "schema"
