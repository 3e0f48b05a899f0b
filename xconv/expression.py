"""The three contractions as one expression without writes: every library but NumPy and CuPy.

Nothing is written in place, so JAX and PyTorch can differentiate and compile it and Dask can
defer it. Shapes are those of `blocks`.
"""

from __future__ import annotations

from typing import Any

from . import padding
from .blocks import Setup, phase_weights, window
from .geometry import Geometry, Phase, along
from .namespace import Array, Namespace, cast, device, dtype_of


def forward(setup: Setup, x: Array, w: Array, geom: Geometry, bias: Array | None = None) -> Array:
    """dT/dg: return the convolution of x with w, plus bias (G, 1, .., k)."""
    xp = setup.xp
    if not geom.N or not geom.C or not geom.K:
        y = nothing(setup, x, w, (geom.G, geom.N, *geom.O, geom.k))
    else:
        x, w = _ready(setup, x, 0), _ready(setup, w, 1)
        outputs, taps = [(0, size) for size in geom.O], [(0, size) for size in geom.W]
        zero = (0,) * geom.rank
        block = padding.pad(xp, x, geom, *geom.reads(zero, geom.O, zero, geom.W))
        y = setup.choose(geom).forward(xp, block, w, window(geom, outputs, taps))
    return y if bias is None else y + bias


def grad_weight(setup: Setup, x: Array, g: Array, geom: Geometry) -> Array:
    """dT/dw: return the gradient of the weights."""
    xp = setup.xp
    if not geom.N or not geom.C or not geom.K:
        return nothing(setup, x, g, (geom.G, *geom.W, geom.c, geom.k))
    x, g = _ready(setup, x, 0), _ready(setup, g, 1)
    outputs, taps = [(0, size) for size in geom.O], [(0, size) for size in geom.W]
    zero = (0,) * geom.rank
    block = padding.pad(xp, x, geom, *geom.reads(zero, geom.O, zero, geom.W))
    return setup.choose(geom).grad_weight(xp, block, g, window(geom, outputs, taps))


def grad_input(
    setup: Setup, g: Array, w: Array, geom: Geometry, bias: Array | None = None
) -> Array:
    """dT/dx: return the gradient of the input, plus bias (G, 1, .., c)."""
    if not geom.N or not geom.C or not geom.K or 0 in geom.I:
        dx = nothing(setup, g, w, (geom.G, geom.N, *geom.I, geom.c))
    else:
        dx = padding.unpad(setup.xp, _padded(setup, g, w, geom, ()), geom)
    return dx if bias is None else dx + bias


def _padded(setup: Setup, g: Array, w: Array, geom: Geometry, chosen: tuple[Phase, ...]) -> Array:
    """Return the gradient of all padded coordinates, the phases of one axis after the other.

    All phases of an axis are taken over the same whole periods of the stride, so that they
    interleave by a stack and a reshape.
    """
    if len(chosen) == geom.rank:
        return forward(setup, g, phase_weights(setup.xp, w, chosen), geom.backwards(chosen))
    xp, a = setup.xp, len(chosen)
    start, stop = padding.extent(geom, a)
    s, low = geom.stride[a], geom.padding[a][0]
    begin, end = (start + low) // s * s - low, -(-(stop + low) // s) * s - low
    phases = {phase.offset: phase for phase in geom.phases(a, begin, end)}
    parts = {
        offset: _padded(setup, g, w, geom, (*chosen, phase)) for offset, phase in phases.items()
    }
    axis = 2 + a
    whole = parts[0] if s == 1 else _interleaved(xp, parts, s, axis)
    return whole[along(axis, slice(start - begin, stop - begin))]


def _interleaved(xp: Namespace, parts: dict[int, Array], s: int, axis: int) -> Array:
    """Put part r at every s-th place from r on along an axis, and zeros where there is none."""
    some = next(iter(parts.values()))
    pieces: list[Any] = []
    free = 0
    for offset in [*sorted(parts), s]:
        if offset > free:
            shape = (*some.shape[: axis + 1], offset - free, *some.shape[axis + 1 :])
            pieces.append(xp.zeros(shape, dtype=some.dtype, device=device(some)))
        if offset < s:
            pieces.append(xp.expand_dims(parts[offset], axis=axis + 1))
        free = offset + 1
    whole = xp.concat(pieces, axis=axis + 1)
    shape = (*some.shape[:axis], some.shape[axis] * s, *some.shape[axis + 1 :])
    return xp.reshape(whole, shape)


def _ready(setup: Setup, a: Array, operand: int) -> Array:
    """Convert an operand to the dtype of the products, and conjugate it where asked."""
    a = cast(setup.xp, a, setup.compute)
    return setup.xp.conj(a) if setup.conjugate[operand] else a


def nothing(setup: Setup, a: Array, b: Array, shape: tuple[int, ...]) -> Array:
    """Return zeros: the result where it has no elements, or where both operands have none.

    The operands' sums are added for PyTorch, which differentiates through what they are part of.
    """
    xp, dtype = setup.xp, dtype_of(setup.xp, setup.compute)
    zeros = xp.zeros(shape, dtype=dtype, device=device(a))
    return zeros + (xp.sum(_ready(setup, a, 0)) + xp.sum(_ready(setup, b, 1)))
