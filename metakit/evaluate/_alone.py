"""Each query asked alone, so that none can help another."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from metakit._algorithm import Algorithm, MetaLearner, require_algorithm
from metakit.random import task_keys


class _Alone(eqx.Module):
    """`predict` for one query at a time; equal for equal functions, so that nothing is compiled again."""

    predict: Callable[..., Any]

    def __call__(self, adapted: Any, x: Any, key: Any = None) -> Any:
        def one(query: Any, query_key: Any) -> Any:
            outputs = self.predict(adapted, jax.tree.map(lambda leaf: leaf[None], query), query_key)
            return jax.tree.map(lambda leaf: leaf[0], outputs)

        # Mapped over, the queries are still one large batch to a convolution, whose weights they share; only what is
        # computed over the batch, its statistics, is computed for each. Conv4 with 64 filters, adapted by MAML, on 25
        # queries and two CPU cores: 2.7 ms asked together, 2.9 by vmap, 3.3 by lax.map; with 32 filters 1.0, 1.1, 1.3.
        keys = None if key is None else task_keys(key, 0, len(jax.tree.leaves(x)[0]))
        return jax.vmap(one, in_axes=(0, None if keys is None else 0))(x, keys)


def one_at_a_time(algorithm: Algorithm) -> Algorithm:
    r"""An algorithm whose `predict` asks each query alone.

    $$\hat y_i = \text{predict}(\text{adapted}, \{x_i\}, k_i) \quad\text{in place of}\quad
      \hat y_i = \text{predict}(\text{adapted}, \{x_1, \dots, x_n\}, k)_i, \qquad k_i = \mathrm{fold\_in}(k, i)$$

    Where batch norm takes its statistics from the query batch, queries help each other: a score then holds for that
    many queries of that many classes, asked at once. This is the score where they come one at a time.

    **Arguments:** `algorithm`: a module or `MetaLearner`; its learners stay as they are.

    **Returns:** a `MetaLearner` whose `adapt` and `meta_loss` are those of `algorithm`. The same algorithm gives an
    equal one, so that nothing is compiled again.

    **Raises:** `TypeError` for something that is no algorithm.

    >>> import metakit as mk
    >>> one_at_a_time(mk.maml) == one_at_a_time(mk.maml)
    True
    """
    require_algorithm(algorithm)
    return MetaLearner(algorithm.adapt, _Alone(algorithm.predict), algorithm.meta_loss)
