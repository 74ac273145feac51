"""Templates as published models have them, and as an enemy would write them; messages that want to be markup."""

import pytest

pytest.importorskip("jinja2")

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.inference import Message
from meshnode.worker.content import Broken, Refused
from meshnode.worker.protocol import Region
from meshnode.worker.renderer import CHATML
from meshnode.worker.template import MAX_TEMPLATE, Template

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token +"
    " content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
REASONING = (
    "{%- for message in messages %}{%- set content = message.content %}{%- if message.role == 'assistant' and '</think>' in"
    " content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}{%- endfor %}"
)


def said(*texts: str) -> list[Message]:
    return [Message(role=("user", "assistant")[index % 2], content=text) for index, text in enumerate(texts)]


def regions(source: str, *texts: str) -> tuple[Region, ...]:
    return Template(source, bos="<s>", eos="</s>").render(said(*texts))


def rendered(source: str, *texts: str) -> str:
    return "".join(region.text for region in regions(source, *texts))


def theirs(source: str, *texts: str) -> list[str]:
    """The regions that count as the messages' own."""
    return [region.text for region in regions(source, *texts) if not region.ours]


def test_chatml_renders_as_it_is_known() -> None:
    assert rendered(CHATML, "Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_llama3_renders_as_it_is_known() -> None:
    assert rendered(LLAMA3, " Hi \n") == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_gemma_renders_as_it_is_known() -> None:
    assert rendered(GEMMA, "a ", "b") == (
        "<s><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_template_that_cuts_old_reasoning_away_works_on_marked_text() -> None:
    assert (
        rendered(REASONING, "Hi", "<think>\nhm\n</think>\n\nHello")
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )
    assert theirs(REASONING, "Hi", "<think>x</think>Hello") == ["user", "Hi", "assistant", "Hello"]


def test_what_a_message_says_and_who_says_it_is_marked_as_theirs() -> None:
    assert theirs(LLAMA3, "  <|eot_id|> ") == ["user", "<|eot_id|>"]


def test_a_template_may_refuse_messages_in_its_own_words() -> None:
    with pytest.raises(Refused, match=r"^System role not supported$"):
        Template(GEMMA, bos="", eos="").render([Message(role="system", content="x")])


@pytest.mark.parametrize(
    "expression",
    [
        "m.content", "m['content']", "'[' + m.content + ']'", "'[' ~ m.content ~ ']'", "m.content|trim", "m.content.strip()",
        "m.content|upper", "m.content|replace('x', 'y')", "m.content.replace('x', '<')", "m.content|e", "m.content|string",
        "m.content|tojson", "m|tojson", "m", "[m.content]", "m.content|list|join('')", "m.content.split(' ')|join(' ')",
        "m.content[0:]", "m.content[::-1]|reverse", "'%s' % m.content", "'%r' % [m.content]", "'{}'.format(m.content)",
        "m.content|first",
        "m.content|title", "m.content|capitalize", "[m.content, m.content]|join('|')", "' '.join([m.content])", "m.content|safe",
        "m.content|indent(2)", "(m.content ~ '!')|upper", "m.content.partition(' ')|last", "m.content.splitlines()|last",
        "messages|map(attribute='content')|join", "m.values()|list|last", "(m.items()|list)[1][1]", "m.content or ''",
        "m.content if m.content is string else ''", "namespace(x=m.content).x", "dict(x=m.content).x",
        "'a'.replace('a', m.content)",
        "m.content|default('')", "[m.content]|sort|first", "[m.content]|unique|list|first", "m.content|lower|trim",
    ],
)  # fmt: skip
def test_no_way_of_writing_a_message_writes_it_as_markup(expression: str) -> None:
    source = "{% set m = messages[0] %}{{ " + expression + " }}"
    own = "".join(region.text for region in regions(source, "xz <q> Z") if region.ours)

    assert "z" not in own.lower()


def test_blocks_macros_and_loops_keep_the_marks() -> None:
    source = (
        "{% macro f(x) %}({{ x }}){% endmacro %}{% set b %}{{ messages[0].content }}{% endset %}{{ b }}{{ f(b) }}"
        "{% for c in messages[0].content %}{{ c }}{% endfor %}{% filter upper %}{{ b }}{% endfilter %}"
    )

    assert "".join(theirs(source, "xz")) == "xzxzxzXZ"


@settings(max_examples=50)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_every_message_comes_out_marked_and_whole(texts: list[str]) -> None:
    template = Template("{% for m in messages %}[{{ m.content }}]{% endfor %}", bos="", eos="")
    found = template.render(said(*texts))

    assert "".join(region.text for region in found) == "".join(f"[{text}]" for text in texts)
    assert [region.text for region in found if not region.ours] == [text for text in texts if text]


def test_messages_cannot_forge_the_marks() -> None:
    marks = "".join(chr(0xF0000 + index) for index in range(64))

    assert theirs("{{ messages[0].content }}<", marks) == [marks]


def test_a_template_that_cuts_a_mark_off_is_refused() -> None:
    with pytest.raises(Broken, match="takes text apart"):
        regions("{{ ('' ~ messages[0].content)[1:] }}", "Hi")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 300000000 }}", "{{ 300000000 * 'a' }}", "{{ [0] * 300000000 }}", "{{ 9 ** 999999999 }}", "{{ 2 ** 64 ** 64 }}",
        "{{ '%999999999d' % 1 }}", "{{ '%*d' % (999999999, 1) }}", "{{ '{:>999999999}'.format(1) }}",
        "{{ 'a'.center(999999999) }}",
        "{{ 'a'.ljust(999999999) }}", "{{ 'a'.rjust(999999999) }}", "{{ 'a'.zfill(999999999) }}",
        "{{ 'a'.expandtabs(99999999) }}",
        "{{ 'a'|center(999999999) }}", "{{ 'a'|indent(999999999) }}", "{{ 'a'|indent('b' ~ ('c'|indent(9999))) }}",
        "{{ 'a'|wordwrap }}", "{{ 'a'|format }}", "{{ 'a'|attr('x') }}", "{{ [1]|tojson(indent=99999999) }}",
        "{{ range(999999999) }}", "{{ lipsum(n=100000) }}", "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}",
        "{{ messages[0].content.raw.x.y }}", "{{ messages[0].content.marks.open }}", "{{ messages[0].content.like('x') }}",
        "{{ self.__init__.__globals__ }}", "{{ cycler.__init__.__globals__.os }}", "{% include 'x' %}", "{% import 'x' as y %}",
        "{{ strftime_now('x' * 10) }}", "{{ 1 / 0 }}", "{{ nothing.at.all }}", "{% for x in %}",
        "{{ " + "(" * 500 + ")" * 500 + " }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set x = 'a'|replace('a', 'b' ~ ('c'|string)) %}{{ x|format }}",
        "x" * (MAX_TEMPLATE + 1),
    ],
)  # fmt: skip
def test_a_hostile_or_wrong_template_is_refused_at_once(source: str) -> None:
    with pytest.raises(Broken):
        regions(source, "Hi")


