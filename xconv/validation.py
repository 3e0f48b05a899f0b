"""From the shapes and options of a call to a validated `Call`, or to the error that says why not.

Nothing here looks at an array: what is made of shapes and options is kept for the next call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

from . import choice, layout
from .call import Call
from .errors import Refusal, shown
from .geometry import (
    Geometry,
    Ints,
    Options,
    geometry,
    index,
    options,
    per_axis,
    sizes,
    transposed_size,
)
from .layout import Axes, Layout
from .namespace import Array, Namespace, checked_dtype, dtype_name, result_name

R = TypeVar("R")


class Settings(NamedTuple):
    """The options that all functions share, as the user gave them."""

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: Any = 1
    padding_mode: Any = "zeros"
    layout: Any = "channels_first"
    dtype: Any = None
    method: Any = "auto"
    max_workspace: Any = None


class Data(NamedTuple):
    """Sizes of an array of samples, x or y."""

    name: str
    batched: bool
    N: int
    spatial: Ints
    channels: int


class Weights(NamedTuple):
    """Sizes of the weights: kernel sizes, input channels per group, output channels."""

    W: Ints
    c: int
    K: int


def data_sizes(shape: Ints, name: str, axes: Axes) -> Data:
    """Read the sizes of x or y off its shape; one axis less is one sample."""
    rank = len(axes.spatial)
    if len(shape) == rank + 2:
        spatial = tuple(shape[axis] for axis in axes.spatial)
        return Data(name, True, shape[axes.first], spatial, shape[axes.last])
    if len(shape) == rank + 1:
        one = layout.without_batch(axes)
        return Data(name, False, 1, tuple(shape[axis] for axis in one.spatial), shape[one.last])
    raise Refusal(
        f"{name} of {rank + 2} dimensions, or {rank + 1} for one sample, as the kernel has {rank} "
        "spatial",
        f"{name} of shape {shape}",
    )


def weight_sizes(shape: Ints, axes: Axes) -> Weights:
    """Read the sizes of the weights off their shape."""
    return Weights(tuple(shape[axis] for axis in axes.spatial), shape[axes.first], shape[axes.last])


def rank_of(shape: Ints) -> int:
    """Return the number of spatial axes of a convolution with weights of this shape."""
    if len(shape) < 3:
        raise Refusal(
            "w of at least 3 dimensions, all but two of them spatial (w[None, None] of one kernel)",
            f"w of shape {shape}",
        )
    return len(shape) - 2


def check_bias(xp: Namespace, b: Array, channels: int, result: str) -> None:
    """Refuse a bias that does not fit the channels or would be changed by the result's dtype."""
    if tuple(b.shape) != (channels,):
        raise Refusal(
            f"b of shape ({channels},), one entry per output channel", f"shape {tuple(b.shape)}"
        )
    own = dtype_name(b.dtype)
    if result_name(xp, own, result) != result:
        raise Refusal(
            "b of a dtype that promotes to the result's", f"b {own}, result {result}", TypeError
        )


def check_shape(
    a: Array | None, name: str, shape: Ints, rank: int = 0, settings: Sequence[Any] | None = None
) -> None:
    """Refuse an array of another shape, which follows from these options, if any."""
    if a is not None and tuple(a.shape) != shape:
        got = f"{name} of shape {tuple(a.shape)}"
        if settings is not None:
            opts = options(rank, *settings[:5])
            got += f", stride {opts.stride}, padding {opts.padding}, dilation {opts.dilation}"
        raise Refusal(f"{name} of shape {shape}", got)


def _workspace(max_workspace: Any) -> int | None:
    workspace = None if max_workspace is None else index(max_workspace, "max_workspace")
    if workspace is not None and workspace < 1:
        raise Refusal("max_workspace of at least 1 byte", f"max_workspace {workspace}")
    return workspace


def how(dtype: Any, method: Any, max_workspace: Any) -> tuple[str | None, str, int | None]:
    """Check the options that say how to compute, whatever the arrays."""
    return (
        None if dtype is None else checked_dtype(dtype),
        choice.checked_method(method),
        _workspace(max_workspace),
    )


def _call(xp: Namespace, settings: Settings, axes: Layout, batched: bool, geom: Geometry) -> Call:
    computed = how(settings.dtype, settings.method, settings.max_workspace)
    return Call(xp, geom, axes, batched, *computed)


def _channels(x: Data, w: Weights, groups: int, layout: Any) -> None:
    if x.channels != w.c * groups:
        last = layout == "channels_first" and x.spatial[-1] == w.c * groups
        hint = ", or layout='channels_last' where they come last" if last else ""
        if w.K == w.c == 1 and groups in (1, x.channels):
            hint += " (one kernel for every channel: make each a sample, x[:, None])"
        raise Refusal(
            f"the channels of {x.name} to be groups times the input channels of w{hint}",
            f"channels {x.channels} of {'samples' if x.batched else 'one sample'} of size "
            f"{x.spatial}, groups {groups}, w with {w.c} input channels and kernel size {w.W}",
        )


def _outputs(y: Data, w: Weights, transposed: bool = False) -> None:
    if y.channels != w.K:
        side = "input" if transposed else "output"
        raise Refusal(
            f"the channels of {y.name} to be the {side} channels of w",
            f"channels {y.channels}, w with {w.K} {side} channels",
        )


def _fits(y: Data, geom: Geometry, opts: Options) -> None:
    if y.spatial != geom.O:
        raise Refusal(
            f"{y.name} of the spatial size of the convolution's output",
            f"{y.name} of size {y.spatial}, output of size {geom.O} from input size {geom.I}, "
            f"kernel size {geom.W}, padding {geom.padding}, stride {opts.stride}, dilation "
            f"{opts.dilation}",
        )


