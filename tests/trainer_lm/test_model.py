import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_callback import UsageError
from trainer_lm.model import GPT, make_optimizer, make_scheduler
from trainer_lm.options import ModelOptions, OptimizerOptions

SMALL = ModelOptions(block_size=8, n_layer=2, n_head=2, n_embd=16)


def make_model(options=SMALL, vocab_size=11):
    torch.manual_seed(0)
    return GPT(vocab_size, options)


def make_ids(rows=3, length=8, seed=0):
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_without_labels_it_returns_logits():
    assert make_model()(make_ids(3, 5)).shape == (3, 5, 11)


def test_with_labels_it_returns_the_mean_cross_entropy():
    model, ids, labels = make_model(), make_ids(), make_ids(seed=1)
    loss = model(input_ids=ids, labels=labels)
    assert loss.shape == ()
    expected = -model(ids).log_softmax(-1).gather(2, labels[..., None]).mean()
    assert torch.allclose(loss, expected)


def test_a_fresh_model_guesses_uniformly():
    model = make_model(ModelOptions(block_size=32), vocab_size=256)
    ids = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))
    assert model(ids, ids.flip(0)).item() == pytest.approx(math.log(256), abs=0.1)


def test_a_token_does_not_see_those_after_it():
    model, ids = make_model(), make_ids()
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_attention_is_softmax_of_scaled_products():
    attention = make_model().blocks[0].attention
    stream = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1))
    query, key, value = (
        part.view(8, 2, 8).transpose(0, 1)
        for part in (stream @ attention.to_heads.weight.T)[0].split(16, 1)
    )
    scores = (query @ key.transpose(1, 2) / math.sqrt(8)).masked_fill(
        torch.ones(8, 8).triu(1).bool(), -math.inf
    )
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(8, 16)
    assert torch.allclose(attention(stream)[0], mixed @ attention.to_residual.weight.T, atol=1e-5)


