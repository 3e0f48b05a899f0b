"""The input gradient in place, block by block: NumPy and CuPy.

Where the gradient of a cell comes from depends on the padding: cells that it copied collect the
gradients of their copies. The cells of a box get theirs phase by phase of the stride, each a
`forward` with mirrored weights, or products first (`scatter`), whichever `choice` says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from . import choice, padding, scatter, schedule, workers
from .blocks import by_groups, forward
from .geometry import ALL, SPATIAL, Geometry, Ints, parts
from .namespace import Array, Namespace, finite, mirrored, swapped
from .padding import Index
from .plan import Boxes, check_number, count
from .schedule import Cells, Sum
from .setup import Pair, Setup, part_of, store


def grad_input(
    setup: Setup, pairs: Sequence[Pair], dx: Array, geom: Geometry, bias: Array | None = None
) -> None:
    """dT/dx: write the sum of the input gradients of each g and its w, plus bias, to dx.

    Cells that the padding copied collect the gradients of all their copies before they are
    stored, so that they are rounded once.
    """
    if 0 in dx.shape:
        return
    cut = choice.banded(setup.task, geom, "grad_input", len(pairs))
    if cut is not None:
        by_groups(setup, "grad_input", cut, pairs, dx, geom, bias, grad_input)
        return
    # copied cells first: their sums lie beside what the thread keeps, which blocks of others fill
    for strips, start, stop, copied in padding.tiles(geom.I, geom.padding_mode, geom.padding):
        if copied:
            _copied(setup, pairs, dx, geom, strips, bias)
        else:
            _cells(setup, pairs, dx[_inside(start, stop)], geom, start, stop, bias)


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
    inserted zero is ever multiplied. What no output reads has no gradient, whatever w holds.
    """
    plan = schedule.cells(setup.task, geom, start, stop, len(pairs))
    if not plan.whole:
        store(setup, dx, bias)
    dx = dx[plan.inside]
    if not plan.exchanged:
        _add_up(setup, plan, pairs, dx, bias)
        return
    others, bias_too = [(w, g) for g, w in pairs], None if bias is None else swapped(setup.xp, bias)
    turned = replace(setup, conjugate=setup.conjugate[::-1])
    _add_up(turned, plan, others, swapped(setup.xp, dx), bias_too)
    if not finite(dx):  # zeros beside the data, which is w, have met all of g
        _cells(setup.exact(), pairs, dx, geom, plan.start, plan.stop, bias)


def _add_up(
    setup: Setup, plan: Cells, pairs: Sequence[Pair], dx: Array, bias: Array | None
) -> None:
    """Write the gradient of cells as planned."""
    if plan.boxes is not None:
        _scattered(setup, plan.boxes, pairs, dx, plan.geom, plan.start, plan.stop, bias)
    for there, taps, backwards in plan.phases:
        phased = [(g, phase_weights(setup.xp, w, taps)) for g, w in pairs]
        forward(setup, phased, dx[there], backwards, bias, mirrored=True)


def _scattered(
    setup: Setup,
    cut: Boxes,
    pairs: Sequence[Pair],
    dx: Array,
    geom: Geometry,
    start: Ints,
    stop: Ints,
    bias: Array | None,
) -> None:
    """Write the gradient of the padded coordinates ``[start, stop)`` to dx, products first."""
    xp = setup.xp
    weights = [scatter.prepare(xp, setup.ready(w, 1)) for _, w in pairs]

    def work(box: Sum) -> None:
        setup.begin()
        total = None
        for (g, _), w in zip(pairs, weights, strict=True):
            rows = setup.loaded(g[box.outputs], 0)
            term = scatter.grad_input(xp, rows, w[box.weights], box.shape, box.additions)
            total = term if total is None else total + term
        store(setup, dx[box.there], part_of(bias, box.there), total)

    boxes = schedule.scattered(cut, geom, start, stop)
    workers.run(boxes(), work, workers=setup.workers(cut))


def _copied(
    setup: Setup,
    pairs: Sequence[Pair],
    dx: Array,
    geom: Geometry,
    strips: tuple[padding.Strip, ...],
    bias: Array | None,
) -> None:
    """Write the gradient of cells that padding copied: the sum over all their copies.

    Half of the workspace holds these sums, a part of the tile at a time, and half is for the
    contractions that they are made of.
    """
    xp, half = setup.xp, setup.limits.workspace // 2
    limits = setup.limits._replace(shares=2, block=min(half, setup.limits.block))
    setup = setup.within(limits)
    widths = [max(s.stop - s.start, *(r.stop - r.start for r in s.runs)) for s in strips]
    samples, widest = geom.N, max(widths)

    def size() -> int:
        cells = math.prod(min(width, widest) for width in widths)
        return 3 * setup.task.itemsize * samples * geom.C * cells

    while size() > half and (samples > 1 or widest > 1):
        samples, widest = (-(-samples // 2), widest) if samples > 1 else (1, -(-widest // 2))
    found = []
    for axis, strip in enumerate(strips):
        check_number(padding.number(geom, axis, strip, widest), setup.limits)
        found.append(padding.split(geom, axis, strip, widest))
    terms = math.prod(sum(len(one.runs) for one in cuts) for cuts in found)
    check_number(terms * count((geom.N,), (samples,)), setup.limits)
    for first, last in parts(range(0, geom.N, samples)):
        own = slice(first, last)
        part = geom.with_samples(last - first)
        for cut in itertools.product(*found):
            total = None
            for runs in itertools.product(*(strip.runs for strip in cut)):
                start, stop = tuple(r.start for r in runs), tuple(r.stop for r in runs)
                shape = (last - first, *(b - a for a, b in zip(start, stop, strict=True)))
                term = xp.empty((geom.G, geom.c, *shape), dtype=setup.dtype)
                _cells(setup, [(g[:, :, own], w) for g, w in pairs], term, part, start, stop)
                for axis, run in enumerate(runs, SPATIAL):
                    term = padding.adjoint(xp, term, axis, run.moved(run.start))
                total = term if total is None else total + term
            inside = _inside(tuple(s.start for s in cut), tuple(s.stop for s in cut))
            store(setup, dx[:, :, own][inside], bias, total)


def phase_weights(xp: Namespace, w: Array, taps: Index) -> Array:
    """Return the weights of one phase, mirrored, input and output channels exchanged."""
    return swapped(xp, mirrored(xp, w[taps]))


def _inside(start: Ints, stop: Ints) -> tuple[slice, ...]:
    return (*ALL, *itertools.starmap(slice, zip(start, stop, strict=True)))
