"""What only a GPU can show: that no call waits for it, and on which device and stream it works."""

import numpy as np
import pytest

import xconv
from xconv.bench.libraries import spin

pytestmark = pytest.mark.backends("cupy")

METHODS = ("auto", "windows", "taps", "winograd", "fft", "cudnn")
LAYERS = {
    "3x3": ((4, 8, 20, 20), (16, 8, 3, 3), {"padding": 1}),
    "reflect": ((4, 8, 20, 20), (16, 8, 3, 3), {"padding": 1, "padding_mode": "reflect"}),
    "depthwise": ((4, 8, 20, 20), (8, 1, 3, 3), {"groups": 8, "padding": ((0, 1), (1, 0))}),
    "1d": ((4, 8, 300), (16, 8, 5), {"padding": "causal"}),
}
SECONDS = 0.5  # that the device is kept busy; a call takes a few milliseconds


def numbers(cupy, *shape):
    return cupy.asarray(np.random.default_rng(0).integers(-4, 5, shape).astype("float32"))


def calls(cupy, name, method):
    """The three contractions of a layer, each as a call without arguments."""
    x_shape, w_shape, options = LAYERS[name]
    options = {**options, "method": method}
    x, w = numbers(cupy, *x_shape), numbers(cupy, *w_shape)
    b = numbers(cupy, w_shape[0])
    dy = numbers(cupy, *xconv.conv(x, w, **options).shape)
    return (
        lambda: xconv.conv(x, w, b, **options),
        lambda: xconv.conv_grad_input(dy, w, x.shape[2:], **options),
        lambda: xconv.conv_grad_weight(dy, x, w.shape[2:], **options),
    )


@pytest.fixture
def stream(backend):
    """A stream of its own, current."""
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield stream
        stream.synchronize()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for name in LAYERS
        for method in METHODS
        # whose kernels are more than the 1024 that a stream holds before it makes its host wait
        if name != "reflect" or method not in ("taps", "winograd", "fft")
    ],
)
def test_no_call_waits_for_the_device(stream, name, method):
    """All return while the device has not yet begun: nothing is looked at, or copied back."""
    import cupy

    run = calls(cupy, name, method)
    for _ in range(2):  # kernels are compiled, plans made, memory taken
        for call in run:
            call()
    stream.synchronize()
    spin(SECONDS)
    kept = [call() for call in run]
    assert not stream.done, "a call has waited for the device"
    stream.synchronize()
    for array, call in zip(kept, run, strict=True):
        cupy.testing.assert_array_equal(array, call())


@pytest.mark.parametrize("method", METHODS)
def test_calls_work_in_the_current_stream(stream, method):
    """What they read is written in it only after a while."""
    import cupy

    x_shape, w_shape, options = LAYERS["3x3"]
    options = {**options, "method": method}
    x, w = numbers(cupy, *x_shape), numbers(cupy, *w_shape)
    want = xconv.conv(2 * x, w, **options)
    stream.synchronize()
    spin(SECONDS)
    x *= 2
    y = xconv.conv(x, w, **options)
    y *= 3
    cupy.testing.assert_allclose(y, 3 * want, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_calls_work_on_the_device_of_their_arrays(backend, method):
    import cupy

    for number in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(number):
            run = calls(cupy, "3x3", method)
        assert [call().device.id for call in run] == [number] * 3
        assert cupy.cuda.Device().id == 0


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "reflect"])
def test_calls_of_cudnn_can_be_captured(stream, name):
    """As a CUDA graph, which is refused where anything waits. CuPy captures no cuBLAS."""
    import cupy

    for call in calls(cupy, name, "cudnn"):
        want = call()
        call()  # whose memory is free again
        stream.begin_capture()
        y = call()
        graph = stream.end_capture()
        y[...] = 0
        graph.launch(stream)
        cupy.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_memory_stays_within_the_workspace(backend, name, method):
    """CuPy's own, that is; the pool rounds every array up to 512 bytes."""
    import cupy

    class Peak(cupy.cuda.memory_hook.MemoryHook):
        name = "peak"
        used = most = 0

        def malloc_postprocess(self, **more):
            self.used += more["mem_size"]
            self.most = max(self.most, self.used)

        def free_postprocess(self, **more):
            self.used -= more["mem_size"]

    workspace = 2**22
    x_shape, w_shape, options = LAYERS[name]
    options = {**options, "method": method, "max_workspace": workspace}
    x, w = numbers(cupy, 32, *x_shape[1:]), numbers(cupy, *w_shape)
    dy = numbers(cupy, *xconv.conv(x, w, **options).shape)
    for call in (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_grad_input(dy, w, x.shape[2:], **options),
        lambda: xconv.conv_grad_weight(dy, x, w.shape[2:], **options),
    ):
        with Peak() as hook:
            result = call()
        assert hook.most <= workspace + result.nbytes + 2**16
