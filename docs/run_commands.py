"""Run every command of a Markdown file's ```sh blocks, as a reader would, and stop at the first that fails.

    python docs/run_commands.py README.md

A block runs in one shell at the root with .venv/bin first on the PATH. Blocks that make what exists already
(`make demo`, `make test`) are run by continuous integration itself and are marked ```sh ci here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(name: str) -> int:
    environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    blocks = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    for number, block in enumerate(blocks, 1):
        print(f"--- {name}, block {number} of {len(blocks)}\n{block}", flush=True)
        ended = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=ROOT, env=environment, check=False)
        if ended.returncode:
            print(f"--- {name}, block {number} ended with {ended.returncode}", file=sys.stderr)
            return ended.returncode
    print(f"--- {name}: all {len(blocks)} blocks ended with 0")
    return 0 if blocks else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
