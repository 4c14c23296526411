"""The contract of a learner, as checks of your own one."""

from ._check import check as check, check_names as check_names
from ._form import (
    is_an_algorithm as is_an_algorithm,
    numbers_are_arrays as numbers_are_arrays,
    runs_in_float64 as runs_in_float64,
    takes_bare_transforms as takes_bare_transforms,
)
from ._inputs import (
    a_batch_of_tasks_is_refused as a_batch_of_tasks_is_refused,
    nan_is_never_a_number as nan_is_never_a_number,
    one_query_without_its_axis_raises as one_query_without_its_axis_raises,
    padding_is_refused_or_without_effect as padding_is_refused_or_without_effect,
    wrong_inputs_raise as wrong_inputs_raise,
    wrong_labels_are_never_a_number as wrong_labels_are_never_a_number,
)
from ._outcome import CheckFailed as CheckFailed, CheckSkipped as CheckSkipped
from ._purity import is_pure as is_pure, randomness_comes_from_the_key as randomness_comes_from_the_key
from ._report import Report as Report, Row as Row
from ._subject import Subject as Subject
from ._training import (
    adaptation_helps as adaptation_helps,
    resumes_bit_for_bit as resumes_bit_for_bit,
    scan_equals_loop as scan_equals_loop,
    training_helps as training_helps,
)
from ._transforms import (
    devices_agree as devices_agree,
    gradient_of_mean_equals_mean_of_gradients as gradient_of_mean_equals_mean_of_gradients,
    jit_equals_eager as jit_equals_eager,
    meta_gradient_equals_differences as meta_gradient_equals_differences,
    one_at_a_time_equals_all_at_once as one_at_a_time_equals_all_at_once,
    one_trace_over_changed_leaves as one_trace_over_changed_leaves,
    vmap_equals_loop as vmap_equals_loop,
)
