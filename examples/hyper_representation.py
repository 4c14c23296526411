"""Hyper-representation: one network of features for all tasks, and a linear head that each task trains for itself.

The features are hyperparameters of the heads' training: Franceschi et al. 2018 (https://arxiv.org/abs/1806.04910),
section 5.3, on 5-way 1-shot Glyphs. The head starts at zero, so the features alone decide what it can learn.

python examples/hyper_representation.py representation.png
"""

import argparse
import functools
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import metakit as mk

WAY, STEPS, HYPER_STEPS, META_BATCH = 5, 5, 600, 4


def outputs(head, features, x):
    return features(x) @ head["w"] + head["b"][None]


def loss(head, hyper, examples):
    return mk.losses.cross_entropy(outputs(head, hyper["features"], examples.x), examples.y, reduction="mean")


def problem(size: int, steps: int) -> mk.Bilevel:
    """The inner loop trains a head on the support set; the outer loss is that of the query set."""
    return mk.Bilevel(
        inner=lambda head, hyper, task, step: loss(head, hyper, task.support),
        outer=lambda head, hyper, task: loss(head, hyper, task.query),
        solver=lambda hyper: mk.inner.SGD(jnp.exp(hyper["log_rate"])),
        num_steps=steps,
        init=lambda hyper: {"w": jnp.zeros((size, WAY)), "b": jnp.zeros(WAY)},
    )


def algorithm(bilevel: mk.Bilevel) -> mk.MetaLearner:
    """The same as three functions, the form that evaluation takes."""

    def adapt(hyper, support, key=None):
        # Without query examples the outer loss means nothing; it is not used, and compiled away.
        return mk.hypergradient(bilevel, hyper, None, mk.Episode(support, support)).solution.params, hyper["features"]

    return mk.MetaLearner(
        adapt=adapt,
        predict=lambda adapted, x, key=None: outputs(adapted[0], adapted[1], x),
        meta_loss=lambda hyper, task, key=None: mk.hypergradient(bilevel, hyper, None, task).value,
    )


def picture(path: pathlib.Path, features, untrained, task, values) -> None:
    """Training, and a test episode's queries by their two main directions before and after it."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    axes[0].plot(np.convolve(values, np.ones(20) / 20, "valid"))
    axes[0].set(xlabel="hypergradient step", ylabel="query loss (nats, mean of 20 steps)")
    for axis, network, title in zip(axes[1:], (untrained, features), ("untrained", "trained"), strict=True):
        points = np.asarray(network(task.query.x))
        points = points - points.mean(0)
        plane = points @ np.linalg.svd(points, full_matrices=False)[2][:2].T
        axis.scatter(*plane.T, c=np.asarray(task.query.y), cmap="tab10", s=14)
        axis.set(title=f"queries of unseen scripts, {title}", xticks=[], yticks=[])
        axis.title.set_fontsize("small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(path: pathlib.Path | None, hyper_steps: int = HYPER_STEPS, width: int = 32, num_tasks: int = 600):
    pools = {part: mk.tasks.glyphs(part) for part in ("train", "test")}
    train, test = (mk.tasks.Episodes(pool, way=WAY, shot=1, queries=15) for pool in pools.values())
    features = mk.nn.Conv4(1, 28, width=width, key=jax.random.key(0))
    bilevel = problem(features(jnp.zeros((2, 1, 28, 28))).shape[1], STEPS)
    start = {"features": features, "log_rate": jnp.log(jnp.asarray(0.1))}
    optimiser = optax.adam(1e-3)

    @eqx.filter_jit
    def hyper_step(hyper, state, key, tasks):
        batch = eqx.filter_vmap(tasks)(jax.random.split(key, META_BATCH))
        one = functools.partial(mk.hypergradient, bilevel)
        value, gradient, _ = eqx.filter_vmap(one, in_axes=(None, None, 0))(hyper, None, batch)
        updates, state = optimiser.update(jax.tree.map(lambda g: jnp.mean(g, 0), gradient), state)
        return eqx.apply_updates(hyper, updates), state, jnp.mean(value)

    hyper, state, values = start, optimiser.init(eqx.filter(start, eqx.is_inexact_array)), []
    for key in jax.random.split(jax.random.key(1), hyper_steps):
        hyper, state, value = hyper_step(hyper, state, key, train)
        values.append(float(value))

    def accuracy(learner_algorithm, learner):
        metrics = {"accuracy": mk.metrics.accuracy}
        scores = mk.evaluate.scores(
            learner_algorithm, learner, test, jax.random.key(2), num_tasks=num_tasks, metrics=metrics
        )
        return mk.evaluate.student_t(scores["accuracy"])

    ours = algorithm(bilevel)
    result = {
        "features learned": accuracy(ours, hyper),
        "features as drawn": accuracy(ours, start),
        "nearest neighbour on pixels": accuracy(mk.evaluate.baselines.nearest_neighbour, None),
    }
    print(f"accuracy on {num_tasks} tasks of unseen scripts; learned rate {float(jnp.exp(hyper['log_rate'])):.3f}")
    print("\n".join(f"{name}: {interval}" for name, interval in result.items()))
    if path is not None:
        picture(path, hyper["features"], features, test(jax.random.key(3)), values)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="?", help="where to write the picture (PNG)")
    main(parser.parse_args().path)
