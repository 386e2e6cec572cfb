#ifndef VICIFAST_CHUNK_H
#define VICIFAST_CHUNK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A chunk is 16 bytes, enough for nearly all names and most values. Chunks are copied and checked without a branch on
   the size of the text. The is_* functions check the first `size` bytes, 1 to 16; the is_*_end
   functions the last, 0 to 16. */
#define CHUNK 16
#if (defined(__SSE2__) || defined(_M_X64)) && !defined(VICIFAST_PORTABLE)
#include <emmintrin.h>
typedef __m128i Chunk;

static inline Chunk load_chunk(const uint8_t *text) { return _mm_loadu_si128((const __m128i *)text); }
static inline void store_chunk(uint8_t *to, Chunk chunk) { _mm_storeu_si128((__m128i *)to, chunk); }
/* Whether the sign bit is set in each of the first `size` bytes. */
static inline int are_signed(__m128i bytes, size_t size) {
    return !((~(unsigned)_mm_movemask_epi8(bytes) & 0xffff) << (16 - size) & 0xffff);
}
static inline int is_ascii_chunk(Chunk chunk, size_t size) {
    return !((unsigned)_mm_movemask_epi8(chunk) << (16 - size) & 0xffff);
}
static inline __m128i are_printable(__m128i bytes) {  /* 0x20 to 0x7e */
    return _mm_cmpgt_epi8(_mm_add_epi8(bytes, _mm_set1_epi8(1)), _mm_set1_epi8(0x20));
}
static inline int is_printable_chunk(Chunk chunk, size_t size) { return are_signed(are_printable(chunk), size); }
static inline int is_printable_end(Chunk chunk, size_t size) {
    return !(((unsigned)_mm_movemask_epi8(are_printable(chunk)) ^ 0xffff) >> (16 - size));
}
static inline int is_same_end(Chunk one, Chunk other, size_t size) {
    return !(((unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(one, other)) ^ 0xffff) >> (16 - size));
}
static inline int is_ascii_end(Chunk chunk, size_t size) {
    return !((unsigned)_mm_movemask_epi8(chunk) >> (16 - size));
}
static inline int is_plain_chunk(Chunk chunk, size_t size) {  /* ASCII that JSON does not escape */
    __m128i escaped = _mm_or_si128(_mm_cmpeq_epi8(chunk, _mm_set1_epi8('"')),
                                   _mm_cmpeq_epi8(chunk, _mm_set1_epi8('\\')));
    return are_signed(_mm_andnot_si128(escaped, _mm_cmpgt_epi8(chunk, _mm_set1_epi8(0x1f))), size);
}
#else
typedef struct { uint64_t low, high; } Chunk;

static inline Chunk load_chunk(const uint8_t *text) {
    Chunk chunk;
    memcpy(&chunk, text, CHUNK);
    return chunk;
}
static inline void store_chunk(uint8_t *to, Chunk chunk) { memcpy(to, &chunk, CHUNK); }
/* Replaces the bytes outside of the text with "@", which passes every check. `first` is where its mask begins. */
static inline Chunk only_text(Chunk chunk, size_t first) {
    static const uint8_t masks[3 * CHUNK] = {
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    const uint64_t fill = 0x4040404040404040u;
    Chunk mask = load_chunk(masks + first);
    chunk.low = (chunk.low & mask.low) | (fill & ~mask.low);
    chunk.high = (chunk.high & mask.high) | (fill & ~mask.high);
    return chunk;
}
static inline Chunk text_of_chunk(Chunk chunk, size_t size) { return only_text(chunk, 2 * CHUNK - size); }
static inline uint64_t below(uint64_t eight, uint64_t limit) { return eight - limit & ~eight; }
static inline uint64_t not_printable(uint64_t x) {
    return x | (x + 0x0101010101010101u) | below(x, 0x2020202020202020u);
}
static inline uint64_t not_plain(uint64_t x) {
    const uint64_t one = 0x0101010101010101u;
    return x | below(x, 0x20 * one) | below(x ^ 0x22 * one, one) | below(x ^ 0x5c * one, one);
}
static inline int is_ascii_chunk(Chunk chunk, size_t size) {
    chunk = text_of_chunk(chunk, size);
    return !((chunk.low | chunk.high) & 0x8080808080808080u);
}
static inline int is_printable_chunk(Chunk chunk, size_t size) {
    chunk = text_of_chunk(chunk, size);
    return !((not_printable(chunk.low) | not_printable(chunk.high)) & 0x8080808080808080u);
}
static inline int is_same_end(Chunk one, Chunk other, size_t size) {
    one = only_text(one, size);
    other = only_text(other, size);
    return one.low == other.low && one.high == other.high;
}
static inline int is_ascii_end(Chunk chunk, size_t size) {
    chunk = only_text(chunk, size);
    return !((chunk.low | chunk.high) & 0x8080808080808080u);
}
static inline int is_printable_end(Chunk chunk, size_t size) {
    chunk = only_text(chunk, size);
    return !((not_printable(chunk.low) | not_printable(chunk.high)) & 0x8080808080808080u);
}
static inline int is_plain_chunk(Chunk chunk, size_t size) {
    chunk = text_of_chunk(chunk, size);
    return !((not_plain(chunk.low) | not_plain(chunk.high)) & 0x8080808080808080u);
}
#endif

#endif
