"""Dask: the contractions chunk by chunk, lazily. Imported when a Dask array arrives.

Every chunk of a result is one task: it puts together the slab of input that it reads, from a
chunk of the input and faces of others (see `slabs`), and is a call of its own on it. A weight
gradient is a product for each chunk of the output's gradient, added up in their order.

Chunks are boxes of the same geometry as blocks within a call: see `Geometry.reads`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from dask._task_spec import Task, TaskRef
from dask.array import Array as DaskArray
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from . import choice, costs, padding, scatter, schedule, workers
from .dtypes import DTypes
from .errors import public
from .geometry import Geometry, Ints, Range
from .layout import Axes, without_batch
from .namespace import INTEGER, Array, accept, cast, chunk_namespace, current, dtype_of
from .padding import Run
from .slabs import Extent, Side, Slab, arranged, extent, whole

if TYPE_CHECKING:
    from .call import Call

FAN_IN = 8
CHECKED = 64  # different geometries of chunks that are planned at the call, to refuse them there
in_task = partial(public, name="xconv, in a Dask task")


class Reach(NamedTuple):
    """What a chunk of outputs reads along one axis, as a convolution of its own.

    ``runs`` fill the slab: their `source` is a cell of the input, None for zeros.
    """

    runs: tuple[Run, ...]
    I: int
    padding: Range
    dilation: int


@lru_cache(maxsize=256)
def reach(geom: Geometry, axis: int, start: int, stop: int) -> Reach:
    """Return what outputs ``[start, stop)`` of one axis read."""
    s, d, W = geom.stride[axis], geom.dilation[axis], geom.W[axis]
    I, (low, _) = geom.I[axis], geom.padding[axis]
    first, span = s * start - low, s * (stop - start - 1) + 1
    if d > span and W > 1:  # the taps read apart: their cells are put side by side
        runs = [
            run.moved(first + d * t - span * t)
            for t in range(W)
            for run in padding.pieces(I, geom.padding_mode, first + d * t, first + d * t + span)
        ]
        return Reach(tuple(runs), span * W, (0, 0), span)
    last = first + span + d * (W - 1)
    if geom.padding_mode == "zeros":  # what lies outside is left to the call
        begin = min(max(first, 0), I)
        end = max(min(last, I), begin)
        runs = [Run(0, end - begin, begin, 1)] if begin < end else []
        return Reach(tuple(runs), end - begin, (begin - first, last - end), d)
    runs = [run.moved(first) for run in padding.pieces(I, geom.padding_mode, first, last)]
    return Reach(tuple(runs), last - first, (0, 0), d)


class Copy(NamedTuple):
    """Padded coordinates of one axis that copy cells of a chunk, and which cells of it."""

    run: Run
    there: slice


class Piece(NamedTuple):
    """One axis of a call on slabs: the extent of each, and the geometry.

    In an input gradient, `copy` is what the result is the gradient of, where that is not the chunk.
    """

    extents: tuple[Extent, ...]
    I: int
    O: int
    padding: Range
    dilation: int
    copy: Copy | None = None


@dataclass(frozen=True)
class Term:
    """One call of a chunk's task, and its slabs.

    ``copies``, one for each spatial axis, say where its result adds to the chunk; where all are
    None, it is the chunk.
    """

    call: Call
    slabs: tuple[Slab, ...]
    copies: tuple[Copy | None, ...]


@dataclass(frozen=True)
class Work:
    """What all tasks of one contraction have in common."""

    contraction: str
    types: DTypes
    conjugate: Any
    converted: bool
    pairs: int = 1
    bias: bool = False
    per_sample: bool = False


class _Graph:
    """Tasks under one name, and the arrays that they read."""

    def __init__(self, call: Call, work: Work, arrays: Sequence[DaskArray], *more: Any) -> None:
        geom, layout = call.geom, call.layout
        token = tokenize(
            work, geom, layout, call.method, call.workspace, [a.name for a in arrays], more
        )
        self.call, self.work, self.arrays, self.token = call, work, arrays, token
        self.name = self.named()
        self.xp = chunk_namespace(arrays[0])
        self.tasks: dict[Any, Task] = {}
        self.calls: dict[Geometry, Call] = {}

    def named(self, *what: str) -> str:
        """Return a name; words before the token tell Dask which tasks take the same time."""
        return "-".join(["xconv", *self.work.contraction.split("_"), *what, self.token])

    def term(
        self,
        sides: Sequence[Side],
        samples: Sequence[Extent],
        pieces: Sequence[Piece],
        refs: list[TaskRef],
    ) -> Term:
        """Return the call on a slab of each side; append what they are assembled from to `refs`."""
        geom = self.call.geom._replace(
            N=samples[0].size,
            I=tuple(piece.I for piece in pieces),
            O=tuple(piece.O for piece in pieces),
            padding=tuple(piece.padding for piece in pieces),
            dilation=tuple(piece.dilation for piece in pieces),
            padding_mode="zeros",
        )
        slabs = []
        for number, (side, own) in enumerate(zip(sides, samples, strict=True)):
            slab, found = side.slab(own, [piece.extents[number] for piece in pieces], self.tasks)
            slabs.append(slab)
            refs += found
        if geom not in self.calls:
            self.calls[geom] = dataclasses.replace(self.call, xp=self.xp, geom=geom)
        call = self.calls[geom]
        copies = tuple(piece.copy for piece in pieces)
        return Term(call, tuple(slabs), copies)

    def check(self) -> None:
        """Refuse what the method or the workspace cannot do now, and not in a task."""
        work, method = self.work, self.call.method
        for geom, call in itertools.islice(self.calls.items(), CHECKED):
            types = _partial(work.types) if work.contraction == "grad_weight" else work.types
            task = costs.Task(self.xp, method, *types, call.limits, work.converted)
            if work.contraction != "grad_input":  # whose phases have strides of their own
                choice.check_applies(task, self.call.geom)
            if work.per_sample:
                geom = geom.per_sample()
            schedule.check(work.contraction, task, geom, work.pairs)

    def array(self, chunks: Any, dtype: str) -> DaskArray:
        """Return the result as a Dask array."""
        self.check()
        graph = HighLevelGraph.from_collections(self.name, self.tasks, self.arrays)
        meta = self.xp.empty((0,) * len(chunks), dtype=dtype_of(self.xp, dtype))
        return DaskArray(graph, self.name, chunks, meta=meta)


def data(
    call: Call,
    contraction: str,
    pairs: Sequence[tuple[DaskArray, DaskArray]],
    b: DaskArray | None,
    types: DTypes,
    conjugate: bool,
    like: DaskArray,
) -> DaskArray:
    """Return a forward contraction or an input gradient, summed over the pairs, plus b.

    Its chunks are those of `like`, if that is another array of its shape and in chunks, else those
    of the first array moved to where the result has what they have.
    """
    geom, forward = call.geom, contraction == "forward"
    axes, result = (call.layout.x, call.layout.y) if forward else (call.layout.y, call.layout.x)
    if not call.batched:
        axes, result = without_batch(axes), without_batch(result)
    sides = [Side(a, axes) for a, _ in pairs]
    given = [_in_one(a) for a in (*(w for _, w in pairs), b) if a is not None]
    follow, spatial = sides[0], None
    if like.shape == (call.y_shape if forward else call.x_shape):
        model = Side(like, result)
        if model.cut() and all(like is not side.array for side in sides):
            follow, spatial = model, [model.spatial(a) for a in range(geom.rank)]
    if spatial is None:
        spatial = [_moved(geom, a, follow.spatial(a), forward) for a in range(geom.rank)]
    samples = follow.samples()
    converted = types.converts(a.dtype for a in itertools.chain.from_iterable(pairs))
    work = Work(contraction, types, conjugate, converted, len(pairs), b is not None)
    graph = _Graph(call, work, [*(side.array for side in sides), *given], samples, spatial)
    pieces = _outputs if forward else _inputs
    along = [
        [
            (stop - start, pieces(geom, a, start, stop, [side.spatial(a) for side in sides]))
            for start, stop in itertools.pairwise(bounds)
        ]
        for a, bounds in enumerate(spatial)
    ]
    channels = geom.K if forward else geom.C
    batches = _batches(samples, sides)
    for (i, batch), *boxes in itertools.product(enumerate(batches), *map(enumerate, along)):
        key = (graph.name, *arranged(result, i, [j for j, _ in boxes], 0))
        lengths = [length for _, (length, _) in boxes]
        shape = arranged(result, batch[0].size, lengths, channels)
        refs = [TaskRef((a.name, *(0,) * a.ndim)) for a in given]
        terms = tuple(
            graph.term(sides, batch, one, refs)
            for one in itertools.product(*(found for _, (_, found) in boxes))
            if 0 not in shape
        )
        graph.tasks[key] = Task(key, _data, work, terms, shape, result, *refs)
    chunks = arranged(result, _sizes(samples), list(map(_sizes, spatial)), (channels,))
    return graph.array(chunks, types.result)


def grad_weight(
    call: Call,
    x: DaskArray,
    g: DaskArray,
    types: DTypes,
    conjugate: tuple[bool, bool],
    per_sample: bool,
) -> DaskArray:
    """Return the weight gradient: of each chunk of g, then their sum.

    Where g is in one piece, of each chunk of x, moved to where g has what is made of it.
    """
    geom, axes, other = call.geom, call.layout.x, call.layout.y
    if not call.batched:
        axes, other = without_batch(axes), without_batch(other)
    lead = per_sample and call.batched
    converted = types.converts((x.dtype, g.dtype))
    work = Work("grad_weight", types, conjugate, converted, per_sample=lead)
    graph = _Graph(call, work, [x, g])
    cells, outputs = Side(x, axes), Side(g, other)
    follow, spatial = outputs, [outputs.spatial(a) for a in range(geom.rank)]
    if not outputs.cut():
        follow = cells
        spatial = [_moved(geom, a, cells.spatial(a), True) for a in range(geom.rank)]
    along = [
        [
            _product(geom, a, start, stop, cells.spatial(a), outputs.spatial(a))
            for start, stop in itertools.pairwise(bounds)
            if start < stop
        ]
        for a, bounds in enumerate(spatial)
    ]
    found: list[list[TaskRef]] = []
    for i, batch in enumerate(_batches(follow.samples(), (cells, outputs))):
        found.append([])
        for j, pieces in enumerate(itertools.product(*along)) if batch[0].size else ():
            key = (graph.named("term"), i, j)
            refs: list[TaskRef] = []
            term = graph.term((cells, outputs), batch, pieces, refs)
            graph.tasks[key] = Task(key, _weights, work, term, *refs)
            found[-1].append(TaskRef(key))
    zeros = (0,) * (geom.rank + 2)
    if not lead:
        _add_up(graph, [ref for own in found for ref in own], (*zeros,))
        return graph.array(tuple((n,) for n in call.w_shape), types.result)
    for i, own in enumerate(found):
        if own:
            _add_up(graph, own, (i, *zeros))
        else:
            last, dtype = (graph.name, i, *zeros), dtype_of(graph.xp, types.result)
            graph.tasks[last] = Task(last, graph.xp.empty, (0, *call.w_shape), dtype=dtype)
    samples = _sizes(follow.samples())
    return graph.array((samples, *((n,) for n in call.w_shape)), types.result)


def _add_up(graph: _Graph, refs: list[TaskRef], key: Ints) -> None:
    """Add the sum of some arrays, `FAN_IN` at a time to the sum of those before.

    In their order, which Dask follows: it takes the branches of a balanced tree in any order, and
    holds up to five times as many chunks of the input meanwhile.
    """
    groups = [refs[i : i + FAN_IN] for i in range(0, len(refs), FAN_IN)]
    before: list[TaskRef] = []
    for i, group in enumerate(groups[:-1]):
        own = (graph.named("sum"), *key, i)
        graph.tasks[own] = Task(own, _sum, None, *before, *group)
        before = [TaskRef(own)]
    last = (graph.name, *key)
    graph.tasks[last] = Task(last, _sum, graph.work.types.result, *before, *groups[-1])


def _in_one(a: DaskArray) -> DaskArray:
    """Return a small array as one chunk."""
    return a.rechunk(a.shape) if a.npartitions > 1 else a


def _batches(samples: list[int], sides: Sequence[Side]) -> list[list[Extent]]:
    """Return, for each chunk of samples, its extent in each of the sides."""
    return [
        [whole(*batch, side.samples()) for side in sides] for batch in itertools.pairwise(samples)
    ]


def _outputs(
    geom: Geometry, axis: int, start: int, stop: int, bounds: Sequence[list[int]]
) -> list[Piece]:
    """Return what outputs ``[start, stop)`` of one axis are computed from."""
    if start == stop:
        return []
    read = reach(geom, axis, start, stop)
    extents = tuple(extent(read.I, read.runs, each) for each in bounds)
    return [Piece(extents, read.I, stop - start, read.padding, read.dilation)]


def _product(
    geom: Geometry, axis: int, start: int, stop: int, cells: list[int], outputs: list[int]
) -> Piece:
    """Return what outputs ``[start, stop)`` of one axis contribute to the weight gradient."""
    (piece,) = _outputs(geom, axis, start, stop, [cells])
    return piece._replace(extents=(*piece.extents, whole(start, stop, outputs)))


def _inputs(
    geom: Geometry, axis: int, start: int, stop: int, bounds: Sequence[list[int]]
) -> list[Piece]:
    """Return what the gradient of cells ``[start, stop)`` of one axis is a sum of."""
    s, low = geom.stride[axis], geom.padding[axis][0]
    found = []
    copies = padding.copies(geom.I[axis], geom.padding_mode, geom.padding[axis], start, stop)
    for run in (part for one in copies for part in padding.read_of(geom, axis, one, stop - start)):
        runs, d = _reaching(geom, axis, run.start, run.stop)
        first, last = min(own.start for own in runs), max(own.stop for own in runs)
        moved = [own.moved(first) for own in runs]
        I, O = run.stop - run.start, last - first
        extents = tuple(extent(O, moved, each) for each in bounds)
        before = low + run.start - s * first
        after = s * (O - 1) + d * (geom.W[axis] - 1) + 1 - I - before
        a, b = run.ends()
        copy = Copy(run, slice(a - start, b - start)) if run.start != run.source else None
        found.append(Piece(extents, I, O, (before, after), d, copy))
    return found


def _reaching(geom: Geometry, axis: int, start: int, stop: int) -> tuple[list[Run], int]:
    """Return the outputs that read padded cells ``[start, stop)`` of one axis, and a dilation.

    Where taps read from far apart, each is moved by some outputs more than the last: what they
    read then lies side by side, and the dilation is smaller by as many strides.
    """
    s, d, W, O = geom.stride[axis], geom.dilation[axis], geom.W[axis], geom.O[axis]
    closer = max((d - (stop - start)) // s, 0) if W > 1 else 0
    if not closer:
        first, last = scatter.reach(geom, axis, start, stop)
        return [Run(first, last, first, 1)] if first < last else [], d
    runs = []
    for t in range(W):
        cell = d * t - geom.padding[axis][0]  # that output 0 reads
        first, last = max(-((cell - start) // s), 0), min((stop - 1 - cell) // s + 1, O)
        if first < last:
            runs.append(Run(first + closer * t, last + closer * t, first, 1))
    return runs, d - s * closer


def _moved(geom: Geometry, axis: int, bounds: list[int], forward: bool) -> list[int]:
    """Return the bounds of the result's chunks along one axis: where the input's are."""
    s, low = geom.stride[axis], geom.padding[axis][0]
    centre = geom.dilation[axis] * (geom.W[axis] - 1) // 2 - low  # of what output 0 reads
    total = geom.O[axis] if forward else geom.I[axis]
    moved = (-((centre - q) // s) if forward else s * q + centre for q in bounds[1:-1])
    return sorted({0, total, *(min(max(bound, 0), total) for bound in moved)})


def _sizes(bounds: list[int]) -> Ints:
    """Return the sizes of the chunks between these bounds."""
    return tuple(b - a for a, b in itertools.pairwise(bounds))


def _partial(types: DTypes) -> DTypes:
    """Return the dtypes of a result that is yet to be added to others.

    Integers that are summed as floats stay integers, so that their method stays exact.
    """
    whole = types.result in INTEGER and types.compute not in INTEGER
    return DTypes(types.compute, "int64" if whole else types.compute)


@in_task
def _data(work: Work, terms: Sequence[Term], shape: Ints, axes: Axes, *arrays: Array) -> Array:
    """Compute a chunk of a forward contraction or of an input gradient."""
    given = iter(arrays)
    weights = list(itertools.islice(given, work.pairs))
    bias = next(given) if work.bias else None
    xp, _ = accept(w=weights[0])

    def value(term: Term, b: Array | None, types: DTypes) -> Array:
        slabs = [slab.assembled(xp, given) for slab in term.slabs]
        run = getattr(term.call, work.contraction)
        pairs = list(zip(slabs, weights, strict=True))
        return run(pairs, b, types, slabs[0], conjugate=work.conjugate)

    with workers.alone(), current(weights[0]):
        if len(terms) == 1 and not any(terms[0].copies):
            return value(terms[0], bias, work.types)
        wide = _partial(work.types)
        if terms and not any(terms[0].copies):
            total, terms = value(terms[0], None, wide), terms[1:]
        else:
            total = xp.zeros(shape, dtype=dtype_of(xp, wide.result))
        for term in terms:
            part, there = value(term, None, wide), [slice(None)] * len(shape)
            for axis, copy in zip(axes.spatial, term.copies, strict=True):
                if copy is not None:
                    part = padding.adjoint(xp, part, axis, copy.run.moved(copy.run.start))
                    there[axis] = copy.there
            total[tuple(there)] += part
        if bias is not None:
            column = arranged(axes, 1, [1] * len(axes.spatial), bias.shape[0])
            total += xp.reshape(cast(xp, bias, wide.result), column)
        return cast(xp, total, work.types.result)


@in_task
def _weights(work: Work, term: Term, *arrays: Array) -> Array:
    """Compute what one chunk of the output's gradient contributes to that of the weights."""
    given = iter(arrays)
    xp, _ = accept(a=arrays[0])
    types = _partial(work.types)
    with workers.alone(), current(arrays[0]):
        x, g = (slab.assembled(xp, given) for slab in term.slabs)
        return term.call.grad_weight(x, g, types, work.conjugate, work.per_sample)


def _sum(result: str | None, *arrays: Array) -> Array:
    """Add arrays up in order, without writing to them; round to the dtype `result` in the end."""
    xp, _ = accept(a=arrays[0])
    with current(arrays[0]):
        total = arrays[0]
        for i, array in enumerate(arrays[1:]):
            if i:
                total += array
            else:
                total = total + array
        return total if result is None else cast(xp, total, result)
