"""A handler over chunks: several at once, in order or as completed, with what to do when it raises.

`parallel` chunks are handled at once: in threads where the handler waits (the default), in processes where it computes,
as tasks where it is a coroutine function under `async for`. No more chunks than that (and those that are prefetched)
are in memory, each in the budget; a chunk is released as soon as it is handled. Results are not counted.

Policies for a handler that raises, in the order of their names here whatever the order given: "retry" (again, with
back-off), "bisect" (halves, down to the rows that fail: 2 log2(rows) calls for one bad row; the rest is handled, so a
handler must not have done half of its work where it raises), "continue" (the chunk is given up), "stop" (HandlerError).
What is given up is a `DeadLetter`.
"""

from __future__ import annotations

from collections import deque

from memwarden.errors import ConfigError, HandlerError, MemwardenError
from memwarden.facts import Fact
from memwarden.flow.cutter import Chunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from concurrent.futures import Executor, Future
    from typing import Any

    from memwarden.flow.chunked import Chunks, _Run
    from memwarden.flow.cutter import Cut

__all__ = ["DeadLetter", "Mapped", "keep_letter"]

# Dead letters kept by a stream; a source of nothing but bad rows must not fill the memory with complaints.
MOST_LETTERS = 1000
# Of an error's text, which may quote the row.
_LONGEST_ERROR = 500


class DeadLetter(Fact):
    """Rows that were given up: `first` to `last` (counted from 0, inclusive) of a chunk, after so many attempts, why.

    `chunk` is the number of the chunk, -1 where the source failed at the row and it is in none.
    """

    chunk: int
    first: int
    last: int
    error: str
    attempts: int


def keep_letter(dead: list[DeadLetter], letter: DeadLetter) -> None:
    """Keep it, the newest thousand of them."""
    dead.append(letter)
    del dead[:-MOST_LETTERS]


def _pause(seconds: float) -> None:
    from threading import Event

    Event().wait(seconds)


class _Policy:
    """Calls a handler on a chunk and follows the policies. Pickled with the handler where processes do the work."""

    def __init__(
        self, handler: Callable[[Any], Any], on_error: tuple[str, ...], retries: int, backoff_s: float
    ) -> None:
        self.handler = handler
        self.on_error = on_error
        self.retries = retries if "retry" in on_error else 0
        self.backoff_s = backoff_s

    def steps(self, chunk: Chunk[Any]) -> Generator[tuple[str, Any], Any, tuple[list[Any], list[DeadLetter]]]:
        """What to do, for a loop that calls and one that awaits: ("call", rows) is answered by (result, error).

        Returns results (one where nothing was bisected) and dead letters. Raises HandlerError.
        """
        results: list[Any] = []
        letters: list[DeadLetter] = []
        todo = [(chunk, chunk.cut.first)]
        while todo:
            rows, first = todo.pop()
            attempts, error = 0, None
            while attempts <= self.retries:
                if attempts:
                    yield "wait", self.backoff_s * 2 ** (attempts - 1)
                attempts += 1
                result, error = yield "call", rows
                if error is None:
                    results.append(result)
                    break
            if error is None:
                continue
            count = len(rows)
            if "bisect" in self.on_error and count > 1:
                middle = count // 2
                todo += [(_part(rows, middle, count), first + middle), (_part(rows, 0, middle), first)]
                continue
            whole = rows is chunk
            last = chunk.cut.last if whole else first + count - 1
            if not whole or "continue" in self.on_error or "bisect" in self.on_error:
                text = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
                letters.append(
                    DeadLetter(chunk=chunk.cut.number, first=first, last=last, error=text, attempts=attempts)
                )
                continue
            raise _failure(chunk, error, attempts)
        return results, letters

    def __call__(
        self, chunk: Chunk[Any], pause: Callable[[float], object] = _pause
    ) -> tuple[list[Any], list[DeadLetter]]:
        """In this thread."""
        steps = self.steps(chunk)
        answer: Any = None
        while True:
            try:
                word, value = steps.send(answer)
            except StopIteration as end:
                found: tuple[list[Any], list[DeadLetter]] = end.value
                return found
            if word == "wait":
                pause(value)
                answer = None
                continue
            try:
                answer = (self.handler(value), None)
            except Exception as error:  # noqa: BLE001  a handler may raise anything; the policies decide
                answer = (None, error)
            if hasattr(answer[0], "__await__"):
                if hasattr(answer[0], "close"):
                    answer[0].close()
                raise ConfigError("the handler is a coroutine function", where="map", mend="write `async for` over it")

    async def awaited(self, chunk: Chunk[Any]) -> tuple[list[Any], list[DeadLetter]]:
        """The same for a coroutine function, or a function called in a thread."""
        import asyncio

        steps = self.steps(chunk)
        answer: Any = None
        while True:
            try:
                word, value = steps.send(answer)
            except StopIteration as end:
                found: tuple[list[Any], list[DeadLetter]] = end.value
                return found
            if word == "wait":
                await asyncio.sleep(value)
                answer = None
                continue
            try:
                if asyncio.iscoroutinefunction(self.handler):
                    answer = (await self.handler(value), None)
                else:
                    result = await asyncio.to_thread(self.handler, value)
                    answer = (await result if hasattr(result, "__await__") else result, None)
            except Exception as error:  # noqa: BLE001  as above
                answer = (None, error)


