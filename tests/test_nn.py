"""The layers of `xconv.nn` and the checks of `xconv.testing`."""

import pickle
import re
import sys

import array_api_strict as strict
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import xconv
from xconv.nn import Conv, ConvTranspose
from xconv.testing import check_adjoint, check_gradients


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(*shape, dtype=np.float64, seed=0):
    return rng(seed).standard_normal(shape).astype(dtype)


LAYERS = [  # layer, its arguments, options, weight's shape, fan-in
    (Conv, (8, 16, (3, 3)), {}, (16, 8, 3, 3), 72),
    (Conv, (8, 16, (5,)), {"groups": 4}, (16, 2, 5), 10),
    (Conv, (6, 12, (3, 2, 2)), {"stride": 2, "padding": 1}, (12, 6, 3, 2, 2), 72),
    (Conv, (8, 16, (3, 3)), {"layout": "channels_last"}, (3, 3, 8, 16), 72),
    (ConvTranspose, (16, 8, (3, 3)), {}, (16, 8, 3, 3), 72),
    (ConvTranspose, (16, 8, (5,)), {"groups": 4}, (16, 2, 5), 10),
    (ConvTranspose, (16, 8, (3, 3)), {"layout": "channels_last"}, (3, 3, 8, 16), 72),
]


def given(layer, channels, options):
    """An input of the layer, of two samples of 7 cells along each axis."""
    rank = layer.weight.ndim - 2
    last = options.get("layout") == "channels_last"
    return draw(
        2, *((*[7] * rank, channels) if last else (channels, *[7] * rank)), dtype=np.float32
    )


@pytest.mark.parametrize(("kind", "args", "options", "shape", "fan_in"), LAYERS)
class TestLayers:
    def test_weights_are_kaiming_uniform(self, kind, args, options, shape, fan_in):
        """As PyTorch's default: weight and bias uniform in +-1 / sqrt(fan_in)."""
        bound = 1 / np.sqrt(fan_in)
        layers = [kind(*args, rng=rng(seed), **options) for seed in range(20)]
        for name, its_shape in [("weight", shape), ("bias", (args[1],))]:
            arrays = [getattr(layer, name) for layer in layers]
            assert all(a.shape == its_shape and a.dtype == np.float32 for a in arrays)
            values = np.stack(arrays).astype(np.float64).ravel()
            assert abs(values).max() <= bound * (1 + 1e-6)
            assert abs(values).max() > 0.9 * bound
            assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.15)
            assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)

    def test_forward_and_backward_are_the_functions(self, kind, args, options, shape, fan_in):
        layer = kind(*args, rng=rng(), **options)
        forward = xconv.conv if kind is Conv else xconv.conv_transpose
        backward = xconv.conv_backward if kind is Conv else xconv.conv_transpose_backward
        x = given(layer, args[0], options)
        y = layer(x)
        assert_array_equal(y, forward(x, layer.weight, layer.bias, **options), strict=True)
        dy = draw(*y.shape, dtype=np.float32, seed=1)
        grads = layer.backward(dy)
        assert type(grads) is xconv.ConvGrads
        right = backward(dy, x, layer.weight, **options)
        for name in ("dx", "dw", "db"):
            assert_array_equal(getattr(grads, name), getattr(right, name), strict=True)
        assert grads.dw.shape == layer.weight.shape
        assert grads.db.shape == layer.bias.shape

    def test_without_a_bias(self, kind, args, options, shape, fan_in):
        layer = kind(*args, bias=False, rng=rng(), **options)
        assert layer.bias is None
        x = given(layer, args[0], options)
        forward = xconv.conv if kind is Conv else xconv.conv_transpose
        y = layer(x)
        assert_array_equal(y, forward(x, layer.weight, **options), strict=True)
        grads = layer.backward(y)
        assert grads.dw.shape == shape


