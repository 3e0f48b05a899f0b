"""`unfold` and `fold`: all windows of an array side by side, and the adjoint of that."""

from __future__ import annotations

import math
from typing import Any

from . import padding as pads
from .dtypes import accumulation
from .errors import Refusal, public
from .geometry import SPATIAL, Geometry, Window, along, geometry, options, sizes
from .layout import layout_axes, ungrouped
from .namespace import (
    Array,
    Namespace,
    accept,
    cast,
    check_bytes,
    current,
    dtype_name,
    native,
    spaced,
    windows,
    zeros,
)


@public
def unfold(
    x: Array,
    kernel_size: tuple[int, ...],
    /,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    padding_mode: str = "zeros",
) -> Array:
    """Copy every sliding window into a column (im2col).

    ``conv(x, w)`` is ``w`` as a matrix times this one; `conv` itself never forms it.

    Parameters
    ----------
    x : array, shape (N, C, *I)
        Samples, or one sample of shape (C, *I).
    kernel_size : tuple of int
        Sizes of a window, one per spatial axis.
    stride, padding, dilation, padding_mode : optional
        As in `conv`.

    Returns
    -------
    array, shape (N, C * prod(W), prod(O))
        The columns, in PyTorch's order: channels before kernel positions, both in C order. Of
        one sample without N.

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If x is no plain, dense array, or `kernel_size` is an int.
    MemoryError
        If there is no room for the padded x, which it holds whole beside the result.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import unfold
    >>> unfold(np.arange(4.0).reshape(1, 4), (2,))
    array([[0., 1., 2.],
           [1., 2., 3.]])
    """
    xp, (x,) = accept(x=x)
    x = native(xp, x)
    W = sizes(kernel_size, "kernel_size")
    batched, N, C, spatial = _samples(x, len(W), "x", len(W))
    geom = geometry(
        N, C, C, spatial, W, options(len(W), stride, padding, dilation, 1, padding_mode)
    )
    shape = (N, C * math.prod(W), math.prod(geom.O))
    check_bytes(shape, dtype_name(x.dtype))
    with current(x):
        if 0 in (N, C):
            return zeros(xp, shape[not batched :], x)
        zero = (0,) * geom.rank
        start, stop = geom.reads(zero, geom.O, zero, geom.W)
        samples = x if batched else x[None, ...]
        view = xp.permute_dims(samples, (1, 0, *range(2, samples.ndim)))[None, ...]
        block = pads.pad(xp, view, geom, start, stop)
        view = windows(xp, block, Window(geom.O, geom.W, geom.stride, geom.dilation))[0, ...]
        # (C, *W, N, *O) -> (N, C, *W, *O)
        r = geom.rank
        view = xp.permute_dims(view, (r + 1, *range(r + 1), *range(r + 2, 2 * r + 2)))
        cols = xp.reshape(view, shape, copy=True)
        return cols if batched else cols[0, ...]


@public
def fold(
    cols: Array,
    input_size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    /,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    padding_mode: str = "zeros",
) -> Array:
    """Add columns up where `unfold` took them from (col2im): its exact adjoint.

    Parameters
    ----------
    cols : array, shape (N, C * prod(W), prod(O))
        Columns as `unfold` returns them, or those of one sample without N.
    input_size : tuple of int
        Spatial sizes of the result.
    kernel_size : tuple of int
        Sizes of a window, one per spatial axis.
    stride, padding, dilation, padding_mode : optional
        Those of the call to `unfold`.

    Returns
    -------
    array, shape (N, C, *I)
        Each cell the sum of all the entries that `unfold` would copy from it.

    Raises
    ------
    ValueError
        If shapes and options do not fit.
    TypeError
        If cols is no plain, dense array, or a size is an int.
    MemoryError
        If there is no room for the padded result, which it holds whole, up to five times.

    Examples
    --------
    >>> import numpy as np
    >>> from xconv import fold
    >>> fold(np.ones((2, 3)), (4,), (2,))
    array([[1., 2., 2., 1.]])
    """
    xp, (cols,) = accept(cols=cols)
    cols = native(xp, cols)
    W = sizes(kernel_size, "kernel_size")
    spatial = sizes(input_size, "input_size", len(W))
    batched, N, channels, (length,) = _samples(cols, 1, "cols", len(W))
    taps = math.prod(W)
    opts = options(len(W), stride, padding, dilation, 1, padding_mode)
    geom = geometry(N, channels // max(taps, 1), 1, spatial, W, opts)
    if channels % taps or length != math.prod(geom.O):
        raise Refusal(
            "cols with a multiple of prod(kernel_size) rows and prod(output size) columns",
            f"cols of shape {tuple(cols.shape)}, kernel size {W}, output size {geom.O}",
        )
    shape = (N, geom.C, *spatial)
    check_bytes(shape, dtype_name(cols.dtype))
    with current(cols):
        if 0 in shape:
            return zeros(xp, shape[not batched :], cols)
        r = geom.rank
        # (N, C, *W, *O) -> (1, C, *W, N, *O)
        name = dtype_name(cols.dtype)
        wide = cast(xp, cols, accumulation(xp, name, name, name, taps))
        # one tap adds nothing up: its result would be a view of cols
        view = xp.reshape(wide, (N, geom.C, *W, *geom.O), copy=True if taps == 1 else None)
        view = xp.permute_dims(view, (*range(1, 2 + r), 0, *range(2 + r, 2 + 2 * r)))
        dx = pads.unpad(xp, _overlapped(xp, view[None, ...], geom), geom)
        return ungrouped(xp, cast(xp, dx, name), layout_axes("channels_first", r).x, batched)


def _overlapped(xp: Namespace, view: Array, geom: Geometry) -> Array:
    """Add windows (1, C, *W, N, *O) up to all padded coordinates, one axis after the other."""
    for a in reversed(range(geom.rank)):
        axis, window_axis = SPATIAL + 2 * a, 2 + a
        begin, end = pads.extent(geom, a)
        d, s, low = geom.dilation[a], geom.stride[a], geom.padding[a][0]
        terms = []
        for t in range(geom.W[a]):
            cell = d * t - low - begin  # of output 0
            first = min(max(-(cell // s), 0), geom.O[a])
            last = max(min((end - begin - 1 - cell) // s + 1, geom.O[a]), first)
            part = view[along(window_axis, t)][along(axis, slice(first, last))]
            part = spaced(xp, part, axis, s if last - first > 1 else 1)
            before = min(max(cell + s * first, 0), end - begin)
            part = part[along(axis, slice(0, min(end - begin - before, part.shape[axis])))]
            after = end - begin - before - part.shape[axis]
            terms.append(pads.embedded(xp, part, axis, before, after))
        view = pads.total(terms)
    return view


def _samples(a: Array, axes: int, name: str, rank: int) -> tuple[bool, int, int, tuple[int, ...]]:
    """Return whether there is a batch axis, its size, the channels and the other sizes."""
    shape = tuple(a.shape)
    if len(shape) not in (axes + 1, axes + 2):
        raise Refusal(
            f"{name} of {axes + 2} dimensions, or {axes + 1} for one sample, "
            f"with {rank} spatial axes",
            f"{name} of shape {shape}",
        )
    batched = len(shape) == axes + 2
    N, C, *spatial = shape if batched else (1, *shape)
    return batched, N, C, tuple(spatial)
