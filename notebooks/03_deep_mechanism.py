# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which part of SAM resists wrong labels in a network?
#
# The gradient of one example is $J^\top r$: the logit scale $r$ says how wrong the output is, the Jacobian $J$ how the weights move it. 1-SAM, which is
# sharpness-aware minimization with a perturbation $\epsilon_i$ for every example, takes both at $w+\epsilon_i$. L-SAM perturbs the logit scale alone, J-SAM the Jacobian alone.
# ([02_linear_theory](02_linear_theory.ipynb) shows what that means where it can be solved.)
#
# If 1-SAM helps, then one of its two halves may be enough. So: train all of them on the same wrong labels, and look.
#
# The setting is the digits of [the reproduction's cpu scale](../experiments/baek2024-cpu-digits.toml): 1,000 images, 40% of them with a wrong label, a network with two
# hidden layers, five seeds. Each method's radius $\rho$ was chosen by `noisesam sweep --calibrate` on validation images whose labels are noisy too
# ([every try](../experiments/calibration.toml)).

# %%
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd

import noisesam
from noisesam import analysis, experiments, plotting

SMALL = os.environ.get("NOISESAM_PRESET") == "small"  # seconds instead of minutes, for tests: the numbers then mean nothing
METHODS = ("sgd", "1-sam", "l-sam", "j-sam")

sweep = experiments.read_sweep(Path("../experiments/baek2024-cpu-digits.toml"))
chosen = experiments.read_calibration(Path("../experiments/calibration.toml"))
folder = tempfile.TemporaryDirectory()
jobs = [job for job in sweep.jobs(Path(folder.name), chosen) if job.name.startswith("main-")]
jobs = [job for job in jobs if job.config.method.name in METHODS and not (SMALL and job.config.seed > 1)]


def shrunk(config):
    return replace(
        config,
        data=replace(config.data, train_size=300, test_size=200),
        training=replace(config.training, epochs=4),
        tracking=replace(config.tracking, probe_size=64, probe_every=2),
    )


for job in jobs:
    noisesam.fit(shrunk(job.config) if SMALL else job.config, job.folder)
EPOCHS = jobs[0].config.training.epochs
runs = noisesam.open_runs(folder.name)
runs

# %% [markdown]
# ## Does SGD memorise at all?
#
# If it did not, there would be nothing to resist. Each panel follows the right labels (blue), the wrong ones (red: the share that the network has
# come to repeat) and the test images, whose labels are right. The three marks are three ways to stop: at the best test accuracy, which nobody can know in
# practice; where the accuracy on held-out images **with noisy labels** is highest, which anybody can; and at the end.

# %%
stops = analysis.early_stopping(runs)
plotting.plot_accuracy_curves(runs.metrics, stops)[0].figure

# %%
columns = ["test_accuracy", "clean_fitted", "noisy_fitted", "epoch"]
stops.groupby(["selection", "method"], sort=False)[columns].mean().round(3)

# %% [markdown]
# **Answer.** It does. SGD first learns what the images show, then it fits a good part of the wrong labels, and its test accuracy falls.
#
# ## Which half keeps the gain?

# %%
plotting.plot_test_accuracy(runs.metrics, stops).figure

# %% [markdown]
# Every method saw the same images, the same wrong labels and the same first weights at a seed. So differences are taken seed by seed; the interval is the 95% t
# interval of their mean.

# %%
gains = analysis.paired_differences(runs, baseline="sgd")
gains[["method", "selection", "difference", "low", "high", "pairs"]].round(3)

# %%
for sentence in analysis.findings(runs):
    print("-", sentence)

# %% [markdown]
# **Answer.** At the end of training the Jacobian half has all of the gain, and what the logit-scale half has cannot be told from none. J-SAM's curve is 1-SAM's, L-SAM's is SGD's.
# On a linear model it is the other way round: there the logit scale is all there is. So the explanation of the linear model does not carry over to this
# network. At early stopping the gains of 1-SAM and J-SAM are 3 to 4 points and can be told from none; L-SAM's cannot,
# and the Jacobian half is worth 2.7 points more than the logit-scale half.
#
# ## Whose gradient counts?
#
# The natural picture is the ratio: how large is the step term of a correctly labelled example, compared with that of a wrongly labelled one? It can be
# measured in two ways, and they are different questions.

# %%
on_path = analysis.gradient_weight(runs)
at_equal_weights = analysis.gradient_weight_at_equal_weights(runs, baseline="sgd")
plotting.plot_gradient_weight(on_path, at_equal_weights)[0].figure

# %%
early = at_equal_weights[(at_equal_weights["epoch"] > 0) & (at_equal_weights["epoch"] <= 0.1 * EPOCHS)]
early.groupby("rule", sort=False)[["ratio", "relative_ratio"]].mean().round(3)

