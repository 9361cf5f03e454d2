/* fault.h - what a process does when the state's file can't be read under it.
 *
 * LMDB reads its file through a mapping. A sector that the disk can't read, or a damaged page that points beyond the file, raises SIGBUS in whichever thread touches it; nothing
 * can be answered then, and the process ends by that signal, with a core file where the system makes them. Before that one line is written, and gen-N/FAILED
 * (datadir.h), so that the next start says what is the matter and waits to be rebuilt, instead of running into the same page again and again.
 * Other faults (SIGSEGV, an assertion of LMDB's on a damaged page) are left alone: they may as well be a program's, and restarting may help. But not while the
 * state is being opened: what ends a process there would end the next one at the same place. */
#ifndef RAFTDIR_FAULT_H
#define RAFTDIR_FAULT_H

#include <stdbool.h>
#include "page.h"

/* For the rest of the process. */
void fault_watch(const char *data_dir);
/* The status page (NULL: none): the processes of this host don't run into what ended the daemon. */
void fault_page(struct page *page);
/* Around the opening of a state: then SIGBUS, wherever it comes from, SIGSEGV and SIGABRT are the state's as well. One thread. */
void fault_opening(bool begins);

#endif
