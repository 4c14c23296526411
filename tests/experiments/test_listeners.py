"""Listeners: who is told of a run, and what TensorBoard and Weights & Biases keep of it, read back from their files."""

import collections
import dataclasses
import json
import pathlib
import struct
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

import metakit as mk
from metakit.cli import main

INNER_STEPS = [mk.evaluate.student_t([0.25, 0.75]), mk.evaluate.student_t([0.125, 0.625])]


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


def after_inner_steps(algorithm, learner, sampler, key, *, num_tasks):
    """A series whose numbers are known, and are no numbers of anything else."""
    return [mk.experiments.Series("inner steps", 0, INNER_STEPS)]


@pytest.fixture(scope="module")
def experiment():
    """Matching Networks on lines: four steps, two validations, a series."""
    recipe = mk.recipes.find("matching")
    with jax.enable_x64(False):
        built = recipe.build(recipe.settle({"data": "linear"}, smoke=True))
    return dataclasses.replace(built, series=(after_inner_steps,), pictures=())


class Heard:
    """A listener of a user's own."""

    def __init__(self, at=None, error=None):
        self.events, self.closed = [], 0
        self.at, self.error = at, error

    def __call__(self, event):
        self.events.append(event)
        if self.at is not None and self.at(event):
            raise self.error

    def close(self):
        self.closed += 1


def at_step(step):
    return lambda event: isinstance(event, mk.train.Progress) and event.step == step


def log_of(folder):
    return mk.experiments.RunFolder(folder).records()


# --- who is told


def test_a_listener_is_told_every_event_in_order(experiment, tmp_path):
    """Catches an event that listeners are not told of, or after its time."""
    heard, own = Heard(), []
    mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[heard, own.append])
    names = [type(event).__name__ for event in heard.events]
    dispatch = ["Progress", "Validated", "Saved"]
    assert [name for name in names if name != "Testing"] == ["Started", *dispatch, *dispatch, "Tested", "Reported"]
    parts = [event.number for event in heard.events if isinstance(event, mk.experiments.Testing)]
    assert parts == list(range(1, len(parts) + 1))
    assert names[7] == "Testing"
    assert own == heard.events


def test_a_listener_that_raises_is_left_out_and_the_run_goes_on(experiment, tmp_path, capfd):
    """Catches hours of training lost to a broken display, and a line on standard error for every step."""
    broken, heard = Heard(at_step(2), ValueError("no route to host")), Heard()
    run = mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[broken, heard])
    assert run.finished
    assert type(heard.events[-1]).__name__ == "Reported"
    assert [type(event).__name__ for event in broken.events] == ["Started", "Progress"]
    assert broken.closed == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "the listener Heard raised ValueError: no route to host" in said.err


def test_a_listener_that_raises_when_it_is_closed_is_named_and_the_others_are_closed(experiment, tmp_path, capfd):
    """Catches a finished run that is reported as a failure, and files left open behind it."""

    class Stuck(Heard):
        def close(self):
            raise OSError("disk gone")

    heard = Heard()
    assert mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[Stuck(), heard]).finished
    assert heard.closed == 1
    assert "the listener Stuck raised OSError: disk gone" in capfd.readouterr().err


@pytest.mark.parametrize("ending", ["finished", "Ctrl-C", "error"])
def test_a_listener_is_closed_once_however_the_run_ends(experiment, tmp_path, ending):
    """Catches a file that stays open, its last records unwritten, after Ctrl-C or a loss that is not finite."""
    heard = Heard()
    if ending == "finished":
        mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[heard])
    elif ending == "Ctrl-C":
        pressed = Heard(at_step(2), KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[heard, pressed])
    else:
        diverges = dataclasses.replace(experiment, optimiser=optax.sgd(float("inf")))
        with pytest.raises(mk.train.NonFiniteLossError):
            mk.experiments.run(diverges, tmp_path / "run", quiet=True, listeners=[heard])
    assert heard.closed == 1


def test_a_finished_run_tells_nobody(experiment, tmp_path):
    """Catches a listener that opens its files anew, and writes over what is there, when a run is only looked up."""
    mk.experiments.run(experiment, tmp_path / "run", quiet=True)
    heard = Heard()
    mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[heard])
    assert (heard.events, heard.closed) == ([], 0)


# --- TensorBoard


