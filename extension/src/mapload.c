/*-------------------------------------------------------------------------
 *
 * mapload.c
 *	  The map's file: whether a start takes it over, and reading it.
 *
 * The header stands for what mapflush.c says.  It is valid for a start that
 * replays from its redo point or an earlier one: what is missing then is
 * redone, and marked again.  A start that begins behind it has a past that
 * the map has not seen, and begins a new map.
 *
 * A start whose pg_control says what it will not say any more when replay has
 * begun notes that in the header, durably, before there is a process that
 * changes anything: a redo point behind the backup_label's, and that
 * minRecoveryPoint is behind what is on disk, or will be.  It notes which
 * backup_label it has found: one that it has not, and that replay has begun
 * with, was another server's, without the library, who noted nothing.  So that
 * a recovery which a server without the library has begun is known, each
 * archive recovery that this library begins is noted as well.
 *
 * Reading is beside the start, not before it: the postmaster looks at the
 * header alone.  Pages are merged later by whoever comes first: the loader
 * process, a query (which needs all of them), or a flush that is about to
 * overwrite one.  Merging is a maximum, so marks made meanwhile stay.
 *
 * Locking: ptrack_shared->lock covers the file and all that is said to be
 * under lock in map.h; the postmaster's part runs before there is anyone
 * else.  Merging may run in a critical section, on behalf of a flush: it
 * allocates no memory, and what goes wrong with the file is a WARNING in the
 * server's log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/timeline.h"
#include "access/xlog_internal.h"
#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "compat.h"
#include "map.h"
#include "mapfile.h"
#include "mapformat.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

/* I/O buffers of this process: no allocation in a critical section */
static HeaderPage header_page;
static MapPage read_buffer[READ_PAGES];

/*
 * Remove the map so that no loss of power brings it back.  False, with errno
 * set and a WARNING, if a start may find it.  That it is gone already says
 * nothing: whoever removed it need not have synced the directory.
 */
bool
ptrack_file_remove(void)
{
	int			fd = -1;
	bool		ok = unlink(PTRACK_FILE) == 0 || errno == ENOENT;
	int			save_errno;

	if (ok)
	{
		fd = BasicOpenFile(PTRACK_DIRECTORY, O_RDONLY | PG_BINARY);

		/* there are file systems that sync no directories, and say so */
		ok = fd >= 0 && (pg_fsync(fd) == 0 || errno == EBADF || errno == EINVAL);
	}
	save_errno = errno;
	if (fd >= 0)
		close(fd);
	errno = save_errno;
	if (!ok)
		report_to_log(WARNING,
					  (errcode_for_file_access(),
					   errmsg("ptrack: could not remove file \"%s\" durably: %m", ptrack_map_path())));
	errno = save_errno;
	return ok;
}

/*
 * Remove the map and what an interrupted flush left of it.
 */
void
ptrack_file_delete(void)
{
	ptrack_unlink(PTRACK_FILE_TMP);
	ptrack_unlink(PTRACK_FILE_MMAP);
	ptrack_file_remove();
}

static bool
archive_recovery(void)
{
	struct stat st;

	return stat("standby.signal", &st) == 0 || stat("recovery.signal", &st) == 0;
}

/*
 * NULL if there is no such file.  One that cannot be opened or read now is not
 * taken for none or for another: the startup process may be luckier.
 */
static FILE *
open_label(const char *path)
{
	FILE	   *file = AllocateFile(path, PG_BINARY_R);

	if (file == NULL && errno != ENOENT)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("ptrack init: could not open file \"%s\": %m", path)));
	return file;
}

static void
close_label(FILE *file, const char *path)
{
	if (ferror(file))
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("ptrack init: could not read file \"%s\": %m", path)));
	FreeFile(file);
}

/*
 * Where this start begins to replay: backup_label says, if there is one (and
 * *labelled is set), else pg_control.
 */
static XLogRecPtr
start_of_replay(const ControlFileData *control, TimeLineID *tli, bool *labelled)
{
	XLogRecPtr	redo = control->checkPointCopy.redo;
	FILE	   *label;

	*tli = control->checkPointCopy.ThisTimeLineID;

	label = open_label("backup_label");
	*labelled = label != NULL;
	if (label != NULL)
	{
		char		line[MAXPGPATH];
		uint32		hi;
		uint32		lo;
		uint32		n;

		while (fgets(line, sizeof(line), label) != NULL)
		{
			if (sscanf(line, "START WAL LOCATION: %X/%X", &hi, &lo) == 2)
				redo = ((uint64) hi) << 32 | lo;
			else if (sscanf(line, "START TIMELINE: %u", &n) == 1)
				*tli = n;
		}
		close_label(label, "backup_label");
	}
	return redo;
}

