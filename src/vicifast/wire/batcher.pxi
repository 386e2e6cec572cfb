# Batcher: packs the events of one read into envelopes, batched by topic.

cdef struct Topic:
    # The envelopes of messages with the same two values, concatenated, and the name that `take` returns them under: a
    # str, or None to discard them. All three objects are owned.
    PyObject* one
    PyObject* other
    PyObject* name
    Writer out
    uint64_t count
    uint64_t first
    uint64_t last


cdef struct Tally:
    # Messages that got a number and were dropped.
    uint64_t count
    uint64_t first
    uint64_t last


@cython.final
cdef class Batcher(Reader):
    """Writes the messages of an event that arrive in one read into envelopes, batched by the values of two keys.

    `keys` names two root keys. `topic` is called with each new pair of their values (bytes, empty when missing) and
    returns the name under which `take` returns these messages, or None to leave them out. `limit` is the maximum size
    of a batch in bytes. Each read yields one packet whose message is the batcher itself, so that no Python object is
    created per message.

    `every` keeps one message in `every`; `rate` is the maximum to keep per second, 0 for no limit; `wanted`, unless
    None, is called with the value of `text_key` (bytes) and returns whether to keep the message. Messages left out by
    `topic` and `wanted` get no number and are counted in `left_out`; those dropped by `every` and `rate` get one, and
    `dropped` reports them. While `silent` is set, a read yields no packet.
    """

    cdef EnvelopeWriter envelope
    cdef bytes event
    cdef tuple keys
    cdef object topic
    cdef Py_ssize_t limit
    cdef Topic* topics
    cdef list complete
    cdef bint is_waiting
    cdef bint is_adding
    cdef uint64_t passed
    cdef double tokens
    cdef Tally sampled
    cdef Tally limited
    cdef readonly uint64_t left_out
    cdef public uint64_t every
    cdef public double rate
    cdef public object wanted
    cdef public bint silent
    cdef bytes text_key

    def __cinit__(self):
        self.topics = <Topic*>calloc(KNOWN_TOPICS, sizeof(Topic))
        if not self.topics:
            raise MemoryError
        self.complete = []
        self.every = 1

    def __init__(self, EnvelopeWriter envelope not None, event, keys, topic, *, Py_ssize_t limit=65536, text_key="msg"):
        name, names, text_name = text_of(event, "event"), root_names(keys), text_of(text_key, "text_key")
        if len(names) != 2:
            raise ValueError(f"keys must name two keys, not {len(names)}")
        self.envelope = envelope
        self.event = name
        self.keys = names
        self.topic = topic
        self.limit = limit
        self.text_key = text_name

    def __dealloc__(self):
        cdef int i
        if self.topics:
            for i in range(KNOWN_TOPICS):
                forget_topic(&self.topics[i])
                free(self.topics[i].out.data)
            free(self.topics)

    cdef object read(self, const uint8_t* data, Py_ssize_t size):
        with cython.critical_section(self, self.envelope):
            return self.gather(data, size)

    cdef object gather(self, const uint8_t* data, Py_ssize_t size):
        cdef Element one, other, text
        cdef Topic* topic
        cdef bint is_wanted = True
        self.check_whole()
        if not self.is_waiting:
            self.begin_read()
        root_value(data, size, <bytes>self.keys[0], &one)
        root_value(data, size, <bytes>self.keys[1], &other)
        topic = self.find(&one, &other)
        if self.wanted is not None and topic.name != <PyObject*>None:
            is_wanted = self.is_wanted(data, size, &text)
            topic = self.find(&one, &other)  # `wanted` may have called `forget`
        if not is_wanted or topic.name == <PyObject*>None:
            self.left_out += 1
            return None
        self.is_adding = True
        try:
            self.add(topic, data, size)
        finally:
            self.is_adding = False
        return self.waiting()

    cdef int check_whole(self) except -1:
        # Creating an object in C code can run the garbage collector, which can run any code.
        if self.is_adding:
            raise RuntimeError("a Batcher was used while it was adding a message")
        return 0

    cdef int add(self, Topic* topic, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t start = topic.out.used
        self.write(topic, data, size)
        if self.is_dropped():
            topic.out.used = start
            return 0
        if start and topic.out.used > self.limit:
            self.split(topic, start)
        topic.last = self.envelope.last
        if not topic.count:
            topic.first = topic.last
        topic.count += 1
        return 0

    cdef object waiting(self):
        """The batcher itself for the first message of a read, None for the others."""
        if self.is_waiting or self.silent:
            return None
        self.is_waiting = True
        return self

    cdef int begin_read(self) except -1:
        cdef uint64_t now = time_ns()
        if self.rate:
            self.tokens = min(max(self.rate, 1.0), self.tokens + (now - self.envelope.now) * self.rate / 1e9)
        self.envelope.now = now
        return 0

    cdef bint is_wanted(self, const uint8_t* data, Py_ssize_t size, Element* text) except -1:
        root_value(data, size, self.text_key, text)
        return self.wanted(text.value[:text.value_size])

    cdef bint is_dropped(self) noexcept:
        """Whether to drop the message that just got a number."""
        self.passed += 1
        if self.every > 1 and self.passed % self.every:
            tally(&self.sampled, self.envelope.last)
            return True
        if not self.rate:
            return False
        if self.tokens < 1:
            tally(&self.limited, self.envelope.last)
            return True
        self.tokens -= 1
        return False

    cdef int write(self, Topic* topic, const uint8_t* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t start = topic.out.used
        try:
            self.envelope.begin(&topic.out, self.event)
            if self.envelope.json:
                write_json(&topic.out, data, size, ())
            else:
                write_msgpack(&topic.out, data, size, ())
            self.envelope.end(&topic.out)
        except BaseException:
            topic.out.used = start
            raise
        return 0

    cdef Topic* find(self, Element* one, Element* other) except NULL:
        cdef uint64_t place = hash_name(one.value, one.value_size) * 3 + hash_name(other.value, other.value_size)
        cdef Topic* topic = &self.topics[place % KNOWN_TOPICS]
        if topic.name and is_value(topic.one, one) and is_value(topic.other, other):
            return topic
        first = one.value[:one.value_size]
        second = other.value[:other.value_size]
        name = self.topic(first, second)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a topic's name must be a str, not {type(name).__name__}")
        self.split(topic, topic.out.used)
        forget_topic(topic)
        Py_INCREF(first)
        Py_INCREF(second)
        Py_INCREF(name)
        topic.one = <PyObject*>first
        topic.other = <PyObject*>second
        topic.name = <PyObject*>name
        return topic

    cdef int split(self, Topic* topic, Py_ssize_t size) except -1:
        """Complete a batch of the first `size` bytes, all messages counted so far; later bytes stay."""
        cdef uint64_t count = topic.count
        if count:
            name, gathered = <object>topic.name, topic.out.data[:size]
            topic.count = 0
            topic.out.used -= size
            memmove(topic.out.data, topic.out.data + size, topic.out.used)
            # Last, as creating a tuple can run the garbage collector, which may call `take`.
            batch = (name, gathered, count, topic.first, topic.last)
            self.complete.append(batch)
        if not topic.out.used and topic.out.size > BUFFER_SIZE:
            free(topic.out.data)
            topic.out.data = NULL
            topic.out.size = 0
        return 0

    @cython.critical_section
    def take(self):
        """Return the batches since the last call, in order: (name, envelopes, count, first number, last number)."""
        cdef int i
        cdef list complete, empty = []
        self.check_whole()
        for i in range(KNOWN_TOPICS):
            self.split(&self.topics[i], self.topics[i].out.used)
        complete = self.complete
        self.complete = empty
        self.is_waiting = False
        return complete

    @cython.critical_section
    def dropped(self):
        """Return what `every` and `rate` dropped since the last call: (reason, count, first number, last number)."""
        cdef list reported = []
        if self.sampled.count:
            reported.append(("sampled", self.sampled.count, self.sampled.first, self.sampled.last))
        if self.limited.count:
            reported.append(("over the rate limit", self.limited.count, self.limited.first, self.limited.last))
        self.sampled.count = self.limited.count = 0
        return reported

    @cython.critical_section
    def forget(self):
        """Discard the cached names, so that `topic` is called again; for when its results have changed."""
        cdef int i
        self.check_whole()
        for i in range(KNOWN_TOPICS):
            self.split(&self.topics[i], self.topics[i].out.used)
            forget_topic(&self.topics[i])


cdef inline bint is_value(PyObject* known, Element* element) noexcept:
    return same_bytes(known, element.value, element.value_size)


cdef void forget_topic(Topic* topic) noexcept:
    replace(&topic.one, NULL)
    replace(&topic.other, NULL)
    replace(&topic.name, NULL)


cdef void tally(Tally* dropped, uint64_t number) noexcept:
    if not dropped.count:
        dropped.first = number
    dropped.last = number
    dropped.count += 1


cdef void root_value(const uint8_t* data, Py_ssize_t size, bytes name, Element* element) noexcept:
    """The value of the first key with this name before any section or list; empty when there is none."""
    cdef const uint8_t* end = data + size
    cdef const uint8_t* here = next_key(data, end, element)
    while here:
        if same_bytes(<PyObject*>name, element.name, element.name_size):
            return
        here = next_key(here, end, element)
    element.value = data
    element.value_size = 0
