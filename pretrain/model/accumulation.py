"""One optimiser step on a batch larger than memory, as if it were not: the objective sees the whole batch.

Sinkhorn-Knopp, the centre and KoLeo are statistics of a batch. Plain gradient accumulation gives each of them a slice,
and a small GPU then trains worse than its batch suggests. Here:

1. the teacher scores every slice, and targets are made once, from all of them;
2. the student's class tokens of all slices are computed without a graph, and KoLeo on them gives each token's gradient
   (the trick of GradCache, Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup");
3. every slice is run again with its graph, with the same random numbers, for its share of the DINO and iBOT terms and
   its tokens' gradients.

The gradients are those of the whole batch, up to rounding. The price is the extra forward of 2.; a single slice, or an
objective without KoLeo, does not pay it.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from dinomed.pretrain.distributed.parallel import reduce_gradients
from dinomed.pretrain.model.dinov2 import Batch, DINOv2, Losses

Load = Callable[[], Batch]  # a slice, moved to the device when it is its turn
Autocast = Callable[[], AbstractContextManager[object]]


def forward_backward(
    model: DINOv2, slices: Sequence[Load], temperature: float, autocast: Autocast, backward: Callable[[Tensor], None]
) -> Losses:
    """The losses of the batch that `slices` make up; gradients are added to the student's by `backward`, which gets
    the loss of one slice after another, such as ``lambda loss: scaler.scale(loss).backward()``. Of several processes
    each has a batch of its own; their gradients are averaged after the last slice."""
    if len(slices) == 1:
        with autocast():
            losses: Losses = model(slices[0](), temperature)
        backward(losses.total)
        return losses

    sizes, scores = [], []
    with autocast():
        for load in slices:
            batch = load()
            sizes.append(len(batch.globals) // 2)
            scores.append(model.score(batch))
    rows = {name: [one[name].shape[-2] for one in scores] for name in scores[0]}
    targets = model.make_targets({name: torch.cat([one[name] for one in scores], dim=-2) for name in rows}, temperature)
    parts = {name: targets[name].split(counts, dim=-2) for name, counts in rows.items()}
    del scores

    terms: dict[str, Tensor] = {}
    seen: list[Tensor] = []
    pulls: list[Tensor | None] = [None] * len(slices)
    if model.objective.koleo_weight:
        terms["koleo"], pull = _spread(model, slices, autocast)
        pulls = list(pull.split(sizes, dim=1))
    for index, (load, pull_2BC) in enumerate(zip(slices, pulls, strict=True)):
        with autocast():
            batch = load()
            views = model.view(batch)
            seen.append(views[0].cls.detach())
            share = sizes[index] / sum(sizes)
            own = model.compare(batch, views, {name: part[index] for name, part in parts.items()})
            own = {name: share * term for name, term in own.items()}
            losses_of_slice = [model.weigh(own)] if own else []
            if pull_2BC is not None:
                losses_of_slice.append((views[0].cls.unflatten(0, (2, -1)).float() * pull_2BC).sum())
        reduce_gradients(model.student, now=index == len(slices) - 1)
        backward(torch.stack(losses_of_slice).sum())
        for name, term in own.items():
            terms[name] = terms.get(name, torch.zeros_like(term)) + term.detach()
    return Losses(model.weigh(terms).detach(), terms, targets.get("dino"), torch.cat(seen))


def _spread(model: DINOv2, slices: Sequence[Load], autocast: Autocast) -> tuple[Tensor, Tensor]:
    """KoLeo over all slices, and the gradient of its weighted value by each class token, (2, B, C), float32.

    The random numbers that stochastic depth draws are given back: the forward that follows draws the same.
    """
    device = next(model.student.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), autocast():
        tokens = [model.view(load())[0].cls.unflatten(0, (2, -1)).float() for load in slices]
    cls = torch.cat(tokens, dim=1).requires_grad_()
    value = model.spread(cls)
    (gradient,) = torch.autograd.grad(model.objective.koleo_weight * value, cls)
    return value.detach(), gradient
