"""Convolutional encoder and decoder of the Neural Statistician for images."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metakit import nn
from metakit._hyperparameter import Hyperparameter
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey
from metakit.learners._options import require_sizes

from ._learner import Norm, Statistician


def _sides(image_size: int) -> tuple[int, int, int, int]:
    """Sides of the feature maps; the published ones are 28, 14, 7 and 4."""
    sides = [image_size]
    for _ in range(3):
        sides.append(-(-sides[-1] // 2))
    return sides[0], sides[1], sides[2], sides[3]


class Convolution(eqx.Module):
    """Convolution 3x3, norm and ELU, on channels-last images."""

    conv: nn.Conv2d
    norm: Any

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm, key: PRNGKey):
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, key=key)
        self.norm = norm(out_channels)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        return jax.nn.elu(self.norm.channels_last(self.conv.channels_last(x)))


class ImageEncoder(eqx.Module):
    """Three halvings of the image, two convolutions each; the last feature map, flattened.

    **Arguments:**

    - `in_channels`, `image_size`: of the square images.
    - `width`: filters of the first halving; the others have twice and four times as many. Default 32.
    - `norm`: makes a norm from its channels; default `mk.nn.BatchStatNorm`, as published.
    - `key`: random key of the weights.

    **Returns** (of a call): `[n, features]` for images `[n, in_channels, image_size, image_size]`.

    **Raises:** `ValueError` for a size below 1, or images of another size.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> encoder = mk.statistician.ImageEncoder(1, 28, width=4, key=jax.random.key(0))
    >>> encoder(jnp.ones((2, 1, 28, 28))).shape, encoder.features
    ((2, 256), 256)
    """

    layers: tuple[Convolution, ...]
    in_channels: int = eqx.field(static=True)
    image_size: int = eqx.field(static=True)

    @keyed
    def __init__(
        self, in_channels: int, image_size: int, *, width: int = 32, norm: Norm = nn.BatchStatNorm, key: PRNGKey
    ):
        require_sizes(in_channels=in_channels, image_size=image_size, width=width)
        channels = [in_channels, width, 2 * width, 4 * width]
        keys = iter(jax.random.split(key, 6))
        self.layers = tuple(
            Convolution(source, out, stride, norm, next(keys))
            for before, out in itertools.pairwise(channels)
            for source, stride in ((before, 2), (out, 1))
        )
        self.in_channels, self.image_size = in_channels, image_size

    @property
    def features(self) -> int:
        """Size of what a call returns."""
        return self.layers[-1].conv.weight.shape[-1] * _sides(self.image_size)[-1] ** 2

    @typed
    def __call__(self, x: Float[Array, "n *in"]) -> Float[Array, "n features"]:
        expected = (self.in_channels, self.image_size, self.image_size)
        if x.shape[1:] != expected:
            raise ValueError(
                f"this ImageEncoder takes images of {list(expected)} (channels, height, width), got "
                f"{list(x.shape[1:])}. Build it with the images' in_channels and image_size, or resize the images."
            )
        x = jnp.moveaxis(x, 1, -1)
        for layer in self.layers:
            x = layer(x)
        return x.reshape(x.shape[0], -1)


class ImageDecoder(eqx.Module):
    r"""A linear layer with norm and ELU, and three doublings to the logits of an image.

    The first two repeat each pixel and convolve, norm and ELU. The last is a pixel shuffle: a convolution gives each
    pixel of the smaller map the four of the larger one that lie in it. Convolutions on the whole image would cost more
    than all the others together.

    **Arguments:** `in_size`, features of latents and context together; the others as in `ImageEncoder`, whose feature
    maps it has in reverse order, with one convolution for each doubling.

    **Returns** (of a call): logits `[n, out_channels, image_size, image_size]` for `[n, in_size]`.

    **Raises:** `ValueError` for a size below 1.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> mk.statistician.ImageDecoder(5, 1, 28, width=4, key=jax.random.key(0))(jnp.ones((2, 5))).shape
    (2, 1, 28, 28)

    **Source:** of the pixel shuffle, Shi et al. 2016, section 3.2, https://arxiv.org/abs/1609.05158.
    """

    first: nn.Linear
    norm: Any
    layers: tuple[Convolution, ...]
    last: nn.Conv2d
    image_size: int = eqx.field(static=True)

    @keyed
    def __init__(
        self,
        in_size: int,
        out_channels: int,
        image_size: int,
        *,
        width: int = 32,
        norm: Norm = nn.BatchStatNorm,
        key: PRNGKey,
    ):
        require_sizes(in_size=in_size, out_channels=out_channels, image_size=image_size, width=width)
        first_key, last_key, *keys = jax.random.split(key, 4)
        channels = [4 * width, 2 * width, width]
        features = channels[0] * _sides(image_size)[-1] ** 2
        self.first = nn.Linear(in_size, features, weight_init=nn.xavier_uniform, key=first_key)
        self.norm = norm(features)
        self.layers = tuple(
            Convolution(source, out, 1, norm, k)
            for (source, out), k in zip(itertools.pairwise(channels), keys, strict=True)
        )
        self.last = nn.Conv2d(width, 4 * out_channels, 3, key=last_key)
        self.image_size = image_size

    @typed
    def __call__(self, hidden: Float[Array, "n hidden"]) -> Float[Array, "n c h w"]:
        whole, *halves = _sides(self.image_size)
        *larger, side = halves
        x = jax.nn.elu(self.norm(self.first(hidden))).reshape(hidden.shape[0], side, side, -1)
        for layer, side in zip(self.layers, larger[::-1], strict=True):
            # An odd side is one short of twice the smaller one.
            x = layer(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :side, :side])
        return pixel_shuffle(self.last.channels_last(x))[:, :, :whole, :whole]


def pixel_shuffle(x: Float[Array, "n h w four_c"]) -> Float[Array, "n c h2 w2"]:
    """Images of twice the side, from the four pixels (down, right) that each place holds in its channels."""
    n, h, w, channels = x.shape
    fours = x.reshape(n, h, w, 2, 2, channels // 4)
    return jnp.transpose(fours, (0, 5, 1, 3, 2, 4)).reshape(n, channels // 4, 2 * h, 2 * w)


def of_images(
    in_channels: int = 1,
    image_size: int = 28,
    *,
    context_size: int = 512,
    latent_size: int = 16,
    num_layers: int = 1,
    filters: int = 32,
    norm: Norm = nn.BatchStatNorm,
    width: int = 256,
    depth: int = 2,
    emphasis: Hyperparameter | ArrayLike = 0.0,
    sample_dropout: Hyperparameter | ArrayLike = 0.0,
    key: PRNGKey,
) -> Statistician:
    """A statistician of sets of images with pixels in 0..1, with a Bernoulli likelihood.

    **Arguments:**

    - `in_channels`, `image_size`: of the square images; default 1 and 28.
    - `filters`: `width` of `ImageEncoder` and `ImageDecoder`, default 32 (published: 64, with three convolutions for
      each halving).
    - `norm`: of both, and of the dense networks as in `Statistician`; default `mk.nn.BatchStatNorm`, as published. With
      `functools.partial(mk.nn.GroupNorm, 1)` no image sees another, and there is nothing to fix for a test; but on
      Omniglot most directions of the context fell out of use.
    - the others as in `Statistician`; a context of 512 and latents of 16 are the published ones for Omniglot.

    **Returns:** a `Statistician`.

    **Raises:** `ValueError` for a size or number of layers below 1.

    >>> import jax, metakit as mk
    >>> mk.statistician.of_images(1, 28, filters=4, key=jax.random.key(0)).likelihood
    'bernoulli'
    """
    require_sizes(context_size=context_size, latent_size=latent_size, num_layers=num_layers)
    encoder_key, decoder_key, key = jax.random.split(key, 3)
    encoder = ImageEncoder(in_channels, image_size, width=filters, norm=norm, key=encoder_key)
    hidden = num_layers * latent_size + context_size
    return Statistician(
        encoder,
        ImageDecoder(hidden, in_channels, image_size, width=filters, norm=norm, key=decoder_key),
        features=encoder.features,
        context_size=context_size,
        latent_size=latent_size,
        likelihood="bernoulli",
        num_layers=num_layers,
        width=width,
        depth=depth,
        norm=norm,
        emphasis=emphasis,
        sample_dropout=sample_dropout,
        key=key,
    )
