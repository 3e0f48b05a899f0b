"""`banks`: every case that `winograd` takes, in banks of few kernels."""

from functools import _lru_cache_wrapper as Cached
from itertools import product

import backends
import numpy as np
import pytest
from cases import TABLE
from checks import METHODS, Trial
from memory import cold, measured
from threadpoolctl import threadpool_limits

import xconv
from xconv import banks, choice, costs, namespace, plan, schedule, winograd

WINOGRAD = next(method for method in METHODS if method.name == "winograd")
DTYPES = ("float16", "float32", "complex64", "float64")
CASES = [(c, d) for c, d in product(TABLE, DTYPES) if WINOGRAD.takes(c, d)]


def forget():
    """Forget all plans."""
    for module in (choice, plan, schedule):
        for value in vars(module).values():
            if isinstance(value, Cached):
                value.cache_clear()


@pytest.fixture(params=[(2, 1), (2,)], ids=str)
def small(request, monkeypatch):
    """Take banks of one or two kernels wherever they can be, a few channels at a time."""
    taken = []
    monkeypatch.setattr(plan, "BANK", request.param)
    monkeypatch.setattr(plan, "CHANNELS", 2)
    monkeypatch.setattr(winograd, "SUMMED", len(request.param))
    monkeypatch.setattr(costs, "banks", lambda *_: -1.0)
    for name in ("forward", "grad_weight"):
        original = getattr(banks, name)

        def spy(*arguments, name=name, original=original):
            taken.append(name)
            return original(*arguments)

        monkeypatch.setattr(banks, name, spy)
    forget()
    yield taken
    forget()


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=str)
def test_every_case(small, case, dtype):
    run = Trial(backends.load("numpy"), case, dtype, WINOGRAD)
    run.forward()
    run.gradients()
    if not case.transposed:
        run.contractions()
    run.untouched()
    kernels = min(case.w[0], case.w[1] * case.groups) // case.groups
    assert ("forward" in small) or kernels < 2 * plan.BANK[-1] or 0 in (*case.x, *case.y)


@pytest.mark.parametrize(("summed", "step"), [(64, 1), (256, 1), (256, 2)])
@pytest.mark.parametrize("contraction", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((1, 96, 40, 40), (80, 96, 3, 3)),
        ((3, 70, 9, 9), (200, 70, 3, 3)),
        ((2, 130, 60), (90, 130, 5)),
        ((2, 128, 12, 12), (150, 64, 3, 2)),
    ],
)
def test_memory_is_what_is_estimated(monkeypatch, contraction, dtype, x, w, summed, step):
    """Of one thread, which has kept none; also of kernels that are part of larger ones."""
    monkeypatch.setattr(namespace, "LARGE_PAGE", 1)  # so that no more is kept than is used
    monkeypatch.setattr(winograd, "SUMMED", summed)
    monkeypatch.setattr(costs, "banks", lambda *_: -1.0)
    forget()
    wide = (*w[:2], *(step * n for n in w[2:]))
    x, w = np.ones(x, dtype), np.ones(wide, dtype)[(..., *(slice(None, None, step),) * len(w[2:]))]
    groups = x.shape[1] // w.shape[1]
    dy = np.ones_like(xconv.conv(x, w, groups=groups))
    found = xconv.explain(x, w, contraction=contraction, groups=groups, method="winograd").steps[0]
    call = {
        "forward": lambda: xconv.conv(x, w, groups=groups, method="winograd"),
        "grad_input": lambda: xconv.conv_grad_input(
            dy, w, x.shape[2:], groups=groups, method="winograd"
        ),
        "grad_weight": lambda: xconv.conv_grad_weight(
            dy, x, w.shape[2:], groups=groups, method="winograd"
        ),
    }[contraction]
    with threadpool_limits(1):
        most, result = measured(cold(call))
    forget()
    assert found.method == "banks"
    estimate = found.shared_bytes + found.block_bytes
    assert most - result <= estimate + 2**15
    assert estimate <= 1.4 * (most - result)  # results may have to be converted


def test_layers_of_many_channels_and_few_positions_are_cut_so():
    def method(x, w, **options):
        steps = xconv.explain(np.empty(x, np.float32), np.empty(w, np.float32), **options).steps
        return steps[0].method

    assert method((1, 512, 28, 28), (512, 512, 3, 3)) == "banks"
    assert method((1, 64, 56, 56), (64, 64, 3, 3)) == "winograd"
    assert method((64, 512, 28, 28), (512, 512, 3, 3)) == "winograd"  # too much to be held
    assert method((1, 512, 28, 28), (512, 512, 3, 3), max_workspace=2**22) != "banks"
    x, w = np.ones((1, 512, 28, 28), np.complex64), np.ones((512, 512, 3, 3), np.complex64)
    assert xconv.explain(x, w).steps[0].method == "windows"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("size", "kernel", "more"),
    [
        ((28, 28), (3, 1), {"stride": (1, 2), "padding": (1, 0)}),
        ((28, 28), (1, 3), {"stride": (2, 1), "padding": (1, 1)}),
    ],
)
def test_a_nan_beside_cells_that_nothing_reads(bad, size, kernel, more):
    """Where an axis of one tap has a stride, every other cell is left out beforehand."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 512, *size), np.float32)
    w = rng.standard_normal((512, 512, *kernel), np.float32)
    x[0, 3, 5, 5] = x[0, 3, 4, 4] = bad
    assert xconv.explain(x, w, **more).steps[0].method == "banks"
    found, want = xconv.conv(x, w, **more), xconv.conv(x, w, method="windows", **more)
    finite = np.isfinite(want)
    assert not finite.all()
    np.testing.assert_array_equal(np.isfinite(found), finite)
    np.testing.assert_allclose(found[finite], want[finite], atol=1e-2)