# %% [markdown]
# **Answer.** *At equal weights* (left; the table takes the first tenth of training, `relative_ratio` divides by SGD's) 1-SAM and L-SAM, which perturb the logit scale, listen more to the
# right labels than SGD does: a little early, much later on. J-SAM does not; it lies on SGD's line or below. Yet J-SAM is the half that helps and L-SAM the half that
# does not. A larger share for the right labels in the single step is not what protects this network.
#
# *On each method's own path* (right) J-SAM looks as if it had listened to the right labels all along. But there it stands at other weights, at which it has
# fitted fewer wrong labels. The ratio is then a consequence as much as a cause. Never compare methods by such a curve alone.
#
# ## Does the logit scale favour examples of low loss, as in the linear model?
#
# Here the probe examples of SGD's runs are sorted by their loss. The upper row shows by what factor the perturbation changes the logit scale, the lower row the Jacobian's
# part.

# %%
weights = analysis.weights_against_loss(runs)
plotting.plot_weights_against_loss(weights, method="sgd")[0, 0].figure

# %% [markdown]
# **Answer.** The upper row falls from left to right: yes, low loss is favoured, as in the linear model. The lower row stays within about a tenth of 1: at any one step the perturbation
# hardly changes the *size* of the Jacobian's part. If J-SAM helps, then by where its step points.
#
# ## What does it do to the weights?
#
# T4 to T7 say what J-SAM's small change is: a penalty on the last hidden activation and on the last layer.

# %%
norms = analysis.norms(runs)
plotting.plot_norms(norms)[0].figure

# %%
last = norms[norms["epoch"] == norms["epoch"].max()]
last.groupby("method", sort=False)[["hidden_activation_norm", "last_layer_norm"]].mean().round(2)

# %% [markdown]
# **Answer.** J-SAM and 1-SAM keep both small: that is what the law predicts. L-SAM lets both grow, further than SGD; of that it says nothing.
#
# ## Is it only slower?
#
# A method that fits more slowly looks better at any fixed epoch. So compare at **equal accuracy on the correctly labelled training images** instead: at the first
# epoch that reaches it.

# %%
equal = analysis.at_equal_clean_accuracy(runs, levels=(0.8, 0.9, 0.95))
table = equal.groupby(["level", "method"], sort=False)
table.agg(
    reached=("reached", "sum"), epoch=("epoch", "mean"), test=("test_accuracy", "mean"), wrong=("noisy_fitted", "mean")
).round(3)

# %% [markdown]
# `reached` counts the seeds that got there, `wrong` is the share of wrong labels fitted by then.
#
# **Answer.** Up to these levels, yes. 1-SAM and J-SAM take up to 1.7 times as many epochs, and at equal accuracy on what is right they are behind in test accuracy at 80%, level at 90%, a point ahead at 95%, and have fitted
# about as few wrong labels. The difference comes afterwards: SGD and L-SAM go on to memorise, 1-SAM and J-SAM go on to learn first and memorise later and less (the first picture). So do not read a curve at a fixed epoch, in
# either direction.

# %% [markdown]
# ## Is it so on other data?
#
# The kept runs of the [whole cpu scale](../figures/README.md): three more data sets, each with one network that SGD brings to fit more than half of the wrong labels. Test
# accuracy minus SGD's, in points, with 95% intervals.

# %%
kept = pd.read_csv("../figures/baek2024-cpu-differences.csv")
kept = kept[(kept["variant"] == "main") & kept["method"].isin(METHODS) & (kept["selection"] != "oracle")]
numbers = 100 * kept[["difference", "low", "high"]].to_numpy()
kept["points"] = [f"{middle:+.1f} ({low:+.1f} to {high:+.1f})" for middle, low, high in numbers]
kept.pivot_table(index=["experiment", "selection"], columns="method", values="points", aggfunc="first")[
    ["1-sam", "l-sam", "j-sam"]
]

# %% [markdown]
# **Answer.** In part. On 400 images of CIFAR-10 with a ResNet-8 that is trained by Adam, 1-SAM and J-SAM keep 3 and 4 points at the end of training, on Fashion-MNIST with a small
# convolutional network about 5, of which J-SAM's alone can be told from none; L-SAM has no gain that can be told on either, but with three seeds the two halves cannot be told from each other there. At early stopping none can be told outside of digits. On the labels that
# people gave to CIFAR-10 there is no gain at the end. [REPORT.md](../REPORT.md) has all claims and where the evidence is thin.
#
# ## What this page does not show
#
# One network for each data set, one noise rate, few seeds. Other widths, rates, learning rates and numbers of images are the controls of `noisesam reproduce baek2024 --scale
# controls`. The claims and the rules by which they are judged stand in [docs/mechanism.md](../docs/mechanism.md#claims).

# %%
folder.cleanup()
