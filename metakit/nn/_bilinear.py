"""Layers that are linear in their input and in their weights, so that per-task weights stay fast in every derivative.

Such a layer is one trilinear form T(x, w, g), read three ways:

    output            y  = T(x, w, ·)
    input gradient    dx = T(·, w, g)
    weight gradient   dw = T(x, ·, g)

The transpose of each with respect to either operand is another of the three. Primitives that name each other as their
transposes are therefore closed under differentiation, to any order and in any mode (a nested `custom_vjp` would fail
forward-over-reverse), and how each map is computed is ours to choose at every order. The batching rule folds mapped
axes into one explicit leading task axis, or into the rows where the weights are shared.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

Shape = tuple[int, ...]


class Map(NamedTuple):
    """One of the three: `compute(a, b, geometry, platform)`, and `shape(a.shape, b.shape, geometry)` of its result.

    Both operands have `rank` axes, or both one more, a leading task axis.
    """

    compute: Callable[..., Array]
    shape: Callable[[Shape, Shape, Any], Shape]


def bilinear(
    name: str, *, rank: int, output: Map, input_gradient: Map, weight_gradient: Map
) -> Callable[[Array, Array, Any], Array]:
    """The layer `(x, w, geometry) -> y` of a family; x, w and y have `rank` axes, and the first of x and y is rows.

    `geometry` is static and hashable: what does not follow from the shapes of two operands.
    """
    y = _primitive(f"{name}_output", rank, output)
    dx = _primitive(f"{name}_input_gradient", rank, input_gradient)
    dw = _primitive(f"{name}_weight_gradient", rank, weight_gradient)

    # defbilinear takes the transposes for the first and for the second operand, each called as
    # (cotangent, first operand, second operand) with None for the one asked for.
    ad.defbilinear(y, _transpose(dx, 0, 2), _transpose(dw, 1, 0))
    ad.defbilinear(dx, _transpose(y, 0, 2), _transpose(dw, 0, 1))
    ad.defbilinear(dw, _transpose(dx, 2, 0), _transpose(y, 1, 0))

    for primitive, shares_second in ((y, True), (dx, True), (dw, False)):
        batching.primitive_batchers[primitive] = functools.partial(_batch, primitive, rank, shares_second)

    def apply(x: Array, w: Array, geometry: Any) -> Array:
        x, w = _vary_alike(x, w)
        return y.bind(x, w, geometry=geometry)

    return apply


def _primitive(name: str, rank: int, of: Map) -> Primitive:
    primitive = Primitive(name)

    def abstract(a: Any, b: Any, *, geometry: Any) -> Any:
        out = of.shape(a.shape, b.shape, geometry)
        # `update` keeps the manual axes over which the operands vary. Without them
        # `shard_map(check_vma=True)` refuses the cotangents or, worse, leaves out the sum over devices.
        return a.update(shape=out, weak_type=False, sharding=_sharding(a, b, len(out)))

    def lower(platform: str, a: Array, b: Array, *, geometry: Any) -> Array:
        if a.ndim == rank + 1 and a.shape[0] == 1:  # a chunk of one task has every form of the map open to it
            return of.compute(a[0], b[0], geometry, platform)[None]
        return of.compute(a, b, geometry, platform)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(functools.partial(_bind, primitive), static_argnames="geometry"))
    for platform in ("cpu", None):
        rule = mlir.lower_fun(functools.partial(lower, platform or "other"), multiple_results=False)
        mlir.register_lowering(primitive, rule, platform=platform)
    return primitive


def _bind(primitive: Primitive, a: Array, b: Array, geometry: Any) -> Array:
    return primitive.bind(a, b, geometry=geometry)


def _transpose(primitive: Primitive, first: int, second: int) -> Callable[..., Array]:
    def transpose(*operands: Array, geometry: Any) -> Array:
        return primitive.bind(operands[first], operands[second], geometry=geometry)

    return transpose


def _sharding(a: Any, b: Any, rank: int) -> NamedSharding:
    """Inside `shard_map` and outside any mesh, types say nothing of how an array is split."""
    split = [x for x in (a, b) if any(axis is not None for axis in x.sharding.spec)]
    if split:
        raise ValueError(
            f"a layer of metakit got {split[0].str_short()}, which an Explicit mesh (jax.make_mesh's default) "
            "splits in its type. Make the mesh by mk.sharding.task_mesh, or with "
            "axis_types=(jax.sharding.AxisType.Auto,), or call the layer inside jax.shard_map."
        )
    return a.sharding.update(spec=PartitionSpec(*[None] * rank))


def _batch(
    primitive: Primitive, rank: int, shares_second: bool, args: Sequence[Array], dims: Sequence[Any], *, geometry: Any
) -> tuple[Array, int]:
    a, b = args
    a_dim, b_dim = dims
    size = a.shape[a_dim] if a_dim is not None else b.shape[b_dim]
    if shares_second and b_dim is None:
        return _fold_into_rows(primitive, rank, _to_front(a, a_dim, size), b, geometry), 0
    a, b = (_to_front(x, dim, size) for x, dim in ((a, a_dim), (b, b_dim)))
    lead = a.shape[:-rank]  # the mapped axis, and the task axis if there already is one
    tasks = math.prod(lead)
    folded = primitive.bind(a.reshape(tasks, *a.shape[-rank:]), b.reshape(tasks, *b.shape[-rank:]), geometry=geometry)
    return folded.reshape(*lead, *folded.shape[1:]), 0


def _to_front(x: Array, dim: Any, size: int) -> Array:
    return jnp.broadcast_to(x[None], (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)


def _fold_into_rows(primitive: Primitive, rank: int, x: Array, w: Array, geometry: Any) -> Array:
    """Shared weights: `[b, (t,) n, ...]` rows are `[(t,) b·n, ...]` rows."""
    size, *lead = x.shape[:-rank]
    n, *rest = x.shape[-rank:]
    together = jnp.moveaxis(x, 0, len(lead)).reshape(*lead, size * n, *rest)
    y = primitive.bind(together, w, geometry=geometry)
    return jnp.moveaxis(y.reshape(*lead, size, n, *y.shape[1 - rank :]), len(lead), 0)


def _varying(x: Array) -> frozenset[Any]:
    # Outside `shard_map(check_vma=True)` it is empty.
    return jax.typeof(x).manual_axis_type.varying


def _vary_alike(x: Array, w: Array) -> tuple[Array, Array]:
    """What JAX does for the operands of its own primitives; its transpose is the sum over devices."""
    together = _varying(x) | _varying(w)
    x, w = (
        jax.lax.pcast(a, tuple(sorted(missing)), to="varying") if (missing := together - _varying(a)) else a
        for a in (x, w)
    )
    return x, w
