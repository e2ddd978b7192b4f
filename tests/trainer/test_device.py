"""Devices and what they are fast with."""

import pytest
import torch

from trainer.processes.device import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("amx", "precision"), [(True, "bf16"), (False, "fp32"), (None, "fp32")])
def test_auto_is_bf16_on_a_cpu_that_multiplies_it_faster(monkeypatch, amx, precision):
    found = {} if amx is None else {"amx_bf16": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_precision("auto", CPU) == precision


def test_a_precision_that_was_chosen_stays():
    assert choose_precision("fp16", CPU) == "fp16"
