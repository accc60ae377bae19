/*-------------------------------------------------------------------------
 *
 * mapformat.h
 *	  The format of the map's file, for those who read and write it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PTRACK_MAPFORMAT_H
#define PTRACK_MAPFORMAT_H

#include "map.h"
#include "port/pg_crc32c.h"

#define PTRACK_MAGIC			"ptk"
#define PTRACK_FORMAT			300

/* header flags */
#define HEADER_END_OF_RECOVERY	0x01	/* stamped by an end-of-recovery
										 * checkpoint, whose timeline may be
										 * one that the header does not name */
#define HEADER_AHEAD			0x02	/* what is on disk may be ahead of
										 * pg_control's minRecoveryPoint */
#define HEADER_RECOVERY			0x04	/* an archive recovery has begun with
										 * the library, and nothing has been
										 * written since it ended */

/*
 * Pages read or written in one call.  File systems keep what was written, or
 * read ahead, in one piece together in memory; a page in the middle of a large
 * piece is written slowly, and single pages are what a flush writes.
 */
#define READ_PAGES				64
#define WRITE_PAGES				4

/* The first page of the file; what follows up to its end is zero. */
typedef struct MapHeader
{
	char		magic[4];		/* PTRACK_MAGIC, MUST BE FIRST */
	uint32		format;			/* PTRACK_FORMAT, MUST BE SECOND (as in all
								 * formats since 2.0) */
	uint64		init_lsn;		/* the map knows all changes since */
	uint64		sysid;			/* of the cluster, as in pg_control */
	uint64		redo;			/* see mapflush.c */
	uint64		whole_lsn;		/* see map.h */
	uint32		tli;			/* timeline of the checkpoint */
	uint32		flags;			/* HEADER_ */
	uint32		nlines;			/* lines in this file */
	uint32		used;			/* pages in use, at least */
	uint32		blcksz;			/* BLCKSZ */
	uint32		segment_blocks; /* RELSEG_SIZE */
	uint32		reset;			/* PtrackReset: why this map began */
	pg_crc32c	crc;			/* of the page, with this field zero */
	int64		reset_time;		/* when this map began, a TimestampTz */
	uint64		known_redo;		/* see map.h */
	uint32		label;			/* see map.h */
} MapHeader;

typedef union HeaderPage
{
	MapHeader	header;
	char		bytes[PTRACK_PAGE_SIZE];
} HeaderPage;

typedef union MapPage
{
	uint64		slot[PTRACK_SLOTS_PER_PAGE];
	char		bytes[PTRACK_PAGE_SIZE];
} MapPage;


static inline off_t
mappage_offset(uint32 page)
{
	return (off_t) (page + (uint64) 1) * PTRACK_PAGE_SIZE;
}

static inline off_t
mapfile_size(uint32 npages)
{
	return mappage_offset(npages);
}

extern const char *ptrack_map_path(void);
extern pg_crc32c mapheader_crc(const HeaderPage *page);
extern void mappage_seal(MapPage *page, uint32 number);
extern bool mappage_unseal(MapPage *page, uint32 number);
extern bool mappage_is_zero(const MapPage *page);

extern bool ptrack_read(int fd, void *buf, size_t size, off_t offset);
extern bool ptrack_write(int fd, const void *buf, size_t size, off_t offset);
extern void ptrack_unlink(const char *path);

#endif							/* PTRACK_MAPFORMAT_H */
