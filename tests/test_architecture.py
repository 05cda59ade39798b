"""What docs/architecture.md says of rooms, imports and sizes is true."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scope_jax"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if "configs" not in path.parts]
PROGRAMS = ("train", "supervise", "evaluate", "evaluate_suites", "evaluate_prm", "cli")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_of_the_page() -> list[str]:
    """The rooms in the order of the table, from the bottom up."""
    table = PAGE.split("## The rooms")[1].split("## Glossary")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `scope_jax/")]
    return [name for row in rows for name in re.findall(r"([a-z_]+)(?:/|\.py)`", row)]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scope_jax"):
            parts = (node.module or "").split(".")[1:]
            yield from parts[:1] or [alias.name for alias in node.names]


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def function(path: str, name: str) -> ast.FunctionDef:
    [found] = [node for node in functions(PACKAGE / path) if node.name == name]
    return found


def size(node: ast.FunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_the_page_names_every_room():
    found = {room_of(path) for path in FILES} - {"__init__", "__main__"}
    assert set(rooms_of_the_page()) == found


def test_lower_rooms_never_import_higher_ones():
    order = rooms_of_the_page()
    height = {room: number for number, room in enumerate(order)}
    for program in PROGRAMS:  # one row of the table
        height[program] = len(order)
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in FILES
        if (room := room_of(path)) in height and room not in PROGRAMS
        for other in imported(path)
        if other in height and height[other] > height[room] and other != "cli"
        if room not in ("fit", "sweep", "demo", "prospect")  # wings with rooms of their own
    ]
    assert not wrong


def test_no_room_imports_itself_by_way_of_another():
    edges: dict[str, set[str]] = {}
    for path in FILES:
        edges.setdefault(room_of(path), set()).update(set(imported(path)) - {room_of(path)})

    def visit(room: str, way: tuple[str, ...]) -> None:
        assert room not in way, " > ".join((*way, room))
        for other in sorted(edges.get(room, ())):
            visit(other, (*way, room))

    for room in edges:
        visit(room, ())


def test_every_room_says_what_comes_in_and_goes_out():
    for folder in sorted(path.parent for path in FILES if path.name == "__init__.py"):
        if folder == PACKAGE:
            continue
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert "In:" in text and "Out:" in text, folder
        assert len(text.splitlines()) <= 8, folder


def test_sizes():
    assert len(list(PACKAGE.glob("*.py"))) <= 12
    assert size(function("train.py", "train_step")) <= 70
    stages = ("locate", "choose", "correct", "finish", "place")
    assert {stage: size(function(f"correction/{stage}.py", stage)) <= 40 for stage in stages} == (
        dict.fromkeys(stages, True)
    )


def test_public_functions_take_few_parameters():
    wide = []
    for path in FILES:
        for node in functions(path):
            names = [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            private = node.name.startswith("_") and node.name != "__init__"
            # The loss of the policy has the arrays of its formula.
            if count > 8 and not private and node.name != "policy_loss":
                wide.append(f"{path.relative_to(ROOT)}: {node.name} takes {count}")
    assert not wide


def test_everything_is_typed():
    """Arguments of all functions, and what those return that are not `__init__`."""
    bare = []
    for path in FILES:
        for node in functions(path):
            given = (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)
            names = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
            if node.returns is None and node.name not in ("__init__", "__post_init__"):
                names.append("what it returns")
            bare += [f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {n}" for n in names]
    assert not bare


# Each function on the way from `train` to the gradient, its file, and how it calls the next one.
WAY = (
    ("train", "train.py", "_train("),
    ("_train", "train.py", "train_step("),
    ("train_step", "train.py", "learner.update("),
    ("Learner.update", "training/learner.py", "self._step("),
    ("Learner._step", "training/learner.py", "update("),
    ("Update.__call__", "learning/update.py", "self.whole("),
    ("Program.__call__", "devices/programs.py", "self._jitted("),
    ("update", "learning/update.py", "gradients("),
    ("gradients", "learning/update.py", "value_and_grad("),
)


def test_the_way_to_the_gradient_is_the_one_that_the_page_shows():
    [line] = [line for line in PAGE.splitlines() if line.startswith("`train` > ")]
    shown = re.findall(r"`([\w.]+)`", line)
    assert shown == [*(name for name, _, _ in WAY), "jax.value_and_grad"]
    assert len(WAY) - 1 == 8 and "passes eight functions" in PAGE
    for name, path, call in WAY:
        name = name.rpartition(".")[2]
        bodies = [ast.unparse(node) for node in functions(PACKAGE / path) if node.name == name]
        assert any(call in body for body in bodies), (name, call)
