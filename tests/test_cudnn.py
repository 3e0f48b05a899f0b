"""`method="cudnn"`: what cuDNN is told to do, on every case, and what happens where it cannot.

Without a GPU, a stand-in takes the place of the library. It records a graph and, when that is
executed, reads the arrays at the addresses and strides that it was given and computes with the
oracle. With CuPy, the same cases run in cuDNN itself.
"""

import ctypes
import importlib
import sys
from importlib.machinery import ModuleSpec
from itertools import product
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import backends
import numpy as np
import oracle
import pytest
from cases import CORE, TABLE
from checks import Method, Trial

import xconv
from xconv import choice, namespace

CUDNN = Method("cudnn")
REAL = ("float16", "float32", "float64")
SMALL = [case for case in TABLE if case.rank <= 3]
DTYPES = {"HALF": np.float16, "FLOAT": np.float32, "DOUBLE": np.float64}
STEPS = (
    "validate",
    "build_operation_graph",
    "create_execution_plans",
    "deselect_numeric_notes",
    "deselect_workspace_greater_than",
    "check_support",
    "build_plans",
    "execute",
)


class NotSupported(Exception):
    pass


class Tensor:
    def __init__(self, dim=None, stride=None, data_type=None):
        self.dim, self.stride, self.data_type, self.output = dim, stride, data_type, False

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, data_type):
        self.data_type = data_type
        return self

    def set_output(self, output):
        self.output = output
        return self

    def at(self, address):
        """The array that lies there, of nothing but the numbers between its first and last."""
        assert type(address) is int and address % 16 == 0
        dtype = np.dtype(DTYPES[self.data_type])
        span = 1 + sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True))
        assert span == np.prod(self.dim), "not compact"
        memory = (ctypes.c_byte * (span * dtype.itemsize)).from_address(address)
        strides = [s * dtype.itemsize for s in self.stride]
        return np.ndarray(self.dim, dtype, memory, 0, strides)


