"""The command line `vicifast`."""

from __future__ import annotations

import click

from .capture import record, replay
from .changes import initiate, load, rekey, terminate, unload
from .common import EXIT_CODES, Group
from .events import events, log
from .queries import call, certs, conns, counters, policies, pools, sas, stats

_CODES = "\n".join(f"  {code}  {meaning}" for code, meaning in EXIT_CODES.items())
_EPILOG = f"""\b
Exit codes:
{_CODES}

\b
Shell completion (bash; use zsh_source or fish_source for zsh and fish):
  eval "$(_VICIFAST_COMPLETE=bash_source vicifast)"
"""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(package_name="strongswan-vicifast")
def main() -> None:
    """Control strongSwan's IKE daemon charon over VICI."""


for _command in (
    *(sas, conns, certs, pools, stats, counters, policies),
    *(log, events),
    *(initiate, terminate, rekey, load, unload),
    *(call, record, replay),
):
    main.add_command(_command)
