/*-------------------------------------------------------------------------
 *
 * ptrack_bench.c
 *	  Marks without writes: what md.c calls around a change, called as often
 *	  as is asked, for a relation that need not exist.
 *
 * The hooks are the server's own, so that what is timed is what production
 * runs.  Where they are not set, what is left is the loop.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "catalog/pg_tablespace_d.h"
#include "compat.h"
#include "storage/changetrack.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(bench_marks);
PG_FUNCTION_INFO_V1(bench_mark_share);

/* how many marks pass between two looks at the signals */
#define MARKS_PER_CHECK		4096

/* A negative number is a temporary relation's. */
static SMgrRelation
made_up(int64 rel)
{
	RelFileLocator locator;

	locator.spcOid = DEFAULTTABLESPACE_OID;
	locator.dbOid = MyDatabaseId;
	locator.relNumber = (Oid) (rel < 0 ? -rel : rel);
	/* which process's it is does not matter here; -1 is none: not temporary */
	return smgropen(locator, rel < 0 ? 1 : -1);
}

static inline void
change(SMgrRelation reln, BlockNumber first, BlockNumber end)
{
	if (change_begin_hook)
		change_begin_hook(reln, MAIN_FORKNUM, first, end, false, NULL);
	if (change_end_hook)
		change_end_hook();
}

/*
 * Nanoseconds that this process has had a core: what else runs on the machine,
 * or waits for its turn, is not the cost of a mark.
 */
static int64
core_time(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now) != 0)
		elog(ERROR, "could not read the time of this process: %m");
	return (int64) now.tv_sec * INT64CONST(1000000000) + now.tv_nsec;
}

/* splitmix64 */
static inline uint64
next_random(uint64 *state)
{
	uint64		z = (*state += UINT64CONST(0x9E3779B97F4A7C15));

	z = (z ^ (z >> 30)) * UINT64CONST(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64CONST(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

/*
 * bench_marks(rel bigint, scattered bool, span bigint, space bigint,
 *			   count bigint, seed bigint) returns double precision
 *
 * Changes ranges of span blocks, count times, within the first space blocks
 * of a relation: one behind the other and again from the beginning, or
 * wherever chance has it.  Returns the nanoseconds on a core that took.
 */
Datum
bench_marks(PG_FUNCTION_ARGS)
{
	SMgrRelation reln = made_up(PG_GETARG_INT64(0));
	bool		scattered = PG_GETARG_BOOL(1);
	uint64		span = (uint64) PG_GETARG_INT64(2);
	uint64		space = (uint64) PG_GETARG_INT64(3);
	int64		count = PG_GETARG_INT64(4);
	uint64		state = (uint64) PG_GETARG_INT64(5);
	uint64		places;
	uint64		next = 0;
	int64		begin;

	if (span == 0 || space < span || space > MaxBlockNumber)
		elog(ERROR, "span and space do not fit");
	places = space / span;

	begin = core_time();
	for (int64 i = 0; i < count; i++)
	{
		uint64		place;

		if (scattered)
			place = ((next_random(&state) >> 32) * places) >> 32;
		else
		{
			place = next;
			if (++next == places)
				next = 0;
		}
		change(reln, (BlockNumber) (place * span), (BlockNumber) (place * span + span));
		if (i % MARKS_PER_CHECK == 0)
			CHECK_FOR_INTERRUPTS();
	}
	PG_RETURN_FLOAT8((double) (core_time() - begin));
}

/*
 * bench_mark_share(rel bigint, run bigint, space bigint, share double
 *					precision, seed bigint) returns bigint
 *
 * Changes each run of run blocks of the first space blocks of a relation with
 * the probability share.  Returns the blocks that were changed.
 */
Datum
bench_mark_share(PG_FUNCTION_ARGS)
{
	SMgrRelation reln = made_up(PG_GETARG_INT64(0));
	uint64		run = (uint64) PG_GETARG_INT64(1);
	uint64		space = (uint64) PG_GETARG_INT64(2);
	uint64		below = (uint64) (PG_GETARG_FLOAT8(3) * 4294967296.0);
	uint64		state = (uint64) PG_GETARG_INT64(4);
	int64		changed = 0;

	if (run == 0 || space > MaxBlockNumber)
		elog(ERROR, "run and space do not fit");

	for (uint64 first = 0; first + run <= space; first += run)
	{
		if (next_random(&state) >> 32 < below)
		{
			change(reln, (BlockNumber) first, (BlockNumber) (first + run));
			changed += run;
			if (changed % MARKS_PER_CHECK < (int64) run)
				CHECK_FOR_INTERRUPTS();
		}
	}
	PG_RETURN_INT64(changed);
}
