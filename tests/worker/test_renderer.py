"""The renderer as a real process: what a template does there, it does to nobody else."""

import os
from collections.abc import Iterator

import pytest

pytest.importorskip("jinja2")

from meshnode.errors import ConfigurationError, InvalidRequest
from meshnode.inference import Message
from meshnode.worker import renderer
from meshnode.worker.renderer import CHATML, Renderer

HI = (Message(role="user", content="Hi"),)
BOMB = "{% set n = namespace(x=[0]) %}{% for _ in range(60) %}{% set n.x = n.x|list + n.x|map('string')|list %}{% endfor %}"
"""Memory that no single operation is to blame for."""
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def rendering() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


def test_a_conversation_is_rendered_in_a_process_of_its_own(rendering: Renderer) -> None:
    rendering.compile(CHATML, bos="", eos="")

    for _ in range(2):
        regions = rendering.render(HI)
        assert "".join(region.text for region in regions) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param("{% for %}", "Expected", marks=pytest.mark.slow),
        ("{{ 'a' * 300000000 }}", r"uses \*"),
        pytest.param(BOMB, "MemoryError|ends the process|takes longer", marks=pytest.mark.slow),
    ],
)
def test_a_template_that_is_not_fit_is_refused_before_anybody_asks(rendering: Renderer, template: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        rendering.compile(template, bos="", eos="")


@pytest.mark.slow
def test_a_template_that_never_ends_is_killed(rendering: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer, "LIMIT_S", 0.3)

    with pytest.raises(ConfigurationError, match="takes longer"):
        rendering.compile(ENDLESS, bos="", eos="")


@pytest.mark.slow
def test_a_test_conversation_that_the_template_refuses_is_no_fault(rendering: Renderer) -> None:
    rendering.compile("{{ raise_exception('never') }}", bos="", eos="")

    with pytest.raises(InvalidRequest, match="does not take these messages: never"):
        rendering.render(HI)


@pytest.mark.parametrize("trap", [pytest.param(ENDLESS, marks=pytest.mark.slow), "{{ nothing.at.all }}"])
def test_a_trap_for_one_message_costs_that_request_alone(rendering: Renderer, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    rendering.compile("{% if messages[0].content == 'trap' %}" + trap + "{% endif %}ok", bos="", eos="")
    monkeypatch.setattr(renderer, "LIMIT_S", 1.0)

    with pytest.raises(InvalidRequest, match="fails on these messages"):
        rendering.render((Message(role="user", content="trap"),))
    assert [region.text for region in rendering.render(HI)] == ["ok"]


def test_a_renderer_that_was_killed_is_started_anew(rendering: Renderer) -> None:
    rendering.compile("ok", bos="", eos="")
    os.kill(rendering.pid, 9)

    with pytest.raises(InvalidRequest, match="ends the process"):
        rendering.render(HI)
    assert [region.text for region in rendering.render(HI)] == ["ok"]
