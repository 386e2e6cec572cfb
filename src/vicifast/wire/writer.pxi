# A growing output buffer.

cdef struct Writer:
    uint8_t* data
    Py_ssize_t used
    Py_ssize_t size
    uint8_t* lent  # initial memory that the caller owns, or NULL


cdef int grow(Writer* out, Py_ssize_t more) except -1:
    cdef Py_ssize_t size = max(out.used + more, 2 * out.size, 1024)
    cdef uint8_t* data = <uint8_t*>realloc(NULL if out.data == out.lent else out.data, size)
    if not data:
        raise MemoryError
    if out.lent and out.data == out.lent:
        memcpy(data, out.lent, out.used)
    out.data = data
    out.size = size
    return 0


cdef inline void lend(Writer* out, uint8_t* memory) noexcept:
    """Start writing into the caller's memory, `LENT_SIZE` bytes."""
    out.data = out.lent = memory
    out.used = 0
    out.size = LENT_SIZE


cdef inline void free_writer(Writer* out) noexcept:
    if out.data != out.lent:
        free(out.data)


cdef inline int reserve(Writer* out, Py_ssize_t more) except -1:
    return grow(out, more) if unlikely(out.size - out.used < more) else 0


cdef inline void add_byte(Writer* out, uint8_t byte) noexcept:
    out.data[out.used] = byte
    out.used += 1


cdef inline void add_bytes(Writer* out, const void* data, Py_ssize_t size) noexcept:
    copy(out.data + out.used, <const uint8_t*>data, size)
    out.used += size


cdef inline void add_u16(Writer* out, Py_ssize_t number) noexcept:
    add_byte(out, <uint8_t>(number >> 8))
    add_byte(out, <uint8_t>number)
