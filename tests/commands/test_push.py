"""Pushing, against a server that plays the hub and writes down every byte that comes."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import yaml
from helpers.published import RECORD, SETTINGS, make_run
from huggingface_hub import ModelCard

from dpo_cli import answers
from dpo_cli.cli import main
from dpo_cli.commands.card import model_card
from dpo_cli.commands.pushing import Wanted, push
from dpo_cli.errors import DpoError, StorageError

TOKEN = "hf_" + "nobodymayseethis" * 2
REPO = "org/mine"


@dataclass
class Hub:
    """What the server knows, and what came."""

    private: bool | None = None
    """None = there is no such repository."""
    files: list[str] = field(default_factory=list)
    status: dict[str, int] = field(default_factory=dict)
    """Answers to be given instead of the right ones, by the end of the path."""
    endless: dict[str, Callable[[_Handler], None]] = field(default_factory=dict)
    """What does not come to an end, by the start of the path."""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)

    def bodies(self, end: str) -> list[bytes]:
        return [body for _, path, _, body in self.requests if path.endswith(end)]

    def committed(self, branch: str = "main") -> dict[str, bytes]:
        """The files of the one commit, wherever their bytes went."""
        (body,) = self.bodies(f"/commit/{branch}")
        found = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                found[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found[value["path"]] = self.large[value["oid"]]
        return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, dict(self.headers), body))
        for start, act in self.hub.endless.items():
            if path.startswith(start):
                with suppress(OSError):
                    act(self)
                return None
        for end, status in self.hub.status.items():
            if path.endswith(end):
                return self._json({"error": "as the test wants"}, status)
        return self._right(path, body)

    def _right(self, path: str, body: bytes) -> None:
        hub, url = self.hub, f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            if hub.private is not None:
                return self._json({"error": "You already created this model repo", "url": f"{url}/{REPO}"}, 409)
            hub.private = json.loads(body).get("visibility") == "private"
            return self._json({"url": f"{url}/{REPO}"})
        if path.endswith("/preupload/main") or path.endswith("/preupload/next"):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith("rs") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{url}/storage/{o['oid']}"}}} for o in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if path.startswith("/storage/"):
            hub.large[path.rpartition("/")[2]] = body
            return self._json({})
        if "/commit/" in path:
            return self._json({"commitUrl": f"{url}/{REPO}/commit/1", "commitOid": "1"})
        if path == "/api/validate-yaml" or "/branch/" in path:
            return self._json({"warnings": [], "errors": []})
        if re.fullmatch(rf"/api/models/{REPO}(/revision/\w+)?", path) and hub.private is not None:
            siblings = [{"rfilename": name} for name in hub.files]
            return self._json({"_id": "1", "id": REPO, "sha": "0" * 40, "private": hub.private, "siblings": siblings})
        return self._json({"error": f"nothing at {path}"}, 404)

    def _json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """With all that must never be uploaded."""
    folder = make_run(tmp_path / "mine", model_card(SETTINGS, RECORD))
    for name in (".env", "training_args.bin", "pytorch_model.bin", "optimizer.pt", "samples.jsonl", "events.out"):
        (folder / "final" / name).write_text("not for others")
    for name in ("checkpoints/step-2/weights.safetensors", "wandb/run/config.json", ".git/config"):
        path = folder / "final" / name
        path.parent.mkdir(parents=True)
        path.write_text("not for others")
    (tmp_path / "key.json").write_text("not for others")
    (folder / "final" / "special_tokens_map.json").symlink_to(tmp_path / "key.json")
    return folder


def wanted(**changes: Any) -> Wanted:
    return Wanted(**{"repo": REPO, "public": False, "revision": None, "dry_run": False, "merged": False, **changes})


def test_the_list_of_files_is_all_that_is_uploaded(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(str(run), wanted())
    found = hub.committed()
    assert found.keys() == {"README.md", "config.json", "config.yaml", "model.safetensors", "tokenizer.json"}
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert found[name] == (run / "final" / name).read_bytes(), name
    assert not any(b"not for others" in body for _, _, _, body in hub.requests)
    said = capsys.readouterr()
    assert "not uploaded" in said.err
    assert ".env" in said.err
    assert f"uploaded to {REPO} (private)" in said.out


def test_it_is_private_unless_asked_for(hub: Hub, run: Path) -> None:
    push(str(run), wanted())
    assert [json.loads(body)["visibility"] for body in hub.bodies("/repos/create")] == ["private"]


def test_it_is_public_if_asked_for(hub: Hub, run: Path) -> None:
    push(str(run), wanted(public=True))
    assert [json.loads(body).get("visibility") for body in hub.bodies("/repos/create")] == ["public"]


def test_what_is_private_is_not_put_where_everybody_looks(hub: Hub, run: Path) -> None:
    hub.private = False
    with pytest.raises(DpoError, match=r"org/mine is there and public: add --public"):
        push(str(run), wanted())
    assert not any("/commit/" in path or "/preupload/" in path for _, path, _, _ in hub.requests)
    push(str(run), wanted(public=True))
    assert hub.committed()


def test_the_token_is_in_one_header_alone(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push(str(run), wanted(revision="next"))
    assert hub.committed("next")
    for method, path, headers, body in hub.requests:
        assert TOKEN.encode() not in body, path
        assert TOKEN not in path
        held = {name for name, value in headers.items() if TOKEN in value}
        assert held <= {"authorization", "Authorization"}, (method, path, held)
        if path.startswith("/storage/"):  # which need not be the hub's own
            assert not held
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    assert not any(TOKEN.encode() in file.read_bytes() for file in run.rglob("*") if file.is_file())


def test_what_is_uploaded_says_nothing_of_this_machine(hub: Hub, run: Path) -> None:
    push(str(run), wanted())
    found = hub.committed()
    for name, content in found.items():
        for secret in (b"/home/", b"open-sesame", b"signature", b"somebody", b"secret row"):
            assert secret not in content, (name, secret)
    settings = yaml.safe_load(found["config.yaml"])
    assert settings["model"]["path"] == "base"
    assert settings["data"]["path"] == "https://data.example/pairs.jsonl"
    assert settings["data"]["system"] == "/no_think"
    assert settings["run_dir"] is None
    assert settings["loss"] == SETTINGS["loss"]


def test_an_adapter_says_which_base_without_saying_where(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "/home/somebody/models/base"}',
        "adapter_model.safetensors": b"weights",
    }
    run = make_run(tmp_path / "mine", model_card(SETTINGS, RECORD), **files)
    push(str(run), wanted())
    settings = json.loads(hub.committed()["adapter_config.json"])
    assert settings == {"peft_type": "LORA", "base_model_name_or_path": "base"}
    assert "nobody else can load" in capsys.readouterr().err
    assert b"/home/somebody" in (run / "final" / "adapter_config.json").read_bytes()


def test_the_commit_names_the_run_and_removes_another_models_weights(hub: Hub, run: Path) -> None:
    hub.private = True
    hub.files = ["README.md", "adapter_config.json", "model-00001-of-00002.safetensors", "notes.md", ".gitattributes"]
    push(str(run), wanted())
    lines = [json.loads(line) for line in hub.bodies("/commit/main")[0].splitlines()]
    assert lines[0]["value"]["summary"] == "dpo run mine: ipo, 19 updates"
    deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
    assert deleted == ["adapter_config.json", "model-00001-of-00002.safetensors"]


def test_a_branch_is_made_and_committed_to(hub: Hub, run: Path) -> None:
    push(str(run), wanted(revision="next"))
    assert hub.bodies("/branch/next")
    assert hub.committed("next")
    assert not hub.bodies("/commit/main")


def test_a_dry_run_sends_nothing_and_changes_nothing(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (run / "eval.json").write_text(json.dumps({"config": {"data": {"path": "x"}}, "metrics": {"loss": 0.1}}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    push(str(run), wanted(dry_run=True))
    assert not hub.requests
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().out
    assert re.search(r"model\.safetensors\s+│\s+2\.3 kB", said)
    assert "nothing was sent" in said


# -- the card


def test_the_card_that_is_uploaded_knows_of_later_evaluations(hub: Hub, run: Path) -> None:
    evaluation = {"config": {"data": {"path": "org/other", "eval": None}}, "metrics": {"rewards/accuracies": 0.8125}}
    (run / "eval.json").write_text(json.dumps(evaluation))
    push(str(run), wanted())
    text = hub.committed()["README.md"].decode()
    assert "| measured by `dpo eval` on org/other |" in text
    assert "| rewards/accuracies | 0.8125 |" in text
    assert f'from_pretrained("{REPO}")' in text
    here = (run / "final" / "README.md").read_text()
    assert here.replace("THIS_FOLDER", REPO) == text
    push(str(run), wanted())  # which still knows it as its own
    assert "changed by hand" not in str(hub.bodies("/commit/main")[1])


def test_a_card_that_somebody_changed_stays(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = "---\nlicense: mit\n---\n\n# Mine\n"
    (run / "final" / "README.md").write_text(changed)
    (run / "eval.json").write_text(json.dumps({"config": {"data": {"path": "x"}}, "metrics": {"loss": 0.1}}))
    push(str(run), wanted())
    assert hub.committed()["README.md"].decode() == changed
    assert "changed by hand" in capsys.readouterr().out


def test_a_folder_without_a_card_gets_a_plain_one(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
    push(str(tmp_path / "model"), wanted())
    data = ModelCard(hub.committed()["README.md"].decode()).data
    assert data.pipeline_tag == "text-generation"
    assert data.license is None
    assert "names no licence" in capsys.readouterr().err


# -- what is refused


@pytest.mark.parametrize("name", ["mine", "org/mine/more", "org/../mine", "org/mi ne", "/mine", "org/", "a--b/c"])
def test_a_name_that_is_none(hub: Hub, run: Path, name: str) -> None:
    with pytest.raises(DpoError, match="expected OWNER/NAME"):
        push(str(run), wanted(repo=name))
    assert not hub.requests


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (f"key: {TOKEN}", "the value of HF_TOKEN"),
        ("key: hf_" + "x" * 30, "like a token"),
        ("open sesame!!", "MY_API_KEY"),
    ],
)
def test_a_secret_in_a_file(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, content: str, word: str) -> None:
    monkeypatch.setenv("MY_API_KEY", "open sesame!!")
    (run / "final" / "README.md").write_text(content)
    with pytest.raises(DpoError, match=rf"README\.md holds.*{word}") as error:
        push(str(run), wanted())
    assert not hub.requests
    assert content.removeprefix("key: ") not in str(error.value)


def test_no_token(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DpoError, match="set HF_TOKEN"):
        push(str(run), wanted())
    assert not hub.requests


@pytest.mark.parametrize(
    ("end", "status", "kind", "words"),
    [
        ("/repos/create", 401, DpoError, "does not know the token"),
        ("/repos/create", 403, DpoError, "may not write to org/mine"),
        ("/models/org/mine", 404, DpoError, "there is no org/mine"),
        ("/commit/main", 403, DpoError, "may not write to org/mine"),
        ("/commit/main", 409, DpoError, "in conflict"),
        ("/repos/create", 500, StorageError, "nothing was committed"),
        ("/objects/batch", 403, DpoError, "may not write to org/mine"),
        ("/commit/main", 503, StorageError, "the hub failed"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, run: Path, end: str, status: int, kind: type, words: str) -> None:
    hub.status[end] = status
    if end == "/models/org/mine":
        hub.private = True
    with pytest.raises(DpoError) as error:
        push(str(run), wanted())
    assert type(error.value) is kind
    assert words in str(error.value)
    assert str(status) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("page", [b"<html>log in</html>", b"{}"])
def test_what_is_no_hub(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, page: bytes) -> None:
    def answer(handler: _Handler, path: str, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(page)))
        handler.end_headers()
        handler.wfile.write(page)

    monkeypatch.setattr(_Handler, "_right", answer)
    with pytest.raises(StorageError, match=r"does not answer as a hub does .* HF_ENDPOINT"):
        push(str(run), wanted())


def test_no_network(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(StorageError, match=rf"{endpoint} could not be reached"):
            push(str(run), wanted())


def _nothing(to: _Handler) -> None:
    time.sleep(20)


def _slow_head(to: _Handler) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\nX-More: ")
    for _ in range(200):
        to.wfile.write(b"x")
        time.sleep(0.1)


def _slow_body(to: _Handler) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(200):
        to.wfile.write(b" ")
        time.sleep(0.1)


def _no_end(to: _Handler) -> None:
    to.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        to.wfile.write(b" " * 2**20)


def _onwards(to: _Handler) -> None:
    to.wfile.write(
        b"HTTP/1.1 307 Onwards\r\nConnection: close\r\nContent-Length: 0\r\nLocation: "
        + to.path.encode()
        + b"/x\r\n\r\n"
    )


def _later(to: _Handler) -> None:
    to.wfile.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 100000\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "act", "words"),
    [
        ("/api/repos/create", _nothing, "has not answered in 1 s"),
        ("/api/repos/create", _slow_head, "has not answered in 1 s"),
        ("/api/repos/create", _slow_body, "has not answered in 1 s"),
        ("/api/repos/create", _no_end, "has answered with more than 1,048,576 bytes"),
        ("/api/repos/create", _onwards, "redirects"),
        ("/api/models", _slow_body, "has not answered in 1 s"),
        ("/storage", _slow_body, "has not answered in 1 s"),
        ("/storage", _later, "wants to be asked again in 100000 s"),
    ],
)
def test_an_answer_without_end(
    hub: Hub, run: Path, path: str, act: Callable[[_Handler], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SECONDS", 1.0)
    monkeypatch.setattr(answers, "_MOST_BYTES", 2**20)
    hub.endless[path] = act
    started = time.monotonic()
    with pytest.raises(StorageError, match=f"push: {huggingface_hub.constants.ENDPOINT} .*{words}"):
        push(str(run), Wanted(REPO, False, None, False, False))
    assert time.monotonic() - started < 10


def test_a_slow_upload_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as bytes are taken."""
    monkeypatch.setattr(answers, "SECONDS", 0.6)
    client = answers._client()
    request = client.build_request("PUT", "http://localhost:1/file", content=iter([b"x"] * 6))
    taken = []

    def send(sent: Any, **options: Any) -> Any:
        for chunk in sent.stream:
            taken.append(chunk)
            time.sleep(0.3)
        time.sleep(60 if len(taken) > 6 else 0)
        return SimpleNamespace(
            status_code=200, headers={}, read=lambda: b"", num_bytes_downloaded=0, close=lambda: None
        )

    assert answers._Request(request, send, {}).answer(read=True).status_code == 200
    assert len(taken) == 6
    request = client.build_request("PUT", "http://localhost:1/file", content=iter([b"x"] * 2))
    with pytest.raises(StorageError, match="http://localhost:1 has not answered in 1 s"):
        answers._Request(request, send, {}).answer(read=True)


