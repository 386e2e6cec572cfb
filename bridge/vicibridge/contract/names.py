"""Names on the bus: the service, codecs, headers of NATS messages, and error codes."""

from __future__ import annotations

from typing import Literal

SERVICE = "vicibridge"
"""The name in `nats micro ls`."""

Codec = Literal["msgpack", "json"]
EventCodec = Literal[Codec, "raw"]

NODE_HEADER = "Vici-Node"  # in every reply, and in every envelope of codec raw
BOOT_HEADER = "Vici-Boot"
SEQ_HEADER = "Vici-Seq"
TIME_HEADER = "Vici-Time"
EVENT_HEADER = "Vici-Event"

# In requests: how to reply, and the requester for the audit.
CODEC_HEADER = "Vici-Codec"  # json or msgpack; the request's codec by default
COLLECT_HEADER = "Vici-Collect"  # true: one reply with all parts
TIMEOUT_HEADER = "Vici-Timeout"  # seconds; at most the configured timeout
USER_HEADER = "Vici-User"
REQUEST_ID_HEADER = "Vici-Request-Id"
REQUEST_INFO_HEADER = "Nats-Request-Info"  # NATS adds it to requests from another account

# In replies.
COUNT_HEADER = "Vici-Count"
PART_HEADER = "Vici-Part"
STATUS_HEADER = "Status"
DESCRIPTION_HEADER = "Description"
ERROR_CODE_HEADER = "Nats-Service-Error-Code"  # ADR-32
ERROR_HEADER = "Nats-Service-Error"
ERROR_HEADERS = (ERROR_CODE_HEADER, ERROR_HEADER, STATUS_HEADER, DESCRIPTION_HEADER)

# Every error code that a requester can get; as in HTTP.
BAD_REQUEST, DENIED, UNKNOWN, FAILED, TOO_LARGE, BUSY = 400, 403, 404, 409, 413, 429
INTERNAL, BAD_ANSWER, UNAVAILABLE, TIMEOUT = 500, 502, 503, 504
