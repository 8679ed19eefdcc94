"""The inputs that the fuzz target found worth keeping are tried again."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.fuzz.half import try_input

CORPUS = Path(__file__).with_name("corpus.txt").read_text().split()


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_input_of_the_corpus_breaks_nothing(number: int) -> None:
    try_input(base64.b64decode(CORPUS[number]))
