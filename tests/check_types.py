"""Checks that every public name has a type, as the type checker of a user sees it."""

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ["trainer_callback", "trainer", "trainer_lm", "trainer_tool"]
PLUGINS = Path(__file__).parent.parent / "plugins"


def main() -> int:
    worst = 100.0
    # pyright asks the first `python` on the path where packages are
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": scripts + os.pathsep + os.environ["PATH"]}
    packages = PACKAGES + sorted(path.name for path in PLUGINS.glob("*/src/*") if path.is_dir())
    for package in packages:
        command = ["pyright", "--ignoreexternal", "--outputjson", "--verifytypes", package]
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        report = json.loads(run.stdout)["typeCompleteness"]
        score = 100.0 * report["completenessScore"]
        worst = min(worst, score)
        print(f"{package}: {score:.1f} % of the public names have a type")
        for symbol in report["symbols"]:
            if symbol["isExported"] and not symbol["isTypeKnown"]:
                problems = "; ".join(d["message"] for d in symbol.get("diagnostics", []))
                print(f"  {symbol['name']}: {problems}")
    return 0 if worst == 100.0 else 1


if __name__ == "__main__":
    sys.exit(main())
