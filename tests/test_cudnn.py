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
from xconv import choice

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
