"""How exact is the meta-gradient? Against closed forms of linear regression, in float64, for every exact adjoint."""

import equinox as eqx
import jax
import jax.numpy as jnp

import metakit as mk

RATE, STEPS = 0.1, 5
ADJOINTS = {"Unrolled": mk.inner.Unrolled(), "Checkpointed": mk.inner.Checkpointed(), "MixedMode": mk.inner.MixedMode()}


class Line(eqx.Module):
    weights: jax.Array

    def __call__(self, x):
        return x @ self.weights


def closed_form(weights, support, query):
    """∇L_Q(θ_K) = Mᴷ(2G_Q θ_K - 2h_Q) with M = I - 2αG_S, for the mean squared error."""
    gram = [2 * part.x.T @ part.x / len(part.x) for part in (support, query)]
    target = [2 * part.x.T @ part.y / len(part.x) for part in (support, query)]
    contraction = jnp.eye(len(weights)) - RATE * gram[0]
    adapted = weights
    for _ in range(STEPS):
        adapted = adapted - RATE * (gram[0] @ adapted - target[0])
    return jnp.linalg.matrix_power(contraction, STEPS) @ (gram[1] @ adapted - target[1])


def draw(key):
    x_key, w_key, noise_key, start_key = jax.random.split(key, 4)
    x = jax.random.normal(x_key, (20, 4))
    y = x @ jax.random.normal(w_key, (4, 1)) + 0.1 * jax.random.normal(noise_key, (20, 1))
    return mk.Examples(x[:10], y[:10]), mk.Examples(x[10:], y[10:]), jax.random.normal(start_key, (4, 1))


def main() -> dict[str, float]:
    """The largest relative error over 100 tasks."""
    errors = {}
    with jax.enable_x64(True):
        for name, adjoint in ADJOINTS.items():

            def error(key, adjoint=adjoint):
                support, query, weights = draw(key)
                learner = mk.maml.MAML(
                    Line(weights),
                    inner=mk.inner.SGD(RATE),
                    num_steps=STEPS,
                    loss=mk.losses.squared_error,
                    adjoint=adjoint,
                )
                gradient = jax.grad(mk.maml.meta_loss)(learner, mk.Episode(support, query)).model.weights
                expected = closed_form(weights, support, query)
                return jnp.linalg.norm(gradient - expected) / jnp.linalg.norm(expected)

            errors[name] = float(jnp.max(jax.vmap(error)(jax.random.split(jax.random.key(0), 100))))
            print(f"{name}: largest relative error {errors[name]:.1e}")
    return errors


if __name__ == "__main__":
    main()
