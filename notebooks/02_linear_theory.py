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
# # What a sharpness-aware step does where it can be solved
#
# Train a network on labels of which some are wrong. Sharpness-aware minimization (SAM) resists them better than plain
# stochastic gradient descent (SGD). Why? On linear models the answer can be written down, and here it is drawn.
#
# Everything starts from one split. The gradient of one example's loss is a product:
#
# $$\nabla_w \ell = J^\top r .$$
#
# * $r$, the **logit scale**, says how wrong the output is. It is small for an example that is fitted, large for one that is not.
# * $J$, the **Jacobian**, says how the weights move the output.
#
# SAM first moves the weights uphill, $w \to w + \epsilon$ with $\lVert\epsilon\rVert = \rho$, and takes the gradient there. *1-SAM* gives every example its
# own $\epsilon_i$. The new gradient differs from the old one in $r$, in $J$, or in both, so each can be switched on alone:
#
# | method | gradient of one example |
# |---|---|
# | SGD | $J(w)^\top r(w)$ |
# | 1-SAM | $J(w+\epsilon_i)^\top r(w+\epsilon_i)$ |
# | L-SAM, logit scale only | $J(w)^\top r(w+\epsilon_i)$ |
# | J-SAM, Jacobian only | $J(w+\epsilon_i)^\top r(w)$ |
#
# The split and these methods are those of Baek, Kolter and Raghunathan (2024, [arXiv:2405.03676](https://arxiv.org/abs/2405.03676)).
# The laws T1 to T6 are stated in [docs/mechanism.md](../docs/mechanism.md#laws). All numbers below are computed in float64 by the cells
# that show them.

# %%
# %matplotlib inline
import dataclasses
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import noisesam
from noisesam import data, methods, models
from noisesam.plotting import GROUP_STYLES, method_style
from noisesam.plotting.style import style

SMALL = os.environ.get("NOISESAM_PRESET") == "small"  # seconds instead of minutes, for tests: the numbers then mean nothing
CLEAN, NOISY = GROUP_STYLES["clean"].color, GROUP_STYLES["noisy"].color
deviations = {}  # law -> largest difference between the two sides, relative to the largest entry


def gradient(name, model, x, y, *, loss, **options):
    """The gradient of a method's step as one vector; nothing is trained."""
    found = methods.make(name, model, loss=loss, **options).step_gradient(x, y)
    return torch.cat([found[key].flatten() for key, _ in model.named_parameters()])


def relative(one, other):
    return float((one - other).abs().max() / other.abs().max())


# %% [markdown]
# ## T1. What does 1-SAM do to a linear model?
#
# Two classes, one logit $f = \langle w, x\rangle$, labels $t = \pm 1$ of which 40% are flipped. All inputs are scaled to the same length, since only
# then can two examples be compared. A few steps of gradient descent make the correctly labelled examples easier than the wrong ones.

# %%
LENGTH, RHO = 3.0, 0.3

toy = data.add_label_noise(
    data.gaussian(100 if SMALL else 400, 20, signal=3.0, noise_std=1.0, seed=0, dtype=torch.float64), "symmetric", 0.4, seed=0
)
toy = dataclasses.replace(toy, inputs=LENGTH * toy.inputs / toy.inputs.norm(dim=1, keepdim=True))
x, y, wrong = toy.inputs, toy.labels, toy.is_noisy
t = (2 * y - 1).double()

model = models.make("linear", input_shape=(20,), classes=1, bias=False, init_std=0.1, seed=0).double()
sgd = methods.make("sgd", model, loss="logistic")
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(5):
    optimizer.zero_grad()
    sgd.backward(x, y)
    optimizer.step()

z = t * model(x).detach()[:, 0]  # the margin: positive where the model agrees with the observed label
print(f"mean margin: {float(z[~wrong].mean()):+.2f} with a right label, {float(z[wrong].mean()):+.2f} with a wrong one")

# %% [markdown]
# The law says: 1-SAM's logit scale is SGD's, **shifted** along the margin by $\rho\lVert x\rVert$. Dots are measured by the software, lines are the formula
# $\sigma(-z + \rho\lVert x\rVert)$.

