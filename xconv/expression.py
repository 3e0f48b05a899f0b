"""The three contractions as one expression without writes: every library but NumPy and CuPy.

Nothing is written in place, so JAX and PyTorch can differentiate and compile it and Dask can
defer it. Shapes are those of `blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import choice, padding
from .cells import phase_weights
from .geometry import SPATIAL, Geometry, Phase, Window, along, phase_taps, resized
from .namespace import Array, Namespace, cast, check_bytes, dtype_name, zeros
from .setup import Pair, Setup


def forward(
    setup: Setup, pairs: Sequence[Pair], geom: Geometry, bias: Array | None = None
) -> Array:
    """dT/dg: return the sum of the convolutions of each x with its w, plus bias (G, k, 1, ..)."""
    terms = [_forward(setup, x, w, geom) for x, w in pairs]
    return padding.total([*terms, bias] if bias is not None else terms)


def _forward(setup: Setup, x: Array, w: Array, geom: Geometry) -> Array:
    block, shape = _padded_input(setup, x, geom)
    chosen = choice.expression(setup.task, geom)
    weights = chosen.prepare(setup.xp, _ready(setup, w, 1), shape)
    return chosen.forward(setup.xp, block, weights, shape)


def _padded_input(setup: Setup, x: Array, geom: Geometry) -> tuple[Array, Window]:
    """Return all of x, padded, and what slides over it."""
    zero = (0,) * geom.rank
    start, stop = geom.reads(zero, geom.O, zero, geom.W)
    block = padding.pad(setup.xp, _ready(setup, x, 0), geom, start, stop)
    return block, Window(geom.O, geom.W, geom.stride, geom.dilation)


def grad_weight(setup: Setup, x: Array, g: Array, geom: Geometry) -> Array:
    """dT/dw: return the gradient of the weights."""
    block, shape = _padded_input(setup, x, geom)
    return choice.expression(setup.task, geom).grad_weight(
        setup.xp, block, _ready(setup, g, 1), shape
    )


def grad_input(
    setup: Setup, pairs: Sequence[Pair], geom: Geometry, bias: Array | None = None
) -> Array:
    """dT/dx: return the sum of the input gradients of each g and its w, plus bias."""
    # cast first: PyTorch cannot flip every dtype
    padded = [_padded(setup, g, cast(setup.xp, w, setup.compute), geom, ()) for g, w in pairs]
    terms = [padding.unpad(setup.xp, dx, geom) for dx in padded]
    return padding.total([*terms, bias] if bias is not None else terms)


def _padded(setup: Setup, g: Array, w: Array, geom: Geometry, chosen: tuple[Phase, ...]) -> Array:
    """Return the gradient of all padded coordinates, the phases of one axis after the other.

    All phases of an axis are taken over the same whole periods of the stride, so that they
    interleave by a stack and a reshape. What no output reads is zero, whatever w holds.
    """
    if len(chosen) == geom.rank:
        weights = phase_weights(setup.xp, w, phase_taps(chosen))
        return _forward(setup, g, weights, geom.backwards(chosen))
    xp, a = setup.xp, len(chosen)
    start, stop = padding.extent(geom, a)
    first, last = geom.read_range(a)
    first = min(max(first, start), stop)
    last = max(min(last, stop), first)
    s, low = geom.stride[a], geom.padding[a][0]
    begin, end = (first + low) // s * s - low, -(-(last + low) // s) * s - low
    parts = {
        phase.offset: _padded(setup, g, w, geom, (*chosen, phase))
        for phase in geom.phases(a, begin, max(end, begin + s))
    }
    axis = SPATIAL + a
    whole = parts[0] if s == 1 else _interleaved(xp, parts, s, axis)
    whole = whole[along(axis, slice(first - begin, last - begin))]
    return padding.embedded(xp, whole, axis, first - start, stop - last)


def _interleaved(xp: Namespace, parts: dict[int, Array], s: int, axis: int) -> Array:
    """Put part r at every s-th place from r on along an axis, and zeros where there is none."""
    some = next(iter(parts.values()))
    whole_shape = resized(some.shape, axis, some.shape[axis] * s)
    check_bytes(whole_shape, dtype_name(some.dtype))
    pieces: list[Any] = []
    free = 0
    for offset in [*sorted(parts), s]:
        if offset > free:
            shape = (*some.shape[: axis + 1], offset - free, *some.shape[axis + 1 :])
            pieces.append(zeros(xp, shape, some))
        if offset < s:
            pieces.append(xp.expand_dims(parts[offset], axis=axis + 1))
        free = offset + 1
    whole = xp.concat(pieces, axis=axis + 1)
    return xp.reshape(whole, whole_shape)


def _ready(setup: Setup, a: Array, operand: int) -> Array:
    """Convert an operand to the dtype of the products, and conjugate it where asked."""
    a = cast(setup.xp, a, setup.compute)
    return setup.xp.conj(a) if setup.conjugate[operand] else a
