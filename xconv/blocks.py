"""The contractions in place, block by block: NumPy and CuPy.

    for each block: load (slice, pad) -> contract -> store

Arrays come in the form of `layout`: x ``(G, c, N, *I)``, w ``(G, k, c, *W)``, g and y
``(G, k, N, *O)``; results are views that are written to. `cells` has the input gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import choice, padding, plan, workers
from .choice import Algorithm, Task
from .geometry import SPATIAL, Geometry, Ints, Window
from .namespace import Array, Namespace, begin_block, cast, contiguous, dtype_name, dtype_of, finite
from .plan import Limits, Range

ALL = (slice(None),) * SPATIAL
Pair = tuple[Array, Array]


class Setup(NamedTuple):
    """What the contractions have in common during one call.

    ``conjugate`` says which of the two operands is to be conjugated.
    """

    task: Task
    conjugate: tuple[bool, bool]
    threads: int

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

    def exact(self) -> Setup:
        """Return the same with a method in which a NaN reaches only what reads it."""
        return self._replace(task=self.task._replace(method="windows"))

    def ready(self, a: Array, operand: int) -> Array:
        """Convert an operand to the dtype of the products, and conjugate it where it asks."""
        if a.dtype != dtype_of(self.xp, self.compute):
            a = contiguous(self.xp, a, self.compute)
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
    ``mirrored`` weights, those of an input gradient, lie in memory in another order.
    """
    if 0 in y.shape or not geom.C or not pairs:
        store(setup, y, bias)
        return
    geom, read = geom.skipping()
    pairs = [(x[(*ALL, *read)], w) for x, w in pairs]
    chosen, cut = choice.forward(setup.task, geom, len(pairs), mirrored)
    sums = list(plan.boxes([(geom.c, cut.c), *zip(geom.W, cut.w, strict=True)]))
    single = len(pairs) == len(sums) == 1
    once = single and y.dtype == dtype_of(setup.xp, setup.compute)
    checked = choice.spreads(setup.task, chosen)
    spoiled: list[tuple[Range, ...]] = []
    room = cut.block if chosen.SCRATCH else 0
    prepared = functools.partial(_prepared, setup, chosen, geom, cut.o)

    def term(task: Any, x: Array, w: Array, ready: Any, part: Any, out: Array | None) -> Array:
        begin_block(setup.xp, room)
        own, k, sample, *outputs = task
        if ready is None:
            kernel = prepared(w, own, k, part)
        else:
            kernel = ready[slices(_from(own, first_g), _from(k, first_k))]
        block = load(setup, x, geom, own, sample, outputs, part)
        slides = window(geom, outputs, part[1:])
        return chosen.forward(setup.xp, block, kernel, slides, out)

    def work(task: tuple[Range, ...]) -> None:
        own, k = task[:2]
        there = y[slices(*task)]
        terms = (
            term(task, x, w, ready, part, there if once else None)
            for (x, w), ready in zip(pairs, held, strict=True)
            for part in sums
        )
        total = next(terms)
        if not single:
            total = setup.xp.asarray(total, copy=True)  # the next term takes its memory
            for other in terms:
                total += other
        if checked and not finite(total):
            spoiled.append(task)
        store(setup, there, some_of(bias, own, k), total)

    sizes = [(geom.N, cut.n), *zip(geom.O, cut.o, strict=True)]
    for groups, outs in plan.boxes([(geom.G, cut.shared_g), (geom.k, cut.shared_k)]):
        first_g, first_k = groups[0], outs[0]
        held = [prepared(w, groups, outs, sums[0]) if len(sums) == 1 else None for _, w in pairs]
        tasks = plan.boxes(sizes, plan.parts(*groups, cut.g), plan.parts(*outs, cut.k))
        workers.run(tasks, work, workers=plan.at_once(cut, setup.limits, setup.threads))
    held = []
    for task in spoiled:
        _again(setup, pairs, y, geom, bias, mirrored, task)


def _prepared(
    setup: Setup,
    chosen: Algorithm,
    geom: Geometry,
    o: Ints,
    w: Array,
    own: Range,
    k: Range,
    part: Sequence[Range],
) -> Any:
    """Return a part of the weights as the algorithm takes them, for blocks of `o` outputs."""
    some = setup.ready(w[slices(own, k, *part)], 1)
    return chosen.prepare(setup.xp, some, window(geom, [(0, size) for size in o], part[1:]))