class Graph:
    """One operation, and a bias after it if there is one."""

    made: ClassVar[list] = []
    engine = 64  # bytes that the only engine takes

    def __init__(self, *, handle, io_data_type, intermediate_data_type, compute_data_type):
        self.handle, self.io, self.compute = handle, io_data_type, compute_data_type
        assert intermediate_data_type == compute_data_type
        self.done, self.extra = 0, None
        Graph.made.append(self)

    def tensor(self, *, name, dim, stride, data_type):
        assert len(dim) == len(stride) and len(dim) in (4, 5) and min(dim) > 0
        assert data_type == self.io
        return Tensor(dim, stride, data_type)

    def _operation(self, name, a, b, pre_padding, post_padding, stride, dilation, **more):
        assert more == {"compute_data_type": self.compute}
        axes = (pre_padding, post_padding, stride, dilation)
        assert {len(axis) for axis in axes} == {len(a.dim) - 2}
        assert min(pre_padding + post_padding) >= 0 and min(stride + dilation) >= 1
        self.name, self.a, self.b = name, a, b
        self.padding = tuple(zip(pre_padding, post_padding, strict=True))
        self.steps = {"stride": tuple(stride), "dilation": tuple(dilation)}
        self.result = Tensor()
        return self.result

    def conv_fprop(self, *, image, weight, **options):
        return self._operation("fprop", image, weight, **options)

    def conv_dgrad(self, *, loss, filter, **options):  # noqa: A002 - the library's name
        return self._operation("dgrad", loss, filter, **options)

    def conv_wgrad(self, *, image, loss, **options):
        return self._operation("wgrad", image, loss, **options)

    def bias(self, *, name, input, bias, compute_data_type):  # noqa: A002
        assert input is self.result and self.name == "fprop"
        assert input.data_type == compute_data_type == self.compute
        assert not input.output
        self.extra, self.result = bias, Tensor()
        return self.result

    def _step(self, name):
        assert name == STEPS[self.done]
        self.done += name != "execute"  # which may come again

    def validate(self):
        self._step("validate")
        assert self.result.output and self.result.data_type == self.io

    def build_operation_graph(self):
        self._step("build_operation_graph")

    def create_execution_plans(self, modes):
        self._step("create_execution_plans")
        assert modes == ["A", "FALLBACK"]

    def deselect_numeric_notes(self, notes):
        self._step("deselect_numeric_notes")
        self.notes = notes

    def deselect_workspace_greater_than(self, size):
        self._step("deselect_workspace_greater_than")
        self.limit = size

    def check_support(self):
        self._step("check_support")
        if self.engine > self.limit:
            raise NotSupported("no engine\nfits")

    def build_plans(self):
        self._step("build_plans")

    def get_workspace_size(self):
        return self.engine

    def execute(self, buffers, workspace, handle):
        self._step("execute")
        assert handle == self.handle and type(workspace) is int
        a, b = self.a.at(buffers.pop(self.a)), self.b.at(buffers.pop(self.b))
        out = self.result.at(buffers.pop(self.result))
        options = {"padding": self.padding, **self.steps}
        if self.name == "fprop":
            exact = oracle.forward(a, b, groups=a.shape[1] // b.shape[1], **options)
        elif self.name == "dgrad":
            groups = out.shape[1] // b.shape[1]
            exact = oracle.grad_input(a, b, out.shape[2:], groups=groups, **options)
        else:
            groups = a.shape[1] // out.shape[1]
            exact = oracle.grad_weight(b, a, out.shape[2:], groups=groups, **options)
        if self.extra is not None:
            exact = exact + self.extra.at(buffers.pop(self.extra))
        assert not buffers
        out[...] = exact


@pytest.fixture
def library(monkeypatch):
    """The stand-in as the module `cudnn`, and NumPy in the place of CuPy."""
    fake = ModuleType("cudnn")
    fake.__spec__ = ModuleSpec("cudnn", None)
    names = {name: name for name in (*DTYPES, "A", "FALLBACK")}
    fake.data_type = fake.heur_mode = SimpleNamespace(**names)
    fake.numerical_note = type("Notes", (), {"__getattr__": lambda self, name: name})()
    fake.pygraph, fake.cudnnGraphNotSupportedError = Graph, NotSupported
    fake.backend_version = lambda: 92801
    fake.create_handle = lambda: 7
    fake.streams = []
    fake.set_stream = lambda handle, stream: fake.streams.append((handle, stream))
    monkeypatch.setitem(sys.modules, "cudnn", fake)
    monkeypatch.delitem(sys.modules, "xconv.cudnn", raising=False)
    adapter = importlib.import_module("xconv.cudnn")
    monkeypatch.setattr(adapter, "address", lambda a: a.ctypes.data)
    monkeypatch.setattr(adapter, "queue", lambda: (0, 3))
    monkeypatch.setattr(adapter, "allows_tf32", lambda: False)
    monkeypatch.setattr(choice, "allows_tf32", lambda: False)
    monkeypatch.setattr(choice, "on_gpu", lambda xp: True)
    monkeypatch.setattr(Graph, "made", [])
    choice._without_cudnn.cache_clear()
    yield fake
    choice._without_cudnn.cache_clear()
    del sys.modules["xconv.cudnn"], xconv.cudnn


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_case_in_every_contraction(library, case):
    run = Trial(backends.load("numpy"), case, "float32", CUDNN)
    run.forward()
    run.gradients()
    if not case.transposed:
        run.contractions()
    run.double_backward([(True, True, True), (False, True, False)])
    run.untouched()
    assert Graph.made or 0 in case.x + case.w


@pytest.mark.parametrize(("case", "dtype"), [*product(CORE, REAL)], ids=str)
def test_the_core_cases_in_every_dtype(library, case, dtype):
    run = Trial(backends.load("numpy"), case, dtype, CUDNN)
    run.forward()
    run.gradients()
    run.double_backward([(True, True, True)])


# ---------------------------------------------------------------- what the library is given

RNG = np.random.default_rng(0)
NOTES = ["NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION"]
SPREADING = [
    "FFT",
    "WINOGRAD",
    "WINOGRAD_TILE_4x4",
    "WINOGRAD_TILE_6x6",
    "WINOGRAD_TILE_13x13",
]
WHOLE = 64 * 2**20  # the workspace where nothing is copied; NumPy's default


def numbers(*shape, dtype="float32"):
    return RNG.integers(-4, 5, shape).astype(dtype)


def conv(x, w, *more, **options):
    """A call by cuDNN, and the graph that it made."""
    y = xconv.conv(x, w, *more, method="cudnn", **options)
    return y, Graph.made[-1]


def test_compact_arrays_are_given_as_they_are(library):
    x, w = numbers(2, 4, 9, 8), numbers(6, 4, 3, 3)
    _, graph = conv(x, w, padding=1)
    assert graph.limit == WHOLE
    assert (graph.a.dim, graph.a.stride) == ([2, 4, 9, 8], [288, 72, 8, 1])
    assert (graph.b.dim, graph.b.stride) == ([6, 4, 3, 3], [36, 9, 3, 1])
    assert (graph.result.dim, graph.result.stride) == ([2, 6, 9, 8], [432, 72, 8, 1])
    assert graph.padding == ((1, 1), (1, 1))
    assert graph.steps == {"stride": (1, 1), "dilation": (1, 1)}


def test_channels_last_stay_last(library):
    x, w = numbers(2, 9, 8, 4), numbers(3, 3, 4, 6)
    _, graph = conv(x, w, layout="channels_last", dilation=2)
    assert (graph.a.dim, graph.a.stride) == ([2, 4, 9, 8], [288, 1, 32, 4])
    assert (graph.b.dim, graph.b.stride) == ([6, 4, 3, 3], [36, 1, 12, 4])
    assert graph.limit == WHOLE - w.nbytes  # Keras's weights are copied
    assert graph.result.stride == [5 * 4 * 6, 1, 4 * 6, 6]


def test_one_axis_is_two(library):
    _, graph = conv(numbers(2, 4, 9), numbers(6, 2, 3), groups=2, stride=2, padding=((1, 2),))
    assert graph.a.dim == [2, 4, 1, 9]
    assert graph.b.dim == [6, 2, 1, 3]
    assert graph.padding[0] == (0, 0)
    assert graph.padding[1] == (1, 1)  # of the two cells behind, the last is not read
    assert graph.steps == {"stride": (1, 2), "dilation": (1, 1)}


@pytest.mark.parametrize(
    ("padding", "mode", "given"),
    [
        (((2, 0), (0, 1)), "zeros", ((2, 0), (0, 1))),
        ("same", "zeros", ((1, 1), (0, 1))),
        (((3, 0), (0, 0)), "zeros", None),  # more than the kernel reaches
        (((-1, 0), (0, 0)), "zeros", None),
        (1, "reflect", None),
        (0, "reflect", ((0, 0), (0, 0))),
    ],
)
def test_only_zeros_are_padded_by_cudnn(library, padding, mode, given):
    x, w = numbers(1, 2, 6, 5), numbers(3, 2, 3, 2)
    options = {"padding": padding, "padding_mode": mode}
    y, graph = conv(x, w, **options)
    np.testing.assert_array_equal(y, oracle.conv(x, w, **options))
    copied = WHOLE - graph.limit
    assert graph.padding == (given or ((0, 0), (0, 0)))
    assert copied == (0 if given else 4 * np.prod(graph.a.dim))


@pytest.mark.parametrize(
    ("size", "stride", "padding", "given"),
    [
        (7, 1, (1, 2), None),
        (7, 2, (1, 0), None),
        (8, 2, (1, 1), ((1, 1),)),
        (8, 2, (1, 0), ((1, 1),)),  # one more zero, and as many outputs
    ],
)
def test_zeros_on_both_sides_are_as_many_where_that_can_be(library, size, stride, padding, given):
    """As cuDNN's weight gradients were wrong without; its other engines take any."""
    x, w = numbers(1, 2, size), numbers(3, 2, 3)
    options = {"stride": stride, "padding": (padding,)}
    y, graph = conv(x, w, **options)
    np.testing.assert_array_equal(y, oracle.conv(x, w, **options))
    assert graph.padding[1:] == (given or (padding,))
    dw = xconv.conv_grad_weight(y, x, (3,), method="cudnn", **options)
    np.testing.assert_array_equal(dw, oracle.grad_weight(y, x, (3,), **options))
    low, high = Graph.made[-1].padding[1]
    assert low == high


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[:, :, ::2],
        lambda a: a[..., ::-1],
        lambda a: a.transpose(1, 0, 3, 2),
        lambda a: np.ndarray((4, 4, 6, 6), np.float32, a, 4),  # not aligned to 16 bytes
        lambda a: np.broadcast_to(a[:1], a.shape),
    ],
)
def test_other_arrays_are_copied(library, view):
    x, w = view(numbers(4, 5, 8, 8)), numbers(3, 4, 2, 2)
    w = numbers(3, x.shape[1], 2, 2)
    y, graph = conv(x, w)
    np.testing.assert_array_equal(y, oracle.conv(x, w))
    assert graph.limit == WHOLE - x.size * 4


