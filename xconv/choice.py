"""Which algorithm a call uses: the registry of methods and the automatic choice.

An algorithm is a module with `forward`, `grad_weight` and `workspace`, on padded blocks in the
form of `layout`. There is no `grad_input`: at each phase of the stride it is a `forward` with
the weights reversed (see `Geometry.phases`). A new method is a new module and a line here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, Protocol

from . import depthwise, fft, pointwise, taps, windows, winograd
from .errors import Refusal, shown
from .geometry import Geometry, Window
from .namespace import Array, Namespace, in_place


class Algorithm(Hashable, Protocol):
    """What every method's module has."""

    CUTS: bool  # whether sums over channels and taps may be cut into parts

    def prepare(self, xp: Namespace, w: Array, window: Window) -> Any:
        """Return w (G, k, c, *W) in the form that `forward` takes: (G, k, ...)."""

    def forward(
        self, xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None
    ) -> Array:
        """x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""

    def grad_weight(self, xp: Namespace, x: Array, g: Array, window: Window) -> Array:
        """x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W)."""

    def workspace(self, G: int, N: int, window: Window, c: int, k: int) -> int:
        """Elements that `forward` needs beyond operands and result."""

    def weight_workspace(self, G: int, N: int, window: Window, c: int, k: int) -> int:
        """Elements that `grad_weight` needs beyond operands and result."""

    def prepared(self, G: int, window: Window, c: int, k: int) -> int:
        """Elements of the prepared weights."""


METHODS: dict[str, Algorithm] = {
    "windows": windows,
    "taps": taps,
    "winograd": winograd,
    "fft": fft,
}


def checked_method(method: object) -> str:
    """Return the name of a known method."""
    if isinstance(method, str) and method in ("auto", *METHODS):
        return method
    kind = ValueError if isinstance(method, str) else TypeError
    raise Refusal(f"method to be one of {('auto', *METHODS)}", shown(method), kind)


def algorithm(method: str, xp: Namespace, geom: Geometry) -> Algorithm:
    """Return the algorithm for one contraction of this geometry.

    "auto" looks at shapes and the kind of library alone. One tap needs no windows, one input
    channel per group needs no matrix product, fewer outputs than inputs need no copies of windows:
    these run as `taps`, and so do libraries whose arrays are not written in place, as one
    expression.
    """
    points = math.prod(geom.W)
    if in_place(xp):
        if points == 1 and method in ("auto", "windows", "taps"):
            return pointwise
        if geom.c == geom.k == 1 and geom.G > 1 and max(geom.stride) == 1 and method == "auto":
            return depthwise
    if method == "auto":
        method = "windows" if in_place(xp) else "taps"
    return METHODS[method]
