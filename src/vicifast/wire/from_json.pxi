# Converts JSON to messages.

cdef inline const uint8_t* skip_space(const uint8_t* at, const uint8_t* end) noexcept:
    while at < end and at[0] <= c' ' and at[0] in (c' ', c'\t', c'\n', c'\r'):
        at += 1
    return at


cdef inline const uint8_t* json_token(const uint8_t* at, const uint8_t* end, Token* token) noexcept:
    """Like `msgpack_token`, for strings without escapes, bools, integers and the opening brackets of containers."""
    token.kind = PLAIN_BYTES
    token.text = at
    if at == end:
        return NULL
    if at[0] == c'"':
        token.kind = PLAIN_STRING
        token.text = at = at + 1
        while end - at >= 8 and not needs_escape(eight_at(at)):
            at += 8
        while at < end and at[0] != c'"':
            if at[0] < c' ' or at[0] == c'\\':
                return NULL
            at += 1
        token.size = at - token.text
        return at + 1 if at < end and is_utf8(token.text, token.size) else NULL
    if at[0] == c'{' or at[0] == c'[':
        token.kind = PLAIN_MAP if at[0] == c'{' else PLAIN_ARRAY
        token.size = -1
        return at + 1
    if end - at >= 5 and (not memcmp(at, b"true", 4) or not memcmp(at, b"false", 5)):
        token.size = 3 if at[0] == c't' else 2
        token.text = b"yes" if at[0] == c't' else b"no"
        return at + (4 if at[0] == c't' else 5)
    if at[0] == c'0':
        token.size = 1
        return at + 1
    if at[0] == c'-':
        at += 1
    if at == end or not c'1' <= at[0] <= c'9':
        return NULL
    while at < end and c'0' <= at[0] <= c'9':
        at += 1
    token.size = at - token.text
    return at


cdef inline const uint8_t* json_after(const uint8_t* at, const uint8_t* end, uint8_t mark, Token* token) noexcept:
    """Read the token after a comma or a colon."""
    at = skip_space(at, end)
    return json_token(skip_space(at + 1, end), end, token) if at < end and at[0] == mark else NULL


@cython.final
cdef class Refused:
    """Replaces invalid content in a message until the encoder reaches it and can report its path."""

    cdef str reason


cdef Refused refused(str reason):
    cdef Refused made = Refused.__new__(Refused)
    made.reason = reason
    return made


def _json_section(pairs):
    """Make a section from the pairs of a JSON object, or bytes from `{"$base64": "..."}`."""
    section = dict(pairs)
    if len(section) != len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        return refused(f"duplicate name {twice[:MAX_NAME]!r}")
    if len(section) == 1 and isinstance(section.get("$base64"), str):
        from base64 import b64decode

        try:
            return b64decode(section["$base64"], validate=True)
        except ValueError as error:
            return refused(f"invalid base64: {error}")
    return section


def _json_integer(digits):
    """Keep the digits of an integer, of any length; "-0" becomes "0"."""
    return "0" if digits == "-0" else digits


cdef bytes bytes_of(data):
    cdef Py_buffer view
    if PyBytes_CheckExact(data):
        return data
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return (<const uint8_t*>view.buf)[:view.len]
    finally:
        PyBuffer_Release(&view)


def from_json(data, /):
    """Return the VICI bytes of a message in JSON: object = section, array = list, `{"$base64": "..."}` = any bytes.

    `data` is UTF-8 bytes or a str. `from_json(to_json(x)) == x` for every message without duplicate names and without
    a section whose only key is `$base64`. Raises `DecodeError` with the offset for invalid JSON, and `EncodeError` with
    the path for content that VICI cannot carry: null, numbers other than integers, duplicate names.
    """
    cdef bytes held
    if PyUnicode_Check(data):
        held = PyUnicode_AsEncodedString(data, b"utf-8", b"surrogatepass")
    else:
        held = bytes_of(data)
    cdef bytes plain = from_plain(held, True)
    if plain is not None:
        return plain
    # Imported here, as it is rarely needed and slow to import.
    from json import JSONDecodeError, loads

    text = data
    if not isinstance(data, str):
        try:
            text = held.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DecodeError("invalid UTF-8", error.start) from None
    try:
        message = loads(text, object_pairs_hook=_json_section, parse_int=_json_integer)
    except JSONDecodeError as error:
        offset = len(text[:error.pos].encode("utf-8", "surrogatepass"))
        raise DecodeError(f"invalid JSON: {error.msg}", offset) from None
    except RecursionError:
        raise EncodeError(f"sections nested deeper than {MAX_DEPTH}") from None
    return encode(message)
