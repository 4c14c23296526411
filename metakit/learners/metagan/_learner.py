"""The learner of MetaGAN: a base learner that discriminates, and a generator that sees the task."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from metakit._algorithm import Algorithm
from metakit._hyperparameter import fixed
from metakit._static import as_node
from metakit._typecheck import typed
from metakit.learners._options import require_sizes

from ._loss import DiscriminatorLoss


class MetaGAN(eqx.Module):
    r"""Any few-shot classifier, against a generator of examples that are hard to tell from the task's own.

    The generator draws fakes for a task, $\tilde x = G\bigl(z, \tfrac1n \sum_i e(x_i)\bigr)$ with $z \sim \mathcal N(0,
    I)$ and the support set's $x_i$. The classifier adapts, as ever, and then must also say what is fake: with a logit 0
    for that beside those of its $N$ classes, `real_and_fake`. What it gains are tighter boundaries around the classes;
    a generator that matched the data would teach it nothing.

    $$\min_D\; L_D\bigl(Q, \tilde x;\, \phi_D(S)\bigr), \qquad \min_{G, e}\; -\mathbb E_{\tilde x} \log p(y < N \mid
      \tilde x;\, \phi_D(S))$$

    with $L_D$ of `DiscriminatorLoss`. Both are in the one `meta_loss`, each with the other player's parameters held
    constant, so one gradient serves both; `players` and `optax.multi_transform` give them rates of their own.

    **Arguments:**

    - `algorithm`: of the base learner, such as `mk.maml` or `mk.prototypical`. Its `adapt` and `predict` are used; what
      only its `meta_loss` knows (MAML's step weights, a loss of its own for the queries) is not.
    - `base`: the base learner, the discriminator. Its logits must be free to move together: those of Matching Networks
      and VERSA are log-probabilities, which say nothing about being real. A learner of your own whose logits are, too,
      says so with a class attribute `gives_log_probabilities = True`.
    - `generator`: `[m, noise_size + code] -> [m, *in]`, such as `mk.nn.ImageGenerator`; any callable on a batch.
    - `encoder`: `[n, *in] -> [n, code]`, whose mean over the support set is the task's code.
    - `noise_size`: numbers in $z$, at least 1; 100 is usual.
    - `adapt_to_fakes`: whether the base learner adapts to fakes as well, as further examples under its
      `DiscriminatorLoss`. `True` is the published form over MAML; it needs a base with the fields `loss` and
      `num_steps`, and its `loss` is replaced. `False` for metric learners, which adapt to nothing but the classes.
    - `num_fakes`: fakes of each draw; `None`, the default, is as many as the real examples beside them; 0 is none.
    - `loss`: a `DiscriminatorLoss`; default one with all its weights 1 and no offset. The logits of a Prototypical
      Network are never positive, so it can hardly call anything real: give it
      `DiscriminatorLoss(offset=mk.learned(5.0))`.

    **Raises:** `TypeError` for an `algorithm` that is none, a `generator` or `encoder` that cannot be called, or a
    `loss` that is no `DiscriminatorLoss`; `ValueError` for a `noise_size` below 1, a negative `num_fakes`,
    a `base` that gives log-probabilities, or `adapt_to_fakes` over a base learner that descends no loss.

    **Source:** Zhang et al. 2018, "MetaGAN: An Adversarial Approach to Few-Shot Learning",
    https://papers.nips.cc/paper/7504-metagan-an-adversarial-approach-to-few-shot-learning. It has no released code.
    Ours: the query set is the unlabelled set; the generator is held constant in the classifier's adaptation, so it
    learns from how the adapted classifier sees its fakes and not from having changed it; batch norm sees fakes and real
    examples together in adaptation (and in the frozen statistics of an inductive policy). In the query loss the fakes
    take the place of the queries: they are a batch of their own under a transductive policy, and one with the support
    set under a joint one. Real queries never share a batch with fakes.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical,
    ...     mk.prototypical.Prototypical(mk.nn.MLP(2, 4, 8, 1, key=keys[0])),
    ...     generator=mk.nn.MLP(3 + 4, 2, 8, 1, key=keys[1]),
    ...     encoder=mk.nn.MLP(2, 4, 8, 1, key=keys[2]),
    ...     noise_size=3,
    ...     adapt_to_fakes=False,
    ... )
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.metagan.meta_loss(learner, mk.Episode(examples, examples), jax.random.key(1)).shape
    ()
    """

    algorithm: Any = eqx.field(static=True)
    base: Any
    generator: Callable[..., Any] = eqx.field(converter=as_node)
    encoder: Callable[..., Any] = eqx.field(converter=as_node)
    loss: DiscriminatorLoss
    noise_size: int = eqx.field(static=True)
    num_fakes: int | None = eqx.field(static=True)
    adapt_to_fakes: bool = eqx.field(static=True)

    def __init__(
        self,
        algorithm: Any,
        base: Any,
        *,
        generator: Callable[..., Any],
        encoder: Callable[..., Any],
        noise_size: int,
        adapt_to_fakes: bool,
        num_fakes: int | None = None,
        loss: DiscriminatorLoss | None = None,
    ):
        loss = DiscriminatorLoss() if loss is None else loss
        if not isinstance(algorithm, Algorithm):
            raise TypeError(
                "algorithm must hold adapt, predict and meta_loss, such as mk.prototypical, got "
                f"{type(algorithm).__name__}. The algorithm comes first, its learner second."
            )
        for name, network in (("generator", generator), ("encoder", encoder)):
            if not callable(network):
                raise TypeError(f"{name} must be a network, called with a batch, got {type(network).__name__}.")
        if not isinstance(loss, DiscriminatorLoss):
            raise TypeError(f"loss must be an mk.metagan.DiscriminatorLoss, got {type(loss).__name__}.")
        if getattr(base, "gives_log_probabilities", False):
            raise ValueError(
                f"base is {type(base).__name__}, whose logits are log-probabilities and say nothing about being real: "
                "the generator would get no gradient. Take a learner with free logits: mk.prototypical, mk.maml, ..."
            )
        require_sizes(noise_size=noise_size)  # without noise every fake of a task is the same
        if num_fakes is not None and num_fakes < 0:
            raise ValueError(f"num_fakes must be at least 0, got {num_fakes}. 0 trains the base learner alone.")
        if adapt_to_fakes and not (hasattr(base, "loss") and hasattr(base, "num_steps")):
            raise ValueError(
                "adapt_to_fakes=True needs a base learner that takes num_steps down its loss, such as mk.maml.MAML, "
                f"got {type(base).__name__}. For metric learners it is False: fakes have no class to be the mean of."
            )
        self.algorithm = algorithm
        self.base = base
        self.generator = generator
        self.encoder = encoder
        self.loss = loss
        self.noise_size = noise_size
        self.num_fakes = num_fakes
        self.adapt_to_fakes = adapt_to_fakes


class Adapted(eqx.Module):
    """A base learner adapted to one task.

    - `algorithm`: the base learner's, static.
    - `base`: what its `adapt` returned.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> base = mk.prototypical.Prototypical(lambda x: x)
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> type(mk.metagan.Adapted(mk.prototypical, mk.prototypical.adapt(base, support)).base).__name__
    'Adapted'
    """

    algorithm: Any = eqx.field(static=True)
    base: Any


@typed
def without_generator(learner: MetaGAN) -> MetaGAN:
    """The same learner with its generator silenced: its loss is then the base learner's cross-entropy on the queries.

    **Arguments:** `learner`.

    **Returns:** a `MetaGAN` with `num_fakes=0` and no unlabelled term.

    >>> import metakit as mk
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=1, adapt_to_fakes=False)
    >>> mk.metagan.without_generator(learner).num_fakes
    0
    """
    loss = eqx.tree_at(lambda l: l.unlabelled_weight, learner.loss, fixed(0.0))
    return dataclasses.replace(learner, num_fakes=0, loss=loss)


@typed
def players(learner: MetaGAN) -> Any:
    """Who moves each number: the `param_labels` of `optax.multi_transform`.

    **Arguments:** `learner`, or a tree of its structure, such as its gradient.

    **Returns:** a tree of that structure with `"generator"` on the leaves of generator and encoder, `"discriminator"`
    on all others.

    >>> import optax, metakit as mk
    >>> optimiser = optax.multi_transform(
    ...     {"discriminator": optax.adam(1e-3), "generator": optax.adam(2e-4, b1=0.5)}, mk.metagan.players)
    >>> learner = mk.metagan.MetaGAN(
    ...     mk.prototypical, mk.prototypical.Prototypical(lambda x: x), generator=lambda z: z[:, :2],
    ...     encoder=lambda x: x, noise_size=1, adapt_to_fakes=False)
    >>> mk.metagan.players(learner).loss.offset.value
    'discriminator'
    """

    def label(path: Any, leaf: Any) -> str:
        del leaf
        return "generator" if path[0].name in ("generator", "encoder") else "discriminator"

    return jax.tree.map_with_path(label, learner)
