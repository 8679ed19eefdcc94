"""SPIFFE-ID: vouchd's parser."""

from __future__ import annotations

import pytest

from agent.spiffe.ids import SpiffeId, TrustDomain

_START = "spiffe://example.org/"


def _accepts(*texts: str) -> None:
    for text in texts:
        assert str(SpiffeId.parse(text)) == text


def _refuses(*texts: str) -> None:
    for text in texts:
        with pytest.raises(ValueError):  # noqa: PT011 - the test is about refusal, not its text
            SpiffeId.parse(text)


def test_ID_01_the_scheme_is_spiffe() -> None:
    _accepts("spiffe://example.org/a")
    _refuses("https://example.org/a", "spiff://example.org/a", "//example.org/a", "example.org/a")
    _refuses("", "spiffe", "spiffe:/example.org/a", " spiffe://example.org/a", "/a")


def test_ID_02_there_is_a_trust_domain() -> None:
    _refuses("spiffe://", "spiffe:///", "spiffe:///a")
    with pytest.raises(ValueError, match="empty"):
        TrustDomain("")


def test_ID_03_there_is_no_query() -> None:
    _refuses("spiffe://example.org/a?", "spiffe://example.org/a?b=c", "spiffe://example.org?b/c")


def test_ID_04_there_is_no_fragment() -> None:
    _refuses("spiffe://example.org/a#", "spiffe://example.org/a#b", "spiffe://example.org#b/c")


def test_ID_05_there_is_no_user_and_no_port() -> None:
    _refuses("spiffe://me@example.org/a", "spiffe://me:pw@example.org/a", "spiffe://@example.org/a")
    _refuses("spiffe://example.org:443/a", "spiffe://example.org:/a")


def test_ID_06_the_trust_domain_is_in_lower_case() -> None:
    _refuses("spiffe://Example.org/a", "spiffe://EXAMPLE.ORG/a")


def test_ID_07_the_trust_domain_has_only_its_legal_characters() -> None:
    _accepts("spiffe://abcxyz-0189_.example/a", "spiffe://-a-._b_/a", "spiffe://_/a")
    _refuses(*(f"spiffe://ex{character}ample.org/a" for character in " !*+,~\\\t\n\0ä☃"))


def test_ID_08_the_trust_domain_is_not_percent_encoded() -> None:
    _refuses("spiffe://%65xample.org/a", "spiffe://example%2Eorg/a", "spiffe://ex%/a")


def test_ID_09_addresses_and_dns_names_are_read_as_any_other_name() -> None:
    _accepts("spiffe://1.2.3.4/a", "spiffe://256.1.1.1/a", "spiffe://not_a_dns_name/a")
    _accepts("spiffe://1/a", f"spiffe://{'l' * 64}.example/a")


def test_ID_11_the_path_is_not_percent_encoded() -> None:
    _refuses(f"{_START}%61", f"{_START}a%2Fb", f"{_START}a%", f"{_START}%2e%2e/a")


def test_ID_12_no_segment_is_empty_or_one_or_two_dots() -> None:
    _accepts(f"{_START}...", f"{_START}.a", f"{_START}..a/a..", f"{_START}a/.../b")
    _refuses(f"{_START}/a", f"{_START}a//b", f"{_START}./a", f"{_START}a/.", f"{_START}a/../b")
    _refuses(f"{_START}..", f"{_START}.")


def test_ID_13_the_path_does_not_end_with_a_slash() -> None:
    _refuses(_START, f"{_START}a/", f"{_START}a/b/")


def test_ID_14_segments_have_only_their_legal_characters() -> None:
    _accepts(f"{_START}abcxyzABCXYZ0189.-_", f"{_START}-/_")
    _refuses(*(f"{_START}a{character}b" for character in " !*+,~:@\\\t\n\0ä☃"))


def test_ID_15_an_id_of_2048_bytes_is_read() -> None:
    _accepts(_START + "a" * (2048 - len(_START)))


def test_ID_16_a_longer_id_is_refused() -> None:
    path = "/" + "a" * (2049 - len(_START))
    with pytest.raises(ValueError, match="2048"):
        SpiffeId(TrustDomain("example.org"), path)


def test_ID_17_a_trust_domain_has_no_more_than_255_bytes() -> None:
    _accepts(f"spiffe://{'a' * 255}/a")
    _refuses(f"spiffe://{'a' * 256}/a")


def test_ID_18_case_counts_in_the_path_and_not_in_the_scheme() -> None:
    read = SpiffeId.parse("SPIFFE://example.org/Path")
    assert read == SpiffeId.parse("spiffe://example.org/Path")
    assert read != SpiffeId.parse("spiffe://example.org/path")
