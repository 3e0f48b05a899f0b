"""Products of matrices, by what each array library does best."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from .namespace import (
    Array,
    Namespace,
    device,
    dtype_name,
    in_numpy,
    in_place,
    instructions,
    itemsize,
    lacks_products,
    on_gpu,
    scratch,
)
from .workers import architecture

LIMB = 16  # bits: a product has 32,
LIMBS = 2**21  # of which so many have a sum in float64
# OpenBLAS's kernels for AVX-512 take small matrices as they lie, and rearrange larger ones first.
# In pieces, products are 5 to 60 % faster on AMD's Zen 4. On an Intel Xeon of 2023 what is beyond a
# core's cache is read slowly but in long runs, as it is rearranged: pieces pay there where matrices
# are NEAR and the second one is NARROW, or are THIN; elsewhere they take up to twice as long. No
# other processors were tried. Those that have AVX512_SPR, which AMD's do not yet, are taken for the
# latter, others for the former.
AVX512 = frozenset(("SkylakeX", "Cooperlake", "SapphireRapids"))
NEAR = 2**21  # bytes of a product's matrices that fit a core's cache there
NARROW = 128  # columns up to which these need not be rearranged
DIRECT = 10**6  # multiplications of a small product
TILE = 1200  # its results, where the second matrix is transposed
ROWS, COLUMNS = 32, 128  # of a piece, at least and about; smaller ones gain nothing
STEP = 16  # what the columns of a piece, or a part of a sum, are a multiple of, mostly
THIN = 32  # rows of a product, or either side of the results of `inner`
SIDE, SMALLEST = 8, 128  # the least side of a tile that is not all of it, and the least results
LEAST = 256  # numbers of the sums of a tile, at least: shorter ones gain nothing
PIECE = 2048  # numbers that a tile sums at once, at most; elsewhere, where sums are long and
FEW = 64 * 64  # results at most so many
# In float32 these kernels take 10 to 50 % longer where the transposed operand is the larger one.
# Where there are no tiles the operands are exchanged then, if sums have at least so many numbers,
# and results, which are to be copied, are at most so many.
LONG = 512
COPIED = 2**18
# OpenBLAS's kernel for two small transposed matrices in float32 (0.3.31, AVX-512) is not for
# several threads at once: where columns of results are not a multiple of so many, and other numbers
# lie between their rows, results were wrong, and some lay beyond their place.
LANES = 4


def matmul(xp: Namespace, a: Array, b: Array, out: Array | None = None) -> Array:
    """Multiply matrices into `out`, or in place to `scratch`; b has all of the batch's axes."""
    if not in_place(xp):
        return product(xp, a, b)
    if out is None:
        out = scratch(xp, (*b.shape[:-2], a.shape[-2], b.shape[-1]), b.dtype)
    if on_gpu(xp):
        return in_cupy(xp, a, b, out)
    a, b = _safe(xp, a, b, out)
    (m, length), n = a.shape[-2:], b.shape[-1]
    near = n <= NARROW and b.itemsize * (m * n + (m + n) * length) <= NEAR
    small = m * n * length <= DIRECT
    if small or not (near or m <= THIN or not needs_runs()) or not _direct(b):
        return xp.matmul(a, b, out=out)
    return _by_pieces(xp, a, b, out)


def _safe(xp: Namespace, a: Array, b: Array, out: Array) -> tuple[Array, Array]:
    """Return operands of NumPy, the smaller one copied where BLAS is not safe on threads.

    For results that lie transposed NumPy multiplies the transposes of the operands.
    """
    upside = _turned(out)
    if out.itemsize != 4 or _turned(a) is upside or _turned(b) is upside:
        return a, b
    m, n = out.shape[-2:]
    if (m if upside else n) % LANES == 0 and m * n * a.shape[-1] <= DIRECT:
        return a, b
    return (_otherwise(xp, a), b) if a.size <= b.size else (a, _otherwise(xp, b))


def _turned(a: Array) -> bool:
    """Whether matrices lie transposed."""
    return bool(a.strides[-1] != a.itemsize)


def _otherwise(xp: Namespace, a: Array) -> Array:
    """Return a copy that lies transposed if the matrices do not, and the other way round."""
    if _turned(a):
        return xp.asarray(a, copy=True, order="C")
    return xp.matrix_transpose(xp.asarray(xp.matrix_transpose(a), copy=True, order="C"))


def _direct(a: Array) -> bool:
    """Whether BLAS takes small matrices as they lie."""
    return dtype_name(a.dtype) in ("float32", "float64") and architecture() in AVX512


