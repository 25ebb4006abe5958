"""How many floating-point operations a training step takes, and how many a device could do.

Counted by `torch.utils.flop_counter` on tensors without memory (fake ones): every matrix product, convolution and
attention of the teacher's forward, the student's forward and its backward, heads included; two operations for each
product and sum. Not counted: what is element by element (norms, softmax, GELU, colours), Sinkhorn-Knopp or centring,
the optimiser and the average. There attention is counted as products of matrices, 2 in the forward and 4 in the
backward: what a fused kernel or activation checkpointing computes a second time is no use of the model.
"""

from dataclasses import replace

import torch
from contenders import Setting, make_config, make_raw
from slow import slow_down
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch

# Dense peaks of the vendor's data sheets in TFLOP/s, by a part of the name that torch gives: bfloat16 on tensor cores
# (without sparsity), float32 without TF32. The longer names first.
PEAKS: dict[str, dict[str, float]] = {
    "H200": {"bfloat16": 989, "float32": 67},
    "H100 PCIe": {"bfloat16": 756, "float32": 51},
    "H100 NVL": {"bfloat16": 835, "float32": 60},
    "H100": {"bfloat16": 989, "float32": 67},  # SXM
    "A100": {"bfloat16": 312, "float32": 19.5},
    "A40": {"bfloat16": 149.7, "float32": 37.4},
    "L40S": {"bfloat16": 362, "float32": 91.6},
    "L4": {"bfloat16": 121, "float32": 30.3},
    "RTX 4090": {"bfloat16": 165.2, "float32": 82.6},
    "RTX 3090": {"bfloat16": 71, "float32": 35.6},
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of a device; None for one that is not in the table, and for a part of one (MIG)."""
    words = f" {device_name.replace('-', ' ')} "
    if " MIG " in words:
        return None
    return next((1e12 * peaks[precision] for name, peaks in PEAKS.items() if f" {name} " in words), None)


def count_flops(setting: Setting, *, slow: bool = False) -> float:
    """FLOP of one step at this batch, of the product's path or of the slow one."""
    # centring asks whether a sum is positive, which has no answer here; the products are the same
    config = make_config(replace(setting, compile=False, checkpoint_activations=False), targets="sinkhorn")
    raw = make_raw(config, (1, 1))
    with torch.device("meta"):
        model = DINOv2(config.backbone, config.objective).train()
    if slow:
        slow_down(model)
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        model.to_empty(device="cpu")
        batch = ViewBatch(
            _pixels(len(raw.globals), setting.sizes[0]),
            _pixels(len(raw.locals), setting.sizes[1]),
            *(torch.empty_like(tensor) for tensor in (raw.masks, raw.masked, raw.mask_weights)),
        )
        with FlopCounterMode(display=False) as counter:
            model(batch, 0.07).total.backward()
    return float(counter.get_total_flops())


def _pixels(count: int, size: int) -> torch.Tensor:
    return torch.empty(count, 3, size, size)
