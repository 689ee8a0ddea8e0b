"""SmolLM2-135M-Instruct, a real model: its tokenizer, logits, answers and fifty updates.

`scripts/fetch-smollm2` places the GGUF file under models/. Its quantised weights are widened to float32 once, so
that both sides compute on the same numbers.
"""
import hashlib
import json
import os
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
import generation
from common import GOLDENS, HERE, REAL, write_json, write_tensors
from goldens import encoded, save_adapter, updates

NAME = "smollm2-135m-instruct.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = pathlib.Path(os.environ.get("POLYPACA_SMOLLM2", HERE.parent / "models" / NAME))
FOLDER = GOLDENS / "smollm2"
LANGUAGES, LANGUAGE_TOKENS = ("en", "es", "ru", "fi", "zh"), 32
UPDATES, BATCH, CUTOFF, RATE = 50, 8, 512, 3e-4

# The first one's logits are kept whole; of the others those that predict the token after the last.
LOGIT_TEXTS = [
    "The harbour was quiet that morning, and the boats",
    "En el puerto no había nadie, salvo un perro",
    "В гавани было тихо, и лодки",
    "港口很安静,",
    "Satamassa oli",
    "x",
]
TOKENIZER_TEXTS = LOGIT_TEXTS + [
    "", " ", "  two  spaces ", "\n\n\t tab\r\nline", "1234567890 3.14 1,000", "a list:\n\n1. one\n\n2. two", "three   4  5", "x² ½ ٣ 三", "naïve café ÅÄÖ ẞ", "Žluťoučký kůň",
    "Щъркелът лети.", "বৃষ্টি কেন হয়?", "नदी कहाँ जाती है?", "ひらがなカタカナ漢字", "👩‍🌾🌧️", "it's we'll DON'T",
    "def f(x):\n    return x**2  # square\n", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b", "e\u0301 \u200b \ufeff \u00a0", "### Instruction:\nName a sea.\n\n### Response:\n",
]


def load():
    if not FILE.exists():
        sys.exit(f"{FILE} is missing: scripts/fetch-smollm2 fetches it")
    found = hashlib.sha256(FILE.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{FILE}: sha256 is {found}, expected {SHA256}")
    folder, name = str(FILE.resolve().parent), FILE.resolve().name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # The file says `tokenizer.ggml.pre = smollm`: every digit stands alone, as in the published tokenizer.json.
    # transformers does not read that key, and would part the white space before a digit otherwise ("\n\n1.").
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    widened = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    settings = widened.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(type(widened.config).from_dict(settings), attn_implementation="eager")
    missing = model.load_state_dict({key: tensor.float() for key, tensor in widened.state_dict().items()}, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}, missing
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return tokenizer, model.eval()


def logits(tokenizer, model):
    tensors, top = {}, []
    for at, text in enumerate(LOGIT_TEXTS):
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids])).logits[0]
        tensors[f"input_ids.{at}"] = torch.tensor(ids)
        tensors[f"logits.{at}"] = found if at == 0 else found[-1:]
        best = found[-1].topk(8)
        top.append({"text": text, "ids": ids, "norm": found[-1].norm().item(), "best": best.indices.tolist(), "best_logits": best.values.tolist()})
    write_tensors(FOLDER / "logits.safetensors", tensors)
    write_json(FOLDER / "logits.json", {"file_sha256": SHA256, "prompts": top})


def tokens(tokenizer):
    write_json(FOLDER / "tokenizer.json", {
        "file_sha256": SHA256, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "strings": [{"text": text, "ids": (ids := tokenizer(text)["input_ids"]), "decoded": tokenizer.decode(ids),
                     "decoded_without_specials": tokenizer.decode(ids, skip_special_tokens=True)} for text in TOKENIZER_TEXTS]})


def answers(tokenizer, model):
    methods = {name: generation.METHODS[name] for name in ("greedy", "beam4-no-repeat6")}
    generation.write(FOLDER / "generation.json", tokenizer, model, methods, new_tokens=64, extra={"file_sha256": SHA256})


def languages(tokenizer, model):
    """Fifty real prompts in each of five languages; a file a language, so that what is made can be gone on from."""
    methods = {name: generation.METHODS[name] for name in ("greedy", "beam4-no-repeat6", "beam4-penalty1.1")}
    for language in LANGUAGES:
        path = FOLDER / f"generation-{language}.json"
        if path.exists():
            continue
        data = f"test_{language}.jsonl"
        lines = (REAL / "prompts" / data).read_text(encoding="utf-8").splitlines()
        prompts = [json.loads(line) for line in lines if line.strip()][:50]
        ids = [tokenizer(common.NO_INPUT.format(instruction=prompt["prompt"]))["input_ids"] for prompt in prompts]
        answers = {name: [generation.answer(model, tokenizer.eos_token_id, prompt, settings, LANGUAGE_TOKENS) for prompt in ids]
                   for name, settings in methods.items()}
        write_json(path, {"file_sha256": SHA256, "data": data, "template": "alpaca", "new_tokens": LANGUAGE_TOKENS,
                          "methods": methods, "prompt_tokens": [len(prompt) for prompt in ids], "answers": answers})
        print(language, flush=True)


def fifty_updates(tokenizer, model):
    data = json.loads((REAL / "instructions" / "alpaca_en_demo.json").read_text(encoding="utf-8"))[:UPDATES * BATCH]
    rows = encoded(tokenizer, data, CUTOFF, "all")
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM",
                                               target_modules=["q_proj", "k_proj", "v_proj"]))
    save_adapter(adapted, FOLDER / "adapter")
    losses = updates(adapted, lambda update: rows[update * BATCH:(update + 1) * BATCH], RATE, UPDATES, report=True)
    write_json(FOLDER / "updates.json", {
        "file_sha256": SHA256, "data": "alpaca_en_demo.json", "cutoff": CUTOFF, "batch": BATCH, "updates": UPDATES,
        "learning_rate": RATE, "schedule": "constant", "supervise": "all", "supervised_tokens": common.supervised_tokens(rows),
        "row_tokens": [len(ids) for ids, _ in rows], "losses": losses})


PARTS = ("tokens", "logits", "answers", "languages", "updates")


def make(parts=PARTS):
    torch.set_num_threads(2)
    tokenizer, model = load()
    if "tokens" in parts:
        tokens(tokenizer)
    if "logits" in parts:
        logits(tokenizer, model)
    if "answers" in parts:
        answers(tokenizer, model)
    if "languages" in parts:
        languages(tokenizer, model)
    if "updates" in parts:
        fifty_updates(tokenizer, model)


if __name__ == "__main__":
    common.quiet()
    make(sys.argv[1:] or PARTS)
