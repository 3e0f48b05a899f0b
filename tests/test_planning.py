"""What blocks must not do: load what no tap reads, outgrow the workspace, lose exactness."""

import itertools
import pickle
from functools import partial

import dask.array
import numpy as np
import pytest
import torch
from checks import source
from memory import beyond, cold, measured
from threadpoolctl import threadpool_limits

import xconv
from xconv import (
    bands,
    costs,
    depthwise,
    fft,
    lines,
    namespace,
    padding,
    plan,
    pointwise,
    products,
    scatter,
    taps,
    windows,
    winograd,
)
from xconv.errors import Refusal
from xconv.geometry import Window, geometry, options
from xconv.plan import boxes
from xconv.validation import Settings, forward_call


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


def loaded(monkeypatch, run):
    """Count the cells that a call loads into blocks."""
    count = 0
    read = padding.read

    def counting(*args):
        nonlocal count
        block = read(*args)
        count += block.size
        return block

    monkeypatch.setattr(padding, "read", counting)
    run()
    return count


def in_a_block(run):
    """Return what a block takes, of which nothing is freed before its end, and its result."""

    def block():
        namespace.begin_block(np, True)
        return run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespace, "LARGE_PAGE", 1)  # so that no more is kept than is used
        return sorted(cold(partial(measured, block))() for _ in range(3))[1]  # see `memory`


@pytest.mark.parametrize("method", ["windows", "taps", "auto"])
def test_dilation_loads_no_more_than_the_taps_read(monkeypatch, method):
    x, w = ones(1, 64, 65, 65), ones(8, 64, 3, 3)
    options = {"dilation": 36, "padding": 36, "method": method, "max_workspace": 2**20}
    dy = xconv.conv(x, w, **options)
    read = 9 * dy[:, 0].size * 64
    assert loaded(monkeypatch, lambda: xconv.conv(x, w, **options)) <= read
    run = partial(xconv.conv_grad_weight, dy, x, (3, 3), **options)
    assert loaded(monkeypatch, run) <= read


def test_a_dilation_wider_than_the_workspace():
    x = np.zeros((1, 16, 10**6), np.float32)
    x[:, :, ::131072] = 1
    w, options = ones(2, 16, 3), {"dilation": 131072, "max_workspace": 2**20}
    y = xconv.conv(x, w, **options)
    assert xconv.explain(x, w, **options).steps[0].blocks <= 128
    expected = sum(x[0, 0, t * 131072 : t * 131072 + y.shape[-1]] for t in range(3)) * 16
    assert (y[0] == expected).all()


def test_one_tap_reads_only_every_stride_th_cell(monkeypatch):
    x, w = ones(2, 4, 64, 64), ones(8, 4, 1, 1)
    dy = xconv.conv(x, w, stride=16)
    assert loaded(monkeypatch, lambda: xconv.conv(x, w, stride=16)) == 2 * 4 * 4 * 4
    run = partial(xconv.conv_grad_weight, dy, x, (1, 1), stride=16)
    assert loaded(monkeypatch, run) == 2 * 4 * 4 * 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("given", ["xwb", "x", "w", "b"])
def test_double_backward_stays_within_the_workspace(dtype, given):
    x, w, workspace = ones(4, 8, 64, 64, dtype=dtype), ones(32, 8, 3, 3, dtype=dtype), 2**20
    dy = xconv.conv(x, w)
    second = [
        a if n in given else None for n, a in zip("xwb", (x, w, ones(32, dtype=dtype)), strict=True)
    ]
    run = partial(xconv.conv_double_backward, *second, dy, x, w, max_workspace=workspace)
    limit = workspace + 2**16
    assert beyond(run, limit) <= limit


