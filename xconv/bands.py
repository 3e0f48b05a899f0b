"""One channel per group in place, where images are small: whole rows of results as a product.

Along the axes of an image, a kernel is a band matrix: of the cells of a few rows under those of
one row of results, zeros where they do not meet. Its products with the samples, which are the
rows of the other matrix, read the image as it lies in memory, and write the result; what would be
padding is a part of the matrix that is left out. The input gradient is the same with the matrix
transposed, for all phases of a stride at once.

The zeros of a band spread a NaN, and a NaN among the weights does not reach what only meets
padding there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .geometry import SPATIAL, Geometry, Ints, Work
from .namespace import Array, Namespace, constant, gathered, merged, scratch, strided

LARGEST = 2**18  # numbers of the matrices of single taps
LEAST = 7  # results of a product, or it takes several rows
TALL = 4  # times its width: a matrix that BLAS reads faster the other way


# Matrices and the place of their products: (G, .., N, .), (G, .., ., .) and (G, .., N, .).
Product = tuple[Array, Array, Array]


class Band(NamedTuple):
    """How results are made of an operand, in blocks of `rows` along their first axis.

    Block ``b`` reads ``span`` rows of the operand from ``step * b + low`` on. ``height`` and
    ``width`` are those of the matrix, ``inputs`` and ``results`` the rows that there are.
    """

    rows: int
    span: int
    step: int
    low: int
    height: int
    width: int
    inputs: int
    results: int

    @property
    def upright(self) -> bool:
        """Whether the matrix lies in memory row by row, or column by column."""
        return self.height <= TALL * self.width

    @property
    def number(self) -> int:
        """How many blocks there are."""
        return -(-self.results // self.rows)

    @property
    def inside(self) -> tuple[int, int]:
        """The blocks, as (first, one past the last), that are whole and read no padding."""
        first = max(-(self.low // self.step), 0)
        last = min((self.inputs - self.span - self.low) // self.step + 1, self.results // self.rows)
        return (first, last) if first < last else (0, 0)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of blocks, each for one product."""
        first, last = self.inside
        if last:
            yield first, last
        for block in itertools.chain(range(first), range(last, self.number)):
            yield block, block + 1


