"""`winograd`: fewer multiplications for small kernels at stride 1, any rank and dilation.

A tile of m outputs of a kernel of r taps is a product of polynomials, transposed. Evaluated at
m + r - 1 points (Toom and Cook; the last one is infinity), it takes as many multiplications
instead of m*r, and the product of two such forms serves two axes. All three contractions are
transposes of the same three transforms: with the matrices A (points of g), G (points of w) and B
(interpolation of x),

    y = A^T [(G w) * (B^T x)],    dw = G^T [(A g) * (B^T x)].

Along several axes one is transformed after the other; channels come last meanwhile, so that each
step is products of a small matrix with long rows, read and written where they lie.
See Winograd, "Arithmetic Complexity of Computations" (1980), and Lavin and Gray,
https://arxiv.org/abs/1509.09308. The points, multiples of 3/4, are those of least error among small
fractions; matrices are computed in exact fractions and rounded once.

With dilation d, the outputs o, o + d, o + 2*d, .. are a dense convolution of every d-th cell: such
phases are samples of their own.

Errors are relative to the largest magnitudes of a tile, not to those of one output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache, partial
from operator import itemgetter

from .geometry import ALL, SPATIAL, Ints, Window
from .namespace import (
    Array,
    Namespace,
    constant,
    gapped,
    gathered,
    in_place,
    merged,
    most_apart,
    on_gpu,
    put,
    scratch,
    tiled,
)
from .padding import embedded
from .products import matmul

LARGEST = 5  # taps of an axis
SUMMED = 256  # channels that one product sums, as errors grow with them
POINTS = {4: (0, 1, -1), 6: (0, Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))}

Matrix = tuple[tuple[Fraction, ...], ...]


def room(xp: Namespace, w: Array, window: Window) -> Array:
    """Return an array for the prepared weights, in which k comes last in memory."""
    G, k, c = w.shape[:3]
    points = math.prod(_points(window.W))
    memory = gapped(xp, (G, points, c * k), w.dtype, xp.empty)
    return xp.permute_dims(xp.reshape(memory, (G, points, c, k)), (0, 3, 1, 2))


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return the transforms of w (G, k, c, *W) as (G, k, points, c), in `out` if that is given."""
    (G, k, c), taps = w.shape[:3], xp.permute_dims(w, (0, 2, *range(3, w.ndim), 1))
    # (G, c, W, k), in place a copy: BLAS is slow where k does not come last
    taps = gathered(xp, taps, (G, c, math.prod(window.W), k))
    matrix = constant(xp, _weights, (window.W,), w)
    # (points, W) @ (G, c, W, k) -> (G, c, points, k)
    if out is None:
        return xp.permute_dims(xp.matmul(matrix, taps), (0, 3, 2, 1))
    xp.matmul(matrix, taps, out=xp.permute_dims(out, (0, 3, 2, 1)))
    return out


