"""The command line as a user meets it: run folders, resuming, errors."""

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import pathlib
import re
import signal

import equinox as eqx
import jax
import numpy as np
import pytest
import tyro
from PIL import Image

import metakit as mk
from metakit.cli import _data, _evaluate, _run_folder, _start, _train, main
from metakit.cli._algorithms import ALGORITHMS, as_tested, build_learner, form_of
from metakit.cli._assess import try_out
from metakit.cli._config import DATA, ENVIRONMENTS, Train, UsageError, explicit, settings
from metakit.cli._entry import OPTIONAL
from metakit.cli._presets import check_given, default_data, preset
from metakit.cli._refusals import as_usage
from metakit.cli._report import as_command

LINEAR = ["train", "maml", "--data", "linear", "--smoke", "--no-compilation-cache"]


@pytest.fixture(autouse=True)
def single_precision():
    """Users run in 32 bits."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module")
def linear_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "linear"
    with jax.enable_x64(False):
        assert main([*LINEAR, "--run", str(folder)]) == 0
    return folder


def records(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_is_a_picture(path: pathlib.Path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 5, "a blank picture"


def test_a_run_folder_holds_what_was_promised(linear_run):
    """Catches a missing file, a blank picture, and a report whose numbers are not the measured ones."""
    assert json.loads((linear_run / "config.json").read_text())["steps"] == 4
    assert {r["event"] for r in records(linear_run)} == {"progress", "validated", "test", "inner steps"}
    for picture in ("learning-curve.png", "curves.png", "inner-steps.png"):
        assert_is_a_picture(linear_run / picture)
    report = (linear_run / "report.md").read_text()
    test = next(r for r in records(linear_run) if r["event"] == "test")
    for name, score in test["scores"].items():
        assert f"| {name} | {score['mean']:.4f} ±" in report
    assert "oracle: Bayes posterior mean" in report


@pytest.mark.parametrize("algorithm", [pytest.param("maml", marks=pytest.mark.slow), "prototypical"])
def test_images_train_and_report_baselines(tmp_path, algorithm):
    """Catches an image run without its episode picture, its batch-norm policy, or either baseline."""
    assert main(["train", algorithm, "--smoke", "--no-compilation-cache", "--run", str(tmp_path / "run")]) == 0
    assert_is_a_picture(tmp_path / "run" / "episode.png")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "nearest neighbour on pixels" in report
    assert "not meta-trained" in report
    assert "transductive" in report
    assert "sha256" in report


@pytest.mark.parametrize(
    "algorithm",
    [
        "mamlpp",
        "matching",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fomaml", "anil", "boil", "meta-sgd")),
    ],
)
def test_every_algorithm_has_a_preset_that_runs(tmp_path, algorithm):
    """Catches a registry row that builds a learner wrongly."""
    assert main(["train", algorithm, *LINEAR[2:], "--run", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.md").exists()


# Of the algorithms that take images, those that no other test runs; each compiles for 10 seconds or more.
ON_IMAGES = {
    "reptile": [],
    "meta-lstm": ["--inner-steps", "1"],
    "relation": [],
    "r2d2": [],
    "lrd2": [],
    "versa": [],
    "metagan": [],
    "metagan-maml": [],
    "snail": [],
    "mann": [],
    "statistician": [],
}
ON_GAUSSIAN_CURVES = ("cnp", "np", "acnp", "anp")
IN_ENVIRONMENTS = {"rl-squared": ("pull", 10), "rl-maml": ("update", 4)}


def test_every_algorithm_is_run_by_a_test():
    """Catches an algorithm whose preset nobody has tried."""
    on_lines = {name for name, entry in ALGORITHMS.items() if "linear" in entry.data}
    in_turn = (on_lines, {"prototypical"}, ON_IMAGES, ON_GAUSSIAN_CURVES, IN_ENVIRONMENTS)
    assert set().union(*in_turn) == ALGORITHMS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", IN_ENVIRONMENTS)
def test_learners_that_act_are_trained_by_their_own_rule(tmp_path, algorithm):
    """Catches an entry whose rule or optimiser does not fit, or a score that is not what its series adds up to."""
    run, (name, count) = tmp_path / "run", IN_ENVIRONMENTS[algorithm]
    jax.config.update("jax_disable_most_optimizations", True)
    assert main(["train", algorithm, "--smoke", "--no-compilation-cache", "--run", str(run)]) == 0
    test, series = (next(r for r in records(run) if r["event"] == event) for event in ("test", name))
    means = [interval["mean"] for interval in series["scores"]]
    assert len(means) == count
    expected = sum(means) if name == "pull" else means[-1]
    assert test["scores"]["meta-trained"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert_is_a_picture(run / f"{name}.png")
    if algorithm == "rl-maml":
        assert_is_a_picture(run / "walks.png")
    assert main(["evaluate", str(run), "--num-tasks", "4", "--no-compilation-cache"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "rl-squared", "--shot", "3"], "--shot would not be used: --data bandits is learned from by acting"),
        (["train", "rl-maml", "--rate", "3"], "--rate would not be used: rl-maml finds the length"),
        (["train", "rl-maml", "--way", "3"], "--way would not be used: --data navigation has no classes"),
        (["train", "maml", "--data", "bandits"], "maml has no preset for --data bandits. It trains on"),
        (
            ["train", "rl-squared", "--data", "sinusoid"],
            "rl-squared has no preset for --data sinusoid. It trains on bandits.",
        ),
    ],
)
def test_options_that_an_environment_has_no_use_for_are_refused(words, message, capsys):
    """Catches an option that is taken and ignored."""
    assert main(words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-tasks", "1"], "--num-tasks must be at least 2, got 1"),
        (["--inner-steps", "-1"], "--inner-steps must be at least 0, got -1"),
        (["--shot", "0"], "--shot must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
    ],
)
def test_an_evaluation_refuses_numbers_out_of_range(linear_run, words, message, capsys):
    """Catches a number that is refused after the work, as an error rather than an option, or not at all."""
    assert main(["evaluate", str(linear_run), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_file_of_a_run_in_place_of_its_folder(linear_run, capsys):
    """Catches "holds no config.json" said of config.json itself."""
    assert main(["evaluate", str(linear_run / "config.json")]) == 2
    assert "is a file. Give the run folder that holds it" in " ".join(capsys.readouterr().err.split())


def test_the_version(capsys):
    """Catches a command that cannot say which version it is."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == importlib.metadata.version("metakit")


