"""What went wrong for those who wrote learners of their own: each is refused in a sentence, or just works."""

import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metakit as mk
from metakit.train._static import static_parts

SGD = optax.sgd(0.1)


class LearnedLoss(eqx.Module):
    """A loss that is small wherever it likes."""

    scale: jax.Array

    def __call__(self, outputs, targets, *, reduction):
        return self.scale * mk.losses.squared_error(outputs, targets, reduction=reduction)


def network(activation=jnp.tanh):
    return mk.nn.MLP(1, 1, 4, 1, activation, key=jax.random.key(0))


def maml(activation=jnp.tanh, **options):
    options = {"inner": mk.inner.SGD(0.01), "num_steps": 2, "loss": mk.losses.squared_error} | options
    return mk.maml.MAML(network(activation), **options)


def start(learner, **options):
    return mk.train.init(learner, SGD, key=jax.random.key(0), **options)


# A loss that is trained and judges itself


@pytest.mark.parametrize(
    "make",
    [
        lambda loss, **options: maml(loss=loss, **options),
        lambda loss, **options: mk.meta_lstm.MetaLSTM(
            network(),
            update=mk.meta_lstm.LearnedUpdate(key=jax.random.key(1)),
            num_steps=2,
            loss=loss,
            second_order=True,
            **options,
        ),
    ],
    ids=["maml", "meta_lstm"],
)
def test_a_loss_that_is_trained_does_not_judge_itself(make):
    """Catches a meta-loss that falls to nothing while the error grows: the loss learned to be small."""
    loss = LearnedLoss(jnp.asarray(1.0))
    with pytest.raises(ValueError, match=r"the loss falls|meta-loss falls.*query_loss="):
        make(loss)
    learner = make(loss, query_loss=mk.losses.squared_error)
    algorithm = mk.maml if isinstance(learner, mk.maml.MAML) else mk.meta_lstm
    task = mk.tasks.Sinusoid()(jax.random.key(2))
    adapted = algorithm.adapt(learner, task.support)
    error = mk.losses.squared_error(adapted.model(task.query.x), task.query.y, reduction="mean")
    np.testing.assert_allclose(algorithm.meta_loss(learner, task), error, rtol=1e-12)
    gradient = eqx.filter_grad(algorithm.meta_loss)(learner, task)
    assert gradient.loss.scale != 0  # it is trained, by what it does to the inner loop
    make(eqx.tree_at(lambda l: l.scale, loss, mk.fixed(1.0)))  # one that stays where it is may judge


def test_maml_trains_a_loss_only_where_that_is_possible():
    """Catches a learned loss under first-order MAML, or Reptile, which would never move."""
    options = {"loss": LearnedLoss(jnp.asarray(1.0)), "query_loss": mk.losses.squared_error}
    with pytest.raises(ValueError, match="loss is learned, but FirstOrder gives no gradient"):
        maml(adjoint=mk.inner.FirstOrder(), **options)
    with pytest.raises(ValueError, match="loss has weights of its own, but Reptile's update"):
        mk.reptile.Reptile(network(), inner=mk.inner.SGD(0.01), num_steps=2, loss=options["loss"])
    with pytest.raises(TypeError, match="query_loss must be a function"):
        maml(query_loss="mse")


# Padding that is taken for data


def padded(way=None):
    x = jnp.arange(8.0)[:, None]
    y = jnp.arange(8) % way if way else x
    whole, some = mk.Examples(x, y, way=way), mk.MaskedExamples(x, y, jnp.arange(8) < 3, way=way)
    return mk.Episode(whole, some)


