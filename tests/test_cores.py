"""Where threads run: a helper on its caller's core moves, and the caller is held for a while."""

import contextlib
import math
import os
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import xconv
from xconv import cores, workers

pytestmark = pytest.mark.skipif(
    cores._core is None or len(os.sched_getaffinity(0)) < 2,
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
    """Which is held there from then on, for a while."""
    for core in sorted(allowed)[:2]:
        on(monkeypatch, core, core)
        monkeypatch.setattr(cores, "_until", 0.0)
        assert together() == (allowed, allowed - {core})
        on(monkeypatch, core, -1)
        assert together() == ({core}, allowed - {core})
        assert os.sched_getaffinity(0) == allowed
        monkeypatch.setattr(cores, "_until", 0.0)
        assert together() == (allowed, allowed - {core})


def test_a_helper_leaves_the_core_that_its_caller_is_held_on(allowed, monkeypatch):
    second = sorted(allowed)[1]
    monkeypatch.setattr(cores, "_until", math.inf)
    on(monkeypatch, second, -1)
    together({second})
    on(monkeypatch, second, second)
    assert together() == ({second}, allowed - {second})


def test_helpers_elsewhere_stay_there(allowed, monkeypatch):
    on(monkeypatch, min(allowed), -1)
    assert together() == (allowed, allowed)
    assert cores._until == 0


def test_a_caller_on_one_core_leaves_its_helpers_where_they_are(allowed, monkeypatch):
    core = min(allowed)
    on(monkeypatch, core, -1)
    together()  # a thread begins with the cores of the one that starts it
    os.sched_setaffinity(0, {core})
    on(monkeypatch, core, core)
    assert together() == ({core}, allowed)
    assert cores._until == 0
    os.sched_setaffinity(0, allowed)


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
            assert inner.allowed == allowed
        with cores.held() as another:
            assert another.allowed == allowed
    assert os.sched_getaffinity(0) == allowed


def test_an_interrupted_use_is_made_up_for_by_the_next(allowed, monkeypatch):
    monkeypatch.setattr(cores, "_until", math.inf)
    with contextlib.suppress(KeyboardInterrupt):
        cores.held().__enter__()
        raise KeyboardInterrupt
    assert len(os.sched_getaffinity(0)) == 1
    monkeypatch.setattr(cores, "_until", 0.0)
    together()
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("missing", ["function", "permission"])
def test_where_threads_cannot_be_moved(missing, allowed, monkeypatch):
    def refuse(*_):
        raise PermissionError

    on(monkeypatch, min(allowed), min(allowed))
    with monkeypatch.context() as patch:
        patch.setattr(cores, "_until", math.inf)
        if missing == "function":
            patch.setattr(cores, "_core", None)
        else:
            patch.setattr(os, "sched_setaffinity", refuse)
        assert together() == (allowed, allowed)
        x, w = np.ones((8, 16, 40, 40), "float32"), np.ones((16, 16, 1, 1), "float32")
        with threadpool_limits(2):
            assert (xconv.conv(x, w) == 16).all()


def test_no_core_is_asked_for_where_none_can_be_set(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    assert cores._asks_for_core() is None


def test_no_core_is_asked_for_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(cores.ctypes, "PyDLL", lambda _: object())
    assert cores._asks_for_core() is None
