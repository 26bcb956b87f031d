"""Packages of the field, misused as in bug reports (with their mended twins) and used well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.leaks.zoo import Family

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.leaks.zoo.run import Run

PROGRAMS = Family()
leak = PROGRAMS.add
healthy = PROGRAMS.add


@leak("python", needs="rich")
def rich_record(run: Run) -> Callable[[], object]:
    import io

    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=80)

    def op() -> None:
        console.print(run.text(6000), markup=False, highlight=False, soft_wrap=True)
        console.file.seek(0)
        console.file.truncate()
        if not run.leaky:
            console.export_text(clear=True)

    return op


@leak("python", needs="jinja2")
def jinja_from_string(run: Run) -> Callable[[], object]:
    import jinja2

    environment = jinja2.Environment(autoescape=True)
    kept: list[Any] = []

    def op() -> None:
        template = environment.from_string("Hello {{ name }} " + run.text(30))
        template.render(name="you")
        kept.append(template)
        if not run.leaky:
            kept.clear()

    return op


@leak("python", needs="pydantic")
def pydantic_model_per_request(run: Run) -> Callable[[], object]:
    import pydantic

    kept: list[Any] = []

    def op() -> None:
        kept.append(pydantic.create_model("Form", name=(str, ...), age=(int, 3)))
        run.serial += 1
        if not run.leaky:
            kept.clear()

    return op


@leak("python", needs="pydantic")
def pydantic_rows(run: Run) -> Callable[[], object]:
    import pydantic

    class Row(pydantic.BaseModel):
        id: int
        name: str
        tags: list[str]

    kept: dict[int, Row] = {}

    def op() -> None:
        kept[run.serial] = Row(id=run.serial, name=run.text(30), tags=["a", "b"])
        if not run.leaky and len(kept) > 60:
            kept.clear()

    return op


@leak("python|native", needs="lxml")
def lxml_documents(run: Run) -> Callable[[], object]:
    from lxml import etree

    text = "<log>" + "".join(f"<e n='{i}'>some text {i}</e>" for i in range(20)) + "</log>"
    kept: list[Any] = []

    def op() -> None:
        kept.append(etree.fromstring(text))
        if not run.leaky and len(kept) > 10:
            kept.clear()

    return op


@leak("python|native", needs="numpy")
def numpy_frames(run: Run) -> Callable[[], object]:
    import numpy as np

    kept: list[Any] = []

    def op() -> None:
        kept.append(np.ones((40, 25)))
        if not run.leaky and len(kept) > 8:
            kept.clear()

    return op


@leak("python|native", needs="numpy")
def numpy_view_of_large(run: Run) -> Callable[[], object]:
    import numpy as np

    kept: list[Any] = []

    def op() -> None:
        frame = np.ones(9000)
        kept.append(frame[:10] if run.leaky else frame[:10].copy())
        if not run.leaky and len(kept) > 30:
            kept.clear()

    return op


@leak("python", needs="sqlalchemy")
def sqlalchemy_session(run: Run) -> Callable[[], object]:
    from sqlalchemy import Column, Integer, String, create_engine
    from sqlalchemy.orm import Session, declarative_base
    from sqlalchemy.pool import StaticPool

    base = declarative_base()

    class Item(base):  # type: ignore[misc,valid-type]
        __tablename__ = "item"
        id = Column(Integer, primary_key=True)
        name = Column(String)

    engine = create_engine("sqlite://", poolclass=StaticPool)
    base.metadata.create_all(engine)
    session = Session(engine)

    def op() -> None:
        session.add(Item(id=run.serial, name=run.text(60)))
        if not run.leaky:
            session.expunge_all()

    return op


@leak("python", needs="orjson")
def orjson_inbox(run: Run) -> Callable[[], object]:
    import orjson

    text = orjson.dumps({"rows": [{"k": i, "v": "v" * 20} for i in range(8)]})
    inbox: list[Any] = []

    def op() -> None:
        inbox.append(orjson.loads(text))
        if not run.leaky:
            del inbox[:-50]

    return op


@leak("python", needs="starlette")
def starlette_state(run: Run) -> Callable[[], object]:
    import asyncio

    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def page(request: Any) -> JSONResponse:
        request.app.state.seen.append({"path": request.url.path, "id": run.text(400), "user": {"name": run.text(300)}})
        if not run.leaky:
            request.app.state.seen.clear()
        return JSONResponse({"ok": True})

    app = Starlette(routes=[Route("/{name}", page)])
    app.state.seen = []
    loop = asyncio.new_event_loop()
    scope = {"type": "http", "method": "GET", "path": "/a", "query_string": b"", "headers": [], "http_version": "1.1"}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        return None

    return lambda: loop.run_until_complete(app({**scope, "app": app}, receive, send))


@leak("python", needs="requests")
def requests_sessions(run: Run) -> Callable[[], object]:
    import requests

    kept: list[Any] = []

    def op() -> None:
        session = requests.Session()
        session.headers["x-id"] = run.text(20)
        kept.append(session)
        if not run.leaky:
            kept.pop().close()

    return op


@healthy("none", needs="jinja2")
def jinja_pages(run: Run) -> None:
    import jinja2

    environment = jinja2.Environment(autoescape=True, cache_size=50)
    loader = {f"p{i}": f"<h1>{i}</h1>" + "{{ name }}<p>" * 20 for i in range(80)}
    environment.loader = jinja2.DictLoader(loader)
    for _, weight in run.ticks():
        for _ in range(int(2 * weight)):
            environment.get_template(f"p{min(int(run.rng.expovariate(1 / 20)), 79)}").render(name="x" * 50)
            run.work_done += 1


@healthy("none", needs="sqlalchemy")
def sqlalchemy_pages(run: Run) -> None:
    import sqlalchemy as sa

    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    table = sa.Table("item", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String))
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": i, "name": f"name {i}" * 5} for i in range(4000)])
    for _, weight in run.ticks():
        with engine.connect() as connection:
            rows = connection.execute(table.select().where(table.c.id < run.rng.randrange(20, 900))).all()
        run.work_done += int(weight * 3) + len(rows) * 0


@healthy("none", needs="lxml")
def lxml_feeds(run: Run) -> None:
    from lxml import etree

    for _, weight in run.ticks():
        for _ in range(int(weight * 2)):
            count = min(int(run.rng.lognormvariate(4, 0.8)), 2000)
            document = etree.fromstring("<r>" + "<e a='1'>text</e>" * count + "</r>")
            len(document.xpath("//e"))
            run.work_done += 1


@healthy("none", needs="numpy")
def numpy_batches(run: Run) -> None:
    import numpy as np

    for _, weight in run.ticks():
        for _ in range(int(weight * 2)):
            frame = np.random.default_rng(run.work_done).random((run.rng.randrange(20, 400), 100))
            frame.sum(axis=0)
            run.work_done += 1


@healthy("none", needs="rich")
def rich_tables(run: Run) -> None:
    import io

    from rich.console import Console
    from rich.table import Table

    for n, (_, weight) in enumerate(run.ticks()):
        if n % 4 == 0:
            table = Table("a", "b")
            for i in range(run.rng.randrange(3, 12)):
                table.add_row(str(i), "x" * run.rng.randrange(5, 30))
            Console(file=io.StringIO(), width=60).print(table)
        run.work_done += int(weight * 3)


@healthy("none", needs="hypothesis")
def hypothesis_checks(run: Run) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    @settings(
        max_examples=12, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    @given(st.lists(st.text(max_size=10), max_size=10))
    def check(_: list[str]) -> None:
        run.work_done += 1

    for n, _ in enumerate(run.ticks()):
        if n % 15 == 0:
            check()


@healthy("none", needs="pydantic")
def pydantic_validation(run: Run) -> None:
    import pydantic

    class Row(pydantic.BaseModel):
        id: int
        tags: list[str]

    adapter = pydantic.TypeAdapter(list[Row])
    for _, weight in run.ticks():
        for _ in range(int(2 * weight)):
            adapter.validate_python([{"id": i, "tags": ["a"] * 3} for i in range(run.rng.randrange(5, 60))])
            run.work_done += 1


@healthy("none", needs="httpx")
def late_imports(run: Run) -> None:
    waves = ["orjson", "yaml", "httpx", "jinja2", "pydantic", "sqlalchemy", "lxml.etree", "numpy"]
    run.rng.shuffle(waves)
    times = sorted(run.rng.uniform(0.02, 0.6) for _ in waves)
    for over, weight in run.ticks():
        if times and over > times[0]:
            times.pop(0)
            __import__(waves.pop())
        run.work_done += int(weight * 4)


@healthy("none", needs="yaml")
def yaml_configuration(run: Run) -> None:
    import yaml

    text = "\n".join(f"key{i}: [1, 2, {{a: b}}]" for i in range(12))
    current = None
    for n, (_, weight) in enumerate(run.ticks()):
        if n % 12 == 0:
            current = yaml.safe_load(text)
        run.work_done += int(weight * 3) if current else 0
