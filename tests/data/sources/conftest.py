"""A small server that answers as the hub does, for one data set of two commits."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets
import fsspec
import huggingface_hub
import pytest


@dataclass
class Hub:
    """What the server knows, which tests may change."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    up: bool = True
    asked: list[str] = field(default_factory=list)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


def _info(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        if not self.hub.up:
            return self._send(503, b"{}")
        if path.startswith("/datasets/") and not path.startswith("/datasets/org/pairs/"):
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if match := re.fullmatch(r"/datasets/org/pairs/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        match = re.fullmatch(r"/api/datasets/org/pairs(?:/(revision|tree|paths-info)/([^/]+)/?(.*))?", path)
        found = self.hub.files((match and match[2]) or "main") if match else None
        if match is None or found is None:
            code = "RevisionNotFound" if match else "RepoNotFound"
            return self._send(404, b"{}", {"X-Error-Code": code})
        commit, files = found
        if match[1] == "tree":
            return self._json([_info(name, files[name]) for name in files if name.startswith(match[3])])
        if match[1] == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", body.decode())
            return self._json([_info(name, files[name]) for name in map(unquote, wanted) if name in files])
        siblings = [{"rfilename": name} for name in files]
        return self._json({"_id": "1", "id": "org/pairs", "sha": commit, "siblings": siblings, "private": False})

    def _file(self, revision: str, name: str) -> None:
        found = self.hub.files(revision)
        if found is None or name not in found[1]:
            known = {"X-Repo-Commit": found[0]} if found else {}
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound" if found else "RevisionNotFound", **known})
        commit, files = found
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"'}
        content = files[name]
        if given := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            content = content[int(given[1]) : int(given[2] or len(content)) + 1]
            return self._send(206, content, headers)
        return self._send(200, content, headers)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    yield hub
    server.shutdown()
    server.server_close()
