"""The pictures of a run."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from metakit.evaluate import Interval

# Okabe and Ito's palette: told apart by readers with any colour vision.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"


def _save(figure: Figure, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def learning_curve(records: list[dict[str, Any]], path: pathlib.Path, *, score: str, is_share: bool) -> None:
    """Meta-loss of every dispatch, and the validation score with its interval."""
    progress = [r for r in records if r["event"] == "progress"]
    validated = [r for r in records if r["event"] == "validated"]
    figure, panels = plt.subplots(1, 1 + bool(validated), figsize=(9 if validated else 4.6, 3.2), squeeze=False)
    left = panels[0, 0]
    left.plot([r["step"] for r in progress], [r["loss"] for r in progress], color=_BLUE, linewidth=1)
    left.set(xlabel="outer step", ylabel="meta-loss (training tasks)")
    if min((r["loss"] for r in progress), default=0) > 0:
        left.set_yscale("log")
    if validated:
        steps, factor = [r["step"] for r in validated], 100 if is_share else 1
        mean, low, high = (factor * np.array([r[k] for r in validated]) for k in ("mean", "low", "high"))
        right = panels[0, 1]
        right.plot(steps, mean, color=_ORANGE, marker="o", markersize=4)
        right.fill_between(steps, low, high, color=_ORANGE, alpha=0.25, label="95 % interval")
        right.set(xlabel="outer step", ylabel=f"validation {score}{' (%)' if factor == 100 else ''}")
        right.legend(frameon=False)
    for axes in panels.flat:
        _tidy(axes)
    figure.tight_layout()
    _save(figure, path)


def episode_grid(
    support: Any, query: Any, predicted: Any, names: Sequence[str], path: pathlib.Path, *, ink: bool, most: int = 5
) -> None:
    """One episode: a row a class, its support example first, then queries with what was predicted."""
    shown = min(support.way, 10)
    rows = [np.flatnonzero(np.asarray(query.y) == label)[:most] for label in range(shown)]
    columns = 1 + max(len(row) for row in rows)
    figure, grid = plt.subplots(shown, columns, figsize=(1.05 * columns, 1.25 * shown), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    images, answers = np.asarray(query.x), np.asarray(predicted)
    for label, row in enumerate(rows):
        first = int(np.flatnonzero(np.asarray(support.y) == label)[0])
        _image(grid[label, 0], np.asarray(support.x)[first], _short(names[label]), _GREY, ink)
        for column, index in enumerate(row, start=1):
            right = answers[index] == label
            _image(
                grid[label, column], images[index], _short(names[int(answers[index])]), _BLUE if right else _RED, ink
            )
    figure.suptitle("support | queries with the predicted class (orange: wrong)", fontsize=9)
    figure.tight_layout(pad=0.4)
    _save(figure, path)


def _short(name: str, most: int = 16) -> str:
    """The end of a name, which tells neighbours in a hierarchy apart."""
    return name if len(name) <= most else "…" + name[-most + 1 :]


def _image(axes: Any, image: np.ndarray, title: str, colour: str, ink: bool) -> None:
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    # Light ink on a dark ground is shown as one would draw it; a photograph as it is.
    axes.imshow(np.moveaxis(image, 0, -1).squeeze(), cmap="gray_r" if ink else "gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=6, color=colour, pad=2)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.5)


def series(intervals: list[Interval], path: pathlib.Path, *, name: str, first: int, score: str, is_share: bool) -> None:
    """The test score against a count, such as the number of inner steps."""
    factor = 100 if is_share else 1
    steps = first + np.arange(len(intervals))
    mean, low, high = (factor * np.array([getattr(i, k) for i in intervals]) for k in ("mean", "low", "high"))
    figure, axes = plt.subplots(figsize=(4.6, 3.2))
    axes.errorbar(steps, mean, yerr=[mean - low, high - mean], color=_GREEN, marker="o", capsize=3)
    axes.set(xlabel=name, ylabel=f"test {score}{' (%)' if factor == 100 else ''}", xticks=steps)
    _tidy(axes)
    _save(figure, path)


def regression_curves(curves: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Some test tasks: support points, the curve before and after adaptation, the truth at the query points."""
    figure, grid = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.2), squeeze=False)
    for axes, curve in zip(grid[0], curves, strict=True):
        if "before" in curve:
            axes.plot(curve["x"], curve["before"], color=_GREY, linestyle=":", label="before adaptation")
        axes.plot(curve["x"], curve["after"], color=_BLUE, label="after adaptation")
        axes.plot(curve["truth_x"], curve["truth_y"], "+", color=_GREEN, label="truth (queries)")
        axes.plot(curve["support_x"], curve["support_y"], "o", color=_RED, markersize=5, label="support")
        axes.set(xlabel="x", ylabel="y")
        _tidy(axes)
    grid[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    _save(figure, path)


def bands(curves: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Some test tasks: mean and two standard deviations of the learner and of the exact posterior, and the points."""
    figure, grid = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.2), squeeze=False)
    for axes, curve in zip(grid[0], curves, strict=True):
        x, mean, width = curve["x"], curve["mean"], 2 * curve["scale"]
        axes.fill_between(x, mean - width, mean + width, color=_BLUE, alpha=0.25, linewidth=0)
        axes.plot(x, mean, color=_BLUE, label="learner, two standard deviations")
        exact, width = curve["exact_mean"], 2 * curve["exact_scale"]
        axes.plot(x, exact, color=_GREY, linewidth=0.9, label="exact posterior")
        for sign in (-1, 1):
            axes.plot(x, exact + sign * width, color=_GREY, linestyle="--", linewidth=0.8)
        axes.plot(curve["query_x"], curve["query_y"], "+", color=_GREEN, label="truth (queries)")
        axes.plot(curve["support_x"], curve["support_y"], "o", color=_RED, markersize=5, label="support")
        axes.set(xlabel="x", ylabel="y")
        _tidy(axes)
    grid[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    _save(figure, path)


def walks(tasks: list[dict[str, Any]], path: pathlib.Path) -> None:
    """A few walks to each goal: before adaptation dotted, after it solid."""
    figure, axes = plt.subplots(figsize=(4.6, 4.4))
    for colour, task in zip((_BLUE, _ORANGE, _GREEN), tasks, strict=True):
        for name, style in (("before", ":"), ("after", "-")):
            for positions in task[name]:
                axes.plot(*positions.T, style, color=colour, linewidth=1)
        axes.plot(*task["goal"], "*", color=colour, markersize=13, markeredgecolor="black")
    axes.set(xlabel="before adaptation (dotted), after it (solid)", aspect="equal")
    _tidy(axes)
    figure.tight_layout()
    _save(figure, path)


def predictions_grid(
    support: Any,
    queries: Any,
    probabilities: np.ndarray,
    names: Sequence[str],
    path: pathlib.Path,
    *,
    ink: bool,
    columns: int = 8,
    most: int = 40,
) -> None:
    """One support example of each class, then queries with the predicted class and its probability."""
    images, x, y = np.asarray(queries)[:most], np.asarray(support.x), np.asarray(support.y)
    shown = [(x[int(np.flatnonzero(y == label)[0])], name, _GREY) for label, name in enumerate(names[:most])]
    rows_of_support = -(-len(shown) // columns)
    cells: list[tuple[np.ndarray, str, str] | None] = [*shown, *([None] * (rows_of_support * columns - len(shown)))]
    for image, row in zip(images, probabilities, strict=False):
        best = int(np.argmax(row))
        cells.append((image, f"{_short(names[best], 11)} {100 * row[best]:.0f} %", _BLUE))
    height = -(-len(cells) // columns)
    figure, grid = plt.subplots(height, columns, figsize=(1.15 * columns, 1.3 * height), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, cell in zip(grid.flat, cells, strict=False):
        if cell is not None:
            image, title, colour = cell
            _image(axes, image, title, colour, ink)
    figure.suptitle("support (grey) | queries with the predicted class and its probability (blue)", fontsize=9)
    figure.tight_layout(pad=0.4)
    _save(figure, path)


def predicted_curve(support: Any, x: np.ndarray, y: np.ndarray, scale: np.ndarray | None, path: pathlib.Path) -> None:
    """The support points of a curve, and what was predicted at the queries."""
    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    order = np.argsort(x[:, 0])
    axes.plot(x[order, 0], y[order, 0], color=_BLUE, marker=".", label="predicted")
    if scale is not None:
        low, high = (y[order, 0] + sign * 2 * scale[order, 0] for sign in (-1, 1))
        axes.fill_between(x[order, 0], low, high, color=_BLUE, alpha=0.25, label="two standard deviations")
    axes.plot(np.asarray(support.x)[:, 0], np.asarray(support.y)[:, 0], "o", color=_RED, label="support")
    axes.set(xlabel="x", ylabel="y")
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)
    _save(figure, path)


def comparison(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    scores: Sequence[tuple[str, float, float, float]],
    path: pathlib.Path,
    *,
    score: str,
    is_share: bool,
) -> None:
    """Validation scores of several runs by outer step, and their test scores with intervals."""
    factor, unit = (100, " (%)") if is_share else (1, "")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 0.35 * len(scores) + 2.6))
    colours = plt.colormaps["tab10"]
    for i, (name, steps, means) in enumerate(curves):
        left.plot(steps, factor * np.asarray(means), color=colours(i % 10), marker="o", markersize=3, label=name)
    left.set(xlabel="outer step", ylabel=f"validation {score}{unit}")
    left.legend(frameon=False, fontsize=7)
    for i, (_, mean, low, high) in enumerate(scores):
        error = [[factor * (mean - low)], [factor * (high - mean)]]
        right.errorbar([factor * mean], [i], xerr=error, fmt="o", color=colours(i % 10), capsize=3)
    right.set(yticks=range(len(scores)), yticklabels=[name for name, *_ in scores], xlabel=f"test {score}{unit}")
    right.invert_yaxis()
    for axes in (left, right):
        _tidy(axes)
    figure.tight_layout()
    _save(figure, path)
