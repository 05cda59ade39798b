"""Correct failed rollouts of any trainer at their first wrong step, for training.

    python -m scope_jax.salvage rollouts.jsonl --out=DIR --prm=DIR --teacher=DIR --policy=DIR

In: JSON lines with a prompt, a completion and a reward, as verl, TRL, prime-rl, vLLM or you log
them. Out: DIR/mixed.jsonl (rollouts with the owner of every token), DIR/pairs.jsonl (for TRL's
DPOTrainer), DIR/steps.jsonl (for its PRMTrainer), DIR/outcomes.jsonl (what became of every row)
and DIR/summary.json. Teacher and policy may be addresses of OpenAI-compatible servers. Without
--policy nothing is verified. The same command goes on with a salvage that was stopped.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from scope_jax import cli, hub
from scope_jax.devices.mesh import make_mesh, use_cpu_cores
from scope_jax.run import names_of_run
from scope_jax.salvage.run import salvage
from scope_jax.salvage.settings import TASKS, Settings
from scope_jax.salvage.summary import said

FLAGS = (
    cli.Flag("rollouts", "JSON lines, one rollout each; or the first word", required=True),
    cli.Flag("out", "folder to write", required=True),
    cli.Flag("prm", "directory of the process reward model that finds the first wrong step"),
    cli.Flag(
        "teacher",
        "who corrects it: a model's directory, an address, reference, program, self, module:name",
        required=True,
    ),
    cli.Flag("policy", "who goes on: a model's directory, or an address; none: no tail"),
    cli.Flag("tokenizer", "directory of the tokenizer of rows (default: the policy's)"),
    cli.Flag(
        "fields",
        "verl, trl, traces, prime-rl, vllm, plain; and role=field for single ones",
        [],
        list,
    ),
    cli.Flag("right", "a rollout with this reward or more is right", 1.0, float),
    cli.Flag("task", "steps, answers and verifier of the problems", "math", words=TASKS),
    cli.Flag("separator", "of math: what closes a step (default: a blank line)", ""),
    cli.Flag("boundary", "of math: sentences, numbered_steps, lines, or a pattern", ""),
    cli.Flag("chat", "problems in the chat template", "auto", words=("auto", "on", "off")),
    cli.Flag("system", "system turn of problems (default: the task's)"),
    cli.Flag("prompt_tokens", "longest prompt", 1024, int),
    cli.Flag("new_tokens", "longest completion, tails included", 2048, int),
    cli.Flag("localiser", "prm, likelihood, oracle, monte_carlo, function, or module:name", "prm"),
    cli.Flag("checker", "of function: module:function, which names the first wrong step"),
    cli.Flag("prm_format", "auto, qwen, math_shepherd or skywork", "auto"),
    cli.Flag("threshold", "a step with a score below it is wrong", 0.5, float),
    cli.Flag("continuations", "of monte_carlo", 4, int),
    cli.Flag("good_steps", "steps before the error that a row must have", 1, int),
    cli.Flag(
        "template",
        "what the teacher is shown",
        "auto",
        words=("auto", "continue", "wrong_step", "wrong_step_and_answer"),
    ),
    cli.Flag("step_tokens", "longest step of the teacher", 256, int),
    cli.Flag("style", "of --teacher=program", ""),
    cli.Flag("teacher_api", "of an address", "chat", words=("chat", "completions")),
    cli.Flag("teacher_model", "its name there"),
    cli.Flag("teacher_key_env", "environment variable with its key"),
    cli.Flag(
        "teacher_tokens", "longest reply, thoughts included (default: --step-tokens)", None, int
    ),
    cli.Flag("teacher_extra", "JSON object with more fields of its requests"),
    cli.Flag("policy_model", "its name at an address"),
    cli.Flag("policy_key_env", "environment variable with its key"),
    cli.Flag("temperature", "of the tails; 0 is greedy", 1.0, float),
    cli.Flag("tails", "tries per row", 1, int),
    cli.Flag("verify", "task, math, or module:function", "task"),
    cli.Flag("pairs", "what chosen and rejected hold", "steps", words=("steps", "solutions")),
    cli.Flag("right_steps", "write the steps of right rollouts as good ones", False, bool),
    cli.Flag("rows", "failed rows of a chunk, worked on together", 64, int),
    cli.Flag("seed", "of the tails", 0, int),
    cli.Flag("dtype", "of the parameters", "float32", words=("float32", "bfloat16")),
    cli.Flag("request_seconds", "deadline of one request to an address", 120.0, float),
    cli.Flag("concurrency", "requests to an address at once", 16, int),
    cli.Flag("fsdp", "devices over which the parameters are split", 1, int),
    cli.Flag("tensor", "devices over which heads and feed-forward are split", 1, int),
)


def arguments_of(words: Sequence[str]) -> list[str]:
    """The arguments with the file of rollouts as a flag, where it is the first word."""
    given = list(words)
    if given and not given[0].startswith("-"):
        given[0] = f"--rollouts={given[0]}"
    return given


def command(values: Any) -> str:
    """The command line's `salvage`; returns what is printed."""
    given = vars(values)
    names = {field.name for field in dataclasses.fields(Settings)}
    chosen = {name: value for name, value in given.items() if name in names}
    settings = Settings(**{**chosen, "fields": tuple(values.fields)})
    local = [settings.policy, settings.teacher, settings.prm]
    with hub.pinned(names_of_run(settings.out)):
        use_cpu_cores(max(map(cli.weights_of, local)))
    return said(salvage(settings, make_mesh(-1, values.fsdp, values.tensor)))


if __name__ == "__main__":
    cli.program(command, FLAGS, arguments_of(sys.argv[1:]))
