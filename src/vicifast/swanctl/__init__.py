"""Loads a whole configuration into the daemon and unloads everything else, as `swanctl --load-all` does.

    plan = read_config("/etc/swanctl/swanctl.conf")    # reads every file, sends nothing
    report = plan.load(session)                         # or await plan.load_async(session)

The requests and their order are those of swanctl (strongSwan 5.9.8 to 6.1.0: `load_creds.c`, `load_authorities.c`,
`load_pools.c`, `load_conns.c`); the files of a directory are loaded in the order of their names, while swanctl uses the
order of the file system. Differences from swanctl:

* A configuration that cannot be parsed raises `ConfigError`, and nothing is sent (swanctl 5.9.8 unloads everything).
* Nothing is unloaded because it could not be read. If a file, a directory, a key, a secret or a section cannot be read
  or opened, or the daemon refuses a private key, nothing of that kind is unloaded, and the report lists what was kept.
  Credentials are not cleared if one of them could not be read.
* A secret that is not hexadecimal after `0x` or Base64 after `0s`, and an encrypted private key without the right
  passphrase, are reported and not sent. A file of over 512 KiB, the limit of a VICI message, and an empty file in a
  directory are skipped; an empty file is ignored if its name begins with a dot (`.gitkeep`).
* A PEM file with several certificates in a directory other than `x509` is loaded completely, with one request per
  certificate, as charon reads only the first in a request. In `x509` only the first is loaded, as with swanctl, and the
  others are reported as skipped, because charon trusts every certificate it loads. A connection or an authority that
  names the file gets only the first, as with swanctl, and its line in the report mentions that.

Opening encrypted keys and PKCS#12 containers requires the package cryptography, which the extra `cli` installs.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from .._wire import MAX_PACKET, Message, encode
from ..errors import ConfigError, EncodeError
from .load_plan import PARTS, Part, Plan, Step
from .private_keys import is_encrypted, open_container, open_key
from .settings import Settings, read_bounded

DEFAULT_DIRECTORY = "/etc/swanctl"

# The directories with certificates, in swanctl's order, and the type and flag of their files.
_END_ENTITY = {"type": "X509", "flag": "NONE"}
_CERTIFICATES = {
    "x509": _END_ENTITY,
    "x509ca": {"type": "X509", "flag": "CA"},
    "x509ocsp": {"type": "X509", "flag": "OCSP"},
    "x509aa": {"type": "X509", "flag": "AA"},
    "x509ac": {"type": "X509_AC"},
    "x509crl": {"type": "X509_CRL"},
    "pubkey": {"type": "PUBKEY"},
}
# The directories with private keys, and the type sent to the daemon.
_KEYS = {"private": "any", "rsa": "rsa", "ecdsa": "ecdsa", "bliss": "bliss", "pkcs8": "any"}
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
_PEM = re.compile(rb"-----BEGIN ([^\r\n-]+)-----.*?-----END \1-----", re.DOTALL)

_TOO_LARGE = f"the file is larger than {MAX_PACKET // 1024} KiB, the limit of a VICI message; split or remove it"

Ask = Callable[[str], str]


def read_config(
    path: str | os.PathLike[str] | None = None, *, parts: Collection[Part] = PARTS, ask: Ask | None = None
) -> Plan:
    """Read a configuration, every file that it names, and the files in the directories next to it.

    The default `path` is `swanctl.conf` in the directory SWANCTL_DIR (the current one if that is empty), or in
    /etc/swanctl. `parts` limits the plan; files of other parts are not read. `ask` is called with a prompt for each
    passphrase and PIN missing in the configuration, and returns it, or an empty text to continue without. Raises
    `ConfigError` if the configuration cannot be read or parsed; an error in a single credential or section becomes the
    problem of its step. Opening encrypted keys is slow: in an asyncio program, call this in a thread.
    """
    if path is None:
        path = os.path.join(os.environ.get("SWANCTL_DIR", DEFAULT_DIRECTORY), "swanctl.conf")
    settings, directory = Settings.read(path), Path(path).parent
    build: dict[Part, Callable[[], Iterator[Step]]] = {
        "credentials": lambda: _credentials(settings, directory, ask),
        "authorities": lambda: _each(settings, "authorities", partial(_authority, settings, directory)),
        "pools": lambda: _each(settings, "pools", partial(_pool, settings)),
        "connections": lambda: _each(settings, "connections", partial(_connection, settings, directory)),
    }
    return Plan(**{part: tuple(build[part]()) for part in parts}, parts=frozenset(parts))


def _each(settings: Settings, section: str, steps: Callable[[str], Iterator[Step]]) -> Iterator[Step]:
    for name in settings.sections(section):
        yield from steps(name)


def _credentials(settings: Settings, directory: Path, ask: Ask | None) -> Iterator[Step]:
    for name, head in _CERTIFICATES.items():
        yield from _files(directory / name, "certificate", "load-cert", partial(_certificates, head))
    for kind in _KEYS:
        yield from _files(directory / kind, "private key", "load-key", partial(_keys, settings, kind, ask))
    yield from _files(directory / "pkcs12", "container", "load-key", partial(_container, settings, ask))
    yield from _secrets(settings, ask)


def _prepared(what: str, command: str, build: Callable[[], Mapping[str, object]], name: str = "") -> Step:
    try:
        return Step(what, command, build(), name)
    except (ConfigError, EncodeError) as error:
        return Step(what, command, name=name, problem=str(error))


def _files(
    directory: Path, what: str, command: str, steps: Callable[[str, Path, bytes], Iterator[Step]]
) -> Iterator[Step]:
    """Yield the steps for each file of a directory, which need not exist."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not directory.is_symlink():
            return
        yield Step(f"{what}s in {directory}", command, problem=_reason(error))
        return
    for path in paths:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                continue
            try:
                data = read_bounded(path, MAX_PACKET)
            except ConfigError:
                yield Step(f"{what} {path}", command, skipped=_TOO_LARGE)
                continue
            if data:
                yield from steps(f"{what} {path}", path, data)
            elif not path.name.startswith("."):
                yield Step(f"{what} {path}", command, skipped="the file is empty")
        except OSError as error:
            yield Step(f"{what} {path}", command, problem=_reason(error))
        except ConfigError as error:
            yield Step(f"{what} {path}", command, problem=str(error))


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _read(path: Path) -> bytes:
    """Return the content of a file that a section names."""
    try:
        data = read_bounded(path, MAX_PACKET)
    except OSError as error:
        raise ConfigError(f"{path}: {_reason(error)}") from None
    if not data:
        raise ConfigError(f"{path} is empty")
    return data


