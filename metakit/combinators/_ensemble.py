"""An ensemble: several learners of one algorithm, whose predictions are averaged."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit._algorithm import Algorithm, require_algorithm
from metakit._normal import Normal
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit._wording import describe

from ._base import name_over, require_examples, require_outputs


class Ensemble(eqx.Module):
    """The learner of `mk.ensemble`: several learners of one structure, with a leading axis of members on every array.

    **Arguments:**

    - `members`: a sequence of learners that differ in the values of their arrays alone, at least one. Learners that are
      stacked already, as `eqx.filter_vmap(make_learner)(keys)` makes them, go to `Ensemble.stacked`.

    **Raises:** `ValueError` for no member, members of another structure, shape or dtype than the first, or members
    without an array; `TypeError` for one learner in place of a sequence.

    >>> import jax, metakit as mk
    >>> make = lambda key: mk.prototypical.Prototypical(mk.nn.MLP(2, 4, 8, 1, key=key))
    >>> learner = mk.Ensemble([make(key) for key in jax.random.split(jax.random.key(0), 3)])
    >>> len(learner), learner.members.embed.head.weight.shape
    (3, (3, 8, 4))
    """

    members: Any

    # An average of probabilities is returned as its logarithm.
    gives_log_probabilities: ClassVar[bool] = True

    def __init__(self, members: Sequence[Any]):
        if not isinstance(members, Sequence) or isinstance(members, str):
            raise TypeError(
                f"members must be a sequence of learners, got {describe(members)}. One learner is [learner]; learners "
                "that are stacked already go to mk.Ensemble.stacked."
            )
        if not members:
            raise ValueError("members holds no learner; an ensemble needs at least one.")
        first, *others = members
        for i, other in enumerate(others, start=1):
            if not _alike(first, other):
                raise ValueError(
                    f"members must differ in the values of their arrays alone, but members[{i}] is not of the form of "
                    "members[0]: another network, number of steps, shape or dtype. Make all of them in the same way."
                )
        self.members = jax.tree.map(_stack, *members)
        _require_axis(self.members)

    @classmethod
    def stacked(cls, members: Any) -> "Ensemble":
        """An ensemble of learners that are stacked already.

        **Arguments:** `members`, a learner with a leading axis of members on every array, such as
        `eqx.filter_vmap(make_learner)(jax.random.split(key, 5))`.

        **Raises:** `ValueError` where the arrays share no leading axis.
        """
        _require_axis(members)
        self = object.__new__(cls)
        object.__setattr__(self, "members", members)
        return self

    def __len__(self) -> int:
        return _require_axis(self.members)

    def __getitem__(self, index: int) -> Any:
        """One member, a learner of the base algorithm."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"member {index} was asked for; there are {len(self)}.")
        return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, self.members)


def _stack(*leaves: Any) -> Any:
    return jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]


def _alike(one: Any, other: Any) -> bool:
    """Whether two learners differ in the values of their arrays alone."""
    (arrays, rest), (other_arrays, other_rest) = (eqx.partition(learner, eqx.is_array) for learner in (one, other))
    shapes, other_shapes = (
        [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (arrays, other_arrays)
    )
    return shapes == other_shapes and bool(eqx.tree_equal(rest, other_rest))


def _require_axis(members: Any) -> int:
    shapes = [leaf.shape for leaf in jax.tree.leaves(members) if eqx.is_array(leaf)]
    if not shapes:
        raise ValueError("members hold no array, so all of them are the same learner; an ensemble needs learned ones.")
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            f"members must share a leading axis of members on every array, got shapes {[list(s) for s in shapes]}. "
            "Learners one by one go to mk.Ensemble([learner, ...])."
        )
    return shapes[0][0]


class AdaptedMembers(eqx.Module):
    """What every member has learnt of one task, with a leading axis of members."""

    members: Any
    size: int = eqx.field(static=True)
    classifies: bool = eqx.field(static=True)


