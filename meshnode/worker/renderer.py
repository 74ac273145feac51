"""The process in which a model's chat template runs, and its handle in the worker (security rule 16).

The template is code by a stranger. It is compiled and run in a process of its own with 1 GiB of address space, and killed when it
takes longer than `LIMIT_S`: memory and time are then nobody else's. The first compile comes with a test render, before the model
is offered to anybody. The process stays for the model's life, since starting one takes longer than a thousand renders; one that
was killed is started anew with the next request.

Rendering is awaited: for an honest template that is a fraction of a millisecond between two engine steps; a hostile one costs its
own model's streams `LIMIT_S`, and nobody else's.
"""

import os
import socket
import subprocess
import sys

import msgspec

from meshnode.errors import ConfigurationError, InvalidRequest
from meshnode.inference import Message
from meshnode.names import printable
from meshnode.worker import confinement
from meshnode.worker.fallback import described
from meshnode.worker.protocol import (
    Compile,
    Frames,
    FrameTooLarge,
    FromRenderer,
    NotRendered,
    Region,
    Render,
    Rendered,
    Started,
    ToRenderer,
    frame,
)

ADDRESS_SPACE = 1024 * 1024 * 1024
LIMIT_S = 5.0
START_S = 60.0
"""For the interpreter to come up on a machine that is busy or wakes a disk."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For a model without a template of its own."""
_PROBE = "meshnode_probe"
_PROBE_TOOLS = f'[{{"type":"function","function":{{"name":"{_PROBE}","description":"","parameters":{{"type":"object"}}}}}}]'
_TEST = (Message(role="user", content="Hello"), Message(role="assistant", content="Hi"), Message(role="user", content="Bye"))


class Renderer:
    """Renders conversations with one template. Not thread-safe."""

    def __init__(self) -> None:
        self.takes_tools = False
        """Whether the template shows the model what tools there are; known after `compile`."""
        self._compile: Compile | None = None
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._frames = Frames()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                confinement.command(__name__, str(theirs.fileno()), str(os.getpid())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=confinement.environment(os.environ),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def compile(self, template: str, *, bos: str, eos: str) -> None:
        """Take `template`; raises ConfigurationError when it is not fit to run. To be called once, first."""
        self._compile = Compile(template=template, bos=bos, eos=eos)
        answer = self._compiled()
        if answer:
            raise ConfigurationError(f"Its chat template is refused: {answer.reason}.", hint="Use another build of the model.")
        probed = self._ask(Render(messages=_TEST[:1], tools=_PROBE_TOOLS))
        self.takes_tools = isinstance(probed, Rendered) and any(_PROBE in region.text for region in probed.regions)

    def _compiled(self) -> NotRendered | None:
        assert self._compile is not None
        try:
            self._receive(START_S)
        except OSError as error:
            raise RuntimeError("the process for the chat template does not start") from error
        answer = self._ask(self._compile)
        return answer if isinstance(answer, NotRendered) and answer.broken else None

    def render(self, messages: tuple[Message, ...], tools: str | None = None, thinking: bool | None = None) -> tuple[Region, ...]:
        """The prompt for `messages`, in regions, with the tools of the JSON text `tools`; see `Request` for `thinking`.

        Raises InvalidRequest when the template will not or cannot make one. A template that takes no tools gets them in messages.
        """
        if self.takes_tools or (tools is None and not any(map(_uses_tools, messages))):
            answer = self._asked(Render(messages=messages, tools=tools, thinking=thinking))
        else:
            answer = self._asked(Render(messages=described(messages, tools), thinking=thinking))
            refused = isinstance(answer, NotRendered) and not answer.broken
            if refused and tools is not None and messages[0].role != "system":  # so it may be our system message
                answer = self._asked(Render(messages=described(messages, tools, system=False), thinking=thinking))
        if isinstance(answer, Rendered):
            return answer.regions
        verb = "fails on" if answer.broken else "does not take"
        raise InvalidRequest(f"The model's chat template {verb} these messages: {printable(answer.reason)}.", param="messages")

    def _asked(self, question: Render) -> Rendered | NotRendered:
        if self._process.poll() is not None:
            self._start()
            self._compiled()
        return self._ask(question)

    def _ask(self, question: ToRenderer) -> Rendered | NotRendered:
        try:
            self._socket.settimeout(LIMIT_S)
            self._socket.sendall(frame(question))
            answer = self._receive(LIMIT_S)
        except FrameTooLarge:
            return NotRendered("the messages are too long", broken=False)
        except TimeoutError:
            self.close()
            return NotRendered(f"it takes longer than {LIMIT_S:.0f} s", broken=True)
        except OSError:
            self.close()
            return NotRendered("it ends the process that it runs in", broken=True)
        assert not isinstance(answer, Started)
        return answer

    def _receive(self, timeout: float) -> FromRenderer:
        """The next message. The time limit is for each piece of it, and pieces of an honest one follow each other at once."""
        self._socket.settimeout(timeout)
        while data := self._socket.recv(1 << 20):
            for body in self._frames.feed(data):
                answer: FromRenderer = msgspec.msgpack.decode(body, type=FromRenderer)
                return answer  # one question, one answer: nothing can follow in the same data
        raise ConnectionResetError

    def close(self) -> None:
        """End the process; the next `render` starts another."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def _uses_tools(message: Message) -> bool:
    return message.role == "tool" or message.tool_calls is not None


def main() -> None:
    """The renderer process: one answer to each message, until the other end is gone."""
    # Imported here: the worker holds a handle of this module, and must not load the sandbox.
    from meshnode.worker.content import Broken, Refused
    from meshnode.worker.template import Template

    channel = socket.socket(fileno=int(sys.argv[1]))
    confinement.confine(parent=int(sys.argv[2]), address_space=ADDRESS_SPACE)
    channel.sendall(frame(Started()))
    frames = Frames()
    template: Template | None = None
    while data := channel.recv(1 << 20):
        for body in frames.feed(data):
            message: ToRenderer = msgspec.msgpack.decode(body, type=ToRenderer)
            answer: FromRenderer
            try:
                if isinstance(message, Compile):
                    template = Template(message.template, bos=message.bos, eos=message.eos)
                assert template is not None
                asked = message if isinstance(message, Render) else Render(messages=_TEST)
                answer = Rendered(template.render(asked.messages, asked.tools, asked.thinking))
            except (Refused, Broken) as error:
                answer = NotRendered(str(error), broken=isinstance(error, Broken))
            channel.sendall(frame(answer))


if __name__ == "__main__":
    main()
