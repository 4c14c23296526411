"""Choose an adjoint from what the loop would cost."""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from metakit._errors import require_whole
from metakit._tree import inexact_leaves, tree_bytes

from ._adjoint import AbstractAdjoint, Objective, Observe, Solution, make_step
from ._forward import Forward
from ._loop import Inputs, Loop, prepare, start, value_of
from ._mixed_mode import MixedMode
from ._reversible import Reversible
from ._solver import AbstractSolver
from ._unrolled import Unrolled

_FEW_STEPS = 5
_GIB = 1 << 30


class Choice(NamedTuple):
    """An adjoint and why it was chosen.

    - `adjoint`: ready for `adjoint.solve(...)`.
    - `reason`: a sentence with the numbers that decided.
    - `bytes`: what the backward pass is estimated to keep.

    >>> import jax.numpy as jnp, metakit as mk
    >>> choice = mk.inner.choose_adjoint(lambda w, _, step: jnp.sum(w**2), mk.inner.SGD(0.1), jnp.ones(3), None, 2)
    >>> type(choice.adjoint).__name__, choice.reason.startswith("2 steps")
    ('Unrolled', True)
    """

    adjoint: AbstractAdjoint
    reason: str
    bytes: int


def _check_limit(memory_limit: int) -> None:
    require_whole("memory_limit, in bytes,", memory_limit)
    if memory_limit <= 0:
        raise ValueError(f"memory_limit must be a positive number of bytes, got {memory_limit}.")


class Auto(AbstractAdjoint):
    """The first exact adjoint of a list that fits: what `adjoint="auto"` means.

    It chooses as `mk.inner.choose_adjoint` does, each time a loop is traced, and tells the logger `"metakit"` at level
    INFO what it chose and why. It never chooses a biased adjoint (`FirstOrder`, `Truncated`, `Implicit`): such a
    gradient has to be asked for.

    | | |
    |---|---|
    | time | that of the adjoint chosen |
    | memory | at most `memory_limit` by estimate, where any adjoint allows it |
    | gradients | params, args, solver: all exact |

    **Arguments:**

    - `memory_limit`: bytes that the backward pass of **one** loop may keep, static; default 1 GiB. Loops that are
      mapped over, as tasks are, each keep so much.

    **Raises:** `ValueError` for a `memory_limit` that is not positive, `TypeError` for one that is no whole number.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> def adapted(w):
    ...     return mk.inner.Auto().solve(
    ...         lambda w, _, step: 0.5 * w**2, mk.inner.SGD(0.5), w, None, 10).params
    >>> float(jax.grad(adapted)(jnp.ones(()))) == 0.5**10
    True
    """

    memory_limit: int = eqx.field(static=True)

    def __init__(self, memory_limit: int = _GIB):
        _check_limit(memory_limit)
        self.memory_limit = memory_limit

    def dropped(self, num_steps: int) -> frozenset[str]:
        del num_steps
        return frozenset()

    def solve(
        self,
        objective: Objective,
        solver: AbstractSolver,
        params: Any,
        args: Any,
        num_steps: int,
        *,
        observe: Observe | None = None,
    ) -> Solution:
        chosen = choose_adjoint(objective, solver, params, args, num_steps, memory_limit=self.memory_limit)
        logging.getLogger("metakit").info("adjoint chosen for %s", chosen.reason)
        return chosen.adjoint.solve(objective, solver, params, args, num_steps, observe=observe)


