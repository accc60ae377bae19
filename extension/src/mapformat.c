/*-------------------------------------------------------------------------
 *
 * mapformat.c
 *	  The map's file: its pages, and reading and writing pieces of it.
 *
 * global/ptrack.map is a header page and the lines, in pages of 4096 bytes.
 * Every byte is covered by a checksum: the header's is in the header, a
 * page's is spread over the low three bits of its first slots, which an LSN
 * leaves zero.  So a page is written in one aligned piece, and a write that
 * is cut short is seen.  A page without marks may be a hole; the header says
 * how many pages are in use, so that a lost page is seen as well.
 *
 * Locking and durability are the callers' matter: mapload.c, mapflush.c.
 * Code here may run in a critical section: it allocates nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "compat.h"
#include "map.h"
#include "mapfile.h"
#include "mapformat.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"

#define LOW_BITS	7			/* of a slot, zero in an LSN */

StaticAssertDecl(PTRACK_SLOTS_PER_PAGE * 3 >= 32, "a page has room for its checksum");

/* The map's file, as the log names it. */
const char *
ptrack_map_path(void)
{
	static char path[MAXPGPATH];

	snprintf(path, sizeof(path), "%s/%s", DataDir, PTRACK_FILE);
	return path;
}

/* The header's checksum. */
pg_crc32c
mapheader_crc(const HeaderPage *page)
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
void
mappage_seal(MapPage *page, uint32 number)
{
	uint64		crc = page_crc(page, number);

	for (int i = 0; crc != 0; i++, crc >>= 3)
		page->slot[i] |= crc & LOW_BITS;
}

/* Take the checksum out of the low bits; false if it is wrong. */
bool
mappage_unseal(MapPage *page, uint32 number)
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

/* Is the page without marks? */
bool
mappage_is_zero(const MapPage *page)
{
	for (uint32 i = 0; i < PTRACK_SLOTS_PER_PAGE; i++)
		if (page->slot[i] != 0)
			return false;
	return true;
}

/*
 * pread and pwrite of all or an error; a file that ends early is EIO.
 */
bool
ptrack_read(int fd, void *buf, size_t size, off_t offset)
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

bool
ptrack_write(int fd, const void *buf, size_t size, off_t offset)
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

/*
 * Remove a file that need not be there, durably.  That it fails is told to no
 * client, as by report_to_log.
 */
void
ptrack_unlink(const char *path)
{
	if (access(path, F_OK) == 0)
		(void) durable_unlink(path, LOG_SERVER_ONLY);
}
