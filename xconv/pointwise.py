"""Kernels of one tap in place: one product per sample, from and to where the arrays lie.

Samples of few positions are put side by side for one product instead, which is faster by a third.
What `windows` and `taps` come to there. Exact on small integers.
"""

from __future__ import annotations

import math

from .geometry import SPATIAL, Geometry, Window, taps
from .namespace import (
    Array,
    Namespace,
    flattened,
    gathered,
    merged,
    on_gpu,
    swapped,
)
from .padding import Index
from .products import inner, inner_pieces, matmul

SHORT = 128  # positions of a sample


# Cells (G, N, c, O), weights (G, 1, k, c) and results (G, N, k, O), positions as one axis.
Flat = tuple[Array, Array, Array]


def flattens(geom: Geometry) -> bool:
    """Whether a sample's positions are all its cells, and are not put beside those of others."""
    padded = any(map(any, geom.padding))
    return geom.I == geom.O and not padded and (geom.N == 1 or math.prod(geom.O) >= SHORT)


def flat(xp: Namespace, x: Array, w: Array, y: Array) -> Flat | None:
    """View x (G, c, N, *O), w (G, k, c, *1), y (G, k, N, *O) so, or None where that is a copy."""
    (G, k, c), order = w.shape[:3], (0, 2, 1, *range(SPATIAL, x.ndim))
    cells = merged(xp.permute_dims(x, order), SPATIAL)
    results = merged(xp.permute_dims(y, order), SPATIAL)
    if cells is None or results is None:
        return None
    return cells, xp.reshape(w, (G, 1, k, c)), results


def multiply(xp: Namespace, arrays: Flat, box: Index) -> None:
    """Write a box of the results: its groups, samples, output channels and positions."""
    own, samples, k, positions = box
    cells, weights, results = arrays
    # (G, 1, k, c) @ (G, N, c, O) -> (G, N, k, O)
    matmul(xp, weights[own, :, k], cells[own, samples, :, positions], results[box])


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, k, c, *1) as matrices (G, k, c)."""
    return xp.reshape(w, w.shape[:3])


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""
    x = x[taps(window)[0]]
    G, c, N = x.shape[:3]
    k, positions = w.shape[1], math.prod(window.O)
    together = not _apart(N, positions, c, k) if on_gpu(xp) else positions < SHORT
    if N > 1 and together:
        # (G, k, c) @ (G, c, N*O) -> (G, k, N*O)
        y = matmul(xp, w, gathered(xp, x, (G, c, N * positions)))
        return xp.reshape(y, (G, k, N, *window.O))
    cells = flattened(xp, swapped(xp, x), SPATIAL)
    place = None if out is None else merged(swapped(xp, out), 3)
    # (G, 1, k, c) @ (G, N, c, O) -> (G, N, k, O)
    y = matmul(xp, w[:, None, ...], cells, place)
    if place is not None:
        return out
    return swapped(xp, xp.reshape(y, (G, N, k, *window.O)))


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""
    x = x[taps(window)[0]]
    G, c, N = x.shape[:3]
    k = g.shape[1]
    positions = math.prod(window.O)
    if _apart(N, positions, c, k) and not on_gpu(xp):  # which would copy cells for it
        cells = flattened(xp, swapped(xp, x), SPATIAL)
        rows = flattened(xp, swapped(xp, g), SPATIAL)
        # (G, N, k, O) @ (G, N, O, c) -> (G, N, k, c)
        each = inner(xp, rows, cells, summed=N)
        dw = xp.sum(each, axis=1, dtype=each.dtype)
    else:
        cells, rows = flattened(xp, x, 2), flattened(xp, g, 2)
        place = None if out is None else merged(out, 2)
        # (G, k, N*O) @ (G, N*O, c) -> (G, k, c)
        dw = inner(xp, rows, cells, place)
        if dw is place:
            return out
    return xp.reshape(dw, (G, k, c, *window.W))


def _apart(N: int, positions: int, c: int, k: int) -> bool:
    """Whether samples have a result each: to sum these may be less than to gather samples."""
    return N > 1 and positions * (c + k) >= c * k


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    positions = math.prod(window.O)
    return G * N * positions * (c + k)


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    positions = math.prod(window.O)
    if _apart(N, positions, c, k):
        results = N * (1 + inner_pieces(positions, k, c))
    else:
        results = inner_pieces(N * positions, k, c)
    return G * (N * positions * (c + k) + results * c * k)


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    return G * c * k
