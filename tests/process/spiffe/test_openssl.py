"""OpenSSL reads the keys of vouchd."""

from __future__ import annotations

import subprocess

from agent.spiffe import keys
from agent.spiffe.keys import KeyType


def test_openssl_reads_the_der_as_unencrypted_pkcs8() -> None:
    key = keys.generate(KeyType.EC_P256)
    done = subprocess.run(
        ["openssl", "pkcs8", "-inform", "DER", "-nocrypt", "-topk8", "-outform", "DER"],
        input=keys.to_pkcs8_der(key),
        capture_output=True,
        check=True,
    )
    assert done.stdout == keys.to_pkcs8_der(key)
