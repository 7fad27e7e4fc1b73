"""Several sources of text in one stream, in given shares.

Shares are of bytes, not of documents: what a model sees of a source is its text, and a web page is a tenth as long as a
chapter. There is no chance in it. The next document always comes from the source that is furthest behind its share, so
that any beginning of the stream has the shares too, but for one document, and the same command gives the same stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from utils.errors import UserError

Item = TypeVar("Item")


def parse_mix(mix: str) -> dict[str, float]:
    """The weight of each source in a list such as "fineweb-edu-dedup=0.7,cosmopedia-v2=0.3".

    Raises:
        UserError: it is no such list, or a weight is not above 0.
    """
    weights: dict[str, float] = {}
    for part in mix.split(","):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or name in weights or not 0 < weight < math.inf:
            raise UserError(f"--mix {mix}: give each source once, with a weight above 0, as in web=0.7,books=0.3")
        weights[name] = weight
    return weights


def mix_by_bytes(
    sources: Mapping[str, Iterator[tuple[Item, int]]], weights: Mapping[str, float], report: dict[str, Any]
) -> Iterator[Item]:
    """The items of all sources in one stream, each source's bytes in proportion to its weight.

    When a source ends, the others go on in their proportion.

    Args:
        sources: name -> (item, bytes) in order.
        report: gets, as they are read, `bytes_read_from` each source and the names of those `exhausted`, in that order.
    """
    taken: dict[str, int] = dict.fromkeys(sources, 0)
    report |= {"bytes_read_from": taken, "exhausted": []}
    going_on = dict(sources)
    while going_on:
        name = min(going_on, key=lambda name: taken[name] / weights[name])
        found = next(going_on[name], None)
        if found is None:
            del going_on[name]
            report["exhausted"].append(name)
            continue
        item, n_bytes = found
        taken[name] += n_bytes
        yield item
