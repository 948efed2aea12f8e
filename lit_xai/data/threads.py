"""Work that waits for files, by a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = 8  # threads that wait for files
A = TypeVar("A")
B = TypeVar("B")


def side_by_side(work: Callable[[A], B], things: Iterable[A]) -> Iterator[B]:
    """`work(thing)` for every thing, in order, by a few threads: for what waits for files, or checks their bytes."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for thing in things:
            waiting.append(pool.submit(work, thing))
            if len(waiting) > 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
