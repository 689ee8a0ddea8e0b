"""Logits, losses, gradients and three updates of each tiny model."""
import json
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import bpe
import tiny
from common import (GOLDENS, REAL, encode, labels, rows, summed_loss, supervised_tokens, write_json, write_tensors)

CUTOFF = 64
BATCH, MICRO_BATCH, UPDATES = 64, 4, 3
LORA_RATE, FULL_RATE = 3e-4, 1e-3
LENGTHS = (1, 9, 24)
FIRST = 6
TARGETS = {"gpt_neox": ["query_key_value"], "bloom": ["query_key_value"], "baichuan": ["W_pack"]}
REAL_MODELS = ("llama-grouped", "gpt-neox-parallel")
REAL_CUTOFF = 512


def initial_adapter(name):
    """B is moved away from its zeros, so that A has a gradient from the first update on."""
    torch.manual_seed(tiny.seed(name, "adapter"))
    model = tiny.load(name)
    targets = TARGETS.get(model.config.model_type, ["q_proj", "k_proj", "v_proj"])
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=targets))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            parameter.data = 0.05 * torch.randn_like(parameter)
    save_adapter(adapted, GOLDENS / name / "adapter")


def save_adapter(adapted, folder):
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's blank model card
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = "../model"  # not the place where it was made
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, in no fixed order
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def with_adapter(name, trainable=True):
    return PeftModel.from_pretrained(tiny.load(name), GOLDENS / name / "adapter", is_trainable=trainable)


def encoded(tokenizer, data, cutoff, supervise):
    pairs = [encode(tokenizer, row, cutoff) for row in data]
    return [(ids, labels(ids, prompt, supervise)) for ids, prompt in pairs]


def forward(name):
    torch.manual_seed(tiny.seed(name, "forward"))
    tensors, base, adapted = {}, tiny.load(name).eval(), with_adapter(name, trainable=False).eval()
    for length in LENGTHS:
        ids = torch.randint(0, bpe.VOCABULARY, (1, length))
        with torch.no_grad():
            tensors[f"input_ids.{length}"] = ids[0]
            tensors[f"logits.{length}"] = base(input_ids=ids).logits[0]
            tensors[f"adapter_logits.{length}"] = adapted(input_ids=ids).logits[0]
    write_tensors(GOLDENS / name / "forward.safetensors", tensors)


def loss(name, tokenizer):
    first = rows()[:FIRST]
    losses = {}
    for weights, model in (("base", tiny.load(name)), ("adapter", with_adapter(name))):
        for supervise in ("all", "response"):
            batch = encoded(tokenizer, first, CUTOFF, supervise)
            with torch.no_grad():
                total = summed_loss(model, batch).item()
                alone = [summed_loss(model, [row]).item() for row in batch]
            count = supervised_tokens(batch)
            losses[f"{weights}/{supervise}"] = {"sum": total, "tokens": count, "mean": total / count, "row_sums": alone}
    every, response = (encoded(tokenizer, first, CUTOFF, supervise) for supervise in ("all", "response"))
    write_json(GOLDENS / name / "loss.json", {
        "cutoff": CUTOFF, "template": "alpaca", "losses": losses,
        "rows": [{"row": at, "ids": ids, "labels_all": marks, "labels_response": masked}
                 for at, ((ids, marks), (_, masked)) in enumerate(zip(every, response))]})


def gradients(name, tokenizer):
    """Of the mean loss over the first rows, every position supervised: of the adapter, and of every weight."""
    batch = encoded(tokenizer, rows()[:FIRST], CUTOFF, "all")
    count = supervised_tokens(batch)
    whole = encoded(tokenizer, rows(), CUTOFF, "all")
    zero = {}
    for method, load in (("lora", with_adapter), ("full", lambda name: tiny.load(name).train())):
        grown = gradient(load(name), batch, count)
        write_tensors(GOLDENS / name / f"gradients_{method}.safetensors", grown)
        zero[method] = vanishing(gradient(load(name), whole, supervised_tokens(whole)))
    return zero


