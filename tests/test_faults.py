"""Failures from outside: memory that runs out, interrupts, forks, many callers, enormous views.

Whatever ends a call early, its workers have stopped when it returns, nothing of it is kept, BLAS
has its threads back, and the next call is right.
"""

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_info, threadpool_limits

import xconv
from xconv import namespace, plan, workers

MIB = 2**20
METHODS = ("auto", "windows", "taps", "winograd", "fft")


def draw(*shape, dtype=np.float32, seed=0):
    """Small integers, whose sums are exact in any order."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def contractions(x, w, **options) -> list[Callable[[], np.ndarray]]:
    """The three of them, as calls without arguments."""
    dy = draw(*xconv.conv(x, w, **options).shape, dtype=x.dtype, seed=1)
    return [
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_grad_input(dy, w, x.shape[2:], **options),
        lambda: xconv.conv_grad_weight(dy, x, w.shape[2:], **options),
    ]


def blas() -> list[int]:
    return [library["num_threads"] for library in threadpool_info()]


@pytest.fixture(autouse=True)
def three_workers(monkeypatch) -> Iterator[None]:
    """Many small blocks on three threads, whatever the machine has; afterwards BLAS has them."""
    monkeypatch.setattr("xconv.call.CPU", plan.Limits(64 * MIB, 2**16))
    with threadpool_limits(3):
        before = blas()
        yield
        assert blas() == before


def check_idle() -> None:
    """No call is running, and all helpers can come to one place at once."""
    blas = workers._blas
    assert not blas.inside
    meeting = threading.Barrier(1 + blas.threads, timeout=10)
    for _ in range(blas.threads):
        blas.jobs.put(meeting.wait)
    meeting.wait()


# ---------------------------------------------------------------- out of memory

LAYERS = {
    "one-tap": ((2, 8, 192, 192), (16, 8, 1, 1), {"stride": 2}),
    "depthwise": ((2, 16, 80, 80), (16, 1, 3, 3), {"groups": 16}),
    "scattered": ((2, 1, 200, 200), (8, 1, 5, 5), {"stride": 2}),
    "copied": ((2, 8, 90, 90), (8, 8, 3, 3), {"padding": 2, "padding_mode": "replicate"}),
    "windows": ((2, 8, 96, 96), (16, 8, 3, 3), {"method": "windows", "padding": 1}),
    "taps": ((2, 8, 96, 96), (16, 8, 3, 3), {"method": "taps", "padding": 1}),
    "winograd": ((1, 1, 64, 64), (80, 1, 3, 3), {"method": "winograd"}),
    "fft": ((1, 1, 40000), (8, 1, 31), {"method": "fft"}),
}


class Memory:
    """NumPy's allocator, as xconv asks for it: the `last` array is the last there is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.last: float = np.inf
        self.taken = itertools.count(1)
        self.asked: set[str] = set()
        for name in ("empty", "zeros", "ascontiguousarray"):
            for xp in (np, namespace.NUMPY):
                monkeypatch.setattr(xp, name, self.limited(getattr(xp, name), name))
        begin = self.limited(namespace._Scratch.begin, "begin")
        monkeypatch.setattr(namespace._Scratch, "begin", begin)

    def limited(self, make, name):
        def made(*args, **kwargs):
            self.asked.add(name)
            if next(self.taken) > self.last:
                raise MemoryError("that was the last")
            return make(*args, **kwargs)

        return made

    def count(self, call) -> int:
        """How many arrays a call takes."""
        self.last, self.taken, self.asked = np.inf, itertools.count(1), set()
        call()
        return next(self.taken) - 1


def traced(call) -> int:
    """The bytes that are held more than before, with no garbage collected."""
    gc.disable()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize("layer", LAYERS)
def test_out_of_memory(layer, monkeypatch):
    """At the first array, and at later ones."""
    x_shape, w_shape, options = LAYERS[layer]
    x, w = draw(*x_shape), draw(*w_shape, seed=2)
    memory = Memory(monkeypatch)
    for call in contractions(x, w, **options):
        right, count = call(), memory.count(call)
        assert count > 4 and memory.asked >= {"begin", "empty"}
        for last in sorted({0, 1, count // 3, count * 3 // 4}):

            def failing(call=call, last=last):
                memory.last, memory.taken = last, itertools.count(1)
                with contextlib.suppress(MemoryError):
                    call()
                    raise AssertionError("enough memory")

            assert traced(failing) < MIB  # room for the threads' scratch memory
            check_idle()
        memory.last = np.inf
        assert_array_equal(call(), right, strict=True)


class Fault(Exception):
    pass


@pytest.mark.parametrize("contraction", range(3))
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, Fault])
@pytest.mark.parametrize("helper", [False, True])
def test_a_failure_stops_all_workers(monkeypatch, contraction, error, helper):
    """In a block, in the caller's own thread or in a helper's."""
    call = contractions(draw(4, 8, 96, 96), draw(16, 8, 3, 3))[contraction]
    right, begin = call(), namespace._Scratch.begin
    failed, blocks = threading.Event(), []

    def begin_or_fail(scratch, keep, least):
        blocks.append(keep)
        if (threading.current_thread() is threading.main_thread()) != helper:
            failed.set()
            raise error("in a block")
        assert failed.wait(10)
        time.sleep(0.001)
        begin(scratch, keep, least)

    def failing():
        with contextlib.suppress(error):
            call()
            raise AssertionError("no failure")

    with monkeypatch.context() as patch:
        patch.setattr(namespace._Scratch, "begin", begin_or_fail)
        assert traced(failing) < MIB
    assert 0 < len(blocks) < 20  # of hundreds
    check_idle()
    assert_array_equal(call(), right, strict=True)


