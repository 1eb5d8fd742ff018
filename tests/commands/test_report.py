"""``dpo report``'s page: everything in it, nothing that acts, and small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.run_folders import make_run, make_sweep, write_lines

from dpo_cli.commands.make_report import run
from dpo_cli.commands.pages import embedded
from dpo_cli.compose import group_defaults
from dpo_cli.errors import DpoError

NASTY = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> & \u2028 \u202e \x1b[2J \ud800"


class Tags(HTMLParser):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.text = ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes) -> None:
        self.found.append((tag, dict(attributes)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def report(*words: object) -> None:
    run([str(word) for word in words], group_defaults)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sweep(tmp_path_factory.mktemp("runs") / "sweep", 6, seeds=2, steps=30)
    report(folder)
    return folder


def test_a_sweep(sweep: Path) -> None:
    page = Tags(sweep / "report.html")
    for words in (
        *("Best by true reward: beta=", "95 % interval over 2 seeds", "Over seeds", "mean and 95 % interval"),
        *("loss.beta=0.1,seed=0", "loss.beta=1.0,seed=1", "held-out accuracy", "tokens per sample", "rows read"),
        *("There is no eval.json", "Not measured: training keeps means alone"),
    ):
        assert words in page.text
    data = page.data
    assert [group["name"] for group in data["groups"]] == ["beta=0.1", "beta=0.3", "beta=1"]
    assert sorted(run for group in data["groups"] for run in group["runs"]) == list(range(6))
    assert set(data["charts"]) >= {
        "loss",
        "accuracy",
        "margin",
        "logps-chosen",
        "logps-rejected",
        "kl",
        "speed",
        "memory",
    }
    assert len(data["charts"]["loss"]["lines"]) == 12  # of training and of held-out rows
    assert len(data["frontier"]) == 12  # before and after
    assert [point[2] for point in data["frontier"] if point[1] == 0] == [0.0] * 6
    assert all(samples["of"] == 32 for samples in data["samples"])


def test_curves_are_those_of_the_run(sweep: Path) -> None:
    lines = (sweep / "loss.beta=0.1,seed=0" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    values = [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]
    data = Tags(sweep / "report.html").data
    (drawn,) = [line for line in data["charts"]["loss"]["lines"] if (line["run"], line["label"]) == (0, "training")]
    assert data["runs"][0]["name"] == "loss.beta=0.1,seed=0"
    assert data["steps"][drawn["steps"]] == [step for step, _ in values]
    assert drawn["mean"] == pytest.approx([value for _, value in values], rel=1e-4)


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", steps=10, beta=0.3)
    report(folder, "--out", tmp_path / "new" / "page.html")
    page = Tags(tmp_path / "new" / "page.html")
    assert "What was set to something else than its default" in page.text
    rows = re.findall(
        r"<td>([\w.]+)</td><td>([^<]*)</td><td class=\"dim\">([^<]*)</td>", (tmp_path / "new" / "page.html").read_text()
    )
    assert ("loss.beta", "0.3", "0.1") in rows
    assert ("model.path", "a-model", "") in rows
    assert "train.epochs" not in {key for key, _, _ in rows}  # is at its default
    assert "logps" in page.data["charts"]  # chosen and rejected in one
    assert "logps-chosen" not in page.data["charts"]
    assert not (folder / "report.html").exists()
    assert "Best" not in capsys.readouterr().out


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=3, samples=0, status="failed", error="NumericsError: it went bad")
    write_lines(folder / "metrics.jsonl", [])
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).unlink()
    report(folder)
    text = Tags(folder / "report.html").text
    for words in (
        *(
            "NumericsError: it went bad",
            "There are no metrics in this run",
            "Not in this run: Loss",
            "Peak memory, GiB",
        ),
        *("No run has both a KL and a reward", "No answers were sampled", "What was set is not known"),
    ):
        assert words in text


def test_nothing_in_it_acts(tmp_path: Path) -> None:
    """Whatever samples, settings, errors and names say is text."""
    nasty_name = "<b>&\"'"
    folder = make_run(tmp_path / nasty_name, steps=3, settings={"data__path": NASTY}, status="failed", error=NASTY)
    make_run(tmp_path / "other", steps=3, status="failed", error=NASTY)
    samples = [{"step": step, "prompt": NASTY, "answer": NASTY, "true_reward": 0.5} for step in (0, 3)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), encoding="utf-8")
    (folder / "eval.json").write_text(json.dumps({"metrics": {NASTY: 1.0}}), encoding="utf-8")
    report(tmp_path)
    page = Tags(tmp_path / "report.html")
    assert [tag for tag, _ in page.found if tag in ("script", "img", "b", "link", "iframe", "object")] == ["script"] * 2
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    links = [attributes[name] for _, attributes in page.found for name in ("src", "href") if name in attributes]
    assert all(str(link).startswith("#") for link in links)
    names = [run["name"] for run in page.data["runs"]]
    assert names == [nasty_name, "other"]
    assert page.data["samples"][0]["rows"] == [[NASTY, NASTY, 0.5, NASTY, 0.5]]


def test_the_policy_lets_one_script_run_and_nothing_be_loaded(sweep: Path) -> None:
    page = Tags(sweep / "report.html")
    (policy,) = [each["content"] for tag, each in page.found if tag == "meta" and "http-equiv" in each]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_embedded_data_comes_back(tmp_path: Path) -> None:
    text = str(embedded({"a": NASTY, "b": [1.0, float("nan"), float("inf")], NASTY: None}))
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {"a": NASTY, "b": [1.0, None, None], NASTY: None}


def test_long_runs_make_small_pages(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=3000, every=100)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3001, "loss": 77.0}\n{"step": 3002, "loss": null}\n')
    report(tmp_path / "run")
    file = tmp_path / "run" / "report.html"
    assert file.stat().st_size < 1_000_000
    (line,) = [line for line in Tags(file).data["charts"]["loss"]["lines"] if line["label"] == "training"]
    assert max(line["high"]) == 77.0
    assert line["bad"] == [3002]


def test_what_an_evaluation_left(tmp_path: Path) -> None:
    """Single numbers, estimates with their interval, and the bins of a reliability diagram, wherever they stand."""
    make_sweep(tmp_path, 2, steps=3, samples=0)
    second = sorted(tmp_path.iterdir())[1]
    bins = [
        {"low": 0.5, "high": 0.75, "comparisons": 30, "confidence": 0.6, "accuracy": 0.5},
        {"low": 0.75, "high": 1.0, "comparisons": 0, "confidence": None, "accuracy": None},
    ]
    estimate = {"value": 0.75, "low": 0.7, "high": 0.8}
    told = {"version": 1, "config": {"seed": 7}, "intervals": {"level": 0.95}, "metrics": {"loss": 0.5}}
    told |= {"preferences": {"accuracy": estimate, "bins": bins}, "drift": {"policy": {"kl": estimate}}}
    told |= {"alarms": [{"name": "length-bias", "text": "prefers longer answers"}]}
    (second / "eval.json").write_text(json.dumps(told), encoding="utf-8")
    report(tmp_path)
    page = Tags(tmp_path / "report.html")
    assert page.data["calibration"] == [{"run": 1, "bins": [[0.6, 0.5, 30]]}]
    assert "Not measured" not in page.text
    table = " ".join(page.text[page.text.index(f"dpo eval{second.name}") :].split())
    assert table.startswith(
        f"dpo eval{second.name} implicit reward accuracy0.75 (0.7 to 0.8) "
        "sampled answers KL to the reference, nats per answer0.75 (0.7 to 0.8) other numbers loss0.5 Provenance"
    )
    assert "dpo eval: prefers longer answers" in " ".join(page.text.split())


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path / "sweep", 2, steps=1, loss="a$b^c")
    for folder in (tmp_path / "sweep").iterdir():
        lines = [{"step": step, "eval/rewards/accuracies": None if step == 1 else 0.5} for step in range(3)]
        write_lines(folder / "metrics.jsonl", [*lines, {"step": 2, "samples/kl": 0.5, "samples/kl_error": 0.1}])
    report(tmp_path / "sweep", "--png", tmp_path / "png")
    names = {file.name for file in (tmp_path / "png").iterdir()}
    assert names == {"accuracy.png", "kl.png", "frontier.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "png").iterdir())
    assert f"{len(names)} pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "the following arguments are required: RUN .dpo report --help."),
        (["nowhere"], "nowhere: there is no such folder"),
        (["run", "--metric", "los"], "--metric los: no run has it; they have epoch, eval/logps/chosen"),
        (["run", "--out", "run"], "--out run is a folder"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", steps=1)
    with pytest.raises(DpoError, match=says):
        run(words, group_defaults)
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_metric_that_the_best_is_chosen_by_is_in_the_tables(tmp_path: Path) -> None:
    make_sweep(tmp_path, 4, seeds=2, steps=3)
    report(tmp_path, "--metric", "grad_norm")
    text = " ".join(Tags(tmp_path / "report.html").text.split())
    assert "Best by grad_norm: beta=" in text
    assert text.count("grad_normtrue rewardheld-out accuracy") == 2  # of runs, and over seeds


def test_long_reasons_of_several_runs_are_cut(tmp_path: Path) -> None:
    reason = f"NumericsError: it went bad. {'row; ' * 200}Lower optim.lr"
    for name in ("a", "b"):
        make_run(tmp_path / "all" / name, steps=3, status="failed", error=reason)
    report(tmp_path / "all")
    text = Tags(tmp_path / "all" / "report.html").text
    found = re.findall(r"[ab]: after update 3 of 3: NumericsError: it went bad\..*?Lower optim.lr", text)
    assert len(found) == 2
    assert all(len(each) < 300 for each in found)
    report(tmp_path / "all" / "a")
    assert reason in Tags(tmp_path / "all" / "a" / "report.html").text
