"""Checkpoints: bit for bit, guarded, and never half written."""

import errno
import json
import logging
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from train_toys import POINT, draw_point, leaves_equal, point

import metakit as mk
from metakit.train import Best, Checkpoints

ADAM = mk.train.adam(0.1, schedule="cosine", num_steps=20)


def start(seed=7, learner=None):
    return mk.train.init(point() if learner is None else learner, ADAM, key=jax.random.key(seed))


def train(state, num_steps):
    return mk.train.run_steps(POINT, ADAM, state, draw_point, num_steps=num_steps, meta_batch=4)[0]


def test_ten_steps_are_five_saved_loaded_and_five_more(tmp_path):
    """Catches anything the next step needs that a checkpoint does not hold: moments, schedule, key."""
    with Checkpoints(tmp_path / "run", config={"rate": 0.1}) as checkpoints:
        checkpoints.save(train(start(), 5))
    with Checkpoints(tmp_path / "run", config={"rate": 0.1}) as checkpoints:
        state = checkpoints.restore(start(seed=99))  # another key, to see that the saved one is used
    assert leaves_equal(train(state, 5), train(start(), 10))


def test_every_kind_of_leaf_comes_back(tmp_path):
    """Catches keys, empty arrays, integers, half precision or functions that do not survive."""
    learner = {
        "weight": jnp.arange(3.0),
        "half": jnp.ones(2, jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "count": jnp.asarray(3, jnp.int32),
        "flag": jnp.asarray([True, False]),
        "key": jax.random.key(5),
        "rbg": jax.random.key(5, impl="rbg"),
        "a/b.c": jnp.asarray(jnp.nan),
        "function": jnp.tanh,
        "rate": mk.fixed(0.4),
    }
    blank = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else leaf, learner)
    with Checkpoints(tmp_path / "run", config={}) as checkpoints:
        checkpoints.save(start(learner=learner), Best(learner, 0.5, 0))
        restored = checkpoints.restore(start(learner=blank))
        best = checkpoints.restore_best(blank)
    for found in (restored.learner, best.learner):
        found = found | {"a/b.c": jnp.nan_to_num(found["a/b.c"], nan=1.5)}
        assert leaves_equal(found, learner | {"a/b.c": jnp.asarray(1.5)})
    assert (best.score, best.step) == (0.5, 0)


def test_restoring_onto_two_devices(tmp_path):
    """Catches a checkpoint that can only be read with the devices it was written with."""
    mesh = mk.sharding.task_mesh(2)
    with Checkpoints(tmp_path / "run", config={}) as checkpoints:
        checkpoints.save(start())
        state = checkpoints.restore(mk.sharding.replicate(start(seed=99), mesh))
    assert len(state.learner.position.devices()) == 2
    assert leaves_equal(jax.device_get(state.learner.position), jax.device_get(start().learner.position))


def test_only_the_newest_are_kept_and_any_of_them_restores(tmp_path):
    """Catches a disk that fills up, and a step argument that is ignored."""
    with Checkpoints(tmp_path / "run", config={}, max_to_keep=2) as checkpoints:
        assert checkpoints.latest_step is None
        state = start()
        for _ in range(3):
            checkpoints.save(state)
            checkpoints.save(state)  # the same step again: nothing to do
            state = train(state, 1)
        assert checkpoints.latest_step == 2
        assert sorted(int(p.name) for p in (tmp_path / "run/steps").iterdir() if p.name.isdigit()) == [1, 2]
        assert leaves_equal(checkpoints.restore(start(), step=1), train(start(), 1))
        assert checkpoints.restore_best(point()) is None
        with pytest.raises(mk.train.CheckpointError, match=r"step 0; it holds \[1, 2\]"):
            checkpoints.restore(start(), step=0)


@pytest.mark.parametrize(
    ("new", "changes"),
    [
        ({"rate": 0.2, "model": {"width": 8, "depth": 2}}, {"rate": (0.1, 0.2)}),
        ({"rate": 0.1, "model": {"width": 16, "depth": 2}}, {"model.width": (8, 16)}),
        ({"rate": 0.1, "model": {"width": 8}}, {"model.depth": (2, "(absent)")}),
        ({"rate": 0.1, "model": {"width": 8, "depth": 2}, "seed": None}, {"seed": ("(absent)", None)}),
        ({"rate": 0.2, "model": 3}, {"rate": (0.1, 0.2), "model": ({"width": 8, "depth": 2}, 3)}),
    ],
)
def test_a_changed_configuration_is_named(tmp_path, new, changes):
    """Catches a run that goes on under another configuration."""
    Checkpoints(tmp_path / "run", config={"rate": 0.1, "model": {"width": 8, "depth": 2}}).close()
    with pytest.raises(mk.train.ConfigChangedError) as caught:
        Checkpoints(tmp_path / "run", config=new)
    assert caught.value.changes == changes
    for name, (old, given) in changes.items():
        assert f"{name}: was {old!r}, now {given!r}" in str(caught.value)


def test_the_configuration_is_recorded_as_json(tmp_path):
    """Catches a tuple that differs from its own list, and a record nobody else can read."""
    Checkpoints(tmp_path / "run", config={"sizes": (1, 2)}).close()
    Checkpoints(tmp_path / "run", config={"sizes": [1, 2]}).close()
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.config == {"sizes": [1, 2]}
    record = json.loads((tmp_path / "run/metakit.json").read_text())
    assert record == {"version": 1, "config": {"sizes": [1, 2]}}


