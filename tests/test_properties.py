"""What holds for every geometry: Hypothesis draws them, integers keep every comparison exact."""

from dataclasses import replace
from itertools import product
from math import prod

import cases
import numpy as np
import oracle
import pytest
from backends import load
from cases import Case, numbers, order
from checks import METHODS, Trial
from hypothesis import assume, given
from hypothesis import strategies as st
from memory import beyond
from strategies import any_case, drawn_cases, dtypes, methods, per_axis

import xconv

EXACT = [method for method in METHODS if method.exact]


@given(drawn_cases(), dtypes, methods)
def test_any_convolution(case, dtype, method):
    run = Trial(load("numpy"), case, dtype, method)
    run.forward()
    run.gradients()
    run.contractions()
    run.untouched()


@given(drawn_cases(transposed=True), dtypes, methods)
def test_any_transposed_convolution(case, dtype, method):
    run = Trial(load("numpy"), case, dtype, method)
    run.forward()
    run.gradients()
    run.untouched()


@given(any_case, st.sampled_from(["float64", "complex128"]))
def test_any_double_backward(case, dtype):
    Trial(load("numpy"), case, dtype).double_backward([(True, True, True)])


@given(drawn_cases())
def test_output_size_is_the_number_of_windows(case):
    shape = {key: getattr(case, key) for key in ("stride", "padding", "dilation")}
    found = xconv.conv_output_size(case.x[2:], case.w[2:], **shape)
    assert found == case.y[2:]
    assert all(type(size) is int for size in found)


@given(drawn_cases(transposed=True))
def test_transposed_output_size(case):
    """It counts, and the convolution maps it back."""
    shape = {key: getattr(case, key) for key in ("stride", "padding", "dilation")}
    extra = case.output_padding
    want = oracle.transposed_size(case.x[2:], case.w[2:], **shape, output_padding=extra)
    assume(min(want) >= 0)
    found = xconv.conv_transpose_output_size(case.x[2:], case.w[2:], **shape, output_padding=extra)
    assert found == want
    assert oracle.output_size(found, case.w[2:], **shape) == case.x[2:]


@given(drawn_cases())
def test_layouts_agree(case):
    """Bit for bit on integers, whatever the strides of the arrays are."""
    first = replace(case, layout="channels_first")
    arrays = [numbers(case, role, "f") for role in ("x", "w", "dy")]
    samples = [
        a if case.batched or role == "w" else a[0]
        for a, role in zip(arrays, ("x", "w", "dy"), strict=True)
    ]
    x, w, dy = samples
    want = (xconv.conv(x, w, **first.options), *xconv.conv_backward(dy, x, w, **first.options)[:2])
    views = [a.transpose(order(case, role)) for a, role in zip(samples, "xwy", strict=True)]
    x, w, dy = views
    got = (xconv.conv(x, w, **case.options), *xconv.conv_backward(dy, x, w, **case.options)[:2])
    for one, other, role in zip(got, want, "yxw", strict=True):
        np.testing.assert_array_equal(one, other.transpose(order(case, role)), strict=True)


# -- unfold and fold


def unfolded(case: Case, x: np.ndarray) -> np.ndarray:
    """Every window as a column, from the table of what meets."""
    sizes, meet = oracle.terms(per_axis(case))
    n, c = x.shape[:2]
    flat = x.reshape(n, c, prod(case.x[2:]))
    columns = np.zeros((n, c, prod(case.w[2:]), prod(sizes)), x.dtype)
    for o, t, i in meet:
        columns[:, :, t, o] = flat[:, :, i]
    return columns.reshape(n, c * prod(case.w[2:]), prod(sizes))


