"""`fft`: products of spectra, a tile of outputs at a time.

The circular convolution of a block with the mirrored weights is the product of their discrete
Fourier transforms; in a transform at least as long as the block, the outputs that the block has are
free of wrapped terms (overlap-save). Blocks are the tiles, so memory stays bounded. Real data have
real transforms. The work hardly depends on the kernel's size.

Errors are relative to the largest magnitudes of a block, not to those of one output.
"""

from __future__ import annotations

import math
from functools import lru_cache

from .geometry import ALL, SPATIAL, Ints, Window, along
from .namespace import (
    COMPLEX,
    Array,
    Namespace,
    dtype_name,
    in_numpy,
    in_place,
    mirrored,
    spread,
)
from .padding import Index, embedded


def prepare(xp: Namespace, w: Array, window: Window, out: Array | None = None) -> Array:
    """Return the spectra of mirrored w (G, k, c, *W): (G, k, c, *F), for blocks of this size."""
    lengths = _lengths(window)
    w = mirrored(xp, w) * _root(lengths)
    spectra = _spectra(xp, spread(xp, w, window.dilation), lengths)
    if w.shape[2] == 1:
        return spectra
    # in the order of the products, once and not for every block
    return _channels_first(xp, _own(xp, _channels_last(xp, spectra)))


def forward(xp: Namespace, x: Array, w: Array, window: Window, out: Array | None = None) -> Array:
    """dT/dg: x (G, c, N, *L) padded, w prepared -> (G, k, N, *O)."""
    real = dtype_name(x.dtype) not in COMPLEX
    lengths = (*w.shape[SPATIAL:-1], 2 * (w.shape[-1] - 1) if real else w.shape[-1])
    if x.shape[1] == 1:
        product = w * _spectra(xp, x, lengths)
    else:
        columns = _own(xp, _channels_last(xp, _spectra(xp, x, lengths)))
        # (G, *F, k, c) @ (G, *F, c, N) -> (G, *F, k, N)
        product = xp.matmul(_channels_last(xp, w), columns)
        del columns
        product = _own(xp, _channels_first(xp, product))
    there = _behind(window.W, window.dilation, window.O, window.stride)
    return _inverse(xp, product, real, there)


def grad_weight(
    xp: Namespace, x: Array, g: Array, window: Window, out: Array | None = None
) -> Array:
    """dT/dw: x (G, c, N, *L) padded, g (G, k, N, *O) -> (G, k, c, *W), in `out` if that can be."""
    real = dtype_name(x.dtype) not in COMPLEX
    lengths = _lengths(window)
    if x.shape[1] == 1:
        spectra = _spectra(xp, x, lengths)
        product = _spectra(xp, spread(xp, mirrored(xp, g), window.stride), lengths) * spectra
        product = xp.sum(product, axis=2, keepdims=True)
    else:
        spectra = _own(xp, _channels_last(xp, _spectra(xp, x, lengths)))
        others = _spectra(xp, spread(xp, mirrored(xp, g), window.stride), lengths)
        others = _own(xp, _channels_last(xp, others))
        # (G, *F, k, N) @ (G, *F, N, c) -> (G, *F, k, c)
        product = xp.matmul(others, xp.matrix_transpose(spectra))
        del others
        product = _own(xp, _channels_first(xp, product))
    del spectra
    there = _behind(window.O, window.stride, window.W, window.dilation)
    return _inverse(xp, product, real, there) * _root(lengths)


def _spectra(xp: Namespace, a: Array, lengths: Ints) -> Array:
    """Return the spectra of an array, divided by the root of their length.

    Where NumPy 2.4 has nothing to divide by, it computes those of float32 in float64, which takes
    four times as long; and where it is to add zeros to more than one line, twice as long.
    """
    axes = tuple(range(SPATIAL, a.ndim))
    real = dtype_name(a.dtype) not in COMPLEX
    if not in_numpy(xp):
        return (xp.fft.rfftn if real else xp.fft.fftn)(a, s=lengths, axes=axes, norm="ortho")
    transform = xp.fft.rfft if real else xp.fft.fft
    for axis, length in zip(reversed(axes), reversed(lengths), strict=True):
        if a.size > a.shape[axis]:
            a = embedded(xp, a, axis, 0, length - a.shape[axis])
        a = transform(a, n=length, axis=axis, norm="ortho")
        transform = xp.fft.fft
    return a


