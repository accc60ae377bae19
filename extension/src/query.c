/*-------------------------------------------------------------------------
 *
 * query.c
 *	  Which blocks changed since an LSN.
 *
 * The answer is for the moment the query begins, or later.  In this order,
 * each step after the one before:
 *
 * 1. all of the map's file is merged;
 * 2. init_lsn, whole_lsn and the in-flight tables are read;
 * 3. directories are listed, and for each file in them the map is read.
 *
 * A block that is on disk at 2 is marked or in flight then.  So is one that has
 * been logged to be written past the buffer pool, and may come to disk while
 * the backup that asks copies it: it is reported where its file does not reach
 * to it yet, too (expect_logged).  No lock is held.
 *
 * A crash takes the marks of what came after the last flush.  Redo makes most
 * of them again; two things it does not come to:
 *
 * - what WAL does not describe in full: it is reported whole (scan_database);
 *
 * - pages that a file has grown by, which is not logged.  They matter where
 *	 the parent has something else there: the file was cut off before, or it is
 *	 another one of the same name.  All that such a file has from there on has
 *	 come to be since: it is marked, or a page that redo does not know.  So it
 *	 is found from the file's end (scan_tail).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "compat.h"
#include "map.h"
#include "mapfile.h"
#include "port/pg_bitutils.h"
#include "ptrack.h"
#include "relfile.h"
#include "storage/bufpage.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/numeric.h"
#include "utils/pg_lsn.h"

PG_FUNCTION_INFO_V1(ptrack_init_lsn);
PG_FUNCTION_INFO_V1(ptrack_get_pagemapset);
PG_FUNCTION_INFO_V1(ptrack_get_change_stat);
PG_FUNCTION_INFO_V1(ptrack_get_change_relation_stat);

#define PAGEMAP_BYTES	((RELSEG_SIZE + BITS_PER_BYTE - 1) / BITS_PER_BYTE)

typedef struct BlockScan BlockScan;

/* Takes one file with changed blocks; the bitmap has nbytes bytes. */
typedef void (*BlockScanCallback) (BlockScan *scan, const PtrackFork *fork, const char *path,
								   uint64 nblocks, Size nbytes);

/* What is asked, and where the answer goes. */
struct BlockScan
{
	XLogRecPtr	lsn;
	bool		everything;		/* the map cannot tell: all that is there */
	bool		replayed;		/* WAL was replayed since lsn */
	PtrackRange *inflight;
	int			ninflight;

	BlockScanCallback callback;
	ReturnSetInfo *rows;		/* for the set of pagemaps */
	uint64		files;			/* for the statistics */
	uint64		blocks;
	HTAB	   *forks;			/* for those of each fork */

	/* least significant bit first, bit i of the segment's block i */
	uint8	   *bitmap;			/* room for a segment and 8 bytes more */
};

/*
 * Set the bits of a chunk whose first block is the segment's block "at"
 * (negative when the segment begins inside the chunk; those bits are zero).
 */
static inline void
put_bits(uint8 *bitmap, int64 at, uint64 bits)
{
	if (at < 0)
	{
		bits >>= -at;
		at = 0;
	}
	for (uint8 *p = bitmap + at / BITS_PER_BYTE; bits != 0; p++)
	{
		int			shift = (int) (at % BITS_PER_BYTE);

		*p |= (uint8) (bits << shift);
		bits >>= BITS_PER_BYTE - shift;
		at = 0;
	}
}

/* Bits from..to-1 of a word, 0 <= from < to <= 64. */
static inline uint64
bit_range(uint32 from, uint32 to)
{
	return (~UINT64CONST(0) >> (64 - (to - from))) << from;
}

