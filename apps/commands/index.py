"""`dinomed index`: an index of the images of a manifest, for similarity search."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dinomed.apps.options import Backbone, Cache, Device, ImageSize, Json, Output, Overwrite, Quiet, Weights

Where = Annotated[
    list[str] | None,
    Option("--where", help="Use only images with COLUMN=VALUE (or !=, <, <=, >, >=) in the manifest; may be repeated."),
]


def index(
    data: Annotated[Path, Argument(help="Manifest (.parquet or .csv), or a folder of images.")],
    backbone: Backbone,
    output: Output,
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
    cache: Cache = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Index images for `dinomed search`.

    Writes the folder OUTPUT with index.safetensors. The index holds paths, groups and labels, as the manifest does, and
    refers to the images and the backbone where they are now. For research use only, not for diagnosis.
    """
    import numpy as np

    from dinomed.adapters.retrieval.build import build_index
    from dinomed.adapters.retrieval.engine import parse_kind
    from dinomed.adapters.retrieval.filters import choose_rows, parse_conditions
    from dinomed.adapters.retrieval.pool import Pooling, parse_pool
    from dinomed.apps.output import emit
    from dinomed.backbones.load import load_backbone
    from dinomed.datasets.open import open_dataset
    from dinomed.features.extract import default_cache
    from dinomed.log import logger
    from dinomed.notice import RESEARCH_USE

    conditions = parse_conditions(where or [])
    index_kind, pooling = parse_kind(kind), Pooling(tokens=parse_pool(pool), gem_power=gem_power)
    manifest = open_dataset(data, allow_unreadable=True, decode=True)
    unreadable = manifest.unreadable
    allowed = choose_rows(manifest, conditions)
    if allowed is not None:
        manifest = manifest.take(np.flatnonzero(allowed).tolist())
    frozen = load_backbone(backbone, weights=weights, device=device, image_size=image_size)
    vector_index = build_index(
        frozen, manifest, output, cache=cache or default_cache(data), kind=index_kind, pooling=pooling, whiten=whiten,
        overwrite=overwrite,
    )  # fmt: skip
    if unreadable:
        name, reason = unreadable[0]
        if len(unreadable) == 1:
            logger.warning(f"1 file could not be read and is not in the index: {name}: {reason}")
        else:
            logger.warning(
                f"{len(unreadable)} files could not be read and are not in the index (the first: {name}: {reason})"
            )
    report = {
        "index": str(output),
        "images": len(vector_index),
        "dimension": vector_index.record.dimension,
        "kind": vector_index.record.kind,
        "pool": vector_index.record.pooling.tokens,
        "whitened": vector_index.record.whitened,
        "backbone": frozen.name,
        "fingerprint": frozen.fingerprint,
        "image_size": frozen.preprocessing.image_size,
        "unreadable": len(unreadable),
        "note": RESEARCH_USE,
    }
    emit(report, as_json)