@pytest.mark.parametrize(
    ("contraction", "x", "w", "stride", "padding_mode", "dtype"),
    [
        ("weight", (4, 16, 100), (256, 2, 3), 1, "zeros", "float64"),  # gradients are rearranged
        ("weight", (16, 2, 14, 120), (64, 1, 5, 3), 2, "zeros", "float32"),
        ("weight", (16, 64, 60, 60), (64, 1, 1, 1), 2, "zeros", "float16"),  # and converted
        ("weight", (8, 16, 14, 60), (16, 16, 1, 1), 1, "zeros", "float32"),  # sums in pieces
        ("weight", (16, 4, 14, 60), (16, 4, 3, 3), 1, "zeros", "float16"),
        ("weight", (8, 64, 28, 28), (64, 1, 3, 3), 1, "zeros", "float16"),
        ("input", (16, 1, 20000), (8, 1, 31), 2, "zeros", "float32"),
        ("input", (16, 8, 60, 33), (256, 1, 2, 2), 1, "reflect", "float64"),
        ("forward", (1, 2**12, 8, 8), (16, 2**12, 3, 3), 1, "zeros", "float16"),  # weights in parts
        ("input", (1, 64, 14, 14), (64, 64, 3, 3), 1, "zeros", "float16"),
    ],
)
def test_copies_of_operands_stay_within_the_workspace(
    contraction, x, w, stride, padding_mode, dtype
):
    options = {"stride": stride, "padding_mode": padding_mode, "groups": x[1] // w[1]}
    options["max_workspace"] = 2**20
    x, w = ones(*x, dtype=dtype), ones(*w, dtype=dtype)
    dy = xconv.conv(x, w, **options)
    run = {
        "forward": partial(xconv.conv, x, w, **options),
        "input": partial(xconv.conv_grad_input, dy, w, x.shape[2:], **options),
        "weight": partial(xconv.conv_grad_weight, dy, x, w.shape[2:], **options),
    }
    limit = 2**20 + 2**17  # of Python's objects
    assert beyond(cold(run[contraction]), limit) <= limit


def test_a_tiny_workspace_keeps_no_list_of_blocks():
    x, w = ones(8, 8, 48, 48), ones(8, 8, 3, 3)
    run = partial(xconv.conv, x, w, max_workspace=2**14)
    limit = 2**14 + 2**16
    assert beyond(run, limit) <= limit


def test_parts_of_an_axis_are_not_listed():
    assert next(boxes([range(0, 2**80, 1)] * 3)) == ((0, 1),) * 3
    assert list(boxes([range(0, 5, 2), range(3, 4, 9)])) == [
        ((a, min(a + 2, 5)), (3, 4)) for a in (0, 2, 4)
    ]


@pytest.mark.parametrize("contraction", ["forward", "input", "weight"])
def test_more_products_than_can_be_done_are_refused(contraction):
    options = {"stride": 2**40, "padding": 2**62, "padding_mode": "replicate"}
    # windows of two cells, 2**40 cells apart: each is a block of its own
    x, w = ones(1, 1, 2), ones(1, 1, 2)
    dy = np.broadcast_to(np.float32(1), (1, 1, 2**23 + 1))
    run = {
        "forward": partial(xconv.conv, x, w, **options),
        "input": partial(xconv.conv_grad_input, dy, w, x.shape[2:], **options),
        "weight": partial(xconv.conv_grad_weight, dy, x, w.shape[2:], **options),
    }
    rule = r"need at most 4194304 products of blocks .+; got \d+ products, max_workspace 67108864"
    with pytest.raises(ValueError, match=rule):
        run[contraction]()


@pytest.mark.parametrize("contraction", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("method", ["auto", "windows", "taps", "winograd", "fft"])
def test_the_workspace_that_an_error_names_is_enough(method, contraction):
    x, w = ones(2, 16, 18, 18), ones(32, 16, 3, 3)
    run = partial(xconv.explain, x, w, contraction=contraction, method=method, padding=1)
    with pytest.raises(ValueError, match=r"needed \d+ bytes") as refused:
        run(max_workspace=1)
    needed = int(str(refused.value).split()[-2])
    assert run(max_workspace=needed).steps
    with pytest.raises(ValueError, match=f"needed {needed} bytes"):
        run(max_workspace=needed - 1)


@pytest.mark.parametrize("taken", ["windows", "taps"])
def test_sums_over_very_many_channels_are_cut(taken):
    """Where their weights alone would be as large as the workspace."""
    x, w = ones(1, 2**18, 2), ones(1, 2**18, 1)
    assert (xconv.conv(x, w, method=taken, max_workspace=2**20) == 2**18).all()


def test_double_backward_warns_of_nothing():
    x = np.full((1, 1, 3), np.inf)
    with np.errstate(all="raise"):
        ddy, _, _ = xconv.conv_double_backward(x, -x, None, ones(1, 1, 1), x, x)
    assert np.isnan(ddy).all()


def test_a_bias_of_64_bits_keeps_them_all():
    x, w = ones(1, 1, 3, dtype="int8"), ones(1, 1, 1, dtype="int8")
    y = xconv.conv(x, w, np.array([2**60 + 1]), dtype=np.int64)
    assert (y - 2**60 == 2).all()


def test_fold_sums_16_bit_floats_in_32():
    assert xconv.fold(ones(3000, 3000, dtype="float16"), (5999,), (3000,))[0, 2999] == 3000


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_no_output_reads_has_no_gradient_whatever_the_weights(library):
    xp = {"numpy": np, "torch": torch}[library]
    dy, w = xp.ones((1, 1, 2)), xp.full((1, 1, 2), np.inf)
    dx = np.asarray(xconv.conv_grad_input(dy, w, (7,), padding=((-2, -2),)))
    assert (dx[0, 0, [0, 1, 5, 6]] == 0).all()
    assert (xconv.conv_grad_input(ones(1, 1, 2), ones(1, 1, 2), (7,), stride=3)[..., 5:] == 0).all()


def test_masked_chunks_are_refused():
    masked = dask.array.ma.masked_array(dask.array.ones((1, 1, 4)), mask=False)
    with pytest.raises(TypeError, match=r"conv: need x to be a plain, dense array"):
        xconv.conv(masked, dask.array.ones((1, 1, 1)))


@pytest.mark.parametrize("channels", [(8, 2), (3, 4), (4, 4)])
@pytest.mark.parametrize("chunks", [1, 5, -1])
def test_dask_with_more_or_fewer_outputs_than_inputs(channels, chunks):
    C, K = channels
    x, w = ones(3, C, 6, 6), ones(K, C, 3, 3)
    dy = xconv.conv(x, w)
    lazy = [dask.array.from_array(a, chunks=(chunks, -1, -1, -1)) for a in (dy, x)]
    for got, exact in zip(
        xconv.conv_backward(*lazy, w), xconv.conv_backward(dy, x, w), strict=True
    ):
        np.testing.assert_array_equal(got.compute(), exact)


def test_layers_check_their_options_at_once():
    with pytest.raises(TypeError, match=r"^Conv: need options among stride, .*; got strid$"):
        xconv.nn.Conv(1, 1, (3,), strid=2)
    with pytest.raises(
        ValueError, match=r"^ConvTranspose: need every stride .*; got stride \(0,\)$"
    ):
        xconv.nn.ConvTranspose(1, 1, (3,), stride=0)
    layer = xconv.nn.Conv(1, 2, (3,), stride=2)
    assert repr(layer) == "Conv(weight (2, 1, 3), bias=True, stride=2)"


# groups, samples, channels and outputs: in some block each of them is much of the estimate
BLOCKS = [
    (1, 1, 40, 2, (32, 30)),
    (1, 1, 2, 40, (32, 30)),
    (5, 1, 6, 6, (20, 9)),
    (1, 7, 3, 9, (8, 8)),
    (2, 2, 40, 50, (2, 1)),
    (1, 3, 40, 40, (5, 4)),
    (2, 1, 3, 2, (70, 80)),
]
SPECTRA = [(1, 4, 30, 2, (20, 20)), (1, 40, 2, 3, (20, 20))]  # of many samples
KERNELS = [  # kernel size, stride, dilation, and how many times the truth estimates may be
    (taps, (3, 2), (2, 1), (1, 2), 1.02),
    (windows, (3, 2), (2, 1), (1, 2), 1.02),
    (pointwise, (1, 1), (1, 1), (1, 1), 1.02),
    (depthwise, (3, 4), (2, 1), (1, 2), 1.02),
    (lines, (3, 2), (2, 1), (1, 1), 1.02),
    (lines, (2, 3), (4, 1), (1, 1), 1.02),
    (winograd, (3, 2), (1, 1), (1, 1), 1.02),
    (winograd, (2, 1), (1, 1), (2, 3), 1.02),
    (fft, (6, 5), (2, 1), (1, 2), 1.5),  # which has room for lines that no output needs
]


def part(algorithm, *shape, dtype="float32"):
    """Return ones, for `pointwise` a part of an array: its estimate has the copies of those."""
    margin = int(algorithm is pointwise)
    return ones(*(n + margin for n in shape), dtype=dtype)[tuple(map(slice, shape))]


@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.dtype("float64")], ids=str)
@pytest.mark.parametrize(
    ("kernel", "block"),
    [*itertools.product(KERNELS, BLOCKS), *itertools.product(KERNELS[-1:], SPECTRA)],
    ids=lambda one: f"{one[0].__name__}-{one[1]}" if one in KERNELS else str(one),
)
def test_a_block_takes_about_what_is_estimated(kernel, block, dtype):
    algorithm, W, stride, dilation, high = kernel
    G, N, c, k, O = block
    if algorithm is depthwise:
        G, c, k = c * G, 1, 1
    window = Window(O, W, stride, dilation)
    L = [s * (o - 1) + d * (t - 1) + 1 for o, t, s, d in zip(O, *window[1:], strict=True)]
    array = partial(part, algorithm, dtype=dtype)
    x, g, w = array(G, c, N, *L), array(G, k, N, *O), array(G, k, c, *W)
    if algorithm is depthwise:
        x = source(x)
    prepared = algorithm.prepare(np, w, window)
    most, result = in_a_block(lambda: algorithm.forward(np, x, prepared, window))
    estimate = dtype.itemsize * algorithm.workspace(G, N, window, c, k)
    if algorithm is depthwise and estimate >= dtype.itemsize * depthwise.NEAR:
        high = 1.3  # of several pieces, those of a part of the block may be larger ones
    results = 2 if algorithm is taps else 1  # the sum and its next term
    assert most <= estimate + results * result + 2**13
    assert estimate <= high * most
    most, result = in_a_block(lambda: algorithm.grad_weight(np, x, g, window))
    estimate = dtype.itemsize * algorithm.weight_workspace(G, N, window, c, k)
    assert most <= estimate + result + 2**13
    if algorithm is fft:  # a sum of what is not held at once
        high = 1.9
    elif algorithm is lines and np.prod(O) < 100:  # with room for long sums in pieces
        high = 1.5
    assert estimate <= high * most
    copies = 2 if algorithm is fft else 1
    own = dtype.itemsize * algorithm.prepared(G, window, c, k)
    if algorithm is winograd:  # with gaps between its points, where these are large, and a copy
        gaps = namespace.most_apart(c * k) * prepared.size // (c * k) * dtype.itemsize
        memory = winograd.room(np, w, window).base.nbytes
        assert prepared.nbytes <= memory <= own == prepared.nbytes + gaps + w.nbytes
    else:
        assert own == copies * prepared.nbytes


