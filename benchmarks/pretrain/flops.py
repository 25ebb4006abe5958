"""Floating-point operations of a training step, and the peak rate of devices.

The operations are counted by `torch.utils.flop_counter` on fake tensors (without memory). It counts every matrix
product, convolution and attention of the forward pass of the teacher and of the forward and backward pass of the
student, with heads; a product and its sum are two operations. It does not count elementwise operations (norms, softmax,
GELU, colours), Sinkhorn-Knopp or centring, the optimiser and the average of weights. Attention counts as matrix
products, 2 in the forward and 4 in the backward pass: recomputation in a fused kernel or by activation checkpointing
does not count.
"""

from dataclasses import replace

import torch
from contenders import Setting, make_config, make_raw
from slow import slow_down
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch

# Dense peak rates in TFLOP/s from the data sheets of the vendor, by a part of the device name of torch: bfloat16 on
# tensor cores (without sparsity), float32 without TF32. Longer names come first.
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
    """Return the peak FLOP/s of a device; None for a device that is not in the table and for a part of a device
    (MIG)."""
    words = f" {device_name.replace('-', ' ')} "
    if " MIG " in words:
        return None
    return next((1e12 * peaks[precision] for name, peaks in PEAKS.items() if f" {name} " in words), None)


def count_flops(setting: Setting, *, slow: bool = False) -> float:
    """Count the FLOP of one step at this batch size, of the normal or of the slow path."""
    # centring tests whether a sum is positive, which fake tensors cannot; the matrix products are the same
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
