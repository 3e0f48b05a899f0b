"""The blocks of a contraction in place, one by one, with every index worked out.

Blocks are cut by `plan` and numbered from the geometry alone, so a schedule holds for all calls of
the same shapes and options: that of a call of few blocks is kept, and costs nothing the next time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

from . import choice, plan, pointwise, scatter, winograd
from .costs import Task
from .geometry import ALL, Geometry, Ints, Range, Window, parts, phase_taps
from .methods import Algorithm
from .namespace import on_gpu
from .padding import Index, Reading, reading
from .plan import Boxes, Plan, boxes
from .scatter import Addition

T = TypeVar("T")

FEW = 32  # products of a schedule that is kept


class Part(NamedTuple):
    """One product of a block: what is read of x, the other operand's box, what slides over x."""

    reading: Reading
    other: Index
    window: Window


class Block(NamedTuple):
    """A box of the result, and the products that add up to it.

    ``prepared`` is its place in the weights that are prepared for it and others, `flat` the box
    (groups, samples, output channels, positions) where positions are one axis.
    """

    there: Index
    prepared: Index
    flat: Index | None
    parts: Callable[[], Iterable[Part]]


class Pass(NamedTuple):
    """Blocks whose weights are prepared at once; `window` is that of the largest block."""

    weights: Index
    window: Window
    blocks: Iterable[Block]


class Forward(NamedTuple):
    """The schedule of a forward contraction, of `geom` once cells that nothing reads are left out.

    ``cells`` are those of x that are read at all, None if that is all of it; ``terms`` are the
    products of one block. ``flat`` says whether `pointwise` takes its operands and result where
    they lie, if they lie so; ``checked`` whether a NaN may reach results that do not read it.
    """

    geom: Geometry
    algorithm: Algorithm
    cut: Plan
    cells: Index | None
    terms: int
    flat: bool
    checked: bool
    passes: Callable[[], Iterable[Pass]]


class Term(NamedTuple):
    """One product of a weight gradient, and whether it is the first or the last of its box."""

    there: Index
    part: Part
    first: bool
    last: bool


class GradWeight(NamedTuple):
    """The schedule of a weight gradient; ``cells`` and ``checked`` as of `Forward`."""

    algorithm: Algorithm
    cut: Plan
    cells: Index | None
    checked: bool
    terms: Callable[[], Iterable[Term]]


@lru_cache(maxsize=256)
def forward(task: Task, geom: Geometry, pairs: int = 1, mirrored: bool = False) -> Forward:
    """Return the blocks of a forward contraction."""
    geom, cells = geom.skipping()
    _, chosen, cut = choice.candidates(task, geom, pairs, mirrored)[0]
    sums = _axes((geom.c, *geom.W), (cut.c, *cut.w))
    positions = _axes((geom.N, *geom.O), (cut.n, *cut.o))
    terms = cut.terms(geom)
    flat = chosen is pointwise and not on_gpu(task.xp) and pointwise.flattens(geom)
    flat = flat and cut.o[1:] == geom.O[1:]  # so that a block's positions are one range

    def block(held: Sequence[Range], box: tuple[Range, ...]) -> Block:
        own, k, samples, *outputs = box
        prepared = tuple(slice(a - f, b - f) for (a, b), (f, _) in zip(box, held, strict=False))

        def products(keep: bool) -> Iterator[Part]:
            for some in boxes(sums):
                yield _part(geom, own, samples, outputs, some, _slices((own, k, *some)))

        one_axis = _flat(geom, own, k, samples, outputs[0]) if flat else None
        return Block(_slices(box), prepared, one_axis, _kept(products, terms))

    def passes(keep: bool) -> Iterator[Pass]:
        first = next(boxes(sums))
        for held in boxes(_axes((geom.G, geom.k), (cut.shared_g, cut.shared_k))):
            own = [range(*r, n) for r, n in zip(held, (cut.g, cut.k), strict=True)]
            blocks = map(partial(block, held), boxes([*own, *positions]))
            largest = _window(geom, [(0, n) for n in cut.o], first[1:])
            yield Pass(_slices((*held, *first)), largest, tuple(blocks) if keep else blocks)

    kept = _kept(passes, cut.products(geom))
    return Forward(geom, chosen, cut, cells, terms, flat, choice.spreads(task, chosen), kept)


