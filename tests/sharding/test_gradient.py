"""The meta-gradient over tasks: the same numbers however the tasks are split, and one all-reduce."""

import os
import pathlib
import re
import subprocess
import sys
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_maml import ALGORITHM, by_hand, make_keys, make_learner, make_tasks, meta_loss

import metakit as mk
from metakit.sharding import map_tasks, meta_gradient, replicate, shard_tasks, task_mesh
from metakit.sharding._chunks import choose_chunk


def assert_same(result, expected):
    loss, gradient, losses = expected
    np.testing.assert_allclose(result.loss, loss, rtol=1e-13)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-13)
    for name in ("weights", "scale"):
        np.testing.assert_allclose(result.gradient[name], gradient[name], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(result.gradient["rate"].value, gradient["rate"].value, rtol=1e-12)


@pytest.mark.parametrize("devices", [None, 1, 2])
@pytest.mark.parametrize("chunk", ["auto", None, 1, 2, 3, 100])
def test_every_split_of_the_tasks_gives_the_gradient_of_a_loop(devices, chunk):
    """Catches a wrong divisor, a dropped or repeated remainder, and keys matched to the wrong task."""
    learner, tasks, keys = make_learner(), make_tasks(8), make_keys(8)
    mesh = None if devices is None else task_mesh(devices)
    result = eqx.filter_jit(meta_gradient)(ALGORITHM, learner, tasks, keys, mesh=mesh, chunk=chunk)
    assert_same(result, by_hand(learner, tasks, keys))


@pytest.mark.parametrize("way", [mk.sharding.meta_gradient_pmap, mk.sharding.meta_gradient_named])
@pytest.mark.parametrize("chunk", [None, 1])
def test_pmap_and_named_sharding_agree(way, chunk):
    """Catches a rule of XLA's partitioner or of pmap that changes the numbers."""
    learner, tasks, keys = make_learner(), make_tasks(4), make_keys(4)
    assert_same(way(ALGORITHM, learner, tasks, keys, mesh=task_mesh(2), chunk=chunk), by_hand(learner, tasks, keys))


@pytest.mark.parametrize("mesh", [None, 2])
def test_it_works_without_jit_and_without_keys(mesh):
    """Catches a helper that only runs under a trace, or that maps over the absent keys."""
    learner, tasks = make_learner(), make_tasks(2)
    result = meta_gradient(ALGORITHM, learner, tasks, mesh=mesh and task_mesh(mesh))
    assert_same(result, by_hand(learner, tasks))


def test_leaves_that_training_leaves_alone_have_no_gradient():
    """Catches a mask that is ignored, so that fixed rates cost memory and reach the optimiser."""
    learner, tasks = make_learner(), make_tasks(2)
    for mesh in (None, task_mesh(2)):
        gradient = meta_gradient(ALGORITHM, learner, tasks, trainable=mk.trainable(learner), mesh=mesh).gradient
        assert gradient["rate"].value is None
        assert gradient["count"] is None
        np.testing.assert_allclose(gradient["weights"], by_hand(learner, tasks)[1]["weights"], rtol=1e-12)


def compiled_text(function, *args):
    return eqx.filter_jit(function).lower(*args).compile().compiled.as_text()


@pytest.mark.optimised
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_one_all_reduce_and_nothing_else_crosses(chunk):
    """Catches tasks gathered on every device, and an all-reduce per leaf or per chunk: both scale badly."""
    mesh = task_mesh(2)
    learner, tasks, keys = replicate(make_learner(), mesh), shard_tasks(make_tasks(8), mesh), make_keys(8)
    text = compiled_text(
        lambda learner, tasks, keys: meta_gradient(ALGORITHM, learner, tasks, keys, mesh=mesh, chunk=chunk),
        learner,
        tasks,
        keys,
    )
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert other not in text


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("chunk", [None, 1])
def test_a_convolutional_step_needs_one_all_reduce_too(chunk):
    """Catches the gathering of per-task weights that XLA does for a grouped convolution (openxla/xla#47945)."""
    mesh = task_mesh(2)
    network = mk.nn.Conv4(1, 16, out_size=2, width=4, key=jax.random.key(0))
    learner = replicate(mk.maml.MAML(network, inner=mk.inner.SGD(0.1), num_steps=1, norm_policy="transductive"), mesh)
    x, y = jnp.ones((4, 2, 1, 16, 16)), jnp.tile(jnp.arange(2), (4, 1))
    episode = lambda x, y: mk.Episode(mk.Examples(x, y, 2), mk.Examples(x, y, 2))
    tasks = shard_tasks(eqx.filter_vmap(episode)(x, y), mesh)
    text = compiled_text(
        lambda learner, tasks: meta_gradient(mk.maml, learner, tasks, mesh=mesh, chunk=chunk), learner, tasks
    )
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert other not in text


def test_outputs_stay_where_they_belong():
    """Catches per-task losses copied to every device, and a gradient that only the first device holds."""
    mesh = task_mesh(2)
    result = eqx.filter_jit(meta_gradient)(ALGORITHM, make_learner(), make_tasks(4), mesh=mesh)
    assert result.losses.sharding.spec == jax.sharding.PartitionSpec("task")
    assert result.gradient["weights"].sharding.is_fully_replicated
    assert result.loss.sharding.is_fully_replicated


@pytest.mark.parametrize("axis_type", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_a_mesh_of_the_users_own(axis_type):
    """Catches an assumption that the mesh has one axis called "task" or is of kind Auto."""
    mesh = jax.make_mesh((1, 2), ("host", "chip"), axis_types=(axis_type, axis_type))
    learner, tasks = make_learner(), make_tasks(4)
    result = eqx.filter_jit(meta_gradient)(ALGORITHM, learner, tasks, mesh=mesh)
    assert_same(result, by_hand(learner, tasks))


def test_one_trace_over_changed_numbers():
    """Catches values of the learner baked into the program."""
    traces = 0

    @eqx.filter_jit
    def run(learner, tasks):
        nonlocal traces
        traces += 1
        return meta_gradient(ALGORITHM, learner, tasks, mesh=task_mesh(2))

    tasks = make_tasks(2)
    for rate in (0.1, 0.2):
        run({**make_learner(), "rate": mk.fixed(rate)}, tasks)
    assert traces == 1


@pytest.mark.parametrize(
    ("numbers", "platform", "expected"),
    [(100, "cpu", 8), (5000, "cpu", 1), (5000, "gpu", 8)],
)
def test_auto_runs_images_one_by_one_on_a_cpu_only(numbers, platform, expected):
    """Catches a rule that depends on the dtype, or that throttles an accelerator."""
    assert choose_chunk("auto", 8, jnp.zeros((8, numbers)), platform) == expected
    assert choose_chunk("auto", 8, jnp.zeros((8, numbers), jnp.float32), platform) == expected


@pytest.mark.optimised
def test_memory_is_that_of_one_chunk():
    """Catches a scan that keeps every chunk's activations for the backward pass."""
    algorithm = mk.MetaLearner(
        None, None, lambda w, x, key=None: jnp.sum(jnp.tanh(jnp.tanh(x @ w["first"]) @ w["second"]))
    )
    weights, tasks = {"first": jnp.ones((2, 64)), "second": jnp.ones((64, 64))}, jnp.ones((16, 200, 2))

    def temporary_bytes(chunk):
        run = eqx.filter_jit(partial(meta_gradient, algorithm, chunk=chunk))
        return run.lower(weights, tasks).compile().compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1) < temporary_bytes(None) / 4


@pytest.mark.optimised
def test_map_tasks_equals_a_loop_and_crosses_nothing():
    """Catches outputs in another order than the tasks, and an evaluation that gathers."""
    learner, tasks, keys = make_learner(), make_tasks(8), make_keys(8)
    expected = by_hand(learner, tasks, keys)[2]

    def score(task, key):
        return {"loss": meta_loss(learner, task, key), "name": "loss"}

    for mesh in (None, task_mesh(2)):
        for chunk in ("auto", None, 1, 3):
            scores = map_tasks(score, tasks, keys, mesh=mesh, chunk=chunk)
            np.testing.assert_allclose(scores["loss"], expected, rtol=1e-13)
            assert scores["name"] == "loss"

    def run(learner, tasks):
        return map_tasks(lambda task: meta_loss(learner, task), tasks, mesh=task_mesh(2), chunk=1)

    text = compiled_text(run, learner, shard_tasks(tasks, task_mesh(2)))
    assert not re.search(r" (all-reduce|all-gather)(-start)?\(", text)


def drop_last(tasks):
    return eqx.tree_at(lambda tree: tree.query.x, tasks, tasks.query.x[:-1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: {**a, "algorithm": make_learner()}, TypeError, "adapt, predict and meta_loss"),
        (lambda a: {**a, "tasks": drop_last(a["tasks"])}, ValueError, "same leading task axis"),
        (lambda a: {**a, "keys": make_keys(2)}, ValueError, "same leading task axis"),
        (lambda a: {**a, "tasks": None}, ValueError, "no array"),
        (lambda a: {**a, "tasks": make_tasks(3), "mesh": task_mesh(2)}, ValueError, "multiple of 2"),
        (lambda a: {**a, "chunk": 0}, ValueError, "chunk must be a positive number"),
        (lambda a: {**a, "chunk": True}, ValueError, "chunk must be a positive number"),
        (lambda a: {**a, "trainable": {"weights": True}}, ValueError, "mk.trainable"),
    ],
)
def test_mistakes_are_named(change, error, message):
    """Catches a mistake that surfaces as a shape error deep inside the compiled step."""
    arguments = change({"algorithm": ALGORITHM, "learner": make_learner(), "tasks": make_tasks(4), "keys": None})
    with pytest.raises(error, match=message):
        meta_gradient(**arguments)


