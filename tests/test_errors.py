"""Every documented error, by its type and its message.

A message is one string, `<function called>: need <rule>; got <every number or type involved>`. The
rule's wording is the library's own; the tables below list numbers and types: the first, which is
the offending one, must stand after "got", the others anywhere after "need". No error changes an
input.
"""

import re
import warnings

import array_api_strict as strict
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch

import xconv

X, W, DY, B = (2, 4, 7, 6), (6, 4, 3, 2), (2, 6, 5, 5), (6,)  # of a convolution
TW, TY, TB = (4, 6, 3, 2), (2, 6, 9, 7), (6,)  # of the transposed one of the same X


def make(*shape, dtype=np.float64):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


CALLS = {  # name: a good call's arguments
    "conv": (X, W, B),
    "conv2d": (X, W, B),
    "conv_transpose": (X, TW, TB),
    "conv_transpose2d": (X, TW, TB),
    "conv_backward": (DY, X, W),
    "conv_transpose_backward": (TY, X, TW),
    "conv_grad_input": (DY, W, "sizes", (7, 6)),
    "conv_grad_weight": (DY, X, "sizes", (3, 2)),
    "conv_double_backward": (X, W, B, DY, X, W),
    "conv_transpose_double_backward": (X, TW, TB, TY, X, TW),
    "unfold": (X, "sizes", (3, 2)),
    "fold": ((2, 24, 25), "sizes", (7, 6), (3, 2)),
    "conv_output_size": ("sizes", (7, 6), (3, 2)),
    "conv_transpose_output_size": ("sizes", (7, 6), (3, 2)),
}


def build(shapes):
    """Arrays of the shapes, up to the word "sizes", and the tuples after it as they are."""
    at = shapes.index("sizes") if "sizes" in shapes else len(shapes)
    return [make(*shape) for shape in shapes[:at]] + list(shapes[at + 1 :])


def good(name):
    return build(CALLS[name])


def involved(word, text):
    """Whether a number, as a whole number, or a word or one of several words is in the text."""
    if isinstance(word, tuple):
        return any(involved(w, text) for w in word)
    if isinstance(word, int):
        return re.search(rf"(?<![\d.])(?<!\d-){word}(?![\d]|\.\d)", text) is not None
    return word in text


def check(error, words, function, *args, **options):
    """The call raises the error with a message of the documented form, and leaves its inputs."""
    arrays = [a for a in args if type(a) is np.ndarray and a.dtype != object]
    before = [a.tobytes() for a in arrays]
    with pytest.raises(error) as info:
        function(*args, **options)
    assert [a.tobytes() for a in arrays] == before
    assert info.type in (error if isinstance(error, tuple) else (error,))
    (message,) = info.value.args
    assert type(message) is str
    assert "\n" not in message
    form = re.fullmatch(r"(?:\w+\.)*(\w+): need (.+); got (.+)", message)
    assert form, message
    assert form[1] == function.__name__, message
    assert message.count(": need ") == message.count("; got ") == 1, message
    assert involved(words[0], form[3]), f"{words[0]} not after got: {message}"
    missing = [word for word in words[1:] if not involved(word, form[2] + "; " + form[3])]
    assert not missing, f"{missing} not in: {message}"


@pytest.mark.parametrize("name", CALLS)
def test_the_good_calls_are_good(name):
    getattr(xconv, name)(*good(name))


# ---------------------------------------------------------------- options, in every function