/* Blocks of the chunk that begins at block "base" that are in flight. */
static uint64
inflight_bits(const BlockScan *scan, const PtrackFork *fork, uint64 base)
{
	uint64		bits = 0;

	for (int i = 0; i < scan->ninflight; i++)
	{
		const PtrackRange *range = &scan->inflight[i];

		if (range->fork.spc != fork->spc || range->fork.db != fork->db)
			continue;
		if (!OidIsValid(range->fork.rel))
			bits = ~UINT64CONST(0);
		else if (range->fork.rel == fork->rel && range->fork.fork == fork->fork)
		{
			uint64		from = Max((uint64) range->first, base);
			uint64		to = Min(range->first + range->nblocks, base + PTRACK_CHUNK_BLOCKS);

			if (from < to)
				bits |= bit_range((uint32) (from - base), (uint32) (to - base));
		}
	}
	return bits;
}

/* The LSN of a page on disk, 0 if it has been cut off just now. */
static XLogRecPtr
page_lsn(int fd, const char *path, uint64 block)
{
	PageHeaderData header;
	ssize_t		n = pg_pread(fd, &header, sizeof(header), (off_t) (block * BLCKSZ));

	if (n < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", path)));
	return n < (ssize_t) sizeof(header) ? 0 : PageGetLSN((Page) &header);
}

/*
 * May the page have been written since the parent without a mark that a crash
 * leaves?  Its LSN is no place in WAL if the page was never logged (the first
 * segment of WAL has no records), and not below the parent's if the page was
 * written with WAL that the crash took.  Nor does it tell anything if the page
 * is just being written: it may be half of one and half of another.
 */
static bool
page_unmarked(const BlockScan *scan, int fd, const char *path, uint64 block)
{
	XLogRecPtr	lsn = page_lsn(fd, path, block);

	return lsn < (XLogRecPtr) wal_segment_size || lsn >= scan->lsn ||
		page_lsn(fd, path, block) != lsn;
}

/*
 * Set the bits of what a file of nblocks blocks has grown by, from its end on
 * to where there is a page that is neither reported nor may have come without
 * a mark.  Returns how many are new.
 */
static uint64
scan_tail(const BlockScan *scan, const char *path, uint64 nblocks)
{
	int			fd = -1;
	uint64		found = 0;

	for (uint64 block = nblocks; block-- > 0;)
	{
		uint8	   *byte = &scan->bitmap[block / BITS_PER_BYTE];
		uint8		bit = (uint8) (1 << block % BITS_PER_BYTE);

		if ((*byte & bit) != 0)
			continue;
		if (fd < 0)
			fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
		if (fd < 0 && errno == ENOENT)
			return found;		/* dropped just now */
		if (fd < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not open file \"%s\": %m", path)));
		if (!page_unmarked(scan, fd, path, block))
			break;
		if (found % 256 == 0)
			CHECK_FOR_INTERRUPTS();
		*byte |= bit;
		found++;
	}
	if (fd >= 0)
		CloseTransientFile(fd);
	return found;
}

/*
 * Ask the map for one file, and pass it on if any of its blocks changed.
 */
