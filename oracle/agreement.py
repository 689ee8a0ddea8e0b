"""Goldens of agreement figures from scipy and scikit-learn, for judge/tests/agreement.rs.

    pip install scipy scikit-learn
    python oracle/agreement.py PANDALM_FOLDER > judge/tests/goldens/agreement.json

PANDALM_FOLDER holds PandaLM's test set and its verdicts (WeOpenML/PandaLM, data/): only figures leave it.
Krippendorff's alpha stands in neither library: it is computed here straight from its definition as one minus observed
over expected disagreement, pair by pair, and the test holds ours against it and against Krippendorff's own example.
"""

import itertools
import json
import pathlib
import sys

import numpy
import scipy
import sklearn
from scipy import stats
from sklearn.metrics import cohen_kappa_score

folder = pathlib.Path(sys.argv[1])
rows = json.loads((folder / "pandalm_testset.json").read_text())
gpt = json.loads((folder / "pandalm_gpt35_verdicts.json").read_text())
panda = json.loads((folder / "pandalm_7b_verdicts.json").read_text())
people = [[row[f"annotator{n}"] for row in rows] for n in (1, 2, 3)]
# On a line from "the first is better" to "the second is better": 1, 0, 2 become -1, 0, 1.
line = {1: -1.0, 0: 0.0, 2: 1.0, "1": -1.0, "Tie": 0.0, "2": 1.0}
placed = [[line[mark] for mark in marks] for marks in people]
mean = numpy.mean(placed, axis=0)


def correlations(judge, human):
    pearson, spearman = stats.pearsonr(judge, human), stats.spearmanr(judge, human)
    return {
        "pairs": len(judge),
        "pearson": pearson.statistic,
        "pearson_p": pearson.pvalue,
        "spearman": spearman.statistic,
        "kendall": stats.kendalltau(judge, human).statistic,
    }


def alpha(units, distance):
    values = [mark for unit in units for mark in unit]
    observed = sum(
        sum(distance(a, b) for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units
    ) / len(values)
    labels, counts = numpy.unique(values, return_counts=True)
    expected = sum(
        counts[i] * counts[j] * distance(labels[i], labels[j]) for i in range(len(labels)) for j in range(len(labels))
    ) / (len(values) * (len(values) - 1))
    return 1 - observed / expected


units = [list(marks) for marks in zip(*placed)]
labels, counts = numpy.unique([mark for unit in units for mark in unit], return_counts=True)


def ordinal(a, b):
    low, high = sorted((numpy.searchsorted(labels, a), numpy.searchsorted(labels, b)))
    return (counts[low : high + 1].sum() - (counts[low] + counts[high]) / 2) ** 2


kept = [i for i, row in enumerate(gpt) if row["gpt_result"] in line]
json.dump(
    {
        "made_with": f"scipy {scipy.__version__}, scikit-learn {sklearn.__version__}, numpy {numpy.__version__}",
        "kappas": [
            {
                "first": a,
                "second": b,
                "kappa": cohen_kappa_score(people[a], people[b]),
                "quadratic": cohen_kappa_score(
                    [int(mark) for mark in placed[a]], [int(mark) for mark in placed[b]], weights="quadratic"
                ),
            }
            for a, b in itertools.combinations(range(3), 2)
        ],
        "alpha_nominal": alpha(units, lambda a, b: float(a != b)),
        "alpha_ordinal": float(alpha(units, ordinal)),
        "alpha_interval": float(alpha(units, lambda a, b: (a - b) ** 2)),
        "gpt35": correlations([line[gpt[i]["gpt_result"]] for i in kept], mean[kept]),
        "pandalm_7b": correlations([line[row["pandalm_result"]] for row in panda], mean),
    },
    sys.stdout,
    indent=1,
)
print()
