"""The fuzz target of the transport, guided by coverage: `make fuzz`. Its options are libFuzzer's.

An input that fails is written to `build/fuzz-*`. Add it to corpus.txt, and a unit test.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["agent.transport"]):
    from tests.fuzz import half

CORPUS = Path(__file__).with_name("corpus.txt")


def main() -> None:
    """Run libFuzzer over the committed corpus, in a folder of its own unless one is named."""
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(CORPUS.read_text().split()):
            Path(folder, str(number)).write_bytes(base64.b64decode(line))
        atheris.Setup([*sys.argv, folder], half.try_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
