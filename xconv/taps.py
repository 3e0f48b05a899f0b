"""`taps`: one product per kernel position, summed.

Needs little memory, no views, and no writes, so it runs in every array library. Exact on small
integers.
"""

from __future__ import annotations

import math
import operator
from functools import partial

from .geometry import Window, taps
from .namespace import Array, Namespace
from .products import product


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, k, c, *W) as (G, k, c, taps)."""
    return xp.reshape(w, (*w.shape[:3], math.prod(window.W)))


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O)."""
    G, c, N = x.shape[:3]
    k, positions = w.shape[1], N * math.prod(window.O)
    multiply = operator.mul if c == 1 else partial(product, xp)
    y = None
    for t, point in enumerate(taps(window)):
        # (G, k, c) @ (G, c, N*O) -> (G, k, N*O)
        term = multiply(w[..., t], xp.reshape(x[point], (G, c, positions)))
        y = term if y is None else y + term
    return xp.reshape(y, (G, k, N, *window.O))


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""
    G, c, N = x.shape[:3]
    k = g.shape[1]
    positions = N * math.prod(window.O)
    rows = xp.reshape(g, (G, k, positions))
    # (G, k, N*O) @ (G, N*O, c) -> (G, k, c)
    dw = [
        product(xp, rows, xp.matrix_transpose(xp.reshape(x[point], (G, c, positions))))
        for point in taps(window)
    ]
    return xp.reshape(xp.stack(dw, axis=-1), (G, k, c, *window.W))


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    return G * N * math.prod(window.O) * (c + k)


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    return G * (N * math.prod(window.O) * c + math.prod(window.W) * c * k)


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    return G * c * k * math.prod(window.W)
