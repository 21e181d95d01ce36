"""A picture of what was measured; matplotlib is imported here, when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from russet.bench import Measurement
from russet.errors import UsageError

#: What a sweep can go over, and how its axis is called.
_SWEEPS = {"depth": "tokens before the test", "batch": "texts together", "threads": "threads"}
_FORMATS = (".png", ".svg", ".pdf")


def check_plot(file: str) -> None:
    """Raises UsageError where `file` could not be drawn in the end: before anything is measured."""
    path = Path(file)
    if path.suffix not in _FORMATS:
        raise UsageError(f"--plot: expected a file that ends in {', '.join(_FORMATS)}, got {file!r}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot: {path.parent}: no such folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError('--plot needs matplotlib: pip install "russet[plot]"') from None


def plot(file: str, measurements: Sequence[Measurement], *, title: str) -> None:
    """Draw tokens/s, prompts and generation side by side: lines over what was swept, bars where nothing was."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "prompt": [m for m in measurements if not m.n_generated],
        "generation": [m for m in measurements if m.n_generated],
    }
    panels = {name: of_it for name, of_it in panels.items() if of_it}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), layout="constrained", squeeze=False)
    for axis, (name, of_it) in zip(axes[0], panels.items(), strict=True):
        axis.set_title(name)
        axis.set_ylabel("tokens/s")
        axis.grid(axis="y", alpha=0.3)
        sweep = max(_SWEEPS, key=lambda field: len({getattr(m, field) for m in of_it}))
        if len({getattr(m, sweep) for m in of_it}) > 1:
            _lines(axis, of_it, sweep)
        else:
            _bars(axis, of_it)
        axis.set_ylim(bottom=0)
    figure.suptitle(title)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _lines(axis: Any, measurements: Sequence[Measurement], sweep: str) -> None:
    """tokens/s over the values of one field, a line for every value of the others."""
    others = [field for field in _SWEEPS if field != sweep and len({getattr(m, field) for m in measurements}) > 1]
    lines: dict[str, list[Measurement]] = {}
    for m in measurements:
        name = m.test.partition(" @")[0] if sweep == "depth" else m.test
        told = [f"{field} {getattr(m, field)}" for field in others if field != "depth"]  # a test's name has its depth
        lines.setdefault(", ".join([name, *told]), []).append(m)
    for label, points in lines.items():
        points = sorted(points, key=lambda m: int(getattr(m, sweep)))
        axis.errorbar(
            [getattr(m, sweep) for m in points],
            [m.tokens_per_s for m in points],
            yerr=_spread(points),
            marker="o",
            capsize=3,
            label=label,
        )
    axis.set_xlabel(_SWEEPS[sweep])
    axis.set_xticks(sorted({getattr(m, sweep) for m in measurements}))
    axis.legend()


def _bars(axis: Any, measurements: Sequence[Measurement]) -> None:
    bars = axis.bar(
        [m.test for m in measurements],
        [m.tokens_per_s for m in measurements],
        width=0.5,
        yerr=_spread(measurements),
        capsize=3,
    )
    axis.bar_label(bars, fmt="%.3g", label_type="center", color="white")


def _spread(measurements: Sequence[Measurement]) -> list[list[float]]:
    """How far the slowest and the fastest run are from the median, as matplotlib wants it."""
    below = [m.tokens_per_s - m.tokens_per_s_lowest for m in measurements]
    above = [m.tokens_per_s_highest - m.tokens_per_s for m in measurements]
    return [below, above]
