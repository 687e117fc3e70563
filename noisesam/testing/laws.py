"""The laws, one function each: it returns what it found wrong, in words, or an empty string."""

from __future__ import annotations

from collections.abc import Callable

from noisesam.testing import laws_of_gradients, laws_of_passes, laws_of_state
from noisesam.testing.problem import ROUNDING, Factory

__all__ = ["LAWS", "ROUNDING", "Law", "law"]

Law = Callable[[Factory], str]
LAWS: dict[str, Law] = {}


def law(function: Law) -> Law:
    """Add a law to the suite under the words of its name."""
    LAWS[function.__name__.replace("_", " ")] = function
    return function


for _law in (
    laws_of_state.weights_are_restored_to_the_bit_and_in_place,
    laws_of_state.an_exception_in_any_pass_leaves_everything_as_it_was,
    laws_of_state.state_goes_round_and_the_run_goes_on_to_the_bit,
    laws_of_state.state_holds_tensors_numbers_and_text_alone_and_no_weights,
    laws_of_passes.counted_passes_are_the_passes_that_were_made,
    laws_of_passes.declared_limits_are_the_limits,
    laws_of_passes.the_order_of_a_batch_does_not_matter,
    laws_of_passes.repeated_runs_are_equal_to_the_bit_and_torchs_generators_serve_the_model_alone,
    laws_of_passes.running_statistics_move_once_a_step,
    laws_of_passes.dropout_masks_are_the_same_in_every_pass_over_the_batch,
    laws_of_gradients.scale_multiplies_the_gradient_alone,
    laws_of_gradients.with_a_scaler_grad_is_its_scale_times_the_gradient,
    laws_of_gradients.a_non_finite_pass_is_skipped_by_a_scaler_and_refused_without,
    laws_of_gradients.a_zero_gradient_gives_a_finite_step,
    laws_of_gradients.frozen_and_tied_parameters_are_right,
    laws_of_gradients.half_precision_weights_get_half_precision_gradients,
    laws_of_gradients.micro_batches_after_the_first_leave_the_counters,
    laws_of_gradients.what_is_asked_of_a_method_changes_nothing,
    laws_of_gradients.rows_that_were_not_evaluated_are_nan,
):
    law(_law)
