"""Padding modes: where a padded coordinate gets its value, and the adjoint of that.

Along one axis both are a short list of runs, computed in plain integers. `pieces` says what a
range of padded coordinates holds; `strips` says, for each range of the input, which runs of
padded coordinates hold copies of it, so that their gradients add up there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from .geometry import ALL, SPATIAL, Geometry, Ints, along, resized
from .namespace import (
    Array,
    Namespace,
    check_bytes,
    dtype_name,
    dtype_of,
    put,
    scratch,
    zeros,
)

Index = tuple[Any, ...]


class Run(NamedTuple):
    """Padded coordinates ``[start, stop)`` and where their values come from.

    ``source`` is the input cell of the first one, and the next one's is ``step`` further: 1, -1
    (mirrored) or 0 (one cell repeated). A ``source`` of None is zero.
    """

    start: int
    stop: int
    source: int | None
    step: int

    def moved(self, begin: int) -> Run:
        """Return the same run, its coordinates counted from `begin`."""
        return self._replace(start=self.start - begin, stop=self.stop - begin)

    def ends(self) -> tuple[int, int]:
        """Return the input cells that it holds, as (first, one past the last)."""
        assert self.source is not None
        other = self.source + self.step * (self.stop - self.start - 1)
        return min(self.source, other), max(self.source, other) + 1

    def cells(self) -> slice:
        """Return the input cells in the order of the coordinates; of a repeated one, just that."""
        assert self.source is not None
        if self.step == 0:
            return slice(self.source, self.source + 1)
        end = self.source + self.step * (self.stop - self.start)
        return slice(self.source, None if end < 0 else end, self.step)


@lru_cache(maxsize=256)
def pieces(size: int, mode: str, start: int, stop: int) -> tuple[Run, ...]:
    """Return what the padded coordinates ``[start, stop)`` of an axis of `size` cells hold."""
    low, high = min(stop, 0), max(start, size)
    runs = []
    if start < low:
        runs.append(_outside(size, mode, start, low))
    if max(start, 0) < min(stop, size):
        runs.append(Run(max(start, 0), min(stop, size), max(start, 0), 1))
    if high < stop:
        runs.append(_outside(size, mode, high, stop))
    return tuple(runs)


def _outside(size: int, mode: str, start: int, stop: int) -> Run:
    """Return the run of coordinates that lie all below the input or all above it."""
    below = start < 0
    source: int | None
    if mode == "reflect":
        source, step = (-start if below else 2 * (size - 1) - start), -1
    elif mode == "symmetric":
        source, step = (-1 - start if below else 2 * size - 1 - start), -1
    elif mode == "circular":
        source, step = (start + size if below else start - size), 1
    elif mode == "replicate":
        source, step = (0 if below else size - 1), 0
    else:
        source, step = None, 1
    return Run(start, stop, source, step)


class Strip(NamedTuple):
    """Input cells ``[start, stop)`` and the runs of padded coordinates that copy them all."""

    start: int
    stop: int
    runs: tuple[Run, ...]


@lru_cache(maxsize=256)
def strips(size: int, mode: str, low: int, high: int) -> tuple[Strip, ...]:
    """Cut an axis so that each part is copied as a whole, or not at all, by each run."""
    runs = [Run(0, size, 0, 1)] if size else []
    runs += _outer(size, mode, low, high)
    cuts = {0, size}.union(*(run.ends() for run in runs))
    return tuple(
        Strip(a, b, tuple(part for run in runs for part in _copies(run, a, b)))
        for a, b in itertools.pairwise(sorted(cuts))
    )


class Tile(NamedTuple):
    """A box of input cells, ``[start, stop)``: a strip of each axis. ``copied`` if any strip is."""

    strips: tuple[Strip, ...]
    start: Ints
    stop: Ints
    copied: bool


@lru_cache(maxsize=256)
def tiles(sizes: Ints, mode: str, pairs: tuple[tuple[int, int], ...]) -> tuple[Tile, ...]:
    """Cut the input into boxes of strips, those that are copied first."""
    axes = [strips(size, mode, *pair) for size, pair in zip(sizes, pairs, strict=True)]
    found = (
        Tile(
            tile,
            tuple(strip.start for strip in tile),
            tuple(strip.stop for strip in tile),
            any(len(strip.runs) > 1 for strip in tile),
        )
        for tile in itertools.product(*axes)
    )
    return tuple(sorted(found, key=lambda tile: not tile.copied))


def copies(size: int, mode: str, pair: tuple[int, int], a: int, b: int) -> list[Run]:
    """Return the runs of padded coordinates that hold the input cells ``[a, b)``, or some."""
    runs = [Run(a, b, a, 1)] if a < b else []
    for outside in _outer(size, mode, *pair):
        first, last = outside.ends()
        runs += _copies(outside, max(a, first), min(b, last))
    return runs


def split(geom: Geometry, axis: int, strip: Strip, widest: int) -> list[Strip]:
    """Cut a strip so that no part, and no run of copies of one cell, is wider than `widest`.

    Copies that no output reads are left out: there may be a great many.
    """
    return [
        Strip(
            a,
            b,
            tuple(
                part
                for run in strip.runs
                for copied in _copies(run, a, b)
                for part in read_of(geom, axis, copied, widest)
            ),
        )
        for a in range(strip.start, strip.stop, widest)
        for b in (min(a + widest, strip.stop),)
    ]


def number(geom: Geometry, axis: int, strip: Strip, widest: int) -> int:
    """Return at most how many runs `split` makes of a strip."""
    s, d, O, W = geom.stride[axis], geom.dilation[axis], geom.O[axis], geom.W[axis]
    read = min(O * W, (s * (O - 1) + d * (W - 1)) // math.gcd(s, d) + 1)
    found = 0
    for run in strip.runs:
        if run.step:
            found += -(-(strip.stop - strip.start) // widest)
        else:
            found += min(-(-(run.stop - run.start) // widest), read)
    return found


def read_of(geom: Geometry, axis: int, run: Run, widest: int) -> Iterator[Run]:
    """Yield the parts of a run that are read, each of at most `widest` copies of one cell."""
    start = geom.next_read(axis, run.start)
    while start is not None and start < run.stop:
        if run.step:
            yield run
            return
        stop = min(start + widest, run.stop)
        yield run._replace(start=start, stop=stop)
        start = geom.next_read(axis, stop)


def _outer(size: int, mode: str, low: int, high: int) -> list[Run]:
    """Return the runs before and after the input that hold copies of it."""
    if mode == "zeros":
        return []
    below = [_outside(size, mode, -low, 0)] if low > 0 else []
    return below + ([_outside(size, mode, size, size + high)] if high > 0 else [])


def _copies(run: Run, a: int, b: int) -> Iterator[Run]:
    """Yield the parts of a run that are copies of the input cells ``[a, b)``."""
    first, last = run.ends()
    if not first <= a < b <= last:
        return
    if run.step == 0:
        yield run
    else:
        start = run.start + (a - first if run.step == 1 else last - b)
        yield Run(start, start + b - a, a if run.step == 1 else b - 1, run.step)


class Reading(NamedTuple):
    """How a box of padded coordinates is read from x (G, c, N, *I).

    ``inside`` is the box itself where the padding has no part in it, else None. Otherwise a block
    of this shape, of zeros where `zeros` says so, gets copies: (where to, where from).
    """

    inside: Index | None
    shape: Ints
    zeros: bool
    copies: tuple[tuple[Index, Index], ...]


def reading(geom: Geometry, box: tuple[slice, ...], start: Ints, stop: Ints) -> Reading:
    """Return how to read padded coordinates, of a box of groups, channels and samples."""
    axes = [
        pieces(size, geom.padding_mode, a, b)
        for size, a, b in zip(geom.I, start, stop, strict=True)
    ]
    shape = tuple(s.stop - s.start for s in box)
    shape += tuple(b - a for a, b in zip(start, stop, strict=True))
    zeros = any(run.source is None for runs in axes for run in runs)
    if not zeros and all(len(runs) == 1 and runs[0].step == 1 for runs in axes):
        return Reading((*box, *(runs[0].cells() for runs in axes)), shape, False, ())
    copied = [[run for run in runs if run.source is not None] for runs in axes]
    copies = []
    for runs in itertools.product(*copied):
        there = (slice(run.start - a, run.stop - a) for run, a in zip(runs, start, strict=True))
        copies.append(((*ALL, *there), (*box, *(run.cells() for run in runs))))
    return Reading(None, shape, zeros, tuple(copies))


def read(xp: Namespace, x: Array, how: Reading, name: str, last: bool = False) -> Array:
    """Return a box of padded coordinates in the dtype `name`, a view where x holds it so.

    In memory the channels of a copy come `last` where that is asked for.
    """
    dtype = dtype_of(xp, name)
    if how.inside is not None and x.dtype == dtype:
        return x[how.inside]
    if last:
        G, c, *others = how.shape
        block = scratch(xp, (G, *others, c), dtype)
        block = xp.permute_dims(block, (0, block.ndim - 1, *range(1, block.ndim - 1)))
    else:
        block = scratch(xp, how.shape, dtype)
    fill(x, how, block)
    return block


class Source(NamedTuple):
    """Padded images that an algorithm reads by itself, some groups and samples at a time.

    They are copied, or, where it is not None, by ``conj(cells, block)``.
    """

    x: Array
    how: Reading
    dtype: Any
    conj: Callable[..., Array] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of it, (G, c, N, *L)."""
        return self.how.shape

    def onto(self, block: Array, groups: slice, samples: slice) -> Callable[[int], None]:
        """Return what writes the cells of a part of these groups to the block.

        It takes the number of the part, of as many groups as the block has. The block's zeros are
        written before, once: each part covers the same cells.
        """
        how, size = self.how, len(block)
        sources = ((..., how.inside),) if how.inside is not None else how.copies
        copies = []
        for there, here in sources:
            cells = self.x[here][groups, :, samples]
            copies.append((block[there], cells.reshape((-1, size, *cells.shape[1:]))))

        def fill(part: int) -> None:
            for there, cells in copies:
                if self.conj is None:
                    there[...] = cells[part]
                else:
                    self.conj(cells[part], there)

        return fill


