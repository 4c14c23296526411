"""The command line as a user meets it, from the first word to the files it leaves."""

import errno
import importlib.metadata
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import metakit as mk
from metakit.cli import COMMANDS, INTERRUPTED, main

LINEAR = ["train", "maml", "--data", "linear", "--smoke", "--no-compilation-cache"]
FEW = ["--smoke", "--no-compilation-cache"]


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


def records(folder):
    return mk.experiments.RunFolder(folder).records()


def assert_is_a_picture(path: pathlib.Path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 5, "a blank picture"


def test_the_version(capsys):
    """Catches a command that cannot say which version it is."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == importlib.metadata.version("metakit")


@pytest.mark.parametrize("question", ["--help", "--version"])
def test_a_question_is_answered_before_anything_heavy_is_imported(question):
    """Catches JAX imported to say which commands there are: 3.2 s where 0.6 are promised. Processor time, since tests
    share the machine."""
    program = (
        "import sys, time; started = time.process_time(); from metakit.cli import main; "
        f"status = main(['{question}']); seconds = time.process_time() - started; "
        "print(status, seconds, *[m for m in ('jax', 'equinox', 'numpy', 'matplotlib', 'tyro') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    status, seconds, *heavy = done.stdout.splitlines()[-1].split()
    assert (status, heavy) == ("0", [])
    assert float(seconds) < 0.6


def test_help_names_every_command(capsys):
    """Catches a command that cannot be found, or one that is no module."""
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)
        assert main([name, "--help"]) == 0
    assert "--support" in capsys.readouterr().out


def test_the_command_line_is_a_skin():
    """Catches algorithms that the command line names, and a skin that grows into a body."""
    folder = pathlib.Path(mk.__file__).parent / "cli"
    source = {path: path.read_text() for path in folder.glob("*.py")}
    assert sum(len(text.splitlines()) for text in source.values()) <= 700
    named = {"metakit.learners", "mk.maml", "ALGORITHMS"}
    assert not [path for path, text in source.items() if any(name in text for name in named)]


def test_the_options_of_a_recipe_are_its_own(capsys):
    """Catches one list of options for all algorithms."""
    assert main(["train", "maml", "--help"]) == 0
    shown = capsys.readouterr().out
    assert {"--inner-rate", "--way", "--norm-policy"} <= set(re.findall(r"--[a-z-]+", shown))
    assert not {"--scale", "--inner-batch", "--path", "--split"} & set(re.findall(r"--[a-z-]+", shown))
    assert main(["train", "maml", "--data", "omniglot", "--help"]) == 0
    shown = capsys.readouterr().out
    assert {"--path", "--split", "--trainval"} <= set(re.findall(r"--[a-z-]+", shown))
    assert "default: 70000" in shown


def test_list_shows_every_recipe(capsys):
    """Catches a recipe that can be trained and is not listed."""
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in mk.recipes.names():
        assert f"\n{name} " in shown


def test_a_training_leaves_what_was_promised(tmp_path, capsys):
    """Catches a missing file, a blank picture, control sequences in a log, and a report whose numbers are not the
    measured ones."""
    run = tmp_path / "run"
    assert main([*LINEAR, "--run", str(run)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert json.loads((run / "run.json").read_text())["options"]["steps"] == 4
    assert {r["event"] for r in records(run)} == {"progress", "validated", "test", "inner steps"}
    for picture in ("learning-curve.png", "curves.png", "inner-steps.png"):
        assert_is_a_picture(run / picture)
    report = (run / "report.md").read_text()
    test = next(r for r in records(run) if r["event"] == "test")
    for name, score in test["scores"].items():
        assert f"| {name} | {score['mean']:.4f} ±" in report
    assert "oracle: Bayes posterior mean" in report
    assert "metakit train maml --data linear --steps 4" in report


def test_images_train_and_report_baselines(tmp_path):
    """Catches an image run without its episode picture, its batch-norm policy, or either baseline."""
    assert main(["train", "prototypical", *FEW, "--run", str(tmp_path / "run")]) == 0
    assert_is_a_picture(tmp_path / "run" / "episode.png")
    report = (tmp_path / "run" / "report.md").read_text()
    for words in ("nearest neighbour on pixels", "gradient histograms", "not meta-trained", "transductive", "sha256"):
        assert words in report
    assert "each query alone" in report


def test_evaluating_a_run_again_gives_its_own_file(linear_run):
    """Catches an evaluation that overwrites the report, or loses the scores of its tasks."""
    before = (linear_run / "report.md").read_text()
    assert main(["evaluate", str(linear_run), "--num-tasks", "30", "--inner-steps", "2", "--no-compilation-cache"]) == 0
    assert (linear_run / "report.md").read_text() == before
    (evaluation,) = linear_run.glob("evaluation-*.md")
    assert "30 tasks" in evaluation.read_text()
    assert "2 in the test" in evaluation.read_text()
    assert len(np.load(evaluation.with_suffix(".npz"))["meta-trained"]) == 30
    for path in linear_run.glob("evaluation-*"):
        path.unlink()


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path, linear_run, monkeypatch, capsys):
    """Catches a resumed run that draws other tasks, forgets the best learner, or logs a step twice."""
    folder, stopped = tmp_path / "run", []
    real = mk.experiments.Display.__call__

    def interrupt(self, event):
        real(self, event)
        if isinstance(event, mk.train.Progress) and not stopped:
            stopped.append(True)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(mk.experiments.Display, "__call__", interrupt)
        assert main([*LINEAR, "--run", str(folder)]) == INTERRUPTED
    assert f"continue with: metakit train maml --resume {folder}" in capsys.readouterr().out
    assert main(["train", "maml", "--resume", str(folder), "--no-compilation-cache"]) == 0
    assert timeless(folder) == timeless(linear_run)
    before = (folder / "report.md").stat().st_mtime_ns
    assert main(["train", "maml", "--resume", str(folder)]) == 0
    assert "is finished; nothing is left to do" in capsys.readouterr().out
    assert (folder / "report.md").stat().st_mtime_ns == before


def timeless(folder):
    kept = [r for r in records(folder) if r["event"] != "evaluation"]
    return [{k: v for k, v in r.items() if k not in ("steps_per_second", "seconds_left")} for r in kept]


def test_ctrl_c_during_the_test_says_how_to_continue(tmp_path, monkeypatch, capsys):
    """Catches a traceback, and a user who does not know that the trained learner is safe."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(mk.experiments._run, "assess", interrupt)
    assert main([*LINEAR, "--run", str(tmp_path / "run")]) == INTERRUPTED
    assert "continue with: metakit train maml --resume" in capsys.readouterr().out


def test_a_full_disk_is_said_and_the_checkpoints_stay(tmp_path, monkeypatch, capsys):
    """Catches a log that fails half-way with a bare OSError and takes the run with it."""
    real = pathlib.Path.open

    def full(self, mode="r", *args, **kwargs):
        if self.name == "metrics.jsonl" and "a" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", full)
    assert main([*LINEAR, "--run", str(tmp_path / "run")]) == 1
    assert "no room left to write" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, capsys):
    """Catches training that goes on with NaN weights, or loses the checkpoints before them."""
    folder = tmp_path / "run"
    assert main([*LINEAR, "--run", str(folder), "--rate", "1e30", "--steps", "8", "--validate-every", "2"]) == 1
    said = re.sub(r"\s+", " ", "".join(capsys.readouterr()))
    assert re.search(r"Step \d is not finite", said)
    # Only if there are any: here the first dispatch fails already.
    assert ("checkpoints before it are in" in said) == any((folder / "checkpoints").glob("steps/[0-9]*"))