def bank(xp: Namespace, w: Array, window: Window) -> Array:
    """Return the transforms of a few kernels, as `prepare`, in `scratch`."""
    (G, k, c), points = w.shape[:3], math.prod(_points(window.W))
    memory = gapped(xp, (G, c, points * k), w.dtype, partial(scratch, xp))
    room = xp.reshape(memory, (G, c, points, k))
    return prepare(xp, w, window, xp.permute_dims(room, (0, 3, 2, 1)))


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O), in `out` if that can be."""
    return multiply(xp, inputs(xp, x, window), w, window, out)


def inputs(xp: Namespace, x: Array, window: Window, out: Array | None = None) -> Array:
    """Return the transforms of x (G, c, N, *L) padded: (G, points, N*tiles, c)."""
    return _transformed(xp, x, window, _points(window.W), "inputs", out)


def outputs(xp: Namespace, g: Array, window: Window, out: Array | None = None) -> Array:
    """Return the transforms of g (G, k, N, *O): (G, points, N*tiles, k)."""
    return _transformed(xp, g, window, _outputs(window.W), "outputs", out)


def multiply(
    xp: Namespace, data: Array, w: Array, window: Window, out: Array | None = None
) -> Array:
    """Return `forward` of the transforms of x and w, in `out` if that can be."""
    m, n, G = _outputs(window.W), _points(window.W), data.shape[0]
    y = _products(xp, data, xp.permute_dims(w, (0, 2, 3, 1)))
    for a in range(len(m) - 1):
        if n[a] > 1:
            # (m, n) @ (.., n, what follows) -> (.., m, what follows)
            y = xp.reshape(y, (G, *m[:a], n[a], -1))
            y = matmul(xp, _matrix(xp, "outputs", window.W, a, data), y)
    covered = tuple(t * size for t, size in zip(_tiles(window), m, strict=True))
    whole = covered == window.O and max(phases(window)) == 1
    y = _joined(xp, y, (G, w.shape[1], *covered), window, out if whole else None)
    return y if whole else _cut(xp, y, window)


def _products(xp: Namespace, data: Array, kernels: Array) -> Array:
    """Multiply the transforms: (G, points, T, c) @ (G, points, c, k) -> (G, points, T, k)."""
    y = term = None
    c = data.shape[-1]
    for start in range(0, max(c, 1), SUMMED):
        some = slice(start, min(start + SUMMED, c))
        a, b = data[..., some], kernels[..., some, :]
        if y is None:
            y = matmul(xp, a, b)
        else:
            term = matmul(xp, a, b, term)
            y += term
    return y


def _joined(xp: Namespace, y: Array, sizes: Ints, window: Window, out: Array | None) -> Array:
    """Transform the last axis back, and join tiles.

    (G, *m[:-1], n[-1], N*tiles, k) -> (G, k, N, ..), where ``sizes`` are those of G, k and the
    axes: tiles may cover more than the outputs.
    """
    m, n, tiles, r = _outputs(window.W), _points(window.W), _tiles(window), len(window.W)
    G, k, *covered = sizes
    y = xp.reshape(y, (G, *m[:-1], n[-1], -1, *tiles, k))
    y = xp.permute_dims(y, (*range(r), *range(r + 1, y.ndim), r))
    last = xp.matrix_transpose(_matrix(xp, "outputs", window.W, -1, y))
    order, shape = _tiles_order(r), (G, k, y.shape[r], *covered)
    if not in_place(xp):
        y = y if n[-1] == 1 else xp.matmul(y, last)
        return xp.reshape(xp.permute_dims(y, order), shape)
    if out is None or out.strides[-1] != out.itemsize:  # BLAS would not write to it
        out = scratch(xp, shape, y.dtype)
    pairs = itertools.chain.from_iterable(zip(tiles, m, strict=True))
    split = xp.reshape(out, (*shape[:SPATIAL], *pairs))  # to split axes is a view
    place = xp.permute_dims(split, _back(order))
    if n[-1] == 1:
        place[...] = y
    else:
        # (.., k, n) @ (n, m) -> (.., k, m)
        _put_product(xp, y, last, place)
    return out


def _cut(xp: Namespace, y: Array, window: Window) -> Array:
    """Put phases where they belong, and cut: (G, k, phases*N, *covered) -> (G, k, N, *O)."""
    apart, r = phases(window), len(window.W)
    if max(apart) > 1:
        G, k, N, *covered = y.shape
        N //= math.prod(apart)
        # each axis of (G, k, phases, N, *covered) to where its phases are
        order = (0, 1, r + 2, *(i for a in range(r) for i in (r + 3 + a, 2 + a)))
        split = xp.permute_dims(xp.reshape(y, (G, k, *apart, N, *covered)), order)
        sizes = (p * size for p, size in zip(apart, covered, strict=True))
        y = xp.reshape(_interleaved(xp, split), (G, k, N, *sizes))
    return y[ALL + tuple(map(slice, window.O))]


def _interleaved(xp: Namespace, split: Array) -> Array:
    """Copy an array, whose last axis are phases, one phase after the other: runs are long then."""
    if not in_place(xp):
        return split
    block = scratch(xp, split.shape, split.dtype)
    for phase in range(split.shape[-1]):
        block[..., phase] = split[..., phase]
    return block


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""
    return multiply_weights(xp, inputs(xp, x, window), outputs(xp, g, window), window, out)


def multiply_weights(
    xp: Namespace, data: Array, rows: Array, window: Window, out: Array | None = None
) -> Array:
    """Return `grad_weight` of the transforms of x and g, in `out` if that can be."""
    G, k, c = data.shape[0], rows.shape[-1], data.shape[-1]
    # (G, points, k, N*tiles) @ (G, points, N*tiles, c) -> (G, points, k, c)
    products = _ordered(xp, xp.matrix_transpose(rows), data, (0, 2, 1, 3))
    # (G, k, c, points) @ (points, W) -> (G, k, c, W)
    back = constant(xp, _weights, (window.W,), data)
    place = None if out is None else merged(out, SPATIAL)
    if place is not None:
        xp.matmul(xp.matrix_transpose(products), back, out=place)
        return out
    dw = xp.matmul(xp.matrix_transpose(products), back)
    return xp.reshape(dw, (G, k, c, *window.W))


def _transformed(
    xp: Namespace, a: Array, window: Window, sizes: Ints, which: str, out: Array | None = None
) -> Array:
    """Return the transforms of tiles of these sizes: (G, c, N, *L) -> (G, points, N*tiles, c).

    In place they are written to `out`, if that is given.
    """
    m, tiles, channels = _outputs(window.W), _tiles(window), a.shape[1]
    cells = _covered(window, sizes)
    a = _channels_last(xp, a, window, cells)
    a = xp.reshape(a, (*a.shape[:2], -1))
    n = _points(window.W)
    for axis, size in enumerate(sizes):
        if n[axis] == 1:  # its cells are its tiles
            end = axis + 1
            a = xp.reshape(a, (*a.shape[:end], 1, *a.shape[end:-1], cells[axis], -1))
            continue
        matrix = _matrix(xp, which, window.W, axis, a)
        matrix = matrix if which == "inputs" else xp.matrix_transpose(matrix)
        # (G, points before, N, tiles before, this axis, all that follows)
        a = xp.reshape(a, (*a.shape[:-1], cells[axis], -1))
        a = tiled(xp, a, a.ndim - 2, tiles[axis], size, m[axis])
        end = a.ndim - 1
        order = (*range(axis + 1), end - 1, *range(axis + 1, end - 1), end)
        # (n, size) @ (.., tiles, size, what follows) -> (.., n, N, .., tiles, what follows)
        a = _ordered(xp, matrix, a, order, out if axis == len(sizes) - 1 else None)
    a = xp.reshape(a, (a.shape[0], math.prod(n), -1, channels))
    if out is not None and n[-1] == 1:
        out[...] = a  # it may be some channels of an array, and no axis with the cells that follow
    return a


def _channels_last(xp: Namespace, a: Array, window: Window, sizes: Ints) -> Array:
    """Return a block as (G, phases*N, *sizes, c) in memory, with zeros where tiles reach beyond."""
    order = (0, *range(2, a.ndim), 1)
    if in_place(xp) and a.shape[SPATIAL:] == sizes and max(window.dilation) == 1:
        one = xp.permute_dims(a, order)
        if one.flags.c_contiguous:  # as `padding.read` leaves it
            return one
    parts = [a[cells] for cells in _phase_cells(window)]
    if not in_place(xp):
        for axis, n in enumerate(sizes, SPATIAL):
            parts = [embedded(xp, part, axis, 0, n - part.shape[axis]) for part in parts]
        return xp.permute_dims(xp.concat(parts, axis=2), order)
    fits = all(tuple(part.shape[SPATIAL:]) == sizes for part in parts)
    G, c, N = a.shape[:SPATIAL]
    block = scratch(xp, (G, len(parts), N, *sizes, c), a.dtype)
    if not fits:
        block[...] = 0
    places = xp.permute_dims(block, (1, 0, block.ndim - 1, *range(2, block.ndim - 1)))
    for place, part in zip(places, parts, strict=True):
        put(place[(..., *map(slice, part.shape[SPATIAL:]))], part)
    return xp.reshape(block, (G, len(parts) * N, *sizes, c))


def _ordered(xp: Namespace, a: Array, b: Array, order: Ints, out: Array | None = None) -> Array:
    """Multiply matrices, and put the axes of the result in an order; b has all of the batch's.

    In place the result is in `out`, the same numbers in another shape, or in `scratch`.
    """
    if not in_place(xp):
        return xp.permute_dims(xp.matmul(a, b), order)
    shape = itemgetter(*order)((*b.shape[:-2], a.shape[-2], b.shape[-1]))
    block = scratch(xp, shape, b.dtype) if out is None else xp.reshape(out, shape)
    _put_product(xp, a, b, xp.permute_dims(block, _back(order)))
    return block


def _put_product(xp: Namespace, a: Array, b: Array, place: Array) -> None:
    """Multiply matrices in place, to results that may lie in any order."""
    if on_gpu(xp):  # where `matmul` is for results in order
        xp.matmul(a, b, out=place)
    else:
        matmul(xp, a, b, place)


@lru_cache(maxsize=64)
def _tiles_order(r: int) -> Ints:
    """Return where (G, k, N, tiles and m of each axis) are in (G, *m[:-1], N, *tiles, k, m[-1])."""
    pairs = (i for a in range(r - 1) for i in (r + 1 + a, 1 + a))
    return (0, 2 * r + 1, r, *pairs, 2 * r, 2 * r + 2)


@lru_cache(maxsize=256)
def _back(order: Ints) -> Ints:
    """Return the order that undoes an order of axes."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


