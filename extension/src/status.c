/*-------------------------------------------------------------------------
 *
 * status.c
 *	  What operators see of the map: ptrack_status, ptrack_map_fill.
 *
 * Nothing is changed or decided here.  ptrack_shared->lock is held, shared,
 * to copy what is under it; the map is read without.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "map.h"
#include "mapfile.h"
#include "ptrack.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(ptrack_status);
PG_FUNCTION_INFO_V1(ptrack_map_fill);

#define STATUS_COLUMNS	16

static const char *
reset_reason(PtrackReset reset)
{
	switch (reset)
	{
		case PTRACK_RESET_NONE:
			break;
		case PTRACK_RESET_NO_FILE:
			return "there was no map file";
		case PTRACK_RESET_DAMAGED:
			return "the map file was damaged";
		case PTRACK_RESET_FOREIGN:
			return "the map file was another cluster's or of another format";
		case PTRACK_RESET_STALE:
			return "the server had run without ptrack, or could not write the map before a crash";
		case PTRACK_RESET_UNLOGGED:
			return "the server had run with wal_level=minimal";
	}
	return "unknown";
}

/* Lines that have a mark at or after lsn. */
static uint32
count_lines(XLogRecPtr lsn)
{
	uint32		n = 0;

	for (uint32 i = 0; i < ptrack_shared->nlines; i++)
	{
		if (i % 65536 == 0)
			CHECK_FOR_INTERRUPTS();
		if (pg_atomic_read_u64(&ptrack_summaries[i].max) >= lsn)
			n++;
	}
	return n;
}

static Datum
lsn_or_null(XLogRecPtr lsn, bool *isnull)
{
	*isnull = XLogRecPtrIsInvalid(lsn);
	return LSNGetDatum(lsn);
}

/*
 * ptrack_status(): one row, whose columns the extension's script describes.
 */
Datum
ptrack_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rows = ptrack_begin_rows(fcinfo);
	PtrackShared shared;
	Datum		values[STATUS_COLUMNS];
	bool		nulls[STATUS_COLUMNS];
	int			i = 0;

	memset(nulls, true, sizeof(nulls));
	memset(values, 0, sizeof(values));
	values[0] = BoolGetDatum(ptrack_enabled());
	nulls[0] = false;
	if (ptrack_enabled())
	{
		memset(nulls, false, sizeof(nulls));
		LWLockAcquire(ptrack_shared->lock, LW_SHARED);
		shared = *ptrack_shared;
		LWLockRelease(ptrack_shared->lock);

		i++;
		values[i++] = Int64GetDatum((int64) ptrack_map_size * 1024 * 1024);
		values[i++] = Int64GetDatum((int64) ptrack_map_shmem_size());
		values[i] = Float8GetDatum((double) count_lines(1) / shared.nlines);
		nulls[i++] = pg_atomic_read_u32(&shared.unread) != 0;
		values[i] = lsn_or_null(pg_atomic_read_u64(&shared.init_lsn), &nulls[i]);
		i++;
		values[i] = lsn_or_null(pg_atomic_read_u64(&shared.whole_lsn), &nulls[i]);
		i++;
		values[i++] = BoolGetDatum(pg_atomic_read_u32(&shared.replayed) != 0);
		values[i++] = BoolGetDatum(pg_atomic_read_u32(&shared.unread) == 0);
		values[i++] = TimestampTzGetDatum(shared.reset_time);
		values[i++] = CStringGetTextDatum(reset_reason(shared.reset));
		values[i] = lsn_or_null(shared.exists ? shared.file_redo : InvalidXLogRecPtr, &nulls[i]);
		i++;
		values[i] = TimestampTzGetDatum(shared.flush_time);
		nulls[i++] = shared.flush_time == 0;
		values[i] = Int64GetDatum(shared.flush_pages);
		nulls[i++] = shared.flush_time == 0;
		values[i] = Float8GetDatum((double) shared.flush_usecs / 1000.0);
		nulls[i++] = shared.flush_time == 0;
		values[i++] = Int64GetDatum(shared.flush_failures);
		values[i++] = Int64GetDatum(shared.write_throughs);
		Assert(i == STATUS_COLUMNS);
	}
	tuplestore_putvalues(rows->setResult, rows->setDesc, values, nulls);
	return (Datum) 0;
}

/*
 * ptrack_map_fill(start_lsn pg_lsn) returns double precision: the share of
 * the map's slots that a mark since start_lsn is in.  An unchanged block is
 * reported with about its square as probability.
 */
Datum
ptrack_map_fill(PG_FUNCTION_ARGS)
{
	XLogRecPtr	lsn = Max(PG_GETARG_LSN(0), 1);
	uint64		n = 0;

	if (!ptrack_enabled())
	{
		ereport(WARNING, (errmsg("ptrack is disabled")));
		PG_RETURN_NULL();
	}
	ptrack_file_read_all();
	for (uint32 i = 0; i < ptrack_shared->nlines; i++)
	{
		if (i % 4096 == 0)
			CHECK_FOR_INTERRUPTS();
		if (pg_atomic_read_u64(&ptrack_summaries[i].max) < lsn)
			continue;
		for (int k = 0; k < PTRACK_CHUNK_BLOCKS; k++)
			n += pg_atomic_read_u64(&ptrack_lines[i].slot[k]) >= lsn;
	}
	PG_RETURN_FLOAT8((double) n / ((double) ptrack_shared->nlines * PTRACK_CHUNK_BLOCKS));
}