def needs_runs() -> bool:
    """Whether the processor reads what is beyond a core's cache slowly but in long runs."""
    return "AVX512_SPR" in instructions()


def _by_pieces(xp: Namespace, a: Array, b: Array, out: Array) -> Array:
    """Multiply matrices in pieces of rows and columns that BLAS takes as they lie."""
    m, n, length, result = a.shape[-2], b.shape[-1], a.shape[-1], out
    rows, columns = pieces(m, n, length)
    if (rows, columns) == (m, n):
        return xp.matmul(a, b, out=out)
    whole, width = m - m % rows, n - n % columns
    if whole < m:
        xp.matmul(a[..., whole:, :], b, out=out[..., whole:, :])
        a, out = a[..., :whole, :], out[..., :whole, :]
    if width < n:
        xp.matmul(a, b[..., width:], out=out[..., width:])
        b, out = b[..., :width], out[..., :width]
    m, n, k = whole // rows, width // columns, out.ndim - 2
    # (.., 1, m, rows, P) @ (.., n, 1, P, columns) -> (.., n, m, rows, columns)
    left = xp.reshape(a, (*a.shape[:-2], 1, m, rows, length))  # to split axes is a view
    right = xp.reshape(b, (*b.shape[:-2], 1, length, n, columns))
    place = xp.reshape(out, (*out.shape[:-2], m, rows, n, columns))
    order = (*range(k), k + 2, k, k + 1, k + 3)
    xp.matmul(left, xp.permute_dims(right, order), out=xp.permute_dims(place, order))
    return result


def in_pieces(length: int) -> bool:
    """Whether large products with sums so long are multiplied in pieces."""
    return ROWS * COLUMNS * length <= DIRECT


