/* JSON events straight to columns, a batch in one call. An event counts only if it is certainly valid and every member is known and of
 * its kind; all others are left to Python, so that this decides nothing: what it reads is what headrace.encodings.json_text reads. */

#include <float.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "json_columns.h"

/* Digits that count of a number, so that they fit 64 bits, and powers of ten with which it can be rounded exactly. */
enum { DIGITS_MAX = 19, EXPONENT_MAX = 27, EXPONENT_DIGITS_MAX = 4 };
#define ESCAPED 0x80000000u

typedef struct {
    uint64_t whole; /* the digits, without the point */
    int64_t exponent;
    int negative, integral;
} decimal;

/* Where a text lies in the payloads; the length has ESCAPED where it is not as it stands there. */
typedef struct {
    uint32_t start, length;
} span;

typedef struct {
    json_plan *plan;
    json_claims *claims;
    const uint8_t *data, *end;
    int64_t rows, row;
    int no_memory;
} reading;

static const uint8_t *space(const uint8_t *at, const uint8_t *end) {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) at++;
    return at;
}

static const uint8_t *word(const uint8_t *at, const uint8_t *end, const char *text, size_t length) {
    return (size_t)(end - at) >= length && !memcmp(at, text, length) ? at + length : NULL;
}

/* --- numbers */

static const uint8_t *digits(const uint8_t *at, const uint8_t *end, uint64_t *whole) {
    for (; at < end && (uint8_t)(*at - '0') < 10; at++) *whole = *whole * 10 + (uint8_t)(*at - '0');
    return at;
}

/* Behind the number at `at`, NULL where there is none, or one of too many digits. */
static const uint8_t *number(const uint8_t *at, const uint8_t *end, decimal *found) {
    found->whole = 0;
    found->exponent = 0;
    found->integral = 1;
    found->negative = at < end && *at == '-';
    at += found->negative;
    const uint8_t *begin = at, *all = at;
    at = digits(at, end, &found->whole);
    int64_t count = at - begin;
    if (!count || (*begin == '0' && count > 1)) return NULL;
    if (at < end && *at == '.') {
        begin = ++at;
        at = digits(at, end, &found->whole);
        if (at == begin) return NULL;
        found->integral = 0;
        found->exponent = begin - at;
        count += at - begin;
    }
    if (count > DIGITS_MAX) {
        for (; all < at && (*all == '0' || *all == '.'); all++) count -= *all == '0';
        if (count > DIGITS_MAX) return NULL;
    }
    if (at < end && (*at == 'e' || *at == 'E')) {
        found->integral = 0;
        at++;
        int below = at < end && *at == '-';
        at += at < end && (*at == '+' || *at == '-');
        uint64_t exponent = 0;
        begin = at;
        at = digits(at, end, &exponent);
        if (at == begin || at - begin > EXPONENT_DIGITS_MAX) return NULL;
        found->exponent += below ? -(int64_t)exponent : (int64_t)exponent;
    }
    return at;
}

/* whole * 2**exponent and a little more if there is a `rest`, rounded to the nearest double, or the even one of two. */
static double rounded(unsigned __int128 whole, int exponent, int rest) {
    uint64_t high = (uint64_t)(whole >> 64);
    int bits = high ? 128 - __builtin_clzll(high) : 64 - __builtin_clzll((uint64_t)whole), cut = bits - DBL_MANT_DIG;
    uint64_t mantissa, image;
    if (cut <= 0) {
        mantissa = (uint64_t)whole << -cut;
    } else {
        unsigned __int128 half = (unsigned __int128)1 << (cut - 1), below = whole & (((unsigned __int128)1 << cut) - 1);
        mantissa = (uint64_t)(whole >> cut);
        if (below > half || (below == half && (rest || mantissa & 1))) mantissa++;
    }
    /* a mantissa that has become 2**53 carries into the exponent, as it should */
    image = ((uint64_t)(exponent + cut + 1023 + DBL_MANT_DIG - 1) << (DBL_MANT_DIG - 1)) + (mantissa - (1ull << (DBL_MANT_DIG - 1)));
    double result;
    memcpy(&result, &image, sizeof result);
    return result;
}

