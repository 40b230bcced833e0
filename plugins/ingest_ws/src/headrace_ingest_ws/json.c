/* Is this text certainly one JSON object? What is not certain is for Python to judge: this says yes only to what
 * headrace.decoding.check takes (a test compares them). The text is valid UTF-8 and has at most 16 braces and brackets. */

#include <stddef.h>
#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { DEPTH_MAX = 16, DIGITS_MAX = 15, EXPONENT_DIGITS_MAX = 2 };

/* No newline: it ends a message of a run, and must not join two of them into one object. */
static const uint8_t *space(const uint8_t *at, const uint8_t *end) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r')) at++;
    return at;
}

/* Over the bytes that a string may simply hold, in steps of 16: what is left of fewer is for the caller to look at. */
static const uint8_t *skip(const uint8_t *at, const uint8_t *end) {
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), escape = _mm_set1_epi8('\\'), control = _mm_set1_epi8(0x1f);
    for (; end - at >= 16; at += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)at);
        __m128i ends = _mm_or_si128(_mm_cmpeq_epi8(bytes, quote), _mm_cmpeq_epi8(bytes, escape));
        int found = _mm_movemask_epi8(_mm_or_si128(ends, _mm_cmpeq_epi8(_mm_min_epu8(bytes, control), bytes)));
        if (found) return at + __builtin_ctz((unsigned)found);
    }
#else
    (void)end;
#endif
    return at;
}

/* Behind the string that begins at `at`, NULL when there is none. \u is left to Python: its halves have to match. */
static const uint8_t *string(const uint8_t *at, const uint8_t *end) {
    if (at >= end || *at++ != '"') return 0;
    for (at = skip(at, end); at < end; at++) {
        if (*at == '"') return at + 1;
        if (*at < 0x20) return 0;
        if (*at == '\\') {
            if (++at >= end) return 0;
            switch (*at) {
            case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't': break;
            default: return 0;
            }
            at = skip(at + 1, end) - 1;
        }
    }
    return 0;
}

static const uint8_t *digits(const uint8_t *at, const uint8_t *end, int most) {
    const uint8_t *begin = at;
    while (at < end && *at >= '0' && *at <= '9') at++;
    return at == begin || at - begin > most ? 0 : at;
}

/* Behind the number at `at`, NULL when there is none, or one that may not fit a double. */
static const uint8_t *number(const uint8_t *at, const uint8_t *end) {
    if (at < end && *at == '-') at++;
    const uint8_t *begin = at;
    if (!(at = digits(at, end, DIGITS_MAX))) return 0;
    if (*begin == '0' && at - begin > 1) return 0;
    if (at < end && *at == '.' && !(at = digits(at + 1, end, DIGITS_MAX))) return 0;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        if (!(at = digits(at, end, EXPONENT_DIGITS_MAX))) return 0;
    }
    return at;
}

static const uint8_t *word(const uint8_t *at, const uint8_t *end, const char *text) {
    for (; *text; text++, at++)
        if (at >= end || *at != (uint8_t)*text) return 0;
    return at;
}

/* Behind the object that the text begins with, and the space around it; NULL when it does not certainly begin with one. */
const uint8_t *ws_object(const uint8_t *at, const uint8_t *end) {
    uint8_t closing[DEPTH_MAX]; /* what closes each level that is open */
    int depth = 0, fresh; /* fresh: nothing in this level yet */
    at = space(at, end);
    if (at >= end || *at != '{') return 0;
    closing[depth++] = '}';
    at++;
    fresh = 1;
    while (depth) {
        at = space(at, end);
        if (at >= end) return 0;
        if (*at == closing[depth - 1]) {
            at++;
            depth--;
            fresh = 0;
            continue;
        }
        if (!fresh) {
            if (*at++ != ',') return 0;
            at = space(at, end);
        }
        if (closing[depth - 1] == '}') {
            if (!(at = string(at, end))) return 0;
            at = space(at, end);
            if (at >= end || *at++ != ':') return 0;
            at = space(at, end);
        }
        if (at >= end) return 0;
        fresh = 0;
        switch (*at) {
        case '{': case '[':
            if (depth == DEPTH_MAX) return 0;
            closing[depth++] = *at++ == '{' ? '}' : ']';
            fresh = 1;
            break;
        case '"': at = string(at, end); break;
        case 't': at = word(at, end, "true"); break;
        case 'f': at = word(at, end, "false"); break;
        case 'n': at = word(at, end, "null"); break;
        default: at = number(at, end);
        }
        if (!at) return 0;
    }
    return space(at, end);
}

int ws_is_object(const uint8_t *at, const uint8_t *end) { return ws_object(at, end) == end; }