@pytest.mark.parametrize(("steps", "expected"), [(15_000, 1500), (1000, 1000), (5, 5), (9000, 1500), (20_000, 1250)])
def test_a_preset_s_validations_follow_the_steps(steps, expected):
    """Catches `--steps 5` refused for a period that the user never gave."""
    chosen = settings(Train("maml", "linear", steps=steps), "linear", preset("maml", "linear"))
    assert chosen.validate_every == expected


def test_a_broken_archive_is_no_wrong_option(tmp_path, capsys):
    """Catches status 2, which says that the options do not fit, for data that is damaged."""
    for name in ("images_background.zip", "images_evaluation.zip"):
        (tmp_path / name).write_bytes(b"no archive")
    assert main(["train", "maml", "--data", "omniglot", "--path", str(tmp_path)]) == 1
    assert "images_background.zip is not a complete zip" in capsys.readouterr().err


def test_an_evaluation_asks_the_test_s_classes_alone():
    """Catches --way capped by the validation classes, of which an evaluation uses none."""
    trained = settings(Train("prototypical", "glyphs", smoke=True), "glyphs", preset("prototypical", "glyphs"))
    data = _data.load(dataclasses.replace(trained, test_way=150), dealt_by=trained)
    assert data.test(jax.random.key(0)).support.way == 150
    with pytest.raises(UsageError, match=r"--way must lie in 1\.\.224, the number of test classes, got 300"):
        _data.load(dataclasses.replace(trained, test_way=300), dealt_by=trained)


def test_a_test_that_cannot_run_is_refused_before_the_training():
    """Catches a mismatch of learner and test episodes that shows after an hour, at the first validation."""
    chosen = settings(Train("snail", "glyphs", smoke=True), "glyphs", preset("snail", "glyphs"))
    learner = build_learner(chosen, _data.load(chosen).pools["train"], jax.random.key(0))
    longer = dataclasses.replace(chosen, test_shot=3)
    with pytest.raises(UsageError, match=r"support must hold at most 5 examples.* got 15"), as_usage("test_"):
        try_out(longer, _data.load(longer), learner)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_test_is_tried_out_before_the_work(command, linear_run, tmp_path, monkeypatch, capsys):
    """Catches a command that tries nothing out, or leaves a folder or a result of what it refused."""

    def refuse(*_):
        raise ValueError("shot must be another.")

    monkeypatch.setattr({"train": _train, "evaluate": _evaluate}[command], "try_out", refuse)
    before = sorted(linear_run.iterdir())
    words = {"train": [*LINEAR, "--run", str(tmp_path / "run")], "evaluate": ["evaluate", str(linear_run)]}[command]
    assert main(words) == 2
    assert {"train": "--test-shot must be", "evaluate": "--shot must be"}[command] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert sorted(linear_run.iterdir()) == before


