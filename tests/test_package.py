"""The package as it is installed: what the wheel holds, the configs in it, the command `scope-jax`,
and the oldest versions that it says it works with."""

import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from support.tiny_runs import ROOT, Tiny, command, environment

from scope_jax.__main__ import COMMANDS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked: what pip would put into site-packages. Built from a copy, because a
    build leaves its folders in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    without = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("scope_jax", "configs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=without)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(copy)]
    subprocess.run(build + options, check=True, timeout=240)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder / "site")
    return folder / "site"


def outside(site: Path, folder: Path) -> dict[str, str]:
    """The environment of a program that finds the unpacked wheel and no checkout."""
    path = os.pathsep.join([str(site), str(ROOT / "tests")])
    return {**environment(folder), "PYTHONPATH": path}


def test_the_wheel_holds_every_file_of_the_package_and_the_configs(site):
    def files(root: Path, below: str) -> set[str]:
        return {
            str(Path(below) / path.relative_to(root))
            for path in root.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    wheel = {name for name in files(site, "") if ".dist-info/" not in name}
    package = {name for name in files(ROOT / "scope_jax", "scope_jax") if "/configs/" not in name}
    assert wheel == package | files(ROOT / "configs", "scope_jax/configs")
    assert {"scope_jax/configs/run.py", "scope_jax/configs/sweeps/one.py"} <= wheel
    assert not [path for path in site.rglob("*.py") if str(ROOT) in path.read_text()]


def test_the_wheel_works_without_a_checkout(site, tmp_path):
    program = """
import importlib.resources, pathlib, sys
import scope_jax.configs.run as config
from scope_jax.configs.sweeps import confirmation
from scope_jax.configuration.files import read_config
assert read_config("scope,arithmetic", "run.py").models.prm and confirmation.sweep()
for place in (config.__file__, importlib.resources.files("scope_jax.configs")):
    assert pathlib.Path(place).is_relative_to(sys.argv[1]), place
"""
    command = [sys.executable, "-c", program, str(site)]
    subprocess.run(command, cwd=tmp_path, env=outside(site, tmp_path), check=True, timeout=120)


@pytest.mark.long
def test_the_wheel_trains(site, checkpoints: Tiny, tmp_path):
    workdir = tmp_path / "run"
    train = command("train", "scope", workdir, checkpoints.settings("scope", {"steps": 1}))
    program = [sys.executable, "-m", "scope_jax", "train", *train[3:]]
    subprocess.run(program, cwd=tmp_path, env=outside(site, tmp_path), check=True, timeout=300)
    assert (workdir / "metrics.jsonl").is_file() and (workdir / "report.html").is_file()


def test_the_configs_are_those_beside_the_package():
    """Also where another checkout is the one that is installed."""
    place = Path(str(importlib.resources.files("scope_jax.configs")))
    assert place.resolve() == ROOT / "configs"


# ---- the command


def scope_jax(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scope_jax", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


def test_help_lists_every_command_with_a_line_and_does_not_wait_for_jax():
    program = """
import sys
from scope_jax.__main__ import main
sys.argv = ["scope-jax", "--help"]
assert main() == 0 and not {"jax", "numpy", "absl"} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == scope_jax().stdout
    listed = dict(re.findall(r"^  ([a-z-]+) +(\S.+)$", done.stdout, flags=re.M))
    assert tuple(listed) == COMMANDS
    assert listed["evaluate"] == "Evaluate a checkpoint on a task's held-out problems."
    assert not [line for line in listed.values() if line.endswith("...")]
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_an_unknown_command_is_named_with_the_nearest():
    done = scope_jax("evaluate_sweets", "--model=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown command 'evaluate_sweets'; the nearest known one is evaluate-suites\n"
    )


@pytest.mark.parametrize("name", ["demo", "evaluate-prm", "sweep"])
def test_a_command_gets_its_arguments(name):
    done = scope_jax(name, "--help")
    assert done.returncode == 0
    assert f"python -m scope_jax.{name.replace('-', '_')}" in done.stdout


def test_exit_codes_are_those_of_the_module():
    done = scope_jax("train", "--workdir=x")
    assert done.returncode == 2 and done.stderr.startswith("error: --config is missing")


# ---- versions


def test_the_oldest_versions_are_the_bounds_of_the_project():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    oldest = {_plain(name): Version(version) for name, version in pins.items()}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        pinned = oldest[_plain(requirement.name)]
        (bound,) = requirement.specifier
        assert requirement.specifier.contains(pinned), line
        # The bound itself, or its first release in existence: 0.10 is 0.10.0 as well as 0.10.1.
        assert str(pinned).startswith(bound.version), line


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
