"""The launch scripts against a gcloud of our own: machines are folders, their commands are run
there by bash."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Writes down each call; `scp` copies between here and a machine's folder, `ssh --command` runs it
# there. $FAIL: a machine whose connection fails. $FAIL_AFTER: the last copy fails.
GCLOUD = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
calls, machines = pathlib.Path(os.environ["CALLS"]), pathlib.Path(os.environ["MACHINES"])
arguments = sys.argv[1:]
with open(calls, "a") as file:
    file.write(json.dumps(arguments) + "\\n")
assert arguments[:3] == ["compute", "tpus", "tpu-vm"], arguments
words = [word for word in arguments[4:] if not word.startswith("--")]
if os.environ.get("FAIL") and any(word.split(":")[0] == os.environ["FAIL"] for word in words):
    sys.exit("connection lost")
if os.environ.get("FAIL_AFTER") and "scope_jax_records.tar.gz" in " ".join(words):
    sys.exit("the machine is gone")
if arguments[3] == "scp":
    def place(word):
        machine, _, path = word.partition(":")
        return machines / machine / path if ":" in word else pathlib.Path(word)
    for word in words[:-1]:
        place(words[-1]).mkdir(parents=True, exist_ok=True) if words[-1].endswith(":") else None
        shutil.copy(place(word), place(words[-1]))
else:
    (command,) = (word for word in arguments if word.startswith("--command="))
    command = ["sh", "-c", command.removeprefix("--command=")]
    sys.exit(subprocess.run(command, cwd=machines / words[0]).returncode)
"""
# `make setup` of a machine: a Python that takes part in no sweep, but writes down how it was
# called, and a record.
MAKE = """#!/bin/sh
test "$1" = setup && test "$2" = EXTRAS=tpu || exit 9
echo "made with $3"
mkdir -p .venv/bin && cp "$(dirname "$0")/remote_python" .venv/bin/python
"""
PYTHON = """#!{python}
import json, os, pathlib, sys, time
options = dict(word.partition("=")[::2] for word in sys.argv[3:])
records = pathlib.Path(options["--records"])
there = sorted(path.name for path in records.rglob("*.json"))
names = ("Makefile", "untracked name.txt", "deleted.txt", "ignored/x", "more data/in it/x")
found = {"arguments": sys.argv[1:], "code": os.environ["SCOPE_JAX_CODE"], "there": there,
         "files": [name for name in names if pathlib.Path(name).exists()],
         "sweep": pathlib.Path(options["--sweep"]).is_file()}
shard = options["--shard"].replace("/", "_of_")
(records / "a b").mkdir(exist_ok=True)
(records / "a b" / f"shard_{shard}.json").write_text(json.dumps(found))
chip = os.environ.get("TPU_VISIBLE_CHIPS")
(records / f"chip_{chip}.json").write_text(json.dumps({"arguments": sys.argv[1:], "chip": chip}))
time.sleep(float(os.environ.get("SWEEP_SECONDS", "0")))
sys.exit(int(os.environ.get("SWEEP_CODE", "0")))
"""
# Of the caller's environment, they would change what the scripts do.
SETTINGS = ("ZONE", "PROJECT", "SEND", "DRY_RUN", "VM_PYTHON", "PER_VM", "PACK_MB")


