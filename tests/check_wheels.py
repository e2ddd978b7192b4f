"""Builds every wheel and uses them in an empty environment, as a stranger would.

Core alone trains. A plugin's wheel added brings its flags; removed, they are gone. Strangers'
wheels (a class, a module, an object;
fewer arguments than the hooks have) are found, and called in the same order whatever was installed
first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2", "--quiet"]

STRANGERS = {
    "zebra": """
        from trainer_callback import TrainerCallback
        class Zebra(TrainerCallback):
            def on_epoch_end(self, train_loss):
                print("zebra heard", flush=True)
        """,
    "aardvark": """
        from trainer_callback import hookimpl
        @hookimpl
        def on_epoch_end(epoch):
            print("aardvark heard", flush=True)
        """,
    "moose": """
        from trainer_callback import hookimpl
        class Moose:
            @hookimpl
            def on_epoch_end(self, val_loss, trainer):
                print("moose heard", flush=True)
        moose = Moose()
        """,
}
ENTRIES = {
    "zebra": "trainer_zebra:Zebra",
    "aardvark": "trainer_aardvark",
    "moose": "trainer_moose:moose",
}


def main(target: Path) -> int:
    target.mkdir(exist_ok=True)
    folders = [*(ROOT / "plugins").iterdir(), *(ROOT / "hosts").iterdir()]
    for project in [ROOT / "core", *sorted(folders)]:
        build(project, target)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        Environment(folder / "env", target).check(folder)
    print("the wheels work")
    return 0


def build(project: Path, target: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)]
    run([*command, str(project)])


def write_stranger(name: str, folder: Path) -> Path:
    """Writes the project of a plugin that somebody else made."""
    project = folder / name
    project.mkdir()
    source = STRANGERS[name]
    indent = len(source) - len(source.lstrip()) - 1
    lines = [line[indent:] for line in source.splitlines()]
    (project / f"trainer_{name}.py").write_text("\n".join(lines))
    (project / "pyproject.toml").write_text(
        f"""
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "trainer-plugin-{name}"
        version = "1.0"
        dependencies = ["trainer-core"]
        [project.entry-points."trainer.callbacks"]
        {name} = "{ENTRIES[name]}"
        [tool.hatch.build.targets.wheel]
        only-include = ["trainer_{name}.py"]
        """
    )
    return project


class Environment:
    """An environment with nothing but what its wheels bring."""

    def __init__(self, path: Path, wheels: Path) -> None:
        venv.create(path, with_pip=True)
        self.bin = path / "bin"
        self.wheels = wheels

    def check(self, folder: Path) -> None:
        self.pip("install", "-c", str(ROOT / "constraints.txt"), self.wheel("trainer_core"))
        text = folder / "text.txt"
        text.write_text("the quick brown fox jumps over the lazy dog\n" * 50)
        job = ["--dataset", str(text), "--epochs", "1", *TINY]
        self.train(job, folder / "alone")
        self.command(["trainer", "new-plugin", "mine", "--directory", str(folder)])
        expect("--early_stopping" not in self.help(), "core alone has no flag of a plugin")
        refused = self.command(["train-lm", "--early_stopping"], code=2)
        expect("pip install trainer-plugin-early-stopping" in refused, "the pip line is shown")

        self.pip("install", "--no-deps", self.wheel("trainer_plugin_early_stopping"))
        expect("--early_stop_patience" in self.help(), "an installed plugin brings its flags")
        self.train([*job, "--early_stopping"], folder / "stopping")
        self.pip("uninstall", "-y", "trainer-plugin-early-stopping")
        expect("--early_stop_patience" not in self.help(), "a removed plugin takes them away")

        for name in STRANGERS:
            build(write_stranger(name, folder), self.wheels)
        orders = []
        for names in (["zebra", "aardvark", "moose"], ["moose", "zebra", "aardvark"]):
            for name in names:
                self.pip("install", "--no-deps", self.wheel(f"trainer_plugin_{name}"))
            said = self.train([*job, "--zebra"], folder / "-".join(names))
            orders.append([line for line in said.splitlines() if line.endswith("heard")])
            listed = json.loads(self.command(["trainer", "plugins", "--json"]))
            expect([row["name"] for row in rows(listed)] == sorted(STRANGERS), "all are listed")
            for name in names:
                self.pip("uninstall", "-y", f"trainer-plugin-{name}")
        expect(orders[0] == ["aardvark heard", "moose heard", "zebra heard"], str(orders[0]))
        expect(orders[0] == orders[1], "the order does not depend on what was installed first")
        for name in STRANGERS:
            Path(self.wheel(f"trainer_plugin_{name}")).unlink()

    def wheel(self, name: str) -> str:
        return str(max(self.wheels.glob(f"{name}-*.whl"), key=lambda path: path.stat().st_mtime))

    def pip(self, *arguments: str) -> None:
        run([str(self.bin / "python"), "-m", "pip", "--quiet", *arguments])

    def help(self) -> str:
        return self.command(["train-lm", "--help"])

    def train(self, job: list[str], place: Path) -> str:
        said = self.command(["train-lm", *job, "--output_dir", str(place)])
        expect((place / "final" / "model.safetensors").is_file(), f"{job} wrote its model")
        return said

    def command(self, words: list[str], code: int = 0) -> str:
        return run([str(self.bin / words[0]), *words[1:]], code=code)


def rows(listed: object) -> list[dict[str, object]]:
    """The plugins in what `trainer plugins --json` prints."""
    return listed["plugins"] if isinstance(listed, dict) else list(listed)  # type: ignore[call-overload]


def run(command: list[str], code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != code:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout + (done.stderr if code else "")


def expect(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"does not hold: {what}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
