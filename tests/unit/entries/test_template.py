"""Templates take values from selectors, and refuse values that are ambiguous or not valid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.entries.template import SpiffeIdTemplate, TemplateError, has_placeholders
from agent.spiffe.ids import SpiffeId, TrustDomain
from attestors.api import Selector

TD = TrustDomain("example.org")


def fill_in(path: str, *selectors: str) -> str:
    facts = frozenset(map(Selector.parse, selectors))
    return str(SpiffeIdTemplate(TD, path).fill_in(facts))


def test_placeholder_is_replaced_by_the_text_after_it_in_a_selector() -> None:
    facts = "unix:user:payments", "unix:uid:1001", "k8s:ns:prod", "k8s:sa:api"
    assert fill_in("/user/{unix:user}", *facts) == "spiffe://example.org/user/payments"
    assert fill_in("/ns/{k8s:ns}/sa/{k8s:sa}", *facts) == "spiffe://example.org/ns/prod/sa/api"
    assert fill_in("/u-{unix:uid}.x", *facts) == "spiffe://example.org/u-1001.x"
    assert fill_in("/{unix:uid}/{unix:uid}", *facts) == "spiffe://example.org/1001/1001"
    assert fill_in("/{docker:label:app}", "docker:label:app:web", "docker:label:x:y") == (
        "spiffe://example.org/web"
    )


@pytest.mark.parametrize(
    ("path", "selectors", "reason"),
    [
        ("/{unix:user}", ["unix:uid:1"], r"\{unix:user\} has no value: .* no unix:user:"),
        ("/{unix:user}", [], "has no value"),
        ("/{unix:user}", ["unix:username:x"], "has no value"),
        ("/{x:g}", ["x:g:1", "x:g:2"], r"\{x:g\} is ambiguous: the process has 2"),
        ("/{x:v}", ["x:v:a/b"], "'a/b', which is not a valid path segment"),
        ("/{x:v}", ["x:v:.."], "'..', which is not a valid path segment"),
        ("/a{x:v}", ["x:v:."], "'.', which is not a valid path segment"),
        ("/a{x:v}", ["x:v:"], "'', which is not a valid path segment"),
        ("/{x:v}", ["x:v:a b"], "'a b', which is not a valid path segment"),
        ("/{x:v}", ["x:v:a:b"], "'a:b', which is not a valid path segment"),
        ("/{x:v}", ["x:v:ä"], "which is not a valid path segment"),
        ("/{x:v}", ["x:v:{x:v}"], "which is not a valid path segment"),
        ("/{x:v}", ["x:v:%2e"], "which is not a valid path segment"),
        ("/{x:v}", ["x:v:spire"], "gives no SPIFFE ID: .* reserved"),
        ("/{x:v}/b", ["x:v:spire"], "gives no SPIFFE ID: .* reserved"),
        ("/{x:v}/{x:v}", ["x:v:" + "a" * 1200], "gives no SPIFFE ID: .* longer"),
    ],
)
def test_unusable_value_gives_no_identity(path: str, selectors: list[str], reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        fill_in(path, *selectors)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/plain", "no whole placeholder"),
        ("/{}", "does not name selectors: write it like {unix:user}"),
        ("/{user}", "does not name selectors"),
        ("/{unix:}", "does not name selectors"),
        ("/{a b:c}", "does not name selectors"),
        ("/{unix:user", "no whole placeholder"),
        ("/{unix:user}}", "path segment"),
        ("/{{unix:user}}", "path segment"),
        ("/{unix:user}/", "trailing '/'"),
        ("{unix:user}", "does not begin with '/'"),
        ("/spire/{unix:user}", "reserved"),
        ("/ä/{unix:user}", "path segment"),
    ],
)
def test_invalid_template_is_refused(path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SpiffeIdTemplate(TD, path)


def test_evidence_is_the_selectors_that_fill_it_in() -> None:
    template = SpiffeIdTemplate(TD, "/{unix:user}/{k8s:ns}")
    mine = frozenset(map(Selector.parse, ("unix:user:a", "unix:uid:1", "k8s:ns:b", "k8s:nsx:c")))
    assert sorted(map(str, template.evidence(mine))) == ["k8s:ns:b", "unix:user:a"]
    assert template.selector_types == {"unix", "k8s"}
    assert str(template) == "spiffe://example.org/{unix:user}/{k8s:ns}"
    assert template == SpiffeIdTemplate(TD, "/{unix:user}/{k8s:ns}")


def test_filled_in_ids_are_kept_up_to_a_limit() -> None:
    template = SpiffeIdTemplate(TD, "/{unix:uid}", known_ids=2)
    one = frozenset({Selector.parse("unix:uid:1")})
    first = template.fill_in(one)
    assert template.fill_in(one) is first
    for number in range(5):
        template.fill_in([Selector("unix", f"uid:{number}")])
    assert len(template._known) <= 2


def test_path_with_a_brace_is_a_template() -> None:
    assert has_placeholders("/{a:b}")
    assert has_placeholders("/a}")
    assert not has_placeholders("/a")


@given(st.text(), st.text())
def test_different_values_give_different_ids(one: str, other: str) -> None:
    template = SpiffeIdTemplate(TD, "/x-{t:v}")
    made: list[SpiffeId] = []
    for value in (one, other):
        try:
            made.append(template.fill_in([Selector("t", f"v:{value}")]))
        except TemplateError:
            return
    assert (made[0] == made[1]) == (one == other)
    assert made[0].path == f"/x-{one}"
