"""One channel per group in place: rows of outputs as a product, for images that are wide.

Where rows of weights are too short for a product, some rows of outputs together are one: of a band
matrix, in which the taps of the first axis move down by its stride from one row to the next, with
the rows of the input. Only the windows of the other axes are copied, and the products write to the
result. The weight gradient is a scalar product for each tap, of the block as one line, which the
tap shifts, with the gradient in a line of the same shape.

The zeros of a band spread a NaN. See also Cho and Brand's MEC, https://arxiv.org/abs/1706.06873.
"""

from __future__ import annotations

import math

from .geometry import ALL, SPATIAL, Ints, Window
from .namespace import Array, Namespace, gathered, merged, scratch, strided, windows
from .products import matmul

ROWS = 4  # rows of outputs in a product: more of them multiply more zeros
PIECE = 2048  # numbers that stay in the first cache for all taps


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, k, 1, *W) as band matrices (G, k, rows of outputs, rows of inputs * *W')."""
    G, k = w.shape[:2]
    rows, (s, d, taps) = _rows(window), _first(window)
    band = xp.zeros((G, k, rows, _span(window, rows), *window.W[1:]), dtype=w.dtype)
    for row in range(rows):
        band[:, :, row, s * row : s * row + d * (taps - 1) + 1 : d] = w[:, :, 0]
    return xp.reshape(band, (G, k, rows, math.prod(band.shape[3:])))


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, 1, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""
    G, k, rows, _ = w.shape
    N, width, taps = x.shape[2], math.prod(window.O[1:]), math.prod(window.W[1:])
    lines = _lines(xp, x, window)
    place = None if out is None else merged(out, SPATIAL + 1)
    if place is None:
        out = scratch(xp, (G, k, N, *window.O), x.dtype)
        place = xp.reshape(out, (G, k, N, window.O[0], width))
    s, whole = window.stride[0], window.O[0] // rows * rows
    for start, stop, n in ((0, whole, rows), (whole, window.O[0], window.O[0] - whole)):
        if start == stop:
            continue
        span, count = _span(window, n) * taps, (stop - start) // n
        # the rows of the input that each product reads overlap
        some = lines[..., s * start * taps * width :]
        view = Window((count,), (span * width,), (s * n * taps * width,), (1,))
        some = xp.permute_dims(windows(xp, some, view), (0, 1, 3, 4, 2))
        some = xp.reshape(some, (G, 1, N, count, span, width))
        there = xp.reshape(place[:, :, :, start:stop], (G, k, N, count, n, width))
        # (G, k, 1, 1, n, span*W') @ (G, 1, N, count, span*W', O') -> (G, k, N, count, n, O')
        matmul(xp, w[:, :, None, None, :n, :span], some, there)
    return out


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, 1, N, *L) padded, g (G, k, N, *O) -> (G, k, 1, *W)."""
    G, k, N, *O = g.shape
    L, W, axes = tuple(x.shape[SPATIAL:]), window.W, len(window.W)
    spread = scratch(xp, (G, k, N, *L), g.dtype)
    spread[...] = 0
    there = (slice(0, s * (o - 1) + 1, s) for o, s in zip(O, window.stride, strict=True))
    spread[(*ALL, *there)] = g
    size = N * math.prod(L)
    line, spread = xp.reshape(x, (G, size)), xp.reshape(spread, (G, k, size))
    item = line.strides[-1]
    shifts = [d * math.prod(L[a + 1 :]) for a, d in enumerate(window.dilation)]
    size -= sum((w - 1) * shift for w, shift in zip(W, shifts, strict=True))
    whole = size // PIECE * PIECE
    dw = xp.zeros((G, *W, k, 1), dtype=g.dtype)
    for start, stop, n in ((0, whole, PIECE), (whole, size, size - whole)):
        if start < stop:
            count = (stop - start) // n
            rows = xp.reshape(spread[..., start:stop], (G, k, count, n))
            rows = xp.permute_dims(rows, (0, 2, 1, 3))[(*ALL[:2], *(None,) * axes)]
            steps = (line.strides[0], n * item, *(shift * item for shift in shifts), item, item)
            shifted = strided(xp, line[:, start:], (G, count, *W, n, 1), steps)
            # (G, pieces, 1, k, n) @ (G, pieces, W, n, 1) -> (G, pieces, W, k, 1)
            dw += xp.sum(xp.matmul(rows, shifted), axis=1, dtype=g.dtype)
    return xp.permute_dims(dw, (0, 1 + axes, 2 + axes, *range(1, 1 + axes)))


def _lines(xp: Namespace, x: Array, window: Window) -> Array:
    """Return the windows of all axes but the first, as lines (G, 1, N, L*W'*O')."""
    rank, rows = len(window.W), _span(window, window.O[0])
    others = Window(
        (rows, *window.O[1:]),
        (1, *window.W[1:]),
        (1, *window.stride[1:]),
        (1, *window.dilation[1:]),
    )
    view = windows(xp, x, others)[:, :, 0]  # (G, 1, *W', N, L, *O')
    order = (0, 1, rank + 1, rank + 2, *range(2, rank + 1), *range(rank + 3, view.ndim))
    view = xp.permute_dims(view, order)
    return gathered(xp, view, (*view.shape[:3], math.prod(view.shape[3:])))


def _rows(window: Window) -> int:
    return min(ROWS, window.O[0])


def _first(window: Window) -> Ints:
    """Return stride, dilation and taps of the first axis."""
    return window.stride[0], window.dilation[0], window.W[0]


def _span(window: Window, rows: int) -> int:
    """Return how many rows of the input some rows of outputs read."""
    s, d, taps = _first(window)
    return s * (rows - 1) + d * (taps - 1) + 1


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    rows = _span(window, window.O[0])
    return G * N * rows * math.prod(window.W[1:]) * math.prod(window.O[1:])


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    sizes = zip(window.O, window.W, window.stride, window.dilation, strict=True)
    cells = N * math.prod(s * (o - 1) + d * (w - 1) + 1 for o, w, s, d in sizes)
    return G * k * (cells + (cells // PIECE + 2) * math.prod(window.W))


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    rows = _rows(window)
    return G * k * rows * _span(window, rows) * math.prod(window.W[1:])