def choose_adjoint(
    objective: Objective,
    solver: AbstractSolver,
    params: Any,
    args: Any,
    num_steps: int,
    *,
    memory_limit: int = _GIB,
    num_hyperparameters: int | None = None,
) -> Choice:
    r"""What `adjoint="auto"` uses for a loop, and why.

    With $A$ the bytes that one step keeps for its derivative (found by tracing it) and $S$ those of the parameters and
    the solver's state, the first of these whose estimate is within `memory_limit`:

    | adjoint | condition | bytes |
    |---|---|---|
    | `Unrolled` | $K \le 5$: simplest, and has every kind of derivative | $K A$ |
    | `MixedMode` | | $K S + A$ |
    | `MixedMode(checkpointed=True)` | | $2\sqrt K S + A$ |
    | `Reversible` | momentum with known decays of at least 0.5, 64-bit mode; see its own limits | see there, and $A$ |
    | `Forward` | at most 32 hyperparameters, if their number is given | $N (S + A)$ |

    and if none is, the one with the smallest.

    **Arguments:** `objective`, `solver`, `params`, `args`, `num_steps` as for `solve`; the loop is traced, not run.
    `memory_limit`, bytes, as for `Auto`. `num_hyperparameters`, how many numbers are differentiated; `None`, the
    default, for many.

    **Returns:** a `Choice`.

    **Raises:** `ValueError` as `solve`, and for a `memory_limit` that is not positive; `TypeError` for one that is no
    whole number.

    >>> import jax.numpy as jnp, metakit as mk
    >>> choice = mk.inner.choose_adjoint(lambda w, _, step: jnp.sum(w**2), mk.inner.SGD(0.1), jnp.ones(3), None, 900)
    >>> type(choice.adjoint).__name__
    'MixedMode'
    """
    _check_limit(memory_limit)
    inputs, loop = prepare(objective, solver, params, args, num_steps, None)
    state = tree_bytes(jax.eval_shape(lambda: start(inputs)))
    kept = _bytes_of_a_step(inputs, loop)
    size = sum(leaf.size for leaf in inexact_leaves(inputs.params))

    candidates: list[tuple[AbstractAdjoint, int, str]] = []
    if num_steps <= _FEW_STEPS:
        candidates.append((Unrolled(), num_steps * kept, "the plain unroll is simplest for so few steps"))
    candidates.append((MixedMode(), num_steps * state + kept, "it keeps the state of every step"))
    roots = 2 * math.isqrt(num_steps) + 1
    candidates.append((MixedMode(checkpointed=True), roots * state + kept, "it keeps the states of 2 sqrt(K) steps"))
    reversible = _reversible(inputs)
    if reversible is not None:
        words = 2 * (2 + reversible.num_lanes(num_steps))  # XLA holds what its loop carries twice
        candidates.append(
            (reversible, words * 8 * size + kept, "it keeps some bits a step, and moves decays to n/65536")
        )
    if num_hyperparameters is not None and num_hyperparameters <= 32:
        reason = f"it carries {num_hyperparameters} derivatives along, however many steps"
        candidates.append((Forward(), num_hyperparameters * (state + kept), reason))

    numbers = "1 parameter" if size == 1 else f"{size:,} parameters"
    about = f"{num_steps} steps of {type(solver).__name__} on {numbers}"
    for adjoint, cost, reason in candidates:
        if cost <= memory_limit:
            return Choice(
                adjoint, f"{about}: {_name(adjoint)}, as {reason} ({_mib(cost)} of {_mib(memory_limit)}).", cost
            )
    adjoint, cost, reason = min(candidates, key=lambda candidate: candidate[1])
    return Choice(
        adjoint,
        f"{about}: {_name(adjoint)}, the smallest, as {reason}; at an estimated {_mib(cost)} it does not fit into the "
        f"memory limit of {_mib(memory_limit)}.",
        cost,
    )


def _bytes_of_a_step(inputs: Inputs, loop: Loop) -> int:
    """What reverse mode keeps of one step, which the unroll does for each."""
    floating, others = eqx.partition(inputs, eqx.is_inexact_array)

    def residuals(floating: Any, index: Any) -> Any:
        def step(floating: Any) -> Any:
            inputs = eqx.combine(floating, others)
            rule: Callable[..., Any] = jax.value_and_grad(value_of(inputs, loop))
            carry, (loss, _) = make_step(rule, inputs.solver, inputs.rest, inputs.args, None)(start(inputs), index)
            return eqx.filter((carry, loss), eqx.is_inexact_array)

        return jax.vjp(step, floating)[1]

    kept = tree_bytes(jax.eval_shape(residuals, floating, jax.ShapeDtypeStruct((), jnp.int32)))
    # What no step changes is kept once, not once a step.
    return max(kept - tree_bytes((floating.args, floating.solver)), tree_bytes(floating.params))


def _reversible(inputs: Inputs) -> Reversible | None:
    """With the room that the solver's decays need, where they are known."""
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    how, decays = Reversible(), []

    def note(decay: Any) -> Any:
        decays.append(decay)
        return decay

    try:
        how.effective(inputs.solver, inputs.params).with_decays(note)  # pyright: ignore[reportAttributeAccessIssue]
    except ValueError:
        return None
    # It refuses, or makes NaN of, smaller ones, and what is learned or traced may become one.
    if any(isinstance(decay, Tracer) for decay in decays):
        return None
    smallest = min(float(np.min(np.asarray(decay))) for decay in decays)
    return Reversible(smallest) if smallest >= how.smallest_decay else None


def _name(adjoint: AbstractAdjoint) -> str:
    return "MixedMode(checkpointed=True)" if getattr(adjoint, "checkpointed", False) else type(adjoint).__name__


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.3g} MiB"
