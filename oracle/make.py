"""Make the goldens again, all of them or the named ones.

    python oracle/make.py                      everything (SmolLM2 only where models/ has it)
    python oracle/make.py llama-grouped bloom  these tiny models
    python oracle/make.py smollm2              SmolLM2
"""
import sys

import baichuan
import bpe
import common
import generation
import goldens
import smollm2
import tiny


def main():
    common.quiet()
    wanted = sys.argv[1:] or [*tiny.MODELS, "smollm2"]
    unknown = [name for name in wanted if name not in tiny.MODELS and name != "smollm2"]
    if unknown:
        sys.exit(f"no golden is called {', '.join(unknown)}; there are {', '.join([*tiny.MODELS, 'smollm2'])}")
    bpe.make()
    print("baichuan against llama:", baichuan.check())
    for name in wanted:
        print(name, flush=True)
        if name == "smollm2":
            smollm2.make()
        else:
            goldens.make(name)
            generation.make(name)


if __name__ == "__main__":
    main()
