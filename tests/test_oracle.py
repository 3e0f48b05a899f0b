"""The oracle itself, against code that others wrote: NumPy's padding, PyTorch's and JAX's sizes and
convolutions, and the defining sum written out for one small case.
"""

from itertools import product

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

NUMPY_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}


@pytest.mark.parametrize("mode", NUMPY_MODES)
def test_padded_line_is_that_of_numpy(mode):
    for size in range(1, 6):
        limit = {"reflect": size - 1, "replicate": 7}.get(mode, size)
        for low, high in product(range(limit + 1), repeat=2):
            want = np.pad(np.arange(size), (low, high), mode=NUMPY_MODES[mode])
            assert oracle.padded(size, low, high, mode) == tuple(want.tolist())


def test_negative_sides_crop_the_padded_line():
    assert oracle.padded(4, 2, -1, "zeros") == (None, None, 0, 1, 2)
    assert oracle.padded(4, 3, -5, "reflect") == (3, 2)
    assert oracle.padded(3, -4, 5, "zeros") == (None,) * 4


def test_defining_sum():
    """T(x, w, g), term by term, from its definition."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((6, 2, 3, 2))
    stride, dilation, padding, groups = (2, 1), (1, 2), (1, 2), 2
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    y = oracle.forward(x, w, **options)
    g = rng.standard_normal(y.shape)
    want_y, want_x, want_w = np.zeros_like(y), np.zeros_like(x), np.zeros_like(w)
    for n, k, c, *rest in product(
        range(2), range(6), range(2), range(y.shape[2]), range(y.shape[3]), range(3), range(2)
    ):
        o, t = tuple(rest[:2]), tuple(rest[2:])
        i = tuple(stride[a] * o[a] + dilation[a] * t[a] - padding[a] for a in range(2))
        if 0 <= i[0] < 6 and 0 <= i[1] < 5:
            channel = k // 3 * 2 + c
            want_y[n, k, *o] += x[n, channel, *i] * w[k, c, *t]
            want_x[n, channel, *i] += g[n, k, *o] * w[k, c, *t]
            want_w[k, c, *t] += g[n, k, *o] * x[n, channel, *i]
    np.testing.assert_allclose(y, want_y, rtol=1e-13)
    np.testing.assert_allclose(oracle.grad_input(g, w, (6, 5), **options), want_x, rtol=1e-13)
    np.testing.assert_allclose(oracle.grad_weight(g, x, (3, 2), **options), want_w, rtol=1e-13)


@st.composite
def geometries(draw):
    """What PyTorch can do: symmetric padding, positive, or its "same"."""
    rank = draw(st.integers(1, 3))

    def several(low, high):
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    kernel, stride, dilation = several(1, 4), several(1, 3), several(1, 2)
    padding, groups = several(0, 3), draw(st.integers(1, 3))
    reach = [d * (w - 1) + 1 for d, w in zip(dilation, kernel, strict=True)]
    spare = [max(r - 2 * p, 1) for r, p in zip(reach, padding, strict=True)]
    size = tuple(low + more for low, more in zip(spare, several(0, 5), strict=True))
    channels = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)))
    return size, kernel, stride, padding, dilation, groups, channels


def close(got, want):
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.backends("torch")
@given(geometries(), st.integers(0, 2**32 - 1), st.booleans())
def test_convolution_is_that_of_torch(geometry, seed, complex_numbers):
    import torch
    from torch.nn import functional

    size, kernel, stride, padding, dilation, groups, (n, c, k) = geometry
    rng, rank = np.random.default_rng(seed), len(size)

    def normal(*shape):
        array = rng.standard_normal(shape)
        return array + 1j * rng.standard_normal(shape) if complex_numbers else array

    x, w = normal(n, c * groups, *size), normal(k * groups, c, *kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    xt, wt = (torch.tensor(a, requires_grad=True) for a in (x, w))
    want = getattr(functional, f"conv{rank}d")(xt, wt, **options)
    close(oracle.conv(x, w, **options), want)
    dy = normal(*want.shape)
    want.backward(torch.tensor(dy))
    dx, dw, _ = oracle.backward(dy, x, w, **options)
    close(dx, xt.grad)
    close(dw, wt.grad)


@pytest.mark.backends("torch")
@given(geometries(), st.integers(0, 2**32 - 1))
def test_transposed_convolution_is_that_of_torch(geometry, seed):
    import torch
    from torch.nn import functional

    size, kernel, stride, padding, dilation, groups, (n, c, k) = geometry
    rng, rank = np.random.default_rng(seed), len(size)
    shape = {"stride": stride, "padding": padding, "dilation": dilation}
    small = oracle.output_size(size, kernel, **shape)
    least = oracle.transposed_size(small, kernel, **shape)
    extra = tuple(i - j for i, j in zip(size, least, strict=True))
    x = rng.standard_normal((n, c * groups, *small))
    w = rng.standard_normal((c * groups, k, *kernel))
    options = {**shape, "groups": groups, "output_padding": extra}
    xt, wt = (torch.tensor(a, requires_grad=True) for a in (x, w))
    want = getattr(functional, f"conv_transpose{rank}d")(xt, wt, **options)
    close(oracle.conv_transpose(x, w, **options), want)
    dy = rng.standard_normal(tuple(want.shape))
    want.backward(torch.tensor(dy))
    dx, dw, _ = oracle.transpose_backward(dy, x, w, **options)
    close(dx, xt.grad)
    close(dw, wt.grad)


@pytest.mark.backends("torch")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_gradient_is_that_of_torch(mode):
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 2, 5, 4)), rng.standard_normal((3, 2, 3, 2))
    pairs, stride = ((1, 3), (2, 0)), (2, 1)
    xt, wt = (torch.tensor(a, requires_grad=True) for a in (x, w))
    flat = [side for pair in pairs[::-1] for side in pair]
    laid_out = functional.pad(xt, flat, "constant" if mode == "zeros" else mode)
    want = functional.conv2d(laid_out, wt, stride=stride)
    options = {"stride": stride, "padding": pairs, "padding_mode": mode}
    close(oracle.conv(x, w, **options), want)
    dy = rng.standard_normal(tuple(want.shape))
    want.backward(torch.tensor(dy))
    dx, dw, _ = oracle.backward(dy, x, w, **options)
    close(dx, xt.grad)
    close(dw, wt.grad)


@pytest.mark.backends("jax")
@pytest.mark.parametrize(("name", "theirs"), [("same", "SAME"), ("same_lower", "SAME_LOWER")])
def test_same_is_that_of_jax(name, theirs):
    from jax import lax

    for size, kernel, stride, dilation in product(range(1, 9), range(1, 5), range(1, 4), (1, 3)):
        reach = dilation * (kernel - 1) + 1
        want = lax.padtype_to_pads([size], [reach], [stride], theirs)
        assert [oracle.pads(name, size, kernel, stride, dilation)] == list(want)