def test_without_new_threads(monkeypatch):
    """As when the system has none left: the caller does all the work."""
    call = contractions(draw(2, 8, 96, 96), draw(16, 8, 3, 3))[0]
    right = call()
    monkeypatch.setattr(workers, "_blas", workers._Blas())

    def refused(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert_array_equal(call(), right, strict=True)


@pytest.mark.parametrize(("size", "held"), [(1024, 0), (1025, 3)])
def test_short_calls_leave_blas_alone(monkeypatch, size, held):
    """Those of up to 2**13 multiplications, which it does on one thread."""
    calls, enter = contractions(draw(1, 2, size), draw(2, 2, 2)), workers._blas.enter
    entered = []

    def counted():
        entered.append(size)
        return enter()

    monkeypatch.setattr(workers._blas, "enter", counted)
    for call in calls:
        call()
    assert len(entered) == held


# ---------------------------------------------------------------- interrupts


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("awake", [0, 60], ids=["asleep", "awake"])
@pytest.mark.parametrize("ordered", [False, True], ids=["for the end", "for its turn"])
def test_interrupted_while_waiting(ordered, awake, monkeypatch):
    """The caller has done its tasks, and the helper ends its own before the call does."""
    monkeypatch.setattr(workers, "AWAKE", awake)
    main = threading.main_thread().ident
    both, ended, finished = threading.Barrier(2, timeout=10), [], []
    local = threading.local()

    def work(task):
        if not hasattr(local, "began"):
            local.began = True
            both.wait()  # each has one
            if threading.get_ident() != main:
                time.sleep(0.1)  # the caller waits now
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.1)
                ended.append(task)

    def finish(task, _):
        finished.append(task)

    with interruptible(), pytest.raises(KeyboardInterrupt):
        workers.run(range(3), work, finish if ordered else None, workers=2)
    (last,) = ended
    assert all(task < last for task in finished)
    check_idle()


@pytest.mark.parametrize("pause", [workers._pause, partial(time.sleep, 0)], ids=["yield", "sleep"])
def test_who_waits_long_sleeps(pause, monkeypatch):
    monkeypatch.setattr(workers, "_pause", pause)
    main, began = threading.get_ident(), threading.Barrier(2, timeout=10)

    def work(_):
        began.wait()
        if threading.get_ident() != main:
            time.sleep(0.2)

    start = time.thread_time()
    workers.run(range(2), work, workers=2)
    assert time.thread_time() - start < 0.1
    check_idle()


INTERRUPTS = """
import os, random, signal, sys, time
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
import xconv
from xconv import call, plan

def counts():
    return [library["num_threads"] for library in threadpool_info()]

def allowed():
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

threadpool_limits(2)
rng = np.random.default_rng(0)
x = rng.standard_normal((4, 8, 40, 40)).astype(np.float32)
w = rng.standard_normal((16, 8, 3, 3)).astype(np.float32)
call.CPU = plan.Limits(2**26, 2**16)  # many blocks

def run():
    y = xconv.conv(x, w, padding=1)
    return [y.tobytes(), *(a.tobytes() for a in xconv.conv_backward(y, x, w, padding=1))]

def timed():
    start = time.perf_counter()
    run()
    return time.perf_counter() - start

right, before = run(), (counts(), allowed())
seconds = min(timed() for _ in range(5))  # threads that wait for each other may take much longer
signal.signal(signal.SIGALRM, signal.default_int_handler)
random.seed(0)
interrupted = 0
for _ in range(int(sys.argv[1])):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, seconds))
            run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    assert run() == right
    assert (counts(), allowed()) == before, (counts(), allowed())
print(interrupted)
"""


