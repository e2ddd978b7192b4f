"""`make bench`: runs every benchmark, and keeps its figures as JSON in `benchmarks/results/`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = ("dispatch", "loop_overhead", "gradient_stats", "startup", "snapshot", "lm")


def main() -> int:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    failed = []
    for name in BENCHMARKS:
        print(f"\n# {name}", flush=True)
        words = [sys.executable, str(HERE / f"{name}.py"), "--json", str(results / f"{name}.json")]
        if subprocess.run(words, cwd=HERE, check=False).returncode:
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
