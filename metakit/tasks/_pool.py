"""Images of many classes, held on the device."""

import hashlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from metakit._typecheck import typed


class ImagePool(eqx.Module):
    """All images of a set of classes, as one uint8 array on the device.

    Episodes are drawn from it inside the compiled step (see `Episodes`), so no image crosses from the host
    while training. Omniglot at 28x28 takes 25 MB, 100 MB with its rotations as classes.

    **Arguments:**

    - `images`: `[classes, examples, channels, height, width]`, uint8, 0 to 255. Classes with fewer images
      than others are padded at the end with anything. Omniglot and Glyphs store ink as 255 on a background of
      0.
    - `counts`: `[classes]`, how many of each class's images are real; all of them by default.
    - `names`: one name for each class, static; `"0"`, `"1"`, ... by default.

    **Raises:** `ValueError` when `images` is not a five-dimensional uint8 array with at least one class and
    one example, when `counts` has another length than `images` or leaves `1..examples`, or when `names` has
    another length.

    >>> import numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((3, 20, 1, 28, 28), "uint8"), names=("alpha", "beta", "gamma"))
    >>> pool.images.shape
    (3, 20, 1, 28, 28)
    """

    images: UInt8[Array, "classes examples c h w"]
    counts: Int[Array, "classes"]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, images: Any, counts: Any = None, names: Sequence[str] | None = None):
        shape, dtype = np.shape(images), getattr(images, "dtype", None)
        if len(shape) != 5 or 0 in shape:
            raise ValueError(
                "images must be [classes, examples, channels, height, width], none of them 0, got shape "
                f"{list(shape)}. Grey images need a channel axis of 1: images[:, :, None]."
            )
        if dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 from 0 to 255, got {dtype}. If yours lie between 0 and 1, use "
                "(255 * images).round().astype('uint8'); episodes are converted back to float32 in 0..1."
            )
        classes, examples = shape[:2]
        # Checked on the host, before the device sees them.
        counts = np.full(classes, examples, np.int32) if counts is None else np.asarray(counts)
        if counts.shape != (classes,) or not np.issubdtype(counts.dtype, np.integer):
            raise ValueError(
                f"counts must hold one integer for each of the {classes} classes of images, got "
                f"{counts.dtype} {list(counts.shape)}."
            )
        if counts.min() < 1 or counts.max() > examples:
            wrong = int(np.flatnonzero((counts < 1) | (counts > examples))[0])
            raise ValueError(
                f"counts must lie in 1..{examples}, the number of examples in images, got {counts[wrong]} "
                f"for class {wrong}. Leave out a class that has no image."
            )
        names = tuple(str(i) for i in range(classes)) if names is None else tuple(names)
        if len(names) != classes:
            raise ValueError(f"names must hold one name for each of the {classes} classes, got {len(names)}.")
        self.images = jnp.asarray(images)
        self.counts = jnp.asarray(counts, dtype=jnp.int32)
        self.names = names


@typed
def rotated(pool: ImagePool) -> ImagePool:
    """Every class turned by 0, 90, 180 and 270 degrees, each turn a class of its own: four times the classes.

    The four turns of a class stay neighbours, named `name/rot000`, `name/rot090`, ... (anticlockwise, as
    Pillow counts).

    **Arguments:** `pool`, of square images.

    **Returns:** a pool of four times as many classes and bytes.

    **Raises:** `ValueError` for images that are not square.

    >>> import numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((3, 20, 1, 28, 28), "uint8"))
    >>> mk.tasks.rotated(pool).names[:5]
    ('0/rot000', '0/rot090', '0/rot180', '0/rot270', '1/rot000')

    **Source:** Snell et al., "Prototypical Networks for Few-shot Learning", 2017, section 3.1,
    https://arxiv.org/abs/1703.05175. Finn et al. 2017 instead draw one turn for each class and task, so that
    one character never meets itself in an episode: `Episodes(..., rotate="per_class")`.
    """
    check_square(pool, "rotated")
    turns = [jnp.rot90(pool.images, k, axes=(-2, -1)) for k in range(4)]
    return ImagePool(
        jnp.stack(turns, axis=1).reshape((-1, *pool.images.shape[1:])),
        np.repeat(np.asarray(pool.counts), 4),
        tuple(f"{name}/rot{90 * k:03d}" for name in pool.names for k in range(4)),
    )


