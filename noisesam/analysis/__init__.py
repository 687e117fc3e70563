"""Tables in, tables out: early stopping, memorisation and gradient weight of saved runs. Loads no torch.

Every function takes `runs`: a `RunCollection` (`noisesam.open_runs`), one `Run` (`noisesam.open_run`), or the tidy metrics
table with the columns run, method, setting, seed, step, epoch, split, group, metric, value (`RunCollection.metrics`).
Only `weights_against_loss` and the shares of the gradient weight need the examples table, so a bare metrics table has no
shares (NaN). What a run did not measure is NaN, never a guess: no true labels, no validation set, no probe, a single seed.

Accuracies, fractions and shares lie in [0, 1]; epochs are passes over the training set, steps are optimizer steps.
`setting` is the label of what differs between the settings of the collection, such as "rho=0.1"; empty if nothing does.

RUN stands for the four columns run, method, setting, seed. The tables and their columns, in this order:

early_stopping(runs): one row per run and selection
    RUN, selection ("oracle": first highest test accuracy; "validation": first highest accuracy on the noisy validation
    examples; "last": last evaluation), step, epoch, test_accuracy, validation_accuracy, train_accuracy,
    clean_fitted (accuracy on correctly labelled training examples), noisy_fitted (wrong labels reproduced),
    gap (oracle's test_accuracy minus this row's)

noise_fitting_onset(runs, classes=None): one row per run
    RUN, reached (bool), step, epoch (NaN if not reached), noisy_fitted, clean_fitted, test_accuracy (at the onset),
    chance (1/K), threshold (chance plus two binomial standard errors), noisy_count (wrongly labelled training examples)

gradient_weight(runs, quantity="step_gradient_norm"): one row per run and probed step
    RUN, step, epoch, quantity, clean, noisy (group means), ratio (clean/noisy), clean_share, noisy_share (of the sum over
    probe examples), cumulative_ratio (ratio of the integrals over epochs so far)

gradient_weight_at_equal_weights(runs, baseline="sgd"): one row per baseline run, probed step and rule
    RUN (of the baseline run), step, epoch, rule ("sgd", "sam", "1-sam", "l-sam", "j-sam"), clean, noisy, ratio, clean_share,
    noisy_share, relative_ratio (ratio divided by the ratio of rule "sgd" at the same weights: above 1 means that the rule
    shifts weight to the correctly labelled examples)

weights_against_loss(runs, bins=8): one row per run, probed step, group ("all", "clean", "noisy") and occupied loss bin
    RUN, step, epoch, group, bin (0 = lowest loss; quantiles of the loss of ALL probe examples of that run and step),
    loss_low, loss_high (edges, nats), loss (mean in the bin), count, logit_weight, jacobian_weight (ratios of means),
    logit_weight_median, jacobian_weight_median, left_out (examples whose residual is exactly zero)

memorisation(runs): one row per run and evaluated step
    RUN, step, epoch, predicts_true, predicts_observed, predicts_other (fractions of the wrongly labelled training
    examples), clean_fitted, train_accuracy, validation_accuracy, test_accuracy

norms(runs): one row per run and probed step
    RUN, step, epoch, hidden_activation_norm, hidden_activation_norm_clean, hidden_activation_norm_noisy, last_layer_norm,
    weight_norm, distance_from_initialisation, feature_rank

at_equal_clean_accuracy(runs, levels=(0.5, ..., 0.99)): one row per run and level
    RUN, level, group ("clean"; "all" for a run without true labels), reached (bool), step, epoch (first evaluation at which
    the training accuracy of the group is at least the level; NaN if not reached), fitted (that accuracy), test_accuracy,
    validation_accuracy, noisy_fitted

at_equal_compute(runs, budgets=None, cost="passes"): one row per run, budget and selection ("oracle", "validation", "last", each
    among the evaluations within the budget); cost "passes" counts steps of SGD, "seconds" the wall time of the training steps
    RUN, cost, budget, selection, reached (bool), step, epoch, spent, test_accuracy, validation_accuracy, train_accuracy,
    clean_fitted, noisy_fitted

compute_spent(runs, cost="passes"): one row per run and evaluation
    RUN, step, epoch, spent (since the start of the run, in the units of the cost)

matched_differences(matched, baseline="sgd"): one row per method and setting, and level or budget, of one of the two tables of
    runs at equal clean accuracy or at equal compute: the differences of test accuracy to the baseline, paired by seed
    method, setting, baseline, baseline_setting, level (or cost, budget, selection), difference, sd, low, high, pairs

summary(runs, confidence=0.95, interval_method="t"): one row per method and setting, over seeds
    method, setting, seeds (number of runs), then for each quantity Q below the four columns Q_mean, Q_sd, Q_low, Q_high:
        oracle_test_accuracy, oracle_epoch, oracle_clean_fitted, oracle_noisy_fitted, and the same with validation_ and last_;
        early_ratio, oracle_ratio, validation_ratio (clean/noisy ratio of step_gradient_norm: over the probes of the first
        tenth of training without step 0, and at the probe nearest to the selected epoch); onset_epoch (runs that reached it)
    and last: onset_reached (number of runs), forward_passes, backward_passes (batch passes per step), step_seconds (median)

paired_differences(runs, baseline="sgd", confidence=0.95, interval_method="t"): one row per setting of every other method,
    setting of the baseline it is compared with, and selection ("oracle", "validation", "last")
    method, setting, baseline, baseline_setting, selection, difference (mean over seeds of the method's test accuracy minus
    the baseline's at the same seed), sd, low, high, pairs (number of common seeds)

findings(runs, baseline="sgd") -> list[str]: sentences in plain language, computed from these tables.

scoreboard(noisy, clean=None, mechanism=None): one row per method of one setting
    method, seeds; for early (epoch chosen on noisy validation) and last: accuracy mean and sd, difference to sgd (paired,
    95%), share of 1-SAM's gain with its bootstrap interval; clean_early, clean_last (runs without wrong labels);
    logit_weight and jacobian_weight, _clean and _noisy; norms at the end; passes, step_seconds, seconds_ratio

interval(values, confidence=0.95, method="t", seed=0) -> Interval(mean, sd, low, high, n)
paired_difference(values, baseline, ...) -> Interval of values - baseline over common keys (seeds)
"""

from noisesam.analysis.comparison import paired_differences, summary
from noisesam.analysis.compute import at_equal_compute, compute_spent, matched_differences
from noisesam.analysis.curves import memorisation, norms
from noisesam.analysis.scoreboard import scoreboard
from noisesam.analysis.statistics import Interval, interval, paired_difference, share_of_gain
from noisesam.analysis.stopping import at_equal_clean_accuracy, early_stopping, noise_fitting_onset
from noisesam.analysis.verdicts import findings
from noisesam.analysis.weights import gradient_weight, gradient_weight_at_equal_weights, weights_against_loss

__all__ = [
    "Interval",
    "at_equal_clean_accuracy",
    "at_equal_compute",
    "compute_spent",
    "early_stopping",
    "findings",
    "gradient_weight",
    "gradient_weight_at_equal_weights",
    "interval",
    "matched_differences",
    "memorisation",
    "noise_fitting_onset",
    "norms",
    "paired_difference",
    "paired_differences",
    "scoreboard",
    "share_of_gain",
    "summary",
    "weights_against_loss",
]
