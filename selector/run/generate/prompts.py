"""`Prompts`: the tokenizer of a bundle that generates text. A text, or messages, become token ids, and these text again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from exporter.bundle import BundleError
from selector.run.generate.chat import ChatTemplate, Message
from selector.run.generate.described import Described
from selector.run.generate.detokenize import Detokenizer
from selector.run.inputs import InputError
from selector.run.text import check_text
from selector.ship.standing import place_of

if TYPE_CHECKING:  # the library comes with the extra `text`
    from tokenizers import Tokenizer

Prompt = str | Sequence[int] | Sequence[Message]
"""A text that goes on, token ids, or messages whose answer is wanted."""


class Prompts:
    """For any number of threads."""

    def __init__(self, described: Described) -> None:
        self._described = described

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises BundleError where it cannot be read, ModuleNotFoundError where the library `tokenizers` is not installed."""
        from tokenizers import Tokenizer

        bundle, name = self._described.bundle, self._described.tokenizer
        if name not in bundle.manifest.files:
            raise BundleError(f"{bundle.path}: has no file {name!r}; allowed here are prompts of token ids")
        place = place_of(bundle)
        try:
            tokenizer: Tokenizer = Tokenizer.from_file(str(place / name))
        except Exception as error:  # the library raises nothing narrower
            raise BundleError(f"{bundle.path / name}: cannot be read as a tokenizer: {error}") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @property
    def has_text(self) -> bool:
        """Whether there is a tokenizer; without one only token ids go in and out."""
        return self._described.tokenizer in self._described.bundle.manifest.files

    @cached_property
    def template(self) -> ChatTemplate:
        """Raises InputError where the bundle has none, BundleError where it is none."""
        if self._described.template is None:
            raise InputError("messages: this bundle has no chat template; allowed is a prompt")
        bos, eos = self._described.bos, self._described.eos[:1]
        tokens = {"bos_token": bos, "eos_token": eos[0] if eos else None}
        named = {name: None if token is None else self.tokenizer.id_to_token(token) for name, token in tokens.items()}
        return ChatTemplate(self._described.template, **named)

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt. Raises InputError for one that is none."""
        if isinstance(prompt, str):
            return self._encoded("prompt", prompt, special=True)
        if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
            if prompt and isinstance(prompt[0], Mapping):
                return self._chat(prompt)  # type: ignore[arg-type]
            return list(prompt)  # type: ignore[arg-type]
        kind = type(prompt).__name__
        raise InputError(f"prompt: is a {kind}; allowed are a text, token ids, and messages {{'role': …, 'content': …}}")

    def detokenizer(self) -> Detokenizer | None:
        """For a new text; None where there is no tokenizer."""
        return Detokenizer(self.tokenizer) if self.has_text else None

    def _chat(self, messages: Sequence[Message]) -> list[int]:
        text = self.template.render(messages)
        return self._encoded("messages", text, special=False)  # the template has them

    def _encoded(self, name: str, text: str, *, special: bool) -> list[int]:
        check_text(name, text)
        if not text:
            raise InputError(f"{name}: is empty; allowed is a text")
        (encoding,) = self.tokenizer.encode_batch([text], add_special_tokens=special)  # lets other threads run meanwhile
        ids: list[int] = encoding.ids
        return ids
