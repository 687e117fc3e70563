"""The rules of the family as plain loops over one flat weight vector; nothing of noisesam.methods computes here.

Random numbers are data: they come in through the callables that a rule is built with.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn


class Flat:
    """A model as a function of one vector."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.shapes = [p.shape for p in model.parameters()]
        self.sizes = [p.numel() for p in model.parameters()]

    def start(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def split(self, w):
        return [piece.view(shape) for piece, shape in zip(w.split(self.sizes), self.shapes, strict=True)]

    def logits(self, w, x):
        return torch.func.functional_call(self.model, dict(zip(self.names, self.split(w), strict=True)), (x,))

    def losses(self, w, x, y):
        return nn.functional.cross_entropy(self.logits(w, x), y, reduction="none")

    def grad(self, w, x, y, weights=None, extra=None):
        leaf = w.clone().requires_grad_()
        losses = self.losses(leaf, x, y)
        loss = losses.mean() if weights is None else (weights * losses).mean()
        if extra is not None:
            loss = loss + extra(self.logits(leaf, x))
        return torch.autograd.grad(loss, leaf)[0]


def unit(v):
    size = v.norm()
    return v / size if size > 0 else v


class Rule:
    """`gradient(t, w, x, y, index)`; `epoch` is set from outside."""

    epoch = 0

    def __init__(self, flat: Flat, **options):
        self.f = flat
        self.__dict__.update(options)
        self.setup()

    def setup(self):
        pass


class ASAM(Rule):
    def gradient(self, t, w, x, y, index):
        g, scale = self.f.grad(w, x, y), w.abs() + self.eta
        return self.f.grad(w + self.rho * scale**2 * g / (scale * g).norm(), x, y)


class GSAM(Rule):
    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        s = self.f.grad(w + self.rho * unit(g), x, y)
        across = g - (g @ s) / (s @ s) * s
        return s - self.alpha * across


class GNP(Rule):
    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        return (1 - self.alpha) * g + self.alpha * self.f.grad(w + self.rho * unit(g), x, y)


class SANER(Rule):
    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        s = self.f.grad(w + self.rho * unit(g), x, y)
        out = s.clone()
        for i in range(len(s)):
            if s[i] * g[i] > 0 and abs(s[i]) < abs(g[i]):
                out[i] = self.alpha * s[i]
        return out


class VaSSO(Rule):
    def setup(self):
        self.d = 0

    def gradient(self, t, w, x, y, index):
        self.d = (1 - self.theta) * self.d + self.theta * self.f.grad(w, x, y)
        return self.f.grad(w + self.rho * unit(self.d), x, y)


class FSAM(Rule):
    def setup(self):
        self.m = 0

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        self.m = self.ema_decay * self.m + (1 - self.ema_decay) * g
        return self.f.grad(w + self.rho * unit(g - self.sigma * self.m), x, y)


class FSAMAsReleased(Rule):
    def setup(self):
        self.m = None

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        if self.m is None:
            self.m, d = g.clone(), g
        else:
            d = g - self.sigma * self.m
            self.m = self.ema_decay * self.m + (1 - self.ema_decay) * g
        return self.f.grad(w + self.rho * unit(d), x, y)


class RandomSAM(Rule):
    def gradient(self, t, w, x, y, index):
        n = torch.cat([piece.flatten() for piece in self.normals(t)])
        return self.f.grad(w + self.rho * unit(n), x, y)


class LookSAM(Rule):
    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        if t % self.k == 0:
            s = self.f.grad(w + self.rho * unit(g), x, y)
            self.v = s - (g @ s) / (g @ g) * g
            return s
        return g + self.alpha * g.norm() / self.v.norm() * self.v


class LookLayerSAM(Rule):
    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        if t % self.k == 0:
            pieces = zip(self.f.split(w), self.f.split(g), strict=True)
            eps = torch.cat([(self.rho * v.norm() * unit(u)).flatten() for v, u in pieces])
            s = self.f.grad(w + eps, x, y)
            self.v = s - (g @ s) / (g @ g) * g
            return s
        return g + self.alpha * g.norm() / self.v.norm() * self.v


class ESAM(Rule):
    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        mask = torch.cat([(piece < self.beta).flatten() for piece in self.uniforms(t)]).to(w) if self.beta < 1 else 1
        moved = w + self.rho / self.beta * mask * unit(g)
        rise = self.f.losses(moved, x, y) - self.f.losses(w, x, y)
        keep = sorted(range(len(y)), key=lambda i: -float(rise[i]))[: max(1, int(self.gamma * len(y)))]
        return self.f.grad(moved, x[keep], y[keep])


def kl(teacher, student, tau):
    p = (teacher / tau).softmax(1)
    return (p * (p.log() - (student / tau).log_softmax(1))).sum(1)


class SAF(Rule):
    def setup(self):
        self.kept = {}

    def gradient(self, t, w, x, y, index):
        logits = self.f.logits(w, x).detach()
        pairs = []
        for row, example in enumerate(index.tolist()):
            old = self.kept.get((example, self.epoch - self.lag))
            if old is not None and self.epoch > self.start_epoch:
                pairs.append((row, old))
            self.kept[example, self.epoch] = logits[row]

        def extra(student):
            total = 0.0 * student.sum()
            for row, old in pairs:
                total = total + kl(old[None], student[row : row + 1], self.temperature)[0]
            return self.lam * self.temperature**2 * total / len(y)

        return self.f.grad(w, x, y, extra=extra)


class MESA(Rule):
    def setup(self):
        self.v = None

    def gradient(self, t, w, x, y, index):
        self.v = w.clone() if self.v is None else self.ema_decay * self.v + (1 - self.ema_decay) * w
        if self.epoch <= self.start_epoch:
            return self.f.grad(w, x, y)
        teacher = self.f.logits(self.v, x).detach()
        return self.f.grad(w, x, y, extra=lambda z: self.lam * self.temperature**2 * kl(teacher, z, self.temperature).mean())


class AUSAM(Rule):
    def setup(self):
        self.history = {}

    def gradient(self, t, w, x, y, index):
        examples = index.tolist()
        means = {e: sum(h) / len(h) for e, h in self.history.items() if e in examples}
        low, high = (min(means.values()), max(means.values())) if means else (0, 0)
        p = [self.s_min + (self.s_max - self.s_min) * (means[e] - low) / (high - low) if e in means and high > low
             else self.s_max for e in examples]  # fmt: skip
        u = self.uniforms(t, index)
        clock = [-math.log1p(-float(u[i])) / float(p[i]) for i in range(len(y))]
        keep = sorted(sorted(range(len(y)), key=lambda i: clock[i])[: math.ceil(self.fraction * len(y))])
        x, y = x[keep], y[keep]
        moved = w + self.rho * unit(self.f.grad(w, x, y))
        for i, rise in zip(keep, self.f.losses(moved, x, y) - self.f.losses(w, x, y), strict=True):
            self.history.setdefault(examples[i], []).append(float(rise))
        return self.f.grad(moved, x, y)


class FisherSAM(Rule):
    def setup(self):
        self.fisher_epoch, self.seen = -1, 0

    def gradient(self, t, w, x, y, index):
        if self.epoch != self.fisher_epoch:
            self.fisher_epoch, self.seen, self.fisher = self.epoch, 0, torch.zeros_like(w)
        wanted = min(self.num_samples - self.seen, len(y))
        for i in range(wanted):
            self.fisher = self.fisher + self.f.grad(w, x[i : i + 1], y[i : i + 1]) ** 2
        if wanted:
            count = len(w) - int(self.sparsity * len(w))
            self.mask = torch.zeros_like(w)
            for place in sorted(range(len(w)), key=lambda i: -float(self.fisher[i]))[:count]:
                self.mask[place] = 1
        self.seen += wanted
        return self.f.grad(w + self.rho * self.mask * unit(self.f.grad(w, x, y)), x, y)


class DynamicSAM(Rule):
    def setup(self):
        self.mask, self.last = None, 0

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        if self.mask is None:
            scores = torch.cat([piece.flatten() for piece in self.uniforms()])
            count = len(w) - int(self.sparsity * len(w))
            self.mask = torch.zeros_like(w)
            for place in sorted(range(len(w)), key=lambda i: -float(scores[i]))[:count]:
                self.mask[place] = 1
        elif self.epoch > self.last:
            live = [i for i in range(len(w)) if self.mask[i]]
            dead = [i for i in range(len(w)) if not self.mask[i]]
            rate = self.drop_rate * (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
            count = min(int(rate * len(live) + 1e-9), len(dead))
            order = self.permutation(self.epoch, len(dead))[:count]
            for i in sorted(live, key=lambda i: float(g[i].abs()))[:count]:
                self.mask[i] = 0
            for j in order.tolist():
                self.mask[dead[j]] = 1
            self.last = self.epoch
        return self.f.grad(w + self.rho * self.mask * unit(g), x, y)


# ------------------------------------------------------------------ the options of the rules above


class ESAMByTensor(Rule):
    """ESAM whose mask keeps or drops whole tensors; one that is named beforehand is kept where all would be dropped."""

    def gradient(self, t, w, x, y, index):
        numbers, named = self.numbers(t)
        kept = [float(u) < self.beta for u in numbers]
        if True not in kept:
            kept[named] = True
        pieces = self.f.split(self.f.grad(w, x, y))
        g = torch.cat([(piece if keep else 0 * piece).flatten() for piece, keep in zip(pieces, kept, strict=True)])
        moved = w + self.rho / self.beta * unit(g)
        rise = self.f.losses(moved, x, y) - self.f.losses(w, x, y)
        chosen = sorted(range(len(y)), key=lambda i: -float(rise[i]))[: max(1, int(self.gamma * len(y)))]
        return self.f.grad(moved, x[chosen], y[chosen])


class LookSAMByTensor(Rule):
    """LookSAM whose projection and whose factor are taken tensor by tensor; the radius is that of the whole vector."""

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        if t % self.k == 0:
            s = self.f.grad(w + self.rho * unit(g), x, y)
            pairs = zip(self.f.split(g), self.f.split(s), strict=True)
            self.v = [b - (a * b).sum() / (a * a).sum() * a for a, b in pairs]
            return s
        pairs = zip(self.f.split(g), self.v, strict=True)
        return torch.cat([(a + self.alpha * a.norm() / v.norm() * v).flatten() for a, v in pairs])


class LookLayerSAMRenormalized(Rule):
    """Look-LayerSAM whose eps has the length rho."""

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        if t % self.k == 0:
            pieces = zip(self.f.split(w), self.f.split(g), strict=True)
            direction = torch.cat([(v.norm() / u.norm() * u).flatten() for v, u in pieces])
            s = self.f.grad(w + self.rho * direction / direction.norm(), x, y)
            self.v = s - (g @ s) / (g @ g) * g
            return s
        return g + self.alpha * g.norm() / self.v.norm() * self.v


class ASAMWithoutBiases(Rule):
    """ASAM with T = 1 on what has one axis."""

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        pieces = [(v.abs() + self.eta if len(v.shape) > 1 else torch.ones_like(v)).flatten() for v in self.f.split(w)]
        scale = torch.cat(pieces)
        return self.f.grad(w + self.rho * scale**2 * g / (scale * g).norm(), x, y)


class SAFAsPrinted(SAF):
    """SAF without the factor tau^2."""

    def gradient(self, t, w, x, y, index):
        lam, self.lam = self.lam, self.lam / self.temperature**2
        found = super().gradient(t, w, x, y, index)
        self.lam = lam
        return found


class MESAOption(Rule):
    """MESA with or without the factor tau^2, lam rising linearly over `epochs` epochs."""

    def setup(self):
        self.v = None

    def gradient(self, t, w, x, y, index):
        self.v = w.clone() if self.v is None else self.ema_decay * self.v + (1 - self.ema_decay) * w
        share = max(
            0.0, min(1.0, (self.epoch - self.start_epoch) / self.epochs if self.epochs else self.epoch > self.start_epoch)
        )
        factor = self.lam * share * (self.temperature**2 if self.tau_squared else 1.0)
        teacher = self.f.logits(self.v, x).detach()
        return self.f.grad(w, x, y, extra=lambda z: factor * kl(teacher, z, self.temperature).mean())


class AUSAMBernoulli(Rule):
    """AUSAM that draws every example by its own probability, weighted by 1/p or not."""

    def setup(self):
        self.history, self.fallbacks = {}, 0

    def gradient(self, t, w, x, y, index):
        examples, b = index.tolist(), len(y)
        means = {e: sum(h) / len(h) for e, h in self.history.items() if e in examples}
        low, high = (min(means.values()), max(means.values())) if means else (0, 0)
        p = [self.s_min + (self.s_max - self.s_min) * (means[e] - low) / (high - low) if e in means and high > low
             else self.s_max for e in examples]  # fmt: skip
        u = [float(value) for value in self.uniforms(t, index)]
        keep = [i for i in range(b) if u[i] < p[i]]
        if not keep:
            self.fallbacks += 1
            keep = [max(range(b), key=lambda i: p[i] - u[i])]
        x, y = x[keep], y[keep]
        weights = torch.tensor([1 / p[i] if self.unbiased else 1.0 for i in keep], dtype=w.dtype)
        moved = w + self.rho * unit(self.f.grad(w, x, y, weights))
        for i, rise in zip(keep, self.f.losses(moved, x, y) - self.f.losses(w, x, y), strict=True):
            self.history.setdefault(examples[i], []).append(float(rise))
        share = len(keep) / b if self.unbiased else 1.0
        return share * self.f.grad(moved, x, y, weights)


def whole_tensors(values, count):
    """The tensors with the largest mean, until they hold `count` entries; as one flag each."""
    flags, held = [False] * len(values), 0
    for j in sorted(range(len(values)), key=lambda j: -float(values[j].mean())):
        if held >= count:
            break
        flags[j], held = True, held + values[j].numel()
    return flags


def lines(value):
    """The lines of a tensor along its second axis, as views: (position of the other axes, line)."""
    moved = value.movedim(1, -1)
    return moved.reshape(-1, moved.shape[-1])


def n_of_m(values, kept, of):
    """The largest `kept` of every `of` entries along the second axis, rounded up in a last group that is shorter."""
    masks = []
    for value in values:
        mask = torch.ones_like(value)
        if value.dim() > 1:
            flat = lines(value)
            chosen = torch.zeros_like(flat)
            for row in range(len(flat)):
                for start in range(0, flat.shape[1], of):
                    group = range(start, min(start + of, flat.shape[1]))
                    best = sorted(group, key=lambda i: -float(flat[row, i]))[: math.ceil(kept * len(group) / of)]
                    chosen[row, best] = 1
            mask = chosen.view(value.movedim(1, -1).shape).movedim(-1, 1)
        masks.append(mask)
    return masks


def joined(pieces):
    return torch.cat([piece.flatten() for piece in pieces])


class PatternedFisherSAM(Rule):
    """SSAM-F with whole tensors (`groups` None) or N:M (`groups` = (N, M))."""

    def setup(self):
        self.fisher_epoch, self.seen = -1, 0

    def gradient(self, t, w, x, y, index):
        if self.epoch != self.fisher_epoch:
            self.fisher_epoch, self.seen, self.fisher = self.epoch, 0, torch.zeros_like(w)
        wanted = min(self.num_samples - self.seen, len(y))
        for i in range(wanted):
            self.fisher = self.fisher + self.f.grad(w, x[i : i + 1], y[i : i + 1]) ** 2
        if wanted:
            fisher = self.f.split(self.fisher)
            if self.groups is None:
                flags = whole_tensors(fisher, len(w) - int(self.sparsity * len(w)))
                self.mask = joined([torch.full_like(v, float(kept)) for v, kept in zip(fisher, flags, strict=True)])
            else:
                self.mask = joined(n_of_m(fisher, *self.groups))
        self.seen += wanted
        return self.f.grad(w + self.rho * self.mask * unit(self.f.grad(w, x, y)), x, y)


class StructuredDynamicSAM(Rule):
    """SSAM-D over whole tensors: as many tensors are grown as are dropped."""

    def setup(self):
        self.flags, self.last = None, 0

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        pieces = self.f.split(g)
        if self.flags is None:
            self.flags = whole_tensors(self.uniforms(), len(w) - int(self.sparsity * len(w)))
        elif self.epoch > self.last:
            live = [j for j, kept in enumerate(self.flags) if kept]
            dead = [j for j, kept in enumerate(self.flags) if not kept]
            rate = self.drop_rate * (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
            count = min(int(rate * len(live) + 1e-9), len(dead))
            for j in sorted(live, key=lambda j: float(pieces[j].abs().mean()))[:count]:
                self.flags[j] = False
            for place in self.permutation(self.epoch, len(dead))[:count].tolist():
                self.flags[dead[place]] = True
            self.last = self.epoch
        mask = joined([torch.full_like(piece, float(kept)) for piece, kept in zip(pieces, self.flags, strict=True)])
        return self.f.grad(w + self.rho * mask * unit(g), x, y)


class GroupedDynamicSAM(Rule):
    """SSAM-D with N:M: in a share of the groups the smallest live entry is swapped for a dead one at random."""

    def setup(self):
        self.masks, self.last, self.swaps = None, 0, 0

    def gradient(self, t, w, x, y, index):
        g = self.f.grad(w, x, y)
        if self.masks is None:
            self.masks = n_of_m(self.uniforms(), *self.groups)
        elif self.epoch > self.last:
            rate = self.drop_rate * (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
            draw, of = self.stream(self.epoch), self.groups[1]
            for mask, piece in zip(self.masks, self.f.split(g), strict=True):
                if piece.dim() < 2:
                    continue
                for start in range(0, piece.shape[1], of):
                    self.swap(mask[:, start : start + of], piece[:, start : start + of].abs(), rate, draw)
            self.last = self.epoch
        return self.f.grad(w + self.rho * joined(self.masks).to(w) * unit(g), x, y)

    def swap(self, mask, sizes, rate, draw):
        """Change one column of groups in place; the numbers that grow come first, those that choose the groups after."""
        growing, choosing = draw(mask.shape), draw((mask.shape[0], 1, *mask.shape[2:]))
        for place in itertools.product(range(mask.shape[0]), *map(range, mask.shape[2:])):
            at = (place[0], slice(None), *place[1:])
            live = [i for i in range(mask.shape[1]) if mask[at][i] == 1]
            dead = [i for i in range(mask.shape[1]) if mask[at][i] == 0]
            if dead and float(choosing[at][0]) < rate:
                self.swaps += 1
                dropped = min(live, key=lambda i: float(sizes[at][i]))
                grown = max(dead, key=lambda i: float(growing[at][i]))
                mask[at][dropped], mask[at][grown] = 0, 1
