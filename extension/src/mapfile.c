/*-------------------------------------------------------------------------
 *
 * mapfile.c
 *	  The map's file: loading, flushing, deleting.
 *
 * global/ptrack.map is a header page and the lines, in pages of 4096 bytes.
 * Every byte is covered by a checksum: the header's is in the header, a
 * page's is spread over the low three bits of its first slots, which an LSN
 * leaves zero.  So a page is written in one aligned piece, and a write that
 * is cut short is seen.  A page without marks may be a hole; the header says
 * how many pages are in use, so that a lost page is seen as well.
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
 * 1. flush_redo is set, then published ranges are marked (map.c has why);
 * 2. pages marked since they were last written are written in place; slots
 *	  only grow, so that a page that is newer than the header does no harm;
 * 3. fsync;
 * 4. WAL up to the redo point is made durable: the header must not name a
 *	  point that a crash can take back and a later history use again;
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
 * Write-through (ptrack_file_write_through): a writer whose change lies
 * before the redo point of a flush that may have passed it already cannot
 * rely on the next flush, for a crash before it would replay from there and
 * not come across the change.  It marks and writes the marked pages itself,
 * fsynced, before it touches the relation's file.  The header stays.
 *
 * Locking: ptrack_shared->lock covers the file and all that is said to be
 * under lock in map.h.  Code here may run in a critical section (truncation)
 * and in the checkpointer: it allocates nothing, and what goes wrong with the
 * file is a WARNING.
 *
 * Reading is beside the start, not before it: the postmaster looks at the
 * header alone.  Pages are merged later by whoever comes first: the loader
 * process, a query (which needs all of them), or a flush that is about to
 * overwrite one.  Merging is a maximum, so marks made meanwhile stay.
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
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#define PTRACK_MAGIC			"ptk"
#define PTRACK_FORMAT			300

/* header flags */
#define HEADER_END_OF_RECOVERY	0x01	/* stamped by an end-of-recovery
										 * checkpoint, whose timeline may be
										 * one that the header does not name */
#define HEADER_SHUTDOWN			0x02	/* stamped by a shutdown checkpoint,
										 * and the server has not been started
										 * with ptrack since */

/* page states */
#define PAGE_UNREAD				0x01	/* in the file, not merged yet */
#define PAGE_USED				0x02	/* has marks in the file */

#define LOW_BITS				7	/* of a slot, zero in an LSN */
#define IO_PAGES				64	/* pages written or read in one call */

/* The first page of the file; what follows up to its end is zero. */
typedef struct MapHeader
{
	char		magic[4];		/* PTRACK_MAGIC, MUST BE FIRST */
	uint32		format;			/* PTRACK_FORMAT, MUST BE SECOND (as in all
								 * formats since 2.0) */
	uint64		init_lsn;		/* the map knows all changes since */
	uint64		sysid;			/* of the cluster, as in pg_control */
	uint64		redo;			/* see above */
	uint64		whole_lsn;		/* see map.h */
	uint32		tli;			/* timeline of the checkpoint */
	uint32		flags;			/* HEADER_ */
	uint32		nlines;			/* lines in this file */
	uint32		used;			/* pages in use, at least */
	uint32		blcksz;			/* BLCKSZ */
	uint32		segment_blocks; /* RELSEG_SIZE */
	pg_crc32c	crc;			/* of the page, with this field zero */
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

StaticAssertDecl(PTRACK_SLOTS_PER_PAGE * 3 >= 32, "a page has room for its checksum");

/* I/O buffers of this process: no allocation in a critical section */
static HeaderPage header_page;
static MapPage read_buffer[IO_PAGES];
static MapPage write_buffer[IO_PAGES];

static const char *
absolute_path(void)
{
	static char path[MAXPGPATH];

	snprintf(path, sizeof(path), "%s/%s", DataDir, PTRACK_FILE);
	return path;
}

static inline off_t
page_offset(uint32 page)
{
	return (off_t) (page + (uint64) 1) * PTRACK_PAGE_SIZE;
}

static inline off_t
file_size(uint32 npages)
{
	return page_offset(npages);
}

static pg_crc32c
header_crc(const HeaderPage *page)
{
	HeaderPage	copy = *page;
	pg_crc32c	crc;

	copy.header.crc = 0;
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, copy.bytes, sizeof(copy));
	FIN_CRC32C(crc);
	return crc;
}

