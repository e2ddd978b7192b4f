"""The same run in our own trainer and in a Hugging Face trainer, case by case."""

import pytest
from packaging.version import Version

pytest.importorskip("transformers", minversion="5.6")

import transformers

from .driver import MARKS, compare, scenarios

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", scenarios.CASES, ids=lambda case: case.name)
def test_a_run_is_that_of_our_own_trainer(case, tmp_path):
    resumed = case.processes > 1 and "killed" in case.name
    if resumed and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("this transformers cannot load an optimizer in several processes on a CPU")
    found = compare(case, tmp_path)
    if case.name in MARKS:
        assert found, f"it is the same now: take it off MARKS ({MARKS[case.name]})"
    else:
        assert not found, "\n".join(found)


def test_at_most_six_cases_are_not_the_same():
    assert len(MARKS) <= 6
    assert MARKS.keys() <= {case.name for case in scenarios.CASES}
