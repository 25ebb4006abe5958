"""Gradients of a batch that is larger than memory, with the losses of the whole batch.

Sinkhorn-Knopp, centring and KoLeo are statistics of a batch. Plain gradient accumulation computes them on one slice at
a time, so a small GPU trains as with a smaller batch. Here:

1. The teacher logits of all slices are computed, and the targets are made once from all of them.
2. The student's class tokens of all slices are computed without a graph. KoLeo on them gives the gradient of each
   token (the method of GradCache, Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited
   setup").
3. Each slice is computed again with its graph and the same random numbers, for its share of the DINO and iBOT losses
   and the KoLeo gradients of its tokens.

The gradients are those of the whole batch, up to rounding. The cost is the extra forward pass of step 2; a single
slice, or an objective without KoLeo, needs no extra pass.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from dinomed.pretrain.distributed.parallel import sync_gradients
from dinomed.pretrain.model.dinov2 import DINOv2, Losses, ViewBatch

LoadSlice = Callable[[], ViewBatch]  # moves a slice to the device when it is needed
Autocast = Callable[[], AbstractContextManager[object]]


def forward_backward(
    model: DINOv2,
    slices: Sequence[LoadSlice],
    temperature: float,
    autocast: Autocast,
    backward: Callable[[Tensor], None],
) -> Losses:
    """Compute the losses of the batch that `slices` make up, and add its gradients to those of the student.

    With several processes each has its own batch; the gradients are averaged after the last slice.

    Args:
        temperature: of the teacher.
        backward: computes the gradients of the loss of one slice: ``lambda loss: scaler.scale(loss).backward()``.
    """
    if len(slices) == 1:
        with autocast():
            losses: Losses = model(slices[0](), temperature)
        backward(losses.total)
        return losses

    sizes, logits = [], []
    with autocast():
        for load_slice in slices:
            batch = load_slice()
            sizes.append(len(batch.globals) // 2)
            logits.append(model.teacher_logits(batch))
    rows = {name: [of_slice[name].shape[-2] for of_slice in logits] for name in logits[0]}
    all_logits = {name: torch.cat([of_slice[name] for of_slice in logits], dim=-2) for name in rows}
    targets = model.make_targets(all_logits, temperature)
    targets_of_slices = {name: targets[name].split(counts, dim=-2) for name, counts in rows.items()}
    del logits, all_logits

    terms: dict[str, Tensor] = {}
    student_cls: list[Tensor] = []
    koleo_gradients: list[Tensor | None] = [None] * len(slices)
    if model.objective.koleo_weight:
        terms["koleo"], gradient_2BC = _koleo_of_batch(model, slices, autocast)
        koleo_gradients = list(gradient_2BC.split(sizes, dim=1))
    for index, (load_slice, koleo_gradient_2BC) in enumerate(zip(slices, koleo_gradients, strict=True)):
        with autocast():
            batch = load_slice()
            tokens = model.student_tokens(batch)
            student_cls.append(tokens[0].cls.detach())
            share = sizes[index] / sum(sizes)
            slice_targets = {name: parts[index] for name, parts in targets_of_slices.items()}
            slice_terms = model.image_losses(batch, tokens, slice_targets)
            slice_terms = {name: share * term for name, term in slice_terms.items()}
            slice_losses = [model.weighted_sum(slice_terms)] if slice_terms else []
            if koleo_gradient_2BC is not None:
                slice_losses.append((tokens[0].cls.unflatten(0, (2, -1)).float() * koleo_gradient_2BC).sum())
        sync_gradients(model.student, enabled=index == len(slices) - 1)
        backward(torch.stack(slice_losses).sum())
        for name, term in slice_terms.items():
            terms[name] = terms.get(name, torch.zeros_like(term)) + term.detach()
    return Losses(model.weighted_sum(terms).detach(), terms, targets.get("dino"), torch.cat(student_cls))


def _koleo_of_batch(model: DINOv2, slices: Sequence[LoadSlice], autocast: Autocast) -> tuple[Tensor, Tensor]:
    """Compute KoLeo over all slices, and the gradient of its weighted value by each class token, (2, B, C), float32.

    The random state is restored, so that the next forward pass draws the same stochastic depth.
    """
    device = next(model.student.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), autocast():
        tokens = [model.student_tokens(load_slice())[0].cls.unflatten(0, (2, -1)).float() for load_slice in slices]
    cls = torch.cat(tokens, dim=1).requires_grad_()
    loss = model.koleo_loss(cls)
    (gradient,) = torch.autograd.grad(model.objective.koleo_weight * loss, cls)
    return loss.detach(), gradient
