"""The sliding window against slices taken by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from working_with_text_data.windows import SlidingWindows, make_loader


@pytest.mark.parametrize("ids", [[[1, 2, 3], [4, 5, 6]], [1.7, 2.2, 3.9], 5])
def test_ids_are_whole_numbers_in_a_row(ids):
    with pytest.raises(ValueError, match="ids are whole numbers in a row"):
        SlidingWindows(ids, 2)


@given(st.integers(2, 60), st.integers(1, 10), st.integers(1, 12))
def test_windows_are_slices(n, context, stride):
    ids = list(range(100, 100 + n))
    if n <= context:
        with pytest.raises(ValueError, match="too few for a window"):
            SlidingWindows(ids, context, stride)
        return
    windows = SlidingWindows(ids, context, stride)
    starts = range(0, n - context, stride)
    assert len(windows) == len(starts)
    for i, start in enumerate(starts):
        inputs, targets = windows[i]
        assert inputs.tolist() == ids[start : start + context]
        assert targets.tolist() == ids[start + 1 : start + context + 1]


def test_with_the_usual_stride_every_id_but_the_first_is_a_target_once():
    windows = SlidingWindows(range(25), 8)
    targets = torch.cat([windows[i][1] for i in range(len(windows))])
    assert targets.tolist() == list(range(1, 25))


def test_windows_take_no_memory_of_their_own():
    windows = SlidingWindows(range(1000), 100, stride=1)
    assert windows.windows.untyped_storage().nbytes() == 1000 * 8


def test_a_loader_gives_every_window_once_an_epoch_in_another_order():
    loader = make_loader(range(65), 4, batch_size=4)
    epochs = [torch.cat([inputs for inputs, _ in loader])[:, 0].tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 64, 4))
    assert epochs[0] != epochs[1]
    again = make_loader(range(65), 4, batch_size=4)
    assert torch.cat([inputs for inputs, _ in again])[:, 0].tolist() == epochs[0]


def test_without_shuffling_nothing_is_left_out():
    loader = make_loader(range(30), 4, batch_size=4, shuffle=False)
    assert torch.cat([inputs for inputs, _ in loader])[:, 0].tolist() == list(range(0, 25, 4))


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="too few for a batch of 8"):
        make_loader(range(20), 4, batch_size=8)
    with pytest.raises(ValueError, match="at least 1"):
        SlidingWindows(range(20), 0)
