"""Where threads run, on Linux: a helper that finds itself on its caller's core moves elsewhere.

The kernel puts a thread that wakes up on an idle core, if it finds one. In a virtual machine it
takes a core that has slept for a moment for a busy one, as the host may have given it to others,
and puts the thread on the core of the one that woke it: there the two take turns until loads are
balanced, some 30 milliseconds later. Threads that wait for Python's lock wake each other up many
times in a call; so for a while the caller is held on its core, or they would meet again at once.
Without this a call of a millisecond gains nothing from a second core after each pause.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

HELD = 0.05  # seconds in which callers are held after a helper was on the core of one


class Place(NamedTuple):
    """The core that a caller is on, its thread, and where that may run later, if it is held."""

    core: int
    thread: int
    allowed: set[int] | None


class _Own(threading.local):
    """On which cores a thread that is held may run afterwards; None: it is not held."""

    before: set[int] | None = None


_own = _Own()


def _asks_for_core() -> Callable[[], int] | None:
    """Return the function that tells on which core a thread is, where threads can be moved."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError, AttributeError):
            found: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
            return found
    return None


_core = _asks_for_core()
_until = 0.0  # when to hold callers no longer


class held:
    """Hold the thread on its core, if a helper was on it lately; the value is its `Place`, or None.

    What is to be restored is written down before: an interrupt may come anywhere, and the thread's
    next use then restores it.
    """

    def __enter__(self) -> Place | None:
        if _core is None:
            return None
        place = Place(_core(), threading.get_native_id(), _own.before)
        if _own.before is not None or time.perf_counter() < _until:
            with contextlib.suppress(OSError):  # as in some sandboxes
                _own.before = _own.before or os.sched_getaffinity(0)
                os.sched_setaffinity(0, {place.core})
            place = place._replace(allowed=_own.before)
        return place

    def __exit__(self, *_: object) -> None:
        if _own.before is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, _own.before)
            _own.before = None


def leave(place: Place | None) -> None:
    """Move the thread, a helper, off the core of its caller, and keep it off."""
    global _until
    if _core is None or place is None or _core() != place.core:
        return
    with contextlib.suppress(OSError):
        others = (place.allowed or os.sched_getaffinity(place.thread)) - {place.core}
        if others:
            os.sched_setaffinity(0, others)
            _until = time.perf_counter() + HELD
