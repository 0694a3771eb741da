"""Texts over HTTP, in JSON or as `text/plain`: within limits, as the bundle's tokenizer makes token ids of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from exporter.bundle import Bundle, BundleError
from selector.service.predict.arrays import ArrayError
from selector.service.predict.schemas import PredictRequest
from selector.service.web.problems import Problem, without_folder, wrong_field

if TYPE_CHECKING:
    from selector.run import Encoded, TextReader
    from selector.service.predict.predictor import PredictOptions

PLAIN = "text/plain"


def texts_of(query: PredictRequest) -> list[Any] | None:
    """The texts of a JSON body, or pairs of them; None where it has inputs. Raises Problem 422 naming the field."""
    if query.inputs is not None:
        for name in ("text", "text_pair"):
            if getattr(query, name) is not None:
                raise wrong_field(name, getattr(query, name), "stands beside inputs; allowed is one of both")
        return None
    if query.text is None:
        raise wrong_field("inputs", None, "Field required: inputs, or text")
    texts = _list(query.text)
    if query.text_pair is None:
        return texts
    seconds = _list(query.text_pair)
    if len(seconds) != len(texts):
        raise wrong_field("text_pair", None, f"has {len(seconds)} texts; allowed is one for each of {len(texts)} in text")
    return list(zip(texts, seconds, strict=True))


def plain_text(data: bytes, charset: str | None) -> str:
    """The text that a body is. Raises Problem: 415 for another charset than UTF-8, 422 for bytes that are none."""
    if (charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(415, f"charset {charset!r}; allowed is utf-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise wrong_field("text", None, f"byte {error.start} of the body is no UTF-8; allowed is text in UTF-8") from None


def encoded(bundle: Bundle, reader: Callable[[Bundle], TextReader], texts: Sequence[Any], options: PredictOptions) -> Encoded:
    """The texts, or pairs of them, as token ids. Raises Problem: 422 for texts that the bundle does not take or that are too
    many or too long, 501 where this service cannot read texts, 500 for a tokenizer that it cannot read."""
    from selector.run.inputs import InputError

    if not 1 <= len(texts) <= options.examples:
        raise wrong_field("text", None, f"{len(texts)} texts; allowed are 1 to {options.examples} per request")
    characters = sum(len(part) for one in texts for part in ((one,) if isinstance(one, str) else one))
    if characters > options.text_characters:
        raise wrong_field("text", None, f"{characters} characters; allowed are {options.text_characters} per request")
    try:
        found = reader(bundle).encode(texts)
        shape = (len(found), max(found.lengths))
        for spec in bundle.manifest.inputs:
            options.shapes.check(spec, shape if found.spec.padding == "longest" else (shape[0], found.spec.max_tokens))
    except ModuleNotFoundError as error:
        raise Problem(501, f"this service cannot read texts: it has no {error.name}, which the extra `text` brings") from None
    except BundleError as error:
        raise Problem(500, without_folder(error, bundle)) from None
    except (InputError, ArrayError) as error:
        raise wrong_field("text", None, str(error), str(error)) from None
    return found


def _list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
