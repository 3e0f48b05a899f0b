"""One validated call: its geometry, its dtypes, and the three contractions on a user's arrays.

`validation` makes a `Call` of shapes and options; public functions ask it for contractions. Here
an array goes from the user's layout to the form of `layout`, through `blocks` (NumPy and CuPy) or
`expression` (every other library), and back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

from . import blocks, cells, choice, expression, layout, workers
from .costs import Task
from .dtypes import DTypes, contraction, sum_dtype
from .errors import Refusal
from .geometry import Geometry, Ints
from .layout import Axes, Form, Layout
from .namespace import (
    COMPLEX,
    DTYPE,
    Array,
    Namespace,
    cast,
    check_bytes,
    chunked,
    current,
    dtype_name,
    dtype_of,
    imported,
    in_place,
    on_gpu,
    own_namespace,
    quiet,
    zeros,
)
from .plan import CPU, GPU, Limits
from .setup import Pair, Setup

# Multiplications up to which a call holds no BLAS at one thread, as none would use another for its
# products: OpenBLAS does beyond 2**18 of them, of a matrix and a vector beyond 9216.
SHORT = 2**13

BLOCKED: dict[str, Callable[..., None]] = {
    "forward": blocks.forward,
    "grad_input": cells.grad_input,
    "grad_weight": blocks.grad_weight,
}


@dataclass(frozen=True, eq=False)
class Call:
    """A convolution, validated; for a transposed call, the one that it transposes.

    Calls of the same shapes and plain options share one, so that it keeps what it has worked out.
    """

    xp: Namespace
    geom: Geometry
    layout: Layout
    batched: bool
    dtype: str | None
    method: str
    workspace: int | None

    def __getstate__(self) -> dict[str, Any]:
        """Name the namespace: modules cannot be sent to another process."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "xp": self.xp.__name__
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, xp=imported(state["xp"]))

    @cached_property
    def limits(self) -> Limits:
        """Bytes that the call and each of its blocks may use."""
        default = GPU if on_gpu(self.xp) else CPU
        if self.workspace is None:
            return default
        return default._replace(allowed=self.workspace, block=min(self.workspace, default.block))

    @cached_property
    def x_shape(self) -> Ints:
        """Shape of x, or of the result of a transposed call."""
        return self._shape(self.layout.x, self.geom.I, self.geom.C)

    @cached_property
    def y_shape(self) -> Ints:
        """Shape of y, or of the x of a transposed call."""
        return self._shape(self.layout.y, self.geom.O, self.geom.K)

    @cached_property
    def w_shape(self) -> Ints:
        """Shape of the weights."""
        return self.layout.w.shape(self.geom.c, self.geom.W, self.geom.K)

    def _shape(self, axes: Axes, spatial: Ints, channels: int) -> Ints:
        if self.batched:
            return axes.shape(self.geom.N, spatial, channels)
        one = layout.without_batch(axes)
        return Axes(one.last, one.spatial, one.last).shape(channels, spatial, channels)

    @cached_property
    def x_form(self) -> Form:
        """How x is computed with, or the result of a transposed call."""
        geom = self.geom
        shape = (geom.G, geom.c, geom.N, *geom.I)
        return layout.data_form(self.layout.x, shape, self.batched)

    @cached_property
    def y_form(self) -> Form:
        """How y is computed with, or the x of a transposed call."""
        geom = self.geom
        shape = (geom.G, geom.k, geom.N, *geom.O)
        return layout.data_form(self.layout.y, shape, self.batched)

    @cached_property
    def w_form(self) -> Form:
        """How the weights are computed with."""
        geom = self.geom
        return layout.weights_form(self.layout.w, (geom.G, geom.k, geom.c, *geom.W))

    def types(
        self, a: Array, b: Array, terms: int, like: Array | None = None, real_part: bool = False
    ) -> DTypes:
        """Return the dtypes of a contraction of two arrays, a sum of `terms` products.

        Its result has the dtype of `like`, if that is given and no integer.
        """
        xp = own_namespace(self.xp, a)
        names = dtype_name(a.dtype), dtype_name(b.dtype)
        own = None if like is None else dtype_name(like.dtype)
        return contraction(xp, *names, terms, own, self.dtype, real_part)

    @cached_property
    def forward_terms(self) -> int:
        """Count the products that one output sums."""
        return self.geom.c * math.prod(self.geom.W)

    @cached_property
    def input_terms(self) -> int:
        """Count the products that one input's gradient sums, at most."""
        return self.geom.k * math.prod(self.geom.W)

    @cached_property
    def weight_terms(self) -> int:
        """Count the products that one weight's gradient sums."""
        return self.geom.N * math.prod(self.geom.O)

    @cached_property
    def short(self) -> bool:
        """Whether threads would be of no use."""
        geom = self.geom
        positions = max(math.prod(geom.O), math.prod(geom.I))
        return geom.N * geom.K * geom.c * math.prod(geom.W) * positions <= SHORT

    def forward(
        self,
        pairs: list[Pair],
        b: Array | None,
        types: DTypes,
        like: Array,
        conjugate: bool = False,
    ) -> Array:
        """dT/dg, summed over the pairs (x, w), plus b: an array like y, where `like` is."""
        return self._data("forward", pairs, b, types, like, conjugate)

    def grad_input(
        self,
        pairs: list[Pair],
        b: Array | None,
        types: DTypes,
        like: Array,
        conjugate: bool = False,
    ) -> Array:
        """dT/dx, summed over the pairs (g, w), plus b: an array like x, where `like` is."""
        return self._data("grad_input", pairs, b, types, like, conjugate)

    def _data(
        self,
        name: str,
        pairs: list[Pair],
        b: Array | None,
        types: DTypes,
        like: Array,
        conjugate: bool,
    ) -> Array:
        """Run one of the two contractions with the weights."""
        xp, geom = self.xp, self.geom
        if name == "forward":
            form, shape, result, axes = self.x_form, self.y_shape, self.y_form, self.layout.y
        else:
            form, shape, result, axes = self.y_form, self.x_shape, self.x_form, self.layout.x
        check_bytes(shape, types.result)

        def operands() -> tuple[list[Pair], Array | None]:
            grouped = []
            for a, w in pairs:
                grouped.append((form.of(xp, a), self.w_form.of(xp, w)))
            if b is None:
                return grouped, None
            bias = xp.reshape(b, (geom.G, b.shape[0] // geom.G, *(1,) * (1 + geom.rank)))
            return grouped, cast(xp, bias, types.compute)

        def write(setup: Setup) -> Array:
            out = xp.empty(shape, dtype=dtype_of(xp, types.result))
            grouped, bias = operands()
            self._in_place(name, geom, setup, grouped, result.of(xp, out), geom, bias)
            return out

        def evaluate(setup: Setup) -> Array:
            if not pairs or 0 in (geom.N, geom.C, geom.K, *shape):
                y = self._nothing(shape, types.compute, like, pairs)
                return cast(xp, y if b is None else y + self.bias_view(b, axes), types.result)
            if chunked(xp):
                from . import chunks  # imports Dask

                return chunks.data(self, name, pairs, b, types, conjugate, like)
            grouped, bias = operands()
            y = getattr(expression, name)(setup, grouped, geom, bias)
            return layout.ungrouped(xp, cast(xp, y, types.result), axes, self.batched)

        return self._run(write, evaluate, like, types, pairs, (False, conjugate))

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

        def operands() -> Pair:
            return self.x_form.of(xp, x), self.y_form.of(xp, g)

        def write(setup: Setup) -> Array:
            out = xp.empty(shape, dtype=dtype_of(xp, types.result))
            if not lead:
                self._in_place(
                    "grad_weight", geom, setup, *operands(), self.w_form.of(xp, out), geom
                )
            elif geom.N:
                one, form = geom.per_sample(), (geom.N, *self.w_form.shape)
                view = layout.weights_form(axes, form, lead).of(xp, out)
                for i, pair in enumerate(_samples(xp, *operands())):
                    self._in_place("grad_weight", one, setup, *pair, view[:, i], one)
            return out

        def evaluate(setup: Setup) -> Array:
            if 0 in (geom.N, geom.C, geom.K):
                zero = self._nothing(shape, types.compute, x, [(x, g)])
                return cast(xp, zero, types.result)
            if chunked(xp):
                from . import chunks  # imports Dask

                return chunks.grad_weight(self, x, g, types, conjugate, per_sample)
            if lead:
                one, each = geom.per_sample(), _samples(xp, *operands())
                parts = [expression.grad_weight(setup, *pair, one) for pair in each]
                dw = xp.stack(parts, axis=1)
            else:
                dw = expression.grad_weight(setup, *operands(), geom)
            return layout.ungrouped_weights(xp, cast(xp, dw, types.result), axes, lead)

        return self._run(write, evaluate, x, types, [(x, g)], conjugate)

    def _run(
        self,
        write: Callable[[Setup], Array],
        evaluate: Callable[[Setup], Array],
        like: Array,
        types: DTypes,
        pairs: list[Pair],
        conjugate: tuple[bool, bool],
    ) -> Array:
        """Run a contraction where the arrays are: on their device, on this call's threads."""
        xp = self.xp
        how = types, tuple(map(DTYPE, itertools.chain.from_iterable(pairs))), conjugate
        if not in_place(xp):
            return evaluate(self._setup(*how, 1))
        if on_gpu(xp):
            with current(like):
                return write(self._setup(*how, 1))
        with quiet():
            if self.short:
                return write(self._setup(*how, 1))
            with workers.available() as threads:
                return write(self._setup(*how, threads))

    @cached_property
    def _setup(self) -> Callable[..., Setup]:
        """What returns how to do a contraction of arrays of some dtypes, the same each time."""
        xp, method, limits = self.xp, self.method, self.limits  # not self: it would hold itself

        @lru_cache(maxsize=16)
        def setup(
            types: DTypes, dtypes: tuple[Any, ...], conjugate: tuple[bool, bool], threads: int
        ) -> Setup:
            task = Task(xp, method, *types, limits, types.converts(dtypes))
            return Setup(task, conjugate if types.compute in COMPLEX else (False, False), threads)

        return setup

    def _in_place(self, name: str, geom: Geometry, setup: Setup, *arguments: Any) -> None:
        """Do a contraction where arrays are written to: whole, by cuDNN, or in blocks."""
        if choice.whole(setup.task, geom, name):
            from . import cudnn  # imports cuDNN

            try:
                getattr(cudnn, name)(setup, *arguments)
                return
            except Refusal:
                if self.method == "cudnn":
                    raise
        BLOCKED[name](setup, *arguments)

    def bias_grad(self, dy: Array, axes: Axes) -> Array:
        """Sum dy over samples and positions."""
        one = axes if self.batched else layout.without_batch(axes)
        name = dtype_name(dy.dtype)
        wide = dtype_of(self.xp, sum_dtype(own_namespace(self.xp, dy), name))
        over = tuple(axis for axis in range(dy.ndim) if axis != one.last)
        with current(dy):
            return cast(self.xp, self.xp.sum(dy, axis=over, dtype=wide), name)

    def bias_view(self, b: Array, axes: Axes) -> Array:
        """Return b with axes to be added to an array of the layout `axes`."""
        axes = axes if self.batched else layout.without_batch(axes)
        ndim = self.geom.rank + 1 + self.batched
        if chunked(self.xp):
            b = b.rechunk(-1)  # Dask takes an axis of one cell and an empty chunk for none
        return self.xp.reshape(b, tuple(b.shape[0] if a == axes.last else 1 for a in range(ndim)))

    def zeros(self, shape: Ints, name: str, like: Array) -> Array:
        """Return zeros of this shape and dtype, where `like` is."""
        xp = self.xp
        with current(like):
            return zeros(xp, shape, like, dtype_of(xp, name))


def _samples(xp: Namespace, x: Array, g: Array) -> list[Pair]:
    """Return each group of x (G, c, N, *I) and g as one whose groups are its samples."""

    def turned(a: Array) -> Array:
        """Return (c, N, *I) as one sample in each of N groups."""
        return xp.permute_dims(a, (1, 0, *range(2, a.ndim)))[:, :, None, ...]

    return [(turned(x[i, ...]), turned(g[i, ...])) for i in range(x.shape[0])]
