"""llama.cpp loads a GGUF file that polypaca wrote, and gives polypaca's logits and tokens.

    python oracle/check_gguf_loads.py FILE.gguf...

Beside each FILE.gguf lies FILE.json: `ids` and `logits` ([length, vocabulary]) as polypaca computed them, `texts` with
each its `text` and `ids`, and `tolerance` with its `reason`. Prints a line a file; exits 1 where logits are further
apart than the tolerance, relative to their norm, or a text has other tokens. Needs llama-cpp-python.
"""
import json
import pathlib
import sys

import llama_cpp
import numpy

F32 = 0  # ggml's number of the type; the cache of keys and values would be f16 otherwise


def check(path):
    expected = json.loads(path.with_suffix(".json").read_text())
    ids = expected["ids"]
    model = llama_cpp.Llama(str(path), n_ctx=max(64, len(ids)), n_batch=max(64, len(ids)), logits_all=True, type_k=F32, type_v=F32,
                            n_threads=2, verbose=False)
    model.eval(ids)
    found, wanted = numpy.array(model.scores[:len(ids)]), numpy.array(expected["logits"], dtype=numpy.float32)
    if found.shape != wanted.shape:
        return f"logits of shape {found.shape}, expected {wanted.shape}"
    difference = float(numpy.linalg.norm(found - wanted) / numpy.linalg.norm(wanted))
    largest = float(numpy.abs(found - wanted).max())
    print(json.dumps({"file": path.name, "relative": difference, "largest": largest, "tolerance": expected["tolerance"]}))
    if not difference <= expected["tolerance"]:  # a NaN is no agreement
        return f"logits differ by {difference:.1e}"
    for text in expected["texts"]:
        tokens = model.tokenize(text["text"].encode(), add_bos=False, special=False)
        if tokens != text["ids"]:
            return f"{text['text']!r} is {tokens}, expected {text['ids']}"
    return None


def main(paths):
    faults = {path: fault for path in paths if (fault := check(pathlib.Path(path)))}
    print("llama-cpp-python", llama_cpp.__version__, "agrees" if not faults else f"does not agree: {faults}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
