"""What was measured, as text, as JSON and as a picture."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .measure import Job, Row
from .suite import CONTRACTIONS

COLORS = {"forward": "#2171b5", "grad_input": "#e6550d", "grad_weight": "#31a354"}


def mean(ratios: Iterable[float | None]) -> float:
    """Return the geometric mean of those that exist; NaN where none does."""
    logs = [math.log(ratio) for ratio in ratios if ratio]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def table(rows: list[Row], ours: str = "xconv") -> str:
    """Return one line per row: times, ratios to each other library, memory, floor."""
    others = [name for name in rows[0].seconds if name != ours] if rows else []
    head = f"{'layer':<38}{'dtype':<9}{'contraction':<12}{'ms':>9}{'x floor':>8}"
    lines = [head + "".join(f"{'vs ' + name:>15}" for name in others) + f"{'MiB':>8}{'error':>9}"]
    for row in rows:
        time = row.seconds.get(ours)
        line = f"{row.job.layer.name:<38}{row.job.dtype:<9}{row.job.contraction:<12}"
        line += f"{time * 1e3:9.3f}{time / row.floor:8.1f}" if time else f"{'-':>9}{'-':>8}"
        for name in others:
            ratio = row.ratio(ours, name)
            line += f"{ratio:15.2f}" if ratio else f"{'-':>15}"
        peak = row.memory.get(ours)
        line += f"{peak / 2**20:8.1f}" if peak is not None else f"{'-':>8}"
        line += f"{row.error:9.1e}" if row.error is not None else f"{'-':>9}"
        lines.append(line)
    return "\n".join(lines)


def summary(rows: list[Row], ours: str = "xconv", theirs: str = "torch") -> str:
    """Return a Markdown table: the geometric mean of the ratios per group, the worst row beside."""
    dtypes = list(dict.fromkeys(row.job.dtype for row in rows))
    groups = list(dict.fromkeys(row.job.layer.group for row in rows))
    done = {row.job.contraction for row in rows}
    columns = [(dtype, c) for dtype in dtypes for c in CONTRACTIONS if c in done]
    head = " | ".join(f"{dtype} {c.replace('_', ' ')}" for dtype, c in columns)
    lines = [f"| layers | {head} |", "|---|" + "---|" * len(columns)]
    for group in [*groups, "all"]:
        cells = []
        for dtype, contraction in columns:
            ratios = [
                ratio
                for row in rows
                if (row.job.dtype, row.job.contraction) == (dtype, contraction)
                and group in (row.job.layer.group, "all")
                and (ratio := row.ratio(ours, theirs))
            ]
            cells.append(f"{mean(ratios):.2f} ({max(ratios):.2f})" if ratios else "")
        count = len({row.job.number for row in rows if group in (row.job.layer.group, "all")})
        lines.append(f"| {group} ({count}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(path: Path, machine: dict[str, Any], rows: list[Row]) -> None:
    """Write everything as JSON."""
    entries = [
        {**row._asdict(), "job": {**row.job._asdict(), "layer": row.job.layer._asdict()}}
        for row in rows
    ]
    path.write_text(json.dumps({"machine": machine, "rows": entries}, indent=1), encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read what `save` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for entry in data["rows"]:
        job = Job(*(entry["job"].get(name) for name in Job._fields))
        rows.append(Row(**{**entry, "job": job}))
    return data["machine"], rows


def draw(path: Path, machine: dict[str, Any], rows: list[Row], ours: str = "xconv") -> None:
    """Draw each row's time over PyTorch's, one panel per dtype, layers in the suite's order."""
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(12, 7), layout="constrained"
    )
    dtypes = list(dict.fromkeys(row.job.dtype for row in rows))
    numbers = sorted({row.job.number for row in rows})
    places = {number: place for place, number in enumerate(numbers)}
    panels = figure.subplots(len(dtypes), 1, sharex=True, squeeze=False)[:, 0]
    for axes, dtype in zip(panels, dtypes, strict=True):
        for contraction in CONTRACTIONS:
            points = [
                (places[row.job.number], ratio)
                for row in rows
                if (row.job.dtype, row.job.contraction) == (dtype, contraction)
                and (ratio := row.ratio(ours))
            ]
            if not points:
                continue
            whole = mean(ratio for _, ratio in points)
            label = f"{contraction.replace('_', ' ')}: {whole:.2f} in the geometric mean"
            axes.plot(*zip(*points, strict=True), ".", color=COLORS[contraction], label=label)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_yscale("log")
        ticks = (0.01, 0.03, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylabel(f"{dtype}: time of xconv / PyTorch")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower left", fontsize=8, frameon=False)
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(row.job.layer.group, []).append(places[row.job.number])
    for name, members in groups.items():
        for axes in panels:
            axes.axvline(max(members) + 0.5, color="#999999", linewidth=0.6)
        panels[0].text(
            (min(members) + max(members)) / 2,
            1.02,
            name.replace(" ", "\n", 1),
            ha="center",
            va="bottom",
            fontsize=7,
            transform=panels[0].get_xaxis_transform(),
        )
    panels[-1].set_xlabel("layers; below 1 xconv is faster")
    panels[-1].set_xticks([])
    figure.suptitle(", ".join(f"{key} {value}" for key, value in machine.items()), fontsize=8)
    figure.savefig(path, dpi=120)
