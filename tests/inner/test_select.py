"""Which leaves adapt."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import metakit as mk
from metakit.inner import select


class Network(eqx.Module):
    first: mk.nn.Linear
    norm: mk.nn.BatchStatNorm
    head: mk.nn.Linear
    calls: jax.Array
    activation: object

    def __init__(self):
        self.first = mk.nn.Linear(2, 3, key=jax.random.key(0))
        self.norm = mk.nn.BatchStatNorm(3)
        self.head = mk.nn.Linear(3, 1, key=jax.random.key(1))
        self.calls = jnp.zeros((), int)
        self.activation = jnp.tanh

    def __call__(self, x):
        return self.head(self.activation(self.norm(self.first(x))))


MODEL = Network()
FIRST, NORM, HEAD = {"first.weight", "first.bias"}, {"norm.scale", "norm.bias"}, {"head.weight", "head.bias"}


def chosen(filter_function, model=MODEL):
    adapted, frozen = select.partition(model, filter_function)
    flat, _ = jax.tree_util.tree_flatten_with_path(adapted)
    assert len(flat) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(model))
    return {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat}


@pytest.mark.parametrize(
    ("filter_function", "expected"),
    [
        (select.everything, FIRST | NORM | HEAD),
        (select.head_only, HEAD),
        (select.body_only, FIRST | NORM),
        (select.without_norm, FIRST | HEAD),
        (select.only(lambda m: m.first), FIRST),
        (select.only(lambda m: (m.head.bias, m.first)), FIRST | {"head.bias"}),
        (select.all_but(lambda m: m.first.weight), NORM | HEAD | {"first.bias"}),
        (select.by_name("*.bias"), {"first.bias", "norm.bias", "head.bias"}),
        (select.by_name("head.*", "first.bias"), HEAD | {"first.bias"}),
        (select.intersection(select.body_only, select.without_norm), FIRST),
        (lambda m: True, FIRST | NORM | HEAD),
    ],
)
def test_filters(filter_function, expected):
    """Catches a filter that takes the wrong leaves, an integer counter or a function."""
    assert chosen(filter_function) == expected


def test_weight_norm_wraps_weights_and_is_not_a_norm():
    """Catches without_norm freezing the very layer that `eqx.nn.WeightNorm` wraps."""
    wrapped = eqx.nn.WeightNorm(eqx.nn.Linear(2, 2, key=jax.random.key(0)))
    assert len(chosen(select.without_norm, wrapped)) == len(chosen(select.everything, wrapped))
    with pytest.raises(ValueError, match="selects no"):
        select.partition(eqx.nn.LayerNorm(3), select.without_norm)


@pytest.mark.parametrize(
    ("filter_function", "model", "message"),
    [
        (lambda m: jax.tree.map(lambda _: False, m), MODEL, r"selects no floating-point array of Network.*everything"),
        (select.head_only, mk.nn.BatchStatNorm(2), r"attribute head of BatchStatNorm, but it has none.*select\.only"),
        (select.body_only, mk.nn.conv4_32(None, key=jax.random.key(0)), r"its head is None.*all_but"),
        (select.by_name("haed.*"), MODEL, r"'haed\.\*' matches no parameter\. Did you mean 'head\.bias'"),
        (select.only(lambda m: m.tail), MODEL, r"where found no such part in Network"),
        (select.only(lambda m: m.norm.statistics), MODEL, r"holds no leaf"),
        (lambda m: {"first": True}, MODEL, r"must return a tree of bools of the model's structure"),
    ],
)
def test_bad_filters(filter_function, model, message):
    """Catches an inner loop that silently adapts nothing."""
    with pytest.raises(ValueError, match=message):
        select.partition(model, filter_function)
