"""The documentation names what exists: settings, files, modules, make targets, links."""

import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from scope_jax import config, supervise

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Paths in commands that a command makes, or that stand for the reader's own.
MADE = ("runs/", "cache/", "checkpoints/", "http")


def leaves(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        nested = isinstance(value, ConfigDict)
        flat |= (
            leaves(value, f"{prefix}{key}.")
            if nested and len(value)
            else {prefix + key: {} if nested else value}
        )
    return flat


@pytest.mark.parametrize(
    ("heading", "defaults"),
    [
        ("`scope_jax.train` and", config.default_config()),
        ("`scope_jax.supervise`", supervise.default_config()),
    ],
)
def test_the_configuration_page_has_every_key_with_its_default(heading, defaults):
    page = (ROOT / "docs" / "configuration.md").read_text()
    section = page.split(f"\n## {heading}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]*)` \| (.+) \|$", section, flags=re.M)
    assert {key: default for key, default, _ in rows} == {
        key: repr(value) for key, value in leaves(defaults).items()
    }
    assert len({key for key, _, _ in rows}) == len(rows)


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
    paths = re.findall(r"(?<![\w/])((?:[\w.]+/)+(?:[\w.]*\w)?)", code)
    inside = [
        path for path in paths if not path.startswith(MADE) and (ROOT / path.split("/")[0]).exists()
    ]
    missing = [path for path in inside if not (ROOT / path).exists()]
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
        r"(?<![\w/])((?:[\w.]+/)+(?:[\w.]*\w)?)",
        "python -m x --config=configs/arithmetic/none.py `tb/`",
    )
    assert paths == ["configs/arithmetic/none.py", "tb/"]
    assert not (ROOT / paths[0]).exists()