@pytest.mark.parametrize("way", [None, 2])
@pytest.mark.parametrize(
    ("algorithm", "learner"),
    [
        (mk.ridge, mk.ridge.Ridge(lambda x: x)),
        (mk.matching, mk.matching.Matching(lambda x: x)),
        (mk.evaluate.baselines.nearest_neighbour, None),
        (mk.evaluate.baselines.gradient_histograms, None),
    ],
    ids=["ridge", "matching", "nearest_neighbour", "gradient_histograms"],
)
def test_a_masked_query_set_is_refused(algorithm, learner, way):
    """Catches a mean over the padding of a query set, for real targets too: 3.8 became 5e11."""
    task = padded(way)
    if way is None and learner is None:
        return  # the baselines classify
    with pytest.raises(ValueError, match=r"query is a MaskedExamples, but .* knows no masks"):
        algorithm.meta_loss(learner, task)


def test_scores_and_calibration_refuse_a_masked_query_set():
    """Catches a metric that counts the padding."""
    learner, key = mk.ridge.Ridge(lambda x: x), jax.random.key(0)
    for way, metric in ((None, mk.metrics.mean_squared_error), (2, mk.metrics.accuracy)):
        with pytest.raises(ValueError, match=r"query is a MaskedExamples, but mk\.evaluate\.scores knows no masks"):
            mk.evaluate.scores(mk.ridge, learner, lambda _: padded(way), key, num_tasks=2, metrics={"m": metric})  # noqa: B023
    with pytest.raises(ValueError, match=r"query is a MaskedExamples, but mk\.evaluate\.calibration"):
        mk.evaluate.calibration(mk.ridge, learner, lambda _: padded(2), key, num_tasks=2)


def test_a_neural_process_honours_the_mask_of_its_queries():
    """Catches a loss, or a report, that averages over padding."""
    learner = mk.neural_process.NeuralProcess(1, 1, width=8, key=jax.random.key(0))
    task = padded()
    real = mk.Examples(task.query.x[:3], task.query.y[:3])
    short = mk.Episode(task.support, real)
    for function in (mk.neural_process.meta_loss, mk.neural_process.diagnostics):
        found, expected = (jax.tree.leaves(function(learner, one)) for one in (task, short))
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


# What training moves


class Own(eqx.Module):
    backbone: jax.Array
    head: jax.Array
    rate: mk.Hyperparameter


def own():
    return Own(jnp.ones(2), jnp.ones(3), mk.fixed(0.4))


def own_loss(learner, task, key=None):
    return learner.rate.value * task * (jnp.sum(learner.backbone**2) + jnp.sum(learner.head**2))


OWN = mk.MetaLearner(None, None, own_loss)
all_but_the_backbone = mk.inner.select.all_but(lambda learner: learner.backbone)


@pytest.mark.parametrize(
    "trainable",
    [all_but_the_backbone, mk.inner.select.everything, all_but_the_backbone(own())],
    ids=["a function", "everything", "a tree"],
)
def test_fixed_numbers_never_move_whatever_the_filter(trainable):
    """Catches a filter that says what is frozen, and so begins to train every published rate."""
    state = start(own(), trainable=trainable)
    assert state.mask.rate.value is False
    assert state.mask.head is True
    state, _ = mk.train.step(OWN, SGD, state, jnp.asarray([1.0, 2.0]))
    assert state.learner.rate.value == own().rate.value
    assert not np.array_equal(state.learner.head, own().head)
    moved = not np.array_equal(state.learner.backbone, own().backbone)
    assert moved == (trainable is mk.inner.select.everything)


def test_fixed_numbers_alone_are_nothing_to_train():
    """Catches a training that takes steps and moves nothing."""
    with pytest.raises(ValueError, match=r"nothing to train\. Numbers in mk\.fixed never move"):
        start(own(), trainable=mk.inner.select.only(lambda learner: learner.rate))


