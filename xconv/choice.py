"""Which algorithm computes a contraction.

"auto" takes the least estimated time among the methods whose plan fits the workspace. Estimates
are the sums of `costs`, in nanoseconds on one core; they depend on shapes, dtype and the kind of
library alone.
"""

from __future__ import annotations

import importlib
import math
from functools import lru_cache
from typing import NamedTuple

from . import (
    bands,
    costs,
    depthwise,
    diagonals,
    fft,
    lines,
    plan,
    pointwise,
    taps,
    windows,
    winograd,
)
from .costs import Task
from .errors import Refusal, one_line
from .geometry import Geometry, Ints, named
from .methods import METHODS, Algorithm
from .namespace import COMPLEX, INTEGER, REAL, allows_tf32, in_place, on_gpu
from .plan import Banks, Boxes, Plan

MOST_TAPS = 49  # of which cuDNN's gradients were measured
FEW = 4  # taps of one channel per group that are faster one by one than by `depthwise`


def checked_method(method: object) -> str:
    """Return the name of a known method."""
    return named(method, "method", ("auto", *METHODS, "cudnn"))


def whole(task: Task, geom: Geometry, contraction: str) -> bool:
    """Whether cuDNN takes a contraction, whole; a method named "cudnn" is refused if not."""
    if task.method == "cudnn":
        if (reason := _without_cudnn(task, geom)) is not None:
            raise Refusal(*reason)
        return True
    if task.method != "auto" or not on_gpu(task.xp) or _without_cudnn(task, geom) is not None:
        return False
    return _faster_by_cudnn(task, geom, contraction)


def _faster_by_cudnn(task: Task, geom: Geometry, contraction: str) -> bool:
    """Whether cuDNN is faster than blocks.

    Measured on an NVIDIA H200 with cuDNN 9.19 over the suite of `xconv.bench` at batch 32, but for
    its large kernels, in float16, float32 and float64; bfloat16 and TF32 are taken to be as
    float16. For gradients in float32, in full, cuDNN has few engines that give the same bits each
    time: for the weights one of 3x3, which transforms x and g to 9/4 of their size. An input
    gradient of 15x15 took it seconds.
    """
    taps, alone = math.prod(geom.W), geom.G == 1
    if task.itemsize == 8 and alone:  # by tensor cores of cuBLAS
        return taps == max(geom.stride) == 1
    if contraction != "forward" and alone and taps > MOST_TAPS:
        return False
    if task.result != "float32" or not alone or allows_tf32():
        return True
    if taps == 1:
        return False
    if contraction != "grad_weight":
        return True
    dense = geom.W == (3, 3) and max(geom.stride) == max(geom.dilation) == 1
    numbers = geom.N * (geom.C * math.prod(geom.I) + geom.K * math.prod(geom.O))
    return dense and 9 / 4 * numbers * task.itemsize <= task.limits.workspace


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
    if reason := _missing():
        package = "the package nvidia-cudnn-frontend (extras cuda12 and cuda13 of xconv)"
        return f"{package}, {other}", f"{got}{reason}", ValueError
    return None


def _missing() -> str:
    """Return why cuDNN's package cannot be imported; nothing, if it can."""
    try:
        importlib.import_module("cudnn")
    except (ImportError, OSError, RuntimeError) as error:  # it may be there, and no cuDNN
        return one_line(error)
    return ""


class Candidate(NamedTuple):
    """An algorithm, its blocks, and the time that it would take, in nanoseconds on one core."""

    cost: float
    algorithm: Algorithm
    cut: Plan


@lru_cache(maxsize=256)
def candidates(
    task: Task, geom: Geometry, pairs: int = 1, mirrored: bool = False, weights: bool = False
) -> tuple[Candidate, ...]:
    """Return what can compute a contraction in blocks (NumPy and CuPy), the cheapest first.

    A forward one of some pairs of operands, or a weight gradient: see `costs.estimate`.
    """
    found, refusals = [], []
    for algorithm in _applicable(task, geom, weights):
        cutting = (geom, algorithm, task.itemsize * pairs, task.limits)
        try:
            cut = plan.grad_weight(*cutting) if weights else plan.forward(*cutting, task.converted)
        except Refusal as refusal:
            refusals.append(refusal)
            continue
        cost = costs.estimate(task, geom, algorithm, cut, mirrored, weights)
        found.append(Candidate(cost, algorithm, cut))
    if not found:
        raise refusals[0]
    return tuple(sorted(found, key=lambda candidate: candidate.cost))


def spreads(task: Task, algorithm: Algorithm) -> bool:
    """Whether a NaN may reach results that do not read it, so that these are to be checked."""
    return task.method == "auto" and algorithm not in (windows, taps, lines, pointwise)


def _applicable(task: Task, geom: Geometry, weights: bool) -> list[Algorithm]:
    """Return the algorithms to compare: the method named, or those that "auto" may take."""
    check_applies(task, geom)
    if task.method in ("winograd", "fft"):
        return [METHODS[task.method]]
    direct = _direct(task, geom, weights)
    found = [direct]
    if direct is depthwise:  # which cannot take taps that are far apart one by one
        found.append(windows)
    inexact = task.method == "auto" and task.result not in INTEGER and not on_gpu(task.xp)
    if inexact and math.prod(geom.W) > 1:
        if _winograd_applies(geom) and task.compute not in COMPLEX:
            found.append(winograd)
        found.append(fft)
        if direct is windows and geom.rank > 1 and geom.k > 1 and geom.dilation[0] == 1:
            found.append(lines)
    return found


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
    if lone and task.method == "auto" and not on_gpu(task.xp):
        return depthwise
    return windows


