"""The three contractions in place, block by block: NumPy and CuPy.

    for each block: load (slice, pad, channels last) -> contract -> store

Arrays come in the form of `layout`: x ``(G, N, *I, c)``, w ``(G, *W, c, k)``, g and y
``(G, N, *O, k)``; results are views that are written to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import padding, plan, workers
from .choice import Algorithm
from .geometry import Geometry, Ints, Phase, Window, along
from .namespace import Array, Namespace, cast, dtype_name, dtype_of, itemsize
from .plan import Limits, Range

EVERYTHING = slice(None)


class Setup(NamedTuple):
    """What the three contractions have in common during one call.

    ``choose`` gives the algorithm for a geometry, ``compute`` is the dtype of products and sums,
    ``conjugate`` says which of the two operands is to be conjugated.
    """

    xp: Namespace
    choose: Callable[[Geometry], Algorithm]
    compute: str
    conjugate: tuple[bool, bool]
    limits: Limits
    threads: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element of a block."""
        return itemsize(self.compute)

    def ready(self, a: Array, operand: int) -> Array:
        """Conjugate a loaded block where its operand asks for it."""
        return self.xp.conj(a) if self.conjugate[operand] else a


def forward(
    setup: Setup, x: Array, w: Array, y: Array, geom: Geometry, bias: Array | None = None
) -> None:
    """dT/dg: write the convolution of x with w, plus bias (G, 1, .., k), to y."""
    if 0 in y.shape:
        return
    if not geom.C:
        store(setup, y, bias)
        return
    xp, chosen = setup.xp, setup.choose(geom)
    cut = plan.forward(geom, chosen, setup.itemsize, setup.limits)
    sums = plan.boxes([(geom.c, cut.c), *zip(geom.W, cut.w, strict=True)])
    positions = [(geom.N, cut.n), *zip(geom.O, cut.o, strict=True)]
    threads = cut.workers(setup.limits, setup.threads)

    for held_g, held_k in plan.boxes([(geom.G, cut.shared_g), (geom.k, cut.shared_k)]):

        def weights(part: Sequence[Range], g: Range = held_g, k: Range = held_k) -> Array:
            return setup.ready(load_weights(setup, w, g, part, k), 1)

        held = weights(sums[0]) if len(sums) == 1 else None

        def work(task: tuple[Range, ...], g: Range = held_g, k: Range = held_k) -> None:
            own, *box = task
            first, last = own[0] - g[0], own[1] - g[0]
            sample, outputs = box[0], box[1:]
            total = None
            for part in sums:
                kernel = (weights(part) if held is None else held)[first:last]  # noqa: B023
                block = load(setup, x, geom, own, sample, outputs, part)
                term = chosen.forward(xp, block, kernel, window(geom, outputs, part[1:]))
                total = term if total is None else total + term
            there = (slice(*own), slice(*sample), *(slice(*o) for o in outputs), slice(*k))
            some = None if bias is None else bias[slice(*own), ..., slice(*k)]
            store(setup, y[there], some, total)

        tasks = [(own, *box) for own in plan.parts(*held_g, cut.g) for box in plan.boxes(positions)]
        workers.run(tasks, work, workers=threads)


def grad_weight(setup: Setup, x: Array, g: Array, dw: Array, geom: Geometry) -> None:
    """dT/dw: write the gradient of the weights to dw, each part a sum over blocks in order."""
    if 0 in dw.shape:
        return
    if not geom.N:
        dw[...] = 0
        return
    xp, chosen = setup.xp, setup.choose(geom)
    cut = plan.grad_weight(geom, chosen, setup.itemsize, setup.limits)
    held = plan.boxes(
        [(geom.G, cut.g), (geom.k, cut.shared_k), (geom.c, cut.c), *zip(geom.W, cut.w, strict=True)]
    )
    positions = plan.boxes([(geom.N, cut.n), *zip(geom.O, cut.o, strict=True)])
    total = None

    def work(task: tuple[tuple[Range, ...], tuple[Range, ...]]) -> Array:
        (own, k, *part), (sample, *outputs) = task
        block = load(setup, x, geom, own, sample, outputs, part)
        there = (slice(*own), slice(*sample), *(slice(*o) for o in outputs), slice(*k))
        columns = setup.ready(xp.ascontiguousarray(g[there], dtype=dtype_of(xp, setup.compute)), 1)
        return chosen.grad_weight(xp, block, columns, window(geom, outputs, part[1:]))

    def finish(task: tuple[tuple[Range, ...], tuple[Range, ...]], term: Array) -> None:
        nonlocal total
        (own, k, c, *taps), box = task
        if box is positions[0]:
            total = term
        else:
            total += term
        if box is positions[-1]:
            there = (slice(*own), *(slice(*t) for t in taps), slice(*c), slice(*k))
            store(setup, dw[there], None, total)

    tasks = list(itertools.product(held, positions))
    workers.run(tasks, work, finish, workers=cut.workers(setup.limits, setup.threads))


