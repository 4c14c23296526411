"""More classes and more images from those at hand, inside the compiled step."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from metakit._typecheck import typed
from metakit._types import PRNGKey


class TurnAndShift(eqx.Module):
    r"""Turns and shifts images a little, all of a batch alike, by amounts that the key decides.

    $$\alpha \sim U(-\alpha_{\max}, \alpha_{\max}), \quad t_x, t_y \sim U(-t_{\max}, t_{\max}), \qquad
      x'(p) = x\bigl(c + R_{-\alpha}(p - c - t)\bigr)$$

    with $c$ the centre and $t$ in sides of the image. Each pixel takes the value of the nearest one, so that images of
    ink and paper stay so; what comes in from outside is 0, the paper of Omniglot and Glyphs.

    Given as `augment_class` of a sampler, it makes of each class of each task a new one, whose images keep their
    likeness. To move every image by itself, map it: `augment=lambda x, key: jax.vmap(lambda i, k: move(i[None],
    key=k)[0])(x, jax.random.split(key, len(x)))`.

    **Arguments:**

    - `turn`: the largest angle $\alpha_{\max}$ in radians, either way, from 0 to $\pi$; default $\pi/16$.
    - `shift`: the largest shift $t_{\max}$ along each axis, as a share of the side, from 0 to 1; default 10/105.

    **Returns** (of a call with `x`, `[n, channels, height, width]`, and a `key`): as `x`, of its shape and dtype.

    **Raises:** `ValueError` for a turn or a shift out of range.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> move = mk.tasks.TurnAndShift(turn=0.0, shift=0.25)
    >>> move(jnp.eye(4)[None, None], key=jax.random.key(2))[0, 0].astype(int).tolist()
    [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]

    **Source:** the amounts of Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", 2016, section 4.1,
    https://proceedings.mlr.press/v48/santoro16.html, where drawings of 105 pixels are moved by up to 10 before they are
    made small; here the small images are moved.
    """

    turn: float = eqx.field(static=True)
    shift: float = eqx.field(static=True)

    def __init__(self, turn: float = math.pi / 16, shift: float = 10 / 105):
        for name, value, most, in_words in (("turn", turn, math.pi, "radians"), ("shift", shift, 1.0, "sides")):
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie in 0..{most:.4g} {in_words}, got {value}.")
        self.turn = turn
        self.shift = shift

    @typed
    def __call__(self, x: Shaped[Array, "n c h w"], *, key: PRNGKey) -> Shaped[Array, "n c h w"]:
        height, width = x.shape[2:]
        angle, down, right = jax.random.uniform(key, (3,), jnp.float32, -1, 1) * jnp.array(
            [self.turn, self.shift * height, self.shift * width], jnp.float32
        )
        # From the centre of the image that comes out to that of the one that went in.
        across = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2 - right)[None, :]
        along = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2 - down)[:, None]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows = jnp.round(cos * along + sin * across + (height - 1) / 2).astype(jnp.int32)
        columns = jnp.round(cos * across - sin * along + (width - 1) / 2).astype(jnp.int32)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        moved = x[:, :, jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
        return jnp.where(inside, moved, jnp.zeros((), x.dtype))
