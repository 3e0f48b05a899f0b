"""What a call would do: `explain`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import choice, costs, schedule
from . import padding as pads
from .call import Call
from .choice import Candidate
from .costs import Task
from .errors import Refusal, public
from .geometry import Geometry, Ints, named
from .methods import Algorithm
from .namespace import Array, accept, check_bytes, chunked, in_place
from .plan import MIB
from .validation import forward_call

CONTRACTIONS = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Step:
    """One part of a call's work: a method, and the blocks that it is done in.

    Attributes
    ----------
    method : str
        The algorithm: a public method, or what "windows" and "taps" come to in NumPy and CuPy:
        "pointwise" for kernels of one tap, "scatter" for an input gradient with its products
        first. In NumPy "auto" has four more: "lines" for few channels, "depthwise", "bands" and
        "diagonals" for one channel per group. "banks" is "winograd" with its data transformed
        once, and some output channels at a time.
    blocks : int
        How many blocks there are; 1 where an expression computes everything at once.
    block_bytes, shared_bytes : int
        Memory of one block, and of what all blocks share: prepared weights, or transformed data.
    estimates : dict
        Estimated seconds on one core of each method that "auto" compared.
    """

    method: str
    blocks: int
    block_bytes: int
    shared_bytes: int
    estimates: dict[str, float]

    def __str__(self) -> str:
        text = f"{self.method}: {self.blocks} block{'s' * (self.blocks > 1)}"
        if self.block_bytes:
            text += f" of {_bytes(self.block_bytes)}, shared {_bytes(self.shared_bytes)}"
        if self.estimates:
            times = (f"{name} {_time(seconds)}" for name, seconds in self.estimates.items())
            text += f"; estimated on one core: {', '.join(times)}"
        return text


def _bytes(count: int) -> str:
    return f"{count / MIB:.3g} MiB" if count >= MIB else f"{count / 1024:.3g} KiB"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


@dataclass(frozen=True)
class Explanation:
    """What a call would do; its text is for people.

    Attributes
    ----------
    contraction : str
        "forward", "grad_input" or "grad_weight".
    x, w, y : tuple of int
        Shapes of the three arrays.
    compute, result : str
        Dtypes of the sums and of the result.
    operations : int
        Multiplications and additions, done directly.
    steps : tuple of Step
        One for each separate part of the work: each phase of a stride in an input gradient.
    """

    contraction: str
    x: Ints
    w: Ints
    y: Ints
    compute: str
    result: str
    operations: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        head = (
            f"{self.contraction}: x {self.x}, w {self.w}, y {self.y}; {self.operations:.3g} "
            f"operations, summed in {self.compute}, result {self.result}"
        )
        lines = []
        for step, alike in itertools.groupby(map(str, self.steps)):
            count = len(list(alike))
            lines.append(f"  {count} times {step}" if count > 1 else f"  {step}")
        return "\n".join([head, *lines])


@public
def explain(
    x: Array,
    w: Array,
    /,
    *,
    contraction: str = "forward",
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    layout: Any = "channels_first",
    dtype: Any = None,
    method: str = "auto",
    max_workspace: int | None = None,
) -> Explanation:
    """Say what a call would do, without doing it.

    Parameters
    ----------
    x : array, shape (N, C, *I)
        What `conv` takes, whichever the contraction: samples, or one sample without N. Only its
        shape, dtype and library are looked at, so one number broadcast will do.
    w : array, shape (K, C / groups, *W)
        Kernels, likewise.
    contraction : {"forward", "grad_input", "grad_weight"}
        Which of the three: the one of `conv`, of `conv_grad_input` (and `conv_transpose`) or of
        `conv_grad_weight`.
    stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace : optional
        As in `conv`.

    Returns
    -------
    Explanation
        Method, blocks and memory of each step, and the estimates that "auto" compared. Print it.

    Raises
    ------
    ValueError
        If shapes and options do not fit, or a method named does not apply.
    TypeError
        If arrays are not plain, dense arrays of one library and device, or are Dask's, or dtypes
        do not promote.

    See Also
    --------
    conv : The call that is explained.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import explain
    >>> x, w = np.ones((1, 1, 100_000), np.float32), np.ones((1, 1, 1024), np.float32)
    >>> explain(x, w).steps[0].method
    'fft'
    >>> print(explain(x[..., :8], w[..., :3], method="windows"))
    forward: x (1, 1, 8), w (1, 1, 3), y (1, 1, 6); 36 operations, summed in float32, result float32
      windows: 1 block of 0.148 KiB, shared 0.0117 KiB
    """
    contraction = named(contraction, "contraction", CONTRACTIONS)
    xp, (x, w) = accept(x=x, w=w)
    if chunked(xp):
        raise Refusal(
            "arrays of one piece, such as numpy.empty of a chunk's shape", "Dask arrays", TypeError
        )
    settings = stride, padding, dilation, groups, padding_mode, layout, dtype, method, max_workspace
    call = forward_call(xp, tuple(x.shape), tuple(w.shape), settings)
    terms = {
        "forward": call.forward_terms,
        "grad_input": call.input_terms,
        "grad_weight": call.weight_terms,
    }
    types = call.types(x, w, terms[contraction])
    check_bytes(call.y_shape, types.result)
    task = Task(xp, call.method, *types, call.limits, types.converts((x.dtype, w.dtype)))
    geom = call.geom
    return Explanation(
        contraction,
        call.x_shape,
        call.w_shape,
        call.y_shape,
        types.compute,
        types.result,
        2 * geom.N * geom.K * math.prod(geom.O) * geom.c * math.prod(geom.W),
        tuple(_steps(task, call, contraction)),
    )


def _steps(task: Task, call: Call, contraction: str) -> Iterator[Step]:
    """Yield the parts of a contraction's work."""
    geom = call.geom
    if 0 in (geom.N, geom.C, geom.K, *geom.I):
        return
    if choice.whole(task, geom, contraction):
        yield Step("cudnn", 1, 0, 0, {})
        return
    if cut := choice.banded(task, geom, contraction):
        yield Step(
            _banded(contraction),
            cut.blocks(geom, geom.O),
            cut.block,
            cut.shared,
            _compared(task, geom, contraction),
        )
        return
    if not in_place(task.xp):
        pieces = [geom]
        if contraction == "grad_input":
            phases = [geom.phases(a, *pads.extent(geom, a)) for a in range(geom.rank)]
            pieces = [geom.backwards(phase) for phase in itertools.product(*phases)]
        for piece in pieces:
            yield Step(_name(choice.expression(task, piece)), 1, 0, 0, {})
    elif contraction == "forward":
        geom, _ = geom.skipping()
        yield _planned(task, geom)
    elif contraction == "grad_weight":
        geom, _ = geom.skipping()
        yield _planned(task, geom, weights=True)
    else:
        yield from _input_steps(task, geom)