def _certificate_blocks(data: bytes) -> list[bytes]:
    """Return the blocks of a PEM file with the type of its first block, the only one that charon reads."""
    blocks = list(_PEM.finditer(data))
    return [block[0] + b"\n" for block in blocks if block[1] == blocks[0][1]]


def _key_blocks(data: bytes) -> list[bytes]:
    return [block[0] + b"\n" for block in _PEM.finditer(data) if block[1].endswith(b"PRIVATE KEY")]


def _numbered(what: str, data: bytes, blocks: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield each block with its description; a file without several blocks unchanged."""
    if len(blocks) < 2:
        yield what, data
    else:
        yield from ((f"{what}, {number} of {len(blocks)}", block) for number, block in enumerate(blocks, 1))


def _certificates(head: Mapping[str, str], what: str, path: Path, data: bytes) -> Iterator[Step]:
    if head == _END_ENTITY:
        yield Step(what, "load-cert", {**head, "data": data})
        if (count := len(_certificate_blocks(data))) > 1:
            yield Step(str(path), "", skipped=f"only the first of its {count} PEM blocks is loaded")
    else:
        for name, block in _numbered(what, data, _certificate_blocks(data)):
            yield Step(name, "load-cert", {**head, "data": block})


def _keys(settings: Settings, kind: str, ask: Ask | None, what: str, path: Path, data: bytes) -> Iterator[Step]:
    for name, block in _numbered(what, data, _key_blocks(data)):
        yield _prepared(name, "load-key", partial(_key, settings, kind, ask, path, block))


def _key(settings: Settings, kind: str, ask: Ask | None, path: Path, data: bytes) -> dict[str, object]:
    passphrases, encrypted = _passphrases(settings, kind, path.name), is_encrypted(data)
    if passphrases or ask is not None:  # else swanctl sends the file unchanged
        candidates = _all_passphrases(passphrases, ask, kind, path) if encrypted else [""]
        try:
            algorithm, opened = open_key(data, candidates)
            return {"type": algorithm, "data": opened}
        except ConfigError:
            if encrypted:
                raise
    if encrypted:
        raise ConfigError(f"the key is encrypted, and no section secrets.{kind}... has its file name and a secret")
    return {"type": _KEYS[kind], "data": data}


def _container(settings: Settings, ask: Ask | None, what: str, path: Path, data: bytes) -> Iterator[Step]:
    passphrases = _passphrases(settings, "pkcs12", path.name)
    if not passphrases and ask is None:
        raise ConfigError("no section secrets.pkcs12... has its file name and a secret")
    certificates, keys = open_container(data, _all_passphrases(passphrases, ask, "pkcs12", path))
    for certificate in certificates:
        yield Step(f"certificate {path}", "load-cert", {**_END_ENTITY, "data": certificate})
    for algorithm, key in keys:
        yield Step(f"private key {path}", "load-key", {"type": algorithm, "data": key})


def _all_passphrases(configured: list[str], ask: Ask | None, kind: str, path: Path) -> Iterator[str]:
    """Yield the configured passphrases, and then one from a prompt."""
    yield from configured
    if ask is not None and (passphrase := ask(f"Password for {kind} file '{path.name}'")):
        yield passphrase


def _passphrases(settings: Settings, kind: str, filename: str) -> list[str]:
    """Return every `secret...` of the sections `kind...` with this file; like swanctl, ignore the case of its name."""
    found = []
    for name in settings.sections("secrets"):
        values = settings.values("secrets", name) if name.startswith(kind) else {}
        if values.get("file", "").lower() == filename.lower():
            found += [value for key, value in values.items() if key.startswith("secret")]
    return found


def _secrets(settings: Settings, ask: Ask | None) -> Iterator[Step]:
    names = settings.sections("secrets")
    for name in names:
        if name.startswith("token"):
            values = settings.values("secrets", name)
            if ask is not None and "pin" not in values and (pin := ask(f"PIN for {name}")):
                values["pin"] = pin
            yield Step(f"token {name}", "load-token", values)
    for name in names:
        kind = next((kind for kind in _SHARED if name.startswith(kind)), "")
        if kind:
            yield _prepared(f"{kind} secret {name}", "load-shared", partial(_secret, settings, kind, name), name)
        elif not name.startswith(_OTHER_SECRETS):
            kinds = ", ".join((*_SHARED, *_OTHER_SECRETS))
            yield Step(f"secret {name}", "load-shared", problem=f"the name must begin with one of {kinds}")


def _secret(settings: Settings, kind: str, name: str) -> dict[str, object]:
    values = settings.values("secrets", name)
    if "secret" not in values:
        raise ConfigError("the section has no secret")
    owners = [value for key, value in values.items() if key.startswith("id")]
    return {"id": name, "type": kind, "data": _blob(values["secret"]), "owners": owners}


def _blob(value: str) -> bytes:
    """Decode a value: hexadecimal after 0x, Base64 after 0s, else text."""
    prefix, digits = value[:2].lower(), value[2:]
    if prefix == "0x":
        if (match := _HEX.fullmatch(digits)) is None:
            raise ConfigError("the value after 0x is not hexadecimal")
        digits = match[1].replace(":", "")
        return bytes.fromhex("0" * (len(digits) % 2) + digits)
    if prefix == "0s":
        if len(digits) % 4 or _BASE64.fullmatch(digits) is None:
            raise ConfigError("the value after 0s is not Base64")
        return base64.b64decode(digits.replace("-", "+").replace("_", "/"))
    return value.encode("utf-8", "surrogateescape")


def _tokens(value: str) -> Iterator[str]:
    """Yield the items of a comma-separated list without surrounding spaces; a quoted item unchanged."""
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


def _authority(settings: Settings, directory: Path, name: str) -> Iterator[Step]:
    used: list[str] = []

    def build() -> dict[str, object]:
        message: dict[str, object] = {}
        for key, value in settings.values("authorities", name).items():
            if key == "cacert":
                message[key] = _first(directory / "x509ca" / value, used)
            else:
                message[key] = list(_tokens(value)) if key in _URI_LISTS else value
        return {name: message}

    yield _noted(_prepared(f"authority {name}", "load-authority", build, name), used)


def _pool(settings: Settings, name: str) -> Iterator[Step]:
    values = settings.values("pools", name).items()
    message = {key: value if key == "addrs" else list(_tokens(value)) for key, value in values}
    yield Step(f"pool {name}", "load-pool", {name: message}, name)


def _connection(settings: Settings, directory: Path, name: str) -> Iterator[Step]:
    used: list[str] = []
    build = partial(_connection_section, settings, directory, ("connections", name), used)
    yield _noted(_prepared(f"connection {name}", "load-conn", lambda: {name: build()}, name), used)


def _connection_section(
    settings: Settings, directory: Path, path: tuple[str, ...], used: list[str]
) -> Mapping[str, object] | Message:
    values: dict[str, object] = {}
    for key, value in settings.values(*path).items():
        if key.lower() in _FILE_LISTS:
            # as in swanctl, a file under a key in capitals is relative to the working directory
            base = directory / _FILE_LISTS[key] if key in _FILE_LISTS else Path()
            values[key] = [_file_or_blob(base, item, used) for item in _tokens(value)]
        else:
            values[key] = list(_tokens(value)) if key.lower() in _LISTS else value
    names = settings.sections(*path)
    sections = {name: _connection_section(settings, directory, (*path, name), used) for name in names}
    if values.keys() & sections.keys():  # a dict cannot hold a name twice
        return Message(encode(values) + encode(sections))
    return {**values, **sections}


def _file_or_blob(directory: Path, item: str, used: list[str]) -> bytes:
    if item[:2].lower() in ("0x", "0s"):
        return _blob(item)
    return _first(directory / item, used)


def _first(path: Path, used: list[str]) -> bytes:
    """Return the content of a file, of which charon reads the first certificate; describe that in `used`."""
    data = _read(path)
    if (count := len(_certificate_blocks(data))) > 1:
        used.append(f"the first of the {count} PEM blocks in {path}")
    return data


def _noted(step: Step, used: list[str]) -> Step:
    return replace(step, what=f"{step.what}, using only {' and '.join(dict.fromkeys(used))}") if used else step
