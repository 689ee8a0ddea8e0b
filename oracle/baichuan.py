"""A reference for Baichuan-2, which transformers does not carry.

Written from the published description (Baichuan 2: Open Large-scale Language Models, 2023, and the names of the
released weights). It is LLaMA's decoder with RMSNorm, SwiGLU and no biases, and differs in four things:

* one matrix `W_pack` gives query, key and value, stacked in that order;
* the head's rows are brought to length one before the product (NormHead);
* at 7B positions are rotary; at 13B they are ALiBi: score (i, j) gets slope * (j - i), with BLOOM's slopes,
  the interleaved ones where the number of heads is no power of two;
* a 13B configuration gives `model_max_length` and has no `max_position_embeddings`.

`check` holds it against LLaMA, which it equals where rotary positions meet a head whose rows have length one.
"""
import math

import torch
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import bpe


class Config(PretrainedConfig):
    model_type = "baichuan"


def config(hidden, layers, heads, inner, alibi):
    length = {"model_max_length": 4096} if alibi else {"model_max_length": 4096, "max_position_embeddings": 4096}
    return Config(architectures=["BaichuanForCausalLM"], vocab_size=bpe.VOCABULARY, hidden_size=hidden, num_hidden_layers=layers,
                  num_attention_heads=heads, intermediate_size=inner, hidden_act="silu", rms_norm_eps=1e-6,
                  initializer_range=0.02, tie_word_embeddings=False, use_cache=False, z_loss_weight=0,
                  bos_token_id=0, eos_token_id=0, **length)


class Norm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


def slopes(heads):
    """ALiBi's: a geometric series where the heads are a power of two, else filled up from twice as many."""
    def series(count):
        start = 2.0 ** (-(2.0 ** -(math.log2(count) - 3)))
        return [start ** (power + 1) for power in range(count)]
    whole = 2 ** int(math.log2(heads))
    return torch.tensor(series(whole) + series(2 * whole)[0::2][:heads - whole])


def rotate(x, base=10000.0):
    """x: [batch, heads, length, size]; pairs are (i, i + size / 2), as in LLaMA's published weights."""
    size = x.shape[-1]
    frequencies = 1.0 / base ** (torch.arange(0, size, 2).float() / size)
    angles = torch.arange(x.shape[-2]).float()[:, None] * frequencies
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.alibi = getattr(config, "max_position_embeddings", None) is None
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, visible):
        batch, length, width = x.shape
        query, key, value = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.W_pack(x).chunk(3, dim=-1))
        if not self.alibi:
            query, key = rotate(query), rotate(key)
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if self.alibi:
            place = torch.arange(length)
            scores = scores + slopes(self.heads)[:, None, None] * (place[None, :] - place[:, None])
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        return self.o_proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, visible):
        x = x + self.self_attn(self.input_layernorm(x), visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids, attention_mask):
        length = input_ids.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            visible = visible & attention_mask[:, None, None, :].bool()
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, visible)
        return self.norm(x)


class NormHead(nn.Module):
    def __init__(self, hidden, vocabulary):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden))

    def forward(self, x):
        return x @ nn.functional.normalize(self.weight, dim=-1).T


class Model(PreTrainedModel, GenerationMixin):
    config_class = Config
    _no_split_modules = ["Layer"]

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, **_):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids, attention_mask)))


def check():
    """Rotary Baichuan and LLaMA give the same logits once LLaMA's head has rows of length one."""
    torch.manual_seed(0)
    ours = Model(config(48, 2, 6, 100, alibi=False)).eval()
    for parameter in ours.parameters():
        parameter.data = 0.2 * torch.randn_like(parameter)
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=bpe.VOCABULARY, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
                                          intermediate_size=100, rms_norm_eps=1e-6)).eval()
    weights = {}
    for name, tensor in ours.state_dict().items():
        if "W_pack" in name:
            for part, rows in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3)):
                weights[name.replace("W_pack", part)] = rows
        else:
            weights[name] = nn.functional.normalize(tensor, dim=-1) if name == "lm_head.weight" else tensor
    theirs.load_state_dict(weights)
    ids = torch.randint(0, bpe.VOCABULARY, (2, 17))
    with torch.no_grad():
        ours, theirs = ours(ids).logits, theirs(ids).logits
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    assert difference < 1e-6, difference
    # 13B's positions: adding a bias that grows with the key's place alone changes no softmax, so BLOOM's form
    # (slope * j) and this one (slope * (j - i)) must agree in slopes; these are BLOOM's.
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    for heads in (1, 3, 4, 5, 6, 8, 40):
        theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
        assert torch.allclose(slopes(heads), theirs, rtol=1e-6), heads
    return difference


if __name__ == "__main__":
    print("relative difference to LLaMA", check())
