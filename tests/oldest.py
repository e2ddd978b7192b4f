"""Prints what the distributions declare as the oldest that they work with, `NAME==VERSION` a line:
requirements for pip. torch is left out: its oldest would bring gigabytes of CUDA packages.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LEFT_OUT = ("torch", "trainer-core", "mlflow", "trackio", "wandb")  # trackers: `make trackers`


def main() -> None:
    for file in [ROOT / "core/pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]:
        project = tomllib.loads(file.read_text())["project"]
        extras = project.get("optional-dependencies", {}).values()
        for line in sum(extras, project["dependencies"]):
            name, version = re.fullmatch(r"(.+?)>=([\w.]+)", line).groups()
            if name not in LEFT_OUT:
                print(f"{name}=={version}")


if __name__ == "__main__":
    main()
