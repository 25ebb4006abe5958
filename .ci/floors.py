"""Core tests with the lowest versions of `pyproject.toml`, in an environment of their own.

Usage: ``make floors``. Packages that `pyproject.toml` does not name have the versions of `constraints.txt`, so the set
changes only with these two files.

Exit codes: 0 passed, 1 failed, 75 nothing was tested because no package index could be reached. With
``--skip-without-index`` the last one is 0 too.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/io", "tests/layers", "tests/images", "tests/backbones", "tests/features", "tests/metrics",
    "tests/adapters/heads",
)  # fmt: skip
NOT_REACHED = 75  # EX_TEMPFAIL
LONGEST_S = 300
"""Seconds of one step of the installation, which usually takes less than a minute; a slow index must not stop CI."""
_OF_THE_INDEX = re.compile(
    "not found in the package registry|failed to fetch|failed to download|request failed|error sending request|"
    "dns error|timed out|connection",
    re.IGNORECASE,
)


def other_versions(project: str, constraints: str) -> list[str]:
    """Return the lines of `constraints.txt` for packages that `pyproject.toml` does not name."""
    table = tomllib.loads(project)["project"]
    requirements = [
        *table["dependencies"],
        *(text for texts in table["optional-dependencies"].values() for text in texts),
    ]
    named = {_normal(re.split(r"[^A-Za-z0-9._-]", text)[0]) for text in requirements}
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    return [line for line in lines if _normal(line.partition("==")[0]) not in named]


def is_index_failure(output: str) -> bool:
    """Return whether the output of a failed installation shows a fault of the index or the network, not of dinomed."""
    return "failed to build" not in output.lower() and bool(_OF_THE_INDEX.search(output))


def install(folder: Path, attempts: int) -> int:
    """Install the lowest versions into a new environment; return 0, 1 or `NOT_REACHED`."""
    venv.create(folder, clear=True, symlinks=True, with_pip=True)
    python = folder / "bin" / "python"
    versions = folder / "constraints.txt"
    lines = other_versions((ROOT / "pyproject.toml").read_text(), (ROOT / "constraints.txt").read_text())
    versions.write_text("\n".join(lines) + "\n")
    code = 0
    for attempt in range(attempts):
        time.sleep(10 * attempt)
        brief = ["--quiet", "--disable-pip-version-check", "--timeout", "15", "--retries", "1"]
        if _run([python, "-m", "pip", "install", *brief, "uv"])[0]:
            code = NOT_REACHED  # pip installs a wheel without dependencies: only the index can fail
            continue
        words = ["--resolution", "lowest-direct", "--constraints", versions, "--editable", ".[test]"]
        failed, output = _run([folder / "bin" / "uv", "pip", "install", "--python", python, *words])
        if not failed:
            return 0
        if not is_index_failure(output):
            return 1
        code = NOT_REACHED
    return code


def _run(words: list[str | Path]) -> tuple[int, str]:
    """Run a command; return its exit code and what it wrote, and show the end of that if it failed."""
    try:
        done = subprocess.run(
            list(map(str, words)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"UV_HTTP_TIMEOUT": "30"}, timeout=LONGEST_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"request failed: no end after {LONGEST_S} s"
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
    return done.returncode, done.stdout


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Install, run the tests, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".venv-floors", help="environment to write [.venv-floors]"
    )
    parser.add_argument("--attempts", type=int, default=2, help="attempts to reach an index [2]")
    parser.add_argument("--workers", default="2", help="processes of pytest [2]")
    parser.add_argument("--skip-without-index", action="store_true", help="exit code 0 if no index can be reached")
    options, of_pytest = parser.parse_known_args()
    started = time.monotonic()
    code = install(options.folder, options.attempts)
    print(f"installation of the lowest versions: {time.monotonic() - started:.0f} s, exit code {code}", flush=True)
    if code == NOT_REACHED:
        print("NOT TESTED: the lowest versions of pyproject.toml, because no package index could be reached")
        return 0 if options.skip_without_index else NOT_REACHED
    if code:
        return code
    words = ["-n", options.workers, "--dist", "loadfile", "-m", "not long and not browser", *TESTS, *of_pytest]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    python = options.folder / "bin" / "python"
    return min(subprocess.run([python, "-m", "pytest", *words], cwd=ROOT, env=environment).returncode, 1)


if __name__ == "__main__":
    sys.exit(main())
