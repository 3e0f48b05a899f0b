"""The contractions in place, block by block: NumPy and CuPy.

    for each block: load (slice, pad) -> contract -> store

Arrays come in the form of `layout`: x ``(G, c, N, *I)``, w ``(G, k, c, *W)``, g and y
``(G, k, N, *O)``; results are views that are written to. `cells` has the input gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from . import bands, banks, diagonals, pointwise, schedule, workers
from .geometry import Geometry, Window, parts
from .methods import TRAITS
from .namespace import (
    Array,
    finite,
)
from .padding import Index
from .plan import Boxes
from .schedule import Block, Forward, GradWeight, Term
from .setup import Pair, Setup, part_of, store

MANY = 64  # products of all groups that are not kept


def forward(
    setup: Setup,
    pairs: Sequence[Pair],
    y: Array,
    geom: Geometry,
    bias: Array | None = None,
    mirrored: bool = False,
) -> None:
    """dT/dg: write the sum of the convolutions of each x with its w, plus bias, to y.

    There is one pair of x and w, two in a second derivative, or none; bias is (G, k, 1, .., 1), or
    (G, 1, N, 1, .., 1).
    ``mirrored`` weights, those of an input gradient, lie in memory in another order.
    """
    if 0 in y.shape or not geom.C or not pairs:
        store(setup, y, bias)
        return
    plan = schedule.route("forward", setup.task, geom, len(pairs), mirrored)
    if isinstance(plan, Boxes):
        by_groups(setup, "forward", plan, pairs, y, geom, bias, forward)
        return
    if plan.cells is not None:
        pairs = [(x[plan.cells], w) for x, w in pairs]
    if isinstance(plan, Forward):
        arrays = _as_they_lie(setup, plan, pairs, y)
        if arrays is not None:
            _multiply(setup, plan, arrays, y, bias)
            return
        spoiled = _forward(setup, plan, pairs, y, bias)
    else:
        assert isinstance(plan, schedule.Banks)
        spoiled = banks.forward(setup, plan, pairs[0], y, bias)
    for there in spoiled:
        _again(setup, pairs, y, plan.geom, bias, mirrored, there)


def _as_they_lie(
    setup: Setup, plan: Forward, pairs: Sequence[Pair], y: Array
) -> pointwise.Flat | None:
    """Return what `pointwise` multiplies without a copy, as few views for all blocks; None: not so.

    Not where it is converted or conjugated, summed, or lies in memory in another way.
    """
    x, w = pairs[0]
    own = len(pairs) == plan.terms == 1 and x.dtype == w.dtype == y.dtype == setup.dtype
    if not (plan.flat and own) or setup.conjugate != (False, False):
        return None
    return pointwise.flat(setup.xp, x, w, y)


def _multiply(
    setup: Setup, plan: Forward, arrays: pointwise.Flat, y: Array, bias: Array | None
) -> None:
    """Write the products of kernels of one tap to y.

    Blocks take no memory, so there can be as many at once as there are threads.
    """

    def work(block: Block) -> None:
        assert block.flat is not None
        pointwise.multiply(setup.xp, arrays, block.flat)
        if bias is not None:
            there = y[block.there]
            store(setup, there, part_of(bias, block.there), there)

    for one in plan.passes():
        workers.run(one.blocks, work, workers=setup.threads)


def _forward(
    setup: Setup, plan: Forward, pairs: Sequence[Pair], y: Array, bias: Array | None
) -> list[Index]:
    """Write it block by block; return those that may hold a NaN or an infinity of others."""
    once = len(pairs) == plan.terms == 1 and y.dtype == setup.dtype
    spoiled: list[Index] = []

    def work(block: Block) -> None:
        there = y[block.there]
        total = _product(setup, plan, pairs, held, block, there if once else None)
        if plan.checked and not finite(total):
            spoiled.append(block.there)
        store(setup, there, part_of(bias, block.there), total)

    for one in plan.passes():
        held = []  # the last ones are freed first
        held = [
            _prepared(setup, plan, w, one.weights, one.window) if plan.terms == 1 else None
            for _, w in pairs
        ]
        workers.run(one.blocks, work, workers=setup.workers(plan.cut))
    return spoiled


def _prepared(setup: Setup, plan: Forward, w: Array, part: Index, window: Window) -> Any:
    """Return a part of the weights as the algorithm takes them, by all workers if that is long."""
    w, prepare = setup.ready(w[part], 1), plan.algorithm.prepare
    make = TRAITS[plan.algorithm].room
    room = None if make is None else make(setup.xp, w, window)
    if room is None:
        return prepare(setup.xp, w, window)

    def work(rows: tuple[int, int]) -> None:
        setup.begin()
        some = (slice(None), slice(*rows))
        prepare(setup.xp, w[some], window, room[some])

    # an even number, mostly: two workers end together
    count = min(setup.limits.tasks, max(1, 2 * (math.prod(room.shape) // 2**19)))
    rows = parts(range(0, w.shape[1], -(-w.shape[1] // count)))
    workers.run(rows, work, workers=min(count, setup.threads))
    return room


def _product(
    setup: Setup,
    plan: Forward,
    pairs: Sequence[Pair],
    held: Sequence[Any],
    block: Block,
    out: Array | None,
) -> Array:
    """Return a block of outputs, in `out` if that can be.

    ``held`` are the prepared weights, None where sums are so long that each part has its own.
    """
    xp, total = setup.xp, None
    for (x, w), ready in zip(pairs, held, strict=True):
        for part in block.parts():
            setup.begin()
            kernel = data = term = None  # the last ones are freed first
            if ready is None:
                kernel = _prepared(setup, plan, w, part.other, part.window)
            else:
                kernel = ready[block.prepared]
            data = setup.read(x, part.reading, plan.algorithm)
            term = plan.algorithm.forward(xp, data, kernel, part.window, out)
            if total is not None:
                total += term
            elif len(pairs) == plan.terms == 1:
                total = term
            else:
                total = xp.asarray(term, copy=True)  # the next term takes its memory
    return total


def _again(
    setup: Setup,
    pairs: Sequence[Pair],
    y: Array,
    geom: Geometry,
    bias: Array | None,
    mirrored: bool,
    there: Index,
) -> None:
    """Compute a block of `forward` in which a NaN or an infinity has spread, exactly."""
    own, k, sample, *outputs = there
    start, stop = tuple(s.start for s in outputs), tuple(s.stop for s in outputs)
    g, n = own.stop - own.start, sample.stop - sample.start
    part = geom.part(g, k.stop - k.start, n, start, stop)
    operands = [(x[own, :, sample], w[own, k]) for x, w in pairs]
    forward(setup.exact(), operands, y[there], part, part_of(bias, there), mirrored)


def grad_weight(setup: Setup, x: Array, g: Array, dw: Array, geom: Geometry) -> None:
    """dT/dw: write the gradient of the weights to dw, each part a sum over blocks in order."""
    if 0 in dw.shape:
        return
    if not geom.N:
        dw[...] = 0
        return

    plan = schedule.route("grad_weight", setup.task, geom)
    if isinstance(plan, Boxes):

        def exactly(
            setup: Setup, pairs: Sequence[Pair], dw: Array, geom: Geometry, _: None
        ) -> None:
            grad_weight(setup, *pairs[0], dw, geom)

        by_groups(setup, "grad_weight", plan, [(x, g)], dw, geom, None, exactly)
        return
    cells = x if plan.cells is None else x[plan.cells]
    if isinstance(plan, GradWeight):
        spoiled = _grad_weight(setup, plan, cells, g, dw)
    else:
        assert isinstance(plan, schedule.Banks)
        spoiled = banks.grad_weight(setup, plan, cells, g, dw)
    if spoiled:
        grad_weight(setup.exact(), x, g, dw, geom)


def _grad_weight(setup: Setup, plan: GradWeight, x: Array, g: Array, dw: Array) -> bool:
    """Write the gradient of the weights block by block; return whether a NaN may have spread."""
    xp = setup.xp
    chosen = plan.algorithm
    same = dw.dtype == setup.dtype  # so that one product alone is written to dw
    spoiled = False
    total = None

    def work(term: Term) -> Array:
        setup.begin()
        part = term.part
        block, rows = setup.read(x, part.reading, chosen), setup.loaded(g[part.other], 1)
        once = same and term.first and term.last
        there = dw[term.there] if once else None
        found = chosen.grad_weight(xp, block, rows, part.window, there)
        if once and found is not there:
            store(setup, there, None, found)
        return found

    def finish(term: Term, value: Array) -> None:
        nonlocal total, spoiled
        if term.first:
            total = value
        else:
            total += value
        if term.last:
            spoiled = spoiled or (plan.checked and not finite(total))
            if not (same and term.first):
                store(setup, dw[term.there], None, total)

    workers.run(plan.terms(), work, finish, workers=setup.workers(plan.cut))
    return spoiled


def by_groups(
    setup: Setup,
    contraction: str,
    cut: Boxes,
    pairs: Sequence[Pair],
    result: Array,
    geom: Geometry,
    bias: Array | None,
    exactly: Callable[..., None],
) -> None:
    """Write a contraction by `bands` or `diagonals`, some groups at a time.

    Those in which a NaN or an infinity may have spread, or been left out, are written again by
    `exactly`, which takes the arguments of `forward`.
    """
    operand, other = pairs[0]
    for own in _banded(setup, contraction, cut, operand, other, result, geom, bias):
        part = geom.part(own.stop - own.start, 1, geom.N, (0,) * geom.rank, geom.O)
        operands = [(operand[own], other[own])]
        exactly(setup.exact(), operands, result[own], part, part_of(bias, (own,)))


def _banded(
    setup: Setup,
    contraction: str,
    cut: Boxes,
    operand: Array,
    other: Array,
    result: Array,
    geom: Geometry,
    bias: Array | None,
) -> list[slice]:
    """Write a contraction some groups at a time; return those that are to be written again."""
    spoiled: list[slice] = []
    weights = None
    if contraction == "grad_weight":
        contract = _diagonals(setup, operand, other, geom)
    else:
        weights = setup.ready(other, 1)
        contract = _bands(setup, operand, weights, result, geom, contraction == "grad_input")

    def work(own: slice) -> None:
        setup.begin()
        there = result[own]
        block = contract(own, there)
        # outputs that read padding alone have no product that a NaN of the weights spreads in
        if not finite(block) or not (weights is None or finite(weights[own])):
            spoiled.append(own)
        store(setup, there, part_of(bias, (own,)), block)

    groups = itertools.starmap(slice, parts(range(0, geom.G, cut.g)))
    workers.run(groups, work, workers=setup.workers(cut))
    return spoiled


def _bands(
    setup: Setup, a: Array, weights: Array, result: Array, geom: Geometry, backwards: bool
) -> Callable[[slice, Array], Array]:
    """Return what computes some groups by `bands`, in their part of the result if that can be.

    As threads wait for each other while in Python, the products of all groups are made before
    they start, if these are few and no block has to be copied; what they multiply, in each block.
    """
    xp, dtype = setup.xp, setup.dtype
    matrices, found = bands.room(xp, weights, geom, backwards), None
    if a.dtype == result.dtype == dtype and not setup.conjugate[0]:
        found = bands.products(xp, a, matrices, geom, backwards, result)
    products = [] if found is None else [*itertools.islice(found, MANY)]

    def contract(own: slice, there: Array) -> Array:
        bands.prepare(xp, weights[own], geom, backwards, matrices[own])
        if not 0 < len(products) < MANY:
            return bands.contract(xp, setup.loaded(a[own], 0), matrices[own], geom, backwards)
        for left, right, place in products:
            xp.matmul(left[own], right[own], out=place[own])
        return there

    return contract


def _diagonals(setup: Setup, x: Array, g: Array, geom: Geometry) -> Callable[[slice, Array], Array]:
    """Return what computes the weight gradients of some groups by `diagonals`."""

    def contract(own: slice, _: Array) -> Array:
        cells, rows = setup.loaded(x[own], 0), setup.loaded(g[own], 1)
        return diagonals.grad_weight(setup.xp, cells, rows, geom)

    return contract
