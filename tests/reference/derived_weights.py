"""Models that compute weights from their parameters alone, in the ways that people write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

ROWS, SEQUENCES, IMAGES = (5, 3), (5, 7, 3), (5, 2, 6, 6)


class Written(nn.Module):
    """A model written by hand: parameters of the given shapes, a constant mask, and a function of the inputs."""

    def __init__(self, forward: Callable[[Written, Tensor], Tensor], **shapes: tuple[int, ...]):
        super().__init__()
        self._forward = forward
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(*shape) * 0.5))
        self.register_buffer("mask", (torch.arange(12.0) % 3 > 0).to(torch.float64).view(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def without_gradient(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return weight.norm()


def rectified_in_place(weight: Tensor) -> Tensor:
    return F.relu(weight.clone(), inplace=True)


def rectified_square_in_place(weight: Tensor) -> Tensor:
    square = weight * weight - 0.1
    return F.relu(square, inplace=True)


def met_before_and_after_it_was_written_to(weight: Tensor) -> Tensor:
    table = weight * 2
    before = table + 1
    return F.relu(table, inplace=True) + before.square()


# name: forward pass, parameters, shape of the inputs
HAND_WRITTEN: dict[str, tuple[Callable[[Written, Tensor], Tensor], dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "transposed by t": (lambda m, x: (x @ m.w.t()).tanh() @ m.v.T, {"w": (6, 3), "v": (4, 6)}, ROWS),
    "transposed, over positions": (
        lambda m, x: ((x @ m.w.mT).tanh() @ m.v.transpose(0, 1)).mean(1), {"w": (6, 3), "v": (4, 6)}, SEQUENCES),
    "linear with a transposed weight": (lambda m, x: F.linear(x, m.w.t()).tanh() @ m.v, {"w": (3, 6), "v": (6, 4)}, ROWS),
    "square weight beside its transpose": (
        lambda m, x: (x @ m.w).tanh() @ m.w.t() @ m.v, {"w": (3, 3), "v": (3, 4)}, ROWS),
    "weight from the left": (
        lambda m, x: (m.w @ x.transpose(1, 2)).tanh().mean(2) @ m.v, {"w": (6, 3), "v": (6, 4)}, SEQUENCES),
    "cast, plus one": (
        lambda m, x: (F.rms_norm(x, (3,)) * (1.0 + m.g.to(x))) @ m.w, {"g": (3,), "w": (3, 4)}, ROWS),
    "squared entries": (lambda m, x: x @ (m.w * m.w), {"w": (3, 4)}, ROWS),
    "squared matrix": (lambda m, x: x @ (m.w @ m.w) @ m.v, {"w": (3, 3), "v": (3, 4)}, ROWS),
    "low-rank update": (lambda m, x: F.linear(x, m.w + m.b @ m.a), {"w": (4, 3), "b": (4, 2), "a": (2, 3)}, ROWS),
    "exponential": (lambda m, x: (x * -torch.exp(m.g)).tanh() @ m.w, {"g": (3,), "w": (3, 4)}, ROWS),
    "softmax": (lambda m, x: (x * m.g.softmax(0)) @ m.w, {"g": (3,), "w": (3, 4)}, ROWS),
    "masked": (lambda m, x: F.linear(x, m.w * m.mask), {"w": (4, 3)}, ROWS),
    "masked by a view, squared": (lambda m, x: F.linear(x, (m.w * m.mask[:, :]) ** 2), {"w": (4, 3)}, ROWS),
    "joined": (
        lambda m, x: F.linear(x, torch.cat([m.a, m.b]), torch.cat([m.c, m.d])),
        {"a": (2, 3), "b": (2, 3), "c": (2,), "d": (2,)}, ROWS),
    "split": (
        lambda m, x: sum((F.linear(x, w, b) for w, b in zip(m.w.chunk(2), m.b.chunk(2), strict=True)), torch.zeros(())),
        {"w": (8, 3), "b": (8,)}, ROWS),
    "divided by its largest entry": (
        lambda m, x: x @ (m.w / m.w.abs().max(0, keepdim=True).values), {"w": (3, 4)}, ROWS),
    "divided by its detached norm": (lambda m, x: x @ (m.w / m.w.detach().norm()), {"w": (3, 4)}, ROWS),
    "divided by a norm without gradient": (lambda m, x: x @ (m.w / without_gradient(m.w)), {"w": (3, 4)}, ROWS),
    "rectified in place": (lambda m, x: x @ rectified_in_place(m.w), {"w": (3, 4)}, ROWS),
    "rectified square in place": (lambda m, x: x @ rectified_square_in_place(m.w), {"w": (3, 4)}, ROWS),
    "met before and after it was written to": (
        lambda m, x: x @ met_before_and_after_it_was_written_to(m.w), {"w": (3, 4)}, ROWS),
    "entries of a mask": (
        lambda m, x: torch.outer(m.w.masked_select(m.mask > 0), m.v).sum(0) * x.sum(1, keepdim=True),
        {"w": (4, 3), "v": (4,)}, ROWS),
    "detached beside itself": (
        lambda m, x: (x @ m.v).tanh() @ m.w.detach() + (x @ m.v) @ m.w, {"v": (3, 3), "w": (3, 4)}, ROWS),
    "normalised columns": (lambda m, x: F.normalize(x) @ F.normalize(m.w, dim=0), {"w": (3, 4)}, ROWS),
    "attention that sees only what was": (
        lambda m, x: F.scaled_dot_product_attention(
            x, x, x, attn_mask=m.b.masked_fill(torch.ones(7, 7, dtype=torch.bool, device=x.device).triu(1), -torch.inf)
        ).mean(1) @ m.w,
        {"b": (7, 7), "w": (3, 4)}, SEQUENCES),
    "divisor": (lambda m, x: F.linear(x, m.mask / (m.w + 3)), {"w": (4, 3)}, ROWS),
    "used twice": (lambda m, x: (lambda w: (x @ w).tanh() @ w.t())(m.w.exp()) @ m.v, {"w": (3, 6), "v": (3, 4)}, ROWS),
    "bias of a linear map": (lambda m, x: F.linear(x, m.w, m.b.exp()), {"w": (4, 3), "b": (4,)}, ROWS),
    "scale and shift of a normalisation": (
        lambda m, x: F.linear(F.layer_norm(x, (3,), m.g.exp(), m.b.sigmoid()), m.w), {"g": (3,), "b": (3,), "w": (4, 3)}, ROWS),
    "scale and shift of groups": (
        lambda m, x: F.group_norm(x, 1, m.g.exp(), m.b.sigmoid()).flatten(1) @ m.w,
        {"g": (2,), "b": (2,), "w": (72, 4)}, IMAGES),
    "embedding table": (
        lambda m, x: F.embedding((x > 0).long(), m.e.exp()).flatten(1) @ m.w, {"e": (3, 2), "w": (6, 4)}, ROWS),
    "positions through a map": (
        lambda m, x: (x + (m.mask @ m.w).tanh()[None, :3].transpose(1, 2)[:, :1]).mean(1) @ m.v,
        {"w": (3, 3), "v": (3, 4)}, SEQUENCES),
    "channels on their axis": (
        lambda m, x: (m.g[:, None, None] * x + m.b[:, None, None]).tanh().flatten(1) @ m.w,
        {"g": (2,), "b": (2,), "w": (72, 4)}, IMAGES),
    "layer scale": (lambda m, x: (m.g.view(1, -1, 1, 1) * x).tanh().flatten(1) @ m.w, {"g": (2,), "w": (72, 4)}, IMAGES),
    "scale and shift in one": (lambda m, x: torch.addcmul(m.b, m.g, x) @ m.w, {"b": (3,), "g": (3,), "w": (3, 4)}, ROWS),
    "exponent": (lambda m, x: (x.square() + 0.1).pow(m.g) @ m.w, {"g": (3,), "w": (3, 4)}, ROWS),
    "in the place of masked entries": (lambda m, x: torch.where(x > 0, x, m.g) @ m.w, {"g": (3,), "w": (3, 4)}, ROWS),
    "einsum": (lambda m, x: torch.einsum("btd,dp->bp", x, m.w), {"w": (3, 4)}, SEQUENCES),
    "einsum as a linear map": (
        lambda m, x: torch.einsum("btd,pd->btp", torch.einsum("btd,dp->btp", x, m.w).tanh(), m.v).sum(1),
        {"w": (3, 5), "v": (4, 5)}, SEQUENCES),
    "einsum over heads": (
        lambda m, x: torch.einsum("btd,dhe->bthe", x, m.w).tanh().sum((1, 2)) @ m.v, {"w": (3, 2, 5), "v": (5, 4)}, SEQUENCES),
    "einsum of a derived weight": (lambda m, x: torch.einsum("bd,pd->bp", x, m.w.exp()), {"w": (4, 3)}, ROWS),
    "product over heads": (
        lambda m, x: (x.unsqueeze(1) @ m.w).tanh().sum((1, 2)) @ m.v, {"w": (2, 3, 5), "v": (5, 4)}, SEQUENCES),
}  # fmt: skip


class StandardisedConv2d(nn.Conv2d):
    """Qiao et al. (2019), Micro-Batch Training with Batch-Channel Normalization and Weight Standardization, 1903.10520."""

    def forward(self, input: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(input, (self.weight - mean) / torch.sqrt(variance + 1e-5), self.bias, self.stride, self.padding)


class StandardisedByBatchNorm(nn.Conv2d):
    """The same by way of batch_norm in training mode over the kernels, with a gain, as image libraries write it."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, input: Tensor) -> Tensor:
        rows, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.3).view(-1)
        kernel = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(input, kernel.reshape_as(self.weight), self.bias, self.stride, self.padding)


