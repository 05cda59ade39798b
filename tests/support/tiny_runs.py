"""Tiny runs of the whole program: their configs, their command lines, their environment."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]

# Another number here trains other tiny checkpoints, as another processor would: no test may depend
# on what the tiny policy happens to do.
SEED = int(os.environ.get("SCOPE_JAX_TEST_SEED", "0"))
# Problems with two terms: a prompt is 5 tokens, a solution 10, end token included.
POLICY = {
    "seed": SEED,
    "steps": 300,
    "micro_batches": 1,
    "model.hidden_size": 48,
    "model.num_layers": 2,
    "model.ffn_size": 96,
    "fresh.lengths": (2,),
    "fresh.start": "zero",
    "target.style": "mixed",
    "target.misconception": 0.3,
    "optimizer.learning_rate": 6e-3,
    "optimizer.warmup_steps": 10,
}
PRM = {
    "seed": SEED,
    "steps": 40,
    "batch": 32,
    "micro_batches": 1,
    "fresh.lengths": (2,),
    "target.rollouts.problems": 64,
    "target.rollouts.group": 2,
    "target.rollouts.lengths": (2,),
    "target.rollouts.held_out": 32,
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_steps": 5,
}
RUN = {
    "steps": 3,
    "task.options": {
        "lengths": (2,),
        "ood_lengths": (2,),  # as long as the others: one program less to compile
        "start": "zero",
        "train_size": 64,
        "validation_size": 4,
        "test_size": 8,
        "test_ood_size": 8,
    },
    "loss.teacher_schedule": "constant",  # runs of different lengths are compared
    "rollout.prompts": 8,
    "rollout.group": 4,
    "rollout.prompt_tokens": 5,
    "rollout.new_tokens": 12,
    "optimizer.learning_rate": 5e-4,
    "optimizer.warmup_steps": 0,
    # Adam divides by the size of the gradient: without a larger epsilon, rounding in a gradient
    # near 0 becomes a step.
    "optimizer.eps": 1e-5,
    "training.mini_batches": 1,
    "training.micro_batches": 1,
    "evaluation.problems": 8,
    "evaluation.ood_problems": 8,
    "evaluation.samples": 2,
    "evaluation.rows_at_once": 16,
    "evaluation.prompt_tokens": 5,
    "evaluation.new_tokens": 12,
    "samples.every": 1,
    "samples.per_file": 16,
}


def make_checkpoints(folder: Path) -> dict[str, dict[str, Any]]:
    """A policy that solves some of its problems and a process reward model of its steps, by the
    command line, in `folder`/policy and `folder`/prm; the summaries of both trainings."""
    made = {}
    start = {"start": str(folder / "policy"), "target.rollouts.policy": str(folder / "policy")}
    for name, config, settings in (("policy", "base", POLICY), ("prm", "prm", {**PRM, **start})):
        program = command("supervise", config, folder / name, settings)
        made[name] = json.loads(run_program(program, folder, seconds=1200).stdout.splitlines()[-1])
    return made


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Where the tiny checkpoints are, and a folder for runs with them. `policy` is the teacher too
    (it corrects itself)."""

    folder: Path
    policy: Path
    prm: Path
    summaries: dict[str, dict[str, Any]]

    def settings(self, name: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a tiny run changes in a method's config."""
        own = {"task.data": str(self.folder / "tfds"), "models.policy": str(self.policy)}
        if name == "scope":
            own |= {
                "models.teacher": str(self.policy),
                "models.prm": str(self.prm),
                "method.select.rule": "all",
            }
        return {**RUN, **own, **(more or {})}

    def config(self, name: str, more: Mapping[str, Any] | None = None) -> ConfigDict:
        """A method's config made tiny, for a run in this process."""
        return tiny_config(name, self.settings(name, more))

    def program(
        self,
        name: str,
        workdir: Path,
        more: Mapping[str, Any] | None = None,
        flags: tuple[str, ...] = (),
    ) -> list[str]:
        """The command line of the same run."""
        return command("train", name, workdir, self.settings(name, more), flags)


def tiny_config(name: str, settings: Mapping[str, Any]) -> ConfigDict:
    """The config of a method (or of a checkpoint: base, teacher, prm) on signed terms, with
    `settings` (dotted names)."""
    from scope_jax.configs import checkpoints, run
    from scope_jax.configuration import TrainConfig
    from scope_jax.configuration.schema import set_value
    from scope_jax.configuration.supervision import SuperviseConfig

    words, made = f"{name},arithmetic", name in ("base", "teacher", "prm")
    config = checkpoints.get_config(words) if made else run.get_config(words)
    for key, value in settings.items():
        set_value(SuperviseConfig if made else TrainConfig, config, key, value)
    return config


def command(
    entry: str, name: str, workdir: Path, settings: Mapping[str, Any], flags: tuple[str, ...] = ()
) -> list[str]:
    """`python -m scope_jax.<entry>` with a config file of its own beside the workdir, and the
    workdir."""
    file = Path(workdir).parent / f"{Path(workdir).name}_config.py"
    body = f"def get_config():\n    return tiny_config({name!r}, {dict(settings)!r})\n"
    file.write_text(f"from support.tiny_runs import tiny_config\n\n\n{body}")
    return [
        sys.executable,
        "-m",
        f"scope_jax.{entry}",
        f"--config={file}",
        f"--workdir={workdir}",
        *flags,
    ]


def environment(folder: Path, devices: int = 1) -> dict[str, str]:
    """The environment of a program: `devices` CPU devices, compiled programs shared with others
    (in `folder` where nobody says where)."""
    flags = re.sub(
        r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
    )
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }


def run_program(
    arguments: list[str],
    folder: Path,
    *,
    code: int = 0,
    seconds: float = 240.0,
    devices: int = 1,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its exit code must be `code`."""
    done = subprocess.run(
        arguments,
        env=environment(folder, devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == code, (
        f"exit code {done.returncode}, expected {code}\n"
        f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done
