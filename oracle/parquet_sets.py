"""Sets of instruction data in Parquet, as pyarrow writes them, and a check of what polypaca writes.

    python oracle/parquet_sets.py                      # makes goldens/parquet
    python oracle/parquet_sets.py check FILE.parquet FILE.json   # whether pyarrow reads the same rows from both
"""

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet

HERE = Path(__file__).parent
GOLDENS = HERE / "goldens" / "parquet"


def write(name, columns, **settings):
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, GOLDENS / f"{name}.parquet", **settings)


def make():
    GOLDENS.mkdir(parents=True, exist_ok=True)
    rows = json.loads((HERE / "rows.json").read_text(encoding="utf-8"))[:12]
    instruction = [row["instruction"] for row in rows]
    # A missing input is null, as the datasets library writes it.
    inputs = [row["input"] or None for row in rows]
    output = [row["output"] for row in rows]
    alpaca = {
        "instruction": instruction,
        "input": inputs,
        "output": output,
        "__index_level_0__": list(range(len(rows))),
        "embedding": [[0.5, 1.5]] * len(rows),
    }
    write("alpaca-snappy", alpaca, compression="snappy", row_group_size=5)
    write("alpaca-zstd", alpaca, compression="zstd", data_page_version="2.0")
    write("alpaca-gzip", alpaca, compression="gzip", use_dictionary=False)
    write("alpaca-brotli", alpaca, compression="brotli", use_byte_stream_split=False)
    write("alpaca-lz4", alpaca, compression="lz4")
    large = pyarrow.large_string()
    write(
        "large-strings",
        {
            "id": pyarrow.array(range(100, 100 + len(rows)), pyarrow.int64()),
            "instruction": pyarrow.array(instruction, large),
            "context": pyarrow.array(inputs, large),
            "response": pyarrow.array(output, large),
        },
        compression="none",
        column_encoding={"response": "DELTA_LENGTH_BYTE_ARRAY"},
        use_dictionary=False,
    )
    chat = lambda ask, answer, first, second, role, content: [
        [{role: first, content: a}, {role: second, content: b}] for a, b in zip(ask, answer)
    ]
    write("messages", {"messages": chat(instruction, output, "user", "assistant", "role", "content")})
    write("sharegpt", {"conversations": chat(instruction, output, "human", "gpt", "from", "value")})
    write("binary", {"instruction": [text.encode() for text in instruction], "output": output})
    write("other", {"text": instruction})
    expected = [
        {"id": str(number), "instruction": row["instruction"], "input": row["input"], "output": row["output"]}
        for number, row in enumerate(rows)
    ]
    versions = {"pyarrow": pyarrow.__version__}
    golden = {"versions": versions, "rows": expected}
    (GOLDENS / "rows.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def check(parquet, alpaca):
    found = pyarrow.parquet.read_table(parquet).to_pylist()
    expected = json.loads(Path(alpaca).read_text(encoding="utf-8"))
    assert found == expected, f"{parquet} and {alpaca} differ"
    print(f"{len(found)} rows, the same")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(*sys.argv[2:])
    else:
        make()
