/* thread_service.h - service threads: libuv loops that take client connections and answer reads. Each has its own listening socket (SO_REUSEPORT),
 * read transaction, connections and requests; they share nothing among themselves. srv_client.h is what runs on them. */
#ifndef RAFTDIR_THREAD_SERVICE_H
#define RAFTDIR_THREAD_SERVICE_H
#include "daemon.h"

/* Binds and listens (number 0 also on the Unix socket), but takes nobody yet. RAFTDIR_EUNAVAIL: the address is in use. */
int service_create(struct daemon *d, unsigned number, struct service **service_r, struct err *err);
/* Could somebody listen there now? For addresses that are bound later. */
int service_probe(const char *what, const char *address, struct err *err);
int service_run(struct service *s, struct err *err);
/* Any thread: a reader that begins now sees at least `index`. */
void service_published(struct service *s, uint64_t index);
/* Closes the listener and connections, waits for what is on its way, ends the thread. After consensus_stop. */
void service_stop(struct service *s);
void service_destroy(struct service **service);

#endif
