"""Ordered, bounded prefetching in threads; worker exceptions are raised in the consumer.

Used to read images before the network needs them and to write results while it computes. Standard library only.
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
    """Yield `function(job)` for each job, in the order of the jobs.

    The jobs are drawn in the consumer's thread; `function` sees the consumer's context variables. The exception of a
    job is raised when its result is due. After an exception, or when the consumer closes the iterator, jobs that have
    not started are cancelled, and running ones are waited for: no thread is left running.

    Args:
        function: Called with each job in a worker thread.
        jobs: The inputs; may be infinite.
        workers: Number of threads; 0 runs the jobs in the consumer's thread.
        ahead: Maximum number of jobs submitted in addition to the one whose result is due.
        name: Prefix of the thread names, for debuggers.
    """
    if workers == 0:
        yield from map(function, jobs)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(copy_context().run, function, job))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
