"""Data hyper-cleaning: half of the training labels are wrong, and a weight for every example finds them.

The weights of the examples are hyperparameters; their gradient is that of a small clean validation set's loss after the
whole inner training. After Franceschi et al. 2017 (https://arxiv.org/abs/1703.01785), section 5.1, on Glyphs.

python examples/data_cleaning.py cleaning.png
"""

import argparse
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.patches import Rectangle

import metakit as mk

WAY, STEPS, HYPER_STEPS, RATE, PENALTY = 20, 100, 60, 0.05, 3e-3
PARTS = {"train": slice(0, 60), "valid": slice(60, 70), "test": slice(70, 100)}


def draw(way: int, seed: int) -> dict[str, jax.Array]:
    """60 training, 10 validation and 30 test drawings of each class; half of the training labels are of another."""
    rng = np.random.default_rng(seed)
    pool = mk.tasks.glyphs("test", drawers=100, size=14)
    classes = rng.choice(len(pool.names), way, replace=False)
    pixels = np.asarray(pool.images)[classes].reshape(way, 100, -1).astype(np.float32) / 255
    labels = np.repeat(np.arange(way, dtype=np.int32)[:, None], 100, axis=1)
    data = {f"{name}_x": pixels[:, part].reshape(-1, pixels.shape[-1]) for name, part in PARTS.items()}
    data |= {f"{name}_y": labels[:, part].reshape(-1) for name, part in PARTS.items()}
    n = len(data["train_y"])
    wrong = rng.permutation(n) < n // 2
    moved = (data["train_y"] + rng.integers(1, way, n, dtype=np.int32)) % way
    return jax.tree.map(jnp.asarray, data | {"train_y": np.where(wrong, moved, data["train_y"]), "wrong": wrong})


def scores(params, x):
    return x @ params["w"] + params["b"][None]


def inner(params, weights, data, step):
    losses = mk.losses.cross_entropy(scores(params, data["train_x"]), data["train_y"], reduction="none")
    return jnp.mean(weights * losses) + PENALTY * jnp.sum(params["w"] ** 2)


def outer(params, weights, data):
    return mk.losses.cross_entropy(scores(params, data["valid_x"]), data["valid_y"], reduction="mean")


def f1(found, wrong) -> float:
    return float(2 * jnp.sum(found & wrong) / (jnp.sum(found) + jnp.sum(wrong)))


def picture(path: pathlib.Path, data, weights, curve) -> None:
    """The way there, the weights, and the examples that were trusted least."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained", width_ratios=(1, 1, 1.4))
    for values, label in zip(zip(*curve, strict=True), ("validation loss (nats)", "F1 of wrong labels"), strict=True):
        axes[0].plot(values, label=label)
    axes[0].set(xlabel="hypergradient steps", ylim=0)
    groups = [np.asarray(weights[which]) for which in (data["wrong"], ~data["wrong"])]
    axes[1].hist(groups, bins=20, label=["wrong label", "right label"], color=["C3", "C2"])
    axes[1].set(xlabel="weight of an example", ylabel="examples")
    for axis in axes[:2]:
        axis.legend(fontsize="x-small")
    least = jnp.argsort(weights)[:: len(weights) // 40][:24]
    side = int(data["train_x"].shape[1] ** 0.5)
    images = 1 - np.asarray(data["train_x"][least]).reshape(3, 8, side, side).transpose(0, 2, 1, 3)
    axes[2].imshow(images.reshape(3 * side, 8 * side), cmap="gray")
    for i, index in enumerate(least):
        corner, colour = (i % 8 * side, i // 8 * side), "C3" if bool(data["wrong"][index]) else "C2"
        axes[2].add_patch(Rectangle(corner, side - 1.5, side - 1.5, fill=False, color=colour))
    axes[2].set(xlabel="from the least trusted on; red: the label is wrong", xticks=[], yticks=[])
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(path: pathlib.Path | None, way: int = WAY, steps: int = STEPS, hyper_steps: int = HYPER_STEPS, seed: int = 0):
    data = draw(way, seed)
    params = {"w": jnp.zeros((data["train_x"].shape[1], way)), "b": jnp.zeros(way)}
    problem = mk.Bilevel(inner, outer, mk.inner.Momentum(0.5, 0.9), num_steps=steps)
    weights, optimiser = jnp.full(len(data["train_y"]), 0.5), optax.adam(RATE)

    @eqx.filter_jit
    def hyper_step(weights, state, data):
        value, gradient, _ = mk.hypergradient(problem, weights, params, data)
        updates, state = optimiser.update(gradient, state)
        return jnp.clip(weights + updates, 0, 1), state, value  # a weight stays between 0 and 1

    @eqx.filter_jit
    def accuracy(weights, data):
        trained = mk.hypergradient(problem, weights, params, data).solution.params
        return mk.metrics.accuracy(scores(trained, data["test_x"]), data["test_y"])

    state, curve = optimiser.init(weights), []
    for _ in range(hyper_steps):
        weights, state, value = hyper_step(weights, state, data)
        curve.append((float(value), f1(weights < 0.5, data["wrong"])))
    both = data | {f"train_{k}": jnp.concatenate([data[f"train_{k}"], data[f"valid_{k}"]]) for k in "xy"}
    result = {
        "F1 of the wrong labels found": curve[-1][1],
        "test accuracy, cleaned": float(accuracy(weights, data)),
        "trained on everything": float(accuracy(jnp.ones_like(weights), data)),
        "on everything and the validation set": float(accuracy(jnp.ones(len(both["train_y"])), both)),
        "on the right labels alone": float(accuracy((~data["wrong"]).astype(jnp.float32), data)),
    }
    print("\n".join(f"{name}: {value:.3f}" for name, value in result.items()))
    if path is not None:
        picture(path, data, weights, curve)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="?", help="where to write the picture (PNG)")
    parser.add_argument("--seed", type=int, default=0, help="of the characters and the wrong labels")
    main(**vars(parser.parse_args()))
