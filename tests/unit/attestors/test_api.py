"""The plug-in interface: selectors and findings."""

from __future__ import annotations

from typing import Any

import pytest

from attestors.api import Findings, Selector


@pytest.mark.parametrize(
    ("text", "kind", "redacted"),
    [
        ("unix:uid:1001", "uid", "unix:uid:1001"),
        ("docker:env:TOKEN=a=b", "env:TOKEN", "docker:env:TOKEN=<hidden>"),
        ("docker:env:TOKEN=a\nb", "env:TOKEN", "docker:env:TOKEN=<hidden>"),
        ("docker:env:TOKEN", "env:TOKEN", "docker:env:TOKEN=<hidden>"),
        ("docker:label:env:visible", "label", "docker:label:env:visible"),
        (
            "podman-rootless:1000:env:TOKEN=secret",
            "1000:env:TOKEN",
            "podman-rootless:1000:env:TOKEN=<hidden>",
        ),
        ("podman-rootless:1000:label:a:b", "1000:label", "podman-rootless:1000:label:a:b"),
    ],
)
def test_redacted_selector_hides_the_value_of_an_environment_variable(
    text: str, kind: str, redacted: str
) -> None:
    selector = Selector.parse(text)
    assert selector.kind == kind
    assert selector.redacted() == redacted
    assert str(selector) == text


def test_program_selector_must_be_among_the_selectors() -> None:
    uid, path = Selector("unix", "uid:1"), Selector("unix", "path:/bin/sh")
    with pytest.raises(ValueError, match="is not among the selectors"):
        Findings(frozenset({uid}), program=frozenset({path}))


def test_findings_keep_the_very_set_of_an_attestor() -> None:
    """The agent looks up matches by the identity of the set."""
    selectors = frozenset({Selector("unix", "uid:1")})
    assert Findings(selectors).selectors is selectors


@pytest.mark.parametrize(
    ("type_", "value", "error"),
    [("unix", 1, TypeError), (1, "x", TypeError), ("a:b", "x", ValueError), ("a", "", ValueError)],
)
def test_malformed_selector_is_refused(type_: Any, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Selector(type_, value)
