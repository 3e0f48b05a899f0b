"""Few channels in place: the windows of all axes but the first, and a product for each row.

Where windows have as many numbers as there are outputs, or more, to copy them takes longer than
to multiply them. The first axis needs no copies: the rows of the input that one row of outputs
reads are a matrix already, once its other axes are windows, and that of the next row overlaps it.
See Cho and Brand, "MEC" (2017), https://arxiv.org/abs/1706.06873. Exact on small integers.
"""

from __future__ import annotations

import math

from .geometry import SPATIAL, Ints, Window
from .namespace import (
    Array,
    Namespace,
    flattened,
    forwards,
    gathered,
    merged,
    strided,
    swapped,
    windows,
)
from .products import inner, inner_pieces, matmul

SHORT = 16  # positions of a row below which samples share a product


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, k, c, *W) as the matrices (G, k, W*c), the first axis before the channels."""
    w = xp.permute_dims(w, (0, 1, SPATIAL, 2, *range(SPATIAL + 1, w.ndim)))
    return forwards(xp, xp.reshape(w, (*w.shape[:2], math.prod(w.shape[2:]))))


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""
    G, k, height = w.shape
    N, rows, O = x.shape[2], window.O[0], window.O[1:]
    view, taps = _others(xp, x, window), tuple(range(4, 3 + len(window.W)))
    shared = shares(window.O)
    parts, width = (1, N * math.prod(O)) if shared else (N, math.prod(O))
    if shared:  # (G, L, c, *W', N, *O')
        view = xp.permute_dims(view, (0, 2, 3, *taps, 1, *range(4 + len(taps), view.ndim)))
    size = height // window.W[0] * width
    lines = gathered(xp, view, (G, 1, parts, -1))
    sliding = Window((rows,), (height * width,), (window.stride[0] * size,), (1,))
    # a row of outputs and the next one read some rows of the input in common
    read = xp.permute_dims(windows(xp, lines, sliding)[:, 0], (0, 2, 3, 1))
    read = xp.reshape(read, (G, parts, rows, height, width))
    place = None if out is None or shared else merged(out, SPATIAL + 1)
    if place is not None:
        place = xp.permute_dims(place, (0, 2, 3, 1, 4))
    # (G, 1, 1, k, W*c) @ (G, N, O, W*c, O') -> (G, N, O, k, O')
    y = matmul(xp, w[:, None, None], read, place)
    if place is not None:
        return out
    y = xp.reshape(y, (G, parts, rows, k, N // parts, *O))
    if shared:
        return xp.permute_dims(y[:, 0], (0, 2, 3, 1, *range(4, y.ndim - 1)))
    return xp.permute_dims(y[:, :, :, :, 0], (0, 3, 1, 2, *range(4, y.ndim - 1)))


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W)."""
    G, k, N = g.shape[:3]
    c, s = x.shape[1], window.stride[0]
    taps, width, positions = window.W[0], math.prod(window.O[1:]), math.prod(window.O)
    rows = flattened(xp, swapped(xp, g), SPATIAL)[:, :, None]
    axes, height = 3 + len(window.W), c * math.prod(window.W[1:])
    dw = xp.empty((G, k, c, *window.W), dtype=g.dtype)
    view = _others(xp, x, window)  # (G, N, L, c, *W', *O')
    for phase in range(min(s, taps)):
        own = view[:, :, phase::s]
        own = xp.permute_dims(own, (0, 1, *range(3, axes), 2, *range(axes, own.ndim)))
        lines = gathered(xp, own, (G, N, height, -1))
        count = len(range(phase, taps, s))
        item = lines.itemsize
        read = strided(
            xp,
            lines,
            (G, N, count, height, positions),
            (*lines.strides[:2], item * width, lines.strides[2], item),
        )
        # (G, N, 1, k, O) @ (G, N, W, O, c*W') -> (G, N, W, k, c*W')
        part = xp.sum(inner(xp, rows, read, summed=N), axis=1, dtype=g.dtype)
        part = xp.reshape(part, (G, count, k, c, *window.W[1:]))
        dw[:, :, :, phase::s] = xp.permute_dims(part, (0, 2, 3, 1, *range(4, part.ndim)))
    return dw


def _others(xp: Namespace, x: Array, window: Window) -> Array:
    """View the windows of all axes but the first: (G, N, L, c, *W', *O')."""
    first = Window((x.shape[SPATIAL],), (1,), (1,), (1,))
    others = Window(*(a + b[1:] for a, b in zip(first, window, strict=True)))
    view = windows(xp, x, others)[:, :, 0]  # (G, c, *W', N, L, *O')
    n = len(window.W) + 1
    return xp.permute_dims(view, (0, n, n + 1, 1, *range(2, n), *range(n + 2, view.ndim)))


def shares(O: Ints) -> bool:
    """Whether samples share a product, as rows of outputs are short."""
    return math.prod(O[1:]) < SHORT


def _line(N: int, window: Window, c: int) -> int:
    """Return how many numbers there are of each row of the input."""
    return N * c * math.prod(window.W[1:]) * math.prod(window.O[1:])


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    rows = window.stride[0] * (window.O[0] - 1) + window.W[0]
    return G * rows * _line(N, window, c)


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    s, taps = window.stride[0], window.W[0]
    rows = sum(window.O[0] + (taps - 1 - phase) // s for phase in range(min(s, taps)))
    height = c * math.prod(window.W[1:])
    pieces = inner_pieces(math.prod(window.O), k, height) + 2
    products = N * pieces * taps * k * height
    return G * (rows * _line(N, window, c) + products)


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    return G * c * k * math.prod(window.W)
