"""How results depend on each other, whatever the geometry: Hypothesis draws it.

Small integers, and larger ones that wrap, keep all comparisons exact.
"""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product
from math import prod
from unittest import mock

import bounds
import numpy as np
import oracle
from backends import FLOATS, load
from cases import Case, from_layout, kind_of, numbers, order, to_layout, wide_numbers
from checks import METHODS, Trial
from conftest import SELECTED
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import any_case, convolution, drawn_cases, dtypes, methods, per_axis, sums

import xconv
from xconv import choice, schedule

ROLES = ("x", "w", "b", "dy")
UNFOLDING = ("stride", "padding", "dilation", "padding_mode")


def passes(case, dtype, method=METHODS[-1]):
    """The case's arrays, and its convolution, backward and double backward pass."""
    run = Trial(load("numpy"), case, dtype, method)
    name = "conv_transpose" if case.transposed else "conv"
    functions = (getattr(xconv, name + part) for part in ("", "_backward", "_double_backward"))
    return run, *(partial(function, **run.options) for function in functions)


def same(found, want):
    np.testing.assert_array_equal(found, want, strict=True)


def inner(a, b):
    """The sum of conj(a) * b, exact or as it wraps."""
    wide = a.dtype if a.dtype.kind in "iu" else np.complex128
    return np.vdot(a.astype(wide), b.astype(wide))


# -- linear in each array, and each contraction the adjoint of the others


@given(any_case, sums, methods)
def test_linear_in_every_array(case, dtype, method):
    """Gradients are antilinear in what they conjugate."""
    run, conv, back, _ = passes(case, dtype, method)
    x, w, b, dy = (run[role] for role in ROLES)
    x2, w2, b2, dy2 = (run[role] for role in ("ddx", "ddw", "ddb", "ddy"))
    scale = 2 - 1j if run.kind == "c" else 3
    y = conv(x, w, b)
    same(conv(x + scale * x2, w, b + scale * b2), y + scale * conv(x2, w, b2))
    same(conv(x, w + scale * w2, b), y + scale * conv(x, w2))
    grads = back(dy, x, w)
    for found, one, other in zip(back(dy + scale * dy2, x, w), grads, back(dy2, x, w), strict=True):
        same(found, one + scale * other)
    turned = scale.conjugate()
    same(back(dy, x, w + scale * w2).dx, grads.dx + turned * back(dy, x, w2).dx)
    same(back(dy, x + scale * x2, w).dw, grads.dw + turned * back(dy, x2, w).dw)


@given(any_case, sums, methods)
def test_backward_is_adjoint(case, dtype, method):
    """<dy, conv(x, w, b)> = <dx, x> + <db, b> = <dw, w> + <db, b>."""
    run, conv, back, _ = passes(case, dtype, method)
    x, w, b, dy = (run[role] for role in ROLES)
    dx, dw, db = back(dy, x, w)
    y = conv(x, w)
    assert inner(dy, y) == inner(dx, x) == inner(dw, w)
    assert inner(dy, conv(x, w, b) - y) == inner(db, b)


@given(drawn_cases(), sums, methods)
def test_contractions_are_adjoint(case, dtype, method):
    """The transposed convolution is, without conjugation."""
    run, conv, _, _ = passes(case, dtype, method)
    x, w, dy = (run[role] for role in ("x", "w", "dy"))
    size, kernel, y = case.x[2:], case.w[2:], conv(x, w)
    assert inner(dy, y) == inner(xconv.conv_grad_input(dy, w, size, **run.options), x)
    assert inner(dy, y) == inner(xconv.conv_grad_weight(dy, x, kernel, **run.options), w)
    layout = case.layout if isinstance(case.layout, str) else case.layout[::-1]
    options = {**run.options, "layout": layout, "output_size": size}
    assert inner(dy.conj(), y) == inner(xconv.conv_transpose(dy, w, **options).conj(), x)


