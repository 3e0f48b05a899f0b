"""The array libraries under test: how to make their arrays, read them back and tell them apart.

A library is imported when its backend is loaded, never before. Loading raises where it is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOATS = ("float16", "float32", "float64", "complex64", "complex128")


@dataclass(frozen=True)
class Backend:
    name: str
    xp: Any  # array_api_compat's namespace
    asarray: Callable[[np.ndarray, str], Any]  # (array, dtype): cast in the library's own way
    to_numpy: Callable[[Any], np.ndarray]  # bfloat16 becomes float32
    dtypes: tuple[str, ...]
    device: Any
    compiled: Callable[..., Any] = lambda function: function  # faster than step by step, for JAX

    def __repr__(self) -> str:
        return self.name

    def array(self, array: np.ndarray, dtype: str | None = None) -> Any:
        return self.asarray(array, dtype or array.dtype.name)

    def rounded(self, exact: np.ndarray, dtype: str) -> np.ndarray:
        """The exact numbers rounded, or wrapped, once to `dtype`."""
        if dtype == "bfloat16":
            return self.to_numpy(self.asarray(exact, dtype))
        return exact.astype(dtype)

    def dtype_of(self, array: Any) -> str:
        return str(array.dtype).rpartition(".")[2]

    def same_kind(self, array: Any) -> bool:
        """Whether it is this library's array, on this backend's device."""
        import array_api_compat

        return (
            array_api_compat.is_array_api_obj(array)
            and array_api_compat.array_namespace(array) is self.xp
            and array_api_compat.device(array) == self.device
        )


def _numpy() -> Backend:
    import array_api_compat.numpy as xp

    return Backend(
        "numpy", xp, lambda a, dtype: a.astype(dtype), np.asarray, FLOATS + INTEGERS, "cpu"
    )


def _cupy() -> Backend:
    import array_api_compat.cupy as xp
    import cupy
    import ml_dtypes  # noqa: F401 - teaches NumPy and CuPy bfloat16

    if cupy.cuda.runtime.getDeviceCount() < 1:
        raise RuntimeError("no CUDA device")

    def to_numpy(array):
        array = cupy.asnumpy(array)
        return array.astype("float32") if array.dtype.name == "bfloat16" else array

    return Backend(
        "cupy",
        xp,
        lambda a, dtype: cupy.asarray(a.astype(dtype)),
        to_numpy,
        (*FLOATS, "bfloat16", *INTEGERS),
        cupy.cuda.Device(0),
    )


def _torch(device: str = "cpu") -> Backend:
    import array_api_compat.torch as xp
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")

    def to_numpy(array):
        array = array.detach().resolve_conj().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()

    return Backend(
        "torch" if device == "cpu" else "torch-cuda",
        xp,
        lambda a, dtype: torch.tensor(a, device=device).to(getattr(torch, dtype)),
        to_numpy,
        (*FLOATS, "bfloat16", "int8", "int16", "int32", "int64", "uint8"),  # what it calculates in
        torch.device(device),
    )


def _jax() -> Backend:
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time
    import jax.numpy as xp

    def to_numpy(array):
        return np.asarray(array.astype(xp.float32) if array.dtype == xp.bfloat16 else array)

    return Backend(
        "jax",
        xp,
        lambda a, dtype: xp.asarray(a).astype(dtype),
        to_numpy,
        (*FLOATS, "bfloat16", *INTEGERS),
        jax.devices()[0],
        jax.jit,
    )


def _dask() -> Backend:
    import array_api_compat.dask.array as xp
    import dask.array

    def to_numpy(array):
        computed = array.compute(scheduler="synchronous")
        assert computed.shape == array.shape, "the declared shape is not the computed one"
        assert computed.dtype == array.dtype, "the declared dtype is not the computed one"
        return computed

    return Backend(
        "dask",
        xp,
        lambda a, dtype: dask.array.from_array(a.astype(dtype), chunks=5),
        to_numpy,
        FLOATS + INTEGERS,
        "cpu",
    )


def _strict() -> Backend:
    import array_api_strict as xp

    here, host = xp.Device("device1"), xp.Device("CPU_DEVICE")  # not the default one
    return Backend(
        "array-api-strict",
        xp,
        lambda a, dtype: xp.asarray(a.astype(dtype), device=here),
        lambda a: np.asarray(a.to_device(host)),
        FLOATS[1:] + INTEGERS,
        here,
    )


LOADERS: dict[str, Callable[[], Backend]] = {
    "numpy": _numpy,
    "cupy": _cupy,
    "torch": _torch,
    "torch-cuda": lambda: _torch("cuda:0"),
    "jax": _jax,
    "dask": _dask,
    "array-api-strict": _strict,
}


@cache
def load(name: str) -> Backend:
    return LOADERS[name]()


def answering() -> list[str]:
    """Every backend that loads here."""
    found = []
    for name in LOADERS:
        try:
            load(name)
        except Exception:  # an absent or a broken library is not there
            continue
        found.append(name)
    return found
