"""One validated call: its geometry, its dtypes, and the three contractions on a user's arrays.

Public functions build a `Call` from shapes and options, then ask it for contractions. Here an
array goes from the user's layout to the form of `layout`, through `blocks` (NumPy and CuPy) or
`expression` (every other library), and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import blocks, cells, choice, expression, layout, workers
from .blocks import Pair, Setup
from .dtypes import DTypes, accumulation, promoted, sum_dtype
from .errors import Refusal, shown
from .geometry import Geometry, Ints, geometry, index, options, per_axis, sizes, transposed_size
from .layout import Axes, Layout
from .namespace import (
    COMPLEX,
    REAL,
    Array,
    Namespace,
    cast,
    current,
    device,
    dtype_name,
    dtype_of,
    in_place,
    itemsize,
    on_gpu,
    result_name,
)
from .plan import MIB, Limits

# Blocks of 8 MiB: large enough for calls that are long, small enough for a shared cache. A GPU
# wants few and large ones.
CPU = Limits(64 * MIB, 8 * MIB)
GPU = Limits(512 * MIB, 512 * MIB)


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


def data_sizes(a: Array, name: str, axes: Axes) -> Data:
    """Read the sizes of x or y off an array; one axis less is one sample."""
    rank = len(axes.spatial)
    shape = tuple(a.shape)
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


def weight_sizes(w: Array, axes: Axes) -> Weights:
    """Read the sizes of the weights off an array."""
    shape = tuple(w.shape)
    return Weights(tuple(shape[axis] for axis in axes.spatial), shape[axes.first], shape[axes.last])


def rank_of(w: Array) -> int:
    """Return the number of spatial axes of a convolution with these weights."""
    if w.ndim < 3:
        raise Refusal("w of at least 3 dimensions", f"w of shape {tuple(w.shape)}")
    return int(w.ndim) - 2


@dataclass(frozen=True, slots=True)
class Call:
    """A convolution, validated; for a transposed call, the one that it transposes."""

    xp: Namespace
    geom: Geometry
    layout: Layout
    batched: bool
    dtype: Any
    method: str
    limits: Limits

    @property
    def x_shape(self) -> Ints:
        """Shape of x, or of the result of a transposed call."""
        return self._shape(self.layout.x, self.geom.I, self.geom.C)

    @property
    def y_shape(self) -> Ints:
        """Shape of y, or of the x of a transposed call."""
        return self._shape(self.layout.y, self.geom.O, self.geom.K)

    @property
    def w_shape(self) -> Ints:
        """Shape of the weights."""
        return self.layout.w.shape(self.geom.c, self.geom.W, self.geom.K)

    def _shape(self, axes: Axes, spatial: Ints, channels: int) -> Ints:
        if self.batched:
            return axes.shape(self.geom.N, spatial, channels)
        one = layout.without_batch(axes)
        return Axes(one.last, one.spatial, one.last).shape(channels, spatial, channels)

    def types(
        self, a: Array, b: Array, terms: int, like: Array | None = None, real_part: bool = False
    ) -> DTypes:
        """Return the dtypes of a contraction of two arrays, a sum of `terms` products.

        Its result has the dtype of `like`, if that is given and no integer.
        """
        one, two = dtype_name(a.dtype), dtype_name(b.dtype)
        name = promoted(self.xp, one, two, self.dtype, real_part)
        whole = result_name(self.xp, one, two, name)  # complex arrays, real dtype: still complex
        result = name
        if like is not None:
            own = dtype_name(like.dtype)
            result = own if own in REAL + COMPLEX else promoted(self.xp, one, two)
        return DTypes(accumulation(self.xp, one, two, whole, terms), result)

    def forward_terms(self) -> int:
        """Count the products that one output sums."""
        return self.geom.c * math.prod(self.geom.W)

    def input_terms(self) -> int:
        """Count the products that one input's gradient sums, at most."""
        return self.geom.k * math.prod(self.geom.W)

    def weight_terms(self) -> int:
        """Count the products that one weight's gradient sums."""
        return self.geom.N * math.prod(self.geom.O)

    def forward(
        self,
        pairs: list[Pair],
        b: Array | None,
        types: DTypes,
        like: Array,
        conjugate: bool = False,
    ) -> Array:
        """dT/dg, summed over the pairs (x, w), plus b: an array like y, where `like` is."""
        return self._data("forward", pairs, b, types, like, conjugate, self.layout.x, self.layout.y)

    def grad_input(
        self,
        pairs: list[Pair],
        b: Array | None,
        types: DTypes,
        like: Array,
        conjugate: bool = False,
    ) -> Array:
        """dT/dx, summed over the pairs (g, w), plus b: an array like x, where `like` is."""
        return self._data(
            "grad_input", pairs, b, types, like, conjugate, self.layout.y, self.layout.x
        )

    def _data(
        self,
        name: str,
        pairs: list[Pair],
        b: Array | None,
        types: DTypes,
        like: Array,
        conjugate: bool,
        axes: Axes,
        result: Axes,
    ) -> Array:
        """Run one of the two contractions with the weights."""
        xp, geom = self.xp, self.geom
        shape = self.y_shape if name == "forward" else self.x_shape
        check_bytes(shape, types.result)

        def operands() -> tuple[list[Pair], Array | None]:
            grouped = [
                (
                    layout.grouped(xp, a, axes, geom.G, self.batched),
                    layout.grouped_weights(xp, w, self.layout.w, geom.G),
                )
                for a, w in pairs
            ]
            if b is None:
                return grouped, None
            bias = xp.reshape(b, (geom.G, b.shape[0] // geom.G, *(1,) * (1 + geom.rank)))
            return grouped, cast(xp, bias, types.compute)

        def write(setup: Setup) -> Array:
            out = xp.empty(shape, dtype=dtype_of(xp, types.result))
            view = layout.grouped(xp, out, result, geom.G, self.batched)
            grouped, bias = operands()
            run = blocks.forward if name == "forward" else cells.grad_input
            run(setup, grouped, view, geom, bias)
            return out

        def evaluate(setup: Setup) -> Array:
            if not pairs or 0 in (geom.N, geom.C, geom.K, *shape):
                y = self._nothing(shape, types.compute, like, pairs)
                return cast(xp, y if b is None else y + self.bias_view(b, result), types.result)
            grouped, bias = operands()
            y = getattr(expression, name)(setup, grouped, geom, bias)
            return layout.ungrouped(xp, cast(xp, y, types.result), result, self.batched)

        return self._run(write, evaluate, like, types, (False, conjugate))

    def _nothing(self, shape: Ints, name: str, like: Array, pairs: list[Pair]) -> Array:
        """Return zeros: the sum over no terms, or a result of no elements.

        Operands without elements are added, as PyTorch differentiates only through what it saw.
        """
        zero = self.zeros(shape, name, like)
        for a in (a for pair in pairs for a in pair):
            empty = a[(slice(0, 0),) * a.ndim]
            zero = zero + self.xp.sum(cast(self.xp, empty, name), dtype=dtype_of(self.xp, name))
        return zero

    def grad_weight(
        self,
        x: Array,
        g: Array,
        types: DTypes,
        conjugate: tuple[bool, bool] = (True, False),
        per_sample: bool = False,
    ) -> Array:
        """dT/dw at (x, g), either conjugated: an array like w, one per sample if asked for."""
        xp, geom, axes = self.xp, self.geom, self.layout.w
        lead = int(per_sample and self.batched)
        shape = (geom.N,) * lead + self.w_shape
        check_bytes(shape, types.result)

        def one_each(a: Array) -> Array:
            """Return (c, N, *I) as one sample in each of N groups."""
            return xp.permute_dims(a, (1, 0, *range(2, a.ndim)))[:, :, None, ...]

        def split() -> tuple[Pair, list[Pair]]:
            """Return x and g, and per sample each group of them as one whose groups are samples."""
            a = layout.grouped(xp, x, self.layout.x, geom.G, self.batched)
            b = layout.grouped(xp, g, self.layout.y, geom.G, self.batched)
            groups = range(lead * geom.G)
            return (a, b), [(one_each(a[i, ...]), one_each(b[i, ...])) for i in groups]

        def write(setup: Setup) -> Array:
            out = xp.empty(shape, dtype=dtype_of(xp, types.result))
            view = layout.grouped_weights(xp, out, axes, geom.G, lead)
            operands, each = split()
            for i, pair in enumerate(each if geom.N else ()):
                blocks.grad_weight(setup, *pair, view[:, i], geom.per_sample())
            if not lead:
                blocks.grad_weight(setup, *operands, view, geom)
            return out

        def evaluate(setup: Setup) -> Array:
            if 0 in (geom.N, geom.C, geom.K):
                zero = self._nothing(shape, types.compute, x, [(x, g)])
                return cast(xp, zero, types.result)
            operands, each = split()
            if lead:
                parts = [expression.grad_weight(setup, *pair, geom.per_sample()) for pair in each]
                dw = xp.stack(parts, axis=1)
            else:
                dw = expression.grad_weight(setup, *operands, geom)
            return layout.ungrouped_weights(xp, cast(xp, dw, types.result), axes, lead)

        return self._run(write, evaluate, x, types, conjugate)

    def _run(
        self,
        write: Callable[[Setup], Array],
        evaluate: Callable[[Setup], Array],
        like: Array,
        types: DTypes,
        conjugate: tuple[bool, bool],
    ) -> Array:
        """Run a contraction where the arrays are: on their device, on this call's threads."""
        xp = self.xp
        conjugate_a, conjugate_b = (flag and types.compute in COMPLEX for flag in conjugate)
        task = choice.Task(xp, self.method, *types, self.limits)
        setup = Setup(task, (conjugate_a, conjugate_b), 1)
        if not in_place(xp):
            return evaluate(setup)
        with current(like):
            if on_gpu(xp):
                return write(setup)
            with workers.available() as threads:
                return write(setup._replace(threads=threads))

    def bias_grad(self, dy: Array, axes: Axes) -> Array:
        """Sum dy over samples and positions."""
        one = axes if self.batched else layout.without_batch(axes)
        name = dtype_name(dy.dtype)
        wide = dtype_of(self.xp, sum_dtype(self.xp, name))
        over = tuple(axis for axis in range(dy.ndim) if axis != one.last)
        with current(dy):
            return cast(self.xp, self.xp.sum(dy, axis=over, dtype=wide), name)

    def bias_view(self, b: Array, axes: Axes) -> Array:
        """Return b with axes to be added to an array of the layout `axes`."""
        axes = axes if self.batched else layout.without_batch(axes)
        ndim = self.geom.rank + 1 + self.batched
        return self.xp.reshape(b, tuple(b.shape[0] if a == axes.last else 1 for a in range(ndim)))

    def zeros(self, shape: Ints, name: str, like: Array) -> Array:
        """Return zeros of this shape and dtype, where `like` is."""
        xp = self.xp
        with current(like):
            return xp.zeros(shape, dtype=dtype_of(xp, name), device=device(like))


def check_bytes(shape: Ints, dtype: str) -> None:
    """Refuse a result that no machine can address."""
    if math.prod(shape) * itemsize(dtype) >= 2**63:
        raise Refusal("a result of less than 2**63 bytes", f"shape {shape}, dtype {dtype}")


def check_bias(xp: Namespace, b: Array | None, channels: int, result: str) -> None:
    """Refuse a bias that does not fit the channels or would be changed by the result's dtype."""
    if b is None:
        return
    if tuple(b.shape) != (channels,):
        raise Refusal(
            f"b of shape ({channels},), one entry per output channel", f"shape {tuple(b.shape)}"
        )
    own = dtype_name(b.dtype)
    if result_name(xp, own, result) != result:
        raise Refusal(
            "b of a dtype that promotes to the result's", f"b {own}, result {result}", TypeError
        )


def check_shape(a: Array | None, name: str, shape: Ints) -> None:
    """Refuse an array of another shape."""
    if a is not None and tuple(a.shape) != shape:
        raise Refusal(f"{name} of shape {shape}", f"{name} of shape {tuple(a.shape)}")


def _limits(xp: Namespace, max_workspace: Any) -> Limits:
    default = GPU if on_gpu(xp) else CPU
    if max_workspace is None:
        return default
    workspace = index(max_workspace, "max_workspace")
    if workspace < 1:
        raise Refusal("max_workspace of at least 1 byte", f"max_workspace {workspace}")
    return Limits(workspace, min(workspace, default.block))


def _call(xp: Namespace, settings: Settings, axes: Layout, batched: bool, geom: Geometry) -> Call:
    return Call(
        xp,
        geom,
        axes,
        batched,
        settings.dtype,
        choice.checked_method(settings.method),
        _limits(xp, settings.max_workspace),
    )


def _channels(x: Data, w: Weights, groups: int) -> None:
    if x.channels != w.c * groups:
        raise Refusal(
            f"the channels of {x.name} to be groups times the input channels of w",
            f"channels {x.channels} of {'samples' if x.batched else 'one sample'} of size "
            f"{x.spatial}, groups {groups}, w with {w.c} input channels",
        )


def _outputs(y: Data, w: Weights, transposed: bool = False) -> None:
    if y.channels != w.K:
        side = "input" if transposed else "output"
        raise Refusal(
            f"the channels of {y.name} to be the {side} channels of w",
            f"channels {y.channels}, w with {w.K} {side} channels",
        )


def _fits(y: Data, geom: Geometry) -> None:
    if y.spatial != geom.O:
        raise Refusal(
            f"{y.name} of the spatial size of the convolution's output",
            f"{y.name} of size {y.spatial}, output of size {geom.O} from input size {geom.I}, "
            f"kernel size {geom.W}, padding {geom.padding}",
        )


def forward_call(xp: Namespace, x: Array, w: Array, settings: Settings) -> Call:
    """Return the call of a convolution of x with w."""
    rank = rank_of(w)
    axes = layout.layout_axes(settings.layout, rank)
    opts = options(rank, *settings[:5])
    data, weights = data_sizes(x, "x", axes.x), weight_sizes(w, axes.w)
    _channels(data, weights, opts.groups)
    geom = geometry(data.N, data.channels, weights.K, data.spatial, weights.W, opts)
    return _call(xp, settings, axes, data.batched, geom)


def input_call(xp: Namespace, dy: Array, w: Array, input_size: Any, settings: Settings) -> Call:
    """Return the call of an input gradient: of dy, w and the spatial sizes of x."""
    rank = rank_of(w)
    axes = layout.layout_axes(settings.layout, rank)
    opts = options(rank, *settings[:5])
    spatial = sizes(input_size, "input_size", rank)
    data, weights = data_sizes(dy, "dy", axes.y), weight_sizes(w, axes.w)
    _outputs(data, weights)
    C = weights.c * opts.groups
    geom = geometry(data.N, C, weights.K, spatial, weights.W, opts)
    _fits(data, geom)
    return _call(xp, settings, axes, data.batched, geom)


def weight_call(xp: Namespace, dy: Array, x: Array, kernel_size: Any, settings: Settings) -> Call:
    """Return the call of a weight gradient: of dy, x and the kernel sizes."""
    W = sizes(kernel_size, "kernel_size")
    rank = len(W)
    axes = layout.layout_axes(settings.layout, rank)
    opts = options(rank, *settings[:5])
    data, result = data_sizes(x, "x", axes.x), data_sizes(dy, "dy", axes.y)
    if (data.batched, data.N) != (result.batched, result.N):
        raise Refusal(
            "x and dy of the same samples", f"x of shape {tuple(x.shape)}, dy {tuple(dy.shape)}"
        )
    geom = geometry(data.N, data.channels, result.channels, data.spatial, W, opts)
    _fits(result, geom)
    return _call(xp, settings, axes, data.batched, geom)


def transposed_call(
    xp: Namespace,
    x: Array,
    w: Array,
    output_padding: Any,
    output_size: Any,
    settings: Settings,
) -> Call:
    """Return the call whose input gradient is the transposed convolution of x with w."""
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
