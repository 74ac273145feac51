"""Start three nodes in a temporary directory, ask the third for the model of the first, show the mesh, stop them all."""

import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

QUESTION = "Tell me a story about a fox."
START_LIMIT_S = 60.0
"""For a slow machine; a usual one needs two seconds."""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="meshnode-demo-") as directory, ExitStack() as running:
        base = Path(directory)
        token = base / "token"
        token.write_text(meshnode("token", "new", "--data-dir", str(base / "alpha")))
        print("Starting three nodes: alpha serves a model, beta and gamma have none.")
        alpha = running.enter_context(node("alpha", base))
        for name in ("beta", "gamma"):
            gamma = running.enter_context(node(name, base, "--no-worker", "--token-file", str(token), "--peer", alpha["mesh"][0]))
        wait_for("the model to be known on gamma", lambda: "demo" in models(gamma["api"]))
        print(f"\nAsking gamma (http://{gamma['api']}): {QUESTION}\n")
        serving = stream(gamma["api"], QUESTION)
        print(f"\n\nAnswered by: {serving}\n")
        print(meshnode("status", "--data-dir", str(base / "gamma")))
        return 0 if serving == "alpha" else 1


def meshnode(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-m", "meshnode", *arguments], check=True, capture_output=True, text=True).stdout


@contextmanager
def node(name: str, base: Path, *flags: str) -> Iterator[dict[str, Any]]:
    """A running node; yields its run file. It is stopped as a person would stop it."""
    data_dir = base / name
    ports = ["--api", "127.0.0.1:0", "--mesh", "127.0.0.1:0"]
    with (base / f"{name}.log").open("w+") as log:
        command = [sys.executable, "-m", "meshnode", "up", "--name", name, "--data-dir", str(data_dir), *ports, *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_for(f"{name} to start", lambda: (data_dir / "run.json").exists() or process.poll() is not None)
            if process.poll() is not None:
                sys.exit(f"{name} did not start:\n{Path(log.name).read_text()}")
            yield json.loads((data_dir / "run.json").read_text())
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def wait_for(what: str, condition: Any) -> None:
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > START_LIMIT_S:
            sys.exit(f"Waited {START_LIMIT_S:.0f} s for {what}.")
        time.sleep(0.05)


def models(api: str) -> list[str]:
    connection = http.client.HTTPConnection(api, timeout=10)
    connection.request("GET", "/v1/models")
    found = [model["id"] for model in json.load(connection.getresponse())["data"]]
    connection.close()
    return found


def stream(api: str, question: str) -> str:
    """Print the answer as it comes; returns the name of the node that gave it."""
    connection = http.client.HTTPConnection(api, timeout=60)
    body = {"model": "demo", "stream": True, "temperature": 0, "messages": [{"role": "user", "content": question}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"The node answered {answer.status}: {answer.read().decode()}")
    for line in answer:
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                print(choice["delta"].get("content") or "", end="", flush=True)
    connection.close()
    return answer.getheader("x-meshnode-node") or "nobody"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