/*
 * What tells one backup_label from another: its checksum, or 0 if there is none.
 */
static pg_crc32c
label_checksum(const char *path)
{
	FILE	   *file = open_label(path);
	char		buf[1024];
	size_t		n;
	pg_crc32c	crc;

	if (file == NULL)
		return 0;
	INIT_CRC32C(crc);
	while ((n = fread(buf, 1, sizeof(buf), file)) > 0)
		COMP_CRC32C(crc, buf, n);
	close_label(file, path);
	FIN_CRC32C(crc);
	return crc;
}

/*
 * Does the start begin on the timeline of the header, or on one that led to
 * it?  The latter, if a crash came between a flush after a promotion and
 * pg_control.
 */
static bool
same_history(const MapHeader *header, XLogRecPtr start_redo, TimeLineID start_tli)
{
	if (header->tli == start_tli)
		return true;
	if (header->tli > start_tli)
		return tliOfPointInHistory(start_redo, readTimeLineHistory(header->tli)) == start_tli;

	/* the checkpoint at the end of recovery is on the new timeline already */
	return (header->flags & HEADER_END_OF_RECOVERY) != 0 && header->redo == start_redo;
}

/*
 * What follows a WARNING that says what is wrong; the line that 2.4 has for it.
 */
static void
warn_broken(void)
{
	report_to_log(WARNING,
				  (errcode(ERRCODE_DATA_CORRUPTED),
				   errmsg("ptrack init: broken map file \"%s\", deleting", ptrack_map_path())));
}

/*
 * Why the file must not be taken over, or PTRACK_RESET_NONE with its header
 * in header_page.  Says so in the log.
 */
