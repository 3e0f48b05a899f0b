"""The three contractions by NVIDIA's cuDNN: CuPy arrays, whole.

cuDNN picks an algorithm and cuts the work by itself, so this stands beside `blocks` and `cells`,
with their three functions. It is given what its engines take: compact arrays of one dtype, channels
first or last, and zeros around them, fewer than a kernel reaches. Every other padding is a step
before or after, as elsewhere (`padding`).

Only engines are taken that give the same bits each time and shorten neither numbers nor sums; for
"auto", only those in which a NaN reaches just what reads it, too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import cudnn

from . import padding
from .errors import Refusal, one_line
from .geometry import SPATIAL, Geometry, Ints, along
from .namespace import (
    Array,
    Namespace,
    address,
    allows_tf32,
    dtype_name,
    dtype_of,
    itemsize,
    queue,
)
from .padding import Reading
from .setup import Pair, Setup

TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}
ALIGNED = 16  # bytes: engines read several numbers at once
LARGEST = 2**31  # elements: engines count in 32 bits
# Numerical notes of engines.
AVOIDED = ("NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION")
SPREADING = (  # a NaN to what does not read it
    "FFT",
    "WINOGRAD",
    "WINOGRAD_TILE_4x4",
    "WINOGRAD_TILE_6x6",
    "WINOGRAD_TILE_13x13",
)
# What the graph calls each operand, and which array is the result.
OPERATIONS = {
    "conv_fprop": ({"x": "image", "w": "weight"}, "y"),
    "conv_dgrad": ({"y": "loss", "w": "filter"}, "x"),
    "conv_wgrad": ({"x": "image", "y": "loss"}, "w"),
}


def forward(
    setup: Setup, pairs: Sequence[Pair], y: Array, geom: Geometry, bias: Array | None = None
) -> None:
    """dT/dg: write the sum of the convolutions of each x with its w, plus bias, to y."""
    if 0 in y.shape:
        return
    terms = [{"x": x, "w": w} for x, w in pairs if geom.C]
    if len(terms) == 1 and bias is not None:
        terms[0]["b"], bias = bias, None
    _store(_total(setup, "conv_fprop", geom, terms, y, len(terms) == 1), y, bias)


def grad_input(
    setup: Setup, pairs: Sequence[Pair], dx: Array, geom: Geometry, bias: Array | None = None
) -> None:
    """dT/dx: write the sum of the input gradients of each g and its w, plus bias, to dx."""
    if 0 in dx.shape:
        return
    terms = [{"y": g, "w": w} for g, w in pairs if geom.K]
    padded = plain(geom, False)[1] is not None
    copied = padded and geom.padding_mode != "zeros"  # cells add up what their copies get
    direct = len(terms) == 1 and bias is None and not copied
    if padded:  # a third for the gradient of the padded input, two for what is done with that
        third = setup.limits._replace(shares=3)
        setup = setup.within(third)
    total = _total(setup, "conv_dgrad", geom, terms, dx, direct)
    if padded and total is not None:
        total = _unpadded(setup.xp, total, geom)
    _store(total, dx, bias)


def grad_weight(setup: Setup, x: Array, g: Array, dw: Array, geom: Geometry) -> None:
    """dT/dw: write the gradient of the weights to dw."""
    if 0 in dw.shape:
        return
    terms = [{"x": x, "y": g}] if geom.N else []
    _store(_total(setup, "conv_wgrad", geom, terms, dw, len(terms) == 1), dw)


def _store(total: Array | None, result: Array, bias: Array | None = None) -> None:
    """Write a total, None for zero, plus bias; the total may be the result already."""
    if total is None:
        result[...] = 0 if bias is None else bias
        return
    if bias is not None:
        total += bias
    if total is not result:
        result[...] = total


def _total(
    setup: Setup,
    operation: str,
    geom: Geometry,
    terms: Sequence[dict[str, Array]],
    result: Array,
    direct: bool,
) -> Array | None:
    """Return a sum of contractions, in the result itself if that can be; None for no terms.

    ``direct`` says that nothing is added to the one term. Then 16-bit floats are given as they
    are, and cuDNN sums them in float32 and rounds them. Others are summed in what they are given.
    """
    dtype, own = setup.compute, dtype_name(result.dtype)
    if direct and dtype == "float32":  # a bias is of few numbers, and fits the result's dtype
        given = {dtype_name(a.dtype) for name, a in terms[0].items() if name != "b"}
        dtype = own if given == {own} else dtype
    total = None
    for term in terms:
        if total is None:
            total = _contraction(setup, operation, geom, dtype, term, result)
        else:
            total += _contraction(setup, operation, geom, dtype, term, None)
    return total


def _contraction(
    setup: Setup,
    operation: str,
    geom: Geometry,
    dtype: str,
    operands: dict[str, Array],
    result: Array | None,
) -> Array:
    """Return one contraction, in `result` if that can be."""
    geom, how = plain(geom, operation == "conv_wgrad")
    data = next(iter(operands.values()))
    first, last = forms(geom, False), forms(geom, True)
    channels_last = not _compact(data, first["x"].order) and _compact(data, last["x"].order)
    form = last if channels_last else first
    memory = _Memory(setup, dtype)
    arrays = {
        name: memory.ready(a, form[name], how if name == "x" else None)
        for name, a in operands.items()
    }
    into = OPERATIONS[operation][1]
    arrays[into] = memory.place(result, form[into])
    avoided: tuple[str, ...] = AVOIDED
    if setup.task.method != "cudnn":
        avoided += SPREADING
    if dtype == "float32" and not allows_tf32():
        avoided += ("TENSOR_CORE",)  # they round float32 to 19 bits
    bias = "b" in operands
    run(
        setup.xp,
        Problem(operation, geom, dtype, setup.compute, channels_last, bias, avoided, memory.left),
        arrays,
    )
    return arrays[into]


# ---------------------------------------------------------------- padding, before and after


@lru_cache(maxsize=256)
def plain(geom: Geometry, even: bool) -> tuple[Geometry, Reading | None]:
    """Return a convolution with padding that cuDNN has, and how x is read for it (None: as is).

    Zeros before and after an axis are as many where that can be, as more engines take them, or
    must: cuDNN 9.19 has engines for weight gradients that are wrong where they are not.
    """
    zeros = [pair for a in range(geom.rank) if (pair := _zeros(geom, a)) is not None]
    if len(zeros) == geom.rank and not (even and any(low != high for low, high in zeros)):
        return geom._replace(padding=tuple(zeros)), None
    zero = (0,) * geom.rank
    start, stop = geom.reads(zero, geom.O, zero, geom.W)
    everything = (slice(0, geom.G), slice(0, geom.c), slice(0, geom.N))
    inner = geom._replace(
        I=tuple(b - a for a, b in zip(start, stop, strict=True)),
        padding=((0, 0),) * geom.rank,
        padding_mode="zeros",
    )
    return inner, padding.reading(geom, everything, start, stop)


def _zeros(geom: Geometry, axis: int) -> tuple[int, int] | None:
    """Return zeros before and after an axis from which its outputs come; None: there are none."""
    I, s, low = geom.I[axis], geom.stride[axis], geom.padding[axis][0]
    reach = geom.dilation[axis] * (geom.W[axis] - 1)
    least = max(s * (geom.O[axis] - 1) + reach + 1 - low - I, 0)
    if not I or not (geom.padding_mode == "zeros" or low == least == 0):
        return None
    for high in (low, least):
        fits = (low + I + high - reach - 1) // s + 1 == geom.O[axis]
        if fits and 0 <= low <= reach >= high >= least:
            return low, high
    return None


def _unpadded(xp: Namespace, dx: Array, geom: Geometry) -> Array:
    """Return the gradient of the input, from that of the padded coordinates that are read."""
    for a in range(geom.rank):
        start, stop = padding.extent(geom, a)
        begin, end = geom.read_range(a)
        first = min(max(begin, start), stop)
        last = max(min(end, stop), first)
        dx = dx[along(SPATIAL + a, slice(first - begin, last - begin))]
        dx = padding.embedded(xp, dx, SPATIAL + a, first - start, stop - last)
    return padding.unpad(xp, dx, geom)


# ---------------------------------------------------------------- arrays as cuDNN takes them


class Form(NamedTuple):
    """How an operand is to be: its shape, and its axes, the innermost in memory last."""

    shape: Ints
    order: Ints


@lru_cache(maxsize=256)
def forms(geom: Geometry, last: bool) -> dict[str, Form]:
    """Return the forms of x, w, y and the bias b.

    In memory they are (N, C, *L) and (K, c, *W), or, channels `last`, (N, *L, C) and (K, *W, c).
    """
    spatial = tuple(range(SPATIAL, SPATIAL + geom.rank))
    data = (2, *spatial, 0, 1) if last else (2, 0, 1, *spatial)
    weights = (0, 1, *spatial, 2) if last else (0, 1, 2, *spatial)
    return {
        "x": Form((geom.G, geom.c, geom.N, *geom.I), data),
        "w": Form((geom.G, geom.k, geom.c, *geom.W), weights),
        "y": Form((geom.G, geom.k, geom.N, *geom.O), data),
        "b": Form((geom.G, geom.k, 1, *(1,) * geom.rank), data),
    }


def _compact(a: Array, order: Ints) -> bool:
    """Whether the elements are next to each other in this order, and begin where engines read."""
    expected = a.itemsize
    for axis in reversed(order):
        if a.shape[axis] > 1 and a.strides[axis] != expected:
            return False
        expected *= a.shape[axis]
    return address(a) % ALIGNED == 0


class _Memory:
    """Memory for the copies of one contraction: compact arrays of one dtype."""

    def __init__(self, setup: Setup, dtype: str) -> None:
        self.xp, self.dtype = setup.xp, dtype
        self.limit = self.left = setup.limits.workspace

    def ready(self, a: Array, form: Form, how: Reading | None) -> Array:
        """Return an operand, read as `how` says, compact in this form: itself or a copy."""
        if how is None and dtype_name(a.dtype) == self.dtype and _compact(a, form.order):
            return a
        copy = self.fresh(form)
        if how is None:
            copy[...] = a
        else:
            padding.fill(a, how, copy)
        return copy

    def place(self, a: Array | None, form: Form) -> Array:
        """Return `a` if a result of this form can be written there, or fresh memory."""
        fits = a is not None and a.shape == form.shape and dtype_name(a.dtype) == self.dtype
        return a if fits and _compact(a, form.order) else self.fresh(form)

    def fresh(self, form: Form) -> Array:
        """Return an array of this form."""
        shape, order = form
        size = math.prod(shape) * itemsize(self.dtype)
        if size > self.left:
            raise Refusal(
                "max_workspace to hold the copies that cuDNN needs, or another method",
                f"{self.limit} bytes of it for them, needed {self.limit - self.left + size} bytes",
            )
        self.left -= size
        memory = self.xp.empty(
            tuple(shape[axis] for axis in order), dtype=dtype_of(self.xp, self.dtype)
        )
        return self.xp.permute_dims(memory, tuple(order.index(axis) for axis in range(len(order))))


# ---------------------------------------------------------------- graphs, plans and execution


class Problem(NamedTuple):
    """What a plan depends on, besides the device.

    ``dtype`` is that of the arrays, ``compute`` that of the sums, ``last`` whether channels are
    last in memory, ``avoided`` the notes that no engine may have, ``workspace`` the bytes that it
    may take.
    """

    operation: str
    geom: Geometry
    dtype: str
    compute: str
    last: bool
    bias: bool
    avoided: tuple[str, ...]
    workspace: int

    def tensors(self) -> dict[str, tuple[list[int], list[int]]]:
        """Return sizes and strides of x, w, y and the bias b."""
        geom = self.geom
        shapes = {
            "x": (geom.N, geom.C, *geom.I),
            "w": (geom.K, geom.c, *geom.W),
            "y": (geom.N, geom.K, *geom.O),
            "b": (1, geom.K, *(1,) * geom.rank),
        }
        return {name: _tensor(shape, self.last) for name, shape in shapes.items()}


class Ready(NamedTuple):
    """A graph that can be executed, its tensors, and the bytes that its engine takes."""

    graph: Any
    tensors: dict[str, Any]
    workspace: int


def _tensor(shape: Ints, last: bool) -> tuple[list[int], list[int]]:
    """Return sizes and strides of a compact (N, C, *L), or (N, *L, C) in memory."""
    sizes = [*shape[:2], *_axes(1, shape[2:])]
    strides, step = [0] * len(sizes), 1
    for axis in (1, *range(len(sizes) - 1, 1, -1), 0) if last else reversed(range(len(sizes))):
        strides[axis] = step
        step *= sizes[axis]
    return sizes, strides


def _axes(unit: int, values: Ints) -> list[int]:
    """Return one value per axis, a unit axis before a lone one: cuDNN has two or three."""
    return [unit] * (len(values) == 1) + list(values)


def graph_of(problem: Problem, handle: Any) -> tuple[Any, dict[str, Any]]:
    """Return the graph of one operation, and of a bias after it, and its tensors."""
    geom, compute = problem.geom, _type(problem.compute)
    graph = cudnn.pygraph(
        handle=handle,
        io_data_type=_type(problem.dtype),
        intermediate_data_type=compute,
        compute_data_type=compute,
    )
    operands, into = OPERATIONS[problem.operation]
    sizes = problem.tensors()

    def tensor(name: str) -> Any:
        dim, stride = sizes[name]
        return graph.tensor(name=name, dim=dim, stride=stride, data_type=_type(problem.dtype))

    tensors = {name: tensor(name) for name in operands}
    result = getattr(graph, problem.operation)(
        **{operands[name]: tensor for name, tensor in tensors.items()},
        pre_padding=_axes(0, tuple(low for low, _ in geom.padding)),
        post_padding=_axes(0, tuple(high for _, high in geom.padding)),
        stride=_axes(1, geom.stride),
        dilation=_axes(1, geom.dilation),
        compute_data_type=compute,
    )
    dim, stride = sizes[into]
    if problem.bias:  # added before 16-bit floats are rounded
        result.set_dim(dim).set_stride(stride).set_data_type(compute)
        tensors["b"] = tensor("b")
        result = graph.bias(name="bias", input=result, bias=tensors["b"], compute_data_type=compute)
    result.set_output(True).set_dim(dim).set_stride(stride).set_data_type(_type(problem.dtype))
    graph.validate()
    return graph, {**tensors, into: result}


def _type(name: str) -> Any:
    return getattr(cudnn.data_type, TYPES[name])


@cache
def _handle(device: int) -> Any:
    """Return cuDNN's handle of the current device."""
    return cudnn.create_handle()