def test_offline(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match=r"offline mode is enabled.*HF_HUB_OFFLINE"):
        push(str(run), wanted())
    assert not hub.requests


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not valid JSON"),
        ("generation_config.json", b"[" * 100_000, "generation_config.json is not valid JSON"),
        ("README.md", b"\xff\xfe", "README.md is not valid UTF-8"),
    ],
)
def test_a_strangers_file_that_is_none(hub: Hub, run: Path, name: str, content: bytes, says: str) -> None:
    (run / "final" / name).write_bytes(content)
    with pytest.raises(DpoError, match=says):
        push(str(run), wanted())
    assert not hub.requests


@pytest.mark.parametrize("name", ["final/README.md", "config.yaml"])
def test_what_a_link_leads_to_is_not_uploaded(hub: Hub, run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "passwd").write_text("root: x\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "passwd")
    with pytest.raises(DpoError, match="is a link, and links are not uploaded"):
        push(str(run), wanted())
    assert not hub.requests


def test_names_of_files_are_not_markup(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model-[b]-of-[red].safetensors", "other\x1b[31m"):
        (run / "final" / name).write_bytes(b"")
    push(str(run), wanted(dry_run=True))
    out, err = capsys.readouterr()
    assert "model-[b]-of-[red].safetensors" in out
    assert "other\\x1b[31m" in err


def test_what_is_no_model(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DpoError, match="is not a folder"):
        push(str(tmp_path / "absent"), wanted())
    with pytest.raises(DpoError, match="no model to upload"):
        push(str(tmp_path), wanted())
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DpoError, match="has no final/"):
        push(str(tmp_path), wanted())
    assert not hub.requests


def test_the_command(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "nobody", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("dpo: push: nobody is not the name of a repository")
    assert main(["push", str(run)]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err
    hub.status["/commit/main"] = 502
    assert main(["push", str(run), REPO]) == 74
