"""The tracked quantities by one example at a time, plain autograd and copied models: slow and obvious."""

from __future__ import annotations

import copy

import numpy as np
import torch


def loss_of_one(name, output, label):
    """Per-example loss, written with logsigmoid and log_softmax."""
    if name == "logistic":
        return -torch.nn.functional.logsigmoid((2 * label - 1) * output.reshape(()))
    return -torch.log_softmax(output.reshape(-1), 0)[label]


def residual_of_one(name, output, label):
    """dl/df by autograd."""
    leaf = output.detach().reshape(-1).requires_grad_()
    return torch.autograd.grad(loss_of_one(name, leaf, label), leaf)[0]


def pull_back(model, example, vector):
    """J(w)^T vector of one example, flattened."""
    output = model(example[None]).reshape(-1)
    gradients = torch.autograd.grad(output @ vector, list(model.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(gradients, model.parameters(), strict=True)
        ]
    )


def moved(model, direction, rho):
    """A copy of the model at w + rho direction/||direction||."""
    twin = copy.deepcopy(model)
    eps = rho * direction / direction.norm()
    start = 0
    with torch.no_grad():
        for p in twin.parameters():
            p += eps[start : start + p.numel()].view_as(p)
            start += p.numel()
    return twin


def example_table(model, inputs, labels, name, rho):
    """Columns of every example, as float64 arrays."""
    rows = []
    for x, t in zip(inputs, labels, strict=True):
        output = model(x[None]).detach().reshape(-1)
        r = residual_of_one(name, output, t)
        g = pull_back(model, x, r)
        other = moved(model, g, rho)
        output_moved = other(x[None]).detach().reshape(-1)
        r_moved = residual_of_one(name, output_moved, t)
        if name == "logistic":
            margin = (2 * t - 1) * output[0]
            predicted = int(output[0] > 0)
        else:
            margin = output[t] - max(output[k] for k in range(len(output)) if k != t)
            predicted = int(output.argmax())
        loss, loss_moved = loss_of_one(name, output, t), loss_of_one(name, output_moved, t)
        one_sam, l_sam, j_sam = pull_back(other, x, r_moved), pull_back(model, x, r_moved), pull_back(other, x, r)
        rows.append(
            {
                "loss": loss,
                "margin": margin,
                "predicted": predicted,
                "residual_norm": r.norm(),
                "gradient_norm": g.norm(),
                "perturbed_residual_norm": r_moved.norm(),
                "logit_weight": r_moved.norm() / r.norm(),
                "jacobian_weight": j_sam.norm() / g.norm(),
                "one_sam_gradient_norm": one_sam.norm(),
                "l_sam_gradient_norm": l_sam.norm(),
                "j_sam_gradient_norm": j_sam.norm(),
                "sharpness": loss_moved - loss,
            }
        )
    table = {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
    # Batch SAM: every example at the one eps of all of them.
    other = moved(model, mean_gradient(model, inputs, labels, name), rho)
    norms = [
        float(pull_back(other, x, residual_of_one(name, other(x[None]).detach().reshape(-1), t)).norm())
        for x, t in zip(inputs, labels, strict=True)
    ]
    return table | {"sam_gradient_norm": np.array(norms)}


def mean_gradient(model, inputs, labels, name):
    """Gradient of the mean loss, flattened, by one backward pass per example."""
    total = 0
    for x, t in zip(inputs, labels, strict=True):
        total = total + pull_back(model, x, residual_of_one(name, model(x[None]), t))
    return total / len(labels)


def mean_loss(model, inputs, labels, name):
    """Mean loss over the examples."""
    return sum(loss_of_one(name, model(x[None]), t).item() for x, t in zip(inputs, labels, strict=True)) / len(labels)


def cosine(left, right):
    """Cosine of two vectors."""
    return float(left @ right / (left.norm() * right.norm()))


def participation_ratio(activations):
    """(sum lambda)^2 / sum lambda^2 of the covariance's eigenvalues."""
    eigenvalues = np.linalg.eigvalsh(np.cov(activations, rowvar=False).reshape(activations.shape[1], -1))
    return eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
