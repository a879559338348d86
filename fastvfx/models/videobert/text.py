"""Word pieces: learned from captions, or those of a BERT."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._extras import require
from ...data import DataError
from .config import SpecialIds

PathLike = str | os.PathLike[str]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[>]")
_PURPOSE = "word pieces"


class Vocabulary:
    """A WordPiece tokenizer (of the library ``tokenizers``) with the special pieces that VideoBERT needs.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.

    Raises:
        DataError: it lacks one of ``[PAD] [UNK] [CLS] [SEP] [MASK]``. ``[>]`` is added where it is missing, in place
            of ``[unused1]`` in the vocabularies of BERT, so that their size stays.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        names = list(SPECIAL)
        if missing := [name for name in names[:-1] if tokenizer.token_to_id(name) is None]:
            raise DataError(f"expected a vocabulary with {' '.join(names[:-1])}, {' '.join(missing)} missing")
        if tokenizer.token_to_id("[>]") is None:
            if tokenizer.token_to_id("[unused1]") is not None:
                names[-1] = "[unused1]"
            else:
                tokenizer.add_special_tokens(["[>]"])
        self.special = SpecialIds(*(tokenizer.token_to_id(name) for name in names))
        # Sentences come without special pieces from us; the model puts them where they belong.
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def ordinary(self) -> Tensor:
        """Numbers of all pieces that are not special, (n,) int64."""
        return torch.tensor([i for i in range(len(self)) if i not in self.special])

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a sentence; ``[MASK]`` in it is one piece.

        The other special pieces have no meaning in sentences and are left out.
        """
        keep = self.special.mask
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [i for i in ids if i == keep or i == self.special.unk or i not in self.special]

    def decode(self, ids: Iterable[int]) -> str:
        """The sentence, without special pieces."""
        return self.tokenizer.decode([i for i in ids if i not in self.special], skip_special_tokens=False)

    def piece(self, number: int) -> str:
        """A piece, as the vocabulary spells it."""
        return self.tokenizer.id_to_token(number)

    def pad(self, sentences: Sequence[Sequence[int]]) -> Tensor:
        """Pieces of several sentences, (B, L) int64, filled up with ``[PAD]``; L is at least 1."""
        length = max([1, *(len(s) for s in sentences)])
        ids = torch.full((len(sentences), length), self.special.pad)
        for row, sentence in zip(ids, sentences, strict=True):
            row[: len(sentence)] = torch.tensor(sentence, dtype=torch.long)
        return ids

    def to_json(self) -> str:
        """For :meth:`from_json`."""
        return self.tokenizer.to_str()

    @classmethod
    def from_json(cls, content: str) -> Vocabulary:
        """The inverse of :meth:`to_json`."""
        tokenizers = require("tokenizers", extra="video", purpose=_PURPOSE)
        try:
            return cls(tokenizers.Tokenizer.from_str(content))
        except DataError:
            raise
        except Exception as error:  # the library raises this class itself
            raise DataError(f"not a tokenizer: {error}") from error


def train_vocabulary(texts: Iterable[str], size: int = 2000) -> Vocabulary:
    """Learn word pieces from sentences: lower case, without accents, at most ``size`` of them.

    The same sentences always give the same pieces. ``size`` counts from the alphabet and the special pieces on.
    """
    tokenizers = require("tokenizers", extra="video", purpose=_PURPOSE)
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    sentences = [tokenizer.normalize(text) for text in texts]
    words = [word for text in sentences for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    # The library numbers letters inside of words as a hash table gives them, and breaks ties by these numbers. With the
    # letters among the special pieces, which come first, it has no choice.
    inside = sorted({letter for word in words for letter in word[1:]})
    tokenizer.train_from_iterator(
        sentences,
        vocab_size=size,
        min_frequency=1,
        limit_alphabet=len({letter for word in words for letter in word}),
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in inside)],
        show_progress=False,
    )
    return _wordpiece(tokenizer.get_vocab(), lowercase=True)


def load_vocabulary(path: PathLike) -> Vocabulary:
    """Read ``tokenizer.json``, or a BERT's ``vocab.txt`` (a piece a line), or a folder that holds one of them.

    Args:
        path: of the file or the folder. Whether a ``vocab.txt`` is of lower case says ``tokenizer_config.json`` beside
            it (``do_lower_case``); without that it is.

    Raises:
        DataError: no such file, damaged, or without BERT's special pieces.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not found:
            raise DataError(f"{path}: expected tokenizer.json or vocab.txt in this folder")
        path = found[0]
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return Vocabulary.from_json(text)
        pieces = text.splitlines()
        if len(set(pieces)) != len(pieces) or "[UNK]" not in pieces:
            raise DataError("expected a piece a line, each once, [UNK] among them")
        return _wordpiece({piece: i for i, piece in enumerate(pieces)}, _lowercase(path.parent))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    except (DataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def _wordpiece(pieces: dict[str, int], lowercase: bool) -> Vocabulary:
    tokenizers = require("tokenizers", extra="video", purpose=_PURPOSE)
    tokenizer = tokenizers.BertWordPieceTokenizer(pieces, lowercase=lowercase)
    return Vocabulary(tokenizers.Tokenizer.from_str(tokenizer.to_str()))


def _lowercase(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return True
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("do_lower_case", True))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: not an object in JSON: {error}") from error
