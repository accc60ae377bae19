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
 * written past the buffer pool, and copies of directories.
 *
 * Such pages are logged first and written after that, one at a time or some
 * in a batch.  They are published before they are logged, and stay so until
 * they have been written and marked (log_pages).  So where a checkpoint's redo
 * point is behind their WAL, its flush has found them published and marked
 * them in the file, for a crash does not redo them; and whoever asks in
 * between gets them, for a restore does not redo them either.
 *
 * That leaves WAL that is lost, as nothing makes it durable before the page:
 * where a query would not find such a page (needs_durable_mark), it is marked,
 * and the map is written through, before it is written, and marked once more
 * after.  Copies of directories are marked and written through always.  A
 * flush in between, of a checkpoint that begins later, finds the range
 * published and marks it for a backup that starts there.
 *
 * Truncation has no buffer either, and no hook.  What comes again after it is
 * marked as the file grows; and what a crash takes of these marks a query finds
 * from the file's end (query.c).  The same holds for files that go with a
 * database and come again shorter.
 *
 * A directory copy is not marked by such a flush, nor does it need to be: its
 * record is written after it, so that a crash either redoes the copy or
 * leaves a directory that no database uses.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "compat.h"
#include "hooks.h"
#include "map.h"
#include "mapfile.h"
#include "relfile.h"
#include "storage/bufpage.h"
#include "storage/changetrack.h"

/* a server without the core patch has none of these, and is told so */
#pragma weak changetrack_abi
#pragma weak change_begin_hook
#pragma weak change_end_hook
#pragma weak log_pages_hook
#pragma weak redo_block_hook
#pragma weak copydir_hook
#pragma weak checkpoint_guts_hook

static void (*prev_change_begin_hook) (SMgrRelation reln, ForkNumber forknum, BlockNumber first,
									   BlockNumber end, bool extends, const void **pages) = NULL;
static void (*prev_change_end_hook) (void) = NULL;
static void (*prev_log_pages_hook) (RelFileLocator rlocator, ForkNumber forknum, int n,
									const BlockNumber *blknos) = NULL;
static void (*prev_redo_block_hook) (XLogReaderState *record, uint8 block_id) = NULL;
static void (*prev_copydir_hook) (const char *fromdir, const char *todir, bool done) = NULL;
static void (*prev_checkpoint_guts_hook) (XLogRecPtr redo, int flags) = NULL;

/*
 * Does a change of pages past the buffer pool need a mark that a crash leaves?
 * The range has been published, so that a flush that begins from now on marks
 * it.  Until then there are three cases.
 *
 * WAL before the newest flush's redo point: that flush has marked it, if it
 * was published before it was logged.  Needed if not, as by an access method
 * that has WAL of its own.
 *
 * WAL after it: it is redone and marked, or it is lost.  Then the page's LSN
 * tells, for those who look from the file's end (query.c): of a page that the
 * file grows by, or has grown by since the newest flush.  What is at the end
 * came after that flush, too, and does not stop them.  Needed for other pages.
 *
 * No WAL (zeros, unlogged relations), or not yet, and an LSN that is no place
 * in it (GiST builds): the same, and a query looks at each of these.
 */
static bool
needs_durable_mark(const PtrackFork *fork, BlockNumber first, BlockNumber end, bool extends,
				   const void **pages)
{
	static PtrackFork grown;	/* had ... */
	static BlockNumber grown_from;	/* ... so many blocks ... */
	static XLogRecPtr grown_redo;	/* ... when this was the newest flush */
	XLogRecPtr	flush_redo = pg_atomic_read_u64(&ptrack_shared->flush_redo);
	BlockNumber npages = extends ? 1 : end - first;
	bool		grows = extends && first < end;
	bool		known = grown_redo == flush_redo && memcmp(&grown, fork, sizeof(PtrackFork)) == 0;

	if (grows && (!known || first < grown_from))
	{
		grown = *fork;
		grown_from = first;
		grown_redo = flush_redo;
	}
	if (pages == NULL || RecoveryInProgress())
		return false;
	if (known && Min(first, end - 1) >= grown_from)
		grows = true;
	for (BlockNumber i = 0; i < npages; i++)
	{
		XLogRecPtr	lsn = PageGetLSN((Page) unconstify(void *, pages[i]));

		if (lsn < (XLogRecPtr) wal_segment_size)
			continue;
		if (!grows || (lsn <= flush_redo && !ptrack_is_logged(fork, end - npages + i)))
			return true;
	}
	return false;
}

