"""Post-processing of MONAI bundles: names in expressions, maps at the size of the image, and their files."""

import re
from collections.abc import Sequence
from typing import Any

Transform = dict[str, Any]
MONAI_FILE = "{'image': image, 'file': done['pred'].meta['saved_to']}"
"""Expression for an entry of ``predictions.json``."""
_SIZE = "tuple(map(int, data['image'].meta['spatial_shape']))[::-1]"  # MONAI's order is width, height


def monai_literal(value: object) -> str:
    """Return a value as a Python expression for a bundle; MONAI gives ``@``, ``%`` and ``#`` in strings a meaning."""
    return re.sub("[@%#]", lambda sign: f"\\x{ord(sign[0]):x}", repr(value))


def monai_map_transforms(decision: list[Transform], suffix: str, dtype: str, scale: int | None) -> list[Transform]:
    """Return the transforms from the logits (C, rows, columns) of an image to the written file.

    Logits are resized as in `DensePredictor.resized`, then `decision` is applied. The result has MONAI's order of axes
    (1, width, height), which the writer turns back.

    Args:
        decision: transforms of the resized logits.
        suffix: of the files, which also gives their format.
        dtype: NumPy type of the values.
        scale: 255 writes 1 as 255.
    """
    resized = (
        "$lambda data: {**data, 'pred': MetaTensor(torch.nn.functional.interpolate(torch.as_tensor(data['pred'])"
        f".detach().cpu().float()[None], size={_SIZE}, mode='bilinear')[0], meta=dict(data['image'].meta))}}"
    )
    return [
        {"_target_": "Lambda", "func": resized},
        *decision,
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.transpose(-1, -2)"},
        {
            "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_ext": suffix,
            "output_postfix": "", "output_dtype": f"$np.{dtype}", "scale": scale, "separate_folder": False,
            "data_root_dir": "@dataset_dir", "writer": "PILWriter", "print_log": False, "savepath_in_metadict": True,
            # MONAI replaces the last suffix: a.jpg becomes a.jpg.png, so that a.jpg and a.png do not share a file
            "output_name_formatter": "$lambda meta, saver: {'subject': str(meta['filename_or_obj']) + '.image'}",
        },
    ]  # fmt: skip


def on_pred(function: str) -> Transform:
    """Return a transform that applies a Python expression of a function to the prediction, and keeps its metadata."""
    func = f"$lambda x: MetaTensor(({function})(x.as_tensor()), meta=x.meta)"
    return {"_target_": "Lambdad", "keys": "pred", "func": func}


def on_members(functions: Sequence[str]) -> Transform:
    """Return a transform that applies a function to the channels of each member of an ensemble and averages them."""
    if len(functions) == 1:
        return on_pred(functions[0])
    parts = ", ".join(f"({function})(parts[{place}])" for place, function in enumerate(functions))
    return on_pred(
        f"lambda x: (lambda parts: torch.stack([{parts}]).double().mean(0).float())(x.chunk({len(functions)}))"
    )
