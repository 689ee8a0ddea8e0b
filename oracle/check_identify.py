"""Holds `polypaca identify` against fastText's own program, line for line, and their speeds beside each other.

    pip install fasttext-wheel==0.9.2 "numpy<2"
    python oracle/check_identify.py target/release/polypaca TEXT.txt... [--model MODEL.ftz...]

Each TEXT.txt is in one language, a text a line, and is named by its language (NTREX's eng.txt, zho.txt, ...). Beside the
models given, eight are trained on every other line of the texts: softmax and hierarchical softmax, each with character
n-grams and with word pairs, dense and quantised. Every line is then identified by both. The script fails where a
label differs (unless fastText's two best lie within 1e-6 of each other: such ties are counted), where a probability
differs by 1e-4 or more, and with --speed where the program is slower.

Speeds are lines a second, the best of three: of the program, from its start to its end, files read and JSON written;
of fastText, the calls of `predict` from Python alone.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import fasttext

fasttext.FastText.eprint = lambda *_: None
TOLERANCE, TIE, TURNS = 1e-4, 1e-6, 3


def trained(lines, folder):
    training = folder / "train.txt"
    examples = [f"__label__{language} {line}" for language, line in lines[::2]]
    training.write_text("\n".join(examples) + "\n", encoding="utf-8")
    for loss in ("softmax", "hs"):
        for name, features in (("characters", {"minn": 2, "maxn": 4}), ("words", {"wordNgrams": 2})):
            model = fasttext.train_supervised(
                str(training), loss=loss, dim=16, epoch=5, bucket=50_000, thread=1, verbose=0, **features
            )
            path = folder / f"{loss}-{name}.bin"
            model.save_model(str(path))
            yield path
            model.quantize(str(training), retrain=False, thread=1)
            path = path.with_suffix(".ftz")
            model.save_model(str(path))
            yield path


def best_of(turns, work):
    """The result of `work`, and its shortest time in seconds."""
    shortest = float("inf")
    for _ in range(turns):
        start = time.perf_counter()
        result = work()
        shortest = min(shortest, time.perf_counter() - start)
    return result, shortest


def compare(program, path, lines, responses):
    model = fasttext.load_model(str(path))
    theirs, their_time = best_of(TURNS, lambda: [model.predict(line, k=1) for _, line in lines])
    command = [program, "identify", "--lid", str(path), str(responses)]
    printed, our_time = best_of(TURNS, lambda: subprocess.run(command, check=True, capture_output=True).stdout)
    ours = [json.loads(line) for line in printed.decode("utf-8").splitlines()]
    assert len(ours) == len(lines), (len(ours), len(lines))
    ties, wrong, furthest = 0, 0, 0.0
    for (_, line), found, (labels, probabilities) in zip(lines, ours, theirs):
        label = labels[0].removeprefix("__label__")
        if found["label"] != label:
            first, second = model.predict(line, k=2)[1]
            tie = first - second < TIE
            ties, wrong = ties + tie, wrong + (not tie)
        furthest = max(furthest, abs(found["probability"] - float(probabilities[0])))
    speed, their_speed = len(lines) / our_time, len(lines) / their_time
    print(
        f"{path.name}: {len(lines)} lines, {wrong} labels differ, {ties} ties, largest difference of a probability "
        f"{furthest:.1e}; {speed:,.0f} lines a second against {their_speed:,.0f}"
    )
    return wrong == 0 and furthest < TOLERANCE, speed >= their_speed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("texts", type=pathlib.Path, nargs="+")
    parser.add_argument("--model", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    lines = [
        (path.stem, line)
        for path in arguments.texts
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        responses = folder / "responses.jsonl"
        rows = ({"id": str(place), "response": line} for place, (_, line) in enumerate(lines))
        responses.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        models = [*arguments.model, *trained(lines, folder)]
        held = [compare(arguments.program, path, lines, responses) for path in models]
    sys.exit(0 if all(same and (fast or not arguments.speed) for same, fast in held) else 1)


if __name__ == "__main__":
    main()
