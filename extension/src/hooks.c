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
 * Three kinds of changes have no buffer a checkpoint would wait for:
 *
 * - pages written past the buffer pool, after their WAL;
 * - truncation, after its WAL record;
 * - copies of directories, before their WAL record.
 *
 * For the first two, the WAL may lie before the redo point of a checkpoint
 * whose flush is over when the file is changed.  A crash then would not redo
 * the change, and its mark would be lost.  So having published, the writer
 * looks whether a flush with a redo point beyond its WAL has begun: if not,
 * a later one sees the published range; if so, the writer marks and writes
 * the map through before it goes on.
 *
 * A directory is copied before its record is written: a crash either redoes
 * it or leaves a directory that no database uses.  Its files are marked and
 * written through before the copy, and marked again after it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog_internal.h"
#include "compat.h"
#include "hooks.h"
#include "map.h"
#include "mapfile.h"
#include "relfile.h"
#include "storage/bufpage.h"
#include "storage/changetrack.h"
#include "storage/md.h"

/* how far ahead an append is marked when it has to be durable: 64 MB */
#define APPEND_BLOCKS	8192

/* a server without the core patch has none of these, and is told so */
#pragma weak changetrack_abi
#pragma weak change_begin_hook
#pragma weak change_end_hook
#pragma weak redo_done_hook
#pragma weak copydir_hook
#pragma weak checkpoint_guts_hook

static void (*prev_change_begin_hook) (SMgrRelation reln, ForkNumber forknum, BlockNumber first,
									   BlockNumber nblocks, ChangeKind kind, const void **pages) = NULL;
static void (*prev_change_end_hook) (void) = NULL;
static void (*prev_redo_done_hook) (RelFileLocator rlocator, ForkNumber forknum, BlockNumber blkno) = NULL;
static void (*prev_copydir_hook) (const char *fromdir, const char *todir, bool done) = NULL;
static void (*prev_checkpoint_guts_hook) (XLogRecPtr redo, int flags) = NULL;

/* Have the lasting part of the change's WAL and a flush passed each other? */
static bool
flush_may_have_passed(ChangeKind kind, BlockNumber nblocks, const void **pages)
{
	XLogRecPtr	flush_redo = pg_atomic_read_u64(&ptrack_shared->flush_redo);

	if (flush_redo == InvalidXLogRecPtr)
		return false;

	/*
	 * In recovery the record is being replayed, hence lies beyond every redo
	 * point that a restartpoint can have by now.
	 */
	if (kind == CHANGE_TRUNCATE)
		return ProcLastRecPtr < flush_redo && !RecoveryInProgress();

	/*
	 * A page's LSN is the end of its record, which lies on one side of any
	 * redo point.  Without an LSN there is no WAL, and it is not needed:
	 * zeros that extend a file, an unlogged relation, a wal_level that
	 * ptrack does not start with.
	 */
	if (pages == NULL)
		return false;
	for (BlockNumber i = 0; i < nblocks; i++)
	{
		XLogRecPtr	lsn = PageGetLSN((Page) unconstify(void *, pages[i]));

		if (lsn != InvalidXLogRecPtr && lsn <= flush_redo)
			return !RecoveryInProgress();
	}
	return false;
}

/*
 * Mark a change before it happens, and make the mark durable.
 *
 * A writer that gets here once may do so for every page it appends (the pages
 * of an unlogged GiST index have LSNs that are none): so what follows is taken
 * along.  It will be new, and reported, if it comes to be.
 */
static void
mark_durably(const PtrackFork *fork, BlockNumber first, uint64 nblocks, ChangeKind kind)
{
	static PtrackRange durable; /* marked and written through ... */
	static XLogRecPtr durable_redo; /* ... since the flush with this redo */
	XLogRecPtr	flush_redo = pg_atomic_read_u64(&ptrack_shared->flush_redo);

	if (kind == CHANGE_EXTEND)
	{
		if (durable_redo == flush_redo &&
			memcmp(&durable.fork, fork, sizeof(PtrackFork)) == 0 &&
			first >= durable.first && first + nblocks <= durable.first + durable.nblocks)
			return;
		nblocks = Max(nblocks, Min((uint64) APPEND_BLOCKS, (uint64) MaxBlockNumber - first));
		durable.fork = *fork;
		durable.first = first;
		durable.nblocks = nblocks;
		durable_redo = flush_redo;
	}
	ptrack_mark(fork, first, nblocks, ptrack_now());
	ptrack_file_write_through();
}

static void
change_begin(SMgrRelation reln, ForkNumber forknum, BlockNumber first,
			 BlockNumber nblocks, ChangeKind kind, const void **pages)
{
	if (prev_change_begin_hook)
		prev_change_begin_hook(reln, forknum, first, nblocks, kind, pages);

	if (!RelnIsTemp(reln))
	{
		RelFileLocator locator = RelnLocator(reln);
		PtrackFork	fork = {locator.spcOid, locator.dbOid, locator.relNumber, forknum};
		BlockNumber from = first;
		uint64		n = nblocks;

		/* the file system fills a gap with zeros */
		if (kind == CHANGE_EXTEND)
		{
			BlockNumber end = mdnblocks(reln, forknum);

			if (end < first)
			{
				from = end;
				n += first - end;
			}
		}

		ptrack_publish(&fork, from, n);
		if (flush_may_have_passed(kind, nblocks, pages))
			mark_durably(&fork, from, n, kind);
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
 * Redo has found the change on disk, from before a crash that may have taken
 * its mark away.
 */
static void
redo_done(RelFileLocator locator, ForkNumber forknum, BlockNumber block)
{
	PtrackFork	fork = {locator.spcOid, locator.dbOid, locator.relNumber, forknum};

	if (prev_redo_done_hook)
		prev_redo_done_hook(locator, forknum, block);

	ptrack_mark(&fork, block, 1, ptrack_now());
}

/*
 * A directory of relations' files is about to be copied, or has been.
 */
static void
copydir_changed(const char *fromdir, const char *todir, bool done)
{
	PtrackFork	fork;
	RelFileList list = {0};
	XLogRecPtr	now;

	if (prev_copydir_hook)
		prev_copydir_hook(fromdir, todir, done);

	if (!relfile_parse_dir(todir, &fork.spc, &fork.db))
		return;
	fork.rel = InvalidOid;
	fork.fork = MAIN_FORKNUM;
	if (!done)
		ptrack_publish(&fork, 0, 0);

	(void) relfile_list(done ? todir : fromdir, &list);
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

	if (done)
		ptrack_unpublish();
	else
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
	prev_redo_done_hook = redo_done_hook;
	redo_done_hook = redo_done;
	prev_copydir_hook = copydir_hook;
	copydir_hook = copydir_changed;
	prev_checkpoint_guts_hook = checkpoint_guts_hook;
	checkpoint_guts_hook = checkpoint_guts;
}
