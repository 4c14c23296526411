"""Which examples each inner step sees."""

import jax
from jaxtyping import Array, Int

from metakit._episode import Examples
from metakit._types import PRNGKey


def check_batch_size(batch_size: int | None) -> None:
    """A batch holds at least one example."""
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise ValueError(
            f"batch_size must be at least 1, got {batch_size}. None takes the whole support set at every step."
        )


def minibatches(key: PRNGKey, n: int, batch_size: int, num_steps: int) -> Int[Array, "num_steps batch"]:
    """Rows of each step: consecutive pieces of one random order of the `n` rows after another, none left out."""
    orders = max(1, -(-num_steps * batch_size // n))
    rows = jax.vmap(lambda k: jax.random.permutation(k, n))(jax.random.split(key, orders)).reshape(-1)
    return rows[: num_steps * batch_size].reshape(num_steps, batch_size)


def batches_of(
    support: Examples, batch_size: int | None, num_steps: int, key: PRNGKey | None, learner: str
) -> Int[Array, "num_steps batch"] | None:
    """The rows of each step, `None` for all of them; a `ValueError` where that takes a key and there is none."""
    if batch_size is None or num_steps == 0:
        return None
    if key is None:
        raise ValueError(
            f"{learner} with batch_size={batch_size} draws its minibatches at random and needs a key: "
            "adapt(learner, support, key). With batch_size=None every step sees the whole support set, without one."
        )
    return minibatches(key, support.y.shape[0], batch_size, num_steps)


def batch(support: Examples, rows: Int[Array, "num_steps batch"] | None, step: Int[Array, ""]) -> Examples:
    """What a step sees of the support set."""
    if rows is None:
        return support
    some = rows[step]
    return Examples(jax.tree.map(lambda leaf: leaf[some], support.x), support.y[some], way=support.way)
