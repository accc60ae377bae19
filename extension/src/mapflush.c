/*-------------------------------------------------------------------------
 *
 * mapflush.c
 *	  The map's file: writing it.
 *
 * What the header stands for: the file holds every mark that was made for a
 * change that WAL before the redo point "redo" describes, and every mark of a
 * change that was on disk when the checkpoint with that redo point had
 * written its buffers.  It is valid for a start that replays from this redo
 * point or an earlier one: what is missing then is redone, and marked again.
 * A start that begins behind it has a past that the map has not seen.
 *
 * Flush, at the end of CheckPointGuts:
 *
 * 1. WAL up to the redo point is made durable, if it is this server's own: the
 *	  header must not name a point that a crash can take back and a later
 *	  history use again;
 * 2. flush_redo is set, then published ranges are marked (map.c has why);
 * 3. pages marked since they were last written are written in place; slots
 *	  only grow, so that a page that is newer than the header does no harm;
 * 4. fsync;
 * 5. the header with the new redo point is written, and fsynced.  Only then
 *	  may pg_control point there.
 *
 * A crash before 5 leaves a file that is valid for the old redo point, with
 * some newer pages; pg_control has the old redo point then.  A torn page or
 * header has a bad checksum, and the map is refused.  A copy that reads the
 * file from its beginning, as a base backup does, sees no page older than its
 * header.
 *
 * The first flush of a new map, and of one that changed its size, writes
 * ptrack.map.tmp and renames it.
 *
 * A flush that fails (disk full) leaves the redo point of the file where it
 * was and says so in the log: the checkpoint goes on, the next one tries
 * again, and after a crash in between the map is refused, as pg_control is
 * ahead of it.
 *
 * Write-through (ptrack_file_write_through): a writer whose change no flush
 * has found published, and whose WAL a crash may take or leave behind, cannot
 * rely on the next flush (needs_durable_mark and copydir_changed in hooks.c).
 * It marks and writes the marked pages itself, fsynced, before it touches the
 * relation's file.  The header's redo point stays.
 *
 * The end of recovery (ptrack_file_recovery_ended): the first writer after it
 * has the header alone written, fsynced, so that it does not know of that
 * recovery any more.  Its redo point stays, and what it counts is in the file.
 *
 * Locking: ptrack_shared->lock covers the file and all that is said to be
 * under lock in map.h.  Code here runs in the checkpointer and may run in a
 * critical section: it allocates no memory, but for what durable_rename needs
 * to open a file, and what goes wrong with the file is a WARNING in the server's
 * log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/timeline.h"
#include "access/xlog_internal.h"
#include "catalog/pg_control.h"
#include "compat.h"
#include "map.h"
#include "mapfile.h"
#include "mapformat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

/* I/O buffers of this process: no allocation in a critical section */
static HeaderPage header_page;
static MapPage write_buffer[WRITE_PAGES];

/* Ask for a page that will be copied soon: pages are all over the memory. */
static void
prefetch_page(uint32 number)
{
	Size		line = (Size) number * PTRACK_LINES_PER_PAGE;

	prefetch(&ptrack_lines[line], PTRACK_PAGE_SIZE);
	prefetch(&ptrack_summaries[line], PTRACK_LINES_PER_PAGE * sizeof(PtrackSummary));
}

/* Copy a page's slots as they are now, ready to be written. */
static void
copy_page(MapPage *page, uint32 number)
{
	const PtrackLine *line = &ptrack_lines[(Size) number * PTRACK_LINES_PER_PAGE];

	/* clear, then copy: see the order in map.c */
	ptrack_dirty[number] = 0;
	pg_memory_barrier();
	for (uint32 i = 0; i < PTRACK_LINES_PER_PAGE; i++)
	{
		uint64		min = PG_UINT64_MAX;

		for (uint32 k = 0; k < PTRACK_CHUNK_BLOCKS; k++)
		{
			uint64		lsn = pg_atomic_read_u64(unconstify(pg_atomic_uint64 *, &line[i].slot[k]));

			page->slot[i * PTRACK_CHUNK_BLOCKS + k] = lsn;
			min = Min(min, lsn);
		}

		/* queries are quicker where they need not read the line */
		if (min != 0)
			ptrack_line_at_least(number * PTRACK_LINES_PER_PAGE + i, min);
	}
	mappage_seal(page, number);
}

