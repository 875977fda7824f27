"""Tiny text encoders with random weights, in a pipeline's folder as their libraries save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.prior_layouts import TOKENS, WIDTH, edit_index


def _register(folder: Path, number: str, encoder: Any, tokenizer: str) -> None:
    encoder.save_pretrained(folder / f"text_encoder{number}")
    entries = {
        f"text_encoder{number}": ["transformers", type(encoder).__name__],
        f"tokenizer{number}": ["transformers", tokenizer],
    }
    edit_index(folder, feature_extractor=[None, None], safety_checker=[None, None], **entries)


def save_clip(folder: Path, number: str = "", width: int = WIDTH, projection: bool = False) -> None:
    """A CLIP of two layers whose vocabulary is half of the alphabet."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(11)
    config = transformers.CLIPTextConfig(
        vocab_size=30,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklm", *(f"{letter}</w>" for letter in "abcdefghijklm")]
    place = folder / f"tokenizer{number}"
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "pad_token": "<|endoftext|>"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    _register(folder, number, kind(config), "CLIPTokenizer")


def _save_word_tokenizer(folder: Path) -> None:
    """Two special tokens; an empty text is its first one."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, processors

    plain = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<unk>": 2}, unk_token="<unk>"))
    plain.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<bos>")
    wrapped.save_pretrained(folder)


def save_t5(folder: Path, number: str) -> None:
    """A T5 encoder of one layer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(12)
    config = transformers.T5Config(vocab_size=8, d_model=WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    _save_word_tokenizer(folder / f"tokenizer{number}")
    _register(folder, number, transformers.T5EncoderModel(config), "PreTrainedTokenizerFast")


def save_gemma(folder: Path) -> None:
    """A Gemma 2 of two layers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(13)
    config = transformers.Gemma2Config(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    _save_word_tokenizer(folder / "tokenizer")
    _register(folder, "", transformers.Gemma2Model(config), "PreTrainedTokenizerFast")