def test_several_seeds_are_one_command(tmp_path, capsys):
    """Catches seeds that train alike, or a report that takes the spread between tasks for that between seeds."""
    assert main([*LINEAR, "--seeds", "2", "--run", str(tmp_path / "runs")]) == 0
    runs = [mk.open_run(tmp_path / "runs" / f"seed-{seed}") for seed in (0, 1)]
    means = [run.test["scores"]["meta-trained"]["mean"] for run in runs]
    assert means[0] != means[1]
    report = (tmp_path / "runs" / "report.md").read_text()
    assert f"Mean over 2 runs: {np.mean(means):.4f}" in report
    assert f"Standard deviation between runs: {np.std(means, ddof=1):.4g}" in report
    assert "over 2 seeds" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("switch", [[], ["--no-compilation-cache"]])
def test_compiled_programs_are_kept_unless_told_otherwise(tmp_path, switch):
    """Catches a second run of a command that compiles everything again, and a switch without effect."""
    command = ["train", "maml", "--data", "linear", "--smoke", "--run", str(tmp_path / "run"), *switch]
    environment = os.environ | {"METAKIT_CACHE": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    program = f"import sys; from metakit.cli import main; sys.exit(main({command}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kept = list((tmp_path / "cache").glob("compiled/*"))
    assert bool(kept) == (not switch)


def test_the_command_leaves_the_number_of_devices_open():
    """Catches a module of the command that computes when it is imported: JAX shows a CPU as one device ever after."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    program = (
        "import metakit.cli._train, metakit as mk, jax; [mk.recipes.find(name) for name in mk.recipes.names()]; "
        "mk.recipes.offer(3); print(jax.device_count())"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr[-2000:]


@pytest.mark.slow
def test_choosing_ends_with_advice(tmp_path, drawings, capsys):
    """Catches recipes that were tested on different tasks, a baseline left out, or no word on which to take."""
    out = tmp_path / "choice"
    few = ["--way", "2", "--queries", "2", "--minutes", "0.01", "--recipes", "prototypical", "r2d2"]
    assert main(["choose", "--path", str(drawings), *few, "--out", str(out), "--no-compilation-cache"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"(Take (prototypical|r2d2)|None of them beats)", said)
    runs = [mk.open_run(out / name) for name in ("prototypical", "r2d2")]
    assert runs[0].test["fingerprint"] == runs[1].test["fingerprint"]
    assert_is_a_picture(out / "comparison.png")
