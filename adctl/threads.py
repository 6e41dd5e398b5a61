"""Threads that work ahead of whoever reads their results: order kept, memory bounded, errors raised at the reader.

Reading images ahead of a network and writing results behind it are both this. Standard library only.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

S = TypeVar("S")
T = TypeVar("T")


def map_ordered(
    function: Callable[[S], T], jobs: Iterable[S], *, workers: int, ahead: int, name: str = "adctl"
) -> Generator[T, None, None]:
    """Results in the order of the jobs, which are drawn in the reader's own thread.

    The first error of a job is raised at its turn. Once the reader has it, or closes the iterator, what was not
    begun is dropped and what was begun has ended: nothing runs on behind the reader's back. Jobs see the reader's
    context variables.

    Args:
        function: Done to each job in a thread.
        jobs: May be endless.
        workers: Threads; 0 works in the reader's own.
        ahead: Jobs under way at most, besides the one that is waited for.
        name: Of the threads, for debuggers.
    """
    if workers == 0:
        yield from map(function, jobs)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(copy_context().run, function, job))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
