"""A stand-in for the hub: the part of its HTTP interface that huggingface_hub asks to fetch a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_ThisIsASecret"


@dataclass
class Repository:
    """A model on the hub.

    Attributes:
        commits: the folder of each.
        revisions: branches and tags, and the commits that they mean now.
        gated: whether those who have no right to it are told that it is there.
        private: whether it is not there without the token.
    """

    commits: dict[str, Path] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def files(self, commit: str) -> dict[str, Path]:
        folder = self.commits[commit]
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass
class Hub:
    """The server's models by `owner/name`, and what was asked of it.

    Attributes:
        cut: the last part of a file's name whose body ends half way, as when a connection breaks.
        asked: method and path of every request.
    """

    address: str
    models: dict[str, Repository] = field(default_factory=dict)
    cut: str | None = None
    asked: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need to know."""
        return {"HF_ENDPOINT": self.address, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}

    def put(self, name: str, folder: Path, revision: str = "main") -> str:
        """Publish a folder as the commit that a branch or tag of a model means from now on; returns the commit."""
        repository = self.models.setdefault(name, Repository())
        commit = hashlib.sha1(f"{name} {len(repository.commits)} {folder}".encode()).hexdigest()
        repository.commits[commit] = folder
        repository.revisions[revision] = commit
        return commit

    def fetched(self) -> set[str]:
        """The files whose bodies were asked for."""
        return {
            path.split("/resolve/")[1].partition("/")[2]
            for path in self.asked
            if path.startswith("GET /") and "/resolve/" in path
        }

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of a request for a path."""
        address = urlsplit(path)
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        repository = self.models.get(name)
        if repository is None or (repository.private and token != f"Bearer {TOKEN}"):
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        commit = repository.revisions.get(rest[1], rest[1])
        if commit not in repository.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = repository.files(commit)
        refused = repository.gated and token != f"Bearer {TOKEN}"
        if api and rest[0] == "revision":
            listed = [{"rfilename": file} for file in files]
            return _json({"id": name, "modelId": name, "sha": commit, "siblings": listed, "tags": [], "private": False})
        if api and rest[0] == "tree":
            assert parse_qs(address.query)["recursive"][0].lower() == "true"
            tree = [
                {"type": "file", "path": file, "size": path.stat().st_size, "oid": _oid(path)}
                for file, path in files.items()
            ]
            return _json(tree)
        if refused:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        file = "/".join(rest[2:])
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"ETag": f'"{_oid(files[file])}"', "X-Repo-Commit": commit}, files[file].read_bytes()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.reply(body=False)

        def do_GET(self) -> None:
            self.reply(body=True)

        def reply(self, body: bool) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            status, headers, data = hub.answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            cut = hub.cut is not None and self.path.endswith(hub.cut)
            if body:
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Nothing: what was asked is in `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_at(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub in this process ask this hub and keep what it gets in this cache; it has no token."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.delenv("HF_TOKEN", raising=False)
