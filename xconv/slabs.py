"""Slabs of Dask arrays: what one task reads, put together from a chunk and its neighbours' faces.

A face is cut from its chunk along one axis only, so that all neighbours which that face touches
share it, and read edges and corners from it too: in three dimensions there are 6 faces to a chunk,
which has 26 neighbours. Each is a task that reads nothing but the chunk, so Dask does it where the
chunk is: to assemble faces on the way, axis by axis, would take tasks of several workers' chunks,
and whole chunks would be moved to them.
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

from .geometry import Ints
from .layout import Axes
from .namespace import Array, Namespace
from .padding import Index, Run

ALL = slice(None)
MOST = 0.75  # of a chunk: so much is read from the chunk itself, of which less is to be cut


class Part(NamedTuple):
    """Cells of one chunk, along one axis: which of them, and where they go.

    ``share`` is how much of the chunk they are, 1 where they are read from the chunk itself.
    """

    chunk: int
    here: slice
    there: slice
    share: float

    def ends(self) -> tuple[int, int]:
        """Return where its cells begin and end; the end is before the start in reverse."""
        return self.here.start, -1 if self.here.stop is None else self.here.stop


@dataclass(frozen=True)
class Extent:
    """A slab along one axis; what the parts leave free is zero."""

    size: int
    parts: tuple[Part, ...]

    @cached_property
    def filled(self) -> bool:
        """Whether the parts leave nothing free."""
        taken: int = sum(part.there.stop - part.there.start for part in self.parts)
        return taken == self.size

    @cached_property
    def coarse(self) -> bool:
        """Whether some chunk is read itself, as its neighbours will be for other results."""
        return any(part.share == 1 for part in self.parts)


def extent(size: int, runs: Iterable[Run], bounds: Sequence[int]) -> Extent:
    """Return the extent that the runs fill from chunks, from each of the bounds to the next."""
    parts = [part for run in runs if run.source is not None for part in _parts(run, bounds)]
    near = {part.chunk for part in parts if part.share >= MOST}
    return Extent(size, tuple(p._replace(share=1) if p.chunk in near else p for p in parts))


def whole(start: int, stop: int, bounds: Sequence[int]) -> Extent:
    """Return the extent of the entries ``[start, stop)`` of an axis."""
    return extent(stop - start, [Run(0, stop - start, start, 1)], bounds)


def _parts(run: Run, bounds: Sequence[int]) -> Iterator[Part]:
    """Yield the parts of chunks that a run takes."""
    assert run.source is not None
    if run.start == run.stop:
        return
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
            yield Part(chunk, here, there, (stop - low) / (end - begin))
        low, chunk = stop, chunk + 1


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
        """Return a slab of all channels and what it is assembled from; add its faces to `tasks`."""
        extents = arranged(self.axes, samples, spatial, self.channels)
        refs, moves = [], []
        coarse = [each.coarse for each in extents]
        for box in itertools.product(*(each.parts for each in extents)):
            ref, here = self._source(box, coarse, tasks)
            refs.append(ref)
            moves.append((tuple(part.there for part in box), here))
        shape, filled = tuple(e.size for e in extents), all(e.filled for e in extents)
        return Slab(shape, self.array.dtype, filled, tuple(moves)), refs

    def _source(
        self, box: tuple[Part, ...], coarse: list[bool], tasks: dict[Any, Task]
    ) -> tuple[TaskRef, Index]:
        """Return what a box of parts is read from, its chunk or a face of that, and where in it.

        The face is cut where it is thinnest, and along other axes only where they are not `coarse`.
        Its key says what it holds, so that all who read it share it, whatever their contraction.
        """
        chunk, here = [part.chunk for part in box], [part.here for part in box]
        thin = [axis for axis, part in enumerate(box) if part.share < 1]
        whole = TaskRef((self.array.name, *chunk))
        if not thin:
            return whole, tuple(here)
        thinnest = min(thin, key=lambda axis: box[axis].share)
        cut = [ALL] * len(box)
        key = [f"xconv-face-{self.array.name}", *chunk]
        for axis in thin:
            if axis == thinnest or not coarse[axis]:
                cut[axis], here[axis] = here[axis], ALL
                key += (axis, *box[axis].ends())
        name = tuple(key)
        if name not in tasks:
            tasks[name] = Shared(name, _cut, whole, tuple(cut))
        return TaskRef(name), tuple(here)


def arranged(axes: Axes, batch: Any, spatial: Sequence[Any], channels: Any) -> tuple[Any, ...]:
    """Return one entry for each axis of an array of this layout, without `batch` if it has none."""
    entries = {axes.last: channels, **dict(zip(axes.spatial, spatial, strict=True))}
    if axes.first >= 0:
        entries[axes.first] = batch
    return tuple(entries[axis] for axis in range(len(entries)))


def _cut(array: Array, here: Index) -> Array:
    """Return a part of a chunk, not a view, which would hold on to all of it."""
    return array[here].copy()