@lru_cache(maxsize=256)
def grad_weight(task: Task, geom: Geometry) -> GradWeight:
    """Return the products of a weight gradient, in the order in which they are summed."""
    geom, cells = geom.skipping()
    _, chosen, cut = choice.candidates(task, geom, weights=True)[0]
    rank, end = geom.rank, (geom.N, *geom.O)
    whole = (geom.G, geom.k, geom.c, *geom.W, geom.N, *geom.O)
    sizes = (cut.g, cut.shared_k, cut.c, *cut.w, cut.n, *cut.o)

    def terms(keep: bool) -> Iterator[Term]:
        for place in boxes(_axes(whole, sizes)):
            held, box = place[: 3 + rank], place[3 + rank :]
            own, k, *some = held
            samples, *outputs = box
            part = _part(geom, own, samples, outputs, some, _slices((own, k, *box)))
            first, last = not any(a for a, _ in box), tuple(b for _, b in box) == end
            yield Term(_slices(held), part, first, last)

    checked = choice.spreads(task, chosen)
    return GradWeight(chosen, cut, cells, checked, _kept(terms, cut.products(geom)))


class Banks(NamedTuple):
    """The schedule of a contraction by `winograd` in banks of kernels.

    ``cells`` and ``checked`` are as of `Forward`.

    ``data`` says what is read of x for some of its channels, and which they are; ``rows`` are the
    channels of g that a weight gradient transforms at a time, ``banks`` those of each bank. There
    are so many `points`, each with so many `tiles`.
    """

    geom: Geometry
    window: Window
    cut: plan.Banks
    cells: Index | None
    checked: bool
    points: int
    tiles: int
    data: tuple[tuple[Reading, slice], ...]
    rows: tuple[slice, ...]
    banks: tuple[slice, ...]


def banks(
    task: Task, geom: Geometry, pairs: int = 1, mirrored: bool = False, weights: bool = False
) -> Banks | None:
    """Return the banks of a contraction, or None: it is not for that."""
    geom, cells = geom.skipping()
    cut = choice.banks(task, geom, pairs, mirrored, weights)
    if cut is None:
        return None
    everything = [(0, n) for n in geom.O]
    taps = [(0, n) for n in geom.W]
    start, stop = geom.reads(*zip(*everything, strict=True), *zip(*taps, strict=True))
    data = []
    for part in parts(range(0, geom.c, cut.c)):
        box = _slices(((0, geom.G), part, (0, geom.N)))
        data.append((reading(geom, box, start, stop), slice(*part)))
    window = _window(geom, everything, taps)
    rows, banks = (_slices(parts(range(0, geom.k, size))) for size in (cut.c, cut.k))
    points, tiles = winograd.sizes(window)
    checked, tiles = choice.spreads(task, winograd), geom.N * tiles
    return Banks(geom, window, cut, cells, checked, points, tiles, tuple(data), rows, banks)


@lru_cache(maxsize=256)
def route(
    contraction: str, task: Task, geom: Geometry, pairs: int = 1, mirrored: bool = False
) -> Boxes | Banks | Forward | GradWeight:
    """Return how a forward contraction or a weight gradient is computed, all of it in one look.

    By groups (`bands`, `diagonals`), by `banks`, or else in blocks.
    """
    weights = contraction == "grad_weight"
    by_groups = choice.banded(task, geom, contraction, pairs)
    by_banks = banks(task, geom, pairs, mirrored, weights) if by_groups is None else None
    return (
        by_groups
        or by_banks
        or (grad_weight(task, geom) if weights else forward(task, geom, pairs, mirrored))
    )


class Sum(NamedTuple):
    """A box of an input gradient whose products come first, and the outputs that they are of."""

    there: Index
    weights: Index
    outputs: Index
    shape: Ints
    additions: Sequence[Addition]


@lru_cache(maxsize=256)
def scattered(cut: Boxes, geom: Geometry, start: Ints, stop: Ints) -> Callable[[], Iterable[Sum]]:
    """Return the blocks of the padded coordinates from start to stop, with their products first."""
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    whole, taps = (geom.G, geom.c, geom.N, *size), math.prod(geom.W)

    def sums(keep: bool) -> Iterator[Sum]:
        for own, channels, samples, *box in boxes(_axes(whole, cut.sizes)):
            begin = tuple(a + first for a, (first, _) in zip(start, box, strict=True))
            end = tuple(a + last for a, (_, last) in zip(start, box, strict=True))
            first, last = scatter.outputs(geom, begin, end)
            there = (own, channels, samples, *box)
            yield Sum(
                _slices(there),
                _slices((own, (channels[0] * taps, channels[1] * taps))),
                _slices((own, (0, geom.k), samples, *zip(first, last, strict=True))),
                tuple(b - a for a, b in there),
                scatter.additions(geom, first, last, begin, end),
            )

    return _kept(sums, cut.blocks(geom, size) * taps)