@given(any_case, sums, methods)
def test_an_input_gradient_with_its_operands_exchanged(case, dtype, method):
    """With kernels as data and the output's gradient as kernels."""
    run, conv, back, _ = passes(case, dtype, method)
    x, w, dy = (run[role] for role in ("x", "w", "dy"))
    assume((case.x if case.transposed else case.y)[2:] != case.w[2:])
    want = back(dy, x, w).dx, conv(x, w, run["b"])

    def exchanged(task, geom, size):
        return case.w[2:] == geom.W

    schedule.cells.cache_clear()
    with mock.patch.object(choice, "exchanged", exchanged):
        found = back(dy, x, w).dx, conv(x, w, run["b"])
    schedule.cells.cache_clear()
    for one, other in zip(found, want, strict=True):
        same(one, other)


def channels_first(case, dtype):
    """x and w so, x without its batch axis if it has none, and the options of `unfold`."""
    x, w = (numbers(case, role, kind_of(dtype)).astype(dtype) for role in "xw")
    options = {name: getattr(case, name) for name in UNFOLDING}
    return x if case.batched else x[0], w, options


@given(drawn_cases(), sums)
def test_fold_is_the_adjoint_of_unfold(case, dtype):
    x, w, options = channels_first(case, dtype)
    found = xconv.unfold(x, w.shape[2:], **options)
    columns = wide_numbers(case.name, "columns", found.shape, kind_of(dtype)).astype(dtype)
    folded = xconv.fold(columns, case.x[2:], w.shape[2:], **options)
    assert inner(columns, found) == inner(folded, x)


