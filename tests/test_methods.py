"""The methods that are not exact, the automatic choice, and what `explain` says of it."""

import itertools
from fractions import Fraction
from functools import partial

import array_api_compat.numpy as compat
import array_api_strict as strict
import bounds
import numpy as np
import oracle
import pytest
from checks import source
from memory import beyond, cold
from threadpoolctl import threadpool_limits

import xconv
from xconv import (
    bands,
    choice,
    costs,
    depthwise,
    diagonals,
    fft,
    geometry,
    lines,
    namespace,
    padding,
    plan,
    pointwise,
    products,
    scatter,
    schedule,
    setup,
    taps,
    windows,
    winograd,
    workers,
)
from xconv.costs import Task
from xconv.geometry import Geometry, Window

RNG = np.random.default_rng(0)

# relative to the largest magnitude of the result, for 24 channels and normally distributed numbers;
# the README names these bounds
BOUNDS = {
    ("windows", "float32"): 1e-6,
    ("taps", "float32"): 1e-6,
    ("winograd", "float32"): 5e-6,
    ("fft", "float32"): 2e-6,
    ("windows", "float64"): 2e-15,
    ("taps", "float64"): 2e-15,
    ("winograd", "float64"): 1e-14,
    ("fft", "float64"): 4e-15,
    ("windows", "float16"): 1e-3,
    ("taps", "float16"): 1e-3,
    ("winograd", "float16"): 1e-3,
    ("fft", "float16"): 1e-3,
    ("windows", "complex64"): 1e-6,
    ("taps", "complex64"): 1e-6,
    ("winograd", "complex64"): 5e-6,
    ("fft", "complex64"): 2e-6,
}
# layers that "auto" gives to a method that is not exact
LAYERS = {
    "winograd": ((2, 64, 56, 56), (128, 64, 3, 3), {"padding": 1}),
    "banks": ((1, 512, 28, 28), (512, 512, 3, 3), {"padding": 1}),
    "fft": ((2, 1, 4000), (2, 1, 301), {"padding": "same"}),
    "bands": ((8, 48, 14, 14), (48, 1, 7, 7), {"padding": 3, "groups": 48}),
    "depthwise": ((2, 6, 60, 56), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "lines": ((2, 3, 40, 40), (6, 3, 5, 5), {"padding": 2}),
}


def normal(*shape, dtype="float32"):
    values = RNG.standard_normal(shape)
    if dtype.startswith("complex"):
        values = values + 1j * RNG.standard_normal(shape)
    return values.astype(dtype)


def contractions(x, w, dy, **options):
    """The three results of a layer."""
    return (
        xconv.conv(x, w, **options),
        xconv.conv_grad_input(dy, w, x.shape[2:], **options),
        xconv.conv_grad_weight(dy, x, w.shape[2:], **options),
    )


@pytest.mark.parametrize(("method", "dtype"), BOUNDS)
def test_errors_are_within_the_documented_bounds(method, dtype):
    x, w = normal(2, 24, 11, 13, dtype=dtype), normal(16, 24, 3, 3, dtype=dtype)
    dy = normal(2, 16, 11, 13, dtype=dtype)
    wide = [a.astype("complex128" if "c" in dtype else "float64") for a in (x, w, dy)]
    options = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    wx, ww, wdy = wide
    exact = (
        oracle.conv(wx, ww, **options),
        oracle.grad_input(wdy, ww.conj(), (11, 13), **options),
        oracle.grad_weight(wdy, wx.conj(), (3, 3), **options),
    )
    for got, want in zip(contractions(x, w, dy, padding=1, method=method), exact, strict=True):
        assert got.dtype == dtype
        assert np.abs(got - want).max() <= BOUNDS[method, dtype] * np.abs(want).max()


@pytest.mark.parametrize("channels", bounds.CHANNELS)
@pytest.mark.parametrize(("method", "dtype"), bounds.ROWS)
def test_errors_are_within_the_bounds_of_theory(method, dtype, channels):
    """The README's table."""
    measured, bound = bounds.errors(method, dtype, channels)
    assert 0 < measured <= bound


@pytest.mark.parametrize("lazy", [False, pytest.param(True, marks=pytest.mark.backends("dask"))])
@pytest.mark.parametrize("method", LAYERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_under_auto_a_nan_reaches_only_what_reads_it(method, bad, lazy):
    x_shape, w_shape, options = LAYERS[method]
    x, w = normal(*x_shape), normal(*w_shape)
    assert xconv.explain(x, w, **options).steps[0].method == method
    dy = normal(*xconv.conv(x, w, **options).shape)
    x[(0, 0, *(n // 3 for n in x.shape[2:]))] = bad
    dy[(-1, 1, *(n // 2 for n in dy.shape[2:]))] = bad
    expected = contractions(x, w, dy, method="windows", **options)
    if lazy:
        import dask.array

        def cut(a):  # the larger part is still one for the method
            return dask.array.from_array(a, (*a.shape[:-1], -(-2 * a.shape[-1] // 3)))

        x, dy = cut(x), cut(dy)
    found = [np.asarray(a) for a in contractions(x, w, dy, **options)]
    for auto, exact in zip(found, expected, strict=True):
        assert not np.isfinite(exact).all()
        assert (np.isfinite(auto) == np.isfinite(exact)).all()
        same = np.isfinite(exact)
        np.testing.assert_allclose(auto[same], exact[same], atol=1e-3)


@pytest.mark.parametrize("layer", ["winograd", "banks"])
def test_a_nan_in_the_weights_stays_in_its_channel(layer):
    x_shape, w_shape, options = LAYERS[layer]
    x, w = normal(*x_shape), normal(*w_shape)
    w[3, 5, 1, 2] = np.nan
    spoiled = ~np.isfinite(xconv.conv(x, w, **options)).all(axis=(0, 2, 3))
    assert list(np.flatnonzero(spoiled)) == [3]


@pytest.mark.parametrize("layer", ["winograd", "banks", "fft"])
def test_named_methods_stay_within_the_workspace(layer):
    x_shape, w_shape, options = LAYERS[layer]
    method = "fft" if layer == "fft" else "winograd"
    x, w = normal(*x_shape), normal(*w_shape)
    dy = normal(*xconv.conv(x, w, **options).shape)
    for workspace, i in itertools.product((2**23, 2**25), range(3)):
        more = {**options, "method": method, "max_workspace": workspace}
        call = (
            lambda more: xconv.conv(x, w, **more),
            lambda more: xconv.conv_grad_input(dy, w, x.shape[2:], **more),
            lambda more: xconv.conv_grad_weight(dy, x, w.shape[2:], **more),
        )[i]
        limit = workspace + 2**16
        assert beyond(partial(call, more), limit) <= limit


def begin_block():
    """Begin a block in memory that another one has used."""
    namespace._scratch.used = 2**20
    namespace.begin_block(np, True)
    namespace._scratch.memory[...] = 255  # in floats NaN


def taken():
    """Return the bytes of temporary arrays of a block."""
    return namespace._scratch.used


# one channel per group: input size, kernel size, stride, dilation, padding
BANDS = [
    ((7, 7), (3, 3), 1, 1, 1),
    ((9, 4), (3, 5), 2, 1, ((1, 2), (4, 0))),
    ((14, 11), (2, 3), (2, 3), (3, 2), ((0, 3), (-1, 1))),
    ((3, 2), (3, 3), 1, 1, 4),  # rows that read nothing but padding
    ((12, 5), (1, 3), (3, 1), 1, ((-2, -2), (1, 1))),
    ((16, 8), (3, 3), (2, 1), 1, ((-3, -4), (0, 2))),
    ((3, 3), (2, 2), 1, 1, 0),
    ((9, 30), (3, 3), (1, 5), 1, 1),
    ((6, 7), (1, 3), 1, 1, ((0, 0), (1, 1))),
    ((8, 5), (3, 1), 1, 2, 1),
    ((40,), (4,), 3, 2, 5),
    ((4, 5, 6), (2, 3, 2), (1, 2, 3), (2, 1, 1), 1),
    ((5, 4, 6), (3, 2, 3), (1, 2, 1), 1, ((1, 0), (0, 2), (1, 1))),
]


def banded(sizes, samples=1):
    """The geometry of a convolution of five groups, and its options."""
    I, W, stride, dilation, padding = sizes
    given = geometry.options(len(I), stride, padding, dilation, 5)
    more = {"stride": stride, "dilation": dilation, "padding": padding, "groups": 5}
    return geometry.geometry(samples, 5, 5, I, W, given), more


@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("sizes", BANDS, ids=str)
def test_bands_are_exact_on_small_integers(sizes, samples):
    geom, more = banded(sizes, samples)
    I, W = sizes[:2]
    x, w, g = (
        RNG.integers(-4, 5, shape).astype("float32")
        for shape in ((5, 1, samples, *I), (5, 1, 1, *W), (5, 1, samples, *geom.O))
    )
    plain = [a[:, 0].swapaxes(0, 1) for a in (x, g)]
    y, dx, dw = contractions(plain[0], w[:, 0], plain[1], method="taps", **more)
    for a, want, backwards in ((x, y, False), (g, dx, True)):
        right, work = want.swapaxes(0, 1)[:, None], bands.work(geom, backwards)
        how, matrices = bands.band(geom, backwards), bands.prepare(np, w, geom, backwards)
        assert work.products == how.number
        assert work.prepared == matrices[0].size + w[0].size
        assert matrices[0].flags.c_contiguous == (how.height <= bands.TALL * how.width)
        wide = np.full((*right.shape[:-1], right.shape[-1] + 1), 99, "float32")
        apart = np.zeros((*a.shape[:-1], a.shape[-1] + 1), "float32")[..., :-1]
        apart[...] = a
        for operand in (a, apart):
            begin_block()
            found = bands.contract(np, operand, matrices, geom, backwards)
            np.testing.assert_array_equal(found, right, strict=True)
            copied = a.nbytes * (namespace.merged(operand, 3) is None)
            assert 0 <= taken() - found.nbytes - copied < 2**8
            for out in (np.full(right.shape, 99, "float32"), wide[..., :-1]):
                products = bands.products(np, operand, matrices, geom, backwards, out)
                views = [namespace.merged(b, 3) is not None for b in (operand, out)]
                assert (products is not None) == all(views)
                for left, matrix, place in products or ():
                    for own in (slice(0, 2), slice(2, 5)):  # some groups at a time
                        np.matmul(left[own], matrix[own], out=place[own])
                if products is not None:
                    np.testing.assert_array_equal(out, right, strict=True)
        assert (wide[..., -1] == 99).all()
    if max((1, *geom.stride[:-2])) == 1:  # else its rows are not in one line
        begin_block()
        found = diagonals.grad_weight(np, x, g, geom)
        np.testing.assert_array_equal(found[:, 0], dw, strict=True)
        assert 0 <= taken() - 5 * 4 * diagonals.work(geom).kept < 2**8
        grid = diagonals._line(geom, 5).grid  # in which all cells have room
        for axis, outputs in enumerate(grid):
            first, last = geom.read_range(axis)
            assert outputs == -((first - last) // geom.stride[axis])


def test_where_diagonals_apply():
    """To rows that lie one stride apart, where the matrix that sums diagonals is small."""

    def applies(I, O, W, stride=(1, 1)):
        rank = len(stride)
        more = (99,) * (rank - 1)  # of which rows there may be any number
        sizes = ((*more, last) for last in (I, W, O))
        axes = (*sizes, stride, (1,) * rank, ((0, 0),) * rank)
        return diagonals.applies(Geometry(2, 1, 2, 2, *axes, "zeros"))

    assert applies(64, 16, 16)  # just as large as it may be
    assert not applies(64, 16, 17)
    assert not applies(200, 200, 3)
    assert applies(9, 4, 2, (2,))
    assert applies(9, 4, 2, (2, 2))
    assert applies(9, 4, 2, (1, 2, 2))
    assert not applies(9, 4, 2, (2, 1, 1))
    assert not applies(9, 4, 2, (1, 2, 1, 1))


def test_weights_that_are_rearranged_for_windows():
    """Many mirrored ones in NumPy, into one array, which workers share; others are views."""
    w, window = np.ones((2, 2**15, 2, 2), np.float32), Window((5,), (2,), (1,), (1,))
    assert windows.room(np, w, window) is None
    room = windows.room(np, w[..., ::-1], window)
    assert (room.shape, room.dtype) == ((2, 2**15, 4), w.dtype)
    assert windows.room(np, w[:, 1:, :, ::-1], window) is None
    assert windows.room(strict, strict.asarray(w[..., ::-1]), window) is None


def test_workers_share_what_they_rearrange(monkeypatch):
    """A million mirrored weights, a part of the output channels at a time; not products first."""
    monkeypatch.setattr("xconv.choice.scattered", lambda *_: None)
    w = np.random.default_rng(0).integers(-2, 3, (512, 512, 2, 2)).astype("float32")
    dy = np.random.default_rng(1).integers(-2, 3, (1, 512, 2, 3)).astype("float32")
    with threadpool_limits(2):
        dx = xconv.conv_grad_input(dy, w, (3, 4), method="windows")
    (phase,) = dy
    right = np.zeros((512, 3, 4))
    for i, j in np.ndindex(2, 2):
        right[:, i : i + 2, j : j + 3] += np.tensordot(w[:, :, i, j].astype(float), phase, (0, 0))
    np.testing.assert_array_equal(dx[0], right)


@pytest.fixture(params=["AMD", "Intel", "older"])
def kernels(request, monkeypatch):
    """Multiply as on AMD's and Intel's processors that have AVX-512, and on others."""
    monkeypatch.setattr(
        products, "architecture", lambda: "Haswell" if request.param == "older" else "SkylakeX"
    )
    monkeypatch.setattr(products, "needs_runs", lambda: request.param == "Intel")
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(
    ("m", "n", "length", "lead"),
    [
        (40, 60, 50, ()),  # small already
        (307, 64, 128, (2, 1)),  # rows in pieces and a rest
        (300, 64, 128, (2, 3)),  # without a rest
        (64, 1009, 128, (2, 3)),  # columns
        (307, 1009, 50, ()),  # both
        (64, 64, 700, ()),  # no piece of so long sums is small
        (10**4, 3, 40, (1,)),
        (1, 10**4, 200, (2,)),
    ],
)
def test_products_in_pieces_are_the_same(kernels, dtype, m, n, length, lead):
    a = RNG.integers(-2, 3, (*lead[1:], m, length)).astype(dtype)
    b = RNG.integers(-2, 3, (*lead, length, n + 1)).astype(dtype)[..., :n]
    want = np.einsum("...ij,...jk->...ik", a, b)
    wide = np.zeros((*lead, m, n + 3), dtype)
    turned = np.zeros((*lead, n, m), dtype).swapaxes(-1, -2)
    for out in (None, wide[..., :n], turned):
        begin_block()
        found = products.matmul(np, a, b, out)
        assert out is None or found is out
        np.testing.assert_array_equal(found, want)
    assert not wide[..., n:].any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(
    ("k", "m", "length"),
    [(32, 48, 400), (64, 25, 1000), (7, 31, 3000), (24, 16, 7001), (64, 576, 2050), (1, 97, 500)],
)
def test_products_tile_by_tile_are_the_same(kernels, dtype, k, m, length):
    a = RNG.integers(-2, 3, (2, 1, k, length + 1)).astype(dtype)[..., 1:]
    b = RNG.integers(-2, 3, (2, 3, m, length)).astype(dtype)
    want = np.einsum("...ip,...jp->...ij", a, b)
    for out in (None, np.zeros((2, 3, k, m), dtype), np.zeros((2, 3, k, m + 1), dtype)[..., :m]):
        begin_block()
        np.testing.assert_array_equal(products.inner(np, a, b, out), want)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("k", "c"), [(2, 17), (5, 8), (128, 24)])
def test_sums_of_many_channels_are_in_parts(monkeypatch, k, c, threads):
    """By `winograd`, whose errors grow with them."""
    monkeypatch.setattr(winograd, "SUMMED", 8)
    x, w = RNG.standard_normal((2, c, 9, 12)), RNG.standard_normal((k, c, 3, 2))
    dy = RNG.standard_normal((2, k, 7, 11))
    with threadpool_limits(threads):
        y = xconv.conv(x, w, method="winograd")
        dx = xconv.conv_grad_input(dy, w, (9, 12), method="winograd")
    right = np.zeros_like(y)
    back = np.zeros_like(x)
    for i, j in np.ndindex(3, 2):
        cells = (slice(None), slice(None), slice(i, i + 7), slice(j, j + 11))
        right += np.einsum("nchw,kc->nkhw", x[cells], w[:, :, i, j])
        back[cells] += np.einsum("nkhw,kc->nchw", dy, w[:, :, i, j])
    np.testing.assert_allclose(y, right, atol=1e-12)
    np.testing.assert_allclose(dx, back, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_of_the_weights_are_prepared_in_the_same_memory(monkeypatch, threads):
    prepare, used = winograd.prepare, []

    def spy(xp, w, window, out):
        used.append(namespace._scratch.used)
        return prepare(xp, w, window, out)

    monkeypatch.setattr(winograd, "prepare", spy)
    x, w = np.ones((8, 128, 28, 28), "float32"), np.ones((128, 128, 3, 3), "float32")
    with threadpool_limits(threads):
        xconv.conv(x, w, method="winograd")
    assert len(used) > 1
    assert not any(used)


def test_weights_that_run_backwards_are_copied_for_blas():
    """As flipped kernels of one channel, and those of its input gradient."""
    w = RNG.integers(-2, 3, (1, 2, 1, 3, 3)).astype("float32")[..., ::-1, ::-1]
    window = Window((9, 9), (3, 3), (1, 1), (1, 1))
    want = w.reshape(1, 2, 9).copy()
    assert w.reshape(1, 2, 9).strides[-1] < 0
    for matrices in (windows.prepare(np, w, window), scatter.prepare(np, w).mT):
        np.testing.assert_array_equal(matrices, want)
        assert matrices.strides[-1] > 0


def test_pieces_are_small_and_not_too_small():
    for m, n, length in itertools.product(
        (1, 5, 64, 307, 5000), (3, 130, 3136, 5003), (1, 40, 200)
    ):
        rows, columns = products.pieces(m, n, length)
        assert rows * columns * length <= products.DIRECT
        assert rows >= min(m, 32)
        assert columns >= min(n, 64)
    assert products.pieces(64, 3136, 64) == (64, 224)
    assert products.pieces(256, 3136, 64) == (128, 112)
    assert products.pieces(128, 784, 512) == (128, 784)  # they would be too small
    assert not products.in_pieces(256)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("m", "n", "length", "intel"),
    [
        (1000, 128, 64, True),  # near, and the second one narrow
        (1000, 129, 64, False),
        (10**5, 64, 64, False),
        (32, 10**5, 64, True),  # thin
        (33, 10**5, 64, False),
    ],
)
def test_large_products_are_in_pieces(kernels, monkeypatch, dtype, m, n, length, intel):
    """Where a processor reads far memory in long runs: those that are near and narrow."""
    by_pieces, seen = products._by_pieces, []

    def spy(xp, a, b, out):
        seen.append(out.shape)
        return by_pieces(xp, a, b, out)

    monkeypatch.setattr(products, "_by_pieces", spy)
    begin_block()
    products.matmul(np, np.ones((m, length), dtype), np.ones((length, n), dtype))
    assert bool(seen) == (kernels == "AMD" or (kernels == "Intel" and intel))


@pytest.mark.parametrize(("k", "m", "intel"), [(64, 64, False), (32, 640, True), (640, 32, True)])
def test_inner_products_are_tile_by_tile(kernels, monkeypatch, k, m, intel):
    """On such processors where results are thin."""
    seen = []
    monkeypatch.setattr(products, "_inner", lambda *args: seen.append(args))
    products.inner(np, np.ones((k, 400)), np.ones((m, 400)))
    tiles = [args[4] for args in seen]
    tiled = kernels == "AMD" or (kernels == "Intel" and intel)
    assert tiles == [products.tile(400, k, m) if tiled else None]
    assert products.tile(400, k, m) is not None


def test_instructions_are_those_that_numpy_names(monkeypatch):
    config = {"SIMD Extensions": {"baseline": ["X86_V2"], "found": ["AVX512_SPR"]}}
    monkeypatch.setattr(np, "show_config", lambda mode: config)
    assert namespace.instructions.__wrapped__() == {"X86_V2", "AVX512_SPR"}
    config["SIMD Extensions"].pop("found")
    assert namespace.instructions.__wrapped__() == {"X86_V2"}
    config.clear()
    assert namespace.instructions.__wrapped__() == frozenset()


def test_tiles_are_equal_and_not_too_large():
    assert products.tile(products.LEAST - 1, 64, 64) is None
    assert products.tile(products.LEAST, 64, 64) == (32, 32)
    assert products.tile(1568, 64, 64) == (32, 16)  # of sums in one piece
    assert products.tile(10**5, 64, 576) == (32, 36)
    assert products.tile(10**5, 7, 13) is None  # so few results are no tile
    assert products.tile(10**5, 1201, 1201) is None
    assert products.tile(10**5, 1201, 48) is None  # nor rows of matrices
    assert products.tile(784, 67, 1200) == (67, 16)
    assert products.tile(784, 7, 1152) == (7, 144)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(
    ("k", "m", "length", "summed", "turns"),
    [
        (3, 5, products.LONG, 1, True),
        (3, 5, products.LONG - 1, 1, False),
        (3, 5, products.LONG // 2, 2, True),
        (5, 5, products.LONG, 1, False),
        (5, 3, products.LONG, 1, False),
        (3, 5, 2 * products.PIECE + 1, 1, True),
        (3, 6, products.LONG, 1, True),
        (3, 7, products.LONG, 1, False),
    ],
)
def test_the_larger_operand_of_long_sums_is_not_transposed(
    monkeypatch, dtype, k, m, length, summed, turns
):
    """In float32, for OpenBLAS; results are the same, and `out` is used where they are in order."""
    monkeypatch.setattr(products, "COPIED", 18)
    a = RNG.integers(-2, 3, (2, 1, k, length)).astype(dtype)
    b = RNG.integers(-2, 3, (2, 4, m, length)).astype(dtype)
    want = (a[..., :, None, :] * b[..., None, :, :]).sum(axis=-1)
    turns = turns and dtype == "float32"
    for out in (None, np.empty((2, 4, k, m), dtype)):
        begin_block()
        found = products.inner(np, a, b, out, summed)
        np.testing.assert_array_equal(found, want, strict=True)
        assert (found is out) == (out is not None and not turns)
        assert found.flags.c_contiguous != turns


@pytest.mark.parametrize(
    ("samples", "row", "stride", "last"),
    [
        (4, 9, (1, 1), True),
        (3, 9, (1, 1), False),
        (4, 9, (2, 1), True),
        (36, 9, (1, 2), True),
        (35, 9, (1, 2), False),
        (4, 31, (1, 1), True),
        (4, 32, (1, 1), False),
    ],
)
def test_short_rows_are_added_with_the_samples_last(samples, row, stride, last):
    given = geometry.options(2, stride, 0, 1, 1)
    I = (3 * stride[0] + 1, stride[1] * (row - 1) + 2)
    geom = geometry.geometry(samples, 2, 3, I, (2, 2), given)
    w = RNG.integers(-4, 5, (3, 2, 2, 2)).astype("float32")
    g = RNG.integers(-4, 5, (samples, 3, *geom.O)).astype("float32")
    right = np.zeros((samples, 2, *I))
    for (i, j), (u, v) in itertools.product(np.ndindex(geom.O), np.ndindex(2, 2)):
        term = g[:, :, i, j].astype(float) @ w[:, :, u, v]
        right[:, :, stride[0] * i + u, stride[1] * j + v] += term
    additions = scatter.additions(geom, (0, 0), geom.O, (0, 0), I)
    grouped, weights = g.swapaxes(0, 1)[None], scatter.prepare(np, w[None])
    begin_block()
    found = scatter.grad_input(np, grouped, weights, (1, 2, samples, *I), additions)
    np.testing.assert_array_equal(found[0].swapaxes(0, 1), right.astype("float32"))
    assert (found.strides[2] == 4) == last


def test_matrices_of_bands_are_for_any_number_of_samples_and_groups():
    namespace._numpy_constant.cache_clear()
    for samples, groups in ((1, 2), (3, 2), (3, 7)):
        given = geometry.options(2, 1, 1, 1, groups)
        geom = geometry.geometry(samples, groups, groups, (5, 6), (3, 3), given)
        x, w = np.ones((groups, 1, samples, 5, 6)), np.ones((groups, 1, 1, 3, 3))
        begin_block()
        matrices = bands.prepare(np, w, geom, False)
        assert bands.contract(np, x, matrices, geom, False)[0, 0, 0, 2, 2] == 9
    assert namespace._numpy_constant.cache_info().currsize == 1


@pytest.mark.parametrize(("kernel", "times"), [((3, 5), 1), ((4, 4), 2), ((5, 7), 3)])
def test_a_matrix_of_many_taps_counts_as_more_numbers_copied(kernel, times):
    geom, _ = banded(((9, 9), kernel, 1, 1, 2), 8)
    how = bands.band(geom, False)
    assert bands.work(geom, False).copied == times * how.height * how.width


def test_bands_whose_matrices_are_too_large_to_keep(monkeypatch):
    def applies(I, W, backwards):
        given = geometry.options(2, 1, 1, 1, 2)
        return bands.applies(geometry.geometry(1, 2, 2, (I, I), (W, W), given), backwards)

    assert applies(98, 3, False) and not applies(99, 3, False)  # 9 taps of 3 rows of 98 to 98
    assert applies(98, 3, True) and not applies(99, 3, True)
    assert not applies(60, 8, False)
    monkeypatch.setattr(bands, "LARGEST", 9 * 3 * 98 * 98)
    assert applies(98, 3, False)
    monkeypatch.setattr(bands, "LARGEST", 9 * 3 * 98 * 98 - 1)
    assert not applies(98, 3, False)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("size", [(6, 40), (200,), (4, 9, 5), (3, 5)], ids=str)
def test_one_tap_from_and_to_where_arrays_lie(size, dtype):
    """In blocks, of arrays in which positions are one axis, and of others."""
    x, w, b = (
        RNG.integers(-4, 5, shape).astype(dtype)
        for shape in ((3, 6, *size), (8, 3, *(1,) * len(size)), (8,))
    )
    grouped = w.reshape(2, 4, 3)
    want = np.einsum("ngc...,gkc->ngk...", x.reshape(3, 2, 3, *size), grouped)
    want = want.reshape(3, 8, *size) + b.reshape(8, *(1,) * len(size))
    back = np.einsum("ngk...,gkc->ngc...", want.reshape(3, 2, 4, *size), grouped)
    apart = np.stack([x, x], -1)[..., 0]
    for operand in (x, apart, np.asarray(x, order="F"), x.real.astype("int16")):
        for limit in (None, 2**13):
            y = xconv.conv(operand, w, b, groups=2, max_workspace=limit)
            np.testing.assert_array_equal(y, want, strict=True)
            dx = xconv.conv_grad_input(y, w, size, groups=2, max_workspace=limit)
            np.testing.assert_array_equal(dx, back.reshape(x.shape), strict=True)


def test_where_positions_are_one_range():
    geom = geometry.geometry(4, 3, 2, (6, 5, 4), (1, 1, 1), geometry.options(3, 1, 0, 1, 1))
    box = ((0, 1), (0, 2), (1, 3))
    assert schedule._flat(geom, *box, (2, 4))[3] == slice(40, 80)


@pytest.mark.parametrize(("length", "whole"), [(1000, True), (2**20, False)])
def test_parts_of_rows_are_no_range_of_positions(length, whole):
    geom = geometry.geometry(1, 3, 2, (4, length), (1, 1), geometry.options(2, 1, 0, 1, 1))
    limits = plan.CPU._replace(block=2**20)
    planned = schedule.forward(Task(np, "auto", "float32", "float32", limits, False), geom)
    assert planned.flat == whole == (planned.cut.o[-1] == length)
    blocks = [block for one in planned.passes() for block in one.blocks]
    assert all((block.flat is not None) == whole for block in blocks)


@pytest.mark.parametrize(("gap", "count"), [(0, 2), (1, 1)])
def test_all_workers_multiply_where_arrays_lie(gap, count, monkeypatch):
    """Which takes no memory, where the copies of more blocks than one would not fit."""
    x, w = np.ones((1, 8, 64, 64 + gap), "float32")[..., :64], np.ones((8, 8, 1, 1), "float32")
    run, found = workers.run, []

    def counted(tasks, work, workers):
        found.append(workers)
        run(tasks, work, workers=workers)

    monkeypatch.setattr(workers, "run", counted)
    monkeypatch.setattr(setup, "at_once", lambda *_: 1)
    with threadpool_limits(2):
        y = xconv.conv(x, w)
    assert (y == 8).all() and found == [count]


def test_sums_over_samples_count_as_long():
    x, g = (np.ones((1, c, 8, 10, 10), "float32") for c in (5, 3))
    dw = pointwise.grad_weight(np, x, g, Window((10, 10), (1, 1), (1, 1), (1, 1)))
    assert (dw == 800).all()
    assert dw[0, :, :, 0, 0].flags.f_contiguous  # the larger operand was not transposed


def test_samples_whose_products_are_apart():
    """Where there is no less to gather than results to sum."""
    assert pointwise._apart(2, 1, 2, 2)
    assert not pointwise._apart(1, 1, 2, 2)
    assert not pointwise._apart(2, 1, 2, 3)


def test_the_work_of_bands_is_about_that_of_their_products():
    (geom, _), (long, _) = (
        banded((I, (3, 3), 1, 1, 1), samples) for I, samples in (((70, 9), 300), ((9, 300), 7))
    )
    for backwards in (False, True):
        work, how = bands.work(geom, backwards), bands.band(geom, backwards)
        exact = 2 * geom.N * how.height * how.width  # of each product
        assert exact <= work.operations <= 1.02 * exact
        single = len([*how.ranges()]) - 1
        assert 3 * single <= work.calls <= 3 * single + 10
    work, exact = diagonals.work(long), 2 * 300 * 300 * diagonals._line(long, 1).length
    assert exact <= work.operations <= 1.05 * exact
    assert work.products == 3


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sizes", BANDS, ids=str)
def test_bands_are_the_rows_that_results_read(sizes, backwards):
    geom, _ = banded(sizes)
    s, d, taps, (low, _) = geom.stride[0], geom.dilation[0], geom.W[0], geom.padding[0]
    ends = (geom.O, geom.I) if backwards else (geom.I, geom.O)
    (inputs, *row), (results, *wide) = ends
    how = bands.band(geom, backwards)
    assert (how.inputs, how.results) == (inputs, results)
    assert (how.height, how.width) == (how.span * np.prod(row), how.rows * np.prod(wide))
    whole = []
    for block in range(how.number):
        rows = range(how.rows * block, how.rows * (block + 1))
        if backwards:  # i = s*o + d*t - low
            read = [
                (i + low - d * t) // s
                for i in rows
                for t in range(taps)
                if (i + low - d * t) % s == 0
            ]
        else:
            read = [s * o + d * t - low for o in rows for t in range(taps)]
        start = how.step * block + how.low
        assert (min(read), max(read)) == (start, start + how.span - 1)
        if start >= 0 and start + how.span <= inputs and rows.stop <= results:
            whole.append(block)
    assert [*range(*how.inside)] == whole
    single = [(block, block + 1) for block in range(how.number) if block not in whole]
    assert [*how.ranges()] == ([how.inside] if whole else []) + single
    assert how.rows * (how.number - 1) < results <= how.rows * how.number
    least = s if backwards else 1  # phases of the stride are together
    assert how.rows * np.prod(wide) >= bands.LEAST or how.rows == results
    assert (how.rows - least) * np.prod(wide) < bands.LEAST
    assert how.rows <= results or backwards


def test_a_band_of_outputs_that_are_very_far_apart():
    geom, more = banded(((3, 9), (3, 3), (2**61, 1), 1, ((1, 2**61), (1, 1))))
    x, w = RNG.integers(-4, 5, (1, 5, 3, 9)), RNG.integers(-4, 5, (5, 1, 3, 3))
    x, w = x.astype("float32"), w.astype("float32")
    y = xconv.conv(x, w, method="taps", **more)
    matrices = bands.prepare(np, w[:, None], geom, False)
    found = bands.contract(np, x[0][:, None, None], matrices, geom, False)
    np.testing.assert_array_equal(found[:, 0].swapaxes(0, 1), y)


@pytest.mark.parametrize(
    "O", [(1636,), (6, 5), (5, 20), (4, 16), (70, 80), (1, 3), (4, 5, 3)], ids=str
)
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 3), (3, 2, 1)], ids=str)
def test_lines_and_depthwise_are_exact_on_small_integers(O, stride):
    W = (4, 3, 2)[: len(O)]
    s = tuple(step if o > 1 else 1 for o, step in zip(O, stride, strict=False))
    N = 5  # the lines of 1636 outputs are whole pieces then
    for algorithm, c, k, dilation in ((lines, 3, 4, 1), (depthwise, 1, 1, 1), (depthwise, 1, 1, 2)):
        d = (dilation,) * len(O)
        L = [a * (o - 1) + b * (t - 1) + 1 for o, t, a, b in zip(O, W, s, d, strict=True)]
        x, w, g = (
            RNG.integers(-4, 5, shape).astype("float32")
            for shape in ((2, c, N, *L), (2, k, c, *W), (2, k, N, *O))
        )
        window, wide = geometry.Window(O, W, s, d), np.zeros((*g.shape[:-1], O[-1] + 1), g.dtype)
        want = windows.forward(np, x, windows.prepare(np, w, window), window).copy()
        prepared = algorithm.prepare(np, w, window)
        assert prepared.dtype == w.dtype
        rows = min(depthwise.ROWS, O[0]) if len(O) > 1 else 1
        assert algorithm is lines or prepared.shape[2] == rows
        shared = algorithm is lines and np.prod(O[1:]) < lines.SHORT
        read = x if algorithm is lines else source(x)
        for place in (np.zeros_like(g), wide[..., :-1], None):
            begin_block()
            y = algorithm.forward(np, read, prepared, window, place)
            np.testing.assert_array_equal(y, want, strict=True)
            in_place = place is not None and (
                algorithm is depthwise or namespace.merged(place, 4) is not None
            )
            assert (y is place) == (in_place and not shared)
            fits = x.nbytes <= 2**16
            assert taken() > 0 or not fits
        assert not wide[..., -1].any()
        want = windows.grad_weight(np, x, g, window)
        begin_block()
        found = algorithm.grad_weight(np, read, g, window)
        np.testing.assert_array_equal(found, want, strict=True)


@pytest.fixture
def small_cache(monkeypatch, request):
    """Let `depthwise` take a core's cache, and a line, for smaller than they are."""
    kept = [f for f in vars(depthwise).values() if hasattr(f, "cache_clear")]
    near, line = request.param
    monkeypatch.setattr(depthwise, "NEAR", near)
    monkeypatch.setattr(depthwise, "LINE", line)
    for function in kept:
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in kept:
        function.cache_clear()


@pytest.mark.parametrize("small_cache", [(1, 7), (900, 64), (9000, 400)], indirect=True, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize(
    ("I", "W", "stride", "dilation"),
    [
        ((40,), (5,), 1, 2),
        ((14, 9), (3, 3), 1, 1),
        ((23, 10), (3, 2), (2, 1), (1, 3)),
        ((23, 10), (1, 4), (1, 2), 1),
        ((11, 6, 7), (3, 2, 3), 1, 1),
        ((9, 6, 7), (2, 3, 2), (1, 2, 3), (2, 1, 1)),
    ],
    ids=str,
)
def test_depthwise_in_pieces_of_any_size(small_cache, I, W, stride, dilation, mode):
    """Parts of groups, of samples and of rows, and what is left of each."""
    x, w = RNG.integers(-3, 4, (5, 7, *I)), RNG.integers(-3, 4, (7, 1, *W))
    x, w = x.astype("float32"), w.astype("float32")
    options = {"stride": stride, "dilation": dilation, "padding_mode": mode}
    axes = (options["stride"], ((1, 2), *((1, 0),) * (len(I) - 1)), options["dilation"])
    geom = geometry.geometry(5, 1, 1, I, W, geometry.options(len(I), *axes, 1, mode))
    y = xconv.conv(x, w, groups=7, padding=geom.padding, method="taps", **options)
    grouped = np.moveaxis(x, 1, 0)[:, None]
    start, stop = geom.reads((0,) * len(I), geom.O, (0,) * len(I), W)
    box = (slice(0, 7), slice(0, 1), slice(0, 5))
    how = padding.reading(geom, box, start, stop)
    window = Window(geom.O, W, geom.stride, geom.dilation)
    read = padding.Source(grouped, how, x.dtype, None)
    prepared = depthwise.prepare(np, w[:, None], window)
    found = depthwise.forward(np, read, prepared, window)
    np.testing.assert_array_equal(np.moveaxis(found[:, 0], 0, 1), y, strict=True)
    turned = partial(namespace.conjugate, np)
    read_conjugate = padding.Source(grouped * np.complex64(1j), how, np.dtype("complex64"), turned)
    found = depthwise.forward(np, read_conjugate, prepared.astype("complex64"), window)
    np.testing.assert_array_equal(np.moveaxis(found[:, 0], 0, 1), y * np.complex64(-1j))
    g = RNG.integers(-3, 4, y.shape).astype("float32")
    options |= {"groups": 7, "padding": geom.padding, "method": "taps"}
    dw = xconv.conv_grad_weight(g, x, W, **options)
    found = depthwise.grad_weight(np, read, np.moveaxis(g, 1, 0)[:, None], window)
    np.testing.assert_array_equal(found[:, 0], dw, strict=True)


@pytest.mark.parametrize("small_cache", [(5000, 300)], indirect=True, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_part_of_a_depthwise_block_takes_more_than_all_of_it(small_cache, rank):
    """As of the blocks at the edges, which are counted as the others."""
    for _ in range(200):
        W, stride, dilation = (tuple(RNG.integers(1, 4, rank).tolist()) for _ in range(3))
        whole = RNG.integers(1, [40, 9, *(25,) * rank])
        parts = [whole, RNG.integers(1, whole + 1)]
        found = []
        for G, N, *O in (part.tolist() for part in parts):
            window = Window(tuple(O), W, stride, dilation)
            sizes = (depthwise.workspace, depthwise.weight_workspace)
            found.append([size(G, N, window, 1, 1) for size in sizes])
            image, taps = np.prod(depthwise._cells(window)), np.prod(W)
            g, n, _, columns = depthwise._pieces(G, N, depthwise._planar(window))
            assert g * n * (image + columns) <= found[-1][0]
            g, _, count, length = depthwise._line_pieces(G, N, window)
            lines_of_both = g * (2 * count * length + depthwise._reach(window))
            assert lines_of_both + G * (count + 2) * taps <= found[-1][1]
        assert found[1][0] <= found[0][0] and found[1][1] <= found[0][1], (parts, W, stride)


# outputs, kernel size: whole tiles and parts, at dilations of 2 one tile for two phases; at 5 one
# output of a block that is as long as a tile
TILES = [
    ((8,), (3,)),
    ((10, 8), (2, 3)),
    ((7, 8), (3, 2)),
    ((4, 4), (3, 3)),
    ((3, 4, 6), (2, 3, 3)),
    ((3, 2, 5), (3, 1, 5)),
    ((4, 1), (3, 2)),
]


@pytest.mark.parametrize("size", TILES, ids=str)
@pytest.mark.parametrize(
    "dilation", [(1, 1, 1), (1, 1, 2), (3, 2, 1), (2, 2, 2), (1, 1, 5)], ids=str
)
def test_winograd_is_exact_to_rounding(size, dilation):
    import array_api_strict as strict

    O, W = size
    rank = len(O)
    window = Window(O, W, (1,) * rank, dilation[3 - rank :])
    G, N, c, k = 2, 3, 4, 5
    L = [o + d * (t - 1) for o, t, d in zip(O, W, window.dilation, strict=True)]
    x, w, g = (
        RNG.integers(-4, 5, shape) * 1.0 for shape in ((G, c, N, *L), (G, k, c, *W), (G, k, N, *O))
    )
    cells = np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)  # with channels last in memory
    products = windows.forward(np, x, windows.prepare(np, w, window), window).copy()
    prepared = winograd.prepare(np, w, window)
    turned = namespace.mirrored(np, namespace.mirrored(np, w).copy())
    room = winograd.room(np, w, window)
    assert winograd.room(np, w.astype("float32"), window).dtype == "float32"
    assert winograd.prepare(np, turned, window, room) is room
    np.testing.assert_allclose(room, prepared, rtol=0, atol=1e-12, strict=True)
    assert room.strides[1] == room.itemsize
    whole = max(window.dilation) == 1
    whole = whole and not any(o % m for o, m in zip(O, winograd._outputs(W), strict=True))
    bytes_of = {}
    for place in (np.empty_like(g), np.empty_like(g.T).T, None):
        for a in (x, cells):
            begin_block()
            y = winograd.forward(np, a, prepared, window, place)
            np.testing.assert_allclose(y, products, rtol=0, atol=1e-10, strict=True)
            runs = place is not None and place.strides[-1] == place.itemsize
            assert (y is place) == (whole and runs)
            bytes_of[a is cells] = taken()
            assert taken() > 0
        copied = bytes_of[False] - bytes_of[True]  # whole tiles, channels last, are not
        assert abs(copied - x.nbytes * whole) < 2**7
    want = windows.grad_weight(np, x, g, window)
    for place in (np.empty_like(w), np.empty_like(w.T).T, None):
        begin_block()
        dw = winograd.grad_weight(np, cells, g, window, place)
        np.testing.assert_allclose(dw, want, rtol=0, atol=1e-10, strict=True)
        assert (dw is place) == (place is not None and namespace.merged(place, 3) is not None)
    x, w, g = map(strict.asarray, (x, w, g))  # not written in place
    y = winograd.forward(strict, x, winograd.prepare(strict, w, window), window)
    dw = winograd.grad_weight(strict, x, g, window)
    for found, exact in ((y, products), (dw, want)):
        np.testing.assert_allclose(np.asarray(found), exact, rtol=0, atol=1e-10, strict=True)


@pytest.mark.parametrize(
    ("W", "outputs"),
    [
        ((3,), (4,)),
        ((2, 5), (5, 2)),
        ((3, 1, 3), (4, 1, 4)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 1, 3, 2), (3, 1, 2, 3)),
        ((1, 4, 2, 2), (1, 3, 5, 5)),
    ],
)
def test_winograd_tiles_have_fewer_points_where_many_axes_have_few_taps(W, outputs):
    window = Window((10,) * len(W), W, (1,) * len(W), (1,) * len(W))
    points, tiles = winograd.sizes(window)
    assert winograd._outputs(W) == outputs
    assert points == np.prod(np.add(outputs, W) - 1)
    assert tiles == np.prod([-(-10 // m) for m in outputs])


@pytest.mark.parametrize("workspace", [2**16, 2**20, 2**24, None])
def test_auto_takes_another_method_where_one_does_not_fit(workspace):
    x, w = normal(1, 64, 28, 28), normal(64, 64, 3, 3)
    exact = xconv.conv(x.astype("float64"), w.astype("float64"), padding=1)
    y = xconv.conv(x, w, padding=1, max_workspace=workspace)
    assert np.abs(y - exact).max() <= 5e-6 * np.abs(exact).max()


def test_a_method_that_does_not_fit_says_what_it_needs():
    x, w = normal(1, 64, 28, 28), normal(64, 64, 3, 3)
    rule = r"^conv: need max_workspace to hold .*; got max_workspace 4096 bytes, needed \d+ bytes$"
    for method in ("winograd", "fft"):
        with pytest.raises(ValueError, match=rule):
            xconv.conv(x, w, method=method, max_workspace=2**12)


def test_methods_say_where_they_do_not_apply():
    x, w = normal(1, 2, 20), normal(2, 2, 3)
    rule = r"^conv: need strides of 1 and kernel sizes up to 5 for method 'winograd'; "
    with pytest.raises(ValueError, match=rule + r"got stride \(2,\), kernel size \(3,\)"):
        xconv.conv(x, w, method="winograd", stride=2)
    with pytest.raises(ValueError, match=rule):
        xconv.conv(x, normal(2, 2, 6), method="winograd")
    assert xconv.conv(x, normal(2, 2, 5), method="winograd").shape == (1, 2, 16)
    for method in ("winograd", "fft"):
        rule = rf"^conv: need floating or complex arrays.*; got method '{method}', result int32$"
        with pytest.raises(TypeError, match=rule):
            xconv.conv(x.astype("int32"), w.astype("int32"), method=method)


def test_integers_stay_exact_under_auto():
    x, w = RNG.integers(-9, 10, (1, 1, 5000)), RNG.integers(-9, 10, (1, 1, 400))
    y = xconv.conv(x, w)
    assert (y == xconv.conv(x, w, method="taps")).all()


@pytest.mark.parametrize("contraction", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("layer", LAYERS)
def test_explain_names_the_cheapest_method(layer, contraction):
    x_shape, w_shape, options = LAYERS[layer]
    told = xconv.explain(normal(*x_shape), normal(*w_shape), contraction=contraction, **options)
    assert told.contraction == contraction
    assert (told.x, told.w) == (x_shape, w_shape)
    (step,) = told.steps
    assert step.method == min(step.estimates, key=step.estimates.get)
    own = "diagonals" if (layer, contraction) == ("bands", "grad_weight") else layer
    assert step.method == own or contraction == "grad_input"
    assert step.blocks >= 1
    assert step.method in str(told).partition(":")[2]


def test_explain_shows_every_phase_and_library():
    x, w = normal(2, 4, 9, 9), normal(4, 4, 3, 3)
    told = xconv.explain(x, w, contraction="grad_input", stride=2, method="taps")
    assert len(told.steps) == 4
    assert all(step.method in ("taps", "pointwise") for step in told.steps)
    told = xconv.explain(normal(8, 3, 64, 64), normal(64, 3, 7, 7), contraction="grad_input")
    assert [step.method for step in told.steps] == ["scatter"]
    assert xconv.explain(x[:0], w).steps == ()
    with pytest.raises(ValueError, match=r"^explain: need contraction to be one of .*; got 'dx'"):
        xconv.explain(x, w, contraction="dx")
    with pytest.raises(TypeError, match=r"^explain: need contraction to be one of .*; got 1"):
        xconv.explain(x, w, contraction=1)


def test_explain_tells_long_times_in_seconds():
    x = np.broadcast_to(np.float32(1), (1, 1, 2048, 2048))
    told = xconv.explain(x, np.ones((1, 1, 63, 63), "float32"))
    (step,) = told.steps
    assert step.estimates["windows"] > 1 > step.estimates["fft"]
    assert f"fft {step.estimates['fft'] * 1e3:.3g} ms" in str(told)
    assert f"windows {step.estimates['windows']:.3g} s" in str(told)


def test_explain_of_an_expression_has_no_blocks():
    import array_api_strict as strict

    x, w = strict.ones((2, 4, 9)), strict.ones((4, 4, 3))
    for contraction, steps in (("forward", 1), ("grad_weight", 1), ("grad_input", 2)):
        told = xconv.explain(x, w, stride=2, contraction=contraction)
        assert [str(step) for step in told.steps] == ["taps: 1 block"] * steps


@pytest.mark.parametrize(("r", "m"), [(2, 5), (3, 4), (4, 3), (5, 2), (2, 3), (3, 2), (1, 1)])
def test_winograd_tiles_are_exact_in_fractions(r, m):
    tile = winograd.matrices(r, m)
    w = [Fraction(i * i - 3, 7) for i in range(r)]
    x = [Fraction(5 - 2 * i, 3) for i in range(m + r - 1)]

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    products = [
        a * b for a, b in zip(times(tile["weights"], w), times(tile["inputs"], x), strict=True)
    ]
    correlation = [sum(x[o + t] * w[t] for t in range(r)) for o in range(m)]
    assert times(tile["outputs"], products) == correlation


@pytest.mark.parametrize("points", [4, 6])
def test_winograd_points_are_those_of_least_error(points, monkeypatch):
    """In the mean of squares, for three taps: of 0 and pairs of quarters, besides infinity."""

    def amplified(chosen):
        monkeypatch.setitem(winograd.POINTS, points, chosen)
        winograd.matrices.cache_clear()
        tile = winograd.matrices(3, points - 2)
        a, g, b = (np.array(tile[n], float) ** 2 for n in ("outputs", "weights", "inputs"))
        return (a @ (g.sum(axis=1) * b.sum(axis=1))).max()

    quarters = itertools.combinations([Fraction(i, 4) for i in range(1, 10)], points // 2 - 1)
    others = [(0, *(sign * p for p in chosen for sign in (1, -1))) for chosen in quarters]
    assert amplified(winograd.POINTS[points]) <= min(map(amplified, others))
    winograd.matrices.cache_clear()


# groups, samples, channels, outputs and their positions: where each way to multiply is taken
BLOCKS = [
    (1, 1, 3, 2, (7, 5)),
    (2, 3, 4, 1, (5, 6)),
    (3, 2, 1, 2, (4, 1)),
    (1, 2, 2, 3, (20, 14)),
    (2, 1, 2, 3, (20, 14)),
    (2, 3, 40, 50, (2, 1)),
    (1, 2, 2, 3, (16, 16)),
    (1, 2, 2, 3, (16, 8)),
]


@pytest.mark.parametrize("imaginary", [0, 1j])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("algorithm", [taps, windows, pointwise, fft], ids=lambda a: a.__name__)
def test_a_block_is_contracted(algorithm, block, imaginary):
    G, N, c, k, O = block
    W, dilation = ((1, 1), (1, 1)) if algorithm is pointwise else ((3, 2), (1, 2))
    options = {"stride": (2, 1), "dilation": dilation}
    window = Window(O, W, **options)
    L = [s * (o - 1) + d * (t - 1) + 1 for o, t, s, d in zip(O, *window[1:], strict=True)]

    def drawn(*shape):
        return RNG.integers(-4, 5, shape) * 1.0 + imaginary * RNG.integers(-4, 5, shape)

    def grouped(a):
        return np.moveaxis(a.reshape(N, G, -1, *a.shape[2:]), 0, 2)

    x, w, g = drawn(N, G * c, *L), drawn(G * k, c, *W), drawn(N, G * k, *O)
    atol = 1e-10 if algorithm is fft else 0
    want = grouped(oracle.forward(x, w, groups=G, **options))
    prepared = algorithm.prepare(np, w.reshape(G, k, c, *W), window)
    wide = np.zeros((N, G * k, O[0], O[1] + 1), want.dtype)
    contiguous = np.zeros(want.shape, want.dtype)
    for out in (None, contiguous, grouped(np.zeros_like(g)), grouped(wide)[..., :-1]):
        begin_block()
        y = algorithm.forward(np, grouped(x), prepared, window, out)
        np.testing.assert_allclose(y, want, rtol=0, atol=atol, strict=True)
        assert (y is out) == (out is not None and out.any())
        if out is None:
            assert (taken() > 0) == (algorithm not in (taps, fft))
        elif algorithm is windows:
            apart = N > 1 and O[0] * O[1] >= windows.SHORT  # a product for each sample
            place = namespace.swapped(np, out) if apart else out
            assert (y is out) == (namespace.merged(place, 2 + apart) is not None)
    apart = N == 1 or O[0] * O[1] >= pointwise.SHORT  # or samples share a product
    assert contiguous.any() == (algorithm is windows or (algorithm is pointwise and apart))
    assert not wide[..., -1].any()
    want = oracle.grad_weight(g, x, W, groups=G, **options).reshape(G, k, c, *W)
    wide = np.zeros((*want.shape[:-1], W[-1] + 1), want.dtype)
    summed = N > 1 and O[0] * O[1] * (c + k) >= c * k  # each sample's own
    written = algorithm is windows or (algorithm is pointwise and not summed)
    for out in (None, np.empty_like(want), wide[..., :-1]):
        begin_block()
        dw = algorithm.grad_weight(np, grouped(x), grouped(g), window, out)
        np.testing.assert_allclose(dw, want, rtol=0, atol=atol, strict=True)
        merged = out is not None and namespace.merged(out, 2) is not None
        assert (dw is out) == (written and merged)
        assert algorithm is not fft or dw.base is None  # not a view that holds on to all lengths
    assert not wide[..., -1].any()


@pytest.mark.parametrize("window", [((4, 9), (2, 3)), ((30, 1), (5, 1)), ((1, 22), (1, 5))])
def test_fft_blocks_have_the_next_lengths(window):
    window = Window(*window, (3, 2), (2, 4))
    first, last = (s * (o - 1) + d * (t - 1) + 1 for o, t, s, d in zip(*window, strict=True))
    lengths = fft.fast(first), 2 * fft.fast((last + 1) // 2)
    for channels in (1, 2):
        for dtype, *F in (("float32", lengths[0], lengths[1] // 2 + 1), ("complex64", *lengths)):
            spectra = fft.prepare(np, np.ones((1, 1, channels, *window.W), dtype), window)
            assert spectra.shape == (1, 1, channels, *F)


@pytest.mark.parametrize("contraction", ["forward", "grad_weight"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("method", ["windows", "taps", "fft"])
def test_blocks_are_long_and_stay_in_the_cache(method, kernel, contraction):
    x, w = np.broadcast_to(np.float32(1), (2, 2, 3000, 3000)), np.ones((2, 2, kernel, kernel))
    told = xconv.explain(x, w.astype("float32"), contraction=contraction, method=method)
    # of spectra, blocks below the size of the weights' would be slow; those of one tap read and
    # write arrays where they lie
    large = method == "fft" or (kernel == 1 and contraction == "forward")
    most = 2**24 if large else 2**23
    assert 2**22 <= told.steps[0].block_bytes <= most


def test_fft_lengths_are_the_next_products_of_2_3_and_5():
    smooth = sorted(
        2**a * 3**b * 5**c for a, b, c in itertools.product(range(13), range(9), range(7))
    )
    for least in range(1, 3000):
        assert fft.fast(least) == next(n for n in smooth if n >= least)


@pytest.mark.parametrize("method", ["auto", "windows", "taps"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_depthwise_gradients_take_a_nan_only_from_what_they_read(method, bad):
    x, g = np.ones((2, 2, 5, 5)), np.ones((2, 2, 3, 3))
    x[0, 0, 4, 4] = bad
    dw = xconv.conv_grad_weight(g, x, (3, 3), groups=2, method=method)
    reads = np.zeros((2, 1, 3, 3), bool)
    reads[0, 0, 2, 2] = True
    assert (np.isfinite(dw) == ~reads).all()
    assert (dw[~reads] == 18).all()


@pytest.mark.parametrize("method", ["winograd", "fft"])
def test_small_integers_are_no_floats_though_they_are_summed_as_such(method):
    x, w = RNG.integers(-99, 100, (1, 1, 6000), "int8"), RNG.integers(-99, 100, (1, 1, 512), "int8")
    y = xconv.conv(x, w, dtype=np.int32)
    assert (y == xconv.conv(x.astype("int64"), w.astype("int64"))).all()
    with pytest.raises(TypeError, match="need floating or complex arrays"):
        xconv.conv(x, w[..., :3], method=method)


def test_fft_tiles_stay_small_where_the_output_is_large():
    x, w = np.broadcast_to(np.float32(1), (1, 1, 20_000_000)), np.ones((1, 1, 1024), np.float32)
    (step,) = xconv.explain(x, w).steps
    assert step.method == "fft"
    assert step.blocks > 8
    assert step.block_bytes + step.shared_bytes < 2**25


def test_long_kernels_of_many_channels_take_few_blocks():
    """Where a block of one position is large, smaller blocks would hardly be smaller."""
    x, w = (np.broadcast_to(np.float32(1), s) for s in ((1, 64, 64, 64), (64, 64, 15, 15)))
    (step,) = xconv.explain(x, w, contraction="grad_weight", padding=7).steps
    assert step.blocks <= 16
    x, w = (np.broadcast_to(np.float32(1), s) for s in ((1, 64, 200, 200), (64, 64, 3, 3)))
    wide = {"padding": "same", "dilation": 80, "max_workspace": 2**22}
    (step,) = xconv.explain(x, w, contraction="grad_weight", **wide).steps
    assert step.blocks <= 72  # of single taps, with all channels


def test_cut_sums_stay_within_the_workspace_when_cold():
    """Nothing is kept of earlier calls by a thread that is new."""
    x, w, limit = normal(1, 8, 96, 96), normal(8, 8, 3, 3), 2**18 + 2**16
    run = partial(xconv.conv, x, w, dilation=20, method="windows", max_workspace=2**18)
    assert beyond(cold(run), limit) <= limit


def test_depthwise_layers_with_a_stride():
    """Wide images come in pieces, whatever the stride; a NaN stays where it is read."""
    x, w = RNG.integers(-3, 4, (2, 8, 90, 101)), RNG.integers(-3, 4, (8, 1, 5, 5))
    x, w = x.astype("float32"), w.astype("float32")
    options = {"stride": 2, "padding": (2, 1), "groups": 8}
    assert xconv.explain(x, w, **options).steps[0].method == "depthwise"
    for _ in range(2):
        want = xconv.conv(x, w, method="windows", **options)
        np.testing.assert_array_equal(xconv.conv(x, w, **options), want, strict=True)
        x[1, 3, 40, 7] = np.nan


def test_depthwise_layers_with_taps_far_apart():
    x, w, far = np.ones((2, 4, 8, 8), "float32"), np.ones((4, 1, 3, 3), "float32"), 2**40
    y = xconv.conv(x, w, groups=4, dilation=far, padding=far)
    assert (y == 1).all()  # only the tap in the middle reads the input
    dw = xconv.conv_grad_weight(x, x, (3, 3), groups=4, dilation=far, padding=far)
    assert (dw.sum(axis=(2, 3)) == 2 * 64).all() and (dw[:, :, 1, 1] == 2 * 64).all()


def test_a_nan_among_the_weights_meets_padding_in_small_depthwise_layers():
    x, w = np.ones((8, 64, 7, 1)), np.ones((64, 1, 3, 3))
    w[0, 0, 0, 0] = np.nan
    assert xconv.explain(x, w, groups=64, padding=1).steps[0].method == "bands"
    y = xconv.conv(x, w, groups=64, padding=1)
    assert np.isnan(y[:, 0]).all() and np.isfinite(y[:, 1:]).all()


@pytest.mark.parametrize("contraction", ["forward", "grad_input"])
def test_blocks_of_groups_have_their_own_weights(contraction):
    x, w = normal(8, 384, 14, 14), normal(384, 1, 3, 3)
    options = {"groups": 384, "padding": 1}
    (step,) = xconv.explain(x, w, contraction=contraction, **options).steps
    assert step.method == "bands" and step.blocks > 1

    def result(w, **more):
        if contraction == "forward":
            return xconv.conv(x, w, **options, **more)
        return xconv.conv_grad_input(x, w, (14, 14), **options, **more)

    np.testing.assert_allclose(result(w), result(w, method="taps"), atol=1e-5)
    w[300, 0, 1, 1] = np.nan
    assert (np.isnan(result(w)).all(axis=(0, 2, 3)) == (np.arange(384) == 300)).all()


def test_a_nan_among_the_weights_of_bands_without_products(monkeypatch):
    """No output reads the input, so no block has a product that the NaN spreads in."""
    monkeypatch.setattr(costs, "banded", lambda *_: 0.0)
    choice.banded.cache_clear()
    schedule.route.cache_clear()
    x, w = np.ones((8, 64, 14, 14)), np.ones((64, 1, 3, 3))
    w[40, 0, 1, 0] = np.nan
    options = {"groups": 64, "stride": (100, 1), "padding": (50, 1)}
    assert xconv.explain(x, w, **options).steps[0].method == "bands"
    y = xconv.conv(x, w, **options)
    choice.banded.cache_clear()
    schedule.route.cache_clear()
    assert np.isnan(y[:, 40, :, 1:]).all() and y.shape == (8, 64, 2, 14)
    assert (np.delete(y, 40, axis=1) == 0).all()


def test_wide_diagonals_are_not_kept():
    x, dy = normal(16, 512, 319), normal(16, 512, 64)
    told = xconv.explain(x, normal(512, 1, 256), contraction="grad_weight", groups=512)
    assert told.steps[0].method != "diagonals"
    dw = xconv.conv_grad_weight(dy[:1, :2], x[:1, :2], (256,), groups=2)
    assert dw.shape == (2, 1, 256)


def test_winograd_is_not_for_dilations_wider_than_its_blocks():
    x, w = normal(1, 64, 256, 256), normal(64, 64, 3, 3)
    for contraction in ("forward", "grad_input", "grad_weight"):
        told = xconv.explain(x, w, contraction=contraction, dilation=32, padding=32)
        assert told.steps[0].method != "winograd"
    told = xconv.explain(normal(8, 64, 56, 56), w, dilation=2, padding=2)
    assert told.steps[0].method == "winograd"


def test_a_kernel_almost_as_long_as_its_signal():
    """Where a block of one output, or a tap of one cell, would take a step each."""
    signal, kernel = RNG.integers(-2, 3, (2, 2**17 + 5)).astype("float32")
    x, w = signal[None, None], kernel[None, None, :-5]
    dy = RNG.integers(-2, 3, (1, 1, 6)).astype("float32")
    for contraction in ("forward", "grad_input", "grad_weight"):
        (step,) = xconv.explain(x, w, contraction=contraction).steps
        assert step.method == "windows" and step.blocks <= 4
    same = np.testing.assert_array_equal
    same(xconv.conv(x, w)[0, 0], np.correlate(signal, kernel[:-5]))
    same(xconv.conv_grad_input(dy, w, x.shape[2:])[0, 0], np.convolve(dy[0, 0], kernel[:-5]))
    same(xconv.conv_grad_weight(dy, x, w.shape[2:])[0, 0], np.correlate(signal, dy[0, 0]))


def test_depthwise_layers_in_any_layout():
    x, w = normal(4, 9, 8, 16), normal(3, 3, 1, 16)
    options = {"groups": 16, "padding": 1, "layout": "channels_last"}
    np.testing.assert_allclose(
        xconv.conv(x, w, **options), xconv.conv(x, w, method="taps", **options), atol=1e-5
    )


def test_winograd_begins_with_zeros_where_only_one_phase_fills_its_tiles():
    """In memory that holds NaN: of 11 cells, 6 are the first phase, and 5 the other."""
    x, w = np.ones((1, 1, 1, 11), np.float32), np.ones((1, 1, 1, 3), np.float32)
    window = Window((7,), (3,), (1,), (2,))
    ready = winograd.prepare(np, w, window)
    begin_block()
    y = winograd.forward(np, x, ready, window)
    np.testing.assert_allclose(y, np.full((1, 1, 1, 7), 3), rtol=1e-5)


def test_depthwise_dilations_of_each_axis():
    x, w = (RNG.integers(-2, 3, shape).astype(float) for shape in ((2, 3, 20, 30), (3, 1, 3, 3)))
    window, options = Window((16, 24), (3, 3), (1, 1), (2, 3)), {"dilation": (2, 3), "groups": 3}
    own = np.moveaxis(x[:, :, None], 1, 0).swapaxes(1, 2)  # (G, 1, N, *L)
    found = depthwise.forward(np, source(own), depthwise.prepare(np, w[:, None], window), window)
    right = xconv.conv(x, w, method="taps", **options)
    np.testing.assert_array_equal(found[:, 0].swapaxes(0, 1), right)


# ---------------------------------------------------------------- products that no BLAS has


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "int64", "uint64"])
def test_integers_are_multiplied_by_limbs(dtype):
    """As PyTorch's on a GPU have to be: what is too large wraps."""
    span = np.iinfo(dtype)
    a, b = (
        RNG.integers(span.min, span.max, shape, dtype, endpoint=True)
        for shape in ((3, 5, 40), (3, 40, 4))
    )
    found = products.by_limbs(compat, a, b)
    np.testing.assert_array_equal(found, a @ b, strict=True)


def test_long_sums_of_integers_are_exact():
    a = np.full((1, 2**21 + 3), -1, np.int32)  # of limbs as large as they can be
    found = products.by_limbs(compat, a, a.T)
    np.testing.assert_array_equal(found, [[2**21 + 3]])
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, 3, 5), (1, 5, 7)),
        ((3, 5), (1, 1, 5, 7)),
        ((2, 1, 3, 5), (2, 4, 5, 7)),
        ((2, 1, 9, 5), (2, 4, 5, 7)),
        ((3, 5), (4, 5, 2)),
    ],
)
def test_products_as_cupy_takes_them(a, b):
    """Its arrays need a GPU; the steps are the same in NumPy."""
    one, other = RNG.integers(-4, 5, a).astype("float32"), RNG.integers(-4, 5, b).astype("float32")
    want = one @ other
    out = np.full_like(want, np.nan)
    assert products.in_cupy(np, one, other, out) is out
    np.testing.assert_array_equal(out, want)


class Counted(np.ndarray):
    """An array that counts how often it is written to."""

    writes = 0

    def __setitem__(self, index, value):
        Counted.writes += 1
        super().__setitem__(index, value)


@pytest.mark.parametrize("channels", [0, 1, 7, 8, 21])
@pytest.mark.parametrize("row", [512, 24])  # numbers; of 512, channels lie whole pages apart
def test_channels_are_put_last_a_few_at_a_time(channels, row):
    """Where they lie pages apart, and are to come last."""
    a = RNG.integers(-9, 10, (2, channels, 3, 4, row)).astype("float32")
    last = np.zeros((2, 3, 4, row, channels), "float32").transpose(0, 4, 1, 2, 3)
    for there, split in ((last, row == 512), (np.zeros(a.shape, "float32"), False)):
        Counted.writes = 0
        namespace.put(there.view(Counted), a)
        np.testing.assert_array_equal(there, a)
        assert Counted.writes == (-(-channels // 8) if split else min(channels, 1))
    Counted.writes = 0
    namespace.put(last.view(Counted), np.broadcast_to(a[:, :1], a.shape))
    assert Counted.writes == min(channels, 1)  # which all lie in one place


@pytest.mark.parametrize(
    ("row", "samples"), [(127, 1), (128, 1), (100, 2), (31, 4), (31, 5), (26, 5)]
)
def test_long_rows_are_added_with_small_buffers(monkeypatch, row, samples):
    seen = []

    class Seen(namespace.small_buffers):
        def __enter__(self):
            super().__enter__()
            seen.append(np.getbufsize())

    monkeypatch.setattr(scatter, "small_buffers", Seen)
    before = np.getbufsize()
    I = (2, row + 2)
    geom = geometry.geometry(samples, 2, 2, I, (1, 3), geometry.options(2, 1, 0, 1, 1))
    additions = scatter.additions(geom, (0, 0), geom.O, (0, 0), I)
    g, w = np.ones((1, 2, samples, 2, row), "float32"), np.ones((1, 2, 2, 1, 3), "float32")
    dx = scatter.grad_input(np, g, scatter.prepare(np, w), (1, 2, samples, *I), additions)
    assert dx.sum() == g.size * 6
    together = row * samples if row < 32 else row  # where samples come last
    assert seen == [512] * (together >= 128)
    assert np.getbufsize() == before


@pytest.mark.parametrize(("dtype", "close"), [("float32", 512), ("float64", 256)])
def test_rows_do_not_lie_half_pages_apart(dtype, close):
    for length in (0, 1, close - 48, close - 1, close, 3 * close):
        rows = namespace.gapped(np, (3, length), dtype, np.empty)
        gap = rows.strides[0] // rows.itemsize - length
        assert rows.shape == (3, length)
        assert gap == (48 if length % close == 0 else 0)
        assert gap <= namespace.most_apart(length) or not length


@pytest.mark.parametrize("shape", [(18, 6, 3), (3, 40, 2), (66, 5, 31), (201, 300, 402)], ids=str)
def test_no_two_matrices_are_multiplied_that_both_lie_transposed(monkeypatch, shape):
    """OpenBLAS's kernel for them gives wrong results on several threads.

    NumPy multiplies the transposes, where the result lies transposed.
    """
    m, length, n = shape
    alike = []
    matmul = namespace.NUMPY.matmul

    def recording(a, b, out=None):
        result = matmul(a, b) if out is None else out
        alike.append(len({one.strides[-1] == one.itemsize for one in (a, b)}) == 1)
        alike[-1] &= (a.strides[-1] == 4) != (result.strides[-1] == 4)
        return matmul(a, b, out=out)

    monkeypatch.setattr(namespace.NUMPY, "matmul", recording)
    x = RNG.integers(-3, 4, (m, length)).astype("float32")
    y = RNG.integers(-3, 4, (length, n)).astype("float32")
    want = x.astype(float) @ y.astype(float)
    for a, b, out in itertools.product(
        (x, np.asfortranarray(x)),
        (y, np.asfortranarray(y)),
        (np.empty_like(want, "float32"), np.empty_like(want.T, "float32").T, None),
    ):
        begin_block()
        found = products.matmul(namespace.NUMPY, a, b, out)
        np.testing.assert_array_equal(found, want)
        assert out is None or found is out
        np.testing.assert_array_equal(products.inner(namespace.NUMPY, a, b.T, out), want)
    assert len(alike) >= 24 and not any(alike)


def test_threads_do_not_meet_in_the_last_products_of_winograd():
    """Of few channels, in blocks of several shapes at a time."""
    x = RNG.integers(-3, 4, (3, 64, 6, 5, 7)).astype("float32")
    w = RNG.integers(-3, 4, (64, 16, 5, 2, 4)).astype("float32")
    options = {"padding": ((17, 17), (0, 1), (0, 0)), "dilation": (5, 1, 1), "groups": 4}
    run = partial(xconv.conv, x, w, method="winograd", **options)
    with threadpool_limits(1):
        want = run()
    with threadpool_limits(2):
        for _ in range(40):
            np.testing.assert_array_equal(run(), want, strict=True)
