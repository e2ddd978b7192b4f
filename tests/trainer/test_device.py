import pytest
import torch

from trainer.device import has_bf16


@pytest.mark.parametrize("amx", [True, False])
def test_a_cpu_is_faster_with_bf16_where_it_has_amx(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    assert has_bf16(torch.device("cpu")) is amx


def test_a_torch_that_does_not_tell_a_cpus_capabilities_keeps_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bf16(torch.device("cpu"))


def test_other_devices_keep_float32():
    assert not has_bf16(torch.device("mps"))