@pytest.mark.parametrize("c", [40, 41, 80, 100])
def test_sums_of_many_channels_in_parts_are_counted(monkeypatch, c):
    monkeypatch.setattr(winograd, "SUMMED", 40)
    window = Window((21, 9), (3, 3), (1, 1), (1, 1))
    x, w = ones(1, c, 2, 23, 11), ones(1, 50, c, 3, 3)
    prepared = winograd.prepare(np, w, window)
    most, result = in_a_block(lambda: winograd.forward(np, x, prepared, window))
    estimate = x.itemsize * winograd.workspace(1, 2, window, c, 50)
    assert most <= estimate + result + 2**13
    assert estimate <= 1.02 * most


@pytest.mark.parametrize(
    ("N", "c", "k", "I", "W"),
    [(2, 64, 16, (34, 34), (3, 3)), (2, 3, 8, (30, 31), (5, 4)), (4, 1, 6, (66,), (3,))],
    ids=str,
)
def test_a_block_with_its_products_first_takes_what_is_estimated(N, c, k, I, W):
    geom = geometry(N, c, k, I, W, options(len(I), 1, 0, 1, 1))
    cut = plan.grad_input(geom, I, 4, plan.CPU._replace(tasks=1))
    assert cut.sizes == (1, c, N, *I)
    none = (0,) * len(I)
    additions = scatter.additions(geom, none, geom.O, none, I)
    g, w = np.ones((1, k, N, *geom.O), "float32"), np.ones((1, k, c, *W), "float32")
    weights = scatter.prepare(np, w)
    most, result = in_a_block(lambda: scatter.grad_input(np, g, weights, (1, c, N, *I), additions))
    assert most <= cut.block - g.nbytes - result + 2**13  # it may have to convert these
    assert cut.block <= 2.5 * most


