"""A volume larger than memory: ``python -m xconv.demo_scale``.

Small shapes are hidden in a volume of noise that lies in a Zarr store on disk. A matched filter, a
bank of convolution kernels with the same shapes, finds them: its strongest answer at each voxel
goes to a second store. Then the gradient of the filters is computed from the volume, as training
would. Both are lazy Dask arrays until a cluster of workers, each with a limit of memory, works
through their chunks. A sample of the result is compared with a convolution in memory.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xconv import conv, conv_grad_weight

Array = Any
SHAPES = 4  # templates
STRENGTH = 33.0  # of a hidden shape, its norm, in noise of standard deviation 1
OPTIONS: dict[str, Any] = {"padding": "same"}
NUMBERS = ("size", "chunk", "kernel", "workers")
RULE = "a --chunk of at least twice the --kernel that divides --size, and a worker"
NEEDED = "pip install '.[scale]'"


class Unavailable(Exception):
    """What was asked for is not there; the message says what is needed."""


def templates(kernel: int) -> Array:
    """Return the shapes (4, 1, *3 times kernel): random signs, of norm 1."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (SHAPES, 1, kernel, kernel, kernel))
    return (signs / kernel**1.5).astype(np.float32)


def hidden(location: Sequence[int], sizes: Sequence[int], kernel: int) -> tuple[int, Any, Any]:
    """Return which shape is in a chunk, where it begins, and the generator that drew it."""
    rng = np.random.default_rng([1, *location])
    corner = tuple(int(rng.integers(0, size - kernel + 1)) for size in sizes)
    return int(rng.integers(SHAPES)), corner, rng


def noise(kernel: int, block_info: Any) -> Array:
    """Return a chunk of the volume: noise, and one shape."""
    info = block_info[None]
    shape = info["chunk-shape"]
    which, corner, rng = hidden(info["chunk-location"][2:], shape[2:], kernel)
    block = rng.standard_normal(shape, dtype=np.float32)
    block[(0, 0, *(slice(a, a + kernel) for a in corner))] += STRENGTH * templates(kernel)[which, 0]
    return block


def blocks_alone(chunk: Sequence[int], kernel: int, gradient: bool) -> float:
    """Return the seconds that a worker takes for one chunk in memory, without Dask."""
    x = np.random.default_rng(0).standard_normal((1, 1, *chunk), dtype=np.float32)
    w = templates(kernel)

    def once() -> float:
        start = time.perf_counter()
        y = conv(x, w, **OPTIONS)
        if gradient:
            conv_grad_weight(y, x, w.shape[2:], **OPTIONS)
        else:
            y.max(axis=1)
        return time.perf_counter() - start

    return sorted(once() for _ in range(3))[1]


