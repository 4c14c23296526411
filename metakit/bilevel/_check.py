"""Is a hypergradient right? Against differences, forward mode and other adjoints."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from metakit._errors import require_number
from metakit._tree import global_norm
from metakit.inner import AbstractAdjoint, Checkpointed, MixedMode, Reversible, Unrolled

from ._hypergradient import hypergradient, resolve
from ._problem import Bilevel, check_problem, solve, solver_of, start_of

# Steps of the differences, in units of a leaf's size. Fourth order: the error falls as the fourth power of the step
# until rounding, which grows as its inverse, takes over; the pair that agrees best is where.
_STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


class HypergradientRow(NamedTuple):
    """One comparison of one leaf.

    - `leaf`: its path in `hyper`.
    - `against`: what it was compared with: `"differences"`, `"jvp"` or an adjoint.
    - `error`: the relative error; of the leaf, or of its product with one random direction.
    - `resolution`: how far two difference steps agree, relatively: no smaller error can be seen. 0 for the others.

    >>> import metakit as mk
    >>> mk.HypergradientRow("['rate']", "jvp", 1e-12, 0.0).leaf
    "['rate']"
    """

    leaf: str
    against: str
    error: float
    resolution: float


class HypergradientReport(NamedTuple):
    """What `mk.check_hypergradient` found. `str(report)` is a table.

    - `adjoint`: the name of the adjoint that was checked.
    - `tolerance`: the largest error that counts as agreement.
    - `rows`: a `HypergradientRow` for every leaf and comparison.

    >>> import metakit as mk
    >>> report = mk.HypergradientReport("MixedMode", 1e-6, (mk.HypergradientRow("['rate']", "jvp", 0.5, 0.0),))
    >>> report.agrees, report.worst.error
    (False, 0.5)
    >>> print(report)
    the hypergradient of MixedMode is wrong in 1 of 1 leaves (tolerance 1e-06)
      leaf      jvp
      ['rate']  5.0e-01 !
    """

    adjoint: str
    tolerance: float
    rows: tuple[HypergradientRow, ...]

    @property
    def agrees(self) -> bool:
        """Whether every leaf agrees with everything it was compared with."""
        return all(row.error <= self.tolerance for row in self.rows)

    @property
    def worst(self) -> HypergradientRow:
        """The row with the largest error; NaN counts as infinite."""
        return max(self.rows, key=lambda row: float("inf") if row.error != row.error else row.error)

    def __str__(self) -> str:
        leaves = list(dict.fromkeys(row.leaf for row in self.rows))
        columns = list(dict.fromkeys(row.against for row in self.rows))
        table = {(row.leaf, row.against): self._cell(row) for row in self.rows}
        lines = [["leaf", *columns], *([leaf, *(table[leaf, column] for column in columns)] for leaf in leaves)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
        wrong = {row.leaf for row in self.rows if not row.error <= self.tolerance}
        verdict = (
            f"is wrong in {len(wrong)} of {len(leaves)} leaves" if wrong else f"agrees in all of {len(leaves)} leaves"
        )
        body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join(
            [f"the hypergradient of {self.adjoint} {verdict} (tolerance {self.tolerance:g})", *(f"  {b}" for b in body)]
        )

    def _cell(self, row: HypergradientRow) -> str:
        if row.error <= self.tolerance:
            return f"{row.error:.1e}"
        seen = f" (differences resolve {row.resolution:.0e})" if row.resolution > self.tolerance else ""
        return f"{row.error:.1e} !{seen}"


def check_hypergradient(
    problem: Bilevel,
    hyper: Any,
    params: Any = None,
    data: Any = None,
    *,
    adjoint: AbstractAdjoint | Literal["auto"] = "auto",
    against: Sequence[AbstractAdjoint] = (Unrolled(), Checkpointed(), MixedMode()),
    tolerance: float = 1e-6,
) -> HypergradientReport:
    r"""Compare a hypergradient, leaf by leaf and in float64, with everything that should equal it.

    - **Central differences** along a random direction $d$ of each leaf, with $E_k = E(\lambda + k h d)$ at that of
      seven steps $h$ at which they are most exact:
      $\langle g, d\rangle \approx (8 E_1 - 8 E_{-1} - E_2 + E_{-2}) / 12h$.
    - **Forward mode**: the same products by `jax.jvp` through the plain loop, `jvp` against `vjp`.
    - **Adjoint against adjoint**: the whole leaf, in the Euclidean norm.

    Everything, the data too, is cast to float64 and runs in 64-bit mode, whatever the program's own setting. The
    checked adjoint runs on the problem as it is; for `mk.inner.Reversible` the rest runs with the decays that it
    rounds to. Its products with a decay are right to $2^{-44}$, about 6e-14, which shows as a relative error in a leaf
    whose gradient has all but vanished, as that of a momentum has near convergence. A biased adjoint disagrees, by its
    bias.

    **Arguments:**

    - `problem`, `hyper`, `params`, `data`, `adjoint`: as for `mk.hypergradient`.
    - `against`: adjoints to compare with, the checked one left out; default the exact ones for any solver. Give `()`
      where the unroll would not fit into memory.
    - `tolerance`: the largest relative error that counts as agreement; default 1e-6.

    **Returns:** a `HypergradientReport`: `assert report.agrees, report`.

    **Raises:** `ValueError` and `TypeError` as `mk.hypergradient`, for a `tolerance` that is not positive, and for an
    `against` that is no sequence of adjoints.

    >>> import jax.numpy as jnp, metakit as mk
    >>> problem = mk.Bilevel(
    ...     inner=lambda w, hyper, data, step: jnp.sum((w - data) ** 2 * hyper),
    ...     outer=lambda w, hyper, data: jnp.sum(jnp.sin(w)),
    ...     solver=mk.inner.SGD(0.1),
    ...     num_steps=3,
    ... )
    >>> report = mk.check_hypergradient(problem, jnp.ones(2), jnp.zeros(2), jnp.ones(2), against=())
    >>> report.agrees
    True
    """
    check_problem(problem)
    if not isinstance(against, Sequence) or not all(isinstance(other, AbstractAdjoint) for other in against):
        raise TypeError(f"against must be a sequence of adjoints, such as (mk.inner.Unrolled(),), got {against!r}.")
    require_number("tolerance", tolerance)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}; 1e-6 is the default.")
    with jax.enable_x64(True):
        problem, hyper, params, data = _float64((problem, hyper, params, data))
        adjoint = resolve(adjoint, problem, hyper, params, data)
        value, gradient, _ = hypergradient(problem, hyper, params, data, adjoint=adjoint)
        plain = _shifted(problem, adjoint, hyper, params)
        others = {
            _name(other): hypergradient(plain, hyper, params, data, adjoint=other).gradient
            for other in against
            if _name(other) != _name(adjoint)
        }
        floating, static = eqx.partition(hyper, eqx.is_inexact_array)

        @jax.jit
        def outer(floating: Any) -> Any:
            whole = eqx.combine(floating, static)
            return plain.outer(solve(plain, Unrolled(), whole, params, data).params, whole, data)

        # Below this, in the unit of a gradient, numbers are rounding: relative errors of zeros would mean nothing.
        floor = 1e-10 * max(float(jnp.abs(value)), float(global_norm(gradient)))
        rows = _rows(outer, floating, gradient, others, floor)
    return HypergradientReport(_name(adjoint), tolerance, tuple(rows))


def _rows(
    outer: Callable[[Any], Any], floating: Any, gradient: Any, others: dict[str, Any], floor: float
) -> list[HypergradientRow]:
    rows = []
    flat, structure = jax.tree_util.tree_flatten_with_path(floating)
    leaves = [leaf for _, leaf in flat]
    slopes = jax.tree.leaves(gradient)
    for i, ((path, leaf), slope) in enumerate(zip(flat, slopes, strict=True)):
        name = jax.tree_util.keystr(path) or "hyper"
        # Normal, so that the expected square of its product with the slope is the slope's squared norm.
        direction = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), leaf.shape, leaf.dtype)
        directions = [direction if j == i else jnp.zeros_like(other) for j, other in enumerate(leaves)]
        along = jax.tree.unflatten(structure, directions)
        product, size = float(jnp.sum(slope * direction)), float(jnp.linalg.norm(jnp.ravel(slope)))

        difference, doubt = _difference(outer, floating, along, max(float(jnp.sqrt(jnp.mean(leaf**2))), 1e-2))
        scale = max(abs(difference), size, floor)
        rows.append(HypergradientRow(name, "differences", abs(product - difference) / scale, doubt / scale))

        _, forward = jax.jvp(outer, (floating,), (along,))
        rows.append(
            HypergradientRow(name, "jvp", abs(product - float(forward)) / max(abs(float(forward)), size, floor), 0.0)
        )

        for other, tree in others.items():
            expected = jax.tree.leaves(tree)[i]
            error = float(jnp.linalg.norm(jnp.ravel(slope - expected)))
            scale = max(float(jnp.linalg.norm(jnp.ravel(expected))), size, floor)
            rows.append(HypergradientRow(name, other, error / scale, 0.0))
    return rows


def _difference(outer: Callable[[Any], Any], at: Any, along: Any, size: float) -> tuple[float, float]:
    """The directional derivative by the best of several steps, and how far its neighbour differs."""

    def value(scale: float) -> float:
        return float(outer(jax.tree.map(lambda leaf, d: leaf + scale * d, at, along)))

    def estimate(h: float) -> float:
        return (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)

    estimates = [estimate(size * step) for step in _STEPS]
    doubts = [abs(a - b) for a, b in itertools.pairwise(estimates)]
    best = min(range(len(doubts)), key=lambda i: float("inf") if doubts[i] != doubts[i] else doubts[i])
    return estimates[best + 1], doubts[best]


def _shifted(problem: Bilevel, adjoint: AbstractAdjoint, hyper: Any, params: Any) -> Bilevel:
    """The problem that the adjoint solves, without the steps that rounding a decay would put into the differences."""
    if not isinstance(adjoint, Reversible):
        return problem
    solver = solver_of(problem, hyper)
    effective = adjoint.effective(solver, start_of(problem, hyper, params))
    floats = [eqx.filter(tree, eqx.is_inexact_array) for tree in (effective, solver)]
    shift = jax.tree.map(jnp.subtract, *floats)

    def shifted(hyper: Any) -> Any:
        floating, others = eqx.partition(solver_of(problem, hyper), eqx.is_inexact_array)
        return eqx.combine(jax.tree.map(jnp.add, floating, shift), others)

    return Bilevel(problem.inner, problem.outer, shifted, problem.num_steps, problem.init)


def _float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, tree)


def _name(adjoint: AbstractAdjoint) -> str:
    """Its class, with whatever differs from the class's defaults: two of one class may stand side by side."""
    return repr(adjoint).removesuffix("()")
