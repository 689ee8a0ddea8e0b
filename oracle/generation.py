"""What transformers' `generate` answers, and how close each of its choices was."""
import torch
from transformers import GenerationMixin

import bpe
import tiny
from common import GOLDENS, NO_INPUT, prompts, write_json

NEW_TOKENS = 48
METHODS = {
    "greedy": {},
    "greedy-penalty1.3": {"repetition_penalty": 1.3},
    "beam4-no-repeat6": {"num_beams": 4, "no_repeat_ngram_size": 6},
    "beam4-penalty1.1": {"num_beams": 4, "repetition_penalty": 1.1},
    "beam4-short-early": {"num_beams": 4, "length_penalty": 0.6, "early_stopping": True},
}


class Margins:
    """Of every step of a beam search: how far the last beam kept lies above the first one dropped.

    Two cuts are made in a step: among the best candidates (only the upper half may finish), and among those that
    go on. The smaller distance is kept.
    """

    def __init__(self):
        self.steps = []

    def __enter__(self):
        self.original = GenerationMixin._get_running_beams_for_next_iteration

        def watched(model, topk_log_probs, topk_running_sequences, topk_running_beam_indices, next_token_hits_stopping_criteria, num_beams):
            going_on = topk_log_probs[0].masked_fill(next_token_hits_stopping_criteria[0], -1e9).sort(descending=True).values
            distances = [topk_log_probs[0, num_beams - 1] - topk_log_probs[0, num_beams]]
            if not next_token_hits_stopping_criteria.all():
                distances.append(going_on[num_beams - 1] - going_on[num_beams])
            self.steps.append(min(distance.item() for distance in distances))
            return self.original(model, topk_log_probs, topk_running_sequences, topk_running_beam_indices,
                                 next_token_hits_stopping_criteria, num_beams)

        GenerationMixin._get_running_beams_for_next_iteration = watched
        return self

    def __exit__(self, *_):
        GenerationMixin._get_running_beams_for_next_iteration = self.original


def answer(model, end, ids, settings, new_tokens):
    inputs = torch.tensor([ids])
    beams = settings.get("num_beams", 1)
    with torch.no_grad(), Margins() as margins:
        output = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=new_tokens,
                                pad_token_id=end, eos_token_id=end, return_dict_in_generate=True, output_scores=True,
                                num_return_sequences=beams, **settings)
    found = output.sequences[0, len(ids):].tolist()
    if end in found:
        found = found[:found.index(end) + 1]
    if beams == 1:
        steps = [(best := scores[0].topk(2).values)[0].item() - best[1].item() for scores in output.scores]
        return {"tokens": found, "margins": rounded(steps)}
    return {"tokens": found, "margins": rounded(margins.steps), "beam_scores": output.sequences_scores.tolist()}


def rounded(steps):
    return [float(f"{step:.3g}") for step in steps]


def write(path, tokenizer, model, methods, new_tokens, extra=None):
    ids = [(row["id"], tokenizer(NO_INPUT.format(instruction=row["prompt"]))["input_ids"]) for row in prompts()]
    end = tokenizer.eos_token_id
    answers = {name: [{"id": key, **answer(model, end, prompt, settings, new_tokens)} for key, prompt in ids]
               for name, settings in methods.items()}
    write_json(path, {**(extra or {}), "template": "alpaca", "new_tokens": new_tokens, "methods": methods,
                      "prompts": [{"id": key, "ids": prompt} for key, prompt in ids], "answers": answers})


def make(name):
    write(GOLDENS / name / "generation.json", bpe.load(), tiny.load(name).eval(), METHODS, NEW_TOKENS)
