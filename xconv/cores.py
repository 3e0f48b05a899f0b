"""Where threads run, on Linux: a helper that finds itself on its caller's core moves to another.

The kernel puts a thread that wakes up on an idle core, if it finds one. In a virtual machine it
takes a core that has slept for a moment for a busy one, as the host may have given it to others,
and puts the thread on the core of the one that woke it: there the two take turns until loads are
balanced, some 30 milliseconds later. Threads that wait for Python's lock wake each other up many
times in a call; so for a while callers are held on their cores, or they would meet again at once.
Without this a call of a millisecond gains nothing from a second core after each pause.

While a thread is held, others see that core alone as its affinity.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable

HELD = 0.05  # seconds in which callers are held after a helper was on the core of one


class _Own(threading.local):
    """The core that a caller is held on and those that it had before; those that a helper had."""

    held: tuple[int, set[int]] | None = None
    left: set[int] | None = None


_own = _Own()
_until = 0.0  # when no caller is to be held any longer


def _asks_for_core() -> Callable[[], int]:
    """Return the function that tells on which core a thread is; -1 where it cannot be moved."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError, AttributeError):
            found: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
            return found
    return lambda: -1


_core = _asks_for_core()


class held:
    """Hold the thread on its core, if a helper was on one lately; the value is the core, or -1."""

    def __enter__(self) -> int:
        core = _core()
        if core >= 0 and time.perf_counter() < _until and _own.held is None:
            with contextlib.suppress(OSError):  # as in some sandboxes
                _own.held = core, os.sched_getaffinity(0)  # before it is: an interrupt may come
                os.sched_setaffinity(0, {core})
        return core

    def __exit__(self, *_: object) -> None:
        release()


def release() -> None:
    """Let the thread run where it could before it was held, if it is; no call leaves it so."""
    if _own.held is None:
        return
    core, before = _own.held
    with contextlib.suppress(OSError):
        if os.sched_getaffinity(0) == {core}:  # or it was given others meanwhile
            os.sched_setaffinity(0, before)
    _own.held = None


def release_in_time() -> None:
    """Do that in a call that takes longer than threads are to be held."""
    if _own.held is not None and time.perf_counter() >= _until:
        release()


def leave(core: int) -> None:
    """Move the thread, a helper, off the core of its caller, and keep it off for as long."""
    global _until
    together = core >= 0 and _core() == core
    if not together and _own.left is None:
        return  # as it mostly is
    now = time.perf_counter()
    with contextlib.suppress(OSError):
        if _own.left is not None and now >= _until:
            os.sched_setaffinity(0, _own.left)
            _own.left = None
        if not together:
            return
        before = _own.left or os.sched_getaffinity(0)
        if len(before) > 1:
            _own.left, _until = before, now + HELD
            os.sched_setaffinity(0, before - {core})
