"""charon's commands as methods, for every kind of session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

DEFAULT: Final[float] = -1.0  # as a timeout: the session's; told apart by identity

# What charon may take, in seconds, to answer after its own timeout.
_MARGIN = 5.0
_LONGEST = 2**31 - 1

ReplyT = TypeVar("ReplyT")
StreamT = TypeVar("StreamT")


class Commands(Generic[ReplyT, StreamT]):
    """The 36 commands that every charon since 5.6.1 has, each a method of its name with `_` for `-`.

    The keyword arguments are the keys of the request, `_` for `-`; what is None or False is not sent. A command that
    streams returns a stream, sent at once; every other one its reply. Both raise `CommandError` when charon says no, as
    `call` and `stream` do, which also take commands and keys that are not here. Hexadecimal text is without `0x`.

    `timeout`, everywhere, is how long to wait for the reply or the next message, in seconds: None for ever, left out
    the session's. `vicifast.commands.COMMANDS` has the same as a table, with the danger of each command.
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
        """Run a command and return its messages as they come."""
        raise NotImplementedError

    # The daemon.

    def version(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `daemon`, `version`, `sysname`, `release` and `machine`."""
        return self.call("version", timeout=timeout)

    def stats(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `uptime`, `workers`, `queues`, `scheduled`, `ikesas`, `plugins` and, as built, `mem` or `mallinfo`."""
        return self.call("stats", timeout=timeout)

    def reload_settings(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Let charon and its plugins read strongswan.conf again. Since 5.2.1."""
        return self.call("reload-settings", timeout=timeout)

    def get_algorithms(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return a section for each type of algorithm, with the plugin that implements each. Since 5.4.0."""
        return self.call("get-algorithms", timeout=timeout)

    def get_counters(self, name: str | None = None, *, all: bool = False, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `counters`: for a connection its 21 counters of IKE messages. Since 5.6.1; needs the counters plugin.

        Without `name` and `all` there is one section, under the empty name, with what all connections have together;
        `all` gives each connection's. charon drops a reply over 512 KiB (some thousand connections) without a word, and
        the call ends with `RequestTimeout`: ask for them one by one.
        """
        return self.call("get-counters", _request(name=name, all=all), timeout=timeout)

    def reset_counters(self, name: str | None = None, *, all: bool = False, timeout: float | None = DEFAULT) -> ReplyT:
        """Set counters to zero: a connection's, with `all` every connection's, without both the sums. Since 5.6.1."""
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
        """Bring up a CHILD_SA and the IKE_SA it needs, or an IKE_SA alone, and stream the log of it (`control-log`).

        `timeout` is in seconds, as everywhere, and charon is told too (in milliseconds, as VICI has it): after that it
        says no, `not established after ...`, but goes on trying. With 0 it answers at once, without a log; with None it
        waits for ever. charon gives a thread to each `initiate` that waits, and has few.

        `init_limits` refuses when charon is busy (charon.init_limit_*); `loglevel` is -1 to 4, left out 1, and shows
        keys when above 2. Read the stream, or `wait()`, for the error of an `initiate` that failed.
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
        """Close every SA that matches, one after the other, and stream the log of it (`control-log`).

        With `child` or `child_id` CHILD_SAs, else IKE_SAs and what is in them. `timeout` is as with `initiate`, and for
        each SA that matches. `force` closes IKE_SAs whose peer does not answer: without waiting or, if there is a
        timeout, after that. The reply has `matches` and `terminated`; it is an error when nothing matches.
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
        """Begin to rekey every SA that matches, as in `terminate`, and return `matches`. Since 5.5.2.

        The reply does not wait: the events `ike-rekey` and `child-rekey` tell when it is done. `reauth` makes IKE_SAs
        anew, with authentication. It is an error when nothing matches.
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
        """Tell the clients of IKEv2 SAs that match to go to `gateway`, an address or a name (RFC 5685). Since 5.4.0.

        `peer_ip` is an address, a subnet or a range, `peer_id` an identity, which may have wildcards; what is given
        must all match. The reply has `matches`; it is an error when nothing matches.
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
        """Stream the IKE_SAs that match, each with its CHILD_SAs: `vicifast.results.IkeSa` reads them.

        The name of a connection is no key: several SAs may have it; `uniqueid` is one, until charon restarts. `noblock`
        skips SAs that charon is working on, where it would else wait for them. SAs with AEAD have no `integ-alg`.
        charon knows `child` and `child_id` since 5.9.6 and ignores them before.
        """
        request = _request(ike=ike, ike_id=ike_id, child=child, child_id=child_id, noblock=noblock)
        return self.stream("list-sas", request, timeout=timeout)

    # Policies.

    def install(self, child: str, *, ike: str | None = None, timeout: float | None = DEFAULT) -> ReplyT:
        """Install the trap, drop or bypass policy of a configured child; `ike` is its connection."""
        return self.call("install", _request(child=child, ike=ike), timeout=timeout)

    def uninstall(self, child: str, *, ike: str | None = None, timeout: float | None = DEFAULT) -> ReplyT:
        """Take away the policy that `install` installed, or `start_action=trap`."""
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
        """Stream installed policies: those that drop, let pass (`pass_`) and trap, each only when asked for."""
        request = _request(drop=drop, **{"pass": pass_}, trap=trap, child=child, ike=ike)
        return self.stream("list-policies", request, timeout=timeout)

    # Connections and pools.

    def load_conn(self, name: str, config: Mapping[str, object], *, timeout: float | None = DEFAULT) -> ReplyT:
        """Add a connection or replace the one of that name; `config` is as in swanctl.conf.

        Lists are lists: charon refuses a text where it wants a list. Certificates and public keys are bytes, PEM or
        DER. `children.*.updown` names a script that charon runs, with charon's rights.
        """
        return self.call("load-conn", {name: config}, timeout=timeout)

    def unload_conn(self, name: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove a connection; its SAs stay up."""
        return self.call("unload-conn", {"name": name}, timeout=timeout)

    def get_conns(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `conns`, the names of the connections that were loaded over VICI."""
        return self.call("get-conns", timeout=timeout)

    def list_conns(self, *, ike: str | None = None, timeout: float | None = DEFAULT) -> StreamT:
        """Stream the connections, also those that came from elsewhere; `ike` is the name of one."""
        return self.stream("list-conns", _request(ike=ike), timeout=timeout)

    def load_pool(self, name: str, config: Mapping[str, object], *, timeout: float | None = DEFAULT) -> ReplyT:
        """Add or replace a pool of virtual addresses: `addrs` is a subnet or a range.

        Every other key is a list of what is handed out with an address: `dns`, `nbns`, `dhcp`, `netmask`, `server`,
        `subnet`, `split_include`, `split_exclude`, `address`, or the number of an attribute.
        """
        return self.call("load-pool", {name: config}, timeout=timeout)

    def unload_pool(self, name: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove a pool; an error while it has online leases."""
        return self.call("unload-pool", {"name": name}, timeout=timeout)

    def get_pools(self, name: str | None = None, *, leases: bool = False, timeout: float | None = DEFAULT) -> ReplyT:
        """Return for each pool its `base`, `size`, `online` and `offline`, with `leases` each lease as well.

        An unknown `name` gives nothing, and is no error.
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
        """Stream the certificates that match, their `data` as DER bytes.

        `type` is `X509`, `X509_AC`, `X509_CRL`, `OCSP_RESPONSE`, `PUBKEY` or `ANY`; an unknown one lists nothing, and
        is no error. `flag` is `NONE`, `CA`, `AA`, `OCSP` or `ANY`, and charon ignores it unless the type is `X509`.
        """
        return self.stream("list-certs", _request(type=type, flag=flag, subject=subject), timeout=timeout)

    def flush_certs(self, type: str | None = None, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Empty charon's cache of certificates, of one type or of all (see `list_certs`). Since 5.5.1."""
        return self.call("flush-certs", _request(type=type), timeout=timeout)

    def load_key(self, data: str | bytes, *, type: str = "any", timeout: float | None = DEFAULT) -> ReplyT:
        """Load a private key, PEM without a password or DER, and return its `id`.

        `type` is `rsa`, `ecdsa`, `ed25519`, `ed448`, `bliss` (before 6.0) or `any`. The `id` is the SHA-1 of the public
        key in hexadecimal.
        """
        return self.call("load-key", _request(type=type, data=data), timeout=timeout)

    def unload_key(self, id: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove the private key that `load_key` or `load_token` gave this `id`. Since 5.5.2."""
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
        """Load a private key on a token and return its `id`; `handle` is its hexadecimal CKA_ID there. Since 5.5.2.

        Needs the pkcs11 or the tpm plugin.
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
        """Load a shared secret, any bytes: `type` is `IKE`, `EAP`, `XAUTH`, `NTLM` or `PPK`.

        `owners` are the identities it is for, left out everybody. One loaded before under the same `id` is replaced;
        without `id` it cannot be unloaded by itself.
        """
        return self.call("load-shared", _request(id=id, type=type, data=data, owners=owners), timeout=timeout)

    def unload_shared(self, id: str, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove the shared secret that was loaded with this `id`; an unknown one is no error. Since 5.5.2."""
        return self.call("unload-shared", {"id": id}, timeout=timeout)

    def get_shared(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Return `keys`, the identifiers that shared secrets were loaded with. Since 5.5.2."""
        return self.call("get-shared", timeout=timeout)

    def clear_creds(self, *, timeout: float | None = DEFAULT) -> ReplyT:
        """Remove every certificate, key and secret that was loaded over VICI, by whomever."""
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
        """Stream the certification authorities, or the one of that name. Since 5.3.3."""
        return self.stream("list-authorities", _request(name=name), timeout=timeout)

    def _charon_timeout(self, timeout: float | None) -> tuple[int, float | None]:
        """How long charon shall wait, in milliseconds, and how long we do, in seconds."""
        seconds = self.timeout if timeout is DEFAULT else timeout
        if seconds is None:
            return 0, None
        if not seconds >= 0:
            raise ValueError(f"timeout is {seconds}, but must be 0 or more seconds, or None for no limit")
        if seconds == 0:
            return -1, _MARGIN
        return max(1, round(min(seconds * 1000, _LONGEST))), seconds + _MARGIN


def _request(**keys: object) -> dict[str, object]:
    """Spell the keys as charon does, and leave out what is not given: for some of them "no" means yes."""
    return {name.replace("_", "-"): value for name, value in keys.items() if value is not None and value is not False}
