/*-------------------------------------------------------------------------
 *
 * map.h
 *	  The map of changed blocks in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PTRACK_MAP_H
#define PTRACK_MAP_H

#include "access/xlogdefs.h"
#include "common/relpath.h"
#include "port/atomics.h"
#include "storage/block.h"
#include "storage/lwlock.h"

#define PTRACK_CHUNK_BLOCKS		64	/* neighbouring blocks that hash as one */
#define PTRACK_CHUNKS_AT_ONCE	32	/* that ptrack_chunks_changed takes */
#define PTRACK_LOGGED_BLOCKS	32	/* in a record, hence in a batch */
#define PTRACK_LINE_SIZE		(PTRACK_CHUNK_BLOCKS * sizeof(uint64))
#define PTRACK_PAGE_SIZE		4096	/* what the file is written in */
#define PTRACK_LINES_PER_PAGE	(PTRACK_PAGE_SIZE / PTRACK_LINE_SIZE)
#define PTRACK_SLOTS_PER_PAGE	(PTRACK_PAGE_SIZE / sizeof(uint64))

/* states of a page of the file, in ptrack_page_state */
#define PAGE_UNREAD				0x01	/* in the file, not merged yet */
#define PAGE_USED				0x02	/* has marks in the file */

/* A fork of a relation, as files and hooks name it. */
typedef struct PtrackFork
{
	Oid			spc;			/* tablespace, never 0 */
	Oid			db;				/* database, 0 in pg_global */
	Oid			rel;			/* relfilenumber, 0 in an in-flight entry that
								 * stands for a whole database directory */
	ForkNumber	fork;
} PtrackFork;

/* The LSNs of one chunk's blocks, at a rotation that differs by chunk. */
typedef struct PtrackLine
{
	pg_atomic_uint64 slot[PTRACK_CHUNK_BLOCKS];
} PtrackLine;

/* What is known of a line without reading it. */
typedef struct PtrackSummary
{
	pg_atomic_uint64 max;		/* its greatest slot */
	pg_atomic_uint64 min;		/* no slot of it is less; not exact */
} PtrackSummary;

/*
 * What a process is about to write and has not marked yet.  Only the process
 * that owns the entry stores to it; seq is odd while the entry counts.
 */
typedef struct PtrackInflight
{
	pg_atomic_uint64 seq;
	PtrackFork	fork;
	BlockNumber first;
	uint32		pad;
	uint64		nblocks;
	char		fill[PG_CACHE_LINE_SIZE - 3 * sizeof(uint64) - sizeof(PtrackFork)];
} PtrackInflight;

/* The same of what it has logged, to write it past the buffer pool. */
typedef struct PtrackLogged
{
	pg_atomic_uint64 seq;
	PtrackFork	fork;
	uint32		n;				/* if more, block[0] to block[1] */
	BlockNumber block[PTRACK_LOGGED_BLOCKS];
	char		fill[2 * PG_CACHE_LINE_SIZE - sizeof(uint64) - sizeof(PtrackFork) -
					 sizeof(uint32) - PTRACK_LOGGED_BLOCKS * sizeof(BlockNumber)];
} PtrackLogged;

/* A copy of what is published, or a part of it. */
typedef struct PtrackRange
{
	PtrackFork	fork;
	BlockNumber first;
	uint64		nblocks;
	bool		logged;			/* to be written later */
} PtrackRange;

/*
 * Why the map began.  The file keeps it for those who ask, so that the values
 * must not change.
 */
typedef enum PtrackReset
{
	PTRACK_RESET_NONE = 0,		/* it did not: the file is taken over */
	PTRACK_RESET_NO_FILE = 1,
	PTRACK_RESET_DAMAGED = 2,
	PTRACK_RESET_FOREIGN = 3,	/* another cluster, block or segment size, or
								 * another format */
	PTRACK_RESET_STALE = 4,		/* the cluster went on without it */
	PTRACK_RESET_UNLOGGED = 5	/* wal_level was minimal */
} PtrackReset;

