"""Where the axes of arrays are: from any layout to the one form that is computed in, and back.

The form has the groups first and the channels of one group last: x ``(G, N, *I, c)``,
w ``(G, *W, c, k)``, y ``(G, N, *O, k)``. Groups are then a batch axis of `matmul`, and every
product reads rows of channels. Getting there moves no data in NumPy, CuPy and PyTorch.
"""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Any, NamedTuple

from .errors import Refusal, shown
from .geometry import Ints, along
from .namespace import Array, Namespace

RULE = (
    "layout to be 'channels_first', 'channels_last' or three strings such as "
    "('NHWC', 'HWIO', 'NHWC')"
)


class Axes(NamedTuple):
    """Axis numbers of one array: ``first`` is N of x and y, I of w; ``last`` is C, K or O."""

    first: int
    spatial: Ints
    last: int

    def shape(self, first: int, spatial: Ints, last: int) -> Ints:
        """Return the array's shape."""
        sizes = {self.first: first, self.last: last}
        sizes.update(zip(self.spatial, spatial, strict=True))
        return tuple(sizes[axis] for axis in range(len(sizes)))


class Layout(NamedTuple):
    """The axes of the three arrays of a convolution (for a transposed call, of its adjoint)."""

    x: Axes
    w: Axes
    y: Axes


@lru_cache(maxsize=256)
def parsed(layout: str | tuple[str, ...], rank: int, transposed: bool) -> Layout:
    """Return the layout that a `layout` argument names."""
    if layout == "channels_first":
        data = Axes(0, tuple(range(2, rank + 2)), 1)
        return Layout(data, Axes(1, data.spatial, 0), data)
    if layout == "channels_last":
        data = Axes(0, tuple(range(1, rank + 1)), rank + 1)
        return Layout(data, Axes(rank, tuple(range(rank)), rank + 1), data)
    own, weight, result = _triple(layout, rank)
    spatial = [letter for letter in weight if letter not in "OI"]
    first = _axes(own, "N", spatial, "C")
    last = _axes(result, "N", spatial, "C")
    w = _axes(weight, "I", spatial, "O")
    return Layout(last, w, first) if transposed else Layout(first, w, last)


def layout_axes(layout: Any, rank: int, transposed: bool = False) -> Layout:
    """Check the type of a `layout` argument and parse it."""
    names = (layout,) if isinstance(layout, str) else layout
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise Refusal(RULE, shown(layout), TypeError)
    return parsed(layout if isinstance(layout, str) else tuple(layout), rank, transposed)


def _triple(layout: str | tuple[str, ...], rank: int) -> tuple[str, str, str]:
    """Check JAX's three strings; the order of the spatial axes is that of the kernel's string."""
    if isinstance(layout, str) or len(layout) != 3:
        raise Refusal(RULE, shown(layout))
    letters = [set(s) for s in layout]
    spatial = letters[0] - set("NC")
    fits = all(len(s) == rank + 2 == len(set(s)) for s in layout)
    fits = fits and letters[0] == letters[2] == spatial | set("NC")
    fits = fits and letters[1] == spatial | set("IO") and not spatial & set("IO")
    if not fits or not spatial <= set(string.ascii_letters + string.digits):
        raise Refusal(
            f"layout of N, C and {rank} spatial letters, the kernel's of I, O and the same ones",
            shown(layout),
        )
    return layout[0], layout[1], layout[2]


def _axes(text: str, first: str, spatial: list[str], last: str) -> Axes:
    return Axes(text.index(first), tuple(text.index(s) for s in spatial), text.index(last))


def without_batch(axes: Axes) -> Axes:
    """Return the axes of one sample, `first` being of no meaning then."""
    gone = axes.first
    return Axes(-1, tuple(a - (a > gone) for a in axes.spatial), axes.last - (axes.last > gone))


def grouped(xp: Namespace, a: Array, axes: Axes, G: int, batched: bool = True) -> Array:
    """Return x or y as ``(G, N, *I, c)``."""
    if not batched:
        one = without_batch(axes)
        a = xp.permute_dims(a, (*one.spatial, one.last))[None, ...]
    else:
        a = xp.permute_dims(a, (axes.first, *axes.spatial, axes.last))
    if G == 1:
        return a[None, ...]
    a = xp.reshape(a, (*a.shape[:-1], G, a.shape[-1] // G))
    return xp.permute_dims(a, (a.ndim - 2, *range(a.ndim - 2), a.ndim - 1))


def ungrouped(xp: Namespace, a: Array, axes: Axes, batched: bool = True) -> Array:
    """Return ``(G, N, *I, c)`` as x or y in its layout: the inverse of `grouped`."""
    a = xp.permute_dims(a, (*range(1, a.ndim - 1), 0, a.ndim - 1))
    a = xp.reshape(a, (*a.shape[:-2], a.shape[-2] * a.shape[-1]))
    if not batched:
        one = without_batch(axes)
        return xp.permute_dims(a[0, ...], _inverse((*one.spatial, one.last)))
    return xp.permute_dims(a, _inverse((axes.first, *axes.spatial, axes.last)))


def grouped_weights(xp: Namespace, w: Array, axes: Axes, G: int, lead: int = 0) -> Array:
    """Return w as ``(G, *W, c, k)``, behind `lead` more axes that come first in both."""
    order = (*axes.spatial, axes.first, axes.last)
    w = xp.permute_dims(w, (*range(lead), *(lead + axis for axis in order)))
    if G == 1:
        return w[along(lead, None)]
    w = xp.reshape(w, (*w.shape[:-1], G, w.shape[-1] // G))
    return xp.permute_dims(w, (*range(lead), w.ndim - 2, *range(lead, w.ndim - 2), w.ndim - 1))


def ungrouped_weights(xp: Namespace, w: Array, axes: Axes, lead: int = 0) -> Array:
    """Return ``(G, *W, c, k)`` as w in its layout: the inverse of `grouped_weights`."""
    w = xp.permute_dims(w, (*range(lead), *range(lead + 1, w.ndim - 1), lead, w.ndim - 1))
    w = xp.reshape(w, (*w.shape[:-2], w.shape[-2] * w.shape[-1]))
    order = _inverse((*axes.spatial, axes.first, axes.last))
    return xp.permute_dims(w, (*range(lead), *(lead + axis for axis in order)))


def _inverse(order: Ints) -> Ints:
    return tuple(order.index(axis) for axis in range(len(order)))