def grad_input(
    setup: Setup, g: Array, w: Array, dx: Array, geom: Geometry, bias: Array | None = None
) -> None:
    """dT/dx: write the gradient of the input, plus bias (G, 1, .., c), to dx.

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
            _cells(setup, g, w, dx[_inside(start, stop)], geom, start, stop, bias)
        else:
            _copied(setup, g, w, dx, geom, tile, bias)


def _cells(
    setup: Setup,
    g: Array,
    w: Array,
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
    axes = [geom.phases(a, start[a], stop[a]) for a in range(geom.rank)]
    reached = [sum(phase.cells for phase in phases) for phases in axes]
    if not geom.K or any(n < b - a for n, a, b in zip(reached, start, stop, strict=True)):
        store(setup, dx, bias)
    for phases in itertools.product(*axes) if geom.K else ():
        cells = tuple(slice(p.offset, None, s) for p, s in zip(phases, geom.stride, strict=True))
        kernel = phase_weights(setup.xp, w, phases)
        there = dx[(EVERYTHING, EVERYTHING, *cells)]
        forward(setup, g, kernel, there, geom.backwards(phases), bias)


def _copied(
    setup: Setup,
    g: Array,
    w: Array,
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
    setup = setup._replace(limits=setup.limits._replace(workspace=half))
    channels, widths = (
        geom.C,
        [max(s.stop - s.start, *(r.stop - r.start for r in s.runs)) for s in tile],
    )
    samples, widest = geom.N, max(widths)

    def size() -> int:
        cells = math.prod(min(width, widest) for width in widths)
        return 3 * setup.itemsize * samples * channels * cells

    while size() > half and (samples > 1 or widest > 1):
        samples, widest = (-(-samples // 2), widest) if samples > 1 else (1, -(-widest // 2))
    for first, last in plan.parts(0, geom.N, samples):
        own = slice(first, last)
        part = geom.with_samples(last - first)
        for cut in itertools.product(*(padding.split(strip, widest) for strip in tile)):
            total = None
            for runs in itertools.product(*(strip.runs for strip in cut)):
                start, stop = tuple(r.start for r in runs), tuple(r.stop for r in runs)
                shape = (geom.G, last - first, *(b - a for a, b in zip(start, stop, strict=True)))
                term = xp.empty((*shape, geom.c), dtype=dtype_of(xp, setup.compute))
                _cells(setup, g[:, own], w, term, part, start, stop)
                for axis, run in enumerate(runs, 2):
                    term = padding.adjoint(xp, term, axis, run.moved(run.start))
                total = term if total is None else total + term
            inside = _inside(tuple(s.start for s in cut), tuple(s.stop for s in cut))
            store(setup, dx[:, own][inside], bias, total)


def phase_weights(xp: Namespace, w: Array, phases: tuple[Phase, ...]) -> Array:
    """Return the weights of one phase, reversed, input and output channels exchanged."""
    for axis, phase in enumerate(phases, 1):
        w = w[along(axis, slice(phase.first, None, phase.step))]
    return xp.matrix_transpose(xp.flip(w, axis=tuple(range(1, 1 + len(phases)))))


def window(geom: Geometry, outputs: Sequence[Range], taps: Sequence[Range]) -> Window:
    """Return what slides over the block of these outputs and taps."""
    O = tuple(b - a for a, b in outputs)
    return Window(O, tuple(b - a for a, b in taps), geom.stride, geom.dilation)


def load(
    setup: Setup,
    x: Array,
    geom: Geometry,
    groups: Range,
    samples: Range,
    outputs: Sequence[Range],
    part: Sequence[Range],
) -> Array:
    """Copy what these outputs read at these channels and taps: (g, n, *L, c), padded."""
    channels, *taps = part
    start, stop = geom.reads(*zip(*outputs, strict=True), *zip(*taps, strict=True))
    own = x[slice(*groups), slice(*samples), ..., slice(*channels)]
    return setup.ready(padding.read(setup.xp, own, geom, start, stop, setup.compute), 0)


def load_weights(setup: Setup, w: Array, groups: Range, part: Sequence[Range], k: Range) -> Array:
    """Copy a part of the weights: (g, *W, c, k). A single tap needs no copy."""
    channels, *taps = part
    w = w[(slice(*groups), *(slice(*t) for t in taps), slice(*channels), slice(*k))]
    if math.prod(w.shape[1:-2]) == 1 and dtype_name(w.dtype) == setup.compute:
        return w
    return setup.xp.ascontiguousarray(w, dtype=dtype_of(setup.xp, setup.compute))


def store(setup: Setup, there: Array, bias: Array | None, block: Array | None = None) -> None:
    """Write a block plus bias, or the bias alone, or zeros."""
    if block is None:
        block = setup.xp.zeros((), dtype=there.dtype) if bias is None else bias
    elif bias is not None:
        block += bias
    there[...] = cast(setup.xp, block, dtype_name(there.dtype))


def _inside(start: Ints, stop: Ints) -> tuple[slice, ...]:
    return (EVERYTHING, EVERYTHING, *(slice(a, b) for a, b in zip(start, stop, strict=True)))