def gradient(model, batch, count):
    (summed_loss(model, batch) / count).backward()
    return {key.replace(".default", ""): parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}


def vanishing(gradients_):
    """Elements whose gradient is zero but for rounding, as ranges [start, end) of the flattened tensor.

    A part of a key's bias that no rotation turns shifts all scores of a query alike, so the loss does not know it;
    Adam blows its rounding up to a whole step, and nothing can be compared there: what lies below 1e-7 of the
    largest gradient, float32's last digit. A matrix's row that nobody looked up has a gradient of exactly zero, stays
    where it is, and is not listed.
    """
    largest = max(tensor.abs().max().item() for tensor in gradients_.values())
    found = {}
    for key, tensor in gradients_.items():
        flat = tensor.flatten()
        places = ((flat.abs() < 1e-7 * largest) & ((flat != 0) | (tensor.dim() == 1))).nonzero().flatten().tolist()
        ranges = []
        for place in places:
            if ranges and ranges[-1][1] == place:
                ranges[-1][1] = place + 1
            else:
                ranges.append([place, place + 1])
        if ranges:
            found[key] = ranges
    return found


def updates(model, batches, rate, count=UPDATES, micro_batch=MICRO_BATCH, report=False):
    """As peers tune: right-padded micro-batches, AdamW, a constant rate, the loss over the whole batch's tokens."""
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate,
                                  betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for update in range(count):
        batch = batches(update)
        tokens, total = supervised_tokens(batch), 0.0
        for at in range(0, len(batch), micro_batch):
            loss_ = summed_loss(model, batch[at:at + micro_batch]) / tokens
            loss_.backward()
            total += loss_.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        if report:
            print(f"update {update + 1} of {count}: loss {total:.6f}", flush=True)
    return losses


def three_updates(name, tokenizer, zero):
    folder = GOLDENS / name
    runs = {}
    for supervise in ("all", "response"):
        batch = encoded(tokenizer, rows(), CUTOFF, supervise)
        tokens = supervised_tokens(batch)
        adapted = with_adapter(name)
        runs[f"lora/{supervise}"] = {"losses": updates(adapted, lambda _: batch, LORA_RATE), "supervised_tokens": tokens}
        full = tiny.load(name)
        runs[f"full/{supervise}"] = {"losses": updates(full, lambda _: batch, FULL_RATE), "supervised_tokens": tokens}
        if supervise == "all":
            save_adapter(adapted, folder / "tuned_lora")
            tied = full.config.tie_word_embeddings
            write_tensors(folder / "tuned_full.safetensors",
                          {key: tensor for key, tensor in full.state_dict().items() if not (tied and key == "lm_head.weight")})
    real = REAL / "instructions" / "alpaca_en_demo.json"
    if name in REAL_MODELS and real.exists():
        batch = encoded(tokenizer, json.loads(real.read_text(encoding="utf-8"))[:BATCH], REAL_CUTOFF, "all")
        adapted = with_adapter(name)
        runs["lora/all/alpaca_en_demo"] = {"losses": updates(adapted, lambda _: batch, LORA_RATE), "cutoff": REAL_CUTOFF,
                                           "supervised_tokens": supervised_tokens(batch)}
        save_adapter(adapted, folder / "tuned_lora_alpaca_en_demo")
    write_json(folder / "updates.json", {
        "cutoff": CUTOFF, "batch": BATCH, "micro_batch": MICRO_BATCH, "updates": UPDATES, "schedule": "constant",
        "optimizer": {"betas": [0.9, 0.999], "epsilon": 1e-8, "weight_decay": 0.0},
        "learning_rate": {"lora": LORA_RATE, "full": FULL_RATE}, "vanishing_gradients": zero, "runs": runs})


def make(name):
    shutil.rmtree(GOLDENS / name, ignore_errors=True)
    tiny.make(name)
    initial_adapter(name)
    tokenizer = bpe.load()
    forward(name)
    loss(name, tokenizer)
    three_updates(name, tokenizer, gradients(name, tokenizer))
