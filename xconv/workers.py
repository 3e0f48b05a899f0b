"""Threads for blocks: how many, and in which order their results count.

A call uses as many workers as NumPy's BLAS may use threads when it starts, so OMP_NUM_THREADS
and `threadpoolctl.threadpool_limits` hold. Meanwhile BLAS itself runs on one thread: a product
has the same bits then however many workers there are, and two workers with a block each are
faster than two threads inside many small products. A worker that waits for another one stays awake
for a moment; between calls all sleep.

A fork while another thread is inside a product can hang in OpenBLAS, with or without xconv.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import threadpoolctl

from . import cores
from .namespace import quiet

AWAKE = 0.0002  # seconds that a worker waits for another one before it sleeps
_pause = getattr(os, "sched_yield", partial(time.sleep, 0))  # lets other threads have Python's lock

Jobs = SimpleQueue[Callable[[], None]]
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
                name = f"{prefix}openblas_%s_num_threads{suffix}"
                self.get = getattr(controller.dynlib, name % "get", self.get)
                self.set = getattr(controller.dynlib, name % "set", self.set)


class _Blas:
    """NumPy's BLAS, held at one thread while calls run."""

    def __init__(self) -> None:
        found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        numpys = [library for library in found if "numpy" in (library.filepath or "")]
        libraries = list(map(_Library, numpys or found))
        self.architecture = str(getattr((numpys or found or [None])[0], "architecture", ""))
        self.shared = [library for library in libraries if not library.per_thread]
        self.own = [library for library in libraries if library.per_thread]
        self.reset()

    def reset(self) -> None:
        """Start anew; in a forked child, where a caller may have been lost in the middle."""
        self.lock = threading.Lock()
        self.inside: set[int] = set()  # threads that are in a call
        self.before: list[int] = []
        self.jobs: Jobs = SimpleQueue()
        self.threads = 0

    def after_fork(self) -> None:
        """Give a forked child the thread count that its parent had between calls."""
        if self.inside:
            _set(self.shared, self.before)
        self.reset()

    def enter(self) -> list[int]:
        """Set BLAS to one thread; return how many the calling thread had, of each library.

        What all threads share is set at the first call that runs. It is written down before: an
        interrupt may come anywhere, and the thread's next call then restores it.
        """
        own = _hold(self.own) if self.own else []
        with self.lock:
            if not self.inside:
                self.before = _counts(self.shared)
            self.inside.add(threading.get_ident())
            if len(self.inside) == 1:
                _set(self.shared, [1] * len(self.shared))
            return own + self.before

    def leave(self, before: list[int]) -> None:
        """Restore the thread's own count, and at the last call's end what all threads share."""
        if self.own:
            _set(self.own, before)
        with self.lock:
            if self.inside == {threading.get_ident()}:
                _set(self.shared, self.before)
            self.inside.discard(threading.get_ident())

    def hire(self, count: int, job: Callable[[], None]) -> None:
        """Have the job done by up to `count` of the kept threads as well, when they are free."""
        for _ in range(min(count, self.threads)):
            self.jobs.put(job)

    def recruit(self, count: int) -> None:
        """Start threads until there are so many."""
        with self.lock, contextlib.suppress(RuntimeError):  # no new threads: Python shuts down
            while self.threads < count:
                # a daemon, as an interrupt may come while it starts: then nobody would end it
                threading.Thread(target=_serve, args=(self.jobs, self.own), daemon=True).start()
                self.threads += 1


def _serve(jobs: Jobs, own: list[_Library]) -> None:
    """Do one job after the other, on a thread that is kept."""
    _hold(own)
    with quiet():  # once: each thread has its own state
        while True:
            job = jobs.get()
            job()
            del job


def _hold(libraries: list[_Library]) -> list[int]:
    """Set these libraries to one thread; return how many each had."""
    before = _counts(libraries)
    _set(libraries, [1] * len(libraries))
    return before


def _counts(libraries: list[_Library]) -> list[int]:
    return [library.get() or 1 for library in libraries]