def peak() -> float:
    """Return the most memory that this process has had, in GiB."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def arrivals(distributed: Any) -> Any:
    """Return a plugin that counts the bytes which workers are sent by others."""

    class Arrivals(distributed.WorkerPlugin):  # type: ignore[misc]
        name = "arrivals"

        def setup(self, worker: Any) -> None:
            self.worker, self.bytes = worker, 0

        def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
            if start == "flight" and finish == "memory":
                self.bytes += self.worker.state.tasks[key].get_nbytes()

    return Arrivals()


def arrived(dask_worker: Any) -> int:
    """Return the bytes that a worker has been sent."""
    return int(dask_worker.plugins["arrivals"].bytes)


def check(volume: Array, score: Array, chunk: Sequence[int], kernel: int) -> tuple[float, int, int]:
    """Compare chunks of the stored score with memory.

    Returns the largest difference, as a part of the largest score, in how many of them the hidden
    shape has the highest score, and how many they are.
    """
    rng, sizes = np.random.default_rng(2), volume.shape[2:]
    worst, found, samples = 0.0, 0, 8
    for _ in range(samples):
        location = [int(rng.integers(0, n // c)) for n, c in zip(sizes, chunk, strict=True)]
        ends = [(i * c, (i + 1) * c) for i, c in zip(location, chunk, strict=True)]
        read = [
            (max(a - kernel, 0), min(b + kernel, n)) for (a, b), n in zip(ends, sizes, strict=True)
        ]
        x = np.asarray(volume[(0, slice(None), *(slice(*pair) for pair in read))])
        own = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(ends, read, strict=True))
        right = conv(x, templates(kernel), **OPTIONS).max(axis=0)[own]
        got = np.asarray(score[(0, *(slice(*pair) for pair in ends))])
        worst = max(worst, float(abs(right - got).max() / abs(right).max()))
        _, corner, _ = hidden(location, got.shape, kernel)
        highest = np.unravel_index(int(got.argmax()), got.shape)
        found += highest == tuple(a + (kernel - 1) // 2 for a in corner)
    return worst, found, samples


class Cluster:
    """Dask workers: new ones on this machine, or those at an address."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.distributed = _imported("distributed")
        self.chunk, self.kernel = options.chunk, options.kernel
        self.chunks = options.size**3 // math.prod(options.chunk)
        self.gigabytes = 4 * options.size**3 / 1e9
        self.local = None
        if options.scheduler is None:
            try:
                limit = _imported("dask.utils").parse_bytes(options.memory)
            except ValueError as error:
                raise Unavailable(f"need --memory in bytes, such as 512MiB; {error}") from None
            self.local = self.distributed.LocalCluster(
                n_workers=options.workers,
                threads_per_worker=1,
                memory_limit=limit,
                dashboard_address=None,
            )
        try:
            self.client = self.distributed.Client(options.scheduler or self.local)
        except (OSError, ValueError) as error:
            raise Unavailable(f"need the --scheduler of a cluster; {error}") from None
        self.workers = len(self.client.scheduler_info(n_workers=-1)["workers"])
        self.client.register_plugin(arrivals(self.distributed))

    def work(self, name: str, lazy: Any, gradient: bool | None = None) -> Any:
        """Compute something, with a progress bar, and print what it took."""
        start, before = time.perf_counter(), self.moved()
        future = self.client.compute(lazy)
        with self.client.as_current():  # a caller may have another, whose scheduler never answers
            self.distributed.progress(future, notebook=False)
        result = future.result()
        seconds = time.perf_counter() - start
        text = f"\n{name}: {seconds:.1f} s, {self.gigabytes / seconds * 1e3:.0f} MB/s"
        if gradient is not None:
            each = self.client.run(blocks_alone, self.chunk, self.kernel, gradient).values()
            alone = sum(each) / self.workers * self.chunks / self.workers
            each = (self.moved() - before) / self.chunks / 1e6
            text += (
                f", its blocks alone {alone:.1f} s; sent between workers {each:.2f} MB per chunk"
            )
        peaks = self.client.run(peak).values()
        print(f"{text}, peak memory of a worker {max(peaks):.2f} GiB", flush=True)
        return result

    def moved(self) -> int:
        """Return the bytes that workers have sent each other."""
        return sum(self.client.run(arrived).values())

    def close(self) -> None:
        """End the workers that were started here."""
        self.client.close()
        if self.local is not None:
            self.local.close()


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Make the volume, filter it, compute the gradient; return whether the sample is right."""
    da, zarr = _imported("dask.array"), _imported("zarr")
    kernel = options.kernel
    shape, chunks = (1, 1, *(options.size,) * 3), (1, 1, *options.chunk)

    def store(name: str, shape: Sequence[int], chunks: Sequence[int]) -> Any:
        if (folder / name).exists():
            raise Unavailable(f"need a --folder without {name}; got {folder}")
        return zarr.create_array(
            folder / name, shape=shape, chunks=chunks, dtype="f4", compressors=None
        )

    cluster = Cluster(options)
    try:
        volume = store("volume.zarr", shape, chunks)
        score = store("score.zarr", shape[1:], chunks[1:])
        print(
            f"volume: {options.size}^3 float32, {cluster.gigabytes:.2f} GB, {cluster.chunks} "
            f"chunks of {math.prod(chunks) * 4 / 1e6:.1f} MB; workers: {cluster.workers}"
        )
        made = da.map_blocks(
            partial(noise, kernel),
            chunks=da.core.normalize_chunks(chunks, shape),
            dtype=np.float32,
            meta=np.empty((0,) * 5, np.float32),
        )
        cluster.work("generate", made.store(volume, lock=False, compute=False))
        x, w = da.from_zarr(volume), templates(kernel)
        answers = conv(x, w, **OPTIONS)
        highest = answers.max(axis=1)
        cluster.work("matched filter", highest.store(score, lock=False, compute=False), False)
        dw = cluster.work("gradient", conv_grad_weight(answers, x, w.shape[2:], **OPTIONS), True)
    finally:
        cluster.close()
    print(f"gradient of sum(answers**2) / 2 in the filters: norm {np.linalg.norm(dw):.5g}")
    error, found, samples = check(volume, score, options.chunk, kernel)
    print(f"sample: differs from memory by {error:.1e}; hidden shapes found {found} of {samples}")
    return error < 1e-5 and found == samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo with the arguments of a command line; return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m xconv.demo_scale",
        description="Find shapes in a volume on disk that is larger than the workers' memory.",
    )
    add = parser.add_argument
    add("--size", type=int, default=640, help="voxels along each axis (default: 640, 1 GB)")
    add(
        "--chunk",
        type=int,
        nargs=3,
        default=[32, 320, 320],
        help="those of a chunk; thin ones, since a whole layer of them waits for the next one "
        "(default: 32 320 320)",
    )
    add("--kernel", type=int, default=5, help="voxels of a shape along each axis (default: 5)")
    add("--workers", type=int, default=2, help="processes of one thread (default: 2)")
    add("--memory", default="512MiB", help="limit of each worker (default: 512MiB)")
    add("--scheduler", metavar="ADDRESS", help="use the workers of this cluster instead")
    add("--folder", type=Path, help="keep the stores here; every worker must reach it")
    options = parser.parse_args(arguments)
    try:
        fits = all(c >= 2 * options.kernel > 0 == options.size % c for c in options.chunk)
        if not fits or options.workers < 1:
            given = ", ".join(f"--{k} {getattr(options, k)}" for k in NUMBERS)
            raise Unavailable(f"need {RULE}; got {given}")
        if options.folder is not None:
            return 0 if run(options, options.folder) else 1
        with tempfile.TemporaryDirectory(prefix="xconv-") as folder:
            return 0 if run(options, Path(folder)) else 1
    except Unavailable as error:
        print(f"xconv: {error}", file=sys.stderr)
        return 2


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise Unavailable(f"need {package}: {NEEDED}") from None


if __name__ == "__main__":
    sys.exit(main())
