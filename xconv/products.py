"""Products of matrices, by what each array library does best."""

from __future__ import annotations

import math

from .namespace import (
    Array,
    Namespace,
    device,
    dtype_name,
    in_numpy,
    in_place,
    itemsize,
    lacks_products,
    on_gpu,
    scratch,
)

LIMB = 16  # bits: a product has 32,
LIMBS = 2**21  # of which so many have a sum in float64
PIECE = 2048  # numbers that BLAS sums well where a product of few rows and columns is long,
FEW = 64 * 64  # of which there are at most so many together
# In float32 OpenBLAS's kernels for AVX-512 take 10 to 50 % longer where the transposed operand is
# the larger one. The operands are exchanged then, if sums have at least so many numbers, and
# results, which are to be copied, are at most so many.
LONG = 512
COPIED = 2**18


def matmul(xp: Namespace, a: Array, b: Array, out: Array | None = None) -> Array:
    """Multiply matrices into `out`, or in place to `scratch`; b has all of the batch's axes."""
    if not in_place(xp):
        return product(xp, a, b)
    if out is None:
        out = scratch(xp, (*b.shape[:-2], a.shape[-2], b.shape[-1]), b.dtype)
    if on_gpu(xp):
        return in_cupy(xp, a, b, out)
    return xp.matmul(a, b, out=out)


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

    ``b`` has all of the batch's axes. Where b @ a^T is faster, the result is a transposed view of
    it, and `out` is not written. Afterwards so many results are `summed`.
    """
    k, m = a.shape[-2], b.shape[-2]
    if on_gpu(xp):
        turns = k <= m and math.prod(a.shape[:-2]) > 1  # a copy of a is less
    else:
        long = k * m <= COPIED and a.shape[-1] * summed >= LONG
        turns = in_numpy(xp) and k < m and long and dtype_name(a.dtype) == "float32"
    if turns:
        a = xp.broadcast_to(a, (*b.shape[:-2], *a.shape[-2:]))
        return xp.matrix_transpose(_inner(xp, b, a))
    return _inner(xp, a, b, out)


def _inner(xp: Namespace, a: Array, b: Array, out: Array | None = None) -> Array:
    """Multiply the same with the second operand transposed, long sums in pieces."""
    length = a.shape[-1]
    count = inner_pieces(length, a.shape[-2] * b.shape[-2])
    if on_gpu(xp):
        return matmul(xp, a, xp.matrix_transpose(b), out)
    if not (in_numpy(xp) and count):
        b = xp.matrix_transpose(b)
        return product(xp, a, b) if out is None else xp.matmul(a, b, out=out)
    whole = count * PIECE

    def pieces(v: Array) -> Array:
        v = xp.reshape(v[..., :whole], (*v.shape[:-1], count, PIECE))
        return xp.permute_dims(v, (*range(v.ndim - 3), v.ndim - 2, v.ndim - 3, v.ndim - 1))

    each = matmul(xp, pieces(a), xp.matrix_transpose(pieces(b)))
    total = xp.sum(each, axis=-3, dtype=each.dtype, out=out)
    if whole < length:
        total += xp.matmul(a[..., whole:], xp.matrix_transpose(b[..., whole:]))
    return total


def inner_pieces(length: int, size: int) -> int:
    """Return how many pieces `inner` sums apart, for `size` results, each of them a result."""
    return length // PIECE if size <= FEW and length >= 2 * PIECE else 0
