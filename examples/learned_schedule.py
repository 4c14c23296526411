"""A rate and a momentum for every layer and every one of 100 steps, learned by running the training backwards.

Hundreds of hyperparameters, one hypergradient each time: `mk.inner.Reversible` restores every state of the training bit
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
START = {"rate": 1.0, "decay": 0.9}


def draw(way: int) -> mk.Examples:
    pool = mk.tasks.glyphs("test", drawers=100, size=14)
    pixels = np.asarray(pool.images)[:: len(pool.names) // way][:way].reshape(way * 100, -1).astype(np.float32) / 255
    return mk.Examples(jnp.asarray(pixels), jnp.repeat(jnp.arange(way, dtype=jnp.int32), 100), way)


def network(key) -> mk.nn.MLP:
    return mk.nn.MLP(196, WAY, 50, 3, jnp.tanh, key=key)


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


def main(path: pathlib.Path | None = None, steps: int = STEPS, hyper_steps: int = HYPER_STEPS) -> dict[str, float]:
    # The adjoint works with integers of 64 bits; the network stays in 32.
    with jax.enable_x64(True):
        examples = draw(WAY)
        problem = mk.Bilevel(inner, outer, solver, num_steps=steps)

        @eqx.filter_jit
        def train(hyper, key):
            """From another initialisation and with other minibatches each time, so that no single run is learned by heart."""
            model_key, order_key = jax.random.split(key)
            order = jax.random.randint(order_key, (steps, BATCH), 0, len(examples.x), jnp.int32)
            model = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_array(x) else x, network(model_key))
            return mk.hypergradient(
                problem, hyper, model, {"train": examples, "order": order}, adjoint=mk.inner.Reversible()
            )

        def final_loss(hyper):
            return float(np.mean([train(hyper, jax.random.key(1000 + i)).value for i in range(10)]))

        model = eqx.filter(network(jax.random.key(0)), eqx.is_inexact_array)
        grid = {rate: final_loss(constant(model, steps, rate, 0.9)) for rate in (1.0, 1.5, 2.0)}
        print(grid)
        hyper = constant(model, steps, **START)
        optimiser = optax.adam(0.05)
        state = optimiser.init(hyper)
        for i in range(hyper_steps):
            value, gradient, _ = train(hyper, jax.random.key(i))
            updates, state = optimiser.update(gradient, state)
            hyper = optax.apply_updates(hyper, updates)
            if i%10==0: print(i, value, optax.global_norm(gradient))
        print(final_loss(hyper))


if __name__ == "__main__":
    main()
