"""5,000 inner steps in the memory of fifty: weight decays tuned by hypergradients.

A network that overfits thirty noisy points learns a weight decay for each layer from a hundred points of validation.
The plain unroll would store every step. Forward-mode derivatives travel with the loop instead, one column for each of
the three decays, so their memory does not grow with its steps. Reversible stores what rounding took, a few bits a step.

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

STEPS, HYPER_STEPS, WIDTH, RATE, MOMENTUM = 5000, 20, 32, 0.01, 0.9
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


def inner(model, log_decays, data, step):
    layers = [*model.hidden, model.head]
    pulls = [jnp.exp(d) * jnp.sum(layer.weight**2) for d, layer in zip(log_decays, layers, strict=True)]
    return error(model, data["train"]) + sum(pulls)


def outer(model, log_decays, data):
    return error(model, data["valid"])


def problem(num_steps: int) -> mk.Bilevel:
    return mk.Bilevel(inner, outer, mk.inner.Momentum(RATE, MOMENTUM), num_steps)


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
    axes[1].legend(fontsize="x-small", loc="lower right")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(path: pathlib.Path | None, steps: int = STEPS, hyper_steps: int = HYPER_STEPS) -> dict[str, float]:
    model_key, *keys = jax.random.split(jax.random.key(0), 4)
    model = mk.nn.MLP(1, 1, WIDTH, 2, jnp.tanh, key=model_key)
    sizes = {"train": 30, "valid": 100, "test": 1000}
    data = {name: draw(key, n) for key, (name, n) in zip(keys, sizes.items(), strict=True)}
    hyper = jnp.full(3, -10.0)
    memory = {
        name: {k: temporary_mib(adjoint, k, hyper, model, data) for k in (steps // 100, steps // 10, steps)}
        for name, adjoint in ADJOINTS.items()
    }

    @eqx.filter_jit
    def train(hyper):
        return mk.hypergradient(problem(steps), hyper, model, data, adjoint=ADJOINTS["Forward"])

    optimiser = optax.adam(0.4)
    state, first = optimiser.init(hyper), train(hyper)
    last = first
    for _ in range(hyper_steps):
        updates, state = optimiser.update(last.gradient, state)
        hyper = jnp.asarray(optax.apply_updates(hyper, updates))
        last = train(hyper)
    fits = {"hardly any decay": first.solution.params, "tuned decays": last.solution.params}
    result = {f"test error, {name}": float(error(fitted, data["test"])) for name, fitted in fits.items()}
    result |= {f"{name}: MiB at {k} steps": size for name, curve in memory.items() for k, size in curve.items()}
    print("\n".join(f"{name}: {value:.4g}" for name, value in result.items()))
    if path is not None:
        picture(path, memory, fits, data)
    return result


if __name__ == "__main__":
    # Reversible, in the picture, restores states that are integers of 64 bits.
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=pathlib.Path, nargs="?", help="where to write the picture (PNG)")
    main(parser.parse_args().path)
