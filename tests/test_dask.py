"""Dask: awkward chunks, lean graphs, other processes, and a worker that is lost."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
import types
import weakref

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import xconv
from xconv import demo_scale

da = pytest.importorskip("dask.array")

pytestmark = pytest.mark.backends("dask")

OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (3, 2), "padding": ((2, 0), (-1, 3)), "dilation": (1, 2)},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 3, "padding_mode": "circular", "stride": 2},
    {"padding": ((4, 1), (0, 2)), "padding_mode": "replicate"},
    {"padding": ((2, 3), (3, 2)), "padding_mode": "symmetric", "dilation": 2},
    {"dilation": 5, "padding": 6},
    {"dilation": (6, 4), "padding": (7, 5), "stride": (2, 3), "padding_mode": "symmetric"},
    {"groups": 2, "padding": "full"},
]
FREE = "127.0.0.1:0"  # any port; without an address it is always the same one
CHUNKS = [1, (2, 3, 7, 5), (1, (1, 3), (2, 3, 8), (7, 2)), ((1, 1), 4, (1, 1, 2, 5, 4), 3)]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(float)


def sides(options):
    """Return x, w, b and the gradient of the output, small integers."""
    x, w, b = draw(2, 4, 13, 9), draw(6, 4 // options.get("groups", 1), 3, 3), draw(6)
    return x, w, b, draw(*xconv.conv(x, w, **options).shape, seed=1)


def lazily(a, chunks):
    """Return `a` in chunks; a tuple of sizes is cut to the axes' own."""
    if isinstance(chunks, int):
        return da.from_array(a, chunks=chunks)
    fitted = []
    for size, own in zip(a.shape, chunks, strict=True):
        own = own if isinstance(own, tuple) else (own,) * size
        bounds = [min(end, size) for end in itertools.accumulate(own, initial=0)] + [size]
        fitted.append(tuple(b - a for a, b in itertools.pairwise(bounds) if b > a))
    return da.from_array(a, chunks=tuple(fitted))


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_awkward_chunks(options, chunks):
    x, w, b, dy = sides(options)
    options = {**options, "method": "taps"}
    lx, ldy = lazily(x, chunks), lazily(dy, chunks)
    whole = xconv.conv(x, w, b, **options), *xconv.conv_backward(dy, x, w, **options)
    for lw in (w, da.from_array(w, chunks=2)):
        lazy = xconv.conv(lx, lw, b, **options), *xconv.conv_backward(ldy, lx, lw, **options)
        for result, right in zip(lazy, whole, strict=True):
            assert (result.shape, result.dtype) == (right.shape, right.dtype)
            assert_array_equal(result.compute(scheduler="sync"), right, strict=True)


@pytest.mark.parametrize("chunks", CHUNKS[:2], ids=str)
@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_the_other_functions(options, chunks):
    x, w, b, dy = sides(options)
    options = {**options, "method": "taps"}
    lx, ldy = lazily(x, chunks), lazily(dy, chunks)
    ddx, ddw = draw(*x.shape, seed=2), draw(*w.shape, seed=3)
    size = x.shape[2:]
    pairs = [
        (xconv.conv_grad_input, (dy, w, size), (ldy, w, size), {}),
        (xconv.conv_grad_weight, (dy, x, (3, 3)), (ldy, lx, (3, 3)), {"per_sample": True}),
        (xconv.conv_transpose, (dy, w), (ldy, w), {"output_size": size}),
        (xconv.conv_double_backward, (ddx, ddw, b, dy, x, w), (ddx, ddw, b, ldy, lx, w), {}),
        (xconv.conv, (x[0], w), (lx[0], w), {}),
    ]
    for function, plain, lazy, more in pairs:
        right, got = function(*plain, **options, **more), function(*lazy, **options, **more)
        right, got = ((r,) if not isinstance(r, tuple) else r for r in (right, got))
        for one, other in zip(got, right, strict=True):
            assert isinstance(one, da.Array)
            assert_array_equal(one.compute(scheduler="sync"), other, strict=True)


