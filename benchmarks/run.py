"""`make bench`: runs every benchmark, keeps its figures as JSON in `results/`, and puts what it
prints into README.md, between the markers that bear its name.

    python benchmarks/run.py [NAME ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from measure import describe_machine

HERE = Path(__file__).parent
README = HERE / "README.md"
BENCHMARKS = (
    *("loop_overhead", "dispatch", "lm", "startup", "scaling", "gradient_stats", "snapshot"),
)
FENCED = ("gradient_stats", "snapshot")
"""Those that print plain text."""


def run(name: str) -> str | None:
    """Returns what a benchmark prints, or None where it failed."""
    began = time.monotonic()
    words = [sys.executable, f"{name}.py", "--json", str(HERE / "results" / f"{name}.json")]
    done = subprocess.run(words, cwd=HERE, check=False, stdout=subprocess.PIPE, text=True)
    print(f"\n# {name}, {time.monotonic() - began:.0f} s\n\n{done.stdout}", flush=True)
    if done.returncode:
        return None
    text = done.stdout.strip()
    return f"```text\n{text}\n```" if name in FENCED else text


def describe() -> str:
    machine = describe_machine()
    versions = machine["versions"]
    assert isinstance(versions, dict)
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['date']}, {machine['machine']}, Python {machine['python']}; {packages}."


def replace(name: str, text: str) -> None:
    """Puts `text` between the markers `name` of README.md."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    content, count = pattern.subn(lambda found: f"{found[1]}{text}\n{found[2]}", README.read_text())
    if count != 1:
        raise SystemExit(f"{README} has the markers of {name} {count} times")
    README.write_text(content)


def main() -> int:
    (HERE / "results").mkdir(exist_ok=True)
    failed = []
    for name in sys.argv[1:] or BENCHMARKS:
        text = run(name)
        if text is None:
            failed.append(name)
        else:
            replace(name, text)
    replace("machine", describe())
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
