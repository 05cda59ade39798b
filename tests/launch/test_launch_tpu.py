"""launch/tpu.sh against a cloud of our own (fake_gcloud.py): slices are folders, their workers run
the real launch/worker.sh, and a trainer that counts (fake_worker.py) stands for the real one."""

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import fake_gcloud

ROOT = Path(__file__).resolve().parents[2]
HERE = ("--zone=my-zone1", "--type=v6e-4")
BUCKET = "--bucket=gs://my-bucket/runs of mine/"
# Short, for tests.
WAITS = {
    "CREATE_SECONDS": "0.1",
    "WATCH_SECONDS": "0.3",
    "PAUSE_SECONDS": "0",
    "SYNC_SECONDS": "0.3",
    "LINGER_SECONDS": "20",
    "WATCH_MISSES": "2",
}
# The metadata server of a worker, by its last path part.
METADATA = """#!/bin/sh
for last do :; done
case "${last##*/}" in
  agent-worker-number) printf %s "$FAKE_WORKER" ;;
  worker-network-endpoints) seq -s, 1 "$FAKE_WORKERS" | sed 's/[0-9]*/unknown:unknown:10.0.0.&/g' ;;
  *) exit 22 ;;
esac
"""


class Cloud:
    """The cloud's folder, a working tree with spaces in its name, and the script started from a
    third place."""

    def __init__(self, folder: Path):
        self.folder, self.repository, self.elsewhere = (
            folder / "cloud",
            folder / "my repository",
            folder / "elsewhere",
        )
        for path in (self.folder / "bin", self.repository, self.elsewhere, folder / "bin"):
            path.mkdir(parents=True)
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I -S "{fake_gcloud.__file__}" "$@"\n'
        )
        gcloud.chmod(0o755)
        (self.folder / "bin" / "make").symlink_to(ROOT / "tests" / "support" / "fake_worker.py")
        (self.folder / "bin" / "curl").write_text(METADATA)
        (self.folder / "bin" / "curl").chmod(0o755)
        shutil.copytree(ROOT / "launch", self.repository / "launch")
        (self.repository / "my config's.py").write_text("here")
        (self.repository / ".gitignore").write_text("/runs/\n/secret words\n")
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
            subprocess.run([*git, *words], cwd=self.repository, check=True)
        self.config = str(self.repository / "my config's.py")
        kept = {
            k: v
            for k, v in os.environ.items()
            if k not in ("ZONE", "PROJECT", "DRY_RUN", "PACK_MB")
        }
        self.environment = (
            kept
            | WAITS
            | {
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
                "CLOUD": str(self.folder),
            }
        )
        self.trains(steps=3)

    def trains(self, **plan):
        (self.folder / "trainer.json").write_text(json.dumps({"seconds": 0.05} | plan))

    def plans(self, *requests):
        (self.folder / "plan.json").write_text(json.dumps(requests))

    def begin(self, *words, **environment):
        return subprocess.Popen(
            ["bash", str(self.repository / "launch" / "tpu.sh"), *words],
            cwd=self.elsewhere,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def end(self, process, code=0):
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        return out, err

    def do(self, *words, code=0, **environment):
        return self.end(self.begin(*words, **environment), code)

    def calls(self, verb=""):
        path = self.folder / "calls"
        made = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in made if verb in call]

    def starts(self):
        path = self.folder / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def home(self, slice="tpu-0", worker=0):
        return self.folder / "vms" / slice / f"w{worker}" / "scope_jax_launch"

    def bucket(self, run):
        return self.folder / "bucket" / "my-bucket" / "runs of mine" / run

    def pushed(self, run):
        """The newest whole checkpoint in the bucket, 0 where there is none."""
        found = (self.bucket(run) / "checkpoints").glob("*/sum")
        return max(
            (int(path.parent.name) for path in found if path.parent.name.isdecimal()), default=0
        )

    def steps(self, run):
        """Of the copy in the bucket."""
        return [
            json.loads(line)["step"]
            for line in (self.bucket(run) / "metrics.jsonl").read_text().splitlines()
        ]

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.05)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = Cloud(tmp_path)
    monkeypatch.setattr(fake_gcloud, "CLOUD", made.folder)
    yield made
    fake_gcloud.end_processes(made.folder / "vms", signal.SIGKILL)