def test_an_evaluation_refuses_what_it_would_ignore(linear_run, capsys):
    """Catches --way, --path or --norm-policy taken without a word for lines, which have none."""
    for words in (["--way", "3"], ["--path", "."], ["--norm-policy", "joint"]):
        assert main(["evaluate", str(linear_run), *words]) == 2
        assert f"{words[0]} would not be used" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "algorithm", [pytest.param(name, marks=[] if name == "cnp" else [pytest.mark.slow]) for name in ON_GAUSSIAN_CURVES]
)
def test_curves_of_a_gaussian_process_are_scored_beside_their_oracle(tmp_path, algorithm):
    """Catches an oracle scored on other curves or with a smaller standard deviation, a missing key, a score whose best
    is taken for its worst, or a picture of nothing."""
    run, few = tmp_path / "run", ["--smoke", "--no-compilation-cache", "--shot", "5", "--queries", "4"]
    assert main(["train", algorithm, *few, "--run", str(run)]) == 0
    scores = next(r for r in records(run) if r["event"] == "test")["scores"]
    oracle = next(name for name in scores if name.startswith("oracle"))
    assert scores[oracle]["mean"] > scores["meta-trained"]["mean"]
    report = (run / "report.md").read_text()
    assert "3 to 5 support and 4 query points" in report
    assert "log-density per new point (nats), 95 %" in report
    assert_is_a_picture(run / "bands.png")
    assert main(["evaluate", str(run), "--num-tasks", "4", "--no-compilation-cache"]) == 0


@pytest.mark.parametrize(
    "algorithm", [pytest.param(name, marks=[] if name == "mann" else [pytest.mark.slow]) for name in ON_IMAGES]
)
def test_every_preset_on_images_runs(tmp_path, drawings, algorithm):
    """Catches an entry whose parts do not fit: key, shots, way, optimiser, form of task."""
    jax.config.update("jax_disable_most_optimizations", True)  # for slow tests too: these programs run once
    few = {"way": 3, "test-way": 3, "shot": 2, "queries": 2, "test-queries": 2}
    unused = {name.replace("_", "-") for name in OPTIONAL} - {n.replace("_", "-") for n in ALGORITHMS[algorithm].uses}
    options = [word for name, value in few.items() if name not in unused for word in (f"--{name}", str(value))]
    run = tmp_path / "run"
    train = ["train", algorithm, "--data", "folder", "--path", str(drawings), "--smoke", "--no-compilation-cache"]
    assert main([*train, *options, *ON_IMAGES[algorithm], "--run", str(run)]) == 0
    test = next(r for r in records(run) if r["event"] == "test")
    assert 0 <= test["scores"]["meta-trained"]["mean"] <= 1
    if algorithm == "mann":
        assert "| presentation | 1 | 2 |" in (run / "report.md").read_text()
        assert_is_a_picture(run / "presentation.png")
    else:
        assert_is_a_picture(run / "episode.png")
    if algorithm == "statistician":
        assert "its statistics are those of training sets" in (run / "report.md").read_text()


@pytest.mark.slow
def test_a_policy_of_its_own_in_the_test(tmp_path, drawings):
    """Catches an evaluation that names another batch-norm policy and scores with the trained one."""
    jax.config.update("jax_disable_most_optimizations", True)
    run = tmp_path / "run"
    few = ["--way", "3", "--test-way", "3", "--queries", "2", "--test-queries", "2"]
    where = ["--data", "folder", "--path", str(drawings)]
    assert main(["train", "prototypical", *where, "--smoke", "--no-compilation-cache", *few, "--run", str(run)]) == 0
    scores = {}
    for policy in ("joint", "inductive"):
        assert main(["evaluate", str(run), "--norm-policy", policy, "--num-tasks", "20", "--no-compilation-cache"]) == 0
        last = [r for r in records(run) if r["event"] == "evaluation"][-1]
        scores[policy] = last["nll"]
        assert f"Batch norm: {policy}" in (run / last["file"]).read_text()
    assert scores["joint"] != scores["inductive"]


def test_evaluating_a_run_again_gives_its_own_file(linear_run, capsys):
    """Catches an evaluation that overwrites the report, or loads something else than the best learner."""
    before = (linear_run / "report.md").read_text()
    assert main(["evaluate", str(linear_run), "--num-tasks", "30", "--inner-steps", "2", "--no-compilation-cache"]) == 0
    assert (linear_run / "report.md").read_text() == before
    (evaluation,) = linear_run.glob("evaluation-*.md")
    assert "30 tasks" in evaluation.read_text()


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path, linear_run, monkeypatch, capsys):
    """Catches a resumed run that draws other tasks, forgets the best learner, or logs a step twice."""
    folder = tmp_path / "run"
    stopped = []

    def interrupt(self, event, original=_train.Display.event):
        original(self, event)
        if type(event).__name__ == "Progress" and not stopped:
            stopped.append(True)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(_train.Display, "event", interrupt)
        assert main([*LINEAR, "--run", str(folder)]) == _train.INTERRUPTED
    said = capsys.readouterr().out.replace("\n", "")
    assert "continue with: metakit train maml --resume" in said
    assert main(["train", "maml", "--resume", str(folder), "--no-compilation-cache"]) == 0
    timeless = [{k: v for k, v in r.items() if k not in ("steps_per_second", "seconds_left")} for r in records(folder)]
    expected = [
        {k: v for k, v in r.items() if k not in ("steps_per_second", "seconds_left")}
        for r in records(linear_run)
        if r["event"] != "evaluation"
    ]
    assert timeless == expected


