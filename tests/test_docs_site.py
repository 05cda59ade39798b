"""The documentation site: its navigation, its reference, its links, and the README's length.

`make docs` builds the site; nothing here needs MkDocs.
"""

import ast
import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = sorted((ROOT / "docs").glob("*.md"))
SCREEN = 50  # lines of 100 columns


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = loaded(ROOT / "docs" / "site_pages.py")


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from leaves(entry)


def test_the_navigation_names_every_page_once_and_only_what_exists():
    named = sorted(leaves(SETTINGS["nav"]))
    assert named == sorted([*(page.name for page in PAGES), *site.TAKEN.values()])
    assert all((ROOT / path).is_file() for path in site.TAKEN)


def test_the_reference_has_every_room_of_the_architecture_page_and_of_the_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = list(site.rooms())
    assert rooms[:3] == ["errors", "types", "streams"] and rooms[-1] == "cli"
    found = {path.stem for path in (ROOT / "scope_jax").iterdir() if path.name[0] not in "_."}
    assert set(rooms) == found - {"configs"}
    assert all(f"`scope_jax/{room}" in text or f"`{room}.py`" in text for room in rooms)
    pages = site.reference()
    assert sorted(pages) == sorted(f"reference/{name}.md" for name in ["index", *rooms])
    index = pages["reference/index.md"]
    assert re.findall(r"^\| \[`scope_jax\.\w+`\]\((\w+)\.md\)", index, flags=re.M) == rooms
    assert "[salvage.md](../salvage.md)" in index


@pytest.mark.parametrize("room", site.rooms())
def test_a_rooms_page_shows_its_public_names(room):
    page = site.reference()[f"reference/{room}.md"]
    assert page.startswith(f"# scope_jax.{room}\n\n::: scope_jax.{room}\n")
    init = ROOT / "scope_jax" / room / "__init__.py"
    shown = re.findall(r"^      members: (.*)$", page, flags=re.M)
    if not init.exists():
        assert shown == []
        return
    (names,) = map(ast.literal_eval, shown)
    tree = ast.parse(init.read_text())
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(names) == imported  # the rooms export what they import, and nothing else
    modules = re.findall(r"^::: (\S+)$", page, flags=re.M)[1:]
    below = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in init.parent.rglob("*.py")
        if not path.name.startswith("__")
    }
    assert set(modules) == (set() if names else below)


def test_links_as_they_are_in_the_site():
    text = """See [a](method.md#x), [b](../README.md),
![c](images/real.png), [d](../LICENSE).
[e](https://x.org/y.md) [f](#here) [g](../benchmarks/README.md#one-accelerator) [h](../configs)
```
[i](../LICENSE)
```
"""
    assert (
        site.with_site_links(text, "docs/data.md")
        == """See [a](method.md#x), [b](index.md),
![c](images/real.png), [d](repository/LICENSE.txt).
[e](https://x.org/y.md) [f](#here) [g](benchmarks.md#one-accelerator) [h](configs)
```
[i](../LICENSE)
```
"""
    )
    assert site.linked_files(text, "docs/data.md") == {"LICENSE"}
    home = "[a](docs/method.md) [b](CHANGELOG.md#x) ![c](docs/images/real.png) [d](launch/x.sh)"
    assert site.with_site_links(home, "README.md") == (
        "[a](method.md) [b](changelog.md#x) ![c](images/real.png) [d](launch/x.sh)"
    )
    bench = "[a](../docs/data.md)"
    assert site.with_site_links(bench, "benchmarks/README.md") == "[a](data.md)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_belongs_to_an_item_of_a_list_is_indented_by_four(page):
    """After an empty line the site's Markdown needs four spaces, where GitHub's needs two."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    assert not re.findall(r"\n\n {1,3}\S.*", text)


def test_the_readme_keeps_to_a_screen_and_a_half():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert sum(max(1, math.ceil(len(line) / 100)) for line in lines) <= 1.5 * SCREEN


def test_nothing_of_the_site_is_fetched_from_elsewhere():
    assert SETTINGS["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & set(SETTINGS)
    text = (ROOT / "mkdocs.yml").read_text()
    assert "http://" not in text and "https://" not in text