@lru_cache(maxsize=256)
def _plan(device: int, problem: Problem) -> Ready | tuple[str, str]:
    """Choose an engine by cuDNN's own estimates; or return which rule is broken, and by what."""
    largest = max(math.prod(sizes) for sizes, _ in problem.tensors().values())
    if largest >= LARGEST:
        rule = f"arrays of less than {LARGEST} elements for cuDNN, or another method"
        return rule, f"{largest} elements"
    notes = [getattr(cudnn.numerical_note, note) for note in problem.avoided]
    try:
        graph, tensors = graph_of(problem, _handle(device))
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes(notes)
        graph.deselect_workspace_greater_than(problem.workspace)
        graph.check_support()
        graph.build_plans()
    except cudnn.cudnnGraphNotSupportedError as error:
        return (
            "a deterministic engine of cuDNN within max_workspace, or another method",
            f"{problem.operation} of {problem.geom}, {problem.dtype}, max_workspace with "
            f"{problem.workspace} bytes left, cuDNN {cudnn.backend_version()}: {one_line(error)}",
        )
    except RuntimeError as error:  # of the handle, where a library is missing
        return "a cuDNN that works, or another method", one_line(error)
    return Ready(graph, tensors, graph.get_workspace_size())


_lock = threading.Lock()  # a handle is for one thread at a time


def run(xp: Namespace, problem: Problem, arrays: dict[str, Array]) -> None:
    """Contract arrays x, w and y as the problem says, on the current device and stream."""
    device, stream = queue()
    with _lock:
        plan = _plan(device, problem)
        if not isinstance(plan, Ready):
            raise Refusal(*plan)
        workspace = xp.empty(max(plan.workspace, 1), dtype=dtype_of(xp, "uint8"))
        cudnn.set_stream(handle=_handle(device), stream=stream)
        buffers = {plan.tensors[name]: address(a) for name, a in arrays.items()}
        plan.graph.execute(buffers, address(workspace), handle=_handle(device))
