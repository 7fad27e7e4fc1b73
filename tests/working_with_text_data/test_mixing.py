"""A mix has its shares at any moment, loses nothing, and reads no further than it must."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from working_with_text_data.mixing import mix_by_bytes, parse_mix


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.lists(st.integers(1, 1000), max_size=60)), min_size=1, max_size=4),
)
def test_each_source_has_its_share_while_all_go_on(parts):
    sources = {f"s{i}": iter([((f"s{i}", n), n) for n in sizes]) for i, (_, sizes) in enumerate(parts)}
    weights = {f"s{i}": weight for i, (weight, _) in enumerate(parts)}
    report: dict[str, Any] = {}
    taken, seen = dict.fromkeys(weights, 0), []
    for name, n_bytes in mix_by_bytes(sources, weights, report):
        taken[name] += n_bytes
        seen.append((name, n_bytes))
        if not report["exhausted"]:
            for source, weight in weights.items():
                share = weight / sum(weights.values()) * sum(taken.values())
                assert taken[source] <= share + 1000.001  # never more than the largest document ahead
    for i, (_, sizes) in enumerate(parts):
        assert [n for name, n in seen if name == f"s{i}"] == sizes  # all of it, in order
    assert report["bytes_read_from"] == taken
    assert sorted(report["exhausted"]) == sorted(weights)


def test_the_others_keep_their_proportion_when_one_ends():
    sources = {"a": iter([("a", 10)] * 300), "b": iter([("b", 10)] * 900), "c": iter([("c", 10)] * 5)}
    found = list(mix_by_bytes(sources, {"a": 1, "b": 3, "c": 4}, {}))
    assert found[:16].count("c") == 5
    assert found[:800].count("b") == pytest.approx(3 * found[:800].count("a"), abs=3)


@pytest.mark.parametrize("mix", ["", "a", "a=", "=1", "a=0", "a=-1", "a=nan", "a=inf", "a=1,a=2", "a=1,", "a=one"])
def test_what_is_no_mix_is_refused(mix):
    with pytest.raises(UserError, match="give each source once, with a weight above 0"):
        parse_mix(mix)


def test_weights_are_read():
    assert parse_mix("fineweb-edu-dedup=0.7, b = 3") == {"fineweb-edu-dedup": 0.7, "b": 3}
