"""`dinomed features`: features of images as a table for other tools."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import Backbone, Device, ImageSize, Json, Output, Overwrite, Quiet, Weights
from dinomed.notice import RESEARCH_USE


def features(
    images: Annotated[Path, Argument(help="Folder of images, one image, or a manifest.")],
    backbone: Backbone,
    output: Output,
    weights: Weights = None,
    tokens: Annotated[str, Option("--tokens", help="cls, mean (of the patch tokens) or cls+mean.")] = "cls",
    image_size: ImageSize = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the features of images to a Parquet table with the columns image and feature.

    An interrupted run is resumed. Files that cannot be read are listed in OUT.unreadable.csv. For research use only,
    not for diagnosis.
    """
    from dinomed.apps.output import emit
    from dinomed.backbones.load import load_backbone
    from dinomed.datasets.open import open_dataset
    from dinomed.features.table import check_table_output, write_feature_table

    check_table_output(output, tokens, overwrite=overwrite)
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size)
    manifest = open_dataset(images, allow_unreadable=True, decode=True)
    written = write_feature_table(frozen, manifest, output, tokens=tokens, unreadable=manifest.unreadable)
    report = {
        "table": str(output),
        "images": written.images,
        "dimension": written.dimension,
        "backbone": frozen.name,
        "fingerprint": frozen.fingerprint,
        "image_size": frozen.preprocessing.image_size,
        "unreadable": len(manifest.unreadable),
        "unreadable_list": None if written.unreadable_list is None else str(written.unreadable_list),
        "note": RESEARCH_USE,
    }
    emit(report, as_json)
