"""MANN's three functions, and its accuracy by presentation."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from metakit._episode import Episode, Examples
from metakit._typecheck import typed
from metakit._types import PRNGKey, Scalar
from metakit.learners._labels import membership, nan_unless_classes, require_labels

from ._learner import MANN
from ._memory import State


class Adapted(eqx.Module):
    """What `adapt` learnt of one task: the state after its sequence, and the last label, which comes one step
    late.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.mann.MANN(2, 2, hidden=3, slots=5, width=2, heads=1, key=jax.random.key(0))
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.mann.adapt(learner, support).membership.tolist()
    [[True, False], [False, True]]
    """

    learner: MANN
    state: State
    membership: Bool[Array, "n way"]
    input_shape: tuple[int, ...] = eqx.field(static=True)


@typed
def adapt(learner: MANN, support: Examples, key: PRNGKey | None = None) -> Adapted:
    """Learn one task: run its labelled sequence, in the order given, from a blank memory.

    **Arguments:**

    - `learner`: a `MANN`.
    - `support`: labelled examples with `way`, ordered in time. A label outside `0..way-1` makes every
      prediction NaN; `mk.check_values` names it.
    - `key`: accepted and not used.

    **Returns:** an `Adapted` for `predict`, which continues from here.

    **Raises:** `ValueError` when `support.way` is missing or not the learner's, when `support.y` is not `[n]`
    integers, or when an example has another size than the learner was built for.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.mann.MANN(2, 2, hidden=3, slots=5, width=2, heads=1, key=jax.random.key(0))
    >>> support = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> mk.mann.adapt(learner, support).state.memory.shape
    (5, 2)
    """
    del key
    return _run(learner, support)[0]


@typed
def predict(adapted: Adapted, x: Shaped[Array, "query *in"], key: PRNGKey | None = None) -> Float[Array, "query way"]:
    """Score queries, each as the next step of the sequence; none sees another.

    **Arguments:**

    - `adapted`: from `adapt`.
    - `x`: queries, `[query, *in]`, of the support's shape and dtype.
    - `key`: accepted and not used.

    **Returns:** logits `[query, way]`.

    **Raises:** `ValueError` when `x` and the support differ in the shape of an example.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.mann.MANN(2, 2, hidden=3, slots=5, width=2, heads=1, key=jax.random.key(0))
    >>> adapted = mk.mann.adapt(learner, mk.Examples(jnp.eye(2), jnp.arange(2), way=2))
    >>> jax.jit(mk.mann.predict)(adapted, jnp.ones((3, 2))).shape
    (3, 2)
    """
    del key
    if x.shape[1:] != adapted.input_shape:
        raise ValueError(
            f"x must hold examples of the support's shape {list(adapted.input_shape)}, got {list(x.shape[1:])} in "
            f"x{list(x.shape)}. One query still needs the leading axis: x[None]."
        )
    learner, members = adapted.learner, adapted.membership
    last = jnp.broadcast_to(members[-1:], (x.shape[0], members.shape[1]))
    ask = eqx.filter_vmap(lambda learner, state, drive: learner.step(state, drive)[1], in_axes=(None, None, 0))
    logits = ask(learner, adapted.state, _drives(learner, x, last))
    return nan_unless_classes(logits, members)


@typed
def meta_loss(learner: MANN, task: Episode, key: PRNGKey | None = None) -> Scalar:
    r"""Mean loss over every step of the sequence.

    $$\frac{1}{n + m}\Bigl[\sum_{t=1}^{n} \ell(z_t, y_t) + \sum_{q=1}^{m} \ell(z_{n+1}(x_q), y_q)\Bigr]$$

    The support set is the sequence's first $n$ steps, each predicted before its label is seen, and every
    query is a step $n + 1$ of its own. With one query, as `mk.tasks.Sequences` draws them, that is the
    published loss: a sequence of 50 has 49 steps of support and one of query.

    **Arguments:**

    - `learner`: a `MANN`.
    - `task`: an `Episode` of labelled examples with `way`, the support set ordered in time. In random order,
      please: sorted by label, the sequence gives the labels away.
    - `key`: accepted and not used.

    **Returns:** a scalar, in nats per step for the default loss.

    **Raises:** what `adapt` and `predict` raise.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.mann.MANN(2, 2, hidden=3, slots=5, width=2, heads=1, key=jax.random.key(0))
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> jax.jit(mk.mann.meta_loss)(learner, mk.Episode(examples, examples)).shape
    ()

    **Source:** Santoro et al. 2016, section 2, https://proceedings.mlr.press/v48/santoro16.html, which sums
    over the steps where this takes their mean.
    """
    del key
    return learner.loss(*_outputs_and_labels(learner, task), reduction="mean")


class Diagnostics(eqx.Module):
    """How well each step of a sequence was predicted, and each presentation of a class.

    - `correct`: `[n + m]`, 1 where the highest logit was the label's, else 0; support steps, then queries.
    - `presentation`: `[n + m]`, int32: the how-many-th example of its class the step was, from 1.
    - `accuracy`: one number for each presentation from the first, as many as the sequence has steps for each
      class (rounded up); NaN where no class was presented that often. The first can only be guessed; the
      second is what papers call one-shot.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.mann.MANN(2, 2, hidden=3, slots=5, width=2, heads=1, key=jax.random.key(0))
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> jax.jit(mk.mann.diagnostics)(learner, mk.Episode(examples, examples)).presentation.tolist()
    [1, 1, 2, 2]
    """

    correct: Float[Array, " steps"]
    presentation: Int[Array, " steps"]
    accuracy: Float[Array, " presentations"]


@typed
def diagnostics(learner: MANN, task: Episode, key: PRNGKey | None = None) -> Diagnostics:
    """Accuracy by presentation, of one sequence.

    **Arguments:** as `meta_loss`.

    **Returns:** a `Diagnostics`. Over many sequences:
    `mk.evaluate.scores_of(eqx.Partial(mk.mann.diagnostics, learner), sampler, key, num_tasks=1000)`.

    **Raises:** as `meta_loss`.

    >>> import jax, jax.numpy as jnp, metakit as mk
    >>> learner = mk.mann.MANN(2, 2, hidden=3, slots=5, width=2, heads=1, key=jax.random.key(0))
    >>> examples = mk.Examples(jnp.eye(2), jnp.arange(2), way=2)
    >>> jax.jit(mk.mann.diagnostics)(learner, mk.Episode(examples, examples)).accuracy.shape
    (2,)

    **Source:** Santoro et al. 2016, table 1, https://proceedings.mlr.press/v48/santoro16.html
    """
    del key
    logits, labels = _outputs_and_labels(learner, task)
    finite = ~jnp.any(jnp.isnan(logits), axis=1)
    right = (jnp.argmax(logits, axis=1).astype(labels.dtype) == labels) & finite

    steps = membership(task.support.y, learner.way).astype(jnp.int32)
    queries = membership(task.query.y, learner.way).astype(jnp.int32)
    # Queries are alternatives: none counts as presented before another.
    before = jnp.cumsum(steps, axis=0)
    so_far = jnp.concatenate([before, before[-1:] + queries])
    own = jnp.concatenate([steps, queries])
    presentation = jnp.sum(so_far * own, axis=1, dtype=jnp.int32)

    count = math.ceil(labels.shape[0] / learner.way)
    is_kth = presentation[:, None] == jnp.arange(1, count + 1, dtype=jnp.int32)[None]
    is_kth = is_kth.astype(logits.dtype)
    correct = right.astype(logits.dtype)
    accuracy = jnp.sum(is_kth * correct[:, None], axis=0) / jnp.sum(is_kth, axis=0)
    return Diagnostics(correct, presentation, accuracy)


def _run(learner: MANN, support: Examples) -> tuple[Adapted, Float[Array, "n way"]]:
    """The state after a labelled sequence, and the logits of its steps."""
    way = require_labels(support, "MANN")
    if way != learner.way:
        raise ValueError(
            f"support.way must be {learner.way}, the classes that this MANN was built for, got {way}. Its labels are "
            "inputs of the network, so another number of classes needs a network of its own."
        )
    members = membership(support.y, way)
    # Labels come one step late, and none before the first.
    offset = jnp.concatenate([jnp.zeros_like(members[:1]), members[:-1]])
    drives = _drives(learner, support.x, offset)
    state, logits = jax.lax.scan(lambda state, drive: learner.step(state, drive), learner.start(), drives)
    return Adapted(learner, state, members, support.x.shape[1:]), logits


def _outputs_and_labels(learner: MANN, task: Episode) -> tuple[Float[Array, "steps way"], Int[Array, " steps"]]:
    require_labels(task.query, "MANN", name="query")
    adapted, logits = _run(learner, task.support)
    queries = predict(adapted, task.query.x)
    return jnp.concatenate([logits, queries]), jnp.concatenate([task.support.y, task.query.y])


def _drives(learner: MANN, x: Shaped[Array, "n *in"], labels: Bool[Array, "n way"]) -> Float[Array, "n gates"]:
    """The inputs' part of the controller's gates, for all steps in one product."""
    size = math.prod(x.shape[1:])
    if size != learner.in_size or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must hold real examples of {learner.in_size} numbers, for which this MANN was built, got {size} in "
            f"{x.dtype}{list(x.shape)}. Build it with in_size={size}; pixels are divided by 255."
        )
    flat = x.reshape(x.shape[0], -1)
    return learner.controller.drive(jnp.concatenate([flat, labels.astype(flat.dtype)], axis=1))