FUNCTIONS = list(CALLS)
SIZES = ["conv_output_size", "conv_transpose_output_size"]
FULL = [name for name in FUNCTIONS if name not in ("unfold", "fold", *SIZES)]
PADDED = [name for name in FUNCTIONS if name not in SIZES]
FORWARD_SIZED = [name for name in FUNCTIONS if "transpose" not in name]
TRANSPOSED = [name for name in FULL if "transpose" in name]
EVIL = type("Evil", (), {"__index__": lambda self: 1 // 0})()
EVIL_DTYPE = type("EvilDtype", (), {"dtype": property(lambda self: 1 // 0)})()
EVIL_KEY = type("EvilKey", (), {"__hash__": lambda self: 1 // 0, "__eq__": lambda *_: 1 // 0})()

OPTIONS = [  # functions, option, value, error, the words of the message
    (FUNCTIONS, "stride", 0, ValueError, [0]),
    (FUNCTIONS, "stride", -3, ValueError, [-3]),
    (FUNCTIONS, "stride", (2, 0), ValueError, [0]),
    (FUNCTIONS, "stride", (1, 1, 1), ValueError, [("(1, 1, 1)", 3)]),
    (FUNCTIONS, "stride", (), ValueError, [("()", 0)]),
    (FUNCTIONS, "dilation", 0, ValueError, [0]),
    (FUNCTIONS, "dilation", -3, ValueError, [-3]),
    (FUNCTIONS, "dilation", (2, 0), ValueError, [0]),
    (FUNCTIONS, "dilation", (1,), ValueError, [("(1,)", 1)]),
    (FUNCTIONS, "padding", (1, 1, 1), ValueError, [("(1, 1, 1)", 3)]),
    (FUNCTIONS, "padding", ((1, 1),), ValueError, [("((1, 1),)", 1)]),
    (FUNCTIONS, "padding", ((1, 1, 1), (1, 1, 1)), ValueError, [("(1, 1, 1)", 3)]),
    (FUNCTIONS, "padding", (1, (1, 1)), ValueError, ["(1, (1, 1))"]),
    (FUNCTIONS, "padding", "sane", ValueError, ["sane"]),
    (FORWARD_SIZED, "dilation", 5, ValueError, [7, 3, 5]),
    (FORWARD_SIZED, "padding", -3, ValueError, [7, 3, -3]),
    (FORWARD_SIZED, "padding", ((-6, 1), (0, 0)), ValueError, [7, 3, -6, 1]),
    (FULL, "groups", 0, ValueError, [0]),
    (FULL, "groups", -1, ValueError, [-1]),
    (FULL, "groups", 5, ValueError, [5]),
    (FULL, "layout", "channels_middle", ValueError, ["channels_middle"]),
    (FULL, "layout", ("NHWC", "HWIO"), (ValueError, TypeError), [("NHWC", 2)]),
    (FULL, "layout", ("NWC", "WIO", "NWC"), ValueError, ["NWC"]),
    (FULL, "layout", ("NHHC", "HWIO", "NHWC"), ValueError, ["NHHC"]),
    (FULL, "layout", ("NHWC", "HWIX", "NHWC"), ValueError, ["HWIX"]),
    (FULL, "layout", ("NHWC", "HWIO", "NHDC"), ValueError, ["NHDC"]),
    (FULL, "layout", 3, (TypeError, ValueError), [("int", 3)]),
    (FULL, "method", "magic", ValueError, ["magic"]),
    (FULL, "method", 3, (TypeError, ValueError), [("int", 3)]),
    (FULL, "method", "cudnn", ValueError, ["cudnn"]),
    (FULL, "max_workspace", 1, ValueError, [1]),
    (FULL, "max_workspace", 0, ValueError, [0]),
    (FULL, "max_workspace", -5, ValueError, [-5]),
    (FULL, "dtype", bool, TypeError, ["bool"]),
    (FULL, "dtype", np.dtype(object), TypeError, [("object", "dtype('O')")]),
    (FULL, "dtype", np.dtype("U3"), TypeError, [("U3", "str")]),
    (FULL, "dtype", ([], {}), TypeError, ["tuple"]),  # that has no hash
    (FULL, "dtype", [np.float64], TypeError, ["list"]),
    (FULL, "dtype", EVIL_KEY, TypeError, ["EvilKey"]),
    (FULL, "dtype", np.float32, TypeError, ["float32", "float64"]),
    (FULL, "dtype", np.int64, TypeError, ["int64", "float64"]),
    (FULL, "dtype", np.complex64, TypeError, ["complex64", "float64"]),
    (PADDED, "padding_mode", "mirror", ValueError, ["mirror"]),
    (PADDED, "padding_mode", 3, (TypeError, ValueError), [("int", 3)]),
    (TRANSPOSED, "output_padding", 1, ValueError, [1]),  # not below a stride of 1
    (TRANSPOSED, "output_padding", -1, ValueError, [-1]),
    (TRANSPOSED, "output_padding", (0, 0, 0), ValueError, [("(0, 0, 0)", 3)]),
    (TRANSPOSED, "output_size", (100, 7), ValueError, [100]),
    (TRANSPOSED, "output_size", (9,), ValueError, [("(9,)", 1)]),
    (TRANSPOSED, "output_size", 9, TypeError, ["int"]),
    (TRANSPOSED, "output_size", (9.0, 7), TypeError, ["float"]),
]
HOSTILE = [  # an integer option's value, and the type that the message names
    (True, "bool"),
    (np.True_, "bool"),
    (torch.tensor(True), "tensor(True)"),  # has an index, as no other bool
    (1.5, "float"),
    ("1", "str"),
    (b"1", "bytes"),
    (np.float64(1), "float"),
    (np.array(1.0), ("ndarray", "float")),
    (np.ones((3, 3), int), "ndarray"),  # of several lines
    ({1}, "set"),
    (EVIL, "Evil"),
    (EVIL_DTYPE, "EvilDtype"),
]
INTEGERS = [
    *((name, option) for name in FUNCTIONS for option in ("stride", "padding", "dilation")),
    *((name, "groups") for name in FULL),
    *((name, "max_workspace") for name in FULL),
    *((name, "output_padding") for name in [*TRANSPOSED, "conv_transpose_output_size"]),
]


@pytest.mark.parametrize(
    ("name", "option", "value", "error", "words"),
    [(name, *rest) for names, *rest in OPTIONS for name in names],
)
def test_option(name, option, value, error, words):
    check(error, words, getattr(xconv, name), *good(name), **{option: value})


def test_rule_for_a_name():
    with pytest.raises(ValueError, match=r"^conv: need padding_mode to be one of .*; got 'mirror'"):
        xconv.conv(*good("conv"), padding_mode="mirror")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular", "symmetric"])
def test_rule_for_an_empty_axis_without_padding(mode):
    with pytest.raises(ValueError, match=r"^conv: need every output size, .* above 0; got "):
        xconv.conv(make(2, 4, 0, 6), make(6, 4, 1, 2), padding_mode=mode)


@pytest.mark.parametrize(
    ("size", "kernel", "options", "rule"),
    [
        ((0, 6), (3, 2), {}, "every input and kernel size to be at least 1"),
        ((7, 6), (3, 0), {}, "every input and kernel size to be at least 1"),
        ((7, 6), (3, 2), {"stride": 2, "output_padding": (2, 0)}, "0 <= output_padding < stride"),
        ((7, 6), (3, 2), {"padding": (5, 0)}, "every result size of the .* to be at least 0"),
        ((7, 6), (3, 2), {"padding": (0, 4)}, "every result size of the .* to be at least 0"),
    ],
)
def test_rule_for_the_sizes_of_a_transposed_convolution(size, kernel, options, rule):
    with pytest.raises(ValueError, match=rf"^conv_transpose_output_size: need {rule}; got "):
        xconv.conv_transpose_output_size(size, kernel, **options)


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("groups", 1.5, "groups to be an int"),
        ("stride", 1.5, "stride to be an int or a tuple of ints"),
        ("stride", (1, 1.5), "every entry of stride to be an int"),
        ("dilation", (1, 1.5), "every entry of dilation to be an int"),
        ("padding", 1.5, r"padding to be an int, a tuple of ints or pairs, or one of \(.*\)"),
        ("padding", (1, 1.5), "every entry of padding to be an int"),
        ("padding", ((1, 1.5), (1, 1)), "every entry of padding to be an int"),
    ],
)
def test_rule_for_an_int(option, value, rule):
    with pytest.raises(TypeError, match=rf"^conv: need {rule}; got 1.5"):
        xconv.conv(*good("conv"), **{option: value})


@pytest.mark.parametrize(("name", "option"), INTEGERS)
@pytest.mark.parametrize(("value", "kind"), HOSTILE, ids=lambda v: str(v)[:12])
def test_integer_option_of_another_type(name, option, value, kind):
    if option == "padding" and isinstance(value, str):
        kind, error = "1", ValueError  # a string is a name there
    else:
        error = TypeError
    check(error, [kind], getattr(xconv, name), *good(name), **{option: value})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**5000], ids=["up", "down", "far"])
@pytest.mark.parametrize(("name", "option"), INTEGERS)
def test_integer_option_of_more_than_64_bits(name, option, value):
    word = value if abs(value) < 2**70 else "int"  # Python prints no int of 5000 digits
    check(ValueError, [word], getattr(xconv, name), *good(name), **{option: value})


@pytest.mark.parametrize("name", ["conv", "conv_backward", "conv_transpose", "unfold"])
def test_numpy_integers_are_taken(name):
    one, function = np.int64(1), getattr(xconv, name)
    if name == "conv_backward":
        args = make(*xconv.conv(make(*X), make(*W), padding=1).shape), make(*X), make(*W)
    else:
        args = good(name)
    new = function(*args, stride=one, padding=(one, one), dilation=(one, np.uint8(1)))
    old = function(*args, stride=1, padding=1, dilation=1)
    if name != "conv_backward":
        new, old = [new], [old]
    for a, b in zip(new, old, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


class Name(str):
    """A string whose own methods fail."""

    __slots__ = ()
    __eq__ = __hash__ = __str__ = __repr__ = lambda *_: 1 // 0


STRINGS = [
    ("padding", "same"),
    ("padding_mode", "reflect"),
    ("layout", "channels_first"),
    ("layout", ("NCHW", "OIHW", "NCHW")),
    ("method", "taps"),
]


@pytest.mark.parametrize(("option", "value"), STRINGS)
@pytest.mark.parametrize("kind", [np.str_, Name])
def test_strings_of_other_types_are_taken(kind, option, value):
    x, w = make(*X), make(*W)
    same = kind(value) if isinstance(value, str) else tuple(map(kind, value))
    new, old = xconv.conv(x, w, **{option: same}), xconv.conv(x, w, **{option: value})
    np.testing.assert_array_equal(new, old, strict=True)
    other = kind("other") if isinstance(value, str) else (kind("other"), *value[1:])
    with pytest.raises(ValueError, match=r"conv: need .+; got .+"):
        xconv.conv(x, w, **{option: other})


# ---------------------------------------------------------------- shapes

SHAPES = [  # function, shapes and sizes, options, the words of the message
    ("conv", ((7,), (6, 4, 3)), {}, [("(7,)", 1)]),
    ("conv", ((2, 4, 7, 6, 5), W), {}, [("(2, 4, 7, 6, 5)", 5)]),
    ("conv", (X, (6, 4)), {}, [("(6, 4)", 2, 0)]),
    ("conv", (X, ()), {}, [("()", 0)]),
    ("conv", ((2, 5, 7, 6), W), {}, [5, 4]),
    ("conv", (X, (6, 4, 3, 2)), {"groups": 2}, [4, 2]),
    ("conv", (X, (6, 1, 3, 2)), {"groups": 4}, [6, 4]),
    ("conv", (X, (6, 4, 0, 2)), {}, [0]),
    ("conv", (X, (6, 4, 8, 2)), {}, [7, 8]),
    ("conv", ((2, 4, 0, 6), W), {}, [0, 3]),
    ("conv", ((2, 4, 0, 6), W), {"padding": 2, "padding_mode": "replicate"}, [0]),
    ("conv", (X, W), {"padding": (7, 0), "padding_mode": "reflect"}, [7]),
    ("conv", ((2, 4, 1, 6), W), {"padding": (1, 0), "padding_mode": "reflect"}, [1]),
    ("conv", (X, W), {"padding": (1, 7), "padding_mode": "symmetric"}, [7, 6]),
    ("conv", (X, W), {"padding": ((0, 0), (0, 8)), "padding_mode": "circular"}, [8, 6]),
    ("unfold", (X, "sizes", (3, 2)), {"padding": (0, 6), "padding_mode": "reflect"}, [6]),
    (
        "conv_backward",
        ((2, 6, 19, 4), X, W),
        {"padding": (8, 0), "padding_mode": "circular"},
        [8, 7],
    ),
    ("conv", (X, W, ()), {}, [("()", 0), 6]),
    ("conv", (X, W, (1,)), {}, [1, 6]),
    ("conv", (X, W, (6, 1)), {}, ["(6, 1)"]),
    ("conv", (X, W, (5,)), {}, [5, 6]),
    ("conv_transpose", (X, TW, (4,)), {}, [4, 6]),
    ("conv_transpose", (X, TW, (12,)), {"groups": 4}, [12, 24]),
    ("conv_transpose", ((2, 5, 7, 6), TW), {}, [5, 4]),
    ("conv_transpose", (X, (4, 6, 0, 2)), {}, [0]),
    ("conv_transpose", (X, TW), {"stride": 2, "output_padding": 2}, [2]),
    ("conv_transpose", (X, TW), {"stride": 2, "output_padding": (1, -1)}, [-1]),
    ("conv_transpose", (X, TW), {"stride": 2, "output_size": (14, 12)}, [14]),
    ("conv_transpose", (X, TW), {"stride": 2, "output_size": (17, 12)}, [17]),
    (
        "conv_transpose",
        (X, TW),
        {"stride": 3, "output_size": (22, 17), "output_padding": (2, 0)},
        [22, 2],
    ),
    (
        "conv_transpose",
        (X, TW),
        {"stride": 2, "padding": "same", "output_padding": 1},
        [1],
    ),
    (
        "conv_transpose",
        (X, TW),
        {"stride": 2, "padding": "same_lower", "output_padding": (0, 1)},
        [1],
    ),
    ("conv_transpose", (X, TW), {"padding": 9}, [7, 3, 9]),
    ("conv1d", (X, W), {}, [("(6, 4, 3, 2)", 2, 4)]),
    ("conv2d", ((2, 4, 7), (6, 4, 3)), {}, [("(6, 4, 3)", 1, 3)]),
    ("conv2d", ((2, 4, 7, 6, 5), (6, 4, 3, 2, 1)), {}, [("(6, 4, 3, 2, 1)", 3, 5)]),
    ("conv3d", (X, W), {}, [("(6, 4, 3, 2)", 2, 4)]),
    ("conv_transpose1d", (X, TW), {}, [("(4, 6, 3, 2)", 2, 4)]),
    ("conv_transpose2d", ((2, 4, 7), (4, 6, 3)), {}, [("(4, 6, 3)", 1, 3)]),
    ("conv_transpose3d", (X, TW), {}, [("(4, 6, 3, 2)", 2, 4)]),
    ("conv_backward", ((2, 6, 5, 4), X, W), {}, [("(2, 6, 5, 4)", 4), 5]),
    ("conv_backward", ((2, 1, 5, 5), X, W), {}, [1, 6]),
    ("conv_backward", ((1, 6, 5, 5), X, W), {}, [1, 2]),
    ("conv_backward", ((6, 5, 5), X, W), {}, ["(6, 5, 5)"]),
    ("conv_backward", (DY, X, W), {"output_mask": (True, True)}, [("(True, True)", 2)]),
    ("conv_transpose_backward", ((2, 6, 9, 8), X, TW), {}, [("(2, 6, 9, 8)", 8), 7]),
    ("conv_transpose_backward", (DY, X, TW), {}, [5, 9]),
    ("conv_grad_input", (DY, W, "sizes", (100, 6)), {}, [100]),
    ("conv_grad_input", (DY, W, "sizes", (7,)), {}, [("(7,)", 1)]),
    ("conv_grad_input", (DY, W, "sizes", (-1, 6)), {}, [-1]),
    ("conv_grad_input", ((2, 5, 5, 5), W, "sizes", (7, 6)), {}, [5, 6]),
    ("conv_grad_weight", (DY, X, "sizes", (3, 3)), {}, [5]),
    ("conv_grad_weight", (DY, X, "sizes", (3, 2, 1)), {}, [("(3, 2, 1)", 3)]),
    ("conv_grad_weight", ((3, 6, 5, 5), X, "sizes", (3, 2)), {}, [3, 2]),
    ("conv_grad_weight", (DY, (3, 4, 7, 6), "sizes", (3, 2)), {}, [3, 2]),
    ("conv_grad_weight", (DY, X, "sizes", (0, 2)), {}, [0]),
    ("conv_double_backward", ((2, 4, 7, 5), W, B, DY, X, W), {}, [("(2, 4, 7, 5)", 5)]),
    ("conv_double_backward", (X, (6, 4, 2, 2), B, DY, X, W), {}, ["(6, 4, 2, 2)"]),
    ("conv_double_backward", (X, W, (5,), DY, X, W), {}, [5, 6]),
    ("conv_double_backward", (X, W, B, (2, 6, 5, 1), X, W), {}, [1, 5]),
    ("conv_transpose_double_backward", (X, TW, B, DY, X, TW), {}, [5, 9]),
    ("unfold", ((7,), "sizes", (3,)), {}, [("(7,)", 1)]),
    ("unfold", (X, "sizes", (3,)), {}, ["(2, 4, 7, 6)"]),
    ("unfold", (X, "sizes", (8, 2)), {}, [7, 8]),
    ("fold", ((2, 24, 24), "sizes", (7, 6), (3, 2)), {}, [24, (25, "(5, 5)")]),
    ("fold", ((2, 25, 25), "sizes", (7, 6), (3, 2)), {}, [25, (6, "(3, 2)")]),
    ("fold", ((2, 24, 25, 1), "sizes", (7, 6), (3, 2)), {}, ["(2, 24, 25, 1)"]),
    ("fold", ((2, 24, 25), "sizes", (7, 6), (3,)), {}, [("(3,)", "(7, 6)")]),
    ("conv_output_size", ("sizes", (7, 6), (3,)), {}, [("(3,)", "(7, 6)")]),
    ("conv_output_size", ("sizes", (7, 6), (3, 0)), {}, [0]),
    ("conv_output_size", ("sizes", (7, -6), (3, 2)), {}, [-6]),
    ("conv_output_size", ("sizes", (7, -1), (3, 2)), {"padding": 9}, [-1]),
    ("conv_output_size", ("sizes", (7, 6), (8, 2)), {}, [7, 8]),
    ("conv_output_size", ("sizes", (), ()), {}, ["()"]),
    ("conv_transpose_output_size", ("sizes", (7, 6), (3,)), {}, [("(3,)", "(7, 6)")]),
    ("conv_transpose_output_size", ("sizes", (7, 6), (3, 2)), {"output_padding": 1}, [1]),
    ("conv_transpose_output_size", ("sizes", (7, 6), (3, 2)), {"padding": 9}, [7, 3, 9]),
]


@pytest.mark.parametrize(("name", "shapes", "options", "words"), SHAPES)
def test_shapes(name, shapes, options, words):
    check(ValueError, words, getattr(xconv, name), *build(shapes), **options)


def test_flags_are_bools():
    rule = r"^conv_grad_weight: need per_sample to be a bool; got 1 \(int\)$"
    with pytest.raises(TypeError, match=rule):
        xconv.conv_grad_weight(*good("conv_grad_weight"), per_sample=1)


def test_dtypes_without_a_common_one():
    """The standard has none for integers beside floats."""
    x, w = (strict.asarray(make(*s, dtype=d)) for s, d in ((X, "int32"), (W, "float32")))
    rule = r"^conv: need dtypes that promote to a common one; got int32, float32$"
    with pytest.raises(TypeError, match=rule):
        xconv.conv(x, w)


def test_up_to_30_spatial_axes():
    def calls(rank):
        x, w, ones = np.full((1,) * (rank + 2), 2.0), np.full((1,) * (rank + 2), 3.0), (1,) * rank
        return [
            *((xconv.conv, (x, w), {"method": m}) for m in ("auto", "windows", "taps", "fft")),
            (xconv.conv_transpose, (x, w), {}),
            *(
                call
                for mode in ("zeros", "replicate")
                for more in [{"padding": 1, "padding_mode": mode, "stride": 3}]
                for call in [
                    (xconv.conv, (x, w), more),
                    (xconv.conv_grad_input, (x, w, ones), more),
                ]
            ),
            (xconv.conv_grad_weight, (x, x, ones), {}),
            (xconv.unfold, (x, ones), {}),
            (xconv.fold, (np.ones((1, 1)), ones, ones), {"stride": 2}),
        ]

    for function, args, options in calls(30):
        assert function(*args, **options).size == 1
    for function, args, options in calls(31):
        check(ValueError, [31, 30], function, *args, **options)
    check(ValueError, [31, 30], xconv.conv_output_size, (1,) * 31, (1,) * 31)
    check(ValueError, [31, 30], xconv.nn.Conv, 1, 1, (1,) * 31)


@pytest.mark.parametrize("bad", [3, np.int64(3), 3.0, "33", None, True], ids=str)
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("conv_grad_input", 2),
        ("conv_grad_weight", 2),
        ("unfold", 1),
        ("fold", 1),
        ("fold", 2),
        ("conv_output_size", 0),
        ("conv_output_size", 1),
        ("conv_transpose_output_size", 0),
        ("conv_transpose_output_size", 1),
    ],
)
def test_sizes_are_tuples_of_ints(name, place, bad):
    args, kind = good(name), type(bad).__name__
    args[place] = bad
    check(TypeError, [kind], getattr(xconv, name), *args)
    if type(bad) is not int and not isinstance(bad, np.int64):
        args[place] = (3, bad)
        check(TypeError, [kind], getattr(xconv, name), *args)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tuples_within_tuples(name):
    deep = 1
    for _ in range(5000):
        deep = (deep,)
    check(TypeError, ["tuple"], getattr(xconv, name), *good(name), stride=(1, deep))


def test_output_size_and_output_padding_may_agree():
    x, w = make(*X), make(*TW)
    both = xconv.conv_transpose(x, w, stride=3, output_size=(22, 17), output_padding=(1, 0))
    assert both.shape == (2, 6, 22, 17)


@pytest.mark.parametrize("method", ["winograd", "fft"])
def test_a_method_that_does_not_apply(method):
    x, w = make(*X, dtype=np.int32), make(*W, dtype=np.int32)
    check(TypeError, [method, "floating", "int32"], xconv.conv, x, w, method=method)


# ---------------------------------------------------------------- types


def matrix(a):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.matrix(a.reshape(len(a), -1))


NOT_ARRAYS = {
    "list": (lambda a: a.tolist(), "list"),
    "tuple": (lambda a: tuple(a.tolist()), "tuple"),
    "float": (lambda a: 1.5, "float"),
    "int": (lambda a: 1, "int"),
    "NumPy scalar": (lambda a: np.float64(1), "float64"),
    "None": (lambda a: None, "NoneType"),
    "bytes": (lambda a: a.tobytes(), "bytes"),
    "string": (lambda a: "array", "str"),
    "masked array": (np.ma.masked_array, "MaskedArray"),
    "matrix": (matrix, "matrix"),
    "sparse matrix": (lambda a: scipy.sparse.csr_matrix(a.reshape(len(a), -1)), "csr_matrix"),
    "sparse array": (lambda a: scipy.sparse.coo_array(a), "coo_array"),
    "record array": (lambda a: a.view(np.recarray), "recarray"),
    "a subclass": (lambda a: a.view(type("Mine", (np.ndarray,), {})), "Mine"),
}
NOT_NUMBERS = {
    "bool": (lambda a: a > 1, "bool"),
    "object": (lambda a: a.astype(object), "object"),
    "str": (lambda a: a.astype("U5"), ("U5", "str")),
    "bytes": (lambda a: a.astype("S5"), ("S5", "bytes")),
    "datetime": (lambda a: a.astype("datetime64[s]"), "datetime64"),
    "structured": (lambda a: a.astype([("re", "f8")]), ("re", "void")),
    "bfloat16": (lambda a: a.astype(ml_dtypes.bfloat16), "bfloat16"),
    "long double": (lambda a: a.astype(np.longdouble), str(np.dtype(np.longdouble))),
}
ARRAYS = [  # every place of an array in every public function
    (name, place)
    for name, shapes in CALLS.items()
    for place in range(shapes.index("sizes") if "sizes" in shapes else len(shapes))
]
OPTIONAL = [("conv", 2), ("conv2d", 2), ("conv_transpose", 2), ("conv_transpose2d", 2)]
OPTIONAL += [(name, place) for name, place in ARRAYS if "double" in name and place < 3]


@pytest.mark.parametrize(("name", "place"), ARRAYS)
@pytest.mark.parametrize("kind", [*NOT_ARRAYS, *NOT_NUMBERS])
def test_what_is_no_array_of_numbers(name, place, kind):
    change, word = (NOT_ARRAYS | NOT_NUMBERS)[kind]
    args = good(name)
    if kind == "None" and (name, place) in OPTIONAL:
        args[place] = None
        getattr(xconv, name)(*args)
        return
    args[place] = change(args[place])
    check(TypeError, [word], getattr(xconv, name), *args)


def nested(a):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are a prototype
        return torch.nested.nested_tensor([a, a[:, :1]])


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, nested], ids=["sparse", "nested"])
@pytest.mark.parametrize("place", [0, 1])
def test_tensors_that_are_not_dense(change, place):
    args = [torch.ones(X), torch.ones(W)]
    args[place] = change(args[place])
    check(TypeError, ["Tensor"], xconv.conv, *args)
    check(TypeError, ["Tensor"], xconv.unfold, change(torch.ones(X)), (3, 2))


