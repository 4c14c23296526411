"""A meta-learner of your own: a ridge classifier on a learned embedding, solved in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp

import metakit as mk


class Ridge(eqx.Module):
    embed: eqx.Module
    penalty: mk.Hyperparameter
    scale: mk.Hyperparameter


class Adapted(eqx.Module):
    learner: Ridge
    weights: jax.Array


def adapt(learner, support, key=None):
    """W = Zᵀ(ZZᵀ + λI)⁻¹Y, the dual form: the system is as large as the support set."""
    z = learner.embed(support.x)
    gram = z @ z.T + learner.penalty.value * jnp.eye(len(z), dtype=z.dtype)
    return Adapted(learner, z.T @ jnp.linalg.solve(gram, jax.nn.one_hot(support.y, support.way, dtype=z.dtype)))


def predict(adapted, x, key=None):
    return adapted.learner.scale.value * (adapted.learner.embed(x) @ adapted.weights)


def meta_loss(learner, task, key=None):
    logits = predict(adapt(learner, task.support), task.query.x)
    return mk.losses.cross_entropy(logits, task.query.y, reduction="mean")
