"""How the demo model is made: a grammar that writes its own text, a tokenizer, a small network, a GGUF file."""
