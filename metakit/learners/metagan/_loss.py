"""A classifier of N classes as a discriminator with one class more."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from metakit import losses
from metakit._errors import require_option
from metakit._hyperparameter import Hyperparameter
from metakit._typecheck import typed
from metakit.learners._options import not_negative, scalar


@typed
def real_and_fake(
    logits: Float[Array, "n way"], offset: Float[Array, ""] | float = 0.0
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    r"""Log-probabilities that an example is real, of any class, and that it is fake.

    The fake class is class number $N$ of a softmax over $N + 1$, whose logit is fixed at 0 (a softmax does not change
    when all logits move together, so one is free). With $s = \operatorname{logsumexp}_{n < N}(l_n + b)$

    $$\log p(y < N \mid x) = -\operatorname{softplus}(-s), \qquad \log p(N \mid x) = -\operatorname{softplus}(s)$$

    **Arguments:** `logits` $l$ of the $N$ classes, `[n, way]`; `offset` $b$, one number added to all, default 0.

    **Returns:** two arrays `[n]`, whose exponentials add up to 1.

    **Source:** Salimans et al. 2016, "Improved Techniques for Training GANs", section 5,
    https://arxiv.org/abs/1606.03498, where the logit is fixed in the same way; Zhang et al. 2018, section 3.1.

    >>> import jax.numpy as jnp
    >>> real, fake = real_and_fake(jnp.zeros((1, 3)))
    >>> [round(float(jnp.exp(x[0])), 4) for x in (real, fake)]
    [0.75, 0.25]
    """
    evidence = jax.nn.logsumexp(logits, axis=1) + jnp.asarray(offset, logits.dtype)
    return -jax.nn.softplus(-evidence), -jax.nn.softplus(evidence)


class DiscriminatorLoss(eqx.Module):
    r"""The discriminator's loss, as an `mk.losses.Loss` in which label $N$ marks a fake.

    $$L_D = -\mathbb E_{(x, y)} \log p(y \mid x, y < N) - w_u\, \mathbb E_x \log p(y < N \mid x)
      - w_f\, \mathbb E_{\text{fake } x} \log p(N \mid x)$$

    The first two means are over the real examples (which serve as the unlabelled ones, too), the third over the fakes.
    Without fakes and with $w_u = 0$ it is `mk.losses.cross_entropy`.

    **Arguments:** `unlabelled_weight` $w_u$, `fake_weight` $w_f$ and `offset` $b$ of `real_and_fake`: numbers or
    `Hyperparameter`s, one number each; default fixed at 1, 1 and 0.

    **Returns** (of a call with logits `[n, way]`, labels `[n]` and a `reduction`): `"mean"`, the sum of the three
    means; `"sum"`, `n` times that, so that MAML's `"sum/shot"` is `way` times the mean here as well; `"none"`, each
    example's own terms, `[n]`. A label outside `0..way` gives NaN.

    **Raises:** `ValueError` for an unknown reduction; at construction, for a weight that is not one number of at
    least 0, or an offset that is not one number.

    **Source:** Zhang et al. 2018, "MetaGAN: An Adversarial Approach to Few-Shot Learning", section 3,
    https://papers.nips.cc/paper/7504-metagan-an-adversarial-approach-to-few-shot-learning

    >>> import jax.numpy as jnp
    >>> loss = DiscriminatorLoss()
    >>> round(float(loss(jnp.zeros((2, 3)), jnp.array([0, 3]), reduction="mean")), 4)  # log 3 + log 4/3 + log 4
    2.7726
    """

    unlabelled_weight: Hyperparameter
    fake_weight: Hyperparameter
    offset: Hyperparameter

    def __init__(
        self,
        *,
        unlabelled_weight: Hyperparameter | ArrayLike = 1.0,
        fake_weight: Hyperparameter | ArrayLike = 1.0,
        offset: Hyperparameter | ArrayLike = 0.0,
    ):
        self.unlabelled_weight = not_negative("unlabelled_weight", unlabelled_weight)
        self.fake_weight = not_negative("fake_weight", fake_weight)
        self.offset = scalar("offset", offset)

    @typed
    def __call__(
        self, outputs: Float[Array, "n way"], targets: Int[Array, " n"], *, reduction: str
    ) -> Float[Array, "..."]:
        require_option("reduction", reduction, ("mean", "sum", "none"))
        dtype = outputs.dtype
        fake = targets == outputs.shape[1]
        log_real, log_fake = real_and_fake(outputs, self.offset.value.astype(dtype))
        of_class = losses.cross_entropy(outputs, jnp.where(fake, jnp.zeros_like(targets), targets), reduction="none")
        of_real = of_class - self.unlabelled_weight.value.astype(dtype) * log_real
        of_fake = -self.fake_weight.value.astype(dtype) * log_fake
        each = jnp.where(fake, of_fake, of_real)
        if reduction == "none":
            return each
        total = _mean(each, ~fake) + _mean(each, fake)
        return total if reduction == "mean" else total * outputs.shape[0]


def _mean(values: Float[Array, " n"], chosen: Array) -> Float[Array, ""]:
    """The mean of the chosen values, 0 where there is none."""
    count = jnp.sum(chosen.astype(values.dtype))
    total = jnp.sum(jnp.where(chosen, values, jnp.zeros_like(values)))
    return total / jnp.maximum(count, jnp.ones_like(count))
