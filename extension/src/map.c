/*-------------------------------------------------------------------------
 *
 * map.c
 *	  The map of changed blocks in shared memory.
 *
 * A chunk of 64 neighbouring blocks of a fork hashes to two lines of 64
 * slots, and within each line to a rotation; a block's two slots hold the
 * greatest LSN at which any block that shares them was marked.  A block may
 * have changed since an LSN iff both its slots reach it.  Slots only grow.
 *
 * The line is (hash * nlines) >> 32, not a remainder: lines are intervals of
 * the hash, so that the lines of a map of another size that may hold a
 * chunk's marks are those whose intervals overlap (ptrack_merge_resized).
 *
 * Locking: none.  Marks are compare-and-swap maxima.  Four orders matter:
 *
 * - A mark stores slots, then the line's maximum, then the page's dirty flag,
 *	 whether or not it changed a slot (whoever did may not have come to the
 *	 flag yet).  The flush clears the flag, then copies the slots.  So a mark
 *	 that is complete when a flush begins is in that flush.
 *
 * - A writer publishes the range in its in-flight entry before it touches the
 *	 file, and marks before it clears the entry.  Readers of the map read the
 *	 in-flight tables first and the slots after: whatever is on disk by then is
 *	 in one of the two.
 *
 * - A writer publishes, then reads flush_redo; a flush stores flush_redo, then
 *	 reads the in-flight tables.  With a full barrier between the steps on both
 *	 sides, at least one sees the other.
 *
 * - A writer publishes blocks that it will write past the buffer pool, then
 *	 inserts their WAL; a flush has its redo point, then reads the in-flight
 *	 tables, as does a query of the backup that begins with it.  So what that
 *	 redo point leaves behind is found there, or its mark: the entry is taken
 *	 back when the blocks have been written and marked.
 *
 * Durability is mapflush.c's matter.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog_internal.h"
#include "compat.h"
#include "map.h"
#include "storage/shmem.h"

StaticAssertDecl(sizeof(pg_atomic_uint64) == sizeof(uint64),
				 "ptrack needs native 64-bit atomics");
StaticAssertDecl(sizeof(PtrackInflight) == PG_CACHE_LINE_SIZE &&
				 sizeof(PtrackLogged) == 2 * PG_CACHE_LINE_SIZE,
				 "an in-flight entry has cache lines of its own");

int			ptrack_map_size = 0;

PtrackShared *ptrack_shared = NULL;
PtrackLine *ptrack_lines = NULL;
PtrackSummary *ptrack_summaries = NULL; /* of each line */
uint8	   *ptrack_dirty = NULL;	/* per page: marked since last written */
uint8	   *ptrack_page_state = NULL;	/* per page, under lock: mapload.c */

static PtrackInflight *inflight = NULL;
static PtrackLogged *logged = NULL;

/* which blocks of its logged entry this process has not written yet: a bit each */
static uint32 logged_left = 0;

StaticAssertDecl(PTRACK_LOGGED_BLOCKS == 32, "logged_left has a bit for each");
StaticAssertDecl(PTRACK_LOGGED_BLOCKS >= XLR_MAX_BLOCK_ID, "a record's blocks have room");

/* Where a chunk's marks are. */
typedef struct ChunkPlace
{
	uint32		line[2];
	uint32		rotation[2];
} ChunkPlace;

static inline uint32
map_lines(void)
{
	return (uint32) ((uint64) ptrack_map_size * 1024 * 1024 / PTRACK_LINE_SIZE);
}

/*
 * The parts of shared memory after the lines, as offsets from them.
 */
typedef struct MapLayout
{
	Size		summaries;
	Size		dirty;
	Size		page_state;
	Size		inflight;
	Size		logged;
	Size		end;
} MapLayout;

static MapLayout
map_layout(void)
{
	uint32		nlines = map_lines();
	Size		npages = nlines / PTRACK_LINES_PER_PAGE;
	MapLayout	at;

	at.summaries = mul_size(nlines, sizeof(PtrackLine));
	at.dirty = add_size(at.summaries, mul_size(nlines, sizeof(PtrackSummary)));
	at.page_state = add_size(at.dirty, MAXALIGN(npages));
	at.inflight = CACHELINEALIGN(add_size(at.page_state, MAXALIGN(npages)));
	at.logged = add_size(at.inflight, mul_size(ptrack_max_procs(), sizeof(PtrackInflight)));
	at.end = add_size(at.logged, mul_size(ptrack_max_procs(), sizeof(PtrackLogged)));
	return at;
}

