"""The network in torch, as llama.cpp computes the llama architecture, and its training."""

import math
import time
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo_model.gguf_file import NORM_EPSILON, ROPE_BASE, Shape, Weights
from demo_model.grammar import conversation
from demo_model.tokenizer import Tokenizer

ROW_TOKENS = 128
BATCH_ROWS = 32
MATRIX_RATE, OTHER_RATE = 0.02, 4e-3
"""Muon for the matrices, AdamW for embedding and norms: about half the steps of AdamW alone, found by trial."""
WARMUP_STEPS = 20
FLAT_PART = 0.3


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.size(-1),), self.weight, NORM_EPSILON)


class Block(nn.Module):
    """Attributes are named as GGUF names the tensors, so that export is a loop."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        keys = shape.head_width * shape.kv_heads
        self.shape = shape
        self.attn_norm, self.ffn_norm = Norm(shape.width), Norm(shape.width)
        self.attn_q, self.attn_output = _linear(shape.width, shape.width), _linear(shape.width, shape.width)
        self.attn_k, self.attn_v = _linear(shape.width, keys), _linear(shape.width, keys)
        self.ffn_gate, self.ffn_up = _linear(shape.width, shape.hidden), _linear(shape.width, shape.hidden)
        self.ffn_down = _linear(shape.hidden, shape.width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn_output(self._attend(self.attn_norm(x), turns))
        hidden = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(hidden)) * self.ffn_up(hidden))

    def _attend(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        rows, tokens, width = x.shape
        query = _rotated(self._by_head(self.attn_q(x)), turns)
        key = _rotated(self._by_head(self.attn_k(x)), turns)
        mixed = functional.scaled_dot_product_attention(
            query, key, self._by_head(self.attn_v(x)), is_causal=True, enable_gqa=True
        )
        return mixed.transpose(1, 2).reshape(rows, tokens, width)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), -1, self.shape.head_width).transpose(1, 2)


class Network(nn.Module):
    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width)
        self.turns = _turns(shape.head_width)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        for block in self.blk:
            for name, matrix in block.named_parameters():
                if matrix.ndim == 2:
                    quiet = 0.3 if name.startswith(("attn_output", "ffn_down")) else 1.0
                    nn.init.normal_(matrix, std=quiet * 0.5 / math.sqrt(matrix.size(1)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, self.turns)
        return functional.linear(self.output_norm(x), self.token_embd.weight)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _turns(head_width: int) -> tuple[Tensor, Tensor]:
    speeds = 1.0 / ROPE_BASE ** (torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(ROW_TOKENS), speeds)
    return angles.cos(), angles.sin()


def _rotated(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE over interleaved pairs, as llama.cpp expects of this architecture: nothing needs to be permuted on export."""
    cosine, sine = turns
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


def train(shape: Shape, tokenizer: Tokenizer, *, steps: int, seed: int, threads: int) -> Network:
    """Train from nothing on fresh text; prints a line every fifty steps."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    network = Network(shape, len(tokenizer.tokens))
    matrices = [matrix for matrix in network.blk.parameters() if matrix.ndim == 2]
    chosen = {id(matrix) for matrix in matrices}
    others = [values for values in network.parameters() if id(values) not in chosen]
    optimizers = (
        (torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01), MATRIX_RATE),
        (torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0), OTHER_RATE),
    )
    rng, started = Random(seed), time.process_time()
    for step in range(steps):
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * _schedule(step, steps)
        loss = _loss(network, _batch(tokenizer, rng))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d} of {steps}  loss {loss.item():.3f}  {time.process_time() - started:.0f} CPU s", flush=True)
    return network


def _schedule(step: int, steps: int) -> float:
    """A short warm-up, a flat part, then down to almost nothing."""
    done = step / steps
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1.0 if done < FLAT_PART else max(0.02, (1 - done) / (1 - FLAT_PART)))


def _loss(network: Network, rows: Tensor) -> Tensor:
    return functional.cross_entropy(network(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def _batch(tokenizer: Tokenizer, rng: Random) -> Tensor:
    """Rows of whole conversations from their beginning, the last one cut: what a chat looks like to the model."""
    rows = []
    for _ in range(BATCH_ROWS):
        row: list[int] = []
        while len(row) <= ROW_TOKENS:
            row += tokenizer.encode(conversation(rng))
        rows.append(row[: ROW_TOKENS + 1])
    return torch.tensor(rows)


def export(network: Network) -> Weights:
    """The weights under their GGUF names."""
    return {name: values.detach().float().numpy() for name, values in network.named_parameters()}