def _again(
    setup: Setup,
    pairs: Sequence[Pair],
    y: Array,
    geom: Geometry,
    bias: Array | None,
    mirrored: bool,
    task: tuple[Range, ...],
) -> None:
    """Compute a block of `forward` in which a NaN or an infinity has spread, exactly."""
    own, k, sample, *outputs = task
    g, n = own[1] - own[0], sample[1] - sample[0]
    part = geom.part(g, k[1] - k[0], n, *zip(*outputs, strict=True))
    operands = [(x[slices(own, (0, geom.c), sample)], w[slices(own, k)]) for x, w in pairs]
    forward(setup.exact(), operands, y[slices(*task)], part, some_of(bias, own, k), mirrored)


def grad_weight(setup: Setup, x: Array, g: Array, dw: Array, geom: Geometry) -> None:
    """dT/dw: write the gradient of the weights to dw, each part a sum over blocks in order."""
    if 0 in dw.shape:
        return
    if not geom.N:
        dw[...] = 0
        return
    geom, read = geom.skipping()
    x = x[(*ALL, *read)]
    chosen, cut = choice.grad_weight(setup.task, geom)
    checked = choice.spreads(setup.task, chosen, weights=True)
    spoiled = False
    rank, total = geom.rank, None
    last = (geom.N, *geom.O)

    def work(task: tuple[Range, ...]) -> Array:
        begin_block(setup.xp, cut.block if chosen.SCRATCH else 0)
        own, k, part, sample, outputs = *task[:2], task[2 : 3 + rank], task[-1 - rank], task[-rank:]
        block = load(setup, x, geom, own, sample, outputs, part)
        rows = setup.ready(g[slices(own, k, sample, *outputs)], 1)
        return chosen.grad_weight(setup.xp, block, rows, window(geom, outputs, part[1:]))

    def finish(task: tuple[Range, ...], term: Array) -> None:
        nonlocal total, spoiled
        own, box = task[: 3 + rank], task[3 + rank :]
        if not any(start for start, _ in box):
            total = term
        else:
            total += term
        if tuple(stop for _, stop in box) == last:
            spoiled = spoiled or (checked and not finite(total))
            store(setup, dw[slices(*own)], None, total)

    weights = [(geom.G, cut.g), (geom.k, cut.shared_k), (geom.c, cut.c)]
    sizes = [*weights, *zip(geom.W, cut.w, strict=True), (geom.N, cut.n)]
    tasks = plan.boxes([*sizes, *zip(geom.O, cut.o, strict=True)])
    workers.run(tasks, work, finish, workers=plan.at_once(cut, setup.limits, setup.threads))
    total = None
    if spoiled:
        grad_weight(setup.exact(), x, g, dw, geom)


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
    """Return what these outputs read at these channels and taps: (g, c, n, *L), padded."""
    channels, *taps = part
    start, stop = geom.reads(*zip(*outputs, strict=True), *zip(*taps, strict=True))
    own = x[slices(groups, channels, samples)]
    return setup.ready(padding.read(setup.xp, own, geom, start, stop, setup.compute), 0)


def store(setup: Setup, there: Array, bias: Array | None, block: Array | None = None) -> None:
    """Write a block plus bias, or the bias alone, or zeros; the block may be `there` already."""
    if block is None:
        block = setup.xp.zeros((), dtype=there.dtype) if bias is None else bias
    elif bias is not None:
        block += bias
    if block is not there:
        there[...] = cast(setup.xp, block, dtype_name(there.dtype))


def slices(*ranges: Range) -> tuple[slice, ...]:
    """Return the index of a box."""
    return tuple(slice(start, stop) for start, stop in ranges)


def some_of(bias: Array | None, *ranges: Range) -> Array | None:
    """Return the bias of these groups and channels."""
    return None if bias is None else bias[slices(*ranges)]


def _from(own: Range, first: int) -> Range:
    """Return the same range, counted from `first`."""
    return own[0] - first, own[1] - first