# %%
with style():
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    grid = torch.linspace(float(z.min()) - 0.5, float(z.max()) + 0.5, 200, dtype=torch.float64)
    for rho, shade in ((0.0, "#000000"), (0.15, "#f0a060"), (RHO, "#d55e00")):
        ax.plot(grid, torch.sigmoid(-grid + rho * LENGTH), color=shade, label="SGD" if rho == 0 else f"1-SAM, ρ = {rho:g}")
        parts = noisesam.decompose(model, x, y, loss="logistic", rho=rho or None)
        measured = parts.residual_norm if rho == 0 else parts.perturbed_residual_norm
        ax.plot(z[::4], measured[::4], ".", color=shade, markersize=4)
        deviations[f"T1: logit scale at ρ = {rho:g}"] = relative(measured, torch.sigmoid(-z + rho * LENGTH))
    ax.set_xlabel("margin z at w")
    ax.set_ylabel("logit scale of the example")
    ax.legend()

# %% [markdown]
# And the Jacobian? That of a linear model is $x$ at every $w$: there is nothing to perturb. So L-SAM must be 1-SAM, and J-SAM must be SGD.

# %%
steps = {name: gradient(name, model, x, y, loss="logistic", rho=RHO) for name in ("1-sam", "l-sam", "j-sam")}
steps["sgd"] = gradient("sgd", model, x, y, loss="logistic")
deviations["T1: L-SAM = 1-SAM"] = relative(steps["l-sam"], steps["1-sam"])
deviations["T1: J-SAM = SGD"] = relative(steps["j-sam"], steps["sgd"])
names = ["sgd", "j-sam", "1-sam", "l-sam"]
distance = [[relative(steps[one], steps[other]) for other in names] for one in names]
print("largest difference between the steps of row and column, relative to the largest entry of the column's")
pd.DataFrame(distance, index=names, columns=names).map("{:.1e}".format)

# %% [markdown]
# **Answer.** On a linear model 1-SAM is SGD on a loss whose margin is shifted. Only the logit scale takes part.
#
# ## T2. Whom does the shift favour?
#
# Divide the two logit scales: $h(z) = \sigma(-z + C)/\sigma(-z)$ with $C = \rho\lVert x\rVert$. It is the factor by which 1-SAM raises an example above SGD **at the same
# weights**.

# %%
with style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.1), layout="constrained")
    far = torch.linspace(-6, 6, 200, dtype=torch.float64)
    for rho in (0.1, 0.2, RHO):
        shift = rho * LENGTH
        left.plot(far, torch.sigmoid(-far + shift) / torch.sigmoid(-far), color="#7a7a7a", linewidth=1)
        left.axhline(np.exp(shift), color="#7a7a7a", linewidth=0.8, linestyle=":")
        left.annotate(f"$e^C$, ρ = {rho:g}", (-6, np.exp(shift)), va="bottom", fontsize=8, color="#555555")
    parts = noisesam.decompose(model, x, y, loss="logistic", rho=RHO)
    for mask, color, label in ((~wrong, CLEAN, "right label"), (wrong, NOISY, "wrong label")):
        left.plot(z[mask][::3], parts.logit_weight[mask][::3], "o", color=color, markersize=3.5, label=label)
        right.hist(z[mask], bins=24, color=color, alpha=0.55, label=label)
    left.set_ylim(bottom=0.95)
    left.set_title("how much 1-SAM raises an example")
    left.set_ylabel("h(z)")
    right.set_title("where the examples are")
    right.set_ylabel("examples")
    for ax in (left, right):
        ax.set_xlabel("margin z at w")
    right.legend()
deviations["T2: weight = h(z)"] = relative(parts.logit_weight, torch.sigmoid(-z + RHO * LENGTH) / torch.sigmoid(-z))
for mask, label in ((~wrong, "right"), (wrong, "wrong")):
    print(f"mean h at ρ = {RHO:g}, {label} label: {float(parts.logit_weight[mask].mean()):.3f}")