@lru_cache(maxsize=256)
def _outputs(W: Ints) -> Ints:
    """Return m, the outputs of a tile per axis: of six points, or of four if many axes have few."""
    points = 6 if sum(w > 1 for w in W) <= 2 or max(W) > 3 else 4
    return tuple(points - w + 1 if w > 1 else 1 for w in W)


def tile(window: Window) -> Ints:
    """Return the outputs along each axis that one tile of every phase has, 1 if some have none."""
    sizes = zip(window.O, _outputs(window.W), window.dilation, strict=True)
    return tuple(m * d if d <= o else 1 for o, m, d in sizes)


@lru_cache(maxsize=256)
def _points(W: Ints) -> Ints:
    """Return n, the points of a tile per axis."""
    return tuple(m + w - 1 for m, w in zip(_outputs(W), W, strict=True))


@lru_cache(maxsize=256)
def phases(window: Window) -> Ints:
    """Return how many phases each axis has."""
    return tuple(map(min, window.dilation, window.O))


def _phase_cells(window: Window) -> Iterator[tuple[slice, ...]]:
    """Yield the index of each phase's cells in a block (G, c, N, *L)."""
    for first in itertools.product(*map(range, phases(window))):
        cells = map(slice, first, (None,) * len(first), window.dilation)
        yield ALL + tuple(cells)


