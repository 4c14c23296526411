"""What the next training step needs, and nothing else."""

import contextlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from metakit._hyperparameter import marks, trainable as _trainable
from metakit._static import is_equinox_layer
from metakit._tree import any_deleted
from metakit._typecheck import typed
from metakit._types import PRNGKey
from metakit._wording import describe


class TrainState(eqx.Module):
    """What the next training step needs.

    **Arguments:** made by `init`.

    - `learner`: the module that training improves.
    - `opt_state`: the outer optimiser's state, over the trainable leaves only.
    - `step`: how many steps have been taken, a scalar.
    - `key`: the key of the whole run. It never changes: step $s$ uses `fold_in(key, s)`, so a resumed run is
      the same run.
    - `moves`: whether training moves each leaf of the learner, in flattening order; static.

    >>> import jax, jax.numpy as jnp, optax, metakit as mk
    >>> state = mk.train.init(jnp.ones(2), optax.sgd(0.1), key=jax.random.key(0))
    >>> int(state.step), state.moves
    (0, (True,))
    """

    learner: Any
    opt_state: Any
    step: Int[Array, ""]
    key: PRNGKey
    moves: tuple[bool, ...] = eqx.field(static=True)

    @property
    def mask(self) -> Any:
        """`moves` as a tree of the learner's structure: a filter for `eqx.partition`."""
        return jax.tree.unflatten(jax.tree.structure(self.learner), self.moves)


def _own(leaf: Any) -> Any:
    """A strongly typed copy.

    A copy, because `run_steps` donates its state: without one the user's learner, or an optimiser
    state that holds the parameters themselves, would be deleted under their hands.
    """
    if not eqx.is_array(leaf):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jnp.copy(leaf)
    return jnp.array(leaf, dtype=leaf.dtype, copy=True)


