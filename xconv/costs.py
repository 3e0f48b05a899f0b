"""What contractions cost: the estimates that the choice of an algorithm compares.

They are sums, in nanoseconds on one core, and depend on shapes, dtype and the kind of library
alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from . import bands, depthwise, diagonals, fft, lines, pointwise, windows, winograd
from .geometry import Geometry, Ints, Window, Work, slab
from .methods import Algorithm
from .namespace import COMPLEX, Namespace, itemsize, on_gpu
from .plan import Banks, Boxes, Limits, Plan, count
from .products import NEAR, in_pieces

# Nanoseconds on one core of AMD EPYCs (Zen 3 and Zen 4) with NumPy 2.4's OpenBLAS, float32,
# November 2026; those of lines and depthwise but SHORT, ORDER and BANK on Intel Xeons. Fitted
# to the suite of `xconv.bench`. What counts is their ratios.
FLOP = 1 / 90  # of a large product
LAID = 0.85  # times as much in Winograd's products, where BLAS takes matrices as they lie;
PACKED = 1.15  # and where it does not. (Nothing here depends on the processor.)
ROW = 0.1  # a number of the columns, in a product with few rows
COPY = 0.3  # a number copied in runs, as into columns
ADD = 0.5  # a number added to others, or put where it belongs
SCATTER = 1.0  # a number of the columns of `scatter`, written and added to where its tap belongs
STRIDED = 1.5  # times as much where cells of a tap lie a stride apart
LONE = 3  # times as much where groups of one channel share no product
DOT = 0.08  # a number of a long scalar product
NEARBY = 0.12  # a number copied within a core's cache
FAR = 2.0  # times COPY where copies lie beyond that, and are read again
RUN = 5.0  # a run of numbers that is copied, as a row of an image
PACK = 0.25  # a number of a matrix that BLAS rearranges, for each of a batch or beyond its cache:
CACHED = 2**18  # numbers of the columns of one product
PRODUCT = 40.0  # a product that is one of a batch
SHORT = 0.83  # an operation of such a product, against a large one
CALL = 5000.0  # one call of NumPy, on a small array
WEIGHT = 3.0  # a weight rearranged, once for all blocks
TILE = 0.9  # a number of a Winograd tile at its points, transformed forth; back takes twice as long
ORDER = 0.6  # a number of the data that is put in the order of tiles
POINT = 1.0  # a weight transformed for Winograd, per point: once, its gradient in each block
SPILL = 2**24  # bytes of transformed weights that take twice as long: the caches are full
BANK = 0.5  # the same in a bank of kernels, and read in its products;
FULL = 1.8  # times as much where a bank has more bytes than NEAR, too many for that core's cache
SUMS = 1.25  # its gradient, summed and transformed in a bank
HOLD = 0.12  # a number of transformed data that each bank reads
BANK_CALLS = 12  # of NumPy for a bank
WAVE = 0.23  # a number in a Fourier transform, per level
TURN = 5.4  # a number of spectra that are matrices, in the order of products and back
START = 80_000.0  # before winograd and fft pay at all


class Rates(NamedTuple):
    """Times, as above, of what a library does besides products, and to `begin` a contraction."""

    copy: float
    run: float
    scatter: float
    strided: float
    row: float
    pack: float
    call: float
    begin: float


# On an NVIDIA H200 (CuPy 14.2, float32) an operation takes a 500th of FLOP; these are 500 times
# what was measured there, so that FLOP serves both.
ON_CPU = Rates(COPY, RUN, SCATTER, STRIDED, ROW, PACK, CALL, 0.0)
ON_GPU = Rates(
    copy=3.0, run=0.0, scatter=9.0, strided=1.0, row=0.0, pack=0.0, call=4e6, begin=1.6e7
)


class Task(NamedTuple):
    """What the choice depends on: library, method, dtypes of the sums and the result, limits.

    ``converted`` says that an operand is of another dtype than the sums: weights may be copied.
    """

    xp: Namespace
    method: str
    compute: str
    result: str
    limits: Limits
    converted: bool

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return itemsize(self.compute)

    @property
    def wide(self) -> float:
        """Time to move a number, against float32."""
        return self.itemsize / 4

    @property
    def flop(self) -> float:
        """Time of an operation of a large product."""
        return FLOP * self.wide * (2 if self.compute in COMPLEX else 1)

    @property
    def rates(self) -> Rates:
        """Times of what the library does besides products."""
        return ON_GPU if on_gpu(self.xp) else ON_CPU

    def rows(self, columns: int, k: int) -> float:
        """Time that a product of `k` rows takes beyond its operations."""
        return self.rates.row * self.wide * columns if k < 8 else 0.0


def estimate(
    task: Task, geom: Geometry, algorithm: Algorithm, cut: Plan, mirrored: bool, weights: bool
) -> float:
    """Estimate a contraction that is cut into blocks.

    ``mirrored`` weights are those of an input gradient; ``weights`` says that the contraction is a
    weight gradient and not a forward one.
    """
    if algorithm is winograd:
        return _winograd(task, geom, cut, weights)
    if algorithm is fft:
        return _fft(task, geom, cut, weights)
    if algorithm is depthwise:
        return _depthwise(task, geom, weights)
    points, outputs, sums = math.prod(geom.W), geom.N * math.prod(geom.O), geom.K * geom.c
    copy, run, *_, begin = task.rates
    products = 2 * task.flop * outputs * sums * points + begin
    if algorithm is pointwise:
        return products
    columns = outputs * geom.C * points
    copied = float(columns) * (LONE if weights and geom.c == geom.k == 1 and geom.G > 1 else 1)
    more = mirrored * WEIGHT * task.wide * sums * points
    if algorithm is lines:
        rows = geom.stride[0] * (geom.O[0] - 1) + geom.W[0]
        copied *= rows / (geom.O[0] * geom.W[0])
        more += _lines(task, geom, weights)
    more += copied * (copy * task.wide + run / geom.O[-1])
    rearranged = geom.k > 1 and not weights  # not for one row, which is no product of matrices
    if rearranged and _together(algorithm, geom, cut) > CACHED:
        more += task.rates.pack * task.wide * columns
    return products + task.rows(columns, geom.k) + more


def _together(algorithm: Algorithm, geom: Geometry, cut: Plan) -> int:
    """Count the numbers of the columns of one product of a block."""
    samples, o = cut.n, cut.o
    if algorithm is windows:
        positions = samples * math.prod(o)
    elif algorithm is lines:
        positions = (samples if lines.shares(o) else 1) * math.prod(o[1:])
    else:
        positions = 0
    return positions * geom.c * math.prod(geom.W)


def _winograd(task: Task, geom: Geometry, cut: Plan, weights: bool) -> float:
    window, blocks = Window(cut.o, geom.W, geom.stride, geom.dilation), count(geom.O, cut.o)
    points, tiles = winograd.sizes(window)
    tiles *= geom.N * blocks
    blocks *= -(-geom.N // cut.n)
    sums = geom.K * geom.c
    products = 2 * task.flop * points * sums * tiles
    products *= LAID if in_pieces(geom.c) else PACKED
    # data is transformed anew for each part of the other channels
    data, others = geom.C * -(-geom.k // cut.k), geom.K * (-(-geom.c // cut.c) if weights else 2)
    transforms = TILE * task.wide * points * (data + others) * tiles
    transforms += ORDER * task.wide * _cells(geom, weights)
    spills = task.itemsize * points * sums > SPILL and not weights
    weight = POINT * task.wide * points * sums * (1 + spills) * (blocks if weights else 1)
    phases = CALL * math.prod(winograd.phases(window)) * blocks
    return START + products + transforms + weight + phases


def _cells(geom: Geometry, weights: bool) -> int:
    """Count the numbers of the data that `winograd` transforms."""
    return geom.N * (geom.C * math.prod(geom.I) + weights * geom.K * math.prod(geom.O))


def banks(task: Task, geom: Geometry, cut: Banks, weights: bool) -> float:
    """Estimate a contraction by `winograd` in banks of kernels."""
    window = Window(geom.O, geom.W, geom.stride, geom.dilation)
    points, tiles = winograd.sizes(window)
    tiles *= geom.N
    sums = geom.K * geom.c
    products = LAID * 2 * task.flop * points * sums * tiles
    data = (TILE + HOLD * cut.blocks(geom)) * (geom.C + geom.K * weights)
    back = 0 if weights else 2 * TILE * geom.K
    transforms = task.wide * (points * tiles * (data + back) + ORDER * _cells(geom, weights))
    full = task.itemsize * points * geom.C * cut.k > NEAR
    each = SUMS if weights else BANK * (FULL if full else 1)
    kernels = each * task.wide * points * sums
    return START + products + transforms + kernels + BANK_CALLS * CALL * cut.blocks(geom)


def _fft(task: Task, geom: Geometry, cut: Plan, weights: bool) -> float:
    lengths = zip(cut.o, geom.W, geom.stride, geom.dilation, strict=True)
    one = math.prod(
        float(fft.fast(s * (n - 1) + d * (w - 1) + 1))  # ints of many axes may be no float
        for n, w, s, d in lengths
    )
    sums, cells = geom.K * geom.c, one * count(geom.O, cut.o)
    data, products = cells * geom.N * (geom.C + geom.K), cells * sums
    if weights:
        products *= -(-geom.N // cut.n)
    # most rows of padded weights are zeros, and not transformed along the last axis
    transformed = data + (products if weights else one * sums / 2)
    waves = WAVE * transformed * math.log2(one + 1)
    turns = TURN * (data + products) if geom.c > 1 else 2 * cells * geom.N * sums
    operations = 4 * task.flop * cells * sums * geom.N
    return START + math.sqrt(task.wide) * (waves + turns) + operations


def _lines(task: Task, geom: Geometry, weights: bool) -> float:
    """Estimate what the many products of `lines` take beyond those of `windows`."""
    sums, positions = geom.k * geom.c * math.prod(geom.W), math.prod(geom.O)
    if weights:
        each = PRODUCT + (0.35 * task.flop * positions + ADD * task.wide) * sums / geom.W[0]
        each += PACK / 4 * task.wide * geom.k * positions
        return geom.G * geom.N * geom.W[0] * each
    few = lines.shares(geom.O)
    products = geom.G * geom.O[0] * (1 if few else geom.N)
    stored = few * COPY * geom.N * geom.K * positions
    return products * (PRODUCT + PACK * task.wide * sums) + task.wide * stored


def _depthwise(task: Task, geom: Geometry, weights: bool) -> float:
    window = Window(geom.O, geom.W, geom.stride, geom.dilation)
    images, cells = geom.N * geom.G, slab(geom, geom.O, geom.W)
    row = geom.stride[-1] * (geom.O[-1] - 1) + geom.dilation[-1] * (geom.W[-1] - 1) + 1
    read = cells * (RUN / row + COPY * task.wide)
    if weights:
        calls = depthwise.weight_calls(geom.G, geom.N, window)
        return images * (2 * read + cells * task.wide * DOT * math.prod(geom.W)) + calls * CALL
    own = depthwise.work(geom.G, geom.N, window)
    apart = STRIDED if max(geom.stride) > 1 else 1
    copied = own.copied * (RUN / geom.O[-1] + NEARBY * apart * task.wide)
    products = own.products * (PRODUCT + own.operations * task.flop * SHORT)
    if geom.rank == 1 or geom.W[0] == 1:  # of one row
        products += task.rows(own.copied, 1)
    return images * read + geom.G * (copied + products) + own.calls * CALL


def group_work(geom: Geometry, contraction: str) -> Work:
    """Return what one group takes by `bands` or `diagonals`."""
    if contraction == "grad_weight":
        return diagonals.work(geom)
    return bands.work(geom, contraction == "grad_input")


def banded(task: Task, geom: Geometry, contraction: str) -> float:
    """Estimate a contraction by `bands`, or a weight gradient by `diagonals`."""
    own = group_work(geom, contraction)
    product = PRODUCT + own.operations * task.flop * SHORT
    copied = own.copied * (FAR if contraction == "grad_weight" else 1)
    return geom.G * (own.products * product + COPY * task.wide * copied) + own.calls * CALL


def scattered(task: Task, geom: Geometry, size: Ints, cut: Boxes) -> float:
    """Estimate the gradient of a box of cells by `scatter`."""
    points, outputs = math.prod(geom.W), geom.N * math.prod(geom.O)
    reach = [d * (w - 1) // s for d, w, s in zip(geom.dilation, geom.W, geom.stride, strict=True)]
    edges = math.prod(
        1 + more * s / i
        for more, s, i, n in zip(reach, geom.stride, cut.i, size, strict=True)
        if i < n
    )
    columns = outputs * geom.C * points
    rates = task.rates
    add = rates.scatter * (LONE if geom.c == 1 and geom.G > 1 else 1) * task.wide
    add *= rates.strided if max(geom.stride) > 1 else 1
    products = edges * (2 * task.flop * outputs * geom.K * geom.c * points + add * columns)
    calls = points * cut.blocks(geom, size)
    return products + task.rows(columns, geom.k) + rates.call * calls


def apart(task: Task, geom: Geometry, size: Ints) -> float:
    """Estimate what it takes to write an input gradient's phases a few cells apart."""
    phases = math.prod(map(min, geom.stride, geom.W))
    if phases == 1 or geom.c * geom.k > 1:
        return 0.0
    return ADD * LONE * task.wide * geom.N * geom.C * math.prod(size)
