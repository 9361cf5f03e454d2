/* fuzz_op.c - what goes into the log: as a client's request and as an entry. What passes the check of a request is an entry that apply takes. */
#include <stdlib.h>
#include <string.h>
#include "raftdir/op.h"

#define MUST(x)                                                                                                                            \
    do {                                                                                                                                   \
        if (!(x))                                                                                                                          \
            abort();                                                                                                                       \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    Raftdir__Log__Entry *entry = NULL;
    int rc = op_entry_unpack(data, size, &entry, &err);
    if (rc)
        MUST((rc == RAFTDIR_EVERSION || rc == RAFTDIR_ECORRUPT) && err.text[0] && !entry);
    else
        op_entry_free(&entry);

    Raftdir__Log__Request *req = raftdir__log__request__unpack(NULL, size, data);
    if (!req)
        return 0;
    if (op_request_check(req, FEATURE_LEVEL_MAX, &err) == 0) {
        for (size_t i = 0; i < req->n_ops; i++) {
            (void)op_name(req->ops[i]);
            (void)op_server(req->ops[i]);
        }
        struct op_packed packed = {.data = data, .len = size};
        uint8_t *out = NULL;
        size_t out_len = 0;
        rc = op_entry_pack(FEATURE_LEVEL_MAX, 1, 2, &packed, 1, &out, &out_len, &err);
        if (rc == 0) {
            MUST(op_entry_unpack(out, out_len, &entry, &err) == 0);
            MUST(entry->n_requests == 1);
            op_entry_free(&entry);
            free(out);
        }
    } else {
        MUST(err.code < 0 && err.text[0]);
    }
    raftdir__log__request__free_unpacked(req, NULL);
    return 0;
}