@pytest.mark.parametrize(
    ("dtype", "io", "compute"),
    [("float16", "HALF", "FLOAT"), ("float32", "FLOAT", "FLOAT"), ("float64", "DOUBLE", "DOUBLE")],
)
@pytest.mark.parametrize("bias", [False, True])
def test_dtypes(library, dtype, io, compute, bias):
    x, w, b = numbers(2, 3, 5, 5, dtype=dtype), numbers(4, 3, 2, 2, dtype=dtype), numbers(4)
    _, graph = conv(x, w, *[b.astype(dtype)] * bias)
    assert (graph.io, graph.compute) == (io, compute)
    assert (graph.extra is not None) is bias
    assert graph.limit == WHOLE - 8 * bias * (dtype == "float16")  # the bias was cast to float32


def test_only_results_are_rounded_to_16_bits(library):
    x, w = numbers(1, 1, 3, dtype="float16"), np.ones((1, 1, 1), "float32")
    dy = np.full((1, 1, 3), 2049, "float32")
    only_dx = {"output_mask": (True, False, False), "method": "cudnn"}
    dx = xconv.conv_backward(dy * 2**6, x, w * 2**-5, **only_dx).dx
    assert dx.dtype == np.float16
    assert (dx == 4096).all()  # of 4098
    assert {graph.io for graph in Graph.made} == {"FLOAT"}