def test_interrupted_anywhere():
    """At random moments; the next call is right, and gives back BLAS's threads and cores."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTS, "40"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
    )  # its coverage is not measured: an interrupt inside coverage's own lock never lets it go
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_an_interrupt_before_another_worker_is_told_of_its_turn(monkeypatch):
    """The others end nevertheless, and so does the call."""
    interrupted = []

    class Queue:
        """A queue whose first `put` by the caller is interrupted."""

        def __init__(self):
            self.own = SimpleQueue()
            self.get, self.empty = self.own.get, self.own.empty

        def put(self, item):
            if not interrupted and threading.current_thread() is caller:
                interrupted.append(self)
                raise KeyboardInterrupt
            self.own.put(item)

    def work(_):
        time.sleep(0.02 * (threading.current_thread() is caller))  # so that others wait for it

    def call():
        while not interrupted:  # a helper may have the first task
            with contextlib.suppress(KeyboardInterrupt):
                workers.run(range(4), work, lambda *_: None, workers=2)

    monkeypatch.setattr(workers, "SimpleQueue", Queue)
    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(10)
    assert not caller.is_alive()
    check_idle()


# ---------------------------------------------------------------- many callers, forks


def test_many_callers():
    """Row 46: sixteen threads on the same arrays, all at once, have the bits of one alone."""
    layers = [
        ((2, 16, 40, 40), (32, 16, 3, 3), {"padding": 1}),
        ((4, 64, 14, 14), (128, 64, 3, 3), {"stride": 2}),
        ((2, 256, 7, 7), (256, 256, 1, 1), {}),
        ((2, 8, 4000), (8, 1, 9), {"groups": 8}),
        ((1, 4, 12, 14, 16), (6, 4, 3, 3, 3), {"padding": "same"}),
        ((2, 8, 30, 30), (8, 8, 3, 3), {"padding": 2, "padding_mode": "reflect"}),
    ]
    rng = np.random.default_rng(0)
    calls = []
    for x_shape, w_shape, options in layers:
        x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (x_shape, w_shape))
        calls += contractions(x, w, **options)
    right = [call().tobytes() for call in calls]
    together = threading.Barrier(16, timeout=60)

    def work(first):
        together.wait()
        order = [*range(first, len(calls)), *range(first)]  # not all the same at once
        found = {i: calls[i]().tobytes() for i in order}
        return [found[i] for i in range(len(calls))]

    with ThreadPoolExecutor(16) as pool:
        for _ in range(2):
            assert all(found == right for found in pool.map(work, range(16)))


FORK = """
import multiprocessing, warnings
import numpy as np, xconv

warnings.simplefilter("ignore", DeprecationWarning)  # that fork and threads do not mix
rng = np.random.default_rng(0)
x = rng.standard_normal((4, 32, 40, 40)).astype(np.float32)
w = rng.standard_normal((64, 32, 3, 3)).astype(np.float32)

def run(_):
    y = xconv.conv(x, w, padding=1)
    return y.tobytes() + b"".join(a.tobytes() for a in xconv.conv_backward(y, x, w, padding=1))

before = run(0)
for _ in range(2):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(run, range(4)) == [before] * 4
    assert run(0) == before
print("same bits")
"""


def test_fork_in_a_call_gives_the_threads_back():
    """What the child of a fork does, in which nobody counts lines."""
    blas = workers._Blas()
    before = workers._counts(blas.shared)
    blas.enter()
    assert workers._counts(blas.shared) == [1] * len(before)
    blas.after_fork()
    assert workers._counts(blas.shared) == before
    assert not blas.inside
    blas.after_fork()  # of none
    assert workers._counts(blas.shared) == before


def test_fork_after_use():
    """Row 47."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "same bits\n"), done.stderr


# ---------------------------------------------------------------- enormous views

FAR = 2**32


@pytest.mark.parametrize("method", ["auto", "windows", "taps"])
def test_views_of_more_than_2_to_the_32_elements(method):
    """Rows that are all the same: those far apart are as good as neighbours."""
    row, w, dy = draw(2, 3, 1, 6), draw(4, 3, 2, 3, seed=1), draw(2, 4, 3, 4, seed=2)
    dy_row = dy[:, :, :1]
    results = []
    for step, more in [(1, {}), (FAR, {"method": method})]:
        x = np.broadcast_to(row, (2, 3, 2 * step + 2, 6))
        g = np.broadcast_to(dy_row, (2, 4, 2 * step + 2, 4))
        apart, between = {"stride": (step, 1), **more}, {"padding": ((step, step), (0, 0)), **more}
        results.append(
            [
                xconv.conv(x, w, **apart),
                xconv.conv_grad_weight(dy, x, (2, 3), **apart),
                xconv.conv_grad_input(g, w, (3, 6), **between),
                xconv.conv_transpose(g, w, **between),
                xconv.unfold(x, (2, 3), stride=(step, 1)),
            ]
        )
    assert x.size > FAR and g.size > FAR
    for near, far in zip(*results, strict=True):
        assert_array_equal(far, near, strict=True)


@pytest.mark.parametrize("method", METHODS)
def test_strides_past_2_to_the_32_bytes(tmp_path, method):
    """Samples at either end of a file that is nearly all holes."""
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 1, FAR // 2))
    x, w = mapped[..., -9:], draw(3, 1, 3)
    x[...] = draw(*x.shape)
    assert x.strides[0] > FAR
    plain = contractions(np.array(x), w, method=method)
    for far, near in zip(contractions(x, w, method=method), plain, strict=True):
        assert_array_equal(far(), near(), strict=True)
