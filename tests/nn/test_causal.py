"""Causal convolutions, causal attention, and stacks of them: what an output may see, and both forms agreeing."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metakit as mk

KEY = jax.random.key(0)
LENGTH = 7


def draw(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def small_stack():
    """Attention, convolutions, attention: SNAIL's order, with few features."""
    keys = jax.random.split(KEY, 3)
    first = mk.nn.CausalAttention(3, 4, 2, key=keys[0])
    middle = mk.nn.TemporalConvolution(5, 2, length=LENGTH, key=keys[1])
    last = mk.nn.CausalAttention(middle.out_size, 4, 3, key=keys[2])
    return mk.nn.CausalSequence([first, middle, last], length=LENGTH)


LAYERS = {
    "convolution": lambda: mk.nn.CausalConv1d(3, 2, dilation=2, key=KEY),
    "dense": lambda: mk.nn.CausalDense(3, 2, dilation=2, key=KEY),
    "temporal": lambda: mk.nn.TemporalConvolution(3, 2, length=LENGTH, key=KEY),
    "attention": lambda: mk.nn.CausalAttention(3, 4, 2, key=KEY),
}
each = pytest.mark.parametrize("name", [*LAYERS, "stack"])
each_layer = pytest.mark.parametrize("name", LAYERS)


def build(name):
    return small_stack() if name == "stack" else LAYERS[name]()


def sees(layer, x):
    """`[t, s]`: whether the output at time t depends on the input at time s."""
    jacobian = jax.jit(jax.jacobian(layer))(x)
    return np.asarray(jnp.any(jacobian != 0, axis=(1, 3)))


# What an output sees


@each
def test_no_output_sees_anything_later(name):
    """T12. A softmax over the readers, padding on both sides, or a mask that is off by one."""
    seen = sees(build(name), draw(LENGTH, 3))
    assert not np.triu(seen, 1).any()
    assert seen.diagonal().all()


@pytest.mark.parametrize("name", ["attention", "temporal", "stack"])
def test_every_output_sees_all_that_came_before(name):
    """T13. Dilations that leave a gap, or too few of them for the sequence."""
    np.testing.assert_array_equal(sees(build(name), draw(LENGTH, 3)), np.tri(LENGTH, dtype=bool))


@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 9])
def test_the_receptive_field_at_every_length(length):
    """T13. A logarithm that rounds the wrong way at or beside a power of two."""
    layer = mk.nn.TemporalConvolution(2, 1, length=length, key=KEY)
    assert [b.filter.dilation for b in layer.blocks] == [2**i for i in range(int(np.ceil(np.log2(length))))]
    assert sees(layer, draw(length, 2))[-1].all()


def test_dilations_as_printed_in_the_paper_see_even_lags_only():
    """T13. The flag ignored, or taken for the default: from dilation 2 on, odd lags are out of reach."""
    layer = mk.nn.TemporalConvolution(2, 1, length=8, paper_dilation=True, key=KEY)
    assert [b.filter.dilation for b in layer.blocks] == [2, 4, 8]
    lags = sees(layer, draw(8, 2))[-1][::-1]
    np.testing.assert_array_equal(lags, np.arange(8) % 2 == 0)


def test_a_longer_sequence_sees_a_window():
    """A receptive field larger or smaller than the documented 2^L tokens."""
    layer = mk.nn.TemporalConvolution(2, 1, length=4, key=KEY)
    np.testing.assert_array_equal(sees(layer, draw(7, 2))[-1], np.arange(7) >= 3)


# Values


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_a_causal_convolution_is_a_left_padded_convolution(dilation):
    """Taps swapped, or a shift by another number of tokens; the last dilation is longer than the sequence."""
    layer = mk.nn.CausalConv1d(3, 2, dilation=dilation, key=KEY)
    layer = eqx.tree_at(lambda conv: conv.bias, layer, draw(2, seed=3))
    x = draw(6, 3)
    kernel = jnp.stack([layer.earlier_weight, layer.weight])
    expected = jax.lax.conv_general_dilated(
        x[None], kernel, (1,), [(dilation, 0)], rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )
    np.testing.assert_allclose(layer(x), expected[0] + layer.bias[None], atol=1e-12)


def test_a_dense_block_by_hand():
    """The gate and the filter exchanged, or the input left out or appended on the other side."""
    block = mk.nn.CausalDense(3, 2, dilation=2, key=KEY)
    x = draw(5, 3)
    gate = 1 / (1 + np.exp(-np.asarray(block.gate(x))))
    expected = np.concatenate([x, np.tanh(np.asarray(block.filter(x))) * gate], axis=1)
    np.testing.assert_allclose(block(x), expected, atol=1e-12)