@given(drawn_cases(), dtypes)
def test_unfold_and_fold(case, dtype):
    """`fold` is the adjoint, and after `unfold` it counts how often each cell was read."""
    names = ("stride", "padding", "dilation", "padding_mode")
    options = {name: value for name, value in case.options.items() if name in names}
    x = numbers(case, "x", cases.kind_of(dtype))
    want = unfolded(case, x)
    counts = np.zeros(prod(case.x[2:]), np.int64)
    sizes, meet = oracle.terms(oracle.axes(case.x[2:], case.w[2:], **options))
    for _, _, i in meet:
        counts[i] += 1
    many = x * counts.reshape(case.x[2:])
    columns = cases.wide_numbers("columns", "x", want.shape, cases.kind_of(dtype))
    flat = columns.reshape(*case.x[:2], prod(case.w[2:]), prod(sizes))
    adjoint = np.zeros((*case.x[:2], prod(case.x[2:])), x.dtype)
    for o, t, i in meet:
        adjoint[:, :, i] += flat[:, :, t, o]
    adjoint = adjoint.reshape(case.x)
    mine = x.astype(dtype)
    columns = columns.astype(dtype)
    if not case.batched:
        mine, want, many, columns, adjoint = (a[0] for a in (mine, want, many, columns, adjoint))

    kernel = case.w[2:]
    found = xconv.unfold(mine, kernel, **options)
    np.testing.assert_array_equal(found, want.astype(dtype), strict=True)
    back = xconv.fold(found, case.x[2:], kernel, **options)
    np.testing.assert_array_equal(back, many.astype(dtype), strict=True)
    back = xconv.fold(columns, case.x[2:], kernel, **options)
    np.testing.assert_array_equal(back, adjoint.astype(dtype), strict=True)
    assert not np.may_share_memory(found, mine)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_unfold_has_torchs_element_order(stride):
    from torch import from_numpy
    from torch.nn import functional

    x = np.arange(2 * 3 * 6 * 7, dtype=np.float64).reshape(2, 3, 6, 7)
    options = {"stride": stride, "padding": (1, 2), "dilation": (2, 1)}
    want = functional.unfold(from_numpy(x), (2, 3), **options)
    found = xconv.unfold(x, (2, 3), **options)
    np.testing.assert_array_equal(found, want.numpy(), strict=True)
    want = functional.fold(want, (6, 7), (2, 3), **options)
    np.testing.assert_array_equal(xconv.fold(found, (6, 7), (2, 3), **options), want, strict=True)


# -- memory


LARGE = {  # name: x, w and options; the matrix of windows is many times the workspace
    "2d": ((2, 8, 96, 90), (8, 8, 5, 5), {"padding": 2}),
    "2d-one-channel": ((1, 1, 220, 210), (4, 1, 9, 9), {"padding": "same"}),
    "2d-strided": ((3, 4, 121, 110), (6, 4, 7, 7), {"stride": 2, "padding": 3}),
    "2d-reflect-dilated": (
        (2, 6, 80, 90),
        (6, 6, 5, 3),
        {"dilation": (2, 3), "padding": "same", "padding_mode": "reflect"},
    ),
    "depthwise": ((2, 24, 64, 60), (24, 1, 7, 7), {"groups": 24, "padding": 3}),
    "depthwise-small": ((16, 64, 14, 14), (64, 1, 3, 3), {"groups": 64, "padding": 1}),
    "depthwise-strided": ((9, 56, 29, 28), (56, 1, 5, 3), {"groups": 56, "stride": 2}),
    "channels-last": ((2, 96, 90, 8), (5, 5, 8, 8), {"padding": 2, "layout": "channels_last"}),
    "1d-long-kernel": ((1, 4, 20000), (4, 4, 129), {"padding": "causal"}),
    "3d": ((1, 3, 28, 26, 24), (4, 3, 5, 5, 5), {"padding": 2}),
    "many-samples": ((500, 4, 14, 13), (6, 4, 5, 5), {"padding": 2}),
}
SLACK = 64 << 10  # Python's own objects


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex128", "int8"])
@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
@pytest.mark.parametrize("name", LARGE)
def test_memory_stays_within_the_workspace(name, method, dtype):
    x_shape, w_shape, options = LARGE[name]
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, shape).astype(dtype) for shape in (x_shape, w_shape))
    options = {**options, "method": method.name, "max_workspace": 512 << 10}
    dy = xconv.conv(x, w, **options)
    last = options.get("layout") == "channels_last"
    size, kernel = (x_shape[1:-1], w_shape[:-2]) if last else (x_shape[2:], w_shape[2:])
    calls = {
        "conv": lambda: xconv.conv(x, w, **options),
        "conv_backward": lambda: xconv.conv_backward(dy, x, w, **options),
        "conv_grad_input": lambda: xconv.conv_grad_input(dy, w, size, **options),
        "conv_grad_weight": lambda: xconv.conv_grad_weight(dy, x, kernel, **options),
        "conv_transpose": lambda: xconv.conv_transpose(dy, w, output_size=size, **options),
    }
    outputs = dy.size // w_shape[-1 if last else 0]
    columns = x.size // (x_shape[0] * prod(size)) * prod(kernel) * outputs
    assert columns * x.itemsize > 2 * options["max_workspace"]
    limit = options["max_workspace"] + SLACK
    held = {name: beyond(call, limit) for name, call in calls.items()}
    assert max(held.values()) <= limit, held


