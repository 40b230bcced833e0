"""`headrace context import`."""

from __future__ import annotations

import datetime
import decimal
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from context_driver import added, enricher, sqlite_url

from headrace.testing import run
from headrace.testing.postgres import PASSWORD, PostgresServer
from headrace_enricher_context.command import main
from headrace_enricher_context.csv_rows import kind_of

HEADER = "device,class,type,site,latitude,longitude,metric,unit,file\n"
CSV = HEADER + (
    "machine-1,industrial,thermometer,hall,45.5231,-122.6765,temperature,Cel,machine.csv\n"
    '"größe, 2",traffic,loop,twin-cities,44.9778,-93,occupancy,%,"two\nlines.csv"\n'
)


def csv_file(folder: Path, content: str | bytes) -> str:
    path = folder / "devices.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows(path: Path, columns: str = "*", table: str = "devices") -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()
    finally:
        connection.close()


def test_an_import_makes_file_folder_and_table_and_the_enricher_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "not" / "yet" / "context.db"
    assert main(["import", csv_file(tmp_path, CSV), "--database", sqlite_url(path)]) == 0
    assert capsys.readouterr().out == f"devices in {sqlite_url(path)}: 2 inserted, 0 updated, 0 unchanged\n"
    component, context = enricher(sqlite_url(path), tmp_path / "data")
    run(component.open())
    assert context.statuses == [("ok", "")]
    assert added(component, "größe, 2") == [
        {"class": "traffic", "type": "loop", "site": "twin-cities", "latitude": 44.9778, "longitude": -93.0}
    ]
    assert rows(path, "device, file")[0] == ("größe, 2", "two\nlines.csv")


def test_a_second_import_changes_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.db"
    main(["import", csv_file(tmp_path, CSV), "--database", sqlite_url(path)])
    assert main(["import", csv_file(tmp_path, CSV), "--database", sqlite_url(path)]) == 0
    assert "0 inserted, 0 updated, 2 unchanged" in capsys.readouterr().out
    changed = HEADER + "machine-1,industrial,thermometer,roof,,-122.6765,temperature,Cel,machine.csv\nnew,,,,,,,,\n"
    assert main(["import", csv_file(tmp_path, changed), "--database", sqlite_url(path)]) == 0
    assert "1 inserted, 1 updated, 0 unchanged" in capsys.readouterr().out
    assert rows(path, "device, site, latitude") == [("größe, 2", "twin-cities", 44.9778), ("machine-1", "roof", None), ("new", None, None)]


def test_types_follow_the_cells(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    content = "device,whole,share,code,big,empty,mixed\n1,5,1.5,007,9223372036854775808,,1\n2,-6,2e3,008,1,,north\n"
    assert main(["import", csv_file(tmp_path, content), "--database", sqlite_url(path)]) == 0
    assert rows(path) == [("1", 5, 1.5, "007", 9223372036854775808.0, None, "1"), ("2", -6, 2000.0, "008", 1.0, None, "north")]


def test_a_column_that_one_cell_made_text_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", csv_file(tmp_path, "device,latitude\na,1.5\nb,north\n"), "--database", sqlite_url(tmp_path / "c.db")])
    assert "column 'latitude' became text because of 'north' in line 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("int", ["0", "-5", " 7 ", "9223372036854775807"]),
        ("float", ["1.5", ".5", "5.", "1e9", "-0.25", "9223372036854775808"]),
        ("text", ["", "007", "00.5", "1e999", "nan", "inf", "e5", ".", "-", "1_000", "٣", "12.5.1", "0x10"]),
    ],
)
def test_what_cells_look_like(kind: str, cells: list[str]) -> None:
    assert {cell: kind_of(cell) for cell in cells} == dict.fromkeys(cells, kind)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ["devices.csv:1:", "names the columns", "empty file"]),
        (b"device,a,a\n", ["devices.csv:1:", "'a' twice"]),
        (b"device,,a\n", ["devices.csv:1:", "without a name"]),
        (b"devise,a\nx,1\n", ["devices.csv:1:", "a column 'device'", "did you mean 'devise'?"]),
        (b"device;a\nx;1\n", ["devices.csv:1:", "--delimiter"]),
        (b"device,a\nx,1\ny\n", ["devices.csv:3:", "2 cells", "got 1"]),
        (b'device,a\n"x\ny",1\nz,1,2\n', ["devices.csv:4:", "2 cells", "got 3"]),
        (b"device,a\nx,1\n,2\n", ["devices.csv:3:", "a device in column 1", "empty cell"]),
        (b"device,a\nx,1\ny,\xff\n", ["devices.csv:3:", "UTF-8", "byte 0xff at byte 3"]),
        (b"device,a\nx,1\ny,\0\n", ["devices.csv:3:", "NUL"]),
        (b'device,a\nx,"1\n', ["devices.csv:2:", "a line of CSV"]),
    ],
)
def test_an_error_names_the_line_and_nothing_is_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: list[str]
) -> None:
    assert main(["import", csv_file(tmp_path, content), "--database", sqlite_url(tmp_path / "c.db")]) == 1
    told = capsys.readouterr()
    assert [part for part in [*expected, "nothing was imported"] if part not in told.err] == []
    assert told.out == ""
    assert not (tmp_path / "c.db").exists()


