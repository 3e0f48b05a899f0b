"""The command line of the benchmark: ``python -m xconv.bench``."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import report
from .libraries import NEEDS, available
from .measure import Job, Row, measure
from .suite import CONTRACTIONS, SUITE

DTYPES = ("float32", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what a command line asks for, print it, and return the exit code."""
    options = parser().parse_args(arguments)
    if options.load is not None:
        machine, rows = report.load(options.load)
    else:
        jobs = [
            Job(number, dtype, contraction)
            for number, layer in enumerate(SUITE)
            for dtype in options.dtypes
            for contraction in options.contractions
            if options.layers.lower() in f"{layer.group} {layer.name}".lower()
        ]
        missing = [name for name in options.libraries or () if not available(name)]
        if missing or not jobs or options.rounds < 1 or options.threads < 1:
            print(
                "xconv.bench: need layers, rounds, threads and installed libraries; got "
                f"{len(jobs)} rows, {options.rounds} rounds, {options.threads} threads, "
                f"missing: {missing}",
                file=sys.stderr,
            )
            return 2
        libraries = options.libraries or [n for n in ("xconv", "torch") if available(n)]
        machine = described(libraries, options)
        found = measure(
            jobs,
            libraries,
            backend=options.backend,
            threads=options.threads,
            rounds=options.rounds,
            memory=not options.no_memory,
        )
        rows = list(progress(found, len(jobs)))
    if options.json is not None:
        report.save(options.json, machine, rows)
    ours = next((name for name in rows[0].seconds if name.startswith("xconv")), "xconv")
    print(report.table(rows, ours))
    if "torch" in rows[0].seconds:
        print("\nTime over PyTorch's: geometric mean (largest)\n")
        print(report.summary(rows, ours))
    print("\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if options.plot is not None:
        report.draw(options.plot, machine, rows, ours)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        "python -m xconv.bench", description="Time convolution layers against other libraries."
    )
    add = result.add_argument
    names = ", ".join(NEEDS)
    add("--libraries", nargs="+", metavar="NAME", help=f"{names}, or xconv:METHOD (xconv torch)")
    add("--layers", default="", metavar="TEXT", help="only layers or groups that contain TEXT")
    add("--dtypes", nargs="+", default=DTYPES, choices=(*DTYPES, "float16"))
    add("--contractions", nargs="+", default=CONTRACTIONS, choices=CONTRACTIONS)
    add("--backend", default="numpy", choices=("numpy", "cupy"))
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every library")
    add("--rounds", type=int, default=5, help="samples of each library, alternated (default: 5)")
    add("--no-memory", action="store_true", help="skip peak memory and errors")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--load", type=Path, metavar="FILE", help="show what --json wrote instead of measuring")
    add("--plot", type=Path, metavar="FILE.png", help="draw the ratios to PyTorch")
    return result


def progress(rows: Iterable[Row], total: int) -> Iterable[Row]:
    """Show a progress bar where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return rows
    bar: Iterable[Row] = tqdm(rows, total=total, unit="row", dynamic_ncols=True)
    return bar


def described(libraries: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader of the figures must know of the machine."""
    packages = {"numpy", *(NEEDS[name.partition(":")[0]] for name in libraries)}
    if options.backend == "cupy":
        import cupy

        device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        packages.add("cupy")
    else:
        device = processor()
    return {
        "device": device,
        "threads": options.threads,
        "Python": platform.python_version(),
        **{name: version(name) for name in sorted(packages)},
        "date": datetime.date.today().isoformat(),
    }


def version(package: str) -> str:
    """Return the version of an installed package."""
    return (
        str(__import__(package).__version__)
        if package == "cupy"
        else (importlib.metadata.version(package))
    )


def processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text(encoding="utf-8").splitlines() if info.exists() else ())
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
