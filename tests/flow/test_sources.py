"""What a stream reads from: each real thing, page by page, closed at the end."""

from __future__ import annotations

import asyncio
import gzip
import sqlite3
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from memwarden import flow
from memwarden.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


def rows_of(source: Any, **options: Any) -> list[Any]:
    return [row for chunk in flow.chunks(source, **options) for row in chunk]


def write(path: Path, text: str) -> Path:
    """As the suffix says."""
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
            file.write(text)
    else:
        path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.log", "a.txt.gz"])
def test_lines(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "one\ntwo é\nthree")
    assert rows_of(path) == ["one\n", "two é\n", "three"]
    assert rows_of(str(path), format="lines") == ["one\n", "two é\n", "three"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.CSV"])
def test_csv_rows_are_dictionaries_and_quoted_line_breaks_are_not_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 'id,name\r\n1,"a\nb"\r\n2,c\r\n')
    assert rows_of(path) == [{"id": "1", "name": "a\nb"}, {"id": "2", "name": "c"}]


def test_csv_with_another_delimiter_and_encoding(tmp_path: Path) -> None:
    path = tmp_path / "data.dat"
    path.write_bytes("id;name\n1;é\n".encode("latin-1"))
    assert rows_of(path, format="csv", delimiter=";", encoding="latin-1") == [{"id": "1", "name": "é"}]


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonl", "a.ndjson.gz"])
def test_documents(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '{"a": 1}\n\n[2]\n')
    assert rows_of(path) == [{"a": 1}, [2]]


def test_a_bad_document_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", '{"a": 1}\n{bad\n{"a": 3}\n')
    with pytest.raises(SourceError, match="behind 1 rows: ValueError: line 2: "):
        rows_of(path)
    stream = flow.chunks(path, on_error="continue")
    assert [row for chunk in stream for row in chunk] == [{"a": 1}, {"a": 3}]
    assert len(stream.dead) == 1


def test_a_stream_of_lines_may_be_parsed_too() -> None:
    assert rows_of(iter(['{"a": 1}\n', '{"a": 2}\n']), format="ndjson") == [{"a": 1}, {"a": 2}]


def test_a_file_that_is_not_there_or_of_no_known_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.csv: No such file or directory"):
        rows_of(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match=r"x\.bin: its name does not say what is in it; give format="):
        rows_of(tmp_path / "x.bin")
    with pytest.raises(SourceError, match=r"chunks failed behind 0 rows: UnicodeDecodeError"):
        rows_of(write_bytes(tmp_path / "bad.txt"))


def write_bytes(path: Path) -> Path:
    path.write_bytes(b"\xff\xfe\xff")
    return path


