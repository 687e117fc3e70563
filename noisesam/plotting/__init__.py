"""Figures: tables of `noisesam.analysis` in, matplotlib Axes out. Loads no torch.

Every function draws on the Axes handed in, or makes a figure of its own, which pyplot does not know of: show it in a
notebook with `ax.figure`, write it with `save`. The user's `matplotlib.rcParams` are left as they are. The look of each
method is fixed in `noisesam.plotting.style`, whose `style()` lends it to figures of one's own.
"""

from __future__ import annotations

from noisesam.plotting.accuracy import plot_accuracy_curves, plot_test_accuracy
from noisesam.plotting.controls import plot_control_advantage, plot_control_step_length
from noisesam.plotting.controls_dots import plot_control_losses, plot_control_matched
from noisesam.plotting.controls_grid import plot_control_regulariser
from noisesam.plotting.drawing import Drawn, DrawnFigures, draw_all
from noisesam.plotting.gradient_weight import plot_gradient_weight
from noisesam.plotting.memorisation import plot_memorisation
from noisesam.plotting.norms import plot_norms
from noisesam.plotting.saving import SavedFigure, save
from noisesam.plotting.scoreboard import plot_scoreboard
from noisesam.plotting.style import GROUP_STYLES, METHOD_STYLES, PREDICTION_STYLES, Look, method_style
from noisesam.plotting.toy import plot_toy_accuracy, plot_toy_ratios, plot_toy_traps
from noisesam.plotting.transition import plot_transition_matrix
from noisesam.plotting.weights_against_loss import plot_weights_against_loss

__all__ = [
    "GROUP_STYLES",
    "METHOD_STYLES",
    "PREDICTION_STYLES",
    "Drawn",
    "DrawnFigures",
    "Look",
    "SavedFigure",
    "draw_all",
    "method_style",
    "plot_accuracy_curves",
    "plot_control_advantage",
    "plot_control_losses",
    "plot_control_matched",
    "plot_control_regulariser",
    "plot_control_step_length",
    "plot_gradient_weight",
    "plot_memorisation",
    "plot_norms",
    "plot_scoreboard",
    "plot_test_accuracy",
    "plot_toy_accuracy",
    "plot_toy_ratios",
    "plot_toy_traps",
    "plot_transition_matrix",
    "plot_weights_against_loss",
    "save",
]
