"""Everything that depends on which array library a call is given.

The only module that imports NumPy and `array_api_compat`. Other libraries are used through the
namespace of the arrays that arrive, and are never imported here.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import sys
import threading
import types
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from operator import attrgetter, mul
from typing import Any

import array_api_compat
import numpy as np

from .errors import Refusal, shown
from .geometry import ALL, SPATIAL, Window, along, axis_taps, resized

Array = Any
Namespace = Any

REAL = ("float16", "bfloat16", "float32", "float64")
COMPLEX = ("complex64", "complex128")
INTEGER = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES = frozenset(REAL + COMPLEX + INTEGER)
DTYPE = attrgetter("dtype")
NATIVE = frozenset(map(np.dtype, DTYPES - {"bfloat16"}))  # NumPy's, in the machine's byte order

# NumPy, a namespace of the standard, but for functions that only call a method of the array: these
# are the methods, as what Python does around them takes longer than they do. They take arrays, and
# all else by position. It is a copy: who replaces a function of NumPy's replaces it here, too.
NUMPY: Namespace = types.ModuleType(np.__name__)
NUMPY.__dict__.update(vars(np))
NUMPY.permute_dims = np.ndarray.transpose
NUMPY.reshape = np.ndarray.reshape
NUMPY.matrix_transpose = attrgetter("mT")
NUMPY.fft = np.fft  # which it imports when it is asked for

_einsum = inspect.unwrap(np.einsum)  # without looking for what overrides it

# Bytes apart at which few lines have room in the first cache of most processors, and how many.
HALF_PAGE, WAYS = 2048, 8
ALIKE = 512  # bytes: rows a multiple of these apart share an eighth of the first cache's sets
APART = 48  # numbers of a gap between rows that would lie so
LARGE_PAGE = 2**21  # bytes, of most processors; NumPy asks for such from two of them on


def accept(optional: tuple[str, ...] = (), /, **arrays: Any) -> tuple[Namespace, list[Array]]:
    """Check that all arrays are of one library and device; return its namespace and them.

    Those that are `optional` may be None and stay it. `numpy.memmap` becomes its base class.
    Where one array is Dask's, the others become Dask arrays of one chunk.
    """
    given = dict(arrays)
    for name in optional:
        if given[name] is None:
            del given[name]
    numpys = set(map(type, given.values())) == {np.ndarray}
    if numpys and NATIVE.issuperset(map(DTYPE, given.values())):
        return NUMPY, list(arrays.values())  # as most are: without a look at each
    if numpys:
        xp: Namespace = NUMPY
    elif _on_one_gpu(given.values()):
        xp = array_api_compat.array_namespace(*given.values())
    else:
        given, xp = _one_library({name: _plain(name, a) for name, a in given.items()})
        xp = NUMPY if in_numpy(xp) else xp
    for name, a in given.items():
        dtype = dtype_name(a.dtype)
        if dtype not in DTYPES or (dtype == "bfloat16" and not has_bfloat16(xp)):
            raise Refusal(f"{name} of a real, complex or integer dtype", str(a.dtype), TypeError)
    return xp, list(map(given.get, arrays))


def imported(name: str) -> Namespace:
    """Return the namespace of this name, as `accept` returns it."""
    return NUMPY if name == NUMPY.__name__ else importlib.import_module(name)


def _on_one_gpu(given: Collection[Array]) -> bool:
    """Whether all are plain CuPy arrays of one device, which needs no further look."""
    cupy = sys.modules.get("cupy")
    plain = cupy is not None and all(type(a) is cupy.ndarray for a in given)
    return plain and len({a.device.id for a in given}) == 1


def _plain(name: str, a: Array) -> Array:
    """Refuse what is no plain array of its library; a memmap becomes an ndarray."""
    kind = type(a)
    if kind is np.memmap:
        return a.view(np.ndarray)
    if isinstance(a, np.generic) or (isinstance(a, np.ndarray) and kind is not np.ndarray):
        plain = False
    elif array_api_compat.is_torch_array(a):
        torch = sys.modules["torch"]
        plain = kind in (torch.Tensor, torch.nn.Parameter) and a.layout is torch.strided
        plain = plain and not a.is_nested
    elif array_api_compat.is_cupy_array(a):
        plain = kind is sys.modules["cupy"].ndarray
    elif array_api_compat.is_dask_array(a):
        chunk = type(a._meta)
        plain = chunk is np.ndarray or chunk is getattr(sys.modules.get("cupy"), "ndarray", None)
        if any(math.isnan(size) for size in a.shape):
            raise Refusal(f"{name} with known chunk sizes", f"shape {a.shape}")
    else:
        plain = array_api_compat.is_array_api_obj(a)
        plain = plain and not array_api_compat.is_pydata_sparse_array(a)
    if not plain:
        raise Refusal(
            f"{name} to be a plain, dense array of an array library (numpy.asarray makes "
            "one, dask.array.from_array one beyond memory)",
            _type_name(a),
            TypeError,
        )
    return a


def _one_library(given: dict[str, Array]) -> tuple[dict[str, Array], Namespace]:
    """Find the namespace and compare the devices."""
    dask = [a for a in given.values() if array_api_compat.is_dask_array(a)]
    if dask:
        xp = array_api_compat.array_namespace(dask[0])
        chunk = type(dask[0]._meta)
        if any(type(a._meta) is not chunk for a in dask):
            kinds = ", ".join(_type_name(a._meta) for a in dask)
            raise Refusal("chunks of one library", kinds, TypeError)
        given = {
            n: xp.from_array(a.copy(), chunks=-1) if type(a) is chunk else a
            for n, a in given.items()
        }
    types = ", ".join(f"{name} {_type_name(a)}" for name, a in given.items())
    try:
        xp = array_api_compat.array_namespace(*given.values())
    except TypeError:
        raise Refusal("arrays of one library", types, TypeError) from None
    devices = {n: array_api_compat.device(a) for n, a in given.items()}
    # JAX: None while it traces, and a sharding where an array is spread over devices
    devices = {n: d for n, d in devices.items() if d is not None and not hasattr(d, "device_set")}
    if len({str(d) for d in devices.values()}) > 1:
        places = ", ".join(f"{name} on {d}" for name, d in devices.items())
        raise Refusal("arrays on one device", places, TypeError)
    return given, xp


def _type_name(a: object) -> str:
    return f"{type(a).__module__}.{type(a).__qualname__}"


@lru_cache(maxsize=64)
def in_place(xp: Namespace) -> bool:
    """Whether arrays are written in place, through strided views: NumPy and CuPy."""
    return in_numpy(xp) or on_gpu(xp)


@lru_cache(maxsize=64)
def in_numpy(xp: Namespace) -> bool:
    """Whether the namespace is NumPy's."""
    return xp is NUMPY or array_api_compat.is_numpy_namespace(xp)


