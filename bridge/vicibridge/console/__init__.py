"""Commands that inspect and control a fleet; `vicibridge.cli` loads each one on use."""