def test_a_byte_order_mark_blank_lines_and_other_delimiters_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    content = "\ufeffserial; site \r\n\r\na;hall, 1\r\n\r\n".encode()
    assert main(["import", csv_file(tmp_path, content), "--database", sqlite_url(path), "--key", "serial", "--delimiter", ";"]) == 0
    assert rows(path) == [("a", "hall, 1")]


def test_the_last_of_several_lines_of_a_device_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.db"
    lines = "".join(f"d{number % 700},{number}\n" for number in range(1400)) + "once,1\n"
    assert main(["import", csv_file(tmp_path, "device,n\n" + lines), "--database", sqlite_url(path)]) == 0
    told = capsys.readouterr()
    assert "701 inserted" in told.out
    assert "device 'd0' stands more than once; line 702 counts" in told.err
    assert "695 more" in told.err
    assert ("d0", 700) in rows(path)


def test_the_types_of_an_existing_table_count_and_errors_are_row_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE devices (device TEXT, n INTEGER, code VARCHAR(3), active BOOLEAN, extra TEXT, CHECK (n < 1000))")
    connection.execute("INSERT INTO devices VALUES ('old', 1, 'abc', 1, 'stays')")
    connection.commit()
    connection.close()
    before = rows(path)

    def refused(line: str) -> str:
        good = "".join(f"d{number},1,x,yes\n" for number in range(600))
        assert main(["import", csv_file(tmp_path, f"device,n,code,active\n{good}{line}\n"), "--database", sqlite_url(path)]) == 1
        assert rows(path) == before
        return capsys.readouterr().err

    assert "devices.csv:602: expected an integer of 64 bits in column 'n', got '1.5'" in refused("x,1.5,x,no")
    assert "devices.csv:602: expected an integer of 64 bits in column 'n', got '9999999999999999999'" in refused("x,9999999999999999999,,")
    assert "devices.csv:602: expected text of at most 3 characters in column 'code', got 'long'" in refused("x,1,long,no")
    assert "devices.csv:602: expected true or false in column 'active', got 'maybe'" in refused("x,1,x,maybe")
    assert "devices.csv:602: expected a row that the database takes, got CHECK constraint failed" in refused("x,1000,x,no")
    assert main(["import", csv_file(tmp_path, "device,n,code,active\nold,5,,false\n"), "--database", sqlite_url(path)]) == 0
    assert rows(path) == [("old", 5, None, 0, "stays")]


def test_a_column_that_the_table_lacks_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = sqlite_url(tmp_path / "c.db")
    main(["import", csv_file(tmp_path, "device,site\na,x\n"), "--database", database])
    assert main(["import", csv_file(tmp_path, "device,sites\na,x\n"), "--database", database]) == 1
    assert "no column 'sites'; did you mean 'site'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["export"],
        ["import"],
        ["import", "x.csv"],
        ["import", "no-such.csv", "--database", "sqlite://"],
        ["import", "{folder}", "--database", "sqlite://"],
        ["import", "{csv}", "--database", "nonsense"],
        ["import", "{csv}", "--database", "nosuch://x:hush@y/z"],
        ["import", "{csv}", "--database", "sqlite://", "--delimiter", "ab"],
    ],
)
def test_wrong_usage_is_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    filled = [one.format(csv=csv_file(tmp_path, CSV), folder=tmp_path) for one in arguments]
    assert main(filled) == 2
    told = capsys.readouterr().err
    assert told
    assert "hush" not in told


def test_help_is_code_0_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--help"]) == 0
    assert "examples:" in capsys.readouterr().out


