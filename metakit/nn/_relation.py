"""The two networks of the Relation Network: one makes feature maps, the other compares them."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._errors import require_option
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._conv2d import Conv2d
from ._conv4 import Block, Norm
from ._linear import Linear
from ._norm import BatchStatNorm

Padding = Literal["SAME", "VALID"]


def _conv_init(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """The released code's convolutions: normal with variance 2 / fan_out."""
    del fan_in
    return jax.random.normal(key, shape, _dtype()) * jnp.asarray(math.sqrt(2 / fan_out), _dtype())


def _linear_init(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """The released code's fully connected layers: normal with standard deviation 0.01."""
    del fan_in, fan_out
    return 0.01 * jax.random.normal(key, shape, _dtype())


def _dtype() -> jnp.dtype:
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def _side_after_pooling(side: int, padding: str) -> int:
    """The side of square maps after two blocks of a 3x3 convolution and 2x2 pooling."""
    require_option("padding", padding, ("SAME", "VALID"))
    for _ in range(2):
        side = (side if padding == "SAME" else side - 2) // 2
    return side


class RelationEmbedding(eqx.Module):
    """The embedding of the Relation Network: four convolutional blocks, of which only the first two pool.

    Each is a 3x3 convolution, a norm and a ReLU; what comes out is still a map, for the relation module to
    convolve. 28x28 gives 5x5 maps and 84x84 gives 19x19. 111,936 parameters for grey images, as `conv4_64`.

    **Arguments:**

    - `in_channels`: 1 for grey (the default), 3 for colour.
    - `image_size`: side of the square images, in pixels; default 28.
    - `width`: filters of each block, default 64.
    - `padding`: of the two blocks that pool, `"VALID"` (none, the default and the released code's) or `"SAME"`; the
      other two always keep the size.
    - `norm`: makes the norm of a block from its channels; default `BatchStatNorm`.
    - `key`: random key of the initial weights.

    **Returns** (of a call): feature maps `[n, width, map_size, map_size]`.

    **Raises:** `ValueError` when images have another size or number of channels than the network was made
    for, when they are too small for two poolings, or for an unknown padding.

    **Source:** Sung et al. 2018, section 3.4 and figure 2, https://arxiv.org/abs/1711.06025; padding and initial
    weights (normal with variance 2 / fan-out) as in its code, https://github.com/floodsung/LearningToCompare_FSL

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.RelationEmbedding(key=jax.random.key(0))(jnp.ones((2, 1, 28, 28))).shape
    (2, 64, 5, 5)
    """

    blocks: tuple[Block, ...]
    in_channels: int = eqx.field(static=True)
    image_size: int = eqx.field(static=True)
    map_size: int = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        *,
        width: int = 64,
        padding: Padding = "VALID",
        norm: Norm = BatchStatNorm,
        key: PRNGKey,
    ):
        side = _side_after_pooling(image_size, padding)
        if side < 1:
            least = 4 if padding == "SAME" else 10
            raise ValueError(f"image_size={image_size} is too small for two poolings; it must be at least {least}.")
        keys = jax.random.split(key, 4)
        self.blocks = tuple(
            Block(
                Conv2d(
                    in_channels if i == 0 else width,
                    width,
                    3,
                    padding=padding if i < 2 else "SAME",
                    weight_init=_conv_init,
                    key=k,
                ),
                norm(width),
                2 if i < 2 else 1,
            )
            for i, k in enumerate(keys)
        )
        self.in_channels, self.image_size, self.map_size = in_channels, image_size, side

    @typed
    def __call__(self, x: Float[Array, "n *in"]) -> Float[Array, "n c h w"]:
        expected = (self.in_channels, self.image_size, self.image_size)
        if x.shape[1:] != expected:
            raise ValueError(
                f"this RelationEmbedding takes images of {list(expected)} (channels, height, width), got "
                f"{list(x.shape[1:])}. Make the network with the images' in_channels and image_size, or "
                "resize the images."
            )
        x = jnp.moveaxis(x, 1, -1)
        for block in self.blocks:
            x = block.channels_last(x)
        return jnp.moveaxis(x, -1, 1)


