"""Tensors that say they are on a GPU and hold no numbers: PyTorch then checks that no
two devices meet, and what waits for the GPU or crosses the bus can be counted.
"""

from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts numbers asked for (each waits for the GPU), copies and kernels."""

    def __init__(self):
        super().__init__()
        self.waits, self.to_gpu, self.from_gpu, self.kernels = 0, 0, 0, Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = str(operator)
        if name.startswith("aten._local_scalar_dense"):
            self.waits += args[0].device.type == "cuda"
            return 1.0 if args[0].is_floating_point() else 1
        result = operator(*args, **(kwargs or {}))
        if name.startswith(("aten._to_copy", "aten.copy_")):
            source, target = args[0], result
            if name.startswith("aten.copy_"):
                target, source = args[:2]
            kinds = source.device.type, target.device.type
            self.to_gpu += kinds == ("cpu", "cuda")
            self.from_gpu += kinds == ("cuda", "cpu")
        if not operator.is_view and _on_gpu(args, kwargs, result):
            self.kernels[name] += 1
        return result


def _on_gpu(*values) -> bool:
    leaves = torch.utils._pytree.tree_leaves(values)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return any(tensor.device.type == "cuda" for tensor in tensors)


@contextmanager
def fake_cuda(monkeypatch, networks):
    """Within it `cuda` can be used. Gradients (of `networks`) are zeros of the right
    kind, as PyTorch's engine would ask for a real GPU; arrays are zeros, too.
    """

    def backward(loss, *args, **kwargs):
        assert loss.device.type == "cuda" and loss.requires_grad
        for parameter in (p for network in networks for p in network.parameters()):
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def numpy(tensor):
        assert tensor.device.type == "cpu", "only what was brought back is an array"
        return np.zeros(tuple(tensor.shape), np.float32)

    def gradients(outputs, inputs):
        assert outputs.device.type == inputs.device.type == "cuda"
        return [torch.zeros_like(inputs)]

    monkeypatch.setattr(torch.Tensor, "numpy", numpy)
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    available = "amp_definitely_not_available"
    monkeypatch.setattr(torch.cuda.amp.common, available, lambda: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False  # it outlives the mode, and hands out dead tensors
    with mode, torch.autograd.set_multithreading_enabled(False):
        yield