REFUSED = {
    "algorithm": (["train", "mamll"], 2, r"'mamll' is not known. Did you mean 'maml'"),
    "command": (["trian", "maml"], 2, r"'trian' is no command. Did you mean 'train'"),
    "data": (["train", "maml", "--data", "omniglott"], 2, r"Did you mean 'omniglot'"),
    "option": (["train", "maml", "--stps", "3"], 2, r"(?s)--stps.*--steps"),
    "test way": (["train", "maml", "--test-way", "3"], 2, "--test-way 3: maml has a head for 5 classes"),
    "validation never": (["train", "maml", "--validate-every", "0"], 2, "--validate-every must be at least 1, got 0"),
    "one validation task": (["train", "maml", "--validation-tasks", "1"], 2, "--validation-tasks must be at least 2"),
    "negative rate": (["train", "maml", "--rate=-1"], 2, "--rate must be above 0, got -1"),
    "unused scale": (["train", "maml", "--scale", "3"], 2, "--scale would not be used: maml has no similarities"),
    "unused inner rate": (["train", "matching", "--inner-rate", "3"], 2, "--inner-rate would not be used"),
    "inner rate of a gate": (
        ["train", "meta-lstm", "--smoke", "--inner-rate", "1"],
        2,
        "--inner-rate must be below 1 for meta-lstm, whose input gate is a sigmoid; got 1.0",
    ),
    "unused inner batch": (
        ["train", "maml", "--inner-batch", "3"],
        2,
        "--inner-batch would not be used: maml draws no",
    ),
    "unused queries": (["train", "mann", "--queries", "3"], 2, "--queries would not be used: mann asks for every"),
    "unused schedule": (["train", "reptile", "--schedule", "cosine"], 2, "reptile has a schedule of its own"),
    "curves for a sequence learner": (
        ["train", "mann", "--data", "linear"],
        2,
        "It trains on glyphs, omniglot or folder",
    ),
    "unused path": (["train", "maml", "--path", "."], 2, "--path would not be used: --data glyphs is built in"),
    "unused split": (["train", "maml", "--split", "lake"], 2, "--split would not be used"),
    "trainval without it": (
        ["train", "maml", "--trainval"],
        2,
        "--trainval would not be used: only Omniglot",
    ),
    "mirrored lines": (
        ["train", "maml", "--data", "linear", "--mirrored"],
        2,
        "--mirrored .*: --data linear has no images",
    ),
    "no run to start from": (
        ["train", "maml", "--start-from", "/nowhere/at/all"],
        2,
        "/nowhere/at/all is no run folder",
    ),
    "devices": (["train", "maml", "--devices", "3"], 2, "--meta-batch 8 must be a multiple of --devices 3"),
    "more test steps than rates": (
        ["train", "mamlpp", "--test-inner-steps", "9"],
        2,
        "--test-inner-steps 9 was asked.*rates for 3 steps only",
    ),
    "run and resume": (["train", "maml", "--run", "a", "--resume", "b"], 2, "--run a would not be used"),
    "regression with prototypes": (
        ["train", "prototypical", "--data", "linear"],
        2,
        "prototypical has no preset for --data linear",
    ),
    "folder without a path": (["train", "maml", "--data", "folder"], 2, "needs --path"),
    "missing path": (
        ["train", "maml", "--data", "omniglot", "--path", "/nowhere/at/all"],
        2,
        r"/nowhere/at/all, as .* Give --path the folder that holds both archives, or add --download",
    ),
    "missing folder": (
        ["train", "maml", "--data", "folder", "--path", "/nowhere/at/all"],
        2,
        "--path must be a folder with one folder for each class, but /nowhere/at/all does not exist",
    ),
    "way": (["train", "maml", "--smoke", "--way", "5000"], 2, r"--way must lie in 1\.\.1036, .* got 5000\.$"),
    "way of the test": (
        ["train", "matching", "--smoke", "--test-way", "300"],
        2,
        r"--test-way must lie in 1\.\.91, the number of validation classes, got 300\.$",
    ),
    "shot and queries": (
        ["train", "maml", "--smoke", "--shot", "30"],
        2,
        r"--shot \+ --queries must not exceed .* classes have too few\)\.$",
    ),
    "policy": (
        ["train", "meta-lstm", "--smoke", "--norm-policy", "joint"],
        2,
        "--norm-policy joint is none that this algorithm has; it has transductive, inductive.",
    ),
    "no tasks in a step": (["train", "maml", "--meta-batch", "0"], 2, "--meta-batch must be at least 1, got 0"),
    "a path with an argument's name": (
        ["train", "maml", "--data", "folder", "--path", "/nowhere/way=5/shot=1"],
        2,
        "but /nowhere/way=5/shot=1 does not exist",
    ),
    "a prime number of steps": (
        ["train", "maml", "--data", "linear", "--steps", "10007"],
        2,
        "--validate-every 1500, the preset, must divide --steps 10007, .* --steps 10500 would do",
    ),
    "one class": (["train", "prototypical", "--way", "1"], 2, "--way must be at least 2, got 1: of one class every"),
    "capitals": (["train", "Maml"], 2, "Did you mean 'maml'?"),
    "validation period": (["train", "maml", "--steps", "10", "--validate-every", "3"], 2, "must divide --steps 10"),
    "steps below one": (["train", "maml", "--steps", "-7"], 2, "--steps must be at least 1, got -7"),
    "no run": (["evaluate", "/nowhere/at/all"], 2, "no run folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options_are_explained_without_a_traceback(case, tmp_path, monkeypatch, capsys):
    """Catches a traceback for a typing mistake, and a run folder left behind by one."""
    monkeypatch.chdir(tmp_path)
    arguments, status, message = REFUSED[case]
    assert main(arguments) == status
    said = capsys.readouterr()
    text = re.sub(r"\s+", " ", said.err + said.out).strip()
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_an_existing_run_is_never_written_over(linear_run, capsys):
    """Catches losing yesterday's result to today's command."""
    assert main([*LINEAR, "--run", str(linear_run)]) == 2
    assert "exists and is not empty" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_resuming_with_other_settings_names_them(linear_run, capsys):
    """Catches a resumed run that silently continues with another rate."""
    assert main(["train", "maml", "--resume", str(linear_run), "--rate", "0.5"]) == 2
    assert "rate: was 0.001, now 0.5" in re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.mark.parametrize("options", [["--data", "glyphs"], ["--smoke"]], ids=lambda options: options[0])
def test_resuming_with_another_task_names_it(linear_run, options, monkeypatch, capsys):
    """Catches options that a resumed run silently ignores, the defaults' own values among them."""
    real = _run_folder.open_run

    def not_smoke(path):
        folder, recorded = real(path)
        return folder, dataclasses.replace(recorded, smoke=False)

    monkeypatch.setattr(_run_folder, "open_run", not_smoke)
    assert main(["train", "maml", "--resume", str(linear_run), *options]) == 2
    assert f"{options[0][2:]}: was" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_cut_line_in_the_log_is_logged_again(tmp_path, linear_run):
    """Catches a run that cannot be resumed after a full disk or a killed process, and a record read half."""
    folder = _run_folder.RunFolder(tmp_path)
    whole = (linear_run / "metrics.jsonl").read_text()
    folder.metrics.write_text(whole[:-10])
    assert folder.records() == records(linear_run)[:-1]
    folder.rewind(2)
    assert {record["event"] for record in folder.records()} == {"progress", "validated"}
    assert max(record["step"] for record in folder.records()) == 2


def test_ctrl_c_during_the_test_says_how_to_continue(tmp_path, monkeypatch, capsys):
    """Catches a traceback, and a user who does not know that the trained learner is safe."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_train, "assess", interrupt)
    assert main([*LINEAR, "--run", str(tmp_path / "run")]) == _train.INTERRUPTED
    assert "continue with: metakit train maml --resume" in capsys.readouterr().out.replace("\n", "")


def test_numbers_survive_a_picture_that_fails(tmp_path, monkeypatch):
    """Catches a report that is written after its pictures and lost with them."""

    def fail(*args, **kwargs):
        raise ValueError("no picture")

    monkeypatch.setattr(_train._pictures, "learning_curve", fail)
    assert main([*LINEAR, "--run", str(tmp_path / "run")]) == 1
    assert "| meta-trained |" in (tmp_path / "run" / "report.md").read_text()


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A folder per class, of noise around a picture of its own."""
    root, random = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    for name in range(20):
        (root / f"class{name:02d}").mkdir()
        picture = random.integers(0, 200, (28, 28))
        for number in range(4):
            noisy = (picture + random.integers(0, 50, picture.shape)).astype(np.uint8)
            Image.fromarray(noisy).save(root / f"class{name:02d}" / f"{number}.png")
    return root


@pytest.mark.slow
def test_a_folder_is_dealt_once(tmp_path, drawings, monkeypatch, capsys):
    """Catches an evaluation, of another way or after the folder has moved, on classes that were trained on."""
    few = ["--way", "3", "--test-way", "3", "--queries", "2", "--test-queries", "2"]
    common = ["--smoke", "--no-compilation-cache"]
    run = tmp_path / "run"
    assert (
        main(["train", "prototypical", "--data", "folder", "--path", str(drawings), *few, *common, "--run", str(run)])
        == 0
    )
    _, trained = _run_folder.open_run(run)
    dealt = _data.load(trained).pools
    moved = tmp_path / "moved"
    moved.symlink_to(drawings)
    again = _data.load(dataclasses.replace(trained, test_way=2, shot=2, path=str(moved)), dealt_by=trained).pools
    for part in ("train", "val", "test"):
        assert again[part].names == dealt[part].names
    assert not set(dealt["train"].names) & set(dealt["test"].names)

    def never(*args):
        raise AssertionError("assessed")

    monkeypatch.setattr(_evaluate, "assess", never)
    assert main(["evaluate", str(run), "--way", "5", "--path", str(moved)]) == 2
    assert "3 were kept from training" in re.sub(r"\s+", " ", capsys.readouterr().err)
    with pytest.raises(AssertionError, match="assessed"):
        main(["evaluate", str(run), "--way", "2", "--path", str(moved)])


def test_omniglot_s_training_classes(monkeypatch):
    """Catches test or validation images that are mirrored, training without the classes that were asked for, and a
    report that does not say so."""

    def omniglot(path, *, split, part, size, rotations, download):
        count = {"train": 40, "val": 8, "trainval": 48, "test": 12}[part]
        return mk.tasks.ImagePool(np.zeros((count, 20, 1, 28, 28), "uint8"), names=[f"{part}{i}" for i in range(count)])

    monkeypatch.setattr(mk.tasks, "omniglot", omniglot)
    chosen = settings(
        Train("reptile", "omniglot", trainval=True, mirrored=True), "omniglot", preset("reptile", "omniglot")
    )
    data = _data.load(chosen)
    assert {part: len(pool.names) for part, pool in data.pools.items()} == {"train": 96, "val": 8, "test": 12}
    assert data.pools["train"].names[:2] == ("trainval0", "trainval0/mirrored")
    assert "those of val and mirror images among those of train" in data.about
    assert as_command(chosen).startswith("metakit train reptile --data omniglot --trainval --mirrored")
    assert "True" not in as_command(chosen)
    plain = _data.load(dataclasses.replace(chosen, trainval=False, mirrored=False))
    assert len(plain.pools["train"].names) == 40
    assert "among" not in plain.about


@pytest.mark.parametrize(("trainval", "expected"), [(False, 64), (True, 72)])
def test_lake_s_training_classes(monkeypatch, trainval, expected):
    """Catches validation characters that are trained on unasked, or left out though they were asked for."""

    def omniglot(path, *, split, part, size, rotations, download):
        return mk.tasks.ImagePool(np.zeros((18, 20, 1, 28, 28), "uint8"))

    monkeypatch.setattr(mk.tasks, "omniglot", omniglot)
    chosen = settings(
        Train("maml", "omniglot", split="lake", trainval=trainval), "omniglot", preset("maml", "omniglot")
    )
    pools = _data.load(chosen).pools
    assert (len(pools["train"].names), len(pools["val"].names)) == (expected, 8)


def arrays(learner):
    return jax.tree.leaves(eqx.filter(learner, eqx.is_array))


def test_a_run_starts_from_another_s_best_learner(tmp_path, linear_run, monkeypatch):
    """Catches --start-from that trains a fresh learner, at once or after a stop before the first checkpoint."""
    trained, run, given = _run_folder.open_run(linear_run)[1], tmp_path / "run", []

    def stop(algorithm, optimiser, state, *args, **kwargs):
        given.append(state.learner)
        raise KeyboardInterrupt

    resume = ["train", "maml", "--resume", str(run), "--no-compilation-cache"]
    with monkeypatch.context() as patch:
        patch.setattr(mk.train, "fit", stop)
        assert main([*LINEAR, "--start-from", str(linear_run), "--run", str(run)]) == _train.INTERRUPTED
        assert main(resume) == _train.INTERRUPTED
    data = _data.load(trained)
    best, fresh = (
        _start.trained_learner(_run_folder.RunFolder(linear_run), trained, data),
        _start.first_learner(trained, data),
    )
    for learner in given:
        assert all(np.array_equal(a, b) for a, b in zip(arrays(learner), arrays(best), strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(arrays(learner), arrays(fresh), strict=True))
    assert main(resume) == 0
    assert f"- Start: the learner of {linear_run}" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "fomaml"], "is a run of maml; this is one of fomaml"),
        (
            ["train", "maml", "--inner-rate", "0.5"],
            "has --inner-rate 0.01, this run 0.5: the learner holds it. Give it 0.01 too",
        ),
    ],
)
def test_a_run_of_other_settings_is_no_start(linear_run, words, message, tmp_path, monkeypatch, capsys):
    """Catches an option that has no effect, since the learner that training starts from holds another value."""
    monkeypatch.chdir(tmp_path)
    assert main([*words, *LINEAR[2:], "--start-from", str(linear_run)]) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_run_of_another_network_is_no_start():
    """Catches weights of another shape that are met inside a compiled step."""
    pool = mk.tasks.ImagePool(np.zeros((30, 20, 1, 28, 28), "uint8"))
    chosen = settings(Train("maml", "glyphs"), "glyphs", preset("maml", "glyphs"))
    ours, theirs = (build_learner(dataclasses.replace(chosen, way=way), pool, jax.random.key(0)) for way in (5, 3))
    with pytest.raises(
        UsageError, match=r"--start-from run holds another network: it has .* 3\] where this run has .* 5\]"
    ):
        _start._filled(ours, theirs, "--start-from run")