@pytest.fixture
def place(tmp_path):
    """A repository with spaces in its name that holds the launch script, a PATH with the programs
    above, and a way to start it."""
    programs, repository = tmp_path / "bin", tmp_path / "my repository"
    programs.mkdir()
    for name, text in (("gcloud", GCLOUD), ("make", MAKE), ("remote_python", PYTHON)):
        # As in a shebang line, the interpreter's path must have no space.
        (programs / name).write_text(text.replace("{python}", sys.executable))
        (programs / name).chmod(0o755)
    repository.mkdir()
    shutil.copytree(ROOT / "launch", repository / "launch")
    (repository / "Makefile").write_text("")
    (repository / "deleted.txt").write_text("")
    (repository / "my sweep's.py").write_text("")
    (repository / ".gitignore").write_text("ignored\nmore data\n")
    git = [
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=repository, check=True)
    (repository / "deleted.txt").unlink()
    (repository / "untracked name.txt").write_text("")
    for ignored in ("ignored", "more data/in it"):
        (repository / ignored).mkdir(parents=True)
        (repository / ignored / "x").write_text("")

    def start(*arguments, code=0, **environment):
        variables = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        variables |= {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "MACHINES": str(tmp_path / "vms"),
        }
        done = subprocess.run(
            ["bash", str(repository / "launch" / "sweep_tpu.sh"), *arguments],
            cwd=tmp_path,
            env=variables | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return tmp_path, repository, start


def calls(folder):
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_machine_takes_its_share_and_records_come_back(place):
    folder, repository, start = place
    records = folder / "my records"
    (records / "old").mkdir(parents=True)
    (records / "old" / "before.json").write_text("{}")
    done = start(
        str(repository / "my sweep's.py"),
        "my records",
        "tpu-0",
        "someone@tpu-1",
        "--",
        "--jobs=1",
        "--only=a $HOME; `x` 'y' *",
        ZONE="my-zone",
        PROJECT="p",
        SEND="more data",
        VM_PYTHON="python3.12",
    )
    assert (
        "[tpu-0] made with PYTHON=python3.12" in done.stdout
        and "[someone@tpu-1] made with" in done.stdout
    )
    found = [json.loads((records / "a b" / f"shard_{i}_of_2.json").read_text()) for i in (0, 1)]
    for number, one in enumerate(found):
        assert one["arguments"] == [
            *(
                "-m",
                "scope_jax.sweep",
                "--sweep=my sweep's.py",
                "--workdir=runs/sweep",
                "--records=sweep_records",
            ),
            *(f"--shard={number}/2", "--jobs=1", "--only=a $HOME; `x` 'y' *"),
        ]
        # The working tree as it is, what was sent, and the records from before, without the
        # ignored rest.
        assert (
            one["files"] == ["Makefile", "untracked name.txt", "more data/in it/x"] and one["sweep"]
        )
        assert one["there"] == ["before.json"] and one["code"].endswith("+")
    assert (records / "old" / "before.json").read_text() == "{}"
    made = calls(folder)
    assert len(made) == 6 and all(
        {"--quiet", "--zone=my-zone", "--project=p"} < set(call) for call in made
    )


def test_records_come_back_from_a_sweep_with_failures_and_a_lost_machine_is_named(place):
    folder, repository, start = place
    done = start(
        str(repository / "my sweep's.py"),
        "records",
        "tpu-0",
        "tpu-1",
        code=1,
        SWEEP_CODE="1",
        FAIL="tpu-1",
    )
    assert (folder / "records" / "a b" / "shard_0_of_2.json").is_file()
    assert not (folder / "records" / "a b" / "shard_1_of_2.json").exists()
    assert (
        "error: tpu-0 did not finish its share" in done.stderr
        and "error: tpu-1 did not finish its share" in done.stderr
    )
    assert "[tpu-1] connection lost" in done.stdout
    # The second call finds what the first one brought.
    start(str(repository / "my sweep's.py"), "records", "tpu-0", "tpu-1")
    assert (
        "shard_0_of_2.json"
        in json.loads((folder / "records" / "a b" / "shard_1_of_2.json").read_text())["there"]
    )


def test_a_dry_run_prints_what_a_run_would_call(place):
    folder, repository, start = place
    arguments = (str(repository / "my sweep's.py"), "my records", "tpu-0", "--", "--only=a b")
    printed = start(*arguments, DRY_RUN="1", ZONE="z").stdout
    assert not calls(folder) and not (folder / "my records").exists()
    words = [shlex.split(line) for line in printed.splitlines()]
    start(*arguments, ZONE="z")

    # Up to the name of the temporary folder, the same words.
    def names(call):
        return [os.path.basename(word) if word.startswith("/") else word for word in call]

    assert [names(call[1:]) for call in words if call[0] == "gcloud"] == [
        names(call) for call in calls(folder)
    ]
    assert words[-1][:2] == ["tar", "-xzf"] and words[-1][-1] == "my records"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("my repository/my sweep's.py", "r"), "usage: launch/sweep_tpu.sh SWEEP RECORDS VM"),
        (
            ("my repository/my sweep's.py", "r", "--", "--jobs=1"),
            "usage: launch/sweep_tpu.sh SWEEP RECORDS VM",
        ),
        (("my repository/none.py", "r", "tpu-0"), "my repository/none.py: no such sweep file"),
        (("outside.py", "r", "tpu-0"), "the sweep file must be in"),
        (("my repository/my sweep's.py", "r", "--zone=x"), "VM --zone=x: expected a name"),
        (("my repository/my sweep's.py", "r", "a:b"), "VM a:b: expected a name"),
        (
            ("my repository/my sweep's.py", "r", "tpu-0", "--", "--shard=0/2"),
            "--shard=0/2 is set by this script",
        ),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_called(place, arguments, message):
    folder, _, start = place
    (folder / "outside.py").write_text("")
    done = start(*arguments, code=2)
    assert (
        done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
        and message in done.stderr
    )
    assert not calls(folder) and not (folder / "r").exists()


