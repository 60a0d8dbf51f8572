"""Text encoders and tokenizers of tiny pipelines: transformers' own classes, made on the spot, of letters."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.pipelines.autoencoders import WIDTH

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@functools.cache
def clip_tokenizer() -> Any:
    """CLIP's tokenizer with a vocabulary of letters."""
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*ends, *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    files = {
        "vocab.json": json.dumps({word: i for i, word in enumerate(vocabulary)}),
        "merges.txt": "#version: 0.2\n",
    }
    return _from_files(CLIPTokenizer, files | {"tokenizer_config.json": json.dumps({"model_max_length": 77})})


@functools.cache
def t5_tokenizer() -> Any:
    """T5's tokenizer with a vocabulary of letters."""
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    config = {"extra_ids": 0, "model_max_length": 16}
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}
    return _from_files(T5TokenizerFast, files)


@functools.cache
def chat_tokenizer() -> Any:
    """A tokenizer with a vocabulary of letters that can write out a conversation, for Gemma and Qwen."""
    words = ["<pad>", "<unk>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    config = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 16,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config)}
    return _from_files(PreTrainedTokenizerFast, files)


@functools.cache
def bert_tokenizer() -> Any:
    """BERT's tokenizer with a vocabulary of letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return _from_files(BertTokenizer, {"vocab.txt": "\n".join(words) + "\n"})


def _from_files(cls: Any, files: dict[str, str]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return cls.from_pretrained(folder)


def clip_text_encoder(projection: bool) -> torch.nn.Module:
    """CLIP's text encoder, with or without its projection."""
    config = CLIPTextConfig(
        vocab_size=2 + 2 * len(LETTERS),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_encoder() -> torch.nn.Module:
    """T5's encoder."""
    config = T5Config(vocab_size=64, d_model=2 * WIDTH, d_kv=4, d_ff=WIDTH, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


_DECODER_ONLY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 2 * WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def gemma() -> torch.nn.Module:
    """Lumina-Image 2's text encoder."""
    return Gemma2Model(Gemma2Config(**_DECODER_ONLY)).eval()


def qwen() -> torch.nn.Module:
    """Z-Image's text encoder."""
    return Qwen3Model(Qwen3Config(**_DECODER_ONLY)).eval()


def ldm_bert() -> torch.nn.Module:
    """Latent diffusion's text encoder."""
    config = LDMBertConfig(
        vocab_size=64, encoder_layers=1, encoder_ffn_dim=WIDTH, encoder_attention_heads=2, d_model=WIDTH
    )
    return LDMBertModel(config).eval()
