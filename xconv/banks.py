"""Winograd's contractions in banks of kernels: NumPy.

In layers of many channels and few positions the transformed weights are many times the data, and
to write them to memory and read them again would take longer than the products. So here all data
is transformed once and held, and each block transforms the weights of a bank of kernels, which
stay in its core's cache. A weight gradient is the same the other way round.
"""

from __future__ import annotations

from . import winograd, workers
from .namespace import Array, finite
from .padding import Index, Reading
from .schedule import Banks
from .setup import Pair, Setup, part_of, store


def forward(setup: Setup, plan: Banks, pair: Pair, y: Array, bias: Array | None) -> list[Index]:
    """dT/dg: write a convolution plus bias to y; return the blocks with a NaN or an infinity."""
    (x, w), xp = pair, setup.xp
    data = _held(setup, plan, x)
    once = y.dtype == data.dtype
    groups, samples, *outputs = (slice(0, n) for n in (plan.geom.G, plan.geom.N, *plan.geom.O))
    spoiled: list[Index] = []

    def work(k: slice) -> None:
        setup.begin(plan.cut.scratch)
        there = (groups, k, samples, *outputs)
        place = y[there]
        kernels = winograd.bank(xp, setup.loaded(w[:, k], 1), plan.window)
        total = winograd.multiply(xp, data, kernels, plan.window, place if once else None)
        if plan.checked and not finite(total):
            spoiled.append(there)
        store(setup, place, part_of(bias, there), total)

    workers.run(plan.banks, work, workers=setup.workers(plan.cut))
    return spoiled


def grad_weight(setup: Setup, plan: Banks, x: Array, g: Array, dw: Array) -> bool:
    """dT/dw: write the gradient of the weights to dw; return whether it is to be written again."""
    xp = setup.xp
    data = _held(setup, plan, x)
    rows = xp.empty((plan.geom.G, plan.points, plan.tiles, plan.geom.k), dtype=data.dtype)

    def transform(k: slice) -> None:
        setup.begin(plan.cut.scratch)
        winograd.outputs(xp, setup.loaded(g[:, k], 1), plan.window, rows[..., k])

    workers.run(plan.rows, transform, workers=setup.workers(plan.cut))
    once = dw.dtype == data.dtype
    spoiled: list[slice] = []

    def work(k: slice) -> None:
        setup.begin(plan.cut.scratch)
        there = dw[:, k]
        part = rows[..., k]
        total = winograd.multiply_weights(xp, data, part, plan.window, there if once else None)
        if plan.checked and not finite(total):
            spoiled.append(k)
        store(setup, there, None, total)

    workers.run(plan.banks, work, workers=setup.workers(plan.cut))
    return bool(spoiled)


def _held(setup: Setup, plan: Banks, x: Array) -> Array:
    """Return the transforms of all data (G, points, N*tiles, c)."""
    xp, geom = setup.xp, plan.geom
    shape = (geom.G, plan.points, plan.tiles, geom.c)
    held = xp.empty(shape, dtype=setup.dtype)

    def transform(part: tuple[Reading, slice]) -> None:
        setup.begin(plan.cut.scratch)
        how, channels = part
        block = setup.read(x, how, winograd)
        winograd.inputs(xp, block, plan.window, held[..., channels])

    workers.run(plan.data, transform, workers=setup.workers(plan.cut))
    return held
