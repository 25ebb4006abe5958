"""`dinomed index`: an index of the images of a manifest, for similarity search."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import (
    Aspect,
    Backbone,
    Cache,
    Device,
    ImageSize,
    Json,
    Mean,
    Output,
    Overwrite,
    Quiet,
    Std,
    Weights,
)

Where = Annotated[
    list[str] | None,
    Option("--where", help="Use only images with COLUMN=VALUE (or !=, <, <=, >, >=) in the manifest; may be repeated."),
]


def index(
    data: Annotated[Path, Argument(help="Manifest (.parquet or .csv), or a folder of images.")],
    backbone: Backbone,
    out: Output,
    weights: Weights = None,
    kind: Annotated[
        str,
        Option(
            "--kind",
            help="flat (exact), hnsw (graph, fast from 100,000 images on) or ivf (cells).",
        ),
    ] = "flat",
    pool: Annotated[
        str,
        Option(
            "--pool",
            help="Feature vector of an image: cls, mean, cls+mean, or gem (generalised mean of the patch tokens).",
        ),
    ] = "cls",
    gem_power: Annotated[
        float,
        Option(
            "--gem-power",
            help="Exponent of gem: 1 is the mean; larger values give strong patches more weight.",
            min=1,
            max=64,
        ),
    ] = 3.0,
    whiten: Annotated[
        int | None, Option("--whiten", help="PCA-whiten the vectors to this number of dimensions.", min=1)
    ] = None,
    where: Where = None,
    image_size: ImageSize = None,
    aspect: Aspect = None,
    mean: Mean = None,
    std: Std = None,
    cache: Cache = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Index images for `dinomed search`.

    Writes the folder OUTPUT with index.safetensors. The index holds paths, groups and labels, as the manifest does, and
    refers to the images and the backbone where they are now. Images that cannot be used are named, the others are
    indexed, and the exit code is then 1. For research use only, not for diagnosis.
    """
    arguments = locals()
    from dinomed.apps.api.retrieval import build_index
    from dinomed.apps.ending import after_index, print_end
    from dinomed.apps.output import api_arguments, emit
    from dinomed.errors import DinomedError
    from dinomed.notice import RESEARCH_USE

    image_index = build_index(**api_arguments(arguments))
    unreadable = image_index.vector_index.manifest.unreadable
    record, frozen = image_index.vector_index.record, image_index.backbone
    report = {
        "index": str(out),
        "images": len(image_index),
        "dimension": record.dimension,
        "kind": record.kind,
        "pool": record.pooling.tokens,
        "whitened": record.whitened,
        "backbone": frozen.name,
        "fingerprint": frozen.fingerprint,
        "image_size": frozen.preprocessing.image_size,
        "aspect": frozen.preprocessing.aspect,
        "unreadable": len(unreadable),
        "note": RESEARCH_USE,
    }
    emit(report, as_json)
    print_end([out], lambda: after_index(out, data), as_json=as_json)
    if unreadable:
        name, reason = unreadable[0]
        raise DinomedError(
            f"{len(unreadable)} images could not be used (the first: {name}: {reason}); "
            f"the other {len(image_index)} are in the index"
        )