static PtrackReset
judge_file(const ControlFileData *control, XLogRecPtr start_redo, TimeLineID start_tli,
		   bool labelled)
{
	const MapHeader *header = &header_page.header;
	struct stat st;
	int			fd;
	bool		ok;

	if (stat(PTRACK_FILE, &st) != 0)
	{
		if (errno == ENOENT)
			return PTRACK_RESET_NO_FILE;
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack init: could not stat file \"%s\": %m", ptrack_map_path())));
		return PTRACK_RESET_DAMAGED;
	}

	fd = BasicOpenFile(PTRACK_FILE, O_RDONLY | PG_BINARY);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE))
		ereport(FATAL,			/* no damage, and nothing else can be opened */
				(errcode_for_file_access(),
				 errmsg("ptrack init: could not open map file \"%s\": %m", ptrack_map_path())));
	ok = fd >= 0 && (st.st_size < PTRACK_PAGE_SIZE ||
					 ptrack_read(fd, &header_page, sizeof(header_page), 0));
	if (!ok)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack read map: could not read map file \"%s\": %m", ptrack_map_path())));
	if (fd >= 0)
		close(fd);
	if (!ok)
	{
		warn_broken();
		return PTRACK_RESET_DAMAGED;
	}

	if (st.st_size < PTRACK_PAGE_SIZE)
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack init: unexpected \"%s\" file size %lld, deleting",
						ptrack_map_path(), (long long) st.st_size)));
		return PTRACK_RESET_DAMAGED;
	}
	if (memcmp(header->magic, PTRACK_MAGIC, sizeof(header->magic)) == 0 &&
		header->format != PTRACK_FORMAT && header->format >= 200 && header->format < 300)
	{
		ereport(WARNING,
				(errmsg("ptrack read map: map format version %u in the file \"%s\" is incompatible with format %u of this library",
						header->format, ptrack_map_path(), PTRACK_FORMAT)));
		warn_broken();
		return PTRACK_RESET_FOREIGN;
	}
	if (memcmp(header->magic, PTRACK_MAGIC, sizeof(header->magic)) != 0 ||
		header->format != PTRACK_FORMAT ||
		!EQ_CRC32C(header->crc, mapheader_crc(&header_page)))
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack read map: incorrect checksum of file \"%s\"", ptrack_map_path())));
		warn_broken();
		return PTRACK_RESET_DAMAGED;
	}
	if (header->sysid != control->system_identifier ||
		header->blcksz != BLCKSZ || header->segment_blocks != RELSEG_SIZE)
	{
		ereport(WARNING,
				(errmsg("ptrack init: map file \"%s\" belongs to another cluster, deleting",
						ptrack_map_path())));
		return PTRACK_RESET_FOREIGN;
	}
	if (header->nlines == 0 || header->nlines % PTRACK_LINES_PER_PAGE != 0 ||
		st.st_size != mapfile_size(header->nlines / PTRACK_LINES_PER_PAGE))
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack init: unexpected \"%s\" file size %lld, deleting",
						ptrack_map_path(), (long long) st.st_size)));
		return PTRACK_RESET_DAMAGED;
	}
	if (control->wal_level == WAL_LEVEL_MINIMAL)
	{
		ereport(WARNING,
				(errmsg("ptrack init: the server has run with wal_level=minimal, deleting map file \"%s\"",
						ptrack_map_path()),
				 errhint("The next backup must be a full one.")));
		return PTRACK_RESET_UNLOGGED;
	}
	if (header->redo < start_redo ||
		!same_history(header, start_redo, start_tli))
	{
		ereport(WARNING,
				(errmsg("ptrack init: map file \"%s\" does not know all that has happened, deleting",
						ptrack_map_path()),
				 errdetail("The map ends at %X/%X on timeline %u, and this start begins at %X/%X on timeline %u.",
						   LSN_FORMAT_ARGS(header->redo), header->tli,
						   LSN_FORMAT_ARGS(start_redo), start_tli),
				 errhint("The server has run without ptrack, or could not write the map.  The next backup must be a full one.")));
		return PTRACK_RESET_STALE;
	}

	/*
	 * The replay of a backup has begun, and backup_label has another name, or
	 * will: what pg_control knew of other backups is gone, and was not noted.
	 * It has minRecoveryPoint from then on until a checkpoint outside of
	 * recovery.  Without it, a server up to 14 may have been stopped within
	 * an exclusive backup, and have renamed the file itself.
	 */
	if (control->minRecoveryPoint != 0 && (!labelled || control->backupStartPoint != 0) &&
		ptrack_shared->label != 0 && ptrack_shared->label != header->label)
	{
		ereport(WARNING,
				(errmsg("ptrack init: the server has begun to recover from a backup without ptrack, deleting map file \"%s\"",
						ptrack_map_path()),
				 errhint("The next backup must be a full one.")));
		return PTRACK_RESET_STALE;
	}
	return PTRACK_RESET_NONE;
}

/*
 * Does pg_control say that the server was in recovery?  In crash recovery it
 * says so only if it was stopped.
 */
static bool
ended_in_recovery(const ControlFileData *control)
{
	return control->state == DB_SHUTDOWNED_IN_RECOVERY ||
		control->state == DB_IN_ARCHIVE_RECOVERY;
}

/*
 * Does this start find pg_control as a server left it that was killed outside
 * of archive recovery?  Recovery begins with pg_control alone then, and not
 * with a backup_label.
 */
static bool
killed_in_production(const ControlFileData *control, bool labelled)
{
	return !labelled &&
		control->state != DB_SHUTDOWNED &&
		!ended_in_recovery(control);
}

/*
 * Have the file say what pg_control says now, and will not after this start
 * has begun to replay; header_page has its header.  False with a WARNING if it
 * could not be written.
 */
static bool
note_in_file(void)
{
	MapHeader  *header = &header_page.header;
	int			fd;
	bool		ok;

	header->known_redo = ptrack_shared->known_redo;
	header->label = ptrack_shared->label;
	if (ptrack_shared->ahead)
		header->flags |= HEADER_AHEAD;
	header->flags &= ~HEADER_RECOVERY;
	if (ptrack_shared->recovery)
		header->flags |= HEADER_RECOVERY;
	header->crc = mapheader_crc(&header_page);
	fd = BasicOpenFile(PTRACK_FILE, O_RDWR | PG_BINARY);
	if (fd < 0 && (errno == EMFILE || errno == ENFILE))
		ereport(FATAL,			/* as in judge_file */
				(errcode_for_file_access(),
				 errmsg("ptrack init: could not open map file \"%s\": %m", ptrack_map_path())));
	ok = fd >= 0 && ptrack_write(fd, &header_page, sizeof(header_page), 0) && pg_fsync(fd) == 0;
	if (!ok)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack init: could not write map file \"%s\", deleting: %m", ptrack_map_path())));
	if (fd >= 0)
		close(fd);
	return ok;
}

