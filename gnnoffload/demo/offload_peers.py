"""How others move saved tensors to host memory, for comparison on CUDA.

    save_on_cpu   torch's own, with page-locked memory
    slide         the two hooks of the well-known slide: .cpu() and .to(device)
    slide_async   the same on a stream of its own, with record_stream

All three move every saved tensor, parameters and views included, once per save.
"""

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

PEERS = ("save_on_cpu", "slide", "slide_async")


def peer(name: str, device: torch.device):
    """The context to enter around forward and loss."""
    if name == "save_on_cpu":
        return save_on_cpu(pin_memory=device.type == "cuda")
    if name == "slide":
        return saved_tensors_hooks(_to_cpu, lambda packed: packed[1].to(packed[0]))
    if name == "slide_async":
        return AsyncSlide(device)
    raise ValueError(f"no peer {name!r}; there are {', '.join(PEERS)}")


def _to_cpu(tensor: Tensor) -> tuple[torch.device, Tensor]:
    return tensor.device, tensor.detach().to("cpu", copy=True)


class AsyncSlide(saved_tensors_hooks):
    """Copies on a side stream; what is on the device is kept alive by record_stream."""

    def __init__(self, device: torch.device):
        if device.type != "cuda":
            raise ValueError("slide_async: there are no streams on the CPU")
        self.side = torch.cuda.Stream(device)
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> tuple[torch.device, Tensor]:
        tensor = tensor.detach()
        self.side.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self.side):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.side)
        return tensor.device, host

    def _unpack(self, packed: tuple[torch.device, Tensor]) -> Tensor:
        device, host = packed
        current = torch.cuda.current_stream(device)
        with torch.cuda.stream(self.side):
            tensor = host.to(device, non_blocking=True)
        current.wait_stream(self.side)
        tensor.record_stream(current)
        return tensor
