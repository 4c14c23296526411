"""A network that draws images from codes."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey

from ._conv2d import Conv2d
from ._linear import Linear


class ImageGenerator(eqx.Module):
    """Images from codes: a linear layer, twice an upsampling and a convolution with leaky ReLUs, and a sigmoid.

    **Arguments:**

    - `code_size`: numbers in a code.
    - `channels`, `image_size`: of the images; `image_size` is a multiple of 4.
    - `width`: filters, default 64.
    - `key`: random key of the initial weights.

    **Returns** (of a call with codes `[n, code_size]`): images `[n, channels, image_size, image_size]` in 0..1, the
    range in which `mk.tasks.Episodes` gives them. There is no norm layer, so no image depends on another.

    **Raises:** `ValueError` for an `image_size` that is no positive multiple of 4, other sizes below 1, or codes of
    another size.

    **Source:** the layout is that of DCGAN, Radford et al. 2016, https://arxiv.org/abs/1511.06434, with upsampling by
    repetition in place of transposed convolutions, which leave checkerboards: Odena et al. 2016,
    https://distill.pub/2016/deconv-checkerboard

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> generator = mk.nn.ImageGenerator(5, 1, 8, width=4, key=jax.random.key(0))
    >>> generator(jnp.ones((3, 5))).shape
    (3, 1, 8, 8)
    """

    first: Linear
    middle: Conv2d
    last: Conv2d
    width: int = eqx.field(static=True)
    side: int = eqx.field(static=True)

    @keyed
    def __init__(self, code_size: int, channels: int, image_size: int, *, width: int = 64, key: PRNGKey):
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size must be a positive multiple of 4, got {image_size}.")
        first, middle, last = jax.random.split(key, 3)
        self.width, self.side = width, image_size // 4
        self.first = Linear(code_size, width * self.side**2, key=first)
        self.middle = Conv2d(width, width, 3, key=middle)
        self.last = Conv2d(width, channels, 3, key=last)

    @typed
    def __call__(self, code: Float[Array, "n code"]) -> Float[Array, "n c h w"]:
        x = _leaky(self.first(code)).reshape(code.shape[0], self.width, self.side, self.side)
        x = _leaky(self.middle(_twice_as_large(x)))
        return jax.nn.sigmoid(self.last(_twice_as_large(x)))


def _leaky(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.2)


def _twice_as_large(x: Float[Array, "n c h w"]) -> Float[Array, "n c h2 w2"]:
    return jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
