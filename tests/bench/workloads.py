"""What is measured: sizes, and the weights and data that every side starts from."""

import dataclasses
import json
import pathlib
import zlib
from typing import Literal

import numpy as np

SEED = 0


@dataclasses.dataclass(frozen=True)
class Workload:
    """One outer step (or, for `meta_test`, many test tasks), described by plain numbers that JSON can carry."""

    name: str
    about: str
    learner: Literal["maml", "prototypical", "meta_test"]
    tasks: int
    shot: int
    queries: int
    way: int = 1
    inner_rate: float = 0.0
    inner_steps: int = 0
    network: Literal["mlp", "conv4"] = "conv4"
    channels: int = 1
    image_size: int = 28
    width: int = 64
    stride: int = 1
    spatial_mean: bool = False
    # Whether every step draws new tasks, which counts as part of it.
    sampled: bool = False
    # Whether to run plain JAX at full size.
    naive: bool = True
    # Outer steps in one call of a side that can take several (test tasks, for `meta_test`).
    steps_per_call: int = 1

    @property
    def support(self) -> int:
        return self.way * self.shot

    @property
    def query(self) -> int:
        return self.way * self.queries

    @property
    def has_head(self) -> bool:
        return self.learner == "maml"


_SINUSOID = Workload(
    "sinusoid",
    "MAML's regression: MLP 1-40-40-1, 25 tasks, 10 + 10 points, 1 inner step, second order",
    "maml",
    tasks=25,
    shot=10,
    queries=10,
    inner_rate=0.01,
    inner_steps=1,
    network="mlp",
    width=40,
    steps_per_call=200,
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        _SINUSOID,
        dataclasses.replace(
            _SINUSOID, name="sinusoid_sampled", about="the same, drawing 25 new tasks every step", sampled=True
        ),
        Workload(
            "omniglot_paper",
            "MAML's Omniglot net: 4 x conv 3x3 stride 2, 64; 32 tasks, 5-way 1-shot, 1 query, 1 inner step",
            "maml",
            tasks=32,
            way=5,
            shot=1,
            queries=1,
            inner_rate=0.4,
            inner_steps=1,
            stride=2,
            spatial_mean=True,
            steps_per_call=8,
        ),
        Workload(
            "conv4_heavy",
            "MAML on Conv4-64 with max-pool, 28x28; 8 tasks, 5-way 1-shot, 15 queries, 1 inner step",
            "maml",
            tasks=8,
            way=5,
            shot=1,
            queries=15,
            inner_rate=0.4,
            inner_steps=1,
            steps_per_call=2,
        ),
        Workload(
            "proto60",
            "Prototypical Networks: Conv4-64 with max-pool, 28x28; one 60-way 1-shot task, 5 queries",
            "prototypical",
            tasks=1,
            way=60,
            shot=1,
            queries=5,
            steps_per_call=2,
        ),
        Workload(
            "mini84",
            "MAML on Conv4-32 with max-pool, 84x84x3; 4 tasks, 5-way 1-shot, 15 queries, 5 inner steps",
            "maml",
            tasks=4,
            way=5,
            shot=1,
            queries=15,
            inner_rate=0.01,
            inner_steps=5,
            channels=3,
            image_size=84,
            width=32,
            naive=False,  # minutes a step
            steps_per_call=2,
        ),
        Workload(
            "meta_test",
            "testing a Prototypical Network: Conv4-64, 28x28; 5-way 1-shot, 15 queries; per task",
            "meta_test",
            tasks=1,
            way=5,
            shot=1,
            queries=15,
            steps_per_call=600,
        ),
    )
}


def smoke(workload: Workload) -> Workload:
    """The same workload, small enough for a test: every code path, no figure worth reading."""
    if workload.network == "mlp":
        return dataclasses.replace(workload, tasks=4, width=8, steps_per_call=3)
    return dataclasses.replace(
        workload,
        tasks=2 if workload.learner == "maml" else 1,
        way=min(workload.way, 6),
        queries=2,
        inner_steps=min(workload.inner_steps, 2),
        width=4,
        # Odd where it is pooled: 21 becomes 10 and 5, so the dropped edge is covered.
        image_size=28 if workload.stride == 2 else 21 if workload.image_size == 28 else 37,
        naive=True,
        steps_per_call=2 if workload.learner != "meta_test" else 8,
    )


def weights(workload: Workload, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights by name: convolutions `[out, in, kh, kw]`, matrices `[in, out]`, both as numpy's normal draws.

    Scales and offsets start away from one and zero, where a side that forgot them would still agree.
    """
    drawn: dict[str, np.ndarray] = {}

    def matrix(name: str, fan_in: int, out: int) -> None:
        drawn[f"{name}.weight"] = rng.normal(size=(fan_in, out)) * fan_in**-0.5
        drawn[f"{name}.bias"] = 0.1 * rng.normal(size=out)

    if workload.network == "mlp":
        sizes = [1, workload.width, workload.width, 1]
        for i in range(3):
            matrix(f"linear{i}", sizes[i], sizes[i + 1])
    else:
        channels, side = workload.channels, workload.image_size
        for i in range(4):
            drawn[f"conv{i}.weight"] = rng.normal(size=(workload.width, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
            drawn[f"conv{i}.bias"] = 0.1 * rng.normal(size=workload.width)
            drawn[f"norm{i}.scale"] = 1 + 0.1 * rng.normal(size=workload.width)
            drawn[f"norm{i}.bias"] = 0.1 * rng.normal(size=workload.width)
            channels, side = workload.width, (side // 2 if workload.stride == 1 else -(-side // 2))
        if workload.has_head:
            matrix("head", workload.width * (1 if workload.spatial_mean else side * side), workload.way)
    return drawn


def data(workload: Workload, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Tasks with a leading task axis; images `[task, n, c, h, w]` sorted by class, curves `[task, n, 1]`."""
    tasks = workload.tasks
    if workload.network == "mlp":
        amplitude, phase = rng.uniform(0.1, 5.0, (tasks, 1, 1)), rng.uniform(0, np.pi, (tasks, 1, 1))
        x = rng.uniform(-5, 5, (tasks, workload.support + workload.query, 1))
        y = amplitude * np.sin(x - phase)
        n = workload.support
        return {"support_x": x[:, :n], "support_y": y[:, :n], "query_x": x[:, n:], "query_y": y[:, n:]}
    image = (workload.channels, workload.image_size, workload.image_size)
    drawn: dict[str, np.ndarray] = {}
    for part, each in (("support", workload.shot), ("query", workload.queries)):
        drawn[f"{part}_x"] = rng.normal(size=(tasks, workload.way * each, *image))
        drawn[f"{part}_y"] = np.tile(np.repeat(np.arange(workload.way, dtype=np.int32), each), (tasks, 1))
    if workload.learner == "meta_test":
        # As many classes as Omniglot's usual test split has characters, 20 drawings of each.
        drawn["pool"] = rng.integers(0, 256, size=(423, 20, *image), dtype=np.uint8)
    return drawn


def write(workload: Workload, path: pathlib.Path) -> None:
    """One file that every side of a workload loads: what to do, weights and data, in float32."""
    rng = np.random.default_rng([SEED, zlib.crc32(workload.name.encode())])
    arrays = {f"weights/{name}": value for name, value in weights(workload, rng).items()}
    arrays |= {f"data/{name}": value for name, value in data(workload, rng).items()}
    arrays = {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in arrays.items()}
    np.savez(path, workload=json.dumps(dataclasses.asdict(workload)), **arrays)