static void
scan_file(BlockScan *scan, const char *dir, const PtrackFork *fork, const RelFile *file, bool whole)
{
	uint64		start = (uint64) file->segment * RELSEG_SIZE;
	uint64		end = start + Max(relfile_blocks(file), file->expected);
	uint64		hash = ptrack_fork_hash(fork);
	uint64		nblocks = 0;
	uint32		n;
	Size		nbytes;
	char		path[MAXPGPATH];
	char		segment[16] = "";

	for (uint64 base = start - start % PTRACK_CHUNK_BLOCKS; base < end; base += n * PTRACK_CHUNK_BLOCKS)
	{
		uint64		changed[PTRACK_CHUNKS_AT_ONCE];

		n = (uint32) Min((end - base + PTRACK_CHUNK_BLOCKS - 1) / PTRACK_CHUNK_BLOCKS, PTRACK_CHUNKS_AT_ONCE);
		if (whole)
			memset(changed, 0xFF, sizeof(changed));
		else
			ptrack_chunks_changed(hash, (BlockNumber) (base / PTRACK_CHUNK_BLOCKS), n, scan->lsn, changed);
		for (uint32 k = 0; k < n; k++)
		{
			uint64		first = base + k * PTRACK_CHUNK_BLOCKS;
			uint64		bits = changed[k] | inflight_bits(scan, fork, first);

			/*
			 * An SP-GiST index changes its metapage without WAL.  nextval
			 * does so to a sequence's page, if a checkpoint begins while it
			 * is at it.
			 */
			if (first == 0 && scan->replayed)
				bits |= 1;
			if (bits == 0)
				continue;
			bits &= bit_range((uint32) (Max(start, first) - first),
							  (uint32) (Min(end, first + PTRACK_CHUNK_BLOCKS) - first));
			put_bits(scan->bitmap, (int64) first - (int64) start, bits);
			nblocks += pg_popcount64(bits);
		}
	}
	if (file->segment > 0)
		snprintf(segment, sizeof(segment), ".%u", file->segment);
	snprintf(path, sizeof(path), "%s/%u%s%s%s", dir, file->rel,
			 file->fork == MAIN_FORKNUM ? "" : "_",
			 file->fork == MAIN_FORKNUM ? "" : forkNames[file->fork],
			 segment);
	if (scan->replayed && !whole)
		nblocks += scan_tail(scan, path, relfile_blocks(file));
	if (nblocks == 0)
		return;

	for (nbytes = (end - start + BITS_PER_BYTE - 1) / BITS_PER_BYTE; scan->bitmap[nbytes - 1] == 0; nbytes--)
		;
	scan->callback(scan, fork, path, nblocks, nbytes);
	memset(scan->bitmap, 0, nbytes);
}

/*
 * What a process has logged, and writes past the buffer pool now, may come to
 * lie behind the end that its file has as it is listed, or in one that is not
 * there yet.  A backup that copies the file later has to take it: its WAL may
 * be of before that backup began.
 */
static void
expect_logged(const BlockScan *scan, Oid spc, Oid db, RelFileList *list)
{
	for (int i = 0; i < scan->ninflight; i++)
	{
		const PtrackRange *range = &scan->inflight[i];
		uint64		end = range->first + range->nblocks;

		if (!range->logged || range->fork.spc != spc || range->fork.db != db)
			continue;
		for (uint64 block = range->first; block < end; block += RELSEG_SIZE - block % RELSEG_SIZE)
		{
			RelFile		wanted = {.rel = range->fork.rel, .fork = range->fork.fork,
			.segment = (uint32) (block / RELSEG_SIZE)};
			RelFile    *file = relfile_find(list, &wanted);

			if (file == NULL)
				file = relfile_append(list, &wanted);
			file->expected = Max(file->expected,
								 Min(end - (uint64) file->segment * RELSEG_SIZE, (uint64) RELSEG_SIZE));
		}
	}
}

static int
compare_oids(const void *a, const void *b)
{
	Oid			x = *(const Oid *) a;
	Oid			y = *(const Oid *) b;

	return x < y ? -1 : x > y ? 1 : 0;
}

/*
 * Scan a database's directory.
 */
static void
scan_database(const char *path, Oid spc, Oid db, void *arg)
{
	BlockScan  *scan = (BlockScan *) arg;
	RelFileList list = {0};
	Oid		   *unlogged = NULL;
	size_t		nunlogged = 0;

	relfile_list(path, &list);
	expect_logged(scan, spc, db, &list);
	if (list.nfiles == 0)
		return;

	/* a relation with an init fork is unlogged */
	if (scan->replayed && !scan->everything)
	{
		unlogged = palloc_extended(list.nfiles * sizeof(Oid), MCXT_ALLOC_HUGE);
		for (size_t i = 0; i < list.nfiles; i++)
			if (list.files[i].fork == INIT_FORKNUM)
				unlogged[nunlogged++] = list.files[i].rel;
		qsort(unlogged, nunlogged, sizeof(Oid), compare_oids);
	}

	for (size_t i = 0; i < list.nfiles; i++)
	{
		const RelFile *file = &list.files[i];
		PtrackFork	fork = {spc, db, file->rel, file->fork};
		bool		whole = scan->everything;

		CHECK_FOR_INTERRUPTS();
		if (scan->replayed && !whole)
			whole = file->fork != MAIN_FORKNUM ||
				bsearch(&file->rel, unlogged, nunlogged, sizeof(Oid), compare_oids) != NULL;
		scan_file(scan, path, &fork, file, whole);
	}
	pfree(list.files);
	if (unlogged != NULL)
		pfree(unlogged);
}

