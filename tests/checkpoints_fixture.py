"""The tiny checkpoints that the tests of the whole program share, made once.

A test module gets the fixture by `pytest_plugins = ("checkpoints_fixture",)`.
"""

import json

import pytest
from tiny_runs import POLICY, PRM, Tiny, command, run_program


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A policy that solves some of its problems, and a process reward model of its steps, by the command line."""
    folder = tmp_path_factory.mktemp("tiny")
    made = {}
    for name, config, settings in (
        ("policy", "base", POLICY),
        ("prm", "prm", {**PRM, "start": str(folder / "policy"), "rollouts.policy": str(folder / "policy")}),
    ):
        done = run_program(command("supervised", config, folder / name, settings), folder)
        made[name] = json.loads(done.stdout.splitlines()[-1])
    return Tiny(folder, folder / "policy", folder / "prm", made)
