"""A configuration with three entries."""

from __future__ import annotations

from pathlib import Path

import pytest

ENTRIES = """\
entries:
  - {id: web, spiffe_id: /web, selectors: [unix:uid:1000, unix:path:/usr/bin/web]}
  - {id: job, spiffe_id: /job, selectors: [unix:uid:1000, unix:gid:7, unix:path:/usr/bin/job]}
  - {id: old, spiffe_id: /old, selectors: [unix:uid:2000], expires_at: 2020-01-01T00:00:00Z}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "entries.yaml").write_text(ENTRIES)
    path = tmp_path / "agent.yaml"
    path.write_text("trust_domain: example.org\ndata_dir: data\nentries: [entries.yaml]\n")
    return path
