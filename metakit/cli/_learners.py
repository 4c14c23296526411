"""Each algorithm's learner at its start, with the published network of the data."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from metakit import losses, nn, rl
from metakit._environment import Discrete
from metakit._hyperparameter import fixed, learned
from metakit.inner import SGD, Optax, PerLayerPerStepSGD
from metakit.learners import (
    maml,
    mann,
    matching,
    meta_lstm,
    prototypical,
    relation,
    reptile,
    rl_maml,
    rl_squared,
    snail,
    versa,
)
from metakit.tasks import ImagePool

from ._config import Settings, UsageError
from ._environments import ARMS, PULLS

Build = Callable[[Settings, ImagePool | None, jax.Array], Any]


def _loss(settings: Settings) -> Callable[..., Any]:
    return losses.squared_error if settings.regression else losses.cross_entropy


def channels_and_size(pool: ImagePool | None) -> tuple[int, int]:
    assert pool is not None
    _, _, channels, size, _ = pool.images.shape
    return channels, size


def _mlp(out_size: int, key: jax.Array) -> Any:
    # Xavier: over four seeds its error after one step is 0.36 to 0.45, He's 0.54 to 0.88 (docs/results.md).
    return nn.MLP(1, out_size, width=40, depth=2, weight_init=nn.xavier_uniform, key=key)


def embedding(pool: ImagePool | None, key: jax.Array) -> tuple[Any, int]:
    """A network without a head, and how many features it has."""
    if pool is None:
        return _mlp(32, key), 32
    channels, size = channels_and_size(pool)
    return nn.conv4_64(channels, size, key=key), 64 * (size // 16) ** 2


# Learners with an inner loop


def maml_like(configure: Callable[..., Any], *, learns_rates: bool) -> Build:
    """MAML or one of its configurations, whose inner loop takes an update rule, or learns its own rates."""

    def build(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
        inner = {"rate": settings.inner_rate} if learns_rates else {"inner": SGD(settings.inner_rate)}
        return configure(
            _maml_network(settings, pool, key),
            **inner,
            num_steps=settings.inner_steps,
            loss=_loss(settings),
            norm_policy=settings.norm_policy,
        )

    return build


def _maml_network(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    if pool is None:
        return _mlp(1, key)
    channels, size = channels_and_size(pool)
    steps = settings.inner_steps
    norm = (lambda c: nn.PerStepNorm(steps, c)) if settings.algorithm == "mamlpp" else nn.maml_norm
    if (channels, size) == (1, 28):
        return nn.conv4_maml_omniglot(settings.way, norm=norm, key=key)
    return nn.Conv4(channels, size, out_size=settings.way, width=32, norm=norm, key=key)


def with_test_steps(with_num_steps: Callable[[Any, int], Any]) -> Callable[[Settings, Any, ImagePool | None], Any]:
    """A learner with its number of test steps."""

    def as_tested(settings: Settings, learner: Any, pool: ImagePool | None) -> Any:
        del pool
        same = settings.test_inner_steps == settings.inner_steps
        return learner if same else with_num_steps(learner, settings.test_inner_steps)

    return as_tested


def mamlpp_schedule(settings: Settings) -> Callable[[Any, Any], Any]:
    """All inner steps count at first, only the last from a quarter of the training on."""
    steps = settings.inner_steps
    return eqx.Partial(_with_step_weights, num_steps=steps, decay_steps=max(settings.steps // 4, 1))


def _with_step_weights(learner: Any, step: Any, *, num_steps: int, decay_steps: int) -> Any:
    weights = maml.multi_step_weights(step, num_steps, decay_steps)
    return maml.with_step_weights(learner, weights.astype(learner.step_weights.value.dtype))


# Enough steps for a network that was not meta-trained to fit a handful of examples, at a rate it tolerates.
_LONG = 50
_TOLERATED = {True: 0.01, False: 0.1}


def adapted_at_length(settings: Settings, learner: Any) -> tuple[str, Any]:
    """MAML's untrained network, which needs more than a few steps."""
    rule = SGD(_TOLERATED[settings.regression])
    tuned = dataclasses.replace(learner, inner=rule, num_steps=_LONG, step_weights=None)
    return f"not meta-trained, adapted for {_LONG} steps", tuned


def _published_norm(channels: int) -> nn.BatchStatNorm:
    return nn.BatchStatNorm(channels, eps=1e-3)


def reptile_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """Reptile's network pools where the published one strides, which is worth more than its time (docs/results.md).

    Its inner rule is Adam without momentum, whose second moments live on from task to task as in the released code."""
    channels, size = channels_and_size(pool)
    width = 64 if (channels, size) == (1, 28) else 32
    network = nn.Conv4(channels, size, out_size=settings.way, width=width, norm=_published_norm, key=key)
    learner = reptile.Reptile(
        network,
        inner=Optax(optax.rmsprop, learning_rate=settings.inner_rate, decay=0.999, initial_scale=1e-4),
        num_steps=settings.inner_steps,
        batch_size=settings.inner_batch,
        norm_policy=settings.norm_policy,
    )
    return reptile.with_carried_state(learner)


