"""One channel per group in place, some padded images at a time, which a core's cache holds.

Some rows of outputs are one product: of a band matrix, in which the taps of the first axis move
down by its stride from one row to the next, with the rows of the input. Only the windows of the
other axes are copied, and the products write to the result. The weight gradient is a scalar
product for each tap, of the images as one line, which the tap shifts, with the gradient in a line
of the same shape.

The zeros of a band spread a NaN, as do those of a gradient's line. See also Cho and Brand's MEC,
https://arxiv.org/abs/1706.06873.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from .geometry import SPATIAL, Ints, Range, Window, Work, parts
from .namespace import Array, Namespace, merged, scratch, strided, windows
from .padding import Source

NEAR = 2**18  # numbers that a core's cache holds beside others
ROWS = 4  # of outputs in a product: more of them multiply more zeros
SIDE = 8  # a product takes as long as one with so many more columns
LINE = 2048  # numbers of a scalar product: the first cache keeps them for all taps


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, 1, 1, *W) as band matrices (G, 1, rows of outputs, rows of inputs * *W')."""
    window = _planar(window)
    rows, s, d, taps = _rows(window), window.stride[0], window.dilation[0], window.W[0]
    band = xp.zeros((len(w), rows, _span(window, rows), *window.W[1:]), dtype=w.dtype)
    w = xp.reshape(w, (len(w), *window.W))
    for row in range(rows):
        band[:, row, s * row : s * row + d * (taps - 1) + 1 : d] = w
    return xp.reshape(band, (len(w), 1, rows, -1))


