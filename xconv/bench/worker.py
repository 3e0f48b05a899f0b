"""One library in a process of its own: reads jobs as lines of JSON, answers each with a line."""

from __future__ import annotations

import importlib
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .libraries import Task, mover, runner, stopwatch
from .suite import Layer, layers

SAMPLE = 0.03  # seconds of calls whose median is one sample
FEWEST, MOST = 5, 100  # calls of a sample; on a GPU, which is quiet, they are always the fewest
SLOW = 0.1  # seconds of a call that is a sample by itself
DRAWN = 2**20


def arrays(layer: Layer, dtype: str) -> list[Any]:
    """Return x, w and g of a layer, normally distributed; the same in every process.

    Only so many numbers are drawn, as that takes long; larger arrays repeat them.
    """
    if dtype == "bfloat16":
        importlib.import_module("ml_dtypes")  # teaches it to NumPy
    rng = np.random.default_rng(0)
    drawn = (min(math.prod(shape), DRAWN) for shape in layer.shapes)
    few = [rng.standard_normal(size, dtype="float32").astype(dtype) for size in drawn]
    return [np.resize(a, shape) for a, shape in zip(few, layer.shapes, strict=True)]


def memory(field: str) -> int:
    """Return a field of this process's memory in bytes: ``VmRSS`` now, ``VmHWM`` its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak(task: Task, name: str, backend: str) -> int:
    """Return the most memory that a call took beyond what it left behind, its result."""
    task()
    if backend == "cupy":
        result, top = on_device(task, name)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = memory("VmRSS")
        result = task()
        top = memory("VmHWM") - before
    return max(0, top - int(result.nbytes))


def on_device(task: Task, name: str) -> tuple[Any, int]:
    """Return a call's result, and the most that its library took of the device's memory for it."""
    if name.startswith("torch"):
        cuda = importlib.import_module("torch").cuda
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        return task(), cuda.max_memory_allocated() - before
    pool = importlib.import_module("cupy").get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    return task(), pool.total_bytes() - before


def error(task: Task, layer: Layer, contraction: str) -> float:
    """Return a float32 task's largest error against float64, as a part of the largest result."""
    given = (a.astype("float64") for a in arrays(layer, "float32"))
    exact = runner("xconv:windows")(layer, contraction, *given)
    assert exact is not None  # windows apply to every layer
    y, result = exact(), task()
    result = result.get() if hasattr(result, "get") else np.asarray(result)
    return float(np.max(np.abs(result - y)) / np.max(np.abs(y)))


def rates(dtype: str, backend: str) -> tuple[float, float]:
    """Return the machine's best: FLOPs of a product and bytes moved by a copy, per second."""
    xp = importlib.import_module("cupy" if backend == "cupy" else "numpy")
    watch = stopwatch(backend)
    if backend == "cupy":
        size, product_of = 8192, "float16" if dtype == "bfloat16" else dtype
    else:
        size, product_of = 1024, "float32" if dtype == "float16" else dtype  # as it is summed
    a, source = xp.ones((size, size), product_of), xp.ones(2**27, "uint8")
    target = xp.empty_like(source)
    threads = 1 if backend == "cupy" else int(os.environ["OMP_NUM_THREADS"])
    halves = list(
        zip(xp.array_split(target, threads), xp.array_split(source, threads), strict=True)
    )
    with ThreadPoolExecutor(threads) as pool:
        product = min(watch(lambda: xp.matmul(a, a)) for _ in range(20))
        copy = min(
            watch(lambda: list(pool.map(lambda pair: xp.copyto(*pair), halves))) for _ in range(20)
        )
    return 2 * size**3 / product, 2 * source.size / copy


def calls(task: Task, watch: Callable[[Task], float], most: int) -> int:
    """Return how many calls of a task make a sample."""
    watch(task)  # which may prepare
    shortest = watch(task)
    if shortest >= SLOW:
        return 1
    shortest = min(shortest, *(watch(task) for _ in range(4)))
    return min(most, max(FEWEST, round(SAMPLE / max(shortest, 1e-7))))


def main(name: str, backend: str) -> None:
    """Answer jobs until the input ends."""
    run, move, watch = runner(name), mover(name, backend), stopwatch(backend)
    current: tuple[Any, Task | None, int] = (None, None, 1)
    made: tuple[Any, list[Any]] = (None, [])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        number, dtype, contraction, batch, what = json.loads(line)
        if what == "rates":
            print(json.dumps(rates(dtype, backend)), flush=True)
            continue
        layer, key = layers(batch)[number], (number, dtype, contraction, batch)
        if key != current[0]:
            current = (key, None, 1)  # frees the last row's arrays
            if made[0] != (layer, dtype):
                made = (None, [])
                made = ((layer, dtype), [move(a) for a in arrays(layer, dtype)])
            task = run(layer, contraction, *made[1])
            if task is not None:
                current = (key, task, calls(task, watch, FEWEST if backend == "cupy" else MOST))
        _, task, count = current
        answer: float | None = None
        if task is None:
            pass
        elif what == "time":
            answer = statistics.median(watch(task) for _ in range(count))
        elif what == "memory":
            answer = peak(task, name, backend)
        else:
            answer = error(task, layer, contraction)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