def test_gradients_of_copied_cells_have_room_to_be_added_up(library):
    dy, w = numbers(1, 3, 6, 5), numbers(3, 2, 3, 2)
    options = {"padding": ((1, 1), (1, 0)), "padding_mode": "reflect"}
    dx = xconv.conv_grad_input(dy, w, (6, 5), method="cudnn", **options)
    np.testing.assert_array_equal(dx, oracle.grad_input(dy, w, (6, 5), **options))
    assert Graph.made[-1].limit == WHOLE // 3 - 4 * 2 * 8 * 6  # that of the padded input is kept


def test_a_bias_is_added_before_16_bit_floats_are_rounded(library):
    x, w = np.array([2048, 1], "float16").reshape(1, 2, 1), np.ones((1, 2, 1), "float16")
    b = np.ones(1, "float16")
    assert conv(x, w, b)[0].item() == 2050
    w = w.reshape(2, 1, 1)
    y = xconv.conv_transpose(x, w, b, method="cudnn")
    assert y.item() == 2050
    assert Graph.made[-1].io == "FLOAT"  # where cuDNN has no bias to add


def test_engines_are_deterministic_and_exact(library, monkeypatch):
    adapter = sys.modules["xconv.cudnn"]
    x, w = numbers(1, 1, 5), numbers(1, 1, 2)
    assert conv(x, w)[1].notes == [*NOTES, "TENSOR_CORE"]
    assert conv(x.astype("float64"), w)[1].notes == NOTES
    assert conv(x.astype("float16"), w.astype("float16"))[1].notes == NOTES
    xconv.conv(x, w)  # of which a NaN may reach nothing else
    assert Graph.made[-1].notes == [*NOTES, *SPREADING, "TENSOR_CORE"]
    monkeypatch.setattr(adapter, "allows_tf32", lambda: True)
    assert conv(x, w)[1].notes == NOTES


