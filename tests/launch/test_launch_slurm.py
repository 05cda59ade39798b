"""launch/slurm.sh, run by bash against srun, squeue and scontrol of our own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Starts the command once for each node, hands SIGTERM on, and returns the highest exit code.
SRUN = """#!{python}
import json, os, signal, subprocess, sys
words = sys.argv[1:]
split = next(at for at, word in enumerate(words) if not word.startswith("-"))
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(["srun", *words[:split]]) + "\\n")
nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
tasks = [
    subprocess.Popen(words[split:], env=os.environ | {"SLURM_PROCID": str(number)})
    for number in range(nodes)
]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""
# squeue says $STATE, scontrol ends with $SCONTROL_CODE.
SLURM = """#!{python}
import json, os, pathlib, sys
name = pathlib.Path(sys.argv[0]).name
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "squeue":
    print(os.environ.get("STATE", "RUNNING"))
sys.exit(int(os.environ.get("SCONTROL_CODE", "0")) if name == "scontrol" else 0)
"""
# The trainer: ends with $CODE at once or, where that is "wait", with 75 half a second after
# SIGTERM, as one that writes a checkpoint first.
TRAINER = """#!{python}
import json, os, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
names = ("JAX_LOCAL_DEVICE_IDS", "PYTHONUNBUFFERED", "SLURM_PROCID")
found = {name: os.environ.get(name) for name in names}
found |= {"arguments": sys.argv[1:], "cwd": os.getcwd()}
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(["trainer", found]) + "\\n")
if os.environ["CODE"] != "wait":
    sys.exit(int(os.environ["CODE"]))
deadline = time.monotonic() + 20
while not told and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.5)
sys.exit(75 if told else 99)
"""


