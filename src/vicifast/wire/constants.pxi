# VICI limits, packet and element types, cache and buffer sizes, and the first bytes of msgpack objects.

cpdef enum:
    MAX_PACKET = 524288  # VICI_MESSAGE_SIZE_MAX: charon disconnects on a longer one, and drops its own silently
    MAX_NAME = 255
    MAX_VALUE = 65535
    MAX_DEPTH = 64  # charon sends at most four; a malicious packet can hold 262,000

cpdef enum:
    CMD_REQUEST = 0
    CMD_RESPONSE = 1
    CMD_UNKNOWN = 2
    EVENT_REGISTER = 3
    EVENT_UNREGISTER = 4
    EVENT_CONFIRM = 5
    EVENT_UNKNOWN = 6
    EVENT = 7

cdef enum:
    END = 0
    SECTION_START = 1
    SECTION_END = 2
    KEY_VALUE = 3
    LIST_START = 4
    LIST_ITEM = 5
    LIST_END = 6

cdef enum:
    KNOWN_NAMES = 512  # slots in a decoder's name cache; charon uses about 200 names
    KNOWN_TITLES = 64  # cached names of sections
    KNOWN_SHAPES = 64  # cached section shapes: the same names in the same order
    KNOWN_KEYS = 64  # most keys in a cached shape
    KEPT_WORK = 8192  # working memory for longer messages is freed after each
    KNOWN_VALUE = 64  # longest value kept for reuse, which bounds a decoder's memory
    READ_SIZE = 65536  # minimum free space offered to a read
    BUFFER_SIZE = 262144
    LENT_NODES = 128  # index nodes on the stack
    KNOWN_TOPICS = 64  # charon has 18 log groups and sends two levels by default
    LENT_SIZE = 2048  # bytes on the stack for encoding a message; most messages fit

cdef enum:  # first bytes of msgpack objects; see the msgpack specification
    MP_FIXINT_LAST = 0x7F
    MP_FIXMAP = 0x80
    MP_FIXMAP_LAST = 0x8F
    MP_FIXARRAY = 0x90
    MP_FIXARRAY_LAST = 0x9F
    MP_FIXSTR = 0xA0
    MP_FIXSTR_LAST = 0xBF
    MP_NIL = 0xC0
    MP_FALSE = 0xC2
    MP_TRUE = 0xC3
    MP_BIN8 = 0xC4
    MP_BIN16 = 0xC5
    MP_BIN32 = 0xC6
    MP_FLOAT32 = 0xCA
    MP_FLOAT64 = 0xCB
    MP_UINT8 = 0xCC
    MP_INT8 = 0xD0
    MP_INT64 = 0xD3
    MP_STR8 = 0xD9
    MP_STR16 = 0xDA
    MP_STR32 = 0xDB
    MP_ARRAY16 = 0xDC
    MP_ARRAY32 = 0xDD
    MP_MAP16 = 0xDE
    MP_MAP32 = 0xDF
    MP_NEGATIVE_FIXINT = 0xE0