def test_too_many_devices_is_an_error_that_says_how_to_get_more():
    """Catches a mesh that is silently smaller than asked for."""
    with pytest.raises(ValueError, match="xla_force_host_platform_device_count"):
        task_mesh(3)
    with pytest.raises(ValueError, match="num_devices=0"):
        task_mesh(0)
    with pytest.raises(ValueError, match="multiple of 2"):
        shard_tasks(make_tasks(3), task_mesh(2))


FOUR = """
import jax, equinox as eqx
jax.config.update("jax_enable_x64", True)
from small_maml import *
from metakit.sharding import meta_gradient, task_mesh
tasks, keys = make_tasks(8), make_keys(8)
result = eqx.filter_jit(meta_gradient)(ALGORITHM, make_learner(), tasks, keys, mesh=task_mesh(4))
print(result.loss.item().hex(), *[x.hex() for x in result.gradient["weights"].ravel().tolist()])
"""


def test_four_devices_equal_one():
    """Catches what two devices hide, such as a factor that is right for N = 2 only."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    here = pathlib.Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", FOUR], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = [float.fromhex(number) for number in done.stdout.split()]
    loss, gradient, _ = by_hand(make_learner(), make_tasks(8), make_keys(8))
    np.testing.assert_allclose(numbers, [loss, *gradient["weights"].ravel()], rtol=1e-12)


def test_a_loss_for_every_example_is_refused():
    """Catches losses that are summed in silence: a gradient as many times too large as a task has examples."""
    algorithm = mk.MetaLearner(adapt=None, predict=None, meta_loss=lambda w, task, key=None: w * task)
    with pytest.raises(ValueError, match=r"meta_loss must return a scalar for a task, got shape \[3\]"):
        mk.sharding.meta_gradient(algorithm, jnp.asarray(2.0), jnp.ones((2, 3)))