@pytest.mark.parametrize(
    ("data", "theirs", "ours", "message"),
    [
        ("omniglot", {"split": "lake"}, {}, "has --split lake, this run vinyals: another one would test on classes"),
        ("omniglot", {"trainval": True}, {}, "has seen the classes of validation.* Add --trainval"),
        ("folder", {"seed": 1}, {}, "has --seed 1, this run 0: another one would test on classes"),
        ("omniglot", {"trainval": True}, {"trainval": True}, None),
        ("glyphs", {"seed": 1}, {}, None),
    ],
)
def test_a_start_has_not_seen_the_test_s_classes(data, theirs, ours, message):
    """Catches a test on classes that the learner was trained on in the run before."""
    usual = settings(Train("prototypical", data, scale=1.0), data, preset("prototypical", data))
    one, other = dataclasses.replace(usual, **ours), dataclasses.replace(usual, **theirs)
    with pytest.raises(UsageError, match=message) if message else contextlib.nullcontext():
        _start._check_agreement(one, other, "--start-from run")


def test_a_run_without_checkpoints_is_no_start(tmp_path, linear_run):
    """Catches the record of a checkpoint folder that is asked for where training never came to one."""
    _, chosen = _run_folder.open_run(linear_run)
    with pytest.raises(UsageError, match=r"holds no checkpoint yet\. Continue it with --resume"):
        _start.trained_learner(_run_folder.RunFolder(tmp_path), chosen, _data.load(chosen))


