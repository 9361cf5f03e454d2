/* cyrus_mbtype.h - mailbox types: letters as 3.6 and later write them, and the numbers of the text dumps.
 *
 * The numbers are a trap: up to 3.4, bits (1 is "remote"); since 3.6, the kind in the low four bits and other bits for the flags (1 is
 * "netnews", 16 is "remote"). `ctl_mboxlist -u -L` of 3.6 and later reads the new ones, also in a dump that 3.4 wrote. */
#ifndef RAFTDIR_CYRUS_MBTYPE_H
#define RAFTDIR_CYRUS_MBTYPE_H
#include <stdbool.h>
#include <stdint.h>

#define CYRUS_MBTYPE_LEN 9

/* Letters of a number; false when it has bits that no version knows. buf: CYRUS_MBTYPE_LEN. */
bool cyrus_mbtype_from_old(uint32_t number, char *buf_r);
bool cyrus_mbtype_from_new(uint32_t number, char *buf_r);
/* The number that -u -L reads; false for letters that no version knows. */
bool cyrus_mbtype_to_new(const char *letters, uint32_t *number_r);
/* Does it have this flag ('d' deleted, 'i' intermediate, 'z' reserved)? */
bool cyrus_mbtype_has(const char *letters, char flag);

#endif