# %% [markdown]
# **Answer.** $h$ rises with the margin, from 1 to $e^C$: the shift favours examples **whose loss is already low**. The rule never sees which labels are wrong.
# But correctly labelled examples are learnt first, so early in training the favoured ones are mostly the right ones, as the two means show.
#
# ## T3. And one perturbation for the whole batch?
#
# The SAM that everyone uses has one $\epsilon$ for the batch. On a linear model it shifts example $i$ by $-\rho\, t_i \langle g/\lVert g\rVert, x_i\rangle$, with $g$ the batch gradient.
# That is never more than 1-SAM's $\rho\lVert x_i\rVert$, and it can be negative.

# %%
shared = methods.make("sam", model, loss="logistic", rho=RHO).perturbation(x, y)
moved = noisesam.decompose(model, x, y, loss="logistic", perturbation=shared).perturbed_residual_norm
measured = torch.logit(moved) + z  # the shift, read off the logit scale
g = gradient("sgd", model, x, y, loss="logistic")
deviations["T3: shift of SAM"] = relative(measured, -RHO * t * (x @ (g / g.norm())))
share = measured / (RHO * LENGTH)

with style():
    figure, ax = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
    bins = np.linspace(-1, 1, 41)
    ax.hist(share[~wrong], bins=bins, color=CLEAN, alpha=0.55, label="right label")
    ax.hist(share[wrong], bins=bins, color=NOISY, alpha=0.55, label="wrong label")
    ax.axvline(1, color="#000000", linestyle="--", label="1-SAM, every example")
    ax.axvline(0, color="#555555", linewidth=0.8)
    ax.set_xlabel("SAM's shift as a share of 1-SAM's")
    ax.set_ylabel("examples")
    ax.legend(loc="upper left")
size = share.abs().mean()
print(f"mean size of SAM's shift: {float(size):.2f} of 1-SAM's; largest: {float(share.abs().max()):.2f}")
for mask, label in ((~wrong, "right"), (wrong, "wrong")):
    print(
        f"mean shift, {label} label: {float(share[mask].mean()):+.2f}; negative for {float((share[mask] < 0).double().mean()):.0%}"
    )

# %% [markdown]
# **Answer.** A shared perturbation points along the batch gradient, and one example's input is only partly along it. Most of the shift is lost, and an
# example that disagrees with the batch is moved the other way. So SAM weighs by agreement with the batch, and 1-SAM by the example's own margin. Which of
# the two resists wrong labels better is a question for training, not for this page.
#
# ## T4. What does the Jacobian do, where there is one?
#
# Two linear layers, $f = \langle v, Wx\rangle$, is the smallest model whose Jacobian depends on the weights. Write $z = Wx$, $s = \sigma(-tf)$ and
# $a = \lVert\nabla f\rVert = \sqrt{\lVert z\rVert^2 + \lVert x\rVert^2\lVert v\rVert^2}$. The law: J-SAM is SGD plus the gradient of a penalty,
#
# $$\lambda\,\big(\tfrac12\lVert z\rVert^2 + \tfrac12\lVert x\rVert^2\lVert v\rVert^2\big), \qquad \lambda = \rho\,s/a \text{ held constant.}$$
#
# It is exact for every $\rho$, small or large. So $(\text{J-SAM} - \text{SGD})/\rho$ must be one and the same vector for all $\rho$: the penalty's gradient.

# %%
two = models.make("two-layer-linear", input_shape=(20,), classes=1, width=8, bias=False, init_std=0.3, seed=1).double()
W, v = two.body[1].weight, two.last_layer.weight[0]


def hidden_scale_and_size():
    hidden = x @ W.T
    s = torch.sigmoid(-t * (hidden @ v))
    square = hidden.square().sum(1) + x.square().sum(1) * v.square().sum()
    return s, square


s, square = hidden_scale_and_size()
penalty = (s.detach() / square.detach().sqrt() * 0.5 * square).mean()
predicted = torch.cat([part.flatten() for part in torch.autograd.grad(penalty, list(two.parameters()))])
plain = gradient("sgd", two, x, y, loss="logistic")

