"""Which algorithm a call uses: the registry of methods and the automatic choice.

An algorithm is a module with `forward`, `grad_weight` and `workspace`, on padded blocks in the
form of `layout`. There is no `grad_input`: at each phase of the stride it is a `forward` with
the weights reversed (see `Geometry.phases`). A new method is a new module and a line here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Protocol

from . import taps, windows
from .errors import Refusal, shown
from .geometry import Geometry, Window, slab
from .namespace import Array, Namespace, in_place


class Algorithm(Hashable, Protocol):
    """What every method's module has."""

    def forward(self, xp: Namespace, x: Array, w: Array, window: Window) -> Array:
        """x (G, N, *L, c) padded, w (G, *W, c, k) -> (G, N, *O, k)."""

    def grad_weight(self, xp: Namespace, x: Array, g: Array, window: Window) -> Array:
        """x (G, N, *L, c) padded, g (G, N, *O, k) -> (G, *W, c, k)."""

    def workspace(self, cells: int, positions: int, taps: int, c: int, k: int) -> int:
        """Elements needed beyond operands and result."""


METHODS: dict[str, Algorithm] = {"windows": windows, "taps": taps}


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
    if method == "auto":
        points, positions = math.prod(geom.W), math.prod(geom.O)
        few = points == 1 or (geom.c == 1 and geom.G > 1)
        few = few or taps.narrows(slab(geom, geom.O, geom.W), positions, points, geom.c, geom.k)
        method = "taps" if few or not in_place(xp) else "windows"
    return METHODS[method]