/*
 * Scan the cluster for what changed since scan->lsn.  All of it has, for a
 * parent from before this start, where redo may not have come yet to what was
 * on disk by then.
 */
static void
scan_cluster(BlockScan *scan)
{
	XLogRecPtr	init_lsn = ptrack_decide_init_lsn();

	/*
	 * Before the map is read: with its end, redo has come to all there is,
	 * but for a recovery target
	 */
	bool		behind = ptrack_shared->early && RecoveryInProgress();

	/* in this order: whoever clears "replayed" has set whole_lsn */
	scan->replayed = pg_atomic_read_u32(&ptrack_shared->replayed) != 0;
	pg_memory_barrier();
	if (scan->lsn < pg_atomic_read_u64(&ptrack_shared->whole_lsn))
		scan->replayed = true;

	/* nothing happened yet that lies in the future */
	if (scan->lsn > ptrack_now())
		return;

	scan->everything = scan->lsn < init_lsn ||
		(behind && scan->lsn <= ptrack_shared->known_redo);
	scan->inflight = ptrack_published(&scan->ninflight);
	scan->bitmap = palloc0(PAGEMAP_BYTES + sizeof(uint64));
	relfile_each_database(scan_database, scan);
}

static void
require_enabled(void)
{
	if (!ptrack_enabled())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ptrack is disabled"),
				 errhint("Set ptrack.map_size and restart the server.")));
}

/* A row of (path, pagecount, pagemap), or of (path, pagemap) as 2.1 had it. */
static void
put_row(BlockScan *scan, const PtrackFork *fork pg_attribute_unused(), const char *path,
		uint64 nblocks, Size nbytes)
{
	Datum		values[3];
	bool		nulls[3] = {false, false, false};
	bytea	   *pagemap = palloc(VARHDRSZ + nbytes);
	int			i = 0;

	SET_VARSIZE(pagemap, VARHDRSZ + nbytes);
	memcpy(VARDATA(pagemap), scan->bitmap, nbytes);
	values[i++] = CStringGetTextDatum(path);
	if (scan->rows->setDesc->natts > 2)
		values[i++] = Int64GetDatum((int64) nblocks);
	values[i++] = PointerGetDatum(pagemap);
	tuplestore_putvalues(scan->rows->setResult, scan->rows->setDesc, values, nulls);
	pfree(DatumGetPointer(values[0]));
	pfree(pagemap);
}

/*
 * ptrack_get_pagemapset(start_lsn pg_lsn)
 *		returns table (path text, pagecount bigint, pagemap bytea)
 */
Datum
ptrack_get_pagemapset(PG_FUNCTION_ARGS)
{
	BlockScan	scan = {0};

	require_enabled();

	scan.rows = ptrack_begin_rows(fcinfo);
	scan.lsn = PG_GETARG_LSN(0);
	scan.callback = put_row;
	scan_cluster(&scan);
	return (Datum) 0;
}

static Datum
megabytes(uint64 nblocks)
{
	return DirectFunctionCall2(numeric_div,
							   DirectFunctionCall1(int8_numeric, Int64GetDatum((int64) (nblocks * BLCKSZ))),
							   DirectFunctionCall1(int8_numeric, Int64GetDatum(1024 * 1024)));
}

static void
count_file(BlockScan *scan, const PtrackFork *fork pg_attribute_unused(),
		   const char *path pg_attribute_unused(), uint64 nblocks,
		   Size nbytes pg_attribute_unused())
{
	scan->files++;
	scan->blocks += nblocks;
}

/*
 * ptrack_get_change_stat(start_lsn pg_lsn)
 *		returns table (files bigint, pages numeric, "size, MB" numeric)
 */
