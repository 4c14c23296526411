"""5,000 inner steps in the memory of one: weight decays tuned by hypergradients through the whole of a training.

A network that overfits thirty noisy points learns a weight decay for each layer, a rate and a momentum from a hundred
points of validation. Three ways to differentiate the loop do not store its steps; the plain unroll stores all of them.

python examples/long_loop.py loop.png
"""

import argparse
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import metakit as mk

STEPS, HYPER_STEPS, WIDTH = 5000, 20, 32
ADJOINTS = {
    "Unrolled": mk.inner.Unrolled(),
    "Checkpointed": mk.inner.Checkpointed(),
    "Reversible": mk.inner.Reversible(0.89),
    "Forward": mk.inner.Forward(),
}


def truth(x):
    return jnp.sin(2 * x) + 0.3 * x


def draw(key, n):
    x_key, noise_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (n, 1), minval=-3.0, maxval=3.0)
    return x, truth(x) + 0.4 * jax.random.normal(noise_key, (n, 1))


def error(model, data):
    return jnp.mean((model(data[0]) - data[1]) ** 2)


def inner(model, hyper, data, step):
    layers = [*model.hidden, model.head]
    pulls = [jnp.exp(d) * jnp.sum(layer.weight**2) for d, layer in zip(hyper["decay"], layers, strict=True)]
    return error(model, data["train"]) + sum(pulls)


def problem(num_steps: int) -> mk.Bilevel:
    return mk.Bilevel(
        inner,
        outer=lambda model, hyper, data: error(model, data["valid"]),
        solver=lambda hyper: mk.inner.Momentum(jnp.exp(hyper["rate"]), jax.nn.sigmoid(hyper["momentum"])),
        num_steps=num_steps,
    )


def temporary_mib(adjoint, num_steps: int, *inputs) -> float:
    """What XLA says the compiled hypergradient needs beside its inputs and results."""

    def gradient(hyper, model, data):
        return mk.hypergradient(problem(num_steps), hyper, model, data, adjoint=adjoint)[:2]

    return eqx.filter_jit(gradient).lower(*inputs).compile().compiled.memory_analysis().temp_size_in_bytes / 2**20


def picture(path: pathlib.Path, memory, fits, data) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, curve in memory.items():
        axes[0].plot(*zip(*curve.items(), strict=True), "o-", label=name)
    axes[0].set(xscale="log", yscale="log", xlabel="inner steps", ylabel="temporary memory (MiB)")
    axes[0].legend(fontsize="x-small")
    x = jnp.linspace(-3, 3, 200)[:, None]
    axes[1].plot(x, truth(x), "k--", linewidth=0.8, label="truth")
    axes[1].plot(*data["train"], "k.", label="training points")
    for name, model in fits.items():
        axes[1].plot(x, model(x), label=name)
    axes[1].legend(fontsize="x-small")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(path: pathlib.Path | None, steps: int = STEPS, hyper_steps: int = HYPER_STEPS):
    keys = jax.random.split(jax.random.key(0), 4)
    model = mk.nn.MLP(1, 1, WIDTH, 2, jnp.tanh, key=keys[0])
    data = {
        name: draw(key, n) for name, key, n in zip(("train", "valid", "test"), keys[1:], (30, 100, 1000), strict=True)
    }
    hyper = {"decay": jnp.full(3, -12.0), "rate": jnp.log(jnp.asarray(0.05)), "momentum": jnp.asarray(2.2)}
    memory = {
        name: {k: temporary_mib(adjoint, k, hyper, model, data) for k in (steps // 100, steps // 10, steps)}
        for name, adjoint in ADJOINTS.items()
    }
    step = eqx.filter_jit(
        lambda hyper: mk.hypergradient(problem(steps), hyper, model, data, adjoint=ADJOINTS["Reversible"])
    )
    optimiser = optax.adam(0.3)
    state, fits = optimiser.init(hyper), {}
    for i in range(hyper_steps + 1):
        value, gradient, solution = step(hyper)
        if i in (0, hyper_steps):
            fits["as it started" if i == 0 else "tuned"] = solution.params
        if i % 2 == 0:
            print(
                i,
                value,
                optax.global_norm(gradient),
                error(solution.params, data["test"]),
                jax.tree.map(lambda x: x.round(2).tolist(), hyper),
            )
        updates, state = optimiser.update(gradient, state)
        hyper = optax.apply_updates(hyper, updates)
    result = {f"test error, {name}": float(error(fitted, data["test"])) for name, fitted in fits.items()}
    result |= {f"{name}: MiB at {k} steps": size for name, curve in memory.items() for k, size in curve.items()}
    print("\n".join(f"{name}: {value:.4g}" for name, value in result.items()))
    if path is not None:
        picture(path, memory, fits, data)
    return result


if __name__ == "__main__":
    # Reversible restores states that are integers of 64 bits.
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="?", help="where to write the picture (PNG)")
    main(parser.parse_args().path)