def test_on_a_cpu_attention_is_computed_in_float32_also_in_bf16(monkeypatch):
    seen, attend = [], F.scaled_dot_product_attention

    def look(query, key, value, **options):
        seen.append((query.dtype, key.dtype, value.dtype))
        return attend(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", look)
    with torch.autocast("cpu", torch.bfloat16):
        make_model()(make_ids(), make_ids(seed=1)).backward()
    assert set(seen) == {(torch.float32,) * 3}


def test_the_way_back_copies_no_gradient_of_attention_twice():
    names = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.append(operation.overloadpacket.__name__)
            return operation(*args, **(kwargs or {}))

    ids = make_ids()
    loss = make_model()(ids, ids)
    with Record():
        loss.backward()
    assert names.count("cat") == SMALL.n_layer  # of queries, keys and values
    assert not {"clone", "copy_", "stack"} & {*names}


def test_embeddings_are_tied_and_counted_once():
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    assert names == list(model.state_dict())
    # V C + T C + layers (3 C C + C C + 4 C C + 4 C C + 2 C) + C
    expected = 11 * 16 + 8 * 16 + 2 * (12 * 16 * 16 + 2 * 16) + 16
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_residual_projections_start_smaller_the_deeper_the_model():
    model = make_model(ModelOptions(n_layer=8, n_embd=256))
    perceptron = model.blocks[3].perceptron
    assert perceptron.to_hidden.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert perceptron.to_residual.weight.std().item() == pytest.approx(0.005, rel=0.03)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_dropout_is_off_in_evaluation():
    model, ids = make_model(dataclasses.replace(SMALL, dropout=0.5)), make_ids()
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_more_tokens_than_a_block_are_refused():
    with pytest.raises(ValueError, match="9 tokens do not fit into block_size 8"):
        make_model()(make_ids(1, 9))


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(UsageError, match="vocab_size must be at least 1, got 0"):
        GPT(0, SMALL)


def test_generate_adds_tokens_to_the_prompt_beyond_the_block_size():
    model = make_model()
    prompt = make_ids(2, 3)
    ids = model.generate(prompt, 20)
    assert ids.shape == (2, 23)
    assert torch.equal(ids[:, :3], prompt)
    assert ids.dtype == torch.int64
    assert model.training


def test_a_padded_vocabulary_has_more_weights_and_no_other_tokens():
    model = make_model(dataclasses.replace(SMALL, pad_vocab=64))
    assert model.token_embedding.num_embeddings == 64
    assert make_model(dataclasses.replace(SMALL, pad_vocab=11)).token_embedding.num_embeddings == 11
    with torch.no_grad():
        model.token_embedding.weight[11:] = 9.0  # would be likelier than any
    assert model(make_ids()).shape == (3, 8, 11)
    assert model.generate(make_ids(2, 3), 20).max() < 11


def test_generate_is_a_function_of_its_generator():
    model, prompt = make_model(), make_ids(1, 3)
    first, second, other = (
        model.generate(prompt, 20, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_generate_leaves_each_part_in_its_mode():
    model = make_model().train()
    model.blocks[0].eval()
    before = [part.training for part in model.modules()]
    model.generate(make_ids(1, 3), 2)
    assert [part.training for part in model.modules()] == before


def test_generate_at_temperature_0_takes_the_likeliest():
    model, prompt = make_model(), make_ids(1, 3)
    ids = model.generate(prompt, 4, temperature=0)
    for position in range(3, 7):
        assert ids[0, position] == model(ids[:, :position])[0, -1].argmax()
    assert torch.equal(model.generate(prompt, 4, top_k=1), ids)


def test_generate_keeps_to_the_k_likeliest():
    model, prompt = make_model(), make_ids(1, 3)
    likeliest = set(model(prompt)[0, -1].topk(3).indices.tolist())
    generator = torch.Generator().manual_seed(0)
    drawn = [model.generate(prompt, 1, top_k=3, generator=generator) for _ in range(50)]
    assert {int(ids[0, -1]) for ids in drawn} == likeliest


@pytest.mark.parametrize(
    "wrong",
    [{"n": -1}, {"temperature": -1.0}, {"top_k": 0}, {"prompt_ids": torch.zeros(1, 0).long()}],
)
def test_generate_refuses_what_makes_no_sense(wrong):
    with pytest.raises(UsageError, match=r"GPT\.generate"):
        make_model().generate(**{"prompt_ids": make_ids(1, 3), "n": 1, **wrong})


def test_only_matrices_decay():
    model = make_model()
    optimizer = make_optimizer(
        model, OptimizerOptions(weight_decay=0.3, learning_rate=0.01, beta2=0.5)
    )
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {parameter.dim() for parameter in decayed["params"]} == {2}
    assert {parameter.dim() for parameter in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert decayed["lr"] == 0.01
    assert decayed["betas"] == (0.9, 0.5)
    assert optimizer.defaults["fused"]


def test_parameters_without_gradient_are_left_out():
    model = make_model()
    model.token_embedding.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerOptions())
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(parameter is not model.token_embedding.weight for parameter in parameters)


def rates(total_steps, updates=None, **options):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make_scheduler(optimizer, OptimizerOptions(**options), total_steps)
    used = []
    for _ in range(updates or total_steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_the_rate_rises_from_the_first_update_on():
    assert rates(100, warmup_steps=4)[:6] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.9997], abs=1e-3
    )


def test_cosine_falls_to_a_tenth_and_stays_there():
    used = rates(100, updates=130, warmup_steps=10)
    assert used[10] == 1.0
    assert used[55] == pytest.approx(0.55)
    assert used[100:] == pytest.approx([0.1] * 30)


def test_linear_falls_to_0():
    used = rates(100, updates=101, warmup_steps=0, lr_schedule="linear")
    assert used == pytest.approx([1 - step / 100 for step in range(101)])


def test_constant_stays():
    assert rates(20, warmup_steps=0, lr_schedule="constant") == [1.0] * 20


@pytest.mark.parametrize(("total_steps", "warmup"), [(5, 0), (200, 20), (5000, 100)])
def test_the_default_warm_up_is_a_tenth_of_the_run_and_at_most_100_updates(total_steps, warmup):
    assert rates(total_steps).index(1.0) == warmup


def test_a_warm_up_longer_than_the_run_is_no_error():
    assert rates(5, warmup_steps=99) == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])


def test_a_run_without_updates_is_refused():
    with pytest.raises(UsageError, match="at least 1 update, got 0"):
        rates(0)


def test_a_resumed_schedule_goes_on(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer, OptimizerOptions(), 50)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
    torch.save({"o": optimizer.state_dict(), "s": scheduler.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    resumed_scheduler = make_scheduler(resumed, OptimizerOptions(), 50)
    resumed.load_state_dict(state["o"])
    resumed_scheduler.load_state_dict(state["s"])
    for each, its in ((optimizer, scheduler), (resumed, resumed_scheduler)):
        each.step()
        its.step()
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_the_loss_falls_on_a_text_that_repeats_itself():
    model = make_model()
    optimizer = make_optimizer(model, OptimizerOptions(learning_rate=1e-2))
    ids = torch.arange(9).repeat(4, 1)
    first = None
    for _ in range(60):
        loss = model(ids[:, :-1], ids[:, 1:])
        first = first or loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert first > 2.0
    assert loss.item() < 0.1
    assert F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item() < 0.1
