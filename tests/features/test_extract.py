"""Feature extraction: equal to a plain forward pass, resumed after a kill, cached by key and checksum."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features import extract as extracting
from dinomed.features.cache import FeatureCache, write_shard
from dinomed.features.extract import default_cache, extract
from dinomed.images.read import read_image
from dinomed.io.artifacts import ArtifactFolder

SMALL = {"batch_size": 3, "shard_size": 8, "patches": True}  # 20 images: shards of 8, 8 and 4


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> FrozenBackbone:
    return load_backbone(tiny_backbone)


@pytest.fixture(scope="module")
def manifest(lesion_manifest: Path) -> Manifest:
    return read_manifest(lesion_manifest).take(range(20))


def everything(cache: FeatureCache) -> list[np.ndarray]:
    return [cache.cls, cache.mean, cache.patches(range(len(cache)))]


def same(cache: FeatureCache, second: FeatureCache) -> bool:
    return all((a == b).all() for a, b in zip(everything(cache), everything(second), strict=True))


@pytest.fixture(scope="module")
def whole(backbone: FrozenBackbone, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return extract(backbone, manifest, cache=tmp_path_factory.mktemp("cache"), **SMALL)


def test_features_equal_those_of_a_plain_forward_pass(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    cache = extract(backbone, manifest, cache=tmp_path, blocks=(0, -1), **SMALL)
    images = torch.stack([backbone.preprocessing(read_image(manifest.path(i))) for i in range(len(manifest))])
    first, last = backbone(images, (0, -1))
    # float32 through three blocks, in batches of another size
    assert cache.cls == pytest.approx(torch.cat([first.cls, last.cls], 1).numpy(), abs=2e-6)
    patches = torch.cat([first.patches, last.patches], 2)
    assert cache.mean == pytest.approx(patches.mean(1).numpy(), abs=2e-6)
    grid = patches.transpose(1, 2).reshape(len(manifest), 64, 4, 4).numpy()
    # float16 keeps 11 bits: half a unit in the last place of values up to 4 is 2**-10
    assert cache.patches([5, 0, 19]) == pytest.approx(grid[[5, 0, 19]], abs=2**-10)
    assert cache.patches([5]).dtype == cache.cls.dtype == np.float32
    assert len(cache) == 20


def test_a_second_run_computes_nothing(
    backbone: FrozenBackbone, manifest: Manifest, whole: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extracting, "compute_features", None)
    assert same(extract(backbone, manifest, cache=whole.folder.parent, **SMALL), whole)


KILLED = """
import os, signal, sys
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.features import extract as extracting

compute, calls = extracting.compute_features, 0
def counted(*arguments):
    global calls
    calls += 1
    if calls == 5:  # in the middle of the second shard
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(*arguments)
extracting.compute_features = counted
manifest = read_manifest(sys.argv[2]).take(range(20))
extracting.extract(load_backbone(sys.argv[1]), manifest, cache=sys.argv[3], batch_size=3, shard_size=8, patches=True)
"""


@pytest.mark.long
def test_a_killed_run_continues_and_gives_the_same_features(
    tiny_backbone: Path, lesion_manifest: Path, backbone: FrozenBackbone, manifest: Manifest, whole: FeatureCache,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = [sys.executable, "-c", KILLED, str(tiny_backbone), str(lesion_manifest), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == -signal.SIGKILL
    records = [path.name for path in tmp_path.rglob("*.json")]
    assert records == ["00000.json"]
    computed = []
    compute = extracting.compute_features
    monkeypatch.setattr(extracting, "compute_features", lambda *a: computed.append(len(a[1])) or compute(*a))
    resumed = extract(backbone, manifest, cache=tmp_path, **SMALL)
    assert sum(computed) == 12  # the first shard was kept
    assert same(resumed, whole)


def test_an_interruption_at_any_write_can_be_resumed(
    backbone: FrozenBackbone, manifest: Manifest, whole: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    for stop in range(12):  # three shards of four files
        left = stop

        def failing(source: str, target: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            replace(source, target)

        cache = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            with pytest.raises(KeyboardInterrupt):
                extract(backbone, manifest, cache=cache, **SMALL)
        assert same(extract(backbone, manifest, cache=cache, **SMALL), whole)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "record", "key"])
def test_a_damaged_shard_and_one_with_another_key_are_computed_again(
    backbone: FrozenBackbone, manifest: Manifest, whole: FeatureCache, tmp_path: Path, damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cache = extract(backbone, manifest, cache=tmp_path, **SMALL)
    file, record = cache.folder / "00001.patches.npy", cache.folder / "00001.json"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "gone":
        file.unlink()
    elif damage == "record":
        record.write_text("[]")
    else:  # the shard of another backbone, moved here
        changed_record = json.loads(record.read_text())
        changed_record["key"]["backbone"] = "0" * 64
        record.write_text(json.dumps(changed_record))
    assert same(extract(backbone, manifest, cache=tmp_path, **SMALL), whole)
    warning = capsys.readouterr().err
    assert "it is computed again" in warning if damage != "key" else not warning  # another key is not a damage


def test_each_backbone_manifest_and_setting_has_its_own_cache_folder(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    save_backbone(tmp_path / "other", VisionTransformer(backbone.vit.config), Preprocessing(image_size=32))
    changed_backbone = load_backbone(tmp_path / "other")
    larger = load_backbone(tmp_path / "other", image_size=40)
    caches = [
        extract(backbone, manifest, cache=tmp_path / "s"),
        extract(changed_backbone, manifest, cache=tmp_path / "s"),
        extract(larger, manifest, cache=tmp_path / "s"),
        extract(backbone, manifest.take(range(19, -1, -1)), cache=tmp_path / "s"),
        extract(backbone, manifest, cache=tmp_path / "s", blocks=(1,)),
    ]
    assert len({cache.folder for cache in caches}) == 5
    assert caches[3].cls[::-1] == pytest.approx(caches[0].cls, abs=2e-6)  # batches of other images
    assert not np.allclose(caches[0].cls, caches[1].cls)


def test_an_unreadable_image_is_an_error_that_names_it(
    backbone: FrozenBackbone, lesion_manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    source = read_manifest(lesion_manifest).take(range(3))
    for i in range(3):
        target = tmp_path / source.column("image")[i]
        target.write_bytes(source.path(i).read_bytes()[: 300 if i == 1 else None])
    moved = Manifest(source.table, tmp_path)
    with pytest.raises(DinomedError, match=source.column("image")[1]):
        extract(backbone, moved, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_images_and_unknown_blocks_are_usage_errors(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no images"):
        extract(backbone, manifest.take([]), cache=tmp_path)
    with pytest.raises(UsageError, match="blocks 0 to 2"):
        extract(backbone, manifest, cache=tmp_path, blocks=(3,))


def test_tokens_that_overflow_float16_are_refused(whole: FeatureCache, tmp_path: Path) -> None:
    key = whole.key
    arrays = {kind: whole.shard(0, kind).astype(np.float32) for kind in key.kinds}
    arrays["patches"][0, 0, 0, 0] = 1e6  # float16 ends at 65,504
    with np.errstate(over="ignore"), pytest.raises(DinomedError, match="not finite in float16"):
        write_shard(ArtifactFolder(tmp_path), key, 0, arrays)


def test_the_default_cache_is_beside_the_manifest(tmp_path: Path) -> None:
    assert default_cache(tmp_path / "derm.parquet") == tmp_path / "derm.features"
    (tmp_path / "derm").mkdir()
    assert default_cache(tmp_path / "derm") == tmp_path / "derm.features"
