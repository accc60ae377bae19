/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  Where marks come from: the core's hooks.
 *
 * Each change of a relation's file is published before it happens and marked
 * after it (map.c).  That is all a write out of the buffer pool needs: a
 * checkpoint writes, or waits for, every buffer that was changed before its
 * redo point, and the hook is within that write; so at the flush of that
 * checkpoint the mark is there, and a change after the redo point is redone
 * and marked again if a crash takes its mark away.
 *
 * Two kinds of changes have no buffer that a checkpoint would wait for: pages
 * written past the buffer pool, and copies of directories.  Their WAL may lie
 * before the redo point of a checkpoint whose flush is over when the file is
 * changed, or may not have reached the disk yet: a crash then does not redo
 * the change, and a mark in memory would be gone.  So they are marked, and the
 * map is written through, before they happen, and marked once more after.  A
 * flush in between, of a checkpoint that begins later, finds the range
 * published and marks it for a backup that starts there.
 *
 * Truncation has no buffer either, but no mark of it has to survive a crash.
 * What grows again after it is logged, or it is pages at the end of the file
 * that no WAL describes, and a query looks for those itself (query.c).  The
 * same holds for files that go with a database and come again shorter.
 *
 * A directory copy is not marked by such a flush, nor does it need to be: its
 * record is written after it, so that a crash either redoes the copy or
 * leaves a directory that no database uses.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "compat.h"
#include "hooks.h"
#include "map.h"
#include "mapfile.h"
#include "relfile.h"
#include "storage/bufpage.h"
#include "storage/changetrack.h"

/* how far ahead an append is marked at most when it has to be durable: 64 MB */
#define MAX_AHEAD_BLOCKS	8192

/* a server without the core patch has none of these, and is told so */
#pragma weak changetrack_abi
#pragma weak change_begin_hook
#pragma weak change_end_hook
#pragma weak redo_block_hook
#pragma weak copydir_hook
#pragma weak checkpoint_guts_hook

static void (*prev_change_begin_hook) (SMgrRelation reln, ForkNumber forknum, BlockNumber first,
									   BlockNumber end, bool extends, const void **pages) = NULL;
static void (*prev_change_end_hook) (void) = NULL;
static void (*prev_redo_block_hook) (RelFileLocator rlocator, ForkNumber forknum, BlockNumber blkno) = NULL;
static void (*prev_copydir_hook) (const char *fromdir, const char *todir, bool done) = NULL;
static void (*prev_checkpoint_guts_hook) (XLogRecPtr redo, int flags) = NULL;

/*
 * Does no buffer, and no WAL that is sure to be there after a crash, stand
 * for the change?  A page without an LSN needs none: zeros that extend a
 * file, an unlogged relation.
 */
static bool
needs_durable_mark(BlockNumber first, BlockNumber end, bool extends, const void **pages)
{
	BlockNumber npages = 0;

	if (pages != NULL)
		npages = extends ? 1 : end - first;
	for (BlockNumber i = 0; i < npages; i++)
		if (PageGetLSN((Page) unconstify(void *, pages[i])) != InvalidXLogRecPtr)
			return !RecoveryInProgress();
	return false;
}

/*
 * Mark a change before it happens, and make the mark durable.
 *
 * Who appends does so page by page: as much as there is already is taken
 * along, once for each flush.  It will be new, and reported, if it comes to
 * be; and the marks of what does not are in proportion.  The caller has
 * published the range, so that a flush that begins from now on marks it.
 */
static void
mark_durably(const PtrackFork *fork, BlockNumber first, BlockNumber end, bool extends)
{
	static PtrackRange durable; /* marked and written through ... */
	static XLogRecPtr durable_redo; /* ... since the flush with this redo */
	XLogRecPtr	flush_redo = pg_atomic_read_u64(&ptrack_shared->flush_redo);
	uint64		nblocks = end - first;

	if (durable_redo == flush_redo && memcmp(&durable.fork, fork, sizeof(PtrackFork)) == 0 &&
		first >= durable.first && end <= durable.first + durable.nblocks)
		return;

	if (extends)
	{
		/* from the beginning of a chunk: what was skipped may be filled in */
		first -= first % PTRACK_CHUNK_BLOCKS;
		nblocks = Max(first, PTRACK_CHUNK_BLOCKS);
		nblocks = Min(nblocks, MAX_AHEAD_BLOCKS);
		nblocks = Max(nblocks, end - first);
	}
	ptrack_mark(fork, first, nblocks, ptrack_now());
	ptrack_file_write_through();

	/* not before: it may have failed */
	if (extends)
	{
		durable.fork = *fork;
		durable.first = first;
		durable.nblocks = nblocks;
		durable_redo = flush_redo;
	}
}

