"""Win rates: judges that like a place, that fail, that like length; a real HTTP server; a real reward model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tokenizers
from helpers.runs import llama
from scipy.special import expit
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from dpo_cli.commands.generations import _key
from dpo_cli.config_judges import EndpointConfig
from dpo_cli.errors import DpoError
from dpo_cli.evaluation.endpoint import Endpoint
from dpo_cli.evaluation.intervals import Bootstrap
from dpo_cli.evaluation.reward_model import reward_model
from dpo_cli.evaluation.winrate import Verdicts, judge_pairs, length_controlled, win_rate

BOOTSTRAP = Bootstrap(400, 0)
QUESTIONS = [f"question {n}" for n in range(8)]


def longer(pairs: Sequence[tuple[str, str, str]]) -> list[float | None]:
    return [0.5 if len(a) == len(b) else float(len(a) > len(b)) for _, a, b in pairs]


def test_a_judge_that_likes_the_first_place_finds_no_winner() -> None:
    verdicts = judge_pairs(lambda pairs: [1.0 for _ in pairs], QUESTIONS, ["a"] * 8, ["b"] * 8)
    assert verdicts.wins.tolist() == [0.5] * 8
    assert not verdicts.agreed.any()


def test_win_rate_counts_ties_as_halves_and_what_has_no_verdict_not_at_all() -> None:
    def judge(pairs: Sequence[tuple[str, str, str]]) -> list[float | None]:
        return [None if question == "question 7" else longer([(question, a, b)])[0] for question, a, b in pairs]

    mine, theirs = ["aaa"] * 4 + ["a"] * 4, ["bb"] * 5 + ["b"] * 3
    verdicts = judge_pairs(judge, QUESTIONS, mine, theirs)
    lengths = np.array([[len(a), len(b)] for a, b in zip(mine, theirs, strict=True)])
    found = win_rate(verdicts, lengths, BOOTSTRAP)
    assert (found["prompts"], found["without_verdict"], found["agreement"]) == (7, 1, 1.0)
    assert found["win_rate"].value == pytest.approx((4 + 0 + 0.5 * 2) / 7)
    assert found["win_rate"].low < found["win_rate"].value < found["win_rate"].high
    nothing = win_rate(Verdicts(np.full(2, np.nan), np.zeros(2, dtype=bool)), lengths[:2], BOOTSTRAP)
    assert nothing == {"prompts": 0, "without_verdict": 2, "agreement": None}


def test_length_control_finds_the_quality_behind_a_judge_that_likes_length() -> None:
    """Verdicts are drawn from a known quality and a known liking for length; the answers are mostly longer."""
    pick = np.random.default_rng(0)
    gaps = pick.normal(60, 100, 20000)
    for quality, liking in ((0.0, 2.0), (0.8, 1.0), (-0.5, 0.0)):
        wins = (pick.random(len(gaps)) < expit(quality + liking * np.tanh(gaps / gaps.std()))).astype(np.float64)
        assert length_controlled(wins, gaps) == pytest.approx(expit(quality), abs=0.02)
        if liking:
            assert wins.mean() > expit(quality) + 0.05
    assert length_controlled(np.array([1.0, 0.0, 1.0]), np.zeros(3)) == pytest.approx(2 / 3)


# -- an endpoint


class Server:
    """Answers as it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.answers: list[bytes] = []
        """Instead of verdicts."""
        self.pause = 0.0
        """Seconds after each byte."""
        self.pause_in_head = 0.0
        """Seconds after each of 100 headers."""
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(body)
                    outer.headers.append(self.headers.get("Authorization"))
                    status, headers = outer.failures.pop(0) if outer.failures else (200, {})
                text = body["messages"][0]["content"]
                first = text.split("<answer_A>\n")[1].split("\n</answer_A>")[0]
                verdict = "No idea." if "question 7" in text else f"So: [[{'A' if first.startswith('good') else 'B'}]]"
                answer = json.dumps({"choices": [{"message": {"content": f"Not [[C]].\n{verdict}"}}]}).encode()
                if "question 7" in text:
                    answer = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
                answer = outer.answers.pop(0) if outer.answers else answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                for number in range(100) if outer.pause_in_head else ():
                    self.send_header(f"X-{number}", "")
                    self.flush_headers()
                    time.sleep(outer.pause_in_head)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                with suppress(ConnectionError):
                    for piece in (bytes([byte]) for byte in answer) if outer.pause else (answer,):
                        self.wfile.write(piece)
                        time.sleep(outer.pause)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def endpoint(server: Server, cache: Path, **changes: Any) -> Endpoint:
    settings: dict[str, Any] = {
        "url": server.url,
        "model": "judge-1",
        "key": "secret",
        "cache": cache,
        "retries": 3,
        "timeout": 10.0,
        "parallel": 4,
        "max_tokens": 64,
        "first_wait": 0.01,
    }
    return Endpoint(**{**settings, **changes})


