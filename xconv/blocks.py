"""The three contractions in place, block by block: NumPy and CuPy.

    for each block: load (slice, pad, channels last) -> contract -> store

Arrays come in the form of `layout`: x ``(G, c, N, *I)``, w ``(G, k, c, *W)``, g and y
``(G, k, N, *O)``; results are views that are written to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from . import choice, padding, plan, scatter, workers
from .choice import Task
from .geometry import SPATIAL, Geometry, Ints, Phase, Window, along
from .namespace import Array, Namespace, begin_block, cast, contiguous, dtype_name, dtype_of, finite
from .plan import Limits, Range

ALL = (slice(None),) * SPATIAL
Pair = tuple[Array, Array]


class Setup(NamedTuple):
    """What the three contractions have in common during one call.

    ``conjugate`` says which of the two operands is to be conjugated.
    """

    task: Task
    conjugate: tuple[bool, bool]
    threads: int

    def exact(self) -> Setup:
        """Return the same with a method that no number spreads in beyond what reads it."""
        return self._replace(task=self.task._replace(method="windows"))

    @property
    def xp(self) -> Namespace:
        """The arrays' namespace."""
        return self.task.xp

    @property
    def compute(self) -> str:
        """The dtype of products and sums."""
        return self.task.compute

    @property
    def limits(self) -> Limits:
        """Bytes that the call may use."""
        return self.task.limits

    def ready(self, a: Array, operand: int) -> Array:
        """Conjugate an operand where it asks for that."""
        return self.xp.conj(a) if self.conjugate[operand] else a


def forward(
    setup: Setup,
    pairs: Sequence[Pair],
    y: Array,
    geom: Geometry,
    bias: Array | None = None,
    mirrored: bool = False,
) -> None:
    """dT/dg: write the sum of the convolutions of each x with its w, plus bias, to y.

    There is one pair of x and w, two in a second derivative, or none; bias is (G, k, 1, .., 1).
    ``mirrored`` weights are taken in reverse order along every axis.
    """
    if 0 in y.shape:
        return
    if not geom.C or not pairs:
        store(setup, y, bias)
        return
    geom, cells = geom.skipping()
    pairs = [(x[(*ALL, *cells)], w) for x, w in pairs]
    xp = setup.xp
    chosen, cut = choice.forward(setup.task, geom, len(pairs), mirrored)
    sums = list(plan.boxes([(geom.c, cut.c), *zip(geom.W, cut.w, strict=True)]))

    def weights(w: Array, g: Range, k: Range, part: Sequence[Range]) -> Array:
        channels, *taps = part
        if mirrored:
            taps = [_from_end(t, n) for t, n in zip(taps, geom.W, strict=True)]
        some = w[(slice(*g), slice(*k), slice(*channels), *(slice(*t) for t in taps))]
        some = setup.ready(some if some.dtype == compute else contiguous(xp, some, setup.compute), 1)
        return chosen.prepare(xp, some, window(geom, [(0, o) for o in cut.o], part[1:], mirrored))

    def work(task: tuple[Range, ...]) -> None:
        begin_block(cut.block)
        own, k, sample, *outputs = task
        there = y[(slice(*own), slice(*k), slice(*sample), *(slice(*o) for o in outputs))]
        direct = there if len(pairs) == len(sums) == 1 and there.dtype == compute else None
        inner = (slice(own[0] - g[0], own[1] - g[0]), slice(k[0] - K[0], k[1] - K[0]))
        total = None
        for (x, w), ready in zip(pairs, held, strict=True):
            for part in sums:
                kernel = weights(w, own, k, part) if ready is None else ready[inner]
                block = load(setup, x, geom, own, sample, outputs, part)
                slides = window(geom, outputs, part[1:], mirrored)
                term = chosen.forward(xp, block, kernel, slides, direct)
                total = term if total is None else total + term
        if checked and not finite(total):
            spoiled.append(task)
        store(setup, there, None if bias is None else bias[slice(*own), slice(*k)], total)

    compute = dtype_of(xp, setup.compute)
    checked, spoiled = setup.task.method == "auto" and chosen not in choice.EXACT, []
    for g, K in plan.boxes([(geom.G, cut.shared_g), (geom.k, cut.shared_k)]):
        held = [weights(w, g, K, sums[0]) if len(sums) == 1 else None for _, w in pairs]
        sizes = [(geom.N, cut.n), *zip(geom.O, cut.o, strict=True)]
        tasks = plan.boxes(sizes, plan.parts(*g, cut.g), plan.parts(*K, cut.k))
        workers.run(tasks, work, workers=cut.workers(setup.limits, setup.threads))
    held = []
    for own, k, sample, *outputs in spoiled:  # a NaN is to reach only what reads it
        start, stop = zip(*outputs, strict=True)
        part = geom.part(own[1] - own[0], k[1] - k[0], sample[1] - sample[0], start, stop)
        there = y[(slice(*own), slice(*k), slice(*sample), *(slice(*o) for o in outputs))]
        operands = [(x[slice(*own), :, slice(*sample)], w[slice(*own), slice(*k)]) for x, w in pairs]
        some = None if bias is None else bias[slice(*own), slice(*k)]
        forward(setup.exact(), operands, there, part, some, mirrored)