static bool
page_has_marks(uint32 number)
{
	for (uint32 i = 0; i < PTRACK_LINES_PER_PAGE; i++)
		if (pg_atomic_read_u64(&ptrack_summaries[number * PTRACK_LINES_PER_PAGE + i].max) != 0)
			return true;
	return false;
}

/*
 * The first page from number on that all (has marks) or not all (was marked
 * since it was last written); npages if there is none.
 */
static uint32
next_page(uint32 number, bool all)
{
	uint32		npages = ptrack_shared->npages;

	if (all)
	{
		while (number < npages && !page_has_marks(number))
			number++;
		return number;
	}
	while (number < npages && ptrack_dirty[number] == 0)
	{
		/* whole words while nothing is there: most of the map is clean */
		if (number % sizeof(uint64) == 0 && number + sizeof(uint64) <= npages &&
			*(volatile uint64 *) &ptrack_dirty[number] == 0)
			number += sizeof(uint64);
		else
			number++;
	}
	return number;
}

/*
 * Write pages to fd: all that have marks, or those marked since they were
 * last written.  Returns their number, or -1 with errno set, when what was
 * not written counts as marked again.
 */
static int64
write_pages(int fd, bool all)
{
	PtrackShared *shared = ptrack_shared;
	int64		written = 0;
	uint32		number = next_page(0, all);

	while (number < shared->npages)
	{
		uint32		first = number;
		uint32		n = 0;

		/* neighbours go in one call */
		do
		{
			/* read before overwritten; this may begin the map anew */
			if (!all && (ptrack_page_state[number] & PAGE_UNREAD) != 0)
				ptrack_read_pages(fd, number, 1);
			if (!all && !shared->in_place)
			{
				memset(&ptrack_dirty[first], 1, n);
				errno = EIO;
				return -1;
			}
			copy_page(&write_buffer[n++], number);
			number = next_page(number + 1, all);
			if (number < shared->npages)
				prefetch_page(number);
		} while (n < WRITE_PAGES && number < shared->npages && number == first + n);

		if (!ptrack_write(fd, write_buffer, (size_t) n * PTRACK_PAGE_SIZE, mappage_offset(first)))
		{
			memset(&ptrack_dirty[first], 1, n);
			return -1;
		}
		for (uint32 i = first; i < first + n; i++)
		{
			if ((ptrack_page_state[i] & PAGE_USED) == 0)
			{
				ptrack_page_state[i] |= PAGE_USED;
				shared->used++;
			}
		}
		shared->unsynced = true;
		written += n;
	}
	return written;
}

/* Fill header_page for a file that holds the map as it is now. */
static void
make_header(XLogRecPtr redo, TimeLineID tli, uint32 flags)
{
	PtrackShared *shared = ptrack_shared;
	MapHeader  *header = &header_page.header;

	memset(&header_page, 0, sizeof(header_page));
	memcpy(header->magic, PTRACK_MAGIC, sizeof(header->magic));
	header->format = PTRACK_FORMAT;
	header->init_lsn = pg_atomic_read_u64(&shared->init_lsn);
	header->sysid = shared->sysid;
	header->redo = redo;
	header->whole_lsn = pg_atomic_read_u64(&shared->whole_lsn);
	header->tli = tli;
	header->flags = flags | (shared->recovery ? HEADER_RECOVERY : 0);
	header->nlines = shared->nlines;
	header->used = shared->used;
	header->blcksz = BLCKSZ;
	header->segment_blocks = RELSEG_SIZE;
	header->reset = shared->reset;
	header->reset_time = shared->reset_time;
	header->known_redo = shared->known_redo;
	header->label = shared->label;
	header->crc = mapheader_crc(&header_page);
}

/*
 * Write the whole map to a new file and put it in the old one's place.
 * Returns the pages written, or -1 with errno set.
 */
