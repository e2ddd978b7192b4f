import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from trainer_lm.memory import keep_freed_memory
from trainer_lm.model import GPT
from trainer_lm.options import ModelOptions

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
model = GPT(256, ModelOptions(block_size=64, n_layer=4, n_head=4, n_embd=128))
ids = torch.zeros(12, 64, dtype=torch.long)
for update in range(15):
    if update == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(ids, ids).backward()
    model.zero_grad()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_freed_memory_is_reused_without_page_faults():
    def count(mode):
        command = [sys.executable, "-c", FAULTS, mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 4 * count("keep") < count("default")