DTYPES = [  # x, w, b and dtype=, and what must stand after "got"
    ("int64", "uint64", None, None, ["int64", "uint64"]),
    ("uint64", "int8", None, None, ["uint64", "int8"]),
    ("float32", "float32", "float64", None, ["float32", "float64"]),
    ("float64", "float64", "complex64", None, ["float64", "complex64"]),
    ("float16", "float16", "float32", None, ["float16", "float32"]),
    ("float16", "float16", "int32", None, ["float16", "int32"]),
    ("int8", "int8", "int16", None, ["int8", "int16"]),
    ("int8", "int8", "uint8", None, ["int8", "uint8"]),
    ("int32", "int32", "float32", None, ["int32", "float32"]),
    ("float64", "float64", None, "float32", ["float64", "float32"]),
    ("float32", "float64", None, "float32", ["float64", "float32"]),
    ("complex64", "complex64", None, "float32", ["complex64", "float32"]),
    ("int16", "int16", None, "int8", ["int16", "int8"]),
    ("int8", "int8", None, "uint8", ["int8", "uint8"]),
    ("int32", "int32", None, "float32", ["int32", "float32"]),
    ("float64", "float64", None, "complex64", ["float64", "complex64"]),
    ("int8", "int8", None, ml_dtypes.bfloat16, ["bfloat16"]),  # NumPy has none of its own
]


