"""Copy-detection descriptors: vectors of length 1 whose cosine is high for copies of an image and low for other images.

There are three sources of raw features (`descriptors.sources`), and a projection that is fitted to the pool
(`descriptors.projection`):

* `composed`: handcrafted colour, gradients and texture; no weights, no device (`handcrafted`);
* `backbone`: class token and generalised mean of the patch tokens of a frozen ViT (DINO, arXiv 2104.14294, section
  4.2.2: power 4);
* `sscd`: the network of the DINOv2 paper, from a file of the user (`sscd`).

A descriptor is fitted once (`fit_descriptor`) and saved. It is then a pure function of images, so shards of a pool can
be described on any machine, in any order. Vectors can be compared if the fingerprints of their descriptors are equal.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dinomed.config import build_config
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.pixels import read_picture
from dinomed.errors import DinomedError, UsageError, first_line, system_reason
from dinomed.features.neighbors import normalised
from dinomed.images.read import UnreadableImage
from dinomed.io.files import replacing
from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.descriptors.config import MIN_FIT_IMAGES, DescriptorConfig
from dinomed.pretrain.curation.descriptors.projection import Projection, fit_invariance, fit_whitening
from dinomed.pretrain.curation.descriptors.sources import ComposedSource, DescriptorSource, build_source
from dinomed.pretrain.curation.descriptors.synthetic_copies import add_copies
from dinomed.pretrain.curation.runtime.images import BATCH
from dinomed.progress import bar

FORMAT = "dinomed.descriptor/1"


class Descriptor:
    """Maps images to vectors, float32 (N, D), of length 1.

    Attributes:
        fingerprint: 64 hex digits over everything that the vectors depend on.
    """

    def __init__(self, config: DescriptorConfig, source: DescriptorSource, projection: Projection | None) -> None:
        self.config, self.source, self.projection = config, source, projection
        digest = hashlib.sha256(source.fingerprint.encode())
        for array in () if projection is None else (projection.mean, projection.matrix):
            digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Describe images, uint8 RGB ``(H, W, 3)`` of any sizes. Raise `DinomedError` if a feature is not finite."""
        raw = np.concatenate([self.source(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])
        return normalised(raw, "descriptor of image") if self.projection is None else self.projection(raw)


def fit_descriptor(
    config: DescriptorConfig, manifests: Sequence[Manifest], *, device: str = "auto", workers: int | None = None
) -> Descriptor:
    """Fit a descriptor to a sample of the images of some manifests; the seed determines the result.

    Raises:
        DinomedError: fewer than `MIN_FIT_IMAGES` images of the sample are readable.
    """
    source = build_source(config.source, device)
    if config.fit == "none":
        return Descriptor(config, source, None)
    images = [(manifest, row) for manifest in manifests for row in range(len(manifest))]
    rng = np.random.default_rng(config.seed)
    chosen = sorted(rng.choice(len(images), min(config.fit_images, len(images)), replace=False).tolist())

    def read(index: int) -> np.ndarray | None:
        try:
            manifest, row = images[index]
            image = read_picture(manifest.path(row), isolated=not manifest.decoded)
        except UnreadableImage:
            return None
        return source(add_copies(image, config.seed, index) if config.fit == "copies" else [image])

    # a network uses threads itself, and reading takes little of the time
    threads = workers if isinstance(source, ComposedSource) else 1
    rows = []
    with bar("fitting the descriptor", len(chosen)) as progress:
        for row in prefetch(read, chosen, threads):
            rows += [] if row is None else [row]
            progress.advance()
    if len(rows) < MIN_FIT_IMAGES:
        raise DinomedError(
            f"a descriptor needs at least {MIN_FIT_IMAGES} images for the fit, and {len(rows)} can be read"
        )
    raw = np.stack(rows)
    if config.fit == "whitening":
        return Descriptor(config, source, fit_whitening(raw[:, 0], config.dimension, config.whitening_power))
    return Descriptor(config, source, fit_invariance(raw[:, 0], raw[:, 1:], config.dimension))


def save_descriptor(path: str | Path, descriptor: Descriptor) -> None:
    """Write a descriptor as one safetensors file: the projection, and in the header its config and fingerprint. The
    weights of networks are not copied."""
    projection = descriptor.projection
    arrays = {} if projection is None else {"mean": projection.mean, "matrix": projection.matrix}
    header = {"format": FORMAT, "fingerprint": descriptor.fingerprint}
    header["config"] = json.dumps(descriptor.config.model_dump(mode="json"))
    with replacing(path) as temporary:
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, header)
        except SafetensorError as error:
            raise DinomedError(f"cannot write {path}: {system_reason(error)}") from None


def load_descriptor(path: str | Path, *, device: str = "auto") -> Descriptor:
    """Load a descriptor that `save_descriptor` wrote.

    Raises:
        UsageError: the file does not exist.
        DinomedError: the file is damaged or holds no descriptor, or its backbone or network has changed.
    """
    if not Path(path).is_file():
        raise UsageError(f"descriptor {path} does not exist")
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if header.get("format") != FORMAT:
            raise DinomedError(f"{path} is not a descriptor")
        config = build_config(DescriptorConfig, json.loads(header["config"]), str(path))
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise DinomedError(f"descriptor {path} is damaged ({first_line(error)})") from None
    projection = Projection(arrays["mean"], arrays["matrix"]) if arrays else None
    descriptor = Descriptor(config, build_source(config.source, device), projection)
    if descriptor.fingerprint != header["fingerprint"]:
        raise DinomedError(f"{path} was fitted on other weights than {config.source.kind} has now; fit it again")
    return descriptor
