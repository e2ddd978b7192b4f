"""Scripts in processes of their own; what is shared by the tests of all hosts can be imported."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "hosts"))  # tests are not installed


@pytest.fixture
def run_script(tmp_path):
    """Runs a script there; returns what it has printed and its exit code."""

    def run(source, *arguments, code=0, env=None, timeout=240):
        file = tmp_path / "script.py"
        file.write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, str(file), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env=env,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