def _root(lengths: Ints) -> float:
    """Return what two transforms, and the one back, have divided by too often."""
    return math.sqrt(math.prod(lengths))


def _inverse(xp: Namespace, a: Array, real: bool, there: Index) -> Array:
    """Return a part of what has these spectra; of real data, an even number on the last axis."""
    last = a.ndim - 1
    if not in_numpy(xp):
        axes = tuple(range(SPATIAL, a.ndim))
        return (xp.fft.irfftn if real else xp.fft.ifftn)(a, axes=axes, norm="ortho")[there]
    for axis in range(SPATIAL, last):  # what is not in the part has no other axis transformed
        a = xp.fft.ifft(a, axis=axis, norm="ortho")[along(axis, there[axis])]
    a = (xp.fft.irfft if real else xp.fft.ifft)(a, axis=last, norm="ortho")
    return a[along(last, there[last])]


def _behind(before: Ints, apart: Ints, sizes: Ints, steps: Ints) -> Index:
    """Index entries `steps` apart behind the first in which all of a mirrored array has a part."""
    axes = zip(before, apart, sizes, steps, strict=True)
    firsts = [(d * (n - 1), size, step) for n, d, size, step in axes]
    there = (slice(first, first + step * (size - 1) + 1, step) for first, size, step in firsts)
    return (*ALL, *there)


def _channels_last(xp: Namespace, a: Array) -> Array:
    """View (G, a, b, *F) as (G, *F, a, b), as `matmul` takes it."""
    return xp.permute_dims(a, (0, *range(SPATIAL, a.ndim), 1, 2))


def _channels_first(xp: Namespace, a: Array) -> Array:
    """View (G, *F, a, b) as (G, a, b, *F)."""
    return xp.permute_dims(a, (0, a.ndim - 2, a.ndim - 1, *range(1, a.ndim - 2)))


def _own(xp: Namespace, view: Array) -> Array:
    """Give a view memory of its own, in its order, where arrays are written in place."""
    return xp.asarray(view, copy=True, order="C") if in_place(xp) else view


def _lengths(window: Window) -> Ints:
    """Return the lengths of the transforms of a block."""
    sizes = zip(window.O, window.W, window.stride, window.dilation, strict=True)
    lengths = [s * (o - 1) + d * (w - 1) + 1 for o, w, s, d in sizes]
    return (*map(fast, lengths[:-1]), 2 * fast(-(-lengths[-1] // 2)))


@lru_cache(maxsize=256)
def fast(least: int) -> int:
    """Return the smallest product of powers of 2, 3 and 5 that is at least `least`."""
    best = 2 * least  # above a power of 2
    five = 1
    while five < best:
        three = five
        while three < best:
            best = min(best, three << (-(-least // three) - 1).bit_length())
            three *= 3
        five *= 5
    return best


def _size(window: Window) -> int:
    """Count the numbers of one spectrum, a complex one as two."""
    *others, last = _lengths(window)
    return math.prod(others) * (last + 2)


def workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `forward` needs beyond its operands and its result."""
    return G * N * max(2 * c, 3 * k) * _size(window)


def weight_workspace(G: int, N: int, window: Window, c: int, k: int) -> int:
    """Elements that `grad_weight` needs beyond its operands and its result."""
    return G * max(2 * N * c, N * (c + 3 * k), 3 * c * k) * _size(window)


def prepared(G: int, window: Window, c: int, k: int) -> int:
    """Elements of the prepared weights, and of what it takes to prepare them."""
    return 2 * G * c * k * _size(window)
