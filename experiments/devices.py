"""Where an experiment computes: the device that `--device` names, in either framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import UnavailableError

if TYPE_CHECKING:
    import torch


def jax_device(name: str) -> str:
    """Choose where JAX computes: "auto", "cpu" or "cuda"; returns the device in words.

    Raises: UnavailableError, when CUDA is asked for and JAX has none.
    """
    import jax

    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        device = jax.devices("cuda" if name == "cuda" else None)[0]
    except RuntimeError:
        raise UnavailableError(
            "--device cuda: this JAX finds no CUDA device; install JAX for CUDA with "
            "pip install 'jax[cuda12]' (see environment-jax.yml), or use --device cpu"
        ) from None
    return device.device_kind if device.platform == "gpu" else device.platform


def torch_device(name: str) -> torch.device:
    """Choose where PyTorch computes: "auto", "cpu" or "cuda".

    Raises: UnavailableError, when CUDA is asked for and PyTorch has none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            "--device cuda: this PyTorch finds no CUDA device; install PyTorch for CUDA "
            "(see environment-torch.yml), or use --device cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def device_in_words(device: torch.device) -> str:
    """For the record: the GPU's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
