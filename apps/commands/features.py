"""`dinomed features`: features of images as a table for other tools."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Aspect, Backbone, Device, ImageSize, Json, Mean, Output, Overwrite, Quiet, Std, Weights
from dinomed.notice import RESEARCH_USE


def features(
    images: Annotated[Path, Argument(help="Folder of images, one image, or a manifest.")],
    backbone: Backbone,
    out: Output,
    weights: Weights = None,
    tokens: Annotated[str, Option("--tokens", help="cls, mean (of the patch tokens) or cls+mean.")] = "cls",
    image_size: ImageSize = None,
    aspect: Aspect = None,
    mean: Mean = None,
    std: Std = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the features of images to a Parquet table with the columns image, sha256 and feature.

    An interrupted run is resumed. Images that cannot be used are listed in OUT.unreadable.csv, and the exit code is
    then 1. For research use only, not for diagnosis.
    """
    from dinomed.apps.api.backbones import extract_features, load_backbone
    from dinomed.apps.ending import after_backbone, print_end
    from dinomed.apps.output import emit
    from dinomed.errors import DinomedError
    from dinomed.features.table import check_table_output

    check_table_output(out, tokens, overwrite=overwrite)  # before a backbone is downloaded
    checked: Any = {"mean": mean, "std": std, "aspect": aspect}  # by callbacks, and by the call
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size, **checked)
    table = extract_features(frozen, images, out=out, tokens=tokens, overwrite=overwrite)
    report = {
        "table": str(out),
        "images": table.images,
        "dimension": table.dimension,
        "backbone": frozen.name,
        "fingerprint": frozen.fingerprint,
        "image_size": frozen.preprocessing.image_size,
        "aspect": frozen.preprocessing.aspect,
        "unreadable": table.unreadable,
        "unreadable_list": None if table.unreadable_list is None else str(table.unreadable_list),
        "note": RESEARCH_USE,
    }
    emit(report, as_json)
    backbone_options = {"weights": weights, "image_size": image_size, "aspect": aspect, "mean": mean, "std": std}
    step = partial(after_backbone, backbone, images, **backbone_options)
    print_end([out, table.unreadable_list], step, as_json=as_json)
    if table.unreadable:
        raise DinomedError(
            f"{table.unreadable} images could not be used, listed in {table.unreadable_list}; "
            f"the other {table.images} are in the table"
        )
