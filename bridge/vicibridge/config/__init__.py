"""The configuration; its model is slow to import, as pydantic is."""

ENV_PREFIX = "VICIBRIDGE_"
