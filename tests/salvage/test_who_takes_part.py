"""A policy behind an address, and what is refused before a weight is read."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import mesh_of
from support.hand_made import PROBLEM, RIGHT, TOKENIZER, WRONG_2, WRONG_3, scene
from support.salvage_files import logged, read_lines, settings_of, write_models, write_rollouts
from support.tiny_runs import ROOT, environment

from scope_jax import models
from scope_jax.errors import StorageError
from scope_jax.rollout import SampleSpec, cut
from scope_jax.salvage.__main__ import arguments_of
from scope_jax.salvage.forms import FILES
from scope_jax.salvage.run import salvage
from scope_jax.salvage.writer import EndpointWriter
from scope_jax.teachers import Endpoint, EndpointSpec
from scope_jax.types import Owner

DEAD = "http://127.0.0.1:9/v1"  # nobody listens there


class Completions(BaseHTTPRequestHandler):
    """A server that goes on with token ids as the hand-made policy does: the right last line."""

    asked: ClassVar[list[dict]] = []
    status = 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        text = TOKENIZER.decode(body["prompt"])
        rest = RIGHT[len(text.split("=")[1]) :]
        choice = {"text": rest[: body["max_tokens"]], "finish_reason": "stop"}
        answer = json.dumps({"choices": [choice]}).encode()
        self.send_response(self.status)
        self.end_headers()
        if self.status == 200:
            self.wfile.write(answer)
        else:
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            said = {"error": {"message": f"no such key: {key}", "code": self.status}}
            self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    found = type("Own", (Completions,), {"asked": [], "status": 200})
    running = ThreadingHTTPServer(("127.0.0.1", 0), found)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield found, f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def at(address, folder):
    return {"policy": address, "policy_model": "m", "tokenizer": str(folder / "policy")}


def test_a_policy_behind_an_address(folder, tmp_path, server):
    handler, address = server
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, 1), logged(WRONG_3, 0, 2)])
    settings = settings_of(folder, rollouts, tmp_path / "out", **at(address, folder))
    summary = salvage(settings, mesh_of("1"))
    assert summary["rescued"] == 2
    (body,) = handler.asked  # the other row was ended by the teacher's step
    kept = TOKENIZER.encode(PROBLEM.prompt + "+777\n-987\n")
    assert (body["prompt"], body["max_tokens"], body["temperature"]) == (kept, 6, 1.0)
    assert body["model"] == "m" and "seed" in body
    mixed = read_lines(tmp_path / "out" / "mixed.jsonl")[0]
    assert mixed["text"] == RIGHT and mixed["owners"][-5:] == [4] * 5
    assert mixed["token_ids"][-1] == 0 and mixed["finished"]
    # Replies are kept: the same salvage elsewhere with these replies asks nobody.
    assert len(list((tmp_path / "out" / "policy_replies").rglob("*.json"))) == 1


def test_a_dead_server_of_the_policy_costs_no_salvage(folder, tmp_path, server):
    handler, address = server
    handler.status = 401
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, 1)])
    settings = settings_of(folder, rollouts, tmp_path / "out", **at(address, folder))
    with pytest.warns(UserWarning, match="status 401"):
        summary = salvage(settings, mesh_of("1"))
    assert summary["tail_failed"] == {"policy_refused": 1} and summary["rescued"] == 0


def test_a_server_that_is_down_ends_the_salvage_and_no_row_is_lost(folder, tmp_path):
    rows = [logged(WRONG_2, 0, n) for n in range(10)]
    rollouts = write_rollouts(tmp_path / "r.jsonl", rows)
    settings = settings_of(folder, rollouts, tmp_path / "out", **at(DEAD, folder), rows=5)
    with pytest.raises(StorageError) as caught:
        salvage(settings, mesh_of("1"))
    assert f"{DEAD}/completions: no answer to 5 requests (5 connection)" in str(caught.value)
    assert "start the same command again" in str(caught.value)
    out = tmp_path / "out"
    assert [(out / name).read_bytes() for name in FILES] == [b""] * 4


def test_a_server_that_refuses_everybody_is_bad_input(folder, tmp_path, server, monkeypatch):
    handler, address = server
    monkeypatch.setenv("A_KEY", "sk-secret")
    handler.status = 401
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, n) for n in range(40)])
    more = {**at(address, folder), "policy_key_env": "A_KEY", "rows": 32}
    settings = settings_of(folder, rollouts, tmp_path / "out", **more)
    with (
        pytest.warns(UserWarning, match="status 401"),
        pytest.raises(ValueError, match="no answer to 32 requests") as caught,
    ):
        salvage(settings, mesh_of("1"))
    words = "(32 refused): status 401 for model 'm' (no such key: ***); is url, model or key wrong?"
    assert str(caught.value).endswith(words)
    handler.status = 200
    assert salvage(settings, mesh_of("1"))["rescued"] == 40


def test_what_a_server_writes_never_passes_the_limit(server):
    _, address = server
    rows = scene(RIGHT + "#", RIGHT + "#", "+777\n", "+777\n-987\n")
    rows = cut(rows, jnp.array([30, 7 + 5, 7 + 5, 7 + 10]))
    writer = EndpointWriter(
        {},
        models.ModelConfig(24, 2, 1, 1, 1, 2, 2),
        endpoint=Endpoint(EndpointSpec(url=address, model="m", api="completions")),
        tokenizer=TOKENIZER,
    )
    limit = jnp.array([23, 23, 15, 22])
    out = writer.extend(
        rows, jax.random.key(0), SampleSpec(max_new_tokens=16), owner=Owner.POLICY, limit_B=limit
    )
    # Untouched; whole, with its end token; cut at its limit; with room for the end token exactly.
    assert np.asarray(out.length_B).tolist() == [22, 22, 15, 22]
    assert np.asarray(out.finished_B).tolist() == [True, True, False, True]
    assert np.asarray(out.tokens_BT)[2, 12:15].tolist() == TOKENIZER.encode("-98")
    assert np.isnan(np.asarray(out.logp_BT)[1, 12:22]).all()


def test_a_step_checker_finds_the_first_wrong_step(folder, tmp_path, monkeypatch):
    code = "def first_wrong(problem, steps):\n    assert problem['answer'] == '98'\n"
    code += "    right = ['+777', '-987', '+198']\n    pairs = zip(steps, right)\n"
    code += "    return next(n for n, (a, b) in enumerate(pairs) if a.strip() != b)\n"
    (tmp_path / "own_checker.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [logged(WRONG_3, 0, 1), logged(WRONG_2, 0, 2), logged(WRONG_2, 0, 3, answer="99")]
    settings = settings_of(
        folder,
        write_rollouts(tmp_path / "r.jsonl", rows),
        tmp_path / "out",
        localiser="function",
        checker="own_checker:first_wrong",
    )
    with pytest.warns(UserWarning, match="AssertionError"):
        salvage(settings, mesh_of("1"))
    lines = read_lines(tmp_path / "out" / "outcomes.jsonl")
    assert [line.get("first_error") for line in lines] == [2, 1, None]
    assert [line["outcome"] for line in lines] == ["rescued", "rescued", "unscored"]


# ---- before a weight is read


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory):
    """The same models, every file of weights cut short: reading one would be the error."""
    folder = write_models(tmp_path_factory.mktemp("cut_short"))
    for file in folder.glob("*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"localiser": "prm", "prm": "{}/unmarked"}, "<extra_0>"),
        ({"localiser": "prm", "prm": "{}/policy"}, "is no known process reward model"),
        ({"localiser": "prm", "prm": "{}/none"}, "none: no such model directory"),
        ({"policy": "{}/none"}, "none: no tokenizer there"),
        ({"policy": "{}/prm"}, "a model that writes needs a vocabulary head"),
        ({"teacher": "{}/none", "style": ""}, "none: no tokenizer there"),
        ({"chat": "on", "tokenizer": "{}/untemplated"}, "--chat=on: the tokenizer has no chat"),
        ({"style": "baroque"}, "--style=baroque is no style of 'arithmetic'; one of"),
        ({"teacher": "nowhere:Teacher", "style": ""}, "--teacher = 'nowhere:Teacher': ModuleNot"),
        ({"task": "math", "localiser": "oracle"}, "task 'math' cannot check steps"),
        ({"localiser": "nowhere:Localiser"}, "localiser.kind = 'nowhere:Localiser': ModuleNot"),
        (
            {"localiser": "operator:add"},
            "is --localiser=function --checker=operator:add",
        ),
        ({"policy": None}, "--tokenizer is missing: a directory with the policy's tokenizer"),
        ({"fields": ("answer=gold",)}, "field 'gold' is missing: the verifier needs it"),
        ({}, "not a whole safetensors file"),
    ],
)
def test_everything_is_refused_before_a_weight_is_read(cut_short, tmp_path, change, message):
    untemplated = cut_short / "untemplated"
    if not untemplated.exists():
        untemplated.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            untemplated.joinpath(name).write_text((cut_short / "policy" / name).read_text())
    change = {
        name: value.format(cut_short) if isinstance(value, str) else value
        for name, value in change.items()
    }
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, 1)])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        salvage(settings_of(cut_short, rollouts, tmp_path / "out", **change), mesh_of("1"))
    said = " ".join(str(caught.value).split())
    assert message in said
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"localiser": "prm"}, "--prm is missing"),
        ({"prm": "x"}, "--prm is for --localiser=prm, not oracle"),
        ({"localiser": "function"}, "--checker is missing"),
        ({"checker": "a:b"}, "--checker is for --localiser=function, not oracle"),
        ({"localiser": "psychic"}, "localiser.kind = 'psychic' is unknown"),
        ({"threshold": 1.5}, "the threshold must lie in (0, 1)"),
        (
            {"policy": "http://host/v1"},
            "--policy-model is missing: the model's name at http://host",
        ),
        ({"teacher": "self", "policy": None}, "--teacher=self needs --policy=DIR"),
        ({"localiser": "monte_carlo", "policy": None}, "--localiser=monte_carlo needs --policy"),
        (
            {"localiser": "likelihood", "teacher": "http://h/v1", "teacher_model": "m"},
            "--localiser=likelihood asks the teacher for the probability of steps",
        ),
        ({"verify": "guess"}, "--verify = 'guess' is unknown; one of task, math"),
        ({"verify": "math"}, "--verify=math goes with --task=math"),
        ({"pairs": "solutions", "policy": None}, "--pairs=solutions needs --policy"),
        ({"boundary": "lines"}, "--separator and --boundary are for --task=math"),
        ({"rows": 0}, "--rows=0: expected at least 1"),
        ({"concurrency": 0}, "--concurrency=0: expected at least 1"),
        ({"teacher_tokens": 9}, "--teacher-tokens is for a teacher behind an address"),
        (
            {"teacher": "http://h/v1", "teacher_model": "m", "teacher_extra": "[]"},
            "--teacher-extra: expected a JSON object, found list",
        ),
        ({"right": float("nan")}, "--right=nan: expected a number"),
        (
            {"teacher": "reference", "style": "sorted"},
            "--style is for --teacher=program, and does nothing here",
        ),
        ({"teacher_model": "m"}, "--teacher-model is for --teacher=ADDRESS"),
        ({"policy_key_env": "KEY"}, "--policy-key-env is for --policy=ADDRESS"),
    ],
)
def test_settings_that_make_no_sense(folder, tmp_path, change, message):
    with pytest.raises(ValueError) as caught:
        settings_of(folder, "r.jsonl", tmp_path, **change)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_first_word_is_the_file_of_rollouts():
    assert arguments_of(["r.jsonl", "--out=x"]) == ["--rollouts=r.jsonl", "--out=x"]
    assert arguments_of(["--out=x", "--rollouts=r"]) == ["--out=x", "--rollouts=r"]


def test_a_missing_file_and_missing_functions(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.jsonl: no such file: expected JSON lines"):
        salvage(settings_of(folder, str(tmp_path / "none.jsonl"), tmp_path), mesh_of("1"))
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, 1)])
    settings = settings_of(folder, rollouts, tmp_path / "out", verify="nowhere:reward")
    with pytest.raises(ValueError, match=r"--verify = 'nowhere:reward': .*nowhere"):
        salvage(settings, mesh_of("1"))
    assert not (tmp_path / "out").exists()  # the same folder with the right name is no other run
    settings = settings_of(
        folder, rollouts, tmp_path / "out2", localiser="function", checker="nowhere:check"
    )
    with pytest.raises(ValueError, match=r"^--checker = 'nowhere:check': .*nowhere"):
        salvage(settings, mesh_of("1"))


# ---- the command line


def program(folder, rollouts, out, *more):
    words = [sys.executable, "-m", "scope_jax.salvage", rollouts, f"--out={out}"]
    words += [f"--policy={folder / 'policy'}", f"--teacher={folder / 'teacher'}", "--chat=off"]
    words += ["--task=arithmetic", "--prompt-tokens=8", "--new-tokens=16", "--step-tokens=8"]
    return [*words, *more]


def started(words, folder):
    return subprocess.Popen(
        words,
        env=environment(folder),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_missing_flag_is_one_line_and_exit_code_2(folder, tmp_path):
    rollouts = write_rollouts(tmp_path / "r.jsonl", [logged(WRONG_2, 0, 1)])
    process = started(program(folder, rollouts, tmp_path / "out"), tmp_path)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --prm is missing")


@pytest.mark.long
def test_a_killed_command_goes_on_with_nothing_lost_or_doubled(folder, tmp_path):
    rows = [logged(WRONG_2, 0, 1), "nonsense", logged(WRONG_3, 0, 2), logged(RIGHT, 1, 3)] * 60
    rollouts = write_rollouts(tmp_path / "r.jsonl", rows)
    flags = ("--localiser=oracle", "--rows=1", "--right-steps")
    words = program(folder, rollouts, tmp_path / "cut", *flags)
    outcomes = tmp_path / "cut" / "outcomes.jsonl"
    kills = 0
    for most in (1, 60, 150):
        process = started(words, tmp_path)
        while process.poll() is None:
            there = outcomes.read_bytes().count(b"\n") if outcomes.exists() else 0
            if there >= most:
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        process.communicate(timeout=240)
    assert kills == 3 and outcomes.read_bytes().count(b"\n") < len(rows)
    done = started(words, tmp_path)
    out, err = done.communicate(timeout=240)
    assert done.returncode == 0, err
    assert out.startswith("240 rows: 60 right, 120 failed, 0 not judged, 60 bad lines")
    assert "rescued, verified by task: 60 (50% of the failed)" in out
    whole = started(program(folder, rollouts, tmp_path / "whole", *flags), tmp_path)
    assert whole.wait(timeout=240) == 0
    for name in FILES:
        there = (tmp_path / "cut" / name).read_bytes()
        assert there == (tmp_path / "whole" / name).read_bytes(), name
