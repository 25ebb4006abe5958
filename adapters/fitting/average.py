"""Moving average of the weights of a head during its training.

The last steps of a short training on few images move the weights more than they improve them. Their exponential moving
average varies less between seeds, as in `torch.optim.swa_utils` (Izmailov et al. 2018, arXiv 1803.05407, average with
equal weights; Tarvainen and Valpola 2017, arXiv 1703.01780, with exponential ones).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dinomed.adapters.fitting.resume import copy_trainable

WARM_UP = 10
"""In step t the decay is at most (t + 1) / (t + `WARM_UP`), so that the initial weights have little weight soon."""


class WeightAverage:
    """Exponential moving average of the tensors that a fit changes, batch statistics included.

    Args:
        model: the module that is trained.
        decay: weight of the average of the step before, in [0, 1); 0 for the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = model, decay, 0
        self.tensors: dict[str, Tensor] = copy_trainable(model) if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step."""
        if not self.decay:
            return
        self.steps += 1
        rate = 1 - min(self.decay, (self.steps + 1) / (self.steps + WARM_UP))
        state = self.model.state_dict()
        real = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.tensors[name] for name in real], [state[name] for name in real], rate)
        for name in self.tensors.keys() - set(real):  # counters of batches
            self.tensors[name].copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply the averaged weights to the model inside the context."""
        if not self.decay:
            yield
            return
        trained = copy_trainable(self.model)
        self.model.load_state_dict(self.tensors, strict=False)
        try:
            yield
        finally:
            self.model.load_state_dict(trained, strict=False)

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Continue from the tensors and the number of steps of an interrupted fit."""
        self.steps = steps
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