@contextlib.contextmanager
def others_promotion() -> Iterator[None]:
    """JAX's ordinary promotion rules, for code that is not ours.

    Optax mixes Python floats with integer counts (`decay**count` in its bias correction), which fails where
    a user has asked for strict promotion.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def own(tree: Any) -> Any:
    """A tree that shares no buffer with the one given, so that donating either leaves the other intact."""
    return jax.tree.map(_own, tree)


@typed
def init(
    learner: Any,
    optimiser: optax.GradientTransformation,
    *,
    key: PRNGKey,
    trainable: Any = _trainable,
) -> TrainState:
    """The state before the first step.

    **Arguments:**

    - `learner`: any Equinox module or PyTree. It is copied, so it stays usable after training.
    - `optimiser`: any optax transformation; its state covers the trainable leaves only.
    - `key`: of the whole run: tasks and whatever randomness the algorithm needs.
    - `trainable`: a tree of booleans, `True` on the leaves to move, or a function from the learner to one, such as
      `mk.inner.select.all_but(lambda learner: learner.backbone)`; the default, `mk.trainable`, is every
      floating-point array. Numbers in `mk.fixed` and frozen batch statistics never move, whatever it says. Leaves
      that are not moved stay identical to the bit.

    **Returns:** a `TrainState`.

    **Raises:** `ValueError` when `trainable` gives another structure, marks what is not a floating-point
    array, or nothing that may move; `TypeError` for a Python float beside the weights, which nothing would train.

    >>> import jax, jax.numpy as jnp, optax, metakit as mk
    >>> learner = {"weight": jnp.ones(2), "rate": mk.fixed(0.4)}
    >>> init(learner, optax.adam(1e-3), key=jax.random.key(0)).moves
    (False, True)
    """
    _refuse_python_floats(learner)
    marked, structure = jax.tree.leaves(marks(trainable, learner)), jax.tree.structure(learner)
    for (path, leaf), moved in zip(jax.tree.leaves_with_path(learner), marked, strict=True):
        if moved and not eqx.is_inexact_array(leaf):
            raise ValueError(
                f"trainable marks learner{jax.tree_util.keystr(path)}, which is {describe(leaf)} "
                "and has no gradient; only floating-point arrays can be trained."
            )
    may_move = jax.tree.leaves(_trainable(learner))
    moves = tuple(bool(moved) and free for moved, free in zip(marked, may_move, strict=True))
    if not any(moves):
        raise ValueError(
            "trainable marks no leaf of the learner that may move, so there is nothing to train. Numbers in mk.fixed "
            "never move; a learner without weights needs at least one mk.learned(...) hyperparameter."
        )
    with others_promotion():
        opt_state = optimiser.init(eqx.filter(learner, jax.tree.unflatten(structure, moves)))
    state = TrainState(learner, opt_state, jnp.zeros((), jnp.int32), key, moves)
    return own(state)


def _refuse_python_floats(learner: Any) -> None:
    # eqx.nn.Dropout keeps its rate so, and means it.
    for path, leaf in jax.tree.leaves_with_path(learner, is_leaf=is_equinox_layer):
        if isinstance(leaf, float | np.floating):
            raise TypeError(
                f"learner{jax.tree_util.keystr(path)} is {describe(leaf)}, a number that JAX takes no gradient of, so "
                "training would never move it. Write mk.learned(...) for a number that is trained, mk.fixed(...) for "
                "one that is not, or declare the field eqx.field(static=True)."
            )


def require_unused(state: TrainState) -> None:
    """A `ValueError` for a state whose memory a call of `run_steps` took."""
    if any_deleted(state):
        raise ValueError(
            "state was used before: run_steps and fit take the memory of the state that they are given. Go on with the "
            "one that they return, as in state, diagnostics = mk.train.run_steps(algorithm, optimiser, state, ...)."
        )


def require_one(state: TrainState) -> None:
    """A `ValueError` for the states of several trainings, as `eqx.filter_vmap` over `init` makes them."""
    shape = jnp.shape(state.step)
    if shape != ():
        raise ValueError(
            f"state holds several trainings: its step has shape {list(shape)}. Map over them, as in "
            "eqx.filter_vmap(lambda state: mk.train.run_steps(algorithm, optimiser, state, ...))(states); fit and "
            "checkpoints take one at a time."
        )


@typed
def with_learner(state: TrainState, learner: Any) -> TrainState:
    """The same training, going on with a learner that differs in what is static or in the values of its leaves.

    A learner's static fields (MAML's adjoint, a policy) are part of the structure of the optimiser's state too, so
    replacing the learner alone would not fit. Use it between phases of training, such as MAML++'s from first to
    second order.

    **Arguments:** `state`; `learner`, with as many leaves as the state's, of the same shapes and dtypes.

    **Returns:** a new state: the step, the key and the optimiser's numbers are the old ones.

    **Raises:** `ValueError` for a learner with other leaves, or a state that was used before.

    >>> import jax, jax.numpy as jnp, optax, metakit as mk
    >>> state = mk.train.init({"weight": jnp.ones(2)}, optax.adam(0.1), key=jax.random.key(0))
    >>> mk.train.with_learner(state, {"weight": jnp.zeros(2)}).learner["weight"].tolist()
    [0.0, 0.0]
    """
    require_unused(state)
    before, after = (", ".join(map(describe, jax.tree.leaves(tree))) for tree in (state.learner, learner))
    if before != after:
        raise ValueError(f"the learner must have the state's leaves, {before}; got {after}. Start anew with init.")
    new = TrainState(learner, None, state.step, state.key, state.moves)
    old_structure, structure = (jax.tree.structure(eqx.filter(s.learner, s.mask)) for s in (state, new))

    def is_like_the_learner(node: Any) -> bool:
        return jax.tree.structure(node) == old_structure

    def restructure(node: Any) -> Any:
        return jax.tree.unflatten(structure, jax.tree.leaves(node)) if is_like_the_learner(node) else node

    opt_state = jax.tree.map(restructure, state.opt_state, is_leaf=is_like_the_learner)
    return own(TrainState(learner, opt_state, state.step, state.key, state.moves))
