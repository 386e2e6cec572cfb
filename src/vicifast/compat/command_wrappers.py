"""The commands of strongSwan's module."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeAlias

from .protocol import Section

Request: TypeAlias = Mapping[str, Any]


class CommandWrappers:
    """Every command as a method, over the `request` and `streamed_request` of a subclass."""

    def request(self, command: str, message: Request | None = None) -> Section:
        """Run a command and return its reply."""
        raise NotImplementedError

    def streamed_request(
        self, command: str, event_stream_type: str, message: Request | None = None
    ) -> Generator[Section, None, None]:
        """Run a command and yield the messages of the event that it streams."""
        raise NotImplementedError

    def version(self) -> Section:
        """Return `daemon`, `version`, `sysname`, `release` and `machine`."""
        return self.request("version")

    def stats(self) -> Section:
        """Return statistics of the daemon: `uptime`, `workers`, `ikesas`, `plugins` and more."""
        return self.request("stats")

    def reload_settings(self) -> None:
        """Make charon reload strongswan.conf."""
        self.request("reload-settings")

    def initiate(self, sa: Request) -> Generator[Section, None, None]:
        """Establish an SA (`child`, `ike`) when the first item is requested, and yield its log."""
        return self.streamed_request("initiate", "control-log", sa)

    def terminate(self, sa: Request) -> Generator[Section, None, None]:
        """Close SAs (`child`, `ike`, `child-id`, `ike-id`) when the first item is requested, and yield the log."""
        return self.streamed_request("terminate", "control-log", sa)

    def rekey(self, sa: Request) -> Section:
        """Rekey SAs and return their number, `matches`."""
        return self.request("rekey", sa)

    def redirect(self, sa: Request) -> Section:
        """Redirect IKE_SAs to a `gateway` and return their number, `matches`."""
        return self.request("redirect", sa)

    def install(self, policy: Request) -> None:
        """Install the policies of a `child`."""
        self.request("install", policy)

    def uninstall(self, policy: Request) -> None:
        """Remove the policies of a `child`."""
        self.request("uninstall", policy)

    def list_sas(self, filters: Request | None = None) -> Generator[Section, None, None]:
        """Yield the IKE_SAs with their CHILD_SAs."""
        return self.streamed_request("list-sas", "list-sa", filters)

    def list_policies(self, filters: Request | None = None) -> Generator[Section, None, None]:
        """Yield the policies selected by `trap`, `drop` and `pass`."""
        return self.streamed_request("list-policies", "list-policy", filters)

    def list_conns(self, filters: Request | None = None) -> Generator[Section, None, None]:
        """Yield the connections."""
        return self.streamed_request("list-conns", "list-conn", filters)

    def get_conns(self) -> Section:
        """Return the names of the connections loaded over VICI, `conns`."""
        return self.request("get-conns")

    def list_certs(self, filters: Request | None = None) -> Generator[Section, None, None]:
        """Yield the certificates, DER in `data`."""
        return self.streamed_request("list-certs", "list-cert", filters)

    def list_authorities(self, filters: Request | None = None) -> Generator[Section, None, None]:
        """Yield the certification authorities."""
        return self.streamed_request("list-authorities", "list-authority", filters)

    def get_authorities(self) -> Section:
        """Return the names of the authorities loaded over VICI, `authorities`."""
        return self.request("get-authorities")

    def load_conn(self, connection: Request) -> None:
        """Load connections, each a section with its name."""
        self.request("load-conn", connection)

    def unload_conn(self, name: Request) -> None:
        """Remove the connection `name`."""
        self.request("unload-conn", name)

    def load_cert(self, certificate: Request) -> None:
        """Load a certificate: `type`, `flag`, `data`."""
        self.request("load-cert", certificate)

    def load_key(self, private_key: Request) -> Section:
        """Load a private key (`type`, `data`) and return its `id`."""
        return self.request("load-key", private_key)

    def unload_key(self, key_id: Request) -> None:
        """Remove the private key `id`."""
        self.request("unload-key", key_id)

    def get_keys(self) -> Section:
        """Return the identifiers of the private keys loaded over VICI, `keys`."""
        return self.request("get-keys")

    def load_token(self, token: Request) -> Section:
        """Load a private key from a token (`handle`, `slot`, `module`, `pin`) and return its `id`."""
        return self.request("load-token", token)

    def load_shared(self, secret: Request) -> None:
        """Load a secret: `id`, `type`, `data`, `owners`."""
        self.request("load-shared", secret)

    def unload_shared(self, identifier: Request) -> None:
        """Remove the secret `id`."""
        self.request("unload-shared", identifier)

    def get_shared(self) -> Section:
        """Return the identifiers of the secrets loaded over VICI, `keys`."""
        return self.request("get-shared")

    def flush_certs(self, filter: Request | None = None) -> None:
        """Clear the certificate cache, or one `type` of it."""
        self.request("flush-certs", filter)

    def clear_creds(self) -> None:
        """Remove every credential loaded over VICI."""
        self.request("clear-creds")

    def load_authority(self, ca: Request) -> None:
        """Load certification authorities, each a section with its name."""
        self.request("load-authority", ca)

    def unload_authority(self, ca: Request) -> None:
        """Remove the authority `name`."""
        self.request("unload-authority", ca)

    def load_pool(self, pool: Request) -> Section:
        """Load pools of virtual addresses, each a section with its name."""
        return self.request("load-pool", pool)

    def unload_pool(self, pool_name: Request) -> None:
        """Remove the pool `name`."""
        self.request("unload-pool", pool_name)

    def get_pools(self, options: Request | None = None) -> Section:
        """Return the pools, with `leases` if requested."""
        return self.request("get-pools", options)

    def get_algorithms(self) -> Section:
        """Return the algorithms by type, with the plugins that provide them."""
        return self.request("get-algorithms")

    def get_counters(self, options: Request | None = None) -> Section:
        """Return the IKE message `counters`."""
        return self.request("get-counters", options)

    def reset_counters(self, options: Request | None = None) -> None:
        """Set counters to zero."""
        self.request("reset-counters", options)
