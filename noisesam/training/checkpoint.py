"""Everything that the rest of a run depends on, taken out of the run and put back, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisesam.errors import RunError
from noisesam.training.load import load_config
from noisesam.training.preparation import Prepared, make_model
from noisesam.training.state import pack, unpack

if TYPE_CHECKING:
    from noisesam.runs import Run


def save_state(prepared: Prepared, progress: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return the state of a run as safetensors bytes and a JSON object.

    Stored are the model with all its buffers, the optimizer, the method, torch's generators and `progress`. The order of the
    examples and the learning rate are functions of the step, and need no state.

    Args:
        prepared: model, method and optimizer of the run.
        progress: what else the loop needs: step counts, open means.

    Returns:
        The payload and the description for `RunWriter.write_checkpoint`; weights stand in the payload as "model.<name>".

    Raises:
        RunError: the method's state holds something that is neither tensor nor plain value.
    """
    tree = {
        "model": dict(prepared.model.state_dict()),
        "unsaved_buffers": _unsaved_buffers(prepared.model),
        "optimizer": prepared.optimizer.state_dict(),
        "method": dict(prepared.method.state_dict()),
        "generators": _generators(prepared.model),
        "progress": dict(progress),
    }
    payload, description = pack(tree)
    return payload, {"tree": description}


def load_state(prepared: Prepared, payload: bytes, state: Mapping[str, Any]) -> dict[str, Any]:
    """Put the state of a run back into its model, optimizer, method and torch's generators.

    Args:
        prepared: freshly prepared from the same configuration.
        payload: bytes of the safetensors file.
        state: the JSON object beside it.

    Returns:
        The `progress` that `save_state` was given.

    Raises:
        RunError: the state does not fit this run.
    """
    tree = unpack(payload, state.get("tree"))
    try:
        prepared.model.load_state_dict(tree["model"])
        with torch.no_grad():
            for name, buffer in _unsaved_buffers(prepared.model).items():
                buffer.copy_(tree["unsaved_buffers"][name])
        prepared.optimizer.load_state_dict(tree["optimizer"])
        prepared.method.load_state_dict(tree["method"])
        for name, generator in tree["generators"].items():
            device = torch.device(name)
            torch.set_rng_state(generator) if device.type == "cpu" else torch.cuda.set_rng_state(generator, device)
        return tree["progress"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"A checkpoint does not fit the run: {error}",
            expected="a checkpoint of the same configuration, written by the same version",
            remedy="Delete the checkpoint and its .json to resume from the one before.",
        ) from error


def restore_model(run: Run, step: int | None = None) -> nn.Module:
    """Return the model of a saved run with the weights of one of its checkpoints.

    Args:
        run: a run from `noisesam.open_run`.
        step: step of the checkpoint, None for the newest.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        RunError: there is no such checkpoint, or it is damaged.
    """
    config = load_config(run.config, overrides=["training.device=cpu", "training.precision=float32"])
    sizes = run.manifest["data"]
    model = make_model(config, tuple(sizes["input_shape"]), sizes["classes"])
    checkpoint = run.checkpoint(step)
    names = {name: entry["$tensor"] for name, entry in checkpoint.state["tree"]["model"].items()}
    model.load_state_dict({name: checkpoint.tensors[stored] for name, stored in names.items()})
    return model


def seed_generators(model: nn.Module, seed: int) -> None:
    """Seed torch's generators of the CPU and of the model's device; to be called inside `torch.random.fork_rng`."""
    # torch.manual_seed would reseed every device of the machine, also those of the caller.
    torch.default_generator.manual_seed(seed)
    for device in accelerators(model):
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def accelerators(model: nn.Module) -> list[torch.device]:
    """Return the CUDA devices that hold parameters of the model."""
    return sorted({parameter.device for parameter in model.parameters() if parameter.is_cuda}, key=str)


def _generators(model: nn.Module) -> dict[str, Tensor]:
    """Return the states of torch's generators by device name."""
    states = {"cpu": torch.get_rng_state()}
    return states | {str(device): torch.cuda.get_rng_state(device) for device in accelerators(model)}


def _unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that `state_dict` leaves out."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in saved}