def test_what_is_to_be_sent_must_be_there(place):
    _, repository, start = place
    assert (
        "SEND=none: no such directory"
        in start(str(repository / "my sweep's.py"), "r", "tpu-0", code=2, SEND="none").stderr
    )


def test_records_come_back_while_the_sweep_runs(place):
    folder, repository, start = place
    arguments = (str(repository / "my sweep's.py"), "records", "tpu-0")
    # What the machine had so far is here, although it was lost before the end.
    start(*arguments, code=1, RECORD_SECONDS="0.2", SWEEP_SECONDS="2", FAIL_AFTER="tpu-0")
    assert (folder / "records" / "a b" / "shard_0_of_1.json").is_file()


def test_several_runs_at_once_on_one_machine_have_a_chip_each(place):
    folder, repository, start = place
    start(
        str(repository / "my sweep's.py"),
        "records",
        "tpu-0",
        "--",
        "--only=arithmetic/*",
        PER_VM="3",
    )
    made = [json.loads(path.read_text()) for path in (folder / "records").rglob("chip_*.json")]
    # The checkpoints first, by one that runs nothing; then the runs, by locks.
    only = {one["chip"]: one["arguments"][-1] for one in made}
    assert only == {
        None: "--only=",
        "0": "--only=arithmetic/*",
        "1": "--only=arithmetic/*",
        "2": "--only=arithmetic/*",
    }
    assert (
        "PER_VM=0: expected"
        in start(str(repository / "my sweep's.py"), "records", "tpu-0", code=2, PER_VM="0").stderr
    )


def run_local(folder, python, **environment):
    """run_local.sh with a program of ours for a Python."""
    (folder / "python").write_text(f"#!{sys.executable} -IS\n{python}")
    (folder / "python").chmod(0o755)
    (folder / "my config.py").write_text("")
    return subprocess.Popen(
        [
            "bash",
            str(ROOT / "launch" / "run_local.sh"),
            "my config.py",
            "my run",
            "--config.x=a 'b'",
        ],
        cwd=folder,
        env=os.environ | {"PYTHON": str(folder / "python")},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_local_run_ends_as_its_trainer_does_and_keeps_a_log(tmp_path):
    started = run_local(
        tmp_path,
        "import os, sys\nprint(sys.argv[1:], os.environ['TOKENIZERS_PARALLELISM'])\nsys.exit(75)",
    )
    said, _ = started.communicate(timeout=30)
    words = [
        "-m",
        "scope_jax.train",
        f"--config={tmp_path}/my config.py",
        f"--workdir={tmp_path}/my run",
        "--config.x=a 'b'",
    ]
    assert (
        started.returncode == 75
        and said == f"{words} false\n"
        and (tmp_path / "my run" / "run.log").read_text() == said
    )


def test_a_signal_to_a_local_run_reaches_its_trainer(tmp_path):
    trainer = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2),"
        " os.write(1, b'checkpoint\\n'), sys.exit(75)))\nprint('ready', flush=True)\ntime.sleep(30)"
    )
    started = run_local(tmp_path, trainer)
    assert started.stdout.readline() == "ready\n"
    started.terminate()
    said, _ = started.communicate(timeout=30)
    assert (started.returncode, said) == (75, "checkpoint\n")


