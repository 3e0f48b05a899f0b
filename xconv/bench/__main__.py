"""The command line of the benchmark: ``python -m xconv.bench``."""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import report
from .libraries import NEEDS, available
from .measure import Job, Row, measure
from .suite import CONTRACTIONS, layers

DTYPES = ("float32", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what a command line asks for, print it, and return the exit code."""
    command = parser()
    options = command.parse_args(arguments)
    libraries = options.libraries or [n for n in ("xconv", "torch") if available(n)]
    check(command, options, libraries)
    if options.load is not None:
        machine, rows = report.load(options.load)
    else:
        jobs = [
            Job(number, dtype, contraction, options.batch)
            for number, layer in enumerate(layers(options.batch))
            for dtype in options.dtypes
            for contraction in options.contractions
            if any(selected(text, f"{layer.group} {layer.name}") for text in options.layers)
        ]
        if options.backend == "cupy":
            need_gpu(command)
        if not jobs:
            command.error(f"need --layers to be in a group or layer; got {options.layers!r}")
        if len(libraries) == 1 and not options.libraries:
            print("torch is not installed: xconv alone is timed", file=sys.stderr)
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


def check(
    command: argparse.ArgumentParser, options: argparse.Namespace, libraries: list[str]
) -> None:
    """End with a message where options do not fit, before anything is measured."""
    missing = [name for name in libraries if not available(name)]
    if missing:
        command.error(f"need libraries that are installed, of {', '.join(NEEDS)}; got {missing}")
    counts = {"--rounds": options.rounds, "--threads": options.threads}
    if options.batch is not None:
        counts["--batch"] = options.batch
    if min(counts.values()) < 1:
        got = ", ".join(map(str, counts.values()))
        command.error(f"need {', '.join(counts)} of at least 1; got {got}")
    if options.backend == "numpy" and "bfloat16" in options.dtypes:
        command.error("need --backend cupy for bfloat16; got numpy")
    for path in (options.json, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            command.error(f"need a file in a folder that exists; got {path}")
    if options.load is not None and not options.load.is_file():
        command.error(f"need --load to name a file that --json wrote; got {options.load}")
    if options.plot is not None and options.load is None and "torch" not in libraries:
        command.error(f"need torch among the libraries for --plot; got {libraries}")


def need_gpu(command: argparse.ArgumentParser) -> None:
    """End with a message where CuPy has no device."""
    try:
        importlib.import_module("cupy").cuda.Device().use()
    except Exception as error:  # CuPy's own, of a driver or device that is not there
        command.error(f"need CuPy and a GPU for --backend cupy; got {error}")


def selected(text: str, name: str) -> bool:
    """Whether a layer's name has the text, from the start of a word on."""
    return re.search(rf"(^|\W){re.escape(text)}", name, re.IGNORECASE) is not None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        "python -m xconv.bench",
        description="Time convolution layers against other libraries.",
        epilog=(
            "Columns: ms, the time of xconv; 'x floor', that over what this machine's product and "
            "copy allow a direct method; for each other library, xconv's time over its own (below "
            "1: xconv is faster); MiB, peak memory of xconv beyond arguments, result and what its "
            "threads keep; error, of float32 against float64, as a part of the largest result. "
            "The suite takes 6 minutes without and 12 with memory on two cores. Needs torch "
            "(pip install torch) to compare with, tqdm for a progress bar, matplotlib for --plot. "
            "With --backend cupy, all run on the GPU: times are between two events of its stream, "
            "without what it takes the host to launch the work; "
            "memory is what a library's own pool took; torch:tf32 may round float32 to 19 bits, as "
            "xconv may with CUPY_TF32=1 in the environment."
        ),
    )
    add = result.add_argument
    names = ", ".join(NEEDS)
    add("--libraries", nargs="+", metavar="NAME", help=f"{names}, or xconv:METHOD (xconv torch)")
    add("--layers", nargs="+", default=[""], metavar="TEXT", help="only layers or groups with it")
    add("--dtypes", nargs="+", default=DTYPES, choices=(*DTYPES, "float16", "bfloat16"))
    add("--batch", type=int, metavar="N", help="samples of every layer, instead of the suite's")
    add("--contractions", nargs="+", default=CONTRACTIONS, choices=CONTRACTIONS)
    add("--backend", default="numpy", choices=("numpy", "cupy"))
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every library")
    add("--rounds", type=int, default=5, help="samples of each library, alternated (default: 5)")
    add("--no-memory", action="store_true", help="skip peak memory and errors")
    add("--json", type=Path, metavar="FILE", help="write everything that was measured")
    add("--load", type=Path, metavar="FILE", help="show what --json wrote; measure nothing")
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
        if "xconv:cudnn" in libraries:
            packages.add("nvidia-cudnn-frontend")
        device += f", CUPY_TF32 {os.environ.get('CUPY_TF32', '0')}"
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