def events_in(file):
    """The events of a file: a length, its checksum, so many bytes, and theirs (the framing of TFRecord)."""
    rest = file.read_bytes()
    while rest:
        header = rest[:8]
        (length,) = struct.unpack("<Q", header)
        data = rest[12 : 12 + length]
        assert len(data) == length, "a record is cut off"
        checksums = struct.unpack("<I", rest[8:12]) + struct.unpack("<I", rest[12 + length : 16 + length])
        assert checksums == (masked_crc32c(header), masked_crc32c(data))
        yield Event.FromString(data)
        rest = rest[16 + length :]


def files_in(folder):
    return sorted(folder.glob("events.out.tfevents.*"))


def scalars_in(folder):
    """(tag, step, number) in order, as TensorBoard shows them: a START forgets the steps from its own on."""
    found = []
    for file in files_in(folder):
        for event in events_in(file):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                found = [one for one in found if one[1] < event.step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.append((value.tag, event.step, value.simple_value))
    return found


def expected_scalars(folder, score="error", steps=4):
    """The numbers of the log under their names, in the 32 bits of an event file."""
    found = []
    for line in log_of(folder):
        if line["event"] == "progress":
            names = ("loss", "gradient_norm", "steps_per_second")
            found += [(f"train/{name}", line["step"], line[name]) for name in names]
        elif line["event"] == "validated":
            ends = {"": "mean", "_low": "low", "_high": "high"}
            found += [(f"validation/{score}{end}", line["step"], line[name]) for end, name in ends.items()]
        elif line["event"] == "test":
            rows = {"meta-trained": "meta-trained", "not meta-trained": "not_meta-trained"}
            rows["oracle: Bayes posterior mean"] = "oracle_Bayes_posterior_mean"
            assert list(line["scores"]) == list(rows)
            found += [(f"test/{tag}", steps, line["scores"][row]["mean"]) for row, tag in rows.items()]
        else:
            assert line["event"] == "inner steps"
            for count, interval in enumerate(INNER_STEPS):
                ends = {"": interval.mean, "_low": interval.low, "_high": interval.high}
                found += [(f"series/inner_steps{end}", count, value) for end, value in ends.items()]
    return [(tag, step, float(np.float32(value))) for tag, step, value in found if np.isfinite(value)]


def hyperparameters_in(file):
    """The options on TensorBoard's page of hyperparameters, one mapping for each time they were written."""
    found = []
    for event in events_in(file):
        for value in event.summary.value:
            if value.tag == "_hparams_/session_start_info":
                content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                found.append(
                    {k: getattr(v, v.WhichOneof("kind")) for k, v in content.session_start_info.hparams.items()}
                )
    return found


def test_the_event_file_holds_the_numbers_of_the_log(experiment, tmp_path, capfd):
    """Catches a number under the wrong name or step, one left out, one twice, and a listener that prints."""
    folder = tmp_path / "run"
    mk.experiments.run(experiment, folder, quiet=True, listeners=[mk.experiments.TensorBoard()])
    assert tuple(capfd.readouterr()) == ("", "")
    (file,) = files_in(folder / "tensorboard")
    events = list(events_in(file))
    assert events[0].file_version == "brain.Event:2"
    assert len(log_of(folder)) == 6
    assert scalars_in(folder / "tensorboard") == expected_scalars(folder)
    (options,) = hyperparameters_in(file)
    assert (options["recipe"], options["data"], options["rate"]) == ("matching", "linear", 0.001)
    assert (options["steps"], options["schedule"]) == (4.0, "constant")
    assert "clip_norm" not in options, "an option that is not set has no value to show"


def test_options_of_an_experiment_without_a_recipe(experiment, tmp_path):
    """Catches a listener that only knows recipes, and lists that the page of hyperparameters cannot take."""
    own = dataclasses.replace(experiment, origin=None)
    mk.experiments.run(own, tmp_path / "run", quiet=True, listeners=[mk.experiments.TensorBoard(tmp_path / "curves")])
    (options,) = hyperparameters_in(*files_in(tmp_path / "curves"))
    assert options["steps"] == 4
    assert options["learner"].startswith("[")
    assert "recipe" not in options


def test_a_run_that_goes_on_shows_every_step_once(experiment, tmp_path):
    """Catches steps after the last checkpoint shown twice, those before it lost, and a second file over the first."""
    folder, pressed = tmp_path / "run", Heard(at_step(4), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        mk.experiments.run(experiment, folder, quiet=True, listeners=[mk.experiments.TensorBoard(), pressed])
    stopped = scalars_in(folder / "tensorboard")
    assert stopped[-1][:2] == ("train/steps_per_second", 4), "what was told before Ctrl-C is in the file"
    assert mk.experiments.run(experiment, folder, quiet=True, listeners=[mk.experiments.TensorBoard()]).finished
    assert len(files_in(folder / "tensorboard")) == 2
    shown = scalars_in(folder / "tensorboard")
    assert shown == expected_scalars(folder)
    assert max(collections.Counter((tag, step) for tag, step, _ in shown).values()) == 1


def test_a_run_that_is_heard_from_its_middle_on_is_shown_from_its_beginning(experiment, tmp_path):
    """Catches half a curve, where TensorBoard was asked for on resuming only."""
    folder = tmp_path / "run"
    pressed = Heard(at_step(4), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        mk.experiments.run(experiment, folder, quiet=True, listeners=[pressed])
    mk.experiments.run(experiment, folder, quiet=True, listeners=[mk.experiments.TensorBoard()])
    assert scalars_in(folder / "tensorboard") == expected_scalars(folder)


def test_no_writer_outlives_an_interrupted_run(experiment, tmp_path):
    """Catches a thread of the library's that is left behind after Ctrl-C, with the file open."""
    before = set(threading.enumerate())
    pressed = Heard(at_step(2), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[mk.experiments.TensorBoard(), pressed])
    writers = [one for one in set(threading.enumerate()) - before if "EventLogger" in type(one).__name__]
    assert not writers


FEW = ["train", "matching", "--data", "linear", "--smoke", "--no-compilation-cache", "--quiet"]


def test_the_command_line_writes_event_files_of_every_seed(tmp_path, capfd):
    """Catches --tensorboard that is taken and forgotten, and seeds that were trained together without their curves."""
    assert main([*FEW, "--tensorboard", "--seeds", "2", "--run", str(tmp_path / "runs")]) == 0
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"seed-{seed}"
        assert scalars_in(folder / "tensorboard") == expected_scalars(folder)
    assert capfd.readouterr().err == ""


# --- Weights & Biases


def records_in(file):
    """The records of a run's file: blocks of 32 KiB, in which each piece has a checksum, a length and a kind."""
    record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    raw, place, pieces = file.read_bytes(), 7, b""
    assert raw[:4] == b":W&B"
    while place < len(raw):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", raw[place + 4 : place + 7])
        pieces += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record.FromString(pieces)
            pieces = b""


def whole_run_in(folder):
    """The records of a run that has ended; the library's own process writes them, and may be at it still."""
    (file,) = folder.glob("run-*.wandb")
    for _ in range(300):
        records = list(records_in(file))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def rows_in(folder):
    """The rows of a run's history, each a mapping with the service's own step."""
    rows = []
    for record in whole_run_in(folder):
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append(
                {name: value for name, value in row.items() if not name.startswith("_")} | {"step": row["_step"]}
            )
    return rows


def configuration_in(folder):
    found = {}
    for record in whole_run_in(folder):
        if record.WhichOneof("record_type") == "run":
            found |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return found


def offline_runs(folder):
    return sorted(path for path in (folder / "wandb").glob("offline-run-*"))


def test_weights_and_biases_holds_the_numbers_of_the_log(experiment, tmp_path, capfd, monkeypatch):
    """Catches a number under the wrong name or step, a series on the axis of steps, and a library that prints."""
    pytest.importorskip("wandb", reason="needs wandb: pip install 'metakit[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "run"
    listener = mk.experiments.WeightsAndBiases(project="lines", name="first")
    mk.experiments.run(experiment, folder, quiet=True, listeners=[listener])
    assert tuple(capfd.readouterr()) == ("", "")
    (kept,) = offline_runs(folder)
    rows = rows_in(kept)
    by_step = {row["step"]: row for row in rows}
    assert len(by_step) == len(rows)
    progress = [line for line in log_of(folder) if line["event"] == "progress"]
    validated = [line for line in log_of(folder) if line["event"] == "validated"]
    for told, judged in zip(progress, validated, strict=True):
        row = by_step[told["step"]]
        assert row["train/loss"] == told["loss"]
        assert row["train/gradient_norm"] == told["gradient_norm"]
        assert row["train/steps_per_second"] == told["steps_per_second"]
        ends = [row[f"validation/error{end}"] for end in ("", "_low", "_high")]
        assert ends == [judged["mean"], judged["low"], judged["high"]]
    (test,) = (line for line in log_of(folder) if line["event"] == "test")
    assert by_step[4]["test/meta-trained"] == test["scores"]["meta-trained"]["mean"]
    assert by_step[4]["test/not_meta-trained"] == test["scores"]["not meta-trained"]["mean"]
    series = [row for row in rows if "series/inner_steps" in row]
    assert [row["series/inner_steps_count"] for row in series] == [0, 1]
    assert [row["series/inner_steps"] for row in series] == [0.5, 0.375]
    configuration = configuration_in(kept)
    assert (configuration["recipe"], configuration["rate"], configuration["clip_norm"]) == ("matching", 0.001, None)


def test_weights_and_biases_goes_on_with_its_run(experiment, tmp_path):
    """Catches a second run on the service for each time that training was stopped."""
    pytest.importorskip("wandb", reason="needs wandb: pip install 'metakit[wandb]'")
    folder, pressed = tmp_path / "run", Heard(at_step(4), KeyboardInterrupt())
    listener = mk.experiments.WeightsAndBiases(mode="offline")
    with pytest.raises(KeyboardInterrupt):
        mk.experiments.run(experiment, folder, quiet=True, listeners=[listener, pressed])
    run_id = (folder / "wandb" / "run-id").read_text().strip()
    (first,) = offline_runs(folder)
    assert [row["step"] for row in rows_in(first)] == [2, 4]
    time.sleep(1.1)  # wandb names folders by the second
    listener = mk.experiments.WeightsAndBiases(mode="offline")
    assert mk.experiments.run(experiment, folder, quiet=True, listeners=[listener]).finished
    second = next(path for path in offline_runs(folder) if path != first)
    assert {file.stem for path in (first, second) for file in path.glob("*.wandb")} == {f"run-{run_id}"}
    assert rows_in(second)[0]["step"] == 4, "what the run holds up to its checkpoint is not logged again"


def test_another_run_of_the_same_process_is_left_alone(experiment, tmp_path):
    """Catches a listener that writes into a user's own run, and ends it."""
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install 'metakit[wandb]'")
    quiet = wandb.Settings(silent=True, console="off")
    with wandb.init(mode="offline", dir=tmp_path, settings=quiet) as own:
        listener = mk.experiments.WeightsAndBiases(mode="offline")
        mk.experiments.run(experiment, tmp_path / "run", quiet=True, listeners=[listener])
        own.log({"mine": 1})
    assert len(offline_runs(tmp_path / "run")) == 1
    (mine,) = offline_runs(tmp_path)
    assert [row["mine"] for row in rows_in(mine)] == [1]


# --- extras


@pytest.mark.parametrize(
    ("listener", "package", "extra"),
    [("TensorBoard", "tensorboardX", "tensorboard"), ("WeightsAndBiases", "wandb", "wandb")],
)
def test_a_missing_extra_is_named_when_the_listener_is_made(monkeypatch, listener, package, extra):
    """Catches an ImportError without a remedy, and one that comes when the training is half done."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf'^{package} is not installed\. Install it with pip install "metakit\[{extra}\]"\.$'
    ):
        getattr(mk.experiments, listener)()


@pytest.mark.parametrize(
    ("flag", "package", "extra"), [("--tensorboard", "tensorboardX", "tensorboard"), ("--wandb", "wandb", "wandb")]
)
def test_the_command_line_names_a_missing_extra_before_any_work(monkeypatch, tmp_path, capsys, flag, package, extra):
    """Catches a traceback, another exit status than that of misuse, and a run folder left behind."""
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*FEW, flag, "--run", str(tmp_path / "run")]) == 2
    assert f'pip install "metakit[{extra}]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_libraries_wait_until_a_listener_is_made():
    """Catches an import that everybody pays for, and an extra that is needed by who does not use it."""
    asked = "print(*(name in sys.modules for name in ('tensorboardX', 'wandb')))"
    program = f"import sys, metakit; metakit.experiments.TensorBoard; {asked}"
    root = pathlib.Path(mk.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["False", "False"]
