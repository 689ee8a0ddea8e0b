"""PEFT loads an adapter that polypaca saved, and gives polypaca's logits.

    python oracle/check_peft_loads.py ADAPTER_DIR MODEL_DIR LOGITS.safetensors

LOGITS holds pairs `input_ids.N` (int64, [length]) and `logits.N` (float32, [length, vocabulary]), as polypaca
computed them with the adapter on. Prints the largest relative difference; exits 1 where it is over 1e-4: float32
sums over some hundred terms in another order differ by about 1e-6, so that 1e-4 is a wrong weight, not rounding.
"""
import argparse
import json
import pathlib
import sys

import safetensors.torch
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def base_model(folder):
    settings = json.loads((pathlib.Path(folder) / "config.json").read_text())
    if settings["model_type"] == "baichuan":
        import baichuan
        return baichuan.Model.from_pretrained(folder, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def every_tensor_is_used(model, adapter):
    """PEFT passes over names it does not know: each saved tensor must lie in the model as it was saved."""
    loaded = {key.replace(".default", ""): tensor for key, tensor in model.state_dict().items() if "lora_" in key}
    with safe_open(pathlib.Path(adapter) / "adapter_model.safetensors", "pt") as saved:
        names = set(saved.keys())
        if names != set(loaded):
            sys.exit(f"tensors that PEFT did not take: {sorted(names - set(loaded))}; that it misses: {sorted(set(loaded) - names)}")
        for name in names:
            if not torch.equal(saved.get_tensor(name).float(), loaded[name].float()):
                sys.exit(f"{name} is not what PEFT loaded")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("model")
    parser.add_argument("logits")
    arguments = parser.parse_args()
    model = PeftModel.from_pretrained(base_model(arguments.model), arguments.adapter).eval()
    every_tensor_is_used(model, arguments.adapter)
    tensors = safetensors.torch.load_file(arguments.logits)
    cases = sorted(name.removeprefix("input_ids.") for name in tensors if name.startswith("input_ids."))
    if not cases:
        sys.exit(f"{arguments.logits}: no tensor is called input_ids.N")
    worst = 0.0
    for case in cases:
        expected = tensors[f"logits.{case}"].float()
        with torch.no_grad():
            found = model(input_ids=tensors[f"input_ids.{case}"].long()[None]).logits[0]
        if found.shape != expected.shape:
            sys.exit(f"logits.{case} has shape {list(expected.shape)}, expected {list(found.shape)}")
        worst = max(worst, ((expected - found).norm() / found.norm()).item())
    print(json.dumps({"cases": len(cases), "largest_relative_difference": worst, "tolerance": TOLERANCE}))
    if not worst <= TOLERANCE:  # a NaN is no agreement
        sys.exit(1)


if __name__ == "__main__":
    main()