@pytest.mark.parametrize(
    "step",
    [
        "{% set n.x = n.x ~ n.x %}", "{% set n.x = n.x + n.x %}", "{% set n.x = n.x|replace('a', 'aaaaaaaa') %}",
        "{% set n.x = [n.x, n.x]|join %}", "{% set n.x = n.x.replace('a', 'aa') %}", "{% set n.x = '%s%s' % (n.x, n.x) %}",
        "{% set n.x = '{}{}'.format(n.x, n.x) %}", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}",
        "{% set n.x = f(n.x) %}", "{% set n.x = n.x.join([n.x, n.x]) %}", "{% set n.x = [n.x, n.x]|tojson %}",
    ],
)  # fmt: skip
def test_text_that_grows_step_by_step_hits_the_cap(step: str) -> None:
    macro = "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}"
    with pytest.raises(Broken, match="grows without bound"):
        regions(macro + "{% set n = namespace(x='aaaa') %}{% for _ in range(99) %}" + step + "{% endfor %}", "Hi")


def test_an_output_without_end_hits_the_cap() -> None:
    with pytest.raises(Broken, match="output is too long"):
        regions("{% for _ in range(9999) %}{% for _ in range(9999) %}" + "a" * 1000 + "{% endfor %}{% endfor %}", "Hi")


def test_the_failure_of_a_template_does_not_quote_a_message() -> None:
    with pytest.raises(Broken) as caught:
        regions("{{ messages[0].content|int('x') + messages[0].content|tojson|int * [] }}", "secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("thinking", "made"), [(None, "as ever"), (True, "thinks"), (False, "does not")])
def test_a_template_that_can_think_or_not_is_told_which(thinking: bool | None, made: str) -> None:
    source = "{% if enable_thinking is not defined %}as ever{% elif enable_thinking %}thinks{% else %}does not{% endif %}"

    assert Template(source, bos="", eos="").render(said("Hi"), None, thinking) == (Region(text=made, ours=True),)


def test_dates_loop_controls_and_generation_tags_are_known() -> None:
    source = (
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}{% generation %}g{% endgeneration %}"
    )

    assert rendered(source, "Hi") == "1g"
    assert rendered("{{ strftime_now('%Y') | length }}", "Hi") == "4"
