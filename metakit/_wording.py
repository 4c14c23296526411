"""Type-check errors in one sentence: which argument, what was given, what was expected, what to try.

The checker's own message prints every argument of the call, which for a learner is a page.
"""

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, Key, TypeCheckError

from ._errors import nearest

_PARAMETER = re.compile(r"typechecking parameter '(\w+)'")
_AXIS = re.compile(r"^(\w+)=(.+)$", re.MULTILINE)
_AXES_FOLLOW = "current values for each jaxtyping axis annotation"


def in_words(
    error: TypeCheckError, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> TypeCheckError | None:
    """The error of a call to `function`, shorter; `None` for errors of calls further down, and of results."""
    name = f"{function.__module__}.{function.__qualname__}"
    message = str(error)
    found = _PARAMETER.search(message)
    if found is None or not message.startswith(f"Type-check error whilst checking the parameters of {name}."):
        return None
    parameter = found.group(1)
    value = inspect.signature(function).bind(*args, **kwargs).arguments[parameter]
    annotation = inspect.get_annotations(function)[parameter]
    advice = _advice(parameter, value, annotation)
    expected, given = _expected(annotation) + _axes(annotation, message), describe(value)
    for option in _options(annotation):
        if isinstance(option, type) and option.__name__ == type(value).__name__:  # such as another learner's Adapted
            expected, given = public_name(option), public_name(type(value))
    return TypeCheckError(
        f"{public_name(function)}: {parameter} must be {expected}, got {given}." + (f" {advice}" if advice else "")
    )


def no_key(function: Callable[..., Any], value: Any) -> TypeCheckError:
    """The error of a call whose `key` is none."""
    return TypeCheckError(
        f"{public_name(function)}: key must be a random key, got {describe(value)}. {_advice_on_keys(value)}"
    )


def public_name(function: Callable[..., Any]) -> str:
    """The name by which a user calls a function, a method or a class.

    >>> from metakit import losses
    >>> public_name(losses.cross_entropy)
    'mk.losses.cross_entropy'
    """
    own = inspect.unwrap(function)
    inside = own.__qualname__.removesuffix(".__call__").removesuffix(".__init__")
    outer = inside.split(".")[0]  # the function, or its class
    for name, module in sorted(sys.modules.items(), key=lambda item: (item[0].count("."), item[0])):
        public = name.split(".")[0] == "metakit" and not any(part.startswith("_") for part in name.split("."))
        found = getattr(module, outer, None) if public else None
        if found is not None and getattr(inspect.unwrap(found), "__module__", None) == own.__module__:
            parts = [part for part in name.split(".")[1:] if part != "learners"]
            return ".".join(["mk", *parts, inside])
    return f"{own.__module__}.{own.__qualname__}"


def describe(value: Any) -> str:
    """A value in a few words: an array by dtype and shape, an object by its class.

    >>> describe(jnp.zeros((2, 3), jnp.float32)), describe("mse"), describe(None)
    ('float32[2,3]', "'mse'", 'None')
    """
    if isinstance(value, jax.Array | np.ndarray):
        kind = "numpy " if isinstance(value, np.ndarray) else ""
        return f"{kind}{value.dtype}[{','.join(map(str, value.shape))}]"
    if value is None or isinstance(value, bool | int | float | complex | str):
        words = repr(value)
        return words if len(words) <= 60 else f"{words[:57]}..."
    if isinstance(value, np.generic):
        return f"{value!r} of numpy"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    kind = type(value).__name__
    return f"{'an' if kind[:1] in 'AEIOaeio' else 'a'} {kind}"


def uncalled(value: type) -> str:
    """What to try where a class was given and something of that class is wanted."""
    return f"Call it first: {value.__name__}(...)."


def _axes(annotation: Any, message: str) -> str:
    """The sizes that earlier arguments gave to the axes of this one."""
    if not _is_array(annotation):
        return ""
    known = dict(_AXIS.findall(message.partition(_AXES_FOLLOW)[2]))
    sizes = [f"{axis}={known[axis]}" for axis in re.findall(r"\w+", annotation.dim_str) if axis in known]
    return f" with {', '.join(sizes)}" if sizes else ""


def _is_array(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def _is_key(annotation: Any) -> bool:
    return _is_array(annotation) and annotation.dtype is Key


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if is_union else (annotation,)


def _expected(annotation: Any) -> str:
    return " or ".join(map(_one_expected, _options(annotation)))


def _one_expected(annotation: Any) -> str:
    if _is_key(annotation):
        return "a random key"
    if _is_array(annotation):
        return f'{annotation.dtype.__name__}[Array, "{annotation.dim_str.strip()}"]'
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(annotation)))
    if annotation is type(None):
        return "None"
    if typing.get_origin(annotation) is Callable:
        return "a function"
    if isinstance(annotation, type):
        return annotation.__name__
    return re.sub(r"\b(?:[a-z_]\w*\.)+", "", str(annotation))


def _class_names(annotation: Any) -> set[str]:
    return {option.__name__ for option in _options(annotation) if isinstance(option, type)}


def _advice(parameter: str, value: Any, annotation: Any) -> str | None:
    """What to try, for the mistakes that are often made."""
    given, wanted = type(value).__name__, _class_names(annotation)
    if any(map(_is_key, _options(annotation))):
        return _advice_on_keys(value)
    if isinstance(value, type):
        return uncalled(value)
    if isinstance(value, np.ndarray):
        fits = any(_is_array(option) and isinstance(jnp.asarray(value), option) for option in _options(annotation))
        return f"Convert it with jnp.asarray({parameter})." if fits else None
    if isinstance(value, np.integer) and "int" in wanted:
        return f"Convert it with int({parameter})."
    if isinstance(value, str) and typing.get_origin(annotation) is typing.Literal:
        return nearest(value, typing.get_args(annotation))
    if "Examples" in wanted and given == "Episode":
        return "An episode holds both sets: give episode.support to adapt."
    if "Episode" in wanted and given in ("Examples", "MaskedExamples"):
        return "Give the whole episode, support and query."
    if "Adapted" in wanted and given == "Adapted":
        return "Take adapt and predict of one namespace."
    if "Adapted" in wanted:
        return "Give what adapt(learner, support) returned."
    if parameter == "learner" and given == "Adapted":
        return "Give the learner itself, not what adapt returned."
    if "TrainState" in wanted:
        return "Give what mk.train.init(learner, optimiser, key=key) or the step before returned."
    if parameter == "metrics":
        return 'Name each, as in metrics={"accuracy": mk.metrics.accuracy}.'
    if parameter == "sampler":
        return "It draws a task from a key; tasks that you have already go to mk.train.step."
    if "GradientTransformation" in wanted:
        return "Give an optax optimiser, such as optax.adam(1e-3)."
    return None


def _advice_on_keys(value: Any) -> str:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return "One call takes one key: a batch of keys goes through eqx.filter_vmap."
    if isinstance(value, jax.Array) and value.dtype == jnp.uint32:
        return "That is a key of the old style: make it with jax.random.key(seed)."
    return "Make one with jax.random.key(seed)."
