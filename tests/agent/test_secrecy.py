"""The search for secrets in the logs of all tests: it finds them in any form."""

from __future__ import annotations

import base64

import pytest

from agent.spiffe import keys
from agent.spiffe.keys import KeyType
from tests.support import secrecy
from tests.support.agent import RunningAgent, entry_for_me
from tests.support.cli import vouchd

KEY = keys.generate(KeyType.EC_P256)
DER = keys.to_pkcs8_der(KEY)
NUMBER = KEY.private_numbers().private_value  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    [
        keys.to_pem(KEY).decode(),
        DER.hex(),
        DER.hex(":").upper(),
        repr(DER),
        *(base64.b64encode(b"x" * n + DER).decode() for n in range(3)),
        base64.urlsafe_b64encode(keys.to_pkcs8_der(keys.generate(KeyType.RSA_2048))).decode(),
        keys.to_pkcs8_der(keys.generate(KeyType.EC_P384)).hex(),
        str(NUMBER),
        f"{NUMBER:064x}",
        base64.urlsafe_b64encode(NUMBER.to_bytes(32, "big")).decode(),
        "token=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmUifQ.c2lnbmF0dXJlc2lnbmF0dXJl",
        f"selectors=['docker:env:{secrecy.CANARY_VARIABLE}={secrecy.CANARY}']",
    ],
)
def test_a_secret_is_found_in_any_form(text: str) -> None:
    secrecy.add_key(KEY)
    assert secrecy.secrets_in(f"event field={text} more")


@pytest.mark.parametrize("before", range(32))
def test_a_secret_is_found_at_any_offset(before: int) -> None:
    secrecy.add_key(KEY)
    assert secrecy.secrets_in("#" * before + f"{NUMBER:064x}")
    assert not secrecy.secrets_in("#" * before + f"{NUMBER:064x}"[:-1])


def test_other_text_is_not_reported() -> None:
    secrecy.add_key(KEY)
    assert not secrecy.secrets_in("2026-01-01 svid issued serial=5815c0f692cf2c393fbcd5412eaa1107")


def test_log_of_an_agent_is_searched_for_its_keys() -> None:
    agent = RunningAgent(entry_for_me(), config="log: {level: debug}")
    assert vouchd("fetch", "x509", "--socket", agent.socket).code == 0
    agent.stop()
    secrecy.add_keys_below(agent.directory)
    assert len(secrecy._keys) == 2, "one key of each authority"
    assert "svid issued" in "".join(secrecy._recorded)
    agent.close()
