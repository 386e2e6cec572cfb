# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: freethreading_compatible=True, subinterpreters_compatible=own_gil
# cython: autotestdict=False, auto_pickle=False, binding=True, embedsignature=False
"""The VICI wire format: converts messages to and from Python objects, msgpack and JSON, and splits streams of packets.

For the bridge and its clients it also writes and reads messages of NATS (nats.pxi), and reads envelopes
(envelopes.pxi).

One extension module, built from the files included below; no other module parses bytes or lengths.
Layout of the elements of a message (strongSwan, vici README):

    SECTION_START  01 nlen name              LIST_START  04 nlen name
    SECTION_END    02                        LIST_ITEM   05 vlen vlen value
    KEY_VALUE      03 nlen name vlen vlen value    LIST_END    06

A packet is a big-endian u32 length and a type byte, followed, depending on the type, by nlen and name, and a message.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromObject
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.unicode cimport PyUnicode_AsEncodedString
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from vicifast.wire.cpython cimport (
    PY_BIG_ENDIAN,
    PyASCIIObject,
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
    PyDict_CheckExact,
    PyDict_Copy,
    PyDict_New,
    PyDict_Next,
    PyDict_SetItem,
    PyList_CheckExact,
    PyList_GET_ITEM,
    PyList_GET_SIZE,
    PyList_New,
    PyList_SET_ITEM,
    PyLong_AsLongLongAndOverflow,
    PyLong_Check,
    PyODict_New,
    PyODict_SetItem,
    PyObject_GC_Track,
    PyObject_GC_UnTrack,
    PyTypeObject,
    PyUnicode_Check,
    PyUnicode_CheckExact,
    PyUnicode_DATA,
    PyUnicode_DecodeUTF8,
    PyUnicode_GET_LENGTH,
    PyUnicode_IS_COMPACT_ASCII,
    PyUnicode_New,
    PyVectorcall_NARGS,
    unlikely,
)

from collections.abc import Mapping
from time import time_ns

from .errors import DecodeError, EncodeError, ProtocolError

include "wire/constants.pxi"
include "wire/text.pxi"
include "wire/cursor.pxi"
include "wire/decode_cache.pxi"
include "wire/decode.pxi"
include "wire/writer.pxi"
include "wire/to_msgpack.pxi"
include "wire/to_json.pxi"
include "wire/transcoder.pxi"
include "wire/batcher.pxi"
include "wire/outline.pxi"
include "wire/encode.pxi"
include "wire/from_msgpack.pxi"
include "wire/from_json.pxi"
include "wire/message.pxi"
include "wire/framer.pxi"
include "wire/nats.pxi"
include "wire/envelopes.pxi"
