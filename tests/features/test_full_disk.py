"""Shards on a full disk: NumPy does not check that its last bytes were written."""

import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from dinomed.errors import DinomedError
from dinomed.features.cache import FeatureKey, write_shard
from dinomed.io.artifacts import ArtifactFolder


def test_a_shard_that_is_cut_short_is_an_error_and_removed(tmp_path: Path) -> None:
    key = FeatureKey(backbone="b", images="i", count=50, blocks=(0,), patches=False, shard_size=50)
    arrays = {kind: np.ones((50, 16), np.float32) for kind in key.kinds}  # 3,200 bytes and a header
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(DinomedError, match=r"cannot write .*00000\.cls\.npy"):
            write_shard(ArtifactFolder(tmp_path), key, 0, arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