def _compared(task: Task, geom: Geometry, contraction: str) -> dict[str, float]:
    """Return the estimates, in seconds, that `bands` or `diagonals` was chosen by."""
    own = {_banded(contraction): costs.banded(task, geom, contraction) / 1e9}
    if contraction == "grad_input":
        return {**own, "other methods": choice.unbanded(task, geom, contraction) / 1e9}
    found = choice.candidates(task, geom, weights=contraction == "grad_weight")
    return {**own, **_estimates(found)}


def _banded(contraction: str) -> str:
    return "diagonals" if contraction == "grad_weight" else "bands"


def _input_steps(task: Task, geom: Geometry) -> Iterator[Step]:
    """Yield the parts of an input gradient, for the cells that padding did not copy."""
    strips = [
        max(pads.strips(size, geom.padding_mode, *pair), key=lambda strip: strip.stop - strip.start)
        for size, pair in zip(geom.I, geom.padding, strict=True)
    ]
    start, stop = tuple(strip.start for strip in strips), tuple(strip.stop for strip in strips)
    found = schedule.cells(task, geom, start, stop, 1)
    if found.boxes is not None:
        size = tuple(b - a for a, b in zip(found.start, found.stop, strict=True))
        blocks = found.boxes.blocks(found.geom, size)
        yield Step("scatter", blocks, found.boxes.block, found.boxes.shared, {})
    for _, _, backwards in found.phases:
        one, _ = backwards.skipping()
        yield _planned(task, one, mirrored=True)


def _planned(task: Task, geom: Geometry, mirrored: bool = False, weights: bool = False) -> Step:
    """Return the step by the best of some candidates."""
    found = choice.candidates(task, geom, 1, mirrored, weights)
    if banks := choice.banks(task, geom, 1, mirrored, weights):
        own = {"banks": costs.banks(task, geom, banks, weights) / 1e9}
        estimates = {**own, **_estimates(found)}
        return Step("banks", banks.blocks(geom), banks.block, banks.shared, estimates)
    cut = found[0].cut
    blocks = cut.products(geom) if weights else cut.blocks(geom)
    estimates = _estimates(found) if len(found) > 1 else {}
    return Step(_name(found[0].algorithm), blocks, cut.block, cut.shared, estimates)


def _estimates(found: Sequence[Candidate]) -> dict[str, float]:
    """Return the estimates of candidates, in seconds."""
    return {_name(one.algorithm): one.cost / 1e9 for one in found}


def _name(algorithm: Algorithm) -> str:
    return str(getattr(algorithm, "__name__", "")).rpartition(".")[2]
