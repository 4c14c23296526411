"""The form of an algorithm and its learner: signatures, shapes, leaves."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metakit._wording import describe

from ._outcome import CheckFailed, check_of, require_close
from ._subject import Subject, in_float64


@check_of("Try the three functions one after another on sampler(key).", as_it_is=True)
def is_an_algorithm(subject: Subject) -> None:
    """The three functions take (learner, support), (adapted, x), (learner, task) and a key; the loss is a scalar.

    Catches a key that can only be passed by name (`eqx.filter_vmap` takes no keywords), a `meta_loss` of one number an
    example, and outputs that do not lead with the axis of examples.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.is_an_algorithm(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    for name in ("adapt", "predict", "meta_loss"):
        _require_signature(name, getattr(subject.algorithm, name))
    task, key = subject.task(), subject.call_key()
    loss = eqx.filter_eval_shape(subject.algorithm.meta_loss, subject.learner, task, key)
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise CheckFailed(
            f"meta_loss returned {_shaped(loss)}; it must be one floating-point number.",
            'Return the mean over the query examples, such as mk.losses.cross_entropy(..., reduction="mean").',
        )
    _, x = eqx.filter_eval_shape(subject.support_and_x, subject.learner, task, key)
    count = jax.tree.leaves(x)[0].shape[0]
    for output in jax.tree.leaves(eqx.filter_eval_shape(subject.predictions, subject.learner, task, key)):
        if output.shape[:1] != (count,):
            raise CheckFailed(
                f"predict returned {_shaped(output)} for {count} inputs.",
                "Return one row an input: logits [n, way] for classes, [n, *out] for values.",
            )
    value = subject.algorithm.meta_loss(subject.learner, task, key)
    if not jnp.isfinite(value):
        raise CheckFailed(f"meta_loss is {float(value)} on a task of the sampler.", "Try a smaller inner rate.")


def _require_signature(name: str, function: Any) -> None:
    try:
        signature = inspect.signature(function)
        signature.bind(1, 2)
        signature.bind(1, 2, 3)
    except TypeError as error:
        first = {"adapt": "learner, support", "predict": "adapted, x", "meta_loss": "learner, task"}[name]
        raise CheckFailed(
            f"{name} cannot be called with two arguments and with a key as the third: {error}.",
            f"Write it as {name}({first}, key=None), the key without a star before it.",
        ) from error
    except ValueError:  # a function without a signature; the calls below say whether it fits
        return


def _shaped(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return describe(value)


@check_of("Take dtypes from the inputs, as in jnp.zeros(n, x.dtype).", as_it_is=True)
def runs_in_float64(subject: Subject) -> None:
    """The learner computes in the precision of its numbers: in float64 where they are cast to it.

    Catches a dtype that is written down, which also keeps a learner from bfloat16. Where it does not hold, the other
    checks run in the learner's own precision, with wider tolerances, and differences cannot check the gradient.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.runs_in_float64(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    with jax.enable_x64(True):
        learner, task = in_float64((subject.learner, subject.task()))
        loss = eqx.filter_eval_shape(subject.algorithm.meta_loss, learner, task, subject.call_key())
    if loss.dtype != jnp.float64:
        raise CheckFailed(
            f"With learner and task in float64, meta_loss is {loss.dtype}.",
            "Take dtypes from the inputs, as in jnp.zeros(n, x.dtype).",
        )


@check_of("Convert numbers on construction, with mk.fixed or mk.learned.", as_it_is=True)
def numbers_are_arrays(subject: Subject) -> None:
    """Every number of the learner is a strongly typed array.

    Catches a Python float beside the weights, which is never trained and compiles again for each value, and a weakly
    typed array, which compiles again after the first step.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import metakit as mk
    >>> learner, sampler = mk.ridge.Ridge(lambda x: x, penalty=mk.learned(1.0)), mk.tasks.Sinusoid(shot=5, queries=5)
    >>> mk.testing.numbers_are_arrays(mk.testing.Subject(mk.ridge, learner, sampler))
    """
    for path, leaf in jax.tree.leaves_with_path(subject.learner):
        name = f"learner{jax.tree_util.keystr(path)}"
        if isinstance(leaf, float | complex | np.ndarray | np.generic):
            raise CheckFailed(
                f"{name} is {_number(leaf)}, which has no gradient and is never trained.",
                "Make it mk.fixed(...) or mk.learned(...), whose value is a leaf, or jnp.asarray(..., jnp.float32).",
            )
        if getattr(leaf, "weak_type", False):
            raise CheckFailed(
                f"{name} is a weakly typed array, which compiles again after the first step.",
                "Give it a dtype: jnp.asarray(..., jnp.float32), or make it mk.fixed(...).",
            )


def _number(leaf: Any) -> str:
    return f"the {type(leaf).__name__} {leaf!r}" if isinstance(leaf, float | complex) else describe(leaf)


@check_of(
    "Hold functions in static fields, as in activation: Callable = eqx.field(static=True); lift a foreign model for "
    "one example, mk.nn.batched(model); any other with functions as leaves goes through eqx.filter_grad and "
    "eqx.filter_jit."
)
def takes_bare_transforms(subject: Subject) -> None:
    """Bare `jax.jit` and `jax.grad` take the learner, and give what the filtered ones give.

    Catches a leaf that is no array: a function, a string, a class.

    **Arguments:** `subject`, a `Subject`.

    **Raises:** `CheckFailed`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> algorithm = mk.MetaLearner(
    ...     adapt=lambda learner, support, key=None: learner * jnp.mean(support.y),
    ...     predict=lambda adapted, x, key=None: jnp.full_like(x, adapted),
    ...     meta_loss=lambda learner, task, key=None: jnp.mean((learner - task.query.y) ** 2),
    ... )
    >>> mk.testing.takes_bare_transforms(mk.testing.Subject(algorithm, jnp.asarray(0.5), mk.tasks.Sinusoid()))
    """
    loss, task, key = subject.algorithm.meta_loss, subject.task(), subject.call_key()
    value, gradient = jax.jit(jax.value_and_grad(loss))(subject.learner, task, key)
    expected, filtered = eqx.filter_jit(eqx.filter_value_and_grad(loss))(subject.learner, task, key)
    require_close(
        {"loss": value, "gradient": jax.tree.leaves(gradient)},
        {"loss": expected, "gradient": jax.tree.leaves(filtered)},
        subject,
        "The bare transforms give something else than the filtered ones",
        "Let every leaf of the learner be a floating-point array.",
    )
