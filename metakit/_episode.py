"""The data of one supervised task."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree, Shaped


def _as_inputs(value: Any) -> Any:
    """One array, or a tuple, a dictionary or a module of several."""
    several = isinstance(value, tuple) and any(np.ndim(part) > 0 and hasattr(part, "shape") for part in value)
    if isinstance(value, Mapping | eqx.Module) or several:
        return jax.tree.map_with_path(lambda path, part: _as_array(part, f"x{jax.tree_util.keystr(path)}"), value)
    return _as_array(value, "x")


def _as_array(value: Any, name: str) -> Any:
    """Convert numpy arrays and lists; refuse a silent loss of precision."""
    if isinstance(value, np.ndarray):
        if value.dtype == np.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
            raise ValueError(
                f"{name} is float64, but JAX keeps 32 bits here and would drop half of them silently. "
                f"Convert it with jnp.asarray({name}, jnp.float32), or call jax.config.update('jax_enable_x64', True) "
                "first."
            )
        return jnp.asarray(value)
    if isinstance(value, list | tuple | float | int):  # numbers of Python's, which promise no precision
        try:
            return jnp.asarray(np.asarray(value))
        except (ValueError, TypeError) as error:
            shapes = ", ".join(str(list(np.shape(part))) for part in value) if isinstance(value, list | tuple) else "[]"
            raise ValueError(
                f"{name} is a {type(value).__name__} of shapes {shapes}, which make no array: one example is like the "
                "next. Several inputs of each example are a tuple or a dictionary of arrays, each with the leading "
                "axis of examples."
            ) from error
    return value


class Examples(eqx.Module):
    """Inputs and targets of the same examples.

    **Arguments:**

    - `x`: inputs, `[n, *in]`, any dtype; images are `[n, channels, height, width]`. Several inputs of each example are
      a tuple or a dictionary of such arrays: a learner whose network adapts (`mk.maml`, `mk.reptile`, `mk.meta_lstm`),
      and one of your own, hands them to its model as they are; the others refuse them.
    - `y`: targets, `[n]` integer class labels from 0, or `[n, *out]` real values.
    - `way`: how many classes the labels count from, static; `None` (the default) where `y` is real. It belongs to the
      data because a learner that was trained on 60 classes may be tested on 5.

    **Raises:** `ValueError` when `x` and `y` disagree about `n`, when there is no example, when `way` is below 1, when
    labels with a `way` are not integers, when labels that are no JAX array (of which only `check_values` sees the
    values) lie outside `0..way-1`, or when an array of NumPy's is float64 while JAX is set to 32 bits.

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.Examples(jnp.zeros((5, 1, 28, 28)), jnp.arange(5), way=5).x.shape
    (5, 1, 28, 28)
    """

    x: PyTree[Shaped[Array, "n ..."]]
    y: Shaped[Array, "n *out"]
    way: int | None = eqx.field(static=True, default=None)

    def __init__(self, x: Any, y: Any, way: int | None = None):
        self.x = _as_inputs(x)
        self.y = _as_array(y, "y")
        self.way = way
        if way is not None and way > 0 and not isinstance(y, jax.Array):  # on the host: looking at values costs nothing
            _check_labels(np.asarray(y), way, "y")

    def __check_init__(self):
        _check_fields(self.x, self.y, self.way)


class MaskedExamples(eqx.Module):
    """Examples of which some are padding, so that tasks with different numbers of them have one shape.

    A learner that does not know masks refuses them by its type check: it would take the padding for data.

    **Arguments:**

    - `x`, `y`, `way`: as in `Examples`, padding included. What the padding holds does not matter as long as it is
      finite.
    - `mask`: `[n]` Booleans, whether an example is real.

    **Raises:** `ValueError` when `mask` is not `[n]` Booleans, and what `Examples` raises.

    >>> import jax.numpy as jnp, metakit as mk
    >>> support = mk.MaskedExamples(jnp.zeros((9, 1)), jnp.zeros((9, 1)), jnp.arange(9) < 4)
    >>> int(support.mask.sum())
    4
    """

    x: PyTree[Shaped[Array, "n ..."]]
    y: Shaped[Array, "n *out"]
    mask: Bool[Array, " n"]
    way: int | None = eqx.field(static=True, default=None)

    def __init__(self, x: Any, y: Any, mask: Any, way: int | None = None):
        self.x = _as_inputs(x)
        self.y = _as_array(y, "y")
        self.mask = _as_array(mask, "mask")
        self.way = way

    def __check_init__(self):
        _check_fields(self.x, self.y, self.way)
        if getattr(self.mask, "shape", None) != self.y.shape[:1] or self.mask.dtype != jnp.bool_:
            raise ValueError(
                f"mask must hold one Boolean for each of the {self.y.shape[0]} examples, got {_describe(self.mask)}. "
                "A number of real examples becomes a mask by jnp.arange(n) < number."
            )


def _named(inputs: Any) -> list[tuple[str, Any]]:
    """The arrays of one or several inputs, each with its name."""
    return [(f"x{jax.tree_util.keystr(path)}", leaf) for path, leaf in jax.tree.leaves_with_path(inputs)]


def _check_fields(x: Any, y: Any, way: int | None) -> None:
    inputs = _named(x)
    if not inputs:
        raise ValueError(f"x must be an array with a leading axis of examples, got {_describe(x)}.")
    for name, value in (*inputs, ("y", y)):
        if not hasattr(value, "shape") or len(value.shape) == 0:
            raise ValueError(
                f"{name} must be an array with a leading axis of examples, got {_describe(value)}. "
                f"One example still needs that axis: {name}[None]."
            )
    for name, one in inputs:
        if one.shape[0] != y.shape[0]:
            raise ValueError(
                f"{name} and y must hold the same number of examples along axis 0, got {one.shape[0]} in "
                f"{name}{list(one.shape)} and {y.shape[0]} in y{list(y.shape)}."
            )
        if one.shape[0] == 0:
            raise ValueError(
                f"{name}{list(one.shape)} holds no example; a support or query set needs at least one along axis 0."
            )
    if way is None:
        return
    if way < 1:
        raise ValueError(f"way is the number of classes and must be at least 1, got {way}.")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"y must hold integer labels 0..{way - 1} since way={way} was given, got dtype "
            f"{y.dtype}. Use y.astype('int32') for labels, or leave way out for real-valued targets."
        )


# A learner's signature says which support sets it takes; `Episode` alone fits all of them.
_Support = TypeVar("_Support", Examples, MaskedExamples)


class Episode(eqx.Module, Generic[_Support]):
    """One task of supervised learning: learn from `support`, be judged on `query`.

    A batch of episodes is the same module with a leading axis on every array, as `eqx.filter_vmap` makes and takes it.

    **Arguments:** `support` and `query`, each an `Examples`, or a `MaskedExamples` for learners that take one
    (`mk.neural_process`). The other learners refuse it, and `mk.evaluate` a masked `query`.

    **Raises:** `ValueError` when the two differ in the shape or dtype of an example, or in `way`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> examples = mk.Examples(jnp.ones((10, 1)), jnp.ones((10, 1)))
    >>> mk.Episode(examples, examples).query.x.shape
    (10, 1)
    """

    support: _Support
    query: Examples

    def __check_init__(self):
        support, query = self.support, self.query
        inputs, others = _named(support.x), _named(query.x)
        if [name for name, _ in inputs] != [name for name, _ in others]:
            names = (", ".join(name for name, _ in part) for part in (inputs, others))
            raise ValueError("support and query must have the same inputs, got {} and {}.".format(*names))
        pairs = [*zip(inputs, others, strict=True), (("y", support.y), ("y", query.y))]
        for (name, s), (_, q) in pairs:
            if s.shape[1:] != q.shape[1:]:
                raise ValueError(
                    f"support.{name} and query.{name} must agree in the shape of one example, got "
                    f"{list(s.shape[1:])} and {list(q.shape[1:])}."
                )
            if s.dtype != q.dtype:
                raise ValueError(f"support.{name} and query.{name} must share a dtype, got {s.dtype} and {q.dtype}.")
        if support.way != query.way:
            raise ValueError(f"support.way and query.way must be the same, got {support.way} and {query.way}.")


def _describe(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"shape {list(value.shape)}"
    leaves = jax.tree.leaves(value)
    if len(leaves) == 1 and leaves[0] is value:
        return f"{type(value).__name__} {value!r}"
    return f"a {type(value).__name__} of {len(leaves)}"


def require_unmasked(examples: Examples | MaskedExamples, learner: str, name: str) -> None:
    """Refuse padding that would be taken for data."""
    if isinstance(examples, MaskedExamples):
        raise ValueError(
            f"{name} is a MaskedExamples, but {learner} knows no masks and would take the padding for data. Build "
            f"Examples of the {name}'s real examples alone."
        )


def require_one_input(examples: Examples | MaskedExamples, learner: str, name: str) -> None:
    """Refuse several inputs for a learner that embeds one."""
    if not hasattr(examples.x, "shape"):
        raise ValueError(
            f"{name}.x holds {len(_named(examples.x))} inputs, but {learner} takes one array [n, *in]. Join them along "
            "an axis; mk.maml, mk.reptile, mk.meta_lstm and learners of your own take several."
        )


def check_values(task: Episode | Examples | MaskedExamples) -> None:
    """Check facts about *values* that shapes cannot show, on the host.

    Call it where data enters (batched episodes are welcome); the compiled step then needs no checks of its own.

    **Arguments:** `task`, an `Episode`, `Examples` or `MaskedExamples` (padding is checked like the rest) of concrete
    arrays, with or without leading task axes.

    **Raises:** `ValueError` naming the array when an input or a real target holds NaN or infinities (and where the
    first one is), or when a label lies outside `0..way-1`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> mk.check_values(mk.Examples(jnp.ones((2, 1)), jnp.array([0, 7]), way=5))
    Traceback (most recent call last):
    ...
    ValueError: examples.y must hold labels 0..4 (way=5), got 7 at index (1,). ...
    """
    if isinstance(task, Episode):
        _check_examples(task.support, "support")
        _check_examples(task.query, "query")
    else:
        _check_examples(task, "examples")


def _check_examples(examples: Examples | MaskedExamples, name: str) -> None:
    for field, array in (*_named(examples.x), ("y", examples.y)):
        value = np.asarray(array)
        if np.issubdtype(value.dtype, np.inexact) and not np.isfinite(value).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
            raise ValueError(
                f"{name}.{field} must be finite, got {value[where]} at index {where} of shape {list(value.shape)}. "
                "Remove or repair that example before building the episode."
            )
    if examples.way is not None:
        _check_labels(np.asarray(examples.y), examples.way, f"{name}.y")


def _check_labels(labels: np.ndarray, way: int, name: str) -> None:
    if labels.dtype.kind not in "iu":
        return
    wrong = np.argwhere((labels < 0) | (labels >= way))
    if len(wrong):
        where = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"{name} must hold labels 0..{way - 1} (way={way}), got {labels[where]} at index {where}. Labels count "
            "from 0 within an episode; relabel the classes that were drawn."
        )