def grad_weight(setup: Setup, x: Array, g: Array, dw: Array, geom: Geometry) -> None:
    """dT/dw: write the gradient of the weights to dw, each part a sum over blocks in order."""
    if 0 in dw.shape:
        return
    if not geom.N:
        dw[...] = 0
        return
    geom, cells = geom.skipping()
    x = x[(*ALL, *cells)]
    xp = setup.xp
    chosen, cut = choice.grad_weight(setup.task, geom)
    rank, total = geom.rank, None
    last = (geom.N, *geom.O)

    def work(task: tuple[Range, ...]) -> Array:
        own, k, part, sample, outputs = *task[:2], task[2 : 3 + rank], task[-1 - rank], task[-rank:]
        begin_block(cut.block)
        block = load(setup, x, geom, own, sample, outputs, part)
        there = (slice(*own), slice(*k), slice(*sample), *(slice(*o) for o in outputs))
        rows = g[there]
        if rows.dtype != compute:
            rows = contiguous(xp, rows, setup.compute)
        rows = setup.ready(rows, 1)
        return chosen.grad_weight(xp, block, rows, window(geom, outputs, part[1:]))

    def finish(task: tuple[Range, ...], term: Array) -> None:
        nonlocal total
        own, k, c, *taps = task[: 3 + rank]
        box = task[3 + rank :]
        if not any(start for start, _ in box):
            total = term
        else:
            total += term
        if tuple(stop for _, stop in box) == last:
            spoiled[0] = spoiled[0] or (checked and not finite(total))
            there = (slice(*own), slice(*k), slice(*c), *(slice(*t) for t in taps))
            store(setup, dw[there], None, total)

    compute = dtype_of(xp, setup.compute)
    checked, spoiled = setup.task.method == "auto" and chosen not in choice.EXACT, [False]
    weights = [(geom.G, cut.g), (geom.k, cut.shared_k), (geom.c, cut.c)]
    sizes = [*weights, *zip(geom.W, cut.w, strict=True), (geom.N, cut.n)]
    tasks = plan.boxes([*sizes, *zip(geom.O, cut.o, strict=True)])
    workers.run(tasks, work, finish, workers=cut.workers(setup.limits, setup.threads))
    if spoiled[0]:
        grad_weight(setup.exact(), x, g, dw, geom)


def grad_input(
    setup: Setup, pairs: Sequence[Pair], dx: Array, geom: Geometry, bias: Array | None = None
) -> None:
    """dT/dx: write the sum of the input gradients of each g and its w, plus bias, to dx.

    Cells that the padding copied collect the gradients of all their copies before they are
    stored, so that they are rounded once.
    """
    if 0 in dx.shape:
        return
    axes = [
        padding.strips(size, geom.padding_mode, *pair)
        for size, pair in zip(geom.I, geom.padding, strict=True)
    ]
    for tile in itertools.product(*axes):
        if all(len(strip.runs) == 1 for strip in tile):
            start, stop = tuple(s.start for s in tile), tuple(s.stop for s in tile)
            _cells(setup, pairs, dx[_inside(start, stop)], geom, start, stop, bias)
        else:
            _copied(setup, pairs, dx, geom, tile, bias)