/*
 * Decide at the start of the server what becomes of the file.  Runs in the
 * postmaster, or in a stand-alone backend, with no other process around.
 */
void
ptrack_file_start(void)
{
	PtrackShared *shared = ptrack_shared;
	ControlFileData *control;
	TimeLineID	start_tli;
	PtrackReset reset;
	bool		crc_ok;
	bool		labelled;

	control = get_controlfile(DataDir, &crc_ok);
	if (!crc_ok)
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack init: incorrect checksum in control file")));

	shared->sysid = control->system_identifier;
	shared->start_redo = start_of_replay(control, &start_tli, &labelled);
	shared->known_redo = Max(shared->start_redo, control->checkPointCopy.redo);
	pg_atomic_write_u32(&shared->replayed,
						control->state != DB_SHUTDOWNED || archive_recovery() || labelled ? 1 : 0);

	/*
	 * minRecoveryPoint is that of the end of an earlier recovery, after which
	 * the server took writes and was killed before a checkpoint had ended
	 */
	shared->ahead = control->minRecoveryPoint != 0 && killed_in_production(control, labelled);

	ptrack_unlink(PTRACK_FILE_TMP);
	ptrack_unlink(PTRACK_FILE_MMAP);

	/* PostgreSQL renames it when replay has begun */
	shared->label = label_checksum(labelled ? "backup_label" : "backup_label.old");

	reset = judge_file(control, shared->start_redo, start_tli, labelled);
	if (reset == PTRACK_RESET_NONE)
	{
		const MapHeader *header = &header_page.header;

		if (shared->label == 0)
			shared->label = header->label;
		shared->known_redo = Max(shared->known_redo, Max(header->redo, header->known_redo));
		if ((header->flags & HEADER_AHEAD) != 0)
			shared->ahead = true;

		/*
		 * A recovery that no start of ours has begun, or a promotion that
		 * pg_control does not know of: nobody has noted what it found
		 */
		if (!labelled && ended_in_recovery(control) && (header->flags & HEADER_RECOVERY) == 0)
			shared->ahead = true;
	}

	/*
	 * pg_control, copied last, knows of other backups until the replay of
	 * this one begins.  backup_label may still be there then.
	 */
	shared->backup_open = control->backupStartPoint != 0;

	shared->early = archive_recovery() && shared->ahead && control->minRecoveryPoint != 0;

	/*
	 * Without one, archive recovery begins with all of the server's own WAL,
	 * and sets it then.  The background writer and the checkpointer, who have
	 * asked before, do not move it in all of this start.
	 */
	if (archive_recovery() && !labelled && control->minRecoveryPoint == 0 &&
		control->state != DB_SHUTDOWNED)
		shared->ahead = true;

	/* with a backup_label PostgreSQL takes it for one, without a signal, too */
	shared->recovery = archive_recovery() || labelled;
	pg_atomic_write_u32(&shared->recovering, shared->recovery ? 1 : 0);

	if (reset == PTRACK_RESET_NONE)
	{
		const MapHeader *header = &header_page.header;

		if ((shared->known_redo > Max(header->redo, header->known_redo) ||
			 (shared->ahead && (header->flags & HEADER_AHEAD) == 0) ||
			 shared->label != header->label ||
			 shared->recovery != ((header->flags & HEADER_RECOVERY) != 0)) &&
			!note_in_file())
			reset = PTRACK_RESET_DAMAGED;
	}
	if (shared->early)
		ereport(LOG,
				(errmsg("ptrack init: recovery may be consistent before it has come to what is on disk"),
				 errdetail("Until it ends, a backup over a parent from before this start reads all blocks.")));

	if (reset == PTRACK_RESET_NONE)
	{
		const MapHeader *header = &header_page.header;

		shared->reset = (PtrackReset) header->reset;
		shared->reset_time = header->reset_time;
		pg_atomic_write_u64(&shared->init_lsn, header->init_lsn);
		pg_atomic_write_u64(&shared->whole_lsn, header->whole_lsn);
		shared->exists = true;

		/* begun anew and not flushed since: as if by this start */
		shared->fresh = header->init_lsn == 0;
		shared->file_redo = header->redo;
		shared->file_tli = header->tli;
		shared->file_flags = header->flags & ~HEADER_RECOVERY;
		shared->file_nlines = header->nlines;
		shared->file_npages = header->nlines / PTRACK_LINES_PER_PAGE;
		shared->file_used = header->used;
		shared->used = header->used;
		shared->header_used = header->used;
		shared->same_shape = header->nlines == shared->nlines;
		shared->in_place = shared->same_shape;
		if (shared->same_shape)
			memset(ptrack_page_state, PAGE_UNREAD, shared->npages);
		pg_atomic_write_u32(&shared->unread, shared->file_npages);
	}
	else
	{
		/* one that stays is replaced by the next durable mark */
		shared->exists = !ptrack_file_remove();
		shared->fresh = true;
		shared->reset = reset;
		shared->reset_time = GetCurrentTimestamp();
		ereport(LOG,
				(errmsg("ptrack init: a new map begins"),
				 errhint("The next backup must be a full one.")));
	}

	/*
	 * An earlier start may have come to the end of a backup, and have left no
	 * map or had no library
	 */
	shared->known_end = control->minRecoveryPoint;
	pfree(control);
}

