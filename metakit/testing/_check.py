"""The battery: every check on one learner."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from metakit._errors import nearest

from ._form import is_an_algorithm, numbers_are_arrays, runs_in_float64, takes_bare_transforms
from ._inputs import (
    a_batch_of_tasks_is_refused,
    nan_is_never_a_number,
    one_query_without_its_axis_raises,
    padding_is_refused_or_without_effect,
    wrong_inputs_raise,
    wrong_labels_are_never_a_number,
)
from ._outcome import CheckFailed, CheckSkipped
from ._purity import is_pure, randomness_comes_from_the_key
from ._report import Report, Row
from ._subject import Subject
from ._training import adaptation_helps, resumes_bit_for_bit, scan_equals_loop, training_helps
from ._transforms import (
    devices_agree,
    gradient_of_mean_equals_mean_of_gradients,
    jit_equals_eager,
    meta_gradient_equals_differences,
    one_at_a_time_equals_all_at_once,
    one_trace_over_changed_leaves,
    vmap_equals_loop,
)

_CHECKS: tuple[Callable[..., Any], ...] = (
    is_an_algorithm,  # the others need it
    numbers_are_arrays,
    runs_in_float64,
    is_pure,
    randomness_comes_from_the_key,
    takes_bare_transforms,
    jit_equals_eager,
    vmap_equals_loop,
    meta_gradient_equals_differences,
    gradient_of_mean_equals_mean_of_gradients,
    one_at_a_time_equals_all_at_once,
    devices_agree,
    one_trace_over_changed_leaves,
    scan_equals_loop,
    resumes_bit_for_bit,
    adaptation_helps,
    training_helps,
    wrong_inputs_raise,
    one_query_without_its_axis_raises,
    a_batch_of_tasks_is_refused,
    padding_is_refused_or_without_effect,
    wrong_labels_are_never_a_number,
    nan_is_never_a_number,
)


def check(
    algorithm: Any, learner: Any, sampler: Callable[..., Any], *, skip: Sequence[str] = (), **options: Any
) -> Report:
    """Hold a learner of your own to the contract that metakit's learners are held to.

    Every check of this module, one after another: the form of the three functions, purity, `jit`, `vmap`, the gradient
    against differences in float64, several devices, one trace, compiled training, checkpoints, and bad inputs. Learner
    and tasks are cast to float64 for it, in a context of its own, so that rounding hides no fault. Give a small learner
    and small tasks: everything is compiled, some seconds a check.

    In a test of yours it is two lines: `def test_it(): mk.testing.check(my_learner, learner, sampler).require()`.

    **Arguments:**

    - `algorithm`, `learner`, `sampler`: as everywhere.
    - `skip`: names of checks to leave out; default none.
    - `options`: those of `Subject`, such as `metric=mk.metrics.accuracy` for `adaptation_helps`.

    **Returns:** a `Report`: `report.ok`, `report.rows`, and a line a check when printed. A check that needs what was
    not given, or devices that are not there, is skipped, with the reason.

    **Raises:** `TypeError` and `ValueError` as `Subject`, and `ValueError` for an unknown name in `skip`. What a check
    finds is never raised; `report.require()` raises it.

    >>> import jax, metakit as mk
    >>> learner = mk.ridge.Ridge(mk.nn.MLP(1, 4, 8, 1, key=jax.random.key(0)), penalty=mk.learned(1.0))
    >>> everything_else = [name for name in mk.testing.check_names() if name != "jit_equals_eager"]
    >>> print(mk.testing.check(mk.ridge, learner, mk.tasks.Sinusoid(shot=5, queries=5), skip=everything_else[1:]))
    metakit.learners.ridge: 2 checks hold, 0 failed, ... skipped
      holds    is_an_algorithm: The three functions take (learner, support), (adapted, x), (learner, task) and a key...
      skipped  numbers_are_arrays: Left out by `skip`...
    """
    for name in [skip] if isinstance(skip, str) else skip:
        if name not in check_names():
            raise ValueError(f"skip names {name!r}, which is no check. {nearest(str(name), list(check_names()))}")
    subject = Subject(algorithm, learner, sampler, **options)
    rows: list[Row] = []
    for function in _CHECKS:
        name = function.__name__
        if name in skip:
            rows.append(Row(name, "skipped", "Left out by `skip`.", ""))
        elif rows and rows[0].outcome == "failed":
            rows.append(Row(name, "skipped", "It waits for is_an_algorithm.", ""))
        else:
            rows.append(_row(function, subject))
    return Report(subject.name, tuple(rows))


def check_names() -> tuple[str, ...]:
    """The names of all checks, in the order in which `check` makes them; each is a function of `mk.testing`.

    **Returns:** names, such as for `skip`.

    >>> check_names()[:2]
    ('is_an_algorithm', 'numbers_are_arrays')
    """
    return tuple(function.__name__ for function in _CHECKS)


def _row(function: Callable[..., Any], subject: Subject) -> Row:
    try:
        result = function(subject)
    except CheckFailed as failure:
        return Row(function.__name__, "failed", failure.found, failure.advice)
    except CheckSkipped as reason:
        return Row(function.__name__, "skipped", str(reason), "")
    says = (inspect.getdoc(function) or "").splitlines()[0]
    return Row(
        function.__name__, "holds", f"{says} {result}." if isinstance(result, str) and _tells(function) else says, ""
    )


def _tells(function: Callable[..., Any]) -> bool:
    """Whether what a check returns belongs into its line: the intervals do, the messages of refusals do not."""
    return function in (adaptation_helps, training_helps)
