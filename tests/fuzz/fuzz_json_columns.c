/* Fuzz target for json_columns.c: payloads in a block of their own, of which nothing outside may be read; an event that is odd leaves nothing.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I core/headrace tests/fuzz/fuzz_json_columns.c       (coverage-guided)
 *   gcc -g -O1 -fsanitize=address,undefined -DDRIVER -I core/headrace tests/fuzz/fuzz_json_columns.c       (a.out SECONDS SEED)
 *
 * The payloads of a batch are what lies between 0xff bytes, which stand in none of them.
 */
#include "json_columns.c"
#include <stdio.h>
#ifdef DRIVER
#include <time.h>
#endif

enum { MEMBERS = 9, COLUMNS = 6, OBJECTS = 3, SLOTS = 32, ROWS_MAX = 64 };

static json_plan *plan_of(void) {
    static json_member members[MEMBERS] = {
        {(const uint8_t *)"ts", 2, 0, JSON_CLAIM, 0, -1, 0},  {(const uint8_t *)"n", 1, 0, JSON_NUMBER, 0, -1, 0},
        {(const uint8_t *)"i", 1, 0, JSON_INTEGER, 1, -1, 0}, {(const uint8_t *)"b", 1, 0, JSON_BOOLEAN, 2, -1, 0},
        {(const uint8_t *)"s", 1, 0, JSON_STRING, 3, -1, 0},  {(const uint8_t *)"o", 1, 0, JSON_OBJECT, 1, -1, 0},
        {(const uint8_t *)"", 0, 1, JSON_NUMBER, 4, -1, 0},   {(const uint8_t *)"o", 1, 1, JSON_OBJECT, 2, -1, 0},
        {(const uint8_t *)"s", 1, 2, JSON_STRING, 5, -1, 0},
    };
    static json_column columns[COLUMNS] = {{.kind = JSON_NUMBER}, {.kind = JSON_INTEGER}, {.kind = JSON_BOOLEAN},
                                           {.kind = JSON_STRING}, {.kind = JSON_NUMBER},  {.kind = JSON_STRING}};
    static int32_t first[OBJECTS] = {-1, -1, -1}, slots[SLOTS], touched[MEMBERS];
    static json_plan plan = {members, first, slots, columns, MEMBERS, COLUMNS, SLOTS, touched, 0, 0};
    if (!plan.event) {
        memset(slots, 0xff, sizeof slots);
        json_place(&plan);
    }
    return &plan;
}

/* How many bytes the UTF-8 character at `at` has, 0 where there is none: by its number, not by the rules of what is tested. */
static int checked_character(const uint8_t *at, const uint8_t *end) {
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    int length = *at < 0x80 ? 1 : *at < 0xc0 ? 0 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : *at < 0xf8 ? 4 : 0;
    if (!length || end - at < length) return 0;
    uint32_t code = length == 1 ? *at : *at & (0xffu >> (length + 1));
    for (int i = 1; i < length; i++) {
        if (at[i] >> 6 != 2) return 0;
        code = code << 6 | (at[i] & 0x3fu);
    }
    return code < least[length - 1] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff) ? 0 : length;
}

static void look_at(const json_column *column, const uint8_t *odd, int64_t rows) {
    int64_t count = 0;
    for (int64_t row = 0; row < rows && column->count; row++) {
        int there = column->valid[row >> 3] >> (row & 7) & 1;
        count += there;
        if (odd[row] && there) abort();
        if (column->kind != JSON_STRING) continue;
        int32_t from, to;
        memcpy(&from, column->values + 4 * row, 4);
        memcpy(&to, column->values + 4 * row + 4, 4);
        if (from < 0 || to < from || to > column->texts_size || (!there && to != from)) abort();
        for (const uint8_t *at = column->texts + from, *end = column->texts + to; at < end;) { /* it is UTF-8 */
            int length = checked_character(at, end);
            if (!length) abort();
            at += length;
        }
    }
    if (count != column->count) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_plan *plan = plan_of();
    int32_t offsets[ROWS_MAX + 1] = {0};
    uint8_t kinds[ROWS_MAX] = {0}, odd[ROWS_MAX] = {0}, *block = malloc(size ? size : 1);
    int64_t integers[ROWS_MAX], rows = 0, bytes = 0;
    double numbers[ROWS_MAX];
    json_claims claims = {kinds, integers, numbers};
    for (size_t at = 0; at < size && rows < ROWS_MAX; at++) {
        if (data[at] == 0xff) offsets[++rows] = (int32_t)bytes;
        else block[bytes++] = data[at];
    }
    uint8_t *exact = malloc(bytes ? (size_t)bytes : 1);
    memcpy(exact, block, (size_t)bytes);
    free(block);
    int64_t count = json_read(plan, exact, bytes, offsets, rows, &claims, odd, data && size ? data[size - 1] : 0), marked = 0;
    for (int64_t row = 0; row < rows; row++) {
        marked += odd[row];
        if (odd[row] && kinds[row] != CLAIM_NONE) abort();
        if (kinds[row] == CLAIM_TEXT && (integers[row] >> 32) + (integers[row] & 0xffffffff) > bytes) abort();
    }
    if (marked != count) abort();
    free(exact);
    if (count <= (data && size ? data[size - 1] : 0))
        for (int number = 0; number < COLUMNS; number++) look_at(plan->columns + number, odd, rows);
    json_release(plan);
    return 0;
}

#ifdef DRIVER
/* Without coverage: events of pieces that are mostly right. */
int main(int count, char **words) {
    static const char *pieces[] = {"{", "}", ",", ":", "\"n\"", "\"i\"", "\"s\"", "\"o\"", "\"\"", "\"ts\"", "\"b\"", "1", "-0.5e3", "12345678901234567.89",
                                   "true", "null", "\"a\\u00e9\\ud83d\\ude00\"", "\"\xc3\xa9\\n\"", " ", "\xff", "\\", "\"",
                                   "{\"n\":1,\"s\":\"x\"}\xff", "{\"o\":{\"\":2.5,\"o\":{\"s\":\"\"}},\"i\":7,\"b\":false}\xff"};
    time_t until = time(NULL) + (count > 1 ? atoi(words[1]) : 10);
    srand(count > 2 ? (unsigned)strtoul(words[2], NULL, 10) : 1);
    while (time(NULL) < until) {
        uint8_t text[2048];
        size_t size = 0;
        for (int left = rand() % 40; left-- && size < 1900;) {
            const char *piece = pieces[(size_t)rand() % (sizeof pieces / sizeof *pieces)];
            memcpy(text + size, piece, strlen(piece));
            size += strlen(piece);
            if (rand() % 16 == 0) text[size++] = (uint8_t)rand();
        }
        LLVMFuzzerTestOneInput(text, size);
    }
    return 0;
}
#endif
