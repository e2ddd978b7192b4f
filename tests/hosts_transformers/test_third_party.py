"""Plugins of others, which know of no trainer, do the same in this one as in ours."""

import pytest

pytest.importorskip("transformers", minversion="5.6")

import third_party

from .driver import compare

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def installed(wheels):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(wheels(*third_party.WHEELS)))
        yield


@pytest.mark.parametrize("case", third_party.CASES, ids=lambda case: case.name)
def test_a_wheel_of_others_does_the_same(case, tmp_path):
    found = compare(case, tmp_path)
    assert not found, "\n".join(found)
