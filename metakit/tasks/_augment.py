"""More classes and more images from those at hand, inside the compiled step."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from metakit._errors import require_number
from metakit._typecheck import typed
from metakit._types import PRNGKey


class TurnAndShift(eqx.Module):
    r"""Turns and shifts images a little, all of a batch alike, by amounts that the key decides.

    $$\alpha \sim U(-\alpha_{\max}, \alpha_{\max}), \quad t_x \sim U(-t_{\max} w, t_{\max} w), \quad
      t_y \sim U(-t_{\max} h, t_{\max} h), \qquad x'(p) = x\bigl(c + R_{-\alpha}(p - c - t)\bigr)$$

    with $c$ the centre of an image of $w \times h$ pixels and $R_\alpha$ the turn by $\alpha$ anticlockwise. Each pixel
    takes the value of the nearest one, so that images of ink and paper stay so; what comes in from outside is 0, the
    paper of Omniglot and Glyphs.

    Given as `augment_class` of a sampler, it makes of each class of each task a new one, whose images keep their
    likeness. To move every image by itself, map it, as in the example.

    **Arguments:**

    - `turn`: the largest angle $\alpha_{\max}$ in radians, either way, from 0 to $\pi$; default $\pi/16$.
    - `shift`: the largest shift $t_{\max}$ along each axis, as a share of the side, from 0 to 1; default 10/105.

    **Returns** (of a call with `x`, `[..., height, width]`, and a `key`): as `x`, of its shape and dtype.

    **Raises:** `TypeError` for a turn or a shift that is no number of Python's or NumPy's; `ValueError` for one out of
    range.

    >>> import jax, jax.numpy as jnp, numpy as np, metakit as mk
    >>> move = mk.tasks.TurnAndShift(turn=0.0, shift=0.25)
    >>> move(jnp.eye(4), key=jax.random.key(2)).astype(int).tolist()
    [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    >>> pool = mk.tasks.ImagePool(np.zeros((30, 20, 1, 28, 28), "uint8"))
    >>> by_class = mk.tasks.Episodes(pool, 5, 1, 15, augment_class=move)
    >>> each = lambda x, key: jax.vmap(move)(x, key=jax.random.split(key, len(x)))
    >>> by_image = mk.tasks.Episodes(pool, 5, 1, 15, augment=each)
    >>> by_class(jax.random.key(0)).query.x.shape == by_image(jax.random.key(0)).query.x.shape
    True

    **Source:** Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", 2016,
    https://proceedings.mlr.press/v48/santoro16.html: turns of up to $\pi/16$, and shifts of up to 10 pixels of drawings
    of 105. Here the images move as small as they are drawn from the pool.
    """

    turn: float = eqx.field(static=True)
    shift: float = eqx.field(static=True)

    def __init__(self, turn: float = math.pi / 16, shift: float = 10 / 105):
        for name, value, most, remedy in (
            ("turn", turn, math.pi, "radians. Degrees become radians by math.radians"),
            ("shift", shift, 1.0, "sides. Pixels become sides divided by the image's own"),
        ):
            require_number(name, value)
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie in 0..{most:.4g}, got {value}: it is in {remedy}.")
        self.turn = float(turn)
        self.shift = float(shift)

    @typed
    def __call__(self, x: Shaped[Array, "*n height width"], *, key: PRNGKey) -> Shaped[Array, "*n height width"]:
        height, width = x.shape[-2:]
        angle, down, right = jax.random.uniform(key, (3,), jnp.float32, -1, 1) * jnp.array(
            [self.turn, self.shift * height, self.shift * width], jnp.float32
        )
        # From the centre of the image that comes out to that of the one that went in.
        along = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2 - down)[:, None]
        across = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2 - right)[None, :]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows = jnp.round(cos * along + sin * across + (height - 1) / 2).astype(jnp.int32)
        columns = jnp.round(cos * across - sin * along + (width - 1) / 2).astype(jnp.int32)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        moved = x[..., jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
        return jnp.where(inside, moved, jnp.zeros((), x.dtype))