def fill(x: Array, how: Reading, block: Array) -> None:
    """Write a box of padded coordinates to an array of its shape."""
    if how.zeros:  # one long call: under everything, not at each side
        block[...] = 0
    if how.inside is not None:
        put(block, x[how.inside])
    for there, here in how.copies:
        put(block[there], x[here])


def pad(xp: Namespace, x: Array, geom: Geometry, start: Ints, stop: Ints) -> Array:
    """Return a box of padded coordinates as one expression; see `read`."""
    sizes = (b - a for a, b in zip(start, stop, strict=True))
    check_bytes((*x.shape[:SPATIAL], *sizes), dtype_name(x.dtype))
    for a in range(geom.rank):
        axis = SPATIAL + a
        parts = []
        runs = pieces(geom.I[a], geom.padding_mode, start[a], stop[a])
        for run in runs:
            shape = resized(x.shape, axis, run.stop - run.start)
            if run.source is None:
                parts.append(zeros(xp, shape, x))
            else:
                parts.append(xp.broadcast_to(_oriented(xp, x, axis, run), shape))
        if all(run.source is None for run in runs):
            parts.append(x[along(axis, slice(0))])  # PyTorch is to know that x was an operand
        x = _joined(xp, parts, axis)
    return x


def unpad(xp: Namespace, dx: Array, geom: Geometry) -> Array:
    """Return the adjoint of padding as one expression.

    Takes the gradient of all padded coordinates, ``[-max(low, 0), I + max(high, 0))`` per
    axis, and returns that of the input. With zeros padding the padded ones are just the input.
    """
    for a in range(geom.rank):
        axis = SPATIAL + a
        begin, _ = extent(geom, a)
        parts = [
            total([adjoint(xp, dx, axis, run.moved(begin)) for run in strip.runs])
            for strip in strips(geom.I[a], geom.padding_mode, *geom.padding[a])
        ]
        if parts:
            dx = _joined(xp, parts, axis)
    return dx