@lru_cache(maxsize=256)
def _covered(window: Window, sizes: Ints) -> Ints:
    """Return how many cells of a phase tiles of these sizes cover along each axis."""
    axes = zip(_tiles(window), _outputs(window.W), sizes, strict=True)
    return tuple((tiles - 1) * m + size for tiles, m, size in axes)


@lru_cache(maxsize=256)
def _tiles(window: Window) -> Ints:
    """Return how many tiles each axis of a phase has."""
    sizes = zip(window.O, phases(window), _outputs(window.W), strict=True)
    return tuple(-(-o // (apart * m)) for o, apart, m in sizes)


def _matrix(xp: Namespace, which: str, W: Ints, axis: int, like: Array) -> Array:
    """Return one of an axis' matrices as an array like `like`."""
    return constant(xp, _rounded, (which, W[axis], _outputs(W)[axis]), like)


@lru_cache(maxsize=256)
def _rounded(which: str, r: int, m: int) -> list[list[float]]:
    """Return the matrix of one axis."""
    return [[float(value) for value in row] for row in matrices(r, m)[which]]


@lru_cache(maxsize=256)
def _weights(W: Ints) -> list[list[float]]:
    """Return the Kronecker product of the weights' matrices of all axes: (points, W)."""
    rows: Matrix = ((Fraction(1),),)
    for r, m in zip(W, _outputs(W), strict=True):
        rows = tuple(
            tuple(a * b for a, b in itertools.product(one, two))
            for one, two in itertools.product(rows, matrices(r, m)["weights"])
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
    """Invert a matrix of fractions by elimination; of powers of points, no pivot is zero."""
    n = len(matrix)
    rows = [[*row, *(Fraction(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for column in range(n):
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(n):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[n:] for row in rows]


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    m, n, apart = _outputs(window.W), _points(window.W), math.prod(phases(window))
    after = math.prod(n) * (2 if c > SUMMED else 1)  # and with each axis back
    after += sum(math.prod((*m[:a], *n[a:])) for a in range(1, len(m)) if n[a - 1] > 1)
    after += math.prod(m) * (2 if apart > 1 else 1)
    return _steps(G * N, window, n) * c + G * N * apart * math.prod(_tiles(window)) * after * k


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    m, n = _outputs(window.W), _points(window.W)
    steps = _steps(G * N, window, n) * c + _steps(G * N, window, m) * k
    return steps + G * (math.prod(n) + math.prod(window.W)) * c * k


def _steps(samples: int, window: Window, sizes: Ints) -> int:
    """Count the numbers of a channel's data with whole tiles, and with each axis transformed."""
    cells = _covered(window, sizes)
    n = _points(window.W)
    points = [t * size for t, size in zip(_tiles(window), n, strict=True)]
    samples *= math.prod(phases(window))
    steps = (0, *(axis + 1 for axis, size in enumerate(n) if size > 1))
    return samples * sum(math.prod((*points[:a], *cells[a:])) for a in steps)


def held(G: int, N: int, window: Window, channels: int) -> int:
    """Elements of the transforms of the data of so many channels."""
    points, tiles = sizes(window)
    return G * N * points * tiles * channels


def bank_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that a bank of kernels and its results need, beyond what is held."""
    points = math.prod(_points(window.W))
    kernels = c * (points * k + most_apart(points * k) + math.prod(window.W) * k)
    terms = held(G, N, window, k) if c > SUMMED else 0
    return workspace(G, N, window, 0, k) + terms + G * kernels


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights, and of a copy to prepare them."""
    copy = math.prod(window.W) * c * k
    return G * (math.prod(_points(window.W)) * (c * k + most_apart(c * k)) + copy)


def sizes(window: Window) -> tuple[int, int]:
    """Return the points of a tile, and how many tiles a sample has."""
    return math.prod(_points(window.W)), math.prod(_tiles(window)) * math.prod(phases(window))
