"""A literal reference for every convolution, for tests only.

One table per axis says which input cell each window reads at each tap, found by laying the padded
line out and walking over it; sizes are counted on it, not computed. Every contraction is then one
loop over that table:

    y[o] += x[i] * w[t]        dx[i] += g[o] * w[t]        dw[t] += x[i] * g[o]

NumPy holds the numbers (float64, complex128, or int64, whose wrapping is exact modulo any smaller
integer type) and sums over samples and channels. Arrays are channels first and batched. The three
contractions are linear, without conjugation; `backward` and its like conjugate as xconv documents.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

Line = tuple[int | None, ...]


def per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """An int for every axis, or the ints as they are."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def pads(padding, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """What one axis gets before its first cell and after its last; `padding` is that axis's."""
    reach = dilation * (kernel - 1)
    match padding:
        case "valid":
            return 0, 0
        case "full":
            return reach, reach
        case "causal":
            return reach, 0
        case "same" | "same_lower":
            starts = range(0, size, stride)
            total = max((len(starts) - 1) * stride + reach + 1 - size, 0)
            small, large = total // 2, total - total // 2
            return (small, large) if padding == "same" else (large, small)
        case int():
            return padding, padding
        case low, high:
            return low, high
    raise AssertionError(f"not a padding: {padding!r}")


def padded(size: int, low: int, high: int, mode: str) -> Line:
    """The source cell of every cell of the padded line, None where it is a zero of the padding.

    Positive sides extend the whole line first, negative ones crop the result.
    """
    line: list[int | None] = list(range(size))
    before, after = max(low, 0), max(high, 0)
    left: list[int | None]
    right: list[int | None]
    match mode:
        case "zeros":
            left, right = [None] * before, [None] * after
        case "replicate":
            left, right = [0] * before, [size - 1] * after
        case "circular":
            left, right = line[size - before :], line[:after]
        case "symmetric":
            left, right = line[:before][::-1], line[size - after :][::-1]
        case "reflect":
            left, right = line[1 : before + 1][::-1], line[size - 1 - after : size - 1][::-1]
    enough = len(left) == before and len(right) == after and (size or mode == "zeros")
    assert enough, "padding larger than the line"
    whole = left + line + right
    return tuple(whole[max(-low, 0) : max(len(whole) - max(-high, 0), 0)])


def windows(line: Line, kernel: int, stride: int, dilation: int) -> list[Line]:
    """The cells that every window reads, tap by tap, while the whole window fits."""
    found, start = [], 0
    while start + dilation * (kernel - 1) < len(line):
        found.append(tuple(line[start + dilation * tap] for tap in range(kernel)))
        start += stride
    return found


class Axis(NamedTuple):
    """One axis of a convolution."""

    size: int
    kernel: int
    stride: int
    dilation: int
    padding: object
    mode: str

    def line(self) -> Line:
        return padded(self.size, *pads(self.padding, *self[:4]), self.mode)

    def windows(self) -> list[Line]:
        return windows(self.line(), *self[1:4])


def axes(input_size, kernel_size, stride=1, padding=0, dilation=1, padding_mode="zeros"):
    """The options, however they are spelled, taken apart axis by axis."""
    rank = len(kernel_size)
    by_axis = (padding,) * rank if isinstance(padding, (int, str)) else tuple(padding)
    return tuple(
        Axis(*one, padding_mode)
        for one in zip(
            input_size,
            kernel_size,
            per_axis(stride, rank),
            per_axis(dilation, rank),
            by_axis,
            strict=True,
        )
    )


def output_size(input_size, kernel_size, stride=1, padding=0, dilation=1) -> tuple[int, ...]:
    """How many windows each axis has."""
    plan = axes(input_size, kernel_size, stride, padding, dilation)
    return tuple(len(axis.windows()) for axis in plan)


def transposed_size(
    size, kernel_size, stride=1, padding=0, dilation=1, output_padding=0
) -> tuple[int, ...]:
    """The shortest padded lines with that many windows, without the padding, and `output_padding`.

    "same" and "same_lower" pad by the size itself: there it is the longest line.
    """
    result = []
    for axis, extra in zip(
        axes(size, kernel_size, stride, padding, dilation),
        per_axis(output_padding, len(kernel_size)),
        strict=True,
    ):
        if axis.padding in ("same", "same_lower"):
            assert extra == 0
            sizes = range(axis.size * axis.stride + 1, 0, -1)
            fits = (n for n in sizes if len(axis._replace(size=n).windows()) == axis.size)
            result.append(next(fits))
        else:
            length = 1
            while len(windows(tuple(range(length)), *axis[1:4])) < axis.size:
                length += 1
            low, high = pads(axis.padding, 0, *axis[1:4])
            result.append(length - low - high + extra)
    return tuple(result)  # padding may leave less than nothing: not a size then