def test_an_unreachable_database_is_code_1_without_the_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql+psycopg://site:hush@127.0.0.1:1/db"
    assert main(["import", csv_file(tmp_path, CSV), "--database", url]) == 1
    told = capsys.readouterr().err
    assert "***" in told
    assert "hush" not in told


@pytest.mark.xdist_group("postgres")
def test_postgresql_takes_an_import_whole_or_not_at_all(
    postgres: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres.execute("CREATE SCHEMA plant")
    arguments = ["--database", postgres.url, "--table", "plant.devices"]
    assert main(["import", csv_file(tmp_path, CSV), *arguments]) == 0
    assert main(["import", csv_file(tmp_path, CSV.replace("hall", "roof")), *arguments]) == 0
    told = capsys.readouterr()
    assert "2 inserted, 0 updated, 0 unchanged" in told.out
    assert "0 inserted, 1 updated, 1 unchanged" in told.out
    assert PASSWORD not in told.out + told.err

    postgres.execute("ALTER TABLE plant.devices ADD CHECK (latitude < 90)", "ALTER TABLE plant.devices ALTER latitude TYPE numeric(6, 3)")
    bad = CSV.replace("hall", "cellar") + "pole,x,x,x,90.5,0,x,x,x\n"
    assert main(["import", csv_file(tmp_path, bad), *arguments]) == 1
    assert "devices.csv:5: expected a row that the database takes" in capsys.readouterr().err
    assert postgres.execute("SELECT device, site, latitude::text FROM plant.devices ORDER BY 1 DESC") == [
        ("machine-1", "roof", "45.523"),
        ("größe, 2", "twin-cities", "44.978"),
    ]


# --- Parquet ---------------------------------------------------------------------------------------------------------


def parquet_file(folder: Path, **columns: Any) -> str:
    path = folder / "devices.pq"
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_parquet_file_gives_the_table_its_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.db"
    moment = datetime.datetime(2026, 11, 26, 10, tzinfo=datetime.UTC)
    file = parquet_file(
        tmp_path,
        device=pa.array(["d1", "größe, 2", "d1"]).dictionary_encode(),
        code=["007", None, "008"],
        floor=pa.array([1, None, 2], pa.int16()),
        height=[1.5, 2.0, None],
        since=pa.array([moment, None, moment], pa.timestamp("ns", "UTC")),
        active=[True, False, None],
        tags=[["a"], None, ["b", "c"]],
        cost=pa.array([decimal.Decimal("1.25"), None, None]),
    )
    assert main(["import", file, "--database", sqlite_url(path)]) == 0
    told = capsys.readouterr()
    assert told.out == f"devices in {sqlite_url(path)}: 2 inserted, 0 updated, 0 unchanged\n"
    assert "device 'd1' stands more than once; row 3 counts" in told.err
    assert rows(path) == [
        ("d1", "008", 2, None, "2026-11-26T10:00:00+00:00", None, '["b", "c"]', None),
        ("größe, 2", None, None, 2.0, None, "false", None, None),
    ]
    assert main(["import", file, "--database", sqlite_url(path)]) == 0
    assert "0 inserted, 0 updated, 2 unchanged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"name": ["a"]}, "devices.pq: expected a column 'device', got 'name'; name the column"),
        ({"device": ["a", None, "c"]}, "devices.pq: row 2: expected a device in column 1, got an empty cell"),
        (
            {"device": ["a", "b"], "floor": ["1", "ground"]},
            "devices.pq: row 2: expected an integer of 64 bits in column 'floor'",
        ),
        ({"device": ["a", "b"], "floor": pa.array([b"1", b"\xff"])}, "devices.pq: row 2: expected a value that can be written as text"),
    ],
)
def test_an_error_names_the_very_row_of_a_parquet_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], text: str
) -> None:
    path = tmp_path / "c.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE devices (device TEXT PRIMARY KEY, floor INTEGER)")
    assert main(["import", parquet_file(tmp_path, **columns), "--database", sqlite_url(path)]) == 1
    assert text in capsys.readouterr().err
    assert rows(path) == []


def test_a_torn_parquet_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(parquet_file(tmp_path, device=["a"]))
    file.write_bytes(file.read_bytes()[:-3])
    assert main(["import", str(file), "--database", sqlite_url(tmp_path / "c.db")]) == 1
    assert "devices.pq: expected a Parquet file, got one that cannot be read" in capsys.readouterr().err
