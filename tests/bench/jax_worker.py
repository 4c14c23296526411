"""A worker of the JAX sides: `python -m tests.bench.jax_worker metakit|naive DEVICES`."""

import json
import platform
import sys
import time
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .metakit_side import MetakitSide
from .naive_side import NaiveSide
from .serving import peak_bytes, serve, timed_calls
from .workloads import Workload

_SIDES: dict[str, Any] = {"metakit": MetakitSide, "naive": NaiveSide}


class Answers:
    def __init__(self, side: str, devices: int):
        self._make, self._devices = _SIDES[side], devices
        self.side: Any = None

    def hello(self) -> dict[str, Any]:
        """What runs here."""
        device = jax.devices()[0]
        return {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "equinox": equinox.__version__,
            "optax": optax.__version__,
            "platform": device.platform,
            "device": device.device_kind,
            "devices": len(jax.devices()),
        }

    def load(self, path: str) -> None:
        with np.load(path) as file:
            workload = Workload(**json.loads(str(file["workload"])))
            groups: dict[str, dict[str, np.ndarray]] = {"weights": {}, "data": {}}
            for name in file.files:
                if "/" in name:
                    group, leaf = name.split("/", 1)
                    groups[group][leaf] = file[name]
        self.side = self._make(workload, groups["weights"], groups["data"], self._devices)

    def first(self) -> dict[str, float]:
        """Seconds of the first call (tracing and compiling too), of the second, and of each step in that one."""
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            steps = self.side.step()
            seconds.append(time.perf_counter() - start)
        return {"first": seconds[0], "second": seconds[1], "per_step": seconds[1] / steps}

    def time(self, variant: str, seconds: float, most: int, warm: bool = True) -> list[float]:
        return timed_calls(getattr(self.side, variant), seconds=seconds, most=most, warm=warm)

    def check(self, into: str, float64: bool) -> None:
        if jax.config.jax_enable_x64 != float64:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError("the precision of a JAX process is chosen when it starts")
        loss, gradient = self.side.check()
        np.savez(into, loss=np.float64(loss), **{f"gradient/{name}": value for name, value in gradient.items()})

    def temporary_bytes(self, times: int = 1) -> int:
        """Scratch memory of one step on so many times the workload's tasks."""
        return self.side.temporary_bytes(times)

    def peak_bytes(self) -> dict[str, int | None]:
        """Of this process, and of the accelerator where it keeps an account."""
        statistics = jax.devices()[0].memory_stats() or {}
        return {"process": peak_bytes(), "device": statistics.get("peak_bytes_in_use")}

    def matmul_rate(self, size: int, repeat: int) -> float:
        """FLOP/s of the fastest of several float32 products of square matrices: what this machine can do."""
        a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
        multiply = jax.jit(jnp.matmul)

        def call() -> int:
            jax.block_until_ready(multiply(a, a))
            return 1

        return 2 * size**3 / (min(timed_calls(call, seconds=60.0, most=repeat)) / 1e3)


def main() -> None:
    answers = Answers(sys.argv[1], int(sys.argv[2]))
    if jax.default_backend() != "cpu":
        # float32 throughout, as the PyTorch sides have it: an accelerator would round products to fewer bits.
        jax.config.update("jax_default_matmul_precision", "highest")
    names = ("hello", "load", "first", "time", "check", "temporary_bytes", "peak_bytes", "matmul_rate")
    serve({name: getattr(answers, name) for name in names})


if __name__ == "__main__":
    main()
