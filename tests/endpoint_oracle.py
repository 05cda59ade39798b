"""The endpoint client against a server that others wrote: `transformers serve`, on the loopback,
with a tiny random Qwen2.

    .venv-oracles/bin/python tests/endpoint_oracle.py

Needs torch and transformers[serving]; `make oracles` installs them and runs this. Checked:
  1. the completions API gives, greedily, token for token the step that our own decoder writes on
     the same checkpoint;
  2. the chat API gives the step of our own prompted teacher on the mesh;
  3. the server is killed in the middle of a batch: rows answered before have their step, the rest
     fall back and are counted.
"""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scope_jax import models
from scope_jax.rollout import (
    Generator,
    Policy,
    SampleSpec,
    completion_ids,
    from_prompts,
    generate,
    texts,
)
from scope_jax.tasks import Arithmetic, Problem
from scope_jax.teachers import Endpoint, EndpointSpec, EndpointTeacher, ModelTeacher, TeacherSpec
from scope_jax.teachers.base import Ask, Corrected, Job
from scope_jax.text import character_tokenizer, save_tokenizer
from scope_jax.text.steps import token_bytes
from scope_jax.types import Owner

STEP, BUFFER = 24, 256
CONTINUES = TeacherSpec("endpoint", step_tokens=STEP)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
PROMPTS = ["2 + 3 = ", "What is seven?", "abc ", "Sum of 1 and 9:"]


@dataclasses.dataclass(frozen=True)
class Split(Arithmetic):
    """A domain whose separator is a character that the random model writes."""

    separator: str = "\n"

    def answer_marker(self, step: str) -> bool:
        return False


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        directory = folder / "teacher"
        tokenizer = character_tokenizer(CHARACTERS)
        tokenizer.chat_template = CHATML  # the server cuts a qwen2 model's reply out at these marks
        config = models.ModelConfig(
            len(tokenizer), 64, 2, 4, 2, 16, 96, max_positions=512, end_ids=(0,)
        )
        # Larger than a fresh model's: uneven logits, so that rounding does not decide what is
        # greedy.
        params = jax.tree.map(
            lambda x: x * 3 if x.ndim > 2 else x, models.init(config, jax.random.key(7))
        )
        # Logits of 0 for special tokens: never the greatest, so that replies are text.
        params["head"] = params["head"].at[:, jnp.array(tokenizer.all_special_ids)].set(0.0)
        models.save(directory, config, params)
        save_tokenizer(tokenizer, directory)
        writer = Generator(params, config)
        with Serve(directory, folder / "serve.log") as server:
            print(f"server ready after {server.seconds:.1f} s")
            check_completions(server, writer, tokenizer)
            check_chat(server, writer, tokenizer)
            check_death(server, writer, tokenizer, folder / "answers")
    print("endpoint oracle: all as expected")


def check_completions(server: "Serve", writer: Generator, tokenizer) -> None:
    separator = common_character(writer, tokenizer, PROMPTS)
    job = make_job(writer, tokenizer, PROMPTS, Split(separator=separator))
    ours = ModelTeacher(writer, TeacherSpec(step_tokens=STEP)).correct(job)
    theirs = EndpointTeacher(
        Endpoint(server.spec(api="completions", extra="{}")), CONTINUES
    ).correct(job)
    compare("completions", ours, theirs, job)


def check_chat(server: "Serve", writer: Generator, tokenizer) -> None:
    told = TeacherSpec("endpoint", prompt="Problem: {prompt}\nNext step:", step_tokens=STEP)

    def chat(text):
        return [{"role": "user", "content": text}]

    told_texts = [f"Problem: {p}\nNext step:" for p in PROMPTS]
    separator = common_character(
        writer,
        tokenizer,
        [
            tokenizer.apply_chat_template(chat(t), tokenize=False, add_generation_prompt=True)
            for t in told_texts
        ],
    )
    job = make_job(writer, tokenizer, PROMPTS, Split(separator=separator))
    ours = ModelTeacher(writer, dataclasses.replace(told, kind="model", prompt_tokens=128)).correct(
        job
    )
    theirs = EndpointTeacher(Endpoint(server.spec()), told).correct(job)
    compare("chat", ours, theirs, job)


