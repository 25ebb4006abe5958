"""The functions of a demo under many requests: memory, files and waiting requests stay bounded, and no answer is wrong.

Five kinds of clients ask in turns: with a picture, with bytes that are no picture, with a broken request, with a file
that was put away, and one that leaves before its turn. They run in a process of their own (this file as a script),
whose memory no other test has used before.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROUNDS, WARM_UP = 400, 60
MAX_GROWTH_MIB = 60  # of 340 rounds after the warm-up: an answer holds about 0.2 MiB, so a leak of one per round shows


class Client:
    """The connection of a visitor."""

    def __init__(self, stays: bool = True) -> None:
        self.stays = stays

    async def is_disconnected(self) -> bool:
        return not self.stays


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def build_app(user_folder: Path) -> Any:
    """The app of a demo with a segmenter, a classifier and an index, without a server."""
    from dinomed.apps.demos import launch, page

    kept: list[Any] = []
    real = page.build_page

    def build(panels: list[Any], *arguments: Any, **options: Any) -> Any:
        kept.extend(panels)
        return real(panels, *arguments, **options)

    page.build_page = build
    launch.serve = lambda build, address, browser: build()  # type: ignore[assignment, misc, return-value]
    launch.serve_demo([user_folder / "seg", user_folder / "cls"], index=user_folder / "idx", device="cpu")
    return page.App(kept)


async def visit(app: Any, user_folder: Path) -> dict[str, list[float]]:
    """Send the requests; return memory, MiB, and number of files after the warm-up and at the end."""
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    folder = uploads / "hash"
    folder.mkdir(parents=True)
    pictures = sorted((user_folder / "lesions" / "images").iterdir())[:3]
    for number, picture in enumerate(pictures):
        shutil.copy(picture, folder / f"{number}{picture.suffix}")
    (folder / "garbage.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    good = [str(folder / f"{number}{picture.suffix}") for number, picture in enumerate(pictures)]
    first: dict[str, Any] = {}
    memory, files = list[float](), list[float]()

    async def ask(path: Any, identity: Any, client: Client) -> dict[str, Any]:
        request = {"id": identity, "visit": f"visitor {identity}", "path": path, "settings": {}}
        answer: dict[str, Any] = await app.look(request, client)
        return answer

    for turn in range(ROUNDS):
        path = good[turn % len(good)]
        answer = await ask(path, f"picture {turn}", Client())
        assert "error" not in answer
        areas = answer["panels"]["classify"]["html"]
        assert first.setdefault(path, areas) == areas
        assert "error" in await ask(str(folder / "garbage.png"), "garbage", Client())
        assert "error" in await ask(None, 5, Client())
        assert "error" in await ask(str(folder / "put away.png"), "gone", Client())
        assert "error" in await ask("/etc/hostname", "outside", Client())
        assert "panels" not in await ask(path, "left", Client(stays=False))
        assert app.turns.waiting == 0
        if turn in (WARM_UP, ROUNDS - 1):
            memory.append(resident_mib())
            files.append(sum(1 for _ in uploads.rglob("*")))
    return {"memory_mib": memory, "files": files}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not state the memory of a process")
def test_memory_files_and_answers_stay_the_same(user_folder: Path) -> None:
    process = subprocess.run([sys.executable, __file__, user_folder], stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(process.stdout.splitlines()[-1])
    before, after = measured["memory_mib"]
    assert after - before < MAX_GROWTH_MIB
    assert measured["files"][1] <= measured["files"][0] + 3


if __name__ == "__main__":
    from dinomed.apps.demos.serve import private_environment

    with private_environment():
        user_folder = Path(sys.argv[1])
        print(json.dumps(asyncio.run(visit(build_app(user_folder), user_folder))))
