"""Run the suite: `workload-api-conformance --workload-socket URI [pytest's options]`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def main() -> int:
    """Run pytest on this package with the package's own configuration."""
    # The cache would be written beside the installed package.
    own = ["-c", str(HERE / "pytest.ini"), "-p", "no:cacheprovider"]
    return pytest.main([*own, str(HERE), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
