"""The JAX side of the bilevel figures: `python -m tests.bench.bilevel_jax`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metakit as mk

from .bilevel_problem import FULL, SMALL, Size, numbers
from .serving import peak_bytes, serve, timed_calls

ADJOINTS: dict[str, mk.inner.AbstractAdjoint] = {
    "Unrolled": mk.inner.Unrolled(),
    "FirstOrder": mk.inner.FirstOrder(),
    "Checkpointed": mk.inner.Checkpointed(),
    "MixedMode": mk.inner.MixedMode(),
    "MixedMode, checkpointed": mk.inner.MixedMode(checkpointed=True),
    "Truncated(20)": mk.inner.Truncated(20),
    "Implicit": mk.inner.Implicit(tolerance=None),
    "Reversible": mk.inner.Reversible(0.89),
    "Forward": mk.inner.Forward(),
    "auto": mk.inner.Auto(),
}


def _network(weights: list[Any], x: Any) -> Any:
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1][None]
        x = jnp.tanh(x) if i + 2 < len(weights) else x
    return x


def _error(weights: list[Any], data: dict[str, Any], part: str) -> Any:
    return jnp.mean((_network(weights, data[f"{part}_x"]) - data[f"{part}_y"]) ** 2)


def _inner(weights: list[Any], hyper: dict[str, Any], data: dict[str, Any], step: Any) -> Any:
    del step
    return _error(weights, data, "train") + hyper["decay"] * sum(jnp.sum(w**2) for w in weights)


def problem(size: Size, num_steps: int, dtype: str, *, momentum: bool, initial: bool) -> mk.Bilevel:
    """By the initial weights and the decay (`initial`), or by the decay alone."""
    rate = jnp.asarray(size.rate, dtype)
    solver = mk.inner.Momentum(rate, jnp.asarray(size.momentum, dtype)) if momentum else mk.inner.SGD(rate)
    start: Callable[[Any], Any] | None = (lambda hyper: hyper["weights"]) if initial else None
    return mk.Bilevel(_inner, lambda w, hyper, data: _error(w, data, "valid"), solver, num_steps, start)


def program(adjoint: str, small: bool, num_steps: int, dtype: str, *, momentum: bool, initial: bool) -> Any:
    """The compiled hypergradient, and its arguments."""
    size = SMALL if small else FULL
    values = numbers(size, dtype)
    weights = [jnp.asarray(v) for name, v in values.items() if name[0] in "wb"]
    data = {name: jnp.asarray(v) for name, v in values.items() if name[0] not in "wb"}
    hyper: dict[str, Any] = {"decay": jnp.asarray(size.decay, dtype)}
    bilevel = problem(size, num_steps, dtype, momentum=momentum, initial=initial)
    if initial:
        hyper["weights"], weights = weights, None

    def gradient(hyper: Any, weights: Any, data: Any) -> Any:
        return mk.hypergradient(bilevel, hyper, weights, data, adjoint=ADJOINTS[adjoint]).gradient

    arguments = (hyper, weights, data)
    return jax.jit(gradient).lower(*arguments).compile(), arguments


class Answers:
    def __init__(self) -> None:
        # A program stays, so that rounds can take several in turns.
        self._load = functools.cache(program)

    def load(self, adjoint: str, small: bool, num_steps: int, dtype: str = "float32", by_decay: bool = False) -> None:
        """`by_decay`: the hypergradient by the decay alone, with momentum, which every adjoint can give."""
        self._program, self._arguments = self._load(
            adjoint, small, num_steps, dtype, momentum=by_decay, initial=not by_decay
        )

    def check(self, into: str) -> None:
        gradient = self._program(*self._arguments)
        np.savez(into, *map(np.asarray, [*gradient["weights"], gradient["decay"]]))

    def call(self) -> int:
        jax.block_until_ready(self._program(*self._arguments))
        return 1

    def time(self, seconds: float, most: int) -> list[float]:
        return timed_calls(self.call, seconds=seconds, most=most)

    def memory(self) -> dict[str, int]:
        before = peak_bytes()
        self.call()
        return {"before": before, "peak": peak_bytes(), "temporary": self.temporary()}

    def temporary(self) -> int:
        return self._program.memory_analysis().temp_size_in_bytes

    def hello(self) -> dict[str, str]:
        return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


if __name__ == "__main__":
    answers = Answers()
    serve({name: getattr(answers, name) for name in ("load", "check", "time", "memory", "temporary", "hello")})
