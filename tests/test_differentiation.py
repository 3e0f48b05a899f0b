"""Derivatives: by the libraries that differentiate on their own, by differences, by duality.

PyTorch and JAX differentiate through `conv` itself and agree with `conv_backward`; PyTorch's own
convolutions are a second reference on random numbers; a step of 1 gives exact differences, since
the convolution is linear in each array.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
from backends import load
from cases import CASES, CORE, TABLE, Case, numbers
from checks import Trial, expected, expected_double

import xconv

torch_only = pytest.mark.backends("torch", "torch-cuda")
jax_only = pytest.mark.backends("jax")
FILLED = [case for case in TABLE if 0 not in (*case.x, *case.w, *case.y)]
every_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
core_cases = pytest.mark.parametrize("case", CORE, ids=lambda case: case.name)
both_kinds = pytest.mark.parametrize("dtype", ["float64", "complex128"])


def forward(case: Case) -> Callable[..., Any]:
    return xconv.conv_transpose if case.transposed else xconv.conv


# -- PyTorch's autograd


@torch_only
@both_kinds
@every_case
def test_torch_differentiates_through(backend, case, dtype):
    run = Trial(backend, case, dtype)
    arrays = [run[role].requires_grad_() for role in ("x", "w", "b")]
    y = forward(case)(*arrays, **run.options)
    y.backward(run["dy"])
    want = expected(case, run.kind).grads
    for name, array, exact in zip("xwb", arrays, want, strict=True):
        run.compare(f"torch's gradient of {name}", array.grad, name, exact)
    found = xconv.conv_transpose_backward if case.transposed else xconv.conv_backward
    for ours, array in zip(
        found(run["dy"], run["x"].detach(), run["w"].detach(), **run.options), arrays, strict=True
    ):
        assert (ours == array.grad).all()


@torch_only
@both_kinds
@core_cases
def test_torch_differentiates_twice(backend, case, dtype):
    import torch

    run = Trial(backend, case, dtype)
    x, w, b, dy = (run[role].requires_grad_() for role in ("x", "w", "b", "dy"))
    y = forward(case)(x, w, b, **run.options)
    first = torch.autograd.grad(y, (x, w, b), dy, create_graph=True)
    ddx, ddw, ddb = (run[role] for role in ("ddx", "ddw", "ddb"))
    second = torch.autograd.grad(
        first, (dy, x, w), (ddx, ddw, ddb), allow_unused=True, materialize_grads=True
    )
    want = expected_double(case, run.kind)
    for name, got, exact in zip(
        ("y", "x", "w"), second, (sum(want.ddy), want.dx, want.dw), strict=True
    ):
        run.compare(f"torch's second derivative, d{name}", got, name, exact)


# -- JAX's transformations


@jax_only
@core_cases
def test_jax_jit(backend, case):
    import jax

    run = Trial(backend, case, "float32")
    compiled = jax.jit(lambda *arrays: forward(case)(*arrays, **run.options))
    run.compare("jit", compiled(run["x"], run["w"], run["b"]), "y", expected(case, "f").y)
    back = xconv.conv_transpose_backward if case.transposed else xconv.conv_backward
    found = jax.jit(lambda *arrays: back(*arrays, **run.options))(run["dy"], run["x"], run["w"])
    for name, got, exact in zip("xwb", found, expected(case, "f").grads, strict=True):
        run.compare(f"jit of the backward pass, d{name}", got, name, exact)


@jax_only
@both_kinds
@core_cases
def test_jax_differentiates_through(backend, case, dtype):
    """For complex numbers JAX gives the conjugate of ours at conj(dy)."""
    import jax

    run = Trial(backend, case, dtype)
    x, w, b, dy = (run[role] for role in ("x", "w", "b", "dy"))
    through = jax.jit(
        lambda dy, *arrays: jax.vjp(lambda *a: forward(case)(*a, **run.options), *arrays)[1](dy)
    )
    for name, got, exact in zip(
        "xwb", through(dy.conj(), x, w, b), expected(case, run.kind).grads, strict=True
    ):
        run.compare(f"JAX's gradient of {name}", got, name, exact.conj())


@jax_only
@core_cases
def test_jax_grad_of_a_loss(backend, case):
    import jax

    run = Trial(backend, case, "float64")
    x, w, b, dy = (run[role] for role in ("x", "w", "b", "dy"))

    def loss(*arrays):
        return (forward(case)(*arrays, **run.options) * dy).sum()

    for name, got, exact in zip(
        "xwb", jax.jit(jax.grad(loss, (0, 1, 2)))(x, w, b), expected(case, "f").grads, strict=True
    ):
        run.compare(f"jit of grad, d{name}", got, name, exact)


@jax_only
def test_jax_vmap(backend):
    """Over samples, over kernels, and over both, in the forward and in the backward pass."""
    import jax

    case = CASES["reflect-same-strided"]
    options, xp = case.options, backend.xp
    xs = np.stack([numbers(case, "x", "f"), numbers(case, "ddx", "f")])
    ws = np.stack([numbers(case, "w", "f"), numbers(case, "ddw", "f")])
    dy = numbers(case, "dy", "f")

    def conv(x, w):
        return xconv.conv(x, w, **options)

    single = jax.vmap(conv, (0, None))(xp.asarray(xs[0]), xp.asarray(ws[0]))  # without N inside
    assert (single == oracle.conv(xs[0], ws[0], **options)).all()
    for over_x, over_w in ((0, None), (None, 0), (0, 0)):
        got = jax.jit(jax.vmap(conv, (over_x, over_w)))(
            xp.asarray(xs if over_x == 0 else xs[0]), xp.asarray(ws if over_w == 0 else ws[0])
        )
        assert got.shape == (2, *case.y)
        for i, one in enumerate(got):
            x, w = xs[i if over_x == 0 else 0], ws[i if over_w == 0 else 0]
            assert (one == oracle.conv(x, w, **options)).all()
    back = jax.vmap(lambda x, w: xconv.conv_backward(xp.asarray(dy), x, w, **options))
    got = jax.jit(back)(xp.asarray(xs), xp.asarray(ws))
    for i in range(2):
        want = oracle.backward(dy, xs[i], ws[i], **options)
        for mine, exact in zip(got, want, strict=True):
            assert (mine[i] == exact).all()


@jax_only
def test_jax_per_sample_gradients(backend):
    """vmap of grad is `per_sample=True`."""
    import jax

    case = CASES["stride-tail"]
    run = Trial(backend, case, "float64")

    def loss(w, x, dy):
        return (xconv.conv(x, w, **case.options) * dy).sum()

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(run["w"], run["x"], run["dy"])
    run.compare("vmap of grad", each, "nw", expected(case, "f").each)


# -- what holds in every library


@core_cases
def test_adjoint(backend, case):
    """<conv(x, w), dy> = <x, dx> = <w, dw>."""
    run = Trial(backend, case, "float64")
    x, w, dy = run["x"], run["w"], run["dy"]
    back = xconv.conv_transpose_backward if case.transposed else xconv.conv_backward
    grads = run.call(back, dy, x, w)
    y = run.call(forward(case), x, w)
    total, by_x, by_w = (
        backend.to_numpy(backend.xp.sum(one * other))
        for one, other in ((y, dy), (x, grads.dx), (w, grads.dw))
    )
    assert total == by_x == by_w


@both_kinds
@pytest.mark.parametrize("case", FILLED, ids=lambda case: case.name)
def test_differences(case, dtype):
    """A step of 1 at any number, and of i at a complex one, gives the derivative exactly."""
    run = Trial(load("numpy"), case, dtype)
    x, w, dy = run["x"], run["w"], run["dy"]
    rng = np.random.default_rng(0)

    def loss(x, w):
        return np.vdot(dy, forward(case)(x, w, **run.options))

    back = xconv.conv_transpose_backward if case.transposed else xconv.conv_backward
    dx, dw, _ = back(dy, x, w, **run.options)
    here = loss(x, w)
    for array, gradient, moved in (
        (x, dx, lambda step: loss(x + step, w)),
        (w, dw, lambda step: loss(x, w + step)),
    ):
        for _ in range(4):
            at = tuple(rng.integers(0, array.shape).tolist())
            for unit in (1, 1j) if run.kind == "c" else (1,):
                step = np.zeros_like(array)
                step[at] = unit
                change = moved(step) - here
                assert change.real == (np.conj(gradient[at]) * unit).real


# -- PyTorch's own convolutions


def random(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    array = rng.standard_normal(shape)
    return array + 1j * rng.standard_normal(shape) if dtype == "complex128" else array


def torch_can(case: Case) -> bool:
    """Whether PyTorch has what the case asks for: no names, pairs, crops or other layouts."""
    padding = 0 if case.padding == "valid" else case.padding
    plain = not isinstance(padding, str) and np.ndim(padding) < 2 and np.min(padding) >= 0
    sizes = np.max(case.stride) < 2**31 and np.max(case.dilation) < 2**31
    options = case.layout == "channels_first" and case.padding_mode == "zeros"
    return case.rank <= 3 and plain and bool(sizes) and options


@pytest.mark.backends("torch")
@both_kinds
@pytest.mark.parametrize("case", [*filter(torch_can, FILLED)], ids=lambda case: case.name)
def test_random_numbers_against_torch(case, dtype):
    """The forward pass, the gradients and the second derivatives of xconv's NumPy results."""
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(3)
    sample = slice(0 if case.batched else 1, None)
    shapes = (case.x[sample], case.w, (case.y[1],))
    arrays = [random(rng, dtype, *shape) for shape in (*shapes, case.y[sample], *shapes)]
    x, w, b, dy, ddx, ddw, ddb = arrays
    options = case.options
    shape = {key: getattr(case, key) for key in ("stride", "padding", "dilation")}
    theirs = {**shape, "groups": case.groups}
    if case.padding == "valid":
        theirs["padding"] = 0
    if case.transposed:
        least = oracle.transposed_size(case.x[2:], case.w[2:], **shape)
        theirs["output_padding"] = tuple(i - j for i, j in zip(case.y[2:], least, strict=True))
    name = f"conv_transpose{case.rank}d" if case.transposed else f"conv{case.rank}d"
    xt, wt, bt, dyt, *ddt = (torch.tensor(a, requires_grad=True) for a in arrays)
    want = getattr(functional, name)(xt, wt, bt, **theirs)
    first = torch.autograd.grad(want, (xt, wt, bt), dyt, create_graph=True)
    second = torch.autograd.grad(first, (dyt, xt, wt), ddt)

    def close(got, tensors):
        for mine, tensor in zip(got, tensors, strict=True):
            np.testing.assert_allclose(mine, tensor.detach().numpy(), rtol=1e-11, atol=1e-11)

    prefix = "conv_transpose" if case.transposed else "conv"
    close([getattr(xconv, prefix)(x, w, b, **options)], [want])
    close(getattr(xconv, prefix + "_backward")(dy, x, w, **options), first)
    double = getattr(xconv, prefix + "_double_backward")
    close(double(ddx, ddw, ddb, dy, x, w, **options), second)
    close([getattr(xconv, name)(x, w, b, **options)], [want])
