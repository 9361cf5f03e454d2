/* fuzz_record.c - the store's values: bytes as they are (the checksum refuses nearly all of them), and sealed, so that what is behind the checksum
 * is tried as well. A record that is taken encodes to the same bytes. */
#include <stdlib.h>
#include <string.h>
#include "raftdir/record.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(const uint8_t *data, size_t size)
{
    static const uint8_t key[] = "user\x1f" "anna";
    struct err err = {0};
    struct record r;
    struct record_store s;
    struct store_str rest;
    if (record_decode(key, sizeof key - 1, data, size, &r, &err) == 0) {
        uint64_t sum = 0; /* touch every byte that a field claims */
        for (int i = 0; i < RECORD_FIELDS; i++)
            for (size_t j = 0; j < r.field[i].len; j++)
                sum += (uint8_t)r.field[i].s[j];
        volatile uint64_t sink = sum;
        (void)sink;
    } else {
        MUST(err.text[0]);
    }
    if (record_decode_store(key, sizeof key - 1, data, size, &s, &err) == 0)
        MUST(s.slots_n <= STORE_SLOTS_MAX && s.active < s.slots_n);
    (void)record_decode_rest(key, sizeof key - 1, data, size, RECORD_RESULT_HEAD_LEN, &rest, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t key[] = "user\x1f" "anna";
    uint8_t *copy = malloc(size ? size : 1);
    MUST(copy);
    memcpy(copy, data, size);
    decode(copy, size);
    if (size >= RECORD_COMMON_LEN && size <= RECORD_LEN_MAX) {
        record_seal(key, sizeof key - 1, data[1], (uint16_t)(data[2] | data[3] << 8), copy, size);
        decode(copy, size);
    }
    free(copy);
    return 0;
}