@lru_cache(maxsize=256)
def band(geom: Geometry, backwards: bool) -> Band:
    """Return the blocks of a forward contraction, or of an input gradient."""
    s, d, taps = geom.stride[0], geom.dilation[0], geom.W[0]
    low, reach = geom.padding[0][0], d * (taps - 1)
    I, O = math.prod(geom.I[1:]), math.prod(geom.O[1:])
    if backwards:
        rows = -(-LEAST // (s * I))
        first, last = -((reach - low) // s), (s * rows - 1 + low) // s
        span = last - first + 1
        return Band(s * rows, span, rows, first, span * O, s * rows * I, geom.O[0], geom.I[0])
    rows = min(-(-LEAST // O), geom.O[0])
    span = s * (rows - 1) + reach + 1
    return Band(rows, span, s * rows, -low, span * I, rows * O, geom.I[0], geom.O[0])


def room(xp: Namespace, w: Array, geom: Geometry, backwards: bool) -> Array:
    """Return memory for the band matrices (G, height, width) of the weights (G, 1, 1, *W)."""
    how = band(geom, backwards)
    _single_taps(xp, w, geom, backwards)  # made once, before threads ask for them
    if how.upright:
        return xp.empty((w.shape[0], how.height, how.width), dtype=w.dtype)
    return xp.matrix_transpose(xp.empty((w.shape[0], how.width, how.height), dtype=w.dtype))


def prepare(
    xp: Namespace, w: Array, geom: Geometry, backwards: bool, out: Array | None = None
) -> Array:
    """Return the band matrices of the weights, in `out`, which is `room` for them or part of it."""
    out = room(xp, w, geom, backwards) if out is None else out
    lines = out if band(geom, backwards).upright else xp.matrix_transpose(out)
    places = _single_taps(xp, w, geom, backwards)
    # (G, W) @ (W, height*width), one call: to copy each tap takes as long, and calls for each
    xp.matmul(xp.reshape(w, (len(w), -1)), places, out=xp.reshape(lines, (len(w), -1)))
    return out


def _single_taps(xp: Namespace, w: Array, geom: Geometry, backwards: bool) -> Array:
    """Return the band matrices of single taps, (W, height*width), which are kept."""
    return constant(xp, _places, (_alone(geom), backwards), w)


def products(
    xp: Namespace, a: Array, matrices: Array, geom: Geometry, backwards: bool, out: Array
) -> Iterator[Product] | None:
    """Return the products that write a contraction to `out`, each of all groups.

    ``a`` is x (G, 1, N, *I), or g (G, 1, N, *O) backwards, where `out` is the input gradient. None:
    BLAS would not read or write these where they lie.
    """
    lines, places = merged(a, SPATIAL), merged(out, SPATIAL)
    if lines is None or places is None or not lines.strides[-1] == places.strides[-1] == a.itemsize:
        return None
    return _products(xp, lines, matrices[:, None], band(geom, backwards), places)


def _products(
    xp: Namespace, lines: Array, matrices: Array, how: Band, places: Array
) -> Iterator[Product]:
    """Yield the products of samples that are lines, (G, 1, N, cells), to lines of results."""
    G, _, N, _ = lines.shape
    row, wide = how.height // how.span, how.width // how.rows
    apart, _, each, cell = lines.strides
    for first, many, rows, start, begin, end in _pieces(how):
        low = wide * how.rows * first
        there = places[:, 0, :, low : low + wide * (how.rows * (many - 1) + rows)]
        there = xp.reshape(there, (G, N, many, wide * rows))
        if many == 1:
            some = lines[:, :, :, row * (start + begin) : row * (start + end)]
        else:  # rows that one block reads and the next one overlap
            strides = (apart, cell * row * how.step, each, cell)
            some = strided(xp, lines, (G, many, N, how.height), strides, row * start)
        # (G, many, N, height) @ (G, 1, height, width) -> (G, many, N, width)
        part = matrices[:, :, row * begin : row * end, : wide * rows]
        yield some, part, xp.permute_dims(there, (0, 2, 1, 3))


class Piece(NamedTuple):
    """Blocks of one product: the first, how many, and the rows of results of the last.

    It reads the rows ``[begin, end)`` of those of the first block, which start at `start`.
    """

    first: int
    many: int
    rows: int
    start: int
    begin: int
    end: int


@lru_cache(maxsize=256)
def _pieces(how: Band) -> tuple[Piece, ...]:
    """Return the blocks of each product."""
    found = []
    for first, last in how.ranges():
        start = how.step * first + how.low
        begin, end = max(-start, 0), min(how.span, how.inputs - start)
        # a row of padding alone is a sum of no products, which is zero
        rows = min(how.rows, how.results - how.rows * first)
        found.append(Piece(first, last - first, rows, start, begin, max(begin, end)))
    return tuple(found)


def contract(xp: Namespace, a: Array, matrices: Array, geom: Geometry, backwards: bool) -> Array:
    """Return the result in `scratch`, of an operand that may lie in memory in any way."""
    out = scratch(xp, (*a.shape[:SPATIAL], *(geom.I if backwards else geom.O)), a.dtype)
    found = products(xp, a, matrices, geom, backwards, out)
    if found is None:
        found = products(xp, gathered(xp, a, a.shape), matrices, geom, backwards, out)
    assert found is not None
    for left, right, place in found:
        xp.matmul(left, right, out=place)
    return out


@lru_cache(maxsize=256)
def _alone(geom: Geometry) -> Geometry:
    """Return the convolution of one sample and group, which has the same matrices."""
    return geom._replace(N=1, C=1, K=1, G=1)


def _places(geom: Geometry, backwards: bool) -> list[list[float]]:
    """Return for each tap the band matrix, as one row, of weights that are 1 there and else 0."""
    how = band(geom, backwards)
    first, start = (how.low, 0) if backwards else (0, how.low)
    reads, span = (how.span, how.rows) if backwards else (how.rows, how.span)
    outputs, cells = (reads, *geom.O[1:]), (span, *geom.I[1:])
    none = (0,) * (geom.rank - 1)
    boxes = list(zip((first, *none), outputs, (start, *none), cells, strict=True))
    matrices = []
    for tap in itertools.product(*map(range, geom.W)):
        matrix = [0.0] * (how.height * how.width)
        axes = [geom.meeting(a, tap[a], *box) for a, box in enumerate(boxes)]
        meet = [zip(*map(_numbers, axis), strict=True) for axis in axes]
        for place in itertools.product(*meet):
            cell, output = map(_flat, (cells, outputs), zip(*place, strict=True))
            operand, result = (output, cell) if backwards else (cell, output)
            upright, turned = operand * how.width + result, result * how.height + operand
            matrix[upright if how.upright else turned] = 1.0
        matrices.append(matrix)
    return matrices


def _numbers(where: slice) -> range:
    return range(where.start, where.stop, where.step or 1)


def _flat(shape: Ints, index: Ints) -> int:
    """Return the place of an index among all of a shape."""
    place = 0
    for size, number in zip(shape, index, strict=True):
        place = place * size + number
    return place


def applies(geom: Geometry, backwards: bool) -> bool:
    """Whether the matrices of single taps are few and small enough to keep them."""
    how = band(geom, backwards)
    return math.prod(geom.W) * how.height * how.width <= LARGEST


@lru_cache(maxsize=256)
def work(geom: Geometry, backwards: bool) -> Work:
    """Return what one group takes beside its operands and its result."""
    how = band(geom, backwards)
    size = how.height * how.width
    first, last = how.inside
    calls = 10 + 3 * (how.number - last + first)
    taps = math.prod(geom.W)
    made = size * (1 + taps // 16)  # as long as to copy so many numbers
    return Work(how.number, 2 * (geom.N + 4) * size, made, size + taps, 0, calls, taps * size)
