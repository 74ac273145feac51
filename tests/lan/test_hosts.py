"""Nodes on hosts of the LAN: started, asked and stopped as the other tests here do it."""

from pathlib import Path
from typing import Any

from lan.hosts import LanNode
from netlan import Lan

QUESTION: Any = [{"role": "user", "content": "Tell me a story about a fox."}]


def test_a_node_on_one_host_streams_the_answer_of_a_node_on_another(lan: Lan, tmp_path: Path) -> None:
    alpha = LanNode(lan.host("alpha"), tmp_path, worker=True)
    beta = LanNode(lan.host("beta"), tmp_path, "--peer", alpha.host.address)
    beta.wait_for_model("demo")

    with beta.client().chat.completions.create(model="demo", messages=QUESTION, max_tokens=20, stream=True) as answer:
        texts = [chunk.choices[0].delta.content for chunk in answer if chunk.choices and chunk.choices[0].delta.content]

    assert len(texts) > 5
    assert "alpha" in beta.meshnode("status").stdout
    assert beta.members()["alpha"]["routable"]
    assert beta.stop() == 0


def test_a_node_that_was_killed_starts_again_under_its_name(lan: Lan, tmp_path: Path) -> None:
    first = LanNode(lan.host("alpha"), tmp_path)
    node_id = first.status()["node"]["id"]
    first.kill()

    again = LanNode(lan.host("alpha"), tmp_path)

    assert again.status()["node"]["id"] == node_id
