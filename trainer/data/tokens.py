"""From documents to token ids: a vocabulary of word pieces, learned from the training documents.

Shapes: N documents, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.submodel import TrainerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = NDArray[Any]
TOKENIZER_FILE = "tokenizer.json"
LEARN = "learn"
MAX_TOKENS = 128
VOCABULARY = 8000
PADDING, UNKNOWN = 0, 1
END = "<|endoftext|>"


@dataclass(frozen=True)
class TokenOptions:
    """How documents become token ids. Raises TrainerError naming a wrong value."""

    max_tokens: int | None = None  # what is longer is cut at its end; None: 128, with a tokenizer what its checkpoint can take
    vocabulary: int = VOCABULARY  # word pieces at most; more where the documents have more letters
    lowercase: bool = True  # accents are dropped then too
    tokenizer: str | None = None  # a checkpoint's folder or tokenizer.json; "learn": one of that kind; None: ids of one length
    next_token: bool = False  # the target of each token is the one that follows it: what language modelling asks for

    def __post_init__(self) -> None:
        for name in ("max_tokens", "vocabulary"):
            value = getattr(self, name)
            if (type(value) is not int or value < 1) and not (name == "max_tokens" and value is None):
                raise TrainerError(f"{name} = {value!r}: allowed are whole numbers from 1")
        for name in ("lowercase", "next_token"):
            if type(getattr(self, name)) is not bool:
                raise TrainerError(f"{name} = {getattr(self, name)!r}: allowed are true and false")
        if self.tokenizer is not None and (not isinstance(self.tokenizer, str) or not self.tokenizer):
            raise TrainerError(
                f"tokenizer = {self.tokenizer!r}: allowed are a checkpoint's folder, a file {TOKENIZER_FILE}, {LEARN}"
            )
        if self.tokenizer in (None, LEARN):
            return
        for name, default in (("vocabulary", VOCABULARY), ("lowercase", True)):
            if (value := getattr(self, name)) != default:
                raise TrainerError(
                    f"{name} = {value!r}: allowed where a vocabulary is learnt; that of tokenizer = {self.tokenizer!r} stays"
                )

    @property
    def length(self) -> int:
        """T, where every example has that many tokens."""
        return self.max_tokens or MAX_TOKENS

    def preprocessing(self) -> dict[str, Any]:
        """What a device needs to do the same, beside the file of the tokenizer."""
        return {"kind": "text", "tokenizer": TOKENIZER_FILE, "max_tokens": self.length}


def tokenize(documents: Sequence[str], train: Array, options: TokenOptions) -> tuple[Array, Array, int, bytes]:
    """Token ids (N, T) int64, padded with PADDING; whether a document was longer, (N,) bool; the size of the vocabulary; the
    tokenizer as JSON for the device.

    A WordPiece vocabulary learned from the training documents alone, the same every time: a run and its export each read
    the documents anew.
    """
    from tokenizers import Tokenizer, models

    pieces = _vocabulary([documents[int(i)] for i in train], options)
    tokenizer = _wordpiece(Tokenizer(models.WordPiece(pieces, unk_token="[UNK]")), options)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]"])
    tokenizer.enable_truncation(options.length)
    tokenizer.enable_padding(length=options.length, pad_id=PADDING, pad_token="[PAD]")
    encodings = tokenizer.encode_batch(list(documents))
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    cut = np.array([bool(encoding.overflowing) for encoding in encodings], dtype=bool)
    return ids, cut, tokenizer.get_vocab_size(), tokenizer.to_str().encode()


def learnt_tokenizer(documents: Sequence[str], options: TokenOptions) -> Tokenizer:
    """A tokenizer such as BERT's with a vocabulary of these documents: `[CLS]` and `[SEP]` around a text, types for a pair."""
    from tokenizers import Tokenizer, models, processors

    marks = ["[CLS]", "[SEP]"]
    pieces = _vocabulary(documents, options, marks)
    tokenizer = _wordpiece(Tokenizer(models.WordPiece(pieces, unk_token="[UNK]")), options)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", *marks])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, pieces[mark]) for mark in marks],
    )
    return tokenizer


def learnt_pieces(documents: Sequence[str], options: TokenOptions) -> Tokenizer:
    """Pieces of bytes, as language models have them: whatever a text holds can be written, and read back from its ids. Token 0
    ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _vocabulary(documents: Sequence[str], options: TokenOptions, marks: Sequence[str] = ()) -> dict[str, int]:
    """The trainer numbers the inner letters in the order of a hash table, another one every time, and breaks ties by
    number: naming them as special tokens gives them numbers before it begins."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = _wordpiece(Tokenizer(models.WordPiece(unk_token="[UNK]")), options)
    letters = sorted({letter for document in documents for letter in tokenizer.normalizer.normalize_str(document)})
    first = ["[PAD]", "[UNK]", *marks, *(f"##{letter}" for letter in letters if not letter.isspace())]
    tokenizer.train_from_iterator(
        documents, trainers.WordPieceTrainer(vocab_size=options.vocabulary, special_tokens=first, show_progress=False)
    )
    return dict(tokenizer.get_vocab())


def _wordpiece(tokenizer: Tokenizer, options: TokenOptions) -> Tokenizer:
    """As BERT splits text before it looks up words (Devlin et al. 2019, arXiv 1810.04805)."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=options.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
