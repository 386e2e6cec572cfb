"""The command line `vicifast`."""

from __future__ import annotations

import click

from ..version import VERSION
from .common import EXIT_CODES, Group

_COMMANDS = {
    "call": ("queries", "Run any command and write its messages and its reply."),
    "certs": ("queries", "List certificates and public keys."),
    "conns": ("queries", "List the loaded connections."),
    "counters": ("queries", "Show the IKE message counters."),
    "events": ("events", "Follow events until Ctrl-C; without NAME, all events except the log."),
    "initiate": ("changes", "Establish a CHILD_SA with the IKE_SA it needs, or an IKE_SA alone."),
    "load": ("changes", "Load FILE as `swanctl --load-all` does, and unload everything that is not in it."),
    "log": ("events", "Follow charon's log until Ctrl-C."),
    "policies": ("queries", "List trap, drop and pass policies; all three kinds by default."),
    "pools": ("queries", "List the pools of virtual addresses."),
    "record": ("capture", "Record the traffic between a client and charon to FILE."),
    "rekey": ("changes", "Start rekeying all matching SAs; with --wait, wait for the result."),
    "replay": ("capture", "Serve recordings like charon, until Ctrl-C."),
    "sas": ("queries", "List the SAs."),
    "stats": ("queries", "Show charon's statistics."),
    "terminate": ("changes", "Close all matching SAs, one after the other; --timeout applies to each."),
    "unload": ("changes", "Unload one item by name; keys and shared secrets by their id."),
}
_CODES = "\n".join(f"  {code}  {meaning}" for code, meaning in EXIT_CODES.items())
_EPILOG = f"""\b
Exit codes:
{_CODES}

\b
Shell completion (bash; use zsh_source or fish_source for zsh and fish):
  eval "$(_VICIFAST_COMPLETE=bash_source vicifast)"
"""


@click.group(
    cls=Group,
    table=_COMMANDS,
    package=__name__,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(VERSION)
def main() -> None:
    """Control strongSwan's IKE daemon charon over VICI."""