@lru_cache(maxsize=256)
def pieces(m: int, n: int, length: int) -> tuple[int, int]:
    """Return the rows and columns of the pieces of a product of (m, n) with sums so long.

    They are all of them where pieces would be too small to pay.
    """
    most = DIRECT // length
    if most < min(m, ROWS) * min(n, COLUMNS):
        return m, n
    columns = _even(n, max(COLUMNS, most // m), STEP)
    return _even(m, most // columns, ROWS // 8), columns


def _even(length: int, most: int, step: int) -> int:
    """Return the length of parts of at most so many: all the same, or else multiples of a step."""
    fewest = -(-length // most)
    for count in range(fewest, fewest + fewest // 4 + 1):
        if length % count == 0:
            return length // count
    return min(-(-length // fewest // step), most // step) * step


def product(xp: Namespace, a: Array, b: Array) -> Array:
    """Multiply matrices, as an expression."""
    return by_limbs(xp, a, b) if lacks_products(xp, a) else xp.matmul(a, b)


def by_limbs(xp: Namespace, a: Array, b: Array) -> Array:
    """Multiply matrices of integers by products in float64; what is too large wraps."""
    count = -(-itemsize(dtype_name(a.dtype)) * 8 // LIMB)
    shape = (*b.shape[:-2], a.shape[-2], b.shape[-1])
    total = xp.zeros(shape, dtype=xp.int64, device=device(a))
    for start in range(0, a.shape[-1], LIMBS):
        some = slice(start, start + LIMBS)
        pair = a[..., some], b[..., some, :]
        ones, others = (
            [
                xp.astype((xp.astype(m, xp.int64) >> LIMB * i) % 2**LIMB, xp.float64)
                for i in range(count)
            ]
            for m in pair
        )
        for i, one in enumerate(ones):
            for j, other in enumerate(others[: count - i]):
                term = xp.astype(xp.matmul(one, other), xp.int64)
                total = total + (term << LIMB * (i + j))
    return xp.astype(total, a.dtype)


def in_cupy(xp: Namespace, a: Array, b: Array, out: Array) -> Array:
    """Multiply matrices in CuPy, by its fast ways alone, as CuPy 14 has them.

    One product takes transposed matrices as they are; a batch copies them. A batch without
    broadcasting is one call of cuBLAS; with it, pointers to all matrices are computed first.
    """
    if math.prod(out.shape[:-2]) == 1:
        one, other, place = (m[(0,) * (m.ndim - 2)] for m in (a, b, out))
        xp.matmul(one, other, out=place)
        return out
    if a.shape[-2] <= b.shape[-1]:  # copies take less than b
        a = xp.ascontiguousarray(xp.broadcast_to(a, (*b.shape[:-2], *a.shape[-2:])))
    return xp.matmul(a, b, out=out)


def inner(xp: Namespace, a: Array, b: Array, out: Array | None = None, summed: int = 1) -> Array:
    """Multiply a (.., k, P) and b (.., m, P) to (.., k, m), in `out` if that can be.

    ``b`` has all of the batch's axes. Where b @ a^T is faster, or a lies transposed, the result
    is a transposed view of it, and `out` is not written. Afterwards so many results are `summed`.
    """
    k, m, length = a.shape[-2], b.shape[-2], a.shape[-1]
    tiles = None
    if on_gpu(xp):
        turns = k <= m and math.prod(a.shape[:-2]) > 1  # a copy of a is less
    else:
        direct = in_numpy(xp) and _direct(b)
        tiles = tile(length, k, m) if direct and (min(k, m) <= THIN or not needs_runs()) else None
        long = k * m <= COPIED and length * summed >= LONG
        turns = direct and tiles is None and k < m and long and dtype_name(a.dtype) == "float32"
        if in_numpy(xp) and a.itemsize == 4:  # not two that lie transposed, see `_safe`
            turns = turns or _turned(a)
            out = None if out is not None and _turned(out) else out
    if turns:
        a = xp.broadcast_to(a, (*b.shape[:-2], *a.shape[-2:]))
        return xp.matrix_transpose(_inner(xp, b, a))
    return _inner(xp, a, b, out, tiles)


@lru_cache(maxsize=256)
def tile(length: int, k: int, m: int) -> tuple[int, int] | None:
    """Return the largest equal tiles of (k, m) results, the most square; None: they do not pay."""
    if length < LEAST:
        return None
    most = TILE if length > PIECE else min(TILE, DIRECT // length)
    sides = ([i for i in range(min(n, SIDE), most + 1) if n % i == 0] for n in (k, m))
    sizes = ((i * j, min(i, j), i, j) for i, j in itertools.product(*sides))
    found = max((size for size in sizes if SMALLEST <= size[0] <= most), default=None)
    return None if found is None else found[2:]


def _inner(
    xp: Namespace,
    a: Array,
    b: Array,
    out: Array | None = None,
    tiles: tuple[int, int] | None = None,
) -> Array:
    """Multiply the same with the second operand transposed, long sums in pieces."""
    length = a.shape[-1]
    if on_gpu(xp):
        return matmul(xp, a, xp.matrix_transpose(b), out)
    size = _summed(length, a.shape[-2] * b.shape[-2], tiles) if in_numpy(xp) else length
    if size == length:
        return _transposed(xp, a, b, tiles, out)
    count = length // size
    whole = count * size

    def parts(v: Array) -> Array:
        v = xp.reshape(v[..., :whole], (*v.shape[:-1], count, size))
        return xp.permute_dims(v, (*range(v.ndim - 3), v.ndim - 2, v.ndim - 3, v.ndim - 1))

    room = scratch(xp, (*b.shape[:-2], count, a.shape[-2], b.shape[-2]), b.dtype)
    each = _transposed(xp, parts(a), parts(b), tiles, room)
    total = xp.sum(each, axis=-3, dtype=each.dtype, out=out)
    if whole < length:
        total += xp.matmul(a[..., whole:], xp.matrix_transpose(b[..., whole:]))
    return total


def _transposed(
    xp: Namespace, a: Array, b: Array, tiles: tuple[int, int] | None, out: Array | None
) -> Array:
    """Multiply the same at once, or tile by tile."""
    if tiles is None:
        b = xp.matrix_transpose(b)
        return product(xp, a, b) if out is None else xp.matmul(a, b, out=out)
    (k, length), m, (i, j), lead = a.shape[-2:], b.shape[-2], tiles, b.shape[:-2]
    if out is None:
        out = xp.empty((*lead, k, m), dtype=b.dtype)
    left = xp.reshape(a, (*a.shape[:-2], k // i, 1, i, length))  # to split axes is a view
    right = xp.reshape(b, (*lead, 1, m // j, j, length))
    n = len(lead)
    place = xp.reshape(out, (*lead, k // i, i, m // j, j))
    place = xp.permute_dims(place, (*range(n), n, n + 2, n + 1, n + 3))
    xp.matmul(left, xp.matrix_transpose(right), out=place)
    return out


def _summed(length: int, results: int, tiles: tuple[int, int] | None) -> int:
    """Return how many numbers are summed at once."""
    if tiles is not None:
        return _even(length, min(PIECE, DIRECT // math.prod(tiles)), STEP)
    return PIECE if results <= FEW and length >= 2 * PIECE else length


def inner_pieces(length: int, k: int, m: int) -> int:
    """Return how many results `inner` has beside its own, at most, if sums are so long."""
    sizes = (_summed(length, k * m, tiles) for tiles in (None, tile(length, k, m)))
    return max(-(-length // size) if size < length else 0 for size in sizes)