class RelativePositions(nn.Module):
    """Attention within windows that are merged with the examples, biased by a table of relative positions."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused
        self.table, self.qkv, self.head = nn.Parameter(torch.randn(7, 2)), nn.Linear(3, 12), nn.Linear(4, 4)
        places = torch.arange(4)
        self.register_buffer("index", places[:, None] - places[None] + 3)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.view(-1, 4, 3)
        q, k, v = self.qkv(windows).view(-1, 4, 3, 2, 2).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1).contiguous()
        if self.fused:
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            seen = (q @ k.transpose(2, 3) / 2**0.5 + bias.unsqueeze(0)).softmax(3) @ v
        return self.head(seen.transpose(1, 2).flatten(2).view(len(x), 8, 4).tanh().mean(1))


def convolutions(kind: type[nn.Conv2d]) -> nn.Module:
    return nn.Sequential(kind(2, 4, 3), nn.Tanh(), kind(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 4))


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
    for layer in (model[0], model[2]):
        prune.random_unstructured(layer, "weight", 0.4)
    return model


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "weight standardisation": (lambda: convolutions(StandardisedConv2d), IMAGES),
    "weight standardisation by batch_norm": (lambda: convolutions(StandardisedByBatchNorm), IMAGES),
    "weight normalisation": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 4)), ROWS),
    "spectral normalisation, evaluated": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 4)).eval(), ROWS),
    "orthogonal by householder": (
        lambda: nn.Sequential(
            parametrizations.orthogonal(nn.Linear(3, 3), orthogonal_map="householder"), nn.Tanh(), nn.Linear(3, 4)), ROWS),
    "pruned": (pruned, ROWS),
    "relative positions": (lambda: RelativePositions(fused=False), (3, 8, 3)),
    "relative positions, fused attention": (lambda: RelativePositions(fused=True), (3, 8, 3)),
}  # fmt: skip