with style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.3), layout="constrained")
    limits = [float(predicted.min()), float(predicted.max())]
    left.plot(limits, limits, color="#7a7a7a", linewidth=0.8)
    for rho, marker, size in ((10.0, "s", 7), (1.0, "o", 4.5), (0.1, ".", 3)):
        measured = (gradient("j-sam", two, x, y, loss="logistic", rho=rho) - plain) / rho
        left.plot(
            predicted, measured, marker, markersize=size, label=f"ρ = {rho:g}", markerfacecolor="none" if size > 3 else None
        )
        deviations[f"T4: J-SAM = SGD + penalty at ρ = {rho:g}"] = relative(measured, predicted)
    left.set_xlabel("gradient of the penalty / ρ")
    left.set_ylabel("(J-SAM − SGD) / ρ")
    left.set_title("one dot per weight and ρ")
    left.legend()

    radii = torch.linspace(0, 1.5, 60, dtype=torch.float64)
    logit, a = two(x).detach()[:, 0], square.detach().sqrt()
    for i in range(4):
        stretch = 1 + radii**2 * x[i].square().sum() / square[i].detach()
        right.plot(radii, t[i] * logit[i] * stretch - radii * a[i], color="#7a7a7a", linewidth=1)
        measured = [noisesam.decompose(two, x[i : i + 1], y[i : i + 1], loss="logistic", rho=float(r)) for r in radii[6::9]]
        margin = [-float(torch.expm1(one.perturbed_losses).log()) for one in measured]
        right.plot(radii[6::9], margin, "o", markersize=4, color=NOISY if wrong[i] else CLEAN)
    right.set_xlabel("ρ")
    right.set_ylabel("margin at w + ε")
    right.set_title(r"$tf\,(1 + \rho^2\|x\|^2/a^2) - \rho a$, four examples")

# %% [markdown]
# **Answer.** All dots lie on the diagonal: J-SAM **is** weight decay of a particular kind. It shrinks the hidden activation $z$ and the last layer $v$, and it
# does so most for examples that are badly fitted ($\lambda$ grows with $s$). The right picture shows where the perturbation takes the margin.
#
# 1-SAM is the same step with $s$ taken at $w + \epsilon$; L-SAM has that new $s$ and no penalty.
#
# ## T5. The same with many classes
#
# Real images now: ten digits, $f = VWx$, residual $r = \mathrm{softmax}(f) - \mathrm{onehot}(t)$. The penalty becomes
# $\frac{\rho}{N}\big(\tfrac12\lVert r\rVert^2\lVert z\rVert^2 + \tfrac12\lVert x\rVert^2\lVert V^\top r\rVert^2\big)$ with $r$ and the gradient's norm $N$ held constant. It is tempting to write
# $\lVert r\rVert^2\lVert V\rVert_F^2$ for $\lVert V^\top r\rVert^2$. The picture shows whether that is the same.

# %%
digits = data.add_label_noise(data.load("digits").subset(range(60 if SMALL else 200)), "symmetric", 0.4, seed=0).to(
    dtype=torch.float64
)
images, labels = digits.inputs, digits.labels
many = models.make("two-layer-linear", input_shape=images.shape[1:], classes=10, width=16, bias=False, seed=0).double()
W, V = many.body[1].weight, many.last_layer.weight
flat = images.flatten(1)
hidden = flat @ W.T
r = (torch.softmax(hidden @ V.T, 1) - torch.nn.functional.one_hot(labels, 10)).detach()
zz, xx, rr = hidden.square().sum(1), flat.square().sum(1), r.square().sum(1)
pulled = (r @ V).square().sum(1)
N = (rr * zz + pulled * xx).sqrt().detach()
plain, jsam = (gradient(n, many, images, labels, loss="cross_entropy", **o) for n, o in (("sgd", {}), ("j-sam", {"rho": 0.5})))
cut = W.numel()

