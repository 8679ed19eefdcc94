"""A Signer with real keys that counts what it issues and fails when a test says so."""

from __future__ import annotations

import datetime as dt

from cryptography import x509

from agent.authority.jwt_issuer import JwtIssuer, JwtSvid, JwtSvidRequest
from agent.authority.x509_issuer import X509Issuer, create_x509_authority
from agent.authority.x509_template import X509SvidRequest
from agent.spiffe import keys
from agent.spiffe.bundle import DEFAULT_REFRESH_HINT, TrustBundle
from agent.spiffe.ids import TrustDomain
from agent.spiffe.keys import KeyType
from tests.support.fakes import START, FakeClock

TD = TrustDomain("example.org")
TTL = dt.timedelta(days=30)
KID = "k"


class FakeSigner:
    """Implements agent.authority.signer.Signer.

    `failure` is raised by both sign methods; `tainted` applies to all authorities; `issued` are the
    requests that were signed.
    """

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        key = keys.generate(KeyType.EC_P256)
        self.certificate = create_x509_authority(TD, key, now=START, ttl=TTL)
        self._x509 = X509Issuer(self.certificate, key, TD)
        self._jwt = JwtIssuer(KID, key, START + TTL, TD)
        self.bundle = TrustBundle(
            trust_domain=TD,
            x509_authorities=(self.certificate,),
            jwt_authorities={KID: keys.check_public(key.public_key())},
            sequence=1,
            refresh_hint=DEFAULT_REFRESH_HINT,
        )
        self.failure: Exception | None = None
        self.tainted = False
        self.issued: list[X509SvidRequest | JwtSvidRequest] = []

    async def ensure_can_sign(self) -> None:
        """Return True: this signer can always sign."""

    def sign_x509(self, request: X509SvidRequest) -> x509.Certificate:
        self._note(request)
        return self._x509.issue(self._x509.prepare(request, self._clock.now()))

    def sign_jwt(self, request: JwtSvidRequest) -> JwtSvid:
        self._note(request)
        return self._jwt.issue(self._jwt.prepare(request, self._clock.now()))

    def trusts(self, authority_id: str) -> bool:
        assert authority_id in {KID, self._subject_key_id()}
        return not self.tainted

    def _subject_key_id(self) -> str:
        extensions = self.certificate.extensions
        return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()

    def _note(self, request: X509SvidRequest | JwtSvidRequest) -> None:
        if self.failure:
            raise self.failure
        self.issued.append(request)
