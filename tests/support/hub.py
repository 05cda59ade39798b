"""A stand-in for the Hugging Face hub on loopback: the parts of its API that downloads and uploads
use, in the shapes that huggingface.co answers with."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants


@dataclasses.dataclass
class Repository:
    """Files by commit, and what branches and tags point at."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: str = ""  # "files": everybody sees what there is, few may have it; "all": few see it

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclasses.dataclass
class Hub:
    """Repositories by "models/ORGANISATION/NAME" or "datasets/...". `cut`: bytes after which
    downloads of weights end. `served`: the files that were sent, and from which byte on."""

    repositories: dict[str, Repository] = dataclasses.field(default_factory=dict)
    cut: int | None = None
    token: str | None = None  # whoever sends another one is turned away; None: everybody is let in
    served: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    uploaded: dict[str, bytes] = dataclasses.field(default_factory=dict)
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], commit: str = "a" * 40, **more) -> Repository:
        found = Repository({commit: files}, {"main": commit}, **more)
        self.repositories[name] = found
        return found


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def error(self, status: int, code: str, words: str) -> None:
            body = json.dumps({"error": words}).encode()
            self.answer(status, body, X_Error_Code=code, X_Error_Message=words)

        def find(self, kind: str, name: str, revision: str, *, file: bool = False):
            repository = hub.repositories.get(f"{kind}/{name}")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.error(401, "", "Invalid credentials in Authorization header")
            elif repository is None:
                # The hub does not tell strangers what exists.
                self.error(401, "RepoNotFound", "Repository not found")
            elif repository.gated == "all" or (repository.gated and file):
                self.error(403, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted.")
            elif (found := repository.files(revision)) is None:
                self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            else:
                return found
            return None

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/")
            parts = path.split("/")
            if parts[0] == "api":
                self.api(parts[1], "/".join(parts[2:4]), parts[4:])
            else:
                kind = "datasets" if parts[0] == "datasets" else "models"
                parts = parts[1:] if kind == "datasets" else parts
                name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
                self.file(kind, name, revision, file)

        def do_POST(self):
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if path == "api/validate-yaml":
                self.json({"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != "Bearer of-a-writer":
                self.error(401, "", "Invalid username or password.")
            elif path == "api/repos/create":
                asked = json.loads(body)
                if asked["name"] == "unfit":
                    self.error(400, "", "The name is reserved.")
                    return
                name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
                hub.repositories.setdefault(f"models/{name}", Repository({}, {}))
                self.json({"url": f"{hub.url}/{name}", "name": name, "id": name})
            elif path.endswith("/info/lfs/objects/batch"):
                self.json(
                    {
                        "transfer": "basic",
                        "objects": [
                            {
                                **wanted,
                                "actions": {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}},
                            }
                            for wanted in json.loads(body)["objects"]
                        ],
                    }
                )
            elif "/preupload/" in path:
                how = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.json({"files": how})
            else:
                assert "/commit/" in path, path
                self.commit("/".join(path.split("/")[1:4]), body)

        def do_PUT(self):
            oid = self.path.rsplit("/", 1)[1]
            content = self.rfile.read(int(self.headers["Content-Length"]))
            assert _etag(content) == oid
            hub.uploaded[oid] = content
            self.answer(200)

        def commit(self, key: str, body: bytes) -> None:
            files = {}
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.uploaded[value["oid"]]
            repository = hub.repositories[key]
            repository.commits["c" * 40], repository.refs["main"] = files, "c" * 40
            address = f"{hub.url}/{key.removeprefix('models/')}/commit/{'c' * 40}"
            self.json({"success": True, "commitOid": "c" * 40, "commitUrl": address})

        def json(self, answer: object) -> None:
            self.answer(200, json.dumps(answer).encode(), Content_Type="application/json")

        def api(self, kind: str, name: str, rest: list[str]) -> None:
            found = self.find(kind, name, rest[1] if rest else "main")
            if found is None:
                return
            commit, files = found
            if rest[:1] == ["tree"]:
                listed = [
                    {"type": "file", "path": path, "size": len(content), "oid": _etag(content)[:40]}
                    for path, content in files.items()
                ]
                self.json(listed)
            else:
                siblings = [{"rfilename": path} for path in files]
                told = {"id": name, "sha": commit, "private": False, "tags": []}
                self.json({**told, "siblings": siblings})

        def file(self, kind: str, name: str, revision: str, file: str) -> None:
            found = self.find(kind, name, revision, file=True)
            if found is None:
                return
            commit, files = found
            if file not in files:
                self.error(404, "EntryNotFound", "Entry not found")
                return
            content = files[file]
            begin = 0
            if asked := self.headers.get("Range"):
                begin = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if begin else 200)
            self.send_header("ETag", f'"{_etag(content)}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            if begin:
                end = len(content)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{end}")
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            if self.command == "HEAD":
                return
            hub.served.append((f"{name}/{file}", begin))
            if hub.cut is not None and file.endswith(".safetensors"):
                self.wfile.write(content[begin : hub.cut])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content[begin:])

    return Handler


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache) -> Iterator[Hub]:
    """A hub, and `huggingface_hub` in this process pointed at it, with a cache of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # plain HTTP, as mirrors speak it
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
