"""The manifest of the synthetic lesions and the tiny backbone, opened once a file of tests."""

from pathlib import Path

import pytest

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, read_manifest


@pytest.fixture(scope="module")
def manifest(lesion_manifest: Path) -> Manifest:
    return read_manifest(lesion_manifest)


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> FrozenBackbone:
    return load_backbone(tiny_backbone)
