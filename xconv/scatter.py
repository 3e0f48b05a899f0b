"""The input gradient with its products first: what `windows` does, transposed (col2im).

One product of the weights, as they lie in memory, with the output's gradient gives what every tap
adds to the cells that it read. That is shorter than a convolution of the gradient where kernels
reach far beyond it, where the input has few channels, and where outputs are so few that to
rearrange the weights would take longer than to use them. Exact on small integers.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from .geometry import ALL, Geometry, Ints
from .namespace import Array, Namespace, flattened, forwards, gapped, on_gpu, scratch, small_buffers
from .products import matmul

SHORT = 32  # numbers of a row, which take long to add
LONGER = 4  # times as many are to be in one run, if samples come last


def prepare(xp: Namespace, w: Array) -> Array:
    """Return w (G, k, c, *W) as the matrices (G, c*W, k)."""
    rows = forwards(xp, xp.reshape(w, (*w.shape[:2], math.prod(w.shape[2:]))))
    return xp.matrix_transpose(rows)


def reach(geom: Geometry, axis: int, start: int, stop: int) -> tuple[int, int]:
    """Return the outputs of one axis, as (first, one past the last), that read padded cells."""
    s, low, O = geom.stride[axis], geom.padding[axis][0], geom.O[axis]
    first = min(max(-((geom.dilation[axis] * (geom.W[axis] - 1) - low - start) // s), 0), O)
    return first, max(min((stop - 1 + low) // s + 1, O), first)


def outputs(geom: Geometry, start: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """Return the outputs, as (first, one past the last), that read padded cells in a box."""
    ends = [reach(geom, a, *pair) for a, pair in enumerate(zip(start, stop, strict=True))]
    return tuple(first for first, _ in ends), tuple(last for _, last in ends)


class Addition(NamedTuple):
    """What one tap adds to a box: its number, where to in the box, and from which outputs."""

    tap: int
    there: tuple[slice, ...]
    here: tuple[slice, ...]


def additions(geom: Geometry, first: Ints, last: Ints, start: Ints, stop: Ints) -> list[Addition]:
    """Return what each tap adds to the box of cells ``[start, stop)`` from these outputs."""
    boxes = list(zip(first, last, start, stop, strict=True))
    found = []
    for tap, place in enumerate(itertools.product(*map(range, geom.W))):
        meet = [
            geom.meeting(a, place[a], o, end - o, cell, until - cell)
            for a, (o, end, cell, until) in enumerate(boxes)
        ]
        if all(here.stop > here.start for _, here in meet):
            there, here = zip(*meet, strict=True)
            found.append(Addition(tap, (*ALL, *there), (*ALL, *here)))
    return found


def grad_input(
    xp: Namespace, g: Array, w: Array, shape: Ints, additions: Sequence[Addition]
) -> Array:
    """dT/dx: g (G, k, N, *P), w prepared -> a box of this shape, (G, c, N, *L), in `scratch`."""
    G, c, *box = shape
    last = not on_gpu(xp) and _samples_last(g.shape, additions)
    if last:
        g, box = xp.moveaxis(g, 2, -1), [*box[1:], box[0]]
    # (G, c*W, k) @ (G, k, N*P) -> (G, c*W, N*P)
    positions = flattened(xp, g, 2)
    room = gapped(xp, (*w.shape[:2], positions.shape[-1]), g.dtype, partial(scratch, xp))
    terms = matmul(xp, w, positions, room)
    terms = xp.reshape(terms, (G, c, w.shape[1] // c, *g.shape[2:]))
    dx = scratch(xp, (G, c, *box), g.dtype)
    dx[...] = 0
    row = math.prod(g.shape[-2:]) if last else g.shape[-1]
    with small_buffers() if row >= small_buffers.LEAST else contextlib.nullcontext():
        for tap, there, here in additions:
            if last:
                there, here = there[1:], here[1:]
            dx[there] += terms[:, :, tap][here]
    return xp.moveaxis(dx, -1, 2) if last else dx


def _samples_last(shape: Ints, additions: Sequence[Addition]) -> bool:
    """Whether to put the samples last in memory, so that short rows are added in long runs."""
    samples, row = shape[2], shape[-1]
    step = additions[0].there[-1].step if additions else 1
    return row < SHORT and samples * (row if step == 1 else 1) >= LONGER * row
