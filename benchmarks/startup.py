"""How long commands and imports take as whole processes, with few and with 200 more distributions
installed that have entry points: of another group, and of the plugins' own.

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

from measure import Row, is_installed, make_parser, print_table, run_rounds, summarise, write_json

PEERS = (
    *("ignite", "accelerate", "skorch", "torchtnt.framework", "transformers.trainer"),
    *("lightning", "fastai.learner", "keras"),
)
BASE = "import torch"
PLUGIN = """from trainer_callback import TrainerCallback


class Stranger(TrainerCallback):
    def __init__(self, stranger_{number}_option: int = 0) -> None:
        self.option = stranger_{number}_option
"""


def make_distributions(folder: Path, count: int, *, plugins: bool) -> Path:
    """Writes installed metadata of `count` distributions with an entry point each, and their
    modules where they are plugins.
    """
    folder.mkdir()
    for number in range(count):
        info = folder / f"stranger_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: stranger-{number}\nVersion: 1.0\n"
        )
        group = "trainer.callbacks" if plugins else "console_scripts"
        (info / "entry_points.txt").write_text(
            f"[{group}]\nstranger_{number} = stranger_{number}:Stranger\n"
        )
        if plugins:
            (folder / f"stranger_{number}.py").write_text(PLUGIN.format(number=number))
    return folder


def timed(words: list[str], environment: Mapping[str, str]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True, env=dict(environment))
        return time.perf_counter() - start

    return run


def make_ways(folder: Path) -> dict[str, Callable[[], float]]:
    few = {**os.environ, "KERAS_BACKEND": "torch"}
    others = make_distributions(folder / "others", 200, plugins=False)
    plugins = make_distributions(folder / "plugins", 200, plugins=True)
    scripts = Path(sys.executable).parent
    commands = {
        "import trainer_callback": [sys.executable, "-c", "import trainer_callback"],
        "train-lm --help": [str(scripts / "train-lm"), "--help"],
        "trainer plugins": [str(scripts / "trainer"), "plugins"],
    }
    ways = {
        "python -c pass": timed([sys.executable, "-c", "pass"], few),
        BASE: timed([sys.executable, "-c", "import torch"], few),
    }
    for name, words in commands.items():
        ways[name] = timed(words, few)
        ways[f"{name}, 200 other distributions"] = timed(words, {**few, "PYTHONPATH": str(others)})
        ways[f"{name}, 200 plugins"] = timed(words, {**few, "PYTHONPATH": str(plugins)})
    for peer in PEERS:
        if is_installed(peer.partition(".")[0]):
            ways[f"import {peer}"] = timed([sys.executable, "-c", f"import {peer}"], few)
    return ways


def main() -> None:
    arguments = make_parser(__doc__, rounds=5).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = summarise(run_rounds(make_ways(Path(folder)), arguments.rounds), BASE)
    print_results(results)
    write_json(arguments.json, results, rounds=arguments.rounds)


def print_results(results: dict[str, Row]) -> None:
    print("Seconds of a whole process, median, and as a share of `import torch`.")
    rows = [
        (f"`{name}`" if "," not in name else name, f"{row['median']:.3f}", f"{row['ratio']:.2f}")
        for name, row in results.items()
    ]
    print_table(("", "s", "share"), rows)


if __name__ == "__main__":
    main()
