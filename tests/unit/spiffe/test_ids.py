"""SPIFFE IDs, by the table in tests/vectors/spiffe_ids.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.spiffe.ids import MAX_ID_BYTES, MAX_TRUST_DOMAIN_BYTES, SpiffeId, TrustDomain

TABLE: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    (Path(__file__).parents[2] / "vectors/spiffe_ids.yaml").read_text(encoding="utf-8")
)


def _name(row: dict[str, Any]) -> str:
    return f"{row['id']} {row['text']!r}"


@pytest.mark.parametrize("row", TABLE["good"], ids=_name)
def test_a_valid_id_is_read_and_prints_back(row: dict[str, Any]) -> None:
    assert str(SpiffeId.parse(row["text"])) == row.get("prints", row["text"])


@pytest.mark.parametrize("row", TABLE["bad"], ids=_name)
def test_an_invalid_id_is_refused_with_its_reason(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the text is compared below
        SpiffeId.parse(row["text"])
    assert row["says"] in str(refusal.value)


def test_an_id_may_have_2048_bytes_and_no_more() -> None:
    start = "spiffe://example.org/"
    longest = start + "a" * (MAX_ID_BYTES - len(start))
    assert str(SpiffeId.parse(longest)) == longest
    with pytest.raises(ValueError, match="longer than 2048 bytes"):
        SpiffeId.parse(longest + "a")


def test_a_trust_domain_may_have_255_bytes_and_no_more() -> None:
    assert TrustDomain("a" * MAX_TRUST_DOMAIN_BYTES).name == "a" * 255
    with pytest.raises(ValueError, match="longer than 255 bytes"):
        TrustDomain("a" * (MAX_TRUST_DOMAIN_BYTES + 1))


def test_a_trust_domain_prints_as_its_name_and_has_an_id_without_a_slash() -> None:
    domain = TrustDomain("example.org")
    assert (str(domain), domain.id) == ("example.org", "spiffe://example.org")


def test_a_path_begins_with_a_slash() -> None:
    with pytest.raises(ValueError, match="does not begin with '/'"):
        SpiffeId(TrustDomain("example.org"), "payments")