def test_gaps_do_not_cut_short_rows_to_single_cells():
    """There are none between rows of a few positions, however many rows there are."""
    geom = geometry(32, 1024, 256, (7, 7), (7, 7), options(2, 1, 0, 1, 1))
    cut = plan.grad_input(geom, geom.I, 4, plan.CPU)
    assert cut.sizes == (1, 1024, 8, 7, 7)


@pytest.mark.parametrize(
    ("algorithm", "G", "N", "c", "k", "O"),
    [
        (windows, 3, 1, 8, 64, (128, 64)),
        (windows, 3, 3, 8, 64, (128, 64)),
        (pointwise, 3, 1, 8, 64, (128, 64)),
        (pointwise, 3, 3, 8, 64, (128, 64)),
        (pointwise, 1, 256, 64, 64, (4, 4)),
        (pointwise, 1, 2, 64, 128, (64, 64)),
        (pointwise, 1, 256, 64, 128, (4, 4)),
    ],
)
def test_sums_in_pieces_are_counted(monkeypatch, algorithm, G, N, c, k, O):
    """Each piece has a result of its own, where results are few or are made tile by tile."""
    monkeypatch.setattr(products, "architecture", lambda: "SkylakeX")
    monkeypatch.setattr(products, "needs_runs", lambda: False)  # or fewer are, and take less
    W = (1, 1) if algorithm is pointwise else (3, 2)
    L = [o + t - 1 for o, t in zip(O, W, strict=True)]
    x, g = part(algorithm, G, c, N, *L), part(algorithm, G, k, N, *O)
    window = Window(O, W, (1, 1), (1, 1))
    most, result = in_a_block(lambda: algorithm.grad_weight(np, x, g, window))
    estimate = x.itemsize * algorithm.weight_workspace(G, N, window, c, k)
    assert most <= estimate + result + 2**13
    assert estimate <= (1.01 if algorithm is pointwise else 1.05) * most