/* The nearest double; 0 where that is not for this to say. */
static int nearest(const decimal *from, double *to) {
    static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                  1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    uint64_t whole = from->whole;
    int64_t exponent = from->exponent;
    double size;
    if (!whole) {
        size = 0.0;
    } else if (FLT_EVAL_METHOD == 0 && whole <= 1ull << DBL_MANT_DIG && exponent >= -22 && exponent <= 22) {
        size = exponent < 0 ? (double)whole / tens[-exponent] : (double)whole * tens[exponent]; /* two exact numbers: rounded once */
    } else if (exponent < -EXPONENT_MAX || exponent > EXPONENT_MAX) {
        return 0;
    } else {
        uint64_t fives = 1; /* 5**27 has 63 bits */
        for (int64_t power = exponent < 0 ? -exponent : exponent; power; power--) fives *= 5;
        if (exponent >= 0) {
            size = rounded((unsigned __int128)whole * fives, (int)exponent, 0);
        } else {
            int up = __builtin_clzll(whole), over = __builtin_clzll(fives);
            unsigned __int128 dividend = (unsigned __int128)(whole << up) << 63; /* the quotient has 63 or 64 bits */
            uint64_t divisor = fives << over, quotient = (uint64_t)(dividend / divisor);
            size = rounded(quotient, over - up - 63 + (int)exponent, dividend != (unsigned __int128)quotient * divisor);
        }
    }
    /* -0 is a whole number, and there is one 0 of them */
    *to = from->negative && (whole || !from->integral) ? -size : size;
    return 1;
}

/* Whether it is a whole number of 64 bits. */
static int whole_number(const decimal *from, int64_t *to) {
    if (!from->integral || from->whole > (uint64_t)INT64_MAX + (uint64_t)from->negative) return 0;
    *to = from->negative ? (int64_t)(0 - from->whole) : (int64_t)from->whole;
    return 1;
}

/* --- texts */

/* How many bytes the UTF-8 character at `at` has; 0 where there is none. */
static int character(const uint8_t *at, const uint8_t *end) {
    uint8_t first = at[0], least = 0x80, most = 0xbf;
    int length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (!length || end - at < length) return 0;
    if (first == 0xe0) least = 0xa0; /* shorter forms exist */
    if (first == 0xed) most = 0x9f;  /* halves of UTF-16 */
    if (first == 0xf0) least = 0x90;
    if (first == 0xf4) most = 0x8f; /* beyond Unicode */
    if (at[1] < least || at[1] > most) return 0;
    for (int i = 2; i < length; i++)
        if ((at[i] & 0xc0) != 0x80) return 0;
    return length;
}

/* The number of four hexadecimal digits; -1 where there are none. */
static int32_t hexadecimal(const uint8_t *at, const uint8_t *end) {
    int32_t value = 0;
    if (end - at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        uint8_t digit = at[i], low = digit | 0x20;
        if (digit >= '0' && digit <= '9') value = value << 4 | (digit - '0');
        else if (low >= 'a' && low <= 'f') value = value << 4 | (low - 'a' + 10);
        else return -1;
    }
    return value;
}

/* Behind the escape at `at` (a backslash); NULL where it stands for no character, which goes to `code`. */
static const uint8_t *escape(const uint8_t *at, const uint8_t *end, int32_t *code) {
    if (end - at < 2) return NULL;
    switch (at[1]) {
    case '"': case '\\': case '/': *code = at[1]; return at + 2;
    case 'b': *code = '\b'; return at + 2;
    case 'f': *code = '\f'; return at + 2;
    case 'n': *code = '\n'; return at + 2;
    case 'r': *code = '\r'; return at + 2;
    case 't': *code = '\t'; return at + 2;
    case 'u': break;
    default: return NULL;
    }
    if ((*code = hexadecimal(at + 2, end)) < 0) return NULL;
    at += 6;
    if (*code < 0xd800 || *code > 0xdfff) return at;
    if (*code > 0xdbff || end - at < 2 || at[0] != '\\' || at[1] != 'u') return NULL;
    int32_t low = hexadecimal(at + 2, end);
    if (low < 0xdc00 || low > 0xdfff) return NULL;
    *code = 0x10000 + ((*code - 0xd800) << 10) + (low - 0xdc00);
    return at + 6;
}

