"""Each query asked alone, so that none can help another."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from metakit._algorithm import Algorithm, MetaLearner, require_algorithm


@dataclasses.dataclass(frozen=True)
class _Alone:
    """`predict` for one query at a time; equal for equal functions, so that nothing is compiled again."""

    predict: Callable[..., Any]

    def __call__(self, adapted: Any, x: Any, key: Any = None) -> Any:
        def one(query: Any, query_key: Any) -> Any:
            outputs = self.predict(adapted, jax.tree.map(lambda leaf: leaf[None], query), query_key)
            return jax.tree.map(lambda leaf: leaf[0], outputs)

        # Mapped over, the queries are still one large batch to a convolution, whose weights they share; only what is
        # computed over the batch, its statistics, is computed for each.
        if key is None:
            return jax.vmap(lambda query: one(query, None))(x)
        return jax.vmap(one)(x, jax.random.split(key, len(jax.tree.leaves(x)[0])))


def one_at_a_time(algorithm: Algorithm) -> Algorithm:
    r"""An algorithm whose `predict` asks each query alone.

    $$\hat y_i = \text{predict}(\text{adapted}, \{x_i\}) \quad\text{in place of}\quad
      \hat y_i = \text{predict}(\text{adapted}, \{x_1, \dots, x_n\})_i$$

    Where batch norm takes its statistics from the query batch, queries help each other: a score then holds for that many
    queries of that many classes, asked at once. This is the score where they come one at a time.

    **Arguments:** `algorithm`: a module or `MetaLearner`; its learners stay as they are.

    **Returns:** a `MetaLearner` whose `adapt` and `meta_loss` are those of `algorithm`. The same algorithm gives an equal
    one.

    **Raises:** `TypeError` for something that is no algorithm.

    >>> import metakit as mk
    >>> one_at_a_time(mk.maml) == one_at_a_time(mk.maml)
    True
    """
    require_algorithm(algorithm)
    return MetaLearner(algorithm.adapt, _Alone(algorithm.predict), algorithm.meta_loss)