/* Bytes of shared memory for the map. */
Size
ptrack_map_shmem_size(void)
{
	return add_size(add_size(map_layout().end, PG_CACHE_LINE_SIZE),
					CACHELINEALIGN(sizeof(PtrackShared)));
}

/*
 * Create the map in shared memory or find it there; true if it was created,
 * all zero but for its shape.  Caller holds AddinShmemInitLock.
 *
 * The big part is not cleared here: new shared memory is zero, and touching
 * it would make the start wait for its size.
 */
bool
ptrack_map_attach(void)
{
	MapLayout	at = map_layout();
	bool		found;
	bool		found_map;
	char	   *base;

	ptrack_shared = ShmemInitStruct("ptrack", sizeof(PtrackShared), &found);
	base = ShmemInitStruct("ptrack map", at.end + PG_CACHE_LINE_SIZE, &found_map);
	base = (char *) CACHELINEALIGN(base);

	ptrack_lines = (PtrackLine *) base;
	ptrack_summaries = (PtrackSummary *) (base + at.summaries);
	ptrack_dirty = (uint8 *) (base + at.dirty);
	ptrack_page_state = (uint8 *) (base + at.page_state);
	inflight = (PtrackInflight *) (base + at.inflight);
	logged = (PtrackLogged *) (base + at.logged);

	if (found)
		return false;

	memset(ptrack_shared, 0, sizeof(PtrackShared));
	ptrack_shared->nlines = map_lines();
	ptrack_shared->npages = ptrack_shared->nlines / PTRACK_LINES_PER_PAGE;
	ptrack_shared->nprocs = ptrack_max_procs();
	pg_atomic_init_u64(&ptrack_shared->init_lsn, 0);
	pg_atomic_init_u64(&ptrack_shared->whole_lsn, 0);
	pg_atomic_init_u32(&ptrack_shared->replayed, 0);
	pg_atomic_init_u32(&ptrack_shared->unread, 0);
	pg_atomic_init_u64(&ptrack_shared->flush_redo, 0);
	pg_atomic_init_u32(&ptrack_shared->recovering, 0);
	return true;
}

/*
 * The LSN of this moment: no record that has changed a page so far begins
 * after it, and every record that will begins at or after it.  A multiple of
 * eight, as every beginning of a record is.
 *
 * In recovery that is the beginning of the record that is being replayed.
 * What the server tells is the end of the one before, and where that is the
 * end of a WAL page, the next record begins behind a page header.
 */
XLogRecPtr
ptrack_now(void)
{
	XLogRecPtr	lsn;

	if (RecoveryInProgress())
	{
		lsn = GetXLogReplayRecPtr(NULL);
		if (lsn % wal_segment_size == 0)
			lsn += SizeOfXLogLongPHD;
		else if (lsn % XLOG_BLCKSZ == 0)
			lsn += SizeOfXLogShortPHD;

		/*
		 * A backup that this start's past has seen begin may be ahead: replay
		 * begins behind it where a backup_label says so.
		 */
		if (lsn < ptrack_shared->known_redo)
			lsn = ptrack_shared->known_redo;
	}
	else
		lsn = GetXLogInsertRecPtr();

	return TYPEALIGN64(8, lsn);
}

uint64
ptrack_fork_hash(const PtrackFork *fork)
{
	uint32		key[4];

	key[0] = fork->spc;
	key[1] = fork->db;
	key[2] = fork->rel;
	key[3] = (uint32) fork->fork;
	return DatumGetUInt64(hash_any_extended((const unsigned char *) key, sizeof(key), 0));
}