typedef struct PtrackShared
{
	LWLock	   *lock;			/* held while the file is read or written */

	/* constant after startup */
	uint32		nlines;
	uint32		npages;
	int			nprocs;			/* entries in the in-flight tables */
	uint64		sysid;
	XLogRecPtr	start_redo;		/* where this start began to replay */
	XLogRecPtr	known_redo;		/* no backup of before this start began later
								 * ... */
	XLogRecPtr	known_end;		/* ... but before the end of one that an
								 * earlier start has replayed ... */
	bool		backup_open;	/* ... or of the one that this start replays */
	uint32		label;			/* checksum of the backup_label of the last
								 * backup whose replay began with the library,
								 * or before the map did */
	bool		ahead;			/* minRecoveryPoint is behind what is on disk,
								 * or will be when this start ends */
	bool		early;			/* so that recovery calls itself consistent
								 * before redo has come to all of that */

	/* atomic: read without the lock, written with it */
	pg_atomic_uint64 init_lsn;	/* 0: not decided yet */
	pg_atomic_uint64 whole_lsn; /* up to here what WAL does not describe in
								 * full is reported whole */
	pg_atomic_uint32 replayed;	/* this start replays WAL, and no flush after
								 * the replay has set whole_lsn yet */
	pg_atomic_uint32 unread;	/* pages of the file not merged yet */
	pg_atomic_uint64 flush_redo;	/* redo point of the newest flush begun */
	pg_atomic_uint32 recovering;	/* the file may say that it knows of an
									 * archive recovery: not when something is
									 * written after that */

	/* the file; under lock */
	bool		same_shape;		/* the file to be merged has this map's size */
	bool		in_place;		/* the file is sound and has this map's size:
								 * changed pages are written where they are */
	bool		unsynced;		/* pages were written since the last fsync */
	bool		exists;			/* there is a file that a start would accept */
	bool		fresh;			/* the map began with this start, and no flush
								 * has decided on init_lsn yet */
	XLogRecPtr	file_redo;		/* redo point the file is stamped with */
	TimeLineID	file_tli;
	uint32		file_flags;
	uint32		file_nlines;	/* shape of the file to be merged */
	uint32		file_npages;
	uint32		file_used;		/* pages in use by its header */
	uint32		found_used;		/* of those, found by reading so far */
	uint32		next_unread;	/* where the reader goes on */
	uint32		used;			/* pages in use in the file as it is now ... */
	uint32		header_used;	/* ... and as its header counts them */
	bool		recovery;		/* a header is to know of this start's archive
								 * recovery */

	/* what happened, for those who ask; under lock */
	PtrackReset reset;			/* why the map began ... */
	int64		reset_time;		/* ... and when, a TimestampTz */
	int64		flush_time;		/* TimestampTz of this start's last whole
								 * flush, 0 if there was none */
	int64		flush_usecs;
	int64		flush_pages;
	int64		flush_failures; /* since the last one that went well */
	int64		write_throughs; /* of this start */
} PtrackShared;

/* Ask for memory that will be read soon. */
static inline void
prefetch(const void *start, Size size)
{
#ifdef __GNUC__
	for (Size at = 0; at < size; at += 64)
		__builtin_prefetch((const char *) start + at);
#else
	(void) start;
	(void) size;
#endif
}

extern int	ptrack_map_size;	/* GUC, MB */

extern PtrackShared *ptrack_shared;
extern PtrackLine *ptrack_lines;
extern PtrackSummary *ptrack_summaries;
extern uint8 *ptrack_dirty;
extern uint8 *ptrack_page_state;

extern Size ptrack_map_shmem_size(void);
extern bool ptrack_map_attach(void);

extern XLogRecPtr ptrack_now(void);

extern uint64 ptrack_fork_hash(const PtrackFork *fork);
extern void ptrack_mark(const PtrackFork *fork, BlockNumber first, uint64 nblocks,
						XLogRecPtr lsn);
extern void ptrack_chunks_changed(uint64 fork_hash, BlockNumber first, uint32 n, XLogRecPtr lsn,
								  uint64 *bits);
extern void ptrack_line_at_least(uint32 line, XLogRecPtr lsn);
extern void ptrack_merge_line(uint32 line, const uint64 *slots);
extern void ptrack_merge_resized(uint32 line, uint32 nlines, const uint64 *slots);

extern void ptrack_publish(const PtrackFork *fork, BlockNumber first, uint64 nblocks);
extern void ptrack_unpublish(void);
extern void ptrack_publish_logged(const PtrackFork *fork, int n, const BlockNumber *blocks);
extern void ptrack_unpublish_logged(void);
extern bool ptrack_is_logged(const PtrackFork *fork, BlockNumber block);
extern PtrackRange *ptrack_published(int *n);
extern void ptrack_mark_published(void);

#endif							/* PTRACK_MAP_H */
