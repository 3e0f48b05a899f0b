"""The methods: each algorithm is a module with the functions of `Algorithm`, and a line here.

Algorithms work on padded blocks in the form of `layout`. There is no `grad_input` among their
functions: at each phase of the stride it is a `forward` with the weights mirrored (see
`Geometry.phases`), or products first for all of them (`scatter`). Only cuDNN, `bands` and
`diagonals` take contractions whole: the one cuts by itself, the others are cut into groups alone.
`banks` has `winograd`'s steps apart: all data first, then some output channels at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from . import depthwise, fft, lines, pointwise, taps, windows, winograd
from .geometry import Ints, Window
from .namespace import Array, Namespace


class Algorithm(Hashable, Protocol):
    """What every algorithm's module has."""

    def prepare(self, xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Any:
        """Return w (G, k, c, *W) in the form that `forward` takes: (G, k, ...), in its `room`."""

    def forward(
        self, xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None
    ) -> Array:
        """x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""

    def grad_weight(
        self, xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
    ) -> Array:
        """x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""

    def workspace(self, G: int, N: int, window: Window, c: int, k: int) -> int:
        """Elements that `forward` needs beyond operands and result."""

    def weight_workspace(self, G: int, N: int, window: Window, c: int, k: int) -> int:
        """Elements that `grad_weight` needs beyond operands and result."""

    def prepared(self, G: int, window: Window, c: int, k: int) -> int:
        """Elements of the prepared weights, and of what it takes to prepare them."""


class Traits(NamedTuple):
    """How an algorithm's blocks are cut and read.

    ``cuts`` says whether sums over channels and taps may be cut into parts. Blocks are ``long``
    times as large as others where calls are short; where many would be little work, those of a
    forward contraction are to be ``double`` the size. None is cut below some positions and output
    channels to feed cores, and they are to have whole tiles of ``tile(window)`` outputs. Channels
    are to come ``last`` in memory where a block is a copy; what ``reads`` by itself is given a
    `Source` instead. ``room(xp, w, window)`` returns an array to prepare parts of the weights in,
    or None where that is little work.
    """

    cuts: bool = True
    long: int = 1
    double: bool = False
    positions: int = 256
    channels: int = 64
    last: bool = False
    reads: bool = False
    tile: Callable[[Window], Ints] | None = None
    room: Callable[[Namespace, Array, Window], Array | None] | None = None


TRAITS: dict[Algorithm, Traits] = {
    windows: Traits(positions=96, channels=256, room=windows.room),
    taps: Traits(),
    winograd: Traits(
        cuts=False,
        long=2,
        positions=1024,
        channels=128,
        last=True,
        tile=winograd.tile,
        room=winograd.room,
    ),
    fft: Traits(cuts=False),
    pointwise: Traits(positions=192, double=True),
    lines: Traits(positions=96, channels=256),
    depthwise: Traits(cuts=False, reads=True),
}

# What a caller may name; the others are what "windows" and "taps" come to in some cases.
METHODS: dict[str, Algorithm] = {
    "windows": windows,
    "taps": taps,
    "winograd": winograd,
    "fft": fft,
}
