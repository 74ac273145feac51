"""A model of 110 KB with random weights, made in the test run: it says nothing sensible, and runs as any other."""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from demo_model.gguf_file import CHATML, Shape, random_weights, write
from demo_model.tokenizer import Tokenizer, learn_merges

BROKEN_TEMPLATE = "{% for message in messages %}"
"""Not a template: the loop has no end."""
HOSTILE_TEMPLATE = "{{ 'a' * 300000000 }}"
"""Takes more than a gigabyte in jinja2's stock sandbox, already when it is compiled."""
SHAPE = Shape(width=64, layers=2, heads=4, kv_heads=2, hidden=128, context=1024)


@cache
def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(learn_merges(["the quick brown fox jumps over the lazy dog and says hello to the world"] * 3, 60))


def make_tiny_model(
    path: Path, *, seed: int = 0, template: str | None = CHATML, name: str = "tiny", pooling: int | None = None
) -> Path:
    """Write the model to `path`; another seed gives other weights, hence another digest."""
    tokenizer = tiny_tokenizer()
    weights = random_weights(SHAPE, len(tokenizer.tokens), seed)
    write(path, shape=replace(SHAPE, pooling=pooling), weights=weights, tokenizer=tokenizer, name=name, template=template)
    return path
