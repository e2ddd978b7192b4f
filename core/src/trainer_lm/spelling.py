"""What other programs call the options of this one, so that a flag typed from memory is answered
with the right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["find_our_name"]

_NAMES: Final[Mapping[str, str]] = {
    "learning_rate": "lr alpha base_lr max_lr step_size",
    "weight_decay": "wd decay l2",
    "warmup_steps": "warmup warmup_iters warmup_updates num_warmup_steps lr_warmup_steps",
    "lr_schedule": "schedule scheduler lr_scheduler lr_scheduler_type lr_decay",
    "beta1": "b1 adam_beta1 momentum",
    "beta2": "b2 adam_beta2",
    "batch_size": "b bs batch batchsize train_batch_size per_device_train_batch_size "
    "micro_batch_size",
    "gradient_accumulation_steps": "accumulate accumulation accumulation_steps grad_accum "
    "grad_accumulation grad_accum_steps grad_acc gas accumulate_grad_batches",
    "epochs": "e ep n_epochs num_epochs nb_epochs max_epochs num_train_epochs",
    "max_steps": "steps iters iterations max_iters max_iterations num_steps n_steps total_steps "
    "train_steps max_updates updates",
    "max_time": "time time_limit timeout",
    "max_grad_norm": "clip clipping grad_clip gradient_clip clip_grad clip_grad_norm max_norm "
    "gradient_clip_val clip_norm",
    "precision": "fp16 bf16 fp32 amp dtype half mixed_precision",
    "seed": "random_seed manual_seed rng_seed",
    "device": "gpu gpus cuda cpu accelerator",
    "dataset": "data data_path data_file input input_file file text text_file corpus train "
    "train_file train_data dataset_name",
    "output_dir": "o out output out_dir outdir save save_dir log_dir logdir run_dir work_dir",
    "num_workers": "workers n_workers j dataloader_num_workers",
    "block_size": "context context_length context_size ctx n_ctx seq_len seq_length "
    "sequence_length max_length max_seq_len max_seq_length n_positions",
    "n_layer": "layers n_layers num_layers num_hidden_layers depth",
    "n_head": "heads n_heads num_heads num_attention_heads",
    "n_embd": "d_model dim hidden hidden_size hidden_dim width emb_dim embed_dim embedding_dim "
    "n_embed",
    "vocab_size": "vocab n_vocab",
    "eval_interval": "eval_steps eval_every eval_freq val_interval val_check_interval",
    "log_interval": "logging_steps log_every log_steps log_freq print_freq",
    "snapshot_interval": "save_steps save_every save_interval save_freq checkpoint_interval "
    "checkpoint_every ckpt_interval",
    "keep_snapshots": "save_total_limit save_top_k keep_checkpoints max_checkpoints",
    "resume": "load restore resume_from resume_from_checkpoint checkpoint ckpt continue init_from",
    "config": "c cfg conf config_file",
    "sample": "generate",
    "sample_tokens": "max_new_tokens max_tokens num_tokens length",
    "quiet": "q silent",
    "early_stop_patience": "patience early_stopping_patience",
    "early_stop_min_delta": "min_delta early_stopping_threshold",
}
"""An option of ours -> the names that it has elsewhere."""

_OURS: Final = {name: ours for ours, names in _NAMES.items() for name in names.split()}


def find_our_name(name: str) -> str | None:
    """Returns our name of the option that is called `name`, without hyphens in front, elsewhere."""
    return _OURS.get(name.replace("-", "_").lower())
