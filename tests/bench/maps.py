"""`python -m tests.bench.maps`: each map of a convolution, as XLA's own and as patches and a product.

What `metakit/nn/_convolution_maps.py` chooses by. Each map runs inside a scan over tasks, as in a meta-gradient whose
tasks run one after another; the two forms take turns.
"""

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import tyro
from rich.console import Console
from rich.table import Table

from metakit.nn import _convolution_maps as maps

from .serving import timed_calls


@dataclasses.dataclass(frozen=True)
class Options:
    """Both forms of a convolution's maps."""

    rounds: int = 5
    """A rate is the median over them."""
    tasks: int = 8
    """In one scan."""
    smoke: bool = False
    """One round of two tasks."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A 3 x 3 convolution."""

    images: int
    size: int
    channels: int
    filters: int
    stride: int = 1

    @property
    def about(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.images} images, {self.size}x{self.size}, {self.channels} to {self.filters}{stride}"

    @property
    def geometry(self) -> maps.Geometry:
        """With the padding that "SAME" stands for on an even side."""
        pad = (1, 1) if self.stride == 1 else (0, 1)
        return maps.Geometry((self.size,) * 2, (3, 3), (self.stride,) * 2, (pad, pad))

    @property
    def flop(self) -> int:
        height, width = self.geometry.out
        return 2 * 9 * self.images * height * width * self.channels * self.filters


LAYERS = (Layer(75, 14, 64, 64), Layer(75, 28, 1, 64), Layer(5, 14, 64, 64, stride=2))
FORMS = {"XLA": True, "patches": False}


def operands(layer: Layer, name: str, tasks: int) -> tuple[Any, Any]:
    """Random images, weights or outputs of many tasks, as the map takes them."""
    x = (tasks, layer.images, layer.size, layer.size, layer.channels)
    y = (tasks, layer.images, *layer.geometry.out, layer.filters)
    w = (tasks, 3, 3, layer.channels, layer.filters)
    shapes = {"output": (x, w), "input_gradient": (y, w), "weight_gradient": (x, y)}[name]
    a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    return a, b


@contextlib.contextmanager
def form(use_xla: bool) -> Iterator[None]:
    """While a map is traced, in place of what would be chosen."""
    with mock.patch.object(maps, "_use_xla", return_value=use_xla):
        yield


def program(layer: Layer, name: str, use_xla: bool, tasks: int) -> Callable[[], int]:
    """A call of the compiled map, over all tasks; returns their number."""
    pairs = operands(layer, name, tasks)
    one = getattr(maps, name)
    with form(use_xla):
        compiled = (
            jax.jit(lambda pairs: jax.lax.map(lambda pair: one(*pair, layer.geometry, "cpu"), pairs))
            .lower(pairs)
            .compile()
        )

    def call() -> int:
        jax.block_until_ready(compiled(pairs))
        return tasks

    return call


def rates(layer: Layer, name: str, rounds: int, tasks: int) -> dict[str, float]:
    """GFLOP/s of both forms."""
    calls = {label: program(layer, name, use_xla, tasks) for label, use_xla in FORMS.items()}
    found: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(rounds):
        for label, call in calls.items():
            found[label].append(statistics.median(timed_calls(call, seconds=0.1, most=20)))
    return {label: layer.flop / (statistics.median(times) / 1e3) / 1e9 for label, times in found.items()}


def main() -> int:
    options = tyro.cli(Options, prog="python -m tests.bench.maps")
    rounds, tasks = (1, 2) if options.smoke else (options.rounds, options.tasks)
    table = Table("map", *(layer.about for layer in LAYERS), title="GFLOP/s of (XLA, patches)", title_justify="left")
    for name in ("output", "input_gradient", "weight_gradient"):
        row = []
        for layer in LAYERS:
            found = rates(layer, name, rounds, tasks)
            row.append(", ".join(f"{rate:.0f}" for rate in found.values()))
        table.add_row(name, *row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