@dataclasses.dataclass(frozen=True)
class EnsembleAlgorithm:
    """`mk.ensemble(base)`: equal where the bases are, so that nothing compiles again."""

    base: Algorithm

    @property
    def __name__(self) -> str:
        return name_over("ensemble", self.base)

    @typed
    def adapt(self, learner: Ensemble, support: Any, key: PRNGKey | None = None) -> AdaptedMembers:
        require_examples(support, "mk.ensemble")
        members = _each(self.base.adapt, learner.members, support, _keys(key, len(learner)))
        return AdaptedMembers(members, len(learner), support.way is not None)

    @typed
    def predict(self, adapted: AdaptedMembers, x: Any, key: PRNGKey | None = None) -> Any:
        outputs = _each(self.base.predict, adapted.members, x, _keys(key, adapted.size))
        require_outputs(outputs, "mk.ensemble")
        if isinstance(outputs, Normal):
            return _moments_of_the_mixture(outputs)
        return _log_mean_of_softmaxes(outputs) if adapted.classifies else jnp.mean(outputs, axis=0)

    @typed
    def meta_loss(self, learner: Ensemble, task: Any, key: PRNGKey | None = None) -> Scalar:
        return jnp.mean(_each(self.base.meta_loss, learner.members, task, _keys(key, len(learner))))


def ensemble(algorithm: Any) -> EnsembleAlgorithm:
    r"""Several learners of one algorithm, as an algorithm: they learn side by side, and their predictions are averaged.

    $$p(y \mid x) = \frac1M \sum_{m=1}^M p_m(y \mid x), \qquad \ell = \frac1M \sum_{m=1}^M \ell_m$$

    For classes (a support set with a `way`) `predict` returns $\log p$, logits like any other. For real targets it
    returns the mean of the members' outputs. For `mk.Normal` outputs it returns the normal distribution with the
    moments of the mixture: $\mu$ is the mean of $\mu_m$, $\sigma^2$ that of $\sigma_m^2 + (\mu_m - \mu)^2$.

    The meta-loss is the mean of the members' own, so each member learns as if alone: its gradient is $1/M$ of its own,
    which an optimiser such as Adam does not feel, and weights of another member never enter it. The negative
    log-likelihood of the averaged probabilities is never above the mean of the members' (Jensen's inequality).

    The members run in one `vmap`. Equal algorithms give equal ensembles: calling this twice compiles nothing again.

    **Arguments:**

    - `algorithm`: any algorithm of episodes, a module such as `mk.maml` or what another combinator returned.

    **Returns:** an algorithm whose learner is a `mk.Ensemble`. A key is split, one for each member.

    **Raises:** `TypeError` for something that is no algorithm. Its `adapt` raises `TypeError` for tasks that are no
    episodes, its `predict` for outputs that are neither an array nor a `mk.Normal`.

    **Source:** Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation using Deep
    Ensembles", section 2.4, https://arxiv.org/abs/1612.01474. The members differ in where they start; without
    adversarial examples.

    >>> import equinox as eqx, jax, metakit as mk
    >>> make = lambda key: mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=key), penalty=mk.learned(0.1))
    >>> learner = mk.Ensemble.stacked(eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 5)))
    >>> algorithm, episode = mk.ensemble(mk.ridge), mk.tasks.Sinusoid()(jax.random.key(1))
    >>> algorithm.predict(algorithm.adapt(learner, episode.support), episode.query.x).shape
    (10, 1)
    >>> algorithm == mk.ensemble(mk.ridge)
    True
    """
    require_algorithm(algorithm)
    return _kept(algorithm)


@functools.lru_cache(maxsize=128)
def _kept(base: Any) -> EnsembleAlgorithm:
    """The same object while it is remembered: two bound methods are equal only if their objects are the same one."""
    return EnsembleAlgorithm(base)


def _each(function: Callable[..., Any], members: Any, what: Any, keys: Any) -> Any:
    return eqx.filter_vmap(function, in_axes=(eqx.if_array(0), None, eqx.if_array(0)))(members, what, keys)


def _keys(key: PRNGKey | None, count: int) -> Any:
    return None if key is None else jax.random.split(key, count)


def _log_mean_of_softmaxes(logits: Any) -> Any:
    """log (1/M) Σ softmax(z_m), along the leading axis of members."""
    count = jnp.asarray(math.log(logits.shape[0]), logits.dtype)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1), axis=0) - count


def _moments_of_the_mixture(of_members: Normal) -> Normal:
    mean = jnp.mean(of_members.mean, axis=0)
    variance = jnp.mean(jnp.square(of_members.scale) + jnp.square(of_members.mean - mean[None]), axis=0)
    return Normal(mean, jnp.sqrt(variance))