static inline ChunkPlace
chunk_place(uint64 fork_hash, BlockNumber chunk)
{
	uint64		hash = DatumGetUInt64(hash_uint32_extended(chunk, fork_hash));
	uint64		nlines = ptrack_shared->nlines;
	ChunkPlace	place;

	/*
	 * The line comes from the upper bits of each half, the rotation from the
	 * lower bits of the other half.
	 */
	place.line[0] = (uint32) (((hash >> 32) * nlines) >> 32);
	place.line[1] = (uint32) (((hash & 0xFFFFFFFF) * nlines) >> 32);
	place.rotation[0] = (uint32) hash % PTRACK_CHUNK_BLOCKS;
	place.rotation[1] = (uint32) (hash >> 32) % PTRACK_CHUNK_BLOCKS;
	return place;
}

/* Raise to lsn. */
static inline void
advance(pg_atomic_uint64 *ptr, uint64 lsn)
{
	uint64		cur = pg_atomic_read_u64(ptr);

	while (cur < lsn && !pg_atomic_compare_exchange_u64(ptr, &cur, lsn))
		;
}

/* The last step of a mark in a line: see the order at the top. */
static inline void
line_marked(uint32 line, uint64 lsn)
{
	uint32		page = line / PTRACK_LINES_PER_PAGE;

	advance(&ptrack_summaries[line].max, lsn);
	pg_memory_barrier();
	if (ptrack_dirty[page] == 0)
		ptrack_dirty[page] = 1;
}

/*
 * The block before slot "last", which ends a chunk, has been marked since the
 * newest flush: so may all of the chunk, one by one, and it is time to look for
 * the least slot, so that queries need not read the line.
 */
static void
bound_line(uint32 number, uint32 last)
{
	PtrackLine *line = &ptrack_lines[number];
	uint64		min = pg_atomic_read_u64(&line->slot[(last + PTRACK_CHUNK_BLOCKS - 1) % PTRACK_CHUNK_BLOCKS]);

	if (min < pg_atomic_read_u64(&ptrack_shared->flush_redo))
		return;
	for (uint32 i = 0; i < PTRACK_CHUNK_BLOCKS; i++)
		min = Min(min, pg_atomic_read_u64(&line->slot[i]));
	if (min != 0)
		ptrack_line_at_least(number, min);
}

/*
 * Mark nblocks blocks of fork from first on as changed at lsn.
 */
void
ptrack_mark(const PtrackFork *fork, BlockNumber first, uint64 nblocks, XLogRecPtr lsn)
{
	uint64		hash = ptrack_fork_hash(fork);
	uint64		block = first;
	uint64		end = block + nblocks;

	while (block < end)
	{
		BlockNumber chunk = (BlockNumber) (block / PTRACK_CHUNK_BLOCKS);
		uint32		from = (uint32) (block % PTRACK_CHUNK_BLOCKS);
		uint32		n = (uint32) Min((uint64) (PTRACK_CHUNK_BLOCKS - from), end - block);
		ChunkPlace	place = chunk_place(hash, chunk);

		for (int i = 0; i < 2; i++)
		{
			uint32		number = place.line[i];

			prefetch(&ptrack_lines[number].slot[(place.rotation[i] + from) % PTRACK_CHUNK_BLOCKS], 1);
			prefetch(&ptrack_summaries[number], 1);
			prefetch(&ptrack_dirty[number / PTRACK_LINES_PER_PAGE], 1);
		}
		for (int i = 0; i < 2; i++)
		{
			PtrackLine *line = &ptrack_lines[place.line[i]];

			for (uint32 k = 0; k < n; k++)
				advance(&line->slot[(place.rotation[i] + from + k) % PTRACK_CHUNK_BLOCKS],
						lsn);
			line_marked(place.line[i], lsn);
			if (n == PTRACK_CHUNK_BLOCKS)
				ptrack_line_at_least(place.line[i], lsn);
			else if (from + n == PTRACK_CHUNK_BLOCKS)
				bound_line(place.line[i], (place.rotation[i] + from + n - 1) % PTRACK_CHUNK_BLOCKS);
		}
		block += n;
	}
}

static inline uint64
line_max(uint32 line)
{
	return pg_atomic_read_u64(&ptrack_summaries[line].max);
}

static inline uint64
line_min(uint32 line)
{
	return pg_atomic_read_u64(&ptrack_summaries[line].min);
}

