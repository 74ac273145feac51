"""A node written from the specification alone is a member like any other."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate
from processes import NodeProcess, mesh_of, wait_until

from protocol import stranger

IDENTITY = json.loads((Path(__file__).parents[2] / "protocol/vectors/identity.json").read_text())


@contextmanager
def joined(node: NodeProcess, directory: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A stranger that dials `node`, and the file into which it tells what happens to it."""
    host, _, port = node.mesh_address.rpartition(":")
    told = directory / "stranger.out"
    command = [sys.executable, stranger.__file__, str(directory / "token"), host, port, "--seconds", "60", *flags]
    with told.open("w") as output, subprocess.Popen(command, stdout=output) as process:
        try:
            yield process, told
        finally:
            process.kill()


def events(told: Path, kind: str) -> list[dict[str, Any]]:
    """Those of one kind so far; a line that is still being written is left for the next look."""
    lines = [json.loads(line) for line in told.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["event"] == kind]


def wait_for(told: Path, kind: str, count: int = 1) -> list[dict[str, Any]]:
    return wait_until(lambda: found if len(found := events(told, kind)) >= count else None, f"{kind} of the stranger")


@pytest.mark.slow
def test_it_is_a_routable_member_that_agrees_on_the_state_and_then_has_left(tmp_path: Path) -> None:
    with mesh_of(tmp_path) as start:
        linked = start("linked", "--no-worker")
        third = start("third", "--no-worker", peer=linked)
        with joined(linked, tmp_path) as (process, told):
            wait_until(lambda: linked.member("stranger").get("routable"), "the stranger routable")
            wait_until(lambda: third.member("stranger"), "the stranger known to a node that it has no link with")
            members = {member["name"]: member["id"] for member in wait_for(told, "member", 2)}
            wait_for(told, "hash")
            alive = linked.member("stranger")
            process.terminate()
            status = process.wait(10)
            wait_until(lambda: third.member("stranger")["state"] == "left", "the leave told on")

        assert (alive["state"], alive["version"]) == ("alive", "0")
        assert members == {name: linked.member(name)["id"] for name in ("linked", "third")}
        assert linked.member("stranger")["state"] == "left"
        assert status == 0
        assert events(told, "left")


@pytest.mark.slow
def test_it_is_streamed_an_answer_of_a_model(tmp_path: Path) -> None:
    with mesh_of(tmp_path) as start:
        node = start("server")
        with joined(node, tmp_path, "--model", "demo") as (_, told):
            [end] = wait_for(told, "end")
            chunks = events(told, "chunk")

        assert end["tokens"] > 1
        assert len(chunks) > 1
        assert "".join(chunk["text"] for chunk in chunks)


@pytest.mark.parametrize("vector", IDENTITY["tokens"], ids=lambda vector: str(vector["name"]))
def test_it_derives_the_authority_of_the_vectors(vector: dict[str, str]) -> None:
    ca = stranger.ca_key_of(vector["text"])

    assert ca.private_bytes_raw().hex() == vector["ca_seed"]
    assert stranger.fingerprint(ca.public_key(), 8).hex() == vector["mesh_id"]
    assert stranger.certificate(ca, ca.public_key(), 1).public_bytes(Encoding.DER).hex() == vector["ca_certificate"]


@pytest.mark.parametrize("vector", IDENTITY["invalid_tokens"], ids=lambda vector: str(vector["name"]))
def test_it_refuses_a_token_that_is_none(vector: dict[str, str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (which words it has for it is its own affair)
        stranger.ca_key_of(vector["text"])


@pytest.mark.parametrize("vector", IDENTITY["nodes"], ids=lambda vector: str(vector["name"]))
def test_it_gives_a_node_the_id_of_the_vectors(vector: dict[str, str]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["private_seed"]))

    assert stranger.fingerprint(key.public_key(), 16).hex() == vector["node_id"]


@pytest.mark.parametrize("vector", IDENTITY["leaves"], ids=lambda vector: str(vector["name"]))
def test_it_signs_the_leaf_of_the_vectors(vector: dict[str, str]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["private_seed"]))
    serial = load_der_x509_certificate(bytes.fromhex(vector["certificate"])).serial_number
    leaf = stranger.certificate(stranger.ca_key_of(vector["token"]), key.public_key(), serial)

    assert leaf.public_bytes(Encoding.DER).hex() == vector["certificate"]
