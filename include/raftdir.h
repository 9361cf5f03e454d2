/* raftdir.h - the public API of libraftdir.
 *
 * Error codes first: the daemon, the protocol and the tools use the same table. */
#ifndef RAFTDIR_H
#define RAFTDIR_H

/* X(name, value, text). Codes are negative, stable, and travel on the wire. The code is for deciding, the text for reading. */
#define RAFTDIR_ERRORS(X)                                                                                     \
    X(EINVAL, -1, "invalid argument")                                                                         \
    X(ENOMEM, -2, "out of memory")                                                                            \
    X(ENOTFOUND, -3, "no such mailbox")                                                                       \
    X(EEXIST, -4, "exists already")                                                                           \
    X(ECONFLICT, -5, "precondition failed")                                                                   \
    X(ENAME, -6, "illegal mailbox name")                                                                      \
    X(ETOOBIG, -7, "over a limit")                                                                            \
    X(EACL, -8, "malformed ACL")                                                                              \
    X(ENOQUORUM, -9, "no quorum: the node can't reach a majority of the cluster")                             \
    X(EUNCERTAIN, -10, "uncertain: the write may or may not have happened")                                   \
    X(ETIMEDOUT, -11, "timed out")                                                                            \
    X(EUNAVAIL, -12, "no node could be reached")                                                              \
    X(EPERM, -13, "not permitted for this role")                                                              \
    X(EAUTH, -14, "authentication failed")                                                                    \
    X(EPROTO, -15, "protocol error")                                                                          \
    X(EVERSION, -16, "unknown version")                                                                       \
    X(ENOSPC, -17, "no space left")                                                                           \
    X(EIO, -18, "input/output error")                                                                         \
    X(ECORRUPT, -19, "data is corrupt")                                                                       \
    X(ECANCELED, -20, "canceled")                                                                             \
    X(EBUSY, -21, "busy: another change of this kind is in progress")                                         \
    X(EEXPIRED, -22, "the operation id has expired")                                                          \
    X(ENOTREADY, -23, "the node is not part of a cluster yet")                                                \
    X(ERESERVED, -24, "the name is reserved by somebody else")                                                \
    X(ENOTLEADER, -25, "not the leader")                                                                      \
    X(EUNSUPPORTED, -26, "not supported by the cluster's feature level or by this version")                   \
    X(EFOREIGN, -27, "belongs to another cluster, node or incarnation")                                       \
    X(EOTHERSTORE, -28, "the mailbox is active on another store")                                             \
    X(EFAILED, -29, "the node has stopped serving after a fault; see its log")                                \
    X(ELIMIT, -30, "too many at once")                                                                        \
    X(EFENCED, -31, "the store has another epoch: a newer master took over")

enum {
#define X(name, value, text) RAFTDIR_##name = value,
    RAFTDIR_ERRORS(X)
#undef X
};

#endif