static int64
write_new_file(XLogRecPtr redo, TimeLineID tli, uint32 flags)
{
	PtrackShared *shared = ptrack_shared;
	int			fd;
	int64		written = -1;
	int			save_errno;

	fd = BasicOpenFile(PTRACK_FILE_TMP, O_RDWR | O_CREAT | O_TRUNC | PG_BINARY);
	if (fd < 0)
		return -1;

	memset(ptrack_page_state, 0, shared->npages);
	shared->used = 0;
	if (ftruncate(fd, mapfile_size(shared->npages)) == 0)
		written = write_pages(fd, true);
	if (written >= 0)
	{
		make_header(redo, tli, flags);
		if (!ptrack_write(fd, &header_page, sizeof(header_page), 0) || pg_fsync(fd) != 0)
			written = -1;
	}
	save_errno = errno;
	if (close(fd) != 0 && written >= 0)
	{
		save_errno = errno;
		written = -1;
	}
	errno = save_errno;
	if (written >= 0)
	{
		/* it is there if only the fsync of the directory fails */
		shared->exists = true;
		if (durable_rename(PTRACK_FILE_TMP, PTRACK_FILE, LOG_SERVER_ONLY) != 0)
			written = -1;
	}
	if (written < 0)
	{
		save_errno = errno;
		ptrack_unlink(PTRACK_FILE_TMP);
		errno = save_errno;
		return -1;
	}
	shared->in_place = true;
	shared->unsynced = false;
	shared->header_used = shared->used;
	return written;
}

/*
 * Have the header count the pages in use, without stamping it: with it, a page
 * that is lost is seen.  False with errno set if it could not be written.
 */
static bool
write_count(int fd)
{
	PtrackShared *shared = ptrack_shared;

	make_header(shared->file_redo, shared->file_tli, shared->file_flags);
	if (!ptrack_write(fd, &header_page, sizeof(header_page), 0))
	{
		/* it may be there in part: a new file, next time */
		shared->in_place = false;
		return false;
	}
	shared->header_used = shared->used;
	shared->unsynced = true;
	return true;
}

/*
 * Have the header say at once, durably, what it is to say beside its stamp.
 * False if it could not be written, or if there has to be a new file.
 */
static bool
write_header(void)
{
	PtrackShared *shared = ptrack_shared;
	int			fd = shared->in_place ? BasicOpenFile(PTRACK_FILE, O_RDWR | PG_BINARY) : -1;
	bool		ok = fd >= 0 && write_count(fd);

	if (ok && pg_fsync(fd) == 0)
		shared->unsynced = false;
	else
	{
		/* what the kernel dropped it does not report twice */
		shared->in_place = false;
		ok = false;
	}
	if (fd >= 0)
		close(fd);
	return ok;
}

/*
 * The same for whoever has found, reading the file, that the count is short.
 * Caller holds the lock.
 */
void
ptrack_file_write_count(void)
{
	int			fd = BasicOpenFile(PTRACK_FILE, O_RDWR | PG_BINARY);
	bool		ok = fd >= 0 && write_count(fd);

	if (!ok)
		report_to_log(WARNING,
					  (errcode_for_file_access(),
					   errmsg("ptrack: could not write map file \"%s\": %m", ptrack_map_path()),
					   errdetail("The next checkpoint writes it.")));
	if (fd >= 0)
		close(fd);
}

/*
 * Write the pages that were marked to the file and, if redo is valid, the
 * header after them.  Returns the pages written, or -1 with errno set.
 */
static int64
write_in_place(XLogRecPtr redo, TimeLineID tli, uint32 flags)
{
	PtrackShared *shared = ptrack_shared;
	int			fd;
	int64		written;
	int			save_errno;

	fd = BasicOpenFile(PTRACK_FILE, O_RDWR | PG_BINARY);
	if (fd < 0)
	{
		/* gone or out of reach: try with a new one next time */
		shared->in_place = false;
		return -1;
	}
	written = write_pages(fd, false);
	if (written >= 0 && redo == InvalidXLogRecPtr && shared->used != shared->header_used &&
		!write_count(fd))
		written = -1;
	if (written >= 0 && shared->unsynced)
	{
		if (pg_fsync(fd) == 0)
			shared->unsynced = false;
		else
		{
			/* what the kernel dropped it does not report twice */
			shared->in_place = false;
			written = -1;
		}
	}
	if (written >= 0 && redo != InvalidXLogRecPtr)
	{
		make_header(redo, tli, flags);
		if (!ptrack_write(fd, &header_page, sizeof(header_page), 0) || pg_fsync(fd) != 0)
		{
			/* it may be there in part: a new file, next time */
			shared->in_place = false;
			written = -1;
		}
		else
			shared->header_used = shared->used;
	}
	save_errno = errno;
	close(fd);
	errno = save_errno;
	return written;
}

/*
 * pg_control as it is on disk.  False if it cannot be read, or not in one piece:
 * somebody may be writing it.
 */
