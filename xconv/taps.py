"""`taps`: one product per kernel position, summed.

Needs little memory, no views, and no writes, so it runs in every array library. With one input
channel per group (depthwise) the products are elementwise. Exact on small integers.
"""

from __future__ import annotations

import math

from .geometry import Window, taps
from .namespace import Array, Namespace, in_place


def forward(xp: Namespace, x: Array, w: Array, window: Window) -> Array:
    """dT/dg: x (G, N, *L, c) padded, w (G, *W, c, k) -> (G, N, *O, k)."""
    G, N, c, k = x.shape[0], x.shape[1], x.shape[-1], w.shape[-1]
    positions, points = N * math.prod(window.O), taps(window)
    w = xp.reshape(w, (G, len(points), c, k))
    cells = N * math.prod(x.shape[2:-1])
    # only blocks: Dask could not take the axes of the product apart again
    if in_place(xp) and narrows(cells, positions, len(points), c, k):
        return _products_first(xp, x, w, window)
    y = None
    for t, point in enumerate(points):
        rows = xp.reshape(x[point], (G, positions, c))
        # (G, N*O, c) @ (G, c, k) -> (G, N*O, k)
        term = rows * w[:, t, ...] if c == 1 else xp.matmul(rows, w[:, t, ...])
        y = term if y is None else y + term
    return xp.reshape(y, (G, N, *window.O, k))


def narrows(cells: int, positions: int, taps: int, c: int, k: int) -> bool:
    """Whether all products of a cell come first: where outputs are fewer than inputs.

    One product with the weights of all taps, then shifted sums of k numbers instead of shifted
    copies of c. It is done for every cell of a block, so most cells must be outputs too.
    """
    return taps > 1 and k < c and cells <= 2 * positions


def _products_first(xp: Namespace, x: Array, w: Array, window: Window) -> Array:
    G, points, c, k = w.shape
    _, N, *L, _ = x.shape
    cells = xp.reshape(x, (G, N * math.prod(L), c))
    weights = xp.reshape(xp.matrix_transpose(w), (G, points * k, c))
    # (G, W*k, c) @ (G, c, N*L) -> (G, W*k, N*L)
    products = xp.matmul(weights, xp.matrix_transpose(cells))
    products = xp.reshape(products, (G, points, k * N, *L))
    y = None
    for t, point in enumerate(taps(window)):
        term = products[:, t, ...][point[:-1]]
        y = term if y is None else y + term
    y = xp.reshape(y, (G, k, N, *window.O))
    return xp.permute_dims(y, (0, *range(2, y.ndim), 1))


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


def workspace(cells: int, positions: int, taps: int, c: int, k: int) -> int:
    """Elements that a contraction needs beyond its operands and its result."""
    if narrows(cells, positions, taps, c, k):
        return cells * taps * k + positions * k + taps * c * k
    return positions * (c + k) + taps * c * k