def _winograd_applies(geom: Geometry) -> bool:
    return max(geom.stride) == 1 and max(geom.W) <= winograd.LARGEST


def check_applies(task: Task, geom: Geometry) -> None:
    """Refuse what a method that is named cannot do."""
    if task.method == "cudnn":
        whole(task, geom, "forward")
    if task.result in INTEGER and task.method in ("winograd", "fft"):
        rule = "floating or complex arrays, or another method"
        raise Refusal(rule, f"method {task.method!r}, result {task.result}", TypeError)
    if task.method == "winograd" and not _winograd_applies(geom):
        raise Refusal(
            f"strides of 1 and kernel sizes up to {winograd.LARGEST} for method 'winograd'",
            f"stride {geom.stride}, kernel size {geom.W}",
        )


@lru_cache(maxsize=256)
def banded(task: Task, geom: Geometry, contraction: str, pairs: int = 1) -> Boxes | None:
    """Return the blocks of a contraction by `bands` or `diagonals`; None: it is not the best."""
    if task.method != "auto" or not in_place(task.xp) or on_gpu(task.xp) or pairs != 1:
        return None
    padded = geom.padding_mode != "zeros" and max(map(max, geom.padding)) > 0
    if not geom.c == geom.k == 1 or math.prod(geom.W) == 1 or padded or 0 in geom.I:
        return None
    if contraction == "grad_weight":
        applies = diagonals.applies(geom)
    else:
        applies = bands.applies(geom, contraction == "grad_input")
    if not applies:
        return None
    cut = plan.groups(geom, costs.group_work(geom, contraction), task.itemsize, task.limits)
    if cut is None or costs.banded(task, geom, contraction) > unbanded(task, geom, contraction):
        return None
    return cut


@lru_cache(maxsize=256)
def banks(
    task: Task, geom: Geometry, pairs: int = 1, mirrored: bool = False, weights: bool = False
) -> Banks | None:
    """Return how `winograd` is cut into banks of kernels; None: it is not the best, or not so."""
    if pairs != 1 or not in_place(task.xp) or on_gpu(task.xp):
        return None
    found = candidates(task, geom, pairs, mirrored, weights)
    if not any(one.algorithm is winograd for one in found):
        return None
    cut = plan.banks(geom, task.itemsize, task.limits, task.converted, weights)
    if cut is None or costs.banks(task, geom, cut, weights) > found[0].cost:
        return None
    return cut


def unbanded(task: Task, geom: Geometry, contraction: str) -> float:
    """Estimate a contraction without these, an input gradient phase by phase alone."""
    if contraction == "grad_input":
        return _phased(task, geom, geom.I)
    return _cheapest(task, geom, weights=contraction == "grad_weight")


def _cheapest(task: Task, geom: Geometry, mirrored: bool = False, weights: bool = False) -> float:
    """Estimate a contraction in blocks; one that does not fit takes for ever."""
    try:
        cost = candidates(task, geom, 1, mirrored, weights)[0].cost
    except Refusal:
        return math.inf
    cut = banks(task, geom, 1, mirrored, weights)
    return cost if cut is None else costs.banks(task, geom, cut, weights)


@lru_cache(maxsize=256)
def scattered(task: Task, geom: Geometry, size: Ints, pairs: int = 1) -> Boxes | None:
    """Return the blocks of an input gradient with its products first, or None: phase by phase.

    ``size`` is that of the box of cells; their gradient is a convolution at each phase.
    """
    if task.method not in ("auto", "windows") or not in_place(task.xp) or not geom.K:
        return None
    if math.prod(geom.W) == 1:
        return None
    cut = plan.grad_input(geom, size, task.itemsize * pairs, task.limits)
    if cut is None or costs.scattered(task, geom, size, cut) >= _phased(task, geom, size):
        return None
    return cut


def exchanged(task: Task, geom: Geometry, size: Ints) -> bool:
    """Whether an input gradient is computed with kernels as data: where they are the larger.

    A NaN of the output's gradient spreads there: it is for "auto", as `depthwise` is.
    """
    if task.method != "auto" or not in_place(task.xp) or on_gpu(task.xp):
        return False
    if math.prod(geom.W) <= math.prod(geom.O):
        return False
    return _input_cost(task, geom.exchanged(), size) < _input_cost(task, geom, size)


def _input_cost(task: Task, geom: Geometry, size: Ints) -> float:
    """Estimate an input gradient, by whichever way `scattered` takes."""
    cut = scattered(task, geom, size)
    return _phased(task, geom, size) if cut is None else costs.scattered(task, geom, size, cut)


def _phased(task: Task, geom: Geometry, size: Ints) -> float:
    """Estimate an input gradient as a convolution at each phase of the stride."""
    phases = math.prod(map(min, geom.stride, geom.W))
    cells = tuple(-(-n // s) for n, s in zip(size, geom.stride, strict=True))
    W = tuple(-(-w // s) for w, s in zip(geom.W, geom.stride, strict=True))
    dilation = tuple(d // math.gcd(d, s) for d, s in zip(geom.dilation, geom.stride, strict=True))
    one = geom._replace(
        C=geom.K,
        K=geom.C,
        I=geom.O,
        W=W,
        O=cells,
        stride=(1,) * geom.rank,
        dilation=dilation,
    )
    return phases * _cheapest(task, one, mirrored=True) + costs.apart(task, geom, size)
