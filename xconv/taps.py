"""`taps`: one product per kernel position, summed.

Needs little memory, no views, and no writes, so it runs in every array library. With one input
channel per group (depthwise) the products are elementwise. Exact on small integers.
"""

from __future__ import annotations

import math

from .geometry import Window, taps
from .namespace import Array, Namespace


def forward(xp: Namespace, x: Array, w: Array, window: Window) -> Array:
    """dT/dg: x (G, N, *L, c) padded, w (G, *W, c, k) -> (G, N, *O, k)."""
    G, N, c, k = x.shape[0], x.shape[1], x.shape[-1], w.shape[-1]
    positions, points = N * math.prod(window.O), taps(window)
    w = xp.reshape(w, (G, len(points), c, k))
    y = None
    for t, point in enumerate(points):
        rows = xp.reshape(x[point], (G, positions, c))
        # (G, N*O, c) @ (G, c, k) -> (G, N*O, k)
        term = rows * w[:, t, ...] if c == 1 else xp.matmul(rows, w[:, t, ...])
        y = term if y is None else y + term
    return xp.reshape(y, (G, N, *window.O, k))


def grad_weight(xp: Namespace, x: Array, g: Array, window: Window) -> Array:
    """dT/dw: x (G, N, *L, c) padded, g (G, N, *O, k) -> (G, *W, c, k)."""
    G, N, c, k = x.shape[0], x.shape[1], x.shape[-1], g.shape[-1]
    positions = N * math.prod(window.O)
    columns = xp.reshape(g, (G, positions, k))
    # (G, c, N*O) @ (G, N*O, k) -> (G, c, k)
    dw = [
        xp.matmul(xp.matrix_transpose(xp.reshape(x[point], (G, positions, c))), columns)
        for point in taps(window)
    ]
    return xp.reshape(xp.stack(dw, axis=1), (G, *window.W, c, k))


def workspace(positions: int, taps: int, c: int, k: int) -> int:
    """Elements that a contraction needs beyond its operands and its result."""
    return positions * (c + k) + taps * c * k
