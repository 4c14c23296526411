"""Sequences in which the images of a few classes come in random order, drawn inside the compiled step."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metakit._episode import Episode, Examples
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey

from ._episodes import class_pixels, draw, require_augmentation, require_classes, require_images, require_rotation
from ._pool import ImagePool


class Sequences(eqx.Module):
    r"""The distribution of sequences of `way` classes with `presentations` images each; `sampler(key)` draws
    one.

    Each sequence draws `way` different classes, gives them the labels $0, \dots, \text{way} - 1$ in a fresh
    random order, and presents different images of each in one random order. All but the last image are the
    support set, ordered in time; the last one is the query. Every ordered choice is equally likely.

    It is what memory-augmented networks are trained on, which predict every image of the sequence from those
    before it (see `mk.mann`). Pure, so it runs inside `jax.jit`, `jax.vmap` and `jax.lax.scan`; pass it into
    a compiled function as an argument, as `Episodes`.

    **Arguments:**

    - `pool`: the classes to draw from; `mk.tasks.omniglot(size=20)` gives the published size.
    - `way`: classes in a sequence, from 1 to the number in the pool; default 5.
    - `presentations`: images of each class, default 10; at least 1, and at least 2 images in all.
    - `rotate`: `"none"` (default), or `"per_class"`: each class of a sequence is turned by one random multiple
      of 90 degrees.
    - `augment_class`: `augment_class(x, key=key) -> x` on float32 images `[n, channels, height, width]` of one
      class; none by default. It is mapped by `jax.vmap` over the classes of a sequence, each with a key of its
      own. The published runs turn and shift each class a little: `mk.tasks.TurnAndShift()`.
    - `augment`: `augment(x, key=key) -> x` on images likewise, called once for the whole sequence, after
      `augment_class`; none by default.

    **Returns** (of a call): an `Episode`; `x` is float32 in 0..1, `[n, channels, height, width]`, `y` int32
    `[n]`, with `way * presentations - 1` examples of support and 1 of query.

    **Raises:** `ValueError` when `way` or `presentations` is out of range, when a class has too few images (it
    is named), or when images to be rotated are not square; `TypeError` for an augmentation's class in place of an
    augmentation.

    >>> import jax, numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((30, 20, 1, 20, 20), "uint8"))
    >>> sequence = mk.tasks.Sequences(pool, way=5, presentations=10)(jax.random.key(0))
    >>> sequence.support.x.shape, sequence.query.y.shape
    ((49, 1, 20, 20), (1,))

    **Source:** Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks", 2016, sections 2 and
    4.1, https://proceedings.mlr.press/v48/santoro16.html
    """

    pool: ImagePool
    way: int = eqx.field(static=True)
    presentations: int = eqx.field(static=True)
    rotate: Literal["none", "per_class"] = eqx.field(static=True)
    augment_class: Callable[..., Any] | None = eqx.field(converter=as_node)
    augment: Callable[..., Any] | None = eqx.field(converter=as_node)

    @typed
    def __init__(
        self,
        pool: ImagePool,
        way: int = 5,
        presentations: int = 10,
        *,
        rotate: Literal["none", "per_class"] = "none",
        augment_class: Callable[..., Any] | None = None,
        augment: Callable[..., Any] | None = None,
    ):
        require_classes(pool, way)
        if presentations < 1 or way * presentations < 2:
            raise ValueError(
                "way * presentations must be at least 2, since a sequence ends with a query and something must come "
                f"before it, got way={way} and presentations={presentations}."
            )
        require_images(pool, presentations, "presentations", "fewer presentations")
        require_rotation(pool, rotate)
        require_augmentation("augment_class", augment_class)
        require_augmentation("augment", augment)
        self.pool = pool
        self.way = way
        self.presentations = presentations
        self.rotate = rotate
        self.augment_class = augment_class
        self.augment = augment

    @typed
    def __call__(self, key: PRNGKey) -> Episode:
        class_key, example_key, turn_key, order_key, augment_key = jax.random.split(key, 5)
        class_augment_key = jax.random.fold_in(key, 5)
        images = draw(self.pool, self.way, self.presentations, self.rotate, (class_key, example_key, turn_key))
        total = self.way * self.presentations
        order = jax.random.permutation(order_key, jnp.arange(total, dtype=jnp.int32))
        x = class_pixels(images, self.augment_class, class_augment_key)
        x = x.reshape((total, *x.shape[2:]))[order]
        x = x if self.augment is None else self.augment(x, key=augment_key)
        return Episode(self._examples(x[:-1], order[:-1]), self._examples(x[-1:], order[-1:]))

    def _examples(self, x: Float[Array, "n ..."], order: Int[Array, " n"]) -> Examples:
        # Image i of the drawn ones is presentation i % presentations of label i // presentations.
        return Examples(x, order // self.presentations, self.way)
