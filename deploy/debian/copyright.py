"""Print the file debian/copyright: our licence, and that of each package that is built in."""

from __future__ import annotations

from importlib.metadata import distributions
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

OURS = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: vouchd

Files: *
Copyright: 2026, the authors of vouchd
License: Apache-2.0
Comment:
 Built in are the Python packages below, with their own licences, whose texts lie beside them in
 /usr/lib/vouchd/lib/python3*/site-packages/*.dist-info.
"""
APACHE = """\
License: Apache-2.0
 On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.
"""
CLASSIFIER = "License :: OSI Approved :: "


def licence(package: Distribution) -> str:
    """The licence of a package in one line: its expression, name, or classifier."""
    metadata = package.metadata.json
    lines = str(metadata.get("license_expression") or metadata.get("license") or "").splitlines()
    classes = [each for each in metadata.get("classifier", []) if each.startswith(CLASSIFIER)]
    return lines[0] if lines else ", ".join(each.removeprefix(CLASSIFIER) for each in classes)


def main() -> None:
    """Print the file for the environment that this runs in."""
    print(OURS, end="")
    for package in sorted(distributions(), key=lambda each: each.name.lower()):
        if package.name != "vouchd":
            print(f" {package.name} {package.version}: {licence(package)}")
    print(f"\n{APACHE}", end="")


if __name__ == "__main__":
    main()
