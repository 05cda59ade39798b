"""launch/Dockerfile, launch/skypilot.yaml and launch/jobset.yaml: their shell lines are run, their
fields compared with what the programs that read them publish."""

import fnmatch
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
# Writes down how it was called.
PROGRAM = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("CODE", "0")))
"""


def program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PROGRAM.replace("{python}", sys.executable))
    path.chmod(0o755)


def called(folder):
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def extras():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


# ---- the image


def instructions():
    """[(instruction, the rest)] of the Dockerfile, continued lines joined."""
    text = (LAUNCH / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name):
    return [rest for instruction, rest in instructions() if instruction == name]


def sent(path):
    """Whether .dockerignore lets a path go to the builder: the last pattern that matches it or a
    folder above it decides."""
    parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line.startswith("#") or not line:
            continue
        if any(
            # As Docker: a star matches no slash, ** any number of folders.
            (pattern.startswith("**/") and fnmatch.fnmatch(Path(one).name, pattern[3:]))
            or ("/" not in one and fnmatch.fnmatch(one, pattern))
            for one in parents
        ):
            kept = line.startswith("!")
    return kept


def test_the_image_has_a_pinned_base_another_user_than_root_and_the_command():
    assert of("FROM") == ["python:${PYTHON}-slim-bookworm"]
    assert of("ARG") == ["PYTHON=3.12", "DEVICE=cpu", "EXTRAS="]
    assert of("USER") == ["scope"] and of("WORKDIR")[-1] == "/scope"
    # As a list: process 1 is the program, no shell that keeps SIGTERM to itself.
    assert json.loads(of("ENTRYPOINT")[0]) == ["scope-jax"]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {
        "scope-jax": "scope_jax.__main__:main"
    }
    assert "latest" not in (LAUNCH / "Dockerfile").read_text()
    # A build argument would stay readable in the image.
    assert not re.search(r"(?i)(key|token|secret|password)\s*=", "\n".join(of("ARG") + of("ENV")))


def test_what_the_image_copies_is_there_and_is_sent_to_the_builder():
    sources = [word for copy in of("COPY") for word in copy.split()[:-1]]
    assert sources == ["pyproject.toml", "constraints.txt", "README.md", "LICENSE"] + [
        "scope_jax",
        "configs",
    ]
    for source in sources:
        assert (ROOT / source).exists() and sent(source), source
    assert sent("scope_jax/train.py") and sent("configs/sweeps/common.py")
    unsent = [".env", ".secrets/env", ".git/config", "models/x", "data/x", "runs/x", "launch/x"]
    unsent += ["scope_jax/__pycache__/train.pyc", ".venv/bin/python"]
    assert [path for path in unsent if sent(path)] == []


@pytest.mark.parametrize(
    ("device", "more", "expected"),
    [
        # pip takes no empty brackets.
        ("cpu", "", "."),
        ("cpu", "gcs", ".[gcs]"),
        ("cuda", "", ".[cuda]"),
        ("tpu", "gcs,gym", ".[tpu,gcs,gym]"),
    ],
)
def test_the_image_installs_the_extra_of_its_device(tmp_path, device, more, expected):
    assert set(re.findall(r"\w+", expected)) <= set(extras())
    install = next(run for run in of("RUN") if "DEVICE" in run)
    assert install.startswith("--mount=type=cache,target=/var/cache/pip ")
    program(tmp_path / "bin" / "pip")
    done = build(tmp_path, install, DEVICE=device, EXTRAS=more)
    assert done.returncode == 0, done.stderr
    pip = ["pip", "install", "--disable-pip-version-check", "-c", "constraints.txt"]
    assert called(tmp_path) == [[*pip, expected]]


@pytest.mark.parametrize("device", ["gpu", "", "cuda tpu"])
def test_an_unknown_device_ends_the_build(tmp_path, device):
    program(tmp_path / "bin" / "pip")
    done = build(tmp_path, next(run for run in of("RUN") if "DEVICE" in run), DEVICE=device)
    assert (done.returncode, called(tmp_path)) == (2, [])
    assert done.stderr == f"error: DEVICE={device}: expected cpu, cuda or tpu\n"


def build(folder, command, **arguments):
    """What the builder runs for a RUN instruction."""
    return subprocess.run(
        ["sh", "-c", re.sub(r"^(--\S+\s+)*", "", command)],
        env={
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(folder / "calls"),
            "EXTRAS": "",
        }
        | arguments,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- SkyPilot

# Of its schema (sky/utils/schemas.py): unknown keys of a task and of its resources are refused.
TASK_KEYS = {"name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
RESOURCE_KEYS = {"infra", "accelerators", "use_spot", "disk_size", "job_recovery", "any_of"}


def task():
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


def test_the_fields_of_the_task_are_those_of_skypilot():
    told = task()
    assert set(told) == TASK_KEYS and set(told["resources"]) <= RESOURCE_KEYS
    assert re.fullmatch(r"[\w-]+:\d+", told["resources"]["accelerators"])
    assert told["resources"]["use_spot"] is True and told["workdir"] == "."
    recovery = told["resources"]["job_recovery"]
    assert recovery == {"recover_on_exit_codes": [75], "max_restarts_on_errors": 3}
    assert told["file_mounts"] == {"/runs": {"source": "${BUCKET}", "mode": "MOUNT_CACHED"}}
    # Where there is none, the variable would be one that has to be given.
    assert all(isinstance(value, str) and value for value in told["envs"].values())
    assert set(told["envs"]["EXTRAS"].split(",")) <= set(extras())


def sky(folder, part, **environment):
    """`setup` or `run` of the task, as bash runs it in the synced working directory."""
    for name in ("run_local.sh", "worker.sh"):
        program(folder / "work dir" / "launch" / name)
    told = task()
    variables = {
        "PATH": os.environ["PATH"],
        "CALLS": str(folder / "calls"),
        "SKYPILOT_NODE_IPS": "10.0.0.1",
        "SKYPILOT_NODE_RANK": "0",
    }
    return subprocess.run(
        ["bash", "-c", told[part]],
        cwd=folder / "work dir",
        env=variables | told["envs"] | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_one_host_runs_in_the_mounted_bucket(tmp_path):
    assert sky(tmp_path, "setup").returncode == 0
    assert sky(tmp_path, "run").returncode == 0
    assert called(tmp_path) == [
        ["worker.sh", "setup", "", "cuda,gcs"],
        ["run_local.sh", "scope,arithmetic", "/runs/scope", "--config.seed=0"],
    ]


def test_words_reach_the_trainer_as_they_are_and_its_exit_code_skypilot(tmp_path):
    lines = ["--config.seed=1", "--config.x=a 'b' \"c\" $HOME *"]
    given = {"OVERRIDES": "\n" + "\n\n".join(lines) + "\n", "RUN": "my run", "CONFIG": "x's.py:a b"}
    assert sky(tmp_path, "run", CODE="75", **given).returncode == 75
    assert called(tmp_path) == [["run_local.sh", "x's.py:a b", "/runs/my run", *lines]]


@pytest.mark.parametrize(("rank", "workdir"), [("0", "/runs/scope"), ("2", "runs/scope")])
def test_several_hosts_find_each_other_and_write_checkpoints_to_the_bucket(tmp_path, rank, workdir):
    hosts = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3", "SKYPILOT_NODE_RANK": rank}
    assert sky(tmp_path, "run", **hosts).returncode == 0
    assert called(tmp_path)[0][2:] == [
        workdir,
        "--config.seed=0",
        f"--distributed=10.0.0.1:9876/3/{rank}",
        "--config.checkpoint.directory=gs://my-bucket/checkpoints/scope",
    ]
    refused = sky(tmp_path, "run", BUCKET="s3://b", **hosts)
    assert refused.returncode == 2 and "several hosts need gs://" in refused.stderr
    assert len(called(tmp_path)) == 1


# ---- JobSet


def jobset(kind):
    """launch/jobset.yaml as it is (tpu), or as the command in its head makes it (gpu)."""
    text = (LAUNCH / "jobset.yaml").read_text()
    if kind == "gpu":
        (command,) = re.findall(r"^#   (sed .*?) launch/jobset\.yaml", text, flags=re.M)
        text = subprocess.run(
            shlex.split(command), input=text, capture_output=True, text=True, check=True
        ).stdout
    return yaml.safe_load(text)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_a_failed_job_is_started_again_by_its_exit_code(kind):
    told = jobset(kind)
    assert (told["apiVersion"], told["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(told["spec"]) == {"network", "failurePolicy", "replicatedJobs"}
    (job,) = told["spec"]["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"} and job["replicas"] == 1
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    # A Job with a podFailurePolicy must have this; with a backoff it would go on with fewer hosts.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    (trainer,) = pod["containers"]
    rules = job["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob"] * 3
    for rule, code in zip(rules[:2], (2, 75), strict=True):
        assert rule["onExitCodes"] == {
            "containerName": trainer["name"],
            "operator": "In",
            "values": [code],
        }
    assert rules[2]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    policy = told["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 10 and policy["restartStrategy"] == "BlockingRecreate"
    for rule in policy["rules"]:
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])

    def action(reason, message):
        """The first rule that matches, as JobSet reads them; none: a restart that counts."""
        for rule in policy["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(
                re.search(pattern, message) for pattern in patterns
            ):
                return rule["action"]
        return "RestartJobSet"

    # What Kubernetes says of a Job that a pod of it has failed by a rule.
    said = "Container trainer for pod default/scope-train-hosts-0-1-x failed with exit code"
    for code, index, expected in (
        (2, 0, "FailJobSet"),
        (75, 1, "RestartJobSetAndIgnoreMaxRestarts"),
    ):
        message = f"{said} {code} matching FailJob rule at index {index}"
        assert action("PodFailurePolicy", message) == expected
    gone = "Pod default/x has condition DisruptionTarget matching FailJob rule at index 2"
    assert action("PodFailurePolicy", gone) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action("BackoffLimitExceeded", "Job has reached the backoff limit") == "RestartJobSet"


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_the_pods_find_each_other_and_share_a_volume(kind):
    told = jobset(kind)
    name, network = told["metadata"]["name"], told["spec"]["network"]
    (replicated,) = told["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (trainer,) = pod["containers"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] == 4
    assert network == {"enableDNSHostnames": True, "subdomain": "scope-train"}
    common = ["train", "--config=scope,arithmetic", "--workdir=runs/scope-train"]
    address = f"{name}-{replicated['name']}-0-0.{network['subdomain']}:9876"
    distributed = {"tpu": "auto", "gpu": f"{address}/{job['completions']}/$(JOB_COMPLETION_INDEX)"}
    assert trainer["args"] == [*common, f"--distributed={distributed[kind]}"]
    # The entry point is the image's.
    assert "command" not in trainer and not trainer["image"].endswith(":latest")
    assert trainer["image"].endswith({"tpu": ":tpu", "gpu": ":cuda"}[kind])
    assert [mount["name"] for mount in trainer["volumeMounts"]] == [
        volume["name"] for volume in pod["volumes"]
    ]
    assert trainer["volumeMounts"][0]["mountPath"] == of("WORKDIR")[-1]
    (uid,) = re.findall(r"--uid (\d+)", of("RUN")[0])
    assert pod["securityContext"] == {"runAsUser": int(uid), "fsGroup": int(uid)}


def test_the_tpu_pods_are_the_hosts_of_one_slice():
    told = jobset("tpu")
    job = told["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert told["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    topology = pod["nodeSelector"].pop("cloud.google.com/gke-tpu-topology")
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice"}
    limits = pod["containers"][0]["resources"]["limits"]
    chips = math.prod(int(side) for side in topology.split("x"))
    assert limits == {"google.com/tpu": 4} and chips == job["parallelism"] * 4


def test_the_gpu_pods_ask_for_gpus():
    told = jobset("gpu")
    pod = told["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert "tpu" not in json.dumps(told)


@pytest.mark.parametrize("name", ["Dockerfile", "slurm.sh", "skypilot.yaml", "jobset.yaml"])
def test_each_file_says_that_it_has_not_been_tried_on_the_real_thing(name):
    head = "".join((LAUNCH / name).read_text().split("\n\n")[0])
    assert re.search(r"^# (.*\. )?Not (run|built)\b.*: docs/launching\.md", head, flags=re.M)
