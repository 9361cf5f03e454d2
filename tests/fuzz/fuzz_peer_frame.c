/* fuzz_peer_frame.c - the head of a peer frame: whatever peer_frame_head and protobuf both take, both read alike. */
#include <stdlib.h>
#include "raftdir/peers_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct peer_frame_head h;
    bool head = peer_frame_head(data, size, &h);
    Raftdir__Peer__Frame *f = raftdir__peer__frame__unpack(NULL, size, data);
    if (head && f && h.version <= UINT32_MAX) {
        if (h.version != f->version || h.cluster_id != f->cluster_id || h.incarnation != f->incarnation || h.from != f->from || h.to != f->to)
            abort();
    }
    if (f)
        raftdir__peer__frame__free_unpacked(f, NULL);
    return 0;
}
