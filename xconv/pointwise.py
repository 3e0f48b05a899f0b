"""Kernels of one tap in place: one product per sample, from and to where the arrays lie.

Samples of few positions are put side by side for one product instead, which is faster by a third.
What `windows` and `taps` come to there. Exact on small integers.
"""

from __future__ import annotations

import math

from .geometry import Window, taps
from .namespace import Array, Namespace, gathered, in_place, inner, matmul, merged, swapped

SHORT = 128  # positions of a sample


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, k, c, *1) as matrices (G, k, c)."""
    return xp.reshape(w, w.shape[:3])


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""
    x = x[taps(window)[0]]
    G, c, N = x.shape[:3]
    k, positions = w.shape[1], math.prod(window.O)
    if N > 1 and positions < SHORT and in_place(xp):
        # (G, k, c) @ (G, c, N*O) -> (G, k, N*O)
        y = matmul(xp, w, gathered(xp, x, (G, c, N * positions)))
        return xp.reshape(y, (G, k, N, *window.O))
    cells = xp.reshape(swapped(xp, x), (G, N, c, positions))
    place = None if out is None else merged(swapped(xp, out), 3)
    # (G, 1, k, c) @ (G, N, c, O) -> (G, N, k, O)
    y = matmul(xp, w[:, None, ...], cells, place)
    if place is not None:
        return out
    return swapped(xp, xp.reshape(y, (G, N, k, *window.O)))


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""
    x = x[taps(window)[0]]
    G, c, N = x.shape[:3]
    k = g.shape[1]
    positions = math.prod(window.O)
    # to sum the samples' results may be less than to gather samples
    if N > 1 and positions * (c + k) >= c * k:
        cells = xp.reshape(swapped(xp, x), (G, N, c, positions))
        rows = xp.reshape(swapped(xp, g), (G, N, k, positions))
        # (G, N, k, O) @ (G, N, O, c) -> (G, N, k, c)
        each = inner(xp, rows, cells)
        dw = xp.sum(each, axis=1, dtype=each.dtype)
    else:
        cells = xp.reshape(x, (G, c, N * positions))
        rows = xp.reshape(g, (G, k, N * positions))
        place = None if out is None else merged(out, 2)
        # (G, k, N*O) @ (G, N*O, c) -> (G, k, c)
        dw = inner(xp, rows, cells, place)
        if place is not None:
            return out
    return xp.reshape(dw, (G, k, c, *window.W))


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    positions = math.prod(window.O)
    return G * N * positions * (c + k)


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    positions = math.prod(window.O)
    return G * N * (positions * (c + k) + min(c * k, positions * (c + k)))


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    return G * c * k