@given(drawn_cases(), sums, methods)
def test_a_convolution_is_a_product_with_what_unfold_gives(case, dtype, method):
    x, w, options = channels_first(case, dtype)
    columns = xconv.unfold(x, w.shape[2:], **options)
    lead, outputs = columns.shape[:-2], columns.shape[-1]
    rows = w.reshape(case.groups, w.shape[0] // case.groups, prod(w.shape[1:]))
    y = rows @ columns.reshape(*lead, case.groups, prod(w.shape[1:]), outputs)
    y = y.reshape(*lead, *case.y[1:])
    same(xconv.conv(x, w, groups=case.groups, method=method.name, **options), y)


# -- shifts


def spatial(case, role):
    """The axes of x or y that a window moves along, in the case's layout."""
    places = order(case, role)
    return tuple(places.index(1 + case.batched + axis) for axis in range(case.rank))


@st.composite
def circles(draw):
    """Circular padding, and one output for each step of the stride along the input."""
    case = draw(drawn_cases())
    pads, size = [], []
    for axis in per_axis(case):
        total = max(axis.dilation * (axis.kernel - 1) + 1 - axis.stride, 0)
        low = draw(st.integers(0, total))
        steps = draw(st.integers(1, 5 - case.rank))
        pads.append((low, total - low))
        size.append(axis.stride * max(steps, -(-max(pads[-1]) // axis.stride)))
    return replace(case, x=(*case.x[:2], *size), padding=tuple(pads), padding_mode="circular")


@given(circles(), sums, methods, st.tuples(*[st.integers(-4, 4)] * 4))
def test_a_circle_turns(case, dtype, method, steps):
    """Turned by steps of the stride, x turns y, and dy turns dx; with both, dw stays."""
    run, conv, back, _ = passes(case, dtype, method)
    x, w, b, dy = (run[role] for role in ROLES)
    steps = steps[: case.rank]
    cells = tuple(step * axis.stride for step, axis in zip(steps, per_axis(case), strict=True))

    def turned(a, role):
        return np.roll(a, cells if role == "x" else steps, spatial(case, role))

    same(conv(turned(x, "x"), w, b), turned(conv(x, w, b), "y"))
    dx, dw, db = back(dy, x, w)
    found = back(turned(dy, "y"), turned(x, "x"), w)
    same(found.dx, turned(dx, "x"))
    same(found.dw, dw)
    same(found.db, db)


@given(drawn_cases(), sums, methods, st.tuples(*[st.integers(0, 2)] * 4).filter(any))
def test_a_shift_where_no_border_is_seen(case, dtype, method, steps):
    """Outputs move by one for each stride that the cells move by, if all that they read does."""
    plan = per_axis(case)
    steps = steps[: case.rank]
    cells = tuple(step * axis.stride for step, axis in zip(steps, plan, strict=True))
    size = (axis.size + by for axis, by in zip(plan, cells, strict=True))
    case = replace(case, x=(*case.x[:2], *size))
    before, after = [], []
    for axis, step, by in zip(per_axis(case), steps, cells, strict=True):
        moved = [tuple(c if c is None else c + by for c in window) for window in axis.windows()]
        places = [o for o in range(len(moved) - step) if moved[o] == axis.windows()[o + step]]
        before.append(places)
        after.append([o + step for o in places])
    assume(all(before))
    run, conv, _, _ = passes(case, dtype, method)
    x, w, b = (run[role] for role in ("x", "w", "b"))
    y = from_layout(case, "y", conv(x, w, b))
    found = from_layout(case, "y", conv(np.roll(x, cells, spatial(case, "x")), w, b))
    same(found[(..., *np.ix_(*after))], y[(..., *np.ix_(*before))])


# -- one result, however it is computed

WINOGRAD = "need strides of 1 and kernel sizes up to 5 for method 'winograd'; got "
NEEDED = r"\w+: need max_workspace to hold .*; got max_workspace (\d+) bytes, needed (\d+) bytes"


def limits(case: Case, method: str, dtype: str) -> dict[str, float]:
    """What the contractions may be wrong by, where no number is larger than 1 (see `bounds`)."""
    N, (K, c, *W), O, plan = case.x[0], case.w, case.y[2:], per_axis(case)
    k, taps, outputs = K // case.groups, prod(W), prod(O)
    lines = [[cell for cell in axis.line() if cell is not None] for axis in plan]
    copies = prod(max(Counter(line).values(), default=1) for line in lines)
    if method == "fft":
        reach = [o + 2 * axis.dilation * (axis.kernel - 1) for o, axis in zip(O, plan, strict=True)]
        cells = prod(len(axis.line()) for axis in plan)
        y = bounds.spectra(c, cells, taps, dtype)
        dx = bounds.spectra(k, prod(reach), taps, dtype)
        dw = bounds.spectra(N, cells, outputs, dtype)
    else:
        phases = product(*(range(1, w + 1) for w in W))  # of a stride have fewer taps
        y = bounds.tiles(tuple(W), c, dtype)
        dx = max(bounds.tiles(phase, k, dtype) for phase in phases)
        dw = bounds.tiles(tuple(W), N * outputs, dtype, gradient=True)
    return {"y": y, "dx": copies * (dx + bounds.gamma(copies, dtype) * k * taps), "dw": dw}


@given(any_case, st.sampled_from(FLOATS))
def test_methods_agree(case, dtype):
    """Bit for bit, or within the bound that theory gives; one that does not apply says so."""
    run, conv, back, _ = passes(case, dtype)
    x, w, dy = (run[role] for role in ("x", "w", "dy"))

    def results(method):
        yield lambda: conv(x, w, method=method)
        yield lambda: back(dy, x, w, method=method, output_mask=(True, False, False)).dx
        yield lambda: back(dy, x, w, method=method, output_mask=(False, True, False)).dw

    want = [call() for call in results("windows")]
    for method in ("taps", "auto"):
        for call, exact in zip(results(method), want, strict=True):
            same(call(), exact)
    under = convolution(case)
    plan = [*zip(per_axis(under), under.y[2:], strict=True)]
    strided = [axis.kernel for axis, o in plan if axis.stride > 1 < o]
    empty = 0 in (*under.x, *under.w)
    largest = 32 if run.kind == "c" else 16
    names = ("dx", "y", "dw") if case.transposed else ("y", "dx", "dw")
    for method in ("winograd", "fft"):
        bound = limits(under, method, dtype)
        for name, call, exact in zip(names, results(method), want, strict=True):
            try:
                found = call()
            except ValueError as error:
                if WINOGRAD not in str(error) or not strided:
                    raise
                continue
            # phases of a stride, and outputs of single taps, may be as dense as it needs
            must_refuse = max(strided, default=1) > 1
            assert method == "fft" or name == "dx" or empty or not must_refuse
            assert (found.dtype, found.shape) == (exact.dtype, exact.shape)
            wrong = np.max(abs(found.astype(complex) - exact), initial=0)
            rounded = 2 * bounds.ROUNDOFF["float16"] * (dtype == "float16")
            assert wrong <= largest * bound[name] + rounded * np.max(abs(exact), initial=0)


@given(any_case, dtypes, methods, st.integers(3, 15))
def test_a_workspace_changes_nothing(case, dtype, method, power):
    """If it is too small, the error says what is enough."""
    run, conv, back, _ = passes(case, dtype, method)
    x, w, b, dy = (run[role] for role in ROLES)
    want = conv(x, w, b), *back(dy, x, w)
    workspace, enough = 1 << power, False
    while not enough:
        try:
            found = [
                conv(x, w, b, max_workspace=workspace),
                *back(dy, x, w, max_workspace=workspace),
            ]
            enough = True
        except ValueError as error:
            got, needed = map(int, re.fullmatch(NEEDED, str(error)).groups())
            assert got == workspace < needed
            workspace = needed
    for one, other in zip(found, want, strict=True):
        same(one, other)


@given(any_case, st.data())
def test_any_library(pytestconfig, case, data):
    """Step by step, for JAX; it compiles each step, and so is drawn less often."""
    names = pytestconfig.stash[SELECTED]
    others = [name for name in names if name != "jax"]
    backend = load(data.draw(st.sampled_from(others * 4 + names)))
    dtype = data.draw(st.sampled_from(backend.dtypes))
    run = Trial(replace(backend, compiled=lambda function: function), case, dtype)
    run.forward()
    run.gradients()
    run.untouched()


# -- from the definition of something else


@given(any_case, st.sampled_from(["float64", "complex128"]), st.tuples(*[st.booleans()] * 3))
def test_double_backward_differentiates_backward(case, dtype, there):
    """How the pairing of the gradients with ddx, ddw and ddb changes with each of dy, x and w."""
    run, _, back, double = passes(case, dtype)
    dds = [
        run[role] if one else None for role, one in zip(("ddx", "ddw", "ddb"), there, strict=True)
    ]
    here = [run[role] for role in ("dy", "x", "w")]

    def pairing(*arrays):
        pairs = zip(dds, back(*arrays), strict=True)
        return sum(inner(dd, gradient).real for dd, gradient in pairs if dd is not None)

    for which, gradient in enumerate(double(*dds, *here)):
        old = here[which]
        step = wide_numbers(case.name, f"step {which}", old.shape, run.kind).astype(dtype)
        moved = [*here[:which], old + step, *here[which + 1 :]]
        assert (gradient.shape, gradient.dtype) == (old.shape, old.dtype)
        assert pairing(*moved) - pairing(*here) == inner(gradient, step).real


@given(any_case, methods)
def test_complex_numbers_are_pairs_of_real_ones(case, method):
    run, conv, back, _ = passes(case, "complex128", method)
    x, w, dy = (run[role] for role in ("x", "w", "dy"))
    y = conv(x, w)
    same(y.real, conv(x.real, w.real) - conv(x.imag, w.imag))
    same(y.imag, conv(x.real, w.imag) + conv(x.imag, w.real))
    found = back(dy, x, w)
    real, imag = (x.real, w.real), (x.imag, w.imag)
    parts = [back(g, *other) for g, other in product((dy.real, dy.imag), (real, imag))]
    for gradient, rr, ri, ir, ii in zip(found[:2], *(part[:2] for part in parts), strict=True):
        same(gradient.real, rr + ii)
        same(gradient.imag, ir - ri)


@given(drawn_cases(transposed=True), sums, methods)
def test_transposed_is_a_convolution_of_inserted_zeros(case, dtype, method):
    """With turned kernels, over all of the padded line; then each cell adds up its copies."""
    run, conv, _, _ = passes(case, dtype, method)
    x, w = (numbers(case, role, run.kind).astype(dtype) for role in "xw")
    plan, places = per_axis(convolution(case)), range(2, 2 + case.rank)
    shape = (axis.stride * (n - 1) + 1 for axis, n in zip(plan, x.shape[2:], strict=True))
    spread = np.zeros((*x.shape[:2], *shape), dtype)
    spread[(..., *(slice(None, None, axis.stride) for axis in plan))] = x
    C, k, *W = w.shape
    turned = np.flip(w, places).reshape(case.groups, C // case.groups, k, *W)
    turned = turned.swapaxes(1, 2).reshape(case.groups * k, C // case.groups, *W)
    whole = xconv.conv(spread, turned, padding="full", dilation=case.dilation, groups=case.groups)
    for place, axis in zip(places, plan, strict=True):
        values = np.moveaxis(whole, place, 0)
        cells = np.zeros((axis.size, *values.shape[1:]), dtype)
        for cell, value in zip(axis.line(), values, strict=False):  # no window reads the tail
            if cell is not None:
                cells[cell] += value
        whole = np.moveaxis(cells, 0, place)
    same(from_layout(case, "y", conv(run["x"], run["w"])), whole)


@given(drawn_cases(), methods, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_a_nan_reaches_what_reads_it(case, method, bad, data):
    """Zeros of the padding read w and dy too: zero times infinity is NaN."""
    assume(0 not in (*case.x, *case.w))
    _, conv, back, _ = passes(case, "float64", method)
    arrays = {role: numbers(case, role, "f") for role in ("x", "w", "dy")}
    role = data.draw(st.sampled_from(("x", "w", "dy")))
    at = tuple(data.draw(st.integers(0, size - 1)) for size in arrays[role].shape)
    ones, mark = ({name: np.full(a.shape, n) for name, a in arrays.items()} for n in (1.0, 0.0))
    mark[role][at] = 1
    arrays[role] = np.where(mark[role], bad, arrays[role])
    x, w, dy = (to_layout(case, name[-1], a) for name, a in arrays.items())
    with np.errstate(invalid="ignore"):
        found = conv(x, w), *back(dy, x, w)[:2]
    results = (from_layout(case, name, a) for name, a in zip("yxw", found, strict=True))
    y, dx, dw = (~np.isfinite(a) for a in results)
    options = case.oracle_options

    def read(x, w, dy):
        """What reads the mark, in the passes that read this array."""
        dx = oracle.grad_input(dy, w, case.x[2:], **options)
        dw = oracle.grad_weight(dy, x, case.w[2:], **options)
        return (a != 0 for a in (oracle.forward(x, w, **options), dx, dw))

    read_y, read_dx, read_dw = read(**{**ones, role: mark[role]})
    if role == "x":
        same(y, read_y)
        same(dw, read_dw)
        assert not dx.any()
    elif role == "dy":
        same(dx, read_dx)
        assert dw[at[1]].all() and dw.sum() == dw[at[1]].size
        assert not y.any()
    else:
        assert y[:, at[0]].all() and y.sum() == y[:, at[0]].size
        assert dx[read_dx].all()  # and perhaps cells whose window hangs over the edge of dy
        assert not dw.any()
