"""Film reviews that nobody wrote: made from patterns, so that everything can be tried without a network.

A review has some sentences about parts of a film and ends with a verdict. What makes it not quite trivial: a good film
has bad parts and a bad one good parts, a part can be praised by denying its fault (*never dull*), and what others
expected is said before what came (*I feared it would be dull, and it was gripping*). A count of words gets most of them
right, and not all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

_PARTS = (
    "plot", "acting", "music", "photography", "dialogue", "ending", "first half", "villain", "script", "editing",
    "lead actress", "supporting cast", "direction", "romance", "final scene", "pace",
)  # fmt: skip
_GOOD = ("gripping", "moving", "brilliant", "funny", "original", "convincing", "beautiful", "clever", "warm", "tense")
_BAD = ("dull", "clumsy", "predictable", "wooden", "silly", "lifeless", "confusing", "tired", "shallow", "annoying")
_OPENINGS = (
    "I saw this on a rainy evening.", "My sister lent me the disc.", "We watched it with the whole family.",
    "This one was on late last night.", "I had read the book before.", "A friend dragged me into the cinema.",
    "It is the third film of this director that I know.", "I found it by accident.",
)  # fmt: skip
_PLAIN = (
    "the {part} is {word}",
    "the {part} was {word} from start to end",
    "I found the {part} {word}",
    "what a {word} {part}",
)
_DENIED = ("the {part} is never {other}", "nobody could call the {part} {other}", "the {part} is anything but {other}")
_FEARED = (
    "I feared that the {part} would be {other}, and it was {word}",
    "everybody calls the {part} {other}, but I found it {word}",
)
_VERDICTS = {
    True: ("I would see it again.", "Go and see it.", "Recommended.", "Time well spent.", "A film to keep."),
    False: ("I want my evening back.", "Stay at home.", "Not recommended.", "Time wasted.", "A film to forget."),
}


def synthetic_reviews(count: int = 3000, seed: int = 0) -> Iterator[tuple[str, bool]]:
    """(text, whether it is positive), half of them so; the same ones for equal arguments."""
    random_ = random.Random(seed)
    for i in range(count):
        positive = i % 2 == 0
        parts = random_.sample(_PARTS, random_.randint(3, 7))
        sentences = [random_.choice(_OPENINGS)]
        for part in parts:
            sentences.append(_sentence(random_, part, praise=positive if random_.random() < 0.7 else not positive))
        if random_.random() < 0.7:
            sentences.append(random_.choice(_VERDICTS[positive]))
        yield " ".join(sentences), positive


def _sentence(random_: random.Random, part: str, praise: bool) -> str:
    words, others = (_GOOD, _BAD) if praise else (_BAD, _GOOD)
    pattern = random_.choice(random_.choices((_PLAIN, _DENIED, _FEARED), weights=(5, 2, 2))[0])
    text = pattern.format(part=part, word=random_.choice(words), other=random_.choice(others))
    return text[0].upper() + text[1:] + random_.choice((".", ".", "!"))