/* Behind the text that `at` lies in, just behind its quote; NULL where it is none. */
static const uint8_t *text(const uint8_t *at, const uint8_t *end, int *escaped) {
    int32_t code;
    *escaped = 0;
    while (at < end) {
        if (*at == '"') return at + 1;
        if (*at < 0x20) return NULL;
        if (*at == '\\') {
            *escaped = 1;
            if (!(at = escape(at, end, &code))) return NULL;
        } else if (*at < 0x80) {
            at++;
        } else {
            int length = character(at, end);
            if (!length) return NULL;
            at += length;
        }
    }
    return NULL;
}

/* Copy a text without its escapes, which `text` has looked at; behind the copy, which is not longer. */
static uint8_t *plain(uint8_t *to, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int32_t code;
        if (*at != '\\') {
            *to++ = *at++;
            continue;
        }
        at = escape(at, end, &code);
        if (code < 0x80) {
            *to++ = (uint8_t)code;
        } else if (code < 0x800) {
            *to++ = (uint8_t)(0xc0 | code >> 6);
            *to++ = (uint8_t)(0x80 | (code & 0x3f));
        } else {
            if (code < 0x10000) {
                *to++ = (uint8_t)(0xe0 | code >> 12);
            } else {
                *to++ = (uint8_t)(0xf0 | code >> 18);
                *to++ = (uint8_t)(0x80 | (code >> 12 & 0x3f));
            }
            *to++ = (uint8_t)(0x80 | (code >> 6 & 0x3f));
            *to++ = (uint8_t)(0x80 | (code & 0x3f));
        }
    }
    return to;
}

/* The texts of a column in one block: their places in the payloads become those in it. 0: no memory. */
static int gather_texts(json_column *column, const uint8_t *data, int64_t rows) {
    int64_t size = 0;
    for (int64_t row = 0; row < rows; row++) {
        span one;
        memcpy(&one, column->values + row * (int64_t)sizeof one, sizeof one);
        size += one.length & ~ESCAPED;
    }
    if (!(column->texts = malloc(size ? (size_t)size : 1))) return 0;
    uint8_t *to = column->texts;
    int32_t ends = 0;
    for (int64_t row = 0; row < rows; row++) {
        span one; /* read before the smaller numbers overwrite it */
        memcpy(&one, column->values + row * (int64_t)sizeof one, sizeof one);
        if (!row) memcpy(column->values, &ends, sizeof ends);
        const uint8_t *from = data + one.start;
        uint32_t length = one.length & ~ESCAPED;
        if (one.length & ESCAPED) {
            to = plain(to, from, from + length);
        } else if (length) {
            memcpy(to, from, length);
            to += length;
        }
        ends = (int32_t)(to - column->texts);
        memcpy(column->values + (row + 1) * (int64_t)sizeof ends, &ends, sizeof ends);
    }
    column->texts_size = ends;
    return 1;
}

/* --- events */

static uint32_t slot_of(const json_plan *plan, int32_t object, const uint8_t *name, size_t length) {
    uint32_t hash = 2166136261u ^ (uint32_t)object;
    for (size_t i = 0; i < length; i++) hash = (hash ^ name[i]) * 16777619u;
    return (hash ^ hash >> 15) & (plan->slots_count - 1);
}

void json_place(json_plan *plan) {
    for (int32_t number = 0; number < plan->members_count; number++) {
        const json_member *member = plan->members + number;
        uint32_t slot = slot_of(plan, member->object, member->name, member->length);
        while (plan->slots[slot] >= 0) slot = (slot + 1) & (plan->slots_count - 1);
        plan->slots[slot] = number;
    }
}

static int32_t find(const json_plan *plan, int32_t object, const uint8_t *name, size_t length) {
    for (uint32_t slot = slot_of(plan, object, name, length); plan->slots[slot] >= 0; slot = (slot + 1) & (plan->slots_count - 1)) {
        const json_member *member = plan->members + plan->slots[slot];
        if (member->object == object && member->length == length && !memcmp(member->name, name, length)) return plan->slots[slot];
    }
    return -1;
}

