"""The nasty cases others fell over, by their row in the project's table of edge cases (1 to 52).

Every row that NumPy can show is here, the Dask row, and the numbers of every library in rows 32, 36
and 39. Left out, for other libraries alone:
- 40, TF32 on a GPU.
- The half of 44 about cuDNN's engines.
"""

import itertools
import math
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

import xconv
from xconv import namespace, workers

PLAIN = ("auto", "windows", "taps")
EXACT = ("windows", "taps")


def row(*numbers):
    """Name the row that a test shows: it is readable in the test's id with `-v`."""
    return pytest.mark.parametrize("row", [pytest.param(n, id=f"row{n}") for n in numbers])


def draw(*shape, dtype=np.float64, seed=0):
    """Small integers, whose sums are exact in any order."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def loop(x, w, dy=None, *, stride=1, pads=0, dilation=1):
    """One group, one number per option or a pair (low, high) of pads: y, dx and dw by the formula.

    Without dy the gradients are those of y's sum.
    """
    rank = w.ndim - 2
    low, high = (pads, pads) if isinstance(pads, int) else pads
    out = [
        (size + low + high - dilation * (k - 1) - 1) // stride + 1
        for size, k in zip(x.shape[2:], w.shape[2:], strict=True)
    ]
    y = np.zeros((len(x), len(w), *out), np.result_type(x, w))
    dy = np.ones_like(y) if dy is None else dy
    dx, dw = np.zeros(x.shape, y.dtype), np.zeros(w.shape, y.dtype)
    for o, t in itertools.product(np.ndindex(*out), np.ndindex(*w.shape[2:])):
        at = tuple(stride * o[i] + dilation * t[i] - low for i in range(rank))
        if all(0 <= a < size for a, size in zip(at, x.shape[2:], strict=True)):
            y[:, :, *o] += x[:, :, *at] @ w[:, :, *t].T
            dx[:, :, *at] += dy[:, :, *o] @ w[:, :, *t].conj()
            dw[:, :, *t] += dy[:, :, *o].T @ x[:, :, *at].conj()
    return y, dx, dw


def every_contraction(x, w, dy, **options):
    """y, dx and dw by the three functions that are one contraction each."""
    return (
        xconv.conv(x, w, **options),
        xconv.conv_grad_input(dy, w, x.shape[2:], **options),
        xconv.conv_grad_weight(dy, x, w.shape[2:], **options),
    )


def check(x, w, *, stride=1, pads=0, dilation=1, methods=PLAIN):
    """All contractions of integer-valued data are the loop's, to the bit."""
    low, high = (pads, pads) if isinstance(pads, int) else pads
    options = {
        "stride": stride,
        "padding": ((low, high),) * (w.ndim - 2),
        "dilation": dilation,
    }
    y = loop(x, w, stride=stride, pads=pads, dilation=dilation)[0]
    dy = draw(*y.shape, dtype=y.dtype, seed=9)
    expected = loop(x, w, dy, stride=stride, pads=pads, dilation=dilation)
    for method in methods:
        results = every_contraction(x, w, dy, method=method, **options)
        for result, right in zip(results, expected, strict=True):
            assert_array_equal(result, right, strict=True)
        grads = xconv.conv_backward(dy, x, w, method=method, **options)
        for result, right in zip(grads[:2], expected[1:], strict=True):
            assert_array_equal(result, right, strict=True)
    return expected


def refuse(function, *args, error=ValueError, **options):
    with pytest.raises(error, match=r": need .+; got "):
        function(*args, **options)


