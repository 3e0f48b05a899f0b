"""`windows`: the sliding windows of a block, each a row, times the weights as one matrix.

The textbook method, im2col, in blocks: one large product whose rows are copied out of a block
that is still in cache. Exact on small integers.
"""

from __future__ import annotations

import math

from .geometry import Window
from .namespace import Array, Namespace, windows


def forward(xp: Namespace, x: Array, w: Array, window: Window) -> Array:
    """dT/dg: x (G, N, *L, c) padded, w (G, *W, c, k) -> (G, N, *O, k)."""
    G, N, k = x.shape[0], x.shape[1], w.shape[-1]
    rows = _rows(xp, x, window)
    # (G, N*O, W*c) @ (G, W*c, k) -> (G, N*O, k)
    y = xp.matmul(rows, xp.reshape(w, (G, rows.shape[-1], k)))
    return xp.reshape(y, (G, N, *window.O, k))


def grad_weight(xp: Namespace, x: Array, g: Array, window: Window) -> Array:
    """dT/dw: x (G, N, *L, c) padded, g (G, N, *O, k) -> (G, *W, c, k)."""
    G, c, k = x.shape[0], x.shape[-1], g.shape[-1]
    rows = _rows(xp, x, window)
    columns = xp.matrix_transpose(xp.reshape(g, (G, rows.shape[1], k)))
    # (G, k, N*O) @ (G, N*O, W*c) -> (G, k, W*c): CuPy copies what is transposed, so the smaller
    dw = xp.matrix_transpose(xp.matmul(columns, rows))
    return xp.reshape(dw, (G, *window.W, c, k))


def _rows(xp: Namespace, x: Array, window: Window) -> Array:
    """Every window as a row, taps before channels: (G, N*O, W*c)."""
    positions, width = x.shape[1] * math.prod(window.O), math.prod(window.W) * x.shape[-1]
    return xp.reshape(windows(xp, x, window), (x.shape[0], positions, width))


def workspace(cells: int, positions: int, taps: int, c: int, k: int) -> int:
    """Elements that a contraction needs beyond its operands and its result."""
    return positions * taps * c