def _cells(
    setup: Setup,
    pairs: Sequence[Pair],
    dx: Array,
    geom: Geometry,
    start: Ints,
    stop: Ints,
    bias: Array | None = None,
) -> None:
    """Write the gradient of the padded coordinates ``[start, stop)`` to dx.

    Each phase of the stride is a dense convolution of g with its own part of the weights: no
    inserted zero is ever multiplied.
    """
    ranges = [geom.read_range(a) for a in range(geom.rank)]
    first = tuple(max(a, low) for a, (low, _) in zip(start, ranges, strict=True))
    last = tuple(min(b, high) for b, (_, high) in zip(stop, ranges, strict=True))
    if (first, last) != (start, stop):  # what no output reads has no gradient, whatever w holds
        store(setup, dx, bias)
        if any(a >= b for a, b in zip(first, last, strict=True)):
            return
        dx = dx[(*ALL, *_ranges(first, last, start))]
        start, stop = first, last
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    if pairs and (cut := choice.scattered(setup.task, geom, size, len(pairs))) is not None:
        _scattered(setup, cut, pairs, dx, geom, start, stop, bias)
        return
    axes = [geom.phases(a, start[a], stop[a]) for a in range(geom.rank)]
    reached = [sum(phase.cells for phase in phases) for phases in axes]
    if not geom.K or any(n < b - a for n, a, b in zip(reached, start, stop, strict=True)):
        store(setup, dx, bias)
    for phases in itertools.product(*axes) if geom.K else ():
        cells = tuple(slice(p.offset, None, s) for p, s in zip(phases, geom.stride, strict=True))
        there = dx[(*ALL, *cells)]
        phased = [(g, phase_weights(setup.xp, w, phases)) for g, w in pairs]
        forward(setup, phased, there, geom.backwards(phases), bias, mirrored=True)


def _scattered(
    setup: Setup,
    cut: plan.Boxes,
    pairs: Sequence[Pair],
    dx: Array,
    geom: Geometry,
    start: Ints,
    stop: Ints,
    bias: Array | None,
) -> None:
    """Write the gradient of the padded coordinates ``[start, stop)`` to dx, products first."""
    xp, compute = setup.xp, dtype_of(setup.xp, setup.compute)

    def ready(a: Array, operand: int) -> Array:
        a = a if a.dtype == compute else contiguous(xp, a, setup.compute)
        return setup.ready(a, operand)

    weights = [scatter.prepare(xp, ready(w, 1)) for _, w in pairs]

    def work(task: tuple[Range, ...]) -> None:
        begin_block(cut.block)
        own, sample, *cells = task
        box = tuple(tuple(a + i for a, i in zip(start, ends, strict=True)) for ends in zip(*cells, strict=True))
        first, last = scatter.outputs(geom, *box)
        there = (slice(*own), slice(None), slice(*sample), *map(slice, first, last))
        terms = [
            scatter.grad_input(xp, ready(g[there], 0), w[slice(*own)], geom, first, *box)
            for (g, _), w in zip(pairs, weights, strict=True)
        ]
        inside = dx[(slice(*own), slice(None), slice(*sample), *(slice(*i) for i in cells))]
        store(setup, inside, None if bias is None else bias[slice(*own)], padding.total(terms))

    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    sizes = [(geom.G, cut.g), (geom.N, cut.n), *zip(size, cut.i, strict=True)]
    workers.run(plan.boxes(sizes), work, workers=cut.workers(setup.limits, setup.threads))


