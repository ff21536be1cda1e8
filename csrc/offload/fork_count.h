/* fork_count.h: has this process forked since? Counted rather than asked for: getpid is
 * a system call, and each call of a link checks. */
#ifndef GNN_FORK_COUNT_H
#define GNN_FORK_COUNT_H

/* Forks on the way from the first caller's process to this one: it differs between a
 * process and its children. */
unsigned gnn_fork_count(void);

#endif