def test_attention_written_out():
    """A missing square root, or keys and values exchanged."""
    layer, x = mk.nn.CausalAttention(3, 4, 2, key=KEY), draw(5, 3)
    query, keys, values = (np.asarray(part(x)) for part in (layer.query, layer.key, layer.value))
    for t, row in enumerate(np.asarray(layer(x))):
        weights = np.exp(keys[: t + 1] @ query[t] / 2)
        np.testing.assert_allclose(row[:3], x[t], atol=1e-15)
        np.testing.assert_allclose(row[3:], weights / weights.sum() @ values[: t + 1], atol=1e-12)


def test_attention_of_each_reader_sums_to_one():
    """T14. A softmax over the wrong axis: with every value 1, every read must be 1, the first reader's its own."""
    layer = mk.nn.CausalAttention(3, 4, 2, key=KEY)
    ones = (jnp.zeros_like(layer.value.weight), jnp.ones_like(layer.value.bias))
    constant = eqx.tree_at(lambda a: (a.value.weight, a.value.bias), layer, ones)
    np.testing.assert_allclose(constant(draw(6, 3))[:, 3:], jnp.ones((6, 2)), atol=1e-15)
    x = draw(6, 3)
    np.testing.assert_allclose(layer(x)[0, 3:], layer.value(x[:1])[0], atol=1e-15)


def test_no_convolution_is_emitted():
    """A convolution primitive, which becomes a grouped one as soon as tasks have weights of their own."""
    program = str(jax.make_jaxpr(small_stack())(draw(LENGTH, 3)))
    assert "conv_general_dilated" not in program
    assert "dot_general" in program


# Token by token


@each_layer
def test_a_layer_steps_as_it_reads(name):
    """A past that is read one token too early, or that is not written."""
    layer, x = LAYERS[name](), draw(LENGTH, 3)
    past, whole = eqx.filter_jit(lambda layer, x: layer.read(x))(layer, x)

    def step(carry, token):
        past, position = carry
        past, y = layer.step(past, token, position)
        return (past, position + 1), y

    empty = jax.tree.map(jnp.zeros_like, past)
    (stepped, _), outputs = jax.lax.scan(step, (empty, jnp.zeros((), jnp.int32)), x)
    np.testing.assert_allclose(outputs, whole, atol=1e-13)
    for a, b in zip(jax.tree.leaves(stepped), jax.tree.leaves(past), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@eqx.filter_jit
def steps(stack, cache, x):
    return jax.lax.scan(lambda cache, token: stack.step(cache, token), cache, x)


@eqx.filter_jit
def read(stack, x):
    return stack.read(x)


def test_step_by_step_equals_the_whole_sequence():
    """A policy that acts on other activations than it is trained on: values, caches and every gradient."""
    stack, x = small_stack(), draw(LENGTH, 3)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def at_once(both):
        stack, x = both
        return jnp.sum(jnp.sin(stack(x))), (stack.read(x)[0], stack(x))

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def one_by_one(both):
        stack, x = both
        cache, outputs = steps(stack, stack.start(), x)
        return jnp.sum(jnp.sin(outputs)), (cache, outputs)

    for a, b in zip(jax.tree.leaves(at_once((stack, x))), jax.tree.leaves(one_by_one((stack, x))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("first", [1, 5])
def test_reading_then_stepping_goes_on(first):
    """A cache whose position or rows do not follow from how much was read."""
    stack, x = small_stack(), draw(LENGTH, 3)
    cache, begun = read(stack, x[:first])
    _, rest = steps(stack, cache, x[first:])
    np.testing.assert_allclose(jnp.concatenate([begun, rest]), read(stack, x)[1], atol=1e-13)


def test_a_rewound_cache_forgets():
    """Rows past the position that are still attended to, or a convolution that reaches for them."""
    stack, x, other = small_stack(), draw(LENGTH, 3), draw(LENGTH, 3, seed=5)
    cache, _ = read(stack, x)
    for position in (0, 3):
        changed = jnp.concatenate([x[:position], other[position:]])
        _, outputs = steps(stack, mk.nn.rewind(cache, jnp.asarray(position)), changed[position:])
        np.testing.assert_allclose(outputs, read(stack, changed)[1][position:], atol=1e-13)


def test_tokens_asked_against_one_cache_do_not_see_each_other():
    """Queries of one episode that are written into one past."""
    stack, x, queries = small_stack(), draw(4, 3), draw(3, 3, seed=6)
    cache, _ = read(stack, x)
    ask = eqx.filter_jit(eqx.filter_vmap(lambda stack, cache, q: stack.step(cache, q)[1], in_axes=(None, None, 0)))
    for query, output in zip(queries, ask(stack, cache, queries), strict=True):
        np.testing.assert_allclose(output, read(stack, jnp.concatenate([x, query[None]]))[1][-1], atol=1e-13)


def test_a_token_too_many_is_not_a_number():
    """A cache that is full and overwrites its last row, with plausible outputs."""
    stack, x = small_stack(), draw(LENGTH + 1, 3)
    cache, outputs = steps(stack, stack.start(), x)
    assert jnp.isfinite(outputs[:LENGTH]).all()
    assert jnp.isnan(outputs[LENGTH]).all()
    assert int(cache.position) == LENGTH + 1
    part, _ = read(stack, x[:2])
    np.testing.assert_allclose(jax.jit(lambda token: stack.step(part, token)[1])(x[2]), outputs[2], atol=1e-13)
    assert jnp.isnan(jax.jit(lambda token: stack.step(cache, token)[1])(x[0])).all()  # a cache that is a constant
    with pytest.raises(ValueError, match=f"cache is full: it holds length={LENGTH} tokens"):
        stack.step(eqx.tree_at(lambda c: c.position, cache, jnp.asarray(LENGTH)), x[0])


def test_gradient_is_the_central_difference():
    """A stopped gradient in the gates, the mask or the cache."""
    stack, x = small_stack(), draw(LENGTH, 3)
    random = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), stack)

    @jax.jit
    def loss(distance):
        moved = jax.tree.map(lambda p, v: p + distance * v, stack, direction)
        return jnp.sum(jnp.sin(steps(moved, moved.read(x[:4])[0], x[4:])[1]))

    def central(h):
        return (loss(jnp.asarray(h)) - loss(jnp.asarray(-h))) / (2 * h)

    # Richardson: the error of the plain difference, of order h², cancels.
    difference = (4 * central(5e-4) - central(1e-3)) / 3
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(())), difference, rtol=1e-7)