def forward(xp: Namespace, x: Source, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, 1, N, *L) padded, w prepared -> (G, 1, N, *O), in `out` if that can be."""
    G, _, N, *L = x.shape
    if out is None or out.strides[-1] != out.itemsize:
        out = scratch(xp, (G, 1, N, *window.O), x.dtype)
    places = out[:, 0] if len(L) > 1 else out[:, 0, :, None]
    window = _planar(window)
    g, n, chunks, columns = _pieces(G, N, window)
    cells = _zeros(xp, (g, 1, n, *_cells(window)), x.dtype)
    copies = scratch(xp, (g * n * columns,), x.dtype)
    rows = _rows(window)  # of the bands, which are for the largest block, this one may be a part
    w = w[:, :, :rows, : _span(window, rows) * math.prod(window.W[1:])]
    for own, some in itertools.product(_runs(G, g), parts(range(0, N, n))):
        size, samples = min(own.stop - own.start, g), slice(*some)
        there = cells[:size, :, : some[1] - some[0]]
        fill = x.onto(xp.reshape(there, (*there.shape[:SPATIAL], *L)), own, samples)
        steps = _steps(xp, there, copies, w[own], places[own, samples], window, chunks)
        for piece in range((own.stop - own.start) // size):
            fill(piece)  # with little between these calls: other threads wait for it
            for view, copied, products in steps:
                copied[...] = view
                for left, right, place in products:
                    # (g, 1, 1, .., rows, K) @ (g, n, count, .., K, O') -> (.., rows, O')
                    xp.matmul(left[piece], right, out=place[piece])
    return out


class Step(NamedTuple):
    """What is done with some cells: to copy a view of them, and products with the copy.

    Left matrices and places of results are those of all pieces, (pieces, g, ..).
    """

    view: Array
    copied: Array
    products: list[tuple[Array, Array, Array]]


def _steps(
    xp: Namespace,
    cells: Array,
    copies: Array,
    bands: Array,
    places: Array,
    window: Window,
    chunks: Iterable[tuple[Range, Range]],
) -> list[Step]:
    """Return the steps for cells (g, 1, n, *L) of each piece: one for each chunk.

    ``bands`` (G, 1, rows, K) and ``places`` (G, n, *O) are of all pieces, ``copies`` is memory.
    """
    steps, size = [], len(cells)
    for rows, part in chunks:
        view = _windows(xp, cells, window, rows, part)
        copied = xp.reshape(copies[: math.prod(view.shape)], view.shape)
        products = []
        place = places[(slice(None), slice(None), slice(*rows), ..., slice(*part))]
        for right, result in _products(xp, copied, place, window):
            left = bands[(slice(None), slice(None), *(None,) * (right.ndim - 4))]
            products.append((_split(xp, left, size), right, _split(xp, result, size)))
        steps.append(Step(view, copied, products))
    return steps


def _windows(xp: Namespace, cells: Array, window: Window, rows: Range, part: Range) -> Array:
    """View the windows of all axes but the first, (g, n, L, *W', *O'), under a box of outputs.

    It is of some rows, and of a part of the last axis.
    """
    s, d, (begin, end) = window.stride[-1], window.dilation[-1], part
    first, span = window.stride[0] * rows[0], _span(window, rows[1] - rows[0])
    reads = slice(s * begin, s * (end - 1) + d * (window.W[-1] - 1) + 1)
    cells = cells[:, :, :, first : first + span, ..., reads]
    sliding = Window((span, *window.O[1:-1], end - begin), *((1, *axis[1:]) for axis in window[1:]))
    view = windows(xp, cells, sliding)[:, 0, 0]  # (g, *W', n, L, *O')
    others = len(window.O) - 1
    order = (0, others + 1, others + 2, *range(1, others + 1), *range(others + 3, view.ndim))
    return xp.permute_dims(view, order)


def _products(
    xp: Namespace, columns: Array, places: Array, window: Window
) -> list[tuple[Array, Array]]:
    """View the right matrices of products, and the places of their results.

    Those are parts of columns (g, n, L, *W', *O'), these of rows of outputs (.., n, rows, *O'). Of
    rows that are left, a last product writes some of the others once more.
    """
    flat = merged(places, SPATIAL)  # all lines of a row, if they lie so: fewer and longer products
    places = places if flat is None else flat
    rows, (O, *others) = _rows(window), places.shape[2:]
    s, taps = window.stride[0], math.prod(window.W[1:])
    lines = xp.reshape(columns, (*columns.shape[:2], columns.shape[2] * taps, *others))
    found = []
    for row, count in ((0, O // rows), (O - rows, 1))[: 2 if O % rows else 1]:
        some = lines[:, :, s * row * taps :]
        shape = (*some.shape[:2], count, _span(window, rows) * taps, *others)
        step = s * rows * taps * some.strides[2]
        right = strided(xp, some, shape, (*some.strides[:2], step, *some.strides[2:]))
        place = places[:, :, row : row + count * rows]
        place = xp.reshape(place, (*place.shape[:2], count, rows, *others))
        found.append((_by_line(xp, right), _by_line(xp, place)))
    return found


def _by_line(xp: Namespace, a: Array) -> Array:
    """Return matrices of one line of outputs: (g, n, count, M, *O') -> (g, n, count, .., M, O)."""
    return xp.permute_dims(a, (0, 1, 2, *range(4, a.ndim - 1), 3, a.ndim - 1))


def grad_weight(
    xp: Namespace, x: Source, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, 1, N, *L) padded, g (G, 1, N, *O) -> (G, 1, 1, *W)."""
    G, _, N, *L = x.shape
    W, axes = window.W, len(window.W)
    groups, n, count, length = _line_pieces(G, N, window)
    room = count * length + _reach(window)
    line = _zeros(xp, (groups * room,), x.dtype)
    spread = _zeros(xp, (groups * count * length,), x.dtype)
    cells, places = (
        xp.reshape(xp.reshape(a, (groups, -1))[:, : n * math.prod(L)], (groups, 1, n, *L))
        for a in (line, spread)
    )
    there = (slice(0, s * (o - 1) + 1, s) for o, s in zip(window.O, window.stride, strict=True))
    places = places[(..., *there)]
    steps = (room, length, *_shifts(window), 1, 1)
    strides = tuple(line.itemsize * step for step in steps)
    shifted = strided(xp, line, (groups, count, *W, length, 1), strides)
    rows = xp.reshape(spread, (groups, count, *(1,) * axes, 1, length))
    sums = scratch(xp, (G, count, *W, 1, 1), x.dtype)
    dw = xp.zeros((G, *W, 1, 1), dtype=x.dtype)
    for start, stop in parts(range(0, N, n)):
        some, samples = slice(start, stop), stop - start
        for own in _runs(G, groups):
            size = min(own.stop - own.start, groups)
            fill = x.onto(cells[:size, :, :samples], own, some)
            place, left, right = places[:size, :, :samples], rows[:size], shifted[:size]
            places[:size, :, samples:] = 0
            pieces = zip(
                _split(xp, g[own, :, some], size), _split(xp, sums[own], size), strict=True
            )
            for piece, (gradient, found) in enumerate(pieces):
                fill(piece)
                place[...] = gradient
                # (g, count, .., 1, length) @ (g, count, *W, length, 1) -> (g, count, *W, 1, 1)
                xp.matmul(left, right, out=found)
        dw += xp.sum(sums, axis=1, dtype=x.dtype)
    return xp.reshape(dw, (G, 1, 1, *W))


def _runs(whole: int, size: int) -> list[slice]:
    """Return what is parts of that size, and what is left."""
    most = whole // size * size
    return [slice(0, most)] + [slice(most, whole)] * (most < whole)


def _split(xp: Namespace, a: Array, size: int) -> Array:
    """View parts of so many groups: (G, ..) -> (parts, size, ..)."""
    return xp.reshape(a, (-1, size, *a.shape[1:]))


def _planar(window: Window) -> Window:
    """Return a window of at least two axes: a line is an image of one row."""
    return window if len(window.O) > 1 else Window(*((1, *axis) for axis in window))


def _rows(window: Window) -> int:
    """Return how many rows of outputs are a product."""
    return min(ROWS, window.O[0]) if window.W[0] > 1 else 1


def _span(window: Window, rows: int) -> int:
    """Return how many rows of the input some rows of outputs read."""
    return window.stride[0] * (rows - 1) + window.dilation[0] * (window.W[0] - 1) + 1


def _cells(window: Window) -> Ints:
    """Return the sizes of padded images."""
    axes = zip(window.O, window.W, window.stride, window.dilation, strict=True)
    return tuple(s * (o - 1) + d * (w - 1) + 1 for o, w, s, d in axes)


def _shifts(window: Window) -> Ints:
    """Return how far the next tap of each axis is, in an image as a line."""
    cells = _cells(window)
    return tuple(d * math.prod(cells[a + 1 :]) for a, d in enumerate(window.dilation))


def _reach(window: Window) -> int:
    """Return how far the last tap is."""
    return sum((w - 1) * shift for w, shift in zip(window.W, _shifts(window), strict=True))


def _zeros(xp: Namespace, shape: Ints, dtype: object) -> Array:
    block = scratch(xp, shape, dtype)
    block[...] = 0
    return block


class Pieces(NamedTuple):
    """How many groups and samples come at a time, and in which chunks of an image.

    These are of some rows of outputs and a part of the last axis; the largest has so many numbers
    of ``columns``.
    """

    groups: int
    samples: int
    chunks: tuple[tuple[Range, Range], ...]
    columns: int


@lru_cache(maxsize=256)
def _pieces(G: int, N: int, window: Window) -> Pieces:
    """Return the pieces of `forward`."""
    (O, *others), rows = window.O, _rows(window)
    taps = math.prod(window.W[1:]) * math.prod(others[:-1])
    width = _about(others[-1], NEAR // (taps * _span(window, rows)))
    most = (NEAR // (taps * width) - _span(window, rows)) // (window.stride[0] * rows) + 1
    size = rows * _about(O // rows, most)
    starts = range(0, O // rows * rows, size)  # rows that are left belong to the last ones
    lines = list(zip(starts, [*starts[1:], O], strict=True))
    chunks = tuple(itertools.product(lines, parts(range(0, others[-1], width))))
    highest = max(stop - start for start, stop in lines)
    columns = taps * width * _span(window, highest)
    return Pieces(*_images(G, N, math.prod(_cells(window)) + columns), chunks, columns)


@lru_cache(maxsize=256)
def _line_pieces(G: int, N: int, window: Window) -> tuple[int, int, int, int]:
    """Return how many groups and samples come at a time, as how many lines of which length."""
    image = math.prod(_cells(window))
    groups, samples = _images(G, N, image)
    count = max(samples * image // LINE, 1)
    return groups, samples, count, -(-samples * image // count)


def _images(G: int, N: int, numbers: int) -> tuple[int, int]:
    """Return how many groups and samples come at a time, of so many numbers an image."""
    samples = _even(N, NEAR // numbers)
    return _even(G, NEAR // (samples * numbers)), samples


def _even(whole: int, most: int) -> int:
    """Return the size of parts of at most so many: all the same, or about as large."""
    sizes = range(min(max(most, 1), whole), most // 2, -1)
    return next((size for size in sizes if whole % size == 0), _about(whole, most))


def _about(whole: int, most: int) -> int:
    """Return the size of the fewest parts of at most so many, all about as large."""
    return -(-whole // -(-whole // max(most, 1)))


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result.

    At most so many: a part of these groups, samples or outputs may have larger pieces.
    """
    window = _planar(window)
    rows = _rows(window)
    single = math.prod(window.W[1:]) * math.prod(window.O[1:-1])
    row, left = single * window.O[-1], window.stride[0] * (rows - 1)
    most = max(NEAR, single * _span(window, rows))
    columns = min(row * _span(window, window.O[0]), most + left * min(row, most))
    image = math.prod(_cells(window)) + columns
    return min(G * N * image, max(NEAR, image))


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result, at most."""
    image, taps = math.prod(_cells(window)), math.prod(window.W)
    most = max(NEAR, image)
    lines, longest = min(G * N * image, most), min(N * image, most)
    numbers = 2 * (lines + lines // LINE + G) + min(G * _reach(window), most)
    return numbers + G * (max(longest // LINE, 1) + 2) * taps


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    window = _planar(window)
    rows = _rows(window)
    return G * rows * _span(window, rows) * math.prod(window.W[1:])


def work(G: int, N: int, window: Window) -> Work:
    """Return what one group takes in `forward`, where lines of a row are one product."""
    window = _planar(window)
    rows, taps, between = _rows(window), math.prod(window.W[1:]), math.prod(window.O[1:-1])
    g, n, chunks, _ = _pieces(G, N, window)
    copied = products = operations = 0
    for (start, stop), (begin, end) in chunks:
        height, width = stop - start, between * (end - begin)
        copied += N * taps * _span(window, height) * width
        count = N * -(-height // rows)
        products += count
        operations += 2 * rows * taps * _span(window, rows) * count * (width + SIDE)
    calls = -(-G // g) * -(-N // n) * (1 + 2 * len(chunks) + (window.O[0] % rows > 0))
    return Work(products, operations // products, copied, 0, 0, calls, 0)


def weight_calls(G: int, N: int, window: Window) -> int:
    """Count NumPy's calls in `grad_weight`."""
    g, n, _, _ = _line_pieces(G, N, window)
    return 3 * -(-G // g) * -(-N // n)
