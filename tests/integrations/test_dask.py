"""Chunk maps on real Dask workers, each a process with a memory limit below its nanny."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from memwarden.errors import ConfigError, JobError
from tests.integrations import dask_work as work

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("distributed")
import dask
from distributed import Client, LocalCluster

from memwarden.integrations.dask import map_chunks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def client(cluster: Client) -> Client:
    cluster.wait_for_workers(2, timeout=60)  # some test before may have killed them
    return cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = {
        "distributed.scheduler.allowed-failures": 2, "distributed.comm.timeouts.connect": "60s",
        # Else a worker that dies again just then is taken for lost for good, and its nanny is closed.
        "distributed.deploy.lost-worker-timeout": "1h",
        "temporary-directory": str(tmp_path_factory.mktemp("dask")),
    }  # fmt: skip
    path = os.pathsep.join([os.path.join(ROOT, "src"), ROOT])
    with (
        dask.config.set(settings),
        LocalCluster(  # type: ignore[no-untyped-call]  # Dask's
            n_workers=2, threads_per_worker=2, memory_limit="512MiB", dashboard_address=":0", processes=True,
            env={"PYTHONPATH": path}, silence_logs=50,
        ) as local,
        Client(local) as made,  # type: ignore[no-untyped-call]  # Dask's
    ):  # fmt: skip
        yield made


def test_results_come_in_the_order_of_the_keys_whoever_was_first(client: Client) -> None:
    found = list(map_chunks(client, work.squares, work.numbers, chunk=7, limit="64M", arguments={"count": 200}))
    assert [len(each) for each in found] == [7] * 28 + [4]
    assert [value for each in found for value in each] == [n * n for n in range(200)]


def test_lines_of_a_file_are_each_read_once_and_wide_ones_in_smaller_chunks(client: Client, tmp_path: Any) -> None:
    """A range of many bytes becomes several chunks, none above an eighth of the limit by much."""
    path = os.fspath(tmp_path / "lines")
    with open(path, "wb") as file:
        file.writelines(b"x" * (20_000 if number % 10 == 0 else 20) + b"\n" for number in range(4000))
    found = list(map_chunks(client, work.lengths, work.lines, chunk=2000, limit="8M", arguments={"path": path}))
    assert (sum(each[0] for each in found), sum(each[1] for each in found)) == (4000, 400 * 20_000 + 3600 * 20)
    assert max(each[1] for each in found) <= (8 << 20) // 8


def test_what_a_killed_worker_had_comes_back(client: Client, tmp_path: Any) -> None:
    mark = os.fspath(tmp_path / "killed")
    arguments = {"count": 100, "mark": mark}
    found = list(map_chunks(client, work.kills_once, work.numbers, chunk=5, limit="64M", arguments=arguments))
    assert os.path.exists(mark)
    assert found == [5] * 20


def test_a_range_that_kills_every_worker_is_named(client: Client) -> None:
    found = map_chunks(client, work.kills_always, work.numbers, chunk=10, limit="64M", arguments={"count": 60})
    with pytest.raises(JobError, match="items behind 29 up to 39: killed every worker"):
        list(found)


def test_what_the_function_raises_is_raised_with_its_place(client: Client) -> None:
    found = map_chunks(client, work.fails, work.numbers, chunk=10, limit="64M", retries=0, arguments={"count": 60})
    with pytest.raises(ValueError, match="item 30") as caught:
        list(found)
    assert caught.value.__notes__ == ["memwarden: at the items behind 29 up to 39"]


def test_a_worker_has_no_more_ranges_at_once_than_fit_into_its_memory(client: Client) -> None:
    """60 % of 512 MiB hold one range of 200 MiB, though the worker has two threads."""
    client.restart()  # how many fit is decided by a worker's first range
    found = list(map_chunks(client, work.at_once, work.numbers, chunk=5, limit="200M", arguments={"count": 100}))
    assert (len(found), max(found)) == (20, 1)


def test_no_more_is_sent_than_the_window(client: Client) -> None:
    """Ten million items: the client asks for a few keys, and what was sent is given up with the iterator."""
    found = map_chunks(
        client, work.squares, work.numbers, chunk=1000, limit="200M", in_flight=4, arguments={"count": 10_000_000}
    )  # fmt: skip
    assert next(found)[-1] == 999**2
    assert len(client.futures) <= 5
    found.close()  # type: ignore[attr-defined]  # a generator's


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"chunk": 0}, "chunk"),
        ({"chunk": 5, "limit": "huge"}, "limit"),
        ({"chunk": 5, "limit": "400M"}, "do not fit into 60%"),
        ({"chunk": 5, "in_flight": 0}, "in_flight"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_sent(client: Client, more: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        map_chunks(client, work.squares, work.numbers, arguments={"count": 10}, **more)


def test_no_client_and_no_source_are_clear_errors(client: Client) -> None:
    with pytest.raises(ConfigError, match="client: is a str"):
        map_chunks("tcp://...", work.squares, work.numbers, chunk=1)
    with pytest.raises(JobError, match="cannot be taken up in the middle"):
        map_chunks(client, work.squares, lambda: iter([1]), chunk=1, limit="64M")
