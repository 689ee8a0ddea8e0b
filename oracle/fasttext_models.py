"""Makes the small fastText models under judge/tests/goldens/fasttext, and fastText's own answers to them.

    pip install fasttext-wheel==0.9.2 "numpy<2"
    python oracle/fasttext_models.py judge/tests/goldens/fasttext

A model for each way in which a supervised model can differ: softmax, hierarchical softmax, one-versus-all and negative
sampling; dense and quantised, with quantised norms and output, with a pruned dictionary, with parts that do not divide
the vector; character and word n-grams. All are trained on the sentences below, which were written for this project.
answers.json holds, for each model and text, fastText's five best labels and probabilities, best first, and the label
that it gives when asked for one alone: among equal scores, that can be another one.
"""

import itertools
import json
import os
import sys
import tempfile

import fasttext
from importlib.metadata import version

fasttext.FastText.eprint = lambda *_: None

# Each language: subjects, verbs with what follows, places or times. A sentence is one of each.
PARTS = {
    "eng": (
        ["My sister", "The old teacher", "Our neighbour", "A young doctor", "The tired driver"],
        ["reads a long letter", "buys fresh bread", "looks for her keys", "waits for the bus", "drinks cold water"],
        ["in the morning.", "near the station.", "before the meeting.", "at home today.", "with two friends."],
    ),
    "deu": (
        ["Meine Schwester", "Der alte Lehrer", "Unser Nachbar", "Eine junge Ärztin", "Der müde Fahrer"],
        ["liest einen langen Brief", "kauft frisches Brot", "sucht die Schlüssel", "wartet auf den Bus", "trinkt kaltes Wasser"],
        ["am Morgen.", "neben dem Bahnhof.", "vor der Sitzung.", "heute zu Hause.", "mit zwei Freunden."],
    ),
    "fin": (
        ["Siskoni", "Vanha opettaja", "Naapurimme", "Nuori lääkäri", "Väsynyt kuljettaja"],
        ["lukee pitkää kirjettä", "ostaa tuoretta leipää", "etsii avaimiaan", "odottaa bussia", "juo kylmää vettä"],
        ["aamulla.", "aseman lähellä.", "ennen kokousta.", "tänään kotona.", "kahden ystävän kanssa."],
    ),
    "nob": (
        ["Søsteren min", "Den gamle læreren", "Naboen vår", "En ung lege", "Den trøtte sjåføren"],
        ["leser et langt brev", "kjøper ferskt brød", "leter etter nøklene", "venter på bussen", "drikker kaldt vann"],
        ["om morgenen.", "nær stasjonen.", "før møtet.", "hjemme i dag.", "sammen med to venner."],
    ),
    "rus": (
        ["Моя сестра", "Старый учитель", "Наш сосед", "Молодой врач", "Усталый водитель"],
        ["читает длинное письмо", "покупает свежий хлеб", "ищет свои ключи", "ждёт автобус", "пьёт холодную воду"],
        ["утром.", "возле вокзала.", "перед собранием.", "сегодня дома.", "с двумя друзьями."],
    ),
    "zho": (
        ["我的妹妹", "那位老教师", "我们的邻居", "一位年轻医生", "疲倦的司机"],
        ["在读一封长信", "去买新鲜面包", "正在找钥匙", "在等公共汽车", "要喝一杯冷水"],
        ["，今天早上。", "，就在车站附近。", "，会议开始以前。", "，今天在家里。", "，和两个朋友一起。"],
    ),
}

# Texts to answer for: words seen and unseen, mixed, odd white space, tokens with a meaning of their own.
TEXTS = [
    "My sister waits for the bus in the morning.",
    "Our teacher looked everywhere for bread.",
    "Meine Ärztin sucht frisches Wasser.",
    "Väsynyt opettaja odottaa aamulla bussia kotona.",
    "Naboen leser ferskt brød og venter hjemme.",
    "Старый врач ждёт письмо.",
    "我们的司机今天在车站等朋友。",
    "Der Fahrer und the driver ждёт автобус",
    "",
    "   ",
    "42",
    "x",
    "é",
    "\t reads\x0b a\x0c  long\r letter \r",
    "bread\x00water",
    "bread </s> Wasser trinkt der Fahrer",
    "__label__eng Wasser trinkt",
    "__label__none Wasser trinkt",
    "🙂🙂 ok 👩‍👩‍👧 हिन्दी",
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze",
    "bread bread bread bread Brot",
    "<bread>",
    "\u00a0bread\u2003water\u0085",
    "unbekannte слова here всюду und überall",
]

