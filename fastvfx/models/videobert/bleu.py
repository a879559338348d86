"""BLEU: how many runs of one to four words a caption shares with the right one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def bleu(said: Sequence[str], right: Sequence[str], order: int = 4) -> float:
    """BLEU of a set of captions, in [0, 1], with one reference each (Papineni et al. 2002).

    exp(min(0, 1 - r / c)) (p_1 ... p_order)^(1 / order), with r and c the numbers of words that are right and said,
    and p_n the part of the runs of n words said that are in the reference too, each as often as it is there. 0 where
    one of the parts is 0; nothing is smoothed. Words are what spaces divide, in lower case.
    """
    said_words = [text.lower().split() for text in said]
    right_words = [text.lower().split() for text in right]
    c, r = sum(map(len, said_words)), sum(map(len, right_words))
    logs = 0.0
    for n in range(1, order + 1):
        shared = total = 0
        for a, b in zip(said_words, right_words, strict=True):
            runs, known = _runs(a, n), _runs(b, n)
            shared += sum(min(count, known[run]) for run, count in runs.items())
            total += sum(runs.values())
        if shared == 0:
            return 0.0
        logs += math.log(shared / total) / order
    return math.exp(min(0.0, 1 - r / c) + logs)


def _runs(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
