"""Synthetic lesions and an index of each kind over them."""

from pathlib import Path

import pytest

from dinomed.adapters.retrieval.build import build_index
from dinomed.adapters.retrieval.pool import Pooling
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, read_manifest


@pytest.fixture(scope="session")
def lesions(lesion_manifest: Path) -> Manifest:
    return read_manifest(lesion_manifest)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, lesions: Manifest, tiny_backbone: Path) -> Path:
    """Indexes called flat, hnsw, ivf (whitened) and gem."""
    folder = tmp_path_factory.mktemp("indexes")
    backbone = load_backbone(tiny_backbone)
    for name, options in {
        "flat": {},
        "hnsw": {"kind": "hnsw"},
        "ivf": {"kind": "ivf", "whiten": 8},
        "gem": {"pooling": Pooling(tokens="gem")},
    }.items():
        build_index(backbone, lesions, folder / name, cache=folder / "cache", **options)
    return folder
