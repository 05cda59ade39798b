"""The documentation names what exists: settings, files, modules, make targets, links."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from scope_jax.configuration import METHODS, supervision, training
from scope_jax.configuration.schema import leaves

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# A path, or a pattern of paths, in a command or between backticks.
PATH = r"(?<![\w/])((?:[\w.]+/)+(?:[\w.*]*[\w*])?)"
# Paths in commands that a command makes, or that stand for the reader's own.
MADE = ("runs/", "cache/", "checkpoints/", "http")


def described(
    defaults: Callable[[str], ConfigDict], variants: Sequence[str], section: str
) -> dict[str, str]:
    """{key: default as written} of a program's settings, those of its variants included."""
    found: dict[str, str] = {}
    for variant in reversed(variants):  # the first one is the default
        found |= {key: repr(value) for key, value in leaves(defaults(variant).to_dict())}
    return found | {f"{section}.name": repr(variants[0])}


@pytest.mark.parametrize(
    ("heading", "defaults"),
    [
        ("`scope_jax.train` and", described(training.default_config, [*METHODS], "method")),
        (
            "`scope_jax.supervise`",
            described(supervision.default_config, ["policy", "prm"], "target"),
        ),
    ],
)
def test_the_configuration_page_has_every_key_with_its_default(heading, defaults):
    page = (ROOT / "docs" / "configuration.md").read_text()
    section = page.split(f"\n## {heading}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]*)` \| (.+) \|$", section, flags=re.M)
    assert {key: default for key, default, _ in rows} == defaults
    # A key of several variants stands in the table of each, with the same meaning.
    assert len({(key, meaning) for key, _, meaning in rows}) == len({key for key, _, _ in rows})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_name_what_exists(page):
    text = page.read_text()
    code = "\n".join(
        re.findall(r"^```.*?^```", text, flags=re.M | re.S) + re.findall(r"`[^`\n]+`", text)
    )
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets
    for module in re.findall(r"python -m scope_jax\.(\w+(?:\.\w+)*)", code):
        place = ROOT / "scope_jax" / module.replace(".", "/")
        found = place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
        assert found, module
    inside = [
        path
        for path in re.findall(PATH, code)
        if not path.startswith(MADE) and (ROOT / path.split("/")[0]).exists()
    ]
    missing = [path for path in inside if not (ROOT / path).exists() and not [*ROOT.glob(path)]]
    assert not missing, missing
    # Pictures are results: they may be made later than the page.
    links = [
        link
        for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)[^)]*\)", text)
        if not link.startswith("http")
    ]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_a_wrong_path_in_a_command_would_be_seen():
    paths = re.findall(
        PATH,
        "python -m x --config=configs/arithmetic/none.py `tb/` `tests/no_*.py` `tests/test_*.py`",
    )
    assert paths == ["configs/arithmetic/none.py", "tb/", "tests/no_*.py", "tests/test_*.py"]
    assert not (ROOT / paths[0]).exists()
    assert [bool([*ROOT.glob(path)]) for path in paths[2:]] == [False, True]