MODELS = {
    "softmax.bin": dict(loss="softmax", dim=7, minn=0, maxn=0),
    "softmax-characters.bin": dict(loss="softmax", dim=5, minn=1, maxn=3, bucket=300),
    "softmax-word-pairs.bin": dict(loss="softmax", dim=5, wordNgrams=3, bucket=200),
    "hierarchical.bin": dict(loss="hs", dim=6, minn=2, maxn=4, bucket=300),
    "one-versus-all.bin": dict(loss="ova", dim=6, minn=2, maxn=3, bucket=200),
    "negative-sampling.bin": dict(loss="ns", dim=6, minn=0, maxn=0, neg=2),
    "softmax.ftz": dict(loss="softmax", dim=4, minn=2, maxn=3, bucket=400, quantize=dict(dsub=2)),
    "softmax-norms.ftz": dict(loss="softmax", dim=5, minn=2, maxn=3, bucket=400, quantize=dict(dsub=2, qnorm=True)),
    "softmax-pruned.ftz": dict(
        loss="softmax", dim=4, minn=2, maxn=3, bucket=2000, quantize=dict(dsub=2, qnorm=True, cutoff=350)
    ),
    "hierarchical-pruned.ftz": dict(
        loss="hs", dim=4, minn=2, maxn=4, bucket=2000, wordNgrams=2, quantize=dict(dsub=2, cutoff=300)
    ),
    "hierarchical-uneven.ftz": dict(loss="hs", dim=7, minn=2, maxn=3, bucket=400, quantize=dict(dsub=3, qnorm=True)),
    "one-versus-all.ftz": dict(loss="ova", dim=4, minn=2, maxn=3, bucket=300, quantize=dict(dsub=4)),
    "output.ftz": dict(loss="softmax", dim=2, minn=2, maxn=2, bucket=300, labels=44, quantize=dict(dsub=2, qout=True)),
    "output-norms.ftz": dict(
        loss="hs", dim=3, minn=2, maxn=2, bucket=300, labels=44, quantize=dict(dsub=2, qnorm=True, qout=True)
    ),
}


def sentences():
    for language, (subjects, verbs, ends) in PARTS.items():
        space = "" if language == "zho" else " "
        for number, parts in enumerate(itertools.product(subjects, verbs, ends)):
            # Unequal counts: the tree of hierarchical softmax has a shape to get wrong.
            if number % (1 + list(PARTS).index(language)) == 0:
                yield language, number, space.join(parts).replace(" ,", ",")


def training_text(labels):
    """`labels` cuts each language's sentences into as many labels, so that an output can be quantised (256 rows)."""
    lines = []
    for language, number, sentence in sentences():
        if labels == 1:
            lines.append(f"__label__{language} {sentence}")
        else:
            # As many labels as wanted, met by each sentence at least once.
            lines.extend(f"__label__{language}_{(number + step) % labels} {sentence}" for step in range(0, labels, 3))
            lines.append(f"__label__{language}_{number % labels} {sentence}")
    return "\n".join(lines) + "\n"


def make(folder, name, settings):
    settings = dict(settings)
    quantize = settings.pop("quantize", None)
    labels = settings.pop("labels", 1)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as text:
        text.write(training_text(labels))
        text.flush()
        settings = dict(dict(epoch=20, lr=0.5, thread=1, minCount=1, verbose=0), **settings)
        model = fasttext.train_supervised(input=text.name, **settings)
        if quantize is not None:
            model.quantize(input=text.name, retrain=False, thread=1, verbose=0, **quantize)
    path = os.path.join(folder, name)
    model.save_model(path)
    model = fasttext.load_model(path)
    answers = []
    for text in TEXTS:
        five, one = (model.f.predict(text + "\n", count, 0.0, "strict") for count in (5, 1))
        best = [[label, float(f"{probability:.8g}")] for probability, label in five]
        answers.append({"alone": one[0][1], "best": best})
    print(f"{name}: {os.path.getsize(path)} bytes, {len(model.get_labels())} labels, {len(model.get_words())} words")
    return answers


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    answers = {name: make(folder, name, settings) for name, settings in MODELS.items()}
    made_by = f"fasttext-wheel {version('fasttext-wheel')} (fastText's own C++ code)"
    with open(os.path.join(folder, "answers.json"), "w", encoding="utf-8") as file:
        # A line for each model.
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(answers[name])}" for name in answers)
        texts = json.dumps(TEXTS, ensure_ascii=False)
        file.write(f'{{"made_by": {json.dumps(made_by)},\n"texts": {texts},\n"answers": {{\n{lines}}}}}\n')


if __name__ == "__main__":
    main()
