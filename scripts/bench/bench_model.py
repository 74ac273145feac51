"""The models of the engine benchmark: the demo model, and 213 M random weights in Q4_0, made once in the user's cache."""

import sys
from pathlib import Path

from llama_server import SCRIPTS, cache

sys.path.insert(0, str(SCRIPTS))

DEMO = SCRIPTS.parent / "meshnode/data/demo.gguf"
VOCABULARY = 32000
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car
""".split()  # noqa: SIM905 - eighty words are read more easily so


def bench_model() -> Path:
    """The path of the large model; a minute of work where it is not there yet."""
    path = cache() / "random-213m-q4_0.gguf"
    if not path.exists():
        print(f"a model of 213 M random weights is made: {path}", file=sys.stderr)
        _make(path)
    return path


def _make(path: Path) -> None:
    import gguf
    from demo_model.gguf_file import Shape, random_weights, write
    from demo_model.tokenizer import NORMAL, Tokenizer, learn_merges

    tokenizer = Tokenizer(learn_merges([" ".join(WORDS)] * 2, 600))
    fillers = [f"filler{number}" for number in range(VOCABULARY - len(tokenizer.tokens))]
    tokenizer.tokens += fillers
    tokenizer.types += [NORMAL] * len(fillers)
    shape = Shape(width=1024, layers=16, heads=16, kv_heads=4, hidden=2816, context=8192)
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    weights = random_weights(shape, VOCABULARY, 1)
    packing = gguf.GGMLQuantizationType.Q4_0
    write(part, shape=shape, weights=weights, tokenizer=tokenizer, name="random 213M", packing=packing)
    part.rename(path)