def reptile_as_tested(settings: Settings, learner: Any, pool: ImagePool | None) -> Any:
    """More steps, and batches of no more examples than there are."""
    del pool
    learner = reptile.with_num_steps(learner, settings.test_inner_steps)
    few = settings.test_way * settings.test_shot <= settings.inner_batch
    return reptile.with_batch_size(learner, None if few else settings.inner_batch)


def meta_lstm_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """The published network, and an input gate that starts about the inner rate, in a range as wide as published."""
    rate = settings.inner_rate
    if rate >= 1:
        raise UsageError(f"--inner-rate must be below 1 for meta-lstm, whose input gate is a sigmoid; got {rate}.")
    bias = math.log(rate) - math.log1p(-rate)
    channels, size = channels_and_size(pool)
    network_key, update_key = jax.random.split(key)
    return meta_lstm.MetaLSTM(
        nn.Conv4(channels, size, out_size=settings.way, width=32, norm=_published_norm, key=network_key),
        update=meta_lstm.LearnedUpdate(input_bias=(bias - 0.5, bias + 0.5), key=update_key),
        num_steps=settings.inner_steps,
        norm_policy=settings.norm_policy,
    )


# Learners that embed and compare


def matching_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    embed, _ = embedding(pool, key)
    scale = learned(settings.scale)
    return matching.Matching(embed, scale=scale, loss=_loss(settings), norm_policy=settings.norm_policy)


def prototypical_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    embed, _ = embedding(pool, key)
    return prototypical.Prototypical(embed, scale=settings.scale, norm_policy=settings.norm_policy)


def relation_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    embed_key, relation_key = jax.random.split(key)
    embed = nn.RelationEmbedding(*channels_and_size(pool), key=embed_key)
    module = nn.RelationModule(64, embed.map_size, key=relation_key)
    return relation.Relation(embed, module, norm_policy=settings.norm_policy)


def closed_form(configure: Callable[..., Any]) -> Build:
    """R2-D2 or LR-D2, with a scale that is learned."""

    def build(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
        embed, _ = embedding(pool, key)
        return configure(embed, scale=learned(settings.scale), norm_policy=settings.norm_policy)

    return build


def versa_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    embed_key, amortiser_key = jax.random.split(key)
    embed, features = embedding(pool, embed_key)
    amortiser = versa.Amortiser(features, key=amortiser_key)
    return versa.Versa(embed, amortiser, norm_policy=settings.norm_policy)


# Learners that read a sequence


def snail_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    embed_key, trunk_key = jax.random.split(key)
    embed, features = embedding(pool, embed_key)
    return snail.few_shot(
        embed,
        features,
        way=settings.way,
        shot=max(settings.shot, settings.test_shot),
        norm_policy=settings.norm_policy,
        random_shot=settings.shot > 1,
        key=trunk_key,
    )


def mann_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    channels, size = channels_and_size(pool)
    return mann.MANN(channels * size**2, settings.way, key=key)


# Learners that act


def rl_maml_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """The published policy, of 2-D navigation. Updates beyond those of training go half as far each as the one before
    (published: half as far, all of them): near a goal a policy gradient is mostly noise."""
    assert pool is None
    network = nn.MLP(2, 2, 64, 2, jnp.tanh, weight_init=nn.xavier_uniform, key=key)
    policy = rl.GaussianPolicy(network, 2)
    trained = max(settings.inner_steps, 1)
    longest = max(trained, settings.test_inner_steps)
    rates = [settings.inner_rate * 0.5 ** max(step - trained + 1, 0) for step in range(longest)]
    inner = PerLayerPerStepSGD(
        jax.tree.map(lambda _: fixed(jnp.array(rates)), eqx.filter(policy, eqx.is_inexact_array))
    )
    return rl_maml.RLMAML(policy, inner=inner, num_steps=settings.inner_steps)


def rl_squared_learner(settings: Settings, pool: ImagePool | None, key: jax.Array) -> Any:
    """A GRU of 64; a pull is an episode, and all pulls count alike."""
    del settings
    assert pool is None
    network_key, head_key = jax.random.split(key)
    arms = Discrete(ARMS)
    network = nn.GRU(rl_squared.token_size((1,), arms), 64, key=network_key)
    policy = rl_squared.RecurrentPolicy(network, (1,), arms, key=head_key)
    return rl_squared.RLSquared(policy, num_episodes=PULLS, discount=1.0)
