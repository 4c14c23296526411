"""Keys by the index of a task, and the error of a missing one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from metakit._typecheck import typed
from metakit._types import PRNGKey


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


def require_key(key: PRNGKey | None, learner: str, function: str) -> PRNGKey:
    """The key of a function that cannot do without one.

    **Arguments:** `key`, as the function was given it; `learner` and `function`, their names in the error.

    **Returns:** `key`.

    **Raises:** `ValueError` where it is `None`.

    >>> import metakit as mk
    >>> mk.random.require_key(None, "MyLearner", "adapt")
    Traceback (most recent call last):
    ...
    ValueError: MyLearner's adapt draws random numbers and needs a key as its last argument, got None. ...
    """
    if key is None:
        raise ValueError(
            f"{learner}'s {function} draws random numbers and needs a key as its last argument, got None. "
            "Pass one, such as jax.random.key(0), and another for each call."
        )
    return key
