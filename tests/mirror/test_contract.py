"""The contract that every callback keeps."""

import itertools

from trainer.testing import CallbackContract
from trainer.testing.level import InstalledContract
from trainer_mirror import MirrorCallback

NUMBERS = itertools.count()


class TestMirrorCallback(CallbackContract):
    entry_point = "mirror"
    flags = ("--mirror_url", "memory://contract")
    passive = True
    varying = MirrorCallback.contract["varying"]
    waived_clauses = MirrorCallback.contract["waived_clauses"]

    def make(self):
        return MirrorCallback(f"memory://contract-{next(NUMBERS)}")


def test_a_check_of_the_installed_plugin_gives_each_callback_a_url_of_its_own():
    contract = InstalledContract("mirror")
    urls = {contract.make().url for _ in range(3)}
    assert len(urls) == 3
    assert "memory://{new}" not in urls
