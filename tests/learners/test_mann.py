"""MANN: its memory against a loop in NumPy, usage, time offset, presentations, and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _metric import random_episode, random_examples

import metakit as mk
from metakit.learners import mann
from metakit.learners.mann import MANN, adapt, diagnostics, meta_loss, predict

KEY = jax.random.key(0)


def small(way=3, **options):
    return MANN(4, way, **({"hidden": 5, "slots": 7, "width": 3, "heads": 2, "key": KEY} | options))


@eqx.filter_jit
def run(learner, support):
    return adapt(learner, support)


@eqx.filter_jit
def outputs(learner, support, x):
    return predict(adapt(learner, support), x)


compiled_loss, compiled_diagnostics = eqx.filter_jit(meta_loss), eqx.filter_jit(diagnostics)


def sequence(length, way=3, seed=0):
    labels = np.random.default_rng(seed).integers(0, way, length)
    return random_examples(jax.random.key(seed), list(labels), way)


# The memory


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_loops(learner, x, labels):
    """The logits of every step and the last memory, from the equations, with a loop over heads and slots."""
    w = jax.tree.map(np.asarray, eqx.filter(learner, eqx.is_array))
    heads, slots, width, hidden = learner.heads, learner.slots, learner.width, learner.controller.size
    memory, usage = np.full((slots, width), 1e-6), np.zeros(slots)
    usage[0] = 1
    read_weights = np.zeros((heads, slots))
    read_weights[:, 0] = 1
    h, c, r = np.zeros(hidden), np.zeros(hidden), np.zeros(heads * width)
    logits = []
    for t, row in enumerate(np.asarray(x)):
        label = np.zeros(learner.way)
        if t > 0:
            label[labels[t - 1]] = 1
        gates = np.concatenate([row, label]) @ w.controller.input_weight + w.controller.bias
        i, f, g, o = np.split(gates + np.concatenate([h, r]) @ w.controller.recurrent_weight, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        least = np.argsort(usage, kind="stable")[:heads]
        write_weights = np.zeros((heads, slots))
        for head in range(heads):
            gate = sigmoid(h @ w.gate.weight[:, head] + w.gate.bias[head])
            write_weights[head] = gate * read_weights[head]
            write_weights[head, least[head]] += 1 - gate
        memory = memory.copy()
        memory[least[0]] = 0
        writer = learner.key if learner.addition is None else learner.addition
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            a = np.tanh(h @ np.asarray(writer.weight)[:, part] + np.asarray(writer.bias)[part])
            memory += np.outer(write_weights[head], a)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            k = np.tanh(h @ w.key.weight[:, part] + w.key.bias[part])
            likeness = np.array([k @ m / np.linalg.norm(k) / np.linalg.norm(m) for m in memory])
            read_weights[head] = np.exp(likeness) / np.exp(likeness).sum()
            r[part] = read_weights[head] @ memory
        usage = float(learner.decay.value) * usage + read_weights.sum(0) + write_weights.sum(0)
        logits.append(np.concatenate([h, r]) @ w.output.weight + w.output.bias)
    return np.array(logits), memory, usage


@pytest.mark.parametrize("write", ["addition", "key"])
def test_the_memory_by_loops(write):
    """A read before the write, the wrong slot erased, a vector written by another head, or labels in time.

    Twelve steps of two heads write to seven slots, so slots are used again.
    """
    learner, support = small(write=write), sequence(12)
    query = random_examples(jax.random.key(9), [1], 3)
    x, labels = jnp.concatenate([support.x, query.x]), np.append(support.y, 1)
    logits, _, _ = by_loops(learner, x, labels)
    losses = mk.losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), reduction="none")
    np.testing.assert_allclose(compiled_loss(learner, mk.Episode(support, query)), losses.mean(), rtol=1e-10)
    np.testing.assert_allclose(outputs(learner, support, query.x)[0], logits[-1], atol=1e-10)
    _, memory, usage = by_loops(learner, support.x, labels)
    state = run(learner, support).state
    np.testing.assert_allclose(state.memory, memory, atol=1e-10)
    np.testing.assert_allclose(state.usage, usage, atol=1e-10)


def test_usage_adds_up():
    """T27. Weights that do not sum to 1, usage that forgets a head, or decays twice: 4 heads, 30 steps."""
    learner = small(heads=4, slots=12, decay=0.95)
    state = run(learner, sequence(30)).state
    np.testing.assert_allclose(jnp.sum(state.usage), 0.95**30 + 8 * (1 - 0.95**30) / 0.05, rtol=1e-13)  # 125.87243653
    np.testing.assert_allclose(jnp.sum(state.read_weights, axis=1), jnp.ones(4), atol=1e-12)


def with_gate(learner, logit):
    gate = (jnp.zeros_like(learner.gate.weight), jnp.full_like(learner.gate.bias, logit))
    return eqx.tree_at(lambda m: (m.gate.weight, m.gate.bias), learner, gate)


@pytest.mark.parametrize(("logit", "written"), [(50.0, [0]), (-800.0, [1, 2])])
def test_where_the_gate_sends_the_first_write(logit, written):
    """T27. A gate upside down: at 1 the slot just read (at the start the first), at 0 the least used ones.

    At the start the first slot counts as used, so slots 1 and 2 are the two least used, and 1 is erased.
    """
    learner = with_gate(small(), logit)
    blank = learner.start()
    state, _ = learner.step(blank, learner.controller.drive(jnp.ones((1, 7)))[0])
    erased = blank.memory.at[1].set(0)
    changed = jnp.any(jnp.abs(state.memory - erased) > 1e-9, axis=1)
    assert np.flatnonzero(changed).tolist() == written


def test_the_choice_of_slots_follows_usage():
    """The most used slots overwritten, or usage that never changes: with the gate at 0 each step takes two new
    slots, so after three steps all seven but the first are written."""
    state = run(with_gate(small(), -800.0), sequence(3)).state
    filled = jnp.any(jnp.abs(state.memory) > 1e-3, axis=1)
    assert filled.tolist() == [False] + [True] * 6


# Time


def test_every_step_is_predicted_from_those_before_it_and_nothing_else():
    """T27. A label that is seen in time, or a loss that leaves steps out: each step of the loss must equal
    `predict` after the steps before it, which has not been given its label."""
    learner, whole = small(), sequence(4)
    losses = []
    first = learner.step(learner.start(), learner.controller.drive(jnp.append(whole.x[0], jnp.zeros(3))[None])[0])[1]
    losses.append(mk.losses.cross_entropy(first[None], whole.y[:1], reduction="mean"))
    for t in range(1, 4):
        before = mk.Examples(whole.x[:t], whole.y[:t], way=3)
        logits = outputs(learner, before, whole.x[t : t + 1])
        losses.append(mk.losses.cross_entropy(logits, whole.y[t : t + 1], reduction="mean"))
    support, query = (mk.Examples(whole.x[part], whole.y[part], way=3) for part in (slice(3), slice(3, 4)))
    loss = compiled_loss(learner, mk.Episode(support, query))
    np.testing.assert_allclose(loss, jnp.mean(jnp.stack(losses)), atol=1e-12)


def test_queries_do_not_see_each_other():
    """Queries run as one sequence, in which the second would follow the first."""
    episode, learner = random_episode(KEY), small()
    together = outputs(learner, episode.support, episode.query.x)
    for i, row in enumerate(together):
        np.testing.assert_allclose(outputs(learner, episode.support, episode.query.x[i : i + 1])[0], row, atol=1e-12)


def test_the_last_label_arrives_with_the_query():
    """The last support label dropped: it comes one step late, which is with the query."""
    learner, support = small(), sequence(4)
    other = mk.Examples(support.x, support.y.at[-1].set((support.y[-1] + 1) % 3), way=3)
    before, after = (outputs(learner, s, support.x[:2]) for s in (support, other))
    assert (np.abs(before - after).max(axis=1) > 1e-6).all()


# Presentations


def constant(way, favourite):
    """A MANN that always predicts one class."""
    learner = small(way=way)
    fixed = (jnp.zeros_like(learner.output.weight), 5.0 * jnp.eye(way)[favourite])
    return eqx.tree_at(lambda m: (m.output.weight, m.output.bias), learner, fixed)


def test_presentations_by_hand():
    """Presentations counted from 0, or across classes, or queries counted one after another."""
    support = random_examples(KEY, [0, 1, 0, 0], way=2)
    query = random_examples(KEY, [1, 0, 1], way=2)
    found = compiled_diagnostics(constant(2, 1), mk.Episode(support, query))
    assert found.presentation.tolist() == [1, 1, 2, 3, 2, 4, 2]
    assert found.correct.tolist() == [0, 1, 0, 0, 1, 0, 1]
    # First: classes 0 and 1. Second: class 0, and the two queries of class 1. Third and fourth: class 0.
    np.testing.assert_allclose(found.accuracy, [1 / 2, 2 / 3, 0, 0])


def test_a_presentation_that_did_not_happen_is_not_a_number():
    """An accuracy of 0 for a presentation that no class had, which would lower a mean."""
    support, query = random_examples(KEY, [0], way=1), random_examples(KEY, [0, 0], way=1)
    accuracy = compiled_diagnostics(constant(1, 0), mk.Episode(support, query)).accuracy
    np.testing.assert_array_equal(accuracy, [1, 1, jnp.nan])


def test_a_diverged_learner_is_never_right():
    """NaN logits whose argmax is class 0."""
    episode = random_episode(KEY)
    bad = eqx.tree_at(lambda m: m.output.bias, small(), jnp.full((3,), jnp.nan))
    assert not compiled_diagnostics(bad, episode).correct.any()


@pytest.mark.slow
def test_it_learns_to_bind_and_to_find_again():
    """A memory that cannot be trained to bind an image to the label that comes a step later: on sequences of unseen
    classes the second presentation of a class must be recognised, far better than by guessing."""
    image_key, noise_key = jax.random.split(jax.random.key(3))
    with jax.enable_x64(False):
        images = jax.random.bernoulli(image_key, 0.5, (2000, 1, 1, 4, 4))
        noise = jax.random.bernoulli(noise_key, 0.03, (2000, 8, 1, 4, 4))
        images = jnp.where(images ^ noise, 255, 0).astype("uint8")
        train, test = (mk.tasks.Sequences(mk.tasks.ImagePool(part), 2, 5) for part in (images[:1800], images[1800:]))
        outer, untrained = mk.train.adam(3e-3), MANN(16, 2, hidden=32, slots=16, width=16, heads=2, key=KEY)
        state = mk.train.init(untrained, outer, key=jax.random.key(1))
        state, _ = mk.train.run_steps(mann, outer, state, train, num_steps=2000, meta_batch=16, chunk=None)

        def accuracy(learner):
            scores = mk.evaluate.scores_of(eqx.Partial(diagnostics, learner), test, jax.random.key(2), num_tasks=1000)
            return [mk.evaluate.student_t(scores.accuracy[:, k]) for k in range(5)]

        before, after = accuracy(untrained), accuracy(state.learner)
    assert after[1].low > before[1].high
    # By elimination and from what is left to come, the first presentation can be guessed two times in three.
    assert after[0].high < 0.8
    assert after[1].low > 0.8


# Rows of the contract hold the gradient in double precision; this one the dtypes


def test_single_precision_under_64_bits():
    """A constant of the memory in another dtype, which strict promotion refuses."""
    single = lambda tree: jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf, tree
    )
    learner, rest = eqx.partition(small(), eqx.is_array)
    learner = eqx.combine(single(learner), rest)
    assert compiled_loss(learner, single(random_episode(KEY))).dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(heads=8), r"heads must be at most slots=7.*got 8"),
        (lambda: small(width=0), r"width must be at least 1, got 0"),
        (lambda: small(write="keys"), r"write='keys' is not known. Did you mean 'key'"),
        (lambda: small(decay=jnp.ones((2,))), r"decay must be one number, got shape \[2\]"),
        (lambda: adapt(small(way=2), sequence(4)), r"support\.way must be 2.*got 3"),
        (lambda: adapt(small(), mk.Examples(jnp.ones((3, 4)), jnp.arange(3))), r"support\.way is missing"),
        (lambda: adapt(small(), mk.Examples(jnp.ones((3, 4)), jnp.ones(3))), r"integer class labels for MANN"),
        (
            lambda: adapt(small(), mk.Examples(jnp.ones((3, 5)), jnp.arange(3), way=3)),
            r"examples of 4 numbers.*got 5.*in_size=5",
        ),
        (
            lambda: adapt(small(), mk.Examples(jnp.ones((3, 2, 2), "uint8"), jnp.arange(3), way=3)),
            r"real examples.*got 4 in uint8\[3, 2, 2\].*divided by 255",
        ),
        (lambda: predict(adapt(small(), sequence(4)), jnp.ones((2, 3))), r"support's shape \[4\], got \[3\]"),
        (lambda: predict(adapt(small(), sequence(4)), jnp.ones((4,))), r"support's shape \[4\], got \[\]"),
    ],
)
def test_refused(make, message):
    """Sizes and classes that the network was not built for, raw pixels, and labels that are none."""
    with pytest.raises(ValueError, match=message):
        make()


def test_images_are_flattened():
    """Pixels in another order than row by row."""
    learner, support = small(), sequence(4)
    images = mk.Examples(support.x.reshape(4, 1, 2, 2), support.y, way=3)
    flat, square = run(learner, support), run(learner, images)
    np.testing.assert_array_equal(flat.state.memory, square.state.memory)
