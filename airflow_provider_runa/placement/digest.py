"""Digests of a payment and a body, for a record that other people can read.

A plain hash of a payment can be guessed: who has a list of 1,500 possible recipients finds the right one in 0.02 s. No
secret is at hand that would prevent this. The API key must be rotatable, and everything else that the identity is made
of is shown by Airflow. So the digests are **salted and slow** instead: a guess takes about 50 ms, and a guess for one
record says nothing about another.

The limit: this makes guessing expensive, not impossible. A list of 1,500 candidates takes more than a minute of one
processor. Do not let people read a task's state who must not know whom it pays.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

#: Rounds of PBKDF2: about 50 ms. It is used instead of scrypt because it is available in FIPS mode, too.
ROUNDS = 60_000


class Digests:
    """Digests of one payment under one salt. The slow part runs once, when it is first needed.

    :param fingerprint: fingerprint of the payment.
    :param salt: the salt, in hexadecimal. Empty: the digests are plain hashes, for a record that nobody can read.
    """

    def __init__(self, fingerprint: str, salt: str) -> None:
        self.salt = salt
        self._fingerprint = fingerprint
        self._key: bytes | None = None

    def __repr__(self) -> str:
        return f"Digests(salt={self.salt!r})"

    @staticmethod
    def new_salt() -> str:
        """Return a random salt."""
        return secrets.token_hex(16)

    @property
    def payment(self) -> str:
        """The digest of the payment, in hexadecimal."""
        return self._fingerprint if not self.salt else self._keyed(b"payment")

    def of_body(self, body: bytes) -> str:
        """Return the digest of a body that makes this payment, in hexadecimal.

        :param body: the body as it is sent. It contains the recipients, so the key of its digest is the slow one.
        """
        return hashlib.sha256(body).hexdigest() if not self.salt else self._keyed(b"body" + body)

    def _keyed(self, data: bytes) -> str:
        if self._key is None:
            self._key = hashlib.pbkdf2_hmac("sha256", self._fingerprint.encode(), bytes.fromhex(self.salt), ROUNDS)
        return hmac.new(self._key, data, "sha256").hexdigest()
