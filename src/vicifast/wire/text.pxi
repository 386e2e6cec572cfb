# Compares, copies, hashes and checks texts of up to 64 KiB, mostly short, eight or sixteen bytes at a time.

cdef extern from "wire/chunk.h":
    enum: CHUNK
    ctypedef struct Chunk:
        pass
    Chunk load_chunk(const uint8_t* text) noexcept
    void store_chunk(uint8_t* to, Chunk chunk) noexcept
    bint is_ascii_chunk(Chunk chunk, size_t size) noexcept
    bint is_printable_chunk(Chunk chunk, size_t size) noexcept
    bint is_same_end(Chunk one, Chunk other, size_t size) noexcept
    bint is_ascii_end(Chunk chunk, size_t size) noexcept
    bint is_printable_end(Chunk chunk, size_t size) noexcept
    bint is_plain_chunk(Chunk chunk, size_t size) noexcept


cdef inline uint64_t eight_at(const uint8_t* text) noexcept:
    cdef uint64_t eight
    memcpy(&eight, text, 8)
    return eight


cdef inline uint64_t some_at(const uint8_t* text, Py_ssize_t size) noexcept:
    """Pack one to seven bytes into eight lanes, some of them twice; the reads stay within the text."""
    cdef uint32_t first, last
    if size >= 4:
        memcpy(&first, text, 4)
        memcpy(&last, text + size - 4, 4)
        return <uint64_t>first << 32 | last
    # The other lanes hold "@", which passes every check.
    return 0x4040404040000000ULL | text[0] << 16 | text[size >> 1] << 8 | text[size - 1]


cdef inline uint64_t odd_in(uint64_t eight) noexcept:
    """Non-zero when one of eight bytes is outside 0x20 to 0x7e."""
    return (eight | (eight + 0x0101010101010101ULL) | (eight - 0x2020202020202020ULL)) & 0x8080808080808080ULL


cdef inline bint is_printable(const uint8_t* text, Py_ssize_t size) noexcept:
    cdef uint64_t odd = 0
    cdef Py_ssize_t i = 0
    if size < 8:
        return not size or not odd_in(some_at(text, size))
    while i < size - 8:
        odd |= odd_in(eight_at(text + i))
        i += 8
    return not (odd | odd_in(eight_at(text + size - 8)))


cdef inline bint is_same(const uint8_t* one, const uint8_t* other, Py_ssize_t size) noexcept:
    """Whether two texts of the same length are equal. Most are short, and calling memcmp would cost more."""
    cdef uint64_t differs = 0
    cdef Py_ssize_t i = 0
    if size < 8:
        return not size or some_at(one, size) == some_at(other, size)
    if size > 64:
        return not memcmp(one, other, size)
    while i < size - 8:
        differs |= eight_at(one + i) ^ eight_at(other + i)
        i += 8
    return not (differs | (eight_at(one + size - 8) ^ eight_at(other + size - 8)))


