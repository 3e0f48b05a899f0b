"""Dtypes that differ between arrays, and `dtype=`: what the results are and that they are right."""

from itertools import product

import numpy as np
import oracle
import pytest
from backends import FLOATS, INTEGERS

import xconv

RNG = np.random.default_rng(7)
X = RNG.integers(-4, 5, (2, 4, 6, 5))
W = RNG.integers(-4, 5, (6, 2, 3, 2))
OPTIONS = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "groups": 2, "padding_mode": "symmetric"}
DY = RNG.integers(-4, 5, oracle.conv(X, W, **OPTIONS).shape)
B = RNG.integers(-4, 5, 6)


def typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """With an imaginary part where there can be one, without a sign where there is none."""
    array = abs(array) if dtype[0] == "u" else array
    return (array + 1j * np.roll(array, 1) if dtype[0] == "c" else array).astype(dtype)


def same(got: np.ndarray, want: np.ndarray, dtype: np.dtype) -> None:
    assert got.dtype == dtype
    if want.dtype.kind == "c" and dtype.kind != "c":
        want = want.real
    np.testing.assert_array_equal(got, want.astype(dtype), strict=True)


def result_type(a: str, b: str) -> np.dtype | None:
    """None where two integers would give a float."""
    common = np.result_type(a, b)
    return None if "int" in a and "int" in b and common.kind == "f" else common


@pytest.mark.parametrize(("a", "b"), [*product(FLOATS + INTEGERS, repeat=2)])
def test_every_pair(a, b):
    x, w, dy = typed(X, a), typed(W, b), typed(DY, a)
    common = result_type(a, b)
    if common is None:
        for call in (
            lambda: xconv.conv(x, w, **OPTIONS),
            lambda: xconv.conv_grad_input(dy, w, (6, 5), **OPTIONS),
            lambda: xconv.conv_grad_weight(dy, typed(X, b), (3, 2), **OPTIONS),
        ):
            with pytest.raises(TypeError, match=r"^conv.*need.*got.*int64"):
                call()
        return
    same(xconv.conv(x, w, **OPTIONS), oracle.conv(x, w, **OPTIONS), common)
    dx, _, _ = oracle.backward(dy, x, w, **OPTIONS)
    same(xconv.conv_grad_input(dy, w, (6, 5), **OPTIONS), dx, common)
    dy = typed(DY, b)
    _, dw, _ = oracle.backward(dy, x, w, **OPTIONS)
    same(xconv.conv_grad_weight(dy, x, (3, 2), **OPTIONS), dw, common)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_torch_takes_the_unsigned_integers_that_it_cannot_multiply(dtype):
    import torch

    rng, top = np.random.default_rng(3), int(np.iinfo(dtype).max)
    x, w, dy = (rng.integers(0, top, a.shape, dtype, endpoint=True) for a in (X, W, DY))
    mine = [torch.asarray(a) for a in (dy, x, w)]
    y = xconv.conv(*mine[1:], **OPTIONS)
    found = y, *xconv.conv_backward(*mine, **OPTIONS)
    exact = oracle.conv(x, w, **OPTIONS), *oracle.backward(dy, x, w, **OPTIONS)
    for got, want in zip(found, exact, strict=True):
        same(got.numpy(), want, np.dtype(dtype))


SOME = ("float16", "float32", "complex64", "complex128", "int8", "int32")
THREE = [  # integers beside complex numbers: see conv_grad_input
    three for three in product(SOME, repeat=3) if not ("int" in str(three) and "comp" in str(three))
]


def gradient_type(own: str, dy: str, other: str) -> np.dtype:
    """A floating or complex array's gradient has its dtype."""
    return np.result_type(dy, other) if "int" in own else np.dtype(own)


@pytest.mark.parametrize(("a", "b", "c"), THREE)
def test_backward_of_three_dtypes(a, b, c):
    x, w, dy = typed(X, a), typed(W, b), typed(DY, c)
    found = xconv.conv_backward(dy, x, w, **OPTIONS)
    want = oracle.backward(dy, x, w, **OPTIONS)
    same(found.dx, want.dx, gradient_type(a, c, b))
    same(found.dw, want.dw, gradient_type(b, c, a))
    same(found.db, want.db, np.dtype(c))

    found = xconv.conv_transpose_backward(x, dy, w, output_size=(6, 5), **OPTIONS)
    want = oracle.transpose_backward(x, dy, w, **OPTIONS)
    same(found.dx, want.dx, gradient_type(c, a, b))
    same(found.dw, want.dw, gradient_type(b, a, c))
    same(found.db, want.db, np.dtype(a))