def remembered(make: Callable[..., R]) -> Callable[..., R]:
    """Keep what a function returned for the same plain arguments; of the last, make `Settings`.

    Plain are ints, strings, None, types and tuples of them alone: 1, 1.0 and True are equal as
    keys, but not as options.
    """

    def made(xp: Namespace, *arguments: Any) -> R:
        return make(xp, *arguments[:-1], Settings(*arguments[-1]))

    kept = lru_cache(maxsize=256)(made)

    @wraps(make)
    def call(xp: Namespace, *arguments: Any) -> R:
        shallow = set(map(type, arguments)) == {tuple} and ATOMS.issuperset(
            map(type, itertools.chain.from_iterable(arguments))
        )  # as most are: without a look at each
        return (kept if shallow or _plain(arguments) else made)(xp, *arguments)

    return call


ATOMS = frozenset({int, str, type(None), type})
DEEPEST = 4


def _plain(values: Sequence[Any]) -> bool:
    """Whether there are only such values; the deepest are settings' pairs of padding."""
    for _ in range(DEEPEST):
        kinds = set(map(type, values))
        if kinds <= ATOMS:
            return True
        if not kinds <= ATOMS | {tuple}:
            return False
        values = [one for value in values if type(value) is tuple for one in value]
    return False


@remembered
def forward_call(xp: Namespace, x: Ints, w: Ints, settings: Settings) -> Call:
    """Return the call of a convolution of arrays of the shapes x and w."""
    rank = rank_of(w)
    axes = layout.layout_axes(settings.layout, rank)
    opts = options(rank, *settings[:5])
    data, weights = data_sizes(x, "x", axes.x), weight_sizes(w, axes.w)
    _channels(data, weights, opts.groups, settings.layout)
    geom = geometry(data.N, data.channels, weights.K, data.spatial, weights.W, opts)
    return _call(xp, settings, axes, data.batched, geom)


@remembered
def input_call(xp: Namespace, dy: Ints, w: Ints, input_size: Any, settings: Settings) -> Call:
    """Return the call of an input gradient: of the shapes of dy and w, and the sizes of x."""
    rank = rank_of(w)
    axes = layout.layout_axes(settings.layout, rank)
    opts = options(rank, *settings[:5])
    spatial = sizes(input_size, "input_size", rank)
    data, weights = data_sizes(dy, "dy", axes.y), weight_sizes(w, axes.w)
    _outputs(data, weights)
    C = weights.c * opts.groups
    geom = geometry(data.N, C, weights.K, spatial, weights.W, opts)
    _fits(data, geom, opts)
    return _call(xp, settings, axes, data.batched, geom)


@remembered
def weight_call(xp: Namespace, dy: Ints, x: Ints, kernel_size: Any, settings: Settings) -> Call:
    """Return the call of a weight gradient: of the shapes of dy and x, and the kernel sizes."""
    W = sizes(kernel_size, "kernel_size")
    rank = len(W)
    if not rank + 1 <= len(x) <= rank + 2:
        raise Refusal(
            "kernel_size of the spatial sizes of w alone, such as w.shape[2:], for x of one "
            "dimension more, or two with a batch",
            f"kernel_size {W}, x of shape {x}",
        )
    axes = layout.layout_axes(settings.layout, rank)
    opts = options(rank, *settings[:5])
    data, result = data_sizes(x, "x", axes.x), data_sizes(dy, "dy", axes.y)
    if (data.batched, data.N) != (result.batched, result.N):
        raise Refusal("x and dy of the same samples", f"x of shape {x}, dy {dy}")
    geom = geometry(data.N, data.channels, result.channels, data.spatial, W, opts)
    _fits(result, geom, opts)
    return _call(xp, settings, axes, data.batched, geom)


@remembered
def transposed_call(
    xp: Namespace,
    x: Ints,
    w: Ints,
    output_padding: Any,
    output_size: Any,
    settings: Settings,
) -> Call:
    """Return the call whose input gradient is the transposed convolution of such an x and w."""
    rank = rank_of(w)
    axes = layout.layout_axes(settings.layout, rank, transposed=True)
    opts = options(rank, *settings[:5])
    extra = per_axis(output_padding, "output_padding", rank, 0)
    wanted = None if output_size is None else sizes(output_size, "output_size", rank)
    data, weights = data_sizes(x, "x", axes.y), weight_sizes(w, axes.w)
    _outputs(data, weights, transposed=True)
    given = extra if wanted is None or any(extra) else None  # 0 is the default: it says nothing
    spatial = transposed_size(data.spatial, weights.W, opts, given, wanted)
    C = weights.c * opts.groups
    geom = geometry(data.N, C, weights.K, spatial, weights.W, opts)
    return _call(xp, settings, axes, data.batched, geom)


def checked_flag(value: Any, name: str) -> bool:
    """Return a flag that must be a bool."""
    if type(value) is not bool:
        raise Refusal(f"{name} to be a bool", shown(value), TypeError)
    return value


def checked_mask(mask: Any) -> tuple[bool, bool, bool]:
    """Return an output mask of three bools."""
    if isinstance(mask, (tuple, list)) and len(mask) == 3 and all(type(m) is bool for m in mask):
        return (mask[0], mask[1], mask[2])
    kind = ValueError if isinstance(mask, (tuple, list)) and len(mask) != 3 else TypeError
    raise Refusal("output_mask of three bools, for dx, dw and db", shown(mask), kind)
