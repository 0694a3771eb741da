"""Conversations as a language model reads them: through its chat template, with what it is to answer marked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trainer.submodel import TrainerError

Message = Mapping[str, str]
"""`role`: system, user or assistant; `content`."""

ANSWERING = "assistant"


@dataclass(frozen=True)
class Written:
    """A conversation as one text, and where in it the answers stand."""

    text: str
    answers: tuple[tuple[int, int], ...]  # first character of each, and the one after its end
    lost: int = 0  # answers that cannot be told from the rest


def plain(prompt: str, answer: str) -> Written:
    """Without a template: the answer follows the prompt."""
    return Written(prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def as_messages(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": ANSWERING, "content": answer}]


def checked_messages(messages: Any, place: str) -> list[Message]:
    """Raises TrainerError for anything else than messages with a role and a content, one of them an answer."""
    if not isinstance(messages, list) or not messages:
        raise TrainerError(f"{place}: messages: a {type(messages).__name__}; allowed is a list of one message and more")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise TrainerError(f"{place}: message {number} is {str(message)[:60]}; allowed are role and content, both texts")
    if not any(message["role"] == ANSWERING for message in messages):
        raise TrainerError(f"{place}: no message has the role {ANSWERING!r}; allowed are conversations with an answer")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


class Template:
    """A checkpoint's chat template, in a sandbox and with the functions that transformers gives it. Raises TrainerError for
    one that cannot be read."""

    def __init__(self, source: str, marks: Mapping[str, str]) -> None:
        """`marks`: names of special tokens (`bos_token`, `eos_token`) and how they are written."""
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], keep_trailing_newline=False
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        self.marks = dict(marks)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TrainerError(f"chat template: cannot be read: {error}") from None

    def text(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """`asks`: with what stands before an answer that is to come. Raises TrainerError for what the template refuses."""
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=asks, **self.marks)
        except Exception as error:  # whatever the template does wrong
            raise TrainerError(f"chat template: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None

    def written(self, messages: Sequence[Message], place: Callable[[], str]) -> Written:
        """The answers are what follows when the template has written all before them and asks. Raises TrainerError where none
        can be told from the rest."""
        whole = self.text(messages)
        answers = []
        for number, message in enumerate(messages):
            if message["role"] != ANSWERING:
                continue
            before, after = self.text(messages[:number], asks=True), self.text(messages[: number + 1])
            if whole.startswith(before) and whole.startswith(after) and len(after) > len(before):
                answers.append((len(before), len(after)))
        if not answers:
            raise TrainerError(
                f"{place()}: the chat template writes no answer behind what it asks with; give prompt and answer"
            )
        return Written(whole, tuple(answers), sum(message["role"] == ANSWERING for message in messages) - len(answers))
