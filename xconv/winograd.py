"""`winograd`: fewer multiplications for small kernels at stride 1, any rank.

A tile of m outputs of a kernel of r taps is a product of polynomials, transposed. Evaluated at
m + r - 1 points (Toom and Cook; the last one is infinity), it takes as many multiplications
instead of m*r, and the product of two such forms serves two axes. All three contractions are
transposes of the same three transforms: with the matrices A (points of g), G (points of w) and B
(interpolation of x),

    y = A^T [(G w) * (B^T x)],    dw = G^T [(A g) * (B^T x)].

Along several axes the transforms are Kronecker products, so that each is one product of matrices.
See Winograd, "Arithmetic Complexity of Computations" (1980), and Lavin and Gray,
https://arxiv.org/abs/1509.09308. The points, multiples of 3/4, are those of least error among small
fractions; matrices are computed in exact fractions and rounded once.

Errors are relative to the largest magnitudes of a tile, not to those of one output.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import lru_cache

from .geometry import SPATIAL, Ints, Window
from .namespace import Array, Namespace, constant, gathered, in_place, matmul, scratch, windows
from .padding import embedded

CUTS = False
SCRATCH = True
LONG = 1
LARGEST = 5  # taps of an axis
POINTS = {4: (0, 1, -1), 6: (0, Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))}

Matrix = tuple[tuple[Fraction, ...], ...]


def prepare(xp: Namespace, w: Array, window: Window) -> Array:
    """Return the transforms of w (G, k, c, *W) as (G, k, points, c)."""
    G, k, c = w.shape[:3]
    taps = xp.matrix_transpose(xp.reshape(w, (G, k * c, math.prod(window.W))))
    # (points, W) @ (G, W, k*c) -> (G, points, k*c)
    transformed = xp.matmul(_transform(xp, "weights", window.W, w), taps)
    transformed = xp.reshape(transformed, (G, transformed.shape[1], k, c))
    return xp.permute_dims(transformed, (0, 2, 1, 3))


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""
    G, N, k = x.shape[0], x.shape[2], w.shape[1]
    m = _tile(window.W)
    tiles = _tiles(window)
    count = N * math.prod(tiles)
    inputs = _inputs(xp, x, window)
    # (G, points, k, c) @ (G, points, c, N*tiles) -> (G, points, k, N*tiles)
    products = matmul(xp, xp.permute_dims(w, (0, 2, 1, 3)), inputs)
    products = xp.reshape(products, (G, products.shape[1], k * count))
    # (m, points) @ (G, points, k*N*tiles) -> (G, m, k*N*tiles)
    y = matmul(xp, _transform(xp, "outputs", window.W, x), products)
    y = xp.reshape(y, (G, *m, k, N, *tiles))
    r = len(m)
    order = (0, r + 1, r + 2, *(i for a in range(r) for i in (r + 3 + a, 1 + a)))
    y = xp.permute_dims(y, order)
    covered = tuple(t * size for t, size in zip(tiles, m, strict=True))
    whole = covered == window.O
    if in_place(xp):
        target = out if whole and out is not None else scratch(xp, (G, k, N, *covered), x.dtype)
        xp.reshape(target, y.shape)[...] = y  # to split axes is a view
    else:
        target = xp.reshape(y, (G, k, N, *covered))
    return target if whole else target[(slice(None),) * SPATIAL + tuple(map(slice, window.O))]


def grad_weight(xp: Namespace, x: Array, g: Array, window: Window) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W)."""
    G, k, c = g.shape[0], g.shape[1], x.shape[1]
    m, tiles = _tile(window.W), _tiles(window)
    parts = _gathered(xp, g, window, m, m)
    # (points, m) @ (G, m, k*N*tiles) -> (G, points, k*N*tiles)
    rows = matmul(xp, xp.matrix_transpose(_transform(xp, "outputs", window.W, x)), parts)
    rows = xp.reshape(rows, (G, rows.shape[1], k, x.shape[2] * math.prod(tiles)))
    inputs = xp.matrix_transpose(_inputs(xp, x, window))
    # (G, points, k, N*tiles) @ (G, points, N*tiles, c) -> (G, points, k, c)
    products = xp.reshape(matmul(xp, rows, inputs), (G, rows.shape[1], k * c))
    # (W, points) @ (G, points, k*c) -> (G, W, k*c)
    back = xp.matrix_transpose(_transform(xp, "weights", window.W, x))
    dw = xp.matrix_transpose(xp.matmul(back, products))
    return xp.reshape(dw, (G, k, c, *window.W))