def test_a_slice_from_its_request_to_its_end(cloud):
    cloud.plans(["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    out, _ = cloud.do(
        "create", "tpu-0", "--zone=my-zone1", "--type=v6e-8", "--spot", "--valid-until=6h", BUCKET
    )
    assert "tpu-0: waiting" in out and out.rstrip().endswith("tpu-0: usable")
    flags = json.loads((cloud.folder / "queued" / "tpu-0").read_text())["flags"]
    assert (
        flags["--runtime-version"] == "v2-alpha-tpuv6e"
        and "--spot" in flags
        and flags["--valid-until-duration"] == "6h"
    )
    cloud.do("create", "tpu-0")  # it is there
    assert len(cloud.calls("create")) == 1

    # What create was told need not be said again.
    cloud.do("setup", "tpu-0")
    made = [cloud.folder / "vms" / "tpu-0" / f"w{number}" / "made" for number in (0, 1)]
    (cloud.repository / "new file").write_text("")
    cloud.do("setup", "tpu-0", "--python=python3.12")
    assert all(len(path.read_text().splitlines()) == 2 for path in made)
    assert made[1].read_text().splitlines()[1] == "setup EXTRAS=tpu,gcs PYTHON=python3.12"
    assert all((cloud.home(worker=number) / "new file").exists() for number in (0, 1))

    # The run outlives the command, on both workers.
    cloud.trains(steps=1000, seconds=0.1)
    out, _ = cloud.do("run", "tpu-0", cloud.config, "--config.seed=3")
    assert "tpu-0 runs on tpu-0" in out
    cloud.until(
        lambda: (
            len(cloud.starts()) == 2 and cloud.bucket("tpu-0").joinpath("metrics.jsonl").exists()
        )
    )
    for start in cloud.starts():
        assert start["arguments"] == [
            *("--config=my config's.py", "--workdir=runs/tpu-0", "--distributed=auto"),
            *(
                "--config.checkpoint.directory=gs://my-bucket/runs of mine/tpu-0/checkpoints",
                "--config.seed=3",
            ),
        ]
        assert (
            start["environment"]["TOKENIZERS_PARALLELISM"] == "false"
            and start["environment"]["JAX_COMPILATION_CACHE_DIR"]
        )
    out, _ = cloud.do("status", "tpu-0")
    assert (
        "worker=0 of=2 state=running code=- asked=no step=" in out
        and "worker=1 of=2 state=running" in out
    )
    _, err = cloud.do("setup", "tpu-0", code=3)  # files must not change under a run
    assert "tpu-0 runs here; stop it first" in err
    cloud.do("logs", "tpu-0")
    for number in (0, 1):
        assert (
            f"worker {number}: step 0 of 1000"
            in (cloud.repository / f"runs/slices/tpu-0/logs/{number}.log").read_text()
        )

    out, _ = cloud.do("stop", "tpu-0")
    assert "ended with exit code 75" in out and not list((cloud.folder / "queued").iterdir())
    assert not list((cloud.folder / "vms").iterdir())
    # All that was done is in the bucket: as many lines as the newest checkpoint has steps.
    assert (
        cloud.steps("tpu-0") == list(range(cloud.pushed("tpu-0")))
        and (cloud.bucket("tpu-0") / "logs" / "worker_0.log").exists()
    )
    cloud.do("stop", "tpu-0")  # nothing is left: nothing to do


def test_a_run_without_a_bucket_is_fetched_before_its_slice_goes(cloud):
    cloud.do("create", "tpu-0", *HERE)
    cloud.do(
        "run",
        "tpu-0",
        cloud.config,
        "--run=it's a run",
        """--config.task.name=a "b" $HOME `x` *;'c'""",
    )
    cloud.until(lambda: (cloud.home() / "launched/it's a run/exit").exists())
    assert (cloud.home() / "launched/it's a run/exit").read_text() == "0\n"
    assert cloud.starts()[0]["arguments"] == [
        *("--config=my config's.py", "--workdir=runs/it's a run"),
        """--config.task.name=a "b" $HOME `x` *;'c'""",
    ]
    out, _ = cloud.do("status", "tpu-0")
    assert "worker=0 of=1 state=ended code=0 asked=no step=2" in out
    _, err = cloud.do("stop", "tpu-0", code=2)
    assert "the run has no bucket" in err and cloud.home().exists()
    cloud.do("fetch", "tpu-0")
    assert json.loads((cloud.repository / "runs/it's a run/summary.json").read_text())["steps"] == 3
    cloud.do("stop", "tpu-0", "--discard")
    assert not cloud.home().exists()


def test_several_workers_share_no_folder_and_need_a_bucket(cloud):
    cloud.do("create", "tpu-0", "--zone=my-zone1", "--type=v6e-8")
    _, err = cloud.do("run", "tpu-0", cloud.config, code=2)
    assert "a slice of 2 workers needs --bucket=gs://..." in err and not cloud.starts()


@pytest.mark.long
def test_watch_survives_refusals_and_pre_emptions_and_loses_no_step(cloud):
    cloud.trains(steps=10_000, seconds=0.1)
    # Refused; taken away while it is made; and then three slices.
    cloud.plans(
        "quota",
        ["ACCEPTED", "PROVISIONING", "SUSPENDED"],
        ["ACCEPTED", "FAILED"],
        ["ACCEPTED", "ACTIVE"],
    )
    watch = cloud.begin("watch", "tpu-0", cloud.config, *HERE, "--spot", BUCKET, "--run=my run")

    def pushed():
        return cloud.pushed("my run")

    cloud.until(lambda: pushed() >= 5)
    (cloud.repository / "edited while it ran").write_text("")
    fake_gcloud.preempt("tpu-0")  # without notice
    cloud.until(lambda: len(cloud.starts()) == 2 and pushed() > cloud.starts()[1]["step"])
    before = pushed()
    end = before + 40
    cloud.trains(steps=end, seconds=0.02)  # read by the next start
    fake_gcloud.preempt(
        "tpu-0", grace=4.0
    )  # with notice: the checkpoint of the last step gets to the bucket
    out, err = cloud.end(watch)
    assert "Quota limit" in err and "attempt 6 of 10" in out and "step" in out
    # In the time of the notice, the run may have been started once more on the slice that was
    # about to go.
    first, second, *_, last = (start["step"] for start in cloud.starts())
    assert first == 0 and 5 <= second < last and last > before
    assert (
        cloud.steps("my run") == list(range(end))
        and (cloud.bucket("my run") / "summary.json").exists()
    )
    # Of the checkpoints, those that the trainer keeps; and what was edited belongs to other runs.
    assert sorted(path.name for path in (cloud.bucket("my run") / "checkpoints").iterdir()) == [
        str(end - 1),
        str(end),
    ]
    assert not (cloud.home() / "edited while it ran").exists()
    assert "tpu-0 still costs" in out


@pytest.mark.long
def test_watch_replaces_a_slice_of_which_one_worker_died(cloud):
    cloud.trains(steps=25, seconds=0.1)
    watch = cloud.begin(
        "watch", "tpu-0", cloud.config, "--zone=my-zone1", "--type=v6e-8", BUCKET, "--delete-after"
    )
    cloud.until(lambda: len(cloud.starts()) == 2 and cloud.pushed("tpu-0"))
    (cloud.folder / "unreachable").write_text("tpu-0/w1")
    fake_gcloud.end_processes(cloud.folder / "vms" / "tpu-0" / "w1", signal.SIGKILL)
    cloud.until(lambda: len(cloud.calls("create")) == 2)
    (cloud.folder / "unreachable").unlink()
    out, _ = cloud.end(watch)
    assert "no answer from every worker (2 of 2; slice: usable)" in out
    assert [start["step"] > 0 for start in cloud.starts()] == [False, False, True, True]
    assert cloud.steps("tpu-0") == list(range(25))
    assert not list((cloud.folder / "queued").iterdir()) and not list(
        (cloud.folder / "vms").iterdir()
    )


def test_watch_goes_by_the_exit_code(cloud):
    # A crash of one worker, which takes the other along; then SIGTERM by nobody, as before a
    # pre-emption; then it ends well.
    cloud.trains(steps=4, exits={"0": [76, 75, None], "1": [1, 75, None]})
    out, _ = cloud.do("watch", "tpu-0", cloud.config, "--zone=my-zone1", "--type=v6e-8", BUCKET)
    assert out.count("tpu-0 is tried again in 0 s") == 2
    assert (
        len(cloud.starts()) == 6
        and len(cloud.calls("create")) == 1
        and cloud.steps("tpu-0") == list(range(4))
    )

    # Bad input is not tried again, and its message is shown.
    cloud.trains(steps=12, exits={"0": [*[None] * 3, 2], "1": [*[None] * 3, 2]})
    out, err = cloud.do("watch", "tpu-0", cloud.config, "--run=bad", code=2)
    assert (
        len(cloud.starts()) == 8
        and "error: exit code 2 was asked for" in out
        and "is not tried again" in err
    )

    # Another end is, so many times.
    cloud.trains(steps=12, exits={"0": [1] * 20, "1": [1] * 20})
    out, err = cloud.do("watch", "tpu-0", cloud.config, "--run=crash", "--attempts=2", code=1)
    assert (
        len(cloud.starts()) == 12
        and "given up after 2 attempts" in err
        and "launch/tpu.sh stop tpu-0 deletes" in out
    )


def test_a_run_that_somebody_stops_stays_stopped_and_goes_on_by_the_same_command(cloud):
    cloud.trains(steps=10_000, seconds=0.1)
    watch = cloud.begin("watch", "tpu-0", cloud.config, *HERE, BUCKET)
    cloud.until(lambda: cloud.pushed("tpu-0"))
    # As from another machine: nothing here knows of it.
    stop = f"bash {shlex.quote(str(cloud.home()))}/launch/worker.sh stop tpu-0 30"
    subprocess.run(
        ["bash", "-c", stop], env=cloud.environment | {"HOME": str(cloud.home().parent)}, check=True
    )
    out, _ = cloud.end(watch, code=75)
    assert "was stopped by somebody" in out and cloud.home().exists()
    watch = cloud.begin("watch", "tpu-0", cloud.config)
    cloud.until(lambda: len(cloud.starts()) == 2)
    cloud.do("stop", "tpu-0")
    cloud.end(watch, code=75)
    assert not cloud.home().exists() and len(cloud.calls("create")) == 1
    end = cloud.steps("tpu-0")[-1] + 10
    cloud.trains(steps=end)
    cloud.do("watch", "tpu-0", cloud.config)
    assert [start["step"] > 0 for start in cloud.starts()] == [False, True, True]
    assert cloud.steps("tpu-0") == list(range(end))


@pytest.mark.long
def test_watch_started_again_finds_the_run_that_is_alive(cloud):
    cloud.trains(steps=40, seconds=0.1)
    watch = cloud.begin("watch", "tpu-0", cloud.config, *HERE, BUCKET)
    cloud.until(lambda: cloud.starts())
    watch.kill()
    watch.communicate()
    looks = len(cloud.calls("ssh"))
    watch = cloud.begin("watch", "tpu-0", cloud.config)
    cloud.until(lambda: len(cloud.calls("ssh")) >= looks + 2)
    (cloud.folder / "deaf").write_text(
        "2"
    )  # as many looks as are waited for; then it answers again
    out, _ = cloud.end(watch)
    assert (
        out.count("is running there already") == 2
        and "tpu-0: unreachable" in out
        and "answers again, and is kept" in out
    )
    assert (
        not cloud.calls("delete")
        and len(cloud.starts()) == 1
        and cloud.steps("tpu-0") == list(range(40))
    )


@pytest.mark.long
def test_a_machine_that_was_overtaken_neither_writes_nor_goes_on_from_its_old_folder(cloud):
    same = (*HERE, BUCKET, "--run=same")
    cloud.trains(steps=1000, seconds=0.1)
    for name in ("old", "new"):
        cloud.do("create", name, *same)
    cloud.do("run", "old", cloud.config)
    cloud.until(lambda: cloud.pushed("same"))
    origin = (cloud.bucket("same") / ".origin").read_text()
    cloud.do("run", "new", cloud.config)
    log = cloud.home("old") / "launched/same/log"
    cloud.until(lambda: (cloud.bucket("same") / ".origin").read_text() != origin)
    cloud.do("stop", "old", "--keep")
    assert "another machine has taken same over" in log.read_text()
    cloud.do("stop", "new")
    steps = cloud.steps("same")
    cloud.do("run", "old", cloud.config)
    cloud.until(lambda: len(cloud.starts()) == 3)
    assert cloud.starts()[2]["step"] == steps[-1] + 1 and list(
        cloud.home("old").glob("runs/same.before.*")
    )


def test_a_bucket_that_does_not_answer_starts_no_run_from_nothing(cloud):
    cloud.do("create", "tpu-0", *HERE, BUCKET)
    (cloud.folder / "bucket_down").touch()
    cloud.do("run", "tpu-0", cloud.config)
    cloud.until(lambda: (cloud.home() / "launched/tpu-0/exit").exists())
    assert (cloud.home() / "launched/tpu-0/exit").read_text() == "1\n" and not cloud.starts()
    assert "503" in (cloud.home() / "launched/tpu-0/log").read_text()


def test_secrets_travel_by_a_file_that_only_its_owner_reads(cloud):
    secrets = cloud.repository / "secret words"
    secrets.write_text("TEACHER_KEY=abc=$(x)='y'==\n# a remark\n")
    secrets.chmod(0o644)
    cloud.do("create", "tpu-0", *HERE)
    _, err = cloud.do("run", "tpu-0", cloud.config, f"--secrets={secrets}", code=2)
    assert "others may read it (mode 644); chmod 600" in err
    secrets.chmod(0o600)
    cloud.do("run", "tpu-0", cloud.config, f"--secrets={secrets}")
    cloud.until(lambda: cloud.starts())
    assert cloud.starts()[0]["environment"]["TEACHER_KEY"] == "abc=$(x)='y'=="
    there = cloud.home() / ".secrets" / "env"
    assert (
        stat.S_IMODE(there.stat().st_mode) == 0o600
        and stat.S_IMODE(there.parent.stat().st_mode) == 0o700
    )
    assert (
        "abc=" not in (cloud.folder / "calls").read_text()
        and not (cloud.home() / "secret words").exists()
    )


def test_a_dry_run_prints_words_and_does_nothing(cloud):
    common = ("tpu-0", *HERE, BUCKET, "--run=my run")
    for words, expected in (
        (
            ("create", *common),
            ["queued-resources describe", "tpu-vm describe", "queued-resources create"],
        ),
        (
            ("watch", "tpu-0", cloud.config, *common[1:]),
            ["queued-resources create", "tpu-vm scp", "tpu-vm ssh"],
        ),
        (
            ("run", "tpu-0", cloud.config, *common[1:], "--config.x=a b'c"),
            ["tpu-vm scp", "tpu-vm ssh"],
        ),
        (("setup", *common), ["tpu-vm scp"]),
        (("status", *common), ["tpu-vm ssh"]),
        (("logs", *common), ["tpu-vm ssh"]),
        (("tensorboard", *common), ["tpu-vm ssh"]),
        (("fetch", *common), ["tpu-vm scp"]),
        (("stop", *common), ["tpu-vm ssh", "queued-resources delete"]),
    ):
        out, err = cloud.do(*words, DRY_RUN="1")
        lines = [shlex.split(line) for line in out.splitlines() if "gcloud" in line]
        printed = " ".join(word for line in lines for word in line)
        assert all(part in printed for part in expected), (words, out)
        assert not err and all("--zone=my-zone1" in line for line in lines if "tpus" in line)
    assert not cloud.calls() and not (cloud.repository / "runs").exists()
    # The printed start, read by two shells, is the words that the trainer would get.
    out, _ = cloud.do("run", "tpu-0", cloud.config, *common[1:], "--config.x=a b'c", DRY_RUN="1")
    command = next(
        word
        for line in out.splitlines()
        for word in shlex.split(line)
        if "worker.sh start" in word.replace("\\", "")
    )
    inner = shlex.split(shlex.split(command.removeprefix("--command="))[2])
    assert inner[2:] == [
        "start",
        "my run",
        "gs://my-bucket/runs of mine",
        "my config's.py",
        "--config.x=a b'c",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "usage: launch/tpu.sh VERB NAME"),
        (("destroy", "tpu-0"), "VERB: create, setup, run"),
        (("create",), "usage: launch/tpu.sh VERB NAME"),
        (("create", "My TPU", *HERE), "My TPU: a slice's name has small letters, digits and -"),
        (("create", "tpu-0", "--zone=my-zone1"), "--type is missing"),
        (("create", "tpu-0", "--type=v6e-4"), "--zone is missing"),
        (
            ("create", "tpu-0", "--type=v6e:2x4", "--zone=my-zone1"),
            "--type=v6e:2x4: expected an accelerator type",
        ),
        (("create", "tpu-0", *HERE, "--sport"), "--sport: unknown option"),
        (("create", "tpu-0", *HERE, "--acelerator=v6e-4"), "--acelerator: unknown option"),
        (("create", "tpu-0", "more", *HERE), "more: one word too many for create"),
        (("run", "tpu-0"), "run needs a config file"),
        (("run", "tpu-0", "none.py"), "none.py: no such config file"),
        (("run", "tpu-0", "outside.py"), "the config file must be in"),
        (
            ("run", "tpu-0", "outside.py", "--bucket=my-bucket"),
            "--bucket=my-bucket: expected gs://BUCKET/DIRECTORY",
        ),
        (("run", "tpu-0", "outside.py", "--run=a/b"), "--run=a/b: expected a name without /"),
        (("run", "tpu-0", "outside.py", "--run=*"), "--run=*: expected a name without /"),
        (("run", "tpu-0", "outside.py", "--send=none"), "--send=none: no such directory"),
        (("run", "tpu-0", "outside.py", "--config.x=a\nb"), "an argument with a line break"),
        (("watch", "tpu-0", "CONFIG", *HERE), "watch needs --bucket"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_called(cloud, words, message):
    (cloud.elsewhere / "outside.py").write_text("")
    _, err = cloud.do(*(cloud.config if word == "CONFIG" else word for word in words), code=2)
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not cloud.calls() and not (cloud.repository / "runs").exists()


def test_weights_beside_the_code_are_not_sent_by_accident(cloud):
    cloud.do("create", "tpu-0", *HERE)
    (cloud.repository / "weights").write_bytes(os.urandom(1_500_000))
    _, err = cloud.do("setup", "tpu-0", code=2, PACK_MB="1")
    assert "packs to over 1 MB; let git ignore what is large" in err and not cloud.calls("scp")
    cloud.do("setup", "tpu-0", PACK_MB="2")
    assert (cloud.home() / "weights").stat().st_size == 1_500_000


def test_files_from_a_bucket_lie_beside_the_code_on_every_worker(cloud):
    there = cloud.folder / "bucket/my-bucket/files/models/policy"
    there.mkdir(parents=True)
    (there / "config.json").write_text("{}")
    cloud.do("create", "tpu-0", "--zone=my-zone1", "--type=v6e-8")
    cloud.do("setup", "tpu-0", "--files=gs://my-bucket/files")
    assert all(
        (cloud.home(worker=number) / "models/policy/config.json").exists() for number in (0, 1)
    )


# ---- what watch must not delete, and what it tries again


def alive(cloud, run, slice="tpu-0"):
    """Whether a run holds its lock."""
    lock = cloud.home(slice) / "launched" / run / "lock"
    return (
        lock.exists()
        and subprocess.run(
            ["flock", "--nonblock", "--shared", str(lock), "true"], check=False
        ).returncode
        != 0
    )


def test_a_slice_on_which_another_run_is_alive_is_left_alone(cloud):
    cloud.trains(steps=10_000, seconds=0.1)
    cloud.do("create", "tpu-0", *HERE, BUCKET)
    cloud.do("run", "tpu-0", cloud.config, "--run=A 1")
    cloud.until(lambda: cloud.starts())
    out, err = cloud.do("watch", "tpu-0", cloud.config, "--run=B", code=2)
    said = [line for line in err.splitlines() if line.startswith("error: A")]
    assert said == [
        "error: A 1 runs on tpu-0, which is left as it is; stop it first: launch/tpu.sh stop tpu-0"
        " --keep --run=A\\ 1"
    ]
    assert out.count("attempt") == 1 and not cloud.calls("delete") and alive(cloud, "A 1")
    # Now B is what was named last: what stops and deletes means neither it nor, silently, A.
    _, err = cloud.do("stop", "tpu-0", code=2)
    assert "A 1 runs on tpu-0" in err and not cloud.calls("delete") and alive(cloud, "A 1")
    # Nor is B started beside it, whoever asks.
    start = shlex.join(
        ["bash", f"{cloud.home()}/launch/worker.sh", "start", "B", "", "my config's.py"]
    )
    there = cloud.environment | {
        "HOME": str(cloud.home().parent),
        "FAKE_WORKER": "0",
        "FAKE_WORKERS": "1",
    }
    there |= {
        "FAKE_VM": str(cloud.home().parent),
        "PATH": f"{cloud.folder / 'bin'}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", start], env=there, capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 3
        and "A 1 runs here; stop it first" in done.stderr
        and len(cloud.starts()) == 1
    )
    cloud.do("stop", "tpu-0", "--run=A 1")
    assert not (cloud.folder / "vms" / "tpu-0").exists()


def test_a_setup_that_fails_on_workers_that_answer_ends_and_deletes_nothing(cloud):
    (cloud.folder / "make_fails").touch()
    out, err = cloud.do("watch", "tpu-0", cloud.config, *HERE, BUCKET, code=1)
    made = cloud.folder / "vms" / "tpu-0" / "w0" / "made"
    assert len(made.read_text().splitlines()) == 3 and "make: *** [setup] Error 1" in err
    assert (
        "error: tpu-0: not started in 3 tries on tpu-0, whose workers answer; what they said is"
        " above" in err
    )
    assert (
        len(cloud.calls("create")) == 1 and not cloud.calls("delete") and "tpu-0 still costs" in out
    )


def test_a_slice_whose_workers_cannot_be_reached_is_made_anew(cloud):
    cloud.do("create", "tpu-0", *HERE, BUCKET)
    (cloud.folder / "unreachable").write_text("tpu-0/w0")
    watch = cloud.begin("watch", "tpu-0", cloud.config)
    cloud.until(lambda: len(cloud.calls("create")) == 2)
    (cloud.folder / "unreachable").unlink()
    out, _ = cloud.end(watch)
    assert (
        "tpu-0: unreachable" in out
        and len(cloud.calls("delete")) == 1
        and cloud.steps("tpu-0") == [0, 1, 2]
    )


def test_stop_deletes_what_was_never_set_up_and_what_no_request_made(cloud):
    cloud.do("create", "tpu-0", *HERE, BUCKET)
    cloud.do("stop", "tpu-0")
    fake_gcloud.make_vm("tpu-0", workers=1)
    (cloud.folder / "vms" / "tpu-0" / "state").write_text("PREEMPTED")
    cloud.do("stop", "tpu-0")
    assert not list((cloud.folder / "vms").iterdir())


def test_what_could_not_be_copied_to_the_bucket_keeps_its_slice(cloud):
    cloud.trains(steps=10, seconds=0.1)
    cloud.do("create", "tpu-0", *HERE, BUCKET)
    cloud.do("run", "tpu-0", cloud.config)
    cloud.until(lambda: cloud.pushed("tpu-0"))
    (cloud.folder / "bucket_down").touch()
    ended = cloud.home() / "launched/tpu-0/exit"
    cloud.until(ended.exists)
    assert ended.read_text() == "1\n"  # the trainer ended well, and its last steps are here only
    _, err = cloud.do("stop", "tpu-0", code=1)
    assert "what came last of tpu-0 is on this machine only" in err and cloud.home().exists()
    (cloud.folder / "bucket_down").unlink()
    cloud.do("watch", "tpu-0", cloud.config, "--delete-after")
    assert cloud.steps("tpu-0") == list(range(10)) and not cloud.home().exists()


def test_a_tree_that_git_does_not_know_is_not_sent_as_an_empty_one(cloud):
    cloud.do("create", "tpu-0", *HERE)
    (cloud.repository / ".git").rename(cloud.elsewhere / ".git")
    _, err = cloud.do("setup", "tpu-0", code=2)
    assert "could not be packed" in err and not cloud.calls("scp")


# ---- a sweep of runs that take the whole slice

SWEEP = """
from scope_jax.sweep.runs import Run

def sweep():
    more = {"seed": 3, "task.name": "arithmetic", "rollout.chat": False}
    more["task.options"] = {"lengths": (2, 3)}
    names = ("one", "two", "three")
    return [Run(f"a b/{name}", "my config's.py", more, {"seed": 3}) for name in names]
"""


def sweep_slice(cloud, *words, code=0, **environment):
    done = subprocess.run(
        ["bash", str(cloud.repository / "launch" / "sweep_slice.sh"), *words],
        cwd=cloud.elsewhere,
        env=cloud.environment | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.long
def test_a_sweep_on_a_slice_of_two_workers(cloud):
    """Three runs, one after another; the first one's slice is refused once, the second one gives
    up; then nothing is left to do."""
    (cloud.repository / "my config's.py").write_text(
        "from scope_jax.configuration import default_config as get_config\n"
    )
    (cloud.repository / "my sweep.py").write_text(SWEEP)
    (cloud.repository / "configs" / "sweeps").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "sweeps" / "one.py", cloud.repository / "configs" / "sweeps")
    cloud.plans("quota", ["ACTIVE"])
    cloud.trains(steps=3, exits={"0": [None, 2, None], "1": [None, 76, None]})
    words = (
        str(cloud.repository / "my sweep.py"),
        "records",
        "tpu-0",
        "--zone=my-zone1",
        "--type=v6e-8",
        BUCKET,
        "--spot",
    )
    said = sweep_slice(cloud, *words, code=1)
    records = cloud.elsewhere / "records" / "a b"
    assert sorted(path.name for path in records.iterdir()) == [
        "one.json",
        "three.json",
        "two.failed.json",
    ]
    reason = json.loads((records / "two.failed.json").read_text())["reason"]
    assert set(reason.split("|")) == {
        "error: exit code 2 was asked for",
        "error: exit code 76 was asked for",
    }
    made = json.loads((records / "one.json").read_text())
    assert (made["name"], made["labels"], made["steps"], made["seconds"]) == (
        "a b/one",
        {"seed": 3},
        3,
        1.5,
    )
    assert made["device"] == "8 x TPU v6 lite" and made["curve"]["reward/mean"] == [0.5] * 3
    assert made["settings"] == {"seed": 3, "task.options.lengths": [2, 3]}
    assert "a b/two: FAILED" in said and "a b/three: done" in said
    # Both workers of each run, with what the sweep file says of it.
    assert [start["worker"] for start in cloud.starts()].count("1") == 3
    for start, run in zip(cloud.starts()[::2], ("one", "two", "three"), strict=True):
        assert start["arguments"] == [
            f"--config=configs/sweeps/one.py:my sweep.py:a b/{run}",
            *(f"--workdir=runs/a b__{run}", "--distributed=auto"),
            f"--config.checkpoint.directory=gs://my-bucket/runs of mine/a b__{run}/checkpoints",
        ]
    said = sweep_slice(cloud, *words[:3], "--delete-after")  # nothing is left but the slice
    assert (
        len(cloud.starts()) == 6
        and "tpu-0: deleted" in said
        and not list((cloud.folder / "vms").iterdir())
    )
    assert "a b/one" in sweep_slice(
        cloud, words[0], "others", *words[2:], "--", "--shard=0/3", DRY_RUN="1"
    )
    assert "--run=x is set by this script" in sweep_slice(cloud, *words, "--run=x", code=2)


# Stands for `python -m scope_jax.sweep.slices`: two runs, and a file for each word about one.
PLAN = """#!/bin/bash
for word do
  case "$word" in
    --records=*) records="${word#*=}" ;;
    --name=*) name="${word##*/}" ;;
    --reason=*) reason="${word#*=}" ;;
  esac
done
mkdir -p "$records"
case "$3" in
  plan) for name in one two; do
      if ! compgen -G "$records/$name.*" > /dev/null; then printf 'a b/%s\\0' "$name"; fi
    done ;;
  failed) echo "$reason" > "$records/$name.failed.json" ;;
  record) exit 2 ;;
esac
"""


def planned(cloud):
    """The words that start a sweep of two runs, each with one attempt."""
    python = cloud.elsewhere / "python"
    python.write_text(PLAN)
    python.chmod(0o755)
    (cloud.repository / "configs" / "sweeps").mkdir(parents=True)
    for name in ("my sweep.py", "configs/sweeps/one.py"):
        (cloud.repository / name).write_text("")
    return str(cloud.repository / "my sweep.py"), "records", "tpu-0", *HERE, BUCKET, "--attempts=1"


def test_only_a_run_that_failed_by_its_own_fault_is_recorded_as_failed(cloud):
    words = planned(cloud)
    # The first run crashes; for the second one it is the storage, and then nothing, but its record
    # cannot be made.
    crash = "TypeError: 'int' object is not callable"
    cloud.trains(steps=1, exits={"0": [crash, 1, None]})
    said = sweep_slice(cloud, *words, code=1, PYTHON="./python")
    records = cloud.elsewhere / "records"
    assert [path.name for path in records.iterdir()] == ["one.failed.json"]
    assert (
        records / "one.failed.json"
    ).read_text() == f"{crash}\n" and f"a b/one: FAILED: {crash}" in said
    assert "error: the run crashed in each of 1 attempts" in said and len(cloud.starts()) == 2
    assert "error: a b/two: given up, not recorded as failed" in said
    said = sweep_slice(cloud, *words, code=1, PYTHON="./python")
    assert "a b/two: finished, and not recorded (see above)" in said and len(cloud.starts()) == 3
    assert [path.name for path in records.iterdir()] == ["one.failed.json"]


def test_a_record_that_cannot_be_written_is_no_bad_input(tmp_path, capsys):
    from scope_jax.sweep.slices import main

    (tmp_path / "sweep.py").write_text(
        "from scope_jax.sweep import Run\n\ndef sweep():\n    return [Run('a', 'c.py')]\n"
    )
    (tmp_path / "records").write_text("a file")
    words = ("failed", f"--sweep={tmp_path}/sweep.py", f"--records={tmp_path}/records")
    assert main((*words, "--name=a", "--reason=x")) == 1 and main((*words, "--name=b")) == 2
    assert capsys.readouterr().err.count("\n") == 2
