"""How long commands and imports take as whole processes, with few and with 200 plugins installed.

Bar: `train-lm --help` and `trainer plugins` under 0.3 s for what the core does; neither imports
torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from measure import (
    describe_machine,
    is_installed,
    print_table,
    read_arguments,
    run_rounds,
    summarise,
    write_json,
)

PEERS = ("lightning", "transformers", "accelerate", "ignite", "skorch", "keras", "fastai")


def make_distributions(folder: Path, count: int) -> None:
    """Writes `count` distributions with entry points of another group, as installed metadata."""
    for number in range(count):
        info = folder / f"stranger_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: stranger-{number}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[console_scripts]\ns{number} = stranger:main\n")


def timed(words: list[str], environment: Mapping[str, str]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True, env=dict(environment))
        return time.perf_counter() - start

    return run


def main() -> None:
    arguments = read_arguments(str(__doc__), rounds=11)
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        make_distributions(Path(folder), 200)
        few = dict(os.environ)
        many = {**few, "PYTHONPATH": folder}
        ways = {
            "import torch": timed([sys.executable, "-c", "import torch"], few),
            "python -c pass": timed([sys.executable, "-c", "pass"], few),
            "import trainer_callback": timed(
                [sys.executable, "-c", "import trainer_callback"], few
            ),
            "train-lm --help": timed([str(scripts / "train-lm"), "--help"], few),
            "train-lm --help, 200 more distributions": timed(
                [str(scripts / "train-lm"), "--help"], many
            ),
            "trainer plugins": timed([str(scripts / "trainer"), "plugins"], few),
            "trainer plugins, 200 more distributions": timed(
                [str(scripts / "trainer"), "plugins"], many
            ),
        }
        for peer in PEERS:
            if is_installed(peer):
                ways[f"import {peer}"] = timed([sys.executable, "-c", f"import {peer}"], few)
        rows = summarise(run_rounds(ways, arguments.rounds), "import torch")
    print_table("whole processes", rows, "s")
    machine = describe_machine(["torch", "pluggy", "trainer-core", *PEERS])
    write_json(arguments.json, {**machine, "results": rows})


if __name__ == "__main__":
    main()
