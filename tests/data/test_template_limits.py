"""Chat templates are strangers' programs: what they may not do, how long they may take, how large they may get."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.command import environment
from helpers.tokenizers import with_bos

from dpo_cli.data import limits
from dpo_cli.data.limits import bounded
from dpo_cli.data.tokenize import Encoding, tokenize
from dpo_cli.data.types import Example, Pair
from dpo_cli.errors import DpoError

ROW = Example("Hi", ["Hello", "Go away"], (Pair(0, 1),), source="rows.jsonl, line 7")
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}{% endfor %}"
SLOW = {
    "nested loops": f"{LOOP}{ENDS}",
    "a loop that collects": f"{{% set ns = namespace(x=0) %}}{LOOP}{{% set ns.x = ns.x + 1 %}}{ENDS}",
    "powers": "{% set ns = namespace(x=3) %}{% for a in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "folded while it is compiled": "{{ 3 ** 999999999 }}",
}
LARGE = {
    "a string": "{{ 'x' * 10 ** 10 }}",
    "a string of a variable": "{% set n = 10 ** 10 %}{{ messages[0].content * n }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a width": "{{ '%9999999999d' | format(1) }}",
    "a column": "{{ 'x' | center(9999999999) }}",
    "a list": "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "replacing": "{% set a = 'x' * 99999 %}{{ a | replace('x', a) }}",
}
LONG = {
    "a string": "{{ 'x' * 70000000 }}",
    "many short ones": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
}
SANDBOX = {
    "globals": "{{ cycler.__init__.__globals__ }}",
    "the class tree": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a format": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "the caller's code": "{% macro f() %}{% endmacro %}{{ f.__call__.__func__.__globals__ }}",
    "the environment": "{{ self.__init__.__globals__ }}",
    "changing the messages": "{{ messages.append(1) }}",
    "a long range": "{{ range(10000000) | list }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "division": "{{ 1 / 0 }}",
}
NOTHING = ["{{ ('{0.__class__}' | attr('format'))(messages) }}", "{{ '{a.__class__}'.format_map({'a': 1}) }}"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less time, so that tests take less."""
    monkeypatch.setattr(limits, "SECONDS", 0.3)


def rendered(template: str) -> str:
    """What comes of the row, or the message that refuses it."""
    tokenizer = with_bos()
    tokenizer.chat_template = template
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        return tokenize([ROW], tokenizer, Encoding(), [tokenizer.eos_token_id])[0].rendered.prompt
    except DpoError as error:
        return str(error)
    finally:
        assert resource.getrlimit(resource.RLIMIT_AS) == before
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.usefixtures("short")
def test_time_is_bounded(name: str) -> None:
    began = time.process_time()
    message = rendered(SLOW[name])
    assert message.startswith("rows.jsonl, line 7: the chat template ran for more than 0.3 s; expected one that only")
    assert time.process_time() - began < 3


@pytest.mark.parametrize("name", LARGE)
def test_memory_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMORY", 200 << 20)
    message = rendered(LARGE[name])
    assert message.startswith("rows.jsonl, line 7: the chat template took more than 200 MiB of memory; expected")


@pytest.mark.parametrize("name", LONG)
def test_output_is_bounded(name: str) -> None:
    assert "characters, more than 67,108,864; expected one that only writes the dialogue" in rendered(LONG[name])


@pytest.mark.parametrize("name", SANDBOX)
def test_the_sandbox_holds(name: str) -> None:
    message = rendered(SANDBOX[name])
    assert "the chat template refuses this dialogue" in message, message
    assert "\n" not in message


@pytest.mark.parametrize("template", NOTHING)
def test_the_sandbox_gives_nothing(template: str) -> None:
    assert rendered(template) == ""


def test_time_is_counted_for_each_row_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    with bounded() as bounds:
        for row in range(4):
            bounds.begin(f"row {row}")
            until = time.process_time() + 0.15
            while time.process_time() < until:
                pass


def test_what_hears_no_signal_ends_the_process(tmp_path: Path) -> None:
    """Comparing two lists of lists that are one list, sixty deep: Python itself would take years, deaf to Ctrl-C."""
    template = (
        "{% set ns = namespace(a=[1], b=[1]) %}{% for x in range(60) %}"
        "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}"
    )
    code = (
        "from dpo_cli.data import limits; limits.SECONDS = 0.2\n"
        "from jinja2.sandbox import ImmutableSandboxedEnvironment as Environment\n"
        f"template = Environment().from_string({template!r})\n"
        "with limits.bounded() as bounds:\n    bounds.begin('row')\n    template.render()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == -signal.SIGPROF
    assert 'File "<template>", line 27 in root' in ended.stderr


def work(rows: int, seconds: float) -> None:
    """Rows that take so long each to be rendered."""
    with bounded() as bounds:
        for number in range(rows):
            bounds.begin(f"row {number}")
            until = time.process_time() + seconds
            while time.process_time() < until:
                sum(range(1000))  # the process's own work; to ask for the time is the kernel's


def test_rows_that_are_each_within_their_time_have_a_bound_together(
    short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ON_AVERAGE", 0.01)
    work(80, 0.005)  # as fast as is expected, however many
    with pytest.raises(DpoError, match=r"^row \d: the chat template ran for 0 s for the last \d rows; expected"):
        work(10, 0.15)


def test_a_time_that_is_up_leaves_nothing() -> None:
    before = signal.getsignal(signal.SIGVTALRM)

    def spin() -> None:
        with limits.within(0.1, "too slow"):
            while True:
                pass

    with pytest.raises(DpoError, match="too slow"):
        spin()
    with limits.within(0.1, "too slow"):
        pass
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