class RelationModule(eqx.Module):
    r"""The relation module: how much alike a class's feature map and a query's are.

    $$z_{jn} = g_\phi\bigl([\,c_n, f_j\,]\bigr)$$

    Class map and query map are concatenated in depth; two blocks of a 3x3 convolution, a norm, a ReLU and 2x2
    max-pooling follow, and two fully connected layers. The published relation score is the sigmoid of what
    comes out, $r_{jn} = \sigma(z_{jn})$.

    The first convolution of $[c_n, f_j]$ is one of $c_n$ plus one of $f_j$. It is computed so, once for each class and
    each query rather than for each pair: the same numbers for less than half of the work.

    **Arguments:**

    - `channels`: of the class's maps and, as many, of the query's.
    - `map_size`: side of the square maps.
    - `width`: filters of each block, default 64.
    - `hidden`: units of the first fully connected layer, default 8.
    - `padding`: of the convolutions, `"SAME"` (the default and the released code's for Omniglot) or `"VALID"` (no
      padding: its code for mini-ImageNet).
    - `norm`: makes the norm of a block from its channels; default `BatchStatNorm`, whose batch is all pairs of the
      call.
    - `key`: random key of the initial weights.

    **Returns** (of a call with class maps `[way, channels, h, w]` and query maps `[query, channels, h, w]`): scores
    `[query, way]`, before the sigmoid.

    **Raises:** `ValueError` when maps have another size or number of channels than the module was made for, when they
    are too small for two poolings, for sizes below 1 or for an unknown padding.

    **Source:** Sung et al. 2018, section 3.4 and figure 2, https://arxiv.org/abs/1711.06025; padding and initial
    weights (convolutions normal with variance 2 / fan-out; fully connected layers normal with standard deviation 0.01
    and biases of 1) as in its code, https://github.com/floodsung/LearningToCompare_FSL

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> module = mk.nn.RelationModule(64, 5, key=jax.random.key(0))
    >>> module(jnp.ones((3, 64, 5, 5)), jnp.ones((4, 64, 5, 5))).shape
    (4, 3)
    """

    first: Block
    second: Block
    hidden: Linear
    score: Linear
    channels: int = eqx.field(static=True)
    map_size: int = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        channels: int,
        map_size: int,
        *,
        width: int = 64,
        hidden: int = 8,
        padding: Padding = "SAME",
        norm: Norm = BatchStatNorm,
        key: PRNGKey,
    ):
        side = _side_after_pooling(map_size, padding)
        if side < 1:
            least = 4 if padding == "SAME" else 10
            raise ValueError(f"map_size={map_size} is too small for two poolings; it must be at least {least}.")
        keys = jax.random.split(key, 4)

        def block(in_channels: int, block_key: PRNGKey) -> Block:
            convolution = Conv2d(in_channels, width, 3, padding=padding, weight_init=_conv_init, key=block_key)
            return Block(convolution, norm(width), 2)

        def linear(in_size: int, out_size: int, layer_key: PRNGKey) -> Linear:
            layer = Linear(in_size, out_size, weight_init=_linear_init, key=layer_key)
            return eqx.tree_at(lambda node: node.bias, layer, jnp.ones_like(layer.bias))

        self.first, self.second = block(2 * channels, keys[0]), block(width, keys[1])
        self.hidden, self.score = linear(width * side * side, hidden, keys[2]), linear(hidden, 1, keys[3])
        self.channels, self.map_size = channels, map_size

    @typed
    def __call__(
        self, classes: Float[Array, "way *class_map"], queries: Float[Array, "query *query_map"]
    ) -> Float[Array, "query way"]:
        expected = (self.channels, self.map_size, self.map_size)
        for name, maps in (("classes", classes), ("queries", queries)):
            if maps.shape[1:] != expected:
                raise ValueError(
                    f"this RelationModule takes {name} with maps of {list(expected)} (channels, height, width), got "
                    f"{list(maps.shape[1:])}. Make it with the embedding's width and map_size."
                )
        way, query = classes.shape[0], queries.shape[0]
        x = self._first_convolution(jnp.moveaxis(classes, 1, -1), jnp.moveaxis(queries, 1, -1))
        x = self.first.after_convolution(x.reshape(query * way, *x.shape[2:]))
        x = self.second.channels_last(x)
        x = jax.nn.relu(self.hidden(x.reshape(query * way, -1)))
        return self.score(x).reshape(query, way)

    def _first_convolution(self, classes: Array, queries: Array) -> Array:
        """`[query, way, h, w, width]`: the convolution of every concatenated pair, as a sum of two."""
        whole, half = self.first.conv, self.channels
        weights = whole.weight[:, :, :half], whole.weight[:, :, half:]
        of_classes = eqx.tree_at(lambda layer: layer.weight, whole, weights[0])
        of_queries = eqx.tree_at(lambda layer: (layer.weight, layer.bias), whole, (weights[1], None))
        return of_queries.channels_last(queries)[:, None] + of_classes.channels_last(classes)[None]