def peak(function):
    """The result, and the most bytes NumPy and Python held at once beyond those held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = function()
        return result, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


MIB = 2**20

# ---------------------------------------------------------------- empty arrays and sizes


@row(1)
@pytest.mark.parametrize("method", PLAIN)
def test_batch_0(row, method):
    x, w, b = np.empty((0, 3, 6, 5)), draw(4, 3, 3, 2), draw(4)
    y = xconv.conv(x, w, b, method=method)
    assert y.shape == (0, 4, 4, 4)
    for _ in range(3):
        np.full(w.shape, np.nan), np.full(4, np.nan)  # what uninitialised memory would then hold
        grads = xconv.conv_backward(y, x, w, method=method)
        assert grads.dx.shape == x.shape
        assert_array_equal(grads.dw, np.zeros(w.shape), strict=True)
        assert_array_equal(grads.db, np.zeros(4), strict=True)
    per_sample = xconv.conv_grad_weight(y, x, (3, 2), per_sample=True, method=method)
    assert per_sample.shape == (0, *w.shape)
    back = xconv.conv_transpose(y, w, draw(3), method=method)
    assert back.shape == x.shape
    grads = xconv.conv_transpose_backward(back, y, w, method=method)
    assert grads.dx.shape == y.shape
    assert not grads.dw.any()
    assert not grads.db.any()


@row(2)
@pytest.mark.parametrize("method", PLAIN)
def test_input_channels_0(row, method):
    x, w, b = np.empty((2, 0, 6, 5)), np.empty((4, 0, 3, 2)), draw(4)
    biased = np.broadcast_to(b[:, None, None], (2, 4, 4, 4))
    assert_array_equal(xconv.conv(x, w, b, method=method), biased)
    y = xconv.conv(x, w, method=method)
    assert_array_equal(y, np.zeros((2, 4, 4, 4)), strict=True)
    dy = draw(*y.shape)
    grads = xconv.conv_backward(dy, x, w, method=method)
    assert grads.dx.shape == x.shape
    assert grads.dw.shape == w.shape
    assert_array_equal(grads.db, dy.sum((0, 2, 3)))


@row(3)
@pytest.mark.parametrize("method", PLAIN)
def test_output_channels_0(row, method):
    x, w = draw(2, 3, 6, 5), np.empty((0, 3, 3, 2))
    y = xconv.conv(x, w, np.empty(0), method=method)
    assert y.shape == (2, 0, 4, 4)
    grads = xconv.conv_backward(y, x, w, method=method)
    assert_array_equal(grads.dx, np.zeros(x.shape), strict=True)
    assert grads.dw.shape == w.shape
    assert grads.db.shape == (0,)


@row(4)
@pytest.mark.parametrize("groups", [0, -1, -2, 3, 4, 2**63])
def test_groups_that_do_not_divide(row, groups):
    x, w, dy = draw(2, 4, 5), draw(6, 2, 3), draw(2, 6, 3)  # right for 2 groups
    w5, dy5, x5 = draw(5, 2, 3), draw(2, 5, 3), draw(2, 5, 5)  # right for none of these
    refuse(xconv.conv, x, w, groups=groups)
    refuse(xconv.conv_backward, dy, x, w, groups=groups)
    refuse(xconv.conv_grad_input, dy5, w5, (5,), groups=groups)
    refuse(xconv.conv_grad_weight, dy, x, (3,), groups=groups)
    refuse(xconv.conv_transpose, x5, draw(5, 3, 3), groups=groups)


@row(5)
@pytest.mark.parametrize("method", PLAIN)
def test_spatial_size_0_with_padding(row, method):
    x, w, b = np.empty((2, 3, 0, 5)), draw(4, 3, 3, 2), draw(4)
    options = {"padding": (2, 0), "method": method}
    assert_array_equal(
        xconv.conv(x, w, b, **options), np.broadcast_to(b[:, None, None], (2, 4, 2, 4))
    )
    y = xconv.conv(x, w, **options)
    assert_array_equal(y, np.zeros((2, 4, 2, 4)), strict=True)
    grads = xconv.conv_backward(np.ones_like(y), x, w, **options)
    assert grads.dx.shape == x.shape
    assert_array_equal(grads.dw, np.zeros(w.shape), strict=True)
    assert_array_equal(grads.db, np.full(4, 16.0), strict=True)


@row(6)
def test_kernel_size_0(row):
    x, dy = draw(2, 3, 6, 5), draw(2, 4, 6, 4)
    refuse(xconv.conv, x, np.empty((4, 3, 0, 2)))
    refuse(xconv.conv_transpose, x, np.empty((3, 4, 0, 2)))
    refuse(xconv.conv_grad_weight, dy, x, (0, 2))
    refuse(xconv.conv_grad_input, dy, np.empty((4, 3, 0, 2)), (6, 5))
    refuse(xconv.unfold, x, (0, 2))
    refuse(xconv.fold, np.empty((2, 0, 24)), (6, 5), (0, 2))
    refuse(xconv.conv_output_size, (6, 5), (0, 2))
    refuse(xconv.conv_transpose_output_size, (6, 5), (0, 2))


@row(7)
@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"),
    [(8, 0, 1), (4, 0, 2), (10, 1, 1), (1, -4, 1), (7, (0, -1), 1)],
)
def test_kernel_larger_than_padded_input(row, kernel, padding, dilation):
    x, w, dy = draw(2, 3, 6), draw(4, 3, kernel), draw(2, 4, 1)
    padding = padding if isinstance(padding, int) else (padding,)
    options = {"padding": padding, "dilation": dilation}
    refuse(xconv.conv, x, w, **options)
    refuse(xconv.conv_backward, dy, x, w, **options)
    refuse(xconv.conv_grad_input, dy, w, (6,), **options)
    refuse(xconv.conv_grad_weight, dy, x, (kernel,), **options)
    refuse(xconv.unfold, x, (kernel,), **options)
    refuse(xconv.fold, draw(2, 3 * kernel, 1), (6,), (kernel,), **options)
    refuse(xconv.conv_output_size, (6,), (kernel,), **options)


# ---------------------------------------------------------------- strides, dilations, pads


@row(8)
@pytest.mark.parametrize("method", PLAIN)
def test_stride_beyond_kernel(row, method):
    x, w = draw(2, 3, 12), draw(4, 3, 2)
    check(x, w, stride=5, methods=[method])
    dx = xconv.conv_grad_input(np.full((2, 4, 3), np.nan), w, (12,), stride=5, method=method)
    unseen = [i for i in range(12) if i % 5 > 1]
    assert_array_equal(dx[..., unseen], np.zeros((2, 3, len(unseen))), strict=True)
    assert np.isnan(np.delete(dx, unseen, axis=-1)).all()


@row(9)
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_tail_no_window_reaches(row, stride):
    x, w = draw(2, 3, 12, 11), draw(4, 3, 3, 2)
    dx = check(x, w, stride=stride)[1]
    assert dx.shape == x.shape
    rows = (12 - 3) // stride * stride + 3
    assert not dx[:, :, rows:].any()
    dy = np.full(xconv.conv(x, w, stride=stride).shape, np.nan)
    assert not xconv.conv_grad_input(dy, w, (12, 11), stride=stride)[:, :, rows:].any()


@row(10)
@pytest.mark.parametrize("stride", [6, 7, 2**31, 2**40, 2**63 - 1])
def test_enormous_stride(row, stride):
    assert check(draw(2, 3, 6, 5), draw(4, 3, 3, 2), stride=stride)[0].shape == (2, 4, 1, 1)
    check(draw(2, 3, 6), draw(4, 3, 3), stride=stride, pads=2)


@row(10)
@pytest.mark.parametrize("stride", [2**31, 2**40, 2**62])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("method", PLAIN)
def test_enormous_stride_and_padding(row, method, mode, stride):
    """Of three outputs the one in the middle reads the input; the others are anywhere outside."""
    x, w, dy = draw(2, 3, 6, 5), draw(4, 3, 3, 2), draw(2, 4, 3, 3)
    options = {"padding_mode": mode, "method": method}
    near = every_contraction(x, w, dy, stride=9, padding=8, **options)
    far = every_contraction(x, w, dy, stride=stride, padding=stride - 1, **options)
    for result, right in zip(far, near, strict=True):
        assert_array_equal(result, right, strict=True)


@row(10)
def test_enormous_strides_along_many_axes(row):
    """The cells of a block that spans all outputs are more than a float can count."""
    x, w = np.ones((1, 1, *(1,) * 18)), np.ones((1, 1, *(1,) * 17, 3))
    options = {"padding": ((0, 2**62),) * 17 + ((1, 1),), "stride": 2**62}
    y = xconv.conv(x, w, **options)
    assert y.shape == (1, 1, *(2,) * 17, 1)
    assert np.count_nonzero(y) == 1
    assert xconv.conv_grad_input(y, w, (1,) * 18, **options).item() == 1


@row(11)
@pytest.mark.parametrize("stride", [0, -1, (1, 0), (-(2**63), 1)])
def test_stride_below_1(row, stride):
    x, w, dy = draw(2, 3, 6, 5), draw(4, 3, 3, 2), draw(2, 4, 4, 4)
    refuse(xconv.conv, x, w, stride=stride)
    refuse(xconv.conv_transpose, dy, w, stride=stride)
    refuse(xconv.conv_backward, dy, x, w, stride=stride)
    refuse(xconv.conv_grad_input, dy, w, (6, 5), stride=stride)
    refuse(xconv.conv_grad_weight, dy, x, (3, 2), stride=stride)
    refuse(xconv.unfold, x, (3, 2), stride=stride)


@row(12)
@pytest.mark.parametrize("dilation", [0, -1, (1, 0), (-(2**63), 1)])
def test_dilation_below_1(row, dilation):
    x, w, dy = draw(2, 3, 6, 5), draw(4, 3, 3, 2), draw(2, 4, 4, 4)
    refuse(xconv.conv, x, w, dilation=dilation)
    refuse(xconv.conv_transpose, dy, w, dilation=dilation)
    refuse(xconv.conv_backward, dy, x, w, dilation=dilation)
    refuse(xconv.conv_grad_input, dy, w, (6, 5), dilation=dilation)
    refuse(xconv.conv_grad_weight, dy, x, (3, 2), dilation=dilation)
    refuse(xconv.unfold, x, (3, 2), dilation=dilation)


@row(13)
@pytest.mark.parametrize("dilation", [2**31, 2**40, 2**62, 2**63 - 1, 2**64])
def test_enormous_dilation(row, dilation):
    x, w, dy = draw(2, 3, 6), draw(4, 3, 3), draw(2, 4, 6)
    refuse(xconv.conv, x, w, dilation=dilation)
    refuse(xconv.conv_backward, dy, x, w, dilation=dilation)
    refuse(xconv.conv_grad_input, dy, w, (6,), dilation=dilation)
    refuse(xconv.conv_grad_weight, dy, x, (3,), dilation=dilation)


@row(14)
@pytest.mark.parametrize("dilation", [2**31, 2**40, 2**63 - 1])
def test_enormous_dilation_of_one_tap(row, dilation):
    x, w = draw(2, 3, 6, 5), draw(4, 3, 1, 1)
    dy = draw(2, 4, 6, 5)
    for method in PLAIN:
        results = every_contraction(x, w, dy, dilation=dilation, method=method)
        for result, right in zip(results, loop(x, w, dy), strict=True):
            assert_array_equal(result, right, strict=True)


@row(15)
@pytest.mark.parametrize("pads", [3, 4, 10, (7, 3), (1000, 2000)])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_beyond_kernel(row, pads, stride):
    x, w, b = draw(2, 3, 5), draw(4, 3, 3), draw(4)
    y = check(x, w, pads=pads, stride=stride)[0]
    pairs = ((pads, pads) if isinstance(pads, int) else pads,)
    biased = xconv.conv(x, w, b, padding=pairs, stride=stride)
    assert_array_equal(biased, y + b[:, None], strict=True)
    assert_array_equal(biased[..., 0], np.broadcast_to(b, (2, 4)))


BIG = {  # one call each whose result cannot exist
    **{
        f"2d padding 2**{power}": lambda x, w, v=2**power: xconv.conv(x, w, padding=v)
        for power in (31, 33, 40, 62, 63, 64)
    },
    "2d padding 2**63-1": lambda x, w: xconv.conv(x, w, padding=2**63 - 1),
    "replicate": lambda x, w: xconv.conv(x, w, padding=2**31, padding_mode="replicate"),
    "reflect": lambda x, w: xconv.conv(x, w, padding=2**31, padding_mode="reflect"),
    "circular": lambda x, w: xconv.conv(x, w, padding=2**31, padding_mode="circular"),
    "one side": lambda x, w: xconv.conv(x, w, padding=((0, 2**62), (2**40, 0))),
    "strided": lambda x, w: xconv.conv(x, w, padding=2**62, stride=2**20),
    "taps": lambda x, w: xconv.conv(x, w, padding=2**40, method="taps"),
    "windows": lambda x, w: xconv.conv(x, w, padding=2**40, method="windows"),
    "no samples": lambda x, w: xconv.conv(x[:0], w, padding=2**40),
    **{
        f"explained, {name}": lambda x, w, name=name: xconv.explain(
            x, w, padding=2**62, contraction=name
        )
        for name in ("forward", "grad_input", "grad_weight")
    },
    "unfold": lambda x, w: xconv.unfold(x, (3, 2), padding=2**40),
    "unfold, few of many": lambda x, w: xconv.unfold(x, (3, 2), padding=2**62 - 1, stride=2**62),
    "unfold, no samples": lambda x, w: xconv.unfold(x[:0], (3, 2), padding=2**62 - 1),
    "fold": lambda x, w: xconv.fold(x[:, :, :1, 0], (2**62,), (3,), stride=2**62),
    "fold, far apart": lambda x, w: xconv.fold(
        x[:, :, :3, 0], (2**62,), (3,), padding=2**61, stride=2**62
    ),
    "fold, replicate": lambda x, w: xconv.fold(
        x[:, :, :3, 0], (5,), (3,), padding=2**62 - 1, stride=2**62, padding_mode="replicate"
    ),
    "negative, transposed": lambda x, w: xconv.conv_transpose(x, w, padding=-(2**40)),
    "stride, transposed": lambda x, w: xconv.conv_transpose(x, w, stride=2**40),
    "dilation, transposed": lambda x, w: xconv.conv_transpose(x, w, dilation=2**62),
    "input_size": lambda x, w: xconv.conv_grad_input(
        x[:, :, :1, :1], w, (2**40, 2**40), stride=2**62
    ),
}


@row(16)
@pytest.mark.parametrize("name", BIG)
def test_result_that_cannot_exist(row, name):
    x, w = draw(2, 3, 6, 5), draw(3, 3, 3, 2)

    def run():
        """The seconds it took, and the bytes that the system refused, which count as held."""
        start = time.perf_counter()
        with pytest.raises((ValueError, MemoryError)) as info:
            BIG[name](x, w)
        seconds = time.perf_counter() - start
        if issubclass(info.type, MemoryError):
            shape, dtype = info.value.args
            return seconds, math.prod(shape) * dtype.itemsize
        assert "; got " in str(info.value)
        return seconds, 0

    run()  # whatever a first call loads
    (seconds, refused), held = peak(run)
    if held - refused >= MIB:  # Python's table of all strings may have grown by two, once
        (seconds, refused), held = peak(run)
    assert held - refused < MIB
    assert seconds < 0.5  # 50 ms, with room for a slow machine and the tracing


@row(17)
@pytest.mark.parametrize("pads", [-1, (-2, -1), (-2, 3), (3, -2), (0, -3), (-4, 4)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_negative_padding(row, pads, stride, dtype):
    dx = check(
        draw(2, 3, 8, 9, dtype=dtype), draw(4, 3, 3, 2, dtype=dtype), pads=pads, stride=stride
    )[1]
    low, high = (pads, pads) if isinstance(pads, int) else pads
    for cropped in (dx[:, :, : max(-low, 0)], dx[:, :, 8 + min(high, 0) :]):
        assert not cropped.any()


@row(18)
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("name", ["same", "same_lower"])
def test_same(row, name, kernel, stride, dilation):
    x, w = draw(2, 3, 7), draw(4, 3, kernel)
    out = -(-7 // stride)
    total = max((out - 1) * stride + dilation * (kernel - 1) + 1 - 7, 0)
    small, large = total // 2, total - total // 2
    pads = (small, large) if name == "same" else (large, small)
    y, dx, dw = check(x, w, pads=pads, stride=stride, dilation=dilation)
    dy = draw(*y.shape, seed=9)
    assert y.shape == (2, 4, out)
    results = every_contraction(x, w, dy, padding=name, stride=stride, dilation=dilation)
    for result, right in zip(results, (y, dx, dw), strict=True):
        assert_array_equal(result, right, strict=True)


@row(19)
@pytest.mark.parametrize("pads", [(0, 2), (2, 0), (1, 3), (5, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_asymmetric_padding(row, pads, stride):
    check(draw(2, 3, 6, 5), draw(4, 3, 3, 2), pads=pads, stride=stride)
    x, w = draw(1, 1, 4), np.ones((1, 1, 1))
    y = xconv.conv(x, w, padding=(pads,))
    assert_array_equal(y, np.pad(x, ((0, 0), (0, 0), pads)), strict=True)


@row(20)
@pytest.mark.parametrize("shape", [(1,), (4, 1), (1, 4), (), (5,), (3,), (0,), (8,)], ids=str)
def test_bias_is_never_broadcast(row, shape):
    x, w, b = draw(2, 3, 6), draw(4, 3, 3), np.ones(shape)
    refuse(xconv.conv, x, w, b)
    refuse(xconv.conv_transpose, draw(2, 4, 6), draw(4, 4, 3), b)


@row(21)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 4, 4, 3),
        (2, 4, 5, 4),
        (2, 1, 4, 4),
        (1, 4, 4, 4),
        (2, 4, 1, 1),
        (2, 4, 16),
        (4, 4, 4),
        (0, 4, 4, 4),
    ],
    ids=str,
)
def test_dy_of_a_wrong_shape(row, shape):
    x, w, dy = draw(2, 3, 6, 5), draw(4, 3, 3, 2), np.full(shape, np.nan)
    refuse(xconv.conv_backward, dy, x, w)
    if shape != (2, 1, 4, 4):  # which is right for one output channel
        refuse(xconv.conv_grad_weight, dy, x, (3, 2))
    refuse(xconv.conv_double_backward, x, w, None, dy, x, w)
    refuse(xconv.conv_transpose_backward, dy, draw(2, 4, 3, 4), w)


# ---------------------------------------------------------------- memory of the inputs


def spread(a):
    """Every other element of an array whose other elements are NaN."""
    gaps = np.full([2 * size for size in a.shape], np.nan, a.dtype)
    view = gaps[(slice(1, None, 2),) * a.ndim]
    view[...] = a
    return view


def shift(a):
    """The same values, one byte off their alignment."""
    view = np.ndarray(a.shape, a.dtype, np.empty(a.nbytes + 1, np.uint8), offset=1)
    view[...] = a
    return view


def frozen(a):
    a = a.copy()
    a.flags.writeable = False
    return a


MEMORY = {
    (22, "NaN in the gaps"): spread,
    (23, "negative strides"): lambda a: np.flip(np.flip(a).copy()),
    (23, "negative outer strides"): lambda a: a[::-1].copy()[::-1],
    (23, "Fortran order"): np.asfortranarray,
    (23, "misaligned"): shift,
    (23, "channels-last memory"): lambda a: np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1),
    (24, "byte-swapped"): lambda a: a.astype(a.dtype.newbyteorder()),
    (25, "read-only"): frozen,
}


@pytest.mark.parametrize(
    ("number", "name", "dtype"),
    [
        (*key, dtype)
        for key in MEMORY
        for dtype in ("float16", "float32", "float64", "complex128", "int16")
        if (key[0], dtype) != (22, "int16")  # an integer has no NaN
    ],
)
def test_memory_of_inputs(number, name, dtype):
    """Rows 22 to 25: the same values as of a plain contiguous copy, and native results."""
    make = MEMORY[number, name]
    plain = [draw(*shape, dtype=dtype) for shape in [(2, 3, 9, 8), (4, 3, 3, 2), (2, 4, 4, 4)]]
    made = [make(a) for a in plain]
    for a, b in zip(plain, made, strict=True):
        assert_array_equal(a, b)
    options = {"stride": 2, "padding": ((1, 0), (0, 1))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in PLAIN:
            expected = every_contraction(*plain, **options, method="windows")
            results = every_contraction(*made, **options, method=method)
            for result, right in zip(results, expected, strict=True):
                assert result.dtype.isnative
                assert result.flags.writeable
                assert_array_equal(result, right, strict=True)
        assert_array_equal(
            xconv.conv(made[0], made[1], make(draw(1, 4, 1, 1, dtype=dtype))[0, :, 0, 0]),
            xconv.conv(plain[0], plain[1], draw(4, dtype=dtype)),
            strict=True,
        )


@row(24)
def test_byte_swapped_everywhere_else(row):
    """In what is no contraction, and where nothing is added up."""
    x, w = draw(2, 3, 6), draw(3, 3, 1)
    swapped, kernel = (a.astype(a.dtype.newbyteorder()) for a in (x, w))
    cols = xconv.unfold(x, (2,))
    results = [
        (xconv.unfold(swapped, (2,)), cols),
        (xconv.unfold(swapped[:0], (2,)), cols[:0]),
        (xconv.fold(cols.astype(swapped.dtype), (6,), (2,)), xconv.fold(cols, (6,), (2,))),
        (xconv.fold(swapped, (6,), (1,)), x),
        (xconv.fold(swapped[:0], (6,), (1,)), x[:0]),
        (xconv.conv_double_backward(None, None, None, swapped, swapped, kernel)[1], 0 * x),
        (
            xconv.conv_backward(swapped[..., :1], swapped[..., :1], kernel).db,
            x[..., :1].sum((0, 2)),
        ),
        (xconv.nn.Conv(3, 4, (2,), like=swapped).weight, None),
    ]
    for result, right in results:
        assert result.dtype.isnative
        if right is not None:
            assert_array_equal(result, right, strict=True)


@row(23)
def test_broadcast_inputs(row):
    x = np.broadcast_to(draw(1, 3, 1, 5), (2, 3, 6, 5))
    w = np.broadcast_to(draw(4, 1, 1, 2), (4, 3, 3, 2))
    dy = np.broadcast_to(np.float64(2), (2, 4, 4, 4))
    for method in PLAIN:
        results = every_contraction(x, w, dy, method=method)
        for result, right in zip(results, loop(x, w, dy), strict=True):
            assert_array_equal(result, right, strict=True)


@row(26)
@pytest.mark.parametrize("method", PLAIN)
def test_inputs_stay_and_results_never_alias(row, method):
    x, dy = draw(2, 3, 6, 5), draw(2, 3, 6, 5, seed=1)
    w, b = np.eye(3).reshape(3, 3, 1, 1), np.zeros(3)
    inputs = x, dy, w, b
    before = [a.tobytes() for a in inputs]
    last = np.moveaxis(x, 1, -1).copy()
    results = [
        xconv.conv(x, w, b, method=method),
        xconv.conv(x, w, method=method),
        xconv.conv(x[0], w, method=method),
        xconv.conv_transpose(x, w, b, method=method),
        *xconv.conv_backward(dy, x, w, method=method),
        *xconv.conv_transpose_backward(dy, x, w, method=method),
        *xconv.conv_double_backward(dy, None, None, dy, x, w, method=method),
        *xconv.conv_double_backward(None, w, b, dy, x, w, method=method),
        xconv.conv_grad_weight(dy, x, (1, 1), per_sample=True, method=method),
        # one sample of one position, and a one by one kernel: nothing to sum
        *xconv.conv_backward(dy[:1, :, :1, :1], x[:1, :, :1, :1], w, method=method),
        xconv.conv(x[:0], w, method=method),
        xconv.unfold(x, (1, 1)),
        xconv.fold(x.reshape(2, 3, 30), (6, 5), (1, 1)),
        xconv.conv(last, w.transpose(2, 3, 1, 0), layout="channels_last", method=method),
    ]
    for result in results:
        assert not any(np.may_share_memory(result, a) for a in (*inputs, last))
        result[...] = 7  # writeable, and its own
    for first, second in itertools.combinations(results, 2):
        assert not np.may_share_memory(first, second)
    assert [a.tobytes() for a in inputs] == before


# ---------------------------------------------------------------- types


@row(27)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "make", [lambda a: np.ma.masked_array(a, a > 0), lambda a: np.ma.masked_array(a)]
)
def test_masked_array(row, place, make):
    args = [draw(2, 3, 6), draw(4, 3, 3)]
    args[place] = make(args[place])
    refuse(xconv.conv, *args, error=TypeError)
    refuse(xconv.conv, draw(2, 3, 6), draw(4, 3, 3), make(draw(4)), error=TypeError)


@row(28)
@pytest.mark.parametrize(
    "make",
    [
        lambda a: a.astype(object),
        lambda a: np.vectorize(Fraction, otypes=[object])(a),
        lambda a: a.astype(str),
        lambda a: a.astype("S4"),
        lambda a: a.astype("datetime64[s]"),
        lambda a: a.astype("timedelta64[s]"),
        lambda a: a.astype([("re", "f8"), ("im", "f8")]),
    ],
    ids=["object", "Fraction", "str", "bytes", "datetime64", "timedelta64", "structured"],
)
def test_dtypes_that_are_not_numbers(row, make):
    x, w, dy = draw(2, 3, 6), draw(4, 3, 3), draw(2, 4, 4)
    refuse(xconv.conv, make(x), w, error=TypeError)
    refuse(xconv.conv, x, make(w), error=TypeError)
    refuse(xconv.conv, make(x), make(w), error=TypeError)
    refuse(xconv.conv, x, w, make(draw(4)), error=TypeError)
    refuse(xconv.conv_backward, make(dy), x, w, error=TypeError)
    refuse(xconv.unfold, make(x), (3,), error=TypeError)


NUMBERS = ["float16", "float32", "float64", "complex64", "complex128"]
NUMBERS += ["int8", "int32", "int64", "uint8", "uint32"]


@row(29)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize(
    ("first", "second"),
    list(itertools.combinations(NUMBERS, 2)),
)
def test_mixed_dtypes(row, first, second, method):
    x, w = abs(draw(2, 3, 6)), abs(draw(4, 3, 3))
    right = loop(x, w)[0]
    for one, two in [(first, second), (second, first)]:
        y = xconv.conv(x.astype(one), w.astype(two), method=method)
        assert y.dtype == np.result_type(first, second)
        assert_array_equal(y, right)


@row(29)
def test_mixed_integers_never_become_a_float(row):
    x, w = draw(2, 3, 6), draw(4, 3, 3)
    for one, two in [(np.int64, np.uint64), (np.uint64, np.int8)]:
        refuse(xconv.conv, x.astype(one), w.astype(two), error=TypeError)
        refuse(xconv.conv, x.astype(two), w.astype(one), error=TypeError)


@row(30)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_small_integers_wrap_and_widen(row, dtype, method):
    x, w = np.full((1, 3, 4), 100, dtype), np.full((2, 3, 2), 100, dtype)
    total = np.array(6 * 100 * 100)
    y = xconv.conv(x, w, method=method)
    assert_array_equal(y, np.full((1, 2, 3), total.astype(dtype)), strict=True)
    assert y[0, 0, 0] == (x[0, :, :2].reshape(-1) @ w[0].reshape(-1))
    wide = xconv.conv(x, w, dtype=np.int32, method=method)
    assert_array_equal(wide, np.full((1, 2, 3), total.astype(np.int32)), strict=True)
    dy = np.full((1, 2, 3), 100, dtype)
    dw = xconv.conv_grad_weight(dy, x, (2,), dtype=np.int64, method=method)
    assert_array_equal(dw, np.full((2, 3, 2), 30_000), strict=True)


@row(30)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_large_integers_wrap_as_matmul(row, dtype, method):
    """No detour through a float: products of the type's own largest values."""
    top = np.iinfo(dtype).max
    x = np.array([[top, top - 1, 3, top // 3, top - 5, 7]], dtype)
    w = np.array([[top, 5, top - 2], [top // 7, top, top]], dtype)
    expected = np.stack([x[0, i : i + 3] @ w.T for i in range(4)], -1)
    assert_array_equal(xconv.conv(x, w[:, None], method=method), expected, strict=True)


@row(31)
def test_bool(row):
    x, w, yes = draw(2, 3, 6), draw(4, 3, 3), np.ones((2, 3, 6), bool)
    refuse(xconv.conv, yes, w, error=TypeError)
    refuse(xconv.conv, x, w > 0, error=TypeError)
    refuse(xconv.conv, yes, w > 0, error=TypeError)
    refuse(xconv.conv, x, w, np.ones(4, bool), error=TypeError)
    refuse(xconv.conv, x, w, dtype=bool, error=TypeError)
    refuse(xconv.conv_backward, np.ones((2, 4, 4), bool), x, w, error=TypeError)
    refuse(xconv.unfold, yes, (3,), error=TypeError)


# ---------------------------------------------------------------- values that are not finite


@row(32)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [
        ((1, 1, 600), (1, 1, 64)),
        ((1, 16, 32, 32), (16, 16, 3, 3)),
        ((2, 1, 40, 40), (1, 1, 15, 15)),
        ((1, 3, 9, 8, 7), (2, 3, 3, 3, 3)),
    ],
    ids=str,
)
def test_nan_stays_in_its_receptive_field(row, x_shape, w_shape, method, value):
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0.5, 1, x_shape), rng.uniform(0.5, 1, w_shape)
    x, w = x.astype(np.float32), w.astype(np.float32)
    clean = xconv.conv(x, w, padding=1, method=method)
    at = (0, 0, *(size // 2 for size in x_shape[2:]))
    x[at] = value
    y = xconv.conv(x, w, padding=1, method=method)
    mark = np.zeros(x_shape)
    mark[at] = 1
    reached = xconv.conv(mark, np.ones(w_shape), padding=1, method="windows") != 0
    assert_array_equal(~np.isfinite(y), reached)
    assert_allclose(y[~reached], clean[~reached], rtol=1e-4)
    if value == np.inf:
        assert (y[reached] == np.inf).all()


@row(32)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_stays_in_its_receptive_field_in_every_library(row, backend, value):
    x, w, dy = np.ones((2, 4, 9, 8)), np.ones((6, 4, 3, 2)), np.ones((2, 6, 5, 8))
    options = {"stride": (2, 1), "padding": ((2, 0), (0, 1))}

    def results(x, w, dy):
        arrays = (backend.array(a.astype(np.float32)) for a in (x, w, dy))
        return [backend.to_numpy(a) for a in every_contraction(*arrays, **options)]

    cell, output = (1, 2, 4, 3), (0, 5, 2, 6)
    clean = results(x, w, dy)
    marked_x, marked_dy = np.zeros_like(x), np.zeros_like(dy)
    marked_x[cell] = marked_dy[output] = 1
    y, _, dw = results(marked_x, w, dy)
    _, dx, _ = results(x, w, marked_dy)
    x[cell] = value
    spoiled_y, same_dx, spoiled_dw = results(x, w, dy)
    x[cell], dy[output] = 1, value
    same_y, spoiled_dx, _ = results(x, w, dy)
    for spoiled, reached, was in zip(
        (spoiled_y, spoiled_dx, spoiled_dw), (y, dx, dw), clean, strict=True
    ):
        assert reached.any()
        assert_array_equal(spoiled, np.where(reached, np.float32(value), was), strict=True)
    assert_array_equal(same_y, clean[0], strict=True)
    assert_array_equal(same_dx, clean[1], strict=True)


@row(33)
@pytest.mark.parametrize("method", PLAIN)
def test_nan_under_a_zero_weight(row, method):
    x, w = draw(1, 2, 6), np.zeros((3, 2, 3))
    x[0, 1, 3] = np.nan
    y = xconv.conv(x, w, method=method)
    assert_array_equal(y, np.array([[[0, np.nan, np.nan, np.nan]] * 3]), strict=True)
    x[0, 1, 3] = np.inf
    assert_array_equal(np.isnan(xconv.conv(x, w, method=method)), np.isnan(y))


@row(34)
@pytest.mark.parametrize("method", PLAIN)
def test_infinite_weight_meets_padding(row, method):
    with np.errstate(invalid="ignore"):
        x, w = np.array([[[1.0, 2, 3]]]), np.array([[[np.inf, 1, 1]]])
        y = xconv.conv(x, w, padding=1, method=method)
        assert_array_equal(y, [[[np.nan, np.inf, np.inf]]])

        dy = np.array([[[np.inf, 1, 1]]])
        dw = xconv.conv_grad_weight(dy, x, (3,), padding=1, method=method)
        assert_array_equal(dw, [[[np.nan, np.inf, np.inf]]])

        dy, w = np.array([[[5.0, 6, 7]]]), np.array([[[1.0, 1, np.inf]]])
        dx = xconv.conv_grad_input(dy, w, (3,), padding=1, method=method)
        assert np.isnan(dx[0, 0, 0]) or dx[0, 0, 0] == 11  # its window hangs over dy's edge
        assert (dx[0, 0, 1:] == np.inf).all()


@row(35)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", PLAIN)
def test_infinite_input_of_many_channels(row, method, dtype):
    x, w = np.ones((1, 64, 16, 16), dtype), np.full((64, 64, 3, 3), 0.5, dtype)
    x[0, 7, 8, 8] = np.inf
    y = xconv.conv(x, w, padding=1, method=method)
    assert not np.isnan(y).any()
    expected = np.zeros((16, 16), bool)
    expected[7:10, 7:10] = True
    assert_array_equal(np.isposinf(y), np.broadcast_to(expected, y.shape))


# ---------------------------------------------------------------- accumulation


@row(36)
@pytest.mark.parametrize("method", PLAIN)
def test_half_precision_partial_sums(row, method):
    high = np.array([200, 200, -200], np.float16)
    two = np.full(3, 200, np.float16)
    options = {"method": method}
    for result in (
        xconv.conv(two.reshape(1, 3, 1), high.reshape(1, 3, 1), **options),
        xconv.conv(two.reshape(1, 1, 3), high.reshape(1, 1, 3), **options),
        xconv.conv_grad_weight(two.reshape(1, 1, 3), high.reshape(1, 1, 3), (1,), **options),
        xconv.conv_grad_weight(two.reshape(3, 1, 1), high.reshape(3, 1, 1), (1,), **options),
        xconv.conv_grad_input(two.reshape(1, 3, 1), high.reshape(3, 1, 1), (1,), **options),
    ):
        assert_array_equal(result, np.full((1, 1, 1), 40_000, np.float16), strict=True)


@row(36)
@pytest.mark.backends("numpy", "cupy", "torch", "torch-cuda", "jax", "dask")  # with 16-bit floats
def test_half_precision_sums_in_every_library(row, backend):
    """In 16 bits these terms get lost or overflow; their sum is a number of 16 bits."""
    terms = {"float16": [(2048, 1, 1), (2**15, 2**15, -(2**15))], "bfloat16": [(256, 1, 1)]}
    for dtype in terms.keys() & set(backend.dtypes):
        for three in terms[dtype]:
            spaced = np.zeros(11)
            spaced[::5] = three  # each in a chunk of its own, in Dask
            deep, wide, long = ((1, 11, 1), (11, 1, 1), (1, 1, 11))

            def made(shape, numbers=spaced, dtype=dtype):
                return backend.array(np.broadcast_to(numbers, 11).reshape(shape), dtype)

            for result in (
                xconv.conv(made(deep), made(deep, 1.0)),
                xconv.conv(made(long), made(long, 1.0)),
                xconv.conv_grad_weight(made(wide), made(wide, 1.0), (1,)),
                xconv.conv_grad_weight(made(long), made(long, 1.0), (1,)),
                xconv.conv_grad_input(made(deep), made(wide, 1.0), (1,)),
                xconv.conv_backward(
                    made(long), made(long), backend.array(np.ones((1, 1, 1)), dtype)
                ).db,
            ):
                assert backend.dtype_of(result) == dtype
                assert backend.to_numpy(result).item() == sum(three)


@row(36)
@pytest.mark.parametrize("method", PLAIN)
def test_half_precision_long_sums(row, method):
    """In float16 itself ones stop adding up at 2048."""
    n, options = 2**14, {"method": method}
    one = np.ones((1, 1, 1), np.float16)
    wide, deep, long = (one.repeat(n, axis) for axis in range(3))
    for result in (
        xconv.conv(deep, deep, **options),
        xconv.conv_grad_weight(wide, wide, (1,), **options),
        xconv.conv_grad_weight(long, long, (1,), **options),
        xconv.conv_grad_input(deep, wide, (1,), **options),
    ):
        assert_array_equal(result, np.full((1, 1, 1), n, np.float16), strict=True)


@row(36)
def test_half_precision_rounds_once(row):
    """The bias is added before the result is rounded: 2048 + 0.75 + 0.75 is 2050 in float16."""
    x, w = np.array([[[2048, 0.75]]], np.float16), np.ones((1, 1, 2), np.float16)
    y = xconv.conv(x, w, np.array([0.75], np.float16))
    assert y.dtype == np.float16
    assert y.item() == 2050


@row(37)
@pytest.mark.parametrize(
    ("dtype", "count", "value", "total"),
    [
        (np.float16, 100_000, 0.25, 25_000),
        (np.float16, 30_000, 1, 30_000),
        (np.float32, 2**25, 1, 2**25),
    ],
    ids=["f16 quarters", "f16 ones", "f32 ones"],
)
def test_bias_gradient_of_long_sums(row, dtype, count, value, total):
    """Over the batch, over space and with the channels last."""
    none = np.zeros((), dtype)
    w, only_bias = np.ones((3, 1, 1), dtype), {"output_mask": (False, False, True)}
    total = np.full(3, total, dtype)
    for n, size in [(count, 1), (1, count), (count // 4, 4)]:
        dy = np.broadcast_to(np.asarray(value, dtype), (n, 3, size))
        x = np.broadcast_to(none, (n, 1, size))
        assert_array_equal(xconv.conv_backward(dy, x, w, **only_bias).db, total, strict=True)
        dy, x = np.moveaxis(dy, 1, -1), np.moveaxis(x, 1, -1)
        last = xconv.conv_backward(dy, x, w.T, layout="channels_last", **only_bias).db
        assert_array_equal(last, total, strict=True)


@row(38)
def test_float32_sums_of_2_to_the_25_ones(row):
    n = 2**25
    ones, right = np.ones(n, np.float32), np.full((1, 1, 1), n, np.float32)
    one = np.ones((1, 1, 1), np.float32)
    wide, deep, long = ones.reshape(n, 1, 1), ones.reshape(1, n, 1), ones.reshape(1, 1, n)
    room = {"max_workspace": 2**30}  # one position of one sample is 128 MiB
    assert_array_equal(xconv.conv(long, long, **room), right, strict=True)
    assert_array_equal(xconv.conv(deep, deep, **room), right, strict=True)
    assert_array_equal(xconv.conv_grad_input(deep, wide, (1,), **room), right, strict=True)
    for method in PLAIN:
        dw = xconv.conv_grad_weight(long, long, (1,), method=method)
        assert_array_equal(dw, right, strict=True)
    grads = xconv.conv_backward(long, long, one, output_mask=(False, True, True))
    assert grads.dx is None
    assert grads.dw.item() == grads.db.item() == n


@row(39)
def test_subnormals_in_every_library(row, backend):
    """JAX has no subnormal numbers on a CPU."""
    tiny = np.float32(2.0**-140)
    x = backend.array(np.full((1, 1, 4), tiny))
    w, dy = (backend.array(np.ones((1, 1, n), np.float32)) for n in (2, 3))
    low = backend.array(np.full((1, 1, 3), tiny))
    kept = [np.array([[a]]) * tiny for a in ((2, 2, 2), (1, 2, 2, 1), (3, 3))]
    found = (
        xconv.conv(x, w),
        xconv.conv_grad_input(low, w, (4,)),
        xconv.conv_grad_weight(dy, x, (2,)),
    )
    for result, right in zip(found, kept, strict=True):
        assert_array_equal(backend.to_numpy(result), right * (backend.name != "jax"))


@row(39)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormals_are_kept(row, dtype, method):
    tiny = np.finfo(dtype).smallest_subnormal
    x, w, dy = np.full((1, 1, 4), tiny), np.ones((1, 1, 2), dtype), np.ones((1, 1, 3), dtype)
    y, _, dw = every_contraction(x, w, dy, method=method)
    assert_array_equal(y, np.full((1, 1, 3), 2 * tiny, dtype), strict=True)
    assert_array_equal(dw, np.full((1, 1, 2), 3 * tiny, dtype), strict=True)
    dx = xconv.conv_grad_input(dy * tiny, w, (4,), method=method)
    assert_array_equal(dx, np.array([[[1, 2, 2, 1]]], dtype) * tiny, strict=True)
    normal = np.finfo(dtype).tiny
    y = xconv.conv(np.full((1, 1, 4), normal), np.full((1, 1, 1), 0.5, dtype), method=method)
    assert_array_equal(y, np.full((1, 1, 4), normal / 2, dtype), strict=True)


# ---------------------------------------------------------------- sizes, memory


@row(41)
@pytest.mark.parametrize("method", PLAIN)
def test_more_than_2_to_the_31_elements(row, method):
    """4 GiB of pages that nobody touches but for a few bytes; outputs 2**31 bytes apart."""
    step = 2**31
    x = np.zeros((1, 1, 2 * step + 9), np.int8)
    w = np.array([[[1, 10]]], np.int8)
    for i in range(3):
        x[0, 0, i * step : i * step + 2] = i + 1, i + 2
    options = {"stride": step, "method": method}
    y, held = peak(lambda: xconv.conv(x, w, **options))
    assert_array_equal(y, np.array([[[21, 32, 43]]], np.int8), strict=True)
    dy = np.array([[[1, 2, 4]]], np.int8)
    dw, also = peak(lambda: xconv.conv_grad_weight(dy, x, (2,), **options))
    assert_array_equal(dw, np.array([[[17, 24]]], np.int8), strict=True)
    assert max(held, also) < 65 * MIB


@row(41)
@pytest.mark.parametrize("method", PLAIN)
def test_input_gradient_of_more_than_2_to_the_31_elements(row, method):
    step = 2**31
    dy, w = np.array([[[1, 2]]], np.int8), np.array([[[1, 10]]], np.int8)
    dx = xconv.conv_grad_input(dy, w, (step + 3,), stride=step, method=method)[0, 0]
    assert dx.shape == (step + 3,)
    assert_array_equal(dx[:3], [1, 10, 0])
    assert_array_equal(dx[-3:], [2, 20, 0])
    assert np.count_nonzero(dx) == 4


@row(42)
@pytest.mark.parametrize("method", EXACT)
def test_workspace_of_a_long_kernel(row, method):
    """Row 41's intermediate too: all the windows at once would be 2**32 bytes."""
    x, w = draw(1, 1, 2**20), draw(1, 1, 512)
    y, held = peak(lambda: xconv.conv(x, w, method=method))
    assert held < y.nbytes + 65 * MIB
    for at in (slice(0, 3000), slice(2**19, 2**19 + 3000), slice(-3000, None)):
        right = np.correlate(x[0, 0, at], w[0, 0])
        start = range(2**20)[at].start
        assert_array_equal(y[0, 0, start : start + len(right)], right)


@row(42)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("limit", [None, 2 * MIB])
def test_workspace_of_a_large_3d_kernel(row, method, limit):
    """All the windows at once would be 212 MiB."""
    x, w, dy = draw(1, 1, 36, 34, 36), draw(1, 1, 13, 13, 13), draw(1, 1, 24, 22, 24)
    options = {"method": method, "max_workspace": limit}
    calls = [
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_grad_input(dy, w, x.shape[2:], **options),
        lambda: xconv.conv_grad_weight(dy, x, w.shape[2:], **options),
    ]
    results = []
    for call in calls:
        result, held = peak(call)
        assert held < result.nbytes + (limit or 64 * MIB) + MIB
        results.append(result)
    y, dx, dw = results
    close = {"rtol": 1e-9} if method == "auto" else {"rtol": 0}
    windows = x[0, 0, 23:, 21:, 23:], dy[0, 0, 6:19, 6:19, 6:19][::-1, ::-1, ::-1]
    assert_allclose(y[0, 0, 23, 21, 23], np.sum(windows[0] * w[0, 0]), **close)
    assert_allclose(dx[0, 0, 18, 18, 18], np.sum(windows[1] * w[0, 0]), **close)
    right = np.sum(dy[0, 0] * x[0, 0, 3:27, 4:26, 5:29])
    assert_allclose(dw[0, 0, 3, 4, 5], right, **close)


@row(43)
def test_no_growth_over_many_shapes(row, monkeypatch):
    monkeypatch.setattr(namespace, "LARGE_PAGE", 1)  # so that no more is kept than is used

    def work(sizes):
        for size in sizes:
            x, w = np.ones((4, 8, size), np.float32), np.ones((8, 8, 3), np.float32)
            xconv.conv_backward(xconv.conv(x, w), x, w)

    tracemalloc.start()
    try:
        work(range(700, 1000))  # as many shapes as are kept
        before = tracemalloc.get_traced_memory()[0]
        work(range(1000, 1300))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < MIB  # of 300 x 250 KB of inputs and outputs


# ---------------------------------------------------------------- determinism and threads

LAYERS = [  # x, w, options; large enough that BLAS would use its threads
    ((2, 16, 40, 40), (32, 16, 3, 3), {"padding": 1}),
    ((4, 64, 14, 14), (128, 64, 3, 3), {"stride": 2}),
    ((2, 256, 7, 7), (256, 256, 1, 1), {}),
    ((2, 8, 4000), (8, 1, 9), {"groups": 8}),
    ((1, 4, 12, 14, 16), (6, 4, 3, 3, 3), {"padding": "same"}),
]
CHOSEN = [  # what "auto" takes for the forward pass, in several blocks
    ("winograd", ((8, 64, 28, 28), (64, 64, 3, 3), {"padding": 2, "dilation": 2})),
    ("winograd", ((2, 192, 40, 40), (192, 192, 3, 3), {"padding": 1})),  # weights in parts
    ("banks", ((2, 256, 16, 16), (256, 256, 3, 3), {"padding": 1})),
    ("lines", ((8, 3, 96, 96), (32, 3, 5, 5), {"padding": 2})),
    ("depthwise", ((8, 32, 64, 64), (32, 1, 3, 3), {"padding": 1, "groups": 32})),
    ("bands", ((32, 96, 14, 14), (96, 1, 3, 3), {"padding": 1, "groups": 96})),
    ("fft", ((1, 1, 100_000), (8, 1, 1024), {})),
]


def layer_bits(x_shape, w_shape, options, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(w_shape).astype(dtype)
    y = xconv.conv(x, w, **options)
    dy = rng.standard_normal(y.shape).astype(dtype)
    return [a.tobytes() for a in (y, *xconv.conv_backward(dy, x, w, **options))]


@row(44)
@pytest.mark.parametrize(
    ("layer", "method"),
    [
        *itertools.product(LAYERS, PLAIN),
        *itertools.product((LAYERS[0], LAYERS[4]), ("winograd", "fft")),
        *((layer, "auto") for _, layer in CHOSEN),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value[0]),
)
def test_bits_do_not_depend_on_threads(row, layer, method):
    x_shape, w_shape, options = layer
    options = {**options, "method": method}
    bits = []
    for threads in (1, 2, 4, 3, 1, 2):
        with threadpool_limits(threads):
            bits.append(layer_bits(x_shape, w_shape, options))
    assert all(each == bits[0] for each in bits)


@pytest.mark.parametrize(("method", "layer"), CHOSEN, ids=lambda value: str(value)[:30])
def test_layers_that_are_for_more_than_one_thread(method, layer):
    x, w, options = layer
    (step,) = xconv.explain(np.empty(x, np.float32), np.empty(w, np.float32), **options).steps
    assert step.method == method
    assert step.blocks > 1


DIGEST = """
import hashlib
import numpy as np, xconv
rng = np.random.default_rng(0)
digest = hashlib.sha256()
for x_shape, w_shape, options in LAYERS:
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    y = xconv.conv(x, w, **options)
    for a in (y, *xconv.conv_backward(y, x, w, **options)):
        digest.update(a.tobytes())
print(digest.hexdigest())
"""


@row(44)
def test_bits_do_not_depend_on_the_run(row):
    """Other processes with other numbers of threads; the order of sets and dicts is theirs."""
    script = DIGEST.replace("LAYERS", repr(LAYERS))
    found = {
        subprocess.check_output([sys.executable, "-c", script], env={**os.environ, **own})
        for own in ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1"})
    }
    assert len(found) == 1


HELD = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
import xconv
from xconv import workers

def counts():
    return [library["num_threads"] for library in threadpool_info()]

def check():
    with workers.available():
        assert set(counts()) == {1}, counts()

xconv.conv(np.ones((1, 1, 8)), np.ones((1, 1, 3)))  # the main thread is the first to set it
before = counts()
for _ in range(2):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(check).result()
    assert counts() == before
    check()
"""


@row(44)
def test_blas_is_held_from_every_thread(row):
    subprocess.run([sys.executable, "-c", HELD], check=True)


class OpenMP:
    """A BLAS library whose number of threads each thread has for itself."""

    internal_api, threading_layer, filepath = "openblas", "openmp", "numpy"

    def __init__(self):
        self.own = threading.local()

    def get_num_threads(self):
        return getattr(self.own, "threads", 3)

    def set_num_threads(self, threads):
        self.own.threads = threads


@row(44)
def test_blas_with_a_count_per_thread(row, monkeypatch):
    library, seen = OpenMP(), {}
    controller = SimpleNamespace(lib_controllers=[library])
    controller.select = lambda **_: controller
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: controller)
    monkeypatch.setattr(workers, "_blas", workers._Blas())
    together = threading.Barrier(3, timeout=30)

    def work(task):
        together.wait()
        seen[threading.get_ident()] = library.get_num_threads()

    for _ in range(2):
        with workers.available() as threads:
            assert threads == 3
            workers.run(range(3), work, workers=threads)
        assert library.get_num_threads() == 3
    assert len(seen) >= 3 and set(seen.values()) == {1}


@row(45)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer[0]))
def test_slices_of_the_batch(row, layer, method):
    x_shape, w_shape, options = layer
    x, w = draw(6, *x_shape[1:], dtype=np.float32), draw(*w_shape, dtype=np.float32)
    rng = np.random.default_rng(0)
    y = xconv.conv(x, w, method=method, **options)
    real = rng.standard_normal(x.shape).astype(np.float32)
    real_y = xconv.conv(real, w, method=method, **options)
    for i in range(6):
        one = xconv.conv(x[i : i + 1], w, method=method, **options)[0]
        if method in EXACT:
            assert_array_equal(one, y[i], strict=True)
        assert_allclose(one, y[i], atol=1e-5 * abs(y).max())
        one = xconv.conv(real[i], w, method=method, **options)
        assert_allclose(one, real_y[i], atol=1e-5 * abs(real_y).max())


@row(46)
def test_concurrent_threads(row):
    work = [(*layer, np.float32, seed) for seed in range(4) for layer in LAYERS]
    serial = [layer_bits(*args) for args in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert list(pool.map(lambda args: layer_bits(*args), work)) == serial


FORK = """
import os, sys, warnings
import numpy as np, xconv
warnings.simplefilter("ignore", DeprecationWarning)  # that fork and threads do not mix
rng = np.random.default_rng(0)
x = rng.standard_normal((4, 32, 40, 40)).astype(np.float32)
w = rng.standard_normal((64, 32, 3, 3)).astype(np.float32)
def run():
    y = xconv.conv(x, w, padding=1)
    return y.tobytes() + b"".join(a.tobytes() for a in xconv.conv_backward(y, x, w, padding=1))
before = run()
for _ in range(4):
    child = os.fork()
    if child == 0:
        os._exit(0 if run() == before else 3)
    assert os.waitpid(child, 0)[1] == 0
assert run() == before
print("same bits")
"""


@row(47)
def test_fork_after_use(row):
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "same bits\n"), done.stderr


# ---------------------------------------------------------------- gradients


@row(48)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_gradients_are_the_adjoint(row, method, dtype):
    def draw_complex(*shape, seed):
        return (draw(*shape, seed=seed) + 1j * draw(*shape, seed=seed + 1)).astype(dtype)

    x, dx = draw_complex(2, 3, 7, seed=0), draw_complex(2, 3, 7, seed=2)
    w, dw = draw_complex(4, 3, 3, seed=4), draw_complex(4, 3, 3, seed=6)
    dy, options = draw_complex(2, 4, 5, seed=8), {"method": method}
    grads = xconv.conv_backward(dy, x, w, **options)
    assert np.vdot(grads.dx, dx) == np.vdot(dy, xconv.conv(dx, w, **options))
    assert np.vdot(grads.dw, dw) == np.vdot(dy, xconv.conv(x, dw, **options))
    assert_array_equal(grads.db, dy.sum((0, 2)), strict=True)
    assert_array_equal(xconv.conv_grad_input(dy, w, (7,), **options), grads.dx, strict=True)
    assert_array_equal(xconv.conv_grad_weight(dy, x, (3,), **options), grads.dw, strict=True)
    # the transposed convolution is not conjugated
    assert_array_equal(
        xconv.conv_transpose(dy, w, **options), xconv.conv_grad_input(dy, w.conj(), (7,), **options)
    )


@row(49)
@pytest.mark.parametrize("method", PLAIN)
def test_one_array_as_x_and_w(row, method):
    a = draw(3, 3, 5)
    right = loop(a, a.copy(), pads=2)
    results = every_contraction(a, a, np.ones(right[0].shape), padding=2, method=method)
    for result, expected in zip(results, right, strict=True):
        assert_array_equal(result, expected, strict=True)


@row(49)
@pytest.mark.parametrize("method", PLAIN)
def test_second_derivative_is_bilinear(row, method):
    x, ddx = draw(2, 3, 8), draw(2, 3, 8, seed=1)
    w, ddw = draw(4, 3, 3, seed=2), draw(4, 3, 3, seed=3)
    ddb, options = draw(4, seed=4), {"stride": 2, "padding": 1, "method": method}

    def conv(x, w):
        return xconv.conv(x, w, **options)

    dy = draw(*conv(x, w).shape, seed=5)
    ddy, dx, dw = xconv.conv_double_backward(ddx, ddw, ddb, dy, x, w, **options)
    second = conv(x + ddx, w + ddw) - conv(x, w) - conv(ddx, ddw)
    assert_array_equal(ddy, second + ddb[:, None], strict=True)
    assert_array_equal(dx, loop(x, ddw, dy, stride=2, pads=1)[1], strict=True)
    assert_array_equal(dw, loop(ddx, w, dy, stride=2, pads=1)[2], strict=True)


@row(50)
@pytest.mark.parametrize(
    "chunks",
    [
        ((2, 1), (1, 1), (3, 3, 3, 2), (7,)),
        ((2, 1), (2,), (10, 1), (1,) * 7),
        ((3,), (2,), (1, 9, 1), (3, 3, 1)),
    ],
    ids=str,
)
def test_dask_chunks_smaller_than_the_kernel(row, chunks):
    import dask
    import dask.array as da

    x, w, b, dy = draw(3, 2, 11, 7), draw(4, 2, 5, 3), draw(4), draw(3, 4, 5, 4)
    options = {"stride": 2, "padding": 1}
    expected = [xconv.conv(x, w, b, **options), *xconv.conv_backward(dy, x, w, **options)]

    def refuse_to_run(*_, **__):
        raise AssertionError("computed before it was asked to")

    with dask.config.set(scheduler=refuse_to_run):
        lazy_x = da.from_array(x, chunks=chunks)
        lazy_dy = da.from_array(dy, chunks=(2, 3, 2, 3))
        lazy = [
            xconv.conv(lazy_x, w, b, **options),
            *xconv.conv_backward(lazy_dy, lazy_x, w, **options),
        ]
    for result, right in zip(lazy, expected, strict=True):
        assert isinstance(result, da.Array)
        assert (result.shape, result.dtype) == (right.shape, right.dtype)
        blocks = list(result.blocks.ravel())
        computed, *parts = dask.compute(result, *blocks, scheduler="sync")
        assert_array_equal(computed, right, strict=True)
        assert [part.shape for part in parts] == [block.shape for block in blocks]


@row(51)
@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("extra", [0, 1, 2, (2, 0), (0, 2)])
def test_transposed_rows_beyond_every_window(row, extra, method):
    """Stride 3 and a kernel of 1: the rows that output_padding adds hold the bias alone."""
    x, w, b = draw(2, 3, 4, 4) + 10, np.ones((3, 5, 1, 1)), draw(5)
    high = (extra, extra) if isinstance(extra, int) else extra
    expected = np.zeros((2, 5, 10 + high[0], 10 + high[1])) + b[:, None, None]
    expected[:, :, :10:3, :10:3] += x.sum(1, keepdims=True)
    by_padding = xconv.conv_transpose(x, w, b, stride=3, output_padding=extra, method=method)
    assert_array_equal(by_padding, expected, strict=True)
    options = {"stride": 3, "output_size": expected.shape[2:], "method": method}
    assert_array_equal(xconv.conv_transpose(x, w, b, **options), expected, strict=True)
    size = xconv.conv_transpose_output_size((4, 4), (1, 1), stride=3, output_padding=extra)
    assert size == expected.shape[2:]


@row(51)
@pytest.mark.parametrize("method", PLAIN)
def test_input_size_resolves_the_strides_ambiguity(row, method):
    dy, w = draw(2, 4, 3), draw(4, 5, 2)
    for size in range(8, 11):  # (size - 2) // 3 + 1 is 3 for each
        dx = xconv.conv_grad_input(dy, w, (size,), stride=3, method=method)
        assert_array_equal(dx, loop(np.zeros((2, 5, size)), w, dy, stride=3)[1], strict=True)
    for size in (7, 11):
        refuse(xconv.conv_grad_input, dy, w, (size,), stride=3, method=method)
        refuse(xconv.conv_transpose, dy, w, output_size=(size,), stride=3, method=method)


# ---------------------------------------------------------------- parameters


class Index:
    """An int by its `__index__`, which may raise or answer nonsense."""

    def __init__(self, answer):
        self.answer = answer

    def __index__(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def __repr__(self):
        return f"Index({self.answer!r})"


@row(52)
@pytest.mark.parametrize("make", [np.int64, np.int8, np.uint8, np.intp, Index, np.array])
def test_whatever_is_an_int_is_taken(row, make):
    x, w = draw(2, 4, 9, 8), draw(6, 2, 3, 2)
    plain = xconv.conv(x, w, stride=2, padding=((1, 0), (2, 1)), dilation=(1, 2), groups=2)
    one, two, zero = make(1), make(2), make(0)
    pairs = (one, zero), (two, one)
    y = xconv.conv(x, w, stride=two, padding=pairs, dilation=(one, two), groups=two)
    assert_array_equal(y, plain, strict=True)
    out = xconv.conv_output_size((make(9), make(8)), (make(3), two), stride=two)
    assert out == (4, 4)
    assert all(type(size) is int for size in out)


HOSTILE = {
    "True": True,
    "False": False,
    "np.True_": np.True_,
    "1.5": 1.5,
    "1.0": 1.0,
    "str": "1",
    "bytes": b"1",
    "np.float64": np.float64(1),
    "0-d float": np.array(1.0),
    "0-d bool": np.array(True),
    "complex": 1j,
    "None": None,
    "set": {1, 2},
    "dict": {1: 2, 3: 4},
    "Fraction": Fraction(1),
    "evil OSError": Index(OSError("no")),
    "evil ValueError": Index(ValueError("no")),
    "evil TypeError": Index(TypeError("no")),
    "evil ZeroDivisionError": Index(ZeroDivisionError("no")),
    "nonsense": Index("1"),
}


@row(52)
@pytest.mark.parametrize("option", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parameters(row, name, option):
    x, w, dy, value = draw(2, 4, 9, 8), draw(6, 4, 3, 2), draw(2, 6, 7, 7), HOSTILE[name]
    for v in [value] if option == "groups" else [value, (value, 1), (1, value)]:
        if option == "padding" and isinstance(v, str):
            continue  # a string is a name there, of the wrong value
        refuse(xconv.conv, x, w, error=TypeError, **{option: v})
        refuse(xconv.conv_backward, dy, x, w, error=TypeError, **{option: v})
    if option == "padding":
        refuse(xconv.conv, x, w, error=TypeError, padding=((value, 1), (1, 1)))
        refuse(xconv.conv, x, w, error=TypeError, padding=((1, 1), (1, value)))


def test_memmap_is_its_base_class(tmp_path):
    x, w = draw(2, 3, 6, 5), draw(4, 3, 3, 2)
    mapped = np.memmap(tmp_path / "x", x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    y = xconv.conv(mapped, w)
    assert type(y) is np.ndarray
    assert_array_equal(y, loop(x, w)[0], strict=True)
