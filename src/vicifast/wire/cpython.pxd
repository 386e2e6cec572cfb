"""CPython's API with borrowed references; Cython's declarations would add reference counting that is not needed."""

from cpython.ref cimport PyObject

cdef extern from "Python.h":
    enum: PY_BIG_ENDIAN
    PyObject* PyDict_New() except NULL
    int PyDict_SetItem(PyObject* section, PyObject* key, PyObject* value) except -1
    PyObject* PyDict_Copy(PyObject* section) except NULL
    PyObject* PyODict_New() except NULL
    int PyODict_SetItem(PyObject* section, PyObject* key, PyObject* value) except -1
    int PyDict_Next(PyObject* section, Py_ssize_t* position, PyObject** key, PyObject** value)
    bint PyDict_CheckExact(object value)
    PyObject* PyList_New(Py_ssize_t size) except NULL
    bint PyList_CheckExact(object value)
    Py_ssize_t PyList_GET_SIZE(object items)
    PyObject* PyList_GET_ITEM(object items, Py_ssize_t index)  # borrowed
    void PyList_SET_ITEM(PyObject* items, Py_ssize_t index, PyObject* item)  # steals the reference
    PyObject* PyUnicode_New(Py_ssize_t size, Py_UCS4 maximum) except NULL
    PyObject* PyUnicode_DecodeUTF8(const char* text, Py_ssize_t size, const char* errors) except NULL
    void* PyUnicode_DATA(PyObject* text)
    bint PyUnicode_IS_COMPACT_ASCII(PyObject* text)
    ctypedef struct PyASCIIObject:
        pass
    bint PyUnicode_Check(object value)
    bint PyUnicode_CheckExact(object value)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject* text)
    PyObject* PyBytes_FromStringAndSize(const char* data, Py_ssize_t size) except NULL
    char* PyBytes_AS_STRING(PyObject* data)
    Py_ssize_t PyBytes_GET_SIZE(PyObject* data)
    bint PyBytes_CheckExact(object value)
    Py_ssize_t PyVectorcall_NARGS(size_t flagged)
    ctypedef object (*vectorcallfunc)(PyObject*, PyObject* const*, size_t, PyObject*)
    ctypedef struct PyTypeObject:
        vectorcallfunc tp_vectorcall
    bint PyLong_Check(object value)
    void PyObject_GC_Track(PyObject* object)
    void PyObject_GC_UnTrack(PyObject* object)
    long long PyLong_AsLongLongAndOverflow(object value, int* overflow) except? -1


cdef extern from *:
    bint unlikely(bint condition) noexcept  # Cython's own