@pytest.mark.parametrize("kind", [Conv, ConvTranspose])
class TestEither:
    def test_rng_decides_the_weights(self, kind):
        one, same, other = (kind(4, 6, (3, 2), rng=rng(seed)) for seed in (1, 1, 2))
        assert_array_equal(one.weight, same.weight, strict=True)
        assert_array_equal(one.bias, same.bias, strict=True)
        assert not np.array_equal(one.weight, other.weight)
        assert not np.array_equal(kind(4, 6, (3, 2)).weight, kind(4, 6, (3, 2)).weight)
        shared = rng()
        assert not np.array_equal(
            kind(4, 6, (3, 2), rng=shared).weight, kind(4, 6, (3, 2), rng=shared).weight
        )

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_like_gives_the_dtype(self, kind, dtype):
        layer = kind(4, 6, (3, 2), rng=rng(), like=np.empty(0, dtype))
        assert (layer.weight.dtype, layer.bias.dtype) == (np.dtype(dtype),) * 2
        plain = kind(4, 6, (3, 2), rng=rng())
        assert_allclose(layer.weight, plain.weight, rtol=1e-3)

    @pytest.mark.parametrize(
        ("options", "rule"),
        [
            ({"rng": 3}, r"rng to be a numpy.random.Generator; got 3 \(int\)"),
            ({"like": np.empty(0, int)}, r"like of a floating or complex dtype; got int64"),
            ({"bias": 1}, r"bias to be a bool; got 1 \(int\)"),
            ({"dtype": "U3"}, r"dtype to be a real, .+; got 'U3' \(str\)"),
        ],
    )
    def test_wrong_types(self, kind, options, rule):
        with pytest.raises(TypeError, match=rf"^{kind.__name__}: need {rule}$"):
            kind(4, 6, (3, 2), **options)

    def test_backward_before_any_call(self, kind):
        message = rf"^{kind.__name__}.backward: need a call of the layer before; got none$"
        with pytest.raises(ValueError, match=message):
            kind(4, 6, (3, 2)).backward(np.zeros((2, 6, 5, 5)))

    def test_like_gives_the_namespace(self, kind):
        x = torch.asarray(draw(2, 4, 7, 6))
        layer = kind(4, 6, (3, 2), rng=rng(), like=x)
        assert type(layer.weight) is type(layer.bias) is torch.Tensor
        assert layer.weight.dtype == layer.bias.dtype == torch.float64
        y = layer(x)
        plain = kind(4, 6, (3, 2), rng=rng(), like=np.empty(0))
        assert_allclose(y.numpy(), plain(x.numpy()), rtol=1e-12, atol=1e-12)
        assert_allclose(
            layer.backward(y).dw.numpy(), plain.backward(y.numpy()).dw, rtol=1e-12, atol=1e-12
        )

    def test_like_gives_the_device(self, kind):
        device = strict.Device("device1")
        x = strict.asarray(draw(2, 4, 7, 6), device=device)
        layer = kind(4, 6, (3, 2), rng=rng(), like=x)
        y = layer(x)
        assert {layer.weight.device, layer.bias.device, y.device} == {device}
        assert {g.device for g in layer.backward(y)} == {device}

    def test_plain_attributes_can_be_set(self, kind):
        layer, x = kind(4, 6, (3, 2), rng=rng()), draw(2, 4, 7, 6, dtype=np.float32)
        before = layer(x)
        layer.weight = 2 * layer.weight
        layer.bias = 2 * layer.bias
        assert_allclose(layer(x), 2 * before, rtol=1e-5, atol=1e-5)

    def test_backward_is_of_the_latest_forward(self, kind):
        layer = kind(4, 6, (3, 2), rng=rng(), like=np.empty(0))
        first, second = draw(2, 4, 7, 6), draw(3, 4, 8, 9, seed=1)
        layer(first)
        dy = layer(second)
        backward = xconv.conv_backward if kind is Conv else xconv.conv_transpose_backward
        right = backward(dy, second, layer.weight)
        for result, expected in zip(layer.backward(dy), right, strict=True):
            assert_array_equal(result, expected, strict=True)

    def test_backward_is_of_the_weights_of_the_call(self, kind):
        layer = kind(3, 4, (3, 3))
        y = layer(draw(2, 3, 7, 7, dtype=np.float32))
        before = layer.backward(y)
        layer.weight = 0 * layer.weight
        assert_array_equal(layer.backward(y).dx, before.dx, strict=True)

    def test_a_step_keeps_the_dtypes(self, kind):
        """Where a loss is computed in float64, as NumPy does with labels that nobody cast."""
        layer = kind(3, 4, (3, 3))
        x = draw(2, 3, 7, 7, dtype=np.float32)
        for _ in range(2):
            grads = layer.backward(layer(x).astype(np.float64))
            assert [grad.dtype for grad in grads] == [np.float32] * 3
            layer.weight = layer.weight - 0.01 * grads.dw
            layer.bias = layer.bias - 0.01 * grads.db

    def test_copies_do_not_hold_what_was_given(self, kind):
        layer = kind(3, 4, (3, 3))
        y = layer(draw(2, 3, 7, 7, dtype=np.float32))
        other = pickle.loads(pickle.dumps(layer))
        assert_array_equal(other.weight, layer.weight, strict=True)
        with pytest.raises(ValueError, match="need a call of the layer before; got none"):
            other.backward(y)
        layer.backward(y)  # which it still can

    def test_one_sample(self, kind):
        layer, x = kind(4, 6, (3, 2), rng=rng(), like=np.empty(0)), draw(4, 7, 6)
        y = layer(x)
        assert_allclose(y, layer(x[None])[0], rtol=1e-12)
        layer(x)
        assert layer.backward(y).dx.shape == x.shape

    @pytest.mark.parametrize("size", [3, np.int64(3), 3.0, "3", None, True])
    def test_kernel_size_is_a_tuple(self, kind, size):
        with pytest.raises(TypeError) as info:
            kind(4, 6, size)
        (message,) = info.value.args
        assert re.fullmatch(rf"(\w+\.)*{kind.__name__}: need .+; got .+", message)
        assert type(size).__name__ in message.partition("; got ")[2]

    @pytest.mark.parametrize(
        ("args", "options", "words"),
        [
            ((4, 6, (3, 0)), {}, "0"),
            ((4, 6, ()), {}, "()"),
            ((4, 6, (3, 2)), {"groups": 4}, "4"),
            ((4, 6, (3, 2)), {"groups": 0}, "0"),
            ((2**62, 6, (3,)), {}, str(2**62)),
            ((4, 6, (2**62,) * 20), {}, str(2**62)),  # whose number is no float
            ((4, 6, (3, 2)), {"method": "best"}, "'best'"),
            ((4, 6, (3, 2)), {"max_workspace": 0}, "0"),
        ],
    )
    def test_values_that_make_no_layer(self, kind, args, options, words):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: need .+; got .*") as info:
            kind(*args, **options)
        assert words in str(info.value).partition("; got ")[2]