/* Bit i is set iff slot i of the line reaches lsn. */
static inline uint64
line_reaches(uint32 line, uint64 lsn)
{
	const PtrackLine *p = &ptrack_lines[line];
	uint64		bits = 0;

	for (int i = 0; i < PTRACK_CHUNK_BLOCKS; i++)
		bits |= (uint64) (pg_atomic_read_u64(unconstify(pg_atomic_uint64 *, &p->slot[i])) >= lsn) << i;
	return bits;
}

static inline uint64
rotate_right(uint64 bits, uint32 n)
{
	return n == 0 ? bits : (bits >> n) | (bits << (64 - n));
}

/*
 * All slots of the line have been seen to reach lsn.  They only grow, so that
 * this stays true.
 */
void
ptrack_line_at_least(uint32 line, XLogRecPtr lsn)
{
	advance(&ptrack_summaries[line].min, lsn);
}

/*
 * Which blocks of n chunks may have changed since lsn: bit i of word k stands
 * for block (first + k) * 64 + i.
 *
 * The lines are all over the map: what is needed of it is asked for before it
 * is looked at, so that the waits for memory overlap.
 */
void
ptrack_chunks_changed(uint64 fork_hash, BlockNumber first, uint32 n, XLogRecPtr lsn, uint64 *bits)
{
	ChunkPlace	places[PTRACK_CHUNKS_AT_ONCE];

	Assert(n <= PTRACK_CHUNKS_AT_ONCE);
	for (uint32 k = 0; k < n; k++)
	{
		places[k] = chunk_place(fork_hash, first + k);
		prefetch(&ptrack_summaries[places[k].line[0]], 1);
		prefetch(&ptrack_summaries[places[k].line[1]], 1);
	}
	for (uint32 k = 0; k < n; k++)
	{
		bits[k] = 0;
		if (line_max(places[k].line[0]) < lsn || line_max(places[k].line[1]) < lsn)
			continue;
		bits[k] = ~UINT64CONST(0);
		for (int i = 0; i < 2; i++)
			if (line_min(places[k].line[i]) < lsn)
				prefetch(&ptrack_lines[places[k].line[i]], PTRACK_LINE_SIZE);
	}

	/* a slot is stored before its line's maximum, hence read after it */
	pg_read_barrier();
	for (uint32 k = 0; k < n; k++)
		for (int i = 0; i < 2 && bits[k] != 0; i++)
			if (line_min(places[k].line[i]) < lsn)
				bits[k] &= rotate_right(line_reaches(places[k].line[i], lsn), places[k].rotation[i]);
}

/* Take over the slots of a line of a file of this map's size. */
void
ptrack_merge_line(uint32 line, const uint64 *slots)
{
	uint64		max = 0;
	uint64		min = slots[0];

	for (int i = 0; i < PTRACK_CHUNK_BLOCKS; i++)
	{
		if (slots[i] != 0)
			advance(&ptrack_lines[line].slot[i], slots[i]);
		max = Max(max, slots[i]);
		min = Min(min, slots[i]);
	}
	if (max != 0)
		advance(&ptrack_summaries[line].max, max);
	if (min != 0)
		ptrack_line_at_least(line, min);
}

/*
 * Take over the slots of a line of a file of nlines lines: into every line
 * of this map whose interval of the hash overlaps that line's.  A rotation
 * does not depend on the size, so that slots keep their places.
 */
void
ptrack_merge_resized(uint32 line, uint32 nlines, const uint64 *slots)
{
	/*
	 * the least and the greatest 32-bit hash h with (h * nlines) >> 32 ==
	 * line
	 */
	uint64		lo = (((uint64) line << 32) + nlines - 1) / nlines;
	uint64		hi = (((uint64) (line + 1) << 32) + nlines - 1) / nlines - 1;
	uint32		first = (uint32) ((lo * ptrack_shared->nlines) >> 32);
	uint32		last = (uint32) ((hi * ptrack_shared->nlines) >> 32);

	for (uint32 i = first; i <= last; i++)
	{
		ptrack_merge_line(i, slots);
		ptrack_dirty[i / PTRACK_LINES_PER_PAGE] = 1;
	}
}

