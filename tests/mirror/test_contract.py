"""The contract that every callback keeps."""

import itertools

from trainer.testing import CallbackContract
from trainer_mirror import MirrorCallback

NUMBERS = itertools.count()


class TestMirrorCallback(CallbackContract):
    entry_point = "mirror"
    flags = ("--mirror_url", "memory://contract")
    passive = True
    varying = ("self._progress.*", "self._left")
    waived_clauses = {
        "a_second_run_of_the_same_object_starts_clean": "a mirror belongs to one run, and refuses "
        "the second by its id"
    }

    def make(self):
        return MirrorCallback(f"memory://contract-{next(NUMBERS)}")