def test_output_padding_is_checked_at_once():
    with pytest.raises(ValueError, match=r"^ConvTranspose: need .+; got output_padding \(-1,\)"):
        ConvTranspose(4, 6, (3,), output_padding=-1)


def test_conv_transpose_options_are_passed():
    layer = ConvTranspose(4, 6, (3,), rng=rng(), stride=3, output_padding=2)
    x = draw(2, 4, 5, dtype=np.float32)
    y = layer(x)
    assert y.shape == (2, 6, 17)
    assert layer.backward(y).dx.shape == x.shape


# ---------------------------------------------------------------- xconv.testing

CHECKED = [
    {},
    {"stride": 2, "padding": ((1, 0), (0, 2))},
    {"dilation": (2, 1), "padding": "same"},
    {"groups": 2, "padding": 1},
    {"padding": (1, 2), "padding_mode": "reflect"},
    {"padding": "same_lower", "stride": 3},
]


def operands(groups=1, dtype=np.float64):
    x, w, b = draw(2, 4, 7, 6), draw(6, 4 // groups, 3, 2, seed=1), draw(6, seed=2)
    if np.dtype(dtype).kind == "c":
        x, w, b = x + 1j * x[::-1], w - 1j * w[::-1], b + 1j
    return x.astype(dtype), w.astype(dtype), b.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("options", CHECKED, ids=str)
class TestChecks:
    def test_gradients(self, options, dtype):
        x, w, b = operands(options.get("groups", 1), dtype)
        for args in ((x, w), (x, w, b)):
            error = check_gradients(*args, **options)
            assert type(error) is float
            assert 0 <= error < 0.01

    def test_adjoint(self, options, dtype):
        x, w, _ = operands(options.get("groups", 1), dtype)
        error = check_adjoint(x, w, **options)
        assert type(error) is float
        assert 0 <= error < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308, 1e308 + 1e308j])
