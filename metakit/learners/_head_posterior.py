"""A distribution over linear classifiers, and a network that reads one off the mean features of each class."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metakit import nn
from metakit._typecheck import keyed, typed
from metakit._types import PRNGKey


class HeadPosterior(eqx.Module):
    r"""Independent Gaussians over the weights and the bias of each class.

    $$w_n \sim N(M_n, \operatorname{diag} e^{V_n}), \qquad b_n \sim N(m_n, e^{v_n})$$

    **Arguments:** `weight_mean` $M$ and `weight_log_variance` $V$, `[way, d]`; `bias_mean` $m$ and `bias_log_variance`
    $v$, `[way]`.

    >>> import jax.numpy as jnp, metakit as mk
    >>> posterior = mk.versa.HeadPosterior(jnp.ones((3, 2)), jnp.zeros((3, 2)), jnp.zeros(3), jnp.zeros(3))
    >>> [moment.shape for moment in mk.versa.logit_moments(posterior, jnp.ones((4, 2)))]
    [(4, 3), (4, 3)]
    """

    weight_mean: Float[Array, "way d"]
    weight_log_variance: Float[Array, "way d"]
    bias_mean: Float[Array, " way"]
    bias_log_variance: Float[Array, " way"]


@typed
def logit_moments(
    posterior: HeadPosterior, features: Float[Array, "query d"]
) -> tuple[Float[Array, "query way"], Float[Array, "query way"]]:
    r"""Mean and variance of the logits of some queries, under random weights.

    $$E[z_n] = h^\top M_n + m_n, \qquad \operatorname{var}[z_n] = (h^2)^\top e^{V_n} + e^{v_n}$$

    **Arguments:** `posterior`, a `HeadPosterior`; `features` $h$, `[query, d]`.

    **Returns:** both `[query, way]`.

    **Source:** Kingma et al. 2015, *Variational Dropout and the Local Reparameterization Trick*, section 2.2,
    https://arxiv.org/abs/1506.02557, as Gordon et al. 2019 use it.

    >>> import jax.numpy as jnp, metakit as mk
    >>> posterior = mk.versa.HeadPosterior(jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.zeros(1), jnp.zeros(1))
    >>> mean, variance = mk.versa.logit_moments(posterior, jnp.array([[1.0, 2.0]]))
    >>> mean.tolist(), variance.tolist()
    ([[3.0]], [[6.0]])
    """
    highest = jax.lax.Precision.HIGHEST
    mean = jnp.matmul(features, posterior.weight_mean.T, precision=highest)
    variance = jnp.matmul(jnp.square(features), jnp.exp(posterior.weight_log_variance).T, precision=highest)
    return mean + posterior.bias_mean[None], variance + jnp.exp(posterior.bias_log_variance)[None]


class Amortiser(eqx.Module):
    r"""The published amortisation network: four perceptrons, each of two hidden layers and exponential linear units.

    They read the mean features $\nu_n$ of *one* class and are shared by all classes, so a learner serves any number of
    classes, and a class's weights do not depend on what the others are.

    **Arguments:**

    - `size`: features $d$ of the embedding; 256 in the published networks.
    - `width`: units of each hidden layer; default `size`, as published.
    - `key`: random key of the weights.

    **Returns** (of a call with class means `[way, d]`): a `HeadPosterior`.

    **Raises:** `ValueError` for a `size` or `width` below 1, or when the class means have another size.

    **Source:** Gordon et al. 2019, *Meta-Learning Probabilistic Inference For Prediction*,
    https://arxiv.org/abs/1805.09921, and its code, https://github.com/Gordonjo/versa. The code draws the biases from
    N(0, 0.001²); here they start at zero.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> amortiser = mk.versa.Amortiser(4, key=jax.random.key(0))
    >>> amortiser(jnp.ones((3, 4))).weight_mean.shape
    (3, 4)
    """

    weight_mean: nn.MLP
    weight_log_variance: nn.MLP
    bias_mean: nn.MLP
    bias_log_variance: nn.MLP

    @keyed
    def __init__(self, size: int, *, width: int | None = None, key: PRNGKey):
        width = size if width is None else width
        keys = jax.random.split(key, 4)

        def network(out_size: int, network_key: PRNGKey) -> nn.MLP:
            return nn.MLP(size, out_size, width, 2, jax.nn.elu, weight_init=nn.xavier_uniform, key=network_key)

        self.weight_mean, self.weight_log_variance = network(size, keys[0]), network(size, keys[1])
        self.bias_mean, self.bias_log_variance = network(1, keys[2]), network(1, keys[3])

    @typed
    def __call__(self, means: Float[Array, "way d"]) -> HeadPosterior:
        size = self.weight_mean.head.weight.shape[1]
        if means.shape[1] != size:
            raise ValueError(
                f"this Amortiser was built for features of size {size}, got {means.shape[1]}. "
                f"Build it as Amortiser({means.shape[1]}, key=...)."
            )
        return HeadPosterior(
            self.weight_mean(means),
            self.weight_log_variance(means),
            self.bias_mean(means)[:, 0],
            self.bias_log_variance(means)[:, 0],
        )