cdef inline void copy(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """memcpy for mostly short texts; nothing is written past `size`."""
    cdef Py_ssize_t i = 0
    if size > 64:
        memcpy(to, text, size)
    elif size > 16:
        while i < size - 8:
            memcpy(to + i, text + i, 8)
            i += 8
        memcpy(to + size - 8, text + size - 8, 8)
    elif size >= 8:
        memcpy(to, text, 8)
        memcpy(to + size - 8, text + size - 8, 8)
    elif size >= 4:
        memcpy(to, text, 4)
        memcpy(to + size - 4, text + size - 4, 4)
    elif size:
        to[0] = text[0]
        to[size >> 1] = text[size >> 1]
        to[size - 1] = text[size - 1]


cdef inline void copy_text(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Copy the text of a plain str to a place with room for `CHUNK` bytes."""
    if unlikely(size > CHUNK):
        copy(to, text, size)
    else:
        copy_short(to, text, size)


cdef inline void copy_short(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """`copy_text` up to `CHUNK` bytes, with a single branch on the size: a misprediction costs more than the copy.

    Below 8 bytes the read includes the end of the object header, which precedes the text, and shifts it out.
    """
    cdef uint64_t eight
    cdef Py_ssize_t absent = 8 - size
    if size >= 8:
        memcpy(to, text, 8)
        memcpy(to + size - 8, text + size - 8, 8)
    else:
        eight = eight_at(text - absent)
        eight = eight << 4 * absent << 4 * absent if PY_BIG_ENDIAN else eight >> 4 * absent >> 4 * absent
        memcpy(to, &eight, 8)


cdef inline bint copy_name(uint8_t* to, const uint8_t* text, Py_ssize_t size) noexcept:
    """Copy a plain str like `copy_text`, and return whether all of it is printable."""
    if unlikely(size > CHUNK):
        copy(to, text, size)
        return is_printable(text, size)
    copy_short(to, text, size)
    # The chunk may begin in the object header. Returning the comparison itself would make encode 1.5 % slower.
    if is_printable_end(load_chunk(text + size - CHUNK), size):
        return True
    return False


cdef inline bint is_ascii(const uint8_t* text, Py_ssize_t size) noexcept:
    cdef uint64_t all = 0
    cdef Py_ssize_t i = 0
    if size < 8:
        return not size or not some_at(text, size) & 0x8080808080808080ULL
    while i < size - 8:
        all |= eight_at(text + i)
        i += 8
    return not (all | eight_at(text + size - 8)) & 0x8080808080808080ULL


cdef inline bint continues(const uint8_t* text, Py_ssize_t size, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    if size <= count:
        return False
    for i in range(1, count + 1):
        if text[i] & 0xC0 != 0x80:
            return False
    return True


cdef bint is_utf8(const uint8_t* text, Py_ssize_t size) noexcept:
    """Whether Python's decoder accepts the text: shortest forms only, no surrogates, nothing past U+10FFFF."""
    cdef Py_ssize_t i = 0, count
    cdef uint8_t lead, second
    if is_ascii(text, size):
        return True
    while i < size:
        lead = text[i]
        if lead < 0x80:
            i += 1
            continue
        count = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        if lead < 0xC2 or lead > 0xF4 or not continues(text + i, size - i, count):
            return False
        second = text[i + 1]
        if (
            (lead == 0xE0 and second < 0xA0)
            or (lead == 0xED and second > 0x9F)
            or (lead == 0xF0 and second < 0x90)
            or (lead == 0xF4 and second > 0x8F)
        ):
            return False
        i += count + 1
    return True


cdef tuple root_names(names):
    """The names of root keys as bytes."""
    if isinstance(names, str):
        raise TypeError("binary must be an iterable of names, not a str")
    return tuple([text_of(name, "a name in binary") for name in names])


cdef bytes text_of(text, str what):
    """The UTF-8 bytes of a str, 255 at most."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    encoded = str.encode(text, "utf-8")
    if len(encoded) > MAX_NAME:
        raise ValueError(f"{what} has {len(encoded)} bytes; the maximum is {MAX_NAME}")
    return encoded


cdef bint is_one_of(tuple names, const uint8_t* name, Py_ssize_t size) noexcept:
    for known in names:
        if same_bytes(<PyObject*>known, name, size):
            return True
    return False


cdef inline bint is_plain(object value) noexcept:
    """Whether a value is an ASCII str and not a subclass, as nearly all are, so that its bytes can be read directly."""
    return PyUnicode_CheckExact(value) and PyUnicode_IS_COMPACT_ASCII(<PyObject*>value)


cdef inline uint8_t* plain_text(object text) noexcept:
    """The bytes of a plain str, without the checks of PyUnicode_DATA."""
    return <uint8_t*>(<PyASCIIObject*><PyObject*>text + 1)


cdef inline PyObject* new_ascii(const uint8_t* text, Py_ssize_t size) except NULL:
    """A plain str of more than one character: CPython shares the empty and one-character ones."""
    cdef PyObject* made = PyUnicode_New(size, 127)
    copy(plain_text(<object>made), text, size)
    return made


cdef inline PyObject* new_text(const uint8_t* text, Py_ssize_t size) except NULL:
    if size > 1 and is_ascii(text, size):
        return new_ascii(text, size)
    return PyUnicode_DecodeUTF8(<const char*>text, size, "surrogateescape")


cdef inline str text_at(const uint8_t* text, Py_ssize_t size):
    made = <object>new_text(text, size)
    Py_DECREF(made)
    return made


cdef inline bint same_text(PyObject* known, const uint8_t* text, Py_ssize_t size) noexcept:
    return PyUnicode_GET_LENGTH(known) == size and is_same(<const uint8_t*>PyUnicode_DATA(known), text, size)


cdef inline bint same_bytes(PyObject* known, const uint8_t* data, Py_ssize_t size) noexcept:
    return PyBytes_GET_SIZE(known) == size and is_same(<const uint8_t*>PyBytes_AS_STRING(known), data, size)


cdef inline uint64_t mix(uint64_t so_far, uint64_t more) noexcept:
    so_far = (so_far ^ more) * 0x9E3779B97F4A7C15ULL
    return so_far ^ so_far >> 29


cdef inline uint64_t hash_name(const uint8_t* name, Py_ssize_t size) noexcept:
    cdef uint64_t mixed = mix(size, some_at(name, size) if size and size < 8 else 0)
    if size >= 8:
        mixed = mix(mix(mixed, eight_at(name)), eight_at(name + size - 8))
    return mixed