def test_trainable_is_a_function_or_a_tree_for_both_who_take_it():
    """Catches two forms of one argument."""
    tasks, gradients = jnp.asarray([1.0, 2.0]), []
    for trainable in (mk.trainable, mk.trainable(own())):
        assert start(own(), trainable=trainable).moves == (True, True, False)
        gradients.append(mk.sharding.meta_gradient(OWN, own(), tasks, trainable=trainable).gradient)
    assert eqx.tree_equal(*gradients)
    assert gradients[0].rate.value is None
    for call in (
        lambda trainable: start(own(), trainable=trainable),
        lambda trainable: mk.sharding.meta_gradient(OWN, own(), tasks, trainable=trainable),
    ):
        for wrong in ([True], lambda learner: True):
            with pytest.raises(ValueError, match=r"trainable must be a tree of booleans .* or a function"):
                call(wrong)


def test_a_tree_of_booleans_of_a_callable_learner_is_not_called():
    """Catches a mask that is run as if it were the function that makes one."""
    model = network()
    assert callable(mk.trainable(model))
    assert start(model, trainable=mk.trainable(model)).moves == start(model).moves


@pytest.mark.parametrize("number", [0.1, np.float64(0.1), np.float32(0.1)])
def test_a_python_float_beside_weights_is_refused(number):
    """Catches a number that has no gradient and so is never trained, in silence."""
    with pytest.raises(TypeError, match=r"learner\['rate'\]\['of'\] is .*Write mk.learned"):
        start({"weight": jnp.ones(2), "rate": {"of": number}})
    dropout = eqx.nn.Dropout(0.5)  # Equinox's own float, which is meant so
    assert start({"weight": jnp.ones(2), "dropout": dropout, "count": 3, "flag": True}).moves.count(True) == 1


def test_fixed_takes_numbers_alone():
    """Catches an error of JAX's about dtypes, where a module was to be frozen."""
    for make in (mk.fixed, mk.learned):
        with pytest.raises(TypeError, match=r"a number or an array of numbers, got a MLP.*select\.all_but"):
            make(network())


# Checkpoints


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda: maml(jax.nn.relu), r"\.model\.activation is jax\.numpy\.tanh there and jax\.nn\S*\.relu here"),
        (lambda: maml(num_steps=3), r"\.num_steps is 2 there and 3 here"),
        (lambda: maml(norm_policy="inductive"), r"\.norm_policy is 'transductive' there and 'inductive' here"),
        (
            lambda: maml(loss=mk.losses.cross_entropy),
            r"\.loss is metakit\.losses\.squared_error there and metakit\.losses\.cross_entropy",
        ),
        (
            lambda: maml(adjoint=mk.inner.FirstOrder()),
            r"\.adjoint is a metakit\.inner\.Unrolled there and .*First",
        ),
        (
            lambda: maml(select=mk.inner.select.by_name("head.*")),
            r"\.select is metakit\.inner\.select\.everything there and .*by_name\.<locals>\.choose here",
        ),
    ],
    ids=["activation", "num_steps", "norm_policy", "loss", "adjoint", "select"],
)
def test_a_checkpoint_of_another_learner_with_the_same_arrays_is_refused(tmp_path, changed, message):
    """Catches weights that go on under another activation, number of steps, policy, loss or solver, in silence."""
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        state = start(maml())
        checkpoints.save(state, mk.train.Best(state.learner, 0.5, 0))
        assert checkpoints.restore(start(maml())) is not None
        with pytest.raises(mk.train.CheckpointError, match=message):
            checkpoints.restore(start(changed()))
        with pytest.raises(mk.train.CheckpointError, match=message):
            checkpoints.restore_best(changed())


def test_filters_differ_by_what_they_close_over():
    """Catches two filters of one maker that count as the same."""
    one, other = (static_parts({"select": mk.inner.select.by_name(pattern)}) for pattern in ("head.*", "*.bias"))
    assert one != other


def test_an_old_checkpoint_without_a_description_is_read(tmp_path):
    """Catches a newer metakit that locks its users out of their runs."""
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        state = start(maml())
        checkpoints.save(state, mk.train.Best(state.learner, 0.5, 0))
    record = tmp_path / "run/steps/0/record/metadata"
    old = json.loads(record.read_text())
    del old["static"], old["best"]["static"]
    record.write_text(json.dumps(old))
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints:
        assert eqx.tree_equal(checkpoints.restore(state).learner, state.learner)
        assert checkpoints.restore_best(state.learner).score == 0.5


