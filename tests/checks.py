"""Runs one case through xconv and compares every contraction with the oracle, exactly.

`Trial` holds a case's arrays in one library, dtype and method. A result is looked at in this order:
library and device, dtype, shape, values.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import oracle
from backends import Backend
from cases import Case, from_layout, kind_of, numbers, to_layout

import xconv
from xconv.padding import Reading, Source


class Method(NamedTuple):
    name: str
    exact: bool = True  # on small integers; otherwise see ERRORS
    takes: Callable[[Case, str], bool] = lambda case, dtype: True


def floating(case: Case, dtype: str) -> bool:
    return "int" not in dtype


def small_and_unstrided(case: Case, dtype: str) -> bool:
    ones = (1, (1,) * case.rank)
    return floating(case, dtype) and case.stride in ones and max(case.w[2:]) <= 5


METHODS = (
    Method("windows"),
    Method("taps"),
    Method("winograd", False, small_and_unstrided),
    Method("fft", False, floating),
    Method("auto"),
)
# what a method that is not exact may be wrong by, as a part of the largest magnitude in the result
ERRORS = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-5, "complex64": 2e-5}
WIDE_ERROR = 1e-13


class Expected(NamedTuple):
    plain: np.ndarray  # without bias
    y: np.ndarray
    grads: oracle.Grads
    each: np.ndarray  # the weight gradient of every sample


@lru_cache(maxsize=1024)
def expected(case: Case, kind: str) -> Expected:
    x, w, b, dy = (numbers(case, role, kind) for role in ("x", "w", "b", "dy"))
    options = case.oracle_options
    if case.transposed:
        plain = oracle.conv_transpose(x, w, **options)
        return Expected(
            plain,
            oracle.with_bias(plain, b),
            oracle.transpose_backward(dy, x, w, **options),
            np.empty(0),
        )
    each = oracle.grad_weight(dy, x.conj(), w.shape[2:], per_sample=True, **options)
    dx = oracle.grad_input(dy, w.conj(), x.shape[2:], **options)
    plain = oracle.conv(x, w, **options)
    grads = oracle.Grads(dx, each.sum(axis=0), oracle.bias_gradient(dy))
    return Expected(plain, oracle.with_bias(plain, b), grads, each)


class Double(NamedTuple):
    """The terms of the double backward pass, each made by one of ddx, ddw, ddb."""

    ddy: tuple[np.ndarray, np.ndarray, np.ndarray]
    dx: np.ndarray
    dw: np.ndarray


@lru_cache(maxsize=1024)
def expected_double(case: Case, kind: str) -> Double:
    roles = ("x", "w", "dy", "ddx", "ddw", "ddb")
    x, w, dy, ddx, ddw, ddb = (numbers(case, role, kind) for role in roles)
    options = case.oracle_options
    if case.transposed:
        options = {**options, "output_size": case.y[2:]}
        options.pop("output_padding", None)
    run = oracle.conv_transpose if case.transposed else oracle.conv
    back = oracle.transpose_backward if case.transposed else oracle.backward
    first, second = run(ddx, w, **options), run(x, ddw, **options)
    third = oracle.with_bias(np.zeros_like(first), ddb)
    return Double(
        (first, second, third), back(dy, x, ddw, **options).dx, back(dy, ddx, w, **options).dw
    )


class Trial:
    def __init__(
        self, backend: Backend, case: Case, dtype: str, method: Method = METHODS[-1], **extra: Any
    ) -> None:
        self.backend, self.case, self.dtype, self.method = backend, case, dtype, method
        self.kind = kind_of(dtype)
        self.options = {**case.options, "method": method.name, **extra}
        self.inputs: dict[str, tuple[Any, np.ndarray]] = {}

    def __getitem__(self, role: str) -> Any:
        """The library's array of x, w, b, dy, ddx, ddw or ddb."""
        if role not in self.inputs:
            shape = "y" if role == "dy" else role.removeprefix("dd")
            array = to_layout(self.case, shape, numbers(self.case, role, self.kind))
            mine = self.backend.array(array, self.dtype)
            self.inputs[role] = mine, np.array(self.backend.to_numpy(mine))
        return self.inputs[role][0]

    def compare(self, what: str, result: Any, role: str, exact: np.ndarray) -> None:
        """The result, in the layout, against canonical exact numbers."""
        backend, case = self.backend, self.case
        here = f"{what} of {case}, {backend} {self.dtype} {self.method.name}"
        assert backend.same_kind(result), f"{here}: library or device of {type(result)}"
        assert backend.dtype_of(result) == self.dtype, f"{here}: dtype {result.dtype}"
        want = to_layout(case, role, backend.rounded(exact, self.dtype))
        assert tuple(result.shape) == want.shape, f"{here}: {result.shape} for {want.shape}"
        got = backend.to_numpy(result)
        largest = np.max(np.abs(want), initial=1.0)
        bound = 0.0 if self.method.exact else ERRORS.get(self.dtype, WIDE_ERROR) * largest
        wrong = np.abs(got - want) > bound if bound else got != want
        if wrong.any():
            at = tuple(np.argwhere(from_layout(case, role, wrong))[0].tolist())
            raise AssertionError(
                f"{here}: {wrong.sum()} of {wrong.size} numbers are wrong, the first at {at}"
                f" (channels first): {from_layout(case, role, got)[at]}"
                f" for {from_layout(case, role, want)[at]}"
            )
        if isinstance(got, np.ndarray) and backend.name == "numpy":
            for name, (array, _) in self.inputs.items():
                assert not np.may_share_memory(result, array), f"{here}: shares memory with {name}"

    def untouched(self) -> None:
        for role, (array, before) in self.inputs.items():
            same = np.array_equal(self.backend.to_numpy(array), before)
            assert same, f"{self.case}: {role} was modified"

    # -- what xconv offers for the case

    def call(self, function: Callable[..., Any], *arrays: Any, **more: Any) -> Any:
        """Compiled where that is faster; with a method named and one axis, as it stands."""
        run = partial(function, **{**self.options, **more})
        compiled = self.method is METHODS[-1] or self.case.rank > 1
        return (self.backend.compiled(run) if compiled else run)(*arrays)

    def forward(self) -> None:
        run = xconv.conv_transpose if self.case.transposed else xconv.conv
        want = expected(self.case, self.kind)
        plain = self.call(run, self["x"], self["w"])
        self.compare("result without bias", plain, "y", want.plain)
        if self.case.bias:
            y = self.call(run, self["x"], self["w"], self["b"])
            self.compare("result", y, "y", want.y)

    def gradients(self, mask: tuple[bool, bool, bool] | None = None) -> None:
        run = xconv.conv_transpose_backward if self.case.transposed else xconv.conv_backward
        more = {} if mask is None else {"output_mask": mask}
        found = self.call(run, self["dy"], self["x"], self["w"], **more)
        assert isinstance(found, xconv.ConvGrads)
        assert found._fields == ("dx", "dw", "db")
        want = expected(self.case, self.kind).grads
        for name, result, exact, asked in zip(
            found._fields, found, want, mask or (True,) * 3, strict=True
        ):
            if asked:
                self.compare(name, result, name[1:], exact)
            else:
                assert result is None, f"{name} was masked"

    def contractions(self) -> None:
        """The two gradients on their own, and the input gradient as a transposed convolution."""
        case, want = self.case, expected(self.case, self.kind)
        dy, x, w = self["dy"], self["x"], self["w"]
        size, kernel = case.x[2:], case.w[2:]
        dx = self.call(lambda dy, w, **more: xconv.conv_grad_input(dy, w, size, **more), dy, w)
        self.compare("conv_grad_input", dx, "x", want.grads.dx)
        dw = self.call(lambda dy, x, **more: xconv.conv_grad_weight(dy, x, kernel, **more), dy, x)
        self.compare("conv_grad_weight", dw, "w", want.grads.dw)
        each = self.call(
            lambda dy, x, **more: xconv.conv_grad_weight(dy, x, kernel, per_sample=True, **more),
            dy,
            x,
        )
        self.compare("conv_grad_weight per sample", each, "nw", want.each)
        more = {"output_size": size}
        if isinstance(case.layout, tuple):  # the transposed call's x comes first
            more["layout"] = case.layout[::-1]
        conjugate = to_layout(case, "w", numbers(case, "w", self.kind).conj())
        w = self.backend.array(conjugate, self.dtype)
        again = self.call(xconv.conv_transpose, dy, w, **more)
        self.compare("the transposed convolution", again, "x", want.grads.dx)

    def double_backward(self, choices: Iterable[tuple[bool, bool, bool]]) -> None:
        """For each choice of which of ddx, ddw and ddb are there; the others are None."""
        case = self.case
        run = xconv.conv_double_backward
        if case.transposed:
            run = xconv.conv_transpose_double_backward
        want = expected_double(case, self.kind)
        for given in choices:
            names = ("ddx", "ddw", "ddb")
            dd = [self[n] if there else None for n, there in zip(names, given, strict=True)]
            ddy, dx, dw = self.call(run, *dd, self["dy"], self["x"], self["w"])
            what = f"double backward {given}"
            parts = [part for part, there in zip(want.ddy, given, strict=True) if there]
            self.compare(what + ": ddy", ddy, "y", sum(parts, np.zeros_like(want.ddy[0])))
            self.compare(what + ": dx", dx, "x", want.dx * given[1])
            self.compare(what + ": dw", dw, "w", want.dw * given[0])


def source(x: Any) -> Source:
    """Return a padded array (G, 1, N, *L) as what `depthwise` reads."""
    box = tuple(slice(0, size) for size in x.shape)
    return Source(x, Reading(box, x.shape, False, ()), x.dtype, None)
