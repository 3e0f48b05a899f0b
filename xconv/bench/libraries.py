"""How each library runs a layer, and how its time is taken.

A runner takes a layer, a contraction and the library's arrays x, w and g, and returns a function of
no arguments that computes the contraction, or None where the library has nothing for it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import xconv

from .suite import Layer

Array = Any
Task = Callable[[], Any]
Runner = Callable[[Layer, str, Array, Array, Array], "Task | None"]

LARGEST = 8 * 2**30  # bytes that a library may take for one row before the row is skipped for it


def with_xconv(method: str) -> Runner:
    """Return a runner of this package with a method."""

    def run(layer: Layer, contraction: str, x: Array, w: Array, g: Array) -> Task | None:
        options: dict[str, Any] = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "groups": layer.groups,
            "method": method,
        }
        tasks: dict[str, Task] = {
            "forward": lambda: xconv.conv(x, w, **options),
            "grad_input": lambda: xconv.conv_grad_input(g, w, layer.I, **options),
            "grad_weight": lambda: xconv.conv_grad_weight(g, x, layer.W, **options),
        }
        try:
            tasks[contraction]()
        except (ValueError, TypeError):  # a method that does not apply
            return None
        return tasks[contraction]

    return run


def with_torch(tf32: bool = False) -> Runner:
    """Return a runner of PyTorch, without its differentiation."""
    torch = importlib.import_module("torch")

    def run(layer: Layer, contraction: str, x: Array, w: Array, g: Array) -> Task:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        rank = len(layer.W)
        options = (
            [layer.stride] * rank,
            [layer.padding] * rank,
            [layer.dilation] * rank,
            False,
            [0] * rank,
            layer.groups,
        )
        if contraction == "forward":
            return lambda: torch.convolution(x, w, None, *options)
        mask = [contraction == "grad_input", contraction == "grad_weight", False]
        backward = torch.ops.aten.convolution_backward
        return lambda: backward(g, x, w, None, *options, mask)[mask.index(True)]

    return run


def with_jax() -> Runner:
    """Return a runner of JAX, compiled."""
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)

    def run(layer: Layer, contraction: str, x: Array, w: Array, g: Array) -> Task:
        rank = len(layer.W)
        conv = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(layer.stride,) * rank,
            padding=((layer.padding,) * 2,) * rank,
            rhs_dilation=(layer.dilation,) * rank,
            feature_group_count=layer.groups,
        )
        function = jax.jit(
            {
                "forward": lambda g, x, w: conv(x, w),
                "grad_input": lambda g, x, w: jax.vjp(lambda x: conv(x, w), x)[1](g)[0],
                "grad_weight": lambda g, x, w: jax.vjp(lambda w: conv(x, w), w)[1](g)[0],
            }[contraction]
        )
        return lambda: function(g, x, w).block_until_ready()

    return run


def with_scipy() -> Runner:
    """Return a runner of `scipy.signal`: one channel, one sample, stride 1."""
    signal = importlib.import_module("scipy.signal")

    def run(layer: Layer, contraction: str, x: Array, w: Array, g: Array) -> Task | None:
        if (layer.N, layer.C, layer.K, layer.stride, layer.dilation) != (1,) * 5:
            return None
        x, w, g = x[0, 0], w[0, 0], g[0, 0]
        p = layer.padding
        if contraction == "forward":
            return lambda: signal.correlate(np.pad(x, p), w, "valid")
        if contraction == "grad_weight":
            return lambda: signal.correlate(np.pad(x, p), g, "valid")
        inside = (slice(p, -p or None),) * x.ndim
        return lambda: signal.convolve(g, w, "full")[inside].copy()

    return run


def with_formulas() -> Runner:
    """Return a runner of what people write: windows and `tensordot`, for each contraction.

    The formulas of https://stackoverflow.com/questions/61045198 for any batch: the input gradient
    is a convolution of g, dilated and fully padded, with the mirrored weights.
    """

    def windows(x: Array, sizes: tuple[int, ...], stride: int, dilation: int) -> Array:
        axes = tuple(range(2, x.ndim))
        reach = tuple(dilation * (size - 1) + 1 for size in sizes)
        view = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
        steps = (slice(None, None, stride),) * len(sizes)
        taps = (slice(None, None, dilation),) * len(sizes)
        return view[(slice(None), slice(None), *steps, *taps)]

    def run(layer: Layer, contraction: str, x: Array, w: Array, g: Array) -> Task | None:
        if layer.groups > 1 or _formula_bytes(layer, contraction, x.itemsize) > LARGEST:
            return None
        rank, axes = len(layer.W), tuple(range(2, 2 + len(layer.W)))
        s, d, p = layer.stride, layer.dilation, layer.padding
        around = ((0, 0), (0, 0), *((p, p),) * rank)
        inner = tuple(range(2 + rank, 2 + 2 * rank))

        def forward() -> Array:
            view = windows(np.pad(x, around), layer.W, s, d)
            y = np.tensordot(view, w, axes=((1, *inner), (1, *axes)))
            return np.ascontiguousarray(np.moveaxis(y, -1, 1))

        def grad_weight() -> Array:
            view = windows(np.pad(x, around), layer.O, d, s)
            view = view[(slice(None), slice(None), *(slice(size) for size in layer.W))]
            return np.tensordot(g, view, axes=((0, *axes), (0, *inner)))

        def grad_input() -> Array:
            reach = [d * (size - 1) for size in layer.W]
            wide = [(size - 1) * s + 1 for size in layer.O]
            full = np.zeros(
                (
                    *g.shape[:2],
                    *(i + 2 * p + r for i, r in zip(layer.I, reach, strict=True)),
                ),
                g.dtype,
            )
            there = tuple(slice(r, r + n, s) for r, n in zip(reach, wide, strict=True))
            full[(slice(None), slice(None), *there)] = g
            view = windows(full, layer.W, 1, d)
            mirrored = np.flip(w, axes)
            dx = np.tensordot(view, mirrored, axes=((1, *inner), (0, *axes)))
            inside = (slice(None), slice(None), *(slice(p, p + size) for size in layer.I))
            return np.ascontiguousarray(np.moveaxis(dx, -1, 1)[inside])

        tasks = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}
        return tasks[contraction]

    return run


def _formula_bytes(layer: Layer, contraction: str, itemsize: int) -> int:
    """Return the bytes of the windows that a formula copies."""
    taps = math.prod(layer.W)
    if contraction == "grad_input":
        return 2 * itemsize * layer.N * layer.K * math.prod(layer.I) * taps
    return 2 * itemsize * layer.N * layer.C * math.prod(layer.O) * taps


def mover(name: str, backend: str) -> Callable[[Array], Array]:
    """Return what makes a library's array of NumPy's."""
    library = name.partition(":")[0]
    if library == "torch":
        torch = importlib.import_module("torch")
        device = "cuda" if backend == "cupy" else "cpu"

        def tensor(a: Array) -> Array:
            given = a.astype("float32") if a.dtype.name == "bfloat16" else a
            return torch.from_numpy(given).to(device, getattr(torch, a.dtype.name))

        return tensor
    module = {"xconv": backend, "jax": "jax.numpy"}.get(library, "numpy")
    move: Callable[[Array], Array] = importlib.import_module(module).asarray
    return move


def runner(name: str) -> Runner:
    """Return the runner of a library: ``xconv``, ``xconv:fft``, ``torch``, ``jax``, ..."""
    library, _, variant = name.partition(":")
    if library == "xconv":
        return with_xconv(variant or "auto")
    if library == "torch":
        return with_torch(variant == "tf32")
    return {"jax": with_jax, "scipy": with_scipy, "formulas": with_formulas}[library]()


VARIANTS = {"xconv": ("windows", "taps", "winograd", "fft", "cudnn", "auto"), "torch": ("tf32",)}
NEEDS = {"xconv": "numpy", "torch": "torch", "jax": "jax", "scipy": "scipy", "formulas": "numpy"}


def available(name: str) -> bool:
    """Whether a library is installed, and its variant, if one is named, known."""
    library, _, variant = name.partition(":")
    needed = "cudnn" if variant == "cudnn" else NEEDS.get(library)
    known = variant in ("", *VARIANTS.get(library, ()))
    return known and needed is not None and importlib.util.find_spec(needed) is not None


# Keeps the stream that it is launched in busy for a number of nanoseconds.
SPIN = r"""
extern "C" __global__ void spin(long long nanoseconds) {
    long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
}
"""
SHORTEST, LONGEST = 2e-4, 0.2  # seconds that the device is kept busy


def spin(seconds: float) -> None:
    """Keep CuPy's current stream busy for so long."""
    kernel = importlib.import_module("cupy").RawKernel(SPIN, "spin")
    kernel((1,), (1,), (np.int64(seconds * 1e9),))


def stopwatch(backend: str) -> Callable[[Task], float]:
    """Return what times one task in seconds.

    On a GPU these are between two events of the default stream, CuPy's and PyTorch's. The device
    is kept busy until all work has been launched, as in a program that keeps it busy itself: what
    a call takes of the host is another figure.
    """
    if backend == "cupy":
        cuda = importlib.import_module("cupy").cuda

        def on_device(task: Task) -> float:
            busy = SHORTEST
            while True:
                start, stop = cuda.Event(), cuda.Event()
                spin(busy)
                start.record()
                before = time.perf_counter()
                task()
                launched = time.perf_counter() - before
                stop.record()
                stop.synchronize()
                if launched < busy or busy >= LONGEST:
                    return float(cuda.get_elapsed_time(start, stop)) / 1e3
                busy = min(2 * launched, LONGEST)

        return on_device

    def on_host(task: Task) -> float:
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    return on_host