@pytest.mark.parametrize("chosen", [3, 4])
def test_what_cupy_tells_of_its_device(monkeypatch, chosen):
    core = SimpleNamespace(
        get_compute_type={"float32": chosen}.get,
        _routines_linalg=SimpleNamespace(COMPUTE_TYPE_TF32=4),
    )
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDevice=lambda: 2),
        get_current_stream=lambda: SimpleNamespace(ptr=5),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(_core=core, cuda=cuda))
    assert namespace.allows_tf32() == (chosen == 4)
    assert namespace.queue() == (2, 5)
    assert namespace.address(SimpleNamespace(data=SimpleNamespace(ptr=96))) == 96


def test_plans_are_kept(library):
    x, w = numbers(1, 1, 5), numbers(1, 1, 2)
    for _ in range(3):
        conv(x, w)
    assert len(Graph.made) == 1
    conv(x, w, max_workspace=2**20)
    assert Graph.made[-1].limit == 2**20
    assert len(Graph.made) == 2
    assert library.streams == [(7, 3)] * 4
    kept = sys.modules["xconv.cudnn"]._plan.cache_info()
    assert kept.maxsize == 256


def test_groups_of_samples(library):
    """Weight gradients per sample are one call in which the samples are groups."""
    x, dy = numbers(3, 2, 5, 5), numbers(3, 4, 4, 4)
    dw = xconv.conv_grad_weight(dy, x, (2, 2), method="cudnn", per_sample=True)
    np.testing.assert_array_equal(dw, oracle.grad_weight(dy, x, (2, 2), per_sample=True))
    (graph,) = Graph.made
    assert graph.result.dim == [12, 2, 2, 2]


@pytest.mark.backends("dask")
def test_chunks(library):
    """Each chunk is a call of its own; that it can be done is looked at without doing it."""
    import dask.array as da

    x, w = numbers(1, 2, 12), numbers(3, 2, 3)
    y = xconv.conv(da.from_array(x, chunks=(1, 2, 5)), w, method="cudnn", padding=1)
    assert not Graph.made
    np.testing.assert_array_equal(y.compute(scheduler="sync"), oracle.conv(x, w, padding=1))
    assert {graph.name for graph in Graph.made} == {"fprop"}


def test_explain(library):
    told = xconv.explain(numbers(1, 2, 5), numbers(3, 2, 2), method="cudnn")
    assert [step.method for step in told.steps] == ["cudnn"]


def test_auto_takes_it_where_it_applies_and_has_an_engine(library, monkeypatch):
    x, w = numbers(1, 2, 5), numbers(3, 2, 2)
    want = oracle.conv(x, w)
    np.testing.assert_array_equal(xconv.conv(x, w), want)
    assert len(Graph.made) == 1
    np.testing.assert_array_equal(xconv.conv(x.astype(int), w.astype(int)), want)
    assert len(Graph.made) == 1
    monkeypatch.setattr(Graph, "engine", 2**40)
    for _ in range(2):  # what it refuses is kept
        np.testing.assert_array_equal(xconv.conv(x, w, stride=2), oracle.conv(x, w, stride=2))
        assert len(Graph.made) == 2