def check_death(server: "Serve", writer: Generator, tokenizer, cache: Path) -> None:
    prompts = [f"{n} + {n} = " for n in range(24)]
    separator = common_character(writer, tokenizer, prompts)
    job = make_job(writer, tokenizer, prompts, Split(separator=separator))

    def kill_soon() -> None:
        while len(list(cache.rglob("*.json"))) < 4:
            time.sleep(0.01)
        server.kill()

    threading.Thread(target=kill_soon, daemon=True).start()
    client = Endpoint(
        server.spec(
            api="completions", cache=str(cache), concurrency=2, retries=1, backoff_seconds=0.05
        )
    )
    written = EndpointTeacher(client, CONTINUES).correct(job)
    answered = len(list(cache.rglob("*.json")))
    lost = [n for n, reason in enumerate(written.failed) if reason in ("connection", "timeout")]
    assert 4 <= answered < len(prompts), answered
    assert len(lost) == len(prompts) - answered, written.failed
    length = np.asarray(written.rollout.length_B)
    assert (length[lost] == job.kept_B[lost]).all()  # untouched
    assert written.metrics["scope/teacher_requests"] > answered
    again = EndpointTeacher(client, CONTINUES).correct(job)
    assert again.metrics["scope/teacher_cache_hits"] == answered
    np.testing.assert_array_equal(again.rollout.tokens_BT, written.rollout.tokens_BT)
    print(
        f"killed in a batch of {len(prompts)}: {answered} answered, {len(lost)} fell back; repeated"
        " from disk, the same"
    )


def common_character(writer: Generator, tokenizer, prompts: list[str]) -> str:
    """A character that our decoder writes after each of the prompts, but not at once."""
    rows = from_prompts([tokenizer.encode(p) for p in prompts], 1, BUFFER)
    spec = SampleSpec(temperature=0.0, max_new_tokens=STEP, end_ids=(0,))
    written = texts(
        completion_ids(generate(writer.params, writer.config, rows, jax.random.key(0), spec)),
        tokenizer,
    )
    shared = [
        c
        for c in CHARACTERS
        if c.strip() and sum(c in text[1:] for text in written) > len(prompts) / 2
    ]
    assert shared, written
    return shared[0]


def make_job(writer: Generator, tokenizer, prompts: list[str], domain: Split) -> Job:
    ids = [tokenizer.encode(p) for p in prompts]
    rows = from_prompts(ids, 1, BUFFER)
    asks = [Ask(Problem(str(n), p, "0"), (), "", False, n) for n, p in enumerate(prompts)]
    kept = np.array([len(i) for i in ids], np.int32)
    limit = np.full(len(ids), BUFFER, np.int32)
    policy = Policy(writer, tokenizer, SampleSpec(end_ids=(0,)))
    return Job(rows, asks, kept, limit, policy, domain, jax.random.key(0), 0)


def compare(name: str, ours: Corrected, theirs: Corrected, job: Job) -> None:
    """Where both gave a step it is the same, ids and all; and there are steps. Left out: rows in
    which our decoder wrote a special token or ended the row before a separator, because text does
    not show that."""
    both = 0
    pieces, finished = token_bytes(job.policy.tokenizer), np.asarray(ours.rollout.finished_B)
    rows = [completion_ids(x.rollout) for x in (ours, theirs)]
    clean = [
        not finished[n] and all(pieces[i] != b"\0" for i in row) for n, row in enumerate(rows[0])
    ]
    for number, reason in enumerate(theirs.failed):
        assert reason in (None, "incomplete", "special", "empty"), (reason, ours.failed)
        if reason is None:
            text = texts([rows[1][number]], job.policy.tokenizer)[0]
            assert text.endswith(job.domain.separator), text
            if clean[number]:
                assert rows[0][number] == rows[1][number], (
                    name,
                    number,
                    rows[0][number],
                    rows[1][number],
                )
                both += 1
    assert both >= 2, theirs.failed
    written = np.asarray(theirs.rollout.owner_BT) == Owner.TEACHER
    assert np.isnan(np.asarray(theirs.rollout.logp_BT)[written]).all()
    untouched = jnp.arange(BUFFER)[None] < jnp.asarray(job.kept_B)[:, None]
    assert bool(jnp.all(jnp.where(untouched, theirs.rollout.tokens_BT == job.rows.tokens_BT, True)))
    print(
        f"{name}: {both} of {len(theirs.failed)} rows have a step, the same as our decoder's"
        f" ({theirs.failed})"
    )


class Serve:
    """`transformers serve` in a process group of its own; the model is a local directory, named by
    its path."""

    def __init__(self, directory: Path, log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.directory, self.log = directory, log

    def __enter__(self) -> "Serve":
        start = time.monotonic()
        program = [
            str(Path(sys.executable).parent / "transformers"),
            "serve",
            str(self.directory),
            "--device",
            "cpu",
        ]
        program += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            program, stdout=self._file, stderr=subprocess.STDOUT, env=quiet, start_new_session=True
        )
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() - start > 180:
                self.kill()
                raise RuntimeError(
                    f"transformers serve did not start: {self.log.read_text()[-3000:]}"
                )
            time.sleep(0.2)
        self.seconds = time.monotonic() - start
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._file.close()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def spec(self, **more) -> EndpointSpec:
        url = f"http://127.0.0.1:{self.port}/v1"
        return EndpointSpec(
            url=url,
            model=str(self.directory),
            **{"request_seconds": 60.0, "concurrency": 1, **more},
        )

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/health", timeout=2
            ) as response:
                return response.status == 200
        except OSError:
            return False


if __name__ == "__main__":
    main()
