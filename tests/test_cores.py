"""Where threads run: a helper on its caller's core moves, and the caller is held for a while."""

import math
import os
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import xconv
from xconv import cores, workers

pytestmark = pytest.mark.skipif(
    cores._core() < 0 or len(os.sched_getaffinity(0)) < 2,
    reason="threads cannot be moved here, or there is one core",
)


@pytest.fixture
def allowed(monkeypatch):
    """The cores of this thread, which it has afterwards again, and of one helper of its own."""
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(workers, "_blas", workers._Blas())
    monkeypatch.setattr(cores, "_until", 0.0)
    yield before
    after = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)
    assert after == before


def together(given=None):
    """Run a task on the caller and one on a helper; return their cores, or give it some."""
    meeting, main, found = threading.Barrier(2, timeout=10), threading.get_ident(), {}

    def work(_):
        meeting.wait()
        if given and threading.get_ident() != main:
            os.sched_setaffinity(0, given)
        found[threading.get_ident()] = os.sched_getaffinity(0)
        meeting.wait()

    workers.run(range(2), work, workers=2)
    own = found.pop(main)
    (other,) = found.values()
    return own, other


def on(monkeypatch, core, helpers):
    """Let the caller be on one core, and its helpers on another or the same."""
    main = threading.get_ident()
    monkeypatch.setattr(cores, "_core", lambda: core if threading.get_ident() == main else helpers)


def test_a_helper_leaves_the_core_of_its_caller(allowed, monkeypatch):
    """Which is held there from then on, and the helper kept off it, for a while."""
    for core in sorted(allowed)[:2]:
        on(monkeypatch, core, core)
        monkeypatch.setattr(cores, "_until", 0.0)
        assert together() == (allowed, allowed - {core})
        on(monkeypatch, core, -2)
        assert together() == ({core}, allowed - {core})
        assert os.sched_getaffinity(0) == allowed
        monkeypatch.setattr(cores, "_until", 0.0)
        assert together() == (allowed, allowed)


def test_they_are_held_for_the_time_that_it_says(allowed, monkeypatch):
    on(monkeypatch, min(allowed), min(allowed))
    before = time.perf_counter()
    together()
    assert before < cores._until - cores.HELD < time.perf_counter()
    assert cores.HELD < 0.1


def test_a_long_call_holds_its_thread_no_longer(allowed, monkeypatch):
    main, seen = threading.get_ident(), []

    def work(number):
        if threading.get_ident() == main:
            seen.append(os.sched_getaffinity(0))
        time.sleep(0.01)

    monkeypatch.setattr(cores, "_until", time.perf_counter() + 0.05)
    workers.run(range(40), work, workers=2)
    assert len(seen[0]) == 1
    assert seen[-1] == allowed


def test_a_helper_leaves_another_core_than_it_left_before(allowed, monkeypatch):
    first, second = sorted(allowed)[:2]
    monkeypatch.setattr(cores, "_until", math.inf)
    for core in (first, second):
        on(monkeypatch, core, core)
        assert together() == ({core}, allowed - {core})


def test_helpers_elsewhere_stay_there(allowed, monkeypatch):
    on(monkeypatch, min(allowed), -2)
    assert together() == (allowed, allowed)
    assert cores._until == 0


def test_a_helper_begins_with_all_cores_of_its_caller(allowed, monkeypatch):
    on(monkeypatch, min(allowed), -2)
    monkeypatch.setattr(cores, "_until", math.inf)
    assert together() == ({min(allowed)}, allowed)


def test_a_helper_that_has_one_core_stays_there(allowed, monkeypatch):
    core = min(allowed)
    on(monkeypatch, core, -2)
    together({core})
    on(monkeypatch, core, core)
    assert together() == (allowed, {core})
    assert cores._until == 0


def test_cores_are_restored_after_errors(allowed, monkeypatch):
    monkeypatch.setattr(cores, "_until", math.inf)
    held = []

    def work(_):
        held.append(os.sched_getaffinity(0))
        raise OSError("of a task")

    with pytest.raises(OSError, match="of a task"):
        workers.run(range(2), work, workers=2)
    assert min(map(len, held)) == 1
    assert os.sched_getaffinity(0) == allowed


def test_uses_within_uses(allowed, monkeypatch):
    monkeypatch.setattr(cores, "_until", math.inf)
    with cores.held() as outer:
        with cores.held() as inner:
            assert inner == outer
            assert os.sched_getaffinity(0) == {inner}
        assert os.sched_getaffinity(0) == allowed
    assert os.sched_getaffinity(0) == allowed


def test_what_an_interrupt_left_is_restored_by_the_next_call(allowed, monkeypatch):
    """Of one worker, too, but for calls so short that they do nothing about threads."""
    x, w = np.ones((8, 16, 40, 40), "float32"), np.ones((16, 16, 1, 1), "float32")
    monkeypatch.setattr(cores, "_until", math.inf)
    for chosen in (allowed, {max(allowed)}):
        cores.held().__enter__()
        assert len(os.sched_getaffinity(0)) == 1
        if chosen != allowed:  # what a user chose meanwhile stays
            os.sched_setaffinity(0, chosen)
            monkeypatch.setattr(cores._own, "held", (min(allowed), allowed))
        with threadpool_limits(1):
            assert (xconv.conv(x, w) == 16).all()
        assert os.sched_getaffinity(0) == chosen
        os.sched_setaffinity(0, allowed)


def test_many_callers_keep_their_cores(allowed, monkeypatch):
    """Each thread its own, whichever other is held."""
    monkeypatch.setattr(cores, "_until", math.inf)
    x, w = np.ones((8, 16, 40, 40), "float32"), np.ones((16, 16, 1, 1), "float32")
    given = [allowed, *({core} for core in sorted(allowed)[:2])] * 3
    start, right = threading.Barrier(len(given), timeout=10), []

    def call(own):
        os.sched_setaffinity(0, own)
        start.wait()
        for _ in range(20):
            assert (xconv.conv(x, w) == 16).all()
            assert os.sched_getaffinity(0) == own
        right.append(own)

    threads = [threading.Thread(target=call, args=(own,)) for own in given]
    with threadpool_limits(2):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(right) == len(given)


@pytest.mark.parametrize("missing", ["core", "permission"])
def test_where_threads_cannot_be_moved(missing, allowed, monkeypatch):
    def refuse(*_):
        raise PermissionError

    x, w = np.ones((8, 16, 40, 40), "float32"), np.ones((16, 16, 1, 1), "float32")
    core = -1 if missing == "core" else min(allowed)
    on(monkeypatch, core, core)
    with monkeypatch.context() as patch:
        patch.setattr(cores, "_until", math.inf)
        if missing == "permission":
            patch.setattr(os, "sched_setaffinity", refuse)
        assert together() == (allowed, allowed)
        with threadpool_limits(2):
            assert (xconv.conv(x, w) == 16).all()


def test_no_core_is_known_where_none_can_be_set(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    assert cores._asks_for_core()() == -1


def test_no_core_is_known_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(cores.ctypes, "PyDLL", lambda _: object())
    assert cores._asks_for_core()() == -1