@pytest.mark.parametrize(("trainval", "expected"), [(False, "best"), (True, "last")])
def test_the_last_learner_is_tested_where_validation_classes_were_trained_on(
    tmp_path, linear_run, monkeypatch, trainval, expected
):
    """Catches a learner that is chosen by a validation on its own training classes."""
    chosen = dataclasses.replace(_run_folder.open_run(linear_run)[1], trainval=trainval)
    data, folder, tested = _data.load(chosen), _run_folder.RunFolder(tmp_path), []
    best = mk.train.Best(
        jax.tree.map(lambda v: v + 1 if eqx.is_inexact_array(v) else v, _start.first_learner(chosen, data)), 0.0, 2
    )

    def fit(*args, checkpoints, **kwargs):
        _, state = _start.initial_state(chosen, data)
        checkpoints.save(state, best)
        return mk.train.FitResult(state, best.learner, 0.0, (), False)

    monkeypatch.setattr(mk.train, "fit", fit)
    monkeypatch.setattr(_train, "finish", lambda chosen, data, folder, learner, *rest: tested.append(learner))
    assert _train._run(chosen, data, folder, _train.Console(quiet=True)) == 0
    tested.append(_start.trained_learner(folder, chosen, data))
    right = {"best": best.learner, "last": _start.first_learner(chosen, data)}[expected]
    for learner in tested:
        assert all(np.array_equal(a, b) for a, b in zip(arrays(learner), arrays(right), strict=True))


