import platform
import subprocess
import sys
from pathlib import Path

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


PAGES = r"""
import re, pathlib
from trainer_lm.memory import keep_freed_memory, use_large_pages

def count():
    parts = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", pathlib.Path("/proc/self/smaps").read_text())
    heaps = (part for part in parts if "[heap]" in part and re.search(r"VmFlags:.* hg\b", part))
    return sum(int(re.search(r"Size: +(\d+) kB", heap)[1]) for heap in heaps)

assert keep_freed_memory()
before = count()
assert use_large_pages()
print(count() - before)
"""
PAGES_OF_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
@pytest.mark.skipif(not PAGES_OF_SYSTEM.exists(), reason="the kernel has no large pages")
def test_the_heap_that_an_update_needs_may_have_large_pages():
    command = [sys.executable, "-c", PAGES]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(shown) >= 64 * 1024


LARGE = r"""
import resource, sys
from trainer_lm.cli import main
import torch, numpy

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(["--n_embd", "4096", "--n_layer", "24", "--dry_run", "--device", "cpu"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_a_model_that_cannot_be_built_is_told_of_in_a_line():
    command = [sys.executable, "-c", LARGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("train-lm: the host is out of memory outside the updates when")
    assert "Use a smaller model (--n_embd, --n_layer)" in line
    assert "Traceback" not in done.stderr


TEXT = r"""
import pathlib, re, sys
from trainer_lm.cache import TokenCache
from trainer_lm.options import TextOptions
from trainer_lm.text import load_text

options = TextOptions(dataset=sys.argv[1], tokenizer=sys.argv[2])
corpus = load_text(options)
for again in range(2):
    cache = TokenCache(pathlib.Path(sys.argv[3]))
    tokenizer = cache.tokenizer(options, corpus.train)
    cache.tokens(corpus.train, tokenizer)
# Not getrusage: its peak is that of the process that has started this one, if that is higher.
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_text_takes_a_few_bytes_of_memory_for_each_of_its_own(tmp_path, tokenizer):
    line = (
        "the quick brown fox \U0001f642 jumps over the lazy dog\n"  # one makes a `str` 4 bytes wide
    )

    def peak(size):
        (tmp_path / "text.txt").write_text(line * (size // len(line)))
        command = [sys.executable, "-c", TEXT, tmp_path / "text.txt", tokenizer, tmp_path / "cache"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    small, large = 4_000_000, 12_000_000
    assert (peak(large) - peak(small)) / (large - small) < 4
