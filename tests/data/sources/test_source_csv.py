"""Comma- and tab-separated text."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest
from helpers.sources import read, source, write

from dpo_cli.data.sources import Row
from dpo_cli.errors import DataError

HEADER = "prompt,chosen,rejected\n"


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_and_the_lines_they_start_on(tmp_path: Path, name: str, start: str, end: str) -> None:
    text = f'{start}{HEADER}Hi,"Hello, ""you""\nand you",No\n\n1,true,"[""a""]"\n,,\n'
    rows = read(write(tmp_path / name, text.replace("\n", end).encode()))
    assert rows == [
        Row(f"{name}, line 2", {"prompt": "Hi", "chosen": f'Hello, "you"{end}and you', "rejected": "No"}),
        Row(f"{name}, line 5", {"prompt": "1", "chosen": "true", "rejected": '["a"]'}),
        Row(f"{name}, line 6", {"prompt": "", "chosen": "", "rejected": ""}),
    ]


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "b.TSV"])
def test_tabs(tmp_path: Path, name: str) -> None:
    rows = read(write(tmp_path / name, b'prompt\tchosen\na, b\t"c\td"\n'))
    assert rows == [Row(f"{name}, line 2", {"prompt": "a, b", "chosen": "c\td"})]


def test_what_python_writes_is_read_back(tmp_path: Path) -> None:
    generator = random.Random(0)
    values = [
        {name: "".join(generator.choices(" ,\"\n\r'é😊a", k=9)) for name in ("a", "b,", 'c"\n')[:2]} for _ in range(300)
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(values[0]))
    writer.writeheader()
    writer.writerows(values)
    rows = read(write(tmp_path / "a.csv", text.getvalue().encode()))
    assert [row.values for row in rows] == values


def test_a_long_field(tmp_path: Path) -> None:
    field = 'x"\n' * 3_500_000
    rows = read(write(tmp_path / "a.csv", f'{HEADER}Hi,"{field.replace(chr(34), chr(34) * 2)}",No\nA,B,C\n'.encode()))
    assert [(row.source, row.values["chosen"] == field) for row in rows] == [
        ("a.csv, line 2", True),
        ("a.csv, line 3500003", False),
    ]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b"a,b", "2 fields, expected 3 as in the first line: is a comma outside quotes?"),
        (b"a,b,c,d", "4 fields, expected 3 as in the first line: is a comma outside quotes?"),
        (b"a,b\0,c", "chosen: a zero byte"),
        (b"a,caf\xe9,c", "chosen: not valid UTF-8"),
    ],
)
def test_a_bad_record_leaves_the_others(tmp_path: Path, record: bytes, problem: str) -> None:
    rows = read(write(tmp_path / "a.csv", HEADER.encode() + b"1,2,3\n" + record + b"\n4,5,6\n"))
    assert [(row.source, row.problem) for row in rows] == [
        ("a.csv, line 2", ""),
        ("a.csv, line 3", problem),
        ("a.csv, line 4", ""),
    ]
    assert not rows[1].values
    assert rows[2].values == {"prompt": "4", "chosen": "5", "rejected": "6"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty: expected a line with the names of the columns"),
        ("prompt;chosen\n", "line 1: expected commas between the columns, found ; (semicolons)"),
        ("prompt\tchosen\n", "line 1: expected commas between the columns, found tabs: its name should end in .tsv"),
        ("a,b,a\n", "line 1: two columns are called 'a'"),
        ("a,,c\n", "line 1: column 2 has no name"),
        ("a,caf\udce9\n", "line 1: column 2: not valid UTF-8: save the file as UTF-8"),
        (f"{'long text ' * 30},b\n", "line 1: expected the names of the columns, found long text"),
        (
            f'{HEADER}1,2,3\n4,"5,6\n7,8,9\n',
            "the record that starts on line 3 can't be read (a quote is opened and never",
        ),
        (f'{HEADER}1,2,3\n4,"5"x,6\n', "the record that starts on line 3 can't be read (',' expected after '\"')"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "a.csv", text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as error:
        read(file)
    assert str(error.value).startswith(("a.csv, " if message.startswith("line 1") else "a.csv: ") + message)
    assert "\n" not in str(error.value)


def test_the_first_column_of_pandas_needs_no_name(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", b",a\n0,x\n")) == [Row("a.csv, line 2", {"": "0", "a": "x"})]


def test_no_rows_and_no_more_than_a_header(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", HEADER.encode())) == []


def test_rows_before_a_damage_come(tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.csv", f'{HEADER}1,2,3\n"4'.encode())).rows()
    assert next(rows).values == {"prompt": "1", "chosen": "2", "rejected": "3"}
    with pytest.raises(DataError, match="line 3"):
        next(rows)