@pytest.mark.parametrize(("data", "moves"), [("omniglot", True), ("glyphs", False)])
def test_classes_are_moved_in_training_alone(data, moves):
    """Catches a memory network that is validated or tested on moved images, or trained on Omniglot without."""
    chosen = settings(Train("mann", data), data, preset("mann", data))
    pool = mk.tasks.ImagePool(np.zeros((60, 20, 1, 20, 20), "uint8"))
    training, test = (form_of(chosen).sampler(chosen, pool, training=training) for training in (True, False))
    assert isinstance(training.augment_class, mk.tasks.TurnAndShift) == moves
    assert test.augment_class is None


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_input_gate_starts_about_the_inner_rate(rate):
    """Catches an --inner-rate of meta-lstm that is ignored, or taken for the gate before its sigmoid."""
    chosen = settings(Train("meta-lstm", inner_rate=rate), "glyphs", preset("meta-lstm", "glyphs"))
    pool = mk.tasks.ImagePool(np.zeros((5, 20, 1, 28, 28), "uint8"))
    biases = [build_learner(chosen, pool, jax.random.key(seed)).update.input.bias for seed in range(30)]
    middle = np.log(rate / (1 - rate))
    assert np.abs(np.asarray(biases) - middle).max() < 0.5
    assert np.ptp(biases) > 0.5  # a range, uniform: 30 draws lie within half of it with probability 3e-8


@pytest.mark.parametrize("algorithm", [name for name, entry in ALGORITHMS.items() if entry.fixed_way])
def test_the_way_of_the_test_follows_a_fixed_head(algorithm):
    """Catches a preset whose own --test-way refuses every other --way."""
    chosen = settings(Train(algorithm, way=3), "glyphs", preset(algorithm, "glyphs"))
    check_given({"way": 3}, chosen)
    assert chosen.test_way == 3


@pytest.mark.parametrize(("trained", "expected"), [(1, (0.5, 0.25, 0.125)), (2, (0.5, 0.5, 0.25))])
def test_updates_beyond_those_of_training_go_half_as_far(trained, expected):
    """Catches rates of the test that reach into training, or that do not fall from update to update."""
    chosen = settings(Train("rl-maml", inner_steps=trained), "navigation", preset("rl-maml", "navigation"))
    rates = build_learner(chosen, None, jax.random.key(0)).inner.rates
    for rate in jax.tree.leaves(rates):
        np.testing.assert_allclose(rate, expected)