DESCRIBE = """
import functools, json
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, optax
import metakit as mk
from metakit.train._static import static_parts

model = mk.nn.MLP(1, 1, 4, 1, jax.nn.gelu, key=jax.random.key(0))
inner = mk.inner.Optax(optax.adam, learning_rate=1e-3, eps_root=1e-8)
tree = {
    "maml": mk.maml.MAML(model, inner=inner, num_steps=2, select=mk.inner.select.by_name("head.*", "*.bias")),
    "made": mk.MetaLearner(lambda x: x, functools.partial(jnp.sum, axis=1), jax.jit(jnp.exp)),
    "others": [mk.maml, np.arange(3), jnp.float32, np.dtype("int8"), {"b", "a"}, object(), model.__call__],
}
print(json.dumps(static_parts(tree)))
"""


def test_a_description_is_the_same_in_every_process():
    """Catches ids, addresses and the order of a set, which refuse a run's own checkpoint after a restart."""
    found = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", DESCRIBE], capture_output=True, text=True, check=True, env=environment
        )
        found.append(done.stdout)
    assert found[0] == found[1]
    assert "0x" not in found[0]
    parts = json.loads(found[0])
    assert parts["['maml'].model.activation"].endswith(".gelu")
    assert parts["['maml'].select.patterns[1]"] == "'*.bias'"
    assert "'a', 'b'" in parts["['others'][4]"]


# An inner problem that has not converged


class Minimum(eqx.Module):
    target: jax.Array


def minimum_loss(learner, task, key=None):
    def loss(w, target, step):
        return 0.5 * jnp.sum((w - target) ** 2)

    w, _ = mk.inner.descend(
        loss,
        jnp.zeros(2),
        learner.target,
        solver=mk.inner.SGD(0.1),
        num_steps=3,  # far too few
        adjoint=mk.inner.Implicit(),
    )
    return jnp.sum((w - task) ** 2)


def test_an_unconverged_inner_loop_is_among_the_causes_of_a_step_that_is_not_finite():
    """Catches a list of causes without the one that it was: compiled, Implicit can only answer NaN."""
    algorithm = mk.MetaLearner(None, None, minimum_loss)
    with pytest.raises(mk.train.NonFiniteLossError, match=r"mk\.inner\.Implicit that has not converged") as caught:
        mk.train.run_steps(
            algorithm,
            SGD,
            start(Minimum(jnp.ones(2))),
            lambda key: jax.random.normal(key, (2,)),
            num_steps=2,
            meta_batch=2,
        )
    with pytest.raises(ValueError, match="has not converged after 3 steps"):  # as the list says
        eqx.filter_grad(minimum_loss)(caught.value.state.learner, jnp.zeros(2))


# A way of differentiating by its name, stored by a learner


class Named(eqx.Module):
    model: mk.nn.MLP
    adjoint: str = eqx.field(static=True)


def test_auto_stored_by_a_learner_of_ones_own_works():
    """Catches "auto", which mk.maml takes, as a string that has no attribute solve."""
    task = mk.tasks.Sinusoid()(jax.random.key(1))

    def loss(model, support, step):
        return mk.losses.squared_error(model(support.x), support.y, reduction="mean")

    def adapt(learner):
        return mk.inner.descend(
            loss,
            learner.model,
            task.support,
            solver=mk.inner.SGD(0.01),
            num_steps=2,
            adjoint=learner.adjoint,  # pyright: ignore[reportArgumentType]
        )[0]

    assert eqx.tree_equal(adapt(Named(network(), "auto")), mk.maml.adapt(maml(), task.support).model)


# Errors of JAX's and Python's insides


