"""Chat templates: messages become the text that a model was trained to continue.

A template is a program that came with a model, so it runs in jinja2's sandbox (no attributes of Python's own, no files, no
imports), and within limits that the sandbox does not have: one that loops for ever, or makes a text without end, is stopped.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from exporter.bundle import BundleError
from selector.run.inputs import InputError

if TYPE_CHECKING:  # the library comes with the extra `text`
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]
SECONDS = 2.0
"""Of a processor's time, that a template may take."""
CHARACTERS = 2**24
"""The most that a text, or another thing that a template makes, may have."""
SOURCE = 2**20
"""Characters of a template."""
ROLES = ("system", "developer", "user", "assistant", "tool")
_WIDTH = re.compile(r"\d{6,}")  # of a format that fills up to so many characters
_NAME = "<chat template>"


class _TooMuch(Exception):
    """What a template does is more than it may."""


class _Refused(Exception):
    """A template's own word for messages that it does not take."""


class ChatTemplate:
    """Of a bundle. Raises BundleError for one that is too long or no template, ModuleNotFoundError where jinja2 is missing."""

    def __init__(self, source: str, **variables: str | None) -> None:
        """`variables`: what it may use besides the messages, such as `bos_token`."""
        from jinja2 import TemplateError

        if len(source) > SOURCE:
            raise BundleError(f"chat template: {len(source)} characters; allowed are {SOURCE}")
        self._variables = {name: value or "" for name, value in variables.items()}
        try:
            self._template = _environment().from_string(source)
            self._template.root_render_func.__code__  # noqa: B018 - compiled now
        except (TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise BundleError(f"chat template: is none: {_words(error)}") from None

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The text. `answer`: with the beginning of the model's answer. Raises InputError for messages that are none or that
        the template refuses, BundleError for a template that takes too long, makes too much or fails."""
        from jinja2 import TemplateError

        given = check_messages(messages)
        try:
            with _Watched():
                text = self._template.render(messages=given, add_generation_prompt=answer, **self._variables)
        except _Refused as error:
            raise InputError(f"messages: the bundle's chat template refuses them: {error}") from None
        except _TooMuch as error:
            raise BundleError(f"chat template: {error}") from None
        except (TemplateError, RecursionError, MemoryError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise BundleError(f"chat template: fails on these messages: {_words(error)}") from None
        if len(text) > CHARACTERS:
            raise BundleError(f"chat template: made {len(text)} characters; allowed are {CHARACTERS}")
        return text


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages, each with its role and what is said. Raises InputError naming the one that is none."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise InputError("messages: allowed are one or more, each {'role': …, 'content': …}")
    found = []
    for place, one in enumerate(messages):
        if not isinstance(one, Mapping):
            raise InputError(f"messages[{place}] = {one!r:.80}: allowed is {{'role': …, 'content': …}}")
        role, content = one.get("role"), one.get("content")
        if role not in ROLES:
            raise InputError(f"messages[{place}].role = {role!r:.80}: allowed are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InputError(f"messages[{place}].content = {content!r:.80}: allowed is a text")
        found.append(dict(one))
    return found


class _Watched:
    """Within it a template's code is followed line by line, and stopped when its time is over: nothing else ends a loop."""

    def __enter__(self) -> None:
        self._end = time.thread_time() + SECONDS  # of this thread: a busy machine is not the template's fault
        self._before = sys.gettrace()
        sys.settrace(self._follow)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _follow(self, frame: FrameType, event: str, _given: Any) -> Any:
        if time.thread_time() > self._end:
            raise _TooMuch(f"takes more than {SECONDS:g} seconds, as one does that loops for ever")
        return self._follow if frame.f_code.co_filename in ("<template>", _NAME) else None


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers has it (`utils/chat_template_utils.py`), with limits."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Code(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802 - jinja2's name
            """`a ~ b`, which jinja2 joins without asking its environment."""
            self.write("environment.joined((")
            for one in node.nodes:
                self.visit(one, frame)
                self.write(", ")
            self.write("))")

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%"))
        code_generator_class = Code
        concat = staticmethod(lambda parts: _joined(parts))

        def joined(self, parts: Iterable[Any]) -> str:
            return _joined(map(str, parts))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operator(operator, left, right)
            return _sized(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as jinja2 has it
            method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps `format`
            _check_call(getattr(method, "__self__", None), (*args, *kwargs.values()))
            return _sized(super().call(__context, __obj, *args, **kwargs))

    made = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], optimized=False)
    made.globals.pop("lipsum")
    made.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    made.filters["tojson"] = _json
    for name, plain in list(made.filters.items()):
        made.filters[name] = _limited(plain)
    return made


def _limited(plain: Any) -> Any:
    """A filter that is refused where it would make too much."""
    from functools import wraps

    from jinja2.nodes import EvalContext
    from jinja2.runtime import Context

    @wraps(plain)  # also what says that it takes the environment
    def limited(*args: Any, **kwargs: Any) -> Any:
        given = [one for one in (*args, *kwargs.values()) if not isinstance(one, Context | EvalContext)]
        _check_call(given[0] if given else None, given[1:])
        return _sized(plain(*args, **kwargs))

    return limited


def _check_operator(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        for one, times in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(times, int) and len(one) * times > CHARACTERS:
                raise _TooMuch(f"repeats {len(one)} characters {times} times; allowed are {CHARACTERS} in all")
    if operator == "%" and isinstance(left, str):
        _check_call(left, (right,))
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator in ("*", "**") and numbers and left.bit_length() * (right if operator == "**" else 1) > 2**16:
        raise _TooMuch(f"computes {left!r:.20} {operator} {right!r:.20}, which is too large")


def _check_call(own: Any, args: Iterable[Any]) -> None:
    """Of a text's or a list's method: what it makes is at most as long as it and its arguments are, multiplied."""
    size = 1 + (len(own) if isinstance(own, str | list | tuple) else 0)
    for one in args:
        if isinstance(one, int) and not isinstance(one, bool) and abs(one) > CHARACTERS:
            raise _TooMuch(f"asks for {one!r:.20} of something; allowed are {CHARACTERS}")
        size *= 1 + (len(one) if isinstance(one, str | list | tuple) else 0)
    if size > 16 * CHARACTERS:
        raise _TooMuch(f"may make {size} characters; allowed are {16 * CHARACTERS}")
    if isinstance(own, str) and ("%" in own or "{" in own) and _WIDTH.search(own) and size > 1:
        raise _TooMuch("fills a text up to a million characters and more")


def _joined(parts: Iterable[str]) -> str:
    found, size = [], 0
    for part in parts:
        size += len(part)
        if size > CHARACTERS:
            raise _TooMuch(f"makes more than {CHARACTERS} characters")
        found.append(part)
    return "".join(found)


def _sized(made: Any) -> Any:
    if isinstance(made, str | list | tuple | dict) and len(made) > CHARACTERS:
        raise _TooMuch(f"makes something of {len(made)} parts; allowed are {CHARACTERS}")
    return made


def _raise(message: str) -> NoReturn:
    raise _Refused(message)


def _json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
