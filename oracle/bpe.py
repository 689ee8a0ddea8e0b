"""The tokenizer of all tiny models: byte-level BPE with 389 entries, trained on the sentences below.

The vocabulary is not a multiple of 8, so that no kernel can count on a round one. The Alpaca preamble is
repeated in the training text: as few long tokens it leaves room for the rows under a small cutoff.
"""
import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from common import GOLDENS, NO_INPUT, WITH_INPUT

VOCABULARY = 389
END = "<|endoftext|>"
FOLDER = GOLDENS / "tokenizer"

SENTENCES = [
    "The boats stood still in the harbour, and the water was cold.",
    "A short answer is often the best answer to a long question.",
    "Лодки стояли у берега, и вода была холодной.",
    "Лодките стояха до брега, а водата беше студена.",
    "Les bateaux restaient au port et l'eau était froide.",
    "Los barcos estaban en el puerto y el agua estaba fría.",
    "Veneet olivat satamassa, ja vesi oli kylmää.",
    "Lodě stály v přístavu a voda byla studená.",
    "Die Boote lagen im Hafen, und das Wasser war kalt.",
    "Båtene lå i havnen, og vannet var kaldt.",
    "船停在港口里,水很冷。",
    "নৌকাগুলো ঘাটে ছিল, আর জল ঠান্ডা ছিল।",
    "नावें घाट पर खड़ी थीं और पानी ठंडा था।",
]


def make():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    preamble = [text.format(instruction="", input="") for text in (NO_INPUT, WITH_INPUT)]
    tokenizer.train_from_iterator(SENTENCES * 2 + preamble * 20, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY and tokenizer.token_to_id(END) == 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    load().save_pretrained(FOLDER)


def load():
    return PreTrainedTokenizerFast(tokenizer_file=str(FOLDER / "tokenizer.json"), eos_token=END)


if __name__ == "__main__":
    make()
    print(json.dumps({"vocabulary": VOCABULARY}))
