"""Where threads run, on Linux: a caller stays on its core for a while, and its helpers keep off it.

The kernel puts a thread that wakes up on an idle core, if it finds one. In a virtual machine it
takes a core that has slept for a moment for a busy one, as the host may have given it to others,
and puts the thread on the core of the one that woke it: there the two take turns until loads are
balanced, some 30 milliseconds later. Threads that wait for Python's lock wake each other up many
times in a call, so without this one of a millisecond had no gain from a second core after a pause.

The caller's affinity is restored after each use, and helpers keep within it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from typing import NamedTuple


class Place(NamedTuple):
    """The core that a caller is held on, and those on which it may run."""

    core: int
    allowed: frozenset[int]


class _Own(threading.local):
    """What a thread was told: as a caller, to be restored; as a helper, last."""

    before: frozenset[int] | None = None
    place: Place | None = None


_own = _Own()


def _asks_for_core() -> Callable[[], int] | None:
    """Return the function that tells on which core a thread is, where threads can be moved."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError, AttributeError):
            found: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu
            return found
    return None


_core = _asks_for_core()


class held:
    """Hold the thread on its core; the value is the `Place`, None where that cannot be.

    What is to be restored is written down before: an interrupt may come anywhere, and the thread's
    next use then restores it.
    """

    def __enter__(self) -> Place | None:
        if _core is None:
            return None
        with contextlib.suppress(OSError):  # as in some sandboxes
            _own.before = allowed = _own.before or frozenset(os.sched_getaffinity(0))
            place = Place(_core(), allowed)
            if len(allowed) > 1 and place.core in allowed:
                os.sched_setaffinity(0, {place.core})
                return place
        return None

    def __exit__(self, *_: object) -> None:
        if _own.before is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, _own.before)
            _own.before = None


def avoid(place: Place | None) -> None:
    """Keep the thread, a helper, off the core of its caller."""
    if place is None or place == _own.place:
        return
    _own.place = place
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, place.allowed - {place.core})
