"""The rounds of a measurement: one process per library, asked in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .suite import Layer, layers


class Job(NamedTuple):
    """A row: which layer, in which dtype, which contraction, and the samples if not the suite's."""

    number: int
    dtype: str
    contraction: str
    batch: int | None = None

    @property
    def layer(self) -> Layer:
        """Return the layer of this row."""
        return layers(self.batch)[self.number]

    @property
    def bytes(self) -> int:
        """Return the bytes of x, w and y."""
        return self.layer.numbers * int(self.dtype.lstrip("bfloat")) // 8


class Row(NamedTuple):
    """What was measured of a job; None where a library has nothing for it.

    Parameters
    ----------
    job : Job
        What was measured.
    seconds : dict
        Median time of each library.
    memory : dict
        Peak bytes of each library beyond arguments and result.
    error : float or None
        Relative error of this package's float32 result.
    floor : float
        Seconds that no direct method can beat here.
    """

    job: Job
    seconds: dict[str, float | None]
    memory: dict[str, int | None]
    error: float | None
    floor: float

    def ratio(self, ours: str = "xconv", theirs: str = "torch") -> float | None:
        """Return our time over theirs."""
        a, b = self.seconds.get(ours), self.seconds.get(theirs)
        return a / b if a and b else None


class Worker:
    """A library's process."""

    def __init__(self, name: str, backend: str, threads: int, **environment: str) -> None:
        self.name = name
        counts = dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", name, backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **counts, **environment},
        )
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(self.process.pid, cores)  # for libraries that read no variable, too
        self.answer()

    def answer(self) -> Any:
        """Read one answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"the process of {self.name} ended: {self.process.returncode}")
        return json.loads(line)

    def ask(self, job: Job, what: str) -> Any:
        """Have a job done."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([*job, what]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def measure(
    jobs: Iterable[Job],
    libraries: list[str],
    *,
    backend: str = "numpy",
    threads: int = 1,
    rounds: int = 5,
    memory: bool = True,
) -> Iterator[Row]:
    """Time every job in every library, alternating, and take the medians of the rounds."""
    workers = {name: Worker(name, backend, threads) for name in libraries}
    # every large allocation is returned at once, so that the peak is the call's own
    trimmed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    counted = {name: Worker(name, backend, threads, **trimmed) for name in libraries if memory}
    rates = {}
    try:
        for job in jobs:
            if job.dtype not in rates:
                rates[job.dtype] = workers[libraries[0]].ask(job, "rates")
            samples: dict[str, list[float]] = {name: [] for name in libraries}
            for name in libraries * rounds:
                if (seconds := workers[name].ask(job, "time")) is not None:
                    samples[name].append(seconds)
            peaks = {name: worker.ask(job, "memory") for name, worker in counted.items()}
            error = None
            if job.dtype == "float32" and "xconv" in counted:
                error = counted["xconv"].ask(job, "error")
            flops, copied = rates[job.dtype]
            medians = {name: statistics.median(s) if s else None for name, s in samples.items()}
            floor = max(job.layer.flops / flops, job.bytes / copied)
            yield Row(job, medians, peaks, error, floor)
    finally:
        for worker in (*workers.values(), *counted.values()):
            worker.close()
