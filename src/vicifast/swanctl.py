"""What `swanctl --load-all --noprompt` does: a whole configuration into the daemon, and out of it what has gone.

    plan = read_config("/etc/swanctl/swanctl.conf")    # reads every file, talks to nobody
    report = plan.load(session)                         # or await plan.load_async(session)

Requests and their order are swanctl's (strongSwan 5.9.8 to 6.1.0: `load_creds.c`, `load_authorities.c`, `load_pools.c`,
`load_conns.c`); files of a directory go in the order of their names, where swanctl takes them as the file system gives
them. Where swanctl goes on with something broken, this does not: a configuration that cannot be parsed is a
`ConfigError` (swanctl 5.9.8 unloads everything), and a secret that is no hexadecimal or Base64 after `0x` or `0s`, an
empty file, and an encrypted private key without the right passphrase are reported and not sent.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from .errors import ConfigError
from .keys import is_encrypted, open_container, open_key
from .plan import Plan, Step
from .settings import Settings

DEFAULT_DIRECTORY = "/etc/swanctl"

# The directories with certificates, in swanctl's order, and the type and flag with which their files are loaded.
_CERTIFICATES = {
    "x509": ("X509", "NONE"),
    "x509ca": ("X509", "CA"),
    "x509ocsp": ("X509", "OCSP"),
    "x509aa": ("X509", "AA"),
    "x509ac": ("X509_AC", None),
    "x509crl": ("X509_CRL", None),
    "pubkey": ("PUBKEY", None),
}
# The directories with private keys, and the type that the daemon is told.
_KEYS = {"private": "any", "rsa": "rsa", "ecdsa": "ecdsa", "pkcs8": "any"}
_SHARED = ("eap", "xauth", "ntlm", "ike", "ppk")
_OTHER_SECRETS = (*_KEYS, "pkcs12", "token")
_LISTS = frozenset(
    (
        *("local_addrs", "remote_addrs", "vips", "pools", "proposals", "esp_proposals", "ah_proposals"),
        *("local_ts", "remote_ts", "groups", "cert_policy"),
    )
)
_FILE_LISTS = {"certs": "x509", "cacerts": "x509ca", "pubkeys": "pubkey"}
_URI_LISTS = frozenset({"crl_uris", "ocsp_uris"})

_HEX = re.compile(r"(?:0x)?([0-9A-Fa-f:]*)")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")


def read_config(path: str | os.PathLike[str] | None = None) -> Plan:
    """Read a configuration and every file that it names or that lies in the directories beside it.

    Without `path` it is `swanctl.conf` in the directory that SWANCTL_DIR names, or in /etc/swanctl. `ConfigError` when
    it cannot be read or parsed; what is wrong with a single credential or section becomes the problem of its step.
    Opening encrypted keys takes time: in an asyncio program call this in a thread.
    """
    if path is None:
        path = os.path.join(os.environ.get("SWANCTL_DIR") or DEFAULT_DIRECTORY, "swanctl.conf")
    settings, directory = Settings.read(path), Path(path).parent
    return Plan(
        (*_certificates(directory), *_keys(settings, directory), *_secrets(settings)),
        tuple(_authority(settings, directory, name) for name in settings.sections("authorities")),
        tuple(_pool(settings, name) for name in settings.sections("pools")),
        tuple(_connection(settings, directory, name) for name in settings.sections("connections")),
    )


def _prepared(what: str, command: str, build: Callable[[], Mapping[str, object]], name: str = "") -> Step:
    try:
        return Step(what, command, build(), name)
    except ConfigError as error:
        return Step(what, command, name=name, problem=str(error))


def _files(directory: Path) -> list[Path]:
    """The files of a directory, which need not exist."""
    try:
        return sorted(path for path in directory.iterdir() if path.is_file())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror or error}") from None


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    if not data:
        raise ConfigError(f"{path} is empty")
    return data


def _certificates(directory: Path) -> Iterator[Step]:
    for name, (kind, flag) in _CERTIFICATES.items():
        head = {"type": kind, "flag": flag} if flag else {"type": kind}
        for path in _files(directory / name):
            yield _prepared(f"certificate {path}", "load-cert", partial(_certificate, head, path))


def _certificate(head: Mapping[str, str], path: Path) -> dict[str, object]:
    return {**head, "data": _read(path)}


def _keys(settings: Settings, directory: Path) -> Iterator[Step]:
    for kind in _KEYS:
        for path in _files(directory / kind):
            yield _prepared(f"private key {path}", "load-key", partial(_key, settings, kind, path))
    for path in _files(directory / "pkcs12"):
        try:
            yield from _container(settings, path)
        except ConfigError as error:
            yield Step(f"container {path}", "load-cert", problem=str(error))


def _key(settings: Settings, kind: str, path: Path) -> dict[str, object]:
    data, passphrases = _read(path), _passphrases(settings, kind, path.name)
    if passphrases:
        algorithm, data = open_key(data, passphrases)
        return {"type": algorithm, "data": data}
    if is_encrypted(data):
        raise ConfigError(f"it is encrypted, and no section secrets.{kind}... with a secret names it as its file")
    return {"type": _KEYS[kind], "data": data}


def _container(settings: Settings, path: Path) -> Iterator[Step]:
    passphrases = _passphrases(settings, "pkcs12", path.name)
    if not passphrases:
        raise ConfigError("no section secrets.pkcs12... with a secret names it as its file")
    certificates, keys = open_container(_read(path), passphrases)
    for certificate in certificates:
        yield Step(f"certificate {path}", "load-cert", {"type": "X509", "flag": "NONE", "data": certificate})
    for algorithm, key in keys:
        yield Step(f"private key {path}", "load-key", {"type": algorithm, "data": key})


def _passphrases(settings: Settings, kind: str, filename: str) -> list[str]:
    """Every `secret...` of the sections `kind...` whose file is this one; swanctl looks at no case in it."""
    found = []
    for name in settings.sections("secrets"):
        values = settings.values("secrets", name) if name.startswith(kind) else {}
        if values.get("file", "").lower() == filename.lower():
            found += [value for key, value in values.items() if key.startswith("secret")]
    return found


def _secrets(settings: Settings) -> Iterator[Step]:
    names = settings.sections("secrets")
    for name in names:
        if name.startswith("token"):
            yield Step(f"token {name}", "load-token", settings.values("secrets", name))
    for name in names:
        kind = next((kind for kind in _SHARED if name.startswith(kind)), "")
        if kind:
            yield _prepared(f"{kind} secret {name}", "load-shared", partial(_secret, settings, kind, name), name)
        elif not name.startswith(_OTHER_SECRETS):
            kinds = ", ".join((*_SHARED, *_OTHER_SECRETS))
            yield Step(f"secret {name}", "load-shared", problem=f"its name begins with none of {kinds}")


def _secret(settings: Settings, kind: str, name: str) -> dict[str, object]:
    values = settings.values("secrets", name)
    if "secret" not in values:
        raise ConfigError("it has no secret")
    owners = [value for key, value in values.items() if key.startswith("id")]
    return {"id": name, "type": kind, "data": _blob(values["secret"]), "owners": owners}


def _blob(value: str) -> bytes:
    """Bytes written as they are, in hexadecimal after 0x, or in Base64 after 0s."""
    prefix, digits = value[:2].lower(), value[2:]
    if prefix == "0x":
        if (match := _HEX.fullmatch(digits)) is None:
            raise ConfigError("after 0x come characters that are no hexadecimal digits")
        digits = match[1].replace(":", "")
        return bytes.fromhex("0" * (len(digits) % 2) + digits)
    if prefix == "0s":
        if len(digits) % 4 or _BASE64.fullmatch(digits) is None:
            raise ConfigError("what comes after 0s is not Base64")
        return base64.b64decode(digits.replace("-", "+").replace("_", "/"))
    return value.encode("utf-8", "surrogateescape")


def _tokens(value: str) -> Iterator[str]:
    """The items of a list: between commas, without spaces around them; an item in quotes is taken as it is."""
    position = 0
    while True:
        while value[position : position + 1] in (" ", ","):
            position += 1
        if position == len(value):
            return
        quote = value.find(value[position], position + 1) if value[position] in "\"'" else -1
        if quote >= 0:
            yield value[position + 1 : quote]
            position = quote + 1
        else:
            comma = value.find(",", position)
            end = comma if comma >= 0 else len(value)
            yield value[position:end].rstrip(" ")
            position = end


def _authority(settings: Settings, directory: Path, name: str) -> Step:
    def build() -> dict[str, object]:
        message: dict[str, object] = {}
        for key, value in settings.values("authorities", name).items():
            if key == "cacert":
                message[key] = _read(directory / "x509ca" / value)
            else:
                message[key] = list(_tokens(value)) if key in _URI_LISTS else value
        return {name: message}

    return _prepared(f"authority {name}", "load-authority", build, name)


def _pool(settings: Settings, name: str) -> Step:
    values = settings.values("pools", name).items()
    message = {key: value if key == "addrs" else list(_tokens(value)) for key, value in values}
    return Step(f"pool {name}", "load-pool", {name: message}, name)


def _connection(settings: Settings, directory: Path, name: str) -> Step:
    build = partial(_connection_section, settings, directory, ("connections", name))
    return _prepared(f"connection {name}", "load-conn", lambda: {name: build()}, name)


def _connection_section(settings: Settings, directory: Path, path: tuple[str, ...]) -> dict[str, object]:
    message: dict[str, object] = {}
    for key, value in settings.values(*path).items():
        if key.lower() in _FILE_LISTS:
            message[key] = [_file_or_blob(directory / _FILE_LISTS[key.lower()], item) for item in _tokens(value)]
        else:
            message[key] = list(_tokens(value)) if key.lower() in _LISTS else value
    for name in settings.sections(*path):
        if name in message:
            raise ConfigError(f"{'.'.join((*path, name))} is both a value and a section")
        message[name] = _connection_section(settings, directory, (*path, name))
    return message


def _file_or_blob(directory: Path, item: str) -> bytes:
    return _blob(item) if item[:2].lower() in ("0x", "0s") else _read(directory / item)
