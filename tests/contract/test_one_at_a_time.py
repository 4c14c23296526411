"""Each query asked alone, row by row of learners.py."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import ROWS

import metakit as mk

# Whose batch norm takes the query batch's statistics.
SHARING = {"maml_images", "relation"}
BY_DEFAULT = {"maml", "prototypical", "ridge", "conditional_neural_process", "relation", "versa"}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[] if row.name in BY_DEFAULT else [pytest.mark.slow])
        for row in ROWS
        if row.acting is None
    ],
)
def test_alone_is_a_loop_over_queries_and_changes_inductive_learners_in_nothing(row):
    """Catches a learner that cannot be asked about one query, a query that has another's answer or key, and an
    inductive learner that answers differently alone."""
    task, key = row.make_task(jax.random.key(5)), jax.random.key(2)
    adapted = eqx.filter_jit(row.algorithm.adapt)(row.make_learner(jax.random.key(0)), task.support, key)
    predict = eqx.filter_jit(row.algorithm.predict)
    alone = eqx.filter_jit(mk.evaluate.one_at_a_time(row.algorithm).predict)(adapted, task.query.x, key)

    each = [predict(adapted, task.query.x[i : i + 1], jax.random.fold_in(key, i)) for i in range(len(task.query.x))]
    loop = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each)
    assert close(alone, loop)
    if not row.random:
        assert close(alone, predict(adapted, task.query.x, key)) == (row.name not in SHARING)


def close(actual, expected):
    return all(
        np.allclose(a, b, rtol=1e-9, atol=1e-9)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    )