class Cells(NamedTuple):
    """How the input gradient of a box of padded coordinates is computed.

    That of `geom`, in which g and w may be exchanged (`Geometry.exchanged`). Only the box
    ``[start, stop)``, at `inside` of the result, is read by any output; `whole` says that each of
    its cells is. Its gradient comes phase by phase, each a `forward`: (where to, which weights,
    the geometry); or, with `boxes`, with its products first.
    """

    geom: Geometry
    exchanged: bool
    start: Ints
    stop: Ints
    inside: Index
    whole: bool
    phases: tuple[tuple[Index, Index, Geometry], ...]
    boxes: Boxes | None


@lru_cache(maxsize=256)
def cells(task: Task, geom: Geometry, start: Ints, stop: Ints, pairs: int) -> Cells:
    """Return how to compute the gradient of the padded coordinates from start to stop."""
    ranges = [geom.read_range(a) for a in range(geom.rank)]
    first = tuple(max(a, low) for a, (low, _) in zip(start, ranges, strict=True))
    last = tuple(max(min(b, high), a) for b, (_, high), a in zip(stop, ranges, first, strict=True))
    size = tuple(b - a for a, b in zip(first, last, strict=True))
    inside = tuple(
        slice(a - origin, b - origin) for a, b, origin in zip(first, last, start, strict=True)
    )
    result = Cells(geom, False, first, last, (*ALL, *inside), False, (), None)
    if 0 in size or not pairs or not geom.K:
        return result
    if choice.exchanged(task, geom, size):
        return cells(task, geom.exchanged(), start, stop, pairs)._replace(exchanged=True)
    everything = (first, last) == (start, stop)
    cut = choice.scattered(task, geom, size, pairs)
    if cut is not None:
        return result._replace(whole=everything, boxes=cut)
    axes = [geom.phases(a, first[a], last[a]) for a in range(geom.rank)]
    reached = tuple(sum(phase.cells for phase in phases) for phases in axes)
    return result._replace(
        whole=everything and reached == size,
        phases=tuple(
            (
                (*ALL, *(slice(p.offset, None, s) for p, s in zip(one, geom.stride, strict=True))),
                phase_taps(one),
                geom.backwards(one),
            )
            for one in itertools.product(*axes)
        ),
    )


def _axes(whole: Ints, sizes: Ints) -> list[range]:
    """Return axes that are cut into parts of these sizes, for `boxes`."""
    return [range(0, total, size) for total, size in zip(whole, sizes, strict=True)]


def _kept(make: Callable[[bool], Iterator[T]], many: int) -> Callable[[], Iterable[T]]:
    """Return a function that gives all of them: the same ones each time where they are few."""
    return partial(make, False) if many > FEW else partial(iter, tuple(make(True)))


def _flat(geom: Geometry, own: Range, k: Range, samples: Range, rows: Range) -> Index:
    """Return a block of whole rows as one of a range of all positions in a row."""
    row = math.prod(geom.O[1:])
    return _slices((own, samples, k, (rows[0] * row, rows[1] * row)))


def _part(
    geom: Geometry,
    groups: Range,
    samples: Range,
    outputs: Sequence[Range],
    some: Sequence[Range],
    other: Index,
) -> Part:
    """Return the product of some outputs at some channels and taps."""
    channels, *taps = some
    start, stop = geom.reads(*zip(*outputs, strict=True), *zip(*taps, strict=True))
    how = reading(geom, _slices((groups, channels, samples)), start, stop)
    return Part(how, other, _window(geom, outputs, taps))


def _window(geom: Geometry, outputs: Sequence[Range], taps: Sequence[Range]) -> Window:
    """Return what slides over the block of these outputs and taps.

    As in a geometry, a stride between single outputs and a dilation of single taps are 1.
    """
    O, W = (tuple(b - a for a, b in ranges) for ranges in (outputs, taps))
    stride = tuple(s if o > 1 else 1 for s, o in zip(geom.stride, O, strict=True))
    dilation = tuple(d if w > 1 else 1 for d, w in zip(geom.dilation, W, strict=True))
    return Window(O, W, stride, dilation)


def _slices(ranges: Iterable[Range]) -> tuple[slice, ...]:
    """Return the index of a box."""
    return tuple(itertools.starmap(slice, ranges))


def check(contraction: str, task: Task, geom: Geometry, pairs: int) -> None:
    """Refuse what cannot be planned, without doing it."""
    if task.method == "cudnn":
        choice.check_applies(task, geom)
        return
    if contraction == "forward":
        forward(task, geom, pairs)
    elif contraction == "grad_weight":
        grad_weight(task, geom)
    else:
        for _, _, backwards in cells(task, geom, (0,) * geom.rank, geom.I, pairs).phases:
            forward(task, backwards, pairs, True)
