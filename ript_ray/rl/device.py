"""The device that a policy computes on: the CPU, or the GPU that Ray has given to this process."""

import os

import torch
from torch import nn

from ript_ray.checks import require
from ript_ray.policies.base import Policy


def prepare_device(device: str) -> None:
    """Make this process ready to compute on a device.

    Raises:
        ConfigError: There is no such device.
    """
    if device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        require(
            torch.cuda.is_available(),
            f"cluster.gpus-per-actor, cluster.learner-gpus: torch {torch.__version__} finds no GPU in this process "
            f"(CUDA_VISIBLE_DEVICES: {visible}); install a torch with CUDA, or set both to 0",
        )
        # The same bits every time, as far as torch has such kernels.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def move_policy(policy: Policy, device: str) -> Policy:
    """Move a policy to a device, tensor by tensor; the same policy.

    Raises:
        ConfigError: There is no such device, or the policy is no torch module.
    """
    if device == "cpu":
        return policy
    prepare_device(device)
    require(isinstance(policy, nn.Module), f"{type(policy).__name__} is no torch module: it stays on the CPU")
    assert isinstance(policy, nn.Module)
    policy.to(device)
    return policy
