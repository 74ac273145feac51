"""Tools for a model whose chat template knows of none: told in plain messages, in Hermes' words (pure).

The words are those that most models with tools have seen in training, so some of them call well. All of it is text of messages:
if one of these marks is a control token after all, it is not taken for one here.
"""

import json
from collections.abc import Sequence

import msgspec

from meshnode import tools
from meshnode.inference import Message

_INTRODUCTION = """\
You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def described(messages: Sequence[Message], offered: str | None, *, system: bool = True) -> tuple[Message, ...]:
    """`messages` with the tools of the JSON text `offered` told to the model, and with earlier calls and results as text.

    Without `system` the tools are told in the first message, for templates that take no system message. Raises InvalidRequest for
    calls that are none.
    """
    joined: list[Message] = []
    before = ""
    for message in messages:
        # Templates mostly want user and assistant in turn, so results join each other and what the user says next.
        told = _retold(message)
        if before == "tool" and told.role == "user":
            told = Message(role="user", content=f"{joined.pop().content}\n{told.content}")
        joined.append(told)
        before = message.role
    return tuple(_introduced(joined, offered, system=system) if offered is not None else joined)


def _introduced(messages: list[Message], offered: str, *, system: bool) -> list[Message]:
    signatures = "\n".join(bytes(tool).decode() for tool in msgspec.json.decode(offered, type=list[msgspec.Raw]))
    text = _INTRODUCTION.format(signatures=signatures)
    role = "system" if system else "user"
    if messages and messages[0].role == role:
        said = (messages[0].content, text) if system else (text, messages[0].content)
        return [msgspec.structs.replace(messages[0], content="\n\n".join(said)), *messages[1:]]
    return [Message(role=role, content=text), *messages]


def _retold(message: Message) -> Message:
    if message.role == "tool":
        return Message(role="user", content=f"<tool_response>\n{message.content}\n</tool_response>")
    if message.tool_calls is None:
        return message
    made = [_written(call.function) for call in tools.calls(message.tool_calls, "messages")]
    return Message(role=message.role, content="\n".join([message.content, *made] if message.content else made))


def _written(call: tools.Called) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'
