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
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xconv import conv, conv_grad_weight

Array = Any
SHAPES, SIZE = 4, 5  # templates, and their voxels along each axis
STRENGTH = 3.0  # of a hidden shape, against noise of standard deviation 1
OPTIONS: dict[str, Any] = {"padding": "same"}
NEEDED = "pip install '.[scale]'"


class Unavailable(Exception):
    """What was asked for is not there; the message says what is needed."""


def templates() -> Array:
    """Return the shapes (4, 1, 5, 5, 5): random signs, of length 1."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (SHAPES, 1, SIZE, SIZE, SIZE))
    return (signs / SIZE**1.5).astype(np.float32)


def hidden(location: Sequence[int], sizes: Sequence[int]) -> tuple[int, tuple[int, ...], Any]:
    """Return which shape is in a chunk, where it begins, and the generator that drew it."""
    rng = np.random.default_rng([1, *location])
    corner = tuple(int(rng.integers(0, max(size - SIZE, 0) + 1)) for size in sizes)
    return int(rng.integers(SHAPES)), corner, rng


def noise(block_info: Any = None) -> Array:
    """Return a chunk of the volume: noise, and one shape."""
    info = block_info[None]
    shape = info["chunk-shape"]
    which, corner, rng = hidden(info["chunk-location"][2:], shape[2:])
    block = rng.standard_normal(shape, dtype=np.float32)
    place = tuple(slice(a, a + SIZE) for a in corner)
    cells = tuple(slice(0, b - a) for a, b in zip(corner, shape[2:], strict=True))
    block[(0, 0, *place)] += STRENGTH * SIZE**1.5 * templates()[(which, 0, *cells)]
    return block


def blocks_alone(chunk: int, gradient: bool) -> float:
    """Return the seconds that a worker takes for one chunk in memory, without Dask."""
    x, w = np.zeros((1, 1, *(chunk,) * 3), np.float32), templates()

    def once() -> float:
        start = time.perf_counter()
        y = conv(x, w, **OPTIONS)
        if gradient:
            conv_grad_weight(y, x, w.shape[2:], **OPTIONS)
        else:
            y.max(axis=1)
        return time.perf_counter() - start

    return min(once() for _ in range(3))


def peak() -> float:
    """Return the most memory that this process has had, in GiB."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def check(volume: Array, score: Array, chunk: int) -> tuple[float, int, int]:
    """Compare chunks of the stored score with memory.

    Returns the largest difference, as a part of the largest score, in how many of them the hidden
    shape has the highest score, and how many they are.
    """
    rng, size = np.random.default_rng(2), volume.shape[2]
    worst, found, samples = 0.0, 0, 8
    for _ in range(samples):
        location = [int(i) for i in rng.integers(0, size // chunk, 3)]
        ends = [(i * chunk, (i + 1) * chunk) for i in location]
        read = [(max(a - SIZE, 0), min(b + SIZE, size)) for a, b in ends]
        x = np.asarray(volume[(0, slice(None), *(slice(*pair) for pair in read))])
        own = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(ends, read, strict=True))
        right = conv(x, templates(), **OPTIONS).max(axis=0)[own]
        got = np.asarray(score[(0, *(slice(*pair) for pair in ends))])
        worst = max(worst, float(abs(right - got).max() / abs(right).max()))
        _, corner, _ = hidden(location, got.shape)
        highest = np.unravel_index(int(got.argmax()), got.shape)
        found += highest == tuple(a + SIZE // 2 for a in corner)
    return worst, found, samples


class Cluster:
    """Dask workers: new ones on this machine, or those at an address."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.distributed = _imported("distributed")
        self.chunk, self.chunks = options.chunk, (options.size // options.chunk) ** 3
        self.gigabytes = 4 * options.size**3 / 1e9
        self.local = None
        if options.scheduler is None:
            self.local = self.distributed.LocalCluster(
                n_workers=options.workers,
                threads_per_worker=1,
                memory_limit=options.memory,
                dashboard_address=None,
            )
        try:
            self.client = self.distributed.Client(options.scheduler or self.local)
        except (OSError, ValueError) as error:
            raise Unavailable(f"need the --scheduler of a cluster; {error}") from None
        self.workers = len(self.client.scheduler_info(n_workers=-1)["workers"])

    def work(self, name: str, lazy: Any, gradient: bool | None = None) -> Any:
        """Compute something, with a progress bar, and print what it took."""
        start = time.perf_counter()
        future = self.client.compute(lazy)
        self.distributed.progress(future, notebook=False)
        result = future.result()
        seconds = time.perf_counter() - start
        text = f"\n{name}: {seconds:.1f} s, {self.gigabytes / seconds * 1e3:.0f} MB/s"
        if gradient is not None:
            each = max(self.client.run(blocks_alone, self.chunk, gradient).values())
            text += f", its blocks alone {each * self.chunks / self.workers:.1f} s"
        peaks = self.client.run(peak).values()
        print(f"{text}, peak memory of a worker {max(peaks):.2f} GiB")
        return result

    def close(self) -> None:
        """End the workers that were started here."""
        self.client.close()
        if self.local is not None:
            self.local.close()


def run(options: argparse.Namespace, folder: Path) -> bool:
    """Make the volume, filter it, compute the gradient; return whether the sample is right."""
    da, zarr = _imported("dask.array"), _imported("zarr")
    shape, chunks = (1, 1, *(options.size,) * 3), (1, 1, *(options.chunk,) * 3)

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
            f"volume: {options.size}^3 float32, {cluster.gigabytes:.2f} GB, chunks of "
            f"{options.chunk}^3; {cluster.workers} workers"
        )
        made = da.map_blocks(
            noise,
            chunks=da.core.normalize_chunks(chunks, shape),
            dtype=np.float32,
            meta=np.empty((0,) * 5, np.float32),
        )
        cluster.work("generate", made.store(volume, lock=False, compute=False))
        x, w = da.from_zarr(volume), templates()
        answers = conv(x, w, **OPTIONS)
        highest = answers.max(axis=1)
        cluster.work("matched filter", highest.store(score, lock=False, compute=False), False)
        dw = cluster.work("gradient", conv_grad_weight(answers, x, w.shape[2:], **OPTIONS), True)
    finally:
        cluster.close()
    print(f"gradient of sum(answers**2) / 2 in the filters: norm {np.linalg.norm(dw):.5g}")
    error, found, samples = check(volume, score, options.chunk)
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
    add("--chunk", type=int, default=128, help="those of a chunk (default: 128)")
    add("--workers", type=int, default=2, help="processes of one thread (default: 2)")
    add("--memory", default="512MiB", help="limit of each worker (default: 512MiB)")
    add("--scheduler", metavar="ADDRESS", help="use the workers of this cluster instead")
    add("--folder", type=Path, help="keep the stores here; every worker must reach it")
    options = parser.parse_args(arguments)
    try:
        if options.chunk < 2 * SIZE or options.size % options.chunk or options.workers < 1:
            rule = f"--chunk of at least {2 * SIZE} that divides --size, and a worker"
            given = f"--chunk {options.chunk}, --size {options.size}, --workers {options.workers}"
            raise Unavailable(f"need {rule}; got {given}")
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
