"""Threads for blocks: how many, and in which order their results count.

A call uses as many workers as NumPy's BLAS may use threads when it starts, so OMP_NUM_THREADS
and `threadpoolctl.threadpool_limits` hold. Meanwhile BLAS itself runs on one thread: a product
has the same bits then however many workers there are, and two workers with a block each are
faster than two threads inside many small products.

A fork while another thread is inside a product can hang in OpenBLAS, with or without xconv.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import threadpoolctl

from .namespace import quiet

Task = TypeVar("Task")
Result = TypeVar("Result")


class _Library:
    """One BLAS library: how many threads it may use, and how to say so.

    OpenMP has a number for every thread; everything else has one for the process. Where that is
    so, `threadpoolctl` lets only one thread set it in OpenBLAS (from 3.8 on, and calls from others
    do nothing). Here calls are counted under a lock instead, so OpenBLAS itself is asked.
    """

    def __init__(self, controller: Any) -> None:
        self.get: Callable[[], int | None] = controller.get_num_threads
        self.set: Callable[[int], Any] = controller.set_num_threads
        layer = getattr(controller, "threading_layer", "")
        self.per_thread = layer == "openmp"
        if controller.internal_api == "openblas" and not self.per_thread:
            for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
                name = f"{prefix}openblas_set_num_threads{suffix}"
                self.set = getattr(controller.dynlib, name, self.set)


class _Blas:
    """NumPy's BLAS, held at one thread while calls run."""

    def __init__(self) -> None:
        found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        numpys = [library for library in found if "numpy" in (library.filepath or "")]
        libraries = list(map(_Library, numpys or found))
        self.shared = [library for library in libraries if not library.per_thread]
        self.own = [library for library in libraries if library.per_thread]
        self.reset()

    def reset(self) -> None:
        """Start anew; in a forked child, where a caller may have been lost in the middle."""
        self.lock = threading.Lock()
        self.calls = 0
        self.before: list[int] = []
        self.pool: ThreadPoolExecutor | None = None
        self.pool_size = 0

    def after_fork(self) -> None:
        """Give a forked child the thread count that its parent had between calls."""
        if self.calls:
            _restore(self.shared, self.before)
        self.reset()

    def enter(self) -> list[int]:
        """Set BLAS to one thread; return how many the calling thread had, of each library.

        What all threads share is set at the first call that runs.
        """
        own = _hold(self.own)
        with self.lock:
            if not self.calls:
                self.before = _hold(self.shared)
            self.calls += 1
            return own + self.before

    def leave(self, before: list[int]) -> None:
        """Restore the thread's own count, and at the last call's end what all threads share."""
        _restore(self.own, before)
        with self.lock:
            self.calls -= 1
            if not self.calls:
                _restore(self.shared, self.before)

    def helpers(self, count: int) -> ThreadPoolExecutor:
        """Return the kept pool, with at least `count` threads."""
        with self.lock:
            if self.pool is None or self.pool_size < count:
                # a pool that was too small is not shut down: another call may be about to use it
                name, ready = "xconv", partial(_hold, self.own)
                self.pool = ThreadPoolExecutor(count, name, initializer=ready)
                self.pool_size = count
            return self.pool


def _hold(libraries: list[_Library]) -> list[int]:
    """Set these libraries to one thread; return how many each had."""
    before = [library.get() or 1 for library in libraries]
    for library in libraries:
        library.set(1)
    return before


def _restore(libraries: list[_Library], before: list[int]) -> None:
    for library, threads in zip(libraries, before, strict=False):
        library.set(threads)


_blas = _Blas()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_blas.after_fork)


class available:
    """Hold BLAS at one thread; the value is the number of workers that a call may use."""

    def __enter__(self) -> int:
        self.before = _blas.enter()
        return 1 if _alone.on else max(self.before, default=1)

    def __exit__(self, *_: object) -> None:
        _blas.leave(self.before)


class _Alone(threading.local):
    """Whether calls on this thread use no other."""

    on = False


_alone = _Alone()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let calls on this thread use no other, as in a Dask task: there are other tasks."""
    before, _alone.on = _alone.on, True
    try:
        yield
    finally:
        _alone.on = before


def run(
    tasks: Iterable[Task],
    work: Callable[[Task], Result],
    finish: Callable[[Task, Result], None] | None = None,
    *,
    workers: int = 1,
) -> None:
    """Do all tasks, on up to `workers` threads, the caller's own among them.

    Parameters
    ----------
    tasks : iterable
        What is to be done; taken one at a time.
    work : callable
        Does one task; runs in any order and at the same time as others.
    finish : callable, optional
        Takes a task and its result, one at a time and in the order of `tasks`: what is summed
        here has the same bits for any number of workers.
    workers : int
        Threads to use.
    """
    if workers > 1:
        remaining = iter(tasks)
        first = list(itertools.islice(remaining, workers))
        workers = len(first)  # none without a task
        tasks = itertools.chain(first, remaining)
    if workers <= 1:
        for task in tasks:
            result = work(task)
            if finish:
                finish(task, result)
        return
    crew = _Crew(iter(tasks), work, finish)
    futures: list[Future[None]] = []
    try:
        with contextlib.suppress(RuntimeError):  # no new threads, as while Python shuts down
            pool = _blas.helpers(workers - 1)
            futures.extend(pool.submit(crew.help) for _ in range(workers - 1))
        crew.toil()
    except BaseException:
        crew.stop()
        raise
    finally:
        for future in futures:
            if not future.cancel():  # one that has not started has nothing left to do
                future.exception()
    for future in futures:
        if not future.cancelled():
            future.result()


class _Crew:
    """The workers of one call: the next task, and whose turn it is to finish."""

    def __init__(self, tasks: Iterator[Any], work: Any, finish: Any) -> None:
        self.tasks, self.work, self.finish = enumerate(tasks), work, finish
        self.done = 0
        self.stopped = False
        self.turn = threading.Condition()

    def help(self) -> None:
        """Work on a helper's thread; a failure stops the others."""
        with quiet():
            try:
                self.toil()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Let every worker end after the task that it is at."""
        with self.turn:
            self.stopped = True
            self.turn.notify_all()

    def toil(self) -> None:
        """Take tasks until none is left."""
        while True:
            with self.turn:
                number, task = (0, None) if self.stopped else next(self.tasks, (0, None))
            if task is None:
                return
            result = self.work(task)
            if self.finish:
                with self.turn:
                    self.turn.wait_for(lambda: self.stopped or self.done == number)  # noqa: B023
                    if self.stopped:
                        return
                    self.finish(task, result)
                    self.done += 1
                    self.turn.notify_all()
