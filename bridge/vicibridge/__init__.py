"""A service beside each gateway that carries charon's events to NATS and commands from NATS to charon."""
