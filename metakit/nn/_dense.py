"""Matrix product of rows and weights, one bilinear family.

Under `vmap` over weights, XLA on a CPU runs a batched product with a transposed left factor, the weight gradient, at
half the speed of a plain one. Writing the transpose out made the whole step of W1 (docs/performance.md) a sixth faster.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._bilinear import Map, Shape, bilinear


def _output(x: Array, w: Array, geometry: None, platform: str) -> Array:
    del geometry, platform
    return jnp.matmul(x, w)


def _input_gradient(g: Array, w: Array, geometry: None, platform: str) -> Array:
    del geometry, platform
    return jnp.matmul(g, jnp.swapaxes(w, -1, -2))


def _weight_gradient(x: Array, g: Array, geometry: None, platform: str) -> Array:
    del geometry
    columns = jnp.swapaxes(x, -1, -2)
    if platform == "cpu":
        columns = jax.lax.optimization_barrier(columns)  # otherwise XLA folds the transpose back into the product
    return jnp.matmul(columns, g)


def _out_shape(x: Shape, w: Shape, geometry: None) -> Shape:
    del geometry
    return (*x[:-1], w[-1])


def _in_shape(g: Shape, w: Shape, geometry: None) -> Shape:
    del geometry
    return (*g[:-1], w[-2])


def _weight_shape(x: Shape, g: Shape, geometry: None) -> Shape:
    del geometry
    return (*x[:-2], x[-1], g[-1])


_product = bilinear(
    "metakit_dense",
    rank=2,
    output=Map(_output, _out_shape),
    input_gradient=Map(_input_gradient, _in_shape),
    weight_gradient=Map(_weight_gradient, _weight_shape),
)


def dense(x: Array, w: Array) -> Array:
    """`x @ w` for rows `[n, in]` and weights `[in, out]`."""
    dtype = jnp.result_type(x, w)
    return _product(x.astype(dtype), w.astype(dtype), None)