def _set(libraries: list[_Library], counts: list[int]) -> None:
    for library, threads in zip(libraries, counts, strict=False):
        library.set(threads)


_blas = _Blas()
with contextlib.suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(after_in_child=_blas.after_fork)


def architecture() -> str:
    """Return the processor that OpenBLAS's kernels are for; nothing, for another library."""
    return _blas.architecture


class available:
    """Hold BLAS at one thread; the value is the number of workers that a call may use."""

    def __enter__(self) -> int:
        self.before = _blas.enter()
        return 1 if _alone.on else max(self.before, default=1)

    def __exit__(self, *_: object) -> None:
        cores.release()  # what an interrupt may have left
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
            del result  # before the next one is made
        return
    if _blas.threads < workers - 1:  # first: a thread begins with the cores of its starter
        _blas.recruit(workers - 1)
    with cores.held() as core:
        crew = _Crew(iter(tasks), work, finish, core)
        try:
            _blas.hire(workers - 1, crew.help)
            crew.toil()
            crew.end()
        except BaseException:  # an interrupt may come at any time, while waiting too
            crew.stop()
            crew.end()
            crew.failure = None  # its traceback holds the frames of the call, which hold it
            raise
    failure, crew.failure = crew.failure, None
    try:
        if failure is not None:
            raise failure
    finally:
        del failure


def _soon(told: SimpleQueue[None]) -> None:
    """Wait for what will be told soon, at first awake: to wake up takes some 40 microseconds.

    Meanwhile each call of NumPy on another thread takes some 2 microseconds longer, until it has
    Python's lock back.
    """
    end = time.perf_counter() + AWAKE
    while told.empty() and time.perf_counter() < end:
        _pause()
    told.get()


class _Crew:
    """The workers of one call: the next task, and whose turn it is to finish.

    Locks and queues are those written in C: no interrupt comes between what they do and the note
    of it, as in a `threading.Condition` or a pool of `concurrent.futures`, which then wait forever.
    """

    def __init__(self, tasks: Iterator[Any], work: Any, finish: Any, core: int) -> None:
        self.tasks: Iterator[tuple[int, Any]] = enumerate(tasks)
        self.work, self.finish, self.core = work, finish, core
        self.lock = threading.Lock()
        self.stopped = False
        self.failure: BaseException | None = None
        self.done = 0
        self.waiting: dict[int, SimpleQueue[None]] = {}  # by task: tells its worker of its turn
        self.helping = 0
        self.left: SimpleQueue[None] = SimpleQueue()  # tells the caller that a helper has

    def help(self) -> None:
        """Work on a helper's thread; a failure stops the others."""
        with self.lock:
            self.helping += 1
        try:
            cores.leave(self.core)
            self.toil()
        except BaseException as failure:
            self.failure = failure
            self.stop()
        finally:
            with self.lock:
                self.helping -= 1
            self.left.put(None)

    def stop(self) -> None:
        """Let every worker end after the task that it is at."""
        with self.lock:
            self.stopped = True
            for worker in self.waiting.values():
                worker.put(None)

    def end(self) -> None:
        """Wait until no helper is at a task; one that has not begun yet finds nothing here."""
        while True:
            with self.lock:
                if not self.helping:
                    self.tasks, self.work, self.finish = iter(()), None, None
                    return
            _soon(self.left)

    def toil(self) -> None:
        """Take tasks until none is left."""
        while True:
            with self.lock:
                number, task = (0, None) if self.stopped else next(self.tasks, (0, None))
            if task is None:
                return
            result = self.work(task)
            cores.release_in_time()
            if self.finish:
                self.turn(number)
                if self.stopped:
                    return
                self.finish(task, result)
                with self.lock:
                    self.done += 1
                    after = self.waiting.get(self.done)
                    if after:  # told before it is forgotten: `stop` tells those that are left
                        after.put(None)
                        del self.waiting[self.done]

    def turn(self, number: int) -> None:
        """Wait until all tasks before this one are finished."""
        told: SimpleQueue[None] = SimpleQueue()
        with self.lock:
            if self.stopped or self.done == number:
                return
            self.waiting[number] = told
        _soon(told)
