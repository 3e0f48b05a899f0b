"""`windows`: the sliding windows of a block, each a column, under the weights as one matrix.

The textbook method, im2col, in blocks: one large product whose columns are copied in runs of
output positions. Exact on small integers.
"""

from __future__ import annotations

import math

from .geometry import Window
from .namespace import (
    Array,
    Namespace,
    flattened,
    forwards,
    gathered,
    in_place,
    merged,
    on_gpu,
    swapped,
    windows,
)
from .products import inner, inner_pieces, matmul

MANY = 2**18  # weights from which on they are not just reshaped: workers may share that
SHORT = 256  # positions of a sample below which samples share one product


def room(xp: Namespace, w: Array, window: Window) -> Array | None:
    """Return an array for many weights that have to be rearranged, as mirrored ones."""
    if not in_place(xp) or w.size < MANY or w.flags.c_contiguous:
        return None
    return xp.empty((*w.shape[:2], math.prod(w.shape[2:])), dtype=w.dtype)


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, k, c, *W) as the matrices (G, k, c*W), in the order of the windows."""
    if out is None:
        return forwards(xp, xp.reshape(w, (*w.shape[:2], math.prod(w.shape[2:]))))
    xp.reshape(out, w.shape)[...] = w  # to split axes is a view
    return out


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""
    G, k, N = x.shape[0], w.shape[1], x.shape[2]
    # on a GPU weights are copied for every sample, or results once: whichever is less
    short = w.shape[2] if on_gpu(xp) else SHORT
    if N > 1 and math.prod(window.O) >= short and in_place(xp):
        columns = _columns(xp, x, window, N)
        place = None if out is None else merged(swapped(xp, out), 3)
        # (G, 1, k, c*W) @ (G, N, c*W, O) -> (G, N, k, O)
        y = matmul(xp, w[:, None, ...], columns, place)
        if place is None:
            return swapped(xp, xp.reshape(y, (G, N, k, *window.O)))
    else:
        place = None if out is None else merged(out, 2)
        # (G, k, c*W) @ (G, c*W, N*O) -> (G, k, N*O)
        y = matmul(xp, w, _columns(xp, x, window, 1)[:, 0, ...], place)
        if place is None:
            return xp.reshape(y, (G, k, N, *window.O))
    return out


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""
    G, c, k = x.shape[0], x.shape[1], g.shape[1]
    columns = _columns(xp, x, window, 1)[:, 0, ...]
    # (G, k, N*O) @ (G, N*O, c*W) -> (G, k, c*W)
    place = None if out is None else merged(out, 2)
    dw = inner(xp, flattened(xp, g, 2), columns, place)
    return out if dw is place else xp.reshape(dw, (G, k, c, *window.W))


def _columns(xp: Namespace, x: Array, window: Window, parts: int) -> Array:
    """Every window as a column, channels before taps: (G, parts, c*W, N*O / parts)."""
    G, c, N = x.shape[:3]
    view = windows(xp, x, window)  # (G, c, *W, N, *O)
    rank = len(window.W)
    if parts > 1:
        view = xp.permute_dims(
            view, (0, 2 + rank, *range(1, 2 + rank), *range(3 + rank, view.ndim))
        )
    height, width = c * math.prod(window.W), N * math.prod(window.O)
    return gathered(xp, view, (G, parts, height, width // parts))


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that a contraction needs beyond its operands and its result."""
    return G * N * math.prod(window.O) * math.prod(window.W) * c


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    columns = c * math.prod(window.W)
    pieces = inner_pieces(N * math.prod(window.O), k, columns)
    return workspace(G, N, window, c, k) + G * pieces * k * columns


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    return G * c * k * math.prod(window.W)
