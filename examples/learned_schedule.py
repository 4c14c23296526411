"""A rate and a momentum for every layer and every one of 100 steps, learned by running the training backwards.

1,600 hyperparameters, one hypergradient each time: `mk.inner.Reversible` restores every state of the training bit
for bit instead of storing it. After Maclaurin et al. 2015 (https://arxiv.org/abs/1502.03492), section 3.1, on Glyphs.

python examples/learned_schedule.py schedule.png
"""

import argparse
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import metakit as mk

WAY, STEPS, HYPER_STEPS, BATCH = 20, 100, 50, 64
START_RATE, DECAY, HYPER_RATE = 1.0, 0.9, 0.05
RATES = (0.3, 0.5, 1.0, 1.5, 2.0)


def draw(way: int) -> mk.Examples:
    pool = mk.tasks.glyphs("test", drawers=100, size=14)
    pixels = np.asarray(pool.images)[:: len(pool.names) // way][:way].reshape(way * 100, -1).astype(np.float32) / 255
    return mk.Examples(jnp.asarray(pixels), jnp.repeat(jnp.arange(way, dtype=jnp.int32), 100), way)


def network(key) -> mk.nn.MLP:
    model = mk.nn.MLP(196, WAY, 50, 3, jnp.tanh, key=key)
    return jax.tree.map(lambda x: x.astype(jnp.float32), model)


def loss(model, data, order):
    return mk.losses.cross_entropy(model(data.x[order]), data.y[order], reduction="mean")


def inner(model, hyper, data, step):
    return loss(model, data["train"], data["order"][step])


def outer(model, hyper, data):
    return loss(model, data["train"], slice(None))


def solver(hyper) -> mk.inner.PerLayerPerStepMomentum:
    """Rates are positive, and momenta between 0 and 1, whatever the hyperparameters are."""
    rates, decays = jax.tree.map(jnp.exp, hyper["rate"]), jax.tree.map(jax.nn.sigmoid, hyper["decay"])
    return mk.inner.PerLayerPerStepMomentum(rates, decays, averaged=True)


def constant(model, steps: int, rate: float, decay: float):
    """The hyperparameters of one rate and one momentum everywhere."""
    everywhere = lambda value: jax.tree.map(lambda _: jnp.full(steps, value, jnp.float32), model)  # noqa: E731
    return {"rate": everywhere(np.log(rate)), "decay": everywhere(np.log(decay / (1 - decay)))}


def picture(path: pathlib.Path, hyper, curves) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for label, losses in curves.items():
        axes[0].plot(losses, label=label)
    axes[0].set(xlabel="training step", ylabel="loss of the minibatch (nats)", yscale="log")
    axes[0].legend(fontsize="x-small")
    layers = [*solver(hyper).rates.hidden, solver(hyper).rates.head]
    for i, layer in enumerate(layers):
        axes[1].plot(layer.weight.value, f"C{i}", label=f"layer {i + 1}")
    axes[1].set(xlabel="training step", ylabel="learned rate of the weights", yscale="log")
    axes[1].legend(fontsize="x-small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(path: pathlib.Path | None, steps: int = STEPS, hyper_steps: int = HYPER_STEPS, tests: int = 10):
    examples, problem = draw(WAY), mk.Bilevel(inner, outer, solver, num_steps=steps)

    @eqx.filter_jit
    def train(hyper, key):
        """From another start and with other minibatches each time, so that no single run is learned by heart."""
        model_key, order_key = jax.random.split(key)
        order = jax.random.randint(order_key, (steps, BATCH), 0, len(examples.x), jnp.int32)
        model, data = network(model_key), {"train": examples, "order": order}
        return mk.hypergradient(problem, hyper, model, data, adjoint=mk.inner.Reversible(0.4))

    def test(hyper):
        """Unseen starts: the loss over all examples after the last step, and the curve of the first."""
        runs = [train(hyper, jax.random.key(1000 + i)) for i in range(tests)]
        return float(np.mean([run.value for run in runs])), np.asarray(runs[0].solution.losses)

    hyper = constant(network(jax.random.key(0)), steps, START_RATE, DECAY)
    optimiser = optax.adam(HYPER_RATE)
    state = optimiser.init(hyper)
    for i in range(hyper_steps):
        _, gradient, _ = train(hyper, jax.random.key(i))
        updates, state = optimiser.update(gradient, state)
        hyper = optax.apply_updates(hyper, updates)
    fixed = {rate: test(constant(network(jax.random.key(0)), steps, rate, DECAY)) for rate in RATES}
    best, ours = min(fixed, key=lambda rate: fixed[rate][0]), test(hyper)
    result = {"learned": ours[0], **{f"rate {rate}": loss for rate, (loss, _) in fixed.items()}}
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(hyper))} hyperparameters; mean loss of {tests} unseen starts:")
    print("\n".join(f"{name}: {value:.3f} nats" for name, value in result.items()))
    if path is not None:
        picture(path, hyper, {f"one rate, the best: {best}": fixed[best][1], "learned": ours[1]})
    return result


if __name__ == "__main__":
    # The restored states are integers of 64 bits; the network stays in 32.
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="?", help="where to write the picture (PNG)")
    main(parser.parse_args().path)
