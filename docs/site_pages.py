"""What the documentation site has beside the files of docs/; a hook of MkDocs, named in mkdocs.yml.

Three pages are files elsewhere in the repository (`TAKEN`). The reference has one page for each
room in the table of docs/architecture.md, with the room's public names: those of its `__all__`, or,
where a room has none, those of its modules. Code is read, never imported.
"""

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scope_jax"
# Files of the repository that are pages of the site: what each is called there.
TAKEN = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
PICTURES = (".png", ".svg", ".jpg")
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")


def rooms() -> dict[str, str]:
    """{room: what it does} of the table in docs/architecture.md, from the bottom up."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("\n## The rooms\n")[1].split("\n## ")[0]
    found: dict[str, str] = {}
    for row in re.findall(r"^\| (`scope_jax/.*)$", table, flags=re.M):
        names, what = row.split(" | ")[:2]
        found |= dict.fromkeys(re.findall(r"(\w+)(?:/|\.py)`", names), what)
    return found


def exported(path: Path) -> list[str] | None:
    """The names in `__all__` of a module; None without one."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def modules(room: str) -> list[str]:
    """The dotted names of the modules in a room's folder, its folders included."""
    paths = sorted((PACKAGE / room).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name for name in names if not name.endswith(("__init__", "__main__"))]


def directive(name: str, heading: bool, members: list[str] | None = None) -> str:
    """The lines that mkdocstrings replaces by the documentation of a module; members None: all that
    is public in it."""
    options = f"    options:\n      show_root_heading: {str(heading).lower()}\n"
    if members is not None:
        options += f"      members: {members}\n"
    return f"::: {name}\n{options}"


def reference_page(room: str) -> str:
    """The Markdown of a room's page."""
    name, init = f"scope_jax.{room}", PACKAGE / room / "__init__.py"
    parts = [f"# {name}\n"]
    if not init.exists():
        parts.append(directive(name, heading=False))
    elif (names := exported(init)) is not None:
        parts.append(directive(name, heading=False, members=names))
    else:
        parts.append(directive(name, heading=False, members=[]))
        parts += [directive(module, heading=True) for module in modules(room)]
    return "\n".join(parts)


def reference() -> dict[str, str]:
    """{page of the site: its Markdown}: the list of rooms, then the rooms from the bottom up."""
    does = {room: LINK.sub(r"../\1", what) for room, what in rooms().items()}
    listed = [f"| [`scope_jax.{room}`]({room}.md) | {what} |" for room, what in does.items()]
    head = [
        "# Reference\n",
        "The public names of every room, made from the code: those of its `__all__`, or of its "
        "modules where it has none. Lower rooms never import higher ones "
        "([architecture](../architecture.md)).\n",
        "| room, from the bottom up | what it does |\n|---|---|",
    ]
    index = {"reference/index.md": "\n".join([*head, *listed]) + "\n"}
    return index | {f"reference/{room}.md": reference_page(room) for room in rooms()}


def site_place(path: str) -> str:
    """Where a file of the repository lies in the site: a page at its place, a picture as it is, any
    other file as text under repository/. A folder has no place: its path, which MkDocs refuses."""
    if path in TAKEN:
        return TAKEN[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if not (ROOT / path).is_file():
        return path
    return f"repository/{path}" + ("" if path.endswith(PICTURES) else ".txt")


def outside_code(text: str) -> Iterator[tuple[bool, str]]:
    """(whether links in it are links, line) of the lines of a page."""
    fence = False
    for line in text.splitlines(keepends=True):
        fence ^= line.lstrip().startswith("```")
        yield not fence, line


def with_site_links(text: str, page: str) -> str:
    """A page with its links as they are in the site; `page`: its path in the repository."""

    def moved(link: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", link[0]):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link[0]))
        return posixpath.relpath(site_place(target), posixpath.dirname(site_place(page)) or ".")

    lines = outside_code(text)
    return "".join(LINK.sub(moved, line) if links else line for links, line in lines)


def linked_files(text: str, page: str) -> set[str]:
    """The files of the repository, neither pages nor in docs/, that a page links to."""
    links = {link for ok, line in outside_code(text) if ok for link in LINK.findall(line)}
    folder = posixpath.dirname(page)
    paths = {posixpath.normpath(posixpath.join(folder, link)) for link in links}
    return {path for path in paths if site_place(path).startswith("repository/")}


def on_config(config: Any) -> None:
    """Puts the reference into the navigation, and makes anchors as GitHub makes them."""
    from pymdownx.slugs import slugify

    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    (place,) = [entry for entry in config.nav if "Reference" in entry]
    names = [page.removeprefix("reference/").removesuffix(".md") for page in reference()]
    place["Reference"] = [
        "reference/index.md",
        *({name: f"reference/{name}.md"} for name in names if name != "index"),
    ]


def on_files(files: Any, config: Any) -> None:
    """Adds the pages of `TAKEN` and of the reference, and the files that pages link to."""
    from mkdocs.structure.files import File

    pages = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    pages |= {path: (ROOT / path).read_text() for path in TAKEN}
    for path, place in TAKEN.items():
        files.append(File.generated(config, place, content=pages[path]))
    for place, text in reference().items():
        files.append(File.generated(config, place, content=text))
    for path in sorted({path for page, text in pages.items() for path in linked_files(text, page)}):
        files.append(File.generated(config, site_place(path), abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs with the Markdown of each page, before it becomes HTML."""
    place = page.file.src_uri
    if place.startswith("reference/"):
        return markdown
    path = {place: path for path, place in TAKEN.items()}.get(place, f"docs/{place}")
    return with_site_links(markdown, path)
