"""Scaling curves as small pictures, on white, so that they can be read on a light page and on a dark one."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's palette: told apart by readers with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#6E6E6E")
_MARKERS = "osD^vP*X"


def curve(record: dict[str, Any], path: pathlib.Path, *, parameters: int | None = None) -> None:
    """Time at the left, memory at the right, both against one axis.

    **Arguments:** `record`, with `title`, `axis` and `points`; `parameters`, how many numbers a reference line adds for
    each unit of the axis.
    """
    figure, (time, memory) = plt.subplots(1, 2, figsize=(8.4, 3.3), facecolor="white")
    lines = list(dict.fromkeys(point["line"] for point in record["points"]))
    for i, line in enumerate(lines):
        style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 5}
        points = [point for point in record["points"] if point["line"] == line]
        timed = [(p["x"], p["ms"]) for p in points if "ms" in p]
        sized = [(p["x"], p["bytes"] / 2**20) for p in points if "bytes" in p]
        if timed:
            time.plot(*zip(*timed, strict=True), label=line, linewidth=1.3, **style)
        if sized:
            memory.plot(*zip(*sized, strict=True), label=line, linewidth=1.3, **style)
    ticks = sorted({point["x"] for point in record["points"]})
    if parameters is not None:
        reference = [steps * 4 * parameters / 2**20 for steps in ticks]
        memory.plot(ticks, reference, color="#6E6E6E", linestyle=":", linewidth=1.3, label="parameters x steps")
    for axes, label in ((time, "time of a gradient (ms)"), (memory, "temporary memory (MiB)")):
        axes.set(xscale="log", yscale="log", xlabel=record["axis"], ylabel=label)
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.tick_params(labelsize=8)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    memory.legend(frameon=False, fontsize=7)
    figure.suptitle(record["title"], fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)
