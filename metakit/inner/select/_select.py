"""The filters, and the two halves of a model that one makes."""

import fnmatch
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax

from metakit._errors import nearest

Filter: TypeAlias = Callable[[Any], Any]


def everything(model: Any) -> Any:
    """Every floating-point array: MAML.

    **Arguments:** `model`, any PyTree.

    **Returns:** a tree of the model's structure, `True` on every floating-point array.

    >>> import jax.numpy as jnp
    >>> everything({"w": jnp.ones(2), "n": jnp.arange(2)})
    {'n': False, 'w': True}
    """
    return jax.tree.map(eqx.is_inexact_array, model)


def only(where: Callable[[Any], Any]) -> Filter:
    """The part of the model that `where` picks.

    **Arguments:** `where`, a function from the model to one of its parts (or to a tuple of parts), as for
    `equinox.tree_at`.

    **Returns:** a filter.

    **Raises:** when the filter is used, `ValueError` if the model has no such part.

    >>> import jax.numpy as jnp
    >>> only(lambda m: m["head"])({"body": jnp.ones(2), "head": jnp.ones(2)})
    {'body': False, 'head': True}
    """

    def choose(model: Any) -> Any:
        return _mark(model, where, inside=True)

    return choose


def all_but(where: Callable[[Any], Any]) -> Filter:
    """Everything except the part of the model that `where` picks.

    **Arguments:** `where`, as for `only`.

    **Returns:** a filter.

    **Raises:** when the filter is used, `ValueError` if the model has no such part.

    >>> import jax.numpy as jnp
    >>> all_but(lambda m: m["head"])({"body": jnp.ones(2), "head": jnp.ones(2)})
    {'body': True, 'head': False}
    """

    def choose(model: Any) -> Any:
        return _mark(model, where, inside=False)

    return choose


def head_only(model: Any) -> Any:
    """The last layer, found as the model's attribute `head`: ANIL.

    For a model that names it otherwise use `only`, for instance `only(lambda model: model.layers[-1])`.

    **Arguments:** `model`, a module with a `head`.

    **Returns:** a tree of the model's structure.

    **Raises:** `ValueError` when the model has no `head`.

    **Source:** Raghu et al. 2020, "Rapid Learning or Feature Reuse?", section 4, https://arxiv.org/abs/1909.09157.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> mk.inner.select.head_only(model).head.weight
    True
    """
    return _mark(model, _head(model), inside=True)


def body_only(model: Any) -> Any:
    """Everything but the last layer, found as the model's attribute `head`: BOIL.

    For a model that names it otherwise use `all_but`, for instance `all_but(lambda model: model.layers[-1])`.

    **Arguments:** `model`, a module with a `head`.

    **Returns:** a tree of the model's structure.

    **Raises:** `ValueError` when the model has no `head`.

    **Source:** Oh et al. 2021, "BOIL: Towards Representation Change for Few-shot Learning",
    https://arxiv.org/abs/2008.08882.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> mk.inner.select.body_only(model).head.weight
    False
    """
    return _mark(model, _head(model), inside=False)


def _head(model: Any) -> Callable[[Any], Any]:
    if getattr(model, "head", None) is None:
        found = "its head is None" if hasattr(model, "head") else "it has none"
        raise ValueError(
            f"head_only and body_only need the last layer as an attribute head of {type(model).__name__}, but {found}. "
            "Say where it is: mk.inner.select.only(lambda model: model.layers[-1]) adapts it alone, "
            "mk.inner.select.all_but(...) everything else."
        )
    return lambda tree: tree.head


def _mark(model: Any, where: Callable[[Any], Any], *, inside: bool) -> Any:
    mask = jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and not inside, model)
    try:
        part = where(model)
    except (AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"where found no such part in {type(model).__name__}: {error!r}.") from error
    if not jax.tree.leaves(part):
        raise ValueError(f"where picked a part of {type(model).__name__} that holds no leaf: {part!r}.")
    parts = jax.tree.leaves(jax.tree.map(eqx.is_inexact_array, part))
    return eqx.tree_at(lambda tree: jax.tree.leaves(where(tree)), mask, [inside and floating for floating in parts])


def _paths(model: Any) -> tuple[list[tuple[str, Any]], Any]:
    flat, structure = jax.tree_util.tree_flatten_with_path(model)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat], structure