def test_a_truncated_gz_gives_what_came_before_its_end(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"line %d\n" % number for number in range(200_000)))
    (tmp_path / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    seen: list[str] = []
    with pytest.raises(SourceError, match="EOFError"):
        seen.extend(row for chunk in flow.chunks(tmp_path / "cut.txt.gz") for row in chunk)
    assert seen == [f"line {number}\n" for number in range(len(seen))]
    assert len(seen) > 10_000


def test_files_are_read_again_by_each_run_and_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a\nb\n")
    stream = flow.chunks(path)
    for _ in range(2):
        assert [list(chunk) for chunk in stream] == [["a\n", "b\n"]]
    for _ in stream:
        break  # a file left open would be a ResourceWarning, which is an error here


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table notes (id integer primary key, body text)")
        connection.executemany("insert into notes values (?, ?)", [(n, "é" * (n % 700)) for n in range(3000)])
    connection.close()
    return path


EXPECTED = [(n, "é" * (n % 700)) for n in range(3000)]


def test_a_cursor_of_the_database_api(table: Path) -> None:
    connection = sqlite3.connect(table)
    cursor = connection.execute("select id, body from notes order by id")
    assert rows_of(cursor, budget="1M") == EXPECTED
    with pytest.raises(sqlite3.ProgrammingError, match="closed cursor"):
        cursor.fetchone()
    connection.close()


def test_a_cursor_bound_to_its_thread_says_so_when_read_ahead(table: Path) -> None:
    connection = sqlite3.connect(table)
    cursor = connection.execute("select id, body from notes")
    with pytest.raises(Exception, match="thread"):
        rows_of(cursor, prefetch=1)
    cursor.close()
    connection.close()


def test_results_of_sqlalchemy(table: Path) -> None:
    sa = pytest.importorskip("sqlalchemy")
    engine = sa.create_engine(f"sqlite:///{table}")
    query = sa.text("select id, body from notes order by id")
    with engine.connect() as connection:
        result = connection.execution_options(stream_results=True).execute(query)
        assert [tuple(row) for row in rows_of(result, budget="1M")] == EXPECTED
        assert rows_of(connection.execute(query).scalars()) == [n for n, _ in EXPECTED]
        assert rows_of(connection.execute(query).mappings())[5] == {"id": 5, "body": "é" * 5}
        result = connection.execute(query)
        for _ in flow.chunks(result, rows=10):
            break
        assert result.closed
    engine.dispose()


def test_objects_of_an_orm(table: Path) -> None:
    sa = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    base: Any = orm.declarative_base()

    class Note(base):  # type: ignore[misc]
        __tablename__ = "notes"
        id = sa.Column(sa.Integer, primary_key=True)
        body = sa.Column(sa.String)

    engine = sa.create_engine(f"sqlite:///{table}")
    with orm.Session(engine) as session:
        result = session.scalars(sa.select(Note).order_by(Note.id).execution_options(yield_per=100))
        assert [(note.id, note.body) for note in rows_of(result, budget="1M")] == EXPECTED
    engine.dispose()


def test_asynchronous_results_and_cursors(table: Path) -> None:
    aio = pytest.importorskip("sqlalchemy.ext.asyncio")
    sa = pytest.importorskip("sqlalchemy")
    aiosqlite = pytest.importorskip("aiosqlite")

    async def run() -> None:
        engine = aio.create_async_engine(f"sqlite+aiosqlite:///{table}")
        async with engine.connect() as connection:
            result = await connection.stream(sa.text("select id, body from notes order by id"))
            found = [tuple(row) async for chunk in flow.chunks(result, budget="1M") for row in chunk]
            assert found == EXPECTED
        await engine.dispose()
        async with aiosqlite.connect(table) as connection:
            cursor = await connection.execute("select id, body from notes order by id")
            found = [row async for chunk in flow.chunks(cursor, budget="1M", prefetch=1) for row in chunk]
            assert found == EXPECTED

    asyncio.run(run())


def batches(count: int) -> Iterator[Any]:
    arrow = pytest.importorskip("pyarrow")
    for start in range(0, count, 700):
        numbers = range(start, min(count, start + 700))
        yield arrow.record_batch({"id": list(numbers), "body": ["x" * (n % 3000) for n in numbers]})


def test_record_batches_are_cut_by_their_bytes_without_a_copy() -> None:
    seen: list[int] = []
    for chunk in flow.chunks(batches(5000), budget="1M", rows=900):
        assert chunk.cut.bytes <= MIB
        assert chunk.cut.rows == sum(batch.num_rows for batch in chunk) <= 900
        assert chunk.cut.first == len(seen)
        seen += [number for batch in chunk for number in batch.column("id").to_pylist()]
    assert seen == list(range(5000))


def test_a_record_batch_reader() -> None:
    arrow = pytest.importorskip("pyarrow")
    first = next(batches(1))
    reader = arrow.RecordBatchReader.from_batches(first.schema, batches(2000))
    seen = [n for chunk in flow.chunks(reader, budget="1M") for batch in chunk for n in batch.column("id").to_pylist()]
    assert seen == list(range(2000))


def test_parquet_by_path_and_by_file(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_batches(list(batches(5000))), path, row_group_size=2000)
    for source in (path, parquet.ParquetFile(path)):
        found = list(flow.chunks(source, budget="1M", keep=True))
        assert [n for chunk in found for batch in chunk for n in batch.column("id").to_pylist()] == list(range(5000))
        assert max(chunk.cut.bytes for chunk in found) <= MIB
        assert len(found) >= 5000 * 1500 // MIB
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match=r"bad\.parquet: "):
        rows_of(tmp_path / "bad.parquet")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_query_sets_of_django(table: Path) -> None:
    django = pytest.importorskip("django")
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(table)}}, USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )  # fmt: skip
    django.setup()
    from django.db import connection, models

    class Note(models.Model):  # type: ignore[misc]  # noqa: DJ008  nobody reads it
        body = models.TextField()

        class Meta:
            app_label = "notes"
            db_table = "notes"
            managed = False

    found = Note.objects.order_by("id")
    assert [(note.id, note.body) for note in rows_of(found, budget="1M")] == EXPECTED
    assert found._result_cache is None  # iterating it would have kept every row there
    assert rows_of(found.values_list("id", flat=True)) == [n for n, _ in EXPECTED]

    async def awaited() -> list[Any]:
        return [note.id async for chunk in flow.chunks(found, rows=500) for note in chunk]

    assert asyncio.run(awaited()) == [n for n, _ in EXPECTED]
    connection.close()


def test_rows_with_decimals_and_nothing() -> None:
    assert rows_of([(Decimal(1), None)] * 3) == [(Decimal(1), None)] * 3
    assert rows_of([]) == []
    assert rows_of(iter(())) == []
