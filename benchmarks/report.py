"""What every benchmark shares: interleaved timing, a table, the line about the machine, a plot."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from russet import _core


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each contender in each round; every round runs all of them, the first (a warm-up) is not counted.

    Where the caller's thread does all the work, time.thread_time as the clock leaves out what other programs take.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(-1, rounds):
        for name, run in contenders.items():
            start = clock()
            run()
            if round_ >= 0:
                seconds[name].append(clock() - start)
    return seconds


def spread(values: Sequence[float], digits: int = 1) -> str:
    """'median (lowest to highest)'"""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def machine(threads: int) -> str:
    """Chip, features, threads, BLAS, system and commit: what a figure means nothing without."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    blas = _core.matmul_library()
    return (
        f"{_core.cpu_name()} ({', '.join(_core.cpu_features()) or 'scalar'}), {threads} threads, BLAS {blas}, "
        f"{platform.system()} {platform.machine()}, commit {commit or 'unknown'}"
    )


class Table:
    """Columns of text, the first left-aligned, as markdown, so that a table can be pasted into the docs."""

    def __init__(self, *columns: str) -> None:
        self._rows = [columns]

    def row(self, *cells: str) -> None:
        self._rows.append(cells)

    def print(self) -> None:
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in self._rows]
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        print("\n".join(lines), flush=True)


def plot_bars(
    file: str, *, title: str, ylabel: str, groups: Sequence[str], bars: Mapping[str, Sequence[float]]
) -> None:
    """One group of bars per entry of `groups`, one colour per contender."""
    axes, save = _axes(file, title)
    width = 0.8 / len(bars)
    for i, (name, heights) in enumerate(bars.items()):
        places = [group + (i - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        axes.bar_label(axes.bar(places, heights, width, label=name), fmt="%.3g", fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(ylabel)
    axes.legend()
    save()


def plot_lines(
    file: str, *, title: str, xlabel: str, ylabel: str, x: Sequence[float], lines: Mapping[str, Sequence[float]]
) -> None:
    axes, save = _axes(file, title)
    for name, y in lines.items():
        axes.plot(x, y, marker="o", label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0)
    axes.legend()
    save()


def plot_panels(
    file: str, *, title: str, xlabel: str, panels: Sequence[str], bars: Mapping[str, Sequence[float]]
) -> None:
    """One panel per entry of `panels`, each with a scale of its own and one bar per contender."""
    pyplot = _pyplot()
    size = (4 * len(panels) + 2, 0.3 * len(bars) + 1.5)
    figure, grid = pyplot.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    figure.suptitle(title)
    for i, (axes, panel) in enumerate(zip(grid[0], panels, strict=True)):
        axes.bar_label(axes.barh(list(bars), [widths[i] for widths in bars.values()]), fmt="%.3g", padding=2)
        axes.set_title(panel)
        axes.set_xlabel(xlabel)
        axes.margins(x=0.15)
    grid[0, 0].invert_yaxis()  # the first contender on top
    figure.savefig(file, dpi=120)


def _axes(file: str, title: str):  # type: ignore[no-untyped-def]
    figure, axes = _pyplot().subplots(figsize=(8, 5), layout="constrained")
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    return axes, lambda: figure.savefig(file, dpi=120)


def _pyplot():  # type: ignore[no-untyped-def]
    try:
        import matplotlib
    except ImportError:
        raise SystemExit('--plot needs matplotlib: pip install "russet[plot]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