static void
change_begin(SMgrRelation reln, ForkNumber forknum, BlockNumber first,
			 BlockNumber end, bool extends, const void **pages)
{
	if (prev_change_begin_hook)
		prev_change_begin_hook(reln, forknum, first, end, extends, pages);

	if (!RelnIsTemp(reln))
	{
		RelFileLocator locator = RelnLocator(reln);
		PtrackFork	fork = {locator.spcOid, locator.dbOid, locator.relNumber, forknum};

		/* "extended" where there was something already */
		first = Min(first, end - 1);

		ptrack_publish(&fork, first, end - first);
		if (needs_durable_mark(first, end, extends, pages))
			mark_durably(&fork, first, end, extends);
	}
}

static void
change_end(void)
{
	ptrack_unpublish();

	if (prev_change_end_hook)
		prev_change_end_hook();
}

/*
 * Redo comes to a block.  Until the server is consistent, it may be on disk
 * as it was later, before a crash that took its mark away: redo then finds
 * nothing to do, or changes the buffer first and the file some time after.
 * From then on nothing on disk is ahead of redo.
 */
static void
redo_block(RelFileLocator locator, ForkNumber forknum, BlockNumber block)
{
	PtrackFork	fork = {locator.spcOid, locator.dbOid, locator.relNumber, forknum};

	if (prev_redo_block_hook)
		prev_redo_block_hook(locator, forknum, block);

	if (!reachedConsistency)
		ptrack_mark(&fork, block, 1, ptrack_now());
}

/*
 * Mark the relations' files in dir as all changed, under the names that they
 * have in the database of fork.
 */
static void
mark_directory(const char *dir, PtrackFork fork)
{
	RelFileList list = {0};
	XLogRecPtr	now;

	relfile_list(dir, &list);
	now = ptrack_now();

	for (size_t i = 0; i < list.nfiles; i++)
	{
		const RelFile *file = &list.files[i];

		fork.rel = file->rel;
		fork.fork = file->fork;
		ptrack_mark(&fork, (BlockNumber) ((uint64) file->segment * RELSEG_SIZE),
					relfile_blocks(file), now);
	}
	if (list.files != NULL)
		pfree(list.files);
}

/*
 * A directory of relations' files is about to be copied, or has been.
 */
static void
copydir_changed(const char *fromdir, const char *todir, bool done)
{
	PtrackFork	to = {InvalidOid, InvalidOid, InvalidOid, MAIN_FORKNUM};

	if (prev_copydir_hook)
		prev_copydir_hook(fromdir, todir, done);

	if (!relfile_parse_dir(todir, &to.spc, &to.db))
		return;
	if (done)
	{
		mark_directory(todir, to);
		ptrack_unpublish();
		return;
	}

	ptrack_publish(&to, 0, 0);
	mark_directory(fromdir, to);
	ptrack_file_write_through();
}

static void
checkpoint_guts(XLogRecPtr redo, int flags)
{
	if (prev_checkpoint_guts_hook)
		prev_checkpoint_guts_hook(redo, flags);

	ptrack_file_flush(redo, (flags & CHECKPOINT_END_OF_RECOVERY) != 0);
}

/*
 * Fail with a sentence if the server does not carry the core patch that this
 * library was built for.
 */
void
ptrack_check_core(void)
{
	if (&changetrack_abi == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ptrack needs a PostgreSQL server with the ptrack core patch"),
				 errhint("Install the patched server, or remove ptrack from shared_preload_libraries.")));
	if (changetrack_abi != CHANGETRACK_ABI)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("ptrack was built for version %d of the ptrack core patch, and this server has version %d",
						CHANGETRACK_ABI, changetrack_abi),
				 errhint("Install the ptrack extension that belongs to this server.")));
}

void
ptrack_install_hooks(void)
{
	prev_change_begin_hook = change_begin_hook;
	change_begin_hook = change_begin;
	prev_change_end_hook = change_end_hook;
	change_end_hook = change_end;
	prev_redo_block_hook = redo_block_hook;
	redo_block_hook = redo_block;
	prev_copydir_hook = copydir_hook;
	copydir_hook = copydir_changed;
	prev_checkpoint_guts_hook = checkpoint_guts_hook;
	checkpoint_guts_hook = checkpoint_guts;
}
