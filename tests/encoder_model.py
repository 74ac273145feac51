"""A BERT with random weights, made in the test run: a model that reads a text from both sides, and writes none."""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

WORDS = ("the", "quick", "brown", "fox", "hello", "world")
WIDTH, HIDDEN, LAYERS, CONTEXT = 32, 64, 2, 64


def make_encoder(path: Path) -> Path:
    """Write it to `path`."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in WORDS)]
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("encoder")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(tokens)
    writer.add_token_types([int(gguf.TokenType.CONTROL)] * 4 + [int(gguf.TokenType.NORMAL)] * len(WORDS))
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_pad_token_id(0)
    for name, values in _weights(len(tokens)).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(vocabulary: int) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return np.asarray(generator.standard_normal((rows, columns)) / np.sqrt(columns), dtype=np.float32)

    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    weights = {
        "token_embd.weight": matrix(vocabulary, WIDTH),
        "token_types.weight": matrix(2, WIDTH),
        "position_embd.weight": matrix(CONTEXT, WIDTH),
        "token_embd_norm.weight": ones,
        "token_embd_norm.bias": zeros,
    }
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights |= {f"blk.{layer}.{name}.weight": matrix(WIDTH, WIDTH), f"blk.{layer}.{name}.bias": zeros}
        for name in ("attn_output_norm", "layer_output_norm"):
            weights |= {f"blk.{layer}.{name}.weight": ones, f"blk.{layer}.{name}.bias": zeros}
        weights |= {
            f"blk.{layer}.ffn_up.weight": matrix(HIDDEN, WIDTH),
            f"blk.{layer}.ffn_up.bias": np.zeros(HIDDEN, np.float32),
            f"blk.{layer}.ffn_down.weight": matrix(WIDTH, HIDDEN),
            f"blk.{layer}.ffn_down.bias": zeros,
        }
    return weights