/*
 * The file is not what it should be.  All that was marked since this start is
 * in memory: the map begins anew from here.  Caller holds the lock.
 */
static void
begin_anew(void)
{
	PtrackShared *shared = ptrack_shared;

	warn_broken();
	shared->exists = !ptrack_file_remove();
	shared->in_place = false;
	shared->fresh = true;
	shared->reset = PTRACK_RESET_DAMAGED;
	shared->reset_time = GetCurrentTimestamp();
	memset(ptrack_page_state, 0, shared->npages);
	pg_atomic_write_u64(&shared->init_lsn, 0);
	pg_memory_barrier();
	pg_atomic_write_u32(&shared->unread, 0);
}

/*
 * Merge a page of the file that has been read into page.  False if it is
 * damaged.  Caller holds the lock.
 */
static bool
merge_page(MapPage *page, uint32 number)
{
	PtrackShared *shared = ptrack_shared;

	if (!mappage_is_zero(page))
	{
		if (!mappage_unseal(page, number))
			return false;
		shared->found_used++;
		for (uint32 i = 0; i < PTRACK_LINES_PER_PAGE; i++)
		{
			uint32		line = number * PTRACK_LINES_PER_PAGE + i;
			const uint64 *slots = &page->slot[i * PTRACK_CHUNK_BLOCKS];

			if (shared->same_shape)
				ptrack_merge_line(line, slots);
			else
				ptrack_merge_resized(line, shared->file_nlines, slots);
		}
		if (shared->same_shape)
			ptrack_page_state[number] |= PAGE_USED;
	}
	if (shared->same_shape)
		ptrack_page_state[number] &= ~PAGE_UNREAD;
	return true;
}

/*
 * Merge up to n unread pages of the file from number on; begins anew if one
 * is damaged or cannot be read.  Caller holds the lock and knows that number
 * is unread.
 */
void
ptrack_read_pages(int fd, uint32 number, uint32 n)
{
	PtrackShared *shared = ptrack_shared;
	uint32		left;

	Assert(n <= READ_PAGES);
	if (fd < 0 || !ptrack_read(fd, read_buffer, (size_t) n * PTRACK_PAGE_SIZE, mappage_offset(number)))
	{
		report_to_log(WARNING,
					  (errcode_for_file_access(),
					   errmsg("ptrack read map: could not read map file \"%s\": %m", ptrack_map_path())));
		begin_anew();
		return;
	}
	for (uint32 i = 0; i < n; i++)
	{
		if (shared->same_shape && (ptrack_page_state[number + i] & PAGE_UNREAD) == 0)
			continue;
		if (!merge_page(&read_buffer[i], number + i))
		{
			report_to_log(WARNING,
						  (errcode(ERRCODE_DATA_CORRUPTED),
						   errmsg("ptrack read map: incorrect checksum of file \"%s\"", ptrack_map_path())));
			begin_anew();
			return;
		}
		left = pg_atomic_read_u32(&shared->unread) - 1;
		if (left == 0 && shared->found_used < shared->file_used)
		{
			report_to_log(WARNING,
						  (errcode(ERRCODE_DATA_CORRUPTED),
						   errmsg("ptrack read map: incorrect checksum of file \"%s\"", ptrack_map_path()),
						   errdetail("%u of %u pages are missing.",
									 shared->file_used - shared->found_used, shared->file_used)));
			begin_anew();
			return;
		}

		/* a crash may have left more pages than the header knew */
		if (left == 0)
			shared->used += shared->found_used - shared->file_used;
		pg_memory_barrier();
		pg_atomic_write_u32(&shared->unread, left);
	}
}

