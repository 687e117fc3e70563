"""The registered methods in the settings in which they are proven."""

from __future__ import annotations

from noisesam.methods import names

# Settings with which everything that a method remembers comes into play within the two epochs of the suite.
OPTIONS = {
    "m-sam": {"examples_per_shard": 4},
    "looksam": {"k": 3},
    "looklayersam": {"k": 3},
    "saf": {"start_epoch": 0, "lag": 1},
    "mesa": {"start_epoch": 0, "ema_decay": 0.9},
    "ssam-f": {"num_samples": 12},
    "ssam-d": {"epochs": 10},
}
VARIANTS = [
    *((name, OPTIONS.get(name, {})) for name in names()),
    ("sam", {"normalize": False}),
    ("esam", {"mask": "tensor"}),
    ("esam", {"gamma": 1.0}),
    ("esam", {"beta": 1.0}),
    ("looksam", {"per_tensor": True, "k": 2}),
    ("looklayersam", {"renormalize": True, "k": 2}),
    ("saf", {"start_epoch": 0, "lag": 2, "half_precision": True, "store_budget": 0}),
    ("mesa", {"start_epoch": 0, "epochs": 5, "tau_squared": False}),
    ("ssam-f", {"pattern": "structured"}),
    ("ssam-f", {"pattern": "2:4"}),
    ("ssam-d", {"pattern": "structured", "epochs": 10}),
    ("ssam-d", {"pattern": "1:4", "epochs": 10}),
    ("f-sam", {"order": "before", "start": "gradient"}),
    ("ausam", {"sampling": "bernoulli", "unbiased": True, "s_min": 0.5}),
    ("asam", {"adapt_biases": False}),
    ("sgd", {"gradient_norms": True}),
]
