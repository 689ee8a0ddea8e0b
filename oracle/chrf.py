"""Goldens of chrF++ from sacrebleu's sentence_chrf, for judge/tests/goldens/chrf.json.

    pip install sacrebleu
    python oracle/chrf.py > judge/tests/goldens/chrf.json
"""

import json
import sys

import sacrebleu

# (response, references): sentences written for this project, and edges of the definition.
CASES = [
    ("The cat sat on the mat.", ["The cat sat on the mat."]),
    ("The cat sits on a mat!", ["The cat sat on the mat.", "A cat was sitting on the mat."]),
    ("Pariisi on Ranskan pääkaupunki.", ["Ranskan pääkaupunki on Pariisi."]),
    ("Столица Франции — Париж.", ["Париж является столицей Франции."]),
    ("Столицата на България е София, разбира се.", ["София е столицата на България."]),
    ("法国的首都是巴黎。", ["巴黎是法国的首都。", "首都:巴黎"]),
    ("今天天气很好,我们去公园吧!", ["今天的天气真好，我们去公园玩吧！"]),
    ("ফ্রান্সের রাজধানী প্যারিস।", ["প্যারিস ফ্রান্সের রাজধানী।"]),
    ("फ़्रांस की राजधानी पेरिस है।", ["पेरिस फ़्रांस की राजधानी है।"]),
    ("عاصمة فرنسا هي باريس.", ["باريس هي عاصمة فرنسا."]),
    ("¿Cuál es la capital? Es «París».", ["La capital es París."]),
    ("Hovedstaden i Frankrike er Paris", ["Paris er hovedstaden i Frankrike"]),
    ("(hi) 'quoted' -dash- ... !?", ["hi quoted dash"]),
    ("a", ["a"]),
    ("a", ["b"]),
    ("ab", ["abc"]),
    (".", ["."]),
    ("", ["something"]),
    ("something", [""]),
    ("   ", ["   "]),
    ("one two three", ["three two one"]),
    ("tabs\tand\nnew  lines\u00a0and\u3000wide", ["tabs and new lines and wide"]),
    ("separator\u001cones\u001fhere", ["separator ones here"]),
    ("😀 emoji 👩‍👩‍👧 family", ["emoji 😀 family 👩‍👩‍👧"]),
    ("repeat repeat repeat repeat", ["repeat repeat"]),
    ("e\u0301tude composed", ["\u00e9tude composed"]),
    ("12,345.67 km/h", ["12 345,67 km/h"]),
    ("word", ["a much longer reference with many other words in it"]),
]

json.dump(
    {
        "made_with": f"sacrebleu {sacrebleu.__version__}, sentence_chrf(word_order=2)",
        "cases": [
            {
                "response": response,
                "references": references,
                "score": sacrebleu.sentence_chrf(response, references, word_order=2).score,
            }
            for response, references in CASES
        ],
    },
    sys.stdout,
    ensure_ascii=False,
    indent=1,
)
print()
