"""Weight gradients of one channel per group in place, where images are small: sums of diagonals.

What is along the last axis is a row; those of all samples are one line, which the taps of the
other axes shift. The product of such a line of the input with that of the output's gradient has,
for every pair of places in a row, the sum over all rows: a tap of the last axis is a diagonal.

A NaN spreads to all taps of its channel.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

from .geometry import Geometry, Ints, Work
from .namespace import Array, Namespace, constant, scratch, strided
from .padding import Reading, fill, reading

LARGEST = 2**14  # numbers of the matrix that sums diagonals: it is kept


def grad_weight(xp: Namespace, x: Array, g: Array, geom: Geometry) -> Array:
    """dT/dw: x (G, 1, N, *I), g (G, 1, N, *O) -> (G, 1, 1, *W)."""
    G, N, I, O, taps = g.shape[0], geom.N, geom.I[-1], geom.O[-1], geom.W[:-1]
    line = _line(geom, G)
    rows = scratch(xp, (G, 1, N, *line.grid, O), g.dtype)
    rows[...] = 0
    rows[(..., *map(slice, geom.O))] = g
    rows = xp.reshape(rows, (G, *(1,) * len(taps), N * math.prod(line.grid), O))
    cells = scratch(xp, line.reading.shape, x.dtype)
    fill(x, line.reading, cells)
    item = x.dtype.itemsize
    strides = (cells.strides[0], *(item * step for step in line.steps))
    read = strided(xp, cells, (G, *taps, I, line.length), strides)
    # (G, *W', I, rows) @ (G, 1, rows, O) -> (G, *W', I, O)
    meet = scratch(xp, (G, *taps, I, O), g.dtype)
    xp.matmul(read, rows[..., : line.length, :], out=meet)
    diagonals = constant(xp, _sums, (I, O, line.offsets, geom.stride[-1]), g)
    # (G*W', I*O) @ (I*O, last axis of W) -> (G*W', last axis of W)
    dw = xp.matmul(xp.reshape(meet, (-1, I * O)), diagonals)
    return xp.reshape(dw, (G, 1, 1, *geom.W))


def applies(geom: Geometry) -> bool:
    """Whether `grad_weight` is for a geometry: one stride of rows, and few diagonals."""
    numbers = geom.I[-1] * geom.O[-1] * geom.W[-1]
    return max((1, *geom.stride[:-2])) == 1 and numbers <= LARGEST


def _sums(I: int, O: int, offsets: Ints, stride: int) -> list[list[float]]:
    """Return the matrix that sums the diagonals of a matrix (I, O), one for each offset."""
    places = itertools.product(range(I), range(O))
    return [[float(i == stride * o + offset) for offset in offsets] for i, o in places]


class Line(NamedTuple):
    """How rows of the input and of outputs meet in a weight gradient.

    ``grid`` are outputs along all axes but the last, with room for the shifts. The first `length`
    rows of it meet numbers of the input ``steps`` apart: per tap of each of these axes, per cell,
    and per row. ``offsets`` are the cells that the first output reads in a row.
    """

    grid: Ints
    reading: Reading
    steps: Ints
    length: int
    offsets: Ints


@lru_cache(maxsize=64)
def _line(geom: Geometry, G: int) -> Line:
    others, I = range(geom.rank - 1), geom.I[-1]
    reach = [d * (w - 1) for d, w in zip(geom.dilation, geom.W, strict=True)]
    grid = tuple(geom.O[a] + reach[a] // geom.stride[a] for a in others)
    size = tuple(geom.stride[a] * grid[a] for a in others)
    start = (*(-geom.padding[a][0] for a in others), 0)
    stop = (*(start[a] + size[a] for a in others), I)
    box = (slice(0, G), slice(0, 1), slice(0, geom.N))
    shifts = [geom.dilation[a] * math.prod(size[a + 1 :]) for a in others]
    far = sum(shift * (geom.W[a] - 1) for a, shift in enumerate(shifts))
    step = geom.stride[-2] if others else 1
    length = (geom.N * math.prod(size) - 1 - far) // step + 1
    steps = (*(I * shift for shift in shifts), 1, I * step)
    offsets = tuple(geom.dilation[-1] * t - geom.padding[-1][0] for t in range(geom.W[-1]))
    return Line(grid, reading(geom, box, start, stop), steps, length, offsets)


@lru_cache(maxsize=256)
def work(geom: Geometry) -> Work:
    """Return what one group takes beside its operands and its result."""
    line, (I, O) = _line(geom, 1), (geom.I[-1], geom.O[-1])
    copied = math.prod(line.reading.shape) + geom.N * math.prod(line.grid) * O
    taps = math.prod(geom.W[:-1])
    operations, kept = 2 * (I + 5) * (O + 5) * line.length, copied + taps * I * O
    return Work(taps, operations, copied, 0, kept, 15, I * O * geom.W[-1])