Datum
ptrack_get_change_stat(PG_FUNCTION_ARGS)
{
	BlockScan	scan = {0};
	ReturnSetInfo *rows = ptrack_begin_rows(fcinfo);
	Datum		values[3];
	bool		nulls[3] = {false, true, true};

	require_enabled();

	if (!PG_ARGISNULL(0))
	{
		scan.lsn = PG_GETARG_LSN(0);
		scan.callback = count_file;
		scan_cluster(&scan);
	}

	values[0] = Int64GetDatum((int64) scan.files);
	if (scan.files > 0)
	{
		values[1] = DirectFunctionCall1(int8_numeric, Int64GetDatum((int64) scan.blocks));
		values[2] = megabytes(scan.blocks);
		nulls[1] = nulls[2] = false;
	}
	tuplestore_putvalues(rows->setResult, rows->setDesc, values, nulls);
	return (Datum) 0;
}

/* What changed of one fork of a relation. */
typedef struct ForkStat
{
	PtrackFork	fork;			/* the key, MUST BE FIRST */
	uint64		files;
	uint64		blocks;
} ForkStat;

static void
count_fork(BlockScan *scan, const PtrackFork *fork, const char *path pg_attribute_unused(),
		   uint64 nblocks, Size nbytes pg_attribute_unused())
{
	bool		found;
	ForkStat   *stat = hash_search(scan->forks, fork, HASH_ENTER, &found);

	if (!found)
		stat->files = stat->blocks = 0;
	stat->files++;
	stat->blocks += nblocks;
}

/*
 * ptrack_get_change_relation_stat(start_lsn pg_lsn)
 *		returns table (database name, relation regclass, relfilenode oid, fork text,
 *					   files bigint, pages bigint, "size, MB" numeric)
 *
 * The relation's name is known in its own database only; it is null for one
 * that is gone or not committed yet, and in other databases.
 */
Datum
ptrack_get_change_relation_stat(PG_FUNCTION_ARGS)
{
	BlockScan	scan = {0};
	HASHCTL		ctl = {0};
	HASH_SEQ_STATUS status;
	ForkStat   *stat;

	require_enabled();
	scan.rows = ptrack_begin_rows(fcinfo);
	scan.lsn = PG_GETARG_LSN(0);
	scan.callback = count_fork;
	ctl.keysize = sizeof(PtrackFork);
	ctl.entrysize = sizeof(ForkStat);
	ctl.hcxt = CurrentMemoryContext;
	scan.forks = hash_create("ptrack changed forks", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	scan_cluster(&scan);

	hash_seq_init(&status, scan.forks);
	while ((stat = hash_seq_search(&status)) != NULL)
	{
		const PtrackFork *fork = &stat->fork;
		bool		shared = !OidIsValid(fork->db);
		char	   *database = shared ? NULL : get_database_name(fork->db);
		Oid			relation = InvalidOid;
		NameData	name;
		Datum		values[7];
		bool		nulls[7] = {false};

		if (shared || fork->db == MyDatabaseId)
			relation = RelidByRelfilenumber(fork->spc, fork->rel);
		nulls[0] = database == NULL;
		if (database != NULL)
			namestrcpy(&name, database);
		values[0] = NameGetDatum(&name);
		nulls[1] = !OidIsValid(relation);
		values[1] = ObjectIdGetDatum(relation);
		values[2] = ObjectIdGetDatum(fork->rel);
		values[3] = CStringGetTextDatum(forkNames[fork->fork]);
		values[4] = Int64GetDatum((int64) stat->files);
		values[5] = Int64GetDatum((int64) stat->blocks);
		values[6] = megabytes(stat->blocks);
		tuplestore_putvalues(scan.rows->setResult, scan.rows->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * ptrack_init_lsn() returns pg_lsn: the map knows all changes since.
 */
Datum
ptrack_init_lsn(PG_FUNCTION_ARGS)
{
	(void) fcinfo;

	if (!ptrack_enabled())
	{
		ereport(WARNING, (errmsg("ptrack is disabled")));
		PG_RETURN_LSN(InvalidXLogRecPtr);
	}
	PG_RETURN_LSN(ptrack_decide_init_lsn());
}
