"""Few-shot episodes, drawn inside the compiled step."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from metakit._episode import Episode, Examples
from metakit._static import as_node
from metakit._typecheck import typed
from metakit._types import PRNGKey
from metakit._wording import describe, uncalled

from ._pool import ImagePool, check_square


class Episodes(eqx.Module):
    r"""The distribution of `way`-class, `shot`-example tasks over an image pool; `sampler(key)` draws one.

    Pure, so it runs inside `jax.jit`, `jax.vmap` and `jax.lax.scan`. Each episode draws `way` different
    classes, gives them the labels $0, \dots, \text{way} - 1$ in a fresh random order, and splits `shot +
    queries` different images of each class into support and query. Every ordered choice is equally likely.

    Pass the sampler into a compiled function as an argument (`eqx.filter_jit`): closed over, its images would
    be compiled into the program as constants.

    **Arguments:**

    - `pool`: the classes to draw from.
    - `way`: classes in an episode, from 1 to the number in the pool.
    - `shot`: support images of each class, at least 1; or a tuple with a number for each label.
    - `queries`: query images of each class, at least 1; or a tuple with a number for each label, of which
      some may be 0.
    - `rotate`: `"none"` (default), or `"per_class"`: each class of an episode is turned by one random
      multiple of 90 degrees (Finn et al. 2017). For turns as classes of their own use `rotated(pool)`
      instead.
    - `shuffle`: put the support set in random order. By default it is sorted by label, which learners that
      read it as a sequence could exploit.
    - `augment_class`: `augment_class(x, key=key) -> x` on float32 images `[n, channels, height, width]` of one
      class, such as `mk.tasks.TurnAndShift()`; none by default. It is mapped by `jax.vmap` over the classes of
      an episode, each with a key of its own and as many images as the largest `shot + queries`.
    - `augment`: `augment(x, key=key) -> x` on images likewise, called once for the support and once for the
      query set, after `augment_class`; none by default.

    **Returns** (of a call): an `Episode`; `x` is float32 in 0..1, `[n, channels, height, width]`, `y` int32
    `[n]`.

    **Raises:** `ValueError` when `way`, `shot` or `queries` is out of range, when the pool has too few
    classes, when a class has too few images (it is named), or when images to be rotated are not square; `TypeError`
    for an augmentation's class in place of an augmentation.

    >>> import jax, numpy as np, metakit as mk
    >>> pool = mk.tasks.ImagePool(np.zeros((30, 20, 1, 28, 28), "uint8"))
    >>> sampler = mk.tasks.Episodes(pool, way=5, shot=1, queries=15)
    >>> episode = sampler(jax.random.key(0))
    >>> episode.support.x.shape, episode.query.y.shape
    ((5, 1, 28, 28), (75,))

    **Source:** Vinyals et al., "Matching Networks for One Shot Learning", 2016, section 4.1,
    https://arxiv.org/abs/1606.04080; rotations: Finn et al., "Model-Agnostic Meta-Learning", 2017, and its
    code, https://github.com/cbfinn/maml.
    """

    pool: ImagePool
    way: int = eqx.field(static=True)
    shot: int | tuple[int, ...] = eqx.field(static=True)
    queries: int | tuple[int, ...] = eqx.field(static=True)
    rotate: Literal["none", "per_class"] = eqx.field(static=True)
    shuffle: bool = eqx.field(static=True)
    augment_class: Callable[..., Any] | None = eqx.field(converter=as_node)
    augment: Callable[..., Any] | None = eqx.field(converter=as_node)

    @typed
    def __init__(
        self,
        pool: ImagePool,
        way: int,
        shot: int | tuple[int, ...],
        queries: int | tuple[int, ...],
        *,
        rotate: Literal["none", "per_class"] = "none",
        shuffle: bool = False,
        augment_class: Callable[..., Any] | None = None,
        augment: Callable[..., Any] | None = None,
    ):
        require_classes(pool, way)
        shots = _per_label(shot, way, "shot", least=1)
        wanted = _per_label(queries, way, "queries", least=0 if isinstance(queries, tuple) else 1)
        if sum(wanted) == 0:
            raise ValueError("queries must ask for at least one query image, got only zeros.")
        # Any class may get any label, so each must be able to fill the largest.
        require_images(pool, max(s + q for s, q in zip(shots, wanted, strict=True)), "shot + queries", "fewer queries")
        require_rotation(pool, rotate)
        require_augmentation("augment_class", augment_class)
        require_augmentation("augment", augment)
        self.pool = pool
        self.way = way
        self.shot = shot
        self.queries = queries
        self.rotate = rotate
        self.shuffle = shuffle
        self.augment_class = augment_class
        self.augment = augment

    @typed
    def __call__(self, key: PRNGKey) -> Episode:
        class_key, example_key, turn_key, order_key, support_key, query_key = jax.random.split(key, 6)
        class_augment_key = jax.random.fold_in(key, 6)
        shots = _per_label(self.shot, self.way, "shot", least=1)
        queries = _per_label(self.queries, self.way, "queries", least=0)
        drawn = max(s + q for s, q in zip(shots, queries, strict=True))

        images = draw(self.pool, self.way, drawn, self.rotate, (class_key, example_key, turn_key))
        x = class_pixels(images, self.augment_class, class_augment_key)
        # Row i of the flat images is example i % drawn of label i // drawn; the choice of rows is static.
        flat = x.reshape((self.way * drawn, *x.shape[2:]))
        first = [[label * drawn + i for i in range(s)] for label, s in enumerate(shots)]
        rest = [
            [label * drawn + s + i for i in range(q)] for label, (s, q) in enumerate(zip(shots, queries, strict=True))
        ]
        support_rows, query_rows = jnp.asarray(np.concatenate(first), jnp.int32), np.concatenate(rest)
        if self.shuffle:
            support_rows = jax.random.permutation(order_key, support_rows)
        query_rows = jnp.asarray(query_rows, jnp.int32)
        return Episode(
            Examples(self._augmented(flat[support_rows], support_key), support_rows // drawn, self.way),
            Examples(self._augmented(flat[query_rows], query_key), query_rows // drawn, self.way),
        )

    def names(self, key: PRNGKey) -> tuple[str, ...]:
        """The names of the classes that a call with this key draws, by label."""
        class_key, *_ = jax.random.split(key, 6)
        return tuple(self.pool.names[i] for i in _classes(class_key, self.pool, self.way).tolist())

    def _augmented(self, x: Float[Array, "n c h w"], key: PRNGKey) -> Float[Array, "n ..."]:
        return x if self.augment is None else self.augment(x, key=key)


def require_classes(pool: ImagePool, way: int) -> None:
    """A `ValueError` where a pool cannot give an episode its classes."""
    total = len(pool.names)
    if not 1 <= way <= total:
        raise ValueError(
            f"way must lie in 1..{total}, the number of classes in the pool, got {way}. Draw fewer "
            "classes, or use a pool with more (rotated(pool) has four times as many)."
        )


def require_images(pool: ImagePool, needed: int, what: str, remedy: str) -> None:
    """A `ValueError` that names the smallest class where one has fewer images than are drawn of it."""
    counts = np.asarray(pool.counts)
    if counts.min() < needed:
        fewest = int(counts.argmin())
        raise ValueError(
            f"{what} must not exceed the images of any class: {needed} were asked for, but class "
            f"{pool.names[fewest]!r} has {counts[fewest]} ({int((counts < needed).sum())} of {len(pool.names)} "
            f"classes have too few). Ask for {remedy}, or leave those classes out with subset(pool, ...)."
        )


def require_rotation(pool: ImagePool, rotate: str) -> None:
    """A `ValueError` for an unknown way of turning images, or images that cannot be turned."""
    if rotate not in ("none", "per_class"):
        raise ValueError(f"rotate must be 'none' or 'per_class', got {rotate!r}.")
    if rotate == "per_class":
        check_square(pool, "rotate='per_class'")


def draw(
    pool: ImagePool, way: int, count: int, rotate: str, keys: tuple[PRNGKey, PRNGKey, PRNGKey]
) -> UInt8[Array, "way count c h w"]:
    """`count` different images of each of `way` different classes, in random order, perhaps turned."""
    class_key, example_key, turn_key = keys
    classes = _classes(class_key, pool, way)
    example_keys = jax.random.split(example_key, way)
    examples = jax.vmap(lambda k, n: _distinct(k, n, count))(example_keys, pool.counts[classes])
    images = pool.images[classes[:, None], examples]
    if rotate == "per_class":
        images = jax.vmap(_turn)(images, jax.random.randint(turn_key, (way,), 0, 4))
    return images


def _classes(key: PRNGKey, pool: ImagePool, way: int) -> Int[Array, " way"]:
    """An ordered choice, so position = label is already a fresh random assignment of classes to labels."""
    return _distinct(key, jnp.full((), len(pool.names), jnp.int32), way)


def require_augmentation(name: str, augment: Any) -> None:
    """A `TypeError` for a class of augmentations where one is wanted."""
    if isinstance(augment, type):
        raise TypeError(f"{name} must be a function, got {describe(augment)}. {uncalled(augment)}")


def class_pixels(
    images: UInt8[Array, "way n c h w"], augment_class: Callable[..., Any] | None, key: PRNGKey
) -> Float[Array, "way n c h w"]:
    """The images of each class in 0..1, each class augmented under a key of its own."""
    x = images.astype(jnp.float32) / 255
    return x if augment_class is None else jax.vmap(augment_class)(x, key=jax.random.split(key, len(x)))


def _per_label(value: int | tuple[int, ...], way: int, name: str, *, least: int) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,) * way
    if len(values) != way:
        raise ValueError(f"{name} must be an integer or a tuple of way={way} integers, got {len(values)}: {values}.")
    if any(isinstance(v, bool) or not isinstance(v, int) for v in values):
        raise ValueError(f"{name} must be an integer or a tuple of way={way} integers, got {value!r}.")
    if min(values) < least:
        raise ValueError(f"{name} must be at least {least} for every class, got {value!r}.")
    return values


# Compiled on its own so that an eager call of the sampler does not compile the scan afresh every time.
@functools.partial(jax.jit, static_argnames="count")
def _distinct(key: PRNGKey, total: Int[Array, ""], count: int) -> Int[Array, "count"]:
    """An ordered choice of `count` different numbers out of `0..total-1`, all choices equally likely.

    The i-th draw is a rank among the numbers that are left; ranks become numbers by stepping over those
    already taken. It costs `count` random numbers instead of `total` and takes a traced `total`, which a
    permutation does not.
    """
    position = jnp.arange(count, dtype=jnp.int32)
    ranks = jax.random.randint(key, (count,), 0, total - position, dtype=jnp.int32)

    def draw(taken: Int[Array, "count"], step: tuple[Array, Array]) -> tuple[Array, Array]:
        rank, i = step
        # `taken` is sorted, so taken[j] - j, the numbers left below taken[j], never falls with j.
        below = jnp.sum((taken - position <= rank) & (position < i), dtype=jnp.int32)
        number = rank + below
        moved = jnp.where(position < below, taken, jnp.roll(taken, 1))
        return jnp.where(position == below, number, moved), number

    _, numbers = jax.lax.scan(draw, jnp.zeros(count, jnp.int32), (ranks, position))
    return numbers


def _turn(images: UInt8[Array, "n c s s"], quarters: Int[Array, ""]) -> UInt8[Array, "n c s s"]:
    """Turn images by a traced number of quarter turns, anticlockwise."""
    # A quarter turn is a transposition and a flip, a half turn two flips; on bytes these selects cost next to
    # nothing.
    half = jnp.where(quarters >= 2, images[..., ::-1, ::-1], images)
    return jnp.where(quarters % 2 == 1, jnp.swapaxes(half, -2, -1)[..., ::-1, :], half)
