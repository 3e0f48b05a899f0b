"""Hostile arguments in every public function, drawn by Hypothesis.

One to three arguments of a legal call are replaced by what nobody should pass. There is a right
result then, an error of the documented form, or MemoryError for one that cannot exist: never
another exception, a warning, a changed input, a wait, or memory that is taken before it is refused.
"""

import contextlib
import datetime
import decimal
import fractions
import inspect
import itertools
import math
import re
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import array_api_strict as strict
import dask.array as da
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from backends import FLOATS, Backend, load
from backends import INTEGERS as INTEGER_DTYPES
from cases import TABLE, Case, kind_of, numbers, to_layout
from hypothesis import assume, given
from hypothesis import strategies as st
from meaning import ARRAYS, Meaning, name_of

import xconv

GIB = 2**30
SECONDS = 5  # for what takes milliseconds, on a machine that is busy with something else

# ---------------------------------------------------------------- the public functions


def layer(kind: type) -> Callable[..., Any]:
    """What a layer gives: its output and all gradients."""

    def use(in_channels, out_channels, kernel_size, x, dy, /, **options):
        made = kind(in_channels, out_channels, kernel_size, **options)
        return made(x), *made.backward(dy)

    return use


ROLES = {  # the positional arguments
    **dict.fromkeys(("conv", "conv1d", "conv2d", "conv3d"), "x w b"),
    **dict.fromkeys(
        ("conv_transpose", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "x w b"
    ),
    **dict.fromkeys(("conv_backward", "conv_transpose_backward"), "dy x w"),
    **dict.fromkeys(
        ("conv_double_backward", "conv_transpose_double_backward"), "ddx ddw ddb dy x w"
    ),
    "conv_grad_input": "dy w input_size",
    "conv_grad_weight": "dy x kernel_size",
    "unfold": "x kernel_size",
    "fold": "cols input_size kernel_size",
    **dict.fromkeys(("conv_output_size", "conv_transpose_output_size"), "input_size kernel_size"),
    "explain": "x w",
    "check_gradients": "x w b",
    "check_adjoint": "x w",
    **dict.fromkeys(("Conv", "ConvTranspose"), "in_channels out_channels kernel_size x dy"),
}
MODULES = (xconv, xconv.testing, xconv.nn)
NAMES = {  # all public ones but the types of results, which only hold what they are given
    name: getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if callable(getattr(module, name)) and name not in ("ConvGrads", "Explanation")
}
FUNCTIONS = {name: layer(f) if isinstance(f, type) else f for name, f in NAMES.items()}


def keywords(name: str) -> list[str]:
    """The names of the options of a function."""
    found = [p.name for p in inspect.signature(NAMES[name]).parameters.values() if p.kind == 3]
    if name in ("Conv", "check_gradients", "check_adjoint"):
        found += keywords("conv")
    return found + (keywords("conv_transpose") if name == "ConvTranspose" else [])


KEYWORDS = {name: keywords(name) for name in ROLES}


def is_for(case: Case, name: str) -> bool:
    """Whether the case makes a legal call of the function."""
    if case.transposed != ("ranspose" in name):
        return False
    if name[-1] == "d" and name[-2].isdigit() and case.rank != int(name[-2]):
        return False
    if name in ("unfold", "fold") or name.endswith("size"):
        return case.layout == "channels_first"
    return 0 not in (*case.x[:2], *case.w) or not name.startswith("Conv")


BY_NAME = {case.name: case for case in TABLE}
CASES = {name: [case.name for case in TABLE if is_for(case, name)] for name in ROLES}
DTYPES = ("float16", "float32", "float64", "complex64", "int8", "uint16", "int64")


def test_every_public_function_is_here():
    assert set(ROLES) == set(NAMES)
    assert all(CASES.values())


# ---------------------------------------------------------------- hostile values


class Evil:
    """Whatever it is asked, it raises."""

    def fail(self, *_, **__):
        raise OSError("evil")

    __index__ = __int__ = __float__ = __complex__ = __bool__ = __array__ = fail
    __eq__ = __hash__ = __len__ = __iter__ = __repr__ = fail


class EvilStr(str):
    __slots__ = ()
    __eq__ = __hash__ = __repr__ = __str__ = Evil.fail


class EvilInt(int):
    __eq__ = __lt__ = __gt__ = __hash__ = __repr__ = __add__ = __mul__ = Evil.fail


class Index:
    """An int by its `__index__` alone."""

    def __index__(self):
        return 2


deep: Any = ()
for _ in range(5000):
    deep = (deep,)

INTEGERS = {  # what may come for an option or a size; a name is drawn, as it prints in any case
    **{str(number): number for number in range(-3, 6)},
    **{
        f"{sign}2**{power}{more:+}": int(f"{sign}1") * (2**power + more)
        for sign in "+-"
        for power in (31, 32, 40, 62, 63, 64)
        for more in (-1, 0)
    },
    "10**400": 10**400,
    "10**5000": 10**5000,
}
OTHERS = {
    **{repr(value): value for value in (None, True, False, 0.0, 1.0, 1.5, 1j, (), [], {}, ...)},
    **{repr(value): value for value in (math.nan, math.inf, -math.inf, b"", b"1", "", "1", {1})},
    **{
        repr(value): value
        for value in (
            *("valid", "same", "same_lower", "full", "causal", "SAME", "zeros", "reflect"),
            *("replicate", "circular", "symmetric", "edge", "channels_first", "channels_last"),
            *("NHWC", "HWIO", "NCHW", "OIHW", "NCW", "OIW", "auto", "windows", "taps", "winograd"),
            *("fft", "cudnn", "forward", "grad_input", "grad_weight", "float32", "complex128"),
            *("int64", "bfloat16", "float128", "O", "\0\n; got : need"),
        )
    },
    **{
        f"class {value.__name__}": value
        for value in (int, float, bool, object, np.ndarray, len, np.float64, np.int16, np.str_)
    },
    **{
        f"np.{type(value).__name__} {value}": value
        for value in (np.int64(2), np.uint8(1), np.int8(-1), np.uint64(2**64 - 1), np.float32(1))
    },
    **{
        f"dtype {value}": np.dtype(value)
        for value in ("f4", ">f8", "?", "O", "U3", "M8[s]", "g", "V4", "i4,f4", "(2,)f4")
    },
    "np.str_ same": np.str_("same"),
    "np.True_": np.True_,
    "0-d int": np.array(2),
    "0-d float": np.array(2.0),
    "0-d bool": np.array(True),
    "1-d ints": np.array([1, 2]),
    "2-d ints": np.ones((3, 3), int),
    "2-d floats": np.ones((30, 30)),
    "a tensor": torch.tensor(2),
    "a tensor of one": torch.tensor([2]),
    "a strict array": strict.asarray(2),
    "decimal": decimal.Decimal(1),
    "fraction": fractions.Fraction(2),
    "date": datetime.date(2026, 1, 1),
    "range": range(1, 3),
    "long range": range(2**62),
    "slice": slice(1, 2),
    "iterator": iter(()),
    "frozenset": frozenset({1, 2}),
    "dict of ints": {1: 2, 3: 4},
    "unhashable in a tuple": ([1], {2}),
    "deep": deep,
    "many": (1,) * 1000,
    "Index": Index(),
    "Evil": Evil(),
    "EvilStr": EvilStr("same"),
    "EvilInt": EvilInt(2),
    "Generator": np.random.default_rng(0),
}


def misaligned(a):
    view = np.ndarray(a.shape, a.dtype, np.empty(a.nbytes + 1, np.uint8), offset=1)
    view[...] = a
    return view


def frozen(a):
    a.flags.writeable = False
    return a


def stretched(a, axis, size):
    """One number as all of an array with a very long axis."""
    one = np.ones((1,) * a.ndim, a.dtype)
    return np.broadcast_to(one, (*a.shape[:axis], size, *a.shape[axis:][1:])) if a.ndim else one


def largest(a):
    info = np.iinfo(a.dtype) if a.dtype.kind in "iu" else np.finfo(a.dtype)
    return np.full_like(a, info.max)


def overlapping(a):
    return np.lib.stride_tricks.as_strided(
        np.ones(2 * sum(a.shape) + 1, a.dtype), a.shape, (a.itemsize,) * a.ndim
    )


SHAPED = {  # arrays of numbers, which every library may have
    "one axis more": lambda a: a[None],
    "one axis less": lambda a: np.ones(a.shape[1:], a.dtype),
    "0-d": lambda a: np.ones((), a.dtype),
    "flat": lambda a: a.ravel(),
    "transposed": lambda a: np.ascontiguousarray(a.T),
    "no samples": lambda a: a[:0],
    "nothing at the end": lambda a: a[..., :0],
    "one at the end": lambda a: a[..., :1],
    "twice": lambda a: np.concatenate([a, a]),
    "of 1": lambda a: np.ones((1,) * a.ndim, a.dtype),
    "20 axes": lambda a: np.ones((1,) * 20, a.dtype),
    "40 axes": lambda a: np.ones((1,) * 40, a.dtype),
    "64 axes": lambda a: np.ones((1,) * 64, a.dtype),
    "NaN": lambda a: np.full_like(a, np.nan) if a.dtype.kind in "fc" else a,
    "infinite": lambda a: np.full_like(a, np.inf) if a.dtype.kind in "fc" else a,
    "largest": largest,
    **{name: lambda a, name=name: a.astype(name) for name in FLOATS + INTEGER_DTYPES},
}
LAID = {  # NumPy's arrays of numbers, in memory like no other
    "read-only": frozen,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": misaligned,
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "Fortran": np.asfortranarray,
    "one for all": lambda a: np.broadcast_to(np.ones((), a.dtype), a.shape),
    "overlapping": overlapping,
    **{
        f"stretched {axis} {power}": lambda a, axis=axis, power=power: stretched(a, axis, 2**power)
        for axis in (0, 1, 2)
        for power in (31, 33, 40)
    },
}
STRANGE = {  # what is no array of numbers, or one of another library
    "matrix": lambda a: np.matrix(a.reshape(len(a), -1) if a.size else [[1]]),
    "masked": np.ma.masked_array,
    "recarray": lambda a: a.view(np.recarray),
    "subclass": lambda a: a.view(type("Mine", (np.ndarray,), {})),
    "chararray": lambda a: a.astype("S3").view(np.char.chararray),
    "bool": lambda a: a.astype(bool),
    "object": lambda a: a.astype(object),
    "evil objects": lambda a: np.frompyfunc(lambda _: Evil(), 1, 1)(a),
    "str": lambda a: a.real.astype("U5"),
    "StringDType": lambda a: a.real.astype(np.dtypes.StringDType()),
    "datetime": lambda a: a.real.astype("M8[s]"),
    "timedelta": lambda a: a.real.astype("m8[s]"),
    "structured": lambda a: a.astype([("re", "f8")]),
    "void": lambda a: np.zeros(a.shape, "V4"),
    "longdouble": lambda a: a.real.astype("g"),
    "clongdouble": lambda a: a.astype("G"),
    "bfloat16": lambda a: a.real.astype(ml_dtypes.bfloat16),
    "float8": lambda a: a.real.astype(ml_dtypes.float8_e4m3fn),
    "int4": lambda a: a.real.astype(ml_dtypes.int4),
    "scalar": lambda a: a.dtype.type(1),
    "list": lambda a: a.tolist(),
    "bytes": lambda a: a.tobytes(),
    "memoryview": lambda a: memoryview(a.tobytes()),
    "iterator": lambda a: iter(a.ravel()),
    "sparse": lambda a: scipy.sparse.coo_array(np.ones((2, 3), "f4")),
    "tensor": lambda a: torch.tensor(a.tolist()).reshape(a.shape),
    "sparse tensor": lambda a: torch.zeros(a.shape).to_sparse(),
    "nested tensor": lambda a: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "bool tensor": lambda a: torch.zeros(a.shape, dtype=torch.bool),
    "strict": lambda a: strict.zeros(a.shape),
    "dask": lambda a: da.from_array(a, chunks=2),
    "dask of no known size": lambda a: (lambda lazy: lazy[lazy > 0])(da.from_array(a.real.ravel())),
}


class Attack(NamedTuple):
    """A legal call and what replaces some of its arguments, all by name."""

    function: str
    case: str
    dtype: str
    replaced: dict[str, Any]
    more: int  # positional arguments too many, or too few


def attacks(name: str, slots: list[str], values: Any, laid: list[str]) -> Any:
    """A strategy for attacks on some slots of a function."""

    @st.composite
    def drawn(draw):
        case, dtype = draw(st.sampled_from(CASES[name])), draw(st.sampled_from(DTYPES))
        # few values in one call, so that some fit each other, like a padding as wide as a stride
        single = st.sampled_from(draw(st.lists(values, min_size=1, max_size=3)))
        entry, rank = single | st.tuples(single, single), BY_NAME[case].rank
        value = single | st.tuples(*[entry] * rank) | st.lists(entry, max_size=4)
        array = single | st.one_of(map(st.sampled_from, (list(SHAPED), laid, list(STRANGE))))
        chosen = draw(st.lists(st.sampled_from(slots), min_size=1, max_size=3, unique=True))
        replaced = {slot: draw(array if slot in ARRAYS else value) for slot in chosen}
        # years of work, where two of them fit each other or padding grows with the kernel
        assume(sum("stretched" in spec for spec in replaced.values()) < 2)
        padding = replaced.get("padding", BY_NAME[case].padding)
        assume("stretched" not in replaced.get("w", "") or not isinstance(padding, str))
        return Attack(name, case, dtype, replaced, draw(st.sampled_from((0,) * 18 + (-1, 1))))

    return drawn()


# ---------------------------------------------------------------- what may happen


class Wait(BaseException):
    """The call takes too long."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """No warning, no wait, and no more memory than 1 GiB: who asks for it is refused."""

    def stop(*_):
        raise Wait

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resource.setrlimit(resource.RLIMIT_AS, (used + GIB, limit[1]))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            yield
        except Wait:
            pytest.fail(f"not done after {SECONDS} seconds")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, limit)
            signal.signal(signal.SIGALRM, handler)


def check_error(name: str, error: Exception) -> None:
    """Of the documented form, by the function called; or Python's own about its arguments."""
    if isinstance(error, MemoryError):
        shape, dtype = error.args  # NumPy's
        assert math.prod(shape) * dtype.itemsize >= GIB, error
        return
    (message,) = error.args
    if isinstance(error, TypeError) and re.search(r"\(\) (missing|takes|got) ", message):
        return
    form = re.fullmatch(r"([\w.]+): need .+; got .+", message)
    assert form, message
    within = NAMES[name] is not FUNCTIONS[name] or name.startswith("check")
    assert form[1] == name or (within and form[1].partition(".")[0] in NAMES), message


def check_result(backend: Backend, name: str, given: dict, options: dict, found: Any) -> None:
    if name.startswith("check"):
        assert type(found) is float and 0 <= found < 0.1
        return
    meaning = Meaning(name, given, options)
    if name.endswith("size"):
        assert found == (meaning.I if meaning.transposed else meaning.O)
        assert all(type(size) is int for size in found)
        return
    if name == "explain":
        assert (found.x, found.w) == (given["x"].shape, given["w"].shape)
        assert str(found)
        return
    libraries = {type(a) for a in meaning.arrays.values()}
    library = da.Array if da.Array in libraries else next(iter(libraries))
    results = found if isinstance(found, tuple) else (found,)
    for (result, right), a in zip(meaning.right(backend).items(), results, strict=True):
        if right is None:
            assert a is None, result
            continue
        layers = name.startswith("Conv") and result == "y"  # which has weights in NumPy, and no dy
        assert type(a) is (type(given["x"]) if layers else library), result
        assert (tuple(a.shape), name_of(a.dtype)) == right[:2], result
        assert getattr(a.dtype, "isnative", True), result
        if right.exact is not None:
            exact = right.exact if "complex" in right.dtype else right.exact.real
            np.testing.assert_array_equal(backend.to_numpy(a), backend.rounded(exact, right.dtype))


def arguments(attack: Attack, backend: Backend) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments that an attack names."""
    case, name = BY_NAME[attack.case], attack.function
    dtype = attack.dtype if attack.dtype in backend.dtypes else "float32"
    kind = kind_of(dtype)
    given = {
        "input_size": case.x[2:],
        "kernel_size": case.w[2:],
        "in_channels": case.x[1],
        "out_channels": case.y[1],
    }
    for role in ("x", "w", "b", "dy", "ddx", "ddw", "ddb"):
        shape = "y" if role == "dy" else role.removeprefix("dd")
        given[role] = to_layout(case, shape, numbers(case, role, kind)).astype(dtype)
    columns = (case.x[0], case.x[1] * math.prod(case.w[2:]), math.prod(case.y[2:]))
    given["cols"] = np.ones(columns[not case.batched :], dtype)
    options = {key: value for key, value in case.options.items() if key in KEYWORDS[name]}
    positional = {role: given[role] for role in ROLES[name].split()}
    for role, value in positional.items():
        if role in ARRAYS and role not in attack.replaced:
            positional[role] = backend.array(value, dtype)
    for slot, spec in attack.replaced.items():
        into = positional if slot in positional else options
        into[slot] = hostile(spec, given.get(slot), backend)
    if attack.more < 0:
        positional.popitem()
    return positional, options


def hostile(spec: Any, a: Any, backend: Backend) -> Any:
    """The value of that name, or a list or a tuple of some; of an array, what is made of it."""
    if not isinstance(spec, str):
        return type(spec)(hostile(one, a, backend) for one in spec)
    if spec in INTEGERS | OTHERS:
        return (INTEGERS | OTHERS)[spec]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of other libraries, and of numbers that do not fit
        made = (SHAPED | LAID | STRANGE)[spec](a.copy())
    ours = spec in SHAPED and made.dtype.name in backend.dtypes
    return backend.array(made) if ours else made


def bits(values: Any) -> list[bytes]:
    return [
        a.tobytes()
        for a in values
        if isinstance(a, np.ndarray) and a.size < 2**16 and not a.dtype.hasobject
    ]


def run(attack: Attack, backend: Backend) -> None:
    name = attack.function
    given, options = arguments(attack, backend)
    extra = (None,) * max(attack.more, 0)
    values = [*given.values(), *options.values()]
    before = bits(values)
    try:
        with guarded():
            found = FUNCTIONS[name](*given.values(), *extra, **options)
    except (ValueError, TypeError, MemoryError) as error:
        check_error(name, error)
    except AssertionError:
        if not name.startswith("check"):  # whose work that is
            raise
    else:
        check_result(backend, name, given, options, found)
        results = found if isinstance(found, tuple) else (found,)
        for result, a in itertools.product(results, values):
            if isinstance(result, np.ndarray) and isinstance(a, np.ndarray):
                assert not np.may_share_memory(result, a)
    assert bits(values) == before


# ---------------------------------------------------------------- the attacks

SLOTS = {name: [*ROLES[name].split(), *KEYWORDS[name]] for name in ROLES}
ANYTHING = st.sampled_from(list(INTEGERS)) | st.sampled_from(list(OTHERS))
FAR = st.sampled_from([name for name in INTEGERS if "**" in name or name in "012"])
MODES = st.sampled_from(["'zeros'", "'reflect'", "'replicate'", "'circular'", "'symmetric'"])
# elsewhere an array that is too large may end in an abort
NEAR = st.sampled_from([name for name in INTEGERS if "**" not in name])
SMALL = [name for name in LAID if not name.startswith("stretched")]


@pytest.mark.parametrize("name", ROLES)
@given(data=st.data())
def test_hostile_arguments(name, data):
    attack = data.draw(attacks(name, SLOTS[name], ANYTHING, list(LAID)))
    run(attack, load("numpy"))


SIZES = ("stride", "padding", "dilation", "input_size", "kernel_size", "output_size", "x")


@pytest.mark.parametrize("name", [name for name in ROLES if name[-2:] not in ("1d", "2d", "3d")])
@given(data=st.data())
def test_extreme_sizes(name, data):
    slots = [slot for slot in SLOTS[name] if slot in SIZES]
    attack = data.draw(attacks(name, slots, FAR, list(LAID)))
    if "padding_mode" in KEYWORDS[name]:
        attack.replaced["padding_mode"] = data.draw(MODES)
    run(attack, load("numpy"))


@pytest.mark.backends("torch", "dask", "array-api-strict")
@given(data=st.data())
def test_hostile_arguments_in_other_libraries(backend, data):
    name = data.draw(st.sampled_from(list(ROLES)))
    attack = data.draw(attacks(name, SLOTS[name], NEAR | st.sampled_from(list(OTHERS)), SMALL))
    with np.errstate(all="ignore"):  # of which array-api-strict warns, as it is NumPy
        run(attack, backend)
