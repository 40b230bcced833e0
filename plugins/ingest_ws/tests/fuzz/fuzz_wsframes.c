/* Fuzz target for wsframes.c: the same bytes in one piece and in pieces must give the same events, and no sanitizer may object.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I src/headrace_ingest_ws tests/fuzz/fuzz_wsframes.c       (coverage-guided)
 *   gcc -g -O1 -fsanitize=address,undefined -DDRIVER -I src/headrace_ingest_ws tests/fuzz/fuzz_wsframes.c       (a.out SECONDS SEED)
 *
 * The first four input bytes choose the pieces, the size limit and how many messages a call may take.
 */
#include "wsframes.c"
#include "json.c"
#include <stdio.h>

static uint64_t mix(uint64_t hash, const uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; i++) hash = (hash ^ data[i]) * 1099511628211u;
    return hash;
}

/* The JSON check on a block of its own. What it says is compared with Python's elsewhere. */
static void is_object(const uint8_t *text, size_t size) {
    uint8_t *alone = malloc(size ? size : 1);
    memcpy(alone, text, size);
    if (ws_is_object(alone, alone + size) && (size < 2 || !memchr(alone, '}', size))) abort();
    free(alone);
}

/* A hash of all events: kind, size and bytes of each, up to an error. Every piece is a block of its own, so that the address
 * sanitizer sees each byte read or written outside it. */
static uint64_t events_of(const uint8_t *data, size_t size, size_t piece, size_t messages_max, uint64_t limit) {
    ws_memory memory = {0, SIZE_MAX};
    ws_parser *p = ws_new(limit, &memory);
    uint64_t hash = 14695981039346656037u;
    for (size_t at = 0; at < size; at += piece) {
        size_t length = size - at < piece ? size - at : piece, start = 0;
        uint8_t *block = malloc(length);
        memcpy(block, data + at, length);
        for (;;) {
            ws_found found;
            int event = ws_parse(p, block + start, length - start, messages_max, &found);
            const uint8_t *text = block + start, *end = text + found.run_bytes;
            if (found.consumed > length - start || found.run_bytes > found.consumed || found.run_count > messages_max) abort();
            for (size_t i = 0; i < found.run_count; i++) { /* each text of the run as if it had come alone */
                const uint8_t *newline = memchr(text, '\n', (size_t)(end - text)), *stop = newline ? newline : end;
                uint64_t one = (uint64_t)(stop - text);
                if (i + 1 < found.run_count && !newline) abort();
                is_object(text, (size_t)one);
                hash = mix(mix(mix(hash, (const uint8_t *)"\2", 1), (const uint8_t *)&one, 8), text, (size_t)one);
                text = stop + 1;
            }
            start += found.consumed;
            if (event == WS_MORE) {
                if (start != length) abort();
                break;
            }
            if (event == WS_FULL) continue;
            {
                uint8_t kind = (uint8_t)event;
                uint64_t one = event == WS_ERROR ? (uint64_t)found.code : found.size;
                if (event != WS_ERROR && found.size > limit && event <= WS_BINARY) abort();
                hash = mix(mix(mix(hash, &kind, 1), (const uint8_t *)&one, 8), found.data, event == WS_ERROR ? 0 : found.size);
            }
            if (found.assembled) ws_release(p);
            if (event == WS_ERROR) {
                free(block);
                ws_delete(p);
                return hash;
            }
        }
        free(block);
    }
    ws_delete(p);
    return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 5) return 0;
    size_t piece = 1 + data[0] % 64, messages_max = 1 + data[1] % 8;
    uint64_t limit = data[2] % 2 ? 1u << 20 : 1 + data[3];
    uint64_t whole = events_of(data + 4, size - 4, size - 4, (size_t)-1, limit);
    if (events_of(data + 4, size - 4, piece, messages_max, limit) != whole) abort();
    if (events_of(data + 4, size - 4, 1, 1, limit) != whole) abort();
    return 0;
}

#ifdef DRIVER
#include <time.h>
static uint64_t state;
static uint32_t rnd(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (uint32_t)(state * 2685821657736338717u >> 32);
}

/* Mostly valid frames with texts that are nearly JSON or nearly UTF-8, then a few flipped bytes. */
static size_t stream(uint8_t *to, size_t room) {
    static const uint8_t firsts[] = {0x81, 0x81, 0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88, 0xC1, 0x83};
    static const char *const texts[] = {"{}", "{\"a\":1}", "{\n}", "[1]", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "\xed\xa0\x80", "{{{{{{{{{{{{{{{{{", "x"};
    size_t at = 0;
    for (int i = 0; i < 4; i++) to[at++] = (uint8_t)rnd();
    while (at + 700 < room && rnd() % 8) {
        uint8_t body[600], mask[4], first = firsts[rnd() % (rnd() % 4 ? 10 : sizeof firsts)];
        size_t size = 0, most = rnd() % 8 ? rnd() % 130 : rnd() % 600;
        while (size < most) {
            const char *text = texts[rnd() % 8];
            for (; *text && size < most; text++) body[size++] = (uint8_t)*text;
        }
        if (first & CONTROL && size > 125) size = 125;
        to[at++] = first;
        to[at++] = (uint8_t)(MASKED | (size < 126 ? size : 126));
        if (size >= 126) to[at++] = (uint8_t)(size >> 8), to[at++] = (uint8_t)size;
        for (int i = 0; i < 4; i++) to[at++] = mask[i] = (uint8_t)rnd();
        for (size_t i = 0; i < size; i++) to[at++] = body[i] ^ mask[i & 3];
    }
    for (uint32_t flips = rnd() % 4; flips; flips--)
        if (at > 5) to[4 + rnd() % (at - 4)] ^= (uint8_t)(1u << rnd() % 8);
    return rnd() % 4 || at < 8 ? at : 4 + rnd() % (at - 4);
}

int main(int count, char **words) {
    static uint8_t input[1 << 14];
    double seconds = count > 1 ? atof(words[1]) : 10;
    uint64_t seed = count > 2 ? strtoull(words[2], NULL, 10) : (uint64_t)time(NULL), rounds = 0;
    time_t end = time(NULL) + (time_t)seconds;
    state = seed * 2 + 1;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    while (time(NULL) < end)
        for (int i = 0; i < 200; i++, rounds++) LLVMFuzzerTestOneInput(input, stream(input, sizeof input));
    printf("%llu streams\n", (unsigned long long)rounds);
    return 0;
}
#endif
