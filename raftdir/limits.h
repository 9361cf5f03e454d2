/* limits.h - every limit of the product, by name. All sizes in bytes, all times in milliseconds, unless the name says otherwise. */
#ifndef RAFTDIR_LIMITS_H
#define RAFTDIR_LIMITS_H

/* Versions of what is written or sent. */
#define LOG_ENTRY_VERSION 1
#define LOG_FILE_VERSION 1
#define RECORD_VERSION 1
#define STORE_VERSION 1
#define DATADIR_VERSION 1
#define PEER_FRAME_VERSION 1
#define CLIENT_FRAME_VERSION 1
#define IMAGE_VERSION 1
#define FEATURE_LEVEL_MAX 1 /* what this build can apply */

/* Names and fields of mailboxes. LMDB's key limit is 511; index keys are an 8-byte id followed by the name. */
#define NAME_LEN_MAX 490
#define DELETED_NAME_LEN_MAX 503
#define NAME_KEY_LEN_MAX DELETED_NAME_LEN_MAX
#define PARTITION_LEN_MAX 64
#define SERVER_LEN_MAX 512
#define ACL_LEN_MAX 65536
#define ACL_ENTRIES_MAX 4096
#define IDENTIFIER_LEN_MAX 490
#define UNIQUEID_LEN_MAX 128
#define MBTYPE_LEN_MAX 64
#define SPECIALUSE_LEN_MAX 1024
#define NAME_HISTORY_LEN_MAX 65536
#define USER_GROUPS_MAX 4096

/* Writes. */
#define OP_ID_LEN 16
#define TOKEN_LEN_MAX 64
#define IDENTITY_LEN_MAX 256
#define REQUEST_OPS_MAX 4096            /* operations in one atomic request */
#define REQUEST_LEN_MAX (1u << 20)      /* a packed request */
#define ENTRY_LEN_MAX (4u << 20)        /* a packed log entry; peers refuse more */
#define ENTRY_PACK_LEN (256u << 10)     /* the proposer starts a new entry beyond this */
#define ENTRY_PACK_REQUESTS 1024
#define SUBTREE_MAX 100000              /* mailboxes that one rename, delete or move may touch */
#define OP_TTL_DEFAULT_MS (10ull * 60 * 1000)
#define OP_TTL_MAX_MS (60ull * 60 * 1000)
#define OP_EXPIRE_BATCH 4096            /* expired results removed by one entry */
#define RESERVATION_TTL_DEFAULT_MS (5ull * 60 * 1000)
#define RESERVATION_TTL_MAX_MS (24ull * 60 * 60 * 1000)
#define WRITES_INFLIGHT_MAX 65536       /* waiting at one node, */
#define WRITES_INFLIGHT_LEN_MAX (256u << 20) /* and bytes of their requests */
#define FORWARD_LEN_MAX (1u << 20)

/* Consensus. */
#define ELECTION_TIMEOUT_MS 250
#define HEARTBEAT_MS 50
#define VOTERS_MAX 7
#define MEMBERS_MAX 64
#define APPEND_LEN_MAX (1u << 20)       /* entries' bytes in one AppendEntries frame, unless one entry alone is larger */
#define APPEND_INFLIGHT_ENTRIES 256
#define PROBE_INTERVAL_MS 50
#define FRESHNESS_INTERVAL_MS 100
#define NO_QUORUM_AFTER_MS 1000         /* a write or read waits this long for a leader before "no quorum" */
#define MEMBER_CHANGE_TIMEOUT_MS 30000
#ifndef DIGEST_INTERVAL                 /* tests/CMakeLists.txt: the simulation's is shorter, for all of its nodes and its reference */
#define DIGEST_INTERVAL 1024            /* the digest is recorded at each index that is a multiple */
#endif
#define DIGESTS_KEPT 64
#define FEED_EVENTS_KEPT 1000000

/* The log's length (DESIGN D9, D13). What is kept behind the applied state lets members that were away for a moment catch up without an image. */
#define LOG_KEEP_LEN (64ull << 20)
#define LOG_KEEP_ENTRIES 262144
#define LOG_HOLD_LEN_MAX (256ull << 20) /* kept for a member that is fetching an image; beyond, it has to fetch another */
#define LOG_HOLD_MS 5000                /* that long after the member has last said so */
#define LOG_UNAPPLIED_LEN_MAX (128ull << 20) /* entries that wait to be applied: a follower takes no more, a leader proposes no more */
#define STATE_SYNC_LEN (8u << 20)       /* the state is synced after so many bytes of applied entries, */
#define STATE_SYNC_ENTRIES 16384        /* or so many entries: what may be cut, and what a restart has to apply again */
#define IMAGE_REPEAT_MS 1000            /* a manifest is repeated this often */

/* Images. */
#define IMAGE_CHUNK_LEN (256u << 10)    /* rows' bytes in one chunk; the longest row of any table is about half of it (image_read.c) */
#define IMAGE_FRAME_LEN_MAX (1u << 20)
#define IMAGE_COMMIT_LEN (4u << 20)     /* the staged state is committed and flushed after so many bytes of rows: bounds memory, what a full disk takes back, and how long a log on the same disk waits (bench_image) */
#define IMAGE_PIN_GROWTH_MAX (1ull << 30) /* the state may grow by this much while a transfer pins its pages */
#define IMAGE_PIN_KEEP_MS 30000         /* a sender keeps the pin for a receiver whose connection broke */
#define IMAGE_SENDS_MAX 2               /* at one node at a time */
#define IMAGE_IO_TIMEOUT_MS 10000       /* without a byte */

/* Space (DESIGN D13). */
#define SPACE_RESERVE_LEN (256ull << 20) /* free below this: only writes that don't grow the state; also the length of the ballast file */
#define SPACE_CHECK_MS 250

