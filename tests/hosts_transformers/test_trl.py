"""The trainers of TRL, with a model of a few numbers: every plugin runs, and sees their losses."""

import pytest

pytest.importorskip("transformers", minversion="5.6")
pytest.importorskip("trl")
pytest.importorskip("datasets")

import datasets
import torch
import trl
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from trainer.testing import Recorder
from trainer_transformers import attach

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(40)), ":"]
TEXTS = [" ".join(f"w{i * j % 40}" for j in range(3, 8 + i % 7)) for i in range(16)]
TURN = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"


def make_tokenizer():
    numbers = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    found.chat_template = TURN
    return found


def make_model(kind=LlamaForCausalLM, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(LlamaConfig(vocab_size=len(WORDS), **sizes, **ids, **options))


def make_settings(kind, place, **options):
    return kind(
        output_dir=str(place),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="epoch",
        disable_tqdm=True,
        **options,
    )


def data(**columns):
    return datasets.Dataset.from_dict(columns)


def tune(place, *, rows=None, peft_config=None, **options):
    args = make_settings(trl.SFTConfig, place, max_length=32, **options)
    rows = rows or data(text=TEXTS)
    named = {"train_dataset": rows, "processing_class": make_tokenizer()}
    return trl.SFTTrainer(make_model(), args, **named, peft_config=peft_config)


def tune_packed(place):
    return tune(place, packing=True, packing_strategy="wrapped")


def tune_answers(place):
    rows = data(prompt=[f"{text} :" for text in TEXTS], completion=[" w1 w2 w3"] * 16)
    return tune(place, rows=rows, completion_only_loss=True)


def tune_adapter(place):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return tune(place, peft_config=adapter)


def prefer(place):
    rows = data(prompt=TEXTS, chosen=[" w1 w2"] * 16, rejected=[" w3 w4 w5"] * 16)
    args = make_settings(trl.DPOConfig, place)
    named = {"train_dataset": rows, "processing_class": make_tokenizer()}
    return trl.DPOTrainer(make_model(), ref_model=make_model(), args=args, **named)


def reward(place):
    rows = data(chosen=[f"{text} w1" for text in TEXTS], rejected=[f"{text} w2" for text in TEXTS])
    model = make_model(LlamaForSequenceClassification, num_labels=1)
    args = make_settings(trl.RewardConfig, place)
    named = {"train_dataset": rows, "processing_class": make_tokenizer()}
    return trl.RewardTrainer(model, args=args, **named)


def reinforce(place):
    args = make_settings(trl.GRPOConfig, place, num_generations=2, max_completion_length=6)
    return trl.GRPOTrainer(
        make_model(),
        reward_funcs=lambda completions, **_: [float(len(each)) for each in completions],
        args=args,
        train_dataset=data(prompt=TEXTS[:8]),
        processing_class=make_tokenizer(),
    )


KINDS = (tune, tune_packed, tune_answers, tune_adapter, prefer, reward, reinforce)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_plugins_see_the_losses_that_the_trainer_logs(make, tmp_path):
    trainer, recorder = make(tmp_path), Recorder()
    stopping = {"early_stopping": {"monitor": "train_loss", "patience": 5}}
    entries = [recorder, stopping, "gradient_monitor", "throughput"]
    attach(trainer, entries, discover=False).train()
    (end,) = recorder.of("on_train_end")
    steps = trainer.state.global_step
    assert (end["result"].status, end["result"].steps) == ("finished", steps)
    theirs = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    ours = [each["metrics"]["loss"] for each in recorder.of("on_log") if "loss" in each["metrics"]]
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    norms = [each["grad_norm"] for each in trainer.state.log_history if "grad_norm" in each]
    clipped = [float(each["total_norm"]) for each in recorder.of("on_gradients_clipped")]
    assert clipped == pytest.approx(norms, rel=1e-6)


def test_a_tuned_adapter_is_gone_on_with_as_if_nothing_had_happened(tmp_path):
    def train(place, resume=None, **options):
        trainer = tune_adapter(place)
        trainer.args.num_train_epochs = options.get("epochs", 2)
        stopping = {"early_stopping": {"monitor": "train_loss", "patience": 5}}
        attach(trainer, [stopping, "gradient_monitor"], discover=False)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = train(tmp_path / "whole")
    train(tmp_path / "cut")
    found = train(tmp_path / "cut", str(tmp_path / "cut" / "checkpoint-4"))
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    name = "plugins/gradient_flow/gradients.jsonl"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