def _copied(
    setup: Setup,
    pairs: Sequence[Pair],
    dx: Array,
    geom: Geometry,
    tile: tuple[padding.Strip, ...],
    bias: Array | None,
) -> None:
    """Write the gradient of cells that padding copied: the sum over all their copies.

    Half of the workspace holds these sums, a part of the tile at a time, and half is for the
    contractions that they are made of.
    """
    xp, half = setup.xp, setup.limits.workspace // 2
    limits = setup.limits._replace(workspace=half, block=min(half, setup.limits.block))
    setup = setup._replace(task=setup.task._replace(limits=limits))
    widths = [max(s.stop - s.start, *(r.stop - r.start for r in s.runs)) for s in tile]
    samples, widest = geom.N, max(widths)

    def size() -> int:
        cells = math.prod(min(width, widest) for width in widths)
        return 3 * setup.task.itemsize * samples * geom.C * cells

    while size() > half and (samples > 1 or widest > 1):
        samples, widest = (-(-samples // 2), widest) if samples > 1 else (1, -(-widest // 2))
    for first, last in plan.parts(0, geom.N, samples):
        own = slice(first, last)
        part = geom.with_samples(last - first)
        for cut in itertools.product(*(padding.split(strip, widest) for strip in tile)):
            total = None
            for runs in itertools.product(*(strip.runs for strip in cut)):
                start, stop = tuple(r.start for r in runs), tuple(r.stop for r in runs)
                shape = (last - first, *(b - a for a, b in zip(start, stop, strict=True)))
                term = xp.empty((geom.G, geom.c, *shape), dtype=dtype_of(xp, setup.compute))
                _cells(setup, [(g[:, :, own], w) for g, w in pairs], term, part, start, stop)
                for axis, run in enumerate(runs, SPATIAL):
                    term = padding.adjoint(xp, term, axis, run.moved(run.start))
                total = term if total is None else total + term
            inside = _inside(tuple(s.start for s in cut), tuple(s.stop for s in cut))
            store(setup, dx[:, :, own][inside], bias, total)


def phase_weights(xp: Namespace, w: Array, phases: tuple[Phase, ...]) -> Array:
    """Return the weights of one phase, input and output channels exchanged."""
    for axis, phase in enumerate(phases, SPATIAL):
        w = w[along(axis, slice(phase.first, None, phase.step))]
    return xp.permute_dims(w, (0, 2, 1, *range(SPATIAL, w.ndim)))


def window(
    geom: Geometry, outputs: Sequence[Range], taps: Sequence[Range], mirrored: bool = False
) -> Window:
    """Return what slides over the block of these outputs and taps."""
    O = tuple(b - a for a, b in outputs)
    return Window(O, tuple(b - a for a, b in taps), geom.stride, geom.dilation, mirrored)


def load(
    setup: Setup,
    x: Array,
    geom: Geometry,
    groups: Range,
    samples: Range,
    outputs: Sequence[Range],
    part: Sequence[Range],
) -> Array:
    """Return what these outputs read at these channels and taps: (g, c, n, *L), padded."""
    channels, *taps = part
    start, stop = geom.reads(*zip(*outputs, strict=True), *zip(*taps, strict=True))
    own = x[slice(*groups), slice(*channels), slice(*samples)]
    return setup.ready(padding.read(setup.xp, own, geom, start, stop, setup.compute), 0)


def store(setup: Setup, there: Array, bias: Array | None, block: Array | None = None) -> None:
    """Write a block plus bias, or the bias alone, or zeros; the block may be `there` already."""
    if block is None:
        block = setup.xp.zeros((), dtype=there.dtype) if bias is None else bias
    elif bias is not None:
        block += bias
    if block is not there:
        there[...] = cast(setup.xp, block, dtype_name(there.dtype))


def _from_end(taps: Range, size: int) -> Range:
    """Return the same taps counted from the last one."""
    return size - taps[1], size - taps[0]


def _inside(start: Ints, stop: Ints) -> tuple[slice, ...]:
    return (*ALL, *_ranges(start, stop, (0,) * len(start)))


def _ranges(start: Ints, stop: Ints, begin: Ints) -> tuple[slice, ...]:
    """Return slices of ``[start, stop)``, counted from `begin`."""
    return tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, begin, strict=True))
