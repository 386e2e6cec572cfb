#!/usr/bin/env bash
# nats-py 2.16.0, nats-server 2.15.1: when the user's JWT expires, a client with max_reconnect_attempts=-1
# closes permanently.
#
# The server says "User Authentication Expired" and closes the connection. The client calls disconnected_cb
# and closed_cb. It does not call user_jwt_cb again, which would return a valid JWT, does not try to reconnect,
# and does not call error_cb. (See nats-io/nats.py#193 and #1019.)
packages=(nkeys==0.2.1)
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, base64, json, os, time

import nats, nkeys
from server import HOME, start


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def signed(issuer, subject, kind, expires=0, **claims):
    names = {"iss": issuer.public_key.decode(), "sub": subject.public_key.decode()}
    body = {**names, "iat": 1, "exp": expires, "jti": kind, "nats": {"type": kind, "version": 2, **claims}}
    text = b".".join(b64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
    return (text + b"." + b64(issuer.sign(text))).decode()


prefixes = nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER
operator, account, user = (nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix)) for prefix in prefixes)
limits = {"subs": -1, "data": -1, "payload": -1}
unlimited = {"limits": limits | {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}}
jwts = {account.public_key.decode(): signed(operator, account, "account", **unlimited)}
(HOME / "conf").write_text(
    f"operator: {signed(operator, operator, 'operator')}, resolver: MEMORY, resolver_preload: {json.dumps(jwts)}"
)
_, address = start("-c", HOME / "conf")


async def main():
    asked, events = [], []

    def jwt():
        asked.append(int(time.time()))
        return signed(account, user, "user", asked[-1] + (2 if len(asked) == 1 else 3600), **limits).encode()

    def noting(what):
        async def callback(*error):
            events.append(what)
        return callback

    callbacks = {f"{what}_cb": noting(what) for what in ("error", "disconnected", "reconnected", "closed")}
    client = await nats.connect(
        address, max_reconnect_attempts=-1, user_jwt_cb=jwt, signature_cb=lambda nonce: b64(user.sign(nonce.encode())),
        **callbacks,
    )
    await asyncio.sleep(5)
    print("JWTs asked for:", len(asked), "- callbacks:", events, "- closed:", client.is_closed)
    assert len(asked) == 1 and events == ["disconnected", "closed"] and client.is_closed


asyncio.run(main())
EOF
