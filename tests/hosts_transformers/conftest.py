"""What is shared by the tests of all hosts can be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "hosts"))  # tests are not installed