def test_an_endpoint_judges_in_both_orders_and_is_asked_once(server: Server, tmp_path: Path) -> None:
    server.failures = [(429, {"Retry-After": "0.01"}), (503, {}), (500, {})]
    mine = ["good"] * 6 + ["bad"] * 2
    theirs = ["bad"] * 6 + ["good"] * 2
    judge = endpoint(server, tmp_path)
    verdicts = judge_pairs(judge, QUESTIONS, mine, theirs)
    assert verdicts.wins[:7].tolist() == [1.0] * 6 + [0.0]
    assert np.isnan(verdicts.wins[7])  # its answer held no verdict
    assert len(server.asked) == 16 + 3
    assert {body["model"] for body in server.asked} == {"judge-1"}
    assert set(server.headers) == {"Bearer secret"}
    assert judge_pairs(judge, QUESTIONS, mine, theirs).wins[:7].tolist() == verdicts.wins[:7].tolist()
    assert len(server.asked) == 16 + 3
    kept = "".join(file.read_text() for file in tmp_path.iterdir())
    assert "secret" not in kept


def test_an_endpoint_that_refuses_is_said_at_once(server: Server, tmp_path: Path) -> None:
    server.failures = [(401, {})]
    with pytest.raises(DpoError, match="HTTP 401"):
        endpoint(server, tmp_path)([("q", "good", "bad")])
    assert len(server.asked) == 1
    server.failures = [(500, {})] * 3
    with pytest.raises(DpoError, match="HTTP 500"):
        endpoint(server, tmp_path, retries=2)([("q", "good", "bad")])
    assert len(server.asked) == 4
    with pytest.raises(DpoError, match="ConnectError"):
        endpoint(server, tmp_path, url="http://127.0.0.1:9/v1", retries=1)([("q", "good", "bad")])


@pytest.mark.parametrize("wait", ["nan", "-1", "-inf", "Wed, 21 Oct 2015 07:28:00 GMT", "0x10", ""])
def test_a_wait_that_is_none_is_ours(wait: str, server: Server, tmp_path: Path) -> None:
    server.failures = [(429, {"Retry-After": wait})]
    assert endpoint(server, tmp_path)([("q", "good", "bad")]) == [1.0]
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "answer", [b"[" * 100_000, b"\xff\xfe", b"null", b'{"choices": [{"message": 1}]}', b"9" * 5000]
)
def test_an_answer_that_is_none_is_said(answer: bytes, server: Server, tmp_path: Path) -> None:
    server.answers = [answer]
    with pytest.raises(DpoError, match="the answer is no chat completion"):
        endpoint(server, tmp_path)([("q", "good", "bad")])
    assert not list(tmp_path.iterdir())


def test_an_answer_without_an_end_is_cut_off(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpo_cli.evaluation.endpoint._LONGEST_ANSWER", 1000)
    server.answers = [b" " * 1001]
    with pytest.raises(DpoError, match="more than 1,000 bytes"):
        endpoint(server, tmp_path)([("q", "good", "bad")])


def test_an_answer_that_trickles_in_has_the_time_of_a_request(server: Server, tmp_path: Path) -> None:
    server.answers, server.pause = [b" " * 100], 0.05
    with pytest.raises(DpoError, match=r"not complete after 0.2 s"):
        endpoint(server, tmp_path, timeout=0.2, retries=0)([("q", "good", "bad")])
    server.pause, server.pause_in_head, began = 0.0, 0.05, time.monotonic()
    with pytest.raises(DpoError, match=r"not complete after 0.2 s"):
        endpoint(server, tmp_path, timeout=0.2, retries=0)([("q", "good", "bad")])
    assert time.monotonic() - began < 3.0  # of 5 that its head takes


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"answer": 5}', b"\xff", b"[" * 100_000])
def test_a_verdict_that_was_spoilt_is_asked_for_again(content: bytes, server: Server, tmp_path: Path) -> None:
    judge = endpoint(server, tmp_path)
    judge([("q", "good", "bad")])
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    assert judge([("q", "good", "bad")]) == [1.0]
    assert (len(server.asked), file.read_bytes()) == (2, good)


@pytest.mark.parametrize(("key", "sent"), [("abc\n", "abc"), ("a\nb", None), ("schlüssel", None)])
def test_a_key_that_no_header_can_have_is_not_said(key: str, sent: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", key)
    judge = EndpointConfig(
        name="openai", url="u", model="m", key_variable="A_KEY", max_tokens=1, parallel=1, retries=0, timeout=1,
        cache_dir=None,
    )  # fmt: skip
    if sent is None:
        with pytest.raises(DpoError, match="A_KEY holds letters that no HTTP header can have") as found:
            _key(judge)
        assert key not in str(found.value)
    else:
        assert _key(judge) == sent


# -- a reward model


def test_a_reward_model_prefers_its_higher_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tokenizers.quickstart()
    model = LlamaForSequenceClassification(llama(num_labels=1))
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    pairs = [("sort b a", "a b", "b a"), ("sort d c", "c d", "c d"), ("sort e f", "f", "e f")]

    def output(question: str, answer: str) -> float:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
        with torch.no_grad():
            return float(loaded(torch.tensor([ids])).logits)

    expected = [output(q, a) - output(q, b) for q, a, b in pairs]
    assert expected[0] != 0
    verdicts = reward_model(str(tmp_path / "rm"))(pairs)
    assert verdicts == [0.5 if gap == 0 else float(gap > 0) for gap in expected]

    LlamaForSequenceClassification(llama(num_labels=2)).save_pretrained(tmp_path / "two")
    with pytest.raises(DpoError, match="has 2 outputs: expected a reward model"):
        reward_model(str(tmp_path / "two"))
    with pytest.raises(DpoError, match=r"judge.path=.*none: there is no such folder"):
        reward_model(str(tmp_path / "none"))