@pytest.mark.parametrize(
    "layer",
    [
        eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0)),
        eqx.nn.Linear(1, 1, key=jax.random.key(0)),
        eqx.nn.Sequential([eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(1, 1, key=jax.random.key(0))]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_module_for_one_example_is_to_be_lifted(layer):
    """Catches a batch that goes into a layer as one example: an error of shapes, or a square batch in silence."""
    for make in (mk.maml.MAML, mk.reptile.Reptile):
        with pytest.raises(TypeError, match=r"model takes one example \(eqx\.nn\.\w+ does\).*mk\.nn\.batched\(model\)"):
            make(layer, inner=mk.inner.SGD(0.1), num_steps=1, loss=mk.losses.squared_error)
        lifted = make(mk.nn.batched(layer), inner=mk.inner.SGD(0.1), num_steps=1, loss=mk.losses.squared_error)
        assert lifted.num_steps == 1


class ForBatches(eqx.Module):
    layer: mk.nn.Linear

    def __call__(self, x, *, key=None):  # as Equinox calls the layers of a sequence
        return self.layer(x)


def test_a_sequence_of_layers_for_batches_is_a_model():
    """Catches a refusal of Equinox's containers, which hand on what they are given."""
    layer = ForBatches(mk.nn.Linear(1, 1, key=jax.random.key(0)))
    model = eqx.nn.Sequential([layer, eqx.nn.Lambda(jnp.tanh)])
    learner = mk.maml.MAML(model, inner=mk.inner.SGD(0.1), num_steps=1, loss=mk.losses.squared_error)
    assert jnp.isfinite(mk.maml.meta_loss(learner, mk.tasks.Sinusoid()(jax.random.key(1))))


def test_a_missing_key_is_one_sentence_in_a_learner_of_ones_own():
    """Catches jax.random's error about the shape of None."""

    def adapt(learner, support, key=None):
        key = mk.random.require_key(key, "MyLearner", "adapt")
        return jax.random.normal(key)

    with pytest.raises(ValueError, match="MyLearner's adapt draws random numbers and needs a key"):
        adapt(None, None)
    assert adapt(None, None, jax.random.key(0)).shape == ()


def test_the_states_of_several_trainings_are_named_and_map():
    """Catches Python's error about an array that is no number; mapping over whole trainings is how a sweep is done."""
    options = {"num_steps": 3, "meta_batch": 2}

    def sampler(key):
        return jax.random.uniform(key)

    def init(scale):
        return start(eqx.tree_at(lambda learner: learner.head, own(), scale * own().head))

    def run(state):
        return mk.train.run_steps(OWN, SGD, state, sampler, **options)

    scales = jnp.asarray([1.0, 2.0])
    states = eqx.filter_vmap(init)(scales)
    for call in (
        lambda: run(states),
        lambda: mk.train.fit(OWN, SGD, states, sampler, **options),
        lambda: mk.train.step(OWN, SGD, states, jnp.ones(2)),
    ):
        with pytest.raises(ValueError, match=r"several trainings: its step has shape \[2\].*filter_vmap"):
            call()
    together, _ = eqx.filter_vmap(run)(states)
    for index, scale in enumerate(scales):
        alone, _ = run(init(scale))
        np.testing.assert_allclose(together.learner.head[index], alone.learner.head, rtol=1e-12)


def test_a_checkpoint_of_several_trainings_is_refused(tmp_path):
    """Catches Python's error about an array that is no number."""
    states = eqx.filter_vmap(lambda scale: start(scale * jnp.ones(2)))(jnp.ones(2))
    with mk.train.Checkpoints(tmp_path / "run", config={}) as checkpoints, pytest.raises(ValueError, match="several"):
        checkpoints.save(states)


# Scores of a mesh


def test_scores_of_a_mesh_go_with_those_of_none():
    """Catches scores that stay on the devices of their mesh: their difference raised incompatible devices."""
    tasks, key = mk.tasks.Sinusoid(), jax.random.key(0)
    metrics = {"error": mk.metrics.mean_squared_error}
    options = {"num_tasks": 5, "metrics": metrics}
    alone = mk.evaluate.scores(mk.maml, maml(), tasks, key, **options)["error"]
    spread = mk.evaluate.scores(mk.maml, maml(), tasks, key, mesh=mk.sharding.task_mesh(2), **options)["error"]
    np.testing.assert_allclose(spread - alone, np.zeros(5), atol=1e-12)


# Names


@pytest.mark.parametrize("module", [mk.losses, mk.metrics, mk.random, mk.inner.select], ids=lambda m: m.__name__)
def test_a_namespace_holds_public_names_alone(module):
    """Catches jnp, typed and Protocol among what an editor offers."""
    home = module.__name__
    for name in dir(module):
        if not name.startswith("_"):
            owner = getattr(getattr(module, name), "__module__", home)
            alias = name in ("Filter", "Reduction")
            assert alias or owner.startswith(home), f"{home}.{name} is {owner}'s"


# Several inputs of each example


class TwoInputs(eqx.Module):
    """A network of a dictionary or a tuple of two inputs."""

    first: mk.nn.Linear
    second: mk.nn.Linear

    def __call__(self, x):
        a, b = x.values() if isinstance(x, dict) else x
        return jnp.tanh(self.first(a)) + self.second(b)


def two_inputs(as_dictionary, way=None):
    """The same task with the inputs apart, and side by side."""
    keys = jax.random.split(jax.random.key(7), 3)
    a, b = jax.random.normal(keys[0], (6, 3)), jax.random.normal(keys[1], (6, 1))
    y = jnp.arange(6) % way if way else jax.random.normal(keys[2], (6, 2))

    def examples(part):
        pair = (a[part], b[part])
        return mk.Examples(dict(zip("ab", pair, strict=True)) if as_dictionary else pair, y[part], way=way)

    return mk.Episode(examples(slice(4)), examples(slice(4, 6)))


class SideBySide(eqx.Module):
    both: TwoInputs

    def __call__(self, x):
        return self.both((x[:, :3], x[:, 3:]))


@pytest.mark.parametrize("as_dictionary", [False, True])
@pytest.mark.parametrize("name", ["maml", "reptile", "reptile_one_by_one", "meta_lstm"])
def test_several_inputs_reach_the_network_as_they_are(name, as_dictionary):
    """Catches a tuple that NumPy is to make an array of, and a dictionary whose error prints every value."""
    keys = jax.random.split(jax.random.key(0), 3)
    model = TwoInputs(mk.nn.Linear(3, 2, key=keys[0]), mk.nn.Linear(1, 2, key=keys[1]))
    loss, solver = mk.losses.squared_error, mk.inner.SGD(0.1)
    update = mk.meta_lstm.LearnedUpdate(key=keys[2])
    policy = "one_by_one" if name == "reptile_one_by_one" else "transductive"
    algorithm, make = {
        "maml": (mk.maml, lambda model: mk.maml.MAML(model, inner=solver, num_steps=2, loss=loss)),
        "reptile": (
            mk.reptile,
            lambda model: mk.reptile.Reptile(
                model, inner=solver, num_steps=2, batch_size=3, loss=loss, norm_policy=policy
            ),
        ),
        "meta_lstm": (
            mk.meta_lstm,
            lambda model: mk.meta_lstm.MetaLSTM(model, update=update, num_steps=2, batch_size=3, loss=loss),
        ),
    }[name.removesuffix("_one_by_one")]
    apart = two_inputs(as_dictionary)

    def joined(part):
        return mk.Examples(jnp.concatenate(jax.tree.leaves(part.x), axis=1), part.y)

    together, key = mk.Episode(joined(apart.support), joined(apart.query)), jax.random.key(4)
    expected = algorithm.meta_loss(make(SideBySide(model)), together, key)
    np.testing.assert_allclose(algorithm.meta_loss(make(model), apart, key), expected, rtol=1e-10)
    tasks = eqx.filter_vmap(lambda _: apart, axis_size=2)(None)
    many = mk.sharding.meta_gradient(algorithm, make(model), tasks, jax.random.split(key, 2))
    assert many.losses.shape == (2,)
    mk.check_values(apart)


@pytest.mark.parametrize(
    ("algorithm", "learner", "way"),
    [
        (mk.ridge, mk.ridge.Ridge(lambda x: x), None),
        (mk.matching, mk.matching.Matching(lambda x: x), None),
        (mk.prototypical, mk.prototypical.Prototypical(lambda x: x), 2),
        (mk.neural_process, mk.neural_process.NeuralProcess(4, 2, width=8, key=jax.random.key(0)), None),
        (mk.evaluate.baselines.nearest_neighbour, None, 2),
        (mk.evaluate.baselines.gradient_histograms, None, 2),
    ],
    ids=["ridge", "matching", "prototypical", "neural_process", "nearest_neighbour", "gradient_histograms"],
)
def test_who_embeds_one_input_refuses_several(algorithm, learner, way):
    """Catches an error about a tuple that has no shape."""
    with pytest.raises(ValueError, match=r"\.x holds 2 inputs, but .* takes one array"):
        algorithm.meta_loss(learner, two_inputs(False, way))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mk.Examples((jnp.ones((3, 2)), jnp.ones((4, 1))), jnp.ones((3, 1))),
            r"^x\[1\] and y must hold the same number .* got 4 in x\[1\]\[4, 1\] and 3 in y\[3, 1\]",
        ),
        (
            lambda: mk.Examples({"a": jnp.ones((4, 2))}, jnp.ones(3)),
            r"^x\['a'\] and y must hold the same number .* got 4 in x\['a'\]\[4, 2\]",
        ),
        (lambda: mk.Examples({}, jnp.ones(3)), "^x must be an array"),
        (lambda: mk.Examples(jnp.ones((3, 1)), {"a": jnp.ones(3)}), r"^y must be an array .* got a dict of 1\."),
        (
            lambda: mk.Examples([np.ones((3, 2)), np.ones((3, 1))], np.ones(3)),
            r"^x is a list of shapes \[3, 2\], \[3, 1\], which make no array",
        ),
        (
            lambda: mk.Episode(two_inputs(False).support, two_inputs(True).query),
            r"same inputs, got x\[0\], x\[1\] and x\['a'\], x\['b'\]",
        ),
    ],
)
def test_several_inputs_that_do_not_fit_are_named(make, message):
    """Catches NumPy's own error, and one that prints every value."""
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert len(str(caught.value)) < 400


