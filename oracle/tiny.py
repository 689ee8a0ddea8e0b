"""The tiny random models: one folder each, in the form in which models are published.

Weights are larger than an initialisation's, so that logits are far from flat and every term of the arithmetic
shows; norms and biases are moved away from ones and zeros; the end token's row is longer than the rest, so that
decoding meets it. Sizes are odd on purpose: head size 40, one head, one layer, six heads (no power of two, the
other branch of ALiBi's slopes), an intermediate size of 100, a vocabulary of 389.
"""
import json
import shutil

import torch
from transformers import (AutoModelForCausalLM, BloomConfig, Gemma2Config, Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, MistralConfig,
                          Qwen2Config, Qwen3Config)

import baichuan
import bpe
from common import GOLDENS

ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def llama(kind=LlamaConfig, hidden=48, layers=2, heads=6, groups=2, inner=100, tied=False, **more):
    return kind(vocab_size=bpe.VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=groups, intermediate_size=inner, tie_word_embeddings=tied,
                **{"max_position_embeddings": 2048, **ENDS, **more})


def gpt_neox(hidden, layers, heads, inner, rotated, parallel):
    return GPTNeoXConfig(vocab_size=bpe.VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                         intermediate_size=inner, rotary_pct=rotated, max_position_embeddings=2048,
                         use_parallel_residual=parallel, **ENDS)


def blocks(*kinds, factor=None):
    """Gemma 3's kinds of blocks, and what each rotates by."""
    stretched = {"rope_type": "linear", "factor": factor} if factor else {"rope_type": "default"}
    return {"layer_types": [f"{kind}_attention" for kind in kinds],
            "rope_parameters": {"full_attention": {"rope_theta": 1000000.0, **stretched},
                                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}}


def bloom(hidden, layers, heads):
    return BloomConfig(vocab_size=bpe.VOCABULARY, hidden_size=hidden, n_layer=layers, n_head=heads, **ENDS)


# name: (configuration, dtype in which the weights are saved)
MODELS = {
    "llama-grouped": (lambda: llama(), "float32"),
    "gpt-neox-parallel": (lambda: gpt_neox(48, 3, 3, 100, 0.25, True), "float32"),
    "llama-tied": (lambda: llama(hidden=24, layers=1, heads=1, groups=1, inner=36, tied=True, head_dim=40), "float32"),
    "llama-bf16": (lambda: llama(hidden=32, heads=4, groups=4, inner=52, rope_theta=50000.0, rms_norm_eps=1e-5), "bfloat16"),
    "gpt-neox-sequential": (lambda: gpt_neox(40, 1, 1, 100, 0.5, False), "float32"),
    "gpt-neox-wide": (lambda: gpt_neox(32, 2, 2, 128, 1.0, True), "float32"),
    "bloom": (lambda: bloom(48, 2, 6), "float32"),
    "bloom-one-head": (lambda: bloom(40, 1, 1), "float32"),
    "bloom-four-heads": (lambda: bloom(32, 2, 4), "float32"),
    "baichuan-7b-like": (lambda: baichuan.config(48, 2, 6, 100, alibi=False), "float32"),
    "baichuan-13b-like": (lambda: baichuan.config(40, 2, 5, 68, alibi=True), "float32"),
    "baichuan-one-head": (lambda: baichuan.config(40, 1, 1, 68, alibi=True), "float32"),
    "mistral": (lambda: llama(MistralConfig, hidden=40, heads=5, groups=1, inner=68, sliding_window=None), "float32"),
    "qwen2": (lambda: llama(Qwen2Config, hidden=32, heads=4, groups=2, inner=52, tied=True, rope_theta=1000000.0), "float32"),
    "qwen3": (lambda: llama(Qwen3Config, hidden=40, heads=3, groups=1, inner=68, head_dim=16), "float32"),
    "mistral-one-head": (lambda: llama(MistralConfig, hidden=24, layers=1, heads=1, groups=1, inner=36, head_dim=40, sliding_window=None),
                         "float32"),
    "mistral-four-heads": (lambda: llama(MistralConfig, hidden=32, layers=3, heads=4, groups=2, inner=100, rope_theta=1000000.0,
                                         sliding_window=None), "float32"),
    "qwen2-one-head": (lambda: llama(Qwen2Config, hidden=40, layers=1, heads=1, groups=1, inner=68), "float32"),
    "qwen2-six-heads": (lambda: llama(Qwen2Config, hidden=48, layers=3, heads=6, groups=6, inner=100), "float32"),
    "qwen3-one-head": (lambda: llama(Qwen3Config, hidden=24, layers=1, heads=1, groups=1, inner=36, head_dim=40, tied=True), "float32"),
    "qwen3-four-heads": (lambda: llama(Qwen3Config, hidden=32, layers=3, heads=4, groups=2, inner=100, head_dim=20,
                                       rope_theta=1000000.0), "float32"),
    "gemma2": (lambda: llama(Gemma2Config, hidden=40, layers=2, heads=4, groups=2, inner=68, tied=True, head_dim=12,
                             query_pre_attn_scalar=20, sliding_window=24, max_position_embeddings=1024), "float32"),
    # The second of three blocks is global, and its angles are stretched, as in the larger models.
    "gemma3": (lambda: llama(Gemma3TextConfig, hidden=40, layers=3, heads=5, groups=1, inner=68, tied=True, head_dim=12,
                             query_pre_attn_scalar=20, sliding_window=16, **blocks("sliding", "full", "sliding", factor=8.0)),
               "float32"),
    "gemma3-one-head": (lambda: llama(Gemma3TextConfig, hidden=24, layers=1, heads=1, groups=1, inner=36, tied=True, head_dim=40,
                                      sliding_window=512, **blocks("full")), "float32"),
    "gemma3-four-heads": (lambda: llama(Gemma3TextConfig, hidden=32, layers=2, heads=4, groups=2, inner=100, tied=True, head_dim=16,
                                        query_pre_attn_scalar=16, sliding_window=5, sliding_window_pattern=2), "float32"),
}
BAICHUAN = {name for name in MODELS if name.startswith("baichuan")}