/*
 * Entries that only their own process stores to: whoever reads one sees seq
 * before and after.
 */
static inline bool
counts(pg_atomic_uint64 *seq)
{
	return pg_atomic_read_u64(seq) % 2 != 0;
}

static inline void
begin_entry(pg_atomic_uint64 *seq PG_USED_FOR_ASSERTS_ONLY)
{
	Assert(!counts(seq));
	pg_write_barrier();			/* whoever reads the new range sees the old
								 * end */
}

static inline void
end_entry(pg_atomic_uint64 *seq)
{
	pg_write_barrier();
	pg_atomic_write_u64(seq, pg_atomic_read_u64(seq) + 1);
	pg_memory_barrier();
}

static inline void
clear_entry(pg_atomic_uint64 *seq)
{
	Assert(counts(seq));
	pg_memory_barrier();
	pg_atomic_write_u64(seq, pg_atomic_read_u64(seq) + 1);
}

/*
 * Say that this process is about to change blocks; followed by a full
 * barrier.  The entry stays until ptrack_unpublish, also if the process
 * fails in between: a change that may have happened counts as one.
 */
void
ptrack_publish(const PtrackFork *fork, BlockNumber first, uint64 nblocks)
{
	PtrackInflight *entry = &inflight[MyProcNumber];

	ptrack_unpublish();
	begin_entry(&entry->seq);
	entry->fork = *fork;
	entry->first = first;
	entry->nblocks = nblocks;
	end_entry(&entry->seq);
}

/*
 * These blocks have been written and marked: take back what this process has
 * logged if they are the last of it.
 */
static void
written(const PtrackInflight *blocks)
{
	PtrackLogged *entry = &logged[MyProcNumber];

	if (logged_left == 0 || memcmp(&entry->fork, &blocks->fork, sizeof(PtrackFork)) != 0)
		return;
	for (uint32 i = 0; i < entry->n; i++)
		if (entry->block[i] >= blocks->first && entry->block[i] - blocks->first < blocks->nblocks)
			logged_left &= ~((uint32) 1 << i);
	if (logged_left == 0)
		clear_entry(&entry->seq);
}

/*
 * Mark what this process has published, if anything, and take it back.  The
 * LSN is sampled here, after the change.
 */
void
ptrack_unpublish(void)
{
	PtrackInflight *entry = &inflight[MyProcNumber];

	if (!counts(&entry->seq))
		return;
	if (OidIsValid(entry->fork.rel))
	{
		ptrack_mark(&entry->fork, entry->first, entry->nblocks, ptrack_now());
		written(entry);
	}
	clear_entry(&entry->seq);
}

/*
 * Say that this process is about to log blocks that it will write past the
 * buffer pool; followed by a full barrier.  The entry stays until they have
 * been written, or the next ones are logged, or the transaction ends.
 */
void
ptrack_publish_logged(const PtrackFork *fork, int n, const BlockNumber *blocks)
{
	PtrackLogged *entry = &logged[MyProcNumber];

	ptrack_unpublish_logged();
	begin_entry(&entry->seq);
	entry->fork = *fork;
	entry->n = (uint32) n;
	if (n <= PTRACK_LOGGED_BLOCKS)
		memcpy(entry->block, blocks, n * sizeof(BlockNumber));
	else
	{
		entry->block[0] = entry->block[1] = blocks[0];
		for (int i = 1; i < n; i++)
		{
			entry->block[0] = Min(entry->block[0], blocks[i]);
			entry->block[1] = Max(entry->block[1], blocks[i]);
		}
	}
	end_entry(&entry->seq);
	logged_left = n <= PTRACK_LOGGED_BLOCKS ? PG_UINT32_MAX >> (PTRACK_LOGGED_BLOCKS - n) : 0;
}

/*
 * A logged entry as ranges, the neighbours in it as one.
 */