/*
 * The checksum of a page whose low bits are zero.  It covers the page's place
 * and cluster, so that a page of another place or cluster is damage.
 */
static pg_crc32c
page_crc(const MapPage *page, uint32 number)
{
	uint64		sysid = ptrack_shared->sysid;
	pg_crc32c	crc;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, &sysid, sizeof(sysid));
	COMP_CRC32C(crc, &number, sizeof(number));
	COMP_CRC32C(crc, page->bytes, sizeof(page->bytes));
	FIN_CRC32C(crc);
	return crc;
}

/* Put the checksum into the low bits of the slots, least bits first. */
static void
page_seal(MapPage *page, uint32 number)
{
	uint64		crc = page_crc(page, number);

	for (int i = 0; crc != 0; i++, crc >>= 3)
		page->slot[i] |= crc & LOW_BITS;
}

/* Take the checksum out of the low bits; false if it is wrong. */
static bool
page_unseal(MapPage *page, uint32 number)
{
	uint64		crc = 0;

	for (int i = PTRACK_SLOTS_PER_PAGE - 1; i >= 0; i--)
	{
		uint64		bits = page->slot[i] & LOW_BITS;

		if (i < 11)
			crc = (crc << 3) | bits;
		else if (bits != 0)
			return false;
		page->slot[i] &= ~(uint64) LOW_BITS;
	}
	return crc == page_crc(page, number);
}

static bool
page_is_zero(const MapPage *page)
{
	for (uint32 i = 0; i < PTRACK_SLOTS_PER_PAGE; i++)
		if (page->slot[i] != 0)
			return false;
	return true;
}

/*
 * pread and pwrite of all or an error; a file that ends early is EIO.
 */
static bool
read_fully(int fd, void *buf, size_t size, off_t offset)
{
	char	   *p = buf;

	while (size > 0)
	{
		ssize_t		n = pg_pread(fd, p, size, offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (n == 0)
				errno = EIO;
			return false;
		}
		p += n;
		offset += n;
		size -= n;
	}
	return true;
}

static bool
write_fully(int fd, const void *buf, size_t size, off_t offset)
{
	const char *p = buf;

	while (size > 0)
	{
		ssize_t		n;

		errno = 0;
		n = pg_pwrite(fd, p, size, offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (errno == 0)
				errno = ENOSPC;
			return false;
		}
		p += n;
		offset += n;
		size -= n;
	}
	return true;
}

static void
unlink_file(const char *path)
{
	if (unlink(path) != 0 && errno != ENOENT)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack: could not remove file \"%s\": %m", path)));
}

/*
 * Remove the map and what an interrupted flush left of it.
 */
void
ptrack_file_delete(void)
{
	unlink_file(PTRACK_FILE_TMP);
	unlink_file(PTRACK_FILE_MMAP);
	unlink_file(PTRACK_FILE);
}

/*
 * Where this start begins to replay: backup_label says, if there is one, else
 * pg_control.  Sets *replays if WAL will be replayed at all.
 */
