"""Models of others, as they are published: the smallest of every family of timm, and small classifiers of transformers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisesam.errors import MissingExtraError

EXAMPLES, CLASSES = 3, 4
LARGEST = 60_000_000
"""Parameters of a model of timm up to which it is looked at."""
SIDES = (64, 96, 128)
"""Sizes of the images in pixels, the first that a model takes; else its own."""
LENGTH, WORDS = 7, 50

Batch = tuple[Any, Tensor]


@dataclass(frozen=True)
class Member:
    """One architecture."""

    library: str
    family: str
    name: str
    make: Callable[[], tuple[nn.Module, Batch]]
    """The model and a batch for it."""
    dtype: torch.dtype
    """float64 where the architecture allows: many text models compute parts in float32 whatever their weights are."""


def members(told: Callable[[str], None] = lambda _: None) -> list[Member]:
    """Return all members; which model of a family of timm is the smallest is counted first.

    Raises:
        MissingExtraError: timm or transformers is not installed.
    """
    return [*_of_timm(told), *_of_transformers()]


def _required(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"{package} is not installed",
            expected="timm and transformers, whose models are looked at",
            remedy="pip install 'noisesam[architectures]'",
        ) from error


def _of_timm(told: Callable[[str], None]) -> Iterator[Member]:
    timm = _required("timm")
    smallest: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception as error:  # a model that cannot be made without memory is no member
            told(f"{name}: {type(error).__name__}")
            continue
        size = sum(parameter.numel() for parameter in model.parameters())
        smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    for family, (size, name) in sorted(smallest.items()):
        if size <= LARGEST:
            yield Member("timm", family, name, _image_maker(name), torch.float64)


def _image_maker(name: str) -> Callable[[], tuple[nn.Module, Batch]]:
    def make() -> tuple[nn.Module, Batch]:
        model, side = _image_model(name)
        return model, (torch.randn(EXAMPLES, 3, side, side), torch.arange(EXAMPLES) % CLASSES)

    return make


def _image_model(name: str) -> tuple[nn.Module, int]:
    """Return the model for the smallest images that it takes, and their side."""
    timm = _required("timm")
    for side in SIDES:
        for size in ({"img_size": side}, {}):
            with contextlib.suppress(Exception), torch.no_grad():  # whatever it says, these images are none for it
                model = timm.create_model(name, num_classes=CLASSES, **size)
                model.eval()(torch.zeros(1, 3, side, side))
                return timm.create_model(name, num_classes=CLASSES, **size), side
    model = timm.create_model(name, num_classes=CLASSES)
    return model, model.default_cfg["input_size"][-1]


_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_GROUPED = _ENCODER | {"num_key_value_heads": 1}
_TEXT: dict[str, dict[str, Any]] = {
    "Albert": _ENCODER | {"embedding_size": 8},
    "Bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "eos_token_id": 1, "bos_token_id": 2},
    "Bert": _ENCODER,
    "BigBird": _ENCODER | {"attention_type": "original_full"},
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "ConvBert": _ENCODER | {"embedding_size": 16, "head_ratio": 1},
    "Deberta": _ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 32},
    "DebertaV2": _ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "Electra": _ENCODER | {"embedding_size": 8},
    "FNet": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24},
    "Funnel": {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "GPTNeo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24,
               "attention_types": [[["global", "local"], 1]]},
    "GPTNeoX": _ENCODER,
    "Gemma2": _GROUPED | {"head_dim": 8},
    "IBert": _ENCODER,
    "Llama": _ENCODER,
    "Longformer": _ENCODER | {"attention_window": 4},
    "Mixtral": _GROUPED | {"num_local_experts": 4},
    "ModernBert": _ENCODER | {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "MPNet": _ENCODER,
    "OPT": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "Perceiver": {"d_model": 16, "d_latents": 16, "num_latents": 4, "num_blocks": 1, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "max_position_embeddings": 32},
    "Phi": _ENCODER,
    "Qwen2": _GROUPED,
    "Qwen3": _GROUPED | {"head_dim": 8},
    "Roberta": _ENCODER,
    "SqueezeBert": _ENCODER | {"embedding_size": 16},
    "T5": {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24, "d_kv": 8, "eos_token_id": 1,
           "decoder_start_token_id": 0},
    "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
}  # fmt: skip
"""By the name of the architecture in transformers: the sizes of a small one."""


def _of_transformers() -> Iterator[Member]:
    transformers = _required("transformers")
    for family, sizes in _TEXT.items():
        name = f"{family}ForSequenceClassification"
        if hasattr(transformers, name):
            yield Member("transformers", family, name, _text_maker(family, sizes), torch.float32)


def _text_maker(family: str, sizes: dict[str, Any]) -> Callable[[], tuple[nn.Module, Batch]]:
    def make() -> tuple[nn.Module, Batch]:
        transformers = _required("transformers")
        config = getattr(transformers, f"{family}Config")(vocab_size=WORDS, num_labels=CLASSES, pad_token_id=0, **sizes)
        for name, value in vars(config).items():
            if "drop" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config)
        tokens = torch.randint(3, WORDS, (EXAMPLES, LENGTH))
        tokens[:, -1] = 1  # the end of a text, where an architecture looks for it
        mask = torch.ones_like(tokens)
        mask[1, -2:] = 0
        named = "inputs" if family == "Perceiver" else "input_ids"
        return model, ({named: tokens, "attention_mask": mask}, torch.arange(EXAMPLES) % CLASSES)

    return make