def _part(rows: Chunk[Any], start: int, stop: int) -> Chunk[Any]:
    """A part of a chunk. Its record is the part's place in the whole one."""
    part: Chunk[Any] = Chunk(list.__getitem__(rows, slice(start, stop)))
    cut = rows.cut
    part.cut = cut.replace(
        rows=stop - start, bytes=cut.bytes * (stop - start) // max(1, len(rows)), first=cut.first + start,
        last=cut.first + stop - 1,
    )  # fmt: skip
    return part


def _failure(chunk: Chunk[Any], error: Exception, attempts: int) -> HandlerError:
    cut = chunk.cut
    times = "" if attempts == 1 else f" {attempts} times"
    where = f"rows {cut.first} to {cut.last} (chunk {cut.number})"
    what = f"the handler failed{times} at {where}: {type(error).__name__}: {error}"
    found = HandlerError(
        what, first=cut.first, last=cut.last, chunk=cut.number, attempts=attempts,
        mend='on_error="bisect" finds the row',
    )  # fmt: skip
    found.__cause__ = error
    return found


def _lost(cut: Cut, error: Exception) -> HandlerError:
    """A process did not answer: it died, or could not be told."""
    where = f"rows {cut.first} to {cut.last}"
    if type(error).__name__ == "BrokenProcessPool":
        what, mend = f"a process that handled {where} died", "see its own messages; it may have been killed for memory"
    else:
        what, mend = f"a process could not be handed {where}: {error}", "what it is given and gives must be picklable"
    found = HandlerError(what, first=cut.first, last=cut.last, chunk=cut.number, mend=mend)
    found.__cause__ = error
    return found


