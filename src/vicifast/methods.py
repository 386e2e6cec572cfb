"""charon's commands as methods, for all session classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

DEFAULT: Final[float] = -1.0  # use the session's timeout; compared by identity

# Seconds that charon may take to reply after its own timeout.
_MARGIN = 5.0
_LONGEST = 2**31 - 1

ReplyT = TypeVar("ReplyT")
StreamT = TypeVar("StreamT")


class Commands(Generic[ReplyT, StreamT]):
    """The 36 commands of every charon since 5.6.1, each a method with the name of the command and `_` for `-`.

    The keyword arguments are the keys of the request, with `_` for `-`; None and False are not sent. A streaming
    command is sent immediately and returns a stream; other commands return the reply. Both raise `CommandError` when
    charon reports a failure, as do `call` and `stream`, which also accept other commands and keys. Hexadecimal text has
    no `0x` prefix.

    `timeout` is always the maximum wait for the reply or the next message, in seconds: None for no limit, by default
    that of the session. `vicifast.commands.COMMANDS` lists the commands in a table, with the danger of each.
    """

    timeout: float | None

    def call(
        self, command: str, message: Mapping[str, object] | None = None, *, timeout: float | None = DEFAULT
    ) -> ReplyT:
        """Run a command and return its reply."""
        raise NotImplementedError

    def stream(
        self,
        command: str,
        message: Mapping[str, object] | None = None,
        event: str | None = None,
        *,
        timeout: float | None = DEFAULT,
    ) -> StreamT:
        """Run a command and return a stream of its messages."""
        raise NotImplementedError

    # The daemon.

    def version(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `daemon`, `version`, `sysname`, `release` and `machine`."""
        return self.call("version", timeout=timeout)

    def stats(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `uptime`, `workers`, `queues`, `scheduled`, `ikesas`, `plugins`, and `mem` or `mallinfo` as built."""
        return self.call("stats", timeout=timeout)

    def reload_settings(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Make charon and its plugins reload strongswan.conf. Since 5.2.1."""
        return self.call("reload-settings", timeout=timeout)

    def get_algorithms(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return a section for each type of algorithm, with the plugin that implements each. Since 5.4.0."""
        return self.call("get-algorithms", timeout=timeout)

    def get_counters(self, name: str | None = None, *, all: bool = False, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `counters`, the 21 IKE message counters of a connection. Since 5.6.1; requires the counters plugin.

        Without `name` and `all` there is one section, under the empty name, with the totals of all connections; `all`
        returns a section for each connection. charon silently drops a reply over 512 KiB (a few thousand connections),
        and the call ends with `RequestTimeout`: request them one by one.
        """
        return self.call("get-counters", _request(name=name, all=all), timeout=timeout)

    def reset_counters(self, name: str | None = None, *, all: bool = False, timeout: float | None = DEFAULT) -> ReplyT:
        """Reset the counters of a connection, with `all` of every connection, without both the totals. Since 5.6.1."""
        return self.call("reset-counters", _request(name=name, all=all), timeout=timeout)

    # SAs.

    def initiate(
        self,
        *,
        child: str | None = None,
        ike: str | None = None,
        init_limits: bool = False,
        loglevel: int | None = None,
        timeout: float | None = DEFAULT,
    ) -> StreamT:
        """Establish a CHILD_SA and the IKE_SA it needs, or an IKE_SA alone, and stream its log (`control-log`).

        `timeout` is in seconds and is also sent to charon (in milliseconds, as VICI requires): after that time charon
        replies with the error `not established after ...`, but continues trying. With 0 it replies immediately, without
        a log; with None it waits indefinitely. Each waiting `initiate` occupies one of charon's few threads.

        With `init_limits` charon refuses when it is busy (charon.init_limit_*); `loglevel` is -1 to 4, by default 1,
        and the log contains keys above 2. The error of a failed `initiate` is raised by reading the stream, or by
        `wait()`.
        """
        limit, wait = self._charon_timeout(timeout)
        request = _request(child=child, ike=ike, timeout=limit, init_limits=init_limits, loglevel=loglevel)
        return self.stream("initiate", request, timeout=wait)

    def terminate(
        self,
        *,
        child: str | None = None,
        ike: str | None = None,
        child_id: int | None = None,
        ike_id: int | None = None,
        force: bool = False,
        loglevel: int | None = None,
        timeout: float | None = DEFAULT,
    ) -> StreamT:
        """Close all matching SAs, one after the other, and stream the log (`control-log`).

        `child` and `child_id` select CHILD_SAs, the others IKE_SAs with their CHILD_SAs. `timeout` is as for
        `initiate`, and applies to each matching SA. `force` closes IKE_SAs whose peer does not respond: after the
        timeout if there is one, else without waiting. The reply has `matches` and `terminated`. Raises `CommandError`
        if nothing matches.
        """
        limit, wait = self._charon_timeout(timeout)
        selector = _request(child=child, ike=ike, child_id=child_id, ike_id=ike_id)
        request = {**selector, **_request(force=force, timeout=limit, loglevel=loglevel)}
        return self.stream("terminate", request, timeout=wait)

    def rekey(
        self,
        *,
        child: str | None = None,
        ike: str | None = None,
        child_id: int | None = None,
        ike_id: int | None = None,
        reauth: bool = False,
        timeout: float | None = DEFAULT,
    ) -> ReplyT:
        """Start rekeying all SAs that match, as in `terminate`, and return `matches`. Since 5.5.2.

        The reply does not wait for the rekeying: the events `ike-rekey` and `child-rekey` report its completion.
        `reauth` replaces IKE_SAs with a new authentication instead. Raises `CommandError` if nothing matches.
        """
        selector = _request(child=child, ike=ike, child_id=child_id, ike_id=ike_id)
        return self.call("rekey", {**selector, **_request(reauth=reauth)}, timeout=timeout)

    def redirect(
        self,
        gateway: str,
        *,
        ike: str | None = None,
        ike_id: int | None = None,
        peer_ip: str | None = None,
        peer_id: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> ReplyT:
        """Redirect the peers of matching IKEv2 SAs to `gateway`, an address or a name (RFC 5685). Since 5.4.0.

        `peer_ip` is an address, a subnet or a range, `peer_id` an identity, which may contain wildcards; all given
        selectors must match. The reply has `matches`. Raises `CommandError` if nothing matches.
        """
        selector = _request(ike=ike, ike_id=ike_id, peer_ip=peer_ip, peer_id=peer_id)
        return self.call("redirect", {"gateway": gateway, **selector}, timeout=timeout)

    def list_sas(
        self,
        *,
        ike: str | None = None,
        ike_id: int | None = None,
        child: str | None = None,
        child_id: int | None = None,
        noblock: bool = False,
        timeout: float | None = DEFAULT,
    ) -> StreamT:
        """Stream the matching IKE_SAs, each with its CHILD_SAs; `vicifast.results.IkeSa` parses them.

        Connection names are not unique: several SAs may share one. `uniqueid` is unique until charon restarts.
        `noblock` skips SAs that charon is processing instead of waiting for them. SAs with AEAD have no `integ-alg`.
        charon supports `child` and `child_id` since 5.9.6 and ignores them before.
        """
        request = _request(ike=ike, ike_id=ike_id, child=child, child_id=child_id, noblock=noblock)
        return self.stream("list-sas", request, timeout=timeout)

    # Policies.

    def install(self, child: str, *, ike: str | None = None, timeout: float | None = DEFAULT) -> ReplyT:
        """Install the trap, drop or bypass policy of a configured child; `ike` is its connection."""
        return self.call("install", _request(child=child, ike=ike), timeout=timeout)

    def uninstall(self, child: str, *, ike: str | None = None, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove a policy that `install` or `start_action=trap` installed."""
        return self.call("uninstall", _request(child=child, ike=ike), timeout=timeout)

    def list_policies(
        self,
        *,
        drop: bool = False,
        pass_: bool = False,
        trap: bool = False,
        child: str | None = None,
        ike: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> StreamT:
        """Stream the installed drop, bypass (`pass_`) and trap policies, each kind only if requested."""
        request = _request(drop=drop, **{"pass": pass_}, trap=trap, child=child, ike=ike)
        return self.stream("list-policies", request, timeout=timeout)

    # Connections and pools.

    def load_conn(self, name: str, config: Mapping[str, object], *, timeout: float | None = DEFAULT) -> ReplyT:
        """Add a connection, or replace the one with that name; `config` is as in swanctl.conf.

        Pass lists as lists: charon rejects text where it expects a list. Certificates and public keys are bytes, PEM or
        DER. `children.*.updown` names a script that charon runs with its own privileges.
        """
        return self.call("load-conn", {name: config}, timeout=timeout)

    def unload_conn(self, name: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove a connection; its SAs stay up."""
        return self.call("unload-conn", {"name": name}, timeout=timeout)

    def get_conns(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `conns`, the names of the connections loaded over VICI."""
        return self.call("get-conns", timeout=timeout)

    def list_conns(self, *, ike: str | None = None, timeout: float | None = DEFAULT) -> StreamT:
        """Stream the connections, including those not loaded over VICI; `ike` is the name of one."""
        return self.stream("list-conns", _request(ike=ike), timeout=timeout)

    def load_pool(self, name: str, config: Mapping[str, object], *, timeout: float | None = DEFAULT) -> ReplyT:
        """Add or replace a pool of virtual addresses: `addrs` is a subnet or a range.

        Every other key is a list of attributes assigned with an address: `dns`, `nbns`, `dhcp`, `netmask`, `server`,
        `subnet`, `split_include`, `split_exclude`, `address`, or the number of an attribute.
        """
        return self.call("load-pool", {name: config}, timeout=timeout)

    def unload_pool(self, name: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove a pool. Raises `CommandError` while it has online leases."""
        return self.call("unload-pool", {"name": name}, timeout=timeout)

    def get_pools(self, name: str | None = None, *, leases: bool = False, timeout: float | None = DEFAULT) -> ReplyT:
        """Return the `base`, `size`, `online` and `offline` of each pool, with `leases` also each lease.

        For an unknown `name` the reply is empty, without an error.
        """
        return self.call("get-pools", _request(name=name, leases=leases), timeout=timeout)

    # Credentials.

    def load_cert(
        self,
        data: str | bytes,
        *,
        type: str = "X509",
        flag: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> ReplyT:
        """Load a certificate or a CRL, PEM or DER; `flag` is `CA` for a trust anchor, also `AA`, `OCSP`, `NONE`.

        `type` is `X509`, `X509_AC` or `X509_CRL`.
        """
        return self.call("load-cert", _request(type=type, flag=flag, data=data), timeout=timeout)

    def list_certs(
        self,
        *,
        type: str | None = None,
        flag: str | None = None,
        subject: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> StreamT:
        """Stream the matching certificates; their `data` is DER bytes.

        `type` is `X509`, `X509_AC`, `X509_CRL`, `OCSP_RESPONSE`, `PUBKEY` or `ANY`; an unknown type lists nothing,
        without an error. `flag` is `NONE`, `CA`, `AA`, `OCSP` or `ANY`; charon ignores it unless the type is `X509`.
        """
        return self.stream("list-certs", _request(type=type, flag=flag, subject=subject), timeout=timeout)

    def flush_certs(self, type: str | None = None, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Clear charon's certificate cache, for one type or all (see `list_certs`). Since 5.5.1."""
        return self.call("flush-certs", _request(type=type), timeout=timeout)

    def load_key(self, data: str | bytes, *, type: str = "any", timeout: float | None = DEFAULT) -> ReplyT:
        """Load a private key, unencrypted PEM or DER, and return its `id`.

        `type` is `rsa`, `ecdsa`, `ed25519`, `ed448`, `bliss` (before 6.0) or `any`. The `id` is the SHA-1 of the public
        key in hexadecimal.
        """
        return self.call("load-key", _request(type=type, data=data), timeout=timeout)

    def unload_key(self, id: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove the private key with this `id`, as `load_key` or `load_token` returned it. Since 5.5.2."""
        return self.call("unload-key", {"id": id}, timeout=timeout)

    def get_keys(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `keys`, the identifiers of the private keys loaded over VICI. Since 5.5.2."""
        return self.call("get-keys", timeout=timeout)

    def load_token(
        self,
        handle: str,
        *,
        slot: int | None = None,
        module: str | None = None,
        pin: str | None = None,
        timeout: float | None = DEFAULT,
    ) -> ReplyT:
        """Load a private key on a token and return its `id`; `handle` is its CKA_ID in hexadecimal. Since 5.5.2.

        Requires the pkcs11 or the tpm plugin.
        """
        return self.call("load-token", _request(handle=handle, slot=slot, module=module, pin=pin), timeout=timeout)

    def load_shared(
        self,
        data: str | bytes,
        *,
        type: str,
        id: str | None = None,
        owners: Sequence[str] | None = None,
        timeout: float | None = DEFAULT,
    ) -> ReplyT:
        """Load a shared secret of any bytes; `type` is `IKE`, `EAP`, `XAUTH`, `NTLM` or `PPK`.

        `owners` are the identities that it applies to, by default all. It replaces a secret with the same `id`;
        without `id` it cannot be unloaded individually.
        """
        return self.call("load-shared", _request(id=id, type=type, data=data, owners=owners), timeout=timeout)

    def unload_shared(self, id: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove the shared secret with this `id`; an unknown `id` is not an error. Since 5.5.2."""
        return self.call("unload-shared", {"id": id}, timeout=timeout)

    def get_shared(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `keys`, the identifiers of the loaded shared secrets. Since 5.5.2."""
        return self.call("get-shared", timeout=timeout)

    def clear_creds(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove every certificate, key and secret loaded over VICI, by any client."""
        return self.call("clear-creds", timeout=timeout)

    # Authorities.

    def load_authority(self, name: str, config: Mapping[str, object], *, timeout: float | None = DEFAULT) -> ReplyT:
        """Add or replace a certification authority: `cacert` (PEM or DER), `file`, or `handle`, `slot` and `module`.

        With `crl_uris` and `ocsp_uris`, which are lists, and `cert_uri_base`. Since 5.3.3.
        """
        return self.call("load-authority", {name: config}, timeout=timeout)

    def unload_authority(self, name: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove a certification authority. Since 5.3.3."""
        return self.call("unload-authority", {"name": name}, timeout=timeout)

    def get_authorities(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `authorities`, their names. Since 5.3.3."""
        return self.call("get-authorities", timeout=timeout)

    def list_authorities(self, name: str | None = None, *, timeout: float | None = DEFAULT) -> StreamT:
        """Stream the certification authorities, or the one with that name. Since 5.3.3."""
        return self.stream("list-authorities", _request(name=name), timeout=timeout)

    def _charon_timeout(self, timeout: float | None) -> tuple[int, float | None]:
        """Return charon's timeout in milliseconds, and ours in seconds."""
        seconds = self.timeout if timeout is DEFAULT else timeout
        if seconds is None:
            return 0, None
        if not seconds >= 0:
            raise ValueError(f"timeout is {seconds}, but must be 0 or more seconds, or None for no limit")
        if seconds == 0:
            return -1, _MARGIN
        return max(1, round(min(seconds * 1000, _LONGEST))), seconds + _MARGIN


def _request(**keys: object) -> dict[str, object]:
    """Spell the keys as charon does; omit None and False, as charon treats "no" as yes for some keys."""
    return {name.replace("_", "-"): value for name, value in keys.items() if value is not None and value is not False}