def test_metagan_over_maml_is_tested_as_maml_is():
    """Catches inner steps of the test, or an untrained network's long adaptation, that the base never hears of."""
    chosen = settings(Train("metagan-maml"), "glyphs", preset("metagan-maml", "glyphs"))
    assert (chosen.inner_steps, chosen.test_inner_steps) == (1, 3)
    learner = build_learner(chosen, mk.tasks.ImagePool(np.zeros((30, 20, 1, 28, 28), "uint8")), jax.random.key(0))
    assert learner.adapt_to_fakes
    assert learner.base.num_steps == 1
    assert as_tested(chosen, learner, None).base.num_steps == 3
    what, untrained = ALGORITHMS["metagan-maml"].untrained(chosen, learner)
    assert (what, untrained.base.num_steps) == ("not meta-trained, adapted for 50 steps, without fakes", 50)
    assert untrained.num_fakes == 0
    assert float(untrained.loss.unlabelled_weight.value) == 0
    assert float(untrained.base.inner.rate.value) == pytest.approx(0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("data", DATA)
def test_every_preset_builds_its_learner_as_tested(algorithm, data):
    """Catches a preset whose parts do not fit (way, shots, key, labels), and one that trains for minutes and then
    cannot be tested: more test steps than there are rates. Traced, not compiled."""
    if data not in ALGORITHMS[algorithm].data:
        with pytest.raises(
            UsageError,
            match=rf"{algorithm} has no preset for --data {data}\. It trains on {ALGORITHMS[algorithm].data[0]}",
        ):
            preset(algorithm, data)
        return
    chosen = settings(Train(algorithm, data), data, preset(algorithm, data))
    check_given(explicit(Train(algorithm, data)), chosen)
    entry, form = ALGORITHMS[algorithm], form_of(chosen)
    size = form.omniglot_size if data == "omniglot" else 28
    pool = None if not chosen.has_classes else mk.tasks.ImagePool(np.zeros((60, 20, 1, size, size), "uint8"))
    tasks = {training: form.sampler(chosen, pool, training=training) for training in (True, False)}

    def train_and_test(key):
        learner = build_learner(chosen, pool, key)
        state = mk.train.init(learner, entry.optimiser(chosen), key=key)
        loss = entry.algorithm.meta_loss(state.learner, tasks[True](key), key)
        task = tasks[False](key)
        if data in ENVIRONMENTS:  # where adapting is a part of acting
            module = as_tested(chosen, learner, pool)
            return loss, form.scores(entry.algorithm, module, tasks[False], key, num_tasks=2)[form.score][:, None]
        adapted = entry.algorithm.adapt(as_tested(chosen, learner, pool), task.support, key)
        return loss, entry.algorithm.predict(adapted, task.query.x, key)

    loss, outputs = eqx.filter_eval_shape(train_and_test, jax.random.key(0))
    assert loss.shape == ()
    assert outputs.shape[1:] == ((chosen.test_way,) if chosen.has_classes else (1,))


def test_reptile_s_network_pools():
    """Strides, with which five times the steps reached two points less (docs/results.md)."""
    chosen = settings(Train("reptile", "omniglot"), "omniglot", preset("reptile", "omniglot"))
    pool = mk.tasks.ImagePool(np.zeros((10, 20, 1, 28, 28), "uint8"))
    blocks = build_learner(chosen, pool, jax.random.key(0)).model.blocks
    assert [(block.conv.stride, block.pool) for block in blocks] == [((1, 1), 2)] * 4


def test_the_report_s_command_makes_the_run_again(linear_run):
    """Catches a report whose command is that of a resumed run, or leaves out a setting."""
    _, chosen = _run_folder.open_run(linear_run)
    chosen = dataclasses.replace(chosen, rate=0.25, shot=7)
    words = as_command(chosen)
    assert words == "metakit train maml --data linear --shot 7 --rate 0.25 --smoke"


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
    assert ("checkpoints before it are in" in said) == any((folder / "checkpoints").glob("[0-9]*"))


def test_output_is_plain_when_it_is_not_a_terminal(tmp_path, capsys):
    """Catches control sequences in a log file."""
    assert main([*LINEAR, "--run", str(tmp_path / "run")]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_list_shows_every_algorithm(capsys):
    """Catches an algorithm that can be trained and is not listed."""
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ALGORITHMS:
        assert name in shown


ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = sorted(
    {
        found.strip()
        for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
        for found in re.findall(r"metakit train [a-z][^`#&|\n]*", page.read_text())
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_docs_are_commands(command):
    """Catches a figure whose command no longer exists, or asks for what its algorithm would not use."""
    words = command.replace("--seed S", "--seed 0").split()[2:]
    options = tyro.cli(Train, args=words)
    if options.resume is not None:
        return
    data = options.data or default_data(options.algorithm)
    check_given(explicit(options), settings(options, data, preset(options.algorithm, data)))