@pytest.mark.parametrize(
    ("dtype", "tf32", "kernel", "options", "taken"),
    [
        ("float32", False, (1, 1), {}, ()),
        ("float32", False, (7, 7), {}, ("fprop", "dgrad")),
        ("float32", False, (7, 8), {"padding": 3}, ("fprop",)),
        ("float16", False, (7, 8), {"padding": 3}, ("fprop",)),
        ("float32", False, (7, 8), {"padding": 3, "groups": 4}, ("fprop", "dgrad", "wgrad")),
        ("float32", False, (3, 3), {}, ("fprop", "dgrad", "wgrad")),
        ("float32", False, (3, 3), {"stride": 2}, ("fprop", "dgrad")),
        ("float32", False, (3, 3), {"dilation": 2}, ("fprop", "dgrad")),
        ("float32", False, (3, 3), {"max_workspace": 2000}, ("fprop", "dgrad")),
        ("float32", False, (1, 1), {"groups": 2}, ("fprop", "dgrad", "wgrad")),
        ("float32", True, (1, 1), {}, ("fprop", "dgrad", "wgrad")),
        ("float16", False, (1, 1), {}, ("fprop", "dgrad", "wgrad")),
        ("float64", False, (1, 1), {}, ("fprop", "dgrad", "wgrad")),
        ("float64", False, (1, 1), {"stride": 2}, ()),
        ("float64", False, (2, 2), {}, ()),
        ("float64", False, (2, 2), {"groups": 4}, ("fprop", "dgrad", "wgrad")),
    ],
)
def test_auto_takes_it_where_it_is_faster(
    library, monkeypatch, dtype, tf32, kernel, options, taken
):
    monkeypatch.setattr(choice, "allows_tf32", lambda: tf32)
    groups = options.get("groups", 1)
    x, w = numbers(1, 4, 7, 7, dtype=dtype), numbers(4, 4 // groups, *kernel, dtype=dtype)
    dy = numbers(*xconv.conv(x, w, **options).shape, dtype=dtype)
    xconv.conv_backward(dy, x, w, output_mask=(True, True, False), **options)
    assert tuple(graph.name for graph in Graph.made) == taken


# ---------------------------------------------------------------- where it does not apply

RULE = r"^conv: need {}, or another method; got {}$"


def test_what_cudnn_does_not_do(library):
    for x, w, error, rule, got in (
        (
            numbers(1, 1, 5, dtype="int32"),
            numbers(1, 1, 2, dtype="int32"),
            TypeError,
            "real floating arrays",
            "method 'cudnn', result int32",
        ),
        (
            numbers(1, 1, 5, dtype="complex64"),
            numbers(1, 1, 2),
            TypeError,
            "real floating arrays",
            "method 'cudnn', result complex64",
        ),
        (
            numbers(1, 1, 2, 2, 2, 2),
            numbers(1, 1, 1, 1, 1, 1),
            ValueError,
            "at most 3 spatial axes",
            "method 'cudnn', 4 spatial axes",
        ),
    ):
        with pytest.raises(error, match=RULE.format(rule, got)):
            conv(x, w)
    assert not Graph.made


def test_no_engine_or_no_room(library, monkeypatch):
    x, w = numbers(1, 2, 5), numbers(3, 2, 2)
    got = r"conv_fprop of Geometry.*, float32, max_workspace with 63 bytes left, cuDNN 92801: .*"
    rule = RULE.format(
        "a deterministic engine of cuDNN within max_workspace", got + "no engine fits"
    )
    with pytest.raises(ValueError, match=rule):
        conv(x, w, max_workspace=63)
    rule = RULE.format("max_workspace to hold the copies .*", r"23 bytes of it .*, needed 24 bytes")
    with pytest.raises(ValueError, match=rule):
        conv(x[:, :, 1:4], w, max_workspace=23)
    monkeypatch.setattr(sys.modules["xconv.cudnn"], "LARGEST", 12)
    rule = RULE.format("arrays of less than 12 elements for cuDNN", "12 elements")
    with pytest.raises(ValueError, match=rule):
        conv(x, w)


def test_a_cudnn_that_does_not_load(library, monkeypatch):
    def create_handle():
        raise RuntimeError("no libcudnn.so.9\nfound")

    monkeypatch.setattr(library, "create_handle", create_handle)
    x, w = numbers(1, 2, 5), numbers(3, 2, 2)
    rule = RULE.format("a cuDNN that works", "no libcudnn.so.9 found")
    for _ in range(2):  # as often as it is asked
        with pytest.raises(ValueError, match=rule):
            conv(x, w)
    np.testing.assert_array_equal(xconv.conv(x, w), oracle.conv(x, w))


def test_a_package_without_cudnn(library, monkeypatch):
    """Which some versions look for when they are imported."""

    def broken(name):
        raise OSError("libcudnn.so: cannot open shared object file")

    monkeypatch.setattr(choice.importlib, "import_module", broken)
    x, w = numbers(1, 2, 6), numbers(3, 2, 2)
    np.testing.assert_array_equal(xconv.conv(x, w), oracle.conv(x, w))
    assert not Graph.made


def test_without_the_package(library, monkeypatch):
    monkeypatch.setitem(sys.modules, "cudnn", None)
    rule = RULE.format(r"the package nvidia-cudnn-frontend .*", "method 'cudnn', .*cudnn.*")
    with pytest.raises(ValueError, match=rule):
        conv(numbers(1, 2, 5), numbers(3, 2, 2))
    x, w = numbers(1, 2, 6), numbers(3, 2, 2)
    np.testing.assert_array_equal(xconv.conv(x, w), oracle.conv(x, w))


@pytest.mark.backends("numpy", "torch", "jax", "dask", "array-api-strict")
def test_other_libraries_say_that_it_is_for_cupy(backend):
    x, w = (backend.array(numbers(*shape)) for shape in ((1, 2, 5), (3, 2, 2)))
    dy = backend.array(numbers(1, 3, 4))
    rule = r"need CuPy arrays, or another method; got method 'cudnn', \S+ arrays$"
    for call in (
        lambda: xconv.conv(x, w, method="cudnn"),
        lambda: xconv.conv_backward(dy, x, w, method="cudnn"),
        lambda: xconv.conv_grad_weight(dy, x, (2,), method="cudnn"),
        lambda: xconv.conv_transpose(dy, w, method="cudnn"),
    ):
        with pytest.raises(ValueError, match=rule):
            call()
    if backend.name != "dask":
        with pytest.raises(ValueError, match=r"^explain: " + rule):
            xconv.explain(x, w, method="cudnn")


# ---------------------------------------------------------------- on a GPU


@pytest.mark.backends("cupy")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_on_a_gpu_every_case(backend, case, dtype):
    run = Trial(backend, case, dtype, CUDNN)
    run.forward()
    run.gradients()
    if not case.transposed:
        run.contractions()
    run.double_backward([(True, True, True), (False, True, False)])
    run.untouched()


def layer(cupy, dtype="float32"):
    """x, w and dy of a layer for which cuDNN has many engines, and its options."""
    arrays = (RNG.standard_normal(n) for n in ((8, 64, 28, 28), (96, 64, 3, 3), (8, 96, 28, 28)))
    return [cupy.asarray(a.astype(dtype)) for a in arrays], {"padding": 1, "method": "cudnn"}


@pytest.mark.backends("cupy")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_on_a_gpu_results_repeat(backend, dtype):
    import cupy

    (x, w, dy), options = layer(cupy, dtype)
    first = xconv.conv_backward(dy, x, w, **options)
    for _ in range(5):
        for a, b in zip(first, xconv.conv_backward(dy, x, w, **options), strict=True):
            assert (a == b).all()


@pytest.mark.backends("cupy")
def test_on_a_gpu_float32_is_not_rounded_unless_cupy_may(backend):
    import cupy

    (x, w, dy), options = layer(cupy)
    exact = xconv.conv_backward(*(a.astype("float64") for a in (dy, x, w)), **options)

    def error():
        found = xconv.conv_backward(dy, x, w, **options)
        return [float(abs(a - b).max() / abs(b).max()) for a, b in zip(found, exact, strict=True)]

    dx, dw, _ = error()
    assert dx < 2e-6
    assert dw < 5e-5  # the sum of 6272 products, one by one
    linalg = cupy._core._routines_linalg
    before = cupy._core.get_compute_type("float32")
    cupy._core.set_compute_type("float32", linalg.COMPUTE_TYPE_TF32)
    try:
        assert min(error()[:2]) > 1e-5
        assert max(error()[:2]) < 1e-2
    finally:
        cupy._core.set_compute_type("float32", before)


@pytest.mark.backends("cupy")
def test_on_a_gpu_a_nan_reaches_only_what_reads_it(backend):
    import cupy

    (x, w, _), _ = layer(cupy)
    x[1, 2, 10, 10] = np.nan
    bad = cupy.asnumpy(cupy.isnan(xconv.conv(x, w, padding=1)))
    reads = np.zeros(bad.shape, bool)
    reads[1, :, 9:12, 9:12] = True
    np.testing.assert_array_equal(bad, reads)