@pytest.fixture
def job(tmp_path):
    """A repository with a space in its name, the programs above, and a way to start the script as
    Slurm does: a copy of it that lies elsewhere."""
    programs, repository = tmp_path / "bin", tmp_path / "my repository"
    (repository / "launch").mkdir(parents=True)
    (repository / ".venv" / "bin").mkdir(parents=True)
    programs.mkdir()
    shutil.copy(ROOT / "launch" / "slurm.sh", repository / "launch")
    shutil.copy(ROOT / "launch" / "slurm.sh", tmp_path / "slurm_script")
    for path, text in (
        (programs / "srun", SRUN),
        (programs / "squeue", SLURM),
        (programs / "scontrol", SLURM),
        (repository / ".venv" / "bin" / "python", TRAINER),
    ):
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(0o755)

    def start(*words, **environment):
        variables = {name: value for name, value in os.environ.items() if "SLURM" not in name}
        variables |= {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "SLURM_JOB_ID": "4711",
            "SLURM_SUBMIT_DIR": str(repository),
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_GPUS_ON_NODE": "8",
            "CODE": "0",
        }
        variables.pop("PYTHON", None)
        return subprocess.Popen(
            ["bash", str(tmp_path / "slurm_script"), *words],
            cwd=tmp_path,
            env=variables | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def calls(program):
        path = tmp_path / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [words[1:] for words in map(json.loads, lines) if words[0] == program]

    return repository, start, calls


def end(process):
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_node_runs_the_trainer_with_the_words_that_were_given(job):
    repository, start, calls = job
    words = ["--config.seed=1", "--config.x=a 'b' \"c\" $HOME", ""]
    assert end(start("my config.py:scope", "my run's", *words))[0] == 0
    ((trainer,),) = calls("trainer")
    assert trainer == {
        "arguments": [
            "-m",
            "scope_jax.train",
            "--config=my config.py:scope",
            "--workdir=my run's",
            *words,
        ],
        "cwd": str(repository),
        "JAX_LOCAL_DEVICE_IDS": None,
        "PYTHONUNBUFFERED": "1",
        "SLURM_PROCID": "0",
    }
    assert calls("scontrol") == []


def test_of_several_nodes_each_runs_one_process_with_all_of_its_gpus(job):
    _, start, calls = job
    process = start("scope", "run", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="4")
    assert end(process)[0] == 0
    tasks = [task for (task,) in calls("trainer")]
    assert sorted(task["SLURM_PROCID"] for task in tasks) == ["0", "1"]
    for task in tasks:
        assert task["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
        assert task["arguments"][-1] == "--distributed=auto"
    assert calls("srun") == [
        [
            "--export=ALL",
            "--nodes=2",
            "--ntasks=2",
            "--ntasks-per-node=1",
            "--cpu-bind=none",
            "--kill-on-bad-exit=0",
        ]
    ]


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_before_the_time_limit_it_stops_with_a_checkpoint_and_is_queued_again(job, nodes):
    _, start, calls = job
    process = start("scope", "run", CODE="wait", SLURM_JOB_NUM_NODES=nodes)
    wait_for(lambda: len(calls("trainer")) == int(nodes))
    # --signal=B: means that the script is told, and nobody else.
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 75 and "queued again" in said
    assert calls("scontrol") == [["requeue", "4711"]]


def test_a_second_signal_does_not_cut_the_checkpoint_short(job):
    _, start, calls = job
    process = start("scope", "run", CODE="wait")
    wait_for(lambda: calls("trainer"))
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert end(process)[0] == 75
    assert calls("scontrol") == [["requeue", "4711"]]


def test_what_is_stopped_for_good_is_not_queued_again(job):
    _, start, calls = job
    process = start("scope", "run", CODE="wait")
    wait_for(lambda: calls("trainer"))
    process.send_signal(signal.SIGUSR1)
    assert end(process)[0] == 75
    assert calls("scontrol") == []


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_cancelled_job_stays_cancelled(job, state):
    _, start, calls = job
    code, said = end(start("scope", "run", CODE="75", STATE=state))
    assert code == 75 and "not queued again" in said and (state or "unknown") in said
    assert calls("scontrol") == []


@pytest.mark.parametrize("ended", [0, 1, 2, 76, 137])
def test_other_exit_codes_are_those_of_the_job(job, ended):
    _, start, calls = job
    code, said = end(start("scope", "run", CODE=str(ended)))
    assert code == ended and f"exit code {ended}" in said
    assert calls("scontrol") == []


def test_a_job_that_cannot_be_queued_again_says_so(job):
    _, start, _ = job
    code, said = end(start("scope", "run", CODE="75", SCONTROL_CODE="1"))
    assert code == 75 and "error: the job could not be queued again" in said


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["scope"], {}, "usage: sbatch"),
        (["--config=scope", "run"], {}, "usage: sbatch"),
        (["scope", "--config.seed=1"], {}, "usage: sbatch"),
        (["scope", "run"], {"SLURM_JOB_ID": ""}, "not a job of Slurm"),
        (["scope", "run"], {"SLURM_SUBMIT_DIR": "/"}, "/ is not the repository"),
        (["scope", "run"], {"SLURM_GPUS_ON_NODE": ""}, "the job has no GPUs"),
        (["scope", "run"], {"PYTHON": "no-such-python"}, "no-such-python is missing"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(job, words, environment, expected):
    _, start, calls = job
    code, said = end(start(*words, **environment))
    assert code == 2 and expected in said and said.count("\n") == 1
    assert calls("srun") == []


def test_what_slurm_is_asked_for():
    text = (ROOT / "launch" / "slurm.sh").read_text()
    options = re.findall(r"^#SBATCH (\S+)$", text, flags=re.M)
    assert options == [
        "--job-name=scope_jax",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=32",
        "--time=24:00:00",
        "--signal=B:TERM@600",
        "--requeue",
        "--open-mode=append",
    ]
    # sbatch reads them up to the first command only.
    assert text.index("#SBATCH --open-mode") < text.index("set -euo")


@pytest.mark.parametrize(("ids", "seen"), [("0,1,2,3", "0,1,2,3"), (None, "0")])
def test_jax_sees_the_gpus_that_the_script_names_and_one_without(ids, seen):
    # What a task finds that srun has started; JAX joins a cluster of one process.
    task = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    environment = os.environ | task | {"JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_LOCAL_DEVICE_IDS", None)
    if ids is not None:
        environment["JAX_LOCAL_DEVICE_IDS"] = ids
    code = (
        "import jax; from scope_jax.devices.hosts import connect; connect('auto');"
        "print(jax.process_count(), jax.config.read('jax_cuda_visible_devices'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["1", seen], done.stderr
