"""The layer of the question that began this library, written anew, as a reference.

`x` is [channels, height, width], the filters are [n_filters, channels, height, width], the bias is
one number per filter. Three pieces: the forward pass as an einsum over strided windows, the double
loop for the gradients, and the gradients by tensordot. The defects of the original are repaired:
its loop never advanced the output row, added every filter's sum to the whole of dB and took the
image for square; its einsum for dF summed over the kernel's own axes. Its tensordot version is
right for stride 1 alone, and is kept to that.
"""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import xconv

CASES = [  # channels, height, width, filters, filter height, filter width, stride
    (1, 5, 5, 1, 3, 3, 1),
    (3, 8, 6, 4, 3, 3, 1),
    (2, 5, 9, 3, 2, 4, 1),
    (4, 7, 3, 2, 1, 1, 1),
    (2, 4, 6, 5, 4, 6, 1),
    (3, 9, 7, 4, 3, 3, 2),
    (2, 6, 11, 3, 3, 2, 2),  # neither stride divides: the last row and column go unseen
    (1, 10, 13, 2, 2, 3, 3),  # the stride is greater than the kernel's height
]
STRIDE_1 = [case for case in CASES if case[-1] == 1]


def layer(channels, height, width, n_filters, f_height, f_width, stride, seed=0):
    """Small integers in float64, whose sums are exact in any order."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.integers(-4, 5, shape).astype(np.float64)

    out = (height - f_height) // stride + 1, (width - f_width) // stride + 1
    x, filters = draw(channels, height, width), draw(n_filters, channels, f_height, f_width)
    return x, filters, draw(n_filters), draw(n_filters, *out)


def windows(x, f_height, f_width, stride):
    """View of every window: [out height, out width, channels, f_height, f_width]."""
    channels, height, width = x.shape
    out = (height - f_height) // stride + 1, (width - f_width) // stride + 1
    by_channel, by_row, by_column = x.strides
    return as_strided(
        x,
        (*out, channels, f_height, f_width),
        (by_row * stride, by_column * stride, by_channel, by_row, by_column),
        writeable=False,
    )


def forward_einsum(x, filters, bias, stride):
    view = windows(x, *filters.shape[2:], stride)
    return np.einsum("ijckl,ackl->aij", view, filters) + bias[:, None, None]


def backward_loop(x, filters, dy, stride):
    dA, dF, dB = np.zeros(x.shape), np.zeros(filters.shape), np.zeros(len(filters))
    f_height, f_width = filters.shape[2:]
    for a in range(len(filters)):
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                rows = slice(i * stride, i * stride + f_height)
                columns = slice(j * stride, j * stride + f_width)
                dF[a] += dy[a, i, j] * x[:, rows, columns]
                dA[:, rows, columns] += dy[a, i, j] * filters[a]
        dB[a] += dy[a].sum()
    return dA, dF, dB


def backward_tensordot(x, filters, dy):
    """For stride 1: dF correlates x with dy; dA correlates the padded filters with dy reversed."""
    channels, height, width = x.shape
    n_filters, _, f_height, f_width = filters.shape
    dy_height, dy_width = dy.shape[1:]

    by_channel, by_row, by_column = x.strides
    view = as_strided(
        x,
        (channels, f_height, f_width, dy_height, dy_width),
        (by_channel, by_row, by_column, by_row, by_column),
        writeable=False,
    )
    dF = np.tensordot(view, dy, axes=[(3, 4), (1, 2)]).transpose(3, 0, 1, 2)

    edge = (dy_height - 1,) * 2, (dy_width - 1,) * 2
    padded = np.pad(filters, ((0, 0), (0, 0), *edge))
    by_filter, by_channel, by_row, by_column = padded.strides
    view = as_strided(
        padded,
        (n_filters, height, width, dy_height, dy_width, channels),
        (by_filter, by_row, by_column, by_row, by_column, by_channel),
        writeable=False,
    )
    dA = np.tensordot(view, dy[:, ::-1, ::-1], axes=[(0, 3, 4), (0, 1, 2)]).transpose(2, 0, 1)
    return dA, dF


@pytest.mark.parametrize("method", ["auto", "windows", "taps"])
@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryStride:
    def test_forward(self, case, method):
        x, filters, bias, _ = layer(*case)
        y = xconv.conv(x, filters, bias, stride=case[-1], method=method)
        np.testing.assert_array_equal(y, forward_einsum(x, filters, bias, case[-1]), strict=True)

    def test_backward(self, case, method):
        x, filters, _, dy = layer(*case)
        dA, dF, dB = backward_loop(x, filters, dy, case[-1])
        options = {"stride": case[-1], "method": method}
        for result, expected in [
            *zip(xconv.conv_backward(dy, x, filters, **options), (dA, dF, dB), strict=True),
            (xconv.conv_grad_input(dy, filters, x.shape[1:], **options), dA),
            (xconv.conv_grad_weight(dy, x, filters.shape[2:], **options), dF),
        ]:
            np.testing.assert_array_equal(result, expected, strict=True)


@pytest.mark.parametrize("case", STRIDE_1, ids=str)
def test_tensordot(case):
    x, filters, _, dy = layer(*case)
    dA, dF = backward_tensordot(x, filters, dy)
    grads = xconv.conv_backward(dy, x, filters)
    np.testing.assert_array_equal(grads.dx, dA, strict=True)
    np.testing.assert_array_equal(grads.dw, dF, strict=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_random_floats(case):
    x, filters, bias, dy = (a + 0.37 * np.cos(a) for a in layer(*case, seed=1))
    stride = case[-1]
    close = {"rtol": 1e-12, "atol": 1e-12}
    y = xconv.conv(x, filters, bias, stride=stride)
    np.testing.assert_allclose(y, forward_einsum(x, filters, bias, stride), **close)
    grads = xconv.conv_backward(dy, x, filters, stride=stride)
    for result, expected in zip(grads, backward_loop(x, filters, dy, stride), strict=True):
        np.testing.assert_allclose(result, expected, **close)