def extent(geom: Geometry, axis: int) -> tuple[int, int]:
    """Return the padded coordinates of an axis whose gradient counts, as ``(start, stop)``."""
    if geom.padding_mode == "zeros":
        return 0, geom.I[axis]
    low, high = geom.padding[axis]
    return -max(low, 0), geom.I[axis] + max(high, 0)


def adjoint(xp: Namespace, dx: Array, axis: int, run: Run) -> Array:
    """Return what a run of padded coordinates, counted from 0 here, adds to its cells."""
    part = dx[along(axis, slice(run.start, run.stop))]
    if run.step == 0:
        return xp.sum(part, axis=axis, keepdims=True, dtype=part.dtype)
    return xp.flip(part, axis=axis) if run.step == -1 else part


def embedded(xp: Namespace, part: Array, axis: int, before: int, after: int) -> Array:
    """Return `part` with zeros before and after it on one axis."""
    size = before + part.shape[axis] + after
    check_bytes(resized(part.shape, axis, size), dtype_name(part.dtype))
    sides = [
        [zeros(xp, resized(part.shape, axis, n), part)] if n > 0 else [] for n in (before, after)
    ]
    return _joined(xp, [*sides[0], part, *sides[1]], axis)


def total(terms: list[Array]) -> Array:
    """Add arrays up, in order."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def _joined(xp: Namespace, parts: list[Array], axis: int) -> Array:
    """Join arrays along an axis; one alone stays as it is."""
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=axis)


def _oriented(xp: Namespace, x: Array, axis: int, run: Run) -> Array:
    """Slice a run's cells; mirrored ones by `flip`, as PyTorch has no negative steps."""
    if run.step == -1:
        return xp.flip(x[along(axis, slice(*run.ends()))], axis=axis)
    return x[along(axis, run.cells())]