def test_rows_of_numbers_are_still_one_array():
    """Catches a list or a tuple of rows that is taken for several inputs."""
    for rows in ([[1.0, 2.0], [3.0, 4.0]], ((1.0, 2.0), (3.0, 4.0)), [np.ones(2), np.ones(2)]):
        assert mk.Examples(rows, [0, 1], way=2).x.shape == (2, 2)


# What compiles again


def test_an_algorithm_or_an_optimiser_made_anew_compiles_again():
    """Catches a guide that warns of what no longer holds, and a learner of the same structure that compiles again."""
    traces = 0

    def meta_loss(learner, task, key=None):
        nonlocal traces
        traces += 1
        return own_loss(learner, task)

    def traced(algorithm, optimiser, scale=1.0):
        nonlocal traces
        traces = 0
        learner = eqx.tree_at(lambda learner: learner.head, own(), scale * own().head)
        state = mk.train.init(learner, optimiser, key=jax.random.key(0))
        mk.train.step(algorithm, optimiser, state, jnp.ones(2))
        return traces > 0

    def made():
        return mk.MetaLearner(None, None, lambda learner, task, key=None: meta_loss(learner, task))

    once, optimiser = made(), optax.sgd(0.2)
    assert traced(once, optimiser)
    assert not traced(once, optimiser, scale=3.0)
    assert traced(made(), optimiser)
    assert traced(once, optax.sgd(0.2))
