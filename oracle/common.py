"""What every golden shares: where files lie, the Alpaca template, and how rows become token ids."""
import json
import os
import pathlib
import platform
import re

import peft
import safetensors.torch
import tokenizers
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
GOLDENS = HERE / "goldens"
# Data that is not this project's own lies outside it; goldens made from it hold numbers only.
REAL = pathlib.Path(os.environ.get("POLYPACA_REAL", HERE.parent.parent / "shared" / "real"))

HEAD = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
WITH_INPUT = HEAD.format(", paired with an input that provides further context") + (
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
NO_INPUT = HEAD.format("") + "### Instruction:\n{instruction}\n\n### Response:\n"

VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
            "tokenizers": tokenizers.__version__, "python": platform.python_version()}


def quiet():
    """One thread and deterministic kernels: the same golden on every run."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def rows():
    return json.loads((HERE / "rows.json").read_text(encoding="utf-8"))


def prompts():
    return json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))


def encode(tokenizer, row, cutoff):
    """The ids of a row with its end token, cut; and how many of them belong to the prompt."""
    prompt = (WITH_INPUT if row.get("input") else NO_INPUT).format(instruction=row["instruction"], input=row.get("input"))
    ids = tokenizer(prompt + row["output"])["input_ids"][:cutoff]
    if len(ids) < cutoff and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return ids, min(len(tokenizer(prompt)["input_ids"]), len(ids))


def labels(ids, prompt_tokens, supervise):
    """`all`: every token is a label; `response`: the prompt's are -100, which the loss passes over."""
    masked = 0 if supervise == "all" else prompt_tokens
    return [-100] * masked + ids[masked:]


def padded(batch):
    """Right-padded ids, attention mask and labels of [(ids, labels)], to a multiple of 8."""
    width = -(-max(len(ids) for ids, _ in batch) // 8) * 8
    return (torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch]),
            torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch]),
            torch.tensor([marks + [-100] * (width - len(marks)) for _, marks in batch]))


def supervised_tokens(batch):
    """A token is supervised where it is a label and another token stands before it to predict it from."""
    return sum(sum(label != -100 for label in marks[1:]) for _, marks in batch)


def summed_loss(model, batch):
    ids, mask, marks = padded(batch)
    logits = model(input_ids=ids, attention_mask=mask).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), marks[:, 1:].flatten(), reduction="sum")


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"versions": VERSIONS, **value}, ensure_ascii=False, indent=1)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda list_: re.sub(r"\s+", " ", list_.group()), text)  # a list of numbers is one line
    path.write_text(text + "\n", encoding="utf-8")


def write_tensors(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