static XLogRecPtr
start_of_replay(const ControlFileData *control, TimeLineID *tli, bool *replays)
{
	XLogRecPtr	redo = control->checkPointCopy.redo;
	struct stat st;
	FILE	   *label;

	*tli = control->checkPointCopy.ThisTimeLineID;
	*replays = control->state != DB_SHUTDOWNED ||
		stat("standby.signal", &st) == 0 ||
		stat("recovery.signal", &st) == 0;

	label = AllocateFile("backup_label", "r");
	if (label != NULL)
	{
		char		line[MAXPGPATH];
		uint32		hi;
		uint32		lo;
		uint32		n;

		*replays = true;
		while (fgets(line, sizeof(line), label) != NULL)
		{
			if (sscanf(line, "START WAL LOCATION: %X/%X", &hi, &lo) == 2)
				redo = ((uint64) hi) << 32 | lo;
			else if (sscanf(line, "START TIMELINE: %u", &n) == 1)
				*tli = n;
		}
		FreeFile(label);
	}
	return redo;
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
 * Why the file must not be taken over, or PTRACK_RESET_NONE with its header
 * in header_page.  Says so in the log.
 */
static PtrackReset
judge_file(const ControlFileData *control, XLogRecPtr start_redo, TimeLineID start_tli)
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
				 errmsg("ptrack init: could not stat file \"%s\": %m", absolute_path())));
		return PTRACK_RESET_DAMAGED;
	}

	fd = BasicOpenFile(PTRACK_FILE, O_RDONLY | PG_BINARY);
	ok = fd >= 0 && (st.st_size < PTRACK_PAGE_SIZE ||
					 read_fully(fd, &header_page, sizeof(header_page), 0));
	if (!ok)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack read map: could not read map file \"%s\": %m", absolute_path())));
	if (fd >= 0)
		close(fd);
	if (!ok)
		return PTRACK_RESET_DAMAGED;

	if (st.st_size < PTRACK_PAGE_SIZE)
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack init: unexpected \"%s\" file size %lld, deleting",
						absolute_path(), (long long) st.st_size)));
		return PTRACK_RESET_DAMAGED;
	}
	if (memcmp(header->magic, PTRACK_MAGIC, sizeof(header->magic)) == 0 &&
		header->format != PTRACK_FORMAT && header->format >= 200 && header->format < 300)
	{
		ereport(WARNING,
				(errmsg("ptrack read map: map format version %u in the file \"%s\" is incompatible with format %u of this library",
						header->format, absolute_path(), PTRACK_FORMAT),
				 errdetail("The file is deleted, and a new map begun.")));
		return PTRACK_RESET_FOREIGN;
	}
	if (memcmp(header->magic, PTRACK_MAGIC, sizeof(header->magic)) != 0 ||
		header->format != PTRACK_FORMAT ||
		!EQ_CRC32C(header->crc, header_crc(&header_page)))
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack read map: incorrect checksum of file \"%s\"", absolute_path()),
				 errdetail("The file is deleted, and a new map begun.")));
		return PTRACK_RESET_DAMAGED;
	}
	if (header->sysid != control->system_identifier ||
		header->blcksz != BLCKSZ || header->segment_blocks != RELSEG_SIZE)
	{
		ereport(WARNING,
				(errmsg("ptrack init: map file \"%s\" belongs to another cluster, deleting",
						absolute_path())));
		return PTRACK_RESET_FOREIGN;
	}
	if (header->nlines == 0 || header->nlines % PTRACK_LINES_PER_PAGE != 0 ||
		st.st_size != file_size(header->nlines / PTRACK_LINES_PER_PAGE))
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack init: unexpected \"%s\" file size %lld, deleting",
						absolute_path(), (long long) st.st_size)));
		return PTRACK_RESET_DAMAGED;
	}
	if (control->wal_level == WAL_LEVEL_MINIMAL)
	{
		ereport(WARNING,
				(errmsg("ptrack init: the server has run with wal_level=minimal, deleting map file \"%s\"",
						absolute_path()),
				 errhint("The next backup must be a full one.")));
		return PTRACK_RESET_UNLOGGED;
	}
	if (header->redo < start_redo ||
		!same_history(header, start_redo, start_tli) ||
		((header->flags & HEADER_SHUTDOWN) != 0 && header->redo == start_redo &&
		 control->state != DB_SHUTDOWNED && control->state != DB_SHUTDOWNED_IN_RECOVERY))
	{
		ereport(WARNING,
				(errmsg("ptrack init: map file \"%s\" does not know all that has happened, deleting",
						absolute_path()),
				 errdetail("The map ends at %X/%X on timeline %u, and this start begins at %X/%X on timeline %u.",
						   LSN_FORMAT_ARGS(header->redo), header->tli,
						   LSN_FORMAT_ARGS(start_redo), start_tli),
				 errhint("The server has run without ptrack, or could not write the map.  The next backup must be a full one.")));
		return PTRACK_RESET_STALE;
	}
	return PTRACK_RESET_NONE;
}

