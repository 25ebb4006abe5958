"""Training step of ViT-S/14 compared with lightly-train: batch 4, 2 x 224 + 8 x 98 px, stochastic depth 0.3, float32.

    python benchmarks/pretrain/step.py compare --peer PYTHON [--rounds 5]

PYTHON is the Python of an environment with lightly-train (`pip install lightly-train`). Each round starts one process
for each step, one after the other, on the same threads; a process takes 2 steps unmeasured and then 3. `contenders.py`
defines the steps and what they share. Memory is the peak of the process with its libraries. `gpu.py` compares the steps
on a GPU, at the largest batch size.
"""

import argparse
import json
import sys
from typing import Any

from contenders import MODELS, Setting, compare_rounds, run_rounds


def compare(peer: str, rounds: int, setting: Setting) -> dict[str, Any]:
    """Measure both alternately; ratios are ours to theirs within a round."""
    runs = run_rounds({"dinomed": setting, "lightly": setting}, {"dinomed": sys.executable, "lightly": peer}, rounds)
    return {
        "runs": runs,
        "ratio": {
            key: compare_rounds(runs["dinomed"], runs["lightly"], key) for key in ("seconds", "cpu_seconds", "gib")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    both = commands.add_parser("compare", help="measure both alternately")
    both.add_argument("--peer", required=True, help="Python of the environment with lightly-train")
    both.add_argument("--rounds", type=int, default=5)
    both.add_argument("--model", choices=MODELS, default="vits14")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.peer, arguments.rounds, Setting(model=arguments.model))))


if __name__ == "__main__":
    main()