static bool
read_control(ControlFileData *control)
{
	int			fd = BasicOpenFile(XLOG_CONTROL_FILE, O_RDONLY | PG_BINARY);
	bool		ok = fd >= 0 && ptrack_read(fd, control, sizeof(*control), 0);
	pg_crc32c	crc;

	if (fd >= 0)
		close(fd);
	if (!ok)
		return false;
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, control, offsetof(ControlFileData, crc));
	FIN_CRC32C(crc);
	return EQ_CRC32C(crc, control->crc);
}

/*
 * From where on no backup began that this start does not know of, or
 * InvalidXLogRecPtr while that is not known.  redo is that of a checkpoint.
 */
static XLogRecPtr
known_from(XLogRecPtr redo)
{
	XLogRecPtr	from = ptrack_file_known_from();

	/*
	 * Where a backup is replayed another may have begun in it, but not behind
	 * its end: minRecoveryPoint is not before that, once pg_control does not
	 * have the backup any more.  A checkpoint after the replay is behind all.
	 */
	if (ptrack_shared->backup_open && redo < GetXLogReplayRecPtr(NULL))
	{
		ControlFileData control;
		bool		ended;

		ended = read_control(&control) && control.backupStartPoint == 0 &&
			control.minRecoveryPoint != 0;
		from = ended ? Max(from, control.minRecoveryPoint) : InvalidXLogRecPtr;
	}
	return from;
}

/*
 * The map began with this start, and all that has happened since is marked: it
 * knows all since this redo point, at the latest, but for what a backup has
 * seen that began before this start.
 */
static void
known_since(XLogRecPtr redo)
{
	PtrackShared *shared = ptrack_shared;
	XLogRecPtr	init_lsn = pg_atomic_read_u64(&shared->init_lsn);
	XLogRecPtr	from;
	XLogRecPtr	since;

	if (!shared->fresh)
		return;
	from = known_from(redo);
	if (from == InvalidXLogRecPtr)
		return;
	since = Max(redo, from);
	if (init_lsn == 0 || since < init_lsn)
		pg_atomic_write_u64(&shared->init_lsn, since);
}

/*
 * Write the file by whichever way fits.  Caller holds the lock.
 */
static int64
write_file(XLogRecPtr redo, TimeLineID tli, uint32 flags)
{
	PtrackShared *shared = ptrack_shared;

	if (shared->in_place)
	{
		int64		written = write_in_place(redo, tli, flags);

		/* a page that was to be overwritten turned out damaged */
		if (written >= 0 || shared->exists)
			return written;
	}

	/* the file is replaced: all of the old one is needed in the new one */
	if (!ptrack_read_next(0))
		return -1;
	if (redo == InvalidXLogRecPtr)
	{
		if (!shared->exists)
			return 0;
		redo = shared->file_redo;
		tli = shared->file_tli;
		flags = shared->file_flags;
	}
	else
		known_since(redo);		/* it may have begun anew right here */
	return write_new_file(redo, tli, flags);
}

/*
 * Where the WAL before a redo point ends.  A redo point is where a record
 * begins, or will begin: that may be behind the header of a page that has not
 * been written to yet, and the WAL there cannot be flushed.
 */
