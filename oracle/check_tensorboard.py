"""Reads the event files of `polypaca tune --tensorboard DIR` with TensorBoard's own reader, and holds every figure against
the metrics' lines of the same tuning.

    python oracle/check_tensorboard.py DIR METRICS.jsonl

Needs `pip install tensorboard` alone. TensorBoard verifies the records' checksums, and forgets what a killed tuning had
written beyond its checkpoint.
"""

import json
import math
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "loss": "loss/training",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
    "peak_bytes": "peak_bytes",
    "validation_loss": "loss/validation",
}


def main(folder: str, metrics: str) -> None:
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    found = {
        tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]
    }
    expected: dict[str, dict[int, float]] = {}
    with open(metrics, encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            for key, tag in TAGS.items():
                if key in line:
                    expected.setdefault(tag, {})[line["update"]] = line[key]
            for language, loss in line.get("validation_loss_by_language", {}).items():
                expected.setdefault(f"loss/validation/{language}", {})[line["update"]] = loss
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    count = 0
    for tag, points in expected.items():
        assert found[tag].keys() == points.keys(), (tag, sorted(found[tag]), sorted(points))
        for step, value in points.items():
            # Event files have 32-bit floats.
            assert math.isclose(found[tag][step], value, rel_tol=1e-6, abs_tol=1e-30), (tag, step)
            count += 1
    print(f"{count} figures under {len(expected)} tags are the metrics' own")


main(*sys.argv[1:])
