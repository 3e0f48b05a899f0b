"""What calls hold in memory while they run, as tracemalloc counts it: arrays and Python's objects.

Python's own tables grow now and then, that of all strings by two megabytes at once, and when
garbage is collected it frees lists of spare objects, which then fill again. So what holds more
than it may is called a few times more, and the median counts.
"""

import statistics
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TIMES = 5


def measured(call: Callable[[], Any]) -> tuple[int, int]:
    """Return the most bytes held beyond those before, and the bytes of the arrays returned.

    The second call counts: the first makes what is made once, and what replaces it in full caches.
    """
    tracemalloc.start()
    try:
        call()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        results = call()
        most = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return most, sum(a.nbytes for a in (results if isinstance(results, tuple) else (results,)))


def beyond(call: Callable[[], Any], limit: int) -> int:
    """Return the bytes held beyond the arrays returned: of one call, or the median of some."""
    found: list[int] = []
    while len(found) < TIMES:
        most, results = measured(call)
        found.append(most - results)
        if found[0] <= limit:
            break
    return statistics.median(found)


def cold(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the same call on a new thread, which has kept no memory."""

    def on_a_new_thread() -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    return on_a_new_thread
