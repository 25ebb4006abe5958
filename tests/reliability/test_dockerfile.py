"""The container: pinned, offline, an ordinary user. It is read as text, since no test builds it."""

import re
import subprocess
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, in their order."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_the_container_is_pinned_and_fetches_no_scripts() -> None:
    images = [rest for name, rest in instructions() if name == "FROM"]
    assert images
    for image in images:
        assert re.fullmatch(r"[\w/.-]+:[\w.-]*\d[\w.-]*", image), f"{image} has no version"
    commands = " ".join(rest for name, rest in instructions() if name == "RUN")
    assert "--require-hashes -r requirements.lock" in commands
    assert not re.search(r"curl|wget|\|\s*(ba)?sh\b|--trusted-host|://", commands)
    assert not any(name == "ADD" for name, _ in instructions())
    assert not re.search(r"(?i)password|token|secret|api_?key", DOCKERFILE)


def test_the_container_runs_offline_as_an_ordinary_user() -> None:
    names = [name for name, _ in instructions()]
    (user,) = (rest for name, rest in instructions() if name == "USER")
    assert user not in ("root", "0")
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    variables = " ".join(rest for name, rest in instructions() if name == "ENV")
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "GRADIO_ANALYTICS_ENABLED=False"} <= set(variables.split())


def test_the_build_context_leaves_out_all_but_the_package() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    assert {"dinomed", "pretrain", "adapters", "apps", "configs", "pyproject.toml", "requirements.lock"} <= kept
    assert not kept & {".git", "tests", "runs"}


def test_without_cuda_only_its_packages_are_left_out_of_the_lock() -> None:
    program = re.search(r"awk '([^']+)'", DOCKERFILE)[1]
    done = subprocess.run(["awk", program, str(ROOT / "requirements.lock")], capture_output=True, text=True, check=True)
    whole, rest = (re.findall(r"^([a-z0-9][\w.-]*)==", text, re.MULTILINE) for text in (
        (ROOT / "requirements.lock").read_text(encoding="utf-8"), done.stdout
    ))  # fmt: skip
    left_out = {canonicalize_name(name) for name in set(whole) - set(rest)}
    assert {"torch", "torchvision", "xformers", "triton"} <= left_out
    assert all(re.match(r"torch$|torchvision$|xformers$|triton$|nvidia-|cuda-", name) for name in left_out)
    assert done.stdout.count("--hash=sha256:") > 1000