def test_many_sequences_with_weights_of_their_own():
    """A layer that mixes a mapped axis with time."""
    stacks = eqx.filter_vmap(lambda key: mk.nn.TemporalConvolution(3, 2, length=4, key=key))(jax.random.split(KEY, 2))
    x = draw(2, 4, 3)
    together = eqx.filter_jit(eqx.filter_vmap(lambda layer, x: layer(x)))(stacks, x)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], stacks)
        np.testing.assert_allclose(together[i], one(x[i]), atol=1e-13)


def test_single_precision_stays_single():
    """A constant or an empty cache of another dtype, which strict promotion refuses."""
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), small_stack())
    x = draw(LENGTH, 3).astype(jnp.float32)
    assert read(single, x)[1].dtype == jnp.float32
    cache, outputs = steps(single, single.start(), x)
    assert outputs.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.past)} == {jnp.dtype("float32")}


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mk.nn.CausalConv1d(3, 2, dilation=0, key=KEY), r"at least 1, got 3, 2 and 0"),
        (lambda: mk.nn.CausalDense(0, 2, key=KEY), r"at least 1, got 0, 2 and 1"),
        (lambda: mk.nn.TemporalConvolution(3, 2, length=1, key=KEY), r"at least 2 for a temporal.*got 1"),
        (lambda: mk.nn.CausalAttention(3, 0, 2, key=KEY), r"at least 1, got 3, 0 and 2"),
        (lambda: mk.nn.CausalSequence([], length=3), r"at least one causal layer"),
        (lambda: mk.nn.CausalSequence([LAYERS["dense"]()], length=0), r"at least 1, got 0"),
        (
            lambda: mk.nn.CausalSequence([LAYERS["dense"](), LAYERS["attention"]()], length=3),
            r"layer 0 gives 5 features and layer 1 takes 3.*in_size=5",
        ),
        (lambda: small_stack()(draw(LENGTH + 1, 3)), r"at most length=7 tokens, got 8 in x\[8, 3\]"),
        (lambda: small_stack().read(draw(LENGTH + 1, 3)), r"at most length=7 tokens, got 8"),
        (lambda: small_stack()(draw(4, 2)), r"x must be one sequence, \[t, 3\].*got \[4, 2\]"),
        (lambda: small_stack()(draw(2, 4, 3)), r"x must be one sequence, \[t, 3\].*got \[2, 4, 3\]"),
        (lambda: small_stack().step(small_stack().start(), draw(2)), r"\[t, 3\].*got \[1, 2\]"),
        (lambda: LAYERS["dense"]()(draw(4)), r"\[t, 3\] for this CausalDense, got \[4\]"),
    ],
)
def test_refused(make, message):
    """Sizes that broadcast, and sequences longer than the model was built for."""
    with pytest.raises(ValueError, match=message):
        make()