@lru_cache(maxsize=64)
def on_gpu(xp: Namespace) -> bool:
    """Whether the namespace is CuPy's."""
    return array_api_compat.is_cupy_namespace(xp)


def has_bfloat16(xp: Namespace) -> bool:
    """Whether arrays may be bfloat16; CuPy has it from 14 on, but no name for it."""
    return hasattr(xp, "bfloat16") or on_gpu(xp)


@lru_cache(maxsize=64)
def chunked(xp: Namespace) -> bool:
    """Whether the namespace is Dask's."""
    return array_api_compat.is_dask_namespace(xp)


def chunk_namespace(a: Array) -> Namespace:
    """Return the namespace of a Dask array's chunks."""
    return accept(a=a._meta)[0]


def widens_integers(xp: Namespace) -> bool:
    """Whether small integers are multiplied exactly as float64.

    NumPy and CuPy have no BLAS for integers, and PyTorch has no integer product on a GPU.
    """
    return in_place(xp) or array_api_compat.is_torch_namespace(xp)


def lacks_products(xp: Namespace, a: Array) -> bool:
    """Whether the library has none of an array like this: of integers, PyTorch on a GPU."""
    torch = array_api_compat.is_torch_namespace(xp)
    return torch and a.is_cuda and dtype_name(a.dtype) in INTEGER


def native_unsigned(xp: Namespace) -> bool:
    """Whether unsigned integers of more than 8 bits can be computed with; not in PyTorch."""
    return not array_api_compat.is_torch_namespace(xp)


def own_namespace(xp: Namespace, a: Array) -> Namespace:
    """Return the namespace that computes with the numbers of an array: that of Dask's chunks."""
    return chunk_namespace(a) if chunked(xp) else xp


def device(a: Array) -> Any:
    """Return the array's device, None while JAX traces."""
    return array_api_compat.device(a)


