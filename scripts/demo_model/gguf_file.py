"""Weights of the llama architecture as a GGUF file; with random weights, a model for tests."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from demo_model.grammar import END_OF_TEXT, TURN_END
from demo_model.tokenizer import Tokenizer

Weights = dict[str, NDArray[np.float32]]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NORM_EPSILON = 1e-5
ROPE_BASE = 10000.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the network. Rows must be multiples of 32, for Q8_0 packs 32 weights together."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    context: int = 2048
    pooling: int | None = None
    """How embeddings are made, in llama.cpp's numbers; None: the file says nothing of it."""

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def write(
    path: Path,
    *,
    shape: Shape,
    weights: Weights,
    tokenizer: Tokenizer,
    name: str,
    template: str | None = CHATML,
    temperature: float | None = None,
    packing: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
) -> None:
    """Write `weights`, packed as Q8_0 or Q4_0 (norms as F32). The output matrix is the embedding, so it is not in the file.

    `temperature` is what a worker takes where a request names none.
    """
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_license("Apache-2.0")
    if temperature is not None:
        writer.add_sampling_temp(temperature)
    if shape.pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(shape.pooling))
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(len(tokenizer.tokens))
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{packing.name}"])
    _add_tokenizer(writer, tokenizer, template)
    for tensor, values in weights.items():
        _add_tensor(writer, tensor, np.ascontiguousarray(values, dtype=np.float32), packing)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, template: str | None) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges([f"{left} {right}" for left, right in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.ids[END_OF_TEXT])
    writer.add_pad_token_id(tokenizer.ids[END_OF_TEXT])
    writer.add_eos_token_id(tokenizer.ids[TURN_END])
    writer.add_eot_token_id(tokenizer.ids[TURN_END])
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: NDArray[np.float32], packing: gguf.GGMLQuantizationType) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, packing), raw_dtype=packing)


def random_weights(shape: Shape, vocabulary: int, seed: int) -> Weights:
    """A model that says nothing sensible, for tests: it loads and runs as any other."""
    generator = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return np.asarray(generator.standard_normal((rows, columns)) / np.sqrt(columns), dtype=np.float32)

    ones = np.ones(shape.width, dtype=np.float32)
    keys = shape.head_width * shape.kv_heads
    weights = {"token_embd.weight": matrix(vocabulary, shape.width), "output_norm.weight": ones}
    for layer in range(shape.layers):
        weights |= {
            f"blk.{layer}.attn_norm.weight": ones,
            f"blk.{layer}.ffn_norm.weight": ones,
            f"blk.{layer}.attn_q.weight": matrix(shape.width, shape.width),
            f"blk.{layer}.attn_k.weight": matrix(keys, shape.width),
            f"blk.{layer}.attn_v.weight": matrix(keys, shape.width),
            f"blk.{layer}.attn_output.weight": matrix(shape.width, shape.width),
            f"blk.{layer}.ffn_gate.weight": matrix(shape.hidden, shape.width),
            f"blk.{layer}.ffn_up.weight": matrix(shape.hidden, shape.width),
            f"blk.{layer}.ffn_down.weight": matrix(shape.width, shape.hidden),
        }
    return weights