static int
logged_ranges(const PtrackLogged *entry, PtrackRange *ranges)
{
	int			n = 0;
	bool		listed = entry->n <= PTRACK_LOGGED_BLOCKS;

	for (uint32 i = 0; i < (listed ? entry->n : 1); i++)
	{
		PtrackRange *range = &ranges[n];

		if (n > 0 && entry->block[i] == range[-1].first + range[-1].nblocks)
		{
			range[-1].nblocks++;
			continue;
		}
		range->fork = entry->fork;
		range->first = entry->block[i];
		range->nblocks = listed ? 1 : (uint64) entry->block[1] - entry->block[0] + 1;
		range->logged = true;
		n++;
	}
	return n;
}

/*
 * Mark what this process has logged and not written, if anything, and take it
 * back.
 */
void
ptrack_unpublish_logged(void)
{
	PtrackLogged *entry = &logged[MyProcNumber];
	PtrackRange ranges[PTRACK_LOGGED_BLOCKS];
	int			n;

	if (!counts(&entry->seq))
		return;
	n = logged_ranges(entry, ranges);
	for (int i = 0; i < n; i++)
		ptrack_mark(&ranges[i].fork, ranges[i].first, ranges[i].nblocks, ptrack_now());
	clear_entry(&entry->seq);
	logged_left = 0;
}

/* Has this process published the block before it was logged? */
bool
ptrack_is_logged(const PtrackFork *fork, BlockNumber block)
{
	PtrackLogged *entry = &logged[MyProcNumber];
	PtrackRange ranges[PTRACK_LOGGED_BLOCKS];
	int			n;

	if (!counts(&entry->seq) || memcmp(&entry->fork, fork, sizeof(PtrackFork)) != 0)
		return false;
	n = logged_ranges(entry, ranges);
	for (int i = 0; i < n; i++)
		if (block >= ranges[i].first && block - ranges[i].first < ranges[i].nblocks)
			return true;
	return false;
}

/*
 * Copy what a process has published into ranges, of which there is room for
 * 1 + PTRACK_LOGGED_BLOCKS; returns how many they are.
 */
static int
read_entries(int proc, PtrackRange *ranges)
{
	PtrackInflight *writing = &inflight[proc];
	PtrackLogged copy;
	uint64		seq;
	int			n = 0;

	do
	{
		seq = pg_atomic_read_u64(&logged[proc].seq);
		if (seq % 2 == 0)
			break;
		pg_read_barrier();
		memcpy(&copy, &logged[proc], sizeof(copy));
		pg_read_barrier();
	} while (pg_atomic_read_u64(&logged[proc].seq) != seq);
	if (seq % 2 != 0)
		n = logged_ranges(&copy, ranges);
	do
	{
		seq = pg_atomic_read_u64(&writing->seq);
		if (seq % 2 == 0)
			return n;
		pg_read_barrier();
		ranges[n].fork = writing->fork;
		ranges[n].first = writing->first;
		ranges[n].nblocks = writing->nblocks;
		ranges[n].logged = false;
		pg_read_barrier();
	} while (pg_atomic_read_u64(&writing->seq) != seq);
	return n + 1;
}

/*
 * A palloc'd copy of what is published now, n ranges.  Callers read the map
 * after this.
 */
PtrackRange *
ptrack_published(int *n)
{
	PtrackRange *ranges = palloc_extended(ptrack_shared->nprocs * (1 + PTRACK_LOGGED_BLOCKS) *
										  sizeof(PtrackRange), MCXT_ALLOC_HUGE);

	*n = 0;
	pg_memory_barrier();
	for (int i = 0; i < ptrack_shared->nprocs; i++)
		*n += read_entries(i, &ranges[*n]);
	pg_memory_barrier();
	return ranges;
}

/*
 * Mark what is published now, on behalf of those who will.  A copy of a
 * directory is not marked here: copydir_changed (hooks.c) has why.
 */
void
ptrack_mark_published(void)
{
	PtrackRange ranges[1 + PTRACK_LOGGED_BLOCKS];
	XLogRecPtr	now = ptrack_now();

	pg_memory_barrier();
	for (int i = 0; i < ptrack_shared->nprocs; i++)
	{
		int			n = read_entries(i, ranges);

		for (int k = 0; k < n; k++)
			if (OidIsValid(ranges[k].fork.rel))
				ptrack_mark(&ranges[k].fork, ranges[k].first, ranges[k].nblocks, now);
	}
	pg_memory_barrier();
}
