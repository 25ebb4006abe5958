"""Backbones of other libraries from the command line: features, probe, heads, index, search; a plug-in family."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import Backbones, predict_many
from dinomed.adapters.retrieval.search import load_index
from dinomed.apps import cli
from dinomed.apps.demos.serve import private_environment
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import load_backbone
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError
from dinomed.images.read import read_image

ROOT = Path(__file__).resolve().parents[3]


def clip_folder(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32, patch_size=8
    )
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    return folder


def bare_file(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(embed_dim=64, depth=2, num_heads=1, patch_size=8, image_size=32, layerscale=None)
    folder.mkdir()
    save_file(VisionTransformer(config).state_dict(), folder / "dino.safetensors")
    return folder / "dino.safetensors"


@pytest.mark.parametrize("build", [clip_folder, pytest.param(bare_file, marks=pytest.mark.long)])
def test_features_heads_probe_index_and_search_work_with_it(
    build: object, tmp_path: Path, lesion_manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = str(build(tmp_path / "backbone"))
    images = lesion_manifest.parent / "lesions" / "images"
    statistics = ["--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    data = ["--data", str(lesion_manifest), "-b", backbone]

    def run(*words: object) -> dict:
        capsys.readouterr()
        cli.invoke([*map(str, words), "--json"])
        return json.loads(capsys.readouterr().out)

    table = run("features", images, "-b", backbone, *statistics, "--image-size", 32, "-o", tmp_path / "f.parquet")
    assert (table["images"], table["dimension"]) == (60, 64)
    probe = run("probe", backbone, "--data", lesion_manifest, *statistics, "--image-size", 32)
    assert 0 <= probe["knn"]["auroc"] <= 1
    fast = ["--set", "fit.epochs=1", "--set", "fit.min_steps=2", "--set", "augment_copies=0"]
    run("train", "classify", *data, *statistics, "--head", "logistic", "-o", tmp_path / "cls")
    run("train", "segment", *data, *statistics, *fast, "--set", "image_size=32", "-o", tmp_path / "seg")
    record = json.loads((tmp_path / "cls" / "adapter.json").read_text())
    assert record["backbone"]["mean"] == record["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    for head in ("cls", "seg"):  # the adapter finds the backbone and its statistics without the options
        assert run("predict", tmp_path / head, images, "-o", tmp_path / f"{head}-out")["images"] == 60
    index = run("index", lesion_manifest, "-b", backbone, *statistics, "--image-size", 32, "-o", tmp_path / "index")
    assert index["dimension"] == 64
    answers = run("search", next(images.iterdir()), "-i", tmp_path / "index", "-k", 3)
    assert len(answers["queries"]) == 1
    shared = Backbones()  # as the demo loads them: one pass of the backbone for adapters and index
    consumers = [load_adapter(tmp_path / head, load=shared) for head in ("cls", "seg")]
    consumers.append(load_index(tmp_path / "index", load=shared))
    image = read_image(next(images.iterdir()))
    classes, maps, query = (outputs[0] for outputs in predict_many(consumers, [image]))
    assert sum(classes.values()) == pytest.approx(1, abs=1e-5)
    assert (maps.shape, query.shape) == ((1, *image.shape[:2]), (64,))
    with private_environment():
        from dinomed.apps.demos.launch import _panels
        from dinomed.apps.demos.page import App

        app = App(list(_panels(consumers[:2], consumers[2], True, names=True)))
        upload = Path(os.environ["GRADIO_TEMP_DIR"]) / "hash" / "image"
        upload.parent.mkdir(parents=True)
        shutil.copy(next(images.iterdir()), upload)
        answers = app.answer({"id": "a", "visit": "v", "path": str(upload)})["panels"]
        assert {"classify", "segment"} <= set(answers)


def test_pictures_export_curation_and_audit_take_the_statistics(
    tmp_path: Path, lesion_manifest: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """With --mean and --std no command assumes those of ImageNet; without, each says so."""
    backbone = bare_file(tmp_path / "backbone")
    images = sorted((lesion_manifest.parent / "lesions" / "images").iterdir())[:3]
    small = ("--image-size", 32)
    fast = ("--set", "quality.min_short_side_px=32", "--trusted", lesion_manifest)
    few = ("--set", "descriptor.fit_images=16", "--set", "candidates=1", "--set", "always_checked=1")
    lines: list[tuple[object, ...]] = [
        ("show", "pca", *images, "-b", backbone, *small, "-o", tmp_path / "pca.png"),
        ("show", "attention", images[0], "-b", backbone, *small, "-o", tmp_path / "attention.png"),
        ("show", "match", *images[:2], "-b", backbone, *small, "-o", tmp_path / "match.png"),
        ("show", "similarity", images[0], "-b", backbone, *small, "-o", tmp_path / "similarity.png"),
        ("show", "map", lesion_manifest, "-b", backbone, *small, "--method", "pca", "-o", tmp_path / "map.png"),
        ("export", backbone, "--format", "safetensors", *small, "-o", tmp_path / "exported"),
        ("curate", "--pool", images[0].parent, "-b", backbone, *fast, "-o", tmp_path / "curated.parquet"),
        ("audit", lesion_manifest, "-b", backbone, *few),
        ("audit", lesion_manifest, "--labels", "label", "-b", backbone, "--folds", 2, "--cache", tmp_path / "cache"),
    ]
    statistics = ("--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
    for line in lines:
        code, _, err = run(*line, *statistics)
        assert code == 0, err
        assert "assumed are mean" not in err
    exported = load_backbone(tmp_path / "exported").preprocessing
    assert (exported.mean, exported.std) == ((0.5,) * 3, (0.2,) * 3)
    code, _, err = run("show", "pca", *images, "-b", backbone, *small, "-o", tmp_path / "again.png")
    assert (code, "assumed are mean" in err) == (0, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("curate", "--pool", "x", "-o", "c.parquet", "--mean", "0.5"),
         "--mean is for a backbone; name it with --backbone"),
        (("audit", "x", "--std", "0.5"), "--std is for a backbone; name it with --backbone"),
        (("export", "cls", "--format", "onnx", "-o", "e", "--mean", "0.5"),
         "leave --weights, --image-size, --mean and --std out"),
    ],
)  # fmt: skip
def test_statistics_without_a_backbone_of_their_own_are_refused(
    line: tuple[str, ...], message: str, user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cls").symlink_to(user_folder / "cls")
    code, _, err = run(*line)
    assert (code, message in " ".join(err.split())) == (2, True), err


def test_every_command_that_reads_weights_takes_their_statistics() -> None:
    recorded = json.loads((ROOT / "tests" / "golden" / "cli_options.json").read_text(encoding="utf-8"))
    without = {name for name, options in recorded.items() if "--weights" in options and "--mean" not in options}
    assert not without
    for name, options in recorded.items():
        assert ("--mean" in options) == ("--std" in options), name


def test_numbers_that_are_none_are_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["features", str(tmp_path), "-b", "x", "-o", str(tmp_path / "f.parquet"), "--mean", "half"])
    assert end.value.code == 2
    assert "expected numbers with commas between them" in " ".join(capsys.readouterr().err.split())


@pytest.mark.long
def test_the_example_family_is_installed_and_used(tmp_path: Path, lesion_manifest: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source, site, folder = tmp_path / "plugin", tmp_path / "site", tmp_path / "mixer"
    shutil.copytree(ROOT / "examples" / "backbone_plugin", source)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*install, "--target", str(site), str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder.mkdir()
    config = {"model_type": "patch_mixer", "hidden_size": 16, "num_hidden_layers": 2, "patch_size": 8, "image_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    images = lesion_manifest.parent / "lesions" / "images"
    features = ["features", str(images), "-b", str(folder), "-o", str(tmp_path / "f.parquet"), "--json"]
    train = ["train", "classify", "--head", "logistic", "-b", str(folder), "--data", str(lesion_manifest)]
    train += ["-o", str(tmp_path / "cls"), "--json"]
    predict = ["predict", str(tmp_path / "cls"), str(images), "-o", str(tmp_path / "out"), "--json"]
    export = ["export", str(tmp_path / "cls"), "-f", "safetensors", "-o", str(tmp_path / "own"), "--json"]
    script = (
        "import torch\nfrom safetensors.torch import save_file\nfrom dinomed_mixer import PatchMixer\n"
        f"torch.manual_seed(0)\nsave_file(PatchMixer(16, 2, 8).state_dict(), {str(folder / 'model.safetensors')!r})\n"
        "from dinomed.apps import cli\n"
        + "".join(f"cli.invoke({arguments!r})\nprint('-----')\n" for arguments in (features, train, predict, export))
    )
    path = os.pathsep.join(filter(None, [str(site), str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table, _, predicted, exported, _ = done.stdout.split("-----\n")
    assert json.loads(exported)["parity"]["largest_difference"] < 1e-6
    assert (tmp_path / "own" / "backbone" / "preprocessor_config.json").is_file()
    assert (json.loads(table)["dimension"], json.loads(predicted)["images"]) == (16, 60)
    with pytest.raises(UsageError, match="is of a patch_mixer model, which dinomed cannot use"):  # not installed here
        cli.invoke(["features", str(images), "-b", str(folder), "-o", str(tmp_path / "again.parquet")])