SMALL = {
    "2d": ((2, 3, 6, 5), (4, 3, 3, 2), {"padding": 1}),
    "2d-strided": ((2, 4, 9, 8), (6, 4, 3, 3), {"stride": 2, "padding": ((3, 0), (0, 1))}),
    "2d-reflect-dilated": (
        (2, 3, 6, 7),
        (3, 3, 3, 2),
        {"dilation": (2, 3), "padding": "same", "padding_mode": "reflect"},
    ),
    "depthwise": ((1, 6, 5, 6), (12, 1, 3, 3), {"groups": 6, "padding": 1}),
    "3d": ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"stride": (1, 2, 1)}),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
@pytest.mark.parametrize("name", SMALL)
def test_workspace_does_not_change_results(name, method, dtype):
    """From the smallest that does, up to the default: below it, a ValueError that says so."""
    x_shape, w_shape, options = SMALL[name]
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, shape).astype(dtype) for shape in (x_shape, w_shape))
    options = {**options, "method": method.name}
    dy = xconv.conv(x, w, **options)
    calls = (
        lambda **more: (xconv.conv(x, w, **options, **more),),
        lambda **more: xconv.conv_backward(dy, x, w, **options, **more),
        lambda **more: (xconv.conv_transpose(dy, w, output_size=x.shape[2:], **options, **more),),
        lambda **more: (
            xconv.conv_grad_weight(dy, x, w.shape[2:], per_sample=True, **options, **more),
        ),
    )
    for run in calls:
        want = run()
        worked = []
        for power in range(27):
            refusal = None
            try:
                found = run(max_workspace=1 << power)
            except ValueError as error:
                refusal = str(error)
            if refusal is not None:
                assert "max_workspace" in refusal
                assert not worked, "a larger workspace failed where a smaller one had not"
                continue
            worked.append(power)
            for one, other in zip(found, want, strict=True):
                np.testing.assert_array_equal(one, other, strict=True)
        assert 0 not in worked, "one byte is enough for nothing"
        assert worked[0] <= 18, f"needs 2**{worked[0]} bytes for one output position"


# -- the input gradient does the work of the forward pass


@pytest.mark.parametrize("method", EXACT, ids=lambda method: method.name)
@pytest.mark.parametrize("rank", [1, 2])
def test_no_inserted_zero_meets_an_infinite_weight(backend, rank, method):
    """With stride 2 the odd taps reach only odd cells: zero times infinity would be NaN."""
    size, kernel = (13,) * rank, (3,) * rank
    x, w = np.ones((1, 1, *size)), np.ones((1, 1, *kernel))
    w[(0, 0, *[1] * rank)] = np.inf
    dy = np.ones((1, 1, *[6] * rank))
    with np.errstate(invalid="ignore"):  # at the edges, where either answer is right
        found = xconv.conv_grad_input(
            backend.array(dy), backend.array(w), size, stride=2, method=method.name
        )
        array = backend.to_numpy(found)
    inner = array[(0, 0, *[slice(2, -2)] * rank)]
    odd = np.ones((9,) * rank, bool)
    for axis in range(rank):
        odd &= (np.indices(odd.shape)[axis] % 2).astype(bool)
    assert np.isposinf(inner[odd]).all()
    assert np.isfinite(inner[~odd]).all()
    assert x.shape == found.shape


@pytest.mark.backends("torch")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rank", "stride"), [*product((1, 2, 3), repeat=2)])
def test_input_gradient_multiplies_as_much_as_forward(rank, stride, transposed):
    """Counted by PyTorch: with s**rank as many there would be up to 27 times as many."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.ones((2, 8, *[19] * rank))
    w = torch.ones((8, 8, *[3] * rank))

    def count(call) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    dy = xconv.conv(x, w, stride=stride)
    forward = count(lambda: xconv.conv(x, w, stride=stride))
    size = tuple(x.shape[2:])
    back = count(
        lambda: (
            xconv.conv_transpose(dy, w, stride=stride, output_size=size)
            if transposed
            else xconv.conv_grad_input(dy, w, size, stride=stride)
        )
    )
    needed = 2 * dy.numel() * 8 * 3**rank
    assert needed <= forward <= 1.5 * needed
    assert back <= 2 * forward
