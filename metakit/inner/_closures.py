"""What an inner objective must not close over."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer

from ._adjoint import Objective, Observe


def refuse_traced_closures(
    objective: Objective | Observe, params: Any, args: Any, name: str = "the inner objective"
) -> None:
    """Refuse an objective, or what observes it, that closes over an array that JAX is tracing.

    A custom derivative rule sees its arguments only: such an array would stop it with an error that names neither the
    array nor the objective."""
    jaxpr, _, _ = eqx.filter_make_jaxpr(objective)(params, args, jnp.zeros((), jnp.int32))
    for value in jaxpr.consts:
        if isinstance(value, Tracer):
            raise ValueError(
                f"{name} closes over {value.dtype}{list(value.shape)}, an array that an enclosing jit, "
                "vmap or grad is tracing. Hand it in: as args of solve, or as data or hyper of a bilevel problem. "
                "mk.inner.Unrolled() and mk.inner.Checkpointed() take it as it is."
            )