@pytest.mark.parametrize(("version", "advice"), [(2, "Upgrade metakit"), (0, "new run"), (None, "new run")])
def test_another_version_is_refused(tmp_path, version, advice):
    """Catches a folder of another format that is misread."""
    Checkpoints(tmp_path / "run", config={}).close()
    (tmp_path / "run/metakit.json").write_text(json.dumps({"version": version, "config": {}}))
    with pytest.raises(mk.train.CheckpointVersionError, match=f"version {version!r}.*reads version 1.*{advice}"):
        Checkpoints(tmp_path / "run", config={})


@pytest.mark.parametrize(
    ("prepare", "config", "message"),
    [
        (lambda folder: (folder / "holiday.jpg").touch(), {}, "not a folder of checkpoints"),
        (lambda folder: folder.rmdir(), None, "holds no checkpoints"),
        (lambda folder: None, None, "holds no checkpoints"),
        (lambda folder: (folder.rmdir(), folder.touch()), {}, "not a folder of checkpoints"),
        (lambda folder: (folder / "metakit.json").write_text("{"), {}, "damaged"),
        (lambda folder: (folder / "metakit.json").write_text("[]"), {}, "damaged"),
        (lambda folder: (folder / "metakit.json").write_text("{}"), {}, "damaged"),
    ],
)
def test_what_is_not_a_checkpoint_folder_is_refused(tmp_path, prepare, config, message):
    """Catches somebody's pictures being taken for a run, and the traceback of a damaged file."""
    folder = tmp_path / "run"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(mk.train.CheckpointError, match=message):
        Checkpoints(folder, config=config)


def test_a_new_run_without_a_checkpoint_says_so(tmp_path):
    """Catches a restore that returns the template."""
    with (
        Checkpoints(tmp_path / "run", config={}) as checkpoints,
        pytest.raises(mk.train.CheckpointError, match="no complete checkpoint"),
    ):
        checkpoints.restore(start())


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (point(size=3), r"\.learner\.position is float64\[2\] there and float64\[3\] here"),
        (point(dtype=jnp.float32), r"\.learner\.position is float64\[2\] there and float32\[2\] here"),
        ({"w": jnp.ones(2)}, r"\.learner\.position is float64\[2\] there and absent here"),
    ],
)
def test_another_learner_is_named(tmp_path, learner, message):
    """Catches weights poured into a learner that merely has as many leaves."""
    with Checkpoints(tmp_path / "run", config={}) as checkpoints:
        checkpoints.save(start())
        with pytest.raises(mk.train.CheckpointError, match=message):
            checkpoints.restore(start(learner=learner))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device [os_error_code='28']"),
    ],
)
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path, monkeypatch, error):
    """Catches a half-written checkpoint that counts as the newest, or that fills the disk for ever."""
    partial = tmp_path / "run/steps/1.orbax-checkpoint-tmp"

    def fail(self, *arguments, **options):
        partial.mkdir()
        (partial / "half").touch()
        raise error

    with Checkpoints(tmp_path / "run", config={}) as checkpoints:
        state = start()
        checkpoints.save(state)
        state = train(state, 1)
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "save", fail)
            with pytest.raises(mk.train.DiskFullError, match=r"No space left to save.*intact") as caught:
                checkpoints.save(state)
        assert caught.value.errno == errno.ENOSPC
        assert not partial.exists()
        assert checkpoints.latest_step == 0
        assert leaves_equal(checkpoints.restore(start(seed=99)), start())
        checkpoints.save(state)  # there is room again
        assert checkpoints.latest_step == 1


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path):
    """Catches a half-written checkpoint that is restored, or stays for ever; and a reader that removes it."""
    with Checkpoints(tmp_path / "run", config={}) as checkpoints:
        checkpoints.save(start())
    unfinished = tmp_path / "run/steps/1.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    with Checkpoints(tmp_path / "run", config={}) as checkpoints:
        assert checkpoints.latest_step == 0
        assert unfinished.exists()  # the run that writes it may still be alive
        checkpoints.save(train(start(), 1))
        assert checkpoints.latest_step == 1
    assert not unfinished.exists()


def test_a_full_disk_before_the_first_record(tmp_path, monkeypatch):
    """Catches a half-written record that damages the folder."""

    def fail(self, *arguments, **options):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_text", fail)
        with pytest.raises(mk.train.DiskFullError):
            Checkpoints(tmp_path / "run", config={})
    Checkpoints(tmp_path / "run", config={}).close()


def test_other_errors_keep_their_type(tmp_path, monkeypatch):
    """Catches every failure being reported as a full disk."""

    def fail(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    with Checkpoints(tmp_path / "run", config={}) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fail)
        with pytest.raises(PermissionError):
            checkpoints.save(start())


def test_saving_is_silent(tmp_path, caplog, capfd):
    """Catches orbax's logging in the middle of a progress display, and a logger left changed."""
    level = logging.getLogger("absl").level
    with caplog.at_level(logging.DEBUG), Checkpoints(tmp_path / "run", config={}) as checkpoints:
        checkpoints.save(start())
        checkpoints.restore(start())
    assert not [record for record in caplog.records if record.name == "absl"]
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("absl").level == level


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": {}, "max_to_keep": 0}, ValueError, "max_to_keep must be at least 1"),
        ({"config": {"model": object()}}, TypeError, r"config\['model'\]"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, error, message):
    """Catches a folder made before its arguments are known to be good."""
    with pytest.raises(error, match=message):
        Checkpoints(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_optax_alone_is_enough(tmp_path):
    """Catches a checkpoint that needs our own optimiser helper."""
    optimiser = optax.chain(optax.clip(1.0), optax.lamb(1e-2))
    state = mk.train.init(point(), optimiser, key=jax.random.key(0))
    with Checkpoints(tmp_path / "run", config={}) as checkpoints:
        checkpoints.save(state)
        assert leaves_equal(checkpoints.restore(state), state)
