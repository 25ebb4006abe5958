"""The functions of a demo under many requests: memory, files and waiting requests stay bounded, and no answer is wrong.

Five kinds of clients ask in turns: with a picture, with bytes that are no picture, with a broken request, with a file
that was put away, and one that leaves before its turn.
"""

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dinomed.apps.demos import launch
from dinomed.apps.demos.page import App
from dinomed.apps.demos.serve import private_environment

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


def build_app(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """The app of a demo with a segmenter, a classifier and an index, without a server."""
    from dinomed.apps.demos import page

    kept: list[Any] = []
    real = page.build_page

    def build(panels: list[Any], *arguments: Any, **options: Any) -> Any:
        kept.extend(panels)
        return real(panels, *arguments, **options)

    monkeypatch.setattr(page, "build_page", build)
    monkeypatch.setattr(launch, "serve", lambda build, address, browser: build())
    adapters = [user_folder / "seg", user_folder / "cls"]
    launch.serve_demo(adapters, index=user_folder / "idx", device="cpu")
    return App(kept)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not state the memory of a process")
def test_memory_files_and_answers_stay_the_same(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # in a thread of its own: browser tests in the same process leave a loop of events in this one
    with private_environment(), ThreadPoolExecutor(1) as thread:
        app = build_app(user_folder, monkeypatch)
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        folder = uploads / "hash"
        folder.mkdir(parents=True)
        pictures = sorted((user_folder / "lesions" / "images").iterdir())[:3]
        for number, picture in enumerate(pictures):
            shutil.copy(picture, folder / f"{number}{picture.suffix}")
        (folder / "garbage.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
        good = [str(folder / f"{number}{picture.suffix}") for number, picture in enumerate(pictures)]
        first: dict[str, Any] = {}

        def ask(path: Any, identity: Any, client: Client) -> dict[str, Any]:
            request = {"id": identity, "visit": f"visitor {identity}", "path": path, "settings": {}}
            answer = thread.submit(asyncio.run, app.look(request, client))  # type: ignore[arg-type]
            return answer.result()

        before, files = 0.0, 0
        for turn in range(ROUNDS):
            path = good[turn % len(good)]
            answer = ask(path, f"picture {turn}", Client())
            assert "error" not in answer
            areas = answer["panels"]["classify"]["html"]
            assert first.setdefault(path, areas) == areas
            assert "error" in ask(str(folder / "garbage.png"), "garbage", Client())
            assert "error" in ask(None, 5, Client())
            assert "error" in ask(str(folder / "put away.png"), "gone", Client())
            assert "error" in ask("/etc/hostname", "outside", Client())
            assert "panels" not in ask(path, "left", Client(stays=False))
            assert app.turns.waiting == 0
            if turn == WARM_UP:
                before, files = resident_mib(), sum(1 for _ in uploads.rglob("*"))
        assert resident_mib() - before < MAX_GROWTH_MIB
        assert sum(1 for _ in uploads.rglob("*")) <= files + 3
