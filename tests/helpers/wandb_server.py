"""As much of a Weights & Biases server as its client asks of one: runs, and the lines of their history."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Server:
    """What has been heard."""

    url: str = ""
    operations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Names and variables of the GraphQL requests."""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Lines of each run."""
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    complete: dict[str, int] = field(default_factory=dict)
    """Exit codes of runs that were finished."""

    @property
    def environment(self) -> dict[str, str]:
        """In which the client finds it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_X_DISABLE_STATS": "true"}

    def steps(self, run: str, metric: str) -> list[int]:
        """The steps of a run's lines with a metric, in the order in which they came."""
        return [line["train/step"] for line in self.history[run] if metric in line]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = (re.search(r"(?:query|mutation)\s+(\w+)", query) or ["", ""])[1]
        self.operations.append((name, variables))
        entity = {"id": "e", "name": "me"}
        project = {"id": "p", "name": variables.get("project") or "dpo", "entity": entity}
        if name == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._bucket(variables["name"])}}
        if name == "UpsertBucket":
            run = variables["name"]
            known = run in self.history
            self.history.setdefault(run, [])
            bucket = {"id": "b", "name": run, "displayName": variables.get("displayName"), "project": project}
            count = {"historyLineCount": len(self.history[run])}
            return {"upsertBucket": {"bucket": {**bucket, **count, "config": "{}"}, "inserted": not known}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            made = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        if run not in self.history:
            return None
        lines = self.history[run]
        return {
            "id": "b",
            "name": run,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(lines[-1])] if lines else []),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(self.summary.get(run, {})),
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }

    def stream(self, run: str, what: dict[str, Any]) -> None:
        """A part of a run's files."""
        for name, part in (what.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                kept = self.history.setdefault(run, [])
                kept[part["offset"] :] = lines  # as the real one: a client that is wrong about the place overwrites
            elif name == "wandb-summary.json":
                self.summary[run] = lines[-1]
        if what.get("complete"):
            self.complete[run] = what.get("exitcode", -1)


@contextmanager
def serving() -> Iterator[Server]:
    """A server at a port of its own."""
    heard = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            match = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            if self.path.startswith("/graphql"):
                body = json.loads(data)
                self._send({"data": heard.answer(body["query"], body.get("variables") or {})})
                return
            if match:
                heard.stream(match[1], json.loads(data))
            self._send({})  # files, and the client's own telemetry

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._send({})

        def _send(self, what: dict[str, Any]) -> None:
            data = json.dumps(what).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing is said."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    heard.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