@pytest.mark.parametrize(("x", "w", "b", "dtype", "words"), DTYPES)
@pytest.mark.parametrize(("name", "w_shape"), [("conv", W), ("conv_transpose", TW)])
def test_dtypes(name, w_shape, x, w, b, dtype, words):
    args = [make(*X, dtype=x), make(*w_shape, dtype=w)] + ([make(*B, dtype=b)] if b else [])
    options = {"dtype": np.dtype(dtype)} if dtype else {}
    check(TypeError, words, getattr(xconv, name), *args, **options)


MIXABLE = [(name, place) for name, place in ARRAYS if "fold" not in name]  # those take one array


@pytest.mark.parametrize(("name", "place"), MIXABLE)
def test_two_libraries(name, place):
    args = good(name)
    words = [("numpy", "ndarray"), ("torch", "Tensor")]
    args[place] = torch.asarray(args[place])
    check(TypeError, words, getattr(xconv, name), *args)
    args = good(name)
    args[place] = strict.asarray(args[place])
    words = [("numpy", "ndarray"), "array_api_strict"]
    check(TypeError, words, getattr(xconv, name), *args)


@pytest.mark.parametrize(("name", "place"), MIXABLE)
def test_two_devices(name, place):
    devices = strict.Device("CPU_DEVICE"), strict.Device("device1")
    args = [strict.asarray(a) if isinstance(a, np.ndarray) else a for a in good(name)]
    args[place] = strict.asarray(good(name)[place], device=devices[1])
    check(TypeError, ["CPU_DEVICE", "device1"], getattr(xconv, name), *args)


