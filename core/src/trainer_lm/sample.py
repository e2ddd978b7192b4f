"""Text from a finished model: what is in `OUTPUT_DIR/final/` is all that it takes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Final
from unicodedata import category

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainer.snapshots.manifest import MANIFEST, verify
from trainer_callback import UsageError

from .model import GPT
from .options import ModelOptions
from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["generate_text", "load_model", "printable", "sample"]


def sample(output_dir: Path, prompt: str, tokens: int, seed: int) -> str:
    """Returns `prompt` and `tokens` generated tokens after it, the same for the same seed.

    Raises:
        UsageError: `output_dir` holds no finished model.
    """
    model, tokenizer = load_model(output_dir)
    return prompt + generate_text(model, tokenizer, prompt, tokens, seed)


def load_model(output_dir: Path) -> tuple[GPT, Tokenizer]:
    """Returns the model and the tokenizer that a run left in `output_dir`, or in its `final/`.

    Raises:
        UsageError: they are not there, or cannot be read.
        SnapshotError: a file of them was changed after it was written.
    """
    place = output_dir if (output_dir / "model.safetensors").is_file() else output_dir / "final"
    weights = place / "model.safetensors"
    if not weights.is_file():
        raise UsageError(
            f"{str(output_dir)!r} holds no finished model: there is no {weights}. "
            "Give the output directory of a run that has ended."
        )
    if (place / MANIFEST).exists():  # safetensors would not see that a bit was flipped
        verify(place)
    tokenizer = load_tokenizer(place / "tokenizer.json")
    try:
        options = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
        known = inspect.signature(ModelOptions).parameters
        names = [name for name in known if name in options]  # fewer in an older run
        model = GPT(tokenizer.vocab_size, ModelOptions(**{name: options[name] for name in names}))
        model.load_state_dict(load_file(weights))
    except (OSError, TypeError, RuntimeError, SafetensorError, yaml.YAMLError) as error:
        raise UsageError(f"the model in {str(place)!r} cannot be read: {error}") from error
    return model, tokenizer


def generate_text(model: GPT, tokenizer: Tokenizer, prompt: str, tokens: int, seed: int = 0) -> str:
    """Returns `tokens` generated tokens as text, without the prompt; an empty prompt means a
    new line.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    ids = torch.tensor([tokenizer.encode(prompt or "\n").tolist()], device=device)
    made = model.generate(ids, tokens, temperature=0.8, top_k=50, generator=generator)
    return tokenizer.decode(made[0, ids.shape[1] :].tolist())


def printable(text: str) -> str:
    """Returns `text` with U+FFFD in place of each control character, which a terminal would obey
    and not show. A carriage return alone, an old end of line, is a new line.
    """
    text = re.sub(r"\r(?!\n)", "\n", text)
    return "".join("\ufffd" if category(c) in _OBEYED and c not in "\n\t\r" else c for c in text)


_OBEYED: Final = ("Cc", "Cs")
