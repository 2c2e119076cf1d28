"""A device for tests on machines without one: its tensors must not meet those of the CPU, as on a GPU."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STAND_IN = "meta"
"""Its name: a device that needs no driver."""

TRANSFER, COPY = "aten::_to_copy", "aten::copy_"
JOINING = ("aten::cat", "aten::stack")
"""Operations that refuse a single number of another device, too."""


class StandInDevice:
    """Within this context, tensors can be moved to `STAND_IN` and back; they are computed by the CPU as ever.

    Mixing devices, and NumPy's view of a tensor there, raise what they raise with a GPU, also in backward passes.

    Attributes:
        num_moved: Tensors of more than one entry that were copied there.
    """

    def __init__(self) -> None:
        self.num_moved = 0
        self._storages: dict[int, StorageWeakRef] = {}
        self._modes = (_Operations(self), _Calls(self))

    def __enter__(self) -> "StandInDevice":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def holds(self, tensor: torch.Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            storage = self._storages.get(tensor.untyped_storage()._cdata)
            return storage is not None and not storage.expired()

    def take(self, values: object) -> None:
        with torch._C.DisableTorchFunction():
            for tensor in tensors_in(values):
                reference = StorageWeakRef(tensor.untyped_storage())
                self._storages[tensor.untyped_storage()._cdata] = reference


def tensors_in(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def is_stand_in(device: object) -> bool:
    return device is not None and str(device) == STAND_IN


class _Operations(TorchDispatchMode):
    """Keeps track of which results are on the device."""

    def __init__(self, device: StandInDevice):
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        options = dict(kwargs or {})
        target = options.get("device")
        if is_stand_in(target):
            options["device"] = torch.device("cpu")
        name, inputs = func._schema.name, tensors_in((args, options))
        there = [tensor for tensor in inputs if self._device.holds(tensor)]
        if name not in (TRANSFER, COPY) and there:
            for tensor in inputs:
                if not self._device.holds(tensor) and (tensor.dim() or name in JOINING):
                    raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got two")
        result = func(*args, **options)
        if is_stand_in(target) or (target is None and there and name != COPY):
            self._device.take(result)
        if inputs and not there and is_stand_in(target):
            self._device.num_moved += inputs[0].numel() > 1
        return result


class _Calls(TorchFunctionMode):
    """Answers what Python asks of a tensor's device."""

    def __init__(self, device: StandInDevice):
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        is_there = bool(args) and isinstance(args[0], torch.Tensor) and self._device.holds(args[0])
        if func in (torch.tensor, torch.as_tensor) and is_stand_in(options.get("device")):
            options.pop("device")
            return func(*args, **options).to(STAND_IN)
        if func == torch.Tensor.device.__get__ and is_there:
            return torch.device(STAND_IN)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and is_there:
            raise TypeError("can't convert a tensor on a device to numpy. Use Tensor.cpu() first")
        if func is torch.Tensor.cpu:
            func, args = torch.Tensor.to, (args[0], "cpu")
        if func is torch.Tensor.to:
            return self._to(is_there, args, options)
        return func(*args, **options)

    def _to(self, is_there: bool, args: Any, options: dict[str, Any]) -> torch.Tensor:
        tensor, *targets = args
        if targets and isinstance(targets[0], torch.Tensor):
            device = torch.device(STAND_IN if self._device.holds(targets[0]) else "cpu")
            dtype = targets[0].dtype
        else:
            device, dtype, _, _ = torch._C._nn._parse_to(*targets, **options)
        if is_there and device is not None and not is_stand_in(device):
            return torch.ops.aten._to_copy.default(tensor, device=device, dtype=dtype)
        return tensor.to(device=device, dtype=dtype)