def zeros(xp: Namespace, shape: tuple[int, ...], like: Array, dtype: Any = None) -> Array:
    """Return zeros where `like` is, of its dtype unless told; in Dask in its chunks if they fit."""
    dtype = like.dtype if dtype is None else dtype
    if not chunked(xp):
        return xp.zeros(shape, dtype=dtype, device=device(like))
    chunks = -1 if 0 in shape else like.chunks if shape == like.shape else "auto"
    return xp.zeros_like(like, dtype=dtype, shape=shape, chunks=chunks)


# Silences NumPy's warnings: NaN, infinity and rounding are results like any other. (An interrupt at
# its very start or end can leave them so, as in any `numpy.errstate`.)
quiet = partial(np.errstate, all="ignore")


def current(a: Array) -> contextlib.AbstractContextManager[Any]:
    """Make the array's device the current one, as CuPy needs; quiet NumPy's float warnings."""
    if isinstance(a, np.ndarray):
        return quiet()
    if array_api_compat.is_cupy_array(a):
        context: contextlib.AbstractContextManager[Any] = a.device
        return context
    return contextlib.nullcontext()


def address(a: Array) -> int:
    """Return where the first element of a CuPy array is in the device's memory."""
    return int(a.data.ptr)


def queue() -> tuple[int, int]:
    """Return CuPy's current device and stream, as the numbers that CUDA knows them by."""
    cuda = sys.modules["cupy"].cuda
    return cuda.runtime.getDevice(), cuda.get_current_stream().ptr


def allows_tf32() -> bool:
    """Whether CuPy may round float32 to 19 bits in products: CUPY_TF32, or its compute type."""
    core = sys.modules["cupy"]._core
    return bool(core.get_compute_type("float32") == core._routines_linalg.COMPUTE_TYPE_TF32)


class small_buffers(np.errstate):
    """Keep NumPy from copying rows of some hundred numbers to its buffers before it adds them.

    That takes longer than to add them; shorter rows are still copied, as is faster.
    """

    NUMBERS = 512  # of a buffer; by default 8192
    LEAST = 128  # of a row for which that pays

    def __enter__(self) -> None:
        super().__enter__()
        np.setbufsize(self.NUMBERS)  # until the end of this context


def conjugate(xp: Namespace, a: Array, out: Array) -> None:
    """Write the conjugate of a NumPy array, which may take buffers but no large ones."""
    with small_buffers():
        xp.conj(a, out=out)


@lru_cache(maxsize=256, typed=True)
def dtype_name(dtype: Any) -> str:
    """Return a dtype's name in the array API: "float32" for ``np.float32``, ``torch.float32``."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]


@lru_cache(maxsize=64)
def itemsize(name: str) -> int:
    """Return the bytes of one element of the dtype of this name."""
    return int("".join(filter(str.isdigit, name))) // 8


@lru_cache(maxsize=256)
def check_bytes(shape: tuple[int, ...], name: str) -> None:
    """Refuse an array that no machine can address; NumPy refuses it of no samples, too."""
    if math.prod(max(size, 1) for size in shape) * itemsize(name) >= 2**63:
        raise Refusal("arrays of less than 2**63 bytes", f"shape {shape}, dtype {name}")


@lru_cache(maxsize=256)
def dtype_of(xp: Namespace, name: str) -> Any:
    """Return the namespace's dtype of this name."""
    if name == "bfloat16" and not has_bfloat16(xp):  # NumPy knows it once another library adds it
        raise Refusal("a dtype that the array library has", name, TypeError)
    found = getattr(xp, name, None)
    return np.dtype(name) if found is None else found


@lru_cache(maxsize=1024)
def result_name(xp: Namespace, *names: str) -> str:
    """Return the name of the dtype that these promote to."""
    try:
        return dtype_name(xp.result_type(*(dtype_of(xp, name) for name in names)))
    except (TypeError, RuntimeError):
        raise Refusal("dtypes that promote to a common one", ", ".join(names), TypeError) from None


def checked_dtype(dtype: Any) -> str:
    """Return the name of a `dtype` argument."""
    try:
        name = dtype_name(dtype)
    except Exception:  # what cannot be a key, or whatever an object's own methods raise
        name = ""
    if name not in DTYPES:
        raise Refusal(
            "dtype to be a real, complex or integer dtype, or its name, such as 'float32'",
            shown(dtype),
            TypeError,
        )
    return name