class Mapped:
    """What `Chunks.map` gives: the handler's results, with `for` or `async for`. `dead` are the rows given up."""

    def __init__(self, chunks: Chunks, handler: Callable[[Any], Any], options: dict[str, Any]) -> None:
        if not callable(handler):
            what = f"a {type(handler).__name__} is no handler"
            raise ConfigError(what, where="map", mend="give a function that takes a chunk")
        unknown = options.keys() - {"parallel", "processes", "ordered", "on_error", "retries", "backoff_s"}
        if unknown:
            raise ConfigError(
                f"no such option: {min(unknown)}", where="map", mend="see the documentation of chunks.map"
            )
        from memwarden.flow.chunked import check_count, check_policies

        on_error = options["on_error"]
        policies = (on_error,) if isinstance(on_error, str) else tuple(on_error)
        check_policies(policies)
        check_count(options["parallel"], "parallel", 1)
        check_count(options["retries"], "retries", 0)
        self._chunks = chunks
        self._policy = _Policy(handler, policies, options["retries"], options["backoff_s"])
        self._parallel: int = options["parallel"]
        self._processes: bool = options["processes"]
        self._ordered: bool = options["ordered"]
        self.dead = chunks.dead

    def run(self) -> int:
        """Handle everything and drop the results; how many rows were handed out."""
        deque(iter(self), maxlen=0)
        return self._chunks.rows

    async def run_async(self) -> int:
        """The same, awaited."""
        async for _ in self:
            pass
        return self._chunks.rows

    def _start(self) -> _Run:
        # A pickled chunk is in the pipe and in the other process too.
        copies = 3 if self._processes else 1
        return self._chunks._start(extra_shares=self._parallel * copies - 1)  # noqa: SLF001  the two are one thing

    def _keep(self, letters: list[DeadLetter]) -> None:
        for letter in letters:
            keep_letter(self.dead, letter)

    def __iter__(self) -> Iterator[Any]:
        run = self._start()
        if self._parallel == 1 and not self._processes:
            return self._one_by_one(run)
        return self._many(run)

    def _one_by_one(self, run: _Run) -> Iterator[Any]:
        chunks = run.chunks()
        try:
            for chunk in chunks:
                results, letters = self._policy(chunk, run.pause)
                del chunk
                self._keep(letters)
                yield from results
        finally:
            chunks.close()

    def _many(self, run: _Run) -> Iterator[Any]:
        from concurrent.futures import FIRST_COMPLETED, wait

        run.handed_over = True  # a chunk is released by whoever handled it, perhaps after the next one was asked for
        chunks = run.chunks()
        pending: deque[tuple[Future[Any], Cut]] = deque()
        executor = self._executor()
        failed: BaseException | None = None
        broken: BaseException | None = None
        more = True
        try:
            while more or pending:
                while more and failed is None and len(pending) < self._parallel:
                    try:
                        chunk = next(chunks, None)
                    except Exception as error:  # noqa: BLE001  what is in flight comes first, then it is raised
                        chunk, failed = None, error
                    if chunk is None:
                        more = False
                    else:
                        try:
                            pending.append((self._submit(executor, run, chunk), chunk.cut))
                        except Exception as error:  # noqa: BLE001  the pool is broken: those in flight know it first
                            run.let_go(chunk)
                            broken, more = _lost(chunk.cut, error), False
                    del chunk
                if not pending:
                    break
                if not self._ordered:
                    wait([future for future, _ in pending], return_when=FIRST_COMPLETED)
                    pending = deque(sorted(pending, key=lambda each: not each[0].done()))
                future, cut = pending.popleft()
                try:
                    results, letters = future.result()
                except MemwardenError as error:
                    failed, more = failed or error, False
                except Exception as error:  # noqa: BLE001  of the executor, not of the handler
                    failed, more = failed or _lost(cut, error), False
                else:
                    self._keep(letters)
                    yield from results
            if failed := failed or broken:
                raise failed
        finally:
            for future, _ in pending:
                future.cancel()
            executor.shutdown(wait=True, cancel_futures=True)
            chunks.close()

    def _executor(self) -> Executor:
        if not self._processes:
            from concurrent.futures import ThreadPoolExecutor

            return ThreadPoolExecutor(self._parallel, thread_name_prefix="memwarden-map")
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_all_start_methods, get_context

        # Not fork: this process may have threads, and a child of it would share what it cannot use.
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        return ProcessPoolExecutor(self._parallel, mp_context=get_context(method))

    def _submit(self, executor: Executor, run: _Run, chunk: Chunk[Any]) -> Future[Any]:
        future: Future[Any]
        if self._processes:
            future = executor.submit(_in_process, self._policy, chunk.cut, list(chunk))
        else:
            future = executor.submit(self._policy, chunk, run.pause)
        future.add_done_callback(lambda _: run.let_go(chunk))
        return future

    async def __aiter__(self) -> AsyncIterator[Any]:
        import asyncio

        if self._processes:
            raise ConfigError("processes need a plain loop", where="map", mend="iterate with for, in a thread")
        run = self._start()
        run.handed_over = True
        chunks = run.chunks_async()
        pending: deque[asyncio.Future[Any]] = deque()
        failed: BaseException | None = None
        more = True

        async def handle(chunk: Chunk[Any]) -> Any:
            try:
                return await self._policy.awaited(chunk)
            finally:
                run.let_go(chunk)

        try:
            while more or pending:
                while more and failed is None and len(pending) < self._parallel:
                    try:
                        chunk = await anext(chunks, None)
                    except Exception as error:  # noqa: BLE001  what is in flight comes first, then it is raised
                        chunk, failed = None, error
                    if chunk is None:
                        more = False
                    else:
                        pending.append(asyncio.ensure_future(handle(chunk)))
                    del chunk
                if not pending:
                    break
                if not self._ordered:
                    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    pending = deque([*done, *(each for each in pending if each not in done)])
                try:
                    results, letters = await pending.popleft()
                except Exception as error:  # noqa: BLE001  as above
                    failed, more = failed or error, False
                else:
                    self._keep(letters)
                    for result in results:
                        yield result
            if failed is not None:
                raise failed
        finally:
            for each in pending:
                each.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await chunks.aclose()


def _in_process(policy: _Policy, cut: Cut, rows: list[Any]) -> tuple[list[Any], list[DeadLetter]]:
    chunk: Chunk[Any] = Chunk(rows)
    chunk.cut = cut
    return policy(chunk)