/*
 * The file in header_page is taken over: a start without ptrack that ends in
 * a crash leaves pg_control's redo point where it is, but not its state, and
 * is told from one with ptrack by this flag.
 */
static void
clear_shutdown(void)
{
	MapHeader  *header = &header_page.header;
	int			fd;

	if ((header->flags & HEADER_SHUTDOWN) == 0)
		return;
	header->flags &= ~HEADER_SHUTDOWN;
	header->crc = header_crc(&header_page);
	ptrack_shared->file_flags = header->flags;

	fd = BasicOpenFile(PTRACK_FILE, O_RDWR | PG_BINARY);
	if (fd < 0 || !write_fully(fd, &header_page, sizeof(header_page), 0) || pg_fsync(fd) != 0)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack init: could not write map file \"%s\": %m", absolute_path()),
				 errhint("If the server crashes before the next checkpoint, the next backup must be a full one.")));
	if (fd >= 0)
		close(fd);
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
	bool		crc_ok;
	bool		replays;

	control = get_controlfile(DataDir, &crc_ok);
	if (!crc_ok)
		ereport(FATAL,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("ptrack init: incorrect checksum in control file")));

	shared->sysid = control->system_identifier;
	shared->start_redo = start_of_replay(control, &start_tli, &replays);
	pg_atomic_write_u32(&shared->replayed, replays ? 1 : 0);

	unlink_file(PTRACK_FILE_TMP);
	unlink_file(PTRACK_FILE_MMAP);

	shared->reset = judge_file(control, shared->start_redo, start_tli);
	if (shared->reset == PTRACK_RESET_NONE)
	{
		const MapHeader *header = &header_page.header;

		pg_atomic_write_u64(&shared->init_lsn, header->init_lsn);
		pg_atomic_write_u64(&shared->whole_lsn, header->whole_lsn);
		shared->exists = true;
		shared->file_redo = header->redo;
		shared->file_tli = header->tli;
		shared->file_flags = header->flags;
		shared->file_nlines = header->nlines;
		shared->file_npages = header->nlines / PTRACK_LINES_PER_PAGE;
		shared->file_used = header->used;
		shared->used = header->used;
		shared->same_shape = header->nlines == shared->nlines;
		shared->in_place = shared->same_shape;
		if (shared->same_shape)
			memset(ptrack_page_state, PAGE_UNREAD, shared->npages);
		pg_atomic_write_u32(&shared->unread, shared->file_npages);
		clear_shutdown();
	}
	else
	{
		unlink_file(PTRACK_FILE);
		shared->fresh = true;
		shared->reset_time = GetCurrentTimestamp();
	}
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

	unlink_file(PTRACK_FILE);
	shared->exists = false;
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

	if (!page_is_zero(page))
	{
		if (!page_unseal(page, number))
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
static void
read_pages(int fd, uint32 number, uint32 n)
{
	PtrackShared *shared = ptrack_shared;
	uint32		left;

	Assert(n <= IO_PAGES);
	if (fd < 0 || !read_fully(fd, read_buffer, (size_t) n * PTRACK_PAGE_SIZE, page_offset(number)))
	{
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack read map: could not read map file \"%s\": %m", absolute_path()),
				 errdetail("The file is deleted, and a new map begun.")));
		begin_anew();
		return;
	}
	for (uint32 i = 0; i < n; i++)
	{
		if (shared->same_shape && (ptrack_page_state[number + i] & PAGE_UNREAD) == 0)
			continue;
		if (!merge_page(&read_buffer[i], number + i))
		{
			ereport(WARNING,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("ptrack read map: incorrect checksum of file \"%s\"", absolute_path()),
					 errdetail("The file is deleted, and a new map begun.")));
			begin_anew();
			return;
		}
		left = pg_atomic_read_u32(&shared->unread) - 1;
		if (left == 0 && shared->found_used < shared->file_used)
		{
			ereport(WARNING,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("ptrack read map: incorrect checksum of file \"%s\"", absolute_path()),
					 errdetail("%u of %u pages are missing.  The file is deleted, and a new map begun.",
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
 * Merge the next pages of the file, IO_PAGES at a time and rounds times, or
 * all that are left if rounds is 0.  False with errno set if the file cannot
 * be opened now: too many open files are no damage.  Caller holds the lock.
 */
static bool
read_next(int rounds)
{
	PtrackShared *shared = ptrack_shared;
	int			fd;

	if (pg_atomic_read_u32(&shared->unread) == 0)
		return true;
	fd = BasicOpenFile(PTRACK_FILE, O_RDONLY | PG_BINARY);
	if (fd < 0 && errno != ENOENT)
		return false;
	for (int i = 0; (i < rounds || rounds == 0) && pg_atomic_read_u32(&shared->unread) > 0; i++)
	{
		uint32		n = Min(IO_PAGES, shared->file_npages - shared->next_unread);

		/* no pages left, and some not merged, would be a bug here */
		if (n == 0)
			begin_anew();
		else
			read_pages(fd, shared->next_unread, n);
		shared->next_unread += n;
	}
	if (fd >= 0)
		close(fd);
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
	ok = read_next(16);
	save_errno = errno;
	LWLockRelease(shared->lock);
	if (!ok)
	{
		errno = save_errno;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("ptrack read map: could not open map file \"%s\": %m", absolute_path())));
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

/* Copy a page's slots as they are now, ready to be written. */
static void
copy_page(MapPage *page, uint32 number)
{
	const PtrackLine *line = &ptrack_lines[(Size) number * PTRACK_LINES_PER_PAGE];

	/* clear, then copy: see the order in map.c */
	ptrack_dirty[number] = 0;
	pg_memory_barrier();
	for (uint32 i = 0; i < PTRACK_SLOTS_PER_PAGE; i++)
		page->slot[i] = pg_atomic_read_u64(unconstify(pg_atomic_uint64 *,
													  &line[i / PTRACK_CHUNK_BLOCKS].slot[i % PTRACK_CHUNK_BLOCKS]));
	page_seal(page, number);
}

static bool
page_has_marks(uint32 number)
{
	for (uint32 i = 0; i < PTRACK_LINES_PER_PAGE; i++)
		if (pg_atomic_read_u64(&ptrack_line_max[number * PTRACK_LINES_PER_PAGE + i]) != 0)
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
				read_pages(fd, number, 1);
			if (!all && !shared->in_place)
			{
				ptrack_dirty[first] = 1;
				errno = EIO;
				return -1;
			}
			copy_page(&write_buffer[n++], number);
			number = next_page(number + 1, all);
		} while (n < IO_PAGES && number < shared->npages && number == first + n);

		if (!write_fully(fd, write_buffer, (size_t) n * PTRACK_PAGE_SIZE, page_offset(first)))
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
	header->flags = flags;
	header->nlines = shared->nlines;
	header->used = shared->used;
	header->blcksz = BLCKSZ;
	header->segment_blocks = RELSEG_SIZE;
	header->crc = header_crc(&header_page);
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
	if (ftruncate(fd, file_size(shared->npages)) == 0)
		written = write_pages(fd, true);
	if (written >= 0)
	{
		make_header(redo, tli, flags);
		if (!write_fully(fd, &header_page, sizeof(header_page), 0) || pg_fsync(fd) != 0)
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
		if (durable_rename(PTRACK_FILE_TMP, PTRACK_FILE, WARNING) != 0)
			written = -1;
	}
	if (written < 0)
	{
		save_errno = errno;
		unlink_file(PTRACK_FILE_TMP);
		errno = save_errno;
		return -1;
	}
	shared->in_place = true;
	shared->unsynced = false;
	return written;
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
		if (!write_fully(fd, &header_page, sizeof(header_page), 0) || pg_fsync(fd) != 0)
		{
			/* it may be there in part: a new file, next time */
			shared->in_place = false;
			written = -1;
		}
	}
	save_errno = errno;
	close(fd);
	errno = save_errno;
	return written;
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
	if (!read_next(0))
		return -1;
	if (redo == InvalidXLogRecPtr)
	{
		if (!shared->exists)
			return 0;
		redo = shared->file_redo;
		tli = shared->file_tli;
		flags = shared->file_flags;
	}
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
 * The checkpoint with this redo point has written its buffers and files.
 */
void
ptrack_file_flush(XLogRecPtr redo, bool end_of_recovery, bool shutdown)
{
	PtrackShared *shared = ptrack_shared;
	bool		in_recovery = RecoveryInProgress();
	TimestampTz started = GetCurrentTimestamp();
	TimeLineID	tli;
	uint32		flags = 0;
	XLogRecPtr	init_lsn;
	int64		written;

	if (end_of_recovery)
		flags |= HEADER_END_OF_RECOVERY;
	if (shutdown)
		flags |= HEADER_SHUTDOWN;
	if (in_recovery)
		(void) GetXLogReplayRecPtr(&tli);
	else
		tli = GetWALInsertionTimeLine();

	/* step 4, with nobody waiting for the lock; the header comes later */
	if (!in_recovery || end_of_recovery)
		XLogFlush(end_of_wal_before(redo));

	/* as map.c says: first this, then the published ranges */
	pg_atomic_write_u64(&shared->flush_redo, redo);
	pg_memory_barrier();

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	ptrack_mark_published();

	/* all that happened since this start is marked, so its beginning is known */
	init_lsn = pg_atomic_read_u64(&shared->init_lsn);
	if (shared->fresh && (init_lsn == 0 || redo < init_lsn))
		pg_atomic_write_u64(&shared->init_lsn, redo);

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
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack checkpoint: could not write map file \"%s\": %m", absolute_path()),
				 errdetail("Changes stay known in memory, and the next checkpoint writes them."),
				 errhint("If the server crashes before that, the next backup must be a full one.")));
	}
	else
	{
		shared->fresh = false;
		shared->file_redo = redo;
		shared->file_tli = tli;
		shared->file_flags = flags;
		shared->flush_failures = 0;
		shared->flush_pages = written;
		shared->flush_time = GetCurrentTimestamp();
		shared->flush_usecs = shared->flush_time - started;
	}
	LWLockRelease(shared->lock);
}

/*
 * Make all complete marks durable now.  If that cannot be done, there must be
 * no file that a start would accept.
 */
void
ptrack_file_write_through(void)
{
	PtrackShared *shared = ptrack_shared;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (shared->exists && write_file(InvalidXLogRecPtr, 0, 0) < 0)
	{
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("ptrack: could not write map file \"%s\", deleting: %m", absolute_path()),
				 errdetail("Changes stay known in memory, and the next checkpoint writes them."),
				 errhint("If the server crashes before that, the next backup must be a full one.")));
		if (durable_unlink(PTRACK_FILE, WARNING) != 0 && errno != ENOENT)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("ptrack: could not remove file \"%s\": %m", absolute_path())));
		shared->exists = false;
		shared->in_place = false;
	}
	LWLockRelease(shared->lock);
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
			XLogRecPtr	now = ptrack_now();

			/*
			 * not since the redo point itself: marks of the time before are
			 * gone
			 */
			pg_atomic_write_u64(&shared->init_lsn, Max(now, shared->start_redo + 8));
		}
		LWLockRelease(shared->lock);
	}
	return pg_atomic_read_u64(&shared->init_lsn);
}
