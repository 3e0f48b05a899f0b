"""The command line of the demo: ``python -m xconv``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xconv.demo import BACKENDS, Result, Unavailable, on_host, require, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo with the arguments of a command line; return its exit code."""
    parser = argparse.ArgumentParser("python -m xconv", description="Learn to read digits.")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: cupy if a GPU answers, else numpy"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what was learned")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: 0)")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    options = parser.parse_args(arguments)
    try:
        if options.epochs < 1 or options.seed < 0:
            raise Unavailable(
                f"need --epochs >= 1, --seed >= 0; got {options.epochs}, {options.seed}"
            )
        if options.plot is not None:
            check_drawable(options.plot)
        result = run(options.backend, seed=options.seed, epochs=options.epochs)
        if options.plot is not None:
            draw(options.plot, result)
            print(f"plot: {options.plot}")
    except Unavailable as error:
        print(f"xconv: {error}", file=sys.stderr)
        return 2
    return 0


def check_drawable(path: Path) -> None:
    """Raise before the training what `draw` would raise after it."""
    figure = require("matplotlib.figure", "matplotlib").Figure()
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise Unavailable(f"need --plot to name a picture such as digits.png; got {path}")
    if not path.absolute().parent.is_dir():
        raise Unavailable(f"need --plot to name a file in a folder that exists; got {path}")


def draw(path: Path, result: Result) -> None:
    """Draw the loss, the kernels of the first layer, and digits with what was read in them."""
    figure = require("matplotlib.figure", "matplotlib").Figure(
        figsize=(10, 7), layout="constrained"
    )
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2])
    left, right = top.subfigures(1, 2, width_ratios=[3, 2])
    for part, title in (
        (left, "Loss of every step, and its mean over 40"),
        (right, "Kernels of the first layer (red: negative)"),
        (bottom, f"Digits held out, mistakes first: {result.accuracy:.2%} read right"),
    ):
        part.suptitle(title, fontsize=11)

    axes = left.subplots()
    axes.semilogy(result.losses, color="#9ecae1", linewidth=0.6)
    mean = np.convolve(result.losses, np.full(40, 1 / 40), "valid")
    axes.semilogy(np.arange(len(mean)) + 20, mean, color="#08519c")
    axes.set(xlabel="step", xlim=(0, len(result.losses)))
    axes.spines[["top", "right"]].set_visible(False)

    kernels = on_host(result.network.convs[0].weight)[:, 0]
    for axes, kernel in zip(right.subplots(4, 4).flat, kernels, strict=True):
        largest = abs(kernels).max()
        axes.imshow(kernel, cmap="RdBu", vmin=-largest, vmax=largest)
        axes.axis("off")

    mistakes_first = np.argsort(result.read == result.true, stable=True)
    for axes, i in zip(bottom.subplots(2, 12).flat, mistakes_first[:24], strict=True):
        read, true = result.read[i], result.true[i]
        axes.imshow(result.images[i, 0], cmap="gray_r")
        axes.axis("off")
        wrong = read != true
        axes.set_title(
            f"read {read}, is {true}" if wrong else read,
            color="#cb181d" if wrong else "black",
            fontsize=9,
        )
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
