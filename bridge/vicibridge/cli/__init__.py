"""The command line `vicibridge`."""

from __future__ import annotations

import click

from vicifast.cli.common import Group
from vicifast.version import VERSION

_COMMANDS = {
    "call": ("console.call", "Run a command on one gateway, or on every gateway with NODE `all`."),
    "check": ("cli.operate", "Validate the configuration and print it in full, without secrets."),
    "demo": ("cli.operate", "Run the bridge on recorded traffic with its own nats-server, and show the events."),
    "nodes": (
        "console.inventory",
        "List the gateways: those with a running bridge, and those that the mirror still lists.",
    ),
    "run": ("cli.operate", "Run the bridge until SIGTERM or SIGINT; SIGHUP reloads the configuration."),
    "sas": ("console.inventory", "List the SAs of the fleet from the mirror in NATS."),
    "schema": ("cli.operate", "Print an AsyncAPI document of all subjects and their payloads."),
    "tail": ("console.tail", "Show the fleet's events and log as they happen, until Ctrl-C."),
    "top": ("console.top", "Show the event rate of each gateway by class, until Ctrl-C."),
}


@click.group(cls=Group, table=_COMMANDS, package="vicibridge", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def cli() -> None:
    """Publish charon's events to NATS and run commands from NATS on charon; inspect a fleet of gateways."""
