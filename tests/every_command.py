"""A script that does one of every command to a pair of real charons: each once with effect, each once refused.

It is written for any blocking session with a method per command, and returns its observations in a form that is the
same for all kinds of sessions.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lab import Lab, sas

from vicifast import ViciError

SITE, MOVED = "site-001", "site-002"
NOT_ASCII = "Zürich"

# Keys that depend on the clock or on chance; some are only sometimes present.
_VARYING = re.compile(
    r"established|.*-time|use-(in|out)|.*spi.*|tasks-.*|uptime|workers|queues|scheduled|mallinfo|release|data|thread"
)
_KEY_ID = re.compile("[0-9a-f]{40}")


class Script:
    """Runs the script: `effects` by command, as charon reported them, and `refusals`, as texts."""

    def __init__(self, lab: Lab, connect: Callable[[str], Any]) -> None:
        self.effects: dict[str, Any] = {}
        self.refusals: dict[str, str] = {}
        self._lab = lab
        self._connect = connect

    def run(self) -> None:
        asyncio.run(sas.load(self._lab, 2))
        with ExitStack() as stack:
            self.left = stack.enter_context(self._connect(self._lab.left.address))
            self.right = stack.enter_context(self._connect(self._lab.right.address))
            self._daemon()
            self._connections()
            self._policies()
            self._security_associations()
            self._credentials()
            self._authorities()

    def _daemon(self) -> None:
        version = self._did("version", self.left.version())
        assert version["daemon"] == "charon"
        assert self._did("stats", self.left.stats())["ikesas"] == {"total": "0", "half-open": "0"}
        assert "AES_CBC" in self._did("get-algorithms", self.left.get_algorithms())["encryption"]
        for command in ("version", "stats", "get-algorithms"):
            self._refused(command, self.left.call, command, {"name": NOT_ASCII})
        config = self._lab.directory / "left.conf"
        text = config.read_text()
        config.write_text(text.replace("default = 1", "default = 2"))
        self._did("reload-settings", self.left.reload_settings())
        self.left.load_conn("talkative", {})
        assert " conn talkative:" in self._lab.left.log.read_text()  # a line of level 2
        config.write_text("charon {")
        self._refused("reload-settings", self.left.reload_settings)
        config.write_text(text)
        self.left.reload_settings()
        self.left.unload_conn("talkative")

    def _connections(self) -> None:
        self._did("load-conn", self.left.load_conn("spare", {"remote_addrs": ["10.99.0.77"], "version": 1}))
        assert "spare" in self._did("get-conns", self.left.get_conns())["conns"]
        [spare] = self._did("list-conns", list(self.left.list_conns(ike="spare")))
        assert (spare["spare"]["version"], spare["spare"]["remote_addrs"]) == ("IKEv1", ["10.99.0.77"])
        self._did("unload-conn", self.left.unload_conn("spare"))
        assert "spare" not in self.left.get_conns()["conns"]
        self._refused("load-conn", self.left.load_conn, "spare", {"colour": "blue"})
        self._refused("unload-conn", self.left.unload_conn, "spare")
        self._refused("list-conns", self._drain, self.left.list_conns, ike=NOT_ASCII)
        self._refused("get-conns", self.left.call, "get-conns", {"name": NOT_ASCII})
        pool = {"addrs": "10.9.0.0/24", "dns": ["10.9.0.1", "10.9.0.2"]}
        self._did("load-pool", self.right.load_pool("spare", pool))
        assert self.right.get_pools("spare")["spare"]["size"] == "254"
        self._did("unload-pool", self.right.unload_pool("spare"))
        assert "spare" not in self.right.get_pools()
        self._refused("load-pool", self.right.load_pool, "spare", {"addrs": "everywhere"})

    def _policies(self) -> None:
        drop = {"mode": "drop", "local_ts": ["10.1.0.1/32"], "remote_ts": ["10.77.0.0/16"]}
        pass_ = {"mode": "pass", "local_ts": ["10.1.0.1/32"], "remote_ts": ["10.78.0.0/16"]}
        self.left.load_conn("shunts", {"children": {"blocked": drop, "open": pass_}})
        self._did("install", [self.left.install(name) for name in ("blocked", "open")])
        self.left.install(f"{SITE}-lan", ike=SITE)
        policies = self._did("list-policies", list(self.left.list_policies(drop=True, pass_=True, trap=True)))
        assert {name for policy in policies for name in policy} == {
            "shunts/blocked",
            "shunts/open",
            f"{SITE}/{SITE}-lan",
        }
        assert [*self.left.list_policies(pass_=True)][0]["shunts/open"]["remote-ts"] == ["10.78.0.0/16"]
        assert [*self.left.list_policies()] == []
        self._did("uninstall", self.left.uninstall("blocked", ike="shunts"))
        self.left.uninstall("open")
        self.left.uninstall(f"{SITE}-lan")
        assert [*self.left.list_policies(drop=True, pass_=True, trap=True)] == []
        self._refused("install", self.left.install, "nothing")
        self._refused("uninstall", self.left.uninstall, "blocked")
        self._refused("list-policies", self._drain, self.left.list_policies, child=NOT_ASCII)

    def _security_associations(self) -> None:
        log = self.left.initiate(child=f"{SITE}-lan", ike=SITE, timeout=10)
        assert any("initiating IKE_SA site-001[1] to 10.99.0.2" in line["msg"] for line in log)
        self._did("initiate", log.wait())
        [message] = self._did("list-sas", list(self.left.list_sas(ike=SITE)))
        [child] = message[SITE]["child-sas"].values()
        assert (message[SITE]["state"], child["state"]) == ("ESTABLISHED", "INSTALLED")
        assert [*self.left.list_sas(ike_id=4711)] == []
        [pool] = self._did("get-pools", self.right.get_pools(leases=True)).values()
        assert [lease["status"] for lease in pool["leases"].values()] == ["online"]
        self._counters()
        with self._hearing("child-rekey") as events:
            self._did("rekey", self.left.rekey(child=f"{SITE}-lan"))
            [name] = next(events)
            assert name == SITE
        self._refused("unload-pool", self.right.unload_pool, sas.POOL)
        self._refused("get-pools", self.right.get_pools, NOT_ASCII)
        self._refused("initiate", self._drain, self.left.initiate, child="nothing")
        self._refused("rekey", self.left.rekey, ike="nothing")
        self._refused("terminate", self._drain, self.left.terminate, ike="nothing")
        self._refused("redirect", self.right.redirect, "10.99.0.77")
        self._refused("list-sas", self._drain, self.left.list_sas, ike=NOT_ASCII)
        terminating = self.left.terminate(ike=SITE, timeout=10)
        assert any("deleting IKE_SA site-001[1]" in line["msg"] for line in terminating)
        assert self._did("terminate", terminating.wait())["terminated"] == "1"
        assert [*self.left.list_sas(ike=SITE)] == []
        self._redirect()

    def _counters(self) -> None:
        counters = self._did("get-counters", self.left.get_counters(SITE))["counters"]
        assert counters[SITE]["ike-init-out-req"] == "1"
        assert [*self.left.get_counters()["counters"]] == [""]
        self._did("reset-counters", self.left.reset_counters(all=True))
        assert self.left.get_counters(all=True)["counters"] == {}
        self._refused("get-counters", self.left.get_counters, "nothing")
        self._refused("reset-counters", self.left.reset_counters, NOT_ASCII)

    def _redirect(self) -> None:
        self.left.initiate(child=f"{MOVED}-lan", timeout=10).wait()
        with self._hearing("log") as lines:
            self._did("redirect", self.right.redirect("10.99.0.77", ike=MOVED))
            while "redirected to 10.99.0.77" not in next(lines)["msg"]:
                pass
        self.left.terminate(ike=MOVED, force=True, timeout=10).wait()

    def _credentials(self) -> None:
        _openssl(self._lab.directory)
        self._certificates()
        key = (self._lab.directory / "key.pem").read_bytes()
        identifier = self._did("load-key", self.left.load_key(key))
        assert self._did("get-keys", self.left.get_keys())["keys"] == [identifier["id"]]
        self._did("unload-key", self.left.unload_key(identifier["id"]))
        assert self.left.get_keys()["keys"] == []
        self._refused("load-key", self.left.load_key, b"no key", type="rsa")
        self._refused("unload-key", self.left.unload_key, identifier["id"])
        self._refused("load-token", self.left.load_token, "00", slot=0, module="none", pin="1234")
        self._did("load-shared", self.left.load_shared(bytes(range(256)), type="EAP", id="any", owners=["a", "b@c"]))
        assert set(self._did("get-shared", self.left.get_shared())["keys"]) == {"any", "lab"}
        self._did("unload-shared", self.left.unload_shared("any"))
        assert self.left.get_shared()["keys"] == ["lab"]
        self._refused("load-shared", self.left.load_shared, b"x", type="SHARED")
        self._refused("unload-shared", self.left.unload_shared, NOT_ASCII)
        self._did("clear-creds", self.left.clear_creds())
        assert (self.left.get_shared()["keys"], [*self.left.list_certs()]) == ([], [])
        for command in ("get-keys", "get-shared", "clear-creds"):
            self._refused(command, self.left.call, command, {"id": NOT_ASCII})

    def _certificates(self) -> None:
        der = (self._lab.directory / "ca.der").read_bytes()
        self._did("load-cert", self.left.load_cert(der, flag="CA"))
        [found] = self._did("list-certs", list(self.left.list_certs(type="X509", flag="CA")))
        assert found["data"] == der
        self._did("flush-certs", self.left.flush_certs("X509"))
        assert [*self.left.list_certs(type="X509", flag="NONE")] == [*self.left.list_certs(type="NOTHING")] == []
        assert len([*self.left.list_certs(flag="NONE")]) == 1  # as without a type it is ignored
        self._refused("load-cert", self.left.load_cert, b"no certificate")
        self._refused("flush-certs", self.left.flush_certs, "NOTHING")
        self._refused("list-certs", self._drain, self.left.list_certs, subject=NOT_ASCII)

    def _authorities(self) -> None:
        config = {"cacert": (self._lab.directory / "ca.der").read_bytes(), "crl_uris": ["http://crl.example/"]}
        self._did("load-authority", self.left.load_authority("home", config))
        assert self._did("get-authorities", self.left.get_authorities())["authorities"] == ["home"]
        [home] = self._did("list-authorities", list(self.left.list_authorities("home")))
        assert home["home"]["crl_uris"] == ["http://crl.example/"]
        self._did("unload-authority", self.left.unload_authority("home"))
        assert [*self.left.list_authorities()] == []
        self._refused("load-authority", self.left.load_authority, "home", {"crl_uris": []})
        self._refused("unload-authority", self.left.unload_authority, "home")
        self._refused("list-authorities", self._drain, self.left.list_authorities, NOT_ASCII)
        self._refused("get-authorities", self.left.call, "get-authorities", {"name": NOT_ASCII})

    def _did(self, command: str, result: Any) -> Any:
        self.effects[command] = _steady(result)
        return result

    def _refused(self, command: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except ViciError as error:
            text = f"{type(error).__name__}: {error}"
            self.refusals[command] = text.replace(str(self._lab.directory), "")
        else:
            raise AssertionError(f"{command} was not refused")

    @contextmanager
    def _hearing(self, event: str) -> Iterator[Iterator[Any]]:
        """The messages of an event of the left charon."""
        with self._connect(self._lab.left.address) as session, session.listen(event, timeout=10) as listener:
            yield (message for _, message in listener)

    @staticmethod
    def _drain(stream: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        for _ in stream(*args, **kwargs):
            pass


def _steady(value: Any) -> Any:
    """charon's messages, without the parts that differ in each run."""
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if not _VARYING.fullmatch(key)}
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return "..." if isinstance(value, str) and _KEY_ID.fullmatch(value) else value


def _openssl(directory: Path) -> None:
    """Make `key.pem`, and `ca.der` with its public key."""
    key, certificate = str(directory / "key.pem"), str(directory / "ca.der")
    subject = ["-subj", "/C=CH/CN=Every CA", "-addext", "basicConstraints=critical,CA:TRUE"]
    _run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    _run(
        "openssl", "req", "-x509", "-new", "-key", key, "-days", "30", *subject, "-outform", "DER", "-out", certificate
    )


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