@pytest.mark.parametrize("layout", ["channels_last", ("NHWC", "OIHW", "CHWN")], ids=str)
def test_layouts(layout):
    x, w = draw(3, 16, 14, 4), draw(3, 3, 4, 6)
    if layout != "channels_last":
        w = w.transpose(3, 2, 0, 1)
    right = xconv.conv(x, w, layout=layout, padding=1)
    lazy = xconv.conv(da.from_array(x, chunks=(2, 5, 7, 3)), w, layout=layout, padding=1)
    assert_array_equal(lazy.compute(scheduler="sync"), right, strict=True)


def tasks(a):
    """Count the tasks that are not the input's own."""
    layers = a.__dask_graph__().layers
    return len({key for name in layers if name.startswith("xconv") for key in layers[name]})


def test_chunks_of_results_follow_those_of_the_input():
    x, w = da.ones((4, 2, 300, 200), chunks=(2, 1, 100, (150, 50))), np.ones((3, 2, 5, 5))
    y = xconv.conv(x, w, padding=2)
    assert y.chunks == ((2, 2), (3,), (100, 100, 100), (150, 50))
    assert xconv.conv(x, w, padding=2, stride=2).chunks[2:] == ((50, 50, 50), (75, 25))
    dx = xconv.conv_grad_input(y, w, (300, 200), padding=2)
    assert dx.chunks == ((2, 2), (2,), (100, 100, 100), (150, 50))
    up = xconv.conv_transpose(x, np.ones((2, 3, 2, 2)), stride=2)
    assert up.chunks[2:] == ((200, 200, 200), (300, 100))
    dx, _, _ = xconv.conv_backward(y.rechunk((4, 3, 77, 200)), x, w, padding=2)
    assert dx.chunks == ((2, 2), (2,), (100, 100, 100), (150, 50))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_tasks_of_a_chunk(rank):
    """One task, and one for each of its two faces along each axis.

    The weight gradient reads the same faces as the output, so that they are there once.
    """
    counts = (9, 8, 7, 5)[:rank]
    x = da.zeros((1, 1, *(10 * n for n in counts)), chunks=(1, 1, *(10,) * rank))
    w = np.ones((1, 1, *(3,) * rank))
    faces = sum(2 * (n - 1) * x.npartitions // n for n in counts)
    y = xconv.conv(x, w, padding=1)
    assert tasks(y) == y.npartitions + faces <= (1 + 2 * rank) * y.npartitions
    dw = xconv.conv_grad_weight(y, x, w.shape[2:], padding=1)
    summed = -(-y.npartitions // 8)
    assert tasks(dw) == 2 * y.npartitions + faces + summed
    dx = xconv.conv_grad_input(x, w, x.shape[2:], padding=1)
    assert tasks(dx) == tasks(y)


@pytest.mark.parametrize(
    ("chunk", "kernel", "options"),
    [
        (10, 1, {}),
        (10, 1, {"stride": 2}),
        (10, 3, {"padding": 1, "padding_mode": "circular"}),
        (10, 4, {"padding": "full", "stride": 3}),
        (2, 7, {"padding": 3}),
        (1, 3, {}),
        (5, 3, {"dilation": 13, "padding": "same"}),
    ],
)
def test_tasks_of_a_chunk_that_reads_far(chunk, kernel, options):
    """In all no more than one for each chunk of the input that a slab touches."""
    size = 6 * chunk if chunk < 10 else 40
    x, w = da.zeros((1, 1, *(size,) * 3), chunks=chunk), np.ones((1, 1, *(kernel,) * 3))
    y = xconv.conv(x, w, **options)
    layers = y.__dask_graph__().layers
    keys = {k: t for name in layers if name.startswith("xconv") for k, t in layers[name].items()}

    def touched(key):
        found = [touched(k) if k in keys else {k} for k in keys[key].dependencies]
        return set().union(*found)

    read = sum(len({k for k in touched(key) if x.name in k}) for key in keys if y.name in key)
    assert tasks(y) <= read


def test_only_the_slab_is_read():
    """A chunk of the result needs no chunk that it does not read."""
    read = []

    def block(number):
        read.append(number)
        return np.ones((1, 1, 10))

    import dask

    parts = [
        da.from_delayed(dask.delayed(block)(i), (1, 1, 10), dtype=float, meta=np.empty((0, 0, 0)))
        for i in range(40)
    ]
    x = da.concatenate(parts, axis=2)
    xconv.conv(x, np.ones((1, 1, 3)), padding=1).blocks[0, 0, 20].compute(scheduler="sync")
    assert sorted(read) == [19, 20, 21]
    read.clear()
    far = xconv.conv(x, np.ones((1, 1, 3)), dilation=150)  # taps lie 15 chunks apart
    far.blocks[0, 0, 2].compute(scheduler="sync")
    assert len(read) == 3 and max(read) - min(read) == 30
    read.clear()
    dx = xconv.conv_grad_input(x, np.ones((1, 1, 3)), (400,), padding=1)
    dx.blocks[0, 0, 0].compute(scheduler="sync")
    assert sorted(read) == [0, 1]
    read.clear()
    up = xconv.conv_transpose(x, np.ones((1, 1, 3)), dilation=150, stride=4)
    up.blocks[0, 0, 20].compute(scheduler="sync")
    assert len(read) <= 6 and max(read) - min(read) >= 7  # taps lie 37.5 outputs apart


def test_fold_of_many_cells():
    cols = draw(1, 9, 18 * 18)
    lazy = xconv.fold(lazily(cols, 100), (20, 20), (3, 3))
    np.testing.assert_array_equal(lazy.compute(), xconv.fold(cols, (20, 20), (3, 3)), strict=True)


def test_results_without_chunks_to_follow():
    """Chunks of another array decide only if they cut what the result has."""
    kernels = np.ones((8, 8, 3, 3))
    whole, rows = (da.ones((1, 8, 64, 64), chunks=cut) for cut in (-1, (1, 8, 8, 64)))
    channels = da.ones((1, 8, 64, 64), chunks=(1, 1, 64, 64))
    dx = xconv.conv_backward(rows, channels, kernels, padding=1).dx
    assert dx.chunks == rows.chunks
    dw = xconv.conv_grad_weight(whole, rows, (3, 3), padding=1)
    assert sum("-term-" in str(key) for key in dw.dask) == 8
    np.testing.assert_array_equal(
        dw, xconv.conv_grad_weight(whole.compute(), rows.compute(), (3, 3), padding=1)
    )
    square = da.ones((4, 4, 4, 4), chunks=(1, 4, 2, 4))  # x and y of the same shape
    y = xconv.conv(square, np.ones((4, 4, 1, 1)), layout=("NHWC", "OIHW", "CHWN"))
    assert y.chunks == ((4,), (4,), (2, 2), (1,) * 4)
    assert xconv.conv_double_backward(rows, None, None, rows, rows, kernels, padding=1)[
        1
    ].chunks == (rows.chunks)


def test_an_empty_batch():
    dy, x = da.zeros((0, 2, 62, 62), chunks=-1), da.zeros((0, 4, 64, 64), chunks=-1)
    grads = xconv.conv_backward(dy, x, np.ones((2, 4, 3, 3)))
    assert [a.compute().shape for a in grads] == [(0, 4, 64, 64), (2, 4, 3, 3), (2,)]


def test_a_long_bias_gradient():
    """In float32 the sum of ones ends at 2**24."""
    ones = da.ones((1, 2**24 + 64, 2), chunks=-1, dtype="f4")
    options = {"layout": "channels_last", "output_mask": (False, False, True)}
    db = xconv.conv_backward(ones, ones, np.ones((1, 2, 2), "f4"), **options).db
    np.testing.assert_array_equal(db, np.full(2, 2**24 + 64, "f4"), strict=True)


def test_names_of_tasks():
    """What takes the same time has the same name, and a shared part is the same in any graph."""
    import dask
    from dask.utils import key_split

    x = da.from_array(draw(1, 1, 40), chunks=10).map_blocks(np.negative)
    one = xconv.conv(x, draw(1, 1, 3), padding=1)
    grads = xconv.conv_backward(one, x, draw(1, 1, 3), padding=1)
    names = {key_split(key) for key in dask.base.collections_to_expr(grads[:2]).__dask_graph__()}
    assert {"xconv-grad-input", "xconv-grad-weight", "xconv-grad-weight-term"} <= names
    both = one.sum() + xconv.conv(x, draw(1, 1, 3, seed=1), padding=1).sum()
    graphs = [dict(dask.optimize(lazy)[0].dask) for lazy in (one.sum(), both)]
    shared = [key for key in graphs[0] if "xconv-face" in str(key) and key in graphs[1]]
    assert shared
    for key in shared:
        first, second = (dask.base.tokenize(graph[key]) for graph in graphs)
        assert first == second


def test_errors_come_at_the_call():
    x = da.ones((1, 2, 30, 30), chunks=10)
    for function, needed in [
        (lambda: xconv.conv(x, np.ones((1, 2, 3, 3)), stride=2, method="winograd"), "strides"),
        (lambda: xconv.conv(x, np.ones((1, 2, 3, 3)), max_workspace=8), "max_workspace"),
        (lambda: xconv.conv(x.astype(int), np.ones((1, 2, 3, 3), int), method="fft"), "floating"),
    ]:
        with pytest.raises((ValueError, TypeError), match=rf"conv: need .*{needed}.*; got "):
            function()
    with pytest.raises(TypeError, match=r"^explain: need arrays of one piece.*; got Dask arrays"):
        xconv.explain(x, np.ones((1, 2, 3, 3)))


@pytest.mark.parametrize("method", ["winograd", "fft", "windows", "auto"])
def test_methods(method):
    x, w = draw(1, 3, 40, 40), draw(5, 3, 3, 3)
    lazy = xconv.conv(da.from_array(x, chunks=(1, 3, 17, 40)), w, padding=1, method=method)
    right = xconv.conv(x, w, padding=1, method="taps")
    np.testing.assert_allclose(lazy.compute(scheduler="threads"), right, atol=1e-9)


def test_a_large_graph_is_built_in_linear_time():
    """Counted in calls of functions: a square number of steps would be four times as many."""

    def calls(chunks):
        x, w = da.zeros((1, 1, 20 * chunks), chunks=20), np.ones((1, 1, 3))
        count = 0

        def called(frame, event, arg):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(called)
        try:
            y = xconv.conv(x, w, padding=1)
        finally:
            sys.setprofile(None)
        assert y.npartitions == chunks
        return count

    few, many = calls(1000), calls(2000)
    assert 1.5 * few < many < 2.1 * few


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="1GiB", dashboard_address=FREE
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_a_cluster(cluster):
    x, w, b, dy = sides(OPTIONS[2])
    lx, ldy = lazily(x, CHUNKS[1]), lazily(dy, CHUNKS[3])
    lazy = xconv.conv(lx, w, b, **OPTIONS[2]), *xconv.conv_backward(ldy, lx, w, **OPTIONS[2])
    whole = xconv.conv(x, w, b, **OPTIONS[2]), *xconv.conv_backward(dy, x, w, **OPTIONS[2])
    for got, right in zip(cluster.gather(cluster.compute(list(lazy))), whole, strict=True):
        assert_array_equal(got, right, strict=True)


def holders(dask_scheduler):
    """The addresses of workers that have results of the contractions."""
    return [
        address
        for address, worker in dask_scheduler.workers.items()
        if any(str(task.key[0]).startswith("xconv-") for task in worker.has_what)
    ]


def last_waits(block, block_info=None):
    """Return `block` as it is; the last one only when the test says so."""
    import distributed

    location = block_info[0]["chunk-location"]
    if all(i + 1 == count for i, count in zip(location, block_info[0]["num-chunks"], strict=True)):
        assert distributed.Event("worker lost").wait(60)
    return block


def test_a_worker_that_is_lost(cluster):
    """Its work is done again, to the same bits."""
    import distributed

    x = da.random.default_rng(0).standard_normal((1, 2, 60, 60, 60), chunks=(1, 2, 12, 12, 12))
    x = x.astype(np.float32)
    w = np.random.default_rng(1).standard_normal((3, 2, 3, 3, 3)).astype(np.float32)

    def gradient(x):
        y = xconv.conv(x, w, padding=1)
        return xconv.conv_grad_weight(y, x, (3, 3, 3), padding=1)

    right = gradient(x).compute(scheduler="sync")
    processes = cluster.run(os.getpid)
    result = cluster.compute(gradient(x.map_blocks(last_waits, dtype=x.dtype)))
    while not (found := cluster.run_on_scheduler(holders)):
        time.sleep(0.01)
    os.kill(processes[found[0]], signal.SIGKILL)
    distributed.Event("worker lost", client=cluster).set()
    assert_array_equal(result.result(timeout=120), right, strict=True)


class Counted:
    """Makes chunks of ones, and counts those that are held at once."""

    def __init__(self):
        self.now = self.most = 0

    def __call__(self, block_info=None):
        chunk = np.ones(block_info[None]["chunk-shape"], np.float32)
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(chunk, self.less)
        return chunk

    def less(self):
        self.now -= 1


@pytest.mark.parametrize("grid", [(60, 1), (40, 4), (20, 5)])
def test_chunks_that_are_held_at_once(grid):
    """Some layers of the volume that passes, in a sweep, and not all of it."""
    counted, edge = Counted(), 4
    shape = (1, 1, *(edge * n for n in grid))
    x = da.map_blocks(
        counted,
        chunks=da.core.normalize_chunks((1, 1, edge, edge), shape),
        dtype=np.float32,
        meta=np.empty((0,) * 4, np.float32),
    )
    y = xconv.conv(x, np.ones((1, 1, 3, 3), np.float32), padding=1)
    for lazy in (y.sum(), xconv.conv_grad_weight(y, x, (3, 3), padding=1)):
        counted.most = 0
        lazy.compute(scheduler="sync")
        assert 2 * grid[1] <= counted.most <= 3 * grid[1] + 3
        assert counted.now == 0


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_small_integers_are_exact(padding_mode):
    """Also where floats would be left to a method that rounds."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-128, 128, shape, np.int8) for shape in ((1, 1, 90, 90), (1, 1, 21, 21)))
    options = {"padding": 5, "padding_mode": padding_mode, "dtype": "int32"}
    lx, y = da.from_array(x, chunks=60), xconv.conv(x, w, **options)
    dy = rng.integers(-128, 128, y.shape, np.int8)
    ldy = da.from_array(dy, chunks=60)
    for lazy, right in [
        (xconv.conv(lx, w, **options), y),
        (
            xconv.conv_grad_weight(ldy, lx, (21, 21), **options),
            xconv.conv_grad_weight(dy, x, (21, 21), **options),
        ),
        (
            xconv.conv_grad_input(ldy, w, (90, 90), **options),
            xconv.conv_grad_input(dy, w, (90, 90), **options),
        ),
    ]:
        assert_array_equal(lazy.compute(scheduler="sync"), right, strict=True)


def test_numpy_x_beside_chunks():
    """One array in one piece does not make the result one task."""
    x, w = draw(1, 2, 40, 40), draw(2, 2, 3, 3)
    dy = da.from_array(draw(1, 2, 40, 40, seed=1), chunks=(1, 2, 10, 40))
    dx, _, _ = xconv.conv_backward(dy, x, w, padding=1)
    assert dx.chunks[2] == (10,) * 4
    x = da.from_array(x, chunks=1)
    with pytest.raises(ValueError, match="strides of 1"):
        xconv.conv(x, w, stride=3, method="winograd")


@pytest.mark.parametrize("chunks", [(0, 3, 0, 0, 6), (9, 0)])
def test_empty_chunks(chunks):
    x, w = draw(1, 2, 9), draw(3, 2, 3, seed=1)
    dy = draw(1, 3, 9, seed=2)
    lazy, dlazy = (da.from_array(a, chunks=(1, 1, chunks)) for a in (x, dy))
    options = {"padding": 1}
    assert_array_equal(xconv.conv(lazy, w, **options).compute(), xconv.conv(x, w, **options))
    found = [*xconv.conv_backward(dlazy, lazy, w, **options)]
    found += xconv.conv_transpose_backward(lazy, dlazy, w, **options)  # x where dy was
    exact = [*xconv.conv_backward(dy, x, w, **options)]
    exact += xconv.conv_transpose_backward(x, dy, w, **options)
    for got, right in zip(found, exact, strict=True):
        assert_array_equal(got.compute(), right, strict=True)


@pytest.mark.parametrize(
    "samples",
    [(3, 0), (0, 3), (2, 0, 1), (0, 1, 0, 2)],
    ids=lambda sizes: "-".join(map(str, sizes)),
)
def test_chunks_of_no_samples(samples):
    """As of a selection, once its sizes are known."""
    x, w, dy = draw(3, 2, 8), draw(4, 2, 3), draw(3, 4, 6)
    chunks = (samples, -1, -1)
    lx, ldy = da.from_array(x, chunks=chunks), da.from_array(dy, chunks=chunks)
    assert_array_equal(xconv.conv(lx, w).compute(), xconv.conv(x, w), strict=True)
    for lazy in xconv.conv_backward(ldy, lx, w), xconv.conv_backward(ldy, x, w):
        for got, right in zip(lazy, xconv.conv_backward(dy, x, w), strict=True):
            assert_array_equal(got.compute(), right, strict=True)
    each = xconv.conv_grad_weight(ldy, lx, (3,), per_sample=True)
    assert each.chunks[0] == samples
    right = xconv.conv_grad_weight(dy, x, (3,), per_sample=True)
    assert_array_equal(each.compute(), right, strict=True)


@pytest.mark.parametrize("K", [1, 2])
def test_no_samples_and_chunks_of_no_channels(K):
    x, w, b, dy = draw(0, 1, 5), draw(K, 1, 2), draw(K), draw(0, K, 4)
    lx, lb = da.from_array(x, chunks=((0,), (1, 0), (1, 4))), da.from_array(b, chunks=((0, K),))
    assert_array_equal(xconv.conv(lx, w, lb).compute(), xconv.conv(x, w, b), strict=True)
    found, exact = (xconv.conv_backward(dy, a, w) for a in (lx, x))
    for got, right in zip(found, exact, strict=True):
        assert_array_equal(got.compute(), right, strict=True)


def test_copies_that_no_output_reads():
    """Of one cell, up to 2**40 of them: only those that are read have a gradient."""
    dy, w = draw(1, 2, 8), draw(2, 2, 3)
    options = {"dilation": 2**40, "padding": 2**40, "padding_mode": "replicate"}
    lazy = xconv.conv_grad_input(da.from_array(dy, chunks=3), w, (8,), **options)
    right = xconv.conv_grad_input(dy, w, (8,), **options)
    assert_array_equal(lazy.compute(), right, strict=True)


def test_cells_of_which_only_copies_are_read():
    """The one output reads what padding copied from cell 2 of 4, and no cell itself."""
    dy, w, options = draw(1, 2, 1) + 5, draw(2, 3, 1), {"padding": ((2, 0),), "stride": 8}
    options["padding_mode"] = "circular"
    lazy = xconv.conv_grad_input(da.from_array(dy, chunks=1), w, (4,), **options)
    right = xconv.conv_grad_input(dy, w, (4,), **options)
    assert right[..., 2].any()
    assert_array_equal(lazy.compute(), right, strict=True)


def test_unknown_sizes_of_chunks_are_refused():
    x = da.from_array(draw(1, 2, 9), chunks=1)
    some = x[:, :, x[0, 0] > 0]
    rule = r"^conv: need x with known chunk sizes; got shape \(1, 2, nan\)$"
    with pytest.raises(ValueError, match=rule):
        xconv.conv(some, draw(3, 2, 3))


def test_the_demo():
    command = [sys.executable, "-m", "xconv.demo_scale", "--size", "60"]
    command += ["--chunk", "15", "20", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "100% Completed" in done.stdout
    jobs = re.findall(
        r"^([a-z ]+): [\d.]+ s, .* peak memory of a worker", done.stdout, re.MULTILINE
    )
    assert jobs == ["generate", "matched filter", "gradient"]
    assert done.stdout.splitlines()[-1].endswith("hidden shapes found 8 of 8")


@pytest.fixture
def threads():
    """A cluster of two workers in this process."""
    distributed = pytest.importorskip("distributed")
    options = {"processes": False, "dashboard_address": FREE, "memory_limit": None}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
        yield cluster


def test_the_demo_on_another_cluster(threads, tmp_path, capsys):
    command = ["--size", "24", "--chunk", "12", "12", "24", "--folder", str(tmp_path)]
    command += ["--scheduler", threads.scheduler_address]
    assert demo_scale.main(command) == 0
    shown = capsys.readouterr().out
    assert "4 chunks of 0.0 MB; workers: 2" in shown
    assert "hidden shapes found 8 of 8" in shown
    assert demo_scale.main(command) == 2  # and leaves what is there
    assert f"need a --folder without volume.zarr; got {tmp_path}" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_the_demo_counts_what_workers_send(threads):
    import distributed

    with distributed.Client(threads) as client:
        client.register_plugin(demo_scale.arrivals(distributed))
        here, there = client.scheduler_info()["workers"]
        sent = client.submit(np.zeros, 1000, workers=[here])
        client.submit(np.negative, sent, workers=[there]).result()
        assert client.run(demo_scale.arrived) == {here: 0, there: 8000}


def test_what_the_demo_needs(monkeypatch, capsys):
    def refused(*command):
        assert demo_scale.main(command) == 2
        return capsys.readouterr().err

    assert "divides --size, and a worker; got --size 50, --chunk [20, 25, 50]" in refused(
        "--size", "50", "--chunk", "20", "25", "50"
    )
    assert "need --memory in bytes, such as 512MiB; " in refused("--memory", "lots")
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert "need zarr: pip install '.[scale]'" in refused()


def test_the_demo_without_the_cluster_that_was_named():
    """In a process of its own, since Dask keeps what it was told to use by default."""
    command = [sys.executable, "-m", "xconv.demo_scale", "--scheduler", "abc://nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "xconv: need the --scheduler of a cluster; unknown address scheme" in done.stderr


def test_chunks_of_two_libraries_are_refused(monkeypatch):
    """With arrays in the place of CuPy's."""

    class Device(np.ndarray):
        pass

    cupy = types.SimpleNamespace(ndarray=Device)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    x = da.from_array(draw(1, 2, 9), chunks=3)
    w = da.from_array(draw(3, 2, 3).view(Device), chunks=3, asarray=False)
    with pytest.raises(TypeError, match=r"^conv: need chunks of one library; got numpy.ndarray, "):
        xconv.conv(x, w)
