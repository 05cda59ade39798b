"""The notebooks are what their sources say, short, on public functions, and they run."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path.stem: path for path in sorted((ROOT / "colab").glob("scope_*.py"))}
# What each calls, among other things.
CALLED = {
    "scope_demo": {"generate", "cut", "first_error", "train"},
    "scope_real_model": {"generate", "supervise", "train", "smollm2", "read_sample_file"},
}


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("colab_build", ROOT / "colab" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cells_by_hand(build):
    source = "# for tools\n# %% [markdown]\n# Title\n#\n# text\n\n\n# %%\nx = 1\n\ny = 2\n"
    assert build.cells(source) == [("markdown", "Title\n\ntext"), ("code", "x = 1\n\ny = 2")]
    with pytest.raises(ValueError, match="before the first cell"):
        build.cells("x = 1\n# %%\n")
    with pytest.raises(ValueError, match="no comment"):
        build.cells("# %% [markdown]\ntext\n")
    with pytest.raises(ValueError, match="unknown kind"):
        build.cells("# %% [raw]\n# text\n")


@pytest.mark.parametrize("name", SOURCES)
def test_the_notebook_is_what_the_source_makes(build, name):
    source = SOURCES[name]
    made = build.notebook(source.read_text())
    assert source.with_suffix(".ipynb").read_text() == made, "run python colab/build.py"
    cells = json.loads(made)["cells"]
    assert [cell["id"] for cell in cells] == [f"cell-{n}" for n in range(len(cells))]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_short_and_uses_public_functions_only(build, name):
    cells = build.cells(SOURCES[name].read_text())
    code = "\n".join(text for kind, text in cells if kind == "code")
    lines = [line for line in code.split("\n") if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 90
    tree = ast.parse(code)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {
        alias.name.rpartition(".")[2]
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom)
        for alias in n.names
    }
    assert CALLED[name] <= names
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "folder", "said"),
    [
        ("scope_demo", "scope_demo_smoke", r"^  teacher  "),  # the owner of the corrected step
        ("scope_real_model", "scope_real_smoke", r"^teacher \d"),
    ],
)
def test_it_runs(tmp_path, name, folder, said):
    """Every cell, with models that learned nothing: two updates everywhere."""
    env = os.environ | {
        "SCOPE_SMOKE": "1",
        "MPLBACKEND": "Agg",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is nearly all of the time
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    done = subprocess.run(
        [sys.executable, str(SOURCES[name])],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(said, done.stdout, flags=re.M)
    lines = (tmp_path / folder / "scope" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
