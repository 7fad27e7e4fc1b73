"""All exercises: a check run with nothing written says so. What each check takes is tested with its chapter."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.conftest import ROOT
from utils.exercises import attempt

MODULES = [
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted(ROOT.glob("*/exercises/ex[0-9]*.py"))
]
CHECKS = [
    pytest.param(getattr(module, name), id=f"{module.__name__.split('.')[-1]}-{name}")
    for module in MODULES
    for name in dir(module)
    if name.startswith("check_")
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_stub_is_told_that_it_is_one(check, capsys):
    def stub(*arguments): ...

    attempt(check, stub)
    said = capsys.readouterr().out
    assert said.startswith("not solved yet: ")
    assert not re.match("not solved yet: [A-Z][A-Za-z]*Error", said)