def cast(xp: Namespace, a: Array, name: str) -> Array:
    """Convert, keeping the real part of complex numbers and wrapping integers."""
    current = dtype_name(a.dtype)
    if current == name:
        return a
    if current in COMPLEX and name not in COMPLEX:
        return cast(xp, xp.real(a), name)
    if current in REAL and name in INTEGER and name != "int64":
        a = xp.astype(a, dtype_of(xp, "int64"))  # from a float, only this wraps the same everywhere
    return xp.astype(a, dtype_of(xp, name))


def native(xp: Namespace, a: Array) -> Array:
    """Return an array in the byte order of the machine: itself, if it is."""
    return xp.astype(a, dtype_of(xp, dtype_name(a.dtype)), copy=False)


def windows(xp: Namespace, x: Array, window: Window) -> Array:
    """View the sliding windows of a padded block.

    Parameters
    ----------
    xp : namespace
        The array's namespace.
    x : array
        Shape (G, c, N, *L), padded.
    window : Window
        What slides over it.

    Returns
    -------
    array
        Shape (G, c, *W, N, *O): a view in NumPy and CuPy, a stack of slices elsewhere. CuPy's
        own `sliding_window_view` would synchronise with the device.
    """
    if in_place(xp):
        spatial = x.strides[SPATIAL:]
        shape = (*x.shape[:2], *window.W, x.shape[2], *window.O)
        strides = (
            *x.strides[:2],
            *map(mul, window.dilation, spatial),
            x.strides[2],
            *map(mul, window.stride, spatial),
        )
        return strided(xp, x, shape, strides)
    for a in range(len(window.O)):
        parts = [x[along(SPATIAL + 2 * a, s)] for s in axis_taps(window, a)]
        x = xp.stack(parts, axis=2 + a)
    return x


def tiled(xp: Namespace, a: Array, axis: int, count: int, size: int, step: int) -> Array:
    """View parts of one axis, `step` apart: (.., L, .., M) -> (.., count, .., size, M)."""
    if in_place(xp):
        shape = (*a.shape[:axis], count, *a.shape[axis + 1 : -1], size, a.shape[-1])
        apart = a.strides[axis]
        strides = (*a.strides[:axis], step * apart, *a.strides[axis + 1 : -1], apart, a.strides[-1])
        return strided(xp, a, shape, strides)
    last = step * (count - 1) + 1
    parts = [a[along(axis, slice(t, t + last, step))] for t in range(size)]
    return xp.stack(parts, axis=-2)


def strided(
    xp: Namespace, a: Array, shape: tuple[int, ...], strides: tuple[int, ...], start: int = 0
) -> Array:
    """View the memory of an array with any shape and strides, from a number of its last axis on."""
    if not on_gpu(xp) and a.flags.c_contiguous:  # a quarter of the time of as_strided
        return np.ndarray(shape, a.dtype, a, start * a.itemsize, strides)
    library = sys.modules["cupy"] if on_gpu(xp) else np
    a = a[..., start:] if start else a  # a view more takes CuPy some microseconds
    return library.lib.stride_tricks.as_strided(a, shape, strides)


def swapped(xp: Namespace, a: Array) -> Array:
    """Exchange the two axes after the groups: (G, c, N, *L) -> (G, N, c, *L)."""
    return xp.permute_dims(a, (0, 2, 1, *range(SPATIAL, a.ndim)))


def mirrored(xp: Namespace, a: Array) -> Array:
    """Reverse the spatial axes."""
    if in_place(xp):  # a tenth of the time of flip
        return a[(..., *(slice(None, None, -1),) * (a.ndim - SPATIAL))]
    return xp.flip(a, axis=tuple(range(SPATIAL, a.ndim)))


def forwards(xp: Namespace, a: Array) -> Array:
    """Return matrices whose rows do not run backwards, as BLAS takes none: a copy where they do."""
    if in_numpy(xp) and a.strides[-1] < 0:
        return xp.asarray(a, copy=True, order="C")
    return a


