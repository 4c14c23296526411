"""The four-block convolutional network of the few-shot papers, in its published variants."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._conv2d import Conv2d
from ._initialisers import Initialiser, unit_normal, xavier_uniform
from ._linear import Linear
from ._norm import BatchStatNorm
from ._pool import max_pool_last

Norm = Callable[[int], Any]


class Block(eqx.Module):
    """Convolution 3x3, norm, ReLU and (unless strided) max-pool; on channels-last images."""

    conv: Conv2d
    norm: Any
    pool: int = eqx.field(static=True)

    def channels_last(self, x: Array) -> Array:
        return self.after_convolution(self._before_norm().channels_last(x))

    def after_convolution(self, x: Array) -> Array:
        x = jax.nn.relu(self.norm.channels_last(x))
        return max_pool_last(x, self.pool) if self.pool > 1 else x

    def _before_norm(self) -> Conv2d:
        """The convolution, without its bias where batch statistics take that out again: two passes less over y."""
        takes_out = isinstance(self.norm, BatchStatNorm) and self.norm.statistics is None
        return eqx.tree_at(lambda conv: conv.bias, self.conv, None) if takes_out else self.conv


class Conv4(eqx.Module):
    """Four blocks of convolution, norm, ReLU and pooling, and a linear `head` if asked for.

    Use `conv4_64`, `conv4_32` or `conv4_maml_omniglot` for the published variants.

    **Arguments:**

    - `in_channels`: 1 for grey, 3 for colour.
    - `image_size`: side of the square images, in pixels; it fixes the size of the head.
    - `out_size`: logits of the head; `None` (the default) gives an embedding network without a head.
    - `width`: filters of each block, default 64.
    - `stride`: 1 with max-pooling (the default), or 2 without.
    - `spatial_mean`: average the last feature map over space instead of flattening it.
    - `norm`: makes the norm of a block from its channels; default `BatchStatNorm`.
    - `head_init`: how the head's weights start; default Xavier uniform, as the convolutions'.
    - `key`: random key of the initial weights.

    **Returns** (of a call): `[n, out_size]`, or the embedding `[n, d]` where there is no head.

    **Raises:** `ValueError` when images have another size or number of channels than the network was made
    for, when they are too small for four blocks, or for a stride other than 1 and 2.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> network = mk.nn.Conv4(1, 28, out_size=5, key=jax.random.key(0))
    >>> network(jnp.ones((2, 1, 28, 28))).shape
    (2, 5)
    """

    blocks: tuple[Block, ...]
    head: Linear | None
    in_channels: int = eqx.field(static=True)
    image_size: int = eqx.field(static=True)
    spatial_mean: bool = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_channels: int,
        image_size: int,
        *,
        out_size: int | None = None,
        width: int = 64,
        stride: int = 1,
        spatial_mean: bool = False,
        norm: Norm = BatchStatNorm,
        head_init: Initialiser = xavier_uniform,
        key: PRNGKey,
    ):
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 (with max-pooling) or 2 (without), got {stride}.")
        side = image_size
        for _ in range(4):
            side = side // 2 if stride == 1 else -(-side // 2)
        if side < 1:
            raise ValueError(f"image_size={image_size} is too small for four halvings; it must be at least 16.")
        *keys, head_key = jax.random.split(key, 5)
        channels = [in_channels, *[width] * 4]
        self.blocks = tuple(
            Block(Conv2d(i, o, 3, stride=stride, key=k), norm(o), 2 if stride == 1 else 1)
            for i, o, k in zip(channels[:-1], channels[1:], keys, strict=True)
        )
        features = width if spatial_mean else width * side * side
        self.head = None if out_size is None else Linear(features, out_size, weight_init=head_init, key=head_key)
        self.in_channels, self.image_size, self.spatial_mean = in_channels, image_size, spatial_mean

    @typed
    def __call__(self, x: Float[Array, "n *in"]) -> Float[Array, "n out"]:
        expected = (self.in_channels, self.image_size, self.image_size)
        if x.shape[1:] != expected:
            raise ValueError(
                f"this Conv4 takes images of {list(expected)} (channels, height, width), got "
                f"{list(x.shape[1:])}. Make the network with the images' in_channels and image_size, or "
                "resize the images."
            )
        x = jnp.moveaxis(x, 1, -1)
        for block in self.blocks:
            x = block.channels_last(x)
        features = jnp.mean(x, axis=(1, 2)) if self.spatial_mean else x.reshape(x.shape[0], -1)
        return features if self.head is None else self.head(features)


def conv4_64(
    in_channels: int = 1,
    image_size: int = 28,
    *,
    out_size: int | None = None,
    norm: Norm = BatchStatNorm,
    key: PRNGKey,
) -> Conv4:
    """64 filters and max-pooling: the embedding of Matching and Prototypical Networks.

    111,936 parameters for grey images (113,088 for colour) without a head; 28x28 gives 64 features, 84x84
    gives 1,600.

    **Arguments:** as in `Conv4`.

    **Returns:** a `Conv4`.

    **Source:** Snell et al. 2017, section 3.1, https://arxiv.org/abs/1703.05175

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.conv4_64(key=jax.random.key(0))(jnp.ones((2, 1, 28, 28))).shape
    (2, 64)
    """
    return Conv4(in_channels, image_size, out_size=out_size, norm=norm, key=key)


def maml_norm(channels: int) -> BatchStatNorm:
    """Batch norm as in MAML's published code: no scale, epsilon 1e-3.

    **Arguments:** `channels`.

    **Returns:** a `BatchStatNorm`.

    >>> maml_norm(64).scale is None
    True
    """
    return BatchStatNorm(channels, eps=1e-3, use_scale=False)


def conv4_maml_omniglot(out_size: int | None = 5, *, norm: Norm = maml_norm, key: PRNGKey) -> Conv4:
    """The MAML paper's Omniglot network: 64 filters, strided without pooling, spatial mean, unit-normal head.

    111,424 convolution parameters, 256 norm biases and, for 5 classes, 325 in the head.

    **Arguments:** `out_size`, classes; `norm`, default the published one without a scale; `key`.

    **Returns:** a `Conv4` for grey 28x28 images.

    **Source:** Finn et al. 2017, section 5.2 and its code, https://github.com/cbfinn/maml

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.nn.conv4_maml_omniglot(5, key=jax.random.key(0))(jnp.ones((2, 1, 28, 28))).shape
    (2, 5)
    """
    return Conv4(1, 28, out_size=out_size, stride=2, spatial_mean=True, norm=norm, head_init=unit_normal, key=key)


def _ravi_norm(channels: int) -> BatchStatNorm:
    """Batch norm as in the Meta-Learner LSTM's published code."""
    return BatchStatNorm(channels, eps=1e-3)


def conv4_32(
    out_size: int | None = 5,
    *,
    in_channels: int = 3,
    image_size: int = 84,
    norm: Norm = _ravi_norm,
    key: PRNGKey,
) -> Conv4:
    """32 filters and max-pooling: the mini-ImageNet network of MAML and the Meta-Learner LSTM.

    32,901 parameters for 84x84 colour images and 5 classes; 32,773 with MAML's own norm,
    `norm=mk.nn.maml_norm`.

    **Arguments:** as in `Conv4`; `norm`, default the Meta-Learner LSTM's, with scale, bias and epsilon 1e-3.

    **Returns:** a `Conv4`.

    **Source:** Ravi and Larochelle 2017, section 5.1, https://openreview.net/forum?id=rJY0-Kcll

    >>> import jax, metakit as mk
    >>> mk.nn.conv4_32(5, key=jax.random.key(0)).head.weight.shape
    (800, 5)
    """
    return Conv4(in_channels, image_size, out_size=out_size, width=32, norm=norm, key=key)