@pytest.mark.parametrize("check", [check_gradients, check_adjoint])
def test_numbers_that_nothing_can_be_said_of(check, value):
    """They fail, and never pass or warn."""
    x, w, _ = operands(dtype=type(value))
    x[0, 0, 3, 3] = value
    with pytest.raises(AssertionError, match="is wrong: relative errors"):
        check(np.full_like(x, value), w)


def wrong(function, change):
    """The public function with its result changed."""
    return lambda *args, **options: change(function(*args, **options))


BREAK = {
    "dx": ("conv_backward", lambda g: g._replace(dx=g.dx * 1.01)),
    "one cell of dx": ("conv_backward", lambda g: g._replace(dx=g.dx + bump(g.dx))),
    "dw": ("conv_backward", lambda g: g._replace(dw=-g.dw)),
    "dw flipped": ("conv_backward", lambda g: g._replace(dw=g.dw[..., ::-1])),
    "one cell of dw": ("conv_backward", lambda g: g._replace(dw=g.dw + bump(g.dw))),
    "db": ("conv_backward", lambda g: g._replace(db=g.db + 0.1 * abs(g.db).max())),
}


def bump(a):
    """A tenth of the largest magnitude in one cell."""
    out = np.zeros_like(a)
    out.ravel()[a.size // 2] = 0.1 * abs(a).max()
    return out


def replace_everywhere(monkeypatch, name, change):
    """In every module of the package that holds the function by that name."""
    function = getattr(xconv, name)
    held = [
        module
        for key, module in list(sys.modules.items())
        if key.split(".")[0] == "xconv" and getattr(module, name, None) is function
    ]
    assert held
    for module in held:
        monkeypatch.setattr(module, name, wrong(function, change))


@pytest.mark.parametrize("name", BREAK)
def test_check_gradients_can_fail(monkeypatch, name):
    replace_everywhere(monkeypatch, *BREAK[name])
    with pytest.raises(AssertionError):
        check_gradients(*operands(), padding=1)


def test_check_adjoint_can_fail(monkeypatch):
    """Whichever of the two ways from y to x the check takes, one cell of it is wrong."""
    for name in ("conv_grad_input", "conv_transpose"):
        replace_everywhere(monkeypatch, name, lambda a: a + bump(a))
    replace_everywhere(monkeypatch, "conv_backward", lambda g: g._replace(dx=g.dx + bump(g.dx)))
    x, w, _ = operands()
    with pytest.raises(AssertionError):
        check_adjoint(x, w, padding=1)


def test_the_checks_report_bad_options_as_the_functions_do():
    x, w, _ = operands()
    for check in (check_gradients, check_adjoint):
        with pytest.raises(ValueError, match=r": need .+; got "):
            check(x, w, stride=0)
