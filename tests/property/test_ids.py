"""SPIFFE IDs: printing and parsing are inverse, and any other text is a ValueError."""

import contextlib
import string

from hypothesis import given
from hypothesis import strategies as st

from agent.spiffe.ids import SpiffeId, TrustDomain

LABELS = st.text(string.ascii_lowercase + string.digits + "_-", min_size=1, max_size=20)
DOMAINS = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
SEGMENTS = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=20).filter(
    lambda text: text not in {".", ".."}
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=6).map(lambda parts: "/" + "/".join(parts))


@given(DOMAINS, PATHS)
def test_parse_undoes_print(domain: str, path: str) -> None:
    spiffe_id = SpiffeId(TrustDomain(domain), path)
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id


@given(st.one_of(st.text(), st.text("a./:%?#@ A\n").map(lambda text: "spiffe://" + text)))
def test_accepted_text_prints_back_unchanged(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert str(SpiffeId.parse(text))[len("spiffe") :] == text[len("spiffe") :]
