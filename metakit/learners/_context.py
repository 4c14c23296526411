"""Full context embeddings: every embedding of a task sees the whole support set."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from metakit import nn
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey


class FullContext(eqx.Module):
    r"""Full context embeddings of Matching Networks.

    The support's embeddings $g'(x_i)$ pass through a bidirectional LSTM, the queries' $f'(\hat x)$ through an
    LSTM that attends to the support:

    $$g(x_i, S) = \overrightarrow{h}_i + \overleftarrow{h}_i + g'(x_i), \qquad
      f(\hat x, S) = \operatorname{attLSTM}(f'(\hat x), g(S), K)$$

    **Arguments:**

    - `size`: features $d$ of the embedding; both LSTMs have as many, since they add to it.
    - `num_steps`: processing steps $K$ of the attLSTM, at least 1; default 3 (Ravi and Larochelle; the paper
      gives no number).
    - `key`: random key of the weights.

    **Returns** (of a call with the support `[n, d]` and queries `[query, d]`): both in context, of the same
    shapes.

    A query's embedding does not depend on the order in which its attention reads the support, but the
    support's own embeddings do depend on their order in the set, through the bidirectional LSTM. The paper
    shuffles it: sample episodes with `shuffle=True`.

    **Raises:** `ValueError` for `size` or `num_steps` below 1, or where the embeddings have another size.

    **Source:** Vinyals et al. 2016, *Matching Networks for One Shot Learning*, sections 2.1.2 and A,
    equations 3 to 6, https://arxiv.org/abs/1606.04080

    >>> import jax, jax.numpy as jnp
    >>> context = FullContext(4, key=jax.random.key(0))
    >>> [x.shape for x in context(jnp.ones((5, 4)), jnp.ones((2, 4)))]
    [(5, 4), (2, 4)]
    """

    support: nn.BiLSTM
    query: nn.AttLSTM

    @keyed
    def __init__(self, size: int, *, num_steps: int = 3, key: PRNGKey):
        support_key, query_key = jax.random.split(key)
        self.support = nn.BiLSTM(size, size, key=support_key)
        self.query = nn.AttLSTM(size, num_steps=num_steps, key=query_key)

    @typed
    def __call__(
        self, support: Float[Array, "n d"], queries: Float[Array, "query d"]
    ) -> tuple[Float[Array, "n d"], Float[Array, "query d"]]:
        size = self.query.cell.size
        if support.shape[1] != size:
            raise ValueError(
                f"context was built for embeddings of size {size}, got {support.shape[1]}. "
                f"Build it as FullContext({support.shape[1]}, key=...)."
            )
        forward, backward = self.support(support)
        support = forward + backward + support
        return support, self.query(queries, support)