@typed
def mirrored(pool: ImagePool) -> ImagePool:
    """Every class and its mirror image, which is a class of its own: twice the classes, for training.

    The two stay neighbours, named `name` and `name/mirrored` (left and right exchanged). After `rotated` they are the
    eight symmetries of the square: an upside-down mirror image is a mirror image that is turned.

    **Arguments:** `pool`.

    **Returns:** a pool of twice as many classes and bytes.

    **Raises:** `ValueError` for a pool that is mirrored already, whose classes would come twice.

    >>> import numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((3, 20, 1, 28, 28), "uint8"))
    >>> mk.tasks.mirrored(pool).names[:3]
    ('0', '0/mirrored', '1')
    >>> len(mk.tasks.mirrored(mk.tasks.rotated(pool)).names)
    24

    Published results on Omniglot have the quarter turns of `rotated` alone, so say it beside a number that this
    pool helped to make. Do not test on it: of a character that is symmetric both classes are the same.
    """
    twice = next((name for name in pool.names if name.endswith("/mirrored")), None)
    if twice is not None:
        raise ValueError(f"pool is mirrored already: it holds {twice!r}, whose mirror image is there too.")
    both = jnp.stack([pool.images, pool.images[..., ::-1]], axis=1)
    return ImagePool(
        both.reshape((-1, *pool.images.shape[1:])),
        np.repeat(np.asarray(pool.counts), 2),
        tuple(f"{name}{side}" for name in pool.names for side in ("", "/mirrored")),
    )


@typed
def subset(pool: ImagePool, classes: Sequence[int | str] | np.ndarray) -> ImagePool:
    """The pool of some of the classes, in the order given.

    **Arguments:**

    - `pool`: where to choose from.
    - `classes`: indices (negative ones count from the end) or names of classes, each at most once.

    **Returns:** a pool of those classes; an array of its own, so the large pool can be freed.

    **Raises:** `ValueError` when there is none, a name or index is unknown, or one is repeated.

    >>> import numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((3, 20, 1, 28, 28), "uint8"), names=("alpha", "beta", "gamma"))
    >>> mk.tasks.subset(pool, ["gamma", 0]).names
    ('gamma', 'alpha')
    """
    total, where = len(pool.names), {name: i for i, name in enumerate(pool.names)}
    indices = []
    for wanted in classes:
        index = where.get(wanted) if isinstance(wanted, str) else int(wanted)
        if index is None or not -total <= index < total:
            raise ValueError(
                f"classes must be names or indices of the pool's {total} classes, got {wanted!r}. Its names "
                f"run from {pool.names[0]!r} to {pool.names[-1]!r}."
            )
        indices.append(index % total)
    if not indices:
        raise ValueError("classes must name at least one class of the pool, got none.")
    if len(set(indices)) < len(indices):
        raise ValueError("classes must not repeat a class: an episode could then draw it twice under two labels.")
    chosen = np.asarray(indices)
    return ImagePool(pool.images[chosen], np.asarray(pool.counts)[chosen], tuple(pool.names[i] for i in indices))


@typed
def fingerprint(pool: ImagePool) -> str:
    """The sha256 of a pool's shape, names, counts and real pixels, to record beside a result.

    Two runs with one fingerprint saw the same images under the same class indices. Padding does not count.

    **Arguments:** `pool`.

    **Returns:** 64 hexadecimal digits.

    >>> import numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((3, 20, 1, 28, 28), "uint8"))
    >>> mk.tasks.fingerprint(pool)[:8]
    'bd302e0d'
    """
    images, counts = np.asarray(pool.images), np.asarray(pool.counts)
    digest = hashlib.sha256(repr((images.shape[2:], pool.names, counts.tolist())).encode())
    for drawings, count in zip(images, counts, strict=True):
        digest.update(np.ascontiguousarray(drawings[:count]).data)
    return digest.hexdigest()


def check_square(pool: ImagePool, what: str) -> None:
    """Quarter turns exist only for square images."""
    height, width = pool.images.shape[-2:]
    if height != width:
        raise ValueError(f"{what} needs square images, got {height}x{width}. Load them with a square size.")