/*
 * Pages are about to be logged, to be written past the buffer pool.  Some are
 * in a buffer (log_newpage_buffer), or have been written before (init forks up
 * to 16, sorted builds of GiST): they stay published until others are logged,
 * or the transaction ends.  May be in a critical section.
 */
static void
log_pages(RelFileLocator locator, ForkNumber forknum, int n, const BlockNumber *blocks)
{
	PtrackFork	fork = {locator.spcOid, locator.dbOid, locator.relNumber, forknum};

	if (prev_log_pages_hook)
		prev_log_pages_hook(locator, forknum, n, blocks);

	if (n > 0)
		ptrack_publish_logged(&fork, n, blocks);
}

/*
 * Something is about to be written.  If it is the first since minRecoveryPoint
 * does not move any more, with the end of archive recovery or the checkpoint
 * that it ends with, the map's file is told before.
 */
static inline void
tell_recovery_ended(void)
{
	if (pg_atomic_read_u32(&ptrack_shared->recovering) != 0 && XLogInsertAllowed())
		ptrack_file_recovery_ended();
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

		/* "extended" where something was already, if end is not above it */
		BlockNumber begin = Min(first, end - 1);

		tell_recovery_ended();
		ptrack_publish(&fork, begin, end - begin);
		if (needs_durable_mark(&fork, first, end, extends, pages))
		{
			ptrack_mark(&fork, begin, end - begin, ptrack_now());
			ptrack_file_write_through();
		}
	}
}

static void
change_end(void)
{
	ptrack_unpublish();

	if (prev_change_end_hook)
		prev_change_end_hook();
}

/* What a transaction has logged and not written it will not write any more. */
static void
end_transaction(XactEvent event pg_attribute_unused(), void *arg pg_attribute_unused())
{
	ptrack_unpublish_logged();
}

static void
end_subtransaction(SubXactEvent event, SubTransactionId id pg_attribute_unused(),
				   SubTransactionId parent pg_attribute_unused(), void *arg pg_attribute_unused())
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		ptrack_unpublish_logged();
}

/*
 * Redo comes to a block.  It may be on disk as it was later, before a crash
 * that took its mark away: redo then finds nothing to do, or changes the
 * buffer first and the file some time after.
 *
 * That is so on a consistent server, too.  The point of consistency is
 * pg_control's minRecoveryPoint, and a disk can be ahead of that: a standby
 * that was promoted and killed before its first checkpoint has ended has that
 * of the promotion; and the background writer of a primary that crashed and
 * came back as a standby does not move it.
 */
static void
redo_block(XLogReaderState *record, uint8 block_id)
{
	RelFileLocator locator;
	ForkNumber	forknum;
	BlockNumber block;
	PtrackFork	fork;

	if (prev_redo_block_hook)
		prev_redo_block_hook(record, block_id);

	XLogRecGetBlockTag(record, block_id, &locator, &forknum, &block);
	fork = (PtrackFork) {locator.spcOid, locator.dbOid, locator.relNumber, forknum};
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

	/* a checkpoint has been before the copy, but its flush may have failed */
	tell_recovery_ended();
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
	prev_log_pages_hook = log_pages_hook;
	log_pages_hook = log_pages;
	prev_redo_block_hook = redo_block_hook;
	redo_block_hook = redo_block;
	prev_copydir_hook = copydir_hook;
	copydir_hook = copydir_changed;
	prev_checkpoint_guts_hook = checkpoint_guts_hook;
	checkpoint_guts_hook = checkpoint_guts;
	RegisterXactCallback(end_transaction, NULL);
	RegisterSubXactCallback(end_subtransaction, NULL);
}