def _inputs(xp: Namespace, x: Array, window: Window) -> Array:
    """Return the transforms of the input's tiles: (G, points, c, N*tiles)."""
    m = _tile(window.W)
    points = tuple(size + w - 1 for size, w in zip(m, window.W, strict=True))
    parts = _gathered(xp, x, window, points, m)
    # (points, points) @ (G, points, c*N*tiles) -> (G, points, c*N*tiles)
    inputs = matmul(xp, _transform(xp, "inputs", window.W, x), parts)
    count = x.shape[2] * math.prod(_tiles(window))
    return xp.reshape(inputs, (*inputs.shape[:2], x.shape[1], count))


def _gathered(xp: Namespace, a: Array, window: Window, sizes: Ints, m: Ints) -> Array:
    """Gather tiles of these sizes, m apart: (G, c, N, *L) -> (G, sizes, c*N*tiles)."""
    tiles = _tiles(window)
    needed = tuple((t - 1) * step + n for t, step, n in zip(tiles, m, sizes, strict=True))
    if tuple(a.shape[SPATIAL:]) != needed:  # the last tiles reach beyond the block
        if in_place(xp):
            wide = scratch(xp, (*a.shape[:SPATIAL], *needed), a.dtype)
            wide[...] = 0
            wide[(slice(None),) * SPATIAL + tuple(map(slice, a.shape[SPATIAL:]))] = a
            a = wide
        else:
            for axis, n in enumerate(needed, SPATIAL):
                a = embedded(xp, a, axis, 0, n - a.shape[axis])
    r = len(tiles)
    view = windows(xp, a, Window(tiles, sizes, m, (1,) * r))  # (G, c, *sizes, N, *tiles)
    view = xp.permute_dims(view, (0, *range(2, 2 + r), 1, *range(2 + r, view.ndim)))
    columns = a.shape[1] * a.shape[2] * math.prod(tiles)
    return gathered(xp, view, (a.shape[0], math.prod(sizes), columns))


def _tile(W: Ints) -> Ints:
    """Return m, the outputs of a tile per axis: of six points, or of four if many axes have few."""
    points = 6 if sum(w > 1 for w in W) <= 2 or max(W) > 3 else 4
    return tuple(points - w + 1 if w > 1 else 1 for w in W)


def _tiles(window: Window) -> Ints:
    return tuple(-(-o // m) for o, m in zip(window.O, _tile(window.W), strict=True))


def _transform(xp: Namespace, which: str, W: Ints, like: Array) -> Array:
    """Return one of the three matrices as an array like `like`."""
    return constant(xp, _product, (which, W), like)


@lru_cache(maxsize=256)
def _product(which: str, W: Ints) -> list[list[float]]:
    """Return the Kronecker product of one matrix over all axes."""
    rows: Matrix = ((Fraction(1),),)
    for w, m in zip(W, _tile(W), strict=True):
        matrix = matrices(w, m)[which]
        rows = tuple(
            tuple(a * b for a, b in itertools.product(one, two))
            for one, two in itertools.product(rows, matrix)
        )
    return [[float(value) for value in row] for row in rows]


@lru_cache(maxsize=64)
def matrices(r: int, m: int) -> dict[str, Matrix]:
    """Return the matrices of a tile of m outputs of r taps, in exact fractions.

    ``outputs`` (m, n), ``weights`` (n, r) and ``inputs`` (n, n), where ``n = m + r - 1``.
    """
    n = m + r - 1
    if n == 1:
        return dict.fromkeys(("outputs", "weights", "inputs"), ((Fraction(1),),))
    points = [Fraction(p) for p in POINTS[n]]

    def evaluation(size: int) -> list[list[Fraction]]:
        """Values at every point of the polynomial with these coefficients."""
        infinity = [Fraction(0)] * (size - 1) + [Fraction(1)]
        return [[p**power for power in range(size)] for p in points] + [infinity]

    # the columns of the inverse: coefficients of the polynomial that is 1 at one point
    interpolation = _inverse(evaluation(n))
    return {
        "outputs": tuple(zip(*evaluation(m), strict=True)),
        "weights": tuple(map(tuple, evaluation(r))),
        "inputs": tuple(zip(*interpolation, strict=True)),
    }


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """Invert a matrix of fractions by elimination."""
    n = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for column in range(n):
        pivot = next(i for i in range(column, n) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(n):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[n:] for row in rows]


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    points, m, tiles = sizes(window)
    tiles *= G * N
    return tiles * (3 * points * c + (points + 2 * m) * k)


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    points, m, tiles = sizes(window)
    tiles *= G * N
    return tiles * (3 * points * c + (points + 2 * m) * k) + G * (points + m) * c * k


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights."""
    return G * sizes(window)[0] * c * k


def sizes(window: Window) -> tuple[int, int, int]:
    """Return the points of a tile, its outputs, and how many tiles a sample has."""
    m = _tile(window.W)
    points = math.prod(a + w - 1 for a, w in zip(m, window.W, strict=True))
    return points, math.prod(m), math.prod(_tiles(window))