def _in_large_pages(size: int) -> Array:
    """Return memory of so many bytes, or whole large pages where the system may have them.

    Small pages lie anywhere, so that parts of a core's cache have to hold too much of a block; one
    of Winograd's takes 5 to 13 % longer then. NumPy asks for large ones itself, for 4 MiB or more.
    """
    if size < LARGE_PAGE // 4:  # much less than the page that it would take
        return np.empty(size, np.uint8)
    whole = -(-size // LARGE_PAGE) * LARGE_PAGE
    memory = np.empty(LARGE_PAGE + whole, np.uint8)
    start = -memory.__array_interface__["data"][0] % LARGE_PAGE
    return memory[start : start + whole]


class _Scratch(threading.local):
    """Memory of one thread for the temporary arrays of a block."""

    KEPT = 16 * 2**20  # bytes that a thread keeps between calls, at most
    memory = np.empty(0, np.uint8)
    used = 0  # bytes that the block has asked for, whether they were there or not

    def begin(self, keep: bool, least: int) -> None:
        """Free what the last block took; `keep` the larger of that and `least`, or nothing."""
        size, wanted = len(self.memory), max(self.used, least)
        kept = wanted if size < wanted <= self.KEPT else size
        kept = kept if keep else 0
        if kept != size:
            self.memory = np.empty(0, np.uint8)  # the old one is freed before there is a new one
            self.memory = _in_large_pages(kept)
        self.used = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array that lasts until the thread's next block."""
        start = -(-self.used // 64) * 64
        self.used = start + math.prod(shape) * np.dtype(dtype).itemsize
        if self.used > len(self.memory):
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self.memory, start)


_scratch = _Scratch()


def begin_block(xp: Namespace, keep: bool, least: int = 0) -> None:
    """Begin a block, in which `scratch` is free again; say whether a thread may keep it.

    ``least`` is what the largest of several kinds of blocks in a row takes, so that memory is not
    made anew for each.
    """
    if not on_gpu(xp):
        _scratch.begin(keep, least)


def scratch(xp: Namespace, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array for a block's work alone, until the thread's next one (NumPy and CuPy).

    The system clears every page of fresh memory, which takes as long as the work in it; so in
    NumPy this is memory that the thread keeps, where it may. CuPy has a pool of its own.
    """
    if on_gpu(xp):
        return xp.empty(shape, dtype=dtype)
    return _scratch.empty(shape, dtype)


def gapped(xp: Namespace, shape: tuple[int, ...], dtype: Any, empty: Callable[..., Array]) -> Array:
    """Return an array of `empty` memory, in NumPy with gaps between its rows where these are good.

    Rows that are used together should not lie a multiple of `ALIKE` apart.
    """
    *rows, length = shape
    close = not on_gpu(xp) and length * itemsize(dtype_name(dtype)) % ALIKE == 0
    return empty((*rows, length + APART * close), dtype=dtype)[..., :length]


def most_apart(length: int) -> int:
    """Return how many numbers there may be between two such rows, of any dtype."""
    return APART if itemsize("complex128") * length >= ALIKE else 0


def gathered(xp: Namespace, view: Array, shape: tuple[int, ...]) -> Array:
    """Reshape a view, in place to a copy in `scratch`."""
    if in_place(xp):
        block = scratch(xp, view.shape, view.dtype)
        block[...] = view
        return block.reshape(shape)
    return xp.reshape(view, shape)


def put(there: Array, a: Array) -> None:
    """Copy (G, c, ..) in place; in NumPy a few channels at a time where that is far faster.

    Where channels are to come last and lie a multiple of half a page apart, the first cache has
    room for lines of so few of them, and one that is lost is read again for its next number.
    """
    some = a.shape[1]
    last = isinstance(a, np.ndarray) and there.strides[1] == there.itemsize
    if last and a.strides[1] and a.strides[1] % HALF_PAGE == 0:
        some = WAYS
    for first in range(0, a.shape[1], some or 1):
        part = slice(first, first + some)
        there[:, part] = a[:, part]


def flattened(xp: Namespace, a: Array, axis: int) -> Array:
    """Merge the axes from `axis` on, in a copy where no view can."""
    whole = merged(a, axis) if in_place(xp) else None
    if whole is None:
        whole = gathered(xp, a, (*a.shape[:axis], math.prod(a.shape[axis:])))
    return whole


def merged(a: Array, axis: int) -> Array | None:
    """View the axes from `axis` on as one, or return None where that would need a copy."""
    shape, length = a.shape, None
    if a.flags.c_contiguous:
        return a.reshape((*shape[:axis], math.prod(shape[axis:])))
    for size, stride in zip(reversed(shape[axis:]), reversed(a.strides[axis:]), strict=True):
        if size != 1:
            if length not in (None, stride):
                return None
            length = stride * size
    return a.reshape((*shape[:axis], math.prod(shape[axis:])))


def constant(
    xp: Namespace, make: Callable[..., list[list[float]]], arguments: tuple[Any, ...], like: Array
) -> Array:
    """Return the matrix ``make(*arguments)`` with the dtype and the device of `like`."""
    if in_numpy(xp):
        return _numpy_constant(make, arguments, like.dtype)
    return xp.asarray(make(*arguments), dtype=like.dtype, device=device(like))


@lru_cache(maxsize=64)
def _numpy_constant(make: Any, arguments: tuple[Any, ...], dtype: Any) -> Array:
    made = np.asarray(make(*arguments), dtype=dtype)
    made.flags.writeable = False  # all threads read it
    return made


def spread(xp: Namespace, a: Array, steps: tuple[int, ...]) -> Array:
    """Put the entries of the spatial axes some steps apart, with zeros between."""
    if max(steps) == 1:
        return a
    sizes = tuple(s * (n - 1) + 1 for n, s in zip(a.shape[SPATIAL:], steps, strict=True))
    if in_place(xp):
        wide = xp.zeros((*a.shape[:SPATIAL], *sizes), dtype=a.dtype)
        there = (slice(None, None, s) for s in steps)
        wide[ALL + tuple(there)] = a
        return wide
    for axis, s in enumerate(steps, SPATIAL):
        a = spaced(xp, a, axis, s)
    return a[ALL + tuple(map(slice, sizes))]


def spaced(xp: Namespace, a: Array, axis: int, step: int) -> Array:
    """Put the entries of one axis `step` apart, zeros behind each, as an expression."""
    if step == 1:
        return a
    spaced = resized(a.shape, axis, a.shape[axis] * step)
    check_bytes(spaced, dtype_name(a.dtype))
    shape = (*a.shape[: axis + 1], step - 1, *a.shape[axis + 1 :])
    behind = zeros(xp, shape, a)
    wide = xp.concat([xp.expand_dims(a, axis=axis + 1), behind], axis=axis + 1)
    return xp.reshape(wide, spaced)


@lru_cache(maxsize=1)
def instructions() -> frozenset[str]:
    """Return the sets of instructions that NumPy uses here, by its names."""
    config: Any = np.show_config(mode="dicts")
    found = config.get("SIMD Extensions", {})  # which a build without any does not have
    return frozenset((*found.get("baseline", ()), *found.get("found", ())))


def finite(a: Array) -> bool:
    """Whether a NumPy array holds no NaN and no infinity; a sum that overflows counts as one."""
    wide = np.float32 if a.dtype == np.float16 else None  # in which large numbers have a sum
    total = _einsum(a, [*range(a.ndim)], [], dtype=wide)  # in half the time of `sum`
    return bool(np.isfinite(total))


def random_uniform(shape: tuple[int, ...], bound: float, rng: Any, like: Array | None) -> Array:
    """Draw from [-bound, bound) with a NumPy Generator, as an array like `like`.

    The default is NumPy's float32. The same generator gives the same numbers in every library.
    """
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise Refusal("rng to be a numpy.random.Generator", shown(rng), TypeError)
    values = (rng or np.random.default_rng()).uniform(-bound, bound, shape)
    if like is None:
        return values.astype(np.float32)
    xp, (like,) = accept(like=like)
    if dtype_name(like.dtype) in INTEGER:
        raise Refusal("like of a floating or complex dtype", str(like.dtype), TypeError)
    with current(like):
        dtype = dtype_of(xp, dtype_name(like.dtype))  # in the byte order of the machine
        return xp.asarray(values.astype(np.float32), dtype=dtype, device=device(like))


def random_integers(rng: Any, like: Array) -> Array:
    """Draw integers from -3 to 3, as an array with the shape, dtype and device of `like`."""
    xp, (like,) = accept(like=like)
    values = rng.integers(-3, 4, tuple(like.shape)).astype(np.float32)
    with current(like):
        return xp.asarray(values, dtype=like.dtype, device=device(like))


def default_rng(seed: int) -> Any:
    """Return a NumPy Generator."""
    return np.random.default_rng(seed)