/* The column's block of values, or NULL where there is no memory for one. */
static uint8_t *values_of(reading *at, json_column *column) {
    if (!column->values) {
        /* of texts one number more than rows; behind them the bits */
        size_t numbers = (size_t)at->rows + 1;
        if (!(column->values = calloc(numbers + ((size_t)at->rows + 63) / 64, sizeof(int64_t)))) {
            at->no_memory = 1;
            return NULL;
        }
        column->valid = column->values + numbers * sizeof(int64_t);
    }
    return column->values;
}

static int set(reading *at, json_column *column, const void *value, size_t size) {
    uint8_t *values = values_of(at, column);
    if (!values) return 0;
    memcpy(values + at->row * (int64_t)size, value, size);
    column->valid[at->row >> 3] |= (uint8_t)(1u << (at->row & 7));
    column->count++;
    return 1;
}

static int set_boolean(reading *at, json_column *column, int value) {
    uint8_t *values = values_of(at, column);
    if (!values) return 0;
    values[at->row >> 3] |= (uint8_t)((unsigned)value << (at->row & 7));
    column->valid[at->row >> 3] |= (uint8_t)(1u << (at->row & 7));
    column->count++;
    return 1;
}

/* The event at hand is odd: as if nothing of it had been read. */
static void take_back(reading *at) {
    static const uint8_t nothing[sizeof(int64_t)];
    uint8_t others = (uint8_t)~(1u << (at->row & 7));
    at->claims->kinds[at->row] = CLAIM_NONE;
    for (int32_t i = 0; i < at->plan->touched_count; i++) {
        const json_member *member = at->plan->members + at->plan->touched[i];
        if (member->kind == JSON_CLAIM || member->kind == JSON_OBJECT) continue;
        json_column *column = at->plan->columns + member->place;
        if (!column->values || !(column->valid[at->row >> 3] & ~others)) continue;
        column->valid[at->row >> 3] &= others;
        column->count--;
        if (column->kind == JSON_BOOLEAN) column->values[at->row >> 3] &= others;
        else memcpy(column->values + at->row * (int64_t)sizeof nothing, nothing, sizeof nothing);
    }
}

static const uint8_t *claim(reading *at, const uint8_t *from) {
    decimal found;
    int64_t row = at->row;
    int escaped;
    if (from < at->end && *from == '"') {
        const uint8_t *behind = text(from + 1, at->end, &escaped);
        if (!behind || escaped) return NULL;
        at->claims->kinds[row] = CLAIM_TEXT;
        at->claims->integers[row] = (from + 1 - at->data) << 32 | (behind - from - 2);
        return behind;
    }
    if (!(from = number(from, at->end, &found))) return NULL;
    if (!found.integral) {
        at->claims->kinds[row] = CLAIM_NUMBER;
        return nearest(&found, at->claims->numbers + row) ? from : NULL;
    }
    at->claims->kinds[row] = CLAIM_INTEGER;
    return whole_number(&found, at->claims->integers + row) ? from : NULL;
}

static const uint8_t *object(reading *at, const uint8_t *from, int32_t number);

/* Behind the value at `from`, which the member has; NULL where it is not of its kind. */
static const uint8_t *value(reading *at, const uint8_t *from, const json_member *member) {
    json_column *column = at->plan->columns + member->place;
    const uint8_t *behind;
    decimal found;
    double floating;
    int64_t whole;
    int escaped;
    span one;
    if ((behind = word(from, at->end, "null", 4))) return behind; /* as if it were not there */
    switch (member->kind) {
    case JSON_CLAIM: return claim(at, from);
    case JSON_NUMBER:
        behind = number(from, at->end, &found);
        return behind && nearest(&found, &floating) && set(at, column, &floating, sizeof floating) ? behind : NULL;
    case JSON_INTEGER:
        behind = number(from, at->end, &found);
        return behind && whole_number(&found, &whole) && set(at, column, &whole, sizeof whole) ? behind : NULL;
    case JSON_BOOLEAN:
        if ((behind = word(from, at->end, "true", 4))) return set_boolean(at, column, 1) ? behind : NULL;
        behind = word(from, at->end, "false", 5);
        return behind && set_boolean(at, column, 0) ? behind : NULL;
    case JSON_STRING:
        if (from == at->end || *from != '"' || !(behind = text(from + 1, at->end, &escaped))) return NULL;
        one.start = (uint32_t)(from + 1 - at->data);
        one.length = (uint32_t)(behind - from - 2) | (escaped ? ESCAPED : 0);
        return set(at, column, &one, sizeof one) ? behind : NULL;
    default: return object(at, from, member->place);
    }
}

