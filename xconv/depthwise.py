"""One channel per group in place, at stride 1: few, long runs instead of windows.

What `windows` and `taps` come to there, where rows of weights are too short for a product. A
block's cells are one line, and a tap shifts it. One product takes the shifts of the last axis, for
all other taps at once; those shift its rows before they are added. Between the end of one row of
outputs and the start of the next, sums mean nothing and are cut away. Exact on small integers.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from .geometry import Ints, Window
from .namespace import Array, Namespace, inner, matmul, scratch, windows

ALL = slice(None)

CUTS = True
SCRATCH = True
LONG = 2
LAST = False
LEAST = (256, 64)


def room(xp: Namespace, w: Array, window: Window) -> None:
    """Weights are prepared at once."""


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return w (G, k, 1, *W) as (G, k, taps of the other axes, taps of the last axis)."""
    return xp.reshape(w, (*w.shape[:2], math.prod(window.W[:-1]), window.W[-1]))


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, 1, N, *L) padded, w prepared -> (G, k, N, *O)."""
    G, k, others, last = w.shape
    _, _, N, *L = x.shape
    lines = _lines(xp, x, window)
    # (G, k*others, last) @ (G, last, N*L) -> (G, k*others, N*L)
    rows = matmul(xp, xp.reshape(w, (G, k * others, last)), lines)
    rows = xp.reshape(rows, (G, k, others, lines.shape[-1]))
    y = rows[:, :, 0, :]
    for tap, shift in enumerate(_shifts(window, tuple(L))):
        if tap:
            y[..., : y.shape[-1] - shift] += rows[:, :, tap, shift:]
    y = xp.reshape(y, (G, k, N, *L))
    return y[(ALL, ALL, ALL, *(slice(o) for o in window.O))]


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, 1, N, *L) padded, g (G, k, N, *O) -> (G, k, 1, *W)."""
    G, k, N = g.shape[:3]
    L = tuple(x.shape[3:])
    lines = _lines(xp, x, window)
    length = lines.shape[-1]
    spread = scratch(xp, (G, k, N, *L), g.dtype)
    spread[...] = 0
    spread[(ALL, ALL, ALL, *(slice(o) for o in window.O))] = g
    spread = xp.reshape(spread, (G, k, length))
    # (G, k, N*L) @ (G, N*L, last) -> (G, k, last)
    dw = [
        inner(xp, spread[..., : length - shift], lines[..., shift:]) for shift in _shifts(window, L)
    ]
    return xp.reshape(xp.stack(dw, axis=2), (G, k, 1, *window.W))


def _lines(xp: Namespace, x: Array, window: Window) -> Array:
    """Return the block as a line, shifted by each tap of the last axis: (G, last, N*L)."""
    G, length, taps = x.shape[0], math.prod(x.shape[2:]), window.W[-1]
    line = xp.reshape(x, (1, 1, G, length))
    reach = (taps - 1) * window.dilation[-1]
    lines = scratch(xp, (G, taps, length), x.dtype)
    shifted = windows(xp, line, Window((length - reach,), (taps,), (1,), window.dilation[-1:]))
    lines[..., : length - reach] = xp.permute_dims(shifted[0, 0, ...], (1, 0, 2))
    lines[..., length - reach :] = 0
    return lines


@lru_cache(maxsize=256)
def _shifts(window: Window, L: Ints) -> list[int]:
    """Return how far each tap of the axes but the last shifts the line."""
    steps = [d * math.prod(L[a + 1 :]) for a, d in enumerate(window.dilation[:-1])]
    return [
        sum(t * step for t, step in zip(tap, steps, strict=True))
        for tap in itertools.product(*map(range, window.W[:-1]))
    ]


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    return G * _length(N, window) * (window.W[-1] + k * math.prod(window.W[:-1]))


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    return G * _length(N, window) * (window.W[-1] + k) + G * k * math.prod(window.W)


def _length(N: int, window: Window) -> int:
    """Return the length of a block's line."""
    sizes = zip(window.O, window.W, window.dilation, strict=True)
    return N * math.prod(o + d * (w - 1) for o, w, d in sizes)


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    return G * k * math.prod(window.W)
