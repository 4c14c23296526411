"""Linear heads that a support set determines: ridge regression in closed form, logistic regression by Newton steps."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float

from metakit._errors import require_option
from metakit._typecheck import typed
from metakit._types import Scalar

FORMS = ("auto", "primal", "woodbury")

# The systems are small, and what the accelerator's default saves of each product would show in the solution.
_PRECISION = jax.lax.Precision.HIGHEST


@typed
def ridge_regression(
    features: Float[Array, "n d"], targets: Float[Array, "n m"], penalty: Scalar, *, form: str = "auto"
) -> Float[Array, "d m"]:
    r"""The weights of a ridge regression.

    $$W = \arg\min_W \lVert ZW - Y\rVert^2 + \lambda\lVert W\rVert^2
        = (Z^\top Z + \lambda I)^{-1} Z^\top Y = Z^\top (Z Z^\top + \lambda I)^{-1} Y$$

    **Arguments:**

    - `features`: $Z$, `[n, d]`.
    - `targets`: $Y$, `[n, m]`.
    - `penalty`: $\lambda$, above 0. In float32 one below about 1e-6 of $\lVert Z\rVert^2$ is lost in rounding, and the
      result may be NaN.
    - `form`: `"primal"` solves the `[d, d]` system, `"woodbury"` the `[n, n]` one; `"auto"` (default) the smaller. They
      give the same weights.

    **Returns:** $W$, `[d, m]`, by a Cholesky factorisation; derivatives of every order exist. A penalty that is not
    positive gives NaN where the system is singular.

    **Raises:** `ValueError` for an unknown form.

    **Source:** Bertinetto et al. 2019, *Meta-learning with differentiable closed-form solvers*, section 3,
    https://arxiv.org/abs/1805.08136

    >>> import jax.numpy as jnp
    >>> ridge_regression(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [2.0]]), jnp.asarray(5.0)).tolist()
    [[0.5]]
    """
    require_option("form", form, FORMS)
    n, d = features.shape
    penalty = penalty.astype(features.dtype)
    if form == "primal" or (form == "auto" and d < n):
        return _solve(_product(features.T, features), penalty, _product(features.T, targets))
    return _product(features.T, _solve(_product(features, features.T), penalty, targets))


@typed
def logistic_regression(
    features: Float[Array, "n d"],
    members: Bool[Array, "n way"],
    penalty: Scalar,
    *,
    num_steps: int = 5,
    form: str = "auto",
) -> Float[Array, "d way"]:
    r"""The weights of one logistic regression for each class against all others, after some Newton steps from zero.

    $$w_c \to \arg\min_w \sum_i \log\bigl(1 + e^{-t_{ic} z_i^\top w}\bigr) + \tfrac{\lambda}{2}\lVert w\rVert^2,
      \qquad t_{ic} = \pm 1$$

    Each step is a weighted ridge regression (iteratively reweighted least squares): with $\eta = Zw$,
    $\mu = \sigma(\eta)$ and $S = \operatorname{diag}(\mu(1 - \mu))$,

    $$w \leftarrow (Z^\top S Z + \lambda I)^{-1} Z^\top S \tilde y
        = Z^\top (Z Z^\top + \lambda S^{-1})^{-1} \tilde y, \qquad \tilde y = \eta + S^{-1}(y - \mu)$$

    **Arguments:**

    - `features`: $Z$, `[n, d]`.
    - `members`: `[n, way]` Booleans, whether example $i$ belongs to class $c$.
    - `penalty`: $\lambda$, above 0.
    - `num_steps`: Newton steps, at least 1; default 5.
    - `form`: as in `ridge_regression`.

    **Returns:** $w_c$ as the columns of a `[d, way]` array. The result of these steps, whose derivatives are exact, not
    of the limit. A step is not damped: with a tiny penalty, a misclassified outlier can throw it off.

    **Raises:** `ValueError` for fewer than 1 step, or an unknown form.

    **Source:** Bertinetto et al. 2019, section 3, https://arxiv.org/abs/1805.08136; iteratively reweighted least
    squares as in Bishop, "Pattern Recognition and Machine Learning", 2006, section 4.3.3.

    >>> import jax.numpy as jnp
    >>> members = jnp.array([[True, False], [False, True]])
    >>> logistic_regression(jnp.array([[1.0], [-1.0]]), members, jnp.asarray(0.5), num_steps=1).tolist()
    [[1.0, -1.0]]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is the number of Newton steps and must be at least 1, got {num_steps}.")
    signs = jnp.where(members, jnp.ones((), features.dtype), -jnp.ones((), features.dtype))

    def for_one_class(weights: Float[Array, " d"], sign: Float[Array, " n"]) -> Float[Array, " d"]:
        scores = _product(features, weights[:, None])[:, 0]
        # Ridge regression of S^½ ỹ on S^½ Z. With t y's sign, y - μ = t σ(-tη) and μ(1 - μ) = σ(tη) σ(-tη), so
        # S^-½ (y - μ) = t e^(-tη/2): no division by a weight that a confident score rounds to zero.
        root = jnp.exp(-0.5 * (jax.nn.softplus(scores) + jax.nn.softplus(-scores)))
        response = root * scores + sign * jnp.exp(-0.5 * sign * scores)
        return ridge_regression(root[:, None] * features, response[:, None], penalty, form=form)[:, 0]

    def step(weights: Float[Array, "way d"], _: None) -> tuple[Float[Array, "way d"], None]:
        return jax.vmap(for_one_class)(weights, signs.T), None

    start = jnp.zeros((members.shape[1], features.shape[1]), features.dtype)
    weights, _ = jax.lax.scan(step, start, length=num_steps)
    return weights.T


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_PRECISION)


def _solve(gram: Float[Array, "k k"], penalty: Scalar, right: Float[Array, "k m"]) -> Float[Array, "k m"]:
    """(G + λI)⁻¹ R for a symmetric positive G."""
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return cho_solve(cho_factor(gram + penalty * identity, lower=True), right)