def folder(name):
    return GOLDENS / name / "model"


def seed(name, purpose):
    """A seed that depends on the name alone, so that adding a model changes no other."""
    return sum(ord(letter) * (at + 1) for at, letter in enumerate(name + "/" + purpose))


def make(name):
    configure, dtype = MODELS[name]
    torch.manual_seed(seed(name, "weights"))
    configuration = configure()
    model = baichuan.Model(configuration) if name in BAICHUAN else AutoModelForCausalLM.from_config(configuration)
    head = model.get_output_embeddings().weight
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        else:
            width = parameter.shape[1]
            parameter.data = torch.randn_like(parameter) * (0.2 if parameter is head else 1.2 / width ** 0.5)
    head.data[0] *= 1.6
    out = folder(name)
    shutil.rmtree(out, ignore_errors=True)
    model.to(getattr(torch, dtype))
    # One model lies in shards, as large ones do.
    model.save_pretrained(out, max_shard_size="40KB" if name == "llama-bf16" else "1GB")
    bpe.load().save_pretrained(out)
    if name in PUBLISHED_KEYS:
        as_published(out / "config.json", PUBLISHED_KEYS[name])


# Most published folders carry the flat keys that transformers wrote before its version 5; the rest of these
# models keep the nested `rope_parameters` of today, so that both forms are read.
PUBLISHED_KEYS = {
    "gpt-neox-parallel": {"rotary_pct": 0.25, "rotary_emb_base": 10000, "torch_dtype": "float32"},
    "llama-tied": {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32"},
    "qwen2": {"rope_theta": 1000000.0, "torch_dtype": "float32"},
    "mistral": {"rope_theta": 10000.0, "torch_dtype": "float32"},
    "gemma3-four-heads": {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 2,
                          "torch_dtype": "float32"},
}


def as_published(path, keys):
    settings = json.loads(path.read_text())
    for key in ("rope_parameters", "dtype", "transformers_version", "layer_types"):
        settings.pop(key, None)
    path.write_text(json.dumps({**settings, **keys}, indent=2, sort_keys=True) + "\n")


def load(name, dtype=torch.float32):
    path = folder(name)
    if name in BAICHUAN:
        return baichuan.Model.from_pretrained(path, dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