/*
 * Merge the next pages of the file, READ_PAGES at a time and rounds times, or
 * all that are left if rounds is 0.  False with errno set if the file cannot
 * be opened now: too many open files are no damage.  Caller holds the lock.
 */
bool
ptrack_read_next(int rounds)
{
	PtrackShared *shared = ptrack_shared;
	int			fd;

	if (pg_atomic_read_u32(&shared->unread) == 0)
		return true;
	fd = BasicOpenFile(PTRACK_FILE, O_RDONLY | PG_BINARY);
	if (fd < 0 && errno != ENOENT)
		return false;
#ifdef USE_POSIX_FADVISE
	if (fd >= 0)
		(void) posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
#endif
	for (int i = 0; (i < rounds || rounds == 0) && pg_atomic_read_u32(&shared->unread) > 0; i++)
	{
		uint32		n = Min(READ_PAGES, shared->file_npages - shared->next_unread);

		/* no pages left, and some not merged, would be a bug here */
		if (n == 0)
		{
			report_to_log(WARNING,
						  (errcode(ERRCODE_DATA_CORRUPTED),
						   errmsg("ptrack read map: map file \"%s\" ends too early", ptrack_map_path())));
			begin_anew();
		}
		else
			ptrack_read_pages(fd, shared->next_unread, n);
		shared->next_unread += n;
	}
	if (fd >= 0)
		close(fd);

	/* more than the header knew: a crash came between them and it */
	if (pg_atomic_read_u32(&shared->unread) == 0 && shared->in_place &&
		shared->used != shared->header_used)
		ptrack_file_write_count();
	return true;
}

/*
 * Merge the next pages of the file; false when there are none left.
 */
bool
ptrack_file_read_some(void)
{
	PtrackShared *shared = ptrack_shared;
	bool		ok;
	int			save_errno;

	if (pg_atomic_read_u32(&shared->unread) == 0)
		return false;

	/* some at a time: a flush may wait for the lock */
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	ok = ptrack_read_next(16);
	save_errno = errno;
	LWLockRelease(shared->lock);
	if (!ok)
	{
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("ptrack read map: could not open map file \"%s\": %m", ptrack_map_path())));
	}
	return pg_atomic_read_u32(&shared->unread) > 0;
}

/*
 * Merge all of the file, as those who want to read the map need.
 */
void
ptrack_file_read_all(void)
{
	while (ptrack_file_read_some())
		CHECK_FOR_INTERRUPTS();
	pg_memory_barrier();
}

/*
 * From where on no backup began before this start: not at the redo point
 * itself, for marks of the time before are gone.
 */
XLogRecPtr
ptrack_file_known_from(void)
{
	return Max(ptrack_shared->known_redo + 8, ptrack_shared->known_end);
}

/*
 * The LSN since when the map knows all changes.  A map that has not been
 * through a checkpoint yet knows them since it was begun, so that this moment
 * will do.
 */
XLogRecPtr
ptrack_decide_init_lsn(void)
{
	PtrackShared *shared = ptrack_shared;

	/* damage to the file would move it */
	ptrack_file_read_all();

	if (pg_atomic_read_u64(&shared->init_lsn) == 0)
	{
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		if (pg_atomic_read_u64(&shared->init_lsn) == 0)
		{
			pg_atomic_write_u64(&shared->init_lsn,
								Max(ptrack_now(), ptrack_file_known_from()));
		}
		LWLockRelease(shared->lock);
	}
	return pg_atomic_read_u64(&shared->init_lsn);
}
