"""Times of the demo: from upload to outline, a step of the threshold, and many visitors at once with their memory.

    python benchmarks/reliability/demo_speed.py [--adapter FOLDER] [--rounds 9] [--visitors 20] [--json]

A headless Chromium opens synthetic pictures of 1024x768 and of 4000x3000 px in `dinomed demo segment`, which runs in a
process of its own on the CPU. A time from upload to outline ends when the page shows the areas; the first round is not
counted. A step of the threshold ends with the next frame of the page, which comes up to 17 ms later. The visitors send
their requests at the same moment, three each; memory is that of the server with its decoding processes. Without
`--adapter` a backbone (two steps) and a linear segmenter are trained on synthetic lesions first.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from demo_soak import LIMIT_S, Visitor, memory_mib, served, train_segmenter

from dinomed.datasets.synthetic.lesions import write_lesions

SIZES = {"1024x768": (768, 1024), "4000x3000": (3000, 4000)}
STEPS = """async count => {
  const slider = document.querySelector("#threshold"), times = [];
  for (let step = 0; step < count; step++) {
    const start = performance.now();
    slider.value = 0.2 + 0.6 * step / count;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - start);
  }
  return times;
}"""


def time_page(address: str, pictures: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds from upload to outline, and the milliseconds of steps of the threshold, by the size."""
    from playwright.sync_api import sync_playwright

    times: dict[str, dict[str, list[float]]] = {}
    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 920})
        page.set_default_timeout(1000 * LIMIT_S)
        page.goto(f"http://{address}")
        page.wait_for_selector(".dm-app[data-ready]")
        for size, picture in pictures.items():
            seconds = []
            for _ in range(rounds + 1):
                start = time.perf_counter()
                page.set_input_files("#picture input[type=file]", str(picture))
                page.wait_for_function("() => !document.querySelector('#measures').hidden", polling="raf")
                seconds.append(time.perf_counter() - start)
            times[size] = {"upload_s": seconds[1:], "step_ms": page.evaluate(STEPS, 40)}
        browser.close()
    return times


def tree_mib(process: int) -> float:
    """Return the resident memory of a process and of the children of all its threads, MiB."""
    total = memory_mib(process)
    for thread in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread or a child that has ended meanwhile
            total += sum(memory_mib(int(child)) for child in (thread / "children").read_text().split())
    return total


def serve_visitors(visitor: Visitor, process: int, picture: bytes, count: int) -> dict[str, Any]:
    """Let `count` visitors ask three times each at the same moment."""
    start_together = threading.Barrier(count)

    def visit(number: int) -> list[tuple[float, str]]:
        answers = []
        start_together.wait()
        for turn in range(3):
            start = time.perf_counter()
            answer = visitor.look(f"visitor {number} {turn}", visitor.upload(picture))
            error = answer.get("error", "")
            outcome = "busy" if "is busy" in error else "error" if error or "panels" not in answer else "answered"
            answers.append((time.perf_counter() - start, outcome))
        return answers

    before, samples, ended = tree_mib(process), [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            samples.append(tree_mib(process))

    sampler = threading.Thread(target=sample)
    sampler.start()
    with ThreadPoolExecutor(count) as pool:
        answers = [answer for each in pool.map(visit, range(count)) for answer in each]
    ended.set()
    sampler.join()
    outcomes = [outcome for _, outcome in answers]
    return {
        "answer_s": [seconds for seconds, outcome in answers if outcome == "answered"],
        "outcomes": {name: outcomes.count(name) for name in ("answered", "busy", "error")},
        "memory_mib": [before, max(samples), tree_mib(process)],
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    adapter = arguments.adapter or train_segmenter(folder)
    pictures = {}
    for name, size in SIZES.items():
        write_lesions(folder / name, count=1, seed=2, size=size, broken=0)
        pictures[name] = next((folder / name / "images").iterdir())
    with served(folder, adapter) as (process, visitor):
        host, port = visitor.address
        pages = time_page(f"{host}:{port}", pictures, arguments.rounds)
        load, picture = os.getloadavg()[0], pictures["1024x768"].read_bytes()
        visitors = serve_visitors(visitor, process.pid, picture, arguments.visitors)
        return {"load": load, "pages": pages, "visitors": visitors}


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="a segmenter; by default one is trained")
    parser.add_argument("--rounds", type=int, default=9, help="uploads of each picture that are timed")
    parser.add_argument("--visitors", type=int, default=20, help="visitors at once")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = measure(Path(temporary), arguments)
    if arguments.json:
        print(json.dumps(report))
        return
    for size, times in report["pages"].items():
        print(f"{size}: {spread(times['upload_s'], 2)} s from upload to outline")
        print(f"{size}: {spread(times['step_ms'], 0)} ms a step of the threshold")
    visitors, (before, highest, after) = report["visitors"], report["visitors"]["memory_mib"]
    print(f"{arguments.visitors} visitors, three requests each: {visitors['outcomes']}")
    print(f"an answer: {spread(visitors['answer_s'], 2)} s")
    print(f"memory: {before:.0f} MiB before, {highest:.0f} at most, {after:.0f} after")
    print(f"load of the machine before the visitors: {report['load']:.1f}")


if __name__ == "__main__":
    main()