static XLogRecPtr
end_of_wal_before(XLogRecPtr redo)
{
	if (XLogSegmentOffset(redo, wal_segment_size) == SizeOfXLogLongPHD)
		return redo - SizeOfXLogLongPHD;
	if (redo % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return redo - SizeOfXLogShortPHD;
	return redo;
}

/*
 * The timeline that the redo point of a restartpoint is on: that of its
 * checkpoint, and not the one that replay has come to by then.  A backup that
 * begins there knows of the former alone: the history of the latter may be in
 * an archive, which is asked after the map has been loaded.
 */
static TimeLineID
timeline_of(XLogRecPtr redo)
{
	TimeLineID	tli;
	List	   *history;

	(void) GetXLogReplayRecPtr(&tli);
	if (tli == ptrack_shared->file_tli)
		return tli;
	history = readTimeLineHistory(tli);
	tli = tliOfPointInHistory(redo, history);
	list_free_deep(history);
	return tli;
}

/*
 * The checkpoint with this redo point has written its buffers and files.
 */
void
ptrack_file_flush(XLogRecPtr redo, bool end_of_recovery)
{
	PtrackShared *shared = ptrack_shared;
	bool		in_recovery = RecoveryInProgress();
	TimestampTz started = GetCurrentTimestamp();
	TimeLineID	tli;
	uint32		flags = 0;
	int64		written;

	if (end_of_recovery)
		flags |= HEADER_END_OF_RECOVERY;

	/* a checkpoint outside recovery has no more use for minRecoveryPoint */
	if (in_recovery && shared->ahead)
		flags |= HEADER_AHEAD;
	tli = in_recovery ? timeline_of(redo) : GetWALInsertionTimeLine();

	/* with nobody waiting for the lock */
	if (!in_recovery || end_of_recovery)
		XLogFlush(end_of_wal_before(redo));

	/* as map.c says: first this, then the published ranges */
	pg_atomic_write_u64(&shared->flush_redo, redo);
	pg_memory_barrier();

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	ptrack_mark_published();
	known_since(redo);
	if (!in_recovery || end_of_recovery)
		shared->recovery = false;

	if (pg_atomic_read_u32(&shared->replayed) != 0)
	{
		if (pg_atomic_read_u64(&shared->whole_lsn) < redo)
			pg_atomic_write_u64(&shared->whole_lsn, redo);
		pg_memory_barrier();

		/* not for a restartpoint that the end of recovery has overtaken */
		if (!in_recovery && redo >= GetXLogReplayRecPtr(NULL))
			pg_atomic_write_u32(&shared->replayed, 0);
	}

	written = write_file(redo, tli, flags);
	if (written < 0)
	{
		shared->flush_failures++;
		report_to_log(WARNING,
					  (errcode_for_file_access(),
					   errmsg("ptrack checkpoint: could not write map file \"%s\": %m", ptrack_map_path()),
					   errdetail("Changes stay known in memory, and the next checkpoint writes them."),
					   errhint("If the server crashes before that, the next backup must be a full one.")));
	}
	else
	{
		shared->fresh = pg_atomic_read_u64(&shared->init_lsn) == 0;
		shared->file_redo = redo;
		shared->file_tli = tli;
		shared->file_flags = flags;
		if (!shared->recovery)
			pg_atomic_write_u32(&shared->recovering, 0);
		shared->flush_failures = 0;
		shared->flush_pages = written;
		shared->flush_time = GetCurrentTimestamp();
		shared->flush_usecs = shared->flush_time - started;
	}
	LWLockRelease(shared->lock);
}

/*
 * Make all complete marks durable now, and what else the header has to say.
 * If that cannot be done, there must be no file that a start would accept.
 * Caller holds the lock.
 */
static void
write_through(void)
{
	PtrackShared *shared = ptrack_shared;

	if (shared->exists && write_file(InvalidXLogRecPtr, 0, 0) < 0)
	{
		report_to_log(WARNING,
					  (errcode_for_file_access(),
					   errmsg("ptrack: could not write map file \"%s\", deleting: %m", ptrack_map_path()),
					   errdetail("Changes stay known in memory, and the next checkpoint writes them."),
					   errhint("If the server crashes before that, the next backup must be a full one.")));
		if (!ptrack_file_remove())
		{
			int			save_errno = errno;

			/* the client is told before the transaction ends */
			LWLockRelease(shared->lock);
			errno = save_errno;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("ptrack: could not remove file \"%s\": %m", ptrack_map_path())));
		}
		shared->exists = false;
		shared->in_place = false;
		shared->flush_failures++;
	}
}

/*
 * Make all complete marks durable now.
 */
void
ptrack_file_write_through(void)
{
	PtrackShared *shared = ptrack_shared;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->write_throughs++;
	write_through();
	LWLockRelease(shared->lock);
}

/*
 * Archive recovery has ended, and something is about to be written.  The
 * header must not know of that recovery any more, for pg_control may say that
 * the server is in it (its write may be held up, or a server without the
 * library may be started as a standby), and its minRecoveryPoint is not moved
 * by what is written now.
 */
void
ptrack_file_recovery_ended(void)
{
	PtrackShared *shared = ptrack_shared;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (pg_atomic_read_u32(&shared->recovering) != 0)
	{
		shared->recovery = false;
		if (shared->exists && !write_header())
			write_through();
		pg_atomic_write_u32(&shared->recovering, 0);
	}
	LWLockRelease(shared->lock);
}
