"""Where the axes of arrays are: from any layout to the one form that is computed in, and back.

The form has the groups first, then channels: x ``(G, c, N, *I)``, w ``(G, k, c, *W)``,
y ``(G, k, N, *O)``. Groups are then a batch axis of `matmul`, the weights of a group are one
matrix, and data is copied in long runs of positions. Getting there moves no data in NumPy, CuPy
and PyTorch.
"""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Any, NamedTuple

from .errors import Refusal, shown
from .geometry import Ints
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
    plain = tuple(map(str.__str__, names))  # of subclasses too
    return parsed(plain[0] if isinstance(layout, str) else plain, rank, transposed)


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


class Form(NamedTuple):
    """The order of an array's axes in which it is computed with, and its shape then."""

    order: Ints
    shape: Ints

    def of(self, xp: Namespace, a: Array) -> Array:
        """View an array so: to split axes is a view, whatever its strides."""
        return xp.reshape(xp.permute_dims(a, self.order), self.shape)


def data_form(axes: Axes, shape: Ints, batched: bool) -> Form:
    """Return the form of x or y, of the shape ``(G, c, N, *I)``."""
    if batched:
        return Form((axes.last, axes.first, *axes.spatial), shape)
    one = without_batch(axes)
    return Form((one.last, *one.spatial), shape)


def weights_form(axes: Axes, shape: Ints, lead: int = 0) -> Form:
    """Return the form of w, of the shape ``(G, k, c, *W)`` behind `lead` axes first in both."""
    moved = (lead + axis for axis in (axes.last, axes.first, *axes.spatial))
    return Form((*range(lead), *moved), shape)


def ungrouped(xp: Namespace, a: Array, axes: Axes, batched: bool = True) -> Array:
    """Return ``(G, c, N, *I)`` as x or y in its layout: the inverse of `data_form`."""
    a = xp.reshape(a, (a.shape[0] * a.shape[1], *a.shape[2:]))
    if not batched:
        one = without_batch(axes)
        return xp.permute_dims(a[:, 0, ...], _inverse((one.last, *one.spatial)))
    return xp.permute_dims(a, _inverse((axes.last, axes.first, *axes.spatial)))


def ungrouped_weights(xp: Namespace, w: Array, axes: Axes, lead: int = 0) -> Array:
    """Return ``(G, k, c, *W)`` as w in its layout: the inverse of `weights_form`."""
    K = w.shape[lead] * w.shape[lead + 1]
    w = xp.reshape(w, (*w.shape[:lead], K, *w.shape[lead + 2 :]))
    order = _inverse((axes.last, axes.first, *axes.spatial))
    return xp.permute_dims(w, (*range(lead), *(lead + axis for axis in order)))


def _inverse(order: Ints) -> Ints:
    return tuple(order.index(axis) for axis in range(len(order)))