# What each script is given in a dry run; those that are only sourced do nothing in any.
CONFIG, SWEEP = "{root}/my config.py", "{root}/my sweep's.py"
SLICE = ("tpu-0", "--zone=my-zone1", "--type=v6e-8", "--bucket=gs://my-bucket/runs")
DRY = {
    "common.sh": [()],
    "slice.sh": [()],
    "watch.sh": [()],
    "run_local.sh": [(CONFIG, "my run", "--config.x=a 'b'"), ("scope,arithmetic", "my run")],
    "slurm.sh": [("scope,arithmetic", "my run", "--config.x=a 'b'")],
    "sweep_slice.sh": [(SWEEP, "my records", *SLICE, "--secrets=my secrets", "--delete-after")],
    "sweep_tpu.sh": [(SWEEP, "my records", "tpu-0", "tpu-1")],
    "tpu.sh": [
        *(
            (verb, *SLICE)
            for verb in ("create", "setup", "status", "logs", "tensorboard", "fetch", "stop")
        ),
        *((verb, "tpu-0", CONFIG, *SLICE[1:]) for verb in ("run", "watch")),
        ("run", "tpu-0", "scope,arithmetic", *SLICE[1:]),
    ],
    "worker.sh": [
        ("setup", "", "tpu"),
        ("start", "run", "", "c.py"),
        ("stop", "run", "1", "hard"),
        ("pack", "run"),
        ("idle",),
    ],
}


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").glob("*.sh")))
def test_a_dry_run_writes_and_calls_nothing(tmp_path, script):
    root, programs, empty = tmp_path / "my repository", tmp_path / "bin", tmp_path / "empty"
    for folder in (root, programs, empty, tmp_path / "temporary"):
        folder.mkdir()
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "configs" / "sweeps").mkdir(parents=True)
    for name in ("my config.py", "my sweep's.py", "configs/sweeps/one.py"):
        (root / name).write_text("")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    git = [
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], cwd=root, check=True)
    (empty / "my secrets").write_text("")
    (empty / "my secrets").chmod(0o600)
    called = tmp_path / "called"
    for name in ("gcloud", "ssh", "scp", "python", "python3", "make", "tar", "curl"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} >> "{called}"\nexit 9\n')
        (programs / name).chmod(0o755)
    # The one thing that is asked, which runs there are: it is read from the sweep file.
    (tmp_path / "plan").write_text(
        '#!/bin/sh\n[ "$3" = plan ] && [ -n "$PYTHONDONTWRITEBYTECODE" ] && printf "a b/one\\0"\n'
    )
    (tmp_path / "plan").chmod(0o755)
    variables = {k: v for k, v in os.environ.items() if k not in (*SETTINGS, "PYTHON")} | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "DRY_RUN": "1",
        "TMPDIR": str(tmp_path / "temporary"),
        "HOME": str(empty),
    }
    if script == "sweep_slice.sh":
        variables["PYTHON"] = str(tmp_path / "plan")

    def files():
        return {
            path: path.stat().st_mtime_ns
            for path in tmp_path.rglob("*")
            if ".git" not in path.parts
        }

    before = files()
    for arguments in DRY[script]:
        words = [word.replace("{root}", str(root)) for word in arguments]
        done = subprocess.run(
            ["bash", str(root / "launch" / script), *words],
            cwd=empty,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), (words, done)
        assert bool(done.stdout) == bool(arguments) and not called.exists(), (words, done)
    after = files()
    after.pop(tmp_path / "temporary"), before.pop(tmp_path / "temporary")  # what was there is gone
    assert after == before


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("my config.py", "{here}/my config.py"),
        ("my config.py:words, more", "{here}/my config.py:words, more"),
        ("configs/run.py:scope,arithmetic", "configs/run.py:scope,arithmetic"),
        ("scope,arithmetic", "scope,arithmetic"),
    ],
)
def test_a_dry_run_of_a_local_run_prints_its_words(tmp_path, given, taken):
    (tmp_path / "my config.py").write_text("")
    done = subprocess.run(
        [
            "bash",
            str(ROOT / "launch" / "run_local.sh"),
            given,
            "my run",
            "--config.x=a 'b'",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": str(tmp_path / "no python"), "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, command = (shlex.split(line) for line in done.stdout.splitlines())
    assert folder == ["cd", "--", str(ROOT)] and command == [
        *(
            f"{tmp_path}/no python",
            "-m",
            "scope_jax.train",
            f"--config={taken.format(here=tmp_path)}",
            f"--workdir={tmp_path}/my run",
        ),
        "--config.x=a 'b'",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["my config.py"]


def test_shellcheck_finds_nothing():
    # Installed beside the Python that runs this.
    program = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert program is not None, "shellcheck is missing; install scope_jax[test]"
    scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
    subprocess.run([program, "--external-sources", *scripts], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda path: path.name
)
def test_scripts_parse_can_be_run_and_stop_at_errors(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) and "\nset -euo pipefail\n" in script.read_text()
