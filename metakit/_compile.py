"""Compiling with the options and the batches that suit the platform."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

# All but LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION, which XLA turns on too: its convolution uses one core.
_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options() -> dict[str, str]:
    """Options for `jax.jit` under which convolutional networks run faster on the default platform.

    On a CPU, XLA's usual choice for a convolution keeps one core busy; these options choose another that uses all of
    them. Elsewhere, and where this JAX does not know the option, there are none; nor are there any where the CPU shows
    as several devices, which that other choice lets write into each other's results. `mk.train` and `mk.evaluate` use
    them; pass them to an outermost `jit` of your own.

    **Returns:** a dictionary for `compiler_options`, possibly empty.

    >>> import jax, metakit as mk
    >>> double = jax.jit(lambda x: 2 * x, compiler_options=mk.compiler_options())
    >>> float(double(1.0))
    2.0
    """
    return dict(_known_options())


@functools.cache
def _known_options() -> dict[str, str]:
    # Several devices of one process, each with a convolution that uses all cores, mix up rows of their results
    # (JAX 0.10.2; docs/performance.md, which has the price too).
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1:
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU)()
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU


def compiled(
    function: Callable[..., Any], *, donate: Literal["none", "all-except-first"] = "none"
) -> Callable[..., Any]:
    """`eqx.filter_jit` with `compiler_options`, which JAX accepts for the outermost `jit` only."""
    inner = eqx.filter_jit(function, donate=donate)

    @functools.cache
    def outermost() -> Callable[..., Any]:
        options: dict[str, Any] = {"compiler_options": compiler_options()}
        return eqx.filter_jit(function, donate=donate, **options)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        # Under a trace even a new array is a tracer.
        traced = any(isinstance(leaf, Tracer) for leaf in (*jax.tree.leaves(args), jnp.zeros(())))
        return (inner if traced else outermost())(*args)

    return call


# Tasks of more numbers than this are images.
_LARGE_TASK = 4096


def runs_alone(numbers: int, platform: str) -> bool:
    """Whether a task of so many numbers runs by itself, in training and in evaluation.

    On a CPU, convolutions with per-task weights are faster one task after another (docs/performance.md).
    """
    return platform == "cpu" and numbers > _LARGE_TASK