/* Integrity. */
#define CHECKPOINT_REPEAT_MS 1000       /* the newest checkpoints are told again */
#define CHECKPOINTS_PER_FRAME 8
#define SCRUB_INTERVAL_S 86400

/* Log files. */
#define LOG_SEGMENT_LEN (64u << 20)
#define LOG_FLUSH_LEN_MAX (8u << 20)    /* one write and flush */

/* Store. */
#define STORE_MAP_LEN (1ull << 40)
#define STORE_READERS_MAX 32768
#define STATE_GROWTH_LEN (1ull << 30)   /* readers may hold back so much of the state's file; then it is copied, and they are left behind */
#define READERS_CHECK_MS 2000           /* slots of readers that are gone are freed this often */
#define APPLY_BATCH_ENTRIES 4096        /* entries in one LMDB commit */
#define NODE_UUID_LEN 16
#define SITE_LEN_MAX 64

/* Frames and connections. */
#define PEER_FRAME_LEN_MAX (ENTRY_LEN_MAX + APPEND_LEN_MAX + 65536u)
#define PEER_QUEUE_LEN_MAX (64u << 20)  /* bytes waiting for a slow peer; more are dropped */
#define CLIENT_FRAME_LEN_MAX (REQUEST_LEN_MAX + 65536u)
#define CLIENT_CONNS_MAX 16384
#define FILES_RESERVED 256              /* descriptors that clients' connections leave for the log, the state and the members */
#define CLIENT_REQUESTS_MAX 1024        /* open on one connection */
#define CLIENT_MESSAGE_LEN_MAX (16u << 20) /* a request in memory, which may be many times its frame; larger is garbage */
#define CLIENT_OPEN_LEN_MAX (128u << 20)   /* memory of one connection's open requests; then no more are taken from it */
#define CLIENTS_OPEN_LEN_MAX (1u << 30)    /* of all connections' */
#define CLIENT_OUT_LEN_MAX (8u << 20)   /* bytes waiting for a slow client; then nothing more is read from it */
#define LIST_CHUNK_ROWS 256
#define LIST_CREDIT_DEFAULT 4096
#define LIST_CREDIT_MAX 65536
#define WATCHES_MAX 4096                /* open at one node, */
#define CLIENT_WATCHES_MAX 64           /* and on one connection */
#define WATCH_PROGRESS_DEFAULT_MS 10000
#define WATCH_PROGRESS_MIN_MS 100
#define WATCH_PROGRESS_MAX_MS 60000
#define REQUEST_TIMEOUT_DEFAULT_MS 5000
#define REQUEST_TIMEOUT_MAX_MS 60000
#define HANDSHAKE_TIMEOUT_MS 5000
#define VERIFY_PROBLEMS_MAX 100

/* MUPDATE. RFC 3656 wants lines of 1,024 and literals of 4,096 bytes taken. */
#define MUPDATE_LINE_LEN_MAX 8192       /* a line without its literals */
#define MUPDATE_LITERAL_LEN_MAX (ACL_LEN_MAX + 1024u)
#define MUPDATE_COMMAND_LEN_MAX (MUPDATE_LITERAL_LEN_MAX + 16384u) /* a command with all of its literals */
#define MUPDATE_UNAUTH_LEN_MAX 32768    /* the same, before somebody is authenticated (Kerberos tickets) */
#define MUPDATE_WORDS_MAX 64            /* of one command: UPDATE may name servers */
#define MUPDATE_CONNS_MAX 16384
#define MUPDATE_AHEAD_LEN 65536         /* input that waits behind the command that is worked on; then nothing more is read */
#define MUPDATE_TURN_COMMANDS 64        /* of one connection in a row; then others have their turn */
#define MUPDATE_OUT_LEN_MAX (2u << 20)  /* bytes waiting for a slow client; then nothing more is made for it */
#define MUPDATE_LOGIN_MS 60000          /* to authenticate */
#define MUPDATE_FAILURES_MAX 3          /* of AUTHENTICATE on one connection */
#define MUPDATE_FAILURE_DELAY_MS 1000   /* before the answer to one that is refused */
#define MUPDATE_INFLATE_LEN_MAX (4u << 20) /* what one piece of input may become: deflate makes at most 1,032 bytes of one */
#define MUPDATE_IDLE_MS (45ull * 60 * 1000) /* RFC 3656, section 3: at least 15 minutes */
#define MUPDATE_STALL_MS 60000          /* a client that takes nothing of a stream for so long is let go */
#define MUPDATE_WRITE_MS 8000           /* Cyrus' clients wait 10 s */
#define MUPDATE_READ_MS 8000
#define MUPDATE_ABSENT_MAX_AGE_MS 5000  /* "no such mailbox" is said from a state at most so old, else a majority is asked */
#define MUPDATE_STALE_MS 5000           /* a node whose state may be older takes no new connections: clients go on to the next address */
#define MUPDATE_FRESH_MS 1000           /* after that it takes connections again when its state was at most so old for as long */
#define MUPDATE_NOTSENT_LEN (256u << 10) /* waits in the kernel for a slow client */
#define MUPDATE_VIEW_ROWS 512           /* sessions in one frame of `raftdirctl mupdate sessions`: a frame is at most CLIENT_FRAME_LEN_MAX */
#define MUPDATE_SNAPSHOTS_MAX 64        /* lists that hold a snapshot of the state, at one node; others wait their turn */
#define MUPDATE_SNAPSHOT_LEN (256u << 10) /* rows are made in pieces of this length */
#define MUPDATE_LISTS_RATE 300000000u   /* bytes of lists that a service thread sends in a second, about 2 M rows: lookups come in between */

#endif
