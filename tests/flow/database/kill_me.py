"""The program that is killed: copies a table chunk by chunk, and says on stdout when it has done one.

Arguments: the database's URL, the kind of sink, the folder of the file and of the store. "table": in the chunk's
transaction; "file": with a store; "marks": a file with the checkpoints in the database, one for each chunk; "journal":
a file with the place in a journal between the checkpoints; "mixed": the same, and each third chunk into the table.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import sqlalchemy as sa

from memwarden import flow
from memwarden.store import Store

if TYPE_CHECKING:
    from memwarden.flow.database import Batch


def main(url: str, kind: str, folder: str) -> None:
    engine = sa.create_engine(url)
    source = sa.Table("source", sa.MetaData(), autoload_with=engine)
    sink = sa.Table("sink", sa.MetaData(), autoload_with=engine)
    out = os.open(os.path.join(folder, "sink"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def into_table(chunk: Batch) -> None:
        chunk.connection.execute(sink.insert(), [{"id": row.id} for row in chunk])
        os.write(1, b".\n")

    def into_file(chunk: Batch) -> None:
        os.write(out, f"{chunk.id} {chunk[0].id} {chunk[-1].id}\n".encode())
        os.write(1, b".\n")

    def into_either(chunk: Batch) -> None:
        (into_file if chunk[0].id // 100 % 3 else into_table)(chunk)

    statement = sa.select(source)
    if kind == "table":
        flow.process(statement, into_table, engine, name="copy", rows=100)
    elif kind == "journal":
        flow.process(statement, into_file, engine, name="copy", rows=100)
    elif kind == "mixed":
        flow.process(statement, into_either, engine, name="copy", rows=100)
    elif kind == "marks":
        flow.process(statement, into_file, engine, name="copy", rows=100, checkpoint_s=0)
    else:
        with Store(folder) as store:
            flow.process(statement, into_file, engine, name="copy", rows=100, checkpoint=store)


if __name__ == "__main__":
    main(*sys.argv[1:])