@pytest.mark.parametrize("weights", [False, True], ids=["forward", "weights"])
@pytest.mark.parametrize("W", [(3, 3), (5, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("dilation", [1, 3])
def test_blocks_of_winograd_are_whole_tiles(W, dilation, weights):
    """Together they have as many tiles as one block of all outputs, if they are of all phases."""
    geom = geometry(2, 48, 80, (221, 150), W, options(2, 1, 0, dilation, 1))
    others = geom.stride, geom.dilation
    most = winograd.sizes(Window(geom.O, W, *others))[1]
    for mebibytes in (2, 3, 5, 8):
        limits = plan.Limits(64 * 2**20, mebibytes * 2**20)
        o = (plan.grad_weight if weights else plan.forward)(geom, winograd, 4, limits).o
        assert o[0] < geom.O[0]
        if o[0] < dilation:
            assert winograd.tile(Window(o, W, *others))[0] == 1
            continue
        starts = itertools.product(*map(range, (0, 0), geom.O, o))
        boxes = (tuple(map(min, o, np.subtract(geom.O, start))) for start in starts)
        assert most == sum(winograd.sizes(Window(box, W, *others))[1] for box in boxes)
    assert o[0] >= dilation


@pytest.mark.parametrize(
    ("cut", "I", "dilation", "limits", "o"),
    [
        (plan.grad_weight, (176, 49), 3, plan.Limits(991095, 8 * 2**20), (3, 43)),
        (plan.forward, (191, 180), 1, plan.Limits(150128, 2 * 2**20), (1, 23)),
    ],
)
def test_tiles_stay_in_parts_where_whole_ones_do_not_fit(cut, I, dilation, limits, o):
    found = cut(geometry(1, 8, 64, I, (3, 3), options(2, 1, 0, dilation, 1)), winograd, 4, limits)
    assert found.o == o
    assert found.shared + found.block <= limits.allowed


@pytest.mark.parametrize(
    ("N", "C", "K", "I", "limits", "blocks"),
    [
        (8, 16, 96, 112, plan.CPU, 8),  # of twice the size
        (8, 16, 96, 112, plan.Limits(9 * 2**20, 8 * 2**20), 16),  # which would not fit
        (8, 512, 128, 28, plan.CPU, 8),  # each is much work
        (4, 24, 24, 112, plan.CPU, 4),  # there are no more than cores need
    ],
)
def test_blocks_of_one_tap_are_larger_where_each_is_little_work(N, C, K, I, limits, blocks):
    geom = geometry(N, C, K, (I, I), (1, 1), options(2, 1, 0, 1, 1))
    cut = plan.forward(geom, pointwise, 4, limits)
    assert cut.blocks(geom) == blocks
    assert (cut.block > limits.block) == ((C, limits) == (16, plan.CPU))


def test_winograd_estimates_count_what_is_done_anew():
    """Transforms of data for each part of channels, and of gradients of weights in each block."""
    geom = geometry(8, 64, 256, (58, 58), (3, 3), options(2, 1, 0, 1, 1))
    task = costs.Task(np, "auto", "float32", "float32", plan.CPU, False)
    whole = plan.Plan(1, 256, 1, 256, 8, geom.O, 64, geom.W, 0, 0)
    points, tiles = 36, 14 * 14 * 8

    def more(weights, **parts):
        cuts = whole._replace(**parts), whole
        one, other = (costs.estimate(task, geom, winograd, cut, False, weights) for cut in cuts)
        return one - other

    assert more(False, k=64) == pytest.approx(3 * costs.TILE * points * 64 * tiles)
    assert more(True, k=64) == pytest.approx(3 * costs.TILE * points * 64 * tiles)
    assert more(True, c=16) == pytest.approx(3 * costs.TILE * points * 256 * tiles)
    gradients = costs.POINT * points * 64 * 256 + costs.CALL
    assert more(True, n=2) == pytest.approx(3 * gradients)
    assert more(True, o=(28, 56)) == pytest.approx(gradients)
    assert more(False, n=2) == pytest.approx(3 * costs.CALL)


@pytest.mark.parametrize("algorithm", [taps, windows, pointwise, lines, depthwise, winograd, fft])
def test_sums_are_cut_where_they_may_be(algorithm):
    W = (1, 1) if algorithm is pointwise else (3, 3)
    geom = geometry(1, 2**18, 2, (4, 4), W, options(2, 1, 0, 1, 1))
    if algorithm is depthwise:  # whose cells are not all read at once, but the taps of an output
        geom = geometry(1, 4, 4, (600, 600), (600, 600), options(2, 1, 0, 1, 4))
    limits = plan.Limits(2**20, 2**20)
    if algorithm in (taps, windows, pointwise, lines):
        cut = plan.forward(geom, algorithm, 4, limits)
        assert cut.c < geom.c
        assert plan.grad_weight(geom, algorithm, 4, limits).shared < 2**20
    else:
        with pytest.raises(Refusal):
            plan.forward(geom, algorithm, 4, limits)


def test_an_input_gradient_that_fits_neither_way():
    """A kernel longer than its outputs may be taken as data: refused as any other, if neither."""
    dy, w = ones(2, 4, 6), ones(4, 3, 15)
    with pytest.raises(
        ValueError, match=r"^conv_grad_input: need max_workspace to hold .* needed 56 "
    ):
        xconv.conv_grad_input(dy, w, (20,), max_workspace=1)


def test_weights_of_two_passes_are_not_held_at_once():
    x, w = ones(1, 256, 16, 16, dtype="float64"), ones(256, 256, 3, 3, dtype="float64")
    limit = 9 * 2**20
    run = partial(xconv.conv, x, w, padding=1, method="winograd", max_workspace=limit)
    assert beyond(cold(run), limit * 1.02) < limit * 1.02


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_conjugated_weights_are_one_copy(layout):
    g, w = ones(1, 512, 2, 2, dtype="complex64"), ones(512, 256, 3, 3, dtype="complex64")
    if layout == "channels_last":
        g, w = np.moveaxis(g, 1, -1).copy(), np.transpose(w, (2, 3, 1, 0)).copy()
    limit = w.nbytes * 105 // 100
    run = partial(xconv.conv_grad_input, g, w, (4, 4), layout=layout, max_workspace=limit)
    assert beyond(cold(run), limit * 1.02) < limit * 1.02


def test_conjugated_samples_are_one_copy():
    x, w = ones(16, 8, 28, 56, dtype="complex128"), ones(8, 1, 5, 5, dtype="complex128")
    options = {"stride": 2, "padding": 2, "dilation": 2, "groups": 8}
    dy, limit = xconv.conv(x, w, **options), 4 * 2**20
    run = partial(xconv.conv_grad_weight, dy, x, (5, 5), **options, max_workspace=limit)
    assert beyond(cold(run), limit * 1.02) < limit * 1.02


def test_groups_at_an_edge_stay_within_the_workspace():
    """Of 121 groups in two blocks the second has 60: its pieces may be larger ones."""
    x, dy = ones(23, 121, 66, 66, dtype="float16"), ones(23, 121, 63, 63, dtype="float16")
    limit = 2**21
    run = partial(xconv.conv_grad_weight, dy, x, (4, 4), groups=121, max_workspace=limit)
    assert beyond(cold(run), limit) <= limit + 2**16


def test_groups_that_are_computed_again_stay_within_the_workspace():
    """Those that a NaN has spread in, when what was prepared for them is freed."""
    x, w, limit = ones(4, 2048, 14, 14), ones(2048, 1, 3, 3), 2**24
    x[:, :, 3, 3] = np.nan
    options = {"groups": 2048, "padding": 1, "max_workspace": limit}
    assert [step.method for step in xconv.explain(x, w, **options).steps] == ["bands"]
    assert beyond(partial(xconv.conv, x, w, **options), limit) <= limit
    back = partial(xconv.conv_grad_input, x, w, (14, 14), **options)
    assert beyond(back, limit) <= limit


def test_large_numbers_of_16_bits_are_finite():
    a = np.full((30, 1000), 6e4, np.float16)
    assert namespace.finite(a)
    a[3, 4] = np.inf
    assert not namespace.finite(a)


def test_what_weight_gradients_need_is_counted():
    strided = Window((4, 5), (3, 2), (2, 1), (1, 1))
    lengths = (4 + 1) + 4  # of rows at either phase, for three taps and for two
    assert lines.weight_workspace(1, 2, strided, 3, 2) == lengths * 60 + 2 * 2 * 3 * 12
    assert taps.weight_workspace(2, 3, strided, 2, 7) == 2 * (60 * 2 + 6 * 14)
    long = Window((5000,), (1,), (1,), (1,))
    assert pointwise.weight_workspace(1, 1, long, 71, 71) == 5000 * 142  # and no sums in pieces
    assert pointwise.weight_workspace(1, 1, long, 70, 70) == 5000 * 140 + 5 * 4900


def test_the_matrix_that_bands_are_made_of_is_counted():
    geom = geometry(8, 1, 1, (28, 28), (3, 3), options(2, 1, 1, 1, 1))
    own = bands.work(geom, False)
    cut = plan.groups(geom, own, 4, plan.CPU)
    matrix = 4 * (3 * 28) * 28  # of three rows to one
    made = (4 + 8) * 9 * matrix // 4  # one for each tap, of a list
    assert cut.shared == made + matrix + 4 * 9
    five = plan.groups(geom._replace(C=5, K=5, G=5), own, 4, plan.CPU)
    assert five.shared == made + 5 * (matrix + 4 * 9)
    shares = plan.CPU.allowed // max(cut.shared + cut.block, 2 * cut.shared)
    assert plan.groups(geom, own, 4, plan.CPU._replace(shares=shares)) == cut
    assert plan.groups(geom, own, 4, plan.CPU._replace(shares=shares + 1)) is None


@pytest.mark.parametrize(("size", "bands_are_taken"), [(17, True), (18, False)])
def test_no_large_matrix_is_kept_below_the_default_workspace(size, bands_are_taken):
    geom = geometry(8, 1, 1, (size, size), (3, 3), options(2, 1, 1, 1, 1))
    own = bands.work(geom, False)
    assert own.shared == 9 * (3 * size) * size
    below = plan.groups(geom, own, 4, plan.CPU._replace(allowed=plan.CPU.allowed - 1))
    assert (below is not None) == bands_are_taken
    assert plan.groups(geom, own, 4, plan.CPU) is not None


def test_input_gradients_of_very_many_taps_are_not_formed_products_first():
    dy, w = ones(1, 1, 1), ones(1, 1, 2**22 + 1)
    assert (xconv.conv_grad_input(dy, w, (2**22 + 1,)) == 1).all()
    with pytest.raises(ValueError, match="got 4194305 products"):
        xconv.conv_grad_input(dy, w, (2**22 + 1,), method="windows")


def test_refusals_are_known_beforehand():
    x = np.broadcast_to(np.float32(1), (1, 1, 2**22 + 8))
    for run in (xconv.explain, xconv.conv):
        with pytest.raises(ValueError, match="need at most 4194304 products of blocks"):
            run(x, ones(1, 1, 3), max_workspace=64)


# ---------------------------------------------------------------- small limits

SMALL = {
    "products-first-beside-phases": (
        "grad_input",
        ((16, 32, 63, 52), (32, 1, 1, 3), "float64"),
        {"groups": 32, "padding": ((3, 3), (3, 1)), "padding_mode": "reflect"},
    ),
    "per-sample": (
        "grad_weight",
        ((5, 64, 15, 13, 6), (64, 32, 2, 7, 3), "float64"),
        {
            "groups": 2,
            "stride": (3, 1, 1),
            "padding": ((1, 4), (3, 3), (4, 4)),
            "dilation": (4, 1, 1),
            "per_sample": True,
        },
    ),
    "integers": (
        "grad_input",
        ((5, 64, 60, 46), (16, 32, 1, 3), "int8"),
        {"groups": 2, "padding": ((1, 1), (2, 1)), "padding_mode": "replicate"},
    ),
    "complex-by-one-tap": (
        "grad_weight",
        ((5, 32, 1430), (8, 32, 1), "complex64"),
        {"padding": ((2, 1),), "method": "windows"},
    ),
    "parts-of-a-sum": (
        "forward",
        ((1, 16, 900, 900), (8, 16, 3, 3), "float16"),
        {"stride": 8, "dilation": 40},
    ),
    "groups": (
        "grad_input",
        ((8, 8, 28, 28), (128, 1, 3, 2), "float64"),
        {"groups": 8, "padding": 1, "padding_mode": "reflect"},
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_limits_hold_on_a_thread_that_has_kept_nothing(name):
    """And on one that has: no step of a call keeps memory for the next."""
    contraction, (x_shape, w_shape, dtype), options = SMALL[name]
    x, w, limit = ones(*x_shape, dtype=dtype), ones(*w_shape, dtype=dtype), 2**20
    plain = {n: value for n, value in options.items() if n != "per_sample"}
    dy = ones(*xconv.conv(x, w, **plain).shape, dtype=dtype)

    def call(**more):
        if contraction == "forward":
            return xconv.conv(x, w, **options, **more)
        if contraction == "grad_input":
            return xconv.conv_grad_input(dy, w, x_shape[2:], **options, **more)
        return xconv.conv_grad_weight(dy, x, w_shape[2:], **options, **more)

    def kept():
        call()
        call()
        assert len(namespace._scratch.memory) > 0
        call(max_workspace=limit)
        assert len(namespace._scratch.memory) == 0

    with threadpool_limits(1):
        most = limit + 2**16
        assert beyond(cold(partial(call, max_workspace=limit)), most) <= most
        cold(kept)()


@pytest.mark.parametrize("size", [2**19, 2**21 - 64, 2**21, 3 * 2**21 + 5])
def test_what_a_thread_keeps_are_whole_large_pages_of_the_system(size):
    @cold
    def places():
        found = []
        for _ in range(2):
            namespace.begin_block(np, True, size)
            block = namespace.scratch(np, (size,), "uint8")
            block[...] = 1  # all of it is there
            found.append(block.ctypes.data)
            assert len(namespace._scratch.memory) == -(-size // 2**21) * 2**21
        return found

    first, second = places()
    assert first == second and first % 2**21 == 0


def test_few_bytes_take_no_large_page():
    most, _ = measured(lambda: namespace._in_large_pages(2**19 - 1))
    assert most < 2**19 + 2**12


def test_weights_of_another_dtype_are_counted():
    """Converted, they are a copy, and Winograd's another."""
    x, w, limit = ones(4, 64, 56, 56, dtype="float64"), ones(128, 64, 3, 3), 23_592_960
    run = partial(xconv.conv, x, w, padding=1, method="winograd", max_workspace=limit)
    assert beyond(cold(run), limit * 1.02) < limit * 1.02


@pytest.mark.parametrize(
    ("operations", "blocks"),
    [(plan.GRAIN - 1, 1), (plan.GRAIN, 2), (8 * plan.GRAIN - 1, 2), (8 * plan.GRAIN, 4)],
)
def test_more_work_is_cut_into_more_blocks(operations, blocks, monkeypatch):
    """Calls of NumPy are to be long: threads wait for each other between them."""
    monkeypatch.setattr(plan, "_operations", lambda geom: operations)
    monkeypatch.setattr(plan, "MOVED", 0)
    geom = geometry(1, 256, 256, (640,), (1,), options(1, 1, 0, 1))
    cut = plan.forward.__wrapped__(geom, pointwise, 4, plan.CPU)
    assert cut.blocks(geom) == blocks


@pytest.mark.parametrize("total", [1, 6, 7])
def test_slices_of_an_axis(total):
    cut = list(itertools.starmap(slice, plan.parts(range(0, total, 3))))
    assert [list(range(total)[one]) for one in cut] == [
        list(range(a, min(a + 3, total))) for a in range(0, total, 3)
    ]
    assert cut[-1].stop == total  # some count what a slice holds


def test_a_call_is_sent_to_other_processes_with_its_namespace():
    xp, _ = namespace.accept(x=ones(1))
    call = forward_call(xp, (1, 2, 8), (3, 2, 3), tuple(Settings()))
    assert pickle.loads(pickle.dumps(call)).xp is xp is namespace.NUMPY


def test_numpys_namespace_is_numpys_but_for_methods():
    xp, a = namespace.NUMPY, np.arange(24.0).reshape(2, 3, 4)
    for found, expected in (
        (xp.permute_dims(a, (2, 0, 1)), np.permute_dims(a, (2, 0, 1))),
        (xp.reshape(a, (6, 4)), np.reshape(a, (6, 4))),
        (xp.matrix_transpose(a), np.matrix_transpose(a)),
    ):
        np.testing.assert_array_equal(found, expected)
        assert np.shares_memory(found, a)
    others = {"permute_dims", "reshape", "matrix_transpose"}
    assert all(getattr(xp, name) is getattr(np, name) for name in set(np.__all__) - others)