def by_name(*patterns: str) -> Filter:
    """The leaves whose dotted path matches any of the patterns.

    **Arguments:** `patterns`, shell-style (`*` matches across dots): `"head.*"`, `"*.bias"`, `"layers.0.*"`.

    **Returns:** a filter.

    **Raises:** when the filter is used, `ValueError` for a pattern that matches no floating-point array, naming the
    closest path.

    >>> import jax.numpy as jnp
    >>> by_name("*.bias")({"a": {"weight": jnp.ones(2), "bias": jnp.ones(1)}})
    {'a': {'bias': True, 'weight': False}}
    """

    def choose(model: Any) -> Any:
        paths, structure = _paths(model)
        names = [path for path, leaf in paths if eqx.is_inexact_array(leaf)]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"by_name's pattern {pattern!r} matches no parameter. {nearest(pattern, names)}")
        marks = [
            eqx.is_inexact_array(leaf) and any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
            for path, leaf in paths
        ]
        return jax.tree.unflatten(structure, marks)

    return choose


def without_norm(model: Any) -> Any:
    """Everything but the scales and offsets of normalisation layers, as in the MAML paper's released code.

    There batch norm's offset is a variable of the outer loop only. A layer counts as normalisation when the name of
    its class ends in `Norm` (`BatchStatNorm`, `GroupNorm`, `eqx.nn.LayerNorm`, ...); `WeightNorm` and `SpectralNorm`
    wrap a layer's own weights and do not count.

    **Arguments:** `model`, any PyTree.

    **Returns:** a tree of the model's structure.

    >>> import jax, metakit as mk
    >>> model = mk.nn.conv4_maml_omniglot(5, key=jax.random.key(0))
    >>> mk.inner.select.without_norm(model).blocks[0].norm.bias
    False
    """

    def is_norm(node: Any) -> bool:
        name = type(node).__name__
        return name.endswith("Norm") and name not in ("WeightNorm", "SpectralNorm")

    def mark(node: Any) -> Any:
        return jax.tree.map(lambda leaf: eqx.is_inexact_array(leaf) and not is_norm(node), node)

    return jax.tree.map(mark, model, is_leaf=is_norm)


def intersection(*filters: Filter) -> Filter:
    """The leaves that every filter selects, for instance `intersection(body_only, without_norm)`.

    **Arguments:** `filters`, at least one.

    **Returns:** a filter.

    >>> import jax.numpy as jnp
    >>> intersection(by_name("a*"), by_name("*b"))({"ab": jnp.ones(1), "ac": jnp.ones(1), "bb": jnp.ones(1)})
    {'ab': True, 'ac': False, 'bb': False}
    """

    def choose(model: Any) -> Any:
        return jax.tree.map(lambda *marks: all(marks), *(_full(choose_one, model) for choose_one in filters))

    return choose


def partition(model: Any, select: Filter) -> tuple[Any, Any]:
    """Split a model into the leaves that adapt and everything else; `equinox.combine` puts it together again.

    **Arguments:** `model`, any PyTree; `select`, a filter, whose result may also be a prefix of the model's structure.

    **Returns:** `(adapted, frozen)`.

    **Raises:** `ValueError` when nothing is selected, and when the filter's result does not fit the model.

    >>> import jax, metakit as mk
    >>> model = mk.nn.MLP(1, 1, 8, 1, key=jax.random.key(0))
    >>> adapting, frozen = mk.inner.select.partition(model, mk.inner.select.head_only)
    >>> adapting.head.weight.shape, frozen.head.weight
    ((8, 1), None)
    """
    mask = _full(select, model)
    if not any(jax.tree.leaves(mask)):
        raise ValueError(
            f"the filter select={_name(select)} selects no floating-point array of {type(model).__name__}, so the "
            "inner loop would adapt nothing. mk.inner.select.everything adapts all of them."
        )
    return eqx.partition(model, mask)


def _full(select: Filter, model: Any) -> Any:
    """A filter's marks with the model's own structure; the filter may stop at a prefix of it."""

    def spread(mark: Any, part: Any) -> Any:
        return jax.tree.map(lambda leaf: bool(mark) and eqx.is_inexact_array(leaf), part)

    marks = select(model)
    try:
        return jax.tree.map(spread, marks, model)
    except ValueError as error:
        raise ValueError(
            f"the filter select={_name(select)} must return a tree of bools of the model's structure; {error}"
        ) from error


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", repr(function))
