"""Slabs of Dask arrays: what one task reads, put together from a chunk and its halos.

Halos are exchanged axis by axis. Across the last axis, a halo is cut from the next chunk; across
an axis before it, from the next chunk and the halos which that has along all later axes, so that
edges and corners come with it. A chunk of three axes then needs 6 halos, where it has 26
neighbours. Each is a task, done where the chunk is that it is mostly cut from, and shared by all
that read it; so little more than halos moves between workers.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from dask._task_spec import Task, TaskRef
from dask.array import Array as DaskArray
from dask.base import tokenize

from .geometry import Ints
from .layout import Axes
from .namespace import Array, Namespace, accept, current
from .padding import Index, Run

ALL = slice(None)


class Part(NamedTuple):
    """Cells of one chunk, along one axis: which of them, and where they go.

    ``most`` says that they are more than half of the chunk.
    """

    chunk: int
    here: slice
    there: slice
    most: bool


@dataclass(frozen=True)
class Span:
    """A piece of a slab along one axis: the cells of one chunk, its core, and those around them.

    Where its parts go is counted from its start. Without a core all of them are halos.
    """

    start: int
    size: int
    core: int | None
    parts: tuple[Part, ...]

    @cached_property
    def filled(self) -> bool:
        """Whether the parts leave nothing free, which is zero then."""
        taken: int = sum(part.there.stop - part.there.start for part in self.parts)
        return taken == self.size

    @cached_property
    def token(self) -> str:
        """A name for what it holds."""
        return str(tokenize(self.size, self.parts))


@dataclass(frozen=True)
class Extent:
    """A slab along one axis."""

    size: int
    spans: tuple[Span, ...]

    @cached_property
    def filled(self) -> bool:
        """Whether the spans leave nothing free, which is zero then."""
        return self.size == sum(span.size for span in self.spans if span.filled)


def extent(size: int, runs: Iterable[Run], bounds: Sequence[int]) -> Extent:
    """Return the extent that the runs fill from chunks, from each of the bounds to the next.

    A new span begins with each core, so that what is assembled on the way is mostly of one chunk.
    """
    found: list[tuple[int | None, list[Part]]] = []
    parts = [part for run in runs if run.source is not None for part in _parts(run, bounds)]
    for part in sorted(parts, key=lambda part: part.there.start):
        core, own = found[-1] if found else (None, [])
        if not found or (part.most and core not in (None, part.chunk)):
            core, own = None, []
            found.append((core, own))
        own.append(part)
        if part.most:
            found[-1] = part.chunk, own
    spans = []
    for core, own in found:
        start, stop = own[0].there.start, own[-1].there.stop
        moved = (p._replace(there=slice(p.there.start - start, p.there.stop - start)) for p in own)
        spans.append(Span(start, stop - start, core, tuple(moved)))
    return Extent(size, tuple(spans))


def whole(start: int, stop: int, bounds: Sequence[int]) -> Extent:
    """Return the extent of the entries ``[start, stop)`` of an axis."""
    return extent(stop - start, [Run(0, stop - start, start, 1)], bounds)


def _parts(run: Run, bounds: Sequence[int]) -> Iterator[Part]:
    """Yield the parts of chunks that a run takes."""
    assert run.source is not None
    low, high = run.ends()
    chunk = bisect_right(bounds, low) - 1
    while low < high:
        begin, end = bounds[chunk], bounds[chunk + 1]
        stop = min(high, end)
        if low < stop:
            here, there = slice(low - begin, stop - begin), slice(run.start, run.stop)
            if run.step == 1:
                first = run.start + low - run.source
                there = slice(first, first + stop - low)
            elif run.step == -1:
                first = run.start + run.source - stop + 1
                there = slice(first, first + stop - low)
                after = low - begin - 1
                here = slice(stop - begin - 1, after if after >= 0 else None, -1)
            yield Part(chunk, here, there, 2 * (stop - low) > end - begin)
        low, chunk = stop, chunk + 1


Move = tuple[slice, slice]  # along one axis, where to and where from


@dataclass(frozen=True)
class Slab:
    """An array put together from parts of others: where each goes, and where it comes from."""

    shape: Ints
    dtype: Any
    filled: bool  # whether they leave nothing free, which is zero then
    moves: tuple[tuple[Index, Index], ...]

    def assembled(self, xp: Namespace, given: Iterator[Array]) -> Array:
        """Return the slab; a single part that is all of it is a view."""
        parts = [next(given)[here] for _, here in self.moves]
        if len(parts) == 1 and parts[0].shape == self.shape:
            return parts[0]
        slab = (xp.empty if self.filled else xp.zeros)(self.shape, dtype=self.dtype)
        for (there, _), part in zip(self.moves, parts, strict=True):
            slab[there] = part
        return slab


class Shared(Task):  # type: ignore[misc]
    """A task that other graphs may have too: Dask must not fuse it in one of them alone."""

    __slots__ = ()

    @property
    def block_fusion(self) -> bool:
        """Whether Dask leaves it as it is."""
        return True


class Side:
    """An array of samples, the layout of its axes, and the bounds of its chunks along each."""

    def __init__(self, array: DaskArray, axes: Axes) -> None:
        self.array, self.axes = array, axes
        self.bounds = [list(itertools.accumulate(sizes, initial=0)) for sizes in array.chunks]
        self.channels = whole(0, array.shape[axes.last], self.bounds[axes.last])

    def spatial(self, axis: int) -> list[int]:
        """Return the bounds of the chunks along a spatial axis."""
        return self.bounds[self.axes.spatial[axis]]

    def samples(self) -> list[int]:
        """Return the bounds of the chunks of samples; without a batch there is one sample."""
        return self.bounds[self.axes.first] if self.axes.first >= 0 else [0, 1]

    def cut(self) -> bool:
        """Whether it is in chunks along samples or space."""
        spatial = (self.spatial(axis) for axis in range(len(self.axes.spatial)))
        return any(len(bounds) > 2 for bounds in (self.samples(), *spatial))

    def slab(
        self, samples: Extent, spatial: Sequence[Extent], tasks: dict[Any, Task]
    ) -> tuple[Slab, list[TaskRef]]:
        """Return a slab of all channels and what it is assembled from; add its halos to `tasks`."""
        extents = arranged(self.axes, samples, spatial, self.channels)
        refs, moves = [], []
        for box in itertools.product(*(each.spans for each in extents)):
            for ref, found in self._arrays((), box, tasks):
                refs.append(ref)
                to = zip(box, found, strict=True)
                there = tuple(slice(s.start + t.start, s.start + t.stop) for s, (t, _) in to)
                moves.append((there, tuple(here for _, here in found)))
        shape, filled = tuple(e.size for e in extents), all(e.filled for e in extents)
        return Slab(shape, self.array.dtype, filled, tuple(moves)), refs

    def _arrays(
        self, chunk: Ints, box: Sequence[Span], tasks: dict[Any, Task]
    ) -> Iterator[tuple[TaskRef, tuple[Move, ...]]]:
        """Yield the arrays that fill a box of spans: along the last axes, at a chunk of others."""
        if not box:
            yield TaskRef((self.array.name, *chunk)), ()
            return
        span, *later = box
        for part in span.parts:
            own = (*chunk, part.chunk)
            if part.chunk == span.core:
                for ref, moves in self._arrays(own, later, tasks):
                    yield ref, ((part.there, part.here), *moves)
            else:
                whole = ((slice(0, s.size), ALL) for s in later)
                yield self._halo(own, part, later, tasks), ((part.there, ALL), *whole)

    def _halo(
        self, chunk: Ints, part: Part, later: Sequence[Span], tasks: dict[Any, Task]
    ) -> TaskRef:
        """Return a part of a chunk with its halos along later axes; all of it along others.

        Its key says what it holds, so that all who read it share it, whatever their contraction.
        """
        sizes = [self.array.chunks[axis][number] for axis, number in enumerate(chunk)]
        own = range(sizes.pop())[part.here]
        key = (f"xconv-halo-{self.array.name}", *chunk, own.start, own.stop)
        key += tuple(span.token for span in later)
        if key not in tasks:
            refs, moves = [], []
            before = (ALL,) * len(sizes)
            for ref, found in self._arrays(chunk, later, tasks):
                refs.append(ref)
                there, here = tuple(to for to, _ in found), tuple(of for _, of in found)
                moves.append(((*before, ALL, *there), (*before, part.here, *here)))
            shape = (*sizes, len(own), *(span.size for span in later))
            filled = all(span.filled for span in later)
            slab = Slab(shape, self.array.dtype, filled, tuple(moves))
            tasks[key] = Shared(key, _assembled, slab, *refs)
        return TaskRef(key)


def arranged(axes: Axes, batch: Any, spatial: Sequence[Any], channels: Any) -> tuple[Any, ...]:
    """Return one entry for each axis of an array of this layout, without `batch` if it has none."""
    entries = {axes.last: channels, **dict(zip(axes.spatial, spatial, strict=True))}
    if axes.first >= 0:
        entries[axes.first] = batch
    return tuple(entries[axis] for axis in range(len(entries)))


def _assembled(slab: Slab, *arrays: Array) -> Array:
    """Return a halo; no view, which would hold on to all of its chunk."""
    xp, _ = accept(a=arrays[0])
    with current(arrays[0]):
        halo = slab.assembled(xp, iter(arrays))
        return halo.copy() if len(arrays) == 1 else halo
