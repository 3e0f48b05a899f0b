"""Which algorithm computes a contraction: the registry of methods and the automatic choice.

An algorithm is a module with the functions of `Algorithm`, on padded blocks in the form of
`layout`. There is no `grad_input` among them: at each phase of the stride it is a `forward` with
the weights mirrored (see `Geometry.phases`), or products first for all of them (`scatter`). A new
method is a new module and a line here. Only cuDNN and `bands` take contractions whole: the one cuts
by itself, the other is cut into groups alone.

"auto" takes the least estimated time among the methods whose plan fits the workspace. Estimates
are the sums of `costs`, in nanoseconds on one core; they depend on shapes, dtype and the kind of
library alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from . import bands, depthwise, fft, lines, plan, pointwise, taps, windows, winograd
from .errors import Refusal
from .geometry import Geometry, Ints, Window, named, slab
from .namespace import COMPLEX, INTEGER, REAL, Array, Namespace, in_place, itemsize, on_gpu
from .plan import Limits, Plan


class Algorithm(Hashable, Protocol):
    """What every method's module has."""

    CUTS: bool  # whether sums over channels and taps may be cut into parts
    SCRATCH: bool  # whether temporary arrays are taken from `namespace.scratch`
    LONG: int  # how much larger than others its blocks should be, where its calls are short
    LEAST: tuple[int, int]  # positions and output channels below which no block is cut for cores
    LAST: bool  # whether channels are to come last in memory, where a block is a copy

    def room(self, xp: Namespace, w: Array, window: Window) -> Any:
        """Return an array to prepare parts of w (G, k, ...) in, or None where that is little."""

    def prepare(self, xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Any:
        """Return w (G, k, c, *W) in the form that `forward` takes: (G, k, ...), in its `room`."""

    def forward(
        self, xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None
    ) -> Array:
        """x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""

    def grad_weight(
        self, xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
    ) -> Array:
        """x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""

    def workspace(self, G: int, N: int, window: Window, c: int, k: int) -> int:
        """Elements that `forward` needs beyond operands and result."""

    def weight_workspace(self, G: int, N: int, window: Window, c: int, k: int) -> int:
        """Elements that `grad_weight` needs beyond operands and result."""

    def prepared(self, G: int, window: Window, c: int, k: int) -> int:
        """Elements of the prepared weights."""


METHODS: dict[str, Algorithm] = {
    "windows": windows,
    "taps": taps,
    "winograd": winograd,
    "fft": fft,
}
# The methods that let cuDNN do what it can. No GPU has measured it yet: then "auto" may stand here.
CUDNN = ("cudnn",)

# Nanoseconds on one core of AMD EPYCs (Zen 3 and Zen 4) with NumPy 2.4's OpenBLAS, float32,
# November 2026; those of winograd, lines, depthwise and bands were measured on an Intel Xeon.
# Fitted to the suite of `xconv.bench`. What counts is their ratios.
FLOP = 1 / 90  # of a large product
ROW = 0.1  # a number of the columns, in a product with few rows
COPY = 0.3  # a number copied in runs, as into columns
ADD = 0.5  # a number added to where a tap belongs
LONE = 3  # times as much where groups of one channel share no product
DOT = 0.08  # a number of a long scalar product
RUN = 5.0  # a run of numbers that is copied, as a row of an image
PACK = 0.25  # a number of a matrix that BLAS rearranges for each of a batch
PRODUCT = 40.0  # a product that is one of a batch
SHORT = 0.75  # an operation of such a product, against a large one
CALL = 5000.0  # one call of NumPy, on a small array
WEIGHT = 3.0  # a weight rearranged, once for all blocks
TILE = 2.5  # a number of a Winograd tile, transformed forth and back
POINT = 1.7  # a weight transformed for Winograd, per point, once for all blocks
SPILL = 2**24  # bytes of these beyond which they take three times as long: the caches are full
WAVE = 0.7  # a number in a Fourier transform, per level
MODE = 600.0  # a frequency, where spectra are matrices
START = 100_000.0  # before winograd and fft pay at all
FEW = 4  # taps of one channel per group that are faster one by one than by `depthwise`


class Task(NamedTuple):
    """What the choice depends on: library, method, dtypes of the sums and the result, limits."""

    xp: Namespace
    method: str
    compute: str
    result: str
    limits: Limits

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

    def rows(self, columns: int, k: int) -> float:
        """Time that a product of `k` rows takes beyond its operations."""
        return ROW * self.wide * columns if k < 8 else 0.0


def checked_method(method: object) -> str:
    """Return the name of a known method."""
    return named(method, "method", ("auto", *METHODS, "cudnn"))


def whole(task: Task, geom: Geometry) -> bool:
    """Whether cuDNN takes the contractions, whole; a method named "cudnn" is refused if not."""
    if task.method not in CUDNN:
        return False
    reason = _without_cudnn(task, geom)
    if reason is not None and task.method == "cudnn":
        raise Refusal(*reason)
    return reason is None


@lru_cache(maxsize=256)
def _without_cudnn(task: Task, geom: Geometry) -> tuple[str, str, type[Exception]] | None:
    """Return the rule that cuDNN would break, what breaks it, and the error; None: it is fine."""
    other, got = "or another method", "method 'cudnn', "
    if not on_gpu(task.xp):
        name = task.xp.__name__.removeprefix("array_api_compat.")
        return f"CuPy arrays, {other}", f"{got}{name} arrays", ValueError
    if task.result not in REAL or task.compute not in REAL:
        return f"real floating arrays, {other}", f"{got}result {task.result}", TypeError
    if geom.rank > 3:
        return f"at most 3 spatial axes, {other}", f"{got}{geom.rank} spatial axes", ValueError
    if importlib.util.find_spec("cudnn") is None:
        package = "the package nvidia-cudnn-frontend (extras cuda12 and cuda13 of xconv)"
        return f"{package}, {other}", f"{got}no module of the name cudnn", ValueError
    return None


@lru_cache(maxsize=256)
def forward(
    task: Task, geom: Geometry, pairs: int = 1, mirrored: bool = False
) -> tuple[Algorithm, Plan]:
    """Choose the algorithm and the blocks of a forward contraction (NumPy and CuPy)."""
    return _best(task, geom, plan.forward, pairs, candidates(task, geom, mirrored))


@lru_cache(maxsize=256)
def grad_weight(task: Task, geom: Geometry) -> tuple[Algorithm, Plan]:
    """Choose the algorithm and the blocks of a weight gradient (NumPy and CuPy)."""
    return _best(task, geom, plan.grad_weight, 1, candidates(task, geom, weights=True))


def _best(
    task: Task,
    geom: Geometry,
    cut: Any,
    pairs: int,
    found: list[tuple[float, Algorithm]],
) -> tuple[Algorithm, Plan]:
    """Return the first algorithm whose plan fits, the cheapest first."""
    refusal = None
    for _, algorithm in found:
        try:
            planned = cut(geom, algorithm, task.itemsize * pairs, task.limits)
        except Refusal as error:
            refusal = error
            continue
        # blocks of less than a tile are mostly cells between the taps of a dilation
        if algorithm is not winograd or len(found) == 1 or winograd.fills(geom, planned.o):
            return algorithm, planned
    assert refusal is not None
    raise refusal


def spreads(task: Task, algorithm: Algorithm) -> bool:
    """Whether a NaN may reach results that do not read it, so that these are to be checked."""
    return task.method == "auto" and algorithm not in (windows, taps, lines, pointwise)


def candidates(
    task: Task, geom: Geometry, mirrored: bool = False, weights: bool = False
) -> list[tuple[float, Algorithm]]:
    """Return estimated times and algorithms, the cheapest first; of a method named, just that."""
    check_applies(task, geom)
    if task.method in ("winograd", "fft"):
        return [(0.0, METHODS[task.method])]
    direct = _direct(task, geom, weights)
    found = [(costs(task, geom, direct, mirrored, weights), direct)]
    if direct is depthwise:  # which cannot take taps that are far apart one by one
        found.append((costs(task, geom, windows, mirrored, weights), windows))
    inexact = task.method == "auto" and task.result not in INTEGER and not on_gpu(task.xp)
    if inexact and math.prod(geom.W) > 1:
        if _winograd_applies(geom) and task.compute not in COMPLEX:
            found.append((costs(task, geom, winograd, mirrored), winograd))
        found.append((costs(task, geom, fft, mirrored), fft))
        if direct is windows and geom.rank > 1 and geom.k > 1 and geom.dilation[0] == 1:
            found.append((costs(task, geom, lines, mirrored, weights), lines))
    return sorted(found, key=lambda entry: entry[0])


def expression(task: Task, geom: Geometry) -> Algorithm:
    """Choose the algorithm where arrays are not written in place: `taps`, if none is named."""
    check_applies(task, geom)
    return METHODS["taps" if task.method == "auto" else task.method]


def _direct(task: Task, geom: Geometry, weights: bool) -> Algorithm:
    """Return the algorithm without transforms for a geometry.

    `depthwise` multiplies zeros by cells that an output does not read: it is for "auto", which
    looks at the result, and not for a GPU, where to look is to wait.
    """
    if math.prod(geom.W) == 1:
        return pointwise
    lone = geom.c == geom.k == 1 and geom.G > 1
    few = lone and math.prod(geom.W) <= FEW and not weights  # as in phases of a stride
    if task.method == "taps" or (task.method == "auto" and few):
        return taps
    if (
        lone
        and (weights or max(geom.stride) == 1)
        and task.method == "auto"
        and not on_gpu(task.xp)
    ):
        return depthwise
    return windows


def _winograd_applies(geom: Geometry) -> bool:
    return max(geom.stride) == 1 and max(geom.W) <= winograd.LARGEST


def check_applies(task: Task, geom: Geometry) -> None:
    """Refuse what a method that is named cannot do."""
    if task.method == "cudnn":
        whole(task, geom)
    if task.result in INTEGER and task.method in ("winograd", "fft"):
        rule = "floating or complex arrays, or another method"
        raise Refusal(rule, f"method {task.method!r}, result {task.result}", TypeError)
    if task.method == "winograd" and not _winograd_applies(geom):
        raise Refusal(
            f"strides of 1 and kernel sizes up to {winograd.LARGEST} for method 'winograd'",
            f"stride {geom.stride}, kernel size {geom.W}",
        )


def costs(
    task: Task, geom: Geometry, algorithm: Algorithm, mirrored: bool, weights: bool = False
) -> float:
    """Estimate the time of a contraction, in nanoseconds on one core."""
    wide, flop = task.wide, task.flop
    points, outputs = math.prod(geom.W), geom.N * math.prod(geom.O)
    sums = geom.K * geom.c
    if algorithm is winograd:
        window = Window(geom.O, geom.W, geom.stride, geom.dilation)
        inputs, own, tiles = winograd.sizes(window)
        tiles *= geom.N
        products = 2 * flop * inputs * sums * tiles
        transforms = TILE * wide * (inputs * geom.C + own * geom.K) * tiles
        spills = task.itemsize * inputs * sums > SPILL
        weight = POINT * wide * inputs * sums * (1 + 2 * spills)
        phases = CALL * math.prod(winograd.phases(window))
        return START + products + transforms + weight + phases
    if algorithm is fft:
        cells = math.prod(
            float(fft.fast(s * (o - 1) + d * (w - 1) + 1))  # ints of many axes may be no float
            for o, w, s, d in zip(geom.O, geom.W, geom.stride, geom.dilation, strict=True)
        )
        waves = WAVE * wide * cells * math.log2(cells + 1)
        data = geom.N * (geom.C + geom.K) + sums
        modes = 2 * cells * sums * geom.N if geom.c == 1 else cells * geom.G * MODE
        return START + waves * data + wide * modes + 4 * flop * cells * sums * geom.N
    products = 2 * flop * outputs * sums * points
    if algorithm is pointwise:
        return products
    columns = outputs * geom.C * points
    if algorithm is depthwise:
        return _depthwise_costs(task, geom, weights)
    copied = float(columns) * (LONE if geom.c == geom.k == 1 and geom.G > 1 else 1)
    more = mirrored * WEIGHT * wide * sums * points
    if algorithm is lines:
        rows = geom.stride[0] * (geom.O[0] - 1) + geom.W[0]
        copied *= rows / (geom.O[0] * geom.W[0])
        more += _line_costs(task, geom, weights)
    more += copied * (COPY * wide + RUN / geom.O[-1])
    return products + task.rows(columns, geom.k) + more


def _line_costs(task: Task, geom: Geometry, weights: bool) -> float:
    """Estimate what the many products of `lines` take beyond those of `windows`."""
    sums, positions = geom.k * geom.c * math.prod(geom.W), math.prod(geom.O)
    if weights:
        each = PRODUCT + (0.35 * task.flop * positions + ADD * task.wide) * sums / geom.W[0]
        each += PACK / 4 * task.wide * geom.k * positions
        return geom.G * geom.N * geom.W[0] * each
    few = math.prod(geom.O[1:]) < lines.SHORT
    products = geom.G * geom.O[0] * (1 if few else geom.N)
    stored = few * COPY * geom.N * geom.K * positions
    return products * (PRODUCT + PACK * task.wide * sums) + task.wide * stored


def _depthwise_costs(task: Task, geom: Geometry, weights: bool) -> float:
    """Estimate a forward contraction or a weight gradient by `depthwise`."""
    images, points = geom.N * geom.G, math.prod(geom.W)
    if weights:
        cells = images * slab(geom, geom.O, geom.W)
        L = geom.stride[-1] * (geom.O[-1] - 1) + geom.dilation[-1] * (geom.W[-1] - 1) + 1
        return cells * (2 * RUN / L + task.wide * (2 * COPY + DOT * points)) + 15 * CALL
    window = Window(geom.O, geom.W, geom.stride, geom.dilation)
    rows, width = math.prod(geom.O[:-1]), math.prod(geom.O[1:])
    copied = rows * (1 + points // geom.W[0]) * (RUN + COPY * task.wide * geom.O[-1])
    operations = 2 * depthwise.prepared(1, window, 1, 1) * width
    product = PRODUCT + operations * task.flop * SHORT
    return images * (copied + -(-geom.O[0] // depthwise.ROWS) * product) + 15 * CALL


@lru_cache(maxsize=256)
def banded(task: Task, geom: Geometry, contraction: str, pairs: int = 1) -> plan.Boxes | None:
    """Return the blocks of a contraction by `bands`, or None: it is not the best."""
    if task.method != "auto" or not in_place(task.xp) or on_gpu(task.xp) or pairs != 1:
        return None
    padded = geom.padding_mode != "zeros" and max(map(max, geom.padding)) > 0
    taps = math.prod(geom.W)
    if not geom.c == geom.k == 1 or not 1 < taps <= bands.LARGEST or padded or 0 in geom.I:
        return None
    if contraction == "grad_weight" and not bands.sums_diagonals(geom):
        return None
    cut = plan.groups(geom, bands.work(geom, contraction), task.itemsize, task.limits)
    if cut is None or band_costs(task, geom, contraction) > unbanded_costs(task, geom, contraction):
        return None
    return cut


def unbanded_costs(task: Task, geom: Geometry, contraction: str) -> float:
    """Estimate a contraction without `bands`."""
    if contraction == "grad_input":
        return _phased(task, geom, geom.I)
    return candidates(task, geom, weights=contraction == "grad_weight")[0][0]


def band_costs(task: Task, geom: Geometry, contraction: str) -> float:
    """Estimate a contraction by `bands`."""
    own = bands.work(geom, contraction)
    product = PRODUCT + own.operations * task.flop * SHORT
    return geom.G * (own.products * product + COPY * task.wide * own.copied) + own.calls * CALL


@lru_cache(maxsize=256)
def scattered(task: Task, geom: Geometry, size: Ints, pairs: int = 1) -> plan.Boxes | None:
    """Return the blocks of an input gradient with its products first, or None: phase by phase.

    ``size`` is that of the box of cells; their gradient is a convolution at each phase.
    """
    if task.method not in ("auto", "windows") or not in_place(task.xp) or not geom.K:
        return None
    points = math.prod(geom.W)
    if points == 1:
        return None
    cut = plan.grad_input(geom, size, task.itemsize * pairs, task.limits)
    if cut is None:
        return None
    outputs = geom.N * math.prod(geom.O)
    reach = [d * (w - 1) // s for d, w, s in zip(geom.dilation, geom.W, geom.stride, strict=True)]
    edges = math.prod(
        1 + more * s / i
        for more, s, i, n in zip(reach, geom.stride, cut.i, size, strict=True)
        if i < n
    )
    columns = outputs * geom.C * points
    add = ADD * (LONE if geom.c == 1 and geom.G > 1 else 1)
    first = edges * (2 * task.flop * outputs * geom.K * geom.c * points + add * task.wide * columns)
    first += task.rows(columns, geom.k)
    first += CALL * points * plan.count((geom.G, geom.c, geom.N, *size), cut.sizes)
    return cut if first < _phased(task, geom, size) else None


def _phased(task: Task, geom: Geometry, size: Ints) -> float:
    """Estimate an input gradient as a convolution at each phase of the stride."""
    phases = math.prod(map(min, geom.stride, geom.W))
    cells = tuple(-(-n // s) for n, s in zip(size, geom.stride, strict=True))
    W = tuple(-(-w // s) for w, s in zip(geom.W, geom.stride, strict=True))
    dilation = tuple(d // math.gcd(d, s) for d, s in zip(geom.dilation, geom.stride, strict=True))
    one = dataclasses.replace(
        geom,
        C=geom.K,
        K=geom.C,
        I=geom.O,
        W=W,
        O=cells,
        stride=(1,) * geom.rank,
        dilation=dilation,
    )
    estimate = phases * candidates(task, one, mirrored=True)[0][0]
    if phases > 1 and geom.c == geom.k == 1:  # written a few cells apart
        estimate += ADD * LONE * task.wide * geom.N * geom.C * math.prod(size)
    return estimate
