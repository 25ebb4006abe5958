"""Hashes and descriptors of all images of a manifest."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.io.output_folder import locked
from dinomed.log import logger
from dinomed.pretrain.curation.deduplication.hashes import views_of
from dinomed.pretrain.curation.descriptors.descriptor import Descriptor
from dinomed.pretrain.curation.image_pass import VERSION, ImagePass
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.stage import StageRunner

HASH_BITS = 256
_SHARD = 256  # images


@dataclass(frozen=True)
class HashedImages:
    """Hashes and descriptors of N images, in the order of their manifest; 0 for images that cannot be read."""

    hashes: np.ndarray  # uint64 (N, 8, 4): one hash per orientation, the first of the image as it is
    vectors: np.ndarray  # float32 (N, D), of length 1; D is 0 without a descriptor
    readable: np.ndarray  # bool (N,)

    @property
    def rows(self) -> np.ndarray:
        """The images that can be read, int64."""
        return np.flatnonzero(self.readable)


def hash_images(
    manifest: Manifest,
    descriptor: Descriptor | None = None,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    description: str = "reading images",
) -> HashedImages:
    """Read every image once and compute its hashes and its descriptor.

    Args:
        descriptor: None for hashes alone.
        cache: folder for the results, so that an interrupted call can continue; None caches nothing. A call waits
            for another process that uses it.
        description: of the progress bar.
    """
    fingerprint = "" if descriptor is None else descriptor.fingerprint
    work = ImagePass(quality=False, descriptor=descriptor, workers=workers, isolated=not manifest.decoded)
    runner = StageRunner(folder=cache, shard_size=_SHARD)
    with nullcontext() if cache is None else locked(cache, wait=True):
        table = runner.map_images(
            stage_key("images", VERSION, fingerprint, manifest.fingerprint)[:16], [VERSION, fingerprint], manifest,
            np.arange(len(manifest)), work,
            description=description,
        )  # fmt: skip
    problems = table["problem"].to_pylist()
    readable = np.array([problem is None for problem in problems], bool)
    if not readable.all():
        first = int(np.argmin(readable))
        logger.warning(
            f"{(~readable).sum():,} of {len(manifest):,} images cannot be read and are compared by their content hash "
            f"alone; the first is {manifest.path(first)}: {problems[first]}"
        )
    vectors = np.zeros((len(manifest), 0), np.float32)
    if descriptor is not None and readable.any():
        values = table["vector"].drop_null().combine_chunks().flatten().to_numpy().reshape(int(readable.sum()), -1)
        vectors = np.zeros((len(manifest), values.shape[1]), np.float32)
        vectors[readable] = values
    return HashedImages(views_of(table["views"]), vectors, readable)
