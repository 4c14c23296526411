"""Random keys that do not depend on how the work is split."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from ._typecheck import typed
from ._types import PRNGKey


@typed
def task_keys(key: PRNGKey, first: int | Int[Array, ""], count: int) -> Key[Array, "count"]:
    r"""One key for each task, made from the task's *global* index.

    $$k_i = \mathrm{fold\_in}(k, i), \qquad i = \text{first}, \dots, \text{first} + \text{count} - 1$$

    So the tasks do not depend on how many devices, hosts or chunks they are spread over, and a resumed run draws the
    tasks that the uninterrupted one would have drawn.

    **Arguments:**

    - `key`: the key of the whole stream of tasks.
    - `first`: index of the first task.
    - `count`: how many tasks; at least 0.

    **Returns:** `count` keys.

    >>> import jax, metakit as mk
    >>> whole = mk.random.task_keys(jax.random.key(0), 0, 8)
    >>> second_half = mk.random.task_keys(jax.random.key(0), 4, 4)
    >>> bool((jax.random.key_data(whole[4:]) == jax.random.key_data(second_half)).all())
    True
    """
    indices = jnp.arange(count, dtype=jnp.int32) + jnp.asarray(first, dtype=jnp.int32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
