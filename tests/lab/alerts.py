"""Makes two charons raise alerts, which need strongSwan 6.0.3: start the lab with `Lab(settings=alerts.SETTINGS)`.

Each of `WAYS` is a fault, with the types of alerts that each side then raises. Two daemons cannot be
made to raise `authorization-failed`, `cert-untrusted-root` and `install-child-policy-failed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from vicifast.aio import AsyncSession, Listener
from vicifast.errors import CommandError, ConnectionClosed

from .daemons import PLUGINS, Charon, LabError
from .lab import Lab

SETTINGS = f"""\
charon {{
    load = {PLUGINS} md5 revocation constraints eap-identity eap-md5 eap-radius
    retransmit_timeout = 0.5
    retransmit_base = 1.0
    retransmit_tries = 3
    half_open_timeout = 3
    plugins {{
        eap-radius {{
            server = 10.99.0.77
            secret = unused
            retransmit_timeout = 0.2
            retransmit_tries = 1
        }}
    }}
}}
"""
NAME, CHILD = "site", "lan"

_TIMEOUT = 20.0
_BRANCH, _HQ = "branch.example", "hq.example"
_SECRET = {"id": "alerts", "type": "IKE", "data": b"only for the lab"}
_REPLIES = "10.99.0.1/32"  # what `right` sends to `left`
_NO_MARKER = bytes(4)  # of ESP: to the port of NAT traversal, this is IKE

Config = dict[str, Any]


class Way(NamedTuple):
    """A fault, and the types of alerts that each side raises, perhaps among others."""

    work: Callable[[Lab], Awaitable[None]]
    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()


async def raise_all(lab: Lab) -> None:
    """Cause each of `WAYS`; LabError if an alert is missing. At the end `right` is stopped."""
    for charon in (lab.left, lab.right):
        await _call(charon, "load-shared", _SECRET)
    for name, way in WAYS.items():
        async with AsyncExitStack() as stack:
            for charon, types in ((lab.left, way.left), (lab.right, way.right)):
                await stack.enter_async_context(_raised(charon, types, name))
            await way.work(lab)
        for charon in (lab.left, lab.right):
            if charon.pid is not None:
                await _clear(charon)


@asynccontextmanager
async def _raised(charon: Charon, types: frozenset[str], way: str) -> AsyncIterator[None]:
    """On exit, wait until `charon` has raised an alert of each of these types."""
    async with AsyncSession(charon.address) as session:
        listener = session.listen("alert")
        await listener.ready()
        yield
        missing = set(types)
        with suppress(TimeoutError, ConnectionClosed):  # the latter after shutdown-signal
            async with asyncio.timeout(_TIMEOUT):
                await _hear(listener, missing)
        if missing:
            raise LabError(f"{way}: {charon.name} raises no alert {', '.join(sorted(missing))}")


async def _hear(listener: Listener[Any], missing: set[str]) -> None:
    while missing:
        _, message = await anext(listener)
        missing.discard(str(message["type"]))


async def _clear(charon: Charon) -> None:
    """Close the SAs at once, and unload the connections."""
    async with AsyncSession(charon.address) as session:
        for name in (await session.get_conns())["conns"]:
            with suppress(CommandError):
                await session.call("terminate", {"ike": name, "force": True, "timeout": 100})
            await session.unload_conn(name=name)


async def _call(charon: Charon, command: str, message: Mapping[str, object]) -> None:
    async with AsyncSession(charon.address) as session:
        await session.call(command, message)


async def _load(charon: Charon, config: Config, name: str = NAME) -> None:
    await _call(charon, "load-conn", {name: config})


async def _initiate(lab: Lab, name: str = NAME) -> None:
    """Make `left` try to bring the SAs up."""
    with suppress(CommandError):
        await _call(lab.left, "initiate", {"ike": name, "child": CHILD, "timeout": round(_TIMEOUT * 1000)})


async def _try(lab: Lab, left: Config, right: Config | None = None) -> None:
    await _load(lab.left, left)
    await _load(lab.right, right or _right())
    await _initiate(lab)


def _left(child: Config | None = None, **changes: object) -> Config:
    ends = {
        "remote_addrs": ["10.99.0.2"],
        "local": {"auth": "psk", "id": _BRANCH},
        "remote": {"auth": "psk", "id": _HQ},
    }
    return _config(ends, ["10.1.0.1/32"], ["10.128.0.1/32"], child, changes)


def _right(child: Config | None = None, **changes: object) -> Config:
    ends = {"local": {"auth": "psk", "id": _HQ}, "remote": {"auth": "psk", "id": _BRANCH}}
    return _config(ends, ["10.128.0.1/32"], ["10.1.0.1/32"], child, changes)


def _config(ends: Config, local: list[str], remote: list[str], child: Config | None, changes: Config) -> Config:
    return {
        "version": 2,
        "local_port": 14500,
        "remote_port": 14500,
        "proposals": ["aes128-sha256-x25519"],
        "unique": "never",
        **ends,
        "children": {
            CHILD: {"local_ts": local, "remote_ts": remote, "esp_proposals": ["aes128gcm16"], **(child or {})}
        },
        **changes,
    }


async def _wrong_key(lab: Lab) -> None:
    await _call(lab.left, "load-shared", {**_SECRET, "data": b"something else"})
    await _try(lab, _left())
    await _call(lab.left, "load-shared", _SECRET)


async def _absent_peer(lab: Lab) -> None:
    await _try(lab, _left(remote_addrs=["10.99.0.77"]))


async def _one_address(lab: Lab) -> None:
    """A second SA of one peer takes the place of the first."""
    await _try(lab, _left(), _right(unique="replace"))
    await _load(lab.left, _left(local_addrs=["10.99.0.1"]), "again")
    await _initiate(lab, "again")


async def _two_addresses(lab: Lab) -> None:
    """A second SA of one peer, from elsewhere, is refused."""
    await _try(lab, _left(local_addrs=["10.99.0.1"]), _right(unique="keep"))
    lab.left.namespace.run("ip", "addr", "add", "10.99.0.3/24", "dev", "lab0")
    try:
        await _load(lab.left, _left(local_addrs=["10.99.0.3"]), "elsewhere")
        await _initiate(lab, "elsewhere")
    finally:
        lab.left.namespace.run("ip", "addr", "del", "10.99.0.3/24", "dev", "lab0")


@asynccontextmanager
async def _mute(lab: Lab) -> AsyncIterator[None]:
    """Within the block, replies of `right` do not arrive."""
    lab.right.namespace.run("ip", "route", "add", "blackhole", _REPLIES)
    try:
        yield
    finally:
        lab.right.namespace.run("ip", "route", "del", "blackhole", _REPLIES)


async def _replies_lost(lab: Lab) -> None:
    await _try(lab, _left())
    async with _raised(lab.right, frozenset({"retransmit-receive"}), "replies lost"), _mute(lab):
        async with _raised(lab.left, frozenset({"retransmit-send"}), "replies lost"):
            await _call(lab.left, "rekey", {"ike": NAME})


async def _half_open(lab: Lab) -> None:
    async with _mute(lab), _raised(lab.right, frozenset({"half-open-timeout"}), "half open"):
        await _try(lab, _left())


async def _lifetime_over(lab: Lab) -> None:
    """An unanswered rekeying, and an SA that is closed meanwhile."""
    await _try(lab, _left(rekey_time=1, over_time=1, rand_time=0))
    async with _mute(lab), _raised(lab.left, frozenset({"ike-sa-expired"}), "lifetime over"):
        pass


async def _malformed(lab: Lab) -> None:
    """Forged packets: too short, without the announced payload, of an SA that does not exist."""
    spis = "01020304050607080000000000000000"
    packets = (
        "00" * 20,
        f"{spis}2120220800000000" + "00000024" + "000000020000000b",
        f"{spis[:16]}{spis[:16]}2e20250800000000" + "0000001c",
    )
    script = "import socket, sys\nwith socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:\n"
    script += "    for packet in sys.argv[1:]:\n        sender.sendto(bytes.fromhex(packet), ('10.99.0.2', 14500))"
    lab.left.namespace.run("python3", "-c", script, *(_NO_MARKER.hex() + packet for packet in packets))


async def _radius_silent(lab: Lab) -> None:
    await _call(lab.left, "load-shared", {"type": "EAP", "data": b"only for the lab", "owners": [_BRANCH]})
    left = _left(local={"auth": "eap", "id": _BRANCH})
    await _try(lab, left, _right(remote={"auth": "eap-radius", "id": "%any"}))


async def _shutdown(lab: Lab) -> None:
    await asyncio.to_thread(lab.right.stop)


class _Authority:
    """A CA."""

    def __init__(self, name: str, issuer: _Authority | None = None, *extensions: x509.ExtensionType) -> None:
        self.key = generate_private_key(SECP256R1())
        self.name = _name(name)
        self.certificate = (issuer or self).sign(self.name, self.key, *extensions)

    def sign(
        self, name: x509.Name, key: EllipticCurvePrivateKey, *extensions: x509.ExtensionType, day: int = 0
    ) -> x509.Certificate:
        """Make a certificate that is valid from one day before to one day after `day`, counted from now."""
        noon = datetime.now(UTC) + timedelta(days=day)
        builder = x509.CertificateBuilder(self.name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(noon - timedelta(days=1)).not_valid_after(noon + timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def revoke(self, certificate: x509.Certificate) -> bytes:
        """Make a CRL."""
        now = datetime.now(UTC)
        revoked = x509.RevokedCertificateBuilder(certificate.serial_number, now - timedelta(hours=1)).build()
        builder = x509.CertificateRevocationListBuilder(self.name, now - timedelta(hours=1), now + timedelta(days=1))
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(issuer, critical=False).add_extension(x509.CRLNumber(1), critical=False)
        return builder.add_revoked_certificate(revoked).sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


_CA = x509.BasicConstraints(ca=True, path_length=None)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


async def _present(
    lab: Lab,
    issuer: _Authority,
    *known: _Authority,
    day: int = 0,
    between: _Authority | None = None,
    revoked: bool = False,
    strict: bool = False,
) -> None:
    """Make `left` authenticate with a certificate of `issuer`, while `right` trusts `known`."""
    key = generate_private_key(SECP256R1())
    certificate = issuer.sign(_name(_BRANCH), key, x509.SubjectAlternativeName([x509.DNSName(_BRANCH)]), day=day)
    private = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    await _call(lab.left, "load-key", {"type": "any", "data": private})
    for charon, authorities in ((lab.right, known), (lab.left, [between] if between else [])):
        for authority in authorities:
            data = authority.certificate.public_bytes(Encoding.DER)
            await _call(charon, "load-cert", {"type": "X509", "flag": "CA", "data": data})
    if revoked:
        await _call(lab.right, "load-cert", {"type": "X509_CRL", "data": issuer.revoke(certificate)})
    shown = {"auth": "pubkey", "id": _BRANCH, "certs": [certificate.public_bytes(Encoding.DER)]}
    wanted = {"auth": "pubkey", "id": _BRANCH, **({"revocation": "strict"} if strict else {})}
    await _try(lab, _left(local=shown, send_cert="always"), _right(remote=wanted))
    for charon in (lab.left, lab.right):
        await _call(charon, "clear-creds", {})
        await _call(charon, "flush-certs", {})
        await _call(charon, "load-shared", _SECRET)


async def _expired(lab: Lab) -> None:
    ca = _Authority("CA", None, _CA)
    await _present(lab, ca, ca, day=-10)


async def _stranger(lab: Lab) -> None:
    await _present(lab, _Authority("CA", None, _CA), _Authority("another CA", None, _CA))


async def _long_chain(lab: Lab) -> None:
    root = _Authority("CA", None, x509.BasicConstraints(ca=True, path_length=0))
    between = _Authority("CA between", root, _CA)
    await _present(lab, between, root, between=between)


async def _not_its_name(lab: Lab) -> None:
    names = x509.NameConstraints([x509.DNSName("elsewhere.example")], None)
    ca = _Authority("CA", None, _CA, names)
    await _present(lab, ca, ca)


async def _revoked(lab: Lab) -> None:
    signs = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage = x509.KeyUsage(
        digital_signature=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False, **signs
    )
    ca = _Authority("CA", None, _CA, usage)
    await _present(lab, ca, ca, revoked=True)


async def _no_crl(lab: Lab) -> None:
    ca = _Authority("CA", None, _CA)
    await _present(lab, ca, ca, strict=True)


async def _no_crl_needed(lab: Lab) -> None:
    """Certificates that `right` accepts nevertheless."""
    async with AsyncSession(lab.right.address) as session, session.listen("ike-updown") as listener:
        ca = _Authority("CA", None, _CA)
        await _present(lab, ca, ca)
        _, message = await anext(listener)
        if message.get("up") != "yes":
            raise LabError("a certificate without a CRL is refused")


def _refused(alert: str) -> dict[str, frozenset[str]]:
    return {"left": frozenset({"local-auth-failed"}), "right": frozenset({alert, "peer-auth-failed"})}


def _trying(left: Config, right: Config | None = None) -> Callable[[Lab], Awaitable[None]]:
    async def work(lab: Lab) -> None:
        await _try(lab, left, right)

    return work


_KEPT = frozenset({"keep-on-child-sa-failure"})
_NO_CHILD = {kind: frozenset({kind, *_KEPT}) for kind in ("proposal-mismatch-child", "ts-mismatch", "vip-failure")}
_UNHEARD = frozenset({"retransmit-send", "retransmit-send-timeout"})

WAYS: Mapping[str, Way] = {
    "a wrong key": Way(_wrong_key, frozenset({"local-auth-failed"}), frozenset({"peer-auth-failed"})),
    "no common IKE proposal": Way(
        _trying(_left(proposals=["aes256-sha384-x25519"])), *[frozenset({"proposal-mismatch-ike"})] * 2
    ),
    "no common ESP proposal": Way(
        _trying(_left({"esp_proposals": ["aes256gcm16"]})), *[_NO_CHILD["proposal-mismatch-child"]] * 2
    ),
    "no common traffic selectors": Way(
        _trying(_left({"remote_ts": ["10.77.0.1/32"]})), *[_NO_CHILD["ts-mismatch"]] * 2
    ),
    "wider traffic selectors": Way(_trying(_left({"remote_ts": ["10.128.0.0/16"]})), frozenset({"ts-narrowed"})),
    "no virtual addresses": Way(_trying(_left(vips=["0.0.0.0"])), _KEPT, _NO_CHILD["vip-failure"]),
    # The lab's userspace IPsec has no AH.
    "no IPsec for it": Way(
        _trying(*(side({"esp_proposals": [], "ah_proposals": ["sha256"]}) for side in (_left, _right))),
        right=frozenset({"install-child-sa-failed"}),
    ),
    "no address": Way(_trying(_left(remote_addrs=["%any"])), frozenset({"peer-addr-failed"})),
    "absent peer": Way(_absent_peer, _UNHEARD | {"peer-init-unreachable"}),
    "another from the same address": Way(_one_address, right=frozenset({"unique-replace"})),
    "another from elsewhere": Way(_two_addresses, right=frozenset({"unique-keep"})),
    "replies lost": Way(_replies_lost, frozenset({"retransmit-send-cleared"}), frozenset({"retransmit-receive"})),
    "half open": Way(_half_open, _UNHEARD, frozenset({"half-open-timeout"})),
    "lifetime over": Way(_lifetime_over, frozenset({"ike-sa-expired"})),
    "malformed packets": Way(
        _malformed, right=frozenset({"parse-error-header", "parse-error-body", "invalid-ike-spi"})
    ),
    "an expired certificate": Way(_expired, **_refused("cert-expired")),
    "a certificate of a stranger": Way(_stranger, **_refused("cert-no-issuer")),
    "a long chain": Way(_long_chain, **_refused("cert-exceeded-path-len")),
    "a name that the CA may not give": Way(_not_its_name, **_refused("cert-policy-violation")),
    "a revoked certificate": Way(_revoked, **_refused("cert-revoked")),
    "no CRL": Way(_no_crl, **_refused("cert-validation-failed")),
    "no CRL, and none needed": Way(_no_crl_needed, right=frozenset({"cert-validation-failed"})),
    "no RADIUS": Way(_radius_silent, **_refused("radius-not-responding")),
    "shutdown": Way(_shutdown, right=frozenset({"shutdown-signal"})),
}
