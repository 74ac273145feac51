"""The local worker: one child process per loaded model, which owns llama.cpp (design D13).

    supervisor   parent side, trio: `Worker`, a Backend; checks the file, starts the child, restarts it, routes its events
    child        parent side, trio: one life of the child process: start, frames both ways, last words, orderly end
    process      the child's main loop: commands in, one engine step, one message out
    engine       which sequence gets which rows of the next batch; knows nothing of llama.cpp, sockets or wall clocks
    llama        the Runtime under the engine, and the only module that imports llama_cpp
    renderer     the child's own child, in which the model's chat template runs
    reader       takes what a model writes apart: thoughts, text, calls; with `dialect`, its marks, and `calls`, what they hold
    template, content, conversation, fallback, prompt, sampling, text, gguf, digest, machine, protocol    the parts, one noun each

The parent imports neither llama_cpp nor numpy nor jinja2: a node without the extra `llama` still runs and says what is missing.
"""
