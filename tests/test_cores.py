"""Where threads run: a caller stays on its core while it has helpers, and they keep off it."""

import contextlib
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
def allowed():
    """The cores of this thread, which it has afterwards again."""
    before = os.sched_getaffinity(0)
    yield before
    after = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)
    assert after == before


def together(count=2):
    """Run one task on each of some workers; return the caller's cores and its helpers'."""
    meeting, main = threading.Barrier(count, timeout=10), threading.get_ident()
    found = {}

    def work(_):
        meeting.wait()
        found[threading.get_ident()] = os.sched_getaffinity(0)
        meeting.wait()

    workers.run(range(count), work, workers=count)
    return found.pop(main), list(found.values())


@pytest.mark.parametrize("count", [2, 3])
def test_helpers_keep_off_their_callers_core(count, allowed):
    own, others = together(count)
    assert len(own) == 1
    assert others == [allowed - own] * (count - 1)


def test_helpers_follow_their_caller(allowed):
    """To another core, and to those that it may have."""
    for core in allowed:
        os.sched_setaffinity(0, {core})  # which moves this thread
        os.sched_setaffinity(0, allowed)
        own, others = together()
        assert others == [allowed - own]


def test_a_caller_on_one_core_leaves_its_helpers_where_they_are(allowed):
    _, before = together()
    os.sched_setaffinity(0, {min(allowed)})
    own, after = together()
    assert own == {min(allowed)}
    assert after == before
    assert os.sched_getaffinity(0) == own
    os.sched_setaffinity(0, allowed)


def test_cores_are_restored_after_errors(allowed):
    def work(_):
        assert len(os.sched_getaffinity(0)) < len(allowed)
        raise OSError("of a task")

    with pytest.raises(OSError, match="of a task"):
        workers.run(range(2), work, workers=2)
    assert os.sched_getaffinity(0) == allowed


def test_cores_are_restored_after_uses_within_uses(allowed):
    with cores.held() as outer:
        with cores.held() as inner:
            assert inner == outer
        with cores.held() as another:
            assert another.allowed == allowed
    assert os.sched_getaffinity(0) == allowed


def test_an_interrupted_use_is_made_up_for_by_the_next(allowed):
    with contextlib.suppress(KeyboardInterrupt):
        cores.held().__enter__()
        raise KeyboardInterrupt
    assert len(os.sched_getaffinity(0)) == 1
    together()
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("missing", ["function", "permission"])
def test_where_threads_cannot_be_moved(missing, allowed, monkeypatch):
    def refuse(*_):
        raise PermissionError

    if missing == "function":
        monkeypatch.setattr(cores, "_core", None)
    else:
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
    own, _ = together()
    assert own == allowed
    x, w = np.ones((8, 16, 40, 40), "float32"), np.ones((16, 16, 1, 1), "float32")
    with threadpool_limits(2):
        assert (xconv.conv(x, w) == 16).all()
    monkeypatch.undo()


def test_no_core_is_asked_for_where_none_can_be_set(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    assert cores._asks_for_core() is None


def test_no_core_is_asked_for_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(cores.ctypes, "PyDLL", lambda _: object())
    assert cores._asks_for_core() is None
