"""Functions without state: the same arguments give the same result, and randomness comes from the key alone."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from metakit._tree import is_key

from ._outcome import CheckFailed, check_of, in_short, require_equal
from ._subject import Subject

_STATE = "Keep no state between calls: no global, no NumPy generator, no attribute that a call changes."


@check_of(_STATE)
def is_pure(subject: Subject) -> None:
    """The same arguments give the same result, bit for bit.

    Catches a counter, a cache or a host generator that a call changes: under `jit` it acts while tracing only.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.is_pure(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    task, key = subject.task(), subject.call_key()
    first = subject.everything(subject.learner, task, key)
    second = subject.everything(subject.learner, task, key)
    require_equal(second, first, "Two calls with the same arguments differ", _STATE)


@check_of("Draw from the `key` that each function is given, and raise a ValueError that names it where it is None.")
def randomness_comes_from_the_key(subject: Subject) -> None:
    """Random draws use the key that was passed, and a learner that needs one says so.

    Catches a key of the learner's own, made in the function or beside it, which gives every task the same draws; and a
    random learner that runs without its key.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.randomness_comes_from_the_key(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    task, key = subject.task(), subject.call_key()
    dynamic, static = eqx.partition((subject.learner, task, key), eqx.is_array)
    traced = jax.make_jaxpr(lambda dynamic: subject.everything(*eqx.combine(dynamic, static)))(dynamic)
    draw = _draw_from_a_constant(traced.jaxpr, [False] * len(traced.jaxpr.invars))
    if draw is not None:
        raise CheckFailed(
            f"The algorithm draws random numbers from a key of its own ({draw} of a constant), the same in every task.",
            "Draw from the `key` that the function is given: jax.random.split(key).",
        )
    loss = eqx.filter_jit(subject.algorithm.meta_loss)
    values = [loss(subject.learner, task, jax.random.key(i)) for i in range(2)]
    if values[0] == values[1]:
        require_equal(
            loss(subject.learner, task), values[0], "Without a key meta_loss is another", "Use the key for draws only."
        )
        return
    try:
        subject.algorithm.meta_loss(subject.learner, task)
    except ValueError as error:
        if "key" in str(error):
            return
        found = f"Without its key meta_loss raises {in_short(error)}"
    except Exception as error:  # noqa: BLE001 - any other error is a finding
        found = f"Without its key meta_loss raises {in_short(error)}"
    else:
        found = "meta_loss depends on its key, and runs without one."
    raise CheckFailed(found, 'Write: if key is None: raise ValueError("this learner needs a key").')


def _draw_from_a_constant(jaxpr: Jaxpr, constant_inputs: Sequence[bool]) -> str | None:
    """The operation that takes a key, or makes one, which no input of the program leads to."""
    # No equation makes what was closed over.
    constants = {*jaxpr.constvars, *(v for v, constant in zip(jaxpr.invars, constant_inputs, strict=True) if constant)}
    for equation in jaxpr.eqns:
        constant = [isinstance(v, Literal) or v in constants for v in equation.invars]
        name = equation.primitive.name
        if name in ("random_seed", "random_wrap") and all(constant):
            return name
        if any(c and is_key(v.aval) for v, c in zip(equation.invars, constant, strict=True)):
            return name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                program = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                fits = len(constant) == len(program.invars)  # as those of jit, scan and checkpoint do
                found = _draw_from_a_constant(program, constant if fits else [False] * len(program.invars))
                if found is not None:
                    return found
    return None


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _holds_keys(of: Any) -> bool:
    return hasattr(of, "dtype") and is_key(of)