@pytest.mark.parametrize("given", [("ddx",), ("ddw",), ("ddb",), ("ddx", "ddw", "ddb")], ids=str)
@pytest.mark.parametrize("wide", ["int32", "float32", "complex64"])
def test_second_derivative_of_integers_has_room(given, wide):
    """Nothing that is added up is cut to the integers of x, w and dy."""
    arrays = {"ddx": X, "ddw": W, "ddb": B}
    ddx, ddw, ddb = (typed(a, wide) * 100 if n in given else None for n, a in arrays.items())
    x, w, dy = (typed(array, "int8") for array in (X, W, DY))
    want = np.zeros(DY.shape, np.int64)
    for one, other in [(ddx, w), (x, ddw)]:
        if one is not None and other is not None:
            want = want + oracle.conv(one, other, **OPTIONS)
    ddy, _, _ = xconv.conv_double_backward(ddx, ddw, ddb, dy, x, w, **OPTIONS)
    same(ddy, want if ddb is None else oracle.with_bias(want, ddb), np.dtype(wide))


WIDER = [
    (narrow, wide)
    for narrow, wide in product(FLOATS + INTEGERS, repeat=2)
    if np.promote_types(narrow, wide) == wide
]


@pytest.mark.parametrize(("narrow", "wide"), WIDER)
def test_dtype_widens(narrow, wide):
    x, w, b, dy = (typed(array * 5, narrow) for array in (X, W, B, DY))
    options = {**OPTIONS, "dtype": np.dtype(wide)}
    want = np.dtype(wide)
    same(xconv.conv(x, w, b, **options), oracle.conv(x, w, b, **OPTIONS), want)
    dx, dw, _ = oracle.backward(dy, x, w, **OPTIONS)
    same(xconv.conv_grad_input(dy, w, (6, 5), **options), dx, want)
    same(xconv.conv_grad_weight(dy, x, (3, 2), **options), dw, want)
    again = xconv.conv_transpose(dy, w, output_size=(6, 5), **options)
    same(again, oracle.conv_transpose(dy, w, output_size=(6, 5), **OPTIONS), want)


@pytest.mark.parametrize(("narrow", "wide"), [pair for pair in WIDER if pair[0] not in INTEGERS])
def test_dtype_of_backward_leaves_the_results(narrow, wide):
    x, w, dy = (typed(array, narrow) for array in (X, W, DY))
    found = xconv.conv_backward(dy, x, w, **OPTIONS, dtype=np.dtype(wide))
    for got, want in zip(found, oracle.backward(dy, x, w, **OPTIONS), strict=True):
        same(got, want, np.dtype(narrow))


@pytest.mark.parametrize(
    ("complex_type", "real"),
    [("complex64", "float32"), ("complex64", "float64"), ("complex128", "float64")],
)
def test_a_real_dtype_takes_the_real_part_of_a_gradient(complex_type, real):
    x, w, dy = (typed(array, complex_type) for array in (X, W, DY))
    dx, dw, _ = oracle.backward(dy, x, w, **OPTIONS)
    options = {**OPTIONS, "dtype": np.dtype(real)}
    same(xconv.conv_grad_input(dy, w, (6, 5), **options), dx, np.dtype(real))
    same(xconv.conv_grad_weight(dy, x, (3, 2), **options), dw, np.dtype(real))


NARROWER = [
    ("float64", "float32"),
    ("complex64", "float64"),
    ("int32", "int8"),
    ("int8", "uint8"),
    ("float32", "int32"),
    ("float32", "float16"),
]


@pytest.mark.parametrize(("given", "asked"), NARROWER)
def test_dtype_cannot_narrow(given, asked):
    x, w = typed(X, given), typed(W, given)
    with pytest.raises(TypeError, match=rf"^conv: need .*; got .*{asked}"):
        xconv.conv(x, w, **OPTIONS, dtype=np.dtype(asked))


@pytest.mark.parametrize(
    ("own", "bias"),
    [
        ("float32", "float16"),
        ("float64", "int32"),
        ("complex64", "float32"),
        ("int32", "int8"),
        ("float16", "int8"),
    ],
)
def test_bias_promotes(own, bias):
    x, w, b = typed(X, own), typed(W, own), typed(B, bias)
    same(xconv.conv(x, w, b, **OPTIONS), oracle.conv(x, w, b, **OPTIONS), np.dtype(own))


@pytest.mark.parametrize(
    ("own", "bias"),
    [
        ("float32", "float64"),
        ("float32", "complex64"),
        ("int8", "int16"),
        ("int32", "float32"),
        ("float16", "int16"),
    ],
)
def test_bias_cannot_change_the_dtype(own, bias):
    with pytest.raises(TypeError, match=rf"^conv: need .*; got .*{bias}"):
        xconv.conv(typed(X, own), typed(W, own), typed(B, bias), **OPTIONS)


def test_bias_is_added_before_rounding():
    x = np.array([2048, 1], np.float16).reshape(1, 2, 1)  # the sum, 2049, rounds to 2048
    y = xconv.conv(x, np.ones((1, 2, 1), np.float16), np.ones(1, np.float16))
    assert y.dtype == np.float16
    assert y.item() == 2050


def test_16_bit_sums_are_wide():
    x, w = np.ones((2, 1, 9000), np.float16), np.ones((1, 1, 1), np.float16)
    found = xconv.conv_backward(x, x, w)
    assert found.dw.item() == found.db.item() == 18000