/* The member whose name begins at `from`, just behind the quote, with what follows the name's quote in `behind`; -1: no such one. */
static int32_t member_at(reading *at, const uint8_t *from, int32_t number, int32_t expected, const uint8_t **behind) {
    const json_plan *plan = at->plan;
    size_t left = (size_t)(at->end - from);
    if (expected >= 0) {
        const json_member *member = plan->members + expected;
        if (left > member->length && from[member->length] == '"' && !memcmp(from, member->name, member->length)) {
            *behind = from + member->length + 1;
            return expected;
        }
    }
    const uint8_t *quote = memchr(from, '"', left); /* a name with an escape is none that we know */
    if (!quote) return -1;
    *behind = quote + 1;
    return find(plan, number, from, (size_t)(quote - from));
}

/* Behind the object at `from`, which is that of this number; NULL where it is not as expected. */
static const uint8_t *object(reading *at, const uint8_t *from, int32_t number) {
    json_plan *plan = at->plan;
    int32_t *expected = plan->first + number;
    if (from == at->end || *from != '{') return NULL;
    from = space(from + 1, at->end);
    if (from < at->end && *from == '}') return from + 1;
    for (;;) {
        if (from == at->end || *from != '"') return NULL;
        int32_t found = member_at(at, from + 1, number, *expected, &from);
        if (found < 0) return NULL;
        json_member *member = plan->members + found;
        if (member->seen == plan->event) return NULL; /* twice: the last would count */
        member->seen = plan->event;
        plan->touched[plan->touched_count++] = found;
        *expected = found;
        expected = &member->next;
        from = space(from, at->end);
        if (from == at->end || *from != ':') return NULL;
        if (!(from = value(at, space(from + 1, at->end), member))) return NULL;
        from = space(from, at->end);
        if (from == at->end) return NULL;
        if (*from == '}') return from + 1;
        if (*from != ',') return NULL;
        from = space(from + 1, at->end);
    }
}

int64_t json_read(json_plan *plan, const uint8_t *data, int64_t size, const int32_t *offsets, int64_t rows, json_claims *claims,
                  uint8_t *odd, int64_t odd_max) {
    reading at = {plan, claims, data, data, rows, 0, 0};
    int64_t odd_count = 0;
    json_release(plan);
    for (; at.row < rows && odd_count <= odd_max; at.row++) {
        int64_t start = offsets[at.row], stop = offsets[at.row + 1];
        const uint8_t *behind = NULL;
        plan->event++;
        plan->touched_count = 0;
        if (start >= 0 && start <= stop && stop <= size) {
            at.end = data + stop;
            behind = object(&at, space(data + start, at.end), 0);
        }
        if (at.no_memory) return -1;
        if (!behind || space(behind, at.end) != at.end) {
            take_back(&at);
            odd[at.row] = 1;
            odd_count++;
        }
    }
    if (odd_count > odd_max) return odd_count;
    for (int32_t number = 0; number < plan->columns_count; number++) {
        json_column *column = plan->columns + number;
        if (column->kind == JSON_STRING && column->count && !gather_texts(column, data, rows)) return -1;
    }
    return odd_count;
}

void json_release(json_plan *plan) {
    for (int32_t number = 0; number < plan->columns_count; number++) {
        json_column *column = plan->columns + number;
        free(column->values);
        free(column->texts);
        column->values = column->valid = column->texts = NULL;
        column->count = column->texts_size = 0;
    }
}

void json_free(void *block) { free(block); }