HINTS = [  # a call, and what its error says
    (lambda x, w: xconv.conv(x, w, padding="reflect"), r"\(padding_mode='reflect' says"),
    (lambda x, w: xconv.conv(x, w[:1, :1]), r"\(one kernel for every channel: "),
    (lambda x, w: xconv.conv(x[0, 0], w[0, 0]), r"w\[None, None\] of one kernel"),
    (lambda x, w: xconv.conv2d(x[0, 0], w[0, 0]), "w of 4 dimensions, 2 of them spatial"),
    (lambda x, w: xconv.conv(x.transpose(0, 2, 3, 1), w), "or layout='channels_last'"),
    (
        lambda x, w: xconv.conv_grad_weight(x, x, w.shape),
        r"sizes of w alone, such as w.shape\[2:\]",
    ),
    (lambda x, w: xconv.conv_transpose(x, w[:4], groups=3), "groups 3, channels 12 and 4"),
]


@pytest.mark.parametrize(("call", "hint"), HINTS)
def test_hints(call, hint):
    with pytest.raises(ValueError, match=rf": need .*{hint}"):
        call(make(2, 4, 7, 6), make(6, 4, 3, 2))


@pytest.mark.parametrize(
    ("x", "layout"), [((2, 7, 6, 5), "channels_first"), ((2, 4, 7, 6), "channels_last")]
)
def test_no_hint_at_a_layout_that_would_not_do(x, layout):
    with pytest.raises(ValueError, match="need the channels of x") as info:
        xconv.conv(
            make(*x), make(*((6, 7) if layout == "channels_last" else (6, 4)), 3, 2), layout=layout
        )
    assert "or layout" not in info.value.args[0]


def test_what_sizes_follow_from_is_said():
    x, w, one = np.ones((1, 1, 9)), np.ones((1, 1, 3)), np.ones((1, 1, 7))
    options = {"stride": 2, "dilation": 3}
    check(ValueError, [7, 2, 3], xconv.conv_backward, one, x, w, **options)
    check(ValueError, [7, 2, 3], xconv.conv_grad_input, one, w, (9,), **options)
    check(ValueError, [7, 2, 3], xconv.conv_grad_weight, one, x, (3,), **options)
    check(ValueError, [99, 2, 3], xconv.conv_transpose, x, w, output_size=(99,), **options)
