"""The container: pinned, offline, an ordinary user. It is read as text, since no test builds it."""

import re
import subprocess
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(text: str = DOCKERFILE) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, in their order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
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


def lint(text: str) -> list[str]:
    """Return what common rules for Dockerfiles forbid in a text: names of rules, in the order of the instructions."""
    problems, shell, place = [], "", ""
    listed = instructions(text)
    for name, rest in listed:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", rest)  # without quoted texts,
        bare = re.sub(r"\$\([^)]*\)", "", bare)  # and without the output of commands
        if name == "FROM":
            image = rest.split()[0]
            tag = image.rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in image and (not re.search(r"\d", tag) or tag == "latest"):
                problems.append("base without a version")
        elif name == "SHELL":
            shell = rest
        elif name == "WORKDIR":
            place = rest
            problems += [] if rest.startswith("/") else ["relative WORKDIR"]
        elif name in ("CMD", "ENTRYPOINT"):
            problems += [] if re.fullmatch(r'\["[^\]]*"\]', rest) else [f"{name} that is no JSON list"]
        elif name == "ADD":
            problems.append("ADD")
        elif name == "MAINTAINER":
            problems.append("MAINTAINER")
        elif name == "COPY":
            problems += [] if place or rest.split()[-1].startswith("/") else ["COPY to an unknown folder"]
        elif name == "RUN":
            problems += lint_commands(bare, "pipefail" in shell)
    users = [rest for name, rest in listed if name == "USER"]
    return problems + ([] if users and users[-1].split(":")[0] not in ("root", "0") else ["runs as root"])


def lint_commands(run: str, pipefail: bool) -> list[str]:
    """Return what the rules forbid in the commands of a RUN, whose quoted texts are left out."""
    problems = []
    if re.search(r"(?<!\|)\|(?!\|)", run) and not pipefail and "pipefail" not in run:
        problems.append("pipe without pipefail")
    for words in (command.split() for command in re.split(r";;|;|&&|\|\||\|", run)):
        command = " ".join(words)
        if re.search(r"(^|\s)(sudo|cd|apt|ssh|vim|shutdown|service|ps|free|top|kill|mount)(\s|$)", command):
            problems.append("command that no RUN needs")
        if "apt-get" in words and {"upgrade", "dist-upgrade"} & {*words}:
            problems.append("apt-get upgrade")
        if "apt-get" in words and "install" in words:
            problems += [] if "--no-install-recommends" in words else ["recommended packages"]
            problems += [] if {"-y", "-qqy", "--yes"} & {*words} else ["apt-get install that asks"]
            problems += [] if "rm -rf /var/lib/apt/lists" in run else ["lists of apt in the image"]
            names = [word for word in words[words.index("install") + 1 :] if not word.startswith("-")]
            problems += [] if all("=" in name for name in names) else ["package of apt without a version"]
        if "pip" in words and "install" in words:
            problems += [] if {"--no-cache-dir", "--no-cache"} & {*words} else ["cache of pip in the image"]
            names = [word for word in words[words.index("install") + 1 :] if re.match(r"[a-zA-Z]", word)]
            given = [name for name in names if not name.endswith((".lock", ".txt", "cpu"))]
            problems += [] if all("==" in name for name in given) else ["package of pip without a version"]
        if "useradd" in words and (uid := re.search(r"(?:-u|--uid)[ =](\d+)", command)) and int(uid[1]) > 65_535:
            problems += (
                [] if {"-l", "--no-log-init"} & {*words} else ["useradd with a high number without --no-log-init"]
            )
    return problems


def test_the_container_keeps_the_common_rules() -> None:
    assert lint(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("line", "instead", "problem"),
    [
        ("FROM python:3.11-slim-bookworm", "FROM python", "base without a version"),
        ("FROM python:3.11-slim-bookworm", "FROM python:latest", "base without a version"),
        ("WORKDIR /opt/dinomed", "WORKDIR opt", "relative WORKDIR"),
        ("WORKDIR /opt/dinomed", "", "COPY to an unknown folder"),
        ("COPY . .", "ADD . .", "ADD"),
        ("COPY . .", "MAINTAINER a@example.org", "MAINTAINER"),
        ("USER dinomed", "", "runs as root"),
        ("USER dinomed", "USER root", "runs as root"),
        ('CMD ["--help"]', "CMD --help", "CMD that is no JSON list"),
        ('ENTRYPOINT ["dinomed"]', "ENTRYPOINT dinomed", "ENTRYPOINT that is no JSON list"),
        ("COPY . .", "RUN a | b", "pipe without pipefail"),
        ("COPY . .", "RUN cd /tmp && make", "command that no RUN needs"),
        ("COPY . .", "RUN sudo make", "command that no RUN needs"),
        ("COPY . .", "RUN apt-get update && apt-get upgrade", "apt-get upgrade"),
        ("COPY . .", "RUN apt-get install -y a=1 && rm -rf /var/lib/apt/lists/*", "recommended packages"),
        ("COPY . .", "RUN apt-get install --no-install-recommends -y a=1", "lists of apt in the image"),
        (
            "COPY . .", "RUN apt-get install --no-install-recommends a=1 && rm -rf /var/lib/apt/lists/*",
            "apt-get install that asks",
        ),
        (
            "COPY . .", "RUN apt-get install --no-install-recommends -y a && rm -rf /var/lib/apt/lists/*",
            "package of apt without a version",
        ),
        ("COPY . .", "RUN pip install uv==1", "cache of pip in the image"),
        ("uv==0.13.9", "uv", "package of pip without a version"),
        ("--uid 1000", "--uid 100000", "useradd with a high number without --no-log-init"),
    ],
)  # fmt: skip
def test_a_line_against_a_rule_is_found(line: str, instead: str, problem: str) -> None:
    assert DOCKERFILE.count(line) == 1
    assert problem in lint(DOCKERFILE.replace(line, instead))


def test_a_pipe_that_fails_as_a_whole_and_a_digest_are_allowed() -> None:
    assert lint(DOCKERFILE.replace("COPY . .", "RUN set -o pipefail; a | b")) == []
    assert lint(DOCKERFILE.replace("COPY . .", 'SHELL ["/bin/bash", "-o", "pipefail", "-c"]\nRUN a | b')) == []
    assert lint(DOCKERFILE.replace("python:3.11-slim-bookworm", "python@sha256:" + "0" * 64)) == []