with style():
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.3), layout="constrained", sharey=True)
    choices = (("with ‖Vᵀr‖²", pulled), ("with ‖r‖² ‖V‖²", rr * V.square().sum()))
    for ax, (said, last) in zip(axes, choices, strict=True):
        term = (0.5 / N * (0.5 * rr * zz + 0.5 * xx * last)).mean()
        predicted = torch.cat([part.flatten() for part in torch.autograd.grad(term, [W, V], retain_graph=True)])
        limits = [float((jsam - plain).min()), float((jsam - plain).max())]
        ax.plot(limits, limits, color="#7a7a7a", linewidth=0.8)
        ax.plot(
            predicted[cut:],
            (jsam - plain)[cut:],
            "o",
            color="#e69f00",
            markersize=4,
            markerfacecolor="none",
            label="entries of V",
        )
        ax.plot(predicted[:cut], (jsam - plain)[:cut], ".", color="#0072b2", markersize=3, label="entries of W")
        ax.set_title("penalty " + said)
        ax.set_xlabel("gradient of the penalty")
        off = float((predicted[cut:] - (jsam - plain)[cut:]).norm() / (jsam - plain)[cut:].norm())
        step = float((predicted[cut:] - (jsam - plain)[cut:]).norm() / jsam[cut:].norm())
        print(f"{said}: part of V off by {off:.1e} of the penalty's gradient, {step:.1e} of J-SAM's step")
        if ax is axes[0]:
            deviations["T5: J-SAM = SGD + penalty, ten classes"] = relative(predicted, jsam - plain)
    axes[0].set_ylabel("J-SAM − SGD")
    axes[1].legend()

# %% [markdown]
# **Answer.** With many classes J-SAM is again SGD plus a penalty, to rounding. The shortcut with $\lVert V\rVert_F^2$ is another penalty.
#
# ## T6. And in a real network?
#
# With an activation function between the layers the law holds to first order: $\text{J-SAM} = \text{SGD} + \rho\, s\,\nabla\lVert\nabla f\rVert + O(\rho^2)$. If that is so, what is left after
# subtracting the first-order term falls a hundredfold when $\rho$ falls tenfold.

# %%
net = models.make("mlp", input_shape=(20,), classes=1, hidden=(16, 16), activation="tanh", bias=False, seed=0).double()
few = slice(0, 20 if SMALL else 60)
plain = gradient("sgd", net, x[few], y[few], loss="logistic")
penalty = torch.zeros((), dtype=torch.float64)
for one, sign in zip(x[few], t[few], strict=True):
    f = net(one[None])[0, 0]
    jacobian = torch.autograd.grad(f, list(net.parameters()), create_graph=True)
    penalty = penalty + torch.sigmoid(-sign * f).detach() * sum(part.square().sum() for part in jacobian).sqrt()
first = torch.cat([part.flatten() for part in torch.autograd.grad(penalty / len(t[few]), list(net.parameters()))])

radii = np.logspace(-4, -1, 7)
differences = [gradient("j-sam", net, x[few], y[few], loss="logistic", rho=float(rho)) - plain for rho in radii]
whole = [float(one.norm()) for one in differences]
left_over = [float((one - rho * first).norm()) for one, rho in zip(differences, radii, strict=True)]
order = np.polyfit(np.log(radii), np.log(left_over), 1)[0]

with style():
    figure, ax = plt.subplots(figsize=(5.0, 3.2), layout="constrained")
    ax.loglog(radii, whole, "o-", color=method_style("j-sam").color, label="‖J-SAM − SGD‖")
    ax.loglog(radii, left_over, "s--", color="#000000", label="what the first-order penalty leaves")
    ax.set_xlabel("ρ")
    ax.set_ylabel("norm")
    ax.legend()
print(f"measured order of what is left: {order:.2f}")

# %% [markdown]
# **Answer.** What is left is of second order. So in any smooth network, and for small $\rho$, J-SAM penalises the norm of the Jacobian, most of all for examples
# that are badly fitted. How much that matters in training is the question of [03_deep_mechanism](03_deep_mechanism.ipynb), and whether the penalty can take
# J-SAM's place that of [04_regularizer](04_regularizer.ipynb).
#
# ## How exactly?
#
# Every identity of this page once more, with the largest relative difference between its two sides.

# %%
pd.Series(deviations, name="largest relative difference").map("{:.1e}".format).to_frame()
