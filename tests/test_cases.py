"""The case table through every method, contraction, dtype and array library, compared exactly.

NumPy and CuPy run the whole product. Every other library runs each case once in float32, forward
and backward, the core cases in every dtype that it has, and in float32 through everything.
"""

from itertools import product

import backends
import pytest
from cases import CASES, CORE, TABLE, Case
from checks import METHODS, Method, Trial, expected
from conftest import SELECTED

import xconv

WHOLE = ("numpy", "cupy")
AUTO = METHODS[-1]


def trials(name: str) -> list[tuple[Case, str, Method]]:
    dtypes = backends.load(name).dtypes
    if name in WHOLE:
        whole = product(TABLE, dtypes, METHODS)
        return [(case, dtype, m) for case, dtype, m in whole if m.takes(case, dtype)]
    once = [(case, "float32", AUTO) for case in TABLE]
    wide = [(case, dtype, AUTO) for case in CORE for dtype in dtypes if dtype != "float32"]
    named = [m for m in METHODS if m is not AUTO and (name, m.name) != ("dask", "fft")]
    return once + wide + [(c, "float32", m) for c in CORE for m in named if m.takes(c, "float32")]


def second_trials(name: str) -> list[tuple[Case, str, Method]]:
    if name in WHOLE:
        dtypes = ("float32", "complex64", "int16")
        whole = product(TABLE, dtypes, METHODS)
        return [(case, dtype, m) for case, dtype, m in whole if m.takes(case, dtype)]
    return [(case, dtype, AUTO) for case in CORE for dtype in ("float32", "complex64")]


def mask_trials(name: str) -> list[tuple[Case, str, Method]]:
    return [(case, "float32", AUTO) for case in (TABLE if name in WHOLE else CORE[:3])]


PLANS = {"trial": trials, "second_trial": second_trials, "mask_trial": mask_trials}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each (backend, case, dtype, method) of a plan."""
    for argument in PLANS.keys() & set(metafunc.fixturenames):
        whole = [
            (name, case, dtype, method)
            for name in metafunc.config.stash[SELECTED]
            for case, dtype, method in PLANS[argument](name)
        ]
        ids = [f"{name}-{dtype}-{method.name}-{case.name}" for name, case, dtype, method in whole]
        metafunc.parametrize(argument, whole, ids=ids)


def test_case(trial):
    name, *rest = trial
    run = Trial(backends.load(name), *rest)
    run.forward()
    run.gradients()
    if not run.case.transposed and (name in WHOLE or (run.case in CORE and run.dtype == "float32")):
        run.contractions()
    run.untouched()


def test_double_backward(second_trial):
    """With any of ddx, ddw and ddb None; outside of the whole product, with all or none."""
    name, *rest = second_trial
    run = Trial(backends.load(name), *rest)
    every = product((True, False), repeat=3)
    run.double_backward(every if name in WHOLE else [(True,) * 3, (False,) * 3])
    run.untouched()


def test_output_mask(mask_trial):
    name, *rest = mask_trial
    run = Trial(backends.load(name), *rest)
    for mask in product((True, False), repeat=3):
        run.gradients(mask)


@pytest.mark.backends("dask")
@pytest.mark.parametrize("chunks", [1, 2, (1, 2, 5, 1), -1])
def test_dask_x_beside_numpy_weights(chunks):
    """Chunks that are smaller than the kernel, or do not divide the axis, change nothing."""
    import dask.array

    run = Trial(backends.load("numpy"), CASES["padding-pairs-strided"], "float64")
    x, w, b = run["x"], run["w"], run["b"]
    lazy = dask.array.from_array(x, chunks=chunks)
    y = xconv.conv(lazy, w, b, **run.options)
    assert isinstance(y, dask.array.Array)
    run.compare("result", y.compute(), "y", expected(run.case, "f").y)
    dy = dask.array.from_array(run["dy"], chunks=chunks)
    for name, got, exact in zip(
        "xwb",
        xconv.conv_backward(dy, lazy, w, **run.options),
        expected(run.case, "f").grads,
        strict=True,
    ):
        assert isinstance(got, dask.array.Array)
        run.compare(f"d{name}", got.compute(), name, exact)
