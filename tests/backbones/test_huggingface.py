"""Backbones of the Hugging Face hub, from a local server that answers as the hub does: cache, shards, offline use, and
repositories that are missing or gated."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from dinomed.adapters.reference import find_backbone, refer_to
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.huggingface import is_hub_name
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import DinomedError, UsageError

COMMIT = "a" * 40
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


class Hub(ThreadingHTTPServer):
    """Serves the files of `repositories`; a value of None stands for a gated repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes] | None] = {}
        self.downloads: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, *, send: bool) -> None:
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        if repository not in self.server.repositories:
            return self.refuse(401, "RepoNotFound")
        files = self.server.repositories[repository]
        if files is None:
            return self.refuse(403, "GatedRepo")
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        if send:
            self.server.downloads.append(file)
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{abs(hash((repository, file))):x}"')
        self.send_header("Content-Length", str(len(files[file])))
        self.end_headers()
        if send:
            self.wfile.write(files[file])

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(embed_dim=64, depth=2, num_heads=1, patch_size=8, image_size=32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def timm_files(tmp_path: Path, *, shards: bool = False) -> dict[str, bytes]:
    state = {key: value for key, value in vit().state_dict().items() if key != "mask_token"}
    config = {
        "architecture": "vit_small_patch14_dinov2",
        "model_args": SMALL,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]},
    }
    files = {"config.json": json.dumps(config).encode()}
    names = sorted(state)
    parts = {"model-1.safetensors": names[:10], "model-2.safetensors": names[10:]} if shards else {
        "model.safetensors": names
    }  # fmt: skip
    for file, keys in parts.items():
        save_file({key: state[key].contiguous() for key in keys}, tmp_path / file)
        files[file] = (tmp_path / file).read_bytes()
    if shards:
        table = {key: file for file, keys in parts.items() for key in keys}
        files["model.safetensors.index.json"] = json.dumps({"weight_map": table}).encode()
    return files


@pytest.mark.parametrize(
    ("name", "shards"), [("timm/small", False), ("hf-hub:lab/vit", False), ("hf-hub:lab/vit", True)]
)
def test_a_model_of_the_hub_is_downloaded_once_and_used_offline(
    name: str, shards: bool, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    files = timm_files(tmp_path, shards=shards)
    hub.repositories[name.removeprefix("hf-hub:")] = {**files, "evil.py": b"raise SystemExit", "README.md": b"text"}
    backbone = load_backbone(name)
    assert (backbone.name, backbone.source) == (name, None)
    assert (backbone.preprocessing.mean, backbone.preprocessing.image_size) == ((0.5, 0.4, 0.3), 32)
    images = torch.randn(1, 3, 32, 32)
    assert torch.allclose(backbone(images)[0].patches, vit()(images).patches, atol=1e-6)
    assert sorted(hub.downloads) == sorted(files)  # and no code
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_backbone(name).fingerprint == backbone.fingerprint
    (tmp_path / "adapter").mkdir()
    reference = refer_to(backbone, tmp_path / "adapter")
    assert (
        find_backbone(tmp_path / "adapter", reference, Preprocessing(image_size=32)).fingerprint == backbone.fingerprint
    )
    assert sorted(hub.downloads) == sorted(files)


def test_a_repository_that_cannot_be_used_gives_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.repositories |= {"lab/gated": None, "lab/empty": {"README.md": b""}, "lab/code": {"config.json": b"{}"}}
    expected = {
        "hf-hub:lab/gated": "a gated repository; accept its licence on its page at .*/lab/gated",
        "hf-hub:lab/nothing": "the hub has no such repository, or it is private",
        "timm/nothing": "the hub has no such repository, or it is private",
        "hf-hub:lab/empty": "the repository has no config.json; if it has a file of weights alone, download that",
        "hf-hub:lab/code": "the repository has none of model.safetensors.*if it has a file of weights alone",
        "hf-hub:a/b/c": "not the name of a repository",
    }
    for name, message in expected.items():
        with pytest.raises(DinomedError, match=message) as caught:
            load_backbone(name)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(name)


def test_without_a_network_the_message_says_what_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, hf_hub_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DinomedError, match=r"config\.json is not in the cache .* HF_HUB_OFFLINE is set; download"):
        load_backbone("timm/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.repositories["timm/small"] = timm_files(tmp_path)
    hf_hub_download("timm/small", "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the config is in the cache, the weights are not
    with pytest.raises(DinomedError, match=r"model\.safetensors is not in the cache"):
        load_backbone("timm/small")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    nobody = "http://127.0.0.1:9"  # a port on which nothing listens
    without_pauses = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})  # between the retries: 23 s
    monkeypatch.setattr("huggingface_hub.utils._http.time", without_pauses)
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(DinomedError, match="there is no network; download it on another machine"):
        load_backbone("timm/other")


def test_an_existing_folder_wins_over_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("timm/vit")
    (tmp_path / "timm" / "vit").mkdir(parents=True)
    assert not is_hub_name("timm/vit")
    assert is_hub_name("hf-hub:lab/vit")
    with pytest.raises(UsageError, match="holds no backbone"):
        load_backbone("timm/vit")
