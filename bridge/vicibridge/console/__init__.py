"""The commands for those who use the fleet; `vicibridge.cli` loads each when it is asked for."""