@lru_cache(maxsize=64)
def terms(plan: tuple[Axis, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """The output sizes, and every (output, tap, input) that meet, as flat positions."""
    per_line = [axis.windows() for axis in plan]
    sizes = tuple(len(found) for found in per_line)

    def meetings() -> Iterator[tuple[int, int, int]]:
        for where in product(*(range(size) for size in sizes)):
            for tap in product(*(range(axis.kernel) for axis in plan)):
                cells = [line[o][t] for line, o, t in zip(per_line, where, tap, strict=True)]
                if None not in cells:
                    yield (
                        flat(where, sizes),
                        flat(tap, [axis.kernel for axis in plan]),
                        flat(cells, [axis.size for axis in plan]),
                    )

    return sizes, tuple(meetings())


def flat(index, shape) -> int:
    position = 0
    for i, n in zip(index, shape, strict=True):
        position = position * n + i
    return position


# -- arrays: the position leads, then the group, so that one product covers samples and channels


def wide(array: np.ndarray) -> np.ndarray:
    kinds = {"c": np.complex128, "f": np.float64, "i": np.int64, "u": np.int64}
    return array.astype(kinds[array.dtype.kind])


def split(array: np.ndarray, groups: int) -> np.ndarray:
    """(N, C, *I) -> (I, G, N, C/G), in the wide type."""
    n, c, size = array.shape[0], array.shape[1], prod(array.shape[2:])
    return wide(array).reshape(n, groups, c // groups, size).transpose(3, 1, 0, 2)


def split_weight(array: np.ndarray, groups: int) -> np.ndarray:
    """(K, C/G, *W) -> (W, G, C/G, K/G), in the wide type."""
    k, c, size = array.shape[0], array.shape[1], prod(array.shape[2:])
    return wide(array).reshape(groups, k // groups, c, size).transpose(3, 0, 2, 1)


def join(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(I, G, N, C/G) -> (N, C, *I)."""
    _, groups, n, c = array.shape
    return array.transpose(2, 1, 3, 0).reshape(n, groups * c, *size)


def forward(x, w, *, groups=1, **options):
    """dT/dg: the convolution."""
    sizes, meet = terms(axes(x.shape[2:], w.shape[2:], **options))
    xs, ws = split(x, groups), split_weight(w, groups)
    shape = (prod(sizes), groups, x.shape[0], w.shape[0] // groups)
    y = np.zeros(shape, np.result_type(xs, ws))
    for o, t, i in meet:
        y[o] += xs[i] @ ws[t]
    return join(y, sizes)


def grad_input(g, w, input_size, *, groups=1, **options):
    """dT/dx: every product goes back to the cell that the forward pass read."""
    sizes, meet = terms(axes(input_size, w.shape[2:], **options))
    assert sizes == g.shape[2:], (sizes, g.shape)
    gs, ws = split(g, groups), split_weight(w, groups)
    dx = np.zeros((prod(input_size), groups, g.shape[0], w.shape[1]), np.result_type(gs, ws))
    for o, t, i in meet:
        dx[i] += gs[o] @ ws[t].swapaxes(-1, -2)
    return join(dx, input_size)


def grad_weight(g, x, kernel_size, *, groups=1, per_sample=False, **options):
    """dT/dw, (N, K, C/G, *W) before the sum over the samples."""
    sizes, meet = terms(axes(x.shape[2:], kernel_size, **options))
    assert sizes == g.shape[2:], (sizes, g.shape)
    n, c, k = x.shape[0], x.shape[1] // groups, g.shape[1]
    gs, xs = split(g, groups), split(x, groups)
    dw = np.zeros((prod(kernel_size), groups, n, c, k // groups), np.result_type(gs, xs))
    for o, t, i in meet:
        dw[t] += xs[i][..., :, None] * gs[o][..., None, :]
    dw = dw.transpose(2, 1, 4, 3, 0).reshape(n, k, c, *kernel_size)
    return dw if per_sample else dw.sum(axis=0)


def with_bias(y, b):
    return y if b is None else y + wide(b).reshape(-1, *(1,) * (y.ndim - 2))


def conv(x, w, b=None, **options):
    return with_bias(forward(x, w, **options), b)


def conv_transpose(x, w, b=None, *, output_padding=0, output_size=None, groups=1, **options):
    """dT/dx at x in the place of g: linear, unconjugated."""
    shape = {name: options[name] for name in ("stride", "padding", "dilation") if name in options}
    if output_size is None:
        output_size = transposed_size(
            x.shape[2:], w.shape[2:], **shape, output_padding=output_padding
        )
    return with_bias(grad_input(x, w, output_size, groups=groups, **options), b)


def bias_gradient(dy):
    return wide(dy).sum(axis=(0, *range(2, dy.ndim)))


class Grads(NamedTuple):
    dx: np.ndarray
    dw: np.ndarray
    db: np.ndarray


def backward(dy, x, w, **options) -> Grads:
    """The gradients of `conv`, conjugated as PyTorch does."""
    dx = grad_input(dy, w.conj(), x.shape[2:], **options)
    dw = grad_weight(dy, x.conj(), w.shape[2:], **options)
    return Grads(dx, dw, bias_gradient(dy))


def transpose_backward(dy, x, w, *, output_padding=0, output_size=None, **options) -> Grads:
    """The gradients of `conv_transpose`: x and dy have changed places."""
    dx = forward(dy, w.conj(), **options)
    dw = grad_weight(x.conj(), dy, w.shape[2:], **options)
    return Grads(dx, dw, bias_gradient(dy))
